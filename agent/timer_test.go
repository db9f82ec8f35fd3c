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

// TestTimers (S8): timers fire once, not before their time by the cluster's
// clock; a restart, a failure, a new time and a removal are as they should be.
func TestTimers(t *testing.T) {
	w, n := one(t, fast)
	var early atomic.Int64
	w.on("set", func(g *guest) error { // body: name, ms
		var name string
		var ms int
		fmt.Sscan(string(g.body), &name, &ms)
		return g.timer(name, time.Duration(ms)*time.Millisecond, "ring", name)
	})
	w.on("ring", func(g *guest) error {
		var due int64
		fmt.Sscan(g.t.headGet(":due"), &due)
		if time.Now().Add(time.Duration(n.shift.Load())).UnixMilli() < due {
			early.Add(1)
		}
		if g.m.Get(":timer") != string(g.body) {
			return fmt.Errorf("the timer %q has the arguments %q", g.m.Get(":timer"), g.body)
		}
		v, err := g.get("v")
		if err != nil {
			return err
		}
		return g.put("v", v+string(g.body)+" ")
	})
	w.on("drop", func(g *guest) error {
		m, err := g.op(OpTimer, nil, ":verb", "clear", ":name", string(g.body))
		g.say(m.Get(":found"))
		return err
	})
	w.on("timers", func(g *guest) error {
		m, err := g.op(OpTimer, nil, ":verb", "list")
		g.reply = m.Body
		return err
	})
	n.call("k/x", "set", "soon 20")
	n.call("k/x", "set", "later 3600000")
	n.call("k/x", "set", "moved 3600000")
	n.call("k/x", "set", "moved 10")
	n.call("k/x", "set", "dropped 3600000")
	n.wants("k/x", "drop", "dropped", "1")
	n.wants("k/x", "drop", "dropped", "0")
	until(t, "two timers", func() bool { return len(strings.Fields(n.call("k/x", "peek", ""))) == 2 })
	if got := n.call("k/x", "timers", ""); strings.Count(got, "name") != 1 || !strings.Contains(got, `"later"`) {
		t.Errorf("timers: %s", got)
	}
	n.restart()
	n.wants("k/x", "peek", "", "moved soon ")
	for _, minutes := range []int64{59, 61} { // set by somebody
		n.shift.Store(minutes * int64(time.Minute))
		n.svc.Load().alarm()
	}
	until(t, "the timer after an hour", func() bool { return n.call("k/x", "peek", "") == "moved soon later " })
	if early.Load() > 0 {
		t.Errorf("%d timers fired early", early.Load())
	}
	// The clock goes back an hour: nothing fires twice, and what is set goes on.
	n.shift.Store(0)
	n.call("k/x", "set", "after 10")
	until(t, "a timer after the clock went back", func() bool { return n.call("k/x", "peek", "") == "moved soon later after " })
	n.restart() // it has forgotten how far its clock was
	n.call("k/x", "set", "then 10")
	until(t, "a timer after a restart", func() bool { return n.call("k/x", "peek", "") == "moved soon later after then " })
	// A removed agent's timers are gone, even those of a turn that is not acknowledged.
	n.call("k/y", "set", "never 30")
	n.call("k/y", "remove", "")
	n.call("k/y", "set", "mark 60")
	until(t, "the mark", func() bool { return n.call("k/y", "peek", "") != "" })
	n.wants("k/y", "peek", "", "mark ")
}

// TestTimerFails: a timer whose turn fails is tried again, and is dead after
// ten failures; one that is set anew meanwhile is the new one.
func TestTimerFails(t *testing.T) {
	w, n := one(t, fast)
	var tries, late atomic.Int64
	w.on("bad", func(g *guest) error { tries.Add(1); return fmt.Errorf("it always fails") })
	w.on("shaky", func(g *guest) error {
		if late.Add(1) < 5 {
			return fmt.Errorf("not yet")
		}
		_, err := g.add("n", 1)
		return err
	})
	w.on("set", func(g *guest) error {
		return cmpErr(g.timer("b", time.Millisecond, "bad", ""), g.timer("s", time.Millisecond, "shaky", ""))
	})
	n.call("k/x", "set", "")
	until(t, "ten failures", func() bool { return tries.Load() == mostTries })
	until(t, "the shaky one", func() bool { return n.call("k/x", "get", "") == "1" })
	n.quiet()
	if tries.Load() != mostTries || late.Load() != 5 {
		t.Errorf("%d and %d tries", tries.Load(), late.Load())
	}
	n.restart()
	n.quiet()
	if n.wants("k/x", "get", "", "1"); tries.Load() != mostTries {
		t.Errorf("the dead timer has fired again: %d", tries.Load())
	}
}

// TestTimersMany (S8): many timers, due at once, each fire once, over a restart
// in the middle.
func TestTimersMany(t *testing.T) {
	many := scale(20_000, 1_000_000)
	const each = 1000
	w, n := one(t, fast)
	w.on("set", func(g *guest) error {
		for i := range each {
			if err := g.timer(fmt.Sprint("t", i), time.Hour, "add", "1"); err != nil {
				return err
			}
		}
		return nil
	})
	for i := range many / each {
		n.call(fmt.Sprint("k/", i), "set", "")
	}
	n.shift.Store(int64(2 * time.Hour))
	n.svc.Load().alarm()
	sum := func() (s int) {
		for i := range many / each {
			var k int
			fmt.Sscan(n.call(fmt.Sprint("k/", i), "get", ""), &k)
			s += k
		}
		return s
	}
	until(t, "a part of the timers", func() bool { return sum() > many/4 })
	n.restart()
	until(t, "all timers", func() bool { return sum() >= many })
	n.quiet()
	if s := sum(); s != many {
		t.Errorf("%d timers took effect, of %d", s, many)
	}
}

// TestTimerRace (S8): a timer that is set while others fire is not overlooked.
func TestTimerRace(t *testing.T) {
	w, n := one(t, fast)
	w.kind("k", func(f *lode.Function) { f.Agent.Partitions = 1 })
	w.on("set", func(g *guest) error { return g.timer("t", 0, "add", "1") })
	for round := range 100 {
		var all sync.WaitGroup
		for i := range 4 {
			all.Go(func() { n.call(fmt.Sprint("k/", i), "set", "") })
		}
		all.Wait()
		for i := range 4 {
			until(t, "a timer", func() bool { return n.call(fmt.Sprint("k/", i), "get", "") == fmt.Sprint(round+1) })
		}
	}
}

// TestTTL: an agent without a message for its time to live is gone, one that is
// used is not, even if the node dies.
func TestTTL(t *testing.T) {
	w, n := one(t, fast)
	w.kind("k", func(f *lode.Function) { f.Agent.TTL = time.Hour })
	n.call("k/used", "add", 1)
	n.call("k/left", "add", 1)
	for i := 1; i <= 10; i++ {
		n.shift.Store(int64(i) * int64(20*time.Minute))
		n.svc.Load().alarm()
		n.wants("k/used", "add", 1, fmt.Sprint(i+1))
		if i%3 == 0 {
			n.restart()
		}
	}
	n.quiet()
	n.wants("k/left", "get", "", "0")
	n.wants("k/used", "get", "", "11")
	n.shift.Store(int64(6 * time.Hour))
	n.svc.Load().alarm()
	until(t, "the end of the agent", func() bool { return n.call("k/used", "get", "") == "0" })
	n.quiet()
	for k := range n.dump() {
		if strings.Contains(k, `"a`) || strings.Contains(k, `"d`) {
			t.Errorf("left behind: %s", k)
		}
	}
}
