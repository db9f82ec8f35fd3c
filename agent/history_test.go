package agent

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"lode"
	"lode/agent/agenttest"
	"lode/agent/journal"
)

// history is what clients did and heard.
type history struct {
	mu    sync.Mutex
	began time.Time
	ops   []porcupine.Operation
	lost  int
}

// do has a client do one thing at n.
func (h *history) do(client int, n *node, s agenttest.Step, set ...func(*lode.AgentCall)) {
	call := time.Since(h.began)
	r, err := n.try(s.Agent, s.Method, s.Arg, append(set, within(8*time.Second))...)
	ret := time.Since(h.began)
	if lode.KindOf(err) == lode.Unavailable {
		time.Sleep(10 * time.Millisecond)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	reads := s.Method == "get" || s.Method == "peek" || s.Method == "look"
	switch {
	case err == nil:
		h.ops = append(h.ops, porcupine.Operation{ClientId: client, Input: s, Output: agenttest.Said{Value: string(r.Body)}, Call: int64(call), Return: int64(ret)})
	case reads || lode.KindOf(err) == lode.Overloaded || lode.KindOf(err) == lode.Full || lode.KindOf(err) == lode.Unavailable: // those have no effect
	default:
		h.lost++
		h.ops = append(h.ops, porcupine.Operation{ClientId: client, Input: s, Output: agenttest.Said{Unknown: true}, Call: int64(call), Return: 1 << 62})
	}
}

// clients use the agents of one seed until stop, at nodes of their choice.
func (h *history) clients(ns []*node, seed int, stop context.Context) *sync.WaitGroup {
	var all sync.WaitGroup
	for c := range 5 {
		r := rand.New(rand.NewPCG(uint64(seed), uint64(c)))
		all.Go(func() {
			for i := 0; stop.Err() == nil; i++ {
				n := ns[r.IntN(len(ns))]
				word := fmt.Sprintf("%d.%d", c, i)
				var set []func(*lode.AgentCall)
				if r.IntN(3) == 0 {
					set = append(set, id(word))
				}
				pre := fmt.Sprintf("%s/s%d-", []string{"k", "barrier"}[r.IntN(2)], seed)
				switch r.IntN(6) {
				case 0:
					h.do(c, n, agenttest.Step{Agent: pre + "count", Method: "add", Arg: "1"}, set...)
				case 1:
					h.do(c, n, agenttest.Step{Agent: pre + "count", Method: "get"})
				case 2:
					h.do(c, n, agenttest.Step{Agent: pre + "reg", Method: "put", Arg: word}, set...)
				case 3:
					h.do(c, n, agenttest.Step{Agent: pre + "reg", Method: "peek"})
				case 4:
					h.do(c, n, agenttest.Step{Agent: pre + "set", Method: "note", Arg: word}, set...)
				case 5:
					h.do(c, n, agenttest.Step{Agent: pre + "set", Method: "peek"})
				}
				time.Sleep(time.Duration(r.IntN(8)) * time.Millisecond)
			}
		})
	}
	return &all
}

// bank adds accounts whose transfers are messages.
func (w *world) bank() {
	w.on("open", func(g *guest) error { return g.put("n", string(g.body)) })
	w.on("pay", func(g *guest) error { // body: to amount
		to, amount, _ := strings.Cut(string(g.body), " ")
		by, _ := strconv.Atoi(amount)
		have, err := g.num("n")
		if err != nil {
			return err
		}
		if have < by {
			g.status = 409
			return nil
		}
		if err := g.put("n", strconv.Itoa(have-by)); err != nil {
			return err
		}
		return g.send(to, "earn", amount)
	})
	w.on("earn", func(g *guest) error { _, err := g.add("n", g.arg()); return err })
}

const accounts, deposit = 6, 100

func account(seed, i int) string { return fmt.Sprintf("k/s%d-account%d", seed, i%accounts) }

// payers move money about until stop.
func payers(ns []*node, seed int, stop context.Context, all *sync.WaitGroup) {
	for i := range accounts {
		ns[0].call(account(seed, i), "open", deposit)
	}
	for c := range 2 {
		r := rand.New(rand.NewPCG(uint64(seed), uint64(100+c)))
		all.Go(func() {
			for stop.Err() == nil {
				from := r.IntN(accounts)
				ns[r.IntN(len(ns))].try(account(seed, from), "pay", fmt.Sprintf("%s %d", account(seed, from+1+r.IntN(accounts-1)), 1+r.IntN(30)), within(8*time.Second))
				time.Sleep(time.Duration(r.IntN(8)) * time.Millisecond)
			}
		})
	}
}

// solvent checks that no money was made or lost (S3, S6): what is on its way
// arrives.
func solvent(t testing.TB, n *node, seed int) {
	t.Helper()
	total := 0
	until(t, fmt.Sprintf("all money of seed %d", seed), func() bool {
		total = 0
		for i := range accounts {
			k, _ := strconv.Atoi(n.call(account(seed, i), "look", ""))
			if k < 0 {
				t.Fatalf("%s has %d", account(seed, i), k)
			}
			total += k
		}
		if total > accounts*deposit {
			t.Fatalf("there are %d, of %d", total, accounts*deposit)
		}
		return total == accounts*deposit
	})
}

// trouble is something that happens to a cluster, and is over when it returns.
type trouble func(w *world, r *rand.Rand, ns []*node)

var troubles = map[string]trouble{
	"kill": func(w *world, r *rand.Rand, ns []*node) {
		n := ns[r.IntN(len(ns))]
		n.kill()
		time.Sleep(time.Duration(r.IntN(1200)) * time.Millisecond)
		n.revive()
	},
	"crash": func(w *world, r *rand.Rand, ns []*node) {
		n := ns[r.IntN(len(ns))]
		n.crash()
		time.Sleep(time.Duration(r.IntN(1000)) * time.Millisecond)
		n.restart()
	},
	"suspect": func(w *world, r *rand.Rand, ns []*node) { // wrongly: it lives and works
		n := ns[r.IntN(len(ns))]
		w.net.silence(n.id, true)
		time.Sleep(time.Duration(300+r.IntN(1200)) * time.Millisecond)
		w.net.silence(n.id, false)
	},
	"delay": func(w *world, r *rand.Rand, ns []*node) { // of publishes and of their acknowledgements
		n := ns[r.IntN(len(ns))]
		w.net.silence(n.id, r.IntN(2) == 0)
		n.onCommit(func(next journal.Log, ctx context.Context, entries [][]byte) (uint64, error) {
			time.Sleep(time.Duration(rand.IntN(80)) * time.Millisecond)
			pos, err := next.Commit(ctx, entries...)
			time.Sleep(time.Duration(rand.IntN(80)) * time.Millisecond)
			return pos, err
		})
		time.Sleep(time.Duration(300+r.IntN(1000)) * time.Millisecond)
		n.onCommit(nil)
		w.net.silence(n.id, false)
	},
	"clock": func(w *world, r *rand.Rand, ns []*node) {
		ns[r.IntN(len(ns))].shift.Store(int64(time.Hour) * int64(1-2*r.IntN(2)))
		time.Sleep(time.Duration(r.IntN(300)) * time.Millisecond)
	},
	"move": func(w *world, r *rand.Rand, ns []*node) {
		for range 6 {
			n, to := ns[r.IntN(len(ns))], ns[r.IntN(len(ns))]
			s := n.svc.Load()
			if s == nil {
				continue
			}
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			for _, p := range s.owners.Owned() {
				s.owners.Move(ctx, p, to.id)
			}
			cancel()
		}
	},
	"trim": func(w *world, r *rand.Rand, ns []*node) {
		for _, n := range ns {
			n.trimNow()
		}
	},
}

var allTroubles = []string{"kill", "crash", "suspect", "delay", "clock", "move", "trim"}

// TestHistories (S2, S3, S5, S6): under kills, wrong suspicions, delays, moves
// and wrong clocks, what clients saw has one order, and no money is lost.
func TestHistories(t *testing.T) {
	t.Parallel()
	w, ns := trio(t, fast)
	w.kind("barrier", func(f *lode.Function) { f.Agent.Reads = lode.ReadsBarrier })
	w.bank()
	for seed := range scale(10, 200) {
		r := rand.New(rand.NewPCG(uint64(seed), 0))
		h := &history{began: time.Now()}
		stop, cancel := context.WithCancel(t.Context())
		all := h.clients(ns, seed, stop)
		payers(ns, seed, stop, all)
		var what []string
		for i := range 2 {
			name := allTroubles[(seed+i*3+r.IntN(2))%len(allTroubles)]
			what = append(what, name)
			troubles[name](w, r, ns)
		}
		time.Sleep(200 * time.Millisecond)
		cancel()
		all.Wait()
		for _, a := range []string{"count", "reg", "set"} { // and in the end
			for _, k := range []string{"k", "barrier"} {
				verb := "peek"
				if a == "count" {
					verb = "get"
				}
				h.do(9, ns[r.IntN(3)], agenttest.Step{Agent: fmt.Sprintf("%s/s%d-%s", k, seed, a), Method: verb})
			}
		}
		t.Logf("seed %d: %s: %d operations, %d of them lost, in %s", seed, strings.Join(what, ", "), len(h.ops), h.lost, time.Since(h.began).Round(time.Millisecond))
		agenttest.Ordered(t, h.ops)
		solvent(t, ns[r.IntN(3)], seed)
		if t.Failed() {
			return
		}
	}
}
