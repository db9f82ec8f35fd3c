//go:build linux

package agents

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"lode/test/history"
)

// troubles are what happens to a node; each is over when it returns.
var troubles = []struct {
	name string
	do   func(p *process, r *rand.Rand)
}{
	{"kill", func(p *process, r *rand.Rand) {
		p.kill()
		time.Sleep(time.Duration(r.IntN(4000)) * time.Millisecond)
		p.start()
	}},
	{"pause", func(p *process, r *rand.Rand) { // around the length of a lease
		p.cmd.Process.Signal(syscall.SIGSTOP)
		time.Sleep(time.Duration(500+r.IntN(5000)) * time.Millisecond)
		p.cmd.Process.Signal(syscall.SIGCONT)
		time.Sleep(time.Second)
	}},
	{"stop", func(p *process, r *rand.Rand) { p.stop(); p.start() }},
	{"blink", func(p *process, r *rand.Rand) { // many short pauses
		for range 20 {
			p.cmd.Process.Signal(syscall.SIGSTOP)
			time.Sleep(time.Duration(r.IntN(100)) * time.Millisecond)
			p.cmd.Process.Signal(syscall.SIGCONT)
			time.Sleep(time.Duration(r.IntN(100)) * time.Millisecond)
		}
	}},
}

// TestHistories (S2, S3, S5, S6, L1): under kill -9, SIGSTOP and restarts, what
// clients saw has one order, and no money is lost.
func TestHistories(t *testing.T) {
	c := three(t)
	for seed := range scale(4, 60) {
		r := rand.New(rand.NewPCG(uint64(seed), 0))
		h, doors := history.New(), c.doors()
		stop, cancel := context.WithCancel(t.Context())
		all := h.Use(t, stop, doors, seed, 20*time.Millisecond)
		time.Sleep(300 * time.Millisecond)
		x, victim := troubles[seed%len(troubles)], c.nodes[r.IntN(3)]
		x.do(victim, r)
		time.Sleep(300 * time.Millisecond)
		cancel()
		all.Wait()
		t.Logf("seed %d: %s of %s", seed, x.name, victim.name)
		h.Check(t, doors, seed)
		if t.Failed() {
			return
		}
		c.settled()
	}
}

// TestGrow: a node that becomes three keeps every agent, while clients use
// them; and three that are stopped and started again keep them too.
func TestGrow(t *testing.T) {
	c := newCluster(t)
	const many = 150
	for i := range many {
		c.nodes[0].ask(fmt.Sprint("k", i), "put", fmt.Sprintf(`"v%d"`, i))
	}
	h := history.New()
	stop, cancel := context.WithCancel(t.Context())
	all := h.Use(t, stop, c.doors(), 0, 20*time.Millisecond)
	c.grow("b", "c")
	cancel()
	all.Wait()
	for i := range many {
		if got := c.nodes[i%3].ask(fmt.Sprint("k", i), "peek", ""); got != fmt.Sprintf(`"v%d"`, i) {
			t.Errorf("k%d is %s after the growth", i, got)
		}
	}
	h.Check(t, c.doors(), 0)
	for _, p := range c.nodes {
		p.stop()
	}
	var up sync.WaitGroup
	for _, p := range c.nodes {
		up.Go(func() { p.start() })
	}
	up.Wait()
	for i := range many {
		if got := c.nodes[i%3].ask(fmt.Sprint("k", i), "peek", ""); got != fmt.Sprintf(`"v%d"`, i) {
			t.Errorf("k%d is %s after a restart", i, got)
		}
	}
	// All of them at once, without mercy.
	for _, p := range c.nodes {
		p.kill()
	}
	for _, p := range c.nodes {
		up.Go(func() { p.start() })
	}
	up.Wait()
	for i := range many {
		if got := c.nodes[i%3].ask(fmt.Sprint("k", i), "peek", ""); got != fmt.Sprintf(`"v%d"`, i) {
			t.Errorf("k%d is %s after a power cut", i, got)
		}
	}
}

// TestDrain: while nodes are stopped in order, one after another, no call at
// another one fails.
func TestDrain(t *testing.T) {
	c := three(t)
	for round := range scale(3, 12) {
		victim := c.nodes[round%3]
		stop, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		var mu sync.Mutex
		counts, slow := map[string]int{}, time.Duration(0)
		for i := range 8 {
			p := c.nodes[(round+1+i%2)%3]
			all.Go(func() {
				for stop.Err() == nil {
					key, began := fmt.Sprintf("d%d-%d", round, i), time.Now()
					a := p.Call(key, "add", "1", "", 30*time.Second)
					mu.Lock()
					if counts[key]++; a.Status != 200 || a.Body != strconv.Itoa(counts[key]) {
						t.Errorf("a call at %s while %s stops: %d %s, want %d", p.name, victim.name, a.Status, strings.TrimSpace(a.Body), counts[key])
						mu.Unlock()
						return
					}
					slow = max(slow, time.Since(began))
					mu.Unlock()
				}
			})
		}
		time.Sleep(500 * time.Millisecond)
		victim.stop()
		time.Sleep(500 * time.Millisecond)
		cancel()
		all.Wait()
		t.Logf("%s stopped: the slowest call took %s", victim.name, slow.Round(time.Millisecond))
		victim.start()
		c.settled()
	}
}
