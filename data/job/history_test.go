package job_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"lode"
	"lode/data"
	"lode/data/job"
	"lode/store"
)

// awkward are numbers whose sum depends on the order of additions.
var awkward = []string{"0.1", "1e17", "0.7", "-1e17", "3.3", "1e-9", "7e5", "9007199254740993", "-0.3"}

// answers is what a shard answers, by What.Handler.
func answers(task job.Task, shard []byte) ([]byte, error) {
	i := task.Index
	switch task.What.Handler {
	case "float":
		return []byte(awkward[i%len(awkward)]), nil
	case "object":
		return fmt.Appendf(nil, `{"k%d":%s,"sub":{"all":%s}}`, i%5, awkward[i%len(awkward)], awkward[(i+3)%len(awkward)]), nil
	case "name":
		return fmt.Appendf(nil, "%d", i), nil
	case "lines":
		return shard, nil
	}
	return nil, lode.Errorf(lode.Invalid, "no handler %q", task.What.Handler)
}

// kinds are jobs over the same dataset; their results must not depend on who
// does what.
func kinds() map[string]job.Spec {
	of := func(handler, reduce string) job.Spec {
		s := spec(reduce)
		s.What.Handler = handler
		return s
	}
	words := job.Spec{Namespace: "default", Dataset: "d", What: job.What{Label: "builtin:words", Builtin: job.BuiltinWords}}
	return map[string]job.Spec{"sum": of("float", "sum"), "max": of("float", "max"), "merge": of("object", "merge"), "guest": of("name", job.ReduceGuest),
		"count": of("lines", "count"), "concat": of("name", "concat"), "words": words}
}

// alone gives the results of one node that does everything.
func (n *nodes) alone(t *testing.T) map[string]string {
	t.Helper()
	cfg := n.config("a")
	cfg.Cluster, cfg.Registers = nil, new(data.MemRegisters)
	s := n.open(cfg)
	defer s.Close()
	out := map[string]string{}
	for name, sp := range kinds() {
		j := finish(t, s, sp)
		whole(t, j)
		if j.Moved() != j.Fetched {
			t.Errorf("%s: one node moved %d", name, j.Moved())
		}
		out[name] = body(t, s, j.ID)
	}
	return out
}

// The bits of a result do not depend on the nodes, nor on how many there are.
func TestSameBitsOnNodes(t *testing.T) {
	for _, members := range []int{2, 5} {
		n := newNodes(t, members, 27, func(_ lode.NodeID, _ context.Context, task job.Task, shard []byte) ([]byte, error) {
			time.Sleep(rand.N(time.Millisecond))
			return answers(task, shard)
		})
		want := n.alone(t)
		s := n.open(n.config("b"))
		for name, sp := range kinds() {
			j := finish(t, s, sp)
			whole(t, j)
			if got := body(t, s, j.ID); got != want[name] {
				t.Errorf("%s on %d nodes: %.200s, want %.200s", name, members, got, want[name])
			}
			if j.Partial == 0 {
				t.Errorf("%s: nothing came from other nodes: %+v", name, j.Nodes)
			}
		}
	}
}

// host is the process of a coordinator: it can be stopped and go on, be killed,
// and lose answers of its registers.
type host struct {
	data.Registers
	job.Cluster

	mu      sync.Mutex
	stopped chan struct{} // not nil: closed when it goes on
	dead    bool
	flaky   *rand.Rand // not nil: some answers are lost
}

// pass waits while the process is stopped, and fails in a dead one.
func (h *host) pass() error {
	for {
		h.mu.Lock()
		stopped, dead := h.stopped, h.dead
		h.mu.Unlock()
		if dead {
			return lode.Errorf(lode.Unavailable, "dead")
		}
		if stopped == nil {
			return nil
		}
		<-stopped
	}
}

func (h *host) lose() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.flaky != nil && h.flaky.IntN(10) == 0 {
		return lode.Errorf(lode.Unavailable, "the answer is lost")
	}
	return nil
}

func (h *host) Get(ctx context.Context, key string) ([]byte, uint64, bool, error) {
	if err := h.pass(); err != nil {
		return nil, 0, false, err
	}
	v, rev, ok, err := h.Registers.Get(ctx, key)
	if lost := h.lose(); lost != nil {
		return nil, 0, false, lost
	}
	return v, rev, ok, err
}

func (h *host) Swap(ctx context.Context, key string, value []byte, expect uint64) (uint64, error) {
	if err := h.pass(); err != nil {
		return 0, err
	}
	rev, err := h.Registers.Swap(ctx, key, value, expect)
	if lost := h.lose(); lost != nil {
		return 0, lost
	}
	return rev, err
}

func (h *host) Work(ctx context.Context, node lode.NodeID, g *job.Group) (*job.Done, error) {
	if err := h.pass(); err != nil {
		return nil, lost(err)
	}
	d, err := h.Cluster.Work(ctx, node, g)
	if perr := h.pass(); perr != nil {
		return nil, lost(perr)
	}
	return d, err
}

func (h *host) stop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopped == nil {
		h.stopped = make(chan struct{})
	}
}

func (h *host) goOn() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopped != nil {
		close(h.stopped)
		h.stopped = nil
	}
}

func (h *host) die() {
	h.mu.Lock()
	h.dead = true
	h.mu.Unlock()
	h.goOn()
}

// host opens Jobs in a process of their own on a node.
func (n *nodes) host(self lode.NodeID, rng *rand.Rand) (*host, *job.Jobs) {
	n.t.Helper()
	h := &host{Registers: n.jobs, Cluster: view{n, self}, flaky: rng}
	cfg := n.config(self)
	cfg.Registers, cfg.Cluster = h, h
	cfg.Checkpoint, cfg.Slow = 5*time.Millisecond, 50*time.Millisecond
	for range 1000 {
		s, err := job.Open(n.t.Context(), cfg)
		if err == nil {
			n.t.Cleanup(func() { h.die(); s.Close() })
			return h, s
		}
		if lode.KindOf(err) != lode.Unavailable {
			n.t.Fatal(err)
		}
	}
	n.t.Fatal("Jobs cannot be opened")
	return nil, nil
}

// A history is a job, during which nodes are killed, paused, cut off, drained
// and slowed, and coordinators killed and taken for dead. Whatever happens, the
// result has the bits of one node's, and each shard counts once.
func TestHistories(t *testing.T) {
	var mu sync.Mutex
	delay := map[lode.NodeID]time.Duration{}
	n := newNodes(t, 4, 37, func(id lode.NodeID, ctx context.Context, task job.Task, shard []byte) ([]byte, error) {
		mu.Lock()
		wait := time.Millisecond + delay[id]
		mu.Unlock()
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, lode.Errorf(lode.Cancelled, "cancelled: %w", ctx.Err())
		}
		if rand.IntN(50) == 0 {
			return nil, lode.Errorf(lode.Crashed, "bad luck")
		}
		return answers(task, shard)
	})
	want := map[string]string{}
	for name, result := range n.alone(t) {
		want[name] = result
	}
	names := []string{"sum", "merge", "guest", "words", "count", "concat"}
	for seed := range uint64(12) {
		name := names[seed%uint64(len(names))]
		t.Run(fmt.Sprintf("%d %s", seed, name), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			n.t = t
			for id, m := range n.all {
				n.do(id, func(*member) { m.kill(); m.dead = true; m.back() })
				n.place(id, func(int) bool { return rng.IntN(2) == 0 })
			}
			clear(delay)
			history(t, n, rng, name, want[name], func(id lode.NodeID, d time.Duration) {
				mu.Lock()
				defer mu.Unlock()
				delay[id] = d
			})
		})
	}
	n.t = t
}

func history(t *testing.T, n *nodes, rng *rand.Rand, name, want string, slow func(lode.NodeID, time.Duration)) {
	at := lode.NodeID('a' + rune(rng.IntN(4)))
	h, s := n.host(at, nil)
	sp := kinds()[name]
	sp.Retries = 8
	j, err := s.Start(t.Context(), sp)
	if err != nil {
		t.Fatal(err)
	}
	var log []string
	said := func(format string, args ...any) { log = append(log, fmt.Sprintf(format, args...)) }
	defer func() {
		if t.Failed() {
			t.Log(log)
		}
	}()
	var zombies []*host
	for range 6 + rng.IntN(10) {
		time.Sleep(time.Duration(rng.IntN(12)) * time.Millisecond)
		id := lode.NodeID('a' + rune(rng.IntN(4)))
		switch what := rng.IntN(10); {
		case what == 0 || what == 1: // the coordinator is dead, or taken for it
			old, zombie := h, rng.IntN(2) == 0
			if zombie {
				old.stop()
				zombies = append(zombies, old)
			} else {
				old.die()
			}
			n.do(id, (*member).back)
			h, s = n.host(id, rand.New(rand.NewPCG(rng.Uint64(), 2)))
			said("coordinator on %s, old one a zombie: %v", id, zombie)
			at = id
		case what == 2 && len(zombies) > 0:
			zombies[0].goOn()
			said("a zombie goes on")
		case id == at:
		case what < 5:
			n.do(id, (*member).crash)
			said("%s is killed", id)
		case what == 5:
			n.do(id, (*member).pause)
			said("%s is paused", id)
		case what == 6:
			n.do(id, func(m *member) { m.cut = true })
			said("%s is cut off", id)
		case what == 7:
			n.do(id, func(m *member) { m.draining = true })
			said("%s drains", id)
		case what == 8:
			slow(id, 20*time.Millisecond)
			said("%s is slow", id)
		default:
			n.do(id, (*member).back)
			slow(id, 0)
			said("%s is back", id)
		}
	}
	for _, z := range zombies {
		z.goOn()
	}
	h.mu.Lock()
	h.flaky = nil // so that the test's own questions are answered
	h.mu.Unlock()
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	if j, err = s.Wait(ctx, "default", j.ID); err != nil {
		t.Fatalf("%v: %+v", err, j)
	}
	whole(t, j)
	// A fresh reader sees the same as who did it.
	_, fresh := n.host("a", nil)
	if got := body(t, fresh, j.ID); got != want {
		t.Errorf("%.300s, want %.300s", got, want)
	}
	kept, err := fresh.Get(t.Context(), "default", j.ID)
	if err != nil {
		t.Fatal(err)
	}
	whole(t, kept)
	if a, b := fmt.Sprint(kept.Nodes), fmt.Sprint(j.Nodes); a != b {
		t.Errorf("the register says %s, the coordinator said %s", a, b)
	}
}

// A coordinator that was stopped while another took its job over changes
// nothing when it goes on: it notices, stops, and takes no more jobs.
func TestZombie(t *testing.T) {
	var mu sync.Mutex
	delivered := map[string]int{}
	n := newNodes(t, 3, 24, func(_ lode.NodeID, _ context.Context, task job.Task, shard []byte) ([]byte, error) {
		time.Sleep(2 * time.Millisecond)
		return answers(task, shard)
	})
	want := n.alone(t)["guest"]
	open := func(self lode.NodeID) (*host, *job.Jobs) {
		h := &host{Registers: n.jobs, Cluster: view{n, self}}
		cfg := n.config(self)
		cfg.Registers, cfg.Cluster, cfg.Checkpoint = h, h, 5*time.Millisecond
		cfg.Deliver = func(_ context.Context, j job.Job, result []byte) error {
			mu.Lock()
			defer mu.Unlock()
			delivered[string(self)]++
			return nil
		}
		s := n.open(cfg)
		return h, s
	}
	old, zombie := open("a")
	j, err := zombie.Start(t.Context(), kinds()["guest"])
	if err != nil {
		t.Fatal(err)
	}
	checkpointedAt(t, n.jobs, j.ID)
	old.stop()
	_, s := open("b")
	done, err := s.Wait(t.Context(), "default", j.ID)
	if err != nil {
		t.Fatal(err)
	}
	whole(t, done)
	before, rev, _, _ := n.jobs.Get(t.Context(), "default/"+j.ID)
	old.goOn()
	if _, err := zombie.Wait(t.Context(), "default", j.ID); err != nil && lode.KindOf(err) != lode.Unavailable {
		t.Errorf("the zombie's own wait: %v", err)
	}
	if got, err := zombie.Get(t.Context(), "default", j.ID); err != nil || got.State != lode.StateDone {
		t.Errorf("the zombie says %s, %v", got.State, err)
	}
	if _, err := zombie.Start(t.Context(), kinds()["guest"]); lode.KindOf(err) != lode.Unavailable {
		t.Errorf("the zombie takes a job: %v", err)
	}
	zombie.Close()
	after, rev2, _, _ := n.jobs.Get(t.Context(), "default/"+j.ID)
	if string(before) != string(after) || rev != rev2 {
		t.Errorf("the register changed: %s, then %s", before, after)
	}
	if got := body(t, s, j.ID); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if delivered["a"] != 0 || delivered["b"] != 1 {
		t.Errorf("delivered %v", delivered)
	}
}

// A job that a stopped coordinator accepts behind another's back is either that
// one's, or refused.
func TestStartBehindTheBack(t *testing.T) {
	n := newNodes(t, 2, 8, func(_ lode.NodeID, _ context.Context, task job.Task, shard []byte) ([]byte, error) {
		return answers(task, shard)
	})
	_, zombie := n.host("a", nil)
	_, s := n.host("b", nil)
	_, err := zombie.Start(t.Context(), kinds()["sum"])
	if lode.KindOf(err) != lode.Unavailable {
		t.Fatalf("accepted: %v", err)
	}
	all, err := s.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, j := range all {
		if j.State != lode.StateCancelled {
			t.Errorf("%s is left %s", j.ID, j.State)
		}
	}
}

// checkpointedAt waits until a job's register names a checkpoint.
func checkpointedAt(t *testing.T, regs data.Registers, id string) {
	t.Helper()
	for {
		value, _, _, err := regs.Get(t.Context(), "default/"+id)
		if err != nil {
			t.Fatal(err)
		}
		var j job.Job
		if err := json.Unmarshal(value, &j); err != nil {
			t.Fatal(err)
		}
		if !j.Checkpoint.IsZero() || j.Over() {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// away is a home that is out of reach for so many questions.
type away struct {
	store.Home
	mu   sync.Mutex
	left int
}

func (a *away) Get(ctx context.Context, d lode.Digest) (io.ReadCloser, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.left--; a.left >= 0 {
		return nil, lode.Errorf(lode.Unavailable, "nobody who has it answers")
	}
	return a.Home.Get(ctx, d)
}

// Who resumes a job may not reach the bytes at once: the job waits, and does
// not lose what was done.
func TestResumeWaitsForTheHome(t *testing.T) {
	n := newNodes(t, 2, 24, func(_ lode.NodeID, ctx context.Context, task job.Task, shard []byte) ([]byte, error) {
		if task.Attempt == 0 && task.Index >= 16 {
			<-ctx.Done()
		}
		return answers(task, shard)
	})
	old, s := n.host("a", nil)
	j, err := s.Start(t.Context(), kinds()["guest"])
	if err != nil {
		t.Fatal(err)
	}
	checkpointedAt(t, n.jobs, j.ID)
	old.die()
	s.Close()
	far := &away{Home: n.home, left: 20}
	st, err := store.Open(store.Config{Home: far, Cache: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	ds, err := data.New(data.Config{Store: st, Registers: n.sets})
	if err != nil {
		t.Fatal(err)
	}
	cfg := n.config("b")
	cfg.Store, cfg.Datasets, cfg.Cluster = st, ds, nil
	cfg.Runner = &funcs{mapper: func(_ context.Context, task job.Task, shard []byte) ([]byte, error) { return answers(task, shard) }, merge: n.all["b"].runner.merge}
	s = n.open(cfg)
	if j, err = s.Wait(t.Context(), "default", j.ID); err != nil {
		t.Fatal(err)
	}
	whole(t, j)
	cfg.Registers = new(data.MemRegisters)
	whole := n.open(cfg)
	if got, want := body(t, s, j.ID), body(t, whole, finish(t, whole, kinds()["guest"]).ID); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if here := share(j, ""); here.Shards == 0 || here.Shards == j.Shards {
		t.Errorf("what was done before is lost: %+v", j.Nodes)
	}
}
