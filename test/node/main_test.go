//go:build linux

package node

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// lab is what the tests of this package share: the command, and programs for
// it, built once.
var lab struct {
	dir  string
	lode string
}

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if lab.dir, err = os.MkdirTemp("", "lode-test-"); err != nil {
		return 1, err
	}
	defer os.RemoveAll(lab.dir)
	lab.lode = filepath.Join(lab.dir, "lode")
	build := exec.Command("go", "build", "-o", lab.lode, "lode/cmd/lode")
	if out, err := build.CombinedOutput(); err != nil {
		return 1, fmt.Errorf("build the command: %w\n%s", err, out)
	}
	go nursery()
	return m.Run(), nil
}

// births asks the nursery for a process.
var births = make(chan func())

// nursery starts every child from one thread that lives as long as the tests
// do: the kernel kills them with it, however the tests end.
func nursery() {
	runtime.LockOSThread()
	for f := range births {
		f()
	}
}

// startProcess starts cmd so that it cannot outlive the tests.
func startProcess(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	result := make(chan error)
	births <- func() { result <- cmd.Start() }
	return <-result
}

// long says whether there is time for long rounds.
func long() bool { return os.Getenv("LODE_LONG") != "" }

// rounds is how often a crash test kills the node.
func rounds(short int) int {
	if long() {
		return 6 * short
	}
	return short
}

// clean is the environment without what a user's own settings add.
func clean(extra ...string) []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "LODE_") && !strings.HasPrefix(kv, "OTEL_") && !strings.HasPrefix(kv, "HTTP_PROXY") && !strings.HasPrefix(kv, "http_proxy") {
			env = append(env, kv)
		}
	}
	return append(env, extra...)
}
