package bus

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"lode"
)

// leader is the member that leads the streams of a table.
func leader(t testing.TB, b *Bus, table string) lode.NodeID {
	t.Helper()
	st := must(b.js.Stream(t.Context(), tableStream(table)))(t)
	return lode.NodeID(must(st.Info(t.Context()))(t).Cluster.Leader)
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it never came to this: ", what)
		}
	}
}

// TestTimers: the server elects in the times that are set for it.
func TestTimers(t *testing.T) {
	if minElectionTimeout != 600*time.Millisecond || maxElectionTimeout != 1200*time.Millisecond || hbInterval != 150*time.Millisecond ||
		streamCatchupStartInterval != 600*time.Millisecond {
		t.Fatal(minElectionTimeout, maxElectionTimeout, hbInterval)
	}
}

// TestMembersDie kills one member of three after the other: writes go on, a
// majority that is gone is said, and all heals.
func TestMembersDie(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	w, a, _, _ := three(t)
	l := a.Layout()
	d := w.up("d", &l) // a client
	tab := must(d.Table(ctx, "t"))(t)
	watch := must(tab.Watch(ctx, ""))(t)
	defer watch.Close()
	must(tab.Put(ctx, "k", []byte("0")))(t)
	eventually(t, "all members are up", func() bool {
		h := d.Health()
		return h.Quorum && h.Survives == 1 && len(h.Members) == 3 && h.Detail == ""
	})
	first := leader(t, d, "t")
	w.down(first)
	began := time.Now()
	must(tab.Put(ctx, "k", []byte("1")))(t)
	t.Log("without its leader the next write took", time.Since(began))
	// The cluster is still one, and says that it survives no more.
	eventually(t, "one member is missed", func() bool { h := d.Health(); return h.Quorum && h.Survives == 0 })
	second := leader(t, d, "t")
	w.down(second)
	began = time.Now()
	_, err := tab.Put(ctx, "k", []byte("2"))
	wantKind(t, err, lode.Unavailable)
	if took := time.Since(began); took > 6*time.Second {
		t.Fatalf("it took %s to say so", took)
	}
	if h := d.Health(); h.Quorum || h.Detail == "" {
		t.Fatalf("%+v", h)
	}
	w.up(second, nil)
	eventually(t, "a write comes through", func() bool { _, err := tab.Put(ctx, "k", []byte("3")); return err == nil })
	w.up(first, nil)
	eventually(t, "all members are up again", func() bool { return d.Health().Survives == 1 })
	for c := must(watch.Next(ctx))(t); string(c.Value) != "3"; {
		c = must(watch.Next(ctx))(t)
	}
	// All at once.
	for _, n := range []lode.NodeID{"a", "b", "c"} {
		w.down(n)
	}
	for _, n := range []lode.NodeID{"a", "b", "c"} {
		w.up(n, nil)
	}
	eventually(t, "a write comes through", func() bool { _, err := tab.Put(ctx, "k", []byte("4")); return err == nil })
	for c := must(watch.Next(ctx))(t); string(c.Value) != "4"; {
		c = must(watch.Next(ctx))(t)
	}
}

// TestEmptied takes the folder of a member away: it must not vote with what it
// does not know, and gets all again by a move to the same members.
func TestEmptied(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	w, a, _, _ := three(t)
	tab := must(a.Table(ctx, "t"))(t)
	must(tab.Put(ctx, "k", []byte("1")))(t)
	w.down("b") // will not know the next write
	must(tab.Put(ctx, "k", []byte("2")))(t)
	l := a.Layout()
	w.down("c")
	if err := os.RemoveAll(filepath.Join(w.dir, "c")); err != nil {
		t.Fatal(err)
	}
	w.down("a")
	// b is behind and c has nothing: together they would be a majority.
	b, c := w.up("b", nil), w.up("c", &l)
	tb, terr := b.Table(ctx, "t")
	if terr == nil {
		_, err := tb.Put(ctx, "k", []byte("3"))
		wantKind(t, err, lode.Unavailable)
	}
	if h := c.Health(); h.Quorum {
		t.Fatalf("%+v", h)
	}
	a = w.up("a", nil)
	eventually(t, "the table is there again", func() (ok bool) {
		var err error
		tab, err = c.Table(ctx, "t")
		return err == nil
	})
	e, ok, err := tab.Get(ctx, "k")
	if err != nil || !ok || string(e.Value) != "2" && string(e.Value) != "3" {
		t.Fatalf("%q %v", e.Value, err)
	}
	eventually(t, "c is said to be empty", func() bool {
		h := a.Health()
		return h.Quorum && h.Survives == 0 && len(h.Members) == 3 && h.Members[2].Empty
	})
	if err := a.Move(ctx, w.members("a", "b", "c")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "c votes", func() bool { return c.Health().Survives == 1 })
}

// TestReplaceDead moves away from a member that is gone for good.
func TestReplaceDead(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	w, a, _, _ := three(t)
	l := a.Layout()
	w.up("d", &l)
	tab := must(a.Table(ctx, "t"))(t)
	must(tab.Put(ctx, "k", []byte("1")))(t)
	w.down("b")
	began := time.Now()
	if err := a.Move(ctx, w.members("a", "c", "d")); err != nil {
		t.Fatal(err)
	}
	t.Log("took", time.Since(began))
	rev := must(tab.Put(ctx, "k", []byte("2")))(t)
	// It comes back with what it had, and learns.
	b := w.up("b", nil)
	eventually(t, "b follows", func() bool { return b.Layout().Generation == 3 })
	tb := must(b.Table(ctx, "t"))(t)
	if e, _, err := tb.Get(ctx, "k"); err != nil || e.Rev != rev {
		t.Fatalf("%+v %v", e, err)
	}
	eventually(t, "b's old store is gone", func() bool {
		left, _ := filepath.Glob(filepath.Join(w.dir, "b", "store*"))
		return len(left) == 0
	})
}

// TestCut isolates one member: it can store nothing, the others can, and it
// has no say afterwards.
func TestCut(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	w, a, _, _ := three(t)
	tab := must(a.Table(ctx, "t"))(t)
	must(tab.Put(ctx, "k", []byte("1")))(t)
	lost := leader(t, a, "t")
	var other *Bus
	for n, b := range w.nodes {
		if n != lost {
			other = b
		}
	}
	there := must(other.Table(ctx, "t"))(t)
	alone := must(w.nodes[lost].Table(ctx, "t"))(t)
	w.isolate(lost, true)
	short, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	_, err := alone.Put(short, "k", []byte("alone"))
	wantKind(t, err, lode.Unavailable)
	var rev uint64
	eventually(t, "the others go on", func() bool {
		rev, err = there.Put(ctx, "k", []byte("2"))
		return err == nil
	})
	w.isolate(lost, false)
	eventually(t, "it follows", func() bool {
		e, _, err := alone.Get(ctx, "k")
		return err == nil && e.Rev == rev
	})
	must(alone.Update(ctx, "k", []byte("3"), rev))(t)
}

// TestUndone crashes the mover between the freeze and the commit: what is
// there stays, and writes go on without help.
func TestUndone(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	w := newWorld(t)
	a := w.up("a", nil)
	l := a.Layout()
	b, c := w.up("b", &l), w.up("c", &l)
	tab := must(b.Table(ctx, "t"))(t)
	for i := range 5 {
		must(tab.Put(ctx, fmt.Sprint(i), []byte("1")))(t)
	}
	// As far as a mover gets before it commits; then its process ends.
	m := &mover{b: a, from: a.Layout(), old: side{a.nc, a.js}}
	m.to = Layout{Cluster: m.from.Cluster, Members: w.members("a", "b", "c"), Secret: newID()}
	if err := m.begin(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.prepare(ctx); err != nil {
		t.Fatal(err)
	}
	stop, err := m.freeze(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.copy(ctx); err != nil {
		t.Fatal(err)
	}
	stop()
	w.down("a")
	a = w.up("a", nil)
	eventually(t, "writes go on", func() bool { _, err := tab.Put(ctx, "0", []byte("2")); return err == nil })
	if g := c.Layout().Generation; g != 1 {
		t.Fatalf("generation %d", g)
	}
	if err := a.Move(ctx, w.members("a", "b", "c")); err != nil {
		t.Fatal(err)
	}
	if all := must(must(c.Table(ctx, "t"))(t).List(ctx, ""))(t); len(all) != 5 || string(all[0].Value) != "2" {
		t.Fatalf("%+v", all)
	}
}

// TestCompleted crashes everybody right after the commit, before anybody was
// told.
func TestCompleted(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	w := newWorld(t)
	a := w.up("a", nil)
	l := a.Layout()
	w.up("b", &l)
	w.up("c", &l)
	tab := must(a.Table(ctx, "t"))(t)
	rev := must(tab.Put(ctx, "k", []byte("1")))(t)
	m := &mover{b: a, from: a.Layout(), old: side{a.nc, a.js}}
	m.to = Layout{Cluster: m.from.Cluster, Members: w.members("a", "b", "c"), Secret: newID()}
	if err := m.begin(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.prepare(ctx); err != nil {
		t.Fatal(err)
	}
	stop, err := m.freeze(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.copy(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.commit(ctx); err != nil {
		t.Fatal(err)
	}
	stop()
	for _, n := range []lode.NodeID{"a", "b", "c"} {
		w.down(n)
	}
	w.up("b", nil)
	w.up("c", nil)
	a = w.up("a", nil)
	eventually(t, "the move is complete", func() bool { return a.Health().Survives == 1 && a.Layout().Generation == 2 })
	tab = must(w.nodes["c"].Table(ctx, "t"))(t)
	must(tab.Update(ctx, "k", []byte("2"), rev))(t)
}
