package link

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"lode"
)

// asNode makes the test's binary a node that serves until it is killed.
const asNode = "LODE_LINK_TEST_NODE"

func init() {
	if os.Getenv(asNode) == "" {
		return
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		os.Exit(1)
	}
	l := New(Config{Self: "child", Logger: slog.New(slog.DiscardHandler), Handle: map[string]Handler{
		"echo": echo,
		"hang": func(ctx context.Context, _ *Incoming) error { <-ctx.Done(); return nil },
		"die": func(ctx context.Context, in *Incoming) error {
			if err := in.Note([]byte("last words")); err != nil {
				return err
			}
			return syscall.Kill(os.Getpid(), syscall.SIGKILL)
		},
	}})
	fmt.Println(ln.Addr())
	for {
		nc, err := ln.Accept()
		if err != nil {
			os.Exit(1)
		}
		go l.Serve(nc, "parent")
	}
}

// child starts a node in a process of its own.
func child(t *testing.T) (*exec.Cmd, string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), asNode+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	s := bufio.NewScanner(out)
	if !s.Scan() {
		t.Fatal("the node did not start")
	}
	return cmd, s.Text()
}

func toChild(t *testing.T, addr *atomic.Value) *Link {
	l := New(Config{Self: "parent", Logger: slog.New(slog.DiscardHandler), BeatEvery: 50 * time.Millisecond, LostAfter: 400 * time.Millisecond,
		Dial: func(ctx context.Context, _ lode.NodeID) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr.Load().(string))
		}})
	t.Cleanup(func() { l.Close() })
	l.SetPeers([]lode.NodeID{"child"})
	waitUp(t, l, "child")
	return l
}

// TestStoppedProcess: a peer that SIGSTOP holds is lost, though its machine
// takes every byte; when it goes on it is found again.
func TestStoppedProcess(t *testing.T) {
	cmd, at := child(t)
	var addr atomic.Value
	addr.Store(at)
	l := toChild(t, &addr)
	cmd.Process.Signal(syscall.SIGSTOP)
	if err := l.Call(t.Context(), "child", &Request{Method: "hang"}, nil); !errors.Is(err, ErrLost) && !errors.Is(err, ErrNotSent) {
		t.Errorf("a call to a stopped process: %v", err)
	}
	cmd.Process.Signal(syscall.SIGCONT)
	heals(t, l, "child")
}

// TestLastWords: a note whose Note has returned arrives, though the process
// dies with the next instruction; the call is lost, not unsent.
func TestLastWords(t *testing.T) {
	var addr atomic.Value
	_, at := child(t)
	addr.Store(at)
	l := toChild(t, &addr)
	for i := range 5 {
		if i > 0 {
			_, at = child(t)
			addr.Store(at)
			heals(t, l, "child")
		}
		heard := ""
		err := l.Call(t.Context(), "child", &Request{Method: "die", Note: func(b []byte) []byte {
			heard = string(b)
			return nil
		}}, nil)
		if !errors.Is(err, ErrLost) || heard != "last words" {
			t.Fatalf("heard %q, and the call ended with %v", heard, err)
		}
	}
}
