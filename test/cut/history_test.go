//go:build linux

package cut

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"lode"
	"lode/api"
	"lode/test/history"
)

// record is what a cluster acknowledged while it was broken.
type record struct {
	c        *cluster
	mu       sync.Mutex
	calls    map[lode.InvocationID]string // asynchronous calls, and what each tells the sink
	messages map[string]bool
	secrets  map[string]bool
	keys     map[string]map[string]bool // what was answered under a key
	tried    map[string]int             // by what was tried: how often
	done     map[string]int             // ... and acknowledged
	slowest  map[string]time.Duration
	agents   *history.History
	clients  *sync.WaitGroup // of agents
	stop     context.CancelFunc
	running  sync.WaitGroup
}

// record begins to use every node of the cluster: asynchronous calls, messages,
// secrets, calls under keys that several nodes are asked for, and agents.
func (c *cluster) record() *record {
	h := &record{c: c, calls: map[lode.InvocationID]string{}, messages: map[string]bool{}, secrets: map[string]bool{},
		keys: map[string]map[string]bool{}, tried: map[string]int{}, done: map[string]int{}, slowest: map[string]time.Duration{}}
	ctx, cancel := context.WithCancel(c.t.Context())
	h.stop = cancel
	if out, code := c.nodes["a"].lode("deploy", history.Lab); code != 0 {
		c.t.Fatalf("deploy agents: %s", out)
	}
	h.agents = history.New()
	h.clients = h.agents.Use(c.t, ctx, c.doors(), 0, 200*time.Millisecond)
	for name, p := range c.nodes {
		h.running.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				h.step(p, fmt.Sprintf("%s-%d", name, i), i)
				time.Sleep(100 * time.Millisecond)
			}
		})
	}
	return h
}

// doors are the nodes, in order.
func (c *cluster) doors() (out []history.Door) {
	for _, p := range c.others("") {
		out = append(out, p)
	}
	return out
}

// Call calls a method of an agent.
func (p *process) Call(key, method, arg, id string, most time.Duration) history.Answer {
	head := []string{"Content-Type", "application/json"}
	if id != "" {
		head = append(head, "Idempotency-Key", id)
	}
	a := p.within(most, http.MethodPost, "/agents/thing/"+key+"/"+method, arg, head...)
	return history.Answer{Status: a.status, Body: strings.TrimSpace(a.body), Kind: a.head.Get("Lode-Error")}
}

// note keeps the result of one try.
func (h *record) note(what, node string, a answer, ok bool, then func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tried[what]++
	k := what + " at " + node
	h.slowest[k] = max(h.slowest[k], a.took)
	if ok {
		h.done[what]++
		then()
	}
}

func (h *record) step(p *process, id string, i int) {
	switch i % 4 {
	case 0:
		a := p.post("/fn/web/hit?k="+id, "", "Prefer", "respond-async")
		h.note("asynchronous call", p.name, a, a.status == http.StatusAccepted, func() { h.calls[lode.InvocationID(a.head.Get("Lode-Invocation"))] = "/hit/" + id })
	case 1:
		a := p.post("/queues/work", id, "Content-Type", "text/plain")
		h.note("message", p.name, a, a.status == http.StatusAccepted, func() { h.messages[id] = true })
	case 2: // every node is asked for the same keys
		key := fmt.Sprintf("key-%d", i/8)
		a := p.post("/fn/web/once", "", "Idempotency-Key", key)
		h.note("call under a key", p.name, a, a.status == http.StatusOK, func() {
			if h.keys[key] == nil {
				h.keys[key] = map[string]bool{}
			}
			h.keys[key][a.body] = true
		})
	case 3:
		began := time.Now()
		name := strings.ToUpper(strings.ReplaceAll(id, "-", "_"))
		ctx, cancel := context.WithTimeout(h.c.t.Context(), patience)
		err := p.api.SetSecret(ctx, name, []byte("s"))
		cancel()
		h.note("secret", p.name, answer{took: time.Since(began)}, err == nil, func() { h.secrets[name] = true })
	}
}

// end stops the use, and checks that what was acknowledged is there, at every
// node.
func (h *record) end() {
	t := h.c.t
	t.Helper()
	h.stop()
	h.running.Wait()
	h.clients.Wait()
	h.agents.Check(t, h.c.doors(), 0)
	for what, n := range h.tried {
		t.Logf("%s: %d of %d acknowledged", what, h.done[what], n)
	}
	for _, k := range slices.Sorted(maps.Keys(h.slowest)) {
		if h.slowest[k] > time.Second {
			t.Logf("the slowest %s took %s", k, h.slowest[k].Round(time.Millisecond))
		}
	}
	asked := h.c.others("")
	i := 0
	for id, path := range h.calls {
		p := asked[i%len(asked)]
		i++
		var c api.Call
		var err error
		waitFor(t, "call "+string(id), func() bool {
			c, err = p.api.GetCall(t.Context(), id, 10*time.Second)
			return err == nil && c.State == lode.StateDone || lode.KindOf(err) == lode.NotFound
		})
		if err != nil || h.c.sink.count(path) == 0 {
			t.Errorf("call %s at %s: %+v %v; it ran %d times", id, p.name, c, err, h.c.sink.count(path))
		}
	}
	for m := range h.messages {
		waitFor(t, "message "+m, func() bool { return h.c.sink.count("/message/"+m) > 0 })
	}
	for key, bodies := range h.keys {
		for _, p := range asked {
			var a answer
			waitFor(t, key+" at "+p.name, func() bool { a = p.post("/fn/web/once", "", "Idempotency-Key", key); return a.status == http.StatusOK })
			bodies[a.body] = true
		}
		if len(bodies) != 1 {
			t.Errorf("%s got %d answers: %v", key, len(bodies), bodies)
		}
	}
	for _, p := range asked {
		there := map[string]bool{}
		waitFor(t, "the secrets at "+p.name, func() bool {
			l, err := p.api.ListSecrets(t.Context(), api.Page{Limit: 1000})
			for _, s := range l.Items {
				there[s.Name] = true
			}
			return err == nil && len(there) >= len(h.secrets)
		})
		for s := range h.secrets {
			if !there[s] {
				t.Errorf("secret %s is not at %s", s, p.name)
			}
		}
	}
}
