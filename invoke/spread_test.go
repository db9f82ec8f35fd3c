package invoke

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"lode"
	"lode/link"
	"lode/placement"
)

// hold is a guest that computes, its slot kept, until ch is closed or it is
// cancelled.
func hold(began chan<- struct{}, ch <-chan struct{}) code {
	return func(g *guest) error {
		began <- struct{}{}
		select {
		case <-ch:
		case <-g.ctx.Done():
			return lode.Errorf(lode.Cancelled, "cancelled")
		}
		return g.answer(200, "held")
	}
}

// threeNodes: a is the gateway and drains; b takes work; c does so when it is
// asked to.
func threeNodes(t *testing.T, slots int) (f *fleet, a, b, c *tnode) {
	f = newFleet(t, Config{Slots: slots}, "a", "b", "c")
	a, b, c = f.nodes["a"], f.nodes["b"], f.nodes["c"]
	a.s.SetDraining(true)
	c.s.SetDraining(true)
	f.settle()
	return f, a, b, c
}

func invoke(n *tnode, req *lode.Request, ans lode.Answer) (<-chan lode.Outcome, <-chan error) {
	outs, errs := make(chan lode.Outcome, 1), make(chan error, 1)
	go func() {
		out, err := n.s.run(context.Background(), req, ans, false)
		outs <- out
		errs <- err
	}()
	return outs, errs
}

// A node dies while an invocation waits there: it did not start, so it runs
// elsewhere, once, whatever it is.
func TestKilledWhileQueued(t *testing.T) {
	f, a, b, c := threeNodes(t, 1)
	began, free := make(chan struct{}, 1), make(chan struct{})
	var ran runs
	f.deploy("hold", lode.Function{}, func(*tnode) code { return hold(began, free) })
	f.deploy("work", lode.Function{}, func(n *tnode) code {
		return func(g *guest) error {
			ran.add(n)
			return g.answer(200, g.head.Get(":attempt"))
		}
	})
	holdOut, holdErr := invoke(b, request("hold"), newTaker())
	<-began
	ans := newTaker()
	outs, errs := invoke(a, request("work"), ans)
	eventually(t, "it is queued at b", func() bool { b.s.gate.mu.Lock(); defer b.s.gate.mu.Unlock(); return b.s.gate.waiting() == 1 })
	c.s.SetDraining(false)
	f.settle()
	b.die()
	out, err := <-outs, <-errs
	if err != nil || out.Node != "c" || ran.String() != "map[c:1]" || string(ans.Msg.Body) != "1" {
		t.Errorf("on %q, ran %s, attempt %s: %v", out.Node, &ran, ans.Msg.Body, err)
	}
	close(free)
	<-holdOut
	if err := <-holdErr; err != nil {
		t.Error(err)
	}
	eventually(t, "b gave it up", func() bool {
		b.s.gate.mu.Lock()
		defer b.s.gate.mu.Unlock()
		return b.s.gate.waiting() == 0 && b.s.gate.free == 1
	})
	if ran.all() != 1 {
		t.Errorf("ran %s", &ran)
	}
	if got := f.records(out.ID); len(got) != 1 || !strings.HasPrefix(got[0], "c 200") {
		t.Errorf("records %v", got)
	}
	if st := a.s.SpreadStats(); st.Retried != 1 || st.Lost != 0 {
		t.Errorf("%+v", st)
	}
	d, _ := a.s.Decision(out.ID)
	if d.Node != "c" || len(d.Tries) != 1 || d.Tries[0].Node != "b" {
		t.Errorf("decision %+v", d)
	}
}

// A node dies while it runs an invocation: it runs again only where that does
// no harm.
func TestKilledWhileRunning(t *testing.T) {
	tests := []struct {
		name string
		set  func(*lode.Request)
		runs int
		err  string
	}{
		{"a POST is not run twice", func(r *lode.Request) { r.Method = "POST" }, 1, "node b was lost while it ran work@1; whether it ran to its end is not known"},
		{"a call without a method", func(*lode.Request) {}, 1, "whether it ran to its end is not known"},
		{"a GET is", func(r *lode.Request) { r.Method = "GET" }, 2, ""},
		{"a POST with a key is", func(r *lode.Request) { r.IdempotencyKey = "k" }, 2, ""},
		{"asynchronous work is its keeper's", func(r *lode.Request) { r.Trigger, r.IdempotencyKey = lode.TriggerAsync, "k" }, 1, "is not known"},
		{"a stream that is kept", func(r *lode.Request) { r.Method, r.Stream = "OPTIONS", strings.NewReader("stream") }, 2, ""},
		{"a stream that is not", func(r *lode.Request) {
			r.Method, r.Stream = "OPTIONS", io.LimitReader(endless{}, replayMost+1)
		}, 1, "is not known"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, a, b, c := threeNodes(t, 0)
			began := make(chan struct{}, 1)
			var ran runs
			f.deploy("work", lode.Function{}, func(n *tnode) code {
				return func(g *guest) error {
					ran.add(n)
					var all []byte
					if g.inv.Stream != nil {
						all, _ = io.ReadAll(g.inv.Stream)
					}
					if n == b {
						began <- struct{}{}
						return g.block(nil)
					}
					return g.answer(200, g.head.Get(":attempt")+string(g.inv.Body)+string(all))
				}
			})
			req := request("work")
			req.Body = []byte("+")
			tt.set(req)
			ans := newTaker()
			outs, errs := invoke(a, req, ans)
			<-began
			c.s.SetDraining(false)
			f.settle()
			b.die()
			out, err := <-outs, <-errs
			if ran.all() != tt.runs {
				t.Errorf("ran %s, want %d runs", &ran, tt.runs)
			}
			if tt.err == "" {
				if want := "2+"; err != nil || out.Node != "c" || !strings.HasPrefix(string(ans.Msg.Body), want) || req.Stream != nil && string(ans.Msg.Body) != want+"stream" {
					t.Errorf("%q on %q, %v", ans.Msg.Body, out.Node, err)
				}
				return
			}
			wantKind(t, err, lode.Unavailable)
			if e := lode.AsError(err); !strings.Contains(e.Detail, tt.err) || !strings.Contains(e.Hint, "Idempotency-Key") {
				t.Errorf("%q, hint %q", e.Detail, e.Hint)
			}
			if st := a.s.SpreadStats(); st.Lost != 1 {
				t.Errorf("%+v", st)
			}
			a.w.mu.Lock()
			defer a.w.mu.Unlock()
			if len(a.w.records) != 1 || a.w.records[0].Err == nil {
				t.Errorf("the gateway gave %d records of what was lost", len(a.w.records))
			}
		})
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// A node dies in the middle of an answer: it is cut short, and not begun anew.
func TestKilledWhileAnswering(t *testing.T) {
	f, a, b, c := threeNodes(t, 0)
	var ran runs
	f.deploy("work", lode.Function{}, func(n *tnode) code {
		return func(g *guest) error {
			ran.add(n)
			if err := g.answer(200, "half of"); err != nil {
				return err
			}
			return g.block(nil)
		}
	})
	req := request("work")
	req.Method = "GET"
	ans := newTaker()
	_, errs := invoke(a, req, ans)
	<-ans.first
	c.s.SetDraining(false)
	f.settle()
	b.die()
	err := <-errs
	wantKind(t, err, lode.Unavailable)
	if !strings.Contains(err.Error(), "cut short") || string(ans.Msg.Body) != "half of" || ran.String() != "map[b:1]" {
		t.Errorf("%q, ran %s: %v", ans.Msg.Body, &ran, err)
	}
}

// A node that is gone is not placed on, and one that refuses the connection
// costs nothing but the next choice.
func TestDeadNodeIsLeftOut(t *testing.T) {
	f, a, b, c := threeNodes(t, 0)
	c.s.SetDraining(false)
	f.settle()
	var ran runs
	f.deploy("work", lode.Function{}, func(n *tnode) code {
		return func(g *guest) error { ran.add(n); return g.answer(200, "") }
	})
	b.die()
	eventually(t, "the link is seen to be down", func() bool { return len(a.Nodes()) == 2 })
	for range 20 {
		if out, err := a.s.Invoke(context.Background(), request("work"), newTaker()); err != nil || out.Node != "c" {
			t.Fatalf("on %q: %v", out.Node, err)
		}
	}
	if ran.String() != "map[c:20]" {
		t.Errorf("ran %s", &ran)
	}
}

// All nodes are full: invocations are pushed back, wait at the gateway, and
// run when there is room.
func TestPushBackAndParking(t *testing.T) {
	f := newFleet(t, Config{Slots: 1}, "a", "b")
	a, b := f.nodes["a"], f.nodes["b"]
	began, free := make(chan struct{}, 2), make(chan struct{})
	f.deploy("hold", lode.Function{}, func(*tnode) code { return hold(began, free) })
	var ran runs
	f.deploy("work", lode.Function{Limits: lode.Limits{QueueMax: 8}}, func(n *tnode) code {
		return func(g *guest) error { ran.add(n); return g.answer(200, "done") }
	})
	var holders sync.WaitGroup
	for _, n := range []*tnode{a, b} {
		// As of a long one: what waits behind it waits too long.
		n.costs("work", time.Hour)
		holders.Go(func() {
			j := request("hold")
			j.Trigger = lode.TriggerMerge // which stays where it is
			n.s.Invoke(context.Background(), j, newTaker())
		})
		<-began
	}
	// An hour's bound is four hours; the line is longer than that.
	var waiting []<-chan error
	for _, n := range []*tnode{a, b} {
		for range 6 {
			j := request("work")
			_, errs := invoke(n, j, newTaker())
			waiting = append(waiting, errs)
		}
	}
	eventually(t, "some are parked", func() bool { return a.s.SpreadStats().Parked+b.s.SpreadStats().Parked >= 4 })
	close(free)
	holders.Wait()
	for _, n := range []*tnode{a, b} { // the mean is of what runs now
		n.costs("work", time.Millisecond)
	}
	for _, errs := range waiting {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if ran.all() != 12 {
		t.Errorf("ran %s, want 12 in all", &ran)
	}
	if len(a.s.spread.lots)+len(b.s.spread.lots) != 0 {
		t.Error("lots are left")
	}
}

// What is parked keeps its deadline, can be cancelled, and is bounded.
func TestParkedEnds(t *testing.T) {
	f := newFleet(t, Config{Slots: 1}, "a", "b")
	a := f.nodes["a"]
	sp := a.s.spread
	to := target{"default", "work"}
	lim := &lode.Limits{QueueMax: 2}
	newJourney := func(deadline time.Duration) *journey {
		j := &journey{sp: sp, a: &attempt{s: a.s, start: time.Now()}, to: to, lim: lim}
		if deadline > 0 {
			j.deadline = time.Now().Add(deadline)
		}
		return j
	}
	// A parked one that is never let go: its timer wakes the oldest, which is
	// this.
	sp.mu.Lock()
	sp.lots[to] = &lot{waiting: []*parked{{begin: time.Now().Add(-time.Hour), ready: make(chan struct{})}}}
	sp.mu.Unlock()
	wantKind(t, newJourney(time.Millisecond).park(context.Background()), lode.Deadline)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	wantKind(t, newJourney(0).park(ctx), lode.Cancelled)
	sp.mu.Lock()
	l := sp.lots[to]
	l.waiting = append(l.waiting, &parked{begin: time.Now(), ready: make(chan struct{})})
	sp.mu.Unlock()
	err := newJourney(0).park(context.Background())
	wantKind(t, err, lode.Overloaded)
	if lode.AsError(err).RetryAfter <= 0 {
		t.Error("when to try again is not told")
	}
	patient := newJourney(0)
	patient.a.w.patient = true
	done := make(chan error, 1)
	go func() { done <- patient.park(context.Background()) }()
	eventually(t, "the patient one waits", func() bool { return sp.parkedOf(to) == 3 })
	for range 3 {
		sp.letGo(to)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	eventually(t, "the lot is empty", func() bool { return sp.parkedOf(to) == 0 })
	sp.letGo(to) // a timer of one that is gone
}

func (sp *spread) parkedOf(to target) int {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if l := sp.lots[to]; l != nil {
		return len(l.waiting)
	}
	return 0
}

// The oldest goes first.
func TestParkedOldestFirst(t *testing.T) {
	sp := &spread{lots: map[target]*lot{}}
	to := target{"default", "f"}
	var order []int
	l := &lot{}
	for i := range 5 {
		p := &parked{begin: time.Unix(int64(10-i), 0), ready: make(chan struct{})}
		l.waiting = append([]*parked{p}, l.waiting...)
	}
	sp.lots[to] = l
	all := append([]*parked(nil), l.waiting...)
	for range 5 {
		sp.letGo(to)
		for _, p := range all {
			select {
			case <-p.ready:
				order = append(order, int(p.begin.Unix()))
				p.ready = nil
			default:
			}
		}
	}
	if fmt.Sprint(order) != "[6 7 8 9 10]" {
		t.Errorf("went in the order %v", order)
	}
}

func TestDraining(t *testing.T) {
	f := newFleet(t, Config{}, "a", "b", "c")
	a, b, c := f.nodes["a"], f.nodes["b"], f.nodes["c"]
	var ran runs
	f.deploy("work", lode.Function{}, func(n *tnode) code {
		return func(g *guest) error { ran.add(n); return g.answer(200, "") }
	})
	call := func(n *tnode) (lode.NodeID, error) {
		out, err := n.s.Invoke(context.Background(), request("work"), newTaker())
		if out.Node == "" {
			out.Node = n.id
		}
		return out.Node, err
	}
	if on, err := call(a); on != "a" || err != nil {
		t.Errorf("an idle node sent it to %s: %v", on, err)
	}
	a.s.SetDraining(true) // its load is not told yet: b and c refuse at once, or see it
	if on, err := call(a); on == "a" || err != nil {
		t.Errorf("a draining node ran it on %s: %v", on, err)
	}
	b.s.SetDraining(true) // and nobody was told
	for range 10 {
		if on, err := call(a); on != "c" || err != nil {
			t.Errorf("ran on %s: %v", on, err)
		}
	}
	c.s.SetDraining(true)
	f.settle()
	if on, err := call(a); err != nil {
		t.Errorf("all drain, and it did not run: on %s, %v", on, err)
	}
	c.s.SetDraining(false)
	f.settle()
	// A node that stops for good still hands on what comes to it.
	if err := a.s.Drain(context.Background()); err != nil {
		t.Fatal(err)
	}
	if on, err := call(a); on != "c" || err != nil {
		t.Errorf("a stopping node: on %s, %v", on, err)
	}
	b.die()
	c.die()
	eventually(t, "a is alone", func() bool { return len(a.Nodes()) == 1 })
	_, err := call(a)
	wantKind(t, err, lode.Unavailable)
}

// An idle node with the code looks no further, and pays nothing for being able
// to.
func TestLocalFastPath(t *testing.T) {
	f := newFleet(t, Config{}, "a", "b")
	a := f.nodes["a"]
	alone := newWorld()
	s := alone.service(t, Config{})
	for _, w := range []*world{a.w, alone} {
		w.deploy("echo", lode.Function{}, echo)
	}
	req := request("echo")
	ans := &lode.Buffered{}
	run := func(s *Service) func() {
		return func() {
			if _, err := s.Invoke(context.Background(), req, ans); err != nil {
				t.Error(err)
			}
			ans.Msg.Body = ans.Msg.Body[:0]
		}
	}
	run(a.s)() // brings the code
	asked := a.asked.Load()
	one, many := testing.AllocsPerRun(500, run(s)), testing.AllocsPerRun(500, run(a.s))
	if many > one {
		t.Errorf("%v allocations in a cluster, %v alone", many, one)
	}
	if got := a.asked.Load(); got != asked {
		t.Errorf("looked at the cluster %d times", got-asked)
	}
	if _, ok := a.s.Decision(req.ID); ok {
		t.Error("there was nothing to decide")
	}
}

// A function that is called at a node often comes to it, unless that drains.
func TestHotFunctionsCome(t *testing.T) {
	f := newFleet(t, Config{}, "a", "b")
	a, b := f.nodes["a"], f.nodes["b"]
	f.deploy("hot", lode.Function{Size: 1000}, func(*tnode) code { return echo })
	if _, err := b.s.Invoke(context.Background(), request("hot"), newTaker()); err != nil {
		t.Fatal(err)
	}
	f.settle()
	calls := func(n int) (there int) {
		for range n {
			out, err := a.s.Invoke(context.Background(), request("hot"), newTaker())
			if err != nil {
				t.Fatal(err)
			}
			if out.Node != "b" {
				return there
			}
			there++
		}
		return there
	}
	a.s.SetDraining(true)
	if n := calls(20); n != 20 {
		t.Errorf("it came after %d calls to a node that drains", n)
	}
	a.s.SetDraining(false)
	// A hop is 2 ms, the code 5.1: the third call brings it.
	if n := calls(20); n == 0 || n > 10 {
		t.Errorf("it came after %d calls", n)
	}
	if st := a.s.SpreadStats(); st.Brought != 1 {
		t.Errorf("%+v", st)
	}
}

// Two candidates are asked for their true wait where the work is long.
func TestAsksTheBestTwo(t *testing.T) {
	f, a, b, c := threeNodes(t, 1)
	c.s.SetDraining(false)
	f.settle()
	began, free := make(chan struct{}, 1), make(chan struct{})
	f.deploy("hold", lode.Function{}, func(*tnode) code { return hold(began, free) })
	f.deploy("work", lode.Function{}, func(n *tnode) code { return echo })
	for _, n := range []*tnode{b, c} {
		if _, err := n.s.Invoke(context.Background(), request("work"), newTaker()); err != nil {
			t.Fatal(err)
		}
		n.w.mu.Lock()
		rev := n.w.fns["default/work"]
		n.w.mu.Unlock()
		n.s.used.entry(rev).wall.Store(int64(time.Second)) // as if it took long
		n.costs("work", time.Second)
	}
	f.settle()
	_, held := invoke(b, request("hold"), newTaker())
	<-began
	for range 5 { // whatever was broadcast, b says that it is busy
		out, err := a.s.Invoke(context.Background(), request("work"), newTaker())
		if err != nil || out.Node != "c" {
			t.Fatalf("on %q: %v", out.Node, err)
		}
		c.costs("work", time.Second)
	}
	if st := a.s.SpreadStats(); st.Asked == 0 {
		t.Errorf("nobody was asked: %+v", st)
	}
	close(free)
	if err := <-held; err != nil {
		t.Error(err)
	}
}

func TestLoadReport(t *testing.T) {
	w := newWorld()
	s := w.service(t, Config{Slots: 3, FreeMemory: func() int64 { return 1 << 30 }})
	for i := range 300 {
		rev := &lode.Revision{Namespace: "default", Name: lode.Name(fmt.Sprintf("f%d", i)), Number: 1}
		s.used.ended(rev, time.Now(), time.Duration(i+1)*time.Millisecond, false)
	}
	last := &lode.Revision{Namespace: "default", Name: "last", Number: 7}
	s.used.ended(last, time.Now(), 20*time.Millisecond, false)
	b := s.LoadReport()
	if len(b) != loadHead+loadRevsMost*loadRev {
		t.Errorf("%d bytes", len(b))
	}
	l, err := ParseLoad(append(b, "what a later version adds"...))
	if err != nil {
		t.Fatal(err)
	}
	code, run := l.rev(revHash(last))
	if l.Slots != 3 || l.Queue != 0 || l.Memory != 1<<30 || l.Draining || l.Mean <= 0 || code != placement.Loaded || run != 0.02 {
		t.Errorf("%+v, %s %v", l.Load, code, run)
	}
	if code, run := l.rev(revHash(&lode.Revision{Namespace: "default", Name: "last", Number: 8})); code != placement.Absent || run != 0 {
		t.Errorf("what was never run: %s %v", code, run)
	}
	s.SetDraining(true)
	l2, err := ParseLoad(s.LoadReport())
	if err != nil || !l2.Draining || l2.Epoch <= l.Epoch {
		t.Errorf("%+v, %v", l2, err)
	}
	for _, b := range [][]byte{nil, b[:33], b[:len(b)-1], {2}} {
		if _, err := ParseLoad(b); lode.KindOf(err) != lode.Invalid {
			t.Errorf("%d bytes: %v", len(b), err)
		}
	}
}

// The view of a dead link: an error that is no link's goes up as it is.
func TestPeersFail(t *testing.T) {
	w := newWorld()
	p := &failingPeers{}
	s := w.service(t, Config{Peers: p})
	var n int
	w.deploy("f", lode.Function{}, func(g *guest) error { n++; return g.answer(200, "") })
	s.SetDraining(true)
	for _, tt := range []struct {
		err  error
		runs int
	}{
		{fmt.Errorf("gone: %w", link.ErrNotSent), 1}, // the own node is left
		{fmt.Errorf("full: %w", link.ErrRefused), 1},
		{&lode.Error{Kind: lode.Unavailable, Err: link.ErrLost}, 0},
		{lode.Errorf(lode.Internal, "odd"), 0},
		{errors.New("odd"), 0},
	} {
		p.err, n = tt.err, 0
		_, err := s.Invoke(context.Background(), request("f"), newTaker())
		if n != tt.runs || (err == nil) != (tt.runs == 1) {
			t.Errorf("%v: ran %d times, %v", tt.err, n, err)
		}
	}
}

type failingPeers struct{ err error }

func (*failingPeers) Self() lode.NodeID { return "a" }
func (*failingPeers) Nodes() []NodeView {
	return []NodeView{{Node: "a"}, {Node: "b", Load: &NodeLoad{Load: placement.Load{Epoch: 1, Slots: 4, Mean: 1e-3}}}}
}
func (p *failingPeers) Call(context.Context, lode.NodeID, *link.Request, link.Answer) error {
	return p.err
}

var _ Peers = (*failingPeers)(nil)

// A burst at one door is run by all nodes, each invocation once.
func TestBurstSpreads(t *testing.T) {
	f := newFleet(t, Config{Slots: 2}, "a", "b", "c")
	var ran runs
	f.deploy("work", lode.Function{}, func(n *tnode) code {
		return func(g *guest) error {
			ran.add(n)
			time.Sleep(3 * time.Millisecond) // its slot kept
			return g.answer(200, string(g.inv.Body))
		}
	})
	for _, n := range f.nodes { // everybody has the code, and knows what a run takes
		for range 10 {
			if _, err := n.s.Invoke(context.Background(), request("work"), newTaker()); err != nil {
				t.Fatal(err)
			}
		}
	}
	f.settle()
	ran.mu.Lock()
	clear(ran.by)
	ran.mu.Unlock()
	var wg sync.WaitGroup
	for i := range 90 {
		wg.Go(func() {
			req, ans := request("work"), newTaker()
			req.Body = []byte(fmt.Sprint(i))
			if _, err := f.nodes["a"].s.Invoke(context.Background(), req, ans); err != nil || string(ans.Msg.Body) != fmt.Sprint(i) {
				t.Errorf("%d: %q, %v", i, ans.Msg.Body, err)
			}
		})
	}
	wg.Wait()
	if ran.all() != 90 || len(ran.by) != 3 {
		t.Errorf("ran %s", &ran)
	}
	records := 0
	for _, n := range f.nodes {
		n.w.mu.Lock()
		records += len(n.w.records)
		n.w.mu.Unlock()
	}
	if records != 90+30 {
		t.Errorf("%d records of 120 invocations", records)
	}
}
