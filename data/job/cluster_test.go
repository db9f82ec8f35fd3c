package job_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"lode"
	"lode/data"
	"lode/data/job"
	"lode/link"
	"lode/store"
	"lode/store/storetest"
)

// nodes is a cluster in memory: executors with stores of their own over one
// durable home, and connections that can be cut.
type nodes struct {
	t    *testing.T
	home *store.Mem
	sets *data.MemRegisters // of datasets
	jobs *data.MemRegisters // of jobs
	text string
	// bandwidth between nodes, bytes/s
	bandwidth float64
	wg        sync.WaitGroup
	mu        sync.Mutex
	all       map[lode.NodeID]*member
	started   map[string]int // groups by node
}

// member is one node.
type member struct {
	n      *nodes
	id     lode.NodeID
	dir    string
	st     *store.Store
	ds     *data.Datasets
	exec   *job.Executor
	runner *funcs
	zone   string
	labels map[string]string

	// guarded by n.mu
	dead, draining, cut, refusing bool
	paused                        chan struct{} // not nil: closed when it goes on
	alive                         context.Context
	kill                          context.CancelFunc
}

const slotsOfMember = 2

// newNodes makes members a, b, c ... with a dataset "d" of about so many
// shards, which is at home only.
func newNodes(t *testing.T, members, shards int, mapper func(id lode.NodeID, ctx context.Context, task job.Task, shard []byte) ([]byte, error)) *nodes {
	t.Helper()
	n := &nodes{t: t, home: new(store.Mem), sets: new(data.MemRegisters), jobs: new(data.MemRegisters), all: map[lode.NodeID]*member{}, started: map[string]int{}, bandwidth: 1e9}
	var text strings.Builder
	for i := 0; text.Len() < data.MinShard*shards-data.MinShard/2; i++ {
		fmt.Fprintf(&text, "line %d of %d\n", i, i%97)
	}
	n.text = text.String()
	for i := range members {
		n.add(lode.NodeID('a'+rune(i)), mapper)
	}
	t.Cleanup(n.close)
	_, err := n.all["a"].ds.Put(t.Context(), "default", "d", data.PutOptions{Spec: lode.Dataset{Shard: data.MinShard, Records: "lines"}}, &file{content: n.text})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (n *nodes) add(id lode.NodeID, mapper func(lode.NodeID, context.Context, job.Task, []byte) ([]byte, error)) {
	m := &member{n: n, id: id, dir: n.t.TempDir(), runner: &funcs{}}
	m.runner.mapper = func(ctx context.Context, task job.Task, shard []byte) ([]byte, error) {
		return mapper(id, ctx, task, shard)
	}
	m.runner.merge = func(a, b []byte) ([]byte, error) { return fmt.Appendf(nil, "(%s %s)", a, b), nil }
	var err error
	if m.st, err = store.Open(store.Config{Home: n.home, Cache: m.dir}); err != nil {
		n.t.Fatal(err)
	}
	if m.ds, err = data.New(data.Config{Store: m.st, Registers: n.sets}); err != nil {
		n.t.Fatal(err)
	}
	m.exec = job.NewExecutor(job.ExecutorConfig{Store: m.st, Datasets: m.ds, Runner: m.runner, Cores: slotsOfMember, Tell: 2 * time.Millisecond, Log: slog.New(slog.DiscardHandler)})
	m.alive, m.kill = context.WithCancel(context.Background())
	n.all[id] = m
}

func (n *nodes) close() {
	n.mu.Lock()
	for _, m := range n.all {
		m.kill()
		if m.paused != nil {
			close(m.paused)
			m.paused = nil
		}
	}
	n.mu.Unlock()
	n.wg.Wait()
}

// do changes a member.
func (n *nodes) do(id lode.NodeID, f func(m *member)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f(n.all[id])
}

func (m *member) crash() { m.dead = true; m.kill() }
func (m *member) restart() {
	m.dead = false
	m.alive, m.kill = context.WithCancel(context.Background())
}

// back makes a member as new.
func (m *member) back() {
	m.goOn()
	if m.dead {
		m.restart()
	}
	m.cut, m.draining = false, false
}
func (m *member) pause() {
	if m.paused == nil {
		m.paused = make(chan struct{})
	}
}
func (m *member) goOn() {
	if m.paused != nil {
		close(m.paused)
		m.paused = nil
	}
}

// place copies the shards that want names to a member's cache, and drops
// the others from it.
func (n *nodes) place(id lode.NodeID, want func(shard int) bool) {
	n.t.Helper()
	m := n.all[id]
	for i, s := range n.manifest().Shards {
		if !want(i) {
			os.Remove(m.path(s.Digest))
			continue
		}
		b, err := m.st.Open(n.t.Context(), s.Digest)
		if err != nil {
			n.t.Fatal(err)
		}
		b.Close()
	}
}

func (m *member) path(d lode.Digest) string {
	s := d.String()
	return filepath.Join(m.dir, "blobs", s[:2], s)
}

func (n *nodes) manifest() *lode.Manifest {
	n.t.Helper()
	m, _, err := n.all["a"].ds.Manifest(n.t.Context(), "default", "d", 0)
	if err != nil {
		n.t.Fatal(err)
	}
	return m
}

// view is the cluster as one member sees it.
type view struct {
	n    *nodes
	self lode.NodeID
}

var _ job.Cluster = view{}

func (v view) Self() lode.NodeID { return v.self }

func (v view) Nodes() (out []job.Node) {
	v.n.mu.Lock()
	defer v.n.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(v.n.all)) {
		if m := v.n.all[id]; !m.dead && !m.draining {
			out = append(out, job.Node{Node: id, Slots: slotsOfMember, Zone: m.zone, Labels: m.labels})
		}
	}
	return out
}

func (v view) Holders(_ context.Context, ds []lode.Digest) (map[lode.NodeID][]bool, error) {
	v.n.mu.Lock()
	defer v.n.mu.Unlock()
	out := map[lode.NodeID][]bool{}
	for id, m := range v.n.all {
		if m.dead || m.paused != nil {
			continue
		}
		has := make([]bool, len(ds))
		for i, d := range ds {
			_, err := os.Stat(m.path(d))
			has[i] = err == nil
		}
		out[id] = has
	}
	return out, nil
}

func (v view) Link(_, _ lode.NodeID) (float64, time.Duration) {
	return v.n.bandwidth, 100 * time.Microsecond
}

func lost(why error) error { return lode.Errorf(lode.Unavailable, "the node does not answer: %w", why) }

// Work sends the group as a link does: in bytes, and lost with the node.
func (v view) Work(ctx context.Context, id lode.NodeID, g *job.Group) (*job.Done, error) {
	v.n.mu.Lock()
	m := v.n.all[id]
	alive, dead, refusing := m.alive, m.dead || m.cut, m.refusing
	v.n.started[string(id)]++
	v.n.mu.Unlock()
	if id == v.self {
		return m.exec.Work(ctx, g, g.Heard)
	}
	if dead {
		return nil, lost(link.ErrNotSent)
	}
	if refusing {
		return nil, lost(link.ErrRefused)
	}
	b, err := g.Encode()
	if err != nil {
		return nil, err
	}
	there, err := job.DecodeGroup(bytes.Clone(b))
	if err != nil {
		return nil, err
	}
	type answer struct {
		b   []byte
		err error
	}
	got := make(chan answer, 1)
	there1, stop := context.WithCancel(alive)
	v.n.wg.Go(func() {
		defer stop()
		done, err := m.exec.Work(there1, there, func(p job.Progress) {
			if v.n.hears(m) {
				g.Heard(p)
			}
		})
		if done == nil {
			got <- answer{nil, err}
			return
		}
		head, state, err := done.Encode()
		got <- answer{append(head, state...), err}
	})
	var a answer
	for tick := time.NewTicker(time.Millisecond); ; {
		defer tick.Stop()
		select {
		case a = <-got:
		case <-ctx.Done():
			stop()
			return nil, lode.Errorf(lode.Cancelled, "call: %w", ctx.Err())
		case <-alive.Done():
			return nil, lost(link.ErrLost)
		case <-tick.C:
			v.n.mu.Lock()
			cut := m.cut
			v.n.mu.Unlock()
			if cut {
				return nil, lost(link.ErrLost) // the node goes on for nobody
			}
			continue
		}
		break
	}
	if wait := v.n.waitFor(m); wait != nil { // it hangs before its answer is sent
		select {
		case <-wait:
		case <-alive.Done():
			return nil, lost(link.ErrLost)
		case <-ctx.Done():
			return nil, lode.Errorf(lode.Cancelled, "call: %w", ctx.Err())
		}
	}
	if alive.Err() != nil {
		return nil, lost(link.ErrLost)
	}
	if a.err != nil {
		return nil, a.err
	}
	done, err := job.DecodeDone(a.b)
	if err == nil && done.Error != nil {
		return done, done.Error
	}
	return done, err
}

func (n *nodes) hears(m *member) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !m.dead && !m.cut && m.paused == nil
}

func (n *nodes) waitFor(m *member) chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return m.paused
}

// config is that of Jobs on a member.
func (n *nodes) config(self lode.NodeID) job.Config {
	m := n.all[self]
	return job.Config{Store: m.st, Datasets: m.ds, Registers: n.jobs, Runner: m.runner, Cluster: view{n, self}, Cores: slotsOfMember,
		Checkpoint: time.Hour, Slow: 100 * time.Millisecond, Patience: 5 * time.Second, Log: slog.New(slog.DiscardHandler)}
}

func (n *nodes) open(cfg job.Config) *job.Jobs {
	n.t.Helper()
	s, err := job.Open(n.t.Context(), cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { s.Close() })
	return s
}

// share is what a node did.
func share(j job.Job, id lode.NodeID) job.NodeShare {
	for _, s := range j.Nodes {
		if s.Node == id {
			return s
		}
	}
	return job.NodeShare{Node: id}
}

// whole checks what must hold of a job that is done, whatever happened.
func whole(t *testing.T, j job.Job) {
	t.Helper()
	var shards int
	var size, read, fetched, wasted, partial int64
	for _, s := range j.Nodes {
		shards += s.Shards
		size += s.Bytes
		read += s.Read
		fetched += s.Fetched
		wasted += s.Wasted
		partial += s.Partial
	}
	if j.State != lode.StateDone {
		t.Fatalf("%s: %v", j.State, j.Error)
	}
	if j.Done != j.Shards || j.Running != 0 || shards != j.Shards || size != j.Bytes {
		t.Errorf("%d of %d shards are done, %d run; by nodes %d shards of %d, %d bytes of %d", j.Done, j.Shards, j.Running, shards, j.Shards, size, j.Bytes)
	}
	if read != j.Read || fetched != j.Fetched || wasted != j.Wasted || partial != j.Partial || j.Read > j.Bytes {
		t.Errorf("by nodes: read %d of %d, fetched %d of %d, wasted %d of %d, partial %d of %d", read, j.Read, fetched, j.Fetched, wasted, j.Wasted, partial, j.Partial)
	}
}

func countOn(_ lode.NodeID, ctx context.Context, task job.Task, shard []byte) ([]byte, error) {
	return countLines(ctx, task, shard)
}

// Three nodes that each hold a third of the shards work where they are.
func TestWorkGoesToTheBytes(t *testing.T) {
	n := newNodes(t, 3, 24, countOn)
	n.bandwidth = 1e6 // a copy takes longer than any queue
	for i, id := range []lode.NodeID{"a", "b", "c"} {
		n.place(id, func(shard int) bool { return shard/8 == i })
	}
	s := n.open(n.config("a"))
	j := finish(t, s, spec("sum"))
	whole(t, j)
	if got, want := body(t, s, j.ID), fmt.Sprint(strings.Count(n.text, "\n")); got != want {
		t.Errorf("sum = %s, want %s", got, want)
	}
	if j.Fetched != 0 || j.Read != j.Bytes || j.Partial == 0 || j.Sent == 0 || j.Moved() != j.Partial+j.Sent {
		t.Errorf("fetched %d, read %d of %d, partial %d, sent %d", j.Fetched, j.Read, j.Bytes, j.Partial, j.Sent)
	}
	for _, id := range []lode.NodeID{"a", "b", "c"} {
		if got := share(j, id); got.Shards != 8 || (got.Partial > 0) != (id != "a") {
			t.Errorf("%+v", got)
		}
	}
}

// Shards that are nowhere but at home are fetched once each, and counted.
func TestMissingShardsAreFetched(t *testing.T) {
	n := newNodes(t, 3, 24, countOn)
	for id := range n.all {
		n.place(id, func(int) bool { return false })
	}
	s := n.open(n.config("a"))
	j := finish(t, s, spec("sum"))
	whole(t, j)
	if j.Fetched != j.Bytes || j.Read != 0 || j.Wasted != 0 {
		t.Errorf("fetched %d, read %d of %d, wasted %d", j.Fetched, j.Read, j.Bytes, j.Wasted)
	}
	// One node has it all; others copy what is worth it, and each byte is
	// either read in place or moved.
	n.place("b", func(int) bool { return true })
	j = finish(t, s, spec("sum"))
	whole(t, j)
	if j.Fetched+j.Read != j.Bytes {
		t.Errorf("fetched %d and read %d of %d", j.Fetched, j.Read, j.Bytes)
	}
}

func TestWhere(t *testing.T) {
	n := newNodes(t, 3, 12, countOn)
	n.do("b", func(m *member) { m.zone, m.labels = "eu", map[string]string{"gpu": "yes", "disk": "ssd"} })
	n.do("c", func(m *member) { m.zone = "us" })
	s := n.open(n.config("a"))
	for _, where := range []map[string]string{{"gpu": "yes"}, {"node": "b"}, {"zone": "eu", "disk": "ssd"}} {
		sp := spec("sum")
		sp.Where = where
		j := finish(t, s, sp)
		whole(t, j)
		if share(j, "b").Shards != j.Shards || len(j.Nodes) != 1 {
			t.Errorf("where %v: %+v", where, j.Nodes)
		}
	}
	sp := spec("sum")
	sp.Where = map[string]string{"gpu": "yes", "zone": "us"}
	_, err := s.Start(t.Context(), sp)
	storetest.Kind(t, err, lode.NotFound)
	if h := lode.AsError(err).Hint; h != "there are disk=ssd, gpu=yes, node=a|b|c, zone=eu|us" {
		t.Errorf("hint %q", h)
	}
}

// A node that drains ends its groups and gets no others.
func TestDrain(t *testing.T) {
	begun := make(chan struct{}, 100)
	next := make(chan struct{})
	n := newNodes(t, 2, 24, func(id lode.NodeID, ctx context.Context, task job.Task, shard []byte) ([]byte, error) {
		if id == "b" {
			begun <- struct{}{}
			select {
			case <-next:
			case <-ctx.Done():
			}
		}
		return countLines(ctx, task, shard)
	})
	cfg := n.config("a")
	cfg.Slow = time.Hour
	s := n.open(cfg)
	j, err := s.Start(t.Context(), spec("sum"))
	if err != nil {
		t.Fatal(err)
	}
	<-begun
	n.do("b", func(m *member) { m.draining = true })
	n.mu.Lock()
	had := n.started["b"]
	n.mu.Unlock()
	close(next)
	if j, err = s.Wait(t.Context(), "default", j.ID); err != nil {
		t.Fatal(err)
	}
	whole(t, j)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.started["b"] > had+1 || share(j, "b").Shards == 0 || share(j, "b").Lost != 0 { // one may have been on its way
		t.Errorf("the node had %d groups when it began to drain, then %d; %+v", had, n.started["b"], share(j, "b"))
	}
}

// A node that is killed costs a retry of what it had, and nothing is counted
// twice.
func TestNodeIsLost(t *testing.T) {
	for name, how := range map[string]func(*member){"killed": (*member).crash, "cut": func(m *member) { m.cut = true }} {
		t.Run(name, func(t *testing.T) {
			begun := make(chan struct{}, 100)
			n := newNodes(t, 3, 24, func(id lode.NodeID, ctx context.Context, task job.Task, shard []byte) ([]byte, error) {
				if id == "b" {
					begun <- struct{}{}
					<-ctx.Done()
				}
				return countLines(ctx, task, shard)
			})
			cfg := n.config("a")
			cfg.Slow = time.Hour
			s := n.open(cfg)
			j, err := s.Start(t.Context(), spec("sum"))
			if err != nil {
				t.Fatal(err)
			}
			<-begun
			n.do("b", how)
			if j, err = s.Wait(t.Context(), "default", j.ID); err != nil {
				t.Fatal(err)
			}
			whole(t, j)
			if got, want := body(t, s, j.ID), fmt.Sprint(strings.Count(n.text, "\n")); got != want {
				t.Errorf("sum = %s, want %s", got, want)
			}
			if b := share(j, "b"); b.Lost == 0 || b.Shards != 0 || j.Lost != b.Lost || j.Retried < b.Lost {
				t.Errorf("lost %d, retried %d; %+v", j.Lost, j.Retried, b)
			}
		})
	}
}

// A node that hangs without being known to be lost is slow: its last groups go
// to a second node.
func TestStraggler(t *testing.T) {
	n := newNodes(t, 3, 24, countOn)
	n.do("c", (*member).pause)
	s := n.open(n.config("a"))
	j := finish(t, s, spec("sum"))
	whole(t, j)
	if got, want := body(t, s, j.ID), fmt.Sprint(strings.Count(n.text, "\n")); got != want {
		t.Errorf("sum = %s, want %s", got, want)
	}
	if c := share(j, "c"); c.Shards != 0 || j.Doubled == 0 || j.Lost != 0 {
		t.Errorf("doubled %d, lost %d; %+v", j.Doubled, j.Lost, c)
	}
}

// A group that kills every node that has it must not go on doing so.
func TestDeadlyGroup(t *testing.T) {
	var n *nodes
	n = newNodes(t, 3, 24, func(id lode.NodeID, ctx context.Context, task job.Task, shard []byte) ([]byte, error) {
		if task.Index != 5 || id == "a" {
			return countLines(ctx, task, shard)
		}
		time.Sleep(10 * time.Millisecond) // so that its begin is heard of
		n.do(id, func(m *member) { m.crash(); m.restart() })
		<-ctx.Done()
		return nil, ctx.Err()
	})
	s := n.open(n.config("a"))
	sp := spec("sum")
	n.do("b", func(m *member) { m.labels = map[string]string{"x": "1"} })
	n.do("c", func(m *member) { m.labels = map[string]string{"x": "1"} })
	sp.Where = map[string]string{"x": "1"}
	j := finish(t, s, sp)
	if j.State != lode.StateFailed || j.Error.Kind != lode.Unavailable || !strings.Contains(j.Error.Error(), "nodes were lost") {
		t.Errorf("%s: %v", j.State, j.Error)
	}
}

// A node whose own trouble it is does not fail the job; code that is wrong
// does, and says where.
func TestFailureOfOneNode(t *testing.T) {
	kind := lode.Full
	n := newNodes(t, 3, 24, func(id lode.NodeID, ctx context.Context, task job.Task, shard []byte) ([]byte, error) {
		if id == "b" {
			return nil, lode.Errorf(kind, "no luck here")
		}
		return countLines(ctx, task, shard)
	})
	s := n.open(n.config("a"))
	j := finish(t, s, spec("sum"))
	whole(t, j)
	if share(j, "b").Shards != 0 || share(j, "b").Wasted == 0 {
		t.Errorf("%+v", share(j, "b"))
	}
	kind = lode.Denied
	j = finish(t, s, spec("sum"))
	if j.State != lode.StateFailed || j.Error.Kind != lode.Denied || !strings.HasPrefix(j.Error.Error(), "on node b: shard ") {
		t.Errorf("%s: %v", j.State, j.Error)
	}
}

// Nodes that refuse are tried again for a while.
func TestNobodyTakesIt(t *testing.T) {
	n := newNodes(t, 2, 12, countOn)
	n.do("b", func(m *member) { m.labels = map[string]string{"x": "1"}; m.refusing = true })
	cfg := n.config("a")
	cfg.Patience = 300 * time.Millisecond
	s := n.open(cfg)
	sp := spec("sum")
	sp.Where = map[string]string{"x": "1"}
	j := finish(t, s, sp)
	if j.State != lode.StateFailed || j.Error.Kind != lode.Unavailable || j.Lost != 0 || j.Retried != 0 {
		t.Errorf("%s, lost %d, retried %d: %v", j.State, j.Lost, j.Retried, j.Error)
	}
	n.do("b", func(m *member) { m.refusing = false })
	whole(t, finish(t, s, sp))
	j, err := s.Start(t.Context(), sp)
	if err != nil {
		t.Fatal(err)
	}
	if j, err = s.Wait(t.Context(), "default", j.ID); err != nil || j.State != lode.StateDone {
		t.Errorf("%s, %v", j.State, err)
	}
}

// Cancelling reaches the nodes.
func TestCancelReachesNodes(t *testing.T) {
	hangs := make(chan lode.NodeID, 100)
	n := newNodes(t, 3, 24, func(id lode.NodeID, ctx context.Context, _ job.Task, _ []byte) ([]byte, error) {
		hangs <- id
		<-ctx.Done()
		return nil, lode.Errorf(lode.Cancelled, "cancelled: %w", ctx.Err())
	})
	s := n.open(n.config("a"))
	j, err := s.Start(t.Context(), spec("sum"))
	if err != nil {
		t.Fatal(err)
	}
	for seen := map[lode.NodeID]bool{}; len(seen) < 3; {
		seen[<-hangs] = true
	}
	if j, err = s.Cancel(t.Context(), "default", j.ID); err != nil || j.State != lode.StateCancelled {
		t.Fatalf("%s, %v", j.State, err)
	}
	n.wg.Wait() // nothing runs on any node
	for id, m := range n.all {
		if m.exec.Groups() != 0 {
			t.Errorf("node %s has %d groups", id, m.exec.Groups())
		}
	}
}
