//go:build linux

package node

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"lode"
	"lode/api"
)

// history is what clients were told by all nodes of a fleet, over all lives.
type history struct {
	*promises
	told     map[string]map[string]bool // answers by idempotency key
	first    map[string]int             // kills before a key was sent first
	rough    map[string]bool            // keys during which something was killed, or went wrong
	kills    int
	away     int                  // the node that is frozen, -1: none
	last     map[string]time.Time // when an act was acknowledged last
	recovery map[string]time.Duration
	killed   time.Time
}

// done notes that an act was acknowledged, and how long that took since the
// last kill.
func (h *history) done(act string) {
	now := time.Now()
	h.note(func() {
		if !h.killed.IsZero() && h.last[act].Before(h.killed) {
			h.recovery[act] = max(h.recovery[act], now.Sub(h.killed))
		}
		h.last[act] = now
	})
}

// recovered says how long after the last kill each act was acknowledged first.
func (h *history) recovered() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []string
	for _, act := range slices.Sorted(maps.Keys(h.recovery)) {
		out = append(out, fmt.Sprintf("%s %.1fs", act, h.recovery[act].Seconds()))
	}
	clear(h.recovery)
	return strings.Join(out, ", ")
}

func newHistory() *history {
	return &history{promises: newPromises(), away: -1, told: map[string]map[string]bool{}, first: map[string]int{}, rough: map[string]bool{}, last: map[string]time.Time{}, recovery: map[string]time.Duration{}}
}

// ask sends one key to a node, and notes the answer.
func (h *history) ask(p *process, key string) {
	h.note(func() {
		if _, ok := h.first[key]; !ok {
			h.first[key] = h.kills
		}
	})
	status, body, _ := p.post("/fn/web/once?k="+key, "", "Idempotency-Key", key)
	h.note(func() {
		if status != http.StatusOK || h.first[key] != h.kills {
			h.rough[key] = true
		}
		if status != http.StatusOK {
			return
		}
		if h.told[key] == nil {
			h.told[key] = map[string]bool{}
		}
		h.told[key][body] = true
	})
}

// counted are the acts with what they acknowledge counted.
func (h *history) counted() map[string]int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return map[string]int{"deploy": h.deployed, "call": len(h.calls), "key": len(h.keys), "message": len(h.messages), "line": len(h.lines),
		"dataset": h.put, "secret": len(h.secrets), "token": len(h.tokens), "job": len(h.jobs), "once": len(h.told)}
}

// busy keeps the nodes of a fleet busy until the function that is returned is
// called. What must be in order has one client that goes from node to node;
// the rest has one at every node.
func (f *fleet) busy(h *history, round int, echo lode.Function, skip func(int) bool) (stop func()) {
	var work sync.WaitGroup
	over := make(chan struct{})
	loop := func(act string, do func(i int)) {
		work.Go(func() {
			for i := 1; ; i++ {
				select {
				case <-over:
					return
				case <-time.After(time.Duration(rand.IntN(20)) * time.Millisecond):
					before := h.counted()[act]
					do(i)
					if h.counted()[act] > before {
						h.done(act)
					}
				}
			}
		})
	}
	nodes := make([]*process, len(f.nodes)) // their addresses outlive them
	doors := make([]map[string]func(string, int), len(nodes))
	for n, p := range f.nodes {
		q := *p
		q.limit = 8 * time.Second // what takes longer is not acknowledged
		nodes[n], doors[n] = &q, acts(&q, h.promises, echo)
	}
	for name, counts := range map[string]string{"deploy": "deploy", "append": "line", "put": "dataset"} {
		loop(counts, func(i int) {
			if n := i % len(nodes); !skip(n) {
				doors[n][name](fmt.Sprintf("%s%d-%d", name, round, i), round*10000+i)
			}
		})
	}
	for n := range nodes {
		for name, counts := range map[string]string{"async": "call", "key": "key", "queue": "message", "secret": "secret", "token": "token", "job": "job"} {
			if name == "job" && n != round%len(nodes) {
				continue // one client is enough to keep the machine busy
			}
			loop(counts, func(i int) {
				if !skip(n) {
					doors[n][name](fmt.Sprintf("%s%d-%d-%d", name, round, n, i), (round*10+n)*10000+i)
				}
			})
		}
		loop("once", func(i int) { // each key at all nodes at about the same time
			if !skip(n) {
				h.ask(nodes[n], fmt.Sprintf("once%d-%d", round, i/4))
			}
		})
	}
	return sync.OnceFunc(func() { close(over); work.Wait() })
}

// prepare puts what acts needs.
func (f *fleet) prepare(wasm []byte) {
	f.t.Helper()
	p, ctx := f.nodes[0], f.t.Context()
	if err := p.upload(wasm); err != nil {
		f.t.Fatal(err)
	}
	var base strings.Builder
	for i := range 100000 {
		fmt.Fprintf(&base, "%07d\n", i)
	}
	for name, text := range map[lode.Name]string{"base": base.String(), "log": "first\n"} {
		if _, err := p.c.PutStream(ctx, name, api.PutOptions{Records: lode.RecordsLines, Shard: 64 << 10}, string(name), strings.NewReader(text)); err != nil {
			f.t.Fatal(err)
		}
	}
}

// keeps checks every promise from every node.
func (f *fleet) keeps(h *history, s *sink) {
	f.t.Helper()
	for i, p := range f.nodes {
		began := time.Now()
		p.keepsApp(h.promises)
		p.keepsData(h.promises)
		for id, path := range h.calls {
			c, err := p.c.GetCall(f.t.Context(), id, 30*time.Second)
			if err != nil || c.State != lode.StateDone {
				f.t.Errorf("%s: call %s: %+v, %v", fleetNames[i], id, c, err)
			} else if s.count(path) == 0 {
				f.t.Errorf("call %s is done, and never ran", id)
			}
		}
		for id := range h.keys {
			if status, body, _ := p.post("/fn/web/hit?k="+id, "", "Idempotency-Key", id); status != 200 || body != "hit "+id {
				f.t.Errorf("%s: key %s again: %d %s", fleetNames[i], id, status, body)
			}
		}
		for id := range h.messages {
			p.wait("message "+id, func() bool { return s.count("/message/"+id) > 0 })
		}
		for id := range h.jobs {
			j, err := p.c.GetJob(f.t.Context(), id, 30*time.Second)
			if err != nil || j.State != lode.StateDone {
				f.t.Errorf("%s: job %s: %+v, %v", fleetNames[i], id, j, err)
			} else if got := p.result(id); got != "100000" {
				f.t.Errorf("%s: job %s counts %s records", fleetNames[i], id, got)
			}
		}
		f.t.Logf("%s keeps what was promised (looked for %v)", fleetNames[i], since(began))
	}
	f.once(h, s)
	ticks := s.count("/tick")
	waitFor(f.t, "the schedule", func() bool { return s.count("/tick") > ticks })
}

// once checks that each key has one answer, that of a run, and ran once where
// nothing was killed meanwhile.
func (f *fleet) once(h *history, s *sink) {
	f.t.Helper()
	again := 0
	for _, key := range slices.Sorted(maps.Keys(h.told)) {
		for i, p := range f.nodes {
			status, body, _ := p.post("/fn/web/once?k="+key, "", "Idempotency-Key", key)
			if status != 200 {
				f.t.Errorf("%s: key %s again: %d %s", fleetNames[i], key, status, body)
			}
			h.told[key][body] = true
		}
		if len(h.told[key]) != 1 {
			f.t.Errorf("key %s has the answers %v", key, h.told[key])
		}
		runs := s.under("/once/" + key + "/")
		for v := range h.told[key] {
			if !slices.Contains(runs, v) {
				f.t.Errorf("key %s has the answer %q, and no run gave it: %q", key, v, runs)
			}
		}
		if len(runs) > 1 {
			again++
			if !h.rough[key] {
				f.t.Errorf("key %s ran %d times, and nothing was killed", key, len(runs))
			}
		}
	}
	f.t.Logf("%d keys, %d of them ran again after a kill", len(h.told), again)
}

// under lists the rest of what was told below a path.
func (s *sink) under(path string) (rest []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p, n := range s.seen {
		if v, ok := strings.CutPrefix(p, path); ok {
			for range n {
				rest = append(rest, v)
			}
		}
	}
	return rest
}

// TestFleetHistory keeps a cluster busy and kills or freezes its nodes, the
// keeper and another one in turn. What any of them acknowledged is there
// afterwards, at each of them, and nothing is there by half.
func TestFleetHistory(t *testing.T) {
	e := guestC(t, echo)
	f, s := startFleet(t)
	f.prepare(e.Wasm)
	h := newHistory()
	for round := range 4 * rounds(1) {
		keeper := f.keeper()
		victim := keeper
		if round%2 == 1 {
			victim = (keeper + 1 + rand.IntN(2)) % len(f.nodes)
		}
		stop := f.busy(h, round, function(e), h.avoids)
		time.Sleep(time.Duration(500+rand.IntN(1000)) * time.Millisecond)
		how := "killed"
		if round%4 == 1 || round%4 == 2 {
			how = "frozen"
			f.frozen(h, victim)
		} else {
			f.killed(h, victim)
		}
		time.Sleep(time.Duration(500+rand.IntN(1000)) * time.Millisecond)
		stop()
		t.Logf("%s was %s, the keeper was %s; first acknowledged after that: %s", fleetNames[victim], how, fleetNames[keeper], h.recovered())
		f.settled(0, 1, 2)
	}
	f.keeps(h, s)
	t.Logf("acknowledged: %v", h.counted())
	for what, n := range h.counted() {
		if n == 0 {
			t.Errorf("no %s was ever acknowledged: nothing was tested", what)
		}
	}
}

// avoids reports whether a node is frozen: no client begins anything there.
func (h *history) avoids(i int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.away == i
}

// killed kills a node and starts it again a while later.
func (f *fleet) killed(h *history, victim int) {
	f.t.Helper()
	h.note(func() { h.kills++ })
	f.kill(victim)
	h.note(func() { h.kills++; h.killed = time.Now() })
	time.Sleep(time.Duration(3000+rand.IntN(3000)) * time.Millisecond)
	f.restart(victim)
}

// frozen stops a node for a while, as a swapping machine would. The others go
// on meanwhile, and what it does when it comes back harms nothing.
func (f *fleet) frozen(h *history, victim int) {
	f.t.Helper()
	thaw := f.freeze(victim)
	h.note(func() { h.kills++; h.away, h.killed = victim, time.Now() })
	had := h.counted()
	time.Sleep(time.Duration(6000+rand.IntN(2000)) * time.Millisecond)
	for _, act := range []string{"call", "key", "message", "secret"} {
		waitFor(f.t, fleetNames[victim]+" is frozen; another node to acknowledge a "+act, func() bool { return h.counted()[act] > had[act] })
	}
	thaw()
	time.Sleep(500 * time.Millisecond)
	h.note(func() { h.kills++; h.away = -1 })
}
