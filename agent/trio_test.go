package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lode"
)

// ownerOf is the node that has an agent.
func ownerOf(t testing.TB, ns []*node, kind lode.Name, key string) (at *node) {
	t.Helper()
	until(t, "an owner of "+key, func() bool {
		for _, n := range ns {
			if s := n.svc.Load(); s != nil && s.partitionOf(kind, key) != nil {
				at = n
				return true
			}
		}
		return false
	})
	return at
}

// TestTrio: an agent is one, wherever it is called from.
func TestTrio(t *testing.T) {
	t.Parallel() // it waits more than it works
	w, ns := trio(t)
	w.on("big", func(g *guest) error { g.reply = g.body; return g.put("v", "x") })
	w.on("emit", func(g *guest) error {
		for range 20 {
			if _, err := g.op(OpSocket, []byte(strings.Repeat("e", 60<<10)), ":verb", "emit"); err != nil {
				return err
			}
		}
		return nil
	})
	for i, n := range ns {
		n.wants("k/x", "add", 1, fmt.Sprint(i+1))
		n.wants("k/x", "get", "", fmt.Sprint(i+1))
	}
	large := strings.Repeat("b", 8<<20)
	for _, n := range ns {
		if got := n.call("k/large", "big", large); got != large {
			t.Errorf("an answer of %d bytes", len(got))
		}
		_, err := n.try("k/x", "none", "")
		wantKind(t, err, lode.NotFound)
		_, err = n.try("k/x", "fail", "")
		wantKind(t, err, lode.Crashed)
	}
	// Events of more than a head of link holds come to every node.
	ns[0].call("k/e", "emit", "")
	for _, n := range ns {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		got := 0
		n.svc.Load().Events(ctx, "ns", "k", "e", 0, func(ev lode.AgentEvent) error {
			if got++; int(ev.N) != got || len(ev.Data) != 60<<10 {
				t.Errorf("event %d is %d with %d bytes", got, ev.N, len(ev.Data))
			}
			if got == 20 {
				cancel()
			}
			return nil
		})
		cancel()
		if got != 20 {
			t.Errorf("%d events at %s", got, n.id)
		}
	}
}

// TestDrain: a node that drains gives everything away, and no call fails; the
// agents, their timers and their messages are whole at the others.
func TestDrain(t *testing.T) {
	t.Parallel() // it waits more than it works
	w, ns := trio(t, fast)
	w.kind("to", func(f *lode.Function) { f.Agent.Read = []string{"get"} })
	w.on("do", func(g *guest) error {
		if err := g.timer("t", time.Millisecond, "rang", ""); err != nil {
			return err
		}
		if err := g.send("to/"+g.key, "add", "1"); err != nil {
			return err
		}
		_, err := g.add("n", 1)
		return err
	})
	w.on("rang", func(g *guest) error { _, err := g.add("rang", 1); return err })
	var stop atomic.Bool
	var all sync.WaitGroup
	var count [8]atomic.Int64
	var use [3]sync.RWMutex // held by callers at a node, and by who closes it
	for i := range count {
		all.Go(func() {
			for j := 0; !stop.Load(); j++ {
				at := (i + j) % 3
				use[at].RLock()
				_, err := ns[at].try(fmt.Sprint("k/", i), "do", "")
				use[at].RUnlock()
				if err != nil {
					t.Errorf("a call while nodes drain: %v", err)
					return
				}
				count[i].Add(1)
			}
		})
	}
	until(t, "some calls", func() bool { return count[0].Load() > 10 })
	for range 2 {
		for at, n := range ns {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			if err := n.svc.Load().Drain(ctx); err != nil {
				t.Fatal(err)
			}
			cancel()
			if left := n.svc.Load().owners.Owned(); len(left) > 0 {
				t.Errorf("%v are still at %s", left, n.id)
			}
			c := count[0].Load()
			until(t, "calls while "+string(n.id)+" has nothing", func() bool { return count[0].Load() > c+5 })
			use[at].Lock()
			n.down() // it takes none until its next start
			n.up()
			use[at].Unlock()
		}
	}
	stop.Store(true)
	all.Wait()
	for i := range count {
		want := fmt.Sprint(count[i].Load())
		ns[i%3].wants(fmt.Sprint("k/", i), "look", "", want)
		until(t, "the messages of "+fmt.Sprint(i), func() bool { return ns[0].call(fmt.Sprint("to/", i), "get", "") == want })
	}
}

// TestCrashInMove (S2, S3, S7) kills a node at the points of a move, as the one
// that gives and as the one that takes.
func TestCrashInMove(t *testing.T) {
	t.Parallel() // it waits more than it works
	w, ns := trio(t, fast)
	w.kind("k", func(f *lode.Function) { f.Agent.Partitions = 1 })
	m := &marks{tried: map[string][]string{}, acked: map[string]map[string]bool{}}
	round := 0
	m.told(ns[0], round, 4)
	for _, c := range []struct {
		point  string
		giving bool
	}{{"before give", true}, {"after give", true}, {pointStopped, true}, {pointGone, true}, {"before take", false}, {"after take", false}} {
		round++
		at := ownerOf(t, ns, "k", "a0")
		to := ns[(slices.Index(ns, at)+1)%3]
		third := ns[(slices.Index(ns, at)+2)%3]
		victim := to
		if c.giving {
			victim = at
		}
		if round%2 == 0 {
			at.trimNow()
		}
		died := victim.dieAt(c.point, 1)
		var all sync.WaitGroup
		all.Go(func() { m.told(third, round, 4) })
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		if s := at.svc.Load(); s != nil {
			for _, p := range s.owners.Owned() {
				s.owners.Move(ctx, p, to.id)
			}
		}
		cancel()
		all.Wait()
		until(t, "the point "+c.point, died)
		victim.ending.Wait()
		m.told(third, round*100, 4)
		m.check(third)
		victim.restart()
		m.check(victim)
	}
	m.again(ns[0])
	for _, n := range ns {
		m.check(n)
	}
}

// TestFalseTakeovers (L3): nobody takes over from nodes that are heard of.
func TestFalseTakeovers(t *testing.T) {
	t.Parallel() // it waits more than it works
	_, ns := trio(t)
	for i := range 20 {
		ns[i%3].call(fmt.Sprint("k/", i), "add", 1)
	}
	terms := func() (out []string) {
		for _, n := range ns {
			out = append(out, n.svc.Load().owners.Incarnation())
		}
		return out
	}
	before := terms()
	for end := time.Now().Add(time.Duration(scale(2, 60)) * time.Second); time.Now().Before(end); {
		for i := range 20 {
			ns[i%3].call(fmt.Sprint("k/", i), "add", 1)
		}
	}
	if after := terms(); !slices.Equal(before, after) {
		t.Errorf("terms have ended: %v, then %v", before, after)
	}
}

// TestNodeDies (L1, L2): what a node had that died is somebody's after a while,
// whole; every call is answered, or ends at its deadline.
func TestNodeDies(t *testing.T) {
	t.Parallel() // it waits more than it works
	_, ns := trio(t, fast)
	for i := range 12 {
		ns[0].call(fmt.Sprint("k/", i), "add", 1)
	}
	victim := ownerOf(t, ns, "k", "0")
	var others []*node
	for _, n := range ns {
		if n != victim {
			others = append(others, n)
		}
	}
	victim.kill()
	began := time.Now()
	var all sync.WaitGroup
	for i := range 12 {
		all.Go(func() { others[i%2].wants(fmt.Sprint("k/", i), "add", 1, "2") })
	}
	all.Wait()
	t.Logf("all agents are back after %s", time.Since(began).Round(time.Millisecond))
	victim.revive()
	for i := range 12 {
		victim.wants(fmt.Sprint("k/", i), "add", 1, "3")
	}
	// Without a majority nothing is answered, and nothing waits for ever.
	others[0].kill()
	others[1].kill()
	if _, err := victim.try("k/0", "add", 1, within(time.Second)); err == nil {
		t.Error("one node of three answered")
	}
	others[0].revive()
	others[1].revive()
	for i := range 12 {
		want := "4"
		if i == 0 {
			want = "5" // the one whose outcome was not known may have taken effect
		}
		if got := others[0].call(fmt.Sprint("k/", i), "add", 1); got != want && got != "4" {
			t.Errorf("k/%d answered %s", i, got)
		}
	}
}
