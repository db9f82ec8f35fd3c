package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lode"
	"lode/agent/journal"
	"lode/agent/owner"
)

// TestFull (S3): a journal without room refuses turns with Full, keeps none of
// what rests on them, answers reads, and goes on when there is room.
func TestFull(t *testing.T) {
	w, n := one(t, fast)
	w.on("tick", func(g *guest) error { return g.timer("t", time.Millisecond, "add", "1") })
	w.on("give", func(g *guest) error {
		if _, err := g.add("n", 1); err != nil {
			return err
		}
		return g.send("k/to", "note", string(g.body))
	})
	m := &marks{tried: map[string][]string{}, acked: map[string]map[string]bool{}}
	m.told(n, 0, 4)
	n.call("k/from", "give", "first")
	n.call("k/timer", "tick", "")
	var full atomic.Bool
	var every atomic.Int64
	n.onCommit(func(next journal.Log, ctx context.Context, entries [][]byte) (uint64, error) {
		if full.Load() || every.Add(1)%3 == 0 && every.Load() < 1000 {
			return 0, lode.Errorf(lode.Full, "no room")
		}
		return next.Commit(ctx, entries...)
	})
	// Now and then a message is refused, while turns follow each other.
	sent := 1
	for round := 1; round < 10; round++ {
		m.told(n, round, 10)
		if _, err := n.try("k/from", "give", fmt.Sprint("m", round)); err == nil {
			sent++
		} else if lode.KindOf(err) != lode.Full {
			t.Error(err)
		}
		m.check(n)
	}
	// Nothing has room.
	full.Store(true)
	before := n.call("k/a0", "peek", "")
	for range 3 {
		_, err := n.try("k/a0", "note", "full")
		wantKind(t, err, lode.Full)
		if got := n.call("k/a0", "peek", ""); got != before {
			t.Errorf("a read while the journal is full: %q, want %q", got, before)
		}
	}
	full.Store(false)
	every.Store(1000)
	m.told(n, 100, 10)
	m.again(n)
	m.check(n)
	until(t, "the messages", func() bool { return len(strings.Fields(n.call("k/to", "peek", ""))) >= sent })
	until(t, "the timer", func() bool { return n.call("k/timer", "get", "") == "1" })
	n.delivered()
	if got := strings.Fields(n.call("k/to", "peek", "")); len(got) != sent {
		t.Errorf("%d messages arrived, %d were sent: %v", len(got), sent, got)
	}
	n.whole()
	m.check(n)
	n.wants("k/timer", "get", "", "1")
}

// delivered waits until no message is kept that was delivered.
func (n *node) delivered() {
	n.w.t.Helper()
	until(n.w.t, "an empty outbox", func() bool {
		for _, p := range n.svc.Load().owned() {
			kept := false
			base := []byte{spaceOutbox}
			if err := p.part.List(base, after(base), false, func(_, _ []byte) bool { kept = true; return false }); err != nil || kept {
				return false
			}
		}
		return true
	})
}

// TestRefusedOnce (S3): what nobody waits for is done again by itself after the
// journal has refused it: the turn of a timer, a timer's next try, the turn of
// a message, and the note that it has arrived.
func TestRefusedOnce(t *testing.T) {
	w, n := one(t, fast)
	var failed atomic.Bool
	w.on("fails once", func(g *guest) error {
		if !failed.Swap(true) {
			return errors.New("the first time it fails")
		}
		_, err := g.add("n", 1)
		return err
	})
	w.on("tick", func(g *guest) error { return g.timer("t", time.Millisecond, string(g.body), "1") })
	w.on("give", func(g *guest) error { return g.send("k/to", "note", string(g.body)) })
	var what atomic.Pointer[string]
	what.Store(&nothing)
	n.onCommit(func(next journal.Log, ctx context.Context, entries [][]byte) (uint64, error) {
		for _, b := range entries {
			e, err := journal.Decode(b)
			if err != nil {
				return 0, err
			}
			if word := opWord(e.Op) + " " + e.Method; strings.HasPrefix(word, *what.Load()) && what.CompareAndSwap(what.Load(), &nothing) {
				return 0, lode.Errorf(lode.Full, "no room")
			}
		}
		return next.Commit(ctx, entries...)
	})
	for _, c := range []struct{ refused, key, verb, body, at, seen, want string }{
		{"turn add", "k/timer", "tick", "add", "k/timer", "get", "1"},
		{"turn retry", "k/fails", "tick", "fails once", "k/fails", "get", "1"},
		{"turn note", "k/from", "give", "1", "k/to", "peek", "1"},
		{"note", "k/from", "give", "2", "k/to", "peek", "1 2"},
	} {
		what.Store(&c.refused)
		n.call(c.key, c.verb, c.body)
		until(t, "a refusal of "+c.refused, func() bool { return what.Load() == &nothing })
		until(t, "what was refused: "+c.refused, func() bool {
			r, err := n.try(c.at, c.seen, "") // it is refused too, if it has seen what was
			return err == nil && strings.TrimSpace(string(r.Body)) == c.want
		})
		n.delivered()
	}
	n.whole()
}

var nothing = "nothing is refused"

// TestTooLargeInTheMiddle: turns that are refused for their size are not seen by
// those that come at the same time.
func TestTooLargeInTheMiddle(t *testing.T) {
	w, n := one(t)
	w.on("big", func(g *guest) error {
		if err := g.put("v", "never"); err != nil {
			return err
		}
		for i := range 70 {
			if err := g.put(fmt.Sprint("k", i), strings.Repeat("v", 64<<10)); err != nil {
				return err
			}
		}
		return nil
	})
	n.call("k/x", "put", "good")
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			if i%5 == 0 {
				_, err := n.try("k/x", "big", "")
				wantKind(t, err, lode.TooLarge)
				return
			}
			n.wants("k/x", "peek", "", "good")
			n.call("k/x", "add", 1)
		})
	}
	all.Wait()
	n.wants("k/x", "get", "", "16")
	n.whole()
}

// TestOutputGate (S4): nothing leaves a turn before what it has seen is
// durable: answers, refusals, errors, calls, frames, events.
func TestOutputGate(t *testing.T) {
	w, n := one(t)
	w.kind("other", func(f *lode.Function) { f.Agent.Partitions = 1 })
	w.on("refuse", func(g *guest) error {
		v, err := g.get("v")
		g.status, g.reply = 409, []byte(v)
		return err
	})
	w.on("crash", func(g *guest) error { v, _ := g.get("v"); return fmt.Errorf("%s", v) })
	var called atomic.Bool
	w.on("hear", func(g *guest) error { called.Store(true); return nil })
	w.on("tell", func(g *guest) error {
		if _, err := g.get("v"); err != nil {
			return err
		}
		_, _, err := g.call("other/x", "hear", "")
		return err
	})
	w.on("fetch", func(g *guest) error {
		g.status = 101
		_, err := g.op(OpSocket, nil, ":verb", "accept", ":socket", "a~1")
		return err
	})
	w.on("shout", func(g *guest) error {
		v, err := g.get("v")
		if err == nil {
			_, err = g.op(OpSocket, []byte(v), ":verb", "send", ":socket", "a~1", ":type", "text")
		}
		return err
	})
	verbs := []string{"peek", "look", "refuse", "crash", "shout", "tell"}
	n.call("other/x", "add", 1)
	for _, verb := range verbs {
		n.call("k/"+verb, "put", "old")
	}
	n.call("k/shout", "GET", "", func(c *lode.AgentCall) {
		c.Turn, c.Path, c.Head = lode.TurnFetch, "/", []lode.Pair{{Key: ":socket", Value: "a~1"}}
	})
	hold := make(chan struct{})
	release := sync.OnceFunc(func() { close(hold) })
	defer release()
	n.onCommit(func(next journal.Log, ctx context.Context, entries [][]byte) (uint64, error) {
		<-hold
		return next.Commit(ctx, entries...)
	})
	s := n.svc.Load()
	// state is how many turns of an agent are under way, and what it is at.
	state := func(key string) (flights int, at string) {
		p := s.partitionOf("k", key)
		p.mu.Lock()
		defer p.mu.Unlock()
		a := p.agents[key]
		if a == nil {
			return 0, ""
		}
		if a.run != nil {
			at = a.run.m.c.Method
		}
		return len(a.flights), at
	}
	var left atomic.Int64
	var all sync.WaitGroup
	for _, verb := range verbs {
		all.Go(func() { n.call("k/"+verb, "put", "new"); left.Add(1) })
		until(t, "a write", func() bool { f, at := state(verb); return f == 1 && at == "" })
		all.Go(func() { n.try("k/"+verb, verb, ""); left.Add(1) })
		until(t, "the turn "+verb, func() bool {
			f, at := state(verb)
			switch verb {
			case "shout", "tell": // they wait in the middle
				return at == verb
			}
			return f == 1 && at == ""
		})
	}
	if sent := n.framesOf("a~1"); left.Load() > 0 || called.Load() || len(sent) > 0 {
		t.Errorf("%d answers left, and a call: %v, and the frames %q, before what they saw was durable", left.Load(), called.Load(), sent)
	}
	release()
	all.Wait()
	if !called.Load() {
		t.Error("the call was not made")
	}
	until(t, "the frame", func() bool { return slices.Equal(n.framesOf("a~1"), []string{"new"}) })
}

// TestDamagedJournal (S1): an entry of the journal that cannot be read is found
// and named, and its partition does not come back as if there were none.
func TestDamagedJournal(t *testing.T) {
	_, n := one(t)
	n.call("k/x", "add", 1)
	var bad atomic.Bool
	n.onCommit(func(next journal.Log, ctx context.Context, entries [][]byte) (uint64, error) {
		out := make([][]byte, len(entries))
		for i, b := range entries {
			out[i] = append([]byte(nil), b...)
			if bad.CompareAndSwap(true, false) {
				out[i] = out[i][:len(out[i])-3] // as a program with a fault may write it
			}
		}
		return next.Commit(ctx, out...)
	})
	n.call("k/x", "add", 1)
	bad.Store(true)
	n.call("k/x", "add", 1)
	n.call("k/x", "add", 1)
	n.down()
	if err := os.RemoveAll(filepath.Join(n.w.dir, "agents-a")); err != nil {
		t.Fatal(err)
	}
	n.onCommit(nil)
	s := n.up()
	_, err := s.load(t.Context(), []owner.Claim{{Partition: journal.Partition{Namespace: "ns", Kind: "k", N: lode.PartitionOf("x", 4)}, Epoch: 2, Base: journal.Base{Journal: "a", Cut: 1 << 40, Epoch: 1}}})
	if lode.KindOf(err) != lode.Damaged && lode.KindOf(err) != lode.NotFound {
		t.Errorf("a journal with an entry that is cut: %v", err)
	}
	if r, err := n.try("k/x", "get", "", within(500*time.Millisecond)); err == nil {
		t.Errorf("the agent answers %s from a damaged journal", r.Body)
	} else {
		t.Log(err)
	}
}

// TestDamagedSnapshot (S7): a snapshot that is changed, cut or gone is found,
// and named; nothing is made up.
func TestDamagedSnapshot(t *testing.T) {
	for name, change := range map[string]func([]byte) []byte{
		"flipped": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"cut":     func(b []byte) []byte { return b[:len(b)/2] },
		"empty":   func(b []byte) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			_, n := one(t)
			n.call("k/x", "add", 1)
			if err := n.trimNow(); err != nil {
				t.Fatal(err)
			}
			n.call("k/x", "add", 1)
			n.trimNow()
			n.crash()
			n.w.blobs.change(change)
			os.RemoveAll(filepath.Join(n.w.dir, "agents-a"))
			n.up()
			r, err := n.try("k/x", "get", "", within(500*time.Millisecond))
			if err == nil && string(r.Body) != "2" {
				t.Errorf("the agent answers %s from a damaged snapshot", r.Body)
			} else if err == nil {
				t.Error("the snapshot was not needed")
			} else {
				t.Log(err)
			}
		})
	}
}

// TestDamagedState (S9): local state that is damaged is made anew.
func TestDamagedState(t *testing.T) {
	_, n := one(t)
	for i := range 20 {
		n.call("k/x", "add", 1)
		n.call(fmt.Sprint("k/", i), "put", strings.Repeat("x", 1000))
	}
	n.trimNow()
	n.call("k/x", "add", 1)
	for _, pattern := range []string{"MANIFEST-*", "*.sst", "*.log"} {
		n.down()
		files, _ := filepath.Glob(filepath.Join(n.w.dir, "agents-a", "db", pattern))
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			for i := range b {
				b[i] ^= 0x55
			}
			if err := os.WriteFile(f, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		n.up()
		n.wants("k/x", "get", "", "21")
	}
}

// TestBlobsFail: a value that cannot be kept as a blob fails its turn alone.
func TestBlobsFail(t *testing.T) {
	w, n := one(t)
	w.on("big", func(g *guest) error { return g.put("v", strings.Repeat("x", 100<<10)) })
	n.call("k/x", "put", "small")
	w.blobs.mu.Lock()
	w.blobs.fail = lode.Errorf(lode.Full, "no room for blobs")
	w.blobs.mu.Unlock()
	_, err := n.try("k/x", "big", "")
	wantKind(t, err, lode.Full)
	n.wants("k/x", "peek", "", "small")
	n.call("k/x", "add", 1)
	w.blobs.mu.Lock()
	w.blobs.fail = nil
	w.blobs.mu.Unlock()
	n.call("k/x", "big", "")
	n.whole()
	if got := n.call("k/x", "peek", ""); len(got) != 100<<10 {
		t.Errorf("%d bytes", len(got))
	}
}

// TestTrimUnderLoad (S7): snapshots and trims while turns go on lose nothing,
// keep the journal short, and hold little memory.
func TestTrimUnderLoad(t *testing.T) {
	w, n := one(t)
	w.on("fill", func(g *guest) error {
		if _, err := g.add("n", 1); err != nil {
			return err
		}
		return g.put(fmt.Sprint("k", len(g.body)%7), strings.Repeat(string(g.body), 500))
	})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var all sync.WaitGroup
	var done atomic.Bool
	each := scale(600, 20_000)
	for a := range 8 {
		all.Go(func() {
			for i := range each {
				n.call(fmt.Sprint("k/", a), "fill", strings.Repeat("x", 1+i%7))
			}
		})
	}
	trims := make(chan int, 1)
	go func() {
		k := 0
		for ; !done.Load(); k++ {
			if err := n.trimNow(); err != nil {
				t.Error(err)
			}
		}
		trims <- k
	}()
	all.Wait()
	done.Store(true)
	if k := <-trims; k < 3 {
		t.Errorf("%d trims", k)
	}
	if err := n.trimNow(); err != nil {
		t.Fatal(err)
	}
	s := n.svc.Load()
	s.mu.Lock()
	floor, tail := s.term.floor, s.term.log.Tail()
	s.mu.Unlock()
	if floor == 0 || tail-floor > 200 {
		t.Errorf("the journal is kept from %d to %d", floor, tail)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grew := int64(after.HeapAlloc) - int64(before.HeapAlloc); grew > 100<<20 {
		t.Errorf("the heap grew by %d MiB", grew>>20)
	}
	for range 2 {
		n.whole()
		for a := range 8 {
			n.wants(fmt.Sprint("k/", a), "get", "", fmt.Sprint(each))
		}
	}
}
