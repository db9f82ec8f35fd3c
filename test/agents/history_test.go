//go:build linux

package agents

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// step is one operation on one agent.
type step struct{ key, method, arg string }

// said is what it answered.
type said struct {
	value   string
	unknown bool // nobody knows whether it took effect
}

// things is the model of one agent: a counter and a register, or a set, which
// are one string here.
var things = porcupine.Model{
	Partition: func(history []porcupine.Operation) (out [][]porcupine.Operation) {
		by := map[string][]porcupine.Operation{}
		for _, o := range history {
			k := o.Input.(step).key
			by[k] = append(by[k], o)
		}
		for _, h := range by {
			out = append(out, h)
		}
		return out
	},
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		s, in, out := state.(string), input.(step), output.(said)
		switch in.method {
		case "add":
			n, _ := strconv.Atoi(s)
			s = strconv.Itoa(n + 1)
			return out.unknown || out.value == s, s
		case "get":
			if s == "" {
				s = "0"
			}
			return out.unknown || out.value == s, state
		case "put":
			return true, in.arg
		case "note":
			return true, s + in.arg + " "
		}
		return out.unknown || out.value == s, state // peek
	},
}

// history is what clients did and heard.
type history struct {
	began time.Time
	mu    sync.Mutex
	ops   []porcupine.Operation
	lost  int
	slow  time.Duration
	no    map[string]int // answers that were none, by what they said
}

func (h *history) do(client int, p *process, s step, id string) answer {
	arg := s.arg
	if s.method == "put" || s.method == "note" {
		b, _ := json.Marshal(arg) // a string can always be written
		arg = string(b)
	}
	call := time.Since(h.began)
	a := p.call(s.key, s.method, arg, id, 10*time.Second)
	ret := time.Since(h.began)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.slow = max(h.slow, ret-call)
	op := porcupine.Operation{ClientId: client, Input: s, Call: int64(call), Return: int64(ret)}
	if a.status < 200 || a.status > 299 {
		if h.no == nil {
			h.no = map[string]int{}
		}
		h.no[fmt.Sprintf("%d %.120s", a.status, a.body)]++
	}
	switch {
	case a.status >= 200 && a.status < 300:
		out := said{value: a.body}
		if s.method == "peek" {
			json.Unmarshal([]byte(a.body), &out.value)
		}
		op.Output = out
	case s.method == "get" || s.method == "peek" || a.kind == "overloaded" || a.kind == "unavailable" && a.status == 503:
		return a // without effect
	default:
		h.lost++
		op.Output, op.Return = said{unknown: true}, 1<<62
	}
	h.ops = append(h.ops, op)
	return a
}

// check has the history explained by one order of its operations.
func (h *history) check(t testing.TB) {
	t.Helper()
	switch porcupine.CheckOperationsTimeout(things, h.ops, 60*time.Second) {
	case porcupine.Unknown:
		t.Logf("%d operations: the check took too long", len(h.ops))
	case porcupine.Illegal:
		t.Errorf("%d operations are in no order that explains them", len(h.ops))
		for _, ops := range things.Partition(h.ops) {
			if porcupine.CheckOperations(things, ops) {
				continue
			}
			for _, o := range ops {
				t.Logf("  %d: %9.3f-%9.3f %v -> %v", o.ClientId, float64(o.Call)/1e6, float64(o.Return)/1e6, o.Input, o.Output)
			}
			return
		}
	}
}

const accounts, deposit = 6, 100

func account(seed, i int) string { return fmt.Sprintf("s%d-account%d", seed, i%accounts) }

// clients use the agents of a seed until stop.
func (h *history) clients(c *cluster, seed int, stop context.Context) *sync.WaitGroup {
	for i := range accounts {
		c.nodes[0].ask(account(seed, i), "open", strconv.Itoa(deposit))
	}
	var all sync.WaitGroup
	for n := range 6 {
		r := rand.New(rand.NewPCG(uint64(seed), uint64(n)))
		all.Go(func() {
			for i := 0; stop.Err() == nil; i++ {
				p, word, id := c.nodes[r.IntN(len(c.nodes))], fmt.Sprintf("%d.%d", n, i), ""
				if r.IntN(3) == 0 {
					id = "key " + word
				}
				key := fmt.Sprintf("s%d-", seed)
				switch r.IntN(7) {
				case 0:
					h.do(n, p, step{key + "count", "add", "1"}, id)
				case 1:
					h.do(n, p, step{key + "count", "get", ""}, "")
				case 2:
					h.do(n, p, step{key + "reg", "put", word}, id)
				case 3:
					h.do(n, p, step{key + "reg", "peek", ""}, "")
				case 4:
					h.do(n, p, step{key + "set", "note", word}, id)
				case 5:
					h.do(n, p, step{key + "set", "peek", ""}, "")
				case 6:
					from := r.IntN(accounts)
					p.call(account(seed, from), "pay", fmt.Sprintf(`{"to": %q, "amount": %d}`, account(seed, from+1+r.IntN(accounts-1)), 1+r.IntN(30)), "", 10*time.Second)
				}
				time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond)
			}
		})
	}
	return &all
}

// solvent checks that no money was made or lost: what is on its way arrives.
func (c *cluster) solvent(seed int) {
	c.t.Helper()
	waitFor(c.t, "all money", func() bool {
		total := 0
		for i := range accounts {
			v := c.nodes[i%len(c.nodes)].ask(account(seed, i), "add", "0")
			n, err := strconv.Atoi(v)
			if err != nil || n < 0 {
				c.t.Fatalf("%s has %q", account(seed, i), v)
			}
			total += n
		}
		if total > accounts*deposit {
			c.t.Fatalf("there are %d, of %d", total, accounts*deposit)
		}
		return total == accounts*deposit
	})
}

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
		h := &history{began: time.Now()}
		stop, cancel := context.WithCancel(t.Context())
		all := h.clients(c, seed, stop)
		time.Sleep(300 * time.Millisecond)
		x, victim := troubles[seed%len(troubles)], c.nodes[r.IntN(3)]
		x.do(victim, r)
		time.Sleep(300 * time.Millisecond)
		cancel()
		all.Wait()
		for _, what := range []string{"count", "reg", "set"} {
			method := "peek"
			if what == "count" {
				method = "get"
			}
			h.do(9, c.nodes[r.IntN(3)], step{fmt.Sprintf("s%d-%s", seed, what), method, ""}, "")
		}
		t.Logf("seed %d: %s of %s: %d operations, %d of them lost, the slowest took %s", seed, x.name, victim.name, len(h.ops), h.lost, h.slow.Round(time.Millisecond))
		for what, n := range h.no {
			t.Logf("  %d times %s", n, what)
		}
		h.check(t)
		c.solvent(seed)
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
	h := &history{began: time.Now()}
	stop, cancel := context.WithCancel(t.Context())
	first := &cluster{t: t, nodes: c.nodes[:1]}
	all := h.clients(first, 0, stop)
	c.grow("b", "c")
	cancel()
	all.Wait()
	for i := range many {
		if got := c.nodes[i%3].ask(fmt.Sprint("k", i), "peek", ""); got != fmt.Sprintf(`"v%d"`, i) {
			t.Errorf("k%d is %s after the growth", i, got)
		}
	}
	t.Logf("%d operations while it grew, %d of them lost, the slowest took %s", len(h.ops), h.lost, h.slow.Round(time.Millisecond))
	h.check(t)
	c.solvent(0)
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
					a := p.call(key, "add", "1", "", 30*time.Second)
					mu.Lock()
					if counts[key]++; a.status != 200 || a.body != strconv.Itoa(counts[key]) {
						t.Errorf("a call at %s while %s stops: %d %s, want %d", p.name, victim.name, a.status, strings.TrimSpace(a.body), counts[key])
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
