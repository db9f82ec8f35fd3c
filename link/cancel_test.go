package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"testing"
	"time"

	"lode"
)

// blocker is a body that blocks until it is let go.
type blocker struct{ c chan struct{} }

func (b blocker) Read([]byte) (int, error) {
	<-b.c
	return 0, io.EOF
}

func TestCancel(t *testing.T) {
	w := newTown(t, false)
	seen := make(chan error, 1)
	started := make(chan struct{}, 1)
	gone := func(ctx context.Context) error {
		<-ctx.Done()
		seen <- ctx.Err()
		return ctx.Err()
	}
	h := map[string]Handler{
		"hang": func(ctx context.Context, in *Incoming) error {
			started <- struct{}{}
			return gone(ctx)
		},
		"read": func(ctx context.Context, in *Incoming) error {
			started <- struct{}{}
			_, err := io.Copy(io.Discard, in.Whole())
			if lode.KindOf(err) != lode.Cancelled {
				t.Errorf("the body ended with %v", err)
			}
			return gone(ctx)
		},
		"write": func(ctx context.Context, in *Incoming) error {
			in.Begin(nil)
			for i := 0; ; i++ {
				if i == 3 {
					started <- struct{}{}
				}
				if _, err := in.Write(make([]byte, maxChunk)); err != nil {
					if k := lode.KindOf(err); k != lode.Cancelled && k != lode.Deadline {
						t.Errorf("the answer ended with %v", err)
					}
					return gone(ctx)
				}
			}
		},
		"notes": func(ctx context.Context, in *Incoming) error {
			started <- struct{}{}
			for in.Note([]byte("n")) == nil {
				time.Sleep(time.Millisecond)
			}
			return gone(ctx)
		},
		"derived": func(ctx context.Context, in *Incoming) error {
			child, cancel := context.WithTimeout(ctx, time.Hour)
			defer cancel()
			started <- struct{}{}
			return gone(child)
		},
	}
	a, b := w.add("a", Config{}), w.add("b", Config{Handle: h})
	connect(t, a, b)
	open := make(chan struct{})
	defer close(open)
	for method := range h {
		for _, how := range []string{"cancel", "deadline"} {
			t.Run(method+" "+how, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				want := lode.Cancelled
				if how == "deadline" {
					ctx, cancel = context.WithTimeout(t.Context(), 60*time.Millisecond)
					want = lode.Deadline
				}
				defer cancel()
				r := &Request{Method: method, Note: func([]byte) []byte { return []byte("r") }}
				if method == "read" {
					if how == "deadline" {
						t.Skip("the end of the body may be told by either clock")
					}
					r.Stream = blocker{open}
				}
				go func() {
					<-started
					if how == "cancel" {
						cancel()
					}
				}()
				err := a.Call(ctx, "b", r, &slowAnswer{})
				if lode.KindOf(err) != want && lode.KindOf(err) != lode.Cancelled || errors.Is(err, ErrLost) {
					t.Errorf("the call ended with %v", err)
				}
				if err := <-seen; err == nil {
					t.Error("the handler's context did not end")
				}
			})
		}
	}
	if err := a.Call(t.Context(), "b", &Request{Method: "absent"}, nil); !errors.Is(err, ErrRefused) {
		t.Errorf("after all that the connection says %v", err)
	}
	quiet(t, a, b)
}

// slowAnswer takes little, so that the answer stays open.
type slowAnswer struct{}

func (*slowAnswer) Head([]byte) error { return nil }
func (*slowAnswer) Write(p []byte) (int, error) {
	time.Sleep(5 * time.Millisecond)
	return len(p), nil
}

// quiet checks that nothing is left open between two links.
func quiet(t *testing.T, ls ...*Link) {
	t.Helper()
	for _, l := range ls {
		for _, p := range l.peers {
			for range 2000 {
				if !p.busy() {
					break
				}
				time.Sleep(time.Millisecond)
			}
			if p.busy() {
				t.Errorf("something of %s is still open at %s", p.node, l.cfg.Self)
			}
		}
	}
}

func (p *peer) busy() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.all {
		c.mu.Lock()
		busy := len(c.calls)+len(c.incoming) > 0 || c.held != 0 || c.windows != 0 || len(c.writer.bulk) > 0 || len(c.writer.waiting) > 0
		c.mu.Unlock()
		if busy {
			return true
		}
	}
	return false
}

func TestDeadlineTravels(t *testing.T) {
	w := newTown(t, false)
	h := map[string]Handler{"left": func(ctx context.Context, in *Incoming) error {
		d, ok := ctx.Deadline()
		return in.Reply(nil, fmt.Append(nil, ok && time.Until(d) < time.Minute && time.Until(d) > 30*time.Second))
	}}
	a, b := w.add("a", Config{}), w.add("b", Config{Handle: h})
	connect(t, a, b)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, c := range []struct {
		ctx  context.Context
		want string
	}{{ctx, "true"}, {t.Context(), "false"}} {
		var got Bytes
		if err := a.Call(c.ctx, "b", &Request{Method: "left"}, &got); err != nil || string(got.Body) != c.want {
			t.Errorf("%s, %v; want %s", got.Body, err, c.want)
		}
	}
	past, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	if err := a.Call(past, "b", &Request{Method: "left"}, nil); lode.KindOf(err) != lode.Deadline {
		t.Errorf("a call whose time is over: %v", err)
	}
}

// TestStalledReader: who does not read stops its own stream, in either
// direction, and nothing else.
func TestStalledReader(t *testing.T) {
	transports(t, func(t *testing.T, w *town) {
		let := make(chan struct{})
		h := map[string]Handler{
			"echo": echo,
			"stuck": func(ctx context.Context, in *Incoming) error {
				<-let
				n, err := io.Copy(io.Discard, in.Whole())
				if err != nil {
					return err
				}
				return in.Reply(nil, fmt.Append(nil, n))
			},
			"pour": func(_ context.Context, in *Incoming) error {
				in.Begin(nil)
				_, err := in.Write(make([]byte, 8<<20))
				return err
			},
		}
		a, b := w.add("a", Config{}), w.add("b", Config{Handle: h})
		connect(t, a, b)
		const size = 8 << 20
		done := make(chan error, 2)
		var up Bytes
		go func() { done <- a.Call(t.Context(), "b", &Request{Method: "stuck", Body: make([]byte, size)}, &up) }()
		down := &gate{let: let}
		go func() { done <- a.Call(t.Context(), "b", &Request{Method: "pour"}, down) }()
		for i := range 300 {
			var got Bytes
			if err := a.Call(t.Context(), "b", &Request{Method: "echo", Body: make([]byte, i*100)}, &got); err != nil || len(got.Body) != i*100 {
				t.Fatal(err)
			}
		}
		var moved Bytes // and a stream beside them moves
		if err := a.Call(t.Context(), "b", &Request{Method: "pour"}, &moved); err != nil || len(moved.Body) != size {
			t.Fatalf("%d bytes, %v", len(moved.Body), err)
		}
		select {
		case err := <-done:
			t.Fatalf("a stuck stream ended: %v", err)
		default:
		}
		close(let)
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if string(up.Body) != fmt.Sprint(size) || down.n != size {
			t.Errorf("%s and %d of %d bytes came through", up.Body, down.n, size)
		}
		quiet(t, a, b)
	})
}

// TestTinyPieces: pieces of a byte each, flushed one by one, come in order and
// do not cost a buffer each while nobody takes them.
func TestTinyPieces(t *testing.T) {
	w := newTown(t, false)
	const n = 20_000
	h := map[string]Handler{"drip": func(_ context.Context, in *Incoming) error {
		in.Begin(nil)
		for i := range n {
			in.Write([]byte{byte(i)})
			if err := in.Flush(); err != nil {
				return err
			}
		}
		return in.Note([]byte("all is sent"))
	}}
	a, b := w.add("a", Config{}), w.add("b", Config{Handle: h})
	connect(t, a, b)
	var got Bytes
	let := make(chan struct{})
	late := &lateBytes{Bytes: &got, let: let}
	done := make(chan error, 1)
	go func() {
		done <- a.Call(t.Context(), "b", &Request{Method: "drip", Note: func([]byte) []byte { return nil }}, late)
	}()
	p := a.peer("b")
	events := 0
	for range 5000 {
		events = p.waiting()
		if p.chunksIn() == n {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if p.chunksIn() != n || events > 100 {
		t.Errorf("%d of %d bytes wait in %d events", p.chunksIn(), n, events)
	}
	close(let)
	if err := <-done; err != nil || len(got.Body) != n {
		t.Fatalf("%d bytes, %v", len(got.Body), err)
	}
	for i, c := range got.Body {
		if c != byte(i) {
			t.Fatalf("byte %d is %d", i, c)
		}
	}
}

// lateBytes holds the head back until it is let.
type lateBytes struct {
	*Bytes
	let chan struct{}
}

func (l *lateBytes) Head(b []byte) error {
	<-l.let
	return l.Bytes.Head(b)
}

func (p *peer) waiting() (n int) {
	c, _ := p.conn()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, o := range c.calls {
		n += len(o.queue)
	}
	return n
}

func (p *peer) chunksIn() uint64 {
	c, _ := p.conn()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.taken
}

// gate is an answer that takes nothing until it is let.
type gate struct {
	let chan struct{}
	n   int
}

func (g *gate) Head([]byte) error { return nil }
func (g *gate) Write(p []byte) (int, error) {
	<-g.let
	g.n += len(p)
	return len(p), nil
}

func TestNotes(t *testing.T) {
	w := newTown(t, false)
	h := map[string]Handler{"talk": func(ctx context.Context, in *Incoming) error {
		for i := range 100 {
			if err := in.Note(fmt.Append(nil, i)); err != nil {
				return err
			}
			if i%10 == 0 {
				select {
				case got := <-in.Notes():
					if string(got) != fmt.Sprint("re ", i) {
						return fmt.Errorf("reply %q to note %d", got, i)
					}
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		return in.Reply(nil, []byte("end"))
	}}
	a, b := w.add("a", Config{}), w.add("b", Config{Handle: h})
	connect(t, a, b)
	n := 0
	var got Bytes
	err := a.Call(t.Context(), "b", &Request{Method: "talk", Note: func(p []byte) []byte {
		if string(p) != fmt.Sprint(n) || got.Body != nil {
			t.Errorf("note %q in place %d", p, n)
		}
		n++
		if (n-1)%10 == 0 {
			return fmt.Append(nil, "re ", n-1)
		}
		return nil
	}}, &got)
	if err != nil || n != 100 || string(got.Body) != "end" {
		t.Errorf("%d notes, answer %q, %v", n, got.Body, err)
	}
	quiet(t, a, b)
}

// TestReplyToNobody: a handler whose caller has gone may reply, and fail with
// that; it is nothing to warn of. One that fails after its reply is.
func TestReplyToNobody(t *testing.T) {
	w := newTown(t, false)
	var logs logCount
	ended := make(chan error, 1)
	reply := func(ctx context.Context, in *Incoming) error {
		if in.Method == "late" {
			<-ctx.Done()
		}
		err := in.Reply(nil, nil)
		defer func() { ended <- err }()
		if in.Method == "fails" {
			return errors.New("after the reply")
		}
		return err
	}
	a, b := w.add("a", Config{}), w.add("b", Config{Logger: slog.New(&logs), Handle: map[string]Handler{"late": reply, "fails": reply}})
	connect(t, a, b)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if err := a.Call(ctx, "b", &Request{Method: "late"}, nil); err == nil {
		t.Error("the call was answered")
	}
	if err := <-ended; err == nil {
		t.Error("the reply found somebody")
	}
	quiet(t, a, b)
	if n := logs.n.Load(); n != 0 {
		t.Errorf("logged %d times", n)
	}
	if err := a.Call(t.Context(), "b", &Request{Method: "fails"}, nil); err != nil {
		t.Error(err)
	}
	<-ended
	for end := time.Now().Add(5 * time.Second); logs.n.Load() == 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if n := logs.n.Load(); n != 1 {
		t.Errorf("logged %d times", n)
	}
}

// TestAnswerFails: an error of the answer, or of the body, ends the call with
// that error and stops the handler.
func TestAnswerFails(t *testing.T) {
	w := newTown(t, false)
	stopped := make(chan error, 1)
	h := map[string]Handler{
		"pour": func(ctx context.Context, in *Incoming) error {
			in.Begin(nil)
			for {
				if _, err := in.Write(make([]byte, 10_000)); err != nil {
					stopped <- err
					return err
				}
			}
		},
		"drink": func(ctx context.Context, in *Incoming) error {
			_, err := io.Copy(io.Discard, in.Whole())
			stopped <- err
			return err
		},
	}
	a, b := w.add("a", Config{}), w.add("b", Config{Handle: h})
	connect(t, a, b)
	if err := a.Call(t.Context(), "b", &Request{Method: "pour"}, &Bytes{Max: 100_000}); lode.KindOf(err) != lode.TooLarge {
		t.Errorf("an answer that is too large: %v", err)
	}
	if <-stopped == nil {
		t.Error("the handler was not stopped")
	}
	broken := errors.New("the disk fell off")
	err := a.Call(t.Context(), "b", &Request{Method: "drink", Stream: io.MultiReader(bytes.NewReader(make([]byte, 300_000)), failing{broken})}, nil)
	if !errors.Is(err, broken) {
		t.Errorf("a body that breaks off: %v", err)
	}
	if err := <-stopped; err == nil {
		t.Error("the handler took a broken body for a whole one")
	}
	quiet(t, a, b)
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// TestEarlyAnswer: a handler that does not want the body answers at once, also
// while the caller's stream blocks.
func TestEarlyAnswer(t *testing.T) {
	w := newTown(t, false)
	a, b := w.add("a", Config{}), w.add("b", Config{Handle: map[string]Handler{"echo": echo}})
	connect(t, a, b)
	open := make(chan struct{})
	var got Bytes
	if err := a.Call(t.Context(), "b", &Request{Method: "echo", Head: []byte("h"), Stream: blocker{open}}, &got); err != nil || string(got.HeadBytes) != "h" {
		t.Errorf("%q, %v", got.HeadBytes, err)
	}
	close(open)
	if err := a.Call(t.Context(), "b", &Request{Method: "echo", Head: []byte("h"), Body: make([]byte, 4<<20)}, &got); err != nil {
		t.Error(err)
	}
	quiet(t, a, b)
}
