package agent

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lode"
)

// TestIdempotency: a call with the key of another joins it while it runs, gets
// its answer afterwards, over restarts and removals; another call with the key
// is refused.
func TestIdempotency(t *testing.T) {
	w, n := one(t)
	var ran atomic.Int64
	release := make(chan struct{})
	w.on("slow", func(g *guest) error {
		ran.Add(1)
		<-release
		v, err := g.add("n", 1)
		g.say(v)
		return err
	})
	var all sync.WaitGroup
	for range 5 {
		all.Go(func() {
			if r, err := n.try("k/x", "slow", "", id("one")); err != nil || string(r.Body) != "1" {
				t.Errorf("%v %v", r, err)
			}
		})
	}
	until(t, "the turn", func() bool { return ran.Load() > 0 })
	_, err := n.try("k/x", "slow", "other body", id("one"))
	wantKind(t, err, lode.KeyReused)
	_, err = n.try("k/x", "add", "", id("one"))
	wantKind(t, err, lode.KeyReused)
	close(release)
	all.Wait()
	for range 2 {
		r := must(n.try("k/x", "slow", "", id("one")))(t)
		if string(r.Body) != "1" || !r.Repeated || ran.Load() != 1 {
			t.Errorf("%s, repeated %v, ran %d times", r.Body, r.Repeated, ran.Load())
		}
		_, err = n.try("k/x", "slow", "other body", id("one"))
		wantKind(t, err, lode.KeyReused)
		n.restart()
	}
	// Keys belong to agents.
	n.wants("k/y", "add", 5, "5")
	if r := must(n.try("k/y", "add", 5, id("one")))(t); string(r.Body) != "10" || r.Repeated {
		t.Errorf("%s %v", r.Body, r.Repeated)
	}
	// A turn that failed may be tried again with its key.
	var fail atomic.Bool
	fail.Store(true)
	w.on("shaky", func(g *guest) error {
		if fail.CompareAndSwap(true, false) {
			return fmt.Errorf("once")
		}
		g.say("good")
		return nil
	})
	_, err = n.try("k/x", "shaky", "", id("shaky"))
	wantKind(t, err, lode.Crashed)
	if r := must(n.try("k/x", "shaky", "", id("shaky")))(t); string(r.Body) != "good" || r.Repeated {
		t.Errorf("%s %v", r.Body, r.Repeated)
	}
	// So may one whose turn removed the agent: it does not do it again.
	w.on("end", func(g *guest) error {
		v, err := g.num("n")
		if err != nil {
			return err
		}
		g.say(v)
		_, err = g.op(OpState, nil, ":verb", "remove")
		return err
	})
	for range 2 {
		if r := must(n.try("k/y", "end", "", id("end")))(t); string(r.Body) != "10" {
			t.Errorf("the end answered %s", r.Body)
		}
	}
	n.wants("k/y", "add", 1, "1")
	if _, err := n.try("k/x", "add", "", id(strings.Repeat("k", 257))); lode.KindOf(err) != lode.Invalid {
		t.Errorf("a long key: %v", err)
	}
	for _, k := range []string{"\x00", "\xff\x00\x01", strings.Repeat("k", 256), "a/b"} {
		n.call("k/z", "add", 1, id(k))
		if r := must(n.try("k/z", "add", 1, id(k)))(t); !r.Repeated {
			t.Errorf("the key %q was not known", k)
		}
	}
}

// TestIdempotencyForgets: of an agent's keys the last thousand are kept, for a
// day, however fast they come.
func TestIdempotencyForgets(t *testing.T) {
	_, n := one(t)
	var all sync.WaitGroup
	const each, lines = 400, 8
	for l := range lines {
		all.Go(func() {
			for i := range each {
				n.call("k/x", "add", 1, id(fmt.Sprintf("%d.%d", l, i)))
			}
		})
	}
	all.Wait()
	kept := func() (replies, order int) {
		for k := range n.dump() {
			switch {
			case strings.Contains(k, `x\x00\x01r`):
				replies++
			case strings.Contains(k, `x\x00\x01q`):
				order++
			}
		}
		return replies, order
	}
	if r, o := kept(); r != o || r > keptReplies || r < keptReplies-lines {
		t.Errorf("%d answers are kept, %d times", r, o)
	}
	n.wants("k/x", "get", "", fmt.Sprint(each*lines))
	r := must(n.try("k/x", "add", 1, id(fmt.Sprintf("0.%d", each-1))))(t)
	if !r.Repeated {
		t.Error("a new key was forgotten")
	}
	n.restart()
	n.shift.Store(int64(25 * time.Hour))
	for i := range 10 {
		n.call("k/x", "add", 1, id(fmt.Sprint("late", i)))
	}
	n.quiet()
	if r, o := kept(); r != o || r > 600 {
		t.Errorf("%d answers are kept after a day, %d times", r, o)
	}
}

// TestMailbox: a mailbox that is full refuses with Overloaded, and what waits is
// turned away when the deadline comes; reads go on beside a long turn.
func TestMailbox(t *testing.T) {
	w, n := one(t)
	w.kind("k", func(f *lode.Function) { f.Agent.Mailbox = 3 })
	release, began := make(chan struct{}), make(chan struct{})
	w.on("block", func(g *guest) error { close(began); <-release; return g.put("n", "100") })
	n.call("k/x", "add", 1)
	var all sync.WaitGroup
	all.Go(func() { n.call("k/x", "block", "") })
	<-began
	for range 3 {
		all.Go(func() { n.call("k/x", "add", 1) })
	}
	p := n.svc.Load().partitionOf("k", "x")
	until(t, "a full mailbox", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return p.agents["x"].box.n == 3 })
	_, err := n.try("k/x", "add", 1)
	wantKind(t, err, lode.Overloaded)
	if e := lode.AsError(err); e.RetryAfter == 0 {
		t.Error("nothing says when to try again")
	}
	n.wants("k/y", "add", 1, "1") // others go on
	close(release)
	all.Wait()
	n.wants("k/x", "add", 0, "103")
	// A caller that leaves.
	began, release = make(chan struct{}), make(chan struct{})
	all.Go(func() { n.call("k/x", "block", "") })
	<-began
	_, err = n.try("k/x", "add", 1, within(50*time.Millisecond))
	wantKind(t, err, lode.Deadline)
	if !strings.Contains(err.Error(), "block") {
		t.Errorf("the error does not name what it waited for: %v", err)
	}
	n.wants("k/x", "get", "", "103") // beside the turn
	close(release)
	all.Wait()
	n.wants("k/x", "add", 0, "100")
}

// TestSync: what is synced stays though the turn fails, what comes after does
// not.
func TestSync(t *testing.T) {
	w, n := one(t)
	w.on("half", func(g *guest) error {
		if err := g.put("a", "1"); err != nil {
			return err
		}
		if _, err := g.op(OpState, nil, ":verb", "sync"); err != nil {
			return err
		}
		if v, err := g.get("a"); v != "1" || err != nil {
			return fmt.Errorf("a is %q", v)
		}
		if err := g.put("b", "2"); err != nil {
			return err
		}
		return fmt.Errorf("now it fails")
	})
	_, err := n.try("k/x", "half", "")
	wantKind(t, err, lode.Crashed)
	n.wants("k/x", "all", "", "[a 1]")
	n.restart()
	n.wants("k/x", "all", "", "[a 1]")
	// clear, writes, clear, with and without what is acknowledged.
	w.on("mix", func(g *guest) error {
		for range 2 {
			if _, err := g.op(OpState, nil, ":verb", "clear"); err != nil {
				return err
			}
			if l, err := g.list(); err != nil || len(l) != 0 {
				return fmt.Errorf("after clear: %v %v", l, err)
			}
			for _, k := range []string{"c", "a", "b"} {
				if err := g.put(k, k); err != nil {
					return err
				}
			}
			if err := g.del("b"); err != nil {
				return err
			}
		}
		l, err := g.list(":reverse", "1")
		g.say(l)
		return err
	})
	for range 5 {
		n.wants("k/x", "mix", "", "[c c a a]")
	}
	n.wants("k/x", "all", "", "[a a c c]")
	n.call("k/x", "remove", "")
	n.wants("k/x", "all", "", "[]")
	n.whole()
}

// TestRepeatedElsewhere (S3): what is repeated by the platform itself takes
// effect once, though the clock of the next owner is an hour off.
func TestRepeatedElsewhere(t *testing.T) {
	_, n := one(t)
	again := func(c *lode.AgentCall) { c.ID = "made by a node" } // and not by a caller
	n.call("k/x", "add", 1, again)
	for i, shift := range []time.Duration{time.Hour, -time.Hour, 2 * time.Hour, 0} {
		n.crash()
		n.shift.Store(int64(shift))
		n.up()
		n.call("k/y", "add", 1)
		n.call("k/other", "add", 1)
		if r := must(n.try("k/x", "add", 1, again))(t); !r.Repeated {
			t.Errorf("after restart %d, with a clock that is %s off, it ran again", i, shift)
		}
	}
	n.wants("k/x", "get", "", "1")
}
