//go:build linux

// Package child starts the processes of tests, so that none outlives them.
package child

import (
	"bytes"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// births asks the nursery for a process.
var births = sync.OnceValue(func() chan<- func() {
	c := make(chan func())
	go nursery(c)
	return c
})

// nursery starts every child from one thread that lives as long as the tests
// do: the kernel kills them with it, however the tests end.
func nursery(births <-chan func()) {
	runtime.LockOSThread()
	for f := range births {
		f()
	}
}

// Start starts cmd so that it cannot outlive the tests.
func Start(cmd *exec.Cmd) error {
	return StartBy(cmd, func(start func() error) error { return start() })
}

// StartBy is Start by way of by, which calls start on the thread that it is
// called on.
func StartBy(cmd *exec.Cmd, by func(start func() error) error) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	result := make(chan error)
	births() <- func() { result <- by(cmd.Start) }
	return <-result
}

// Dump has a process of Go say what its goroutines do, and end.
func Dump(cmd *exec.Cmd, done <-chan struct{}) {
	cmd.Process.Signal(syscall.SIGQUIT)
	select {
	case <-done:
	case <-time.After(10 * time.Second):
	}
}

// Environment is this process's without what a user's own settings add, and
// extra.
func Environment(extra ...string) []string {
	var env []string
	for _, kv := range os.Environ() {
		k, _, _ := strings.Cut(strings.ToUpper(kv), "=")
		if !strings.HasPrefix(k, "LODE_") && !strings.HasPrefix(k, "OTEL_") && !strings.HasSuffix(k, "_PROXY") && k != "HOME" {
			env = append(env, kv)
		}
	}
	return append(env, extra...)
}

// Transcript keeps what a process says.
type Transcript struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (w *Transcript) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

func (w *Transcript) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

// Reset forgets it.
func (w *Transcript) Reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.b.Reset()
}
