//go:build linux

package agents

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

// lab is what the tests of this package share: a folder, and the command.
var lab struct{ dir, lode string }

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if lab.dir, err = os.MkdirTemp("", "lode-agents-"); err != nil {
		return 1, err
	}
	defer os.RemoveAll(lab.dir)
	lab.lode = filepath.Join(lab.dir, "lode")
	if out, err := exec.Command("go", "build", "-o", lab.lode, "lode/cmd/lode").CombinedOutput(); err != nil {
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

// scale is short, or many where there is time.
func scale(short, many int) int {
	if os.Getenv("LODE_LONG") != "" {
		return many
	}
	return short
}

// clean is the environment without what a user's own settings add.
func clean(extra ...string) []string {
	var env []string
	for _, kv := range os.Environ() {
		k, _, _ := strings.Cut(strings.ToUpper(kv), "=")
		if !strings.HasPrefix(k, "LODE_") && !strings.HasPrefix(k, "OTEL_") && !strings.HasSuffix(k, "_PROXY") && k != "HOME" {
			env = append(env, kv)
		}
	}
	return append(env, extra...)
}
