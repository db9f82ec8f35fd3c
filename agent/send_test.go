package agent

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lode"
)

// fast makes failures be tried again soon.
func fast(c *Config) {
	c.probe.backoff = func(int) time.Duration { return time.Millisecond }
}

// TestSendOrder (S6): messages of one agent to another arrive in order, once.
func TestSendOrder(t *testing.T) {
	w, n := one(t, fast)
	var failed sync.Map
	w.on("take", func(g *guest) error {
		if _, again := failed.LoadOrStore(g.key+string(g.body), true); !again && strings.HasSuffix(string(g.body), "3") {
			return fmt.Errorf("the first time it fails")
		}
		v, err := g.get("v")
		if err != nil {
			return err
		}
		return g.put("v", v+string(g.body)+" ")
	})
	w.on("give", func(g *guest) error {
		m, err := g.num("n")
		for i := range 10 {
			if err == nil {
				err = g.send(fmt.Sprint("k/to", i%2), "take", fmt.Sprint(g.key, ".", m+i))
			}
		}
		if err == nil {
			err = g.put("n", fmt.Sprint(m+10))
		}
		return err
	})
	const turns, senders = 12, 3
	var all sync.WaitGroup
	for s := range senders {
		all.Go(func() {
			for range turns {
				n.call(fmt.Sprint("k/from", s), "give", "")
			}
		})
	}
	all.Wait()
	n.restart()
	check := func() {
		t.Helper()
		for to := range 2 {
			var got []string
			addr := fmt.Sprint("k/to", to)
			until(t, "all messages at "+addr, func() bool { got = strings.Fields(n.call(addr, "peek", "")); return len(got) >= senders*turns*5 })
			if len(got) != senders*turns*5 {
				t.Errorf("%d messages at %s", len(got), addr)
			}
			last := map[string]int{}
			for _, g := range got {
				from, num, _ := strings.Cut(g, ".")
				var i int
				fmt.Sscan(num, &i)
				if l, ok := last[from]; ok && i != l+2 || !ok && i != to {
					t.Errorf("%s: %s behind %d", addr, g, last[from])
				}
				last[from] = i
			}
		}
	}
	check()
	n.restart()
	n.quiet()
	check()
}

// TestSendMany (S6): many more messages than a window holds all arrive once,
// and what waits is bounded.
func TestSendMany(t *testing.T) {
	many := scale(30_000, 1_000_000)
	w, n := one(t, fast)
	w.kind("from", func(f *lode.Function) { f.Agent.Partitions = 1 })
	w.kind("to", func(f *lode.Function) { f.Agent.Partitions = 1; f.Agent.Read = []string{"get"} })
	w.on("give", func(g *guest) error {
		for i := range 500 {
			if err := g.send(fmt.Sprint("to/", i%50), "add", "1"); err != nil {
				return err
			}
		}
		_, err := g.add("n", 500)
		return err
	})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	busy := 0
	for sent := 0; sent < many; {
		_, err := n.try(fmt.Sprint("from/", sent%7), "give", "")
		switch lode.KindOf(err) {
		case "":
			sent += 500
		case lode.Overloaded:
			busy++
			time.Sleep(time.Millisecond)
		default:
			t.Fatal(err)
		}
	}
	if busy == 0 {
		t.Error("the window was never full")
	}
	sum := func() (s int) {
		for i := range 50 {
			var k int
			fmt.Sscan(n.call(fmt.Sprint("to/", i), "get", ""), &k)
			s += k
		}
		return s
	}
	until(t, "all messages", func() bool { return sum() >= many })
	n.quiet()
	if s := sum(); s != many {
		t.Errorf("%d messages took effect, %d were sent", s, many)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grew := int64(after.HeapAlloc) - int64(before.HeapAlloc); grew > 200<<20 {
		t.Errorf("the heap grew by %d MiB", grew>>20)
	}
	for id, p := range n.svc.Load().owned() { // nothing is left in the outboxes
		p.part.List([]byte{spaceOutbox}, []byte{spaceOutbox + 1}, false, func(k, _ []byte) bool {
			t.Errorf("%s still has %q", id, k)
			return false
		})
	}
}

// TestDeadLetters: a message that fails ten times is dead, and those behind it
// go on; one whose kind is gone is dead at its sender.
func TestDeadLetters(t *testing.T) {
	w, n := one(t, fast)
	w.kind("gone", func(f *lode.Function) {})
	var tries atomic.Int64
	w.on("bad", func(g *guest) error { tries.Add(1); return fmt.Errorf("it always fails") })
	w.on("refuse", func(g *guest) error { tries.Add(1); g.status = 409; return nil })
	w.on("give", func(g *guest) error {
		for _, verb := range strings.Fields(string(g.body)) {
			if err := g.send("k/to", verb, "1"); err != nil {
				return err
			}
		}
		return nil
	})
	n.call("k/from", "give", "add bad add refuse add")
	until(t, "what is behind the dead", func() bool { return n.call("k/to", "get", "") == "3" })
	if got := tries.Load(); got != 2*mostTries {
		t.Errorf("%d tries", got)
	}
	n.quiet()
	deadOf := func(key string) (out []dead) {
		p := n.svc.Load().partitionOf("k", key)
		base := in(agentPrefix(key), partDead, "")
		p.part.List(base, after(base), false, func(_, v []byte) bool {
			x, err := decodeDead(append([]byte(nil), v...))
			if err != nil {
				t.Error(err)
			}
			out = append(out, x)
			return true
		})
		return out
	}
	if d := deadOf("to"); len(d) != 2 || d[0].Letter.Method != "bad" || d[1].Letter.Method != "refuse" || d[0].Letter.From != "k/from" || d[0].Tries != mostTries {
		t.Errorf("the dead of the receiver: %+v", d)
	}
	// The receiver's kind is removed while a message is on its way.
	block, began := make(chan struct{}), make(chan struct{})
	var once sync.Once
	w.on("block", func(g *guest) error { once.Do(func() { close(began) }); <-block; return nil })
	w.on("orphan", func(g *guest) error {
		for _, verb := range []string{"block", "add", "add"} {
			if err := g.send("gone/x", verb, ""); err != nil {
				return err
			}
		}
		return nil
	})
	n.call("k/from", "orphan", "")
	<-began
	w.remove("gone")
	close(block)
	until(t, "the dead of the sender", func() bool { return len(deadOf("from")) == 2 })
	for _, x := range deadOf("from") {
		if x.Letter.kind != "gone" || x.Letter.To != "x" || x.Letter.Method != "add" {
			t.Errorf("a dead message: %+v", x)
		}
	}
}

// partitionOf is the partition of an agent that s owns.
func (s *Service) partitionOf(kind lode.Name, key string) *partition {
	for id, p := range s.owned() {
		rev, err := s.cfg.Catalog.Kind("ns", kind)
		if err == nil && id.Kind == kind && id.N == lode.PartitionOf(key, partitionsOf(rev)) {
			return p
		}
	}
	return nil
}

// TestSendDelayed: a delayed message comes when it is due, once, and survives a
// restart; the same for messages from outside.
func TestSendDelayed(t *testing.T) {
	w, n := one(t, fast)
	w.on("later", func(g *guest) error { return g.send("k/to", "add", "1", ":delay", "3600000") })
	for range 5 {
		n.call("k/from", "later", "")
	}
	s := n.svc.Load()
	for i := range 3 {
		must(s.Post(t.Context(), &lode.AgentCall{Namespace: "ns", Kind: "k", Key: "to", Method: "add", Body: []byte("10"), ID: fmt.Sprint("p", i), Given: true, Delay: time.Hour}))(t)
	}
	must(s.Post(t.Context(), &lode.AgentCall{Namespace: "ns", Kind: "k", Key: "to", Method: "add", Body: []byte("10"), ID: "p1", Given: true, Delay: time.Hour}))(t)
	_, err := s.Post(t.Context(), &lode.AgentCall{Namespace: "ns", Kind: "k", Key: "to", Method: "add", Body: []byte("11"), ID: "p1", Given: true, Delay: time.Hour})
	wantKind(t, err, lode.KeyReused)
	n.quiet()
	n.restart()
	n.wants("k/to", "get", "", "0")
	n.shift.Store(int64(59 * time.Minute))
	n.svc.Load().alarm()
	n.wants("k/to", "get", "", "0")
	n.shift.Store(int64(61 * time.Minute))
	n.svc.Load().alarm()
	until(t, "the messages", func() bool { return n.call("k/to", "get", "") == "35" })
	must(n.svc.Load().Post(t.Context(), &lode.AgentCall{Namespace: "ns", Kind: "k", Key: "to", Method: "add", Body: []byte("10"), ID: "p1", Given: true}))(t)
	n.quiet()
	n.restart()
	n.quiet()
	n.wants("k/to", "get", "", "35")
}

// TestTurnSendsNothingWhenItFails (S6, S4): what a failed turn sent is not sent.
func TestTurnSendsNothingWhenItFails(t *testing.T) {
	w, n := one(t)
	w.on("try", func(g *guest) error {
		if err := g.send("k/to", "add", "1"); err != nil {
			return err
		}
		if string(g.body) == "fail" {
			return fmt.Errorf("after sending")
		}
		if string(g.body) == "refuse" {
			g.status = 400
		}
		return nil
	})
	for _, how := range []string{"fail", "refuse", "good", "fail"} {
		n.try("k/from", "try", how)
	}
	until(t, "the message", func() bool { return n.call("k/to", "get", "") == "1" })
	n.quiet()
	n.wants("k/to", "get", "", "1")
}
