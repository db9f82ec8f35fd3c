// Command lode is the one binary of Lode: the node (lode up, lode dev) and
// everything that is done with it. One file holds one subcommand.
//
// It promises the exit codes of the documentation, listings on stdout with
// progress and hints on stderr, and that every failure says what to do next.
// Rules about functions, data or jobs are not here: the command speaks to a
// node through package api.
package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"syscall"

	"lode"
	"lode/api"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// exitInterrupted is the exit code of a command that Ctrl-C ended.
const exitInterrupted = 130

// run is the whole program, with nothing of the process but the environment.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	c := &cli{in: stdin, out: stdout, err: stderr, getenv: os.Getenv, release: stop}
	root := c.root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	c.close()
	if err == nil {
		return 0
	}
	if ctx.Err() != nil && (lode.KindOf(err) == lode.Cancelled || errors.Is(err, context.Canceled)) {
		return exitInterrupted
	}
	if code, ok := errors.AsType[exitCode](err); ok {
		return int(code)
	}
	e := usage(err)
	c.printError(e)
	if api.Unreachable(e) {
		return lode.Unauthenticated.ExitCode() // "cannot reach or authenticate"
	}
	return e.Kind.ExitCode()
}

// exitCode ends the program with a code; what there was to say was said.
type exitCode int

func (exitCode) Error() string { return "the command failed" }

// usage makes an error of cobra's into one of kind Invalid: every other error
// is a *lode.Error.
func usage(err error) *lode.Error {
	if e, ok := errors.AsType[*lode.Error](err); ok {
		return e
	}
	return &lode.Error{Kind: lode.Invalid, Detail: err.Error(), Hint: "lode --help lists the commands", Err: err}
}
