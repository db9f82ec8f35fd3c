package agent

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"lode"
)

func TestNamed(t *testing.T) {
	l := openLone(t)
	ctx := t.Context()
	blobs := func() []lode.Digest { return slices.Collect(maps.Keys(l.heap.m)) }
	left := func() (n int) {
		t.Helper()
		named, err := l.Named(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range blobs() {
			if named[d] {
				n++
			}
		}
		return n
	}
	save := func() {
		t.Helper()
		if err := l.trim(ctx, l.term); err != nil {
			t.Fatal(err)
		}
	}
	l.do("cart/x", "fill", "a")
	if left() != 1 {
		t.Errorf("a value in no snapshot yet: %d of %d", left(), len(blobs()))
	}
	save()
	before := left()
	if before != len(blobs()) || before < 3 {
		t.Errorf("value, segment and manifest: %d of %d", before, len(blobs()))
	}
	l.do("cart/x", "fill", "b")
	for range 3 { // the front of the journal, which names the first value, goes
		save()
		l.do("cart/x", "put", "k v")
	}
	save()
	if n := left(); n >= len(blobs()) {
		t.Errorf("nothing can be deleted of %d", n)
	}
	named, err := l.Named(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range blobs() {
		if !named[d] {
			delete(l.heap.m, d)
		}
	}
	save()
	if _, kv, err := l.show("cart", "x"); err != nil || kv != "k=v large=bbbbbbbbb" {
		t.Errorf("%q %v", kv, err)
	}
	for _, m := range l.Manifests() {
		delete(l.heap.m, m)
	}
	if _, err := l.Named(ctx); err == nil {
		t.Error("a snapshot is missing, and the rest may be deleted")
	}
}

func TestErase(t *testing.T) {
	l := openLone(t)
	ctx := t.Context()
	fill := func() {
		t.Helper()
		for i := range 9 {
			l.do(fmt.Sprint("cart/", i), "put", "k v")
			l.do(fmt.Sprint("cart/", i), "timer", "tea 3600000")
		}
	}
	stored := func() (n int64) {
		t.Helper()
		for id, p := range l.owned() {
			if id.Kind != "cart" {
				continue
			}
			p.counts.Store(nil) // it may be some seconds old
			c, err := p.count(ctx)
			if err != nil {
				t.Fatal(err)
			}
			n += c.agents
		}
		return n
	}
	fill()

	// Removed, and brought back.
	l.shelf.remove("cart", false)
	l.eraseGone(ctx)
	if stored() != 9 {
		t.Fatalf("%d agents are left of a kind that may come back", stored())
	}
	l.shelf.deploy("cart")
	if got := l.do("cart/3", "get", "k"); got != "v" {
		t.Fatalf("brought back with %q", got)
	}

	// Removed for ever.
	l.shelf.remove("cart", true)
	l.eraseGone(ctx)
	if stored() != 0 {
		t.Fatalf("%d agents are left", stored())
	}

	// Removed for ever, and deployed before anybody looked.
	l.shelf.deploy("cart")
	fill()
	l.shelf.remove("cart", true)
	l.shelf.deploy("cart")
	if got := l.do("cart/3", "get", "k"); got != "" {
		t.Errorf("an agent of an earlier kind: %q", got)
	}
	if got := l.names("cart", -1); len(got) != 0 {
		t.Errorf("agents of an earlier kind: %v", got)
	}
	d, err := l.Export(ctx, "ns", "cart", 1<<20, func(d *Dump) error { return fmt.Errorf("%s of an earlier kind", d.Key) })
	if err != nil || len(d) == 0 {
		t.Errorf("%v %v", d, err)
	}

	// A turn that has begun before is none of the new kind's.
	began := make(chan error, 1)
	go func() {
		_, err := l.Call(ctx, &lode.AgentCall{Namespace: "ns", Kind: "cart", Key: "3", Method: "wait", ID: "w", Given: true})
		began <- err
	}()
	soon(t, "a turn", func() bool { return len(l.Waits("ns")) == 1 })
	l.shelf.remove("cart", true)
	l.shelf.deploy("cart")
	l.eraseGone(ctx)
	close(l.code.gate)
	if err := <-began; err == nil {
		t.Error("a turn of the earlier kind took effect")
	}
	fill()
	if stored() != 9 {
		t.Errorf("the new kind has %d agents", stored())
	}
}

// Messages go on in order and once over an erasure at either end.
func TestEraseChannels(t *testing.T) {
	l := openLone(t)
	for round := range 3 {
		for i := range 5 {
			l.do(fmt.Sprint("cart/", i), "send", "cup/y")
		}
		soon(t, "messages", func() bool {
			_, kv, err := l.show("cup", "y")
			return err == nil && kv == "k=sent"
		})
		for id, p := range l.owned() {
			if id.Kind != "cart" {
				continue
			}
			soon(t, "an empty outbox", func() bool {
				n := 0
				base := []byte{spaceOutbox}
				err := p.part.List(base, after(base), false, func(_, _ []byte) bool { n++; return true })
				return err == nil && n == 0
			})
		}
		kind := []lode.Name{"cart", "cup", "cart"}[round]
		before := l.marks()
		l.shelf.remove(kind, true)
		l.eraseGone(t.Context())
		l.shelf.deploy(kind)
		if after := l.marks(); !maps.Equal(before, after) {
			t.Fatalf("round %d: how far channels are was %q, is %q", round, before, after)
		}
		if err := l.Remove(t.Context(), "ns", "cup", "y"); err != nil {
			t.Fatal(err)
		}
	}
}

// marks is how far the channels of all partitions are, as it is stored.
func (l *lone) marks() map[string]string {
	l.t.Helper()
	out := map[string]string{}
	for id, p := range l.owned() {
		for _, space := range []byte{spaceChannel, spaceInbox} {
			err := p.part.List([]byte{space}, []byte{space + 1}, false, func(k, v []byte) bool {
				out[fmt.Sprintf("%s %q", id, k)] = fmt.Sprintf("%q", v)
				return true
			})
			if err != nil {
				l.t.Fatal(err)
			}
		}
	}
	if len(out) == 0 {
		l.t.Fatal("there are no channels")
	}
	return out
}
