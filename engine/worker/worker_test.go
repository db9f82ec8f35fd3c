package worker_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"lode/engine"
	"lode/engine/enginetest"
	"lode/engine/wasm"
	"lode/engine/worker"
)

// TestMain is the worker too: tests start this binary again.
func TestMain(m *testing.M) {
	if os.Getenv("LODE_TEST_WORKER") == "" {
		os.Exit(m.Run())
	}
	d, err := wasm.New(wasm.Config{})
	if err == nil {
		err = worker.Main(context.Background(), os.Stdin, os.Stdout, d)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func newDriver(t testing.TB) engine.Driver {
	inner, err := wasm.New(wasm.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	d, err := worker.New(worker.Config{Inner: inner, Command: []string{os.Args[0]}, Env: append(os.Environ(), "LODE_TEST_WORKER=1"), Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDriver(t *testing.T) { enginetest.Run(t, newDriver) }
