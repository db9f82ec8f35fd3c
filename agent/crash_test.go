package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"lode"
	"lode/agent/journal"
)

var errCrash = errors.New("the process is dead")

// dieAt has n die when it reaches a point for the k-th time: from then on
// nothing that it does gets any further.
func (n *node) dieAt(point string, k int64) (died func() bool) {
	var left atomic.Int64
	var dead atomic.Bool
	left.Store(k)
	at := func(p string) error {
		if p == point && left.Add(-1) == 0 {
			dead.Store(true)
			n.ending.Go(n.crash)
		}
		if dead.Load() {
			return errCrash
		}
		return nil
	}
	n.hooks.mu.Lock()
	n.hooks.fault, n.hooks.kept = at, append(n.hooks.kept, at)
	n.hooks.mu.Unlock()
	n.onCommit(func(next journal.Log, ctx context.Context, entries [][]byte) (uint64, error) {
		for _, b := range entries {
			if e, err := journal.Decode(b); err == nil {
				if err := at("before " + opWord(e.Op)); err != nil {
					return 0, err
				}
			}
		}
		pos, err := next.Commit(ctx, entries...)
		if err != nil {
			return pos, err
		}
		for _, b := range entries {
			if e, derr := journal.Decode(b); derr == nil {
				if err := at("after " + opWord(e.Op)); err != nil {
					return 0, err
				}
			}
		}
		return pos, nil
	})
	return dead.Load
}

func opWord(o journal.Op) string {
	return [...]string{"", "take", "turn", "snap", "give", "note"}[o]
}

// dump is everything that a node has of its partitions.
func (n *node) dump() map[string]string {
	n.w.t.Helper()
	out := map[string]string{}
	for id, p := range n.svc.Load().owned() {
		err := p.part.List(nil, nil, false, func(k, v []byte) bool {
			out[fmt.Sprintf("%s %q", id, k)] = string(v)
			return true
		})
		if err != nil {
			n.w.t.Fatal(err)
		}
	}
	return out
}

// whole checks that the local state is what the journal and the snapshots say
// (S9, S7): a node that has lost it comes to the same.
func (n *node) whole() {
	t := n.w.t
	t.Helper()
	n.quiet()
	before := n.dump()
	owned := len(n.svc.Load().owned())
	n.crash()
	if err := os.RemoveAll(filepath.Join(n.w.dir, "agents-"+string(n.id))); err != nil {
		t.Fatal(err)
	}
	s := n.up()
	until(t, "the partitions of a node that lost its state", func() bool { return len(s.owned()) >= owned })
	n.quiet()
	after := n.dump()
	for k, v := range before {
		if w, ok := after[k]; !ok || w != v {
			t.Errorf("%s was %q, and is %q (%v) from the journal", k, v, w, ok)
		}
	}
	for k, v := range after {
		if strings.Contains(k, ` "r`) {
			continue // an answer for a caller on the node itself: only a reader of the journal keeps it
		}
		if _, ok := before[k]; !ok {
			t.Errorf("%s is %q from the journal, and was not there", k, v)
		}
	}
}

// quiet waits until nothing is under way.
func (n *node) quiet() {
	n.w.t.Helper()
	s := n.svc.Load()
	until(n.w.t, "rest", func() bool {
		for _, p := range s.owned() {
			p.mu.Lock()
			busy := p.running > 0 || p.pending > 0
			for _, c := range p.out {
				busy = busy || c.running
			}
			p.mu.Unlock()
			if busy {
				return false
			}
		}
		return true
	})
}

// trimNow takes snapshots of all partitions and trims the journal.
func (n *node) trimNow() error {
	s := n.svc.Load()
	if s == nil {
		return errCrash
	}
	s.mu.Lock()
	t := s.term
	s.mu.Unlock()
	if t == nil {
		return nil
	}
	return s.trim(context.Background(), t)
}

// marks are what agents were told, and what they acknowledged.
type marks struct {
	mu    sync.Mutex
	tried map[string][]string
	acked map[string]map[string]bool
}

// told has a few agents told something new each, with keys, and again with the
// same keys when the node has died meanwhile.
func (m *marks) told(n *node, round, each int) {
	var all sync.WaitGroup
	for a := range 3 {
		addr := fmt.Sprint("k/a", a)
		for i := range each {
			all.Go(func() {
				word := fmt.Sprintf("r%d.%d", round, i)
				m.mu.Lock()
				m.tried[addr] = append(m.tried[addr], word)
				m.mu.Unlock()
				var set []func(*lode.AgentCall)
				if i%2 == 0 {
					set = append(set, id(word))
				}
				if _, err := n.try(addr, "note", word, set...); err == nil {
					m.ack(addr, word)
				}
			})
		}
	}
	all.Wait()
}

func (m *marks) ack(addr, word string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.acked[addr] == nil {
		m.acked[addr] = map[string]bool{}
	}
	m.acked[addr][word] = true
}

// check reads what the agents have: everything that was acknowledged, once,
// and nothing that was not tried.
func (m *marks) check(n *node) {
	t := n.w.t
	t.Helper()
	for addr, tried := range m.tried {
		have := strings.Fields(n.call(addr, "peek", ""))
		seen := map[string]int{}
		for _, w := range have {
			seen[w]++
		}
		for _, w := range tried {
			if m.acked[addr][w] && seen[w] != 1 || seen[w] > 1 {
				t.Errorf("%s has %s %d times; acknowledged: %v", addr, w, seen[w], m.acked[addr][w])
			}
		}
		for w := range seen {
			if !slices.Contains(tried, w) {
				t.Errorf("%s has %s, which nobody told it", addr, w)
			}
		}
	}
}

// again repeats everything with a key: what took effect is not done twice, what
// did not is done now.
func (m *marks) again(n *node) {
	for addr, tried := range m.tried {
		for _, w := range tried {
			if w[len(w)-1]%2 == 0 { // it had a key
				n.call(addr, "note", w, id(w))
				m.ack(addr, w)
			}
		}
	}
}

// TestCrashAtEachPoint (S3, S7, S9) kills a node at every point of a turn, a
// snapshot and a trim, at the first and at a later time that it comes there.
func TestCrashAtEachPoint(t *testing.T) {
	points := []string{"before turn", "after turn", pointApply, pointApplied, "before note", "after note", "before snap", "after snap", pointSave, pointSaved, pointSnapped, pointSettled,
		pointTrim, pointTrimmed, pointSpilled, "before take", "after take", pointLoad, pointLoaded, pointDelivery}
	w, n := one(t)
	w.on("large", func(g *guest) error {
		if err := g.send("k/sink", "add", "1"); err != nil {
			return err
		}
		_, err := g.add("sent", 1)
		if err != nil {
			return err
		}
		return g.put("big", strings.Repeat("x", 100<<10)+string(g.body))
	})
	w.on("count", func(g *guest) error {
		v, err := g.num("sent")
		g.say(v)
		return err
	})
	m := &marks{tried: map[string][]string{}, acked: map[string]map[string]bool{}}
	round := 0
	for _, k := range []int64{1, 3} {
		for _, p := range points {
			round++
			died := n.dieAt(p, k)
			if strings.Contains(p, "load") || strings.Contains(p, "take") {
				n.crash() // this time at the start
				n.up()
			}
			m.told(n, round, 4)
			n.try("k/big", "large", round)
			n.trimNow()
			n.try("k/big", "large", round)
			n.trimNow()
			if !died() && k == 1 && p != pointSettled {
				t.Errorf("the point %q was not reached", p)
			}
			n.restart()
			m.check(n)
		}
	}
	m.again(n)
	m.check(n)
	n.trimNow()
	n.whole()
	m.check(n)
	sent := n.call("k/big", "count", "")
	until(t, "the messages", func() bool { return n.call("k/sink", "get", "") == sent })
	n.restart()
	n.quiet()
	n.wants("k/sink", "get", "", sent)
}

// TestCrashAnywhere (S3, S7, S9) kills a node at random moments under load,
// with snapshots and trims, and now and then takes its local state away.
func TestCrashAnywhere(t *testing.T) {
	_, n := one(t)
	m := &marks{tried: map[string][]string{}, acked: map[string]map[string]bool{}}
	r := rand.New(rand.NewPCG(1, 2))
	points := []string{"before turn", "after turn", pointApply, pointApplied, "after snap", pointSaved, pointTrim, pointTrimmed}
	for round := range scale(12, 150) {
		n.dieAt(points[r.IntN(len(points))], 1+r.Int64N(20))
		var all sync.WaitGroup
		all.Go(func() { m.told(n, round, 10) })
		all.Go(func() { n.trimNow() })
		all.Wait()
		if r.IntN(4) == 0 {
			n.hooks.clear()
			n.restart()
			n.whole()
		} else {
			n.restart()
		}
		m.check(n)
	}
	m.again(n)
	m.check(n)
	n.whole()
}
