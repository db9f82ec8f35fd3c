package link

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lode"
)

// TestLossLaw cuts the connection at random points under load and checks
// every call against what the handlers saw: not sent and refused mean never
// seen, success means seen once, nothing is seen twice.
func TestLossLaw(t *testing.T) {
	transports(t, func(t *testing.T, w *town) {
		var seen [100_000]atomic.Int32
		h := map[string]Handler{"count": func(ctx context.Context, in *Incoming) error {
			seen[binary.BigEndian.Uint32(in.Head)].Add(1)
			io.Copy(io.Discard, in.Whole())
			return in.Reply(in.Head, nil)
		}}
		a, b := w.add("a", Config{}), w.add("b", Config{Handle: h})
		p := w.through("a", "b")
		a.SetPeers([]lode.NodeID{"b"})
		var next, ok, notSents, losts atomic.Int64
		end := time.Now().Add(time.Second)
		var wg sync.WaitGroup
		for range 32 {
			wg.Go(func() {
				for time.Now().Before(end) {
					n := next.Add(1)
					if n >= int64(len(seen)) {
						return
					}
					head := binary.BigEndian.AppendUint32(nil, uint32(n))
					r := &Request{Method: "count", Head: head, Body: make([]byte, rand.N(2000))}
					if n%16 == 0 {
						r.Body = make([]byte, 200_000)
					}
					var got Bytes
					err := a.Call(t.Context(), "b", r, &got)
					switch times := seen[n].Load(); {
					case err == nil:
						ok.Add(1)
						if times != 1 || !bytes.Equal(got.HeadBytes, head) {
							t.Errorf("a call that succeeded was seen %d times", times)
						}
					case errors.Is(err, ErrNotSent):
						notSents.Add(1)
						time.Sleep(time.Millisecond)
					case errors.Is(err, ErrLost):
						losts.Add(1)
					default:
						t.Errorf("call %d: %v", n, err)
					}
					if err != nil && errors.Is(err, ErrNotSent) {
						seen[n].Add(100) // so that a handler that comes later shows
					}
				}
			})
		}
		for i := 0; time.Now().Before(end); i++ {
			time.Sleep(rand.N(40 * time.Millisecond))
			if i%2 == 0 {
				p.limit.Store(1000 + rand.N(int64(300_000))) // in the middle of a frame
			} else {
				p.limit.Store(0)
				p.cut()
			}
		}
		p.limit.Store(0)
		wg.Wait()
		a.Close()
		b.Close() // waits for the handlers
		for n := range seen {
			if v := seen[n].Load(); v > 1 && v != 100 {
				t.Errorf("call %d: seen %d times though it was not sent, or twice", n, v%100)
			}
		}
		t.Logf("%d answered, %d not sent, %d lost", ok.Load(), notSents.Load(), losts.Load())
		if ok.Load() == 0 || losts.Load() == 0 {
			t.Error("the test cut nothing")
		}
	})
}

// TestSilence: a network that takes bytes and delivers none is found out, with
// calls and writes in flight; when it heals, so does the link.
func TestSilence(t *testing.T) {
	transports(t, func(t *testing.T, w *town) {
		ended, started := make(chan error, 16), make(chan bool, 16)
		h := map[string]Handler{"echo": echo, "hang": func(ctx context.Context, in *Incoming) error {
			started <- true
			<-ctx.Done()
			ended <- ctx.Err()
			return ctx.Err()
		}}
		downs := make(chan error, 16)
		cfg := Config{BeatEvery: 50 * time.Millisecond, LostAfter: 400 * time.Millisecond, Changed: func(_ lode.NodeID, up bool, why error) {
			if !up {
				downs <- why
			}
		}}
		a := w.add("a", cfg)
		w.add("b", Config{Handle: h, BeatEvery: cfg.BeatEvery, LostAfter: cfg.LostAfter})
		p := w.through("a", "b")
		a.SetPeers([]lode.NodeID{"b"})
		waitUp(t, a, "b")
		results := make(chan error, 3)
		go func() { results <- a.Call(t.Context(), "b", &Request{Method: "hang"}, nil) }()
		go func() { results <- a.Call(t.Context(), "b", &Request{Method: "hang", Stream: endless{}}, nil) }()
		<-started
		<-started
		p.stalled.Store(true)
		for range 2 {
			if err := <-results; !errors.Is(err, ErrLost) {
				t.Errorf("a call into the silence: %v", err)
			}
			if err := <-ended; err == nil {
				t.Error("the handler did not learn of the loss")
			}
		}
		if why := <-downs; !errors.Is(why, errSilent) && !errors.Is(why, errHung) {
			t.Logf("lost because: %v", why)
		}
		if err := a.Call(t.Context(), "b", &Request{Method: "echo"}, nil); !errors.Is(err, ErrNotSent) {
			t.Errorf("a call while the peer is lost: %v", err)
		}
		p.stalled.Store(false)
		heals(t, a, "b")
	})
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// stuckConn is a connection whose writes block, once told to, until it closes.
type stuckConn struct {
	net.Conn
	stuck *atomic.Bool
	over  chan struct{}
	once  sync.Once
}

func (c *stuckConn) Write(p []byte) (int, error) {
	if c.stuck.Load() {
		<-c.over
		return 0, net.ErrClosed
	}
	return c.Conn.Write(p)
}

func (c *stuckConn) Close() error {
	c.once.Do(func() { close(c.over) })
	return c.Conn.Close()
}

// TestStuckWrite: callers behind a write that does not end keep to their own
// deadlines, those that were never written know it, and the peer is lost.
func TestStuckWrite(t *testing.T) {
	w := newTown(t, false)
	var stuck atomic.Bool
	a := w.add("a", Config{BeatEvery: 50 * time.Millisecond, LostAfter: 600 * time.Millisecond, Dial: func(ctx context.Context, to lode.NodeID) (net.Conn, error) {
		nc, err := w.dial(ctx, "a", to)
		if err != nil {
			return nil, err
		}
		return &stuckConn{Conn: nc, stuck: &stuck, over: make(chan struct{})}, nil
	}})
	w.add("b", Config{BeatEvery: 50 * time.Millisecond, LostAfter: 600 * time.Millisecond, Handle: map[string]Handler{"echo": echo}})
	a.SetPeers([]lode.NodeID{"b"})
	waitUp(t, a, "b")
	stuck.Store(true)
	time.Sleep(100 * time.Millisecond) // a heartbeat is stuck by now
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if err := a.Call(t.Context(), "b", &Request{Method: "echo", Body: make([]byte, 60_000)}, nil); !errors.Is(err, ErrNotSent) {
				t.Errorf("a call that was never written: %v", err)
			}
		})
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			if err := a.Call(ctx, "b", &Request{Method: "echo"}, nil); lode.KindOf(err) != lode.Deadline && !errors.Is(err, ErrNotSent) {
				t.Errorf("a call with a deadline: %v", err)
			}
		})
	}
	wg.Wait()
	stuck.Store(false)
	heals(t, a, "b")
}

// heals waits until calls are answered again. On a busy machine the peers may
// lose each other once more meanwhile.
func heals(t *testing.T, l *Link, to lode.NodeID) {
	t.Helper()
	for range 1000 {
		waitUp(t, l, to)
		if l.Call(t.Context(), to, &Request{Method: "echo"}, nil) == nil {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Errorf("node %s does not answer again", to)
}

// TestSlowLink: small calls pass a slow line beside a large transfer, and both
// come through.
func TestSlowLink(t *testing.T) {
	w := newTown(t, false)
	h := map[string]Handler{"echo": echo, "size": func(_ context.Context, in *Incoming) error {
		n, err := io.Copy(io.Discard, in.Whole())
		if err != nil {
			return err
		}
		return in.Reply(binary.BigEndian.AppendUint64(nil, uint64(n)), nil)
	}}
	a, b := w.add("a", Config{}), w.add("b", Config{Handle: h})
	p := w.through("a", "b")
	p.rate.Store(2 << 20)
	a.SetPeers([]lode.NodeID{"b"})
	waitUp(t, a, "b")
	waitUp(t, b, "a")
	moved := make(chan error, 1)
	var got Bytes
	go func() { moved <- a.Call(t.Context(), "b", &Request{Method: "size", Body: make([]byte, 2<<20)}, &got) }()
	for i := 0; ; i++ {
		select {
		case err := <-moved:
			if err != nil || binary.BigEndian.Uint64(got.HeadBytes) != 2<<20 {
				t.Errorf("%x, %v", got.HeadBytes, err)
			}
			if i < 2 {
				t.Errorf("only %d small calls passed beside the transfer", i)
			}
			return
		default:
		}
		if err := a.Call(t.Context(), "b", &Request{Method: "echo"}, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// TestGarbage: a peer that speaks anything else is disconnected, counted and
// logged once a connection.
func TestGarbage(t *testing.T) {
	good := appendHello(nil, hello{1, 1, 77, 1, "x", "b"})
	big := appendHeader(nil, 1<<31, kindCall, 0, 1)
	for name, bytes := range map[string][]byte{
		"http":              []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"another name":      appendHello(nil, hello{1, 1, 77, 1, "y", "b"}),
		"for another":       appendHello(nil, hello{1, 1, 77, 1, "x", "c"}),
		"another version":   appendHello(nil, hello{9, 12, 77, 1, "x", "b"}),
		"huge frame":        append(good[:len(good):len(good)], big...),
		"second hello":      append(good[:len(good):len(good)], good...),
		"answer to nothing": append(good[:len(good):len(good)], appendReply(nil, 5, nil, nil)...),
		"body of nothing":   append(good[:len(good):len(good)], appendFrame(nil, kindBody, 0, 5, []byte("x"))...),
		"ack of nothing":    append(good[:len(good):len(good)], appendHeader(nil, 0, kindAck, 0, 99)...),
		"call 0":            append(good[:len(good):len(good)], appendHeader(nil, 0, kindCall, 0, 0)...),
		"call twice":        append(append(good[:len(good):len(good)], appendCall(nil, 1, 0, 0, &Request{Method: "m"}, nil)...), appendCall(nil, 1, 0, 0, &Request{Method: "m"}, nil)...),
		"call cut short":    append(good[:len(good):len(good)], appendFrame(nil, kindCall, 0, 1, []byte("abc"))...),
		"empty chunk":       append(append(good[:len(good):len(good)], appendCall(nil, 1, flagStream, 0, &Request{Method: "hang"}, nil)...), appendFrame(nil, kindBody, 0, 1, nil)...),
		"reply to no note":  append(append(good[:len(good):len(good)], appendCall(nil, 1, flagNotes, 0, &Request{Method: "hang"}, nil)...), appendFrame(nil, kindNoteReply, 0, 1, nil)...),
		"beyond credit":     append(append(good[:len(good):len(good)], appendCall(nil, 1, flagStream, 0, &Request{Method: "hang"}, nil)...), overCredit()...),
	} {
		t.Run(name, func(t *testing.T) {
			w := newTown(t, false)
			var logs logCount
			b := w.add("b", Config{Logger: slog.New(&logs), Handle: map[string]Handler{"hang": func(ctx context.Context, _ *Incoming) error {
				<-ctx.Done()
				return nil
			}}})
			mine, theirs := net.Pipe()
			served := make(chan struct{})
			go func() {
				defer close(served)
				b.Serve(theirs, "x")
			}()
			go io.Copy(io.Discard, mine)
			mine.Write(bytes)
			<-served
			mine.Close()
			if n := logs.n.Load(); n != 1 {
				t.Errorf("logged %d times", n)
			}
			refused := b.Peers()[0].Refused
			if wellFormed := name == "another name" || name == "for another" || name == "another version"; (refused == 0) != wellFormed {
				t.Errorf("%d counted", refused)
			}
		})
	}
}

func overCredit() (b []byte) {
	for range 2 {
		b = appendFrame(b, kindBody, 0, 1, make([]byte, maxChunk))
	}
	return b
}

// logCount counts warnings.
type logCount struct{ n atomic.Int64 }

func (l *logCount) Enabled(_ context.Context, v slog.Level) bool { return v >= slog.LevelWarn }
func (l *logCount) Handle(context.Context, slog.Record) error    { l.n.Add(1); return nil }
func (l *logCount) WithAttrs([]slog.Attr) slog.Handler           { return l }
func (l *logCount) WithGroup(string) slog.Handler                { return l }
