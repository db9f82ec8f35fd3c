package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lode"
)

// transports runs f over plain TCP and over TLS.
func transports(t *testing.T, f func(t *testing.T, w *town)) {
	for _, secure := range []bool{false, true} {
		t.Run(map[bool]string{false: "tcp", true: "tls"}[secure], func(t *testing.T) { f(t, newTown(t, secure)) })
	}
}

func TestCall(t *testing.T) {
	transports(t, func(t *testing.T, w *town) {
		a, b := w.add("a", Config{}), w.add("b", Config{Handle: map[string]Handler{"echo": echo}})
		connect(t, a, b)
		for _, n := range []int{0, 1, 1000, MaxBody, MaxBody + 1, 1 << 20} {
			head, body := make([]byte, min(n, MaxHead)), make([]byte, n)
			fill(head, 1)
			fill(body, 2)
			var got Bytes
			r := &Request{Method: "echo", Head: head, Body: body}
			if n > MaxBody {
				r.Method = "echo"
			}
			err := a.Call(t.Context(), "b", r, &got)
			if err != nil {
				t.Fatalf("%d bytes: %v", n, err)
			}
			if !bytes.Equal(got.HeadBytes, head) || !bytes.Equal(got.Body, body[:min(n, MaxBody)]) {
				t.Fatalf("%d bytes: got a head of %d and a body of %d bytes", n, len(got.HeadBytes), len(got.Body))
			}
		}
	})
}

func fill(b []byte, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 7))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
}

func TestManyCallers(t *testing.T) {
	transports(t, func(t *testing.T, w *town) {
		a, b := w.add("a", Config{Handle: map[string]Handler{"echo": echo}}), w.add("b", Config{Handle: map[string]Handler{"echo": echo}})
		connect(t, a, b)
		var wg sync.WaitGroup
		var bad atomic.Int64
		for i := range 2000 {
			wg.Go(func() {
				from, to := a, b
				if i%2 == 1 {
					from, to = b, a
				}
				body := []byte(fmt.Sprintf("%d %s", i, strings.Repeat("x", i%3000)))
				var got Bytes
				if err := from.Call(t.Context(), to.cfg.Self, &Request{Method: "echo", Body: body}, &got); err != nil || !bytes.Equal(got.Body, body) {
					bad.Add(1)
				}
			})
		}
		wg.Wait()
		if bad.Load() > 0 {
			t.Errorf("%d of 2000 calls went wrong", bad.Load())
		}
	})
}

func TestStreams(t *testing.T) {
	transports(t, func(t *testing.T, w *town) {
		double := func(ctx context.Context, in *Incoming) error {
			if err := in.Begin([]byte("head")); err != nil {
				return err
			}
			_, err := io.Copy(in, in.Whole())
			return err
		}
		a, b := w.add("a", Config{}), w.add("b", Config{Handle: map[string]Handler{"copy": double}})
		connect(t, a, b)
		for _, n := range []int{0, 1, 100, 4096, 65536, 65537, 300_000, 5 << 20} {
			body := make([]byte, n)
			fill(body, 3)
			for name, r := range map[string]*Request{
				"body":   {Method: "copy", Body: body},
				"stream": {Method: "copy", Stream: bytes.NewReader(body)},
				"both":   {Method: "copy", Body: body[:n/3], Stream: bytes.NewReader(body[n/3:])},
			} {
				var got Bytes
				if err := a.Call(t.Context(), "b", r, &got); err != nil {
					t.Fatalf("%s of %d: %v", name, n, err)
				}
				if !bytes.Equal(got.Body, body) || string(got.HeadBytes) != "head" {
					t.Fatalf("%s of %d bytes came back as %d", name, n, len(got.Body))
				}
			}
		}
	})
}

func TestErrors(t *testing.T) {
	w := newTown(t, false)
	full := &lode.Error{Kind: lode.Overloaded, Title: "slow down", Detail: "queue of f is full", Hint: "wait", Invocation: "i1", Trace: "0af7651916cd43dd8448eb211c80319c", RetryAfter: 1500 * time.Millisecond,
		Guest: &lode.GuestError{Type: "T", Message: "m", Stack: []string{"a", "b"}}}
	huge := lode.Errorf(lode.Crashed, "%s", strings.Repeat("long ", 40_000))
	h := map[string]Handler{
		"full":  func(context.Context, *Incoming) error { return full },
		"wrap":  func(context.Context, *Incoming) error { return fmt.Errorf("while testing: %w", full) },
		"plain": func(context.Context, *Incoming) error { return errors.New("oops") },
		"late":  func(context.Context, *Incoming) error { return context.DeadlineExceeded },
		"huge":  func(context.Context, *Incoming) error { return huge },
		"panic": func(context.Context, *Incoming) error { panic("ouch") },
		"part": func(_ context.Context, in *Incoming) error {
			in.Begin([]byte("h"))
			in.Write([]byte("some"))
			return full
		},
	}
	a, b := w.add("a", Config{}), w.add("b", Config{Handle: h})
	connect(t, a, b)
	for method, want := range map[string]lode.Kind{"full": lode.Overloaded, "wrap": lode.Overloaded, "plain": lode.Internal, "late": lode.Deadline, "huge": lode.Crashed, "panic": lode.Internal, "part": lode.Overloaded, "absent": lode.NotFound} {
		var got Bytes
		err := a.Call(t.Context(), "b", &Request{Method: method}, &got)
		if lode.KindOf(err) != want {
			t.Errorf("%s: %v", method, err)
		}
		if errors.Is(err, ErrLost) || errors.Is(err, ErrNotSent) || errors.Is(err, ErrRefused) != (method == "absent") {
			t.Errorf("%s: %v claims to be of the link", method, err)
		}
		if want == lode.Overloaded && !reflect.DeepEqual(err, full) {
			t.Errorf("%s: %#v", method, err)
		}
		if method == "part" && string(got.Body) != "some" {
			t.Errorf("the part before the error: %q", got.Body)
		}
	}
	err := a.Call(t.Context(), "nobody", &Request{Method: "full"}, nil)
	if !errors.Is(err, ErrNotSent) || lode.KindOf(err) != lode.Unavailable || lode.AsError(err).RetryAfter == 0 {
		t.Errorf("a call to nobody: %v", err)
	}
}
