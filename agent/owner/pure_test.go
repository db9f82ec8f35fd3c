package owner

import (
	"strings"
	"testing"
	"time"

	"lode"
	"lode/agent/journal"
)

func TestJournalName(t *testing.T) {
	seen := make(map[string]bool)
	long := strings.Repeat("x", 62)
	for _, n := range []lode.NodeID{"a", "0", "node-1", lode.NodeID(long + "1"), lode.NodeID(long + "2"), lode.NodeID(long[:41]), lode.NodeID(long[:42]),
		lode.NodeID(strings.Repeat("a-", 31) + "a")} {
		name := JournalName(n)
		if _, err := lode.ParseName(name); err != nil || seen[name] {
			t.Errorf("%s: %s, %v", n, name, err)
		}
		seen[name] = true
	}
}

func FuzzPartition(f *testing.F) {
	for _, s := range []string{"default/cart/7", "a/b/07", "a/b/-1", "//", "a/b", "a/b/70000", "a/b/c/1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, key string) {
		if p, ok := parsePartition(key); ok && (p.String() != key || p.N < 0 || p.N >= mostParts) {
			t.Fatalf("%q is read as %+v", key, p)
		}
	})
}

func TestSuspicion(t *testing.T) {
	const detectIn = 4
	u := newSuspicion()
	look := func(n int, alive, late bool) {
		for range n {
			u.look("a", alive, late)
		}
	}
	look(detectIn, false, false)
	if u.dead("a", 0, detectIn) {
		t.Fatal("a node that may just not have been reached yet is dead")
	}
	look(1, true, false)
	look(detectIn-1, false, false)
	if u.dead("a", 0, detectIn) {
		t.Fatal("too early")
	}
	look(1, false, false)
	if !u.dead("a", 0, detectIn) || u.dead("a", 1, detectIn) {
		t.Fatal("the first one's turn, and nobody else's")
	}
	look(rankTicks, false, false)
	if !u.dead("a", 1, detectIn) || u.dead("a", 2, detectIn) {
		t.Fatal("the second one's turn")
	}
	look(1, false, true)
	if u.dead("a", 0, detectIn) {
		t.Fatal("a node that has slept suspects others")
	}
	look(detectIn*newFactor, false, false)
	if !u.dead("a", 0, detectIn) {
		t.Fatal("never dead")
	}
}

// TestRegisterOfTakeover holds what the others are told to wait for.
func TestRegisterOfTakeover(t *testing.T) {
	old := journal.Base{Journal: "x", Cut: 5, Epoch: 1}
	const w = 2 * time.Second
	for _, c := range []struct {
		name string
		rec  NodeRecord
		reg  Register
		held bool
		want Register
	}{
		{"it had a lease", NodeRecord{Count: 3, State: NodeUp}, Register{Epoch: 2, Node: "a", Base: old, Settled: true}, true,
			Register{Epoch: 3, Node: "b", Incarnation: "i", Base: journal.Base{Journal: "a", Cut: 9, Epoch: 2}, Wait: w}},
		{"it never had one", NodeRecord{State: NodeUp}, Register{Epoch: 2, Node: "a", Base: old}, true,
			Register{Epoch: 3, Node: "b", Incarnation: "i", Base: journal.Base{Journal: "a", Cut: 9, Epoch: 2}, Pins: "x"}},
		{"it has ended", NodeRecord{Count: 3, State: NodeDown}, Register{Epoch: 2, Node: "a", Base: old}, true,
			Register{Epoch: 3, Node: "b", Incarnation: "i", Base: journal.Base{Journal: "a", Cut: 9, Epoch: 2}, Pins: "x"}},
		{"it had not taken it, and was to wait itself", NodeRecord{State: NodeUp}, Register{Epoch: 2, Node: "a", Base: old, Wait: time.Second}, false,
			Register{Epoch: 3, Node: "b", Incarnation: "i", Base: old, Wait: time.Second}},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := takeover{node: "a"}
			if k.begin(c.rec, 4) {
				k.suspected(5)
			}
			rev := k.rev
			if !k.read([]named{{part64(1), c.reg, 7}, {part64(2), Register{Node: "b"}, 8}}) || len(k.named) != 1 || !k.checked(rev) {
				t.Fatalf("%+v", k)
			}
			k.sealed(9)
			k.scanned()
			if got := k.register(k.named[0], c.held, "b", "i", w); got != c.want {
				t.Fatalf("%+v, want %+v", got, c.want)
			}
			again := takeover{node: "a", rev: rev}
			if again.checked(rev + 1) {
				t.Fatal("a node that has begun another term is taken over by the old suspicion")
			}
		})
	}
}

// TestLeaseEnds holds that a lease is counted from before it was asked for, and
// ends by itself.
func TestLeaseEnds(t *testing.T) {
	o := &Owners{c: Config{Alone: func() bool { return false }}}
	for _, c := range []struct {
		name  string
		until int64
		want  bool
	}{
		{"none", 0, false}, {"over", int64(now()) - 1, false}, {"valid", int64(now() + time.Hour), true}, {"of a node that is not alone any more", forever, false},
	} {
		o.lease.Store(c.until)
		if o.LeaseValid() != c.want {
			t.Error(c.name)
		}
	}
	o.c.Alone = func() bool { return true }
	if !o.LeaseValid() {
		t.Error("a node that is alone waits for nobody")
	}
}

// TestPins holds that a journal is needed until an owner has a snapshot of its
// own, however often the partition moves before.
func TestPins(t *testing.T) {
	r := Register{Epoch: 1, Node: "a"}
	next := func(to lode.NodeID) {
		r = Register{Epoch: r.Epoch + 1, Node: to, Pins: r.pins(true), Base: journal.Base{Journal: r.Node, Cut: 1, Epoch: r.Epoch}}
	}
	next("b")
	next("c")
	next("b")
	if r.Pins != "a,b" || !r.needs("a") || !r.needs("b") || !r.needs("c") || r.needs("d") {
		t.Fatalf("%+v", r)
	}
	if kept := r.pins(false); kept != "a,b" {
		t.Fatal(kept)
	}
	p := part{state: StateOwner, reg: r}
	if r, _ = p.settled(); r.needs("c") || r.needs("a") {
		t.Fatalf("%+v", r)
	}
	if next("d"); r.Pins != "" || !r.needs("b") {
		t.Fatalf("%+v", r)
	}
}
