package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lode"
)

// TestJudge: both ends of two connections come to the same answer, in every
// order in which they may learn of them.
func TestJudge(t *testing.T) {
	type end = conn
	at := func(dialled bool, instance, seq uint64) *end {
		return &end{dialled: dialled, remote: hello{instance: instance, seq: seq}}
	}
	for _, c := range []struct {
		name       string
		self, peer lode.NodeID
		old, new   *end
		want       verdict
	}{
		{"the first", "a", "b", nil, at(true, 1, 1), takes},
		{"the peer was restarted", "a", "b", at(true, 1, 9), at(false, 2, 1), takes},
		{"dialled again by the peer", "a", "b", at(false, 1, 3), at(false, 1, 4), takes},
		{"an older one of the peer comes late", "a", "b", at(false, 1, 4), at(false, 1, 3), refused},
		{"the peer lost ours and dials", "a", "b", at(true, 1, 3), at(false, 1, 4), takes},
		{"crossed, we are less and dialled the old one", "a", "b", at(true, 1, 4), at(false, 1, 3), refused},
		{"crossed, we are greater and dialled the old one", "b", "a", at(true, 1, 4), at(false, 1, 3), takes},
		{"crossed, we are less and dialled the new one", "a", "b", at(false, 1, 3), at(true, 1, 4), takes},
		{"crossed, we are greater and dialled the new one", "b", "a", at(false, 1, 3), at(true, 1, 4), drains},
	} {
		if got := judge(c.self, c.peer, c.old, c.new); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

// TestCrossing lets pairs dial each other at the same moment. From when both
// are up no call fails, and one connection is left.
func TestCrossing(t *testing.T) {
	for range 8 {
		w := newTown(t, false)
		h := map[string]Handler{"echo": echo, "slow": func(ctx context.Context, in *Incoming) error {
			time.Sleep(20 * time.Millisecond)
			return in.Reply(nil, nil)
		}}
		a, b := w.add("a", Config{Handle: h}), w.add("b", Config{Handle: h})
		var wg sync.WaitGroup
		for _, side := range []struct{ from, to *Link }{{a, b}, {b, a}} {
			wg.Go(func() {
				side.from.SetPeers([]lode.NodeID{side.to.cfg.Self})
				waitUp(t, side.from, side.to.cfg.Self)
				for i := range 50 {
					method := "echo"
					if i%10 == 0 {
						method = "slow"
					}
					if err := side.from.Call(t.Context(), side.to.cfg.Self, &Request{Method: method}, nil); err != nil {
						t.Errorf("a call across the crossing: %v", err)
					}
				}
			})
		}
		wg.Wait()
		pa, pb := a.peer("b"), b.peer("a")
		for range 2000 {
			if pa.count() == 1 && pb.count() == 1 {
				break
			}
			time.Sleep(time.Millisecond)
		}
		if pa.count() != 1 || pb.count() != 1 {
			t.Fatalf("%d and %d connections are left", pa.count(), pb.count())
		}
		a.Close()
		b.Close()
	}
}

// TestForcedCrossing holds both dials back until both connections stand, so
// that they do cross.
func TestForcedCrossing(t *testing.T) {
	w := newTown(t, false)
	var both sync.WaitGroup
	both.Add(2)
	meet := func(name lode.NodeID) func(context.Context, lode.NodeID) (net.Conn, error) {
		var once sync.Once
		return func(ctx context.Context, to lode.NodeID) (net.Conn, error) {
			nc, err := w.dial(ctx, name, to)
			once.Do(func() {
				both.Done()
				both.Wait()
			})
			return nc, err
		}
	}
	a := w.add("a", Config{Dial: meet("a"), Handle: map[string]Handler{"echo": echo}})
	b := w.add("b", Config{Dial: meet("b"), Handle: map[string]Handler{"echo": echo}})
	connect(t, a, b)
	for range 20 {
		if err := errors.Join(a.Call(t.Context(), "b", &Request{Method: "echo"}, nil), b.Call(t.Context(), "a", &Request{Method: "echo"}, nil)); err != nil {
			t.Error(err)
		}
	}
	for range 2000 {
		if a.peer("b").count() == 1 && b.peer("a").count() == 1 {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Errorf("%d and %d connections are left", a.peer("b").count(), b.peer("a").count())
}

func (p *peer) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.all)
}

// TestSetPeers: a node that is no peer any longer is disconnected and refused,
// and comes back when it is named again.
func TestSetPeers(t *testing.T) {
	w := newTown(t, false)
	ls := map[lode.NodeID]*Link{}
	names := []lode.NodeID{"a", "b", "c"}
	for _, n := range names {
		ls[n] = w.add(n, Config{Handle: map[string]Handler{"echo": echo}})
	}
	for _, n := range names {
		ls[n].SetPeers(names)
	}
	ask := func(from, to lode.NodeID) error {
		return ls[from].Call(t.Context(), to, &Request{Method: "echo"}, nil)
	}
	for _, from := range names {
		for _, to := range names {
			if from != to {
				waitUp(t, ls[from], to)
				if err := ask(from, to); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	ls["a"].SetPeers([]lode.NodeID{"a", "b"})
	if err := ask("a", "c"); !errors.Is(err, ErrNotSent) {
		t.Errorf("a call to a node that was removed: %v", err)
	}
	for range 200 { // c dials in vain
		if ask("c", "a") == nil {
			time.Sleep(time.Millisecond)
		}
	}
	if err := ask("c", "a"); !errors.Is(err, ErrNotSent) {
		t.Errorf("a call from a node that was removed: %v", err)
	}
	if err := errors.Join(ask("a", "b"), ask("b", "a"), ask("b", "c"), ask("c", "b")); err != nil {
		t.Errorf("the others: %v", err)
	}
	ls["a"].SetPeers(names)
	waitUp(t, ls["a"], "c")
	waitUp(t, ls["c"], "a")
	if err := errors.Join(ask("a", "c"), ask("c", "a")); err != nil {
		t.Error(err)
	}
	var got []lode.NodeID
	for _, p := range ls["a"].Peers() {
		if !p.Up || p.Why != nil || p.LastHeard.IsZero() || p.Calls == 0 || p.BytesIn == 0 || p.BytesOut == 0 {
			t.Errorf("%+v", p)
		}
		got = append(got, p.Node)
	}
	if !slices.Equal(got, []lode.NodeID{"b", "c"}) {
		t.Errorf("peers %v", got)
	}
}

// TestRestart: a peer that stops and comes back under another address is found
// again, and Changed tells each step in order.
func TestRestart(t *testing.T) {
	w := newTown(t, true)
	changes := make(chan bool, 64)
	a := w.add("a", Config{Changed: func(_ lode.NodeID, up bool, why error) {
		if up == (why != nil) {
			t.Errorf("up %v because %v", up, why)
		}
		changes <- up
	}})
	a.SetPeers([]lode.NodeID{"b"})
	for i := range 5 {
		b := w.add("b", Config{Handle: map[string]Handler{"n": func(_ context.Context, in *Incoming) error { return in.Reply(nil, fmt.Append(nil, i)) }}})
		if i%2 == 0 {
			b.SetPeers([]lode.NodeID{"a"})
		}
		waitUp(t, a, "b")
		if !<-changes {
			t.Fatal("not told that the peer came up")
		}
		var got Bytes
		if err := a.Call(t.Context(), "b", &Request{Method: "n"}, &got); err != nil || string(got.Body) != fmt.Sprint(i) {
			t.Fatalf("run %d answered %q, %v", i, got.Body, err)
		}
		w.mu.Lock()
		w.listen["b"].Close()
		w.mu.Unlock()
		b.Close()
		if <-changes {
			t.Fatal("not told that the peer went")
		}
	}
}

func TestHeartbeats(t *testing.T) {
	w := newTown(t, false)
	var sent atomic.Int64
	heard := make(chan Beat, 1000)
	a := w.add("a", Config{BeatEvery: 5 * time.Millisecond, Heard: func(from lode.NodeID, b Beat) {
		if from != "b" {
			t.Errorf("a heartbeat from %s", from)
		}
		select {
		case heard <- b:
		default:
		}
	}})
	b := w.add("b", Config{BeatEvery: 5 * time.Millisecond, Beat: func() []byte { return fmt.Append(nil, "load ", sent.Add(1)) }})
	defer b.Close()
	a.SetPeers([]lode.NodeID{"b"}) // one side dials, so that there is one connection
	for i := range 20 {
		got := <-heard
		if want := fmt.Sprint("load ", i+1); string(got.Payload) != want {
			t.Fatalf("heard %q, want %q", got.Payload, want)
		}
		if i > 15 && (got.RTT <= 0 || got.Skew.Abs() > got.RTT) {
			t.Errorf("round trip %v, skew %v on one machine", got.RTT, got.Skew)
		}
	}
}

// TestSkew: the estimate is the peer's clock minus ours, whatever the line adds.
func TestSkew(t *testing.T) {
	p := newPeer(&Link{}, "b")
	for i := range int64(100) {
		noise := i * 7919 % 13 * int64(time.Millisecond)
		p.measured(int64(time.Millisecond)+noise, int64(time.Hour)+noise/2)
	}
	if got := time.Duration(p.skew.Load()); got != time.Hour {
		t.Errorf("skew %v", got)
	}
	if got := p.leastRTT(); got != time.Millisecond {
		t.Errorf("least round trip %v", got)
	}
}

// TestPipe: any net.Conn will do.
func TestPipe(t *testing.T) {
	b := New(Config{Self: "b", Handle: map[string]Handler{"echo": echo}})
	defer b.Close()
	var wg sync.WaitGroup
	a := New(Config{Self: "a", Dial: func(context.Context, lode.NodeID) (net.Conn, error) {
		mine, theirs := net.Pipe()
		wg.Go(func() { b.Serve(theirs, "a") })
		return mine, nil
	}})
	defer wg.Wait()
	defer a.Close()
	a.SetPeers([]lode.NodeID{"b"})
	waitUp(t, a, "b")
	for range 100 {
		var got Bytes
		if err := a.Call(t.Context(), "b", &Request{Method: "echo", Body: []byte("hello")}, &got); err != nil || string(got.Body) != "hello" {
			t.Fatalf("%q, %v", got.Body, err)
		}
	}
}

// TestClose: calls in flight in both directions end, and Close waits for the
// handlers. Calls and connections that come later are refused.
func TestClose(t *testing.T) {
	w := newTown(t, false)
	var running atomic.Int64
	h := map[string]Handler{"hang": func(ctx context.Context, in *Incoming) error {
		running.Add(1)
		defer running.Add(-1)
		<-ctx.Done()
		time.Sleep(10 * time.Millisecond)
		return nil
	}}
	a, b := w.add("a", Config{Handle: h}), w.add("b", Config{Handle: h})
	connect(t, a, b)
	results := make(chan error, 20)
	for range 10 {
		go func() { results <- a.Call(t.Context(), "b", &Request{Method: "hang"}, nil) }()
		go func() { results <- b.Call(t.Context(), "a", &Request{Method: "hang"}, nil) }()
	}
	for running.Load() < 20 {
		time.Sleep(time.Millisecond)
	}
	a.Close()
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	for range 20 {
		if err := <-results; !errors.Is(err, ErrLost) {
			t.Errorf("a call in flight: %v", err)
		}
	}
	b.Close()
	if n := running.Load(); n != 0 {
		t.Errorf("%d handlers run on", n)
	}
	if err := a.Call(t.Context(), "b", &Request{Method: "hang"}, nil); !errors.Is(err, ErrNotSent) {
		t.Errorf("a call after Close: %v", err)
	}
	mine, theirs := net.Pipe()
	a.Serve(theirs, "b")
	if _, err := mine.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("a connection after Close: %v", err)
	}
}

// TestBounds: what a peer may leave open is bounded, and what is over is
// refused without being started.
func TestBounds(t *testing.T) {
	w := newTown(t, false)
	let := make(chan struct{})
	var ran atomic.Int64
	b := w.add("b", Config{Handle: map[string]Handler{"hang": func(ctx context.Context, in *Incoming) error {
		ran.Add(1)
		<-let
		return nil
	}}})
	a := w.add("a", Config{})
	connect(t, a, b)
	const calls, body = 2200, 60_000 // 132 MB of bodies and 144 MB of windows
	var refusals, good atomic.Int64
	var wg sync.WaitGroup
	for range calls {
		wg.Go(func() {
			err := a.Call(t.Context(), "b", &Request{Method: "hang", Body: make([]byte, body), Stream: empty{}}, nil)
			switch {
			case err == nil:
				good.Add(1)
			case errors.Is(err, ErrRefused) && lode.KindOf(err) == lode.Overloaded:
				refusals.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	for ran.Load()+refusals.Load() < calls {
		time.Sleep(time.Millisecond)
	}
	close(let)
	wg.Wait()
	if refusals.Load() == 0 || good.Load() == 0 || good.Load() != ran.Load() {
		t.Errorf("%d refused, %d answered, %d ran", refusals.Load(), good.Load(), ran.Load())
	}
	quiet(t, a, b)
}

type empty struct{}

func (empty) Read([]byte) (int, error) { return 0, io.EOF }
