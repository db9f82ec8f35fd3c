package worker_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"lode"
	"lode/engine"
	"lode/engine/enginetest"
	"lode/engine/wasm"
	"lode/engine/worker"
	"lode/sdk/abi"
)

// TestMain is the worker too: tests start this binary again.
func TestMain(m *testing.M) {
	if os.Getenv("LODE_TEST_WORKER") == "" {
		code := m.Run()
		if err := goleak.Find(); err != nil && code == 0 {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		os.Exit(code)
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
	inner, err := wasm.New(wasm.Config{})
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

// shard is a file that can go bad.
type shard struct{ f *os.File }

func (s shard) File() (uintptr, int64)                  { return s.f.Fd(), 8 << 20 }
func (s shard) ReadAt(p []byte, off int64) (int, error) { return s.f.ReadAt(p, off) }

// TestBadPage: a shard that is cut while it is mapped ends the worker and not
// this process, and the next invocation works.
func TestBadPage(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("windows are mapped on linux only")
	}
	p := enginetest.Pool(t, newDriver(t), enginetest.C(t, "probe"), engine.Config{})
	path := filepath.Join(t.TempDir(), "shard")
	if err := os.WriteFile(path, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var once sync.Once
	host := &enginetest.Host{Do: func(_ context.Context, _ abi.Op, _ lode.Message, done func(lode.Message, error)) {
		once.Do(func() { f.Truncate(4096) }) // the window is mapped by now
		done(lode.Message{}, nil)
	}}
	inv := &engine.Invocation{Body: []byte("badwindow"), Out: &enginetest.Answer{}, Host: host, Windows: shard{f}, Deadline: time.Now().Add(20 * time.Second)}
	err = p.Invoke(context.Background(), inv)
	if e := lode.AsError(err); e == nil || e.Kind != lode.Crashed || e.Guest == nil || e.Guest.Type != "worker" {
		t.Fatalf("%v", err)
	}
	for range 3 {
		if got, _, err := enginetest.Call(p, "count"); err != nil || got != "1" {
			t.Fatalf("%q, %v", got, err)
		}
	}
}

// TestFrames: whatever comes instead of frames, a worker ends with an error
// and not otherwise.
func TestFrames(t *testing.T) {
	for _, in := range []string{"x", "\xff\xff\xff\xff\x00\x00\x00\x00", "\x06\x00\x00\x00\x02\x00\x00\x00{}", "\x08\x00\x00\x00\x04\x00\x00\x00null"} {
		d, err := wasm.New(wasm.Config{})
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		worker.Main(context.Background(), strings.NewReader(in), &out, d)
	}
}
