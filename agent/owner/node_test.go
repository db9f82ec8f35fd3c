package owner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"lode"
	"lode/agent/journal"
	"lode/bus"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server.(*fileStore).flushStreamStateLoop"),
		goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server/ats.Register.func1"))
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wantKind(t testing.TB, err error, k lode.Kind) {
	t.Helper()
	if lode.KindOf(err) != k {
		t.Fatalf("kind %q, want %q (error: %v)", lode.KindOf(err), k, err)
	}
}

// until waits for something that comes by itself.
func until(t testing.TB, what string, is func() bool) {
	t.Helper()
	for range 3000 {
		if is() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("it never came: %s", what)
}

// cluster is what the nodes of a test know of each other.
type cluster struct {
	t   testing.TB
	log *slog.Logger

	mu    sync.Mutex
	nodes []lode.NodeID
	dead  map[lode.NodeID]bool // not heard of
}

func newCluster(t testing.TB, nodes ...lode.NodeID) *cluster {
	c := &cluster{t: t, nodes: nodes, dead: make(map[lode.NodeID]bool), log: slog.New(slog.DiscardHandler)}
	if testing.Verbose() {
		c.log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	return c
}

func (c *cluster) silence(n lode.NodeID, off bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead[n] = off
}

func (c *cluster) alive(n lode.NodeID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.dead[n] && slices.Contains(c.nodes, n)
}

// node is a service of agents that does what it must with Owners: a turn adds
// its id to the state of its partition, a read returns the state.
type node struct {
	t   testing.TB
	id  lode.NodeID
	bus *bus.Bus
	own *Owners

	mu      sync.Mutex
	log     *bus.Log
	inc     string
	ended   bool
	queue   []queued
	wake    chan struct{}
	state   map[journal.Partition][]string // acknowledged
	epoch   map[journal.Partition]uint64   // of what may be written and read
	stopErr error
	loads   atomic.Int64
	ends    atomic.Int64
	quit    context.CancelFunc
	done    chan struct{}
}

type queued struct {
	log  *bus.Log
	e    *journal.Entry
	done func(uint64, error)
}

func (c *cluster) open(id lode.NodeID, b *bus.Bus, set ...func(*Config)) *node {
	c.t.Helper()
	n := &node{t: c.t, id: id, bus: b, wake: make(chan struct{}, 1), state: make(map[journal.Partition][]string), epoch: make(map[journal.Partition]uint64), done: make(chan struct{})}
	cfg := Config{Self: id, Bus: b, Alive: c.alive, Eligible: c.alive, Journal: n, Hooks: n, LeaseTTL: 400 * time.Millisecond, Detect: 200 * time.Millisecond,
		Logger: c.log.With("node", id), Nodes: func() []lode.NodeID { return slices.Clone(c.nodes) }}
	for _, f := range set {
		f(&cfg)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.quit = cancel
	go n.pack(ctx)
	own, err := Open(c.t.Context(), cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	n.own = own
	c.t.Cleanup(n.close)
	return n
}

func (n *node) close() {
	n.own.Close(context.Background())
	n.quit()
	<-n.done
}

var (
	_ Journal = (*node)(nil)
	_ Hooks   = (*node)(nil)
)

func (n *node) Begin(log *bus.Log, inc string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.log, n.inc, n.ended = log, inc, false
}

func (n *node) Append(e *journal.Entry, done func(uint64, error)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.queue = append(n.queue, queued{n.log, e, done})
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// pack commits what was appended, packed.
func (n *node) pack(ctx context.Context) {
	defer close(n.done)
	for {
		select {
		case <-n.wake:
		case <-ctx.Done():
			return
		}
		n.mu.Lock()
		q := n.queue
		n.queue = nil
		n.mu.Unlock()
		for len(q) > 0 {
			k := 1
			for k < len(q) && q[k].log == q[0].log {
				k++
			}
			var entries [][]byte
			for _, x := range q[:k] {
				entries = append(entries, x.e.Append(nil))
			}
			seq, err := q[0].log.Commit(ctx, entries...)
			for _, x := range q[:k] {
				x.done(seq, err)
			}
			q = q[k:]
		}
	}
}

// turn adds id to p's state; it returns whether that is acknowledged.
func (n *node) turn(p journal.Partition, id string) error {
	n.mu.Lock()
	epoch, inc := n.epoch[p], n.inc
	n.mu.Unlock()
	if epoch == 0 {
		return lode.Errorf(lode.Unavailable, "%s is not here", p)
	}
	done := make(chan error, 1)
	n.Append(&journal.Entry{Op: journal.Turn, Epoch: epoch, Partition: p, ID: id}, func(_ uint64, err error) {
		n.mu.Lock()
		if err == nil && n.inc == inc && !n.ended {
			n.state[p] = append(n.state[p], id)
		}
		n.mu.Unlock()
		done <- err
	})
	err := <-done
	if lode.KindOf(err) == lode.Conflict {
		n.own.Fenced(inc)
	}
	return err
}

// read returns the state of p by the lease; false: that is not allowed.
func (n *node) read(p journal.Partition) (out []string, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.epoch[p] == 0 || n.ended {
		return nil, false
	}
	out = slices.Clone(n.state[p])
	return out, n.own.LeaseValid()
}

func (n *node) Load(ctx context.Context, claims []Claim) ([]Loaded, error) {
	n.loads.Add(1)
	for _, c := range claims {
		s, err := stateAt(ctx, n.bus, c.Partition, c.Base)
		if err != nil {
			return nil, err
		}
		n.mu.Lock()
		n.state[c.Partition] = s
		n.mu.Unlock()
	}
	return make([]Loaded, len(claims)), nil
}

// stateAt follows bases back to the beginning.
func stateAt(ctx context.Context, b *bus.Bus, p journal.Partition, base journal.Base) (out []string, err error) {
	if base == (journal.Base{}) {
		return nil, nil
	}
	var before *journal.Base
	err = b.ReadLog(ctx, JournalName(base.Journal), 0, base.Cut-1, func(m bus.Message) error {
		for _, raw := range m.Entries {
			e, err := journal.Decode(raw)
			if err != nil {
				return err
			}
			if e.Partition != p || e.Epoch != base.Epoch {
				continue
			}
			switch {
			case e.Op == journal.Take && before != nil:
				return lode.Errorf(lode.Damaged, "%s was taken twice in epoch %d", p, e.Epoch)
			case e.Op == journal.Take:
				before = &e.Base
			case before == nil:
				return lode.Errorf(lode.Damaged, "%s in epoch %d before its take", p, e.Epoch)
			case e.Op == journal.Turn:
				out = append(out, e.ID)
			}
		}
		return nil
	})
	if err == nil && before == nil {
		err = lode.Errorf(lode.Damaged, "%s was never taken in %+v", p, base)
	}
	if err != nil {
		return nil, err
	}
	front, err := stateAt(ctx, b, p, *before)
	return append(front, out...), err
}

func (n *node) Start(p journal.Partition, epoch uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.epoch[p] = epoch
}

func (n *node) Stop(_ context.Context, p journal.Partition) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stopErr != nil {
		return n.stopErr
	}
	delete(n.epoch, p)
	return nil
}

func (n *node) Gone(p journal.Partition, _ uint64, _ lode.NodeID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.epoch[p] != 0 {
		n.t.Errorf("%s: %s is gone and was not stopped", n.id, p)
	}
}

func (n *node) Ended() {
	n.ends.Add(1)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ended = true
	n.epoch = make(map[journal.Partition]uint64)
	n.state = make(map[journal.Partition][]string)
}

func part64(i int) journal.Partition {
	return journal.Partition{Namespace: "default", Kind: "cart", N: i}
}

func openBus(t testing.TB, dir string) *bus.Bus {
	t.Helper()
	b, err := bus.Open(t.Context(), bus.Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// owns waits until a node has p.
func (n *node) owns(p journal.Partition) {
	n.t.Helper()
	until(n.t, fmt.Sprint(p, " at ", n.id), func() bool {
		own, ok := n.own.Lookup(p)
		return ok && own.Node == n.id && own.State == StateOwner
	})
}

func (n *node) wants(p journal.Partition, want ...string) {
	n.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if !slices.Equal(n.state[p], want) {
		n.t.Fatalf("%s has %v, want %v", p, n.state[p], want)
	}
}

func TestOneNode(t *testing.T) {
	t.Parallel()
	dir, ctx := t.TempDir(), t.Context()
	c := newCluster(t, "a")
	alone := func(c *Config) { c.Alone = func() bool { return true } }
	b := openBus(t, filepath.Join(dir, "a"))
	n := c.open("a", b, alone)
	p := part64(7)
	if _, ok := n.own.Lookup(p); ok {
		t.Fatal("it has an owner already")
	}
	if to := must(n.own.Ensure(ctx, p))(t); to != "a" {
		t.Fatal(to)
	}
	if own, _ := n.own.Lookup(p); own != (Owner{"a", 1, StateOwner}) {
		t.Fatalf("%+v", own)
	}
	for i := range 3 {
		if err := n.turn(p, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "reads of a node that is alone", n.own.LeaseValid)
	if err := n.own.Settled(ctx, p); err != nil || n.own.Pinned() {
		t.Fatal(err)
	}
	wantKind(t, n.own.Settled(ctx, part64(8)), lode.Precondition)
	wantKind(t, n.own.Drain(ctx), lode.Unavailable)
	for range 2 { // restarts, one of them without the take of another
		first := n.own.Incarnation()
		n.close()
		n = c.open("a", b, alone)
		n.owns(p)
		n.wants(p, "0", "1", "2")
		if n.own.Incarnation() == first {
			t.Fatal("the term has the same name")
		}
	}
	if own, _ := n.own.Lookup(p); own.Epoch != 3 {
		t.Fatalf("%+v", own)
	}
	if rec, _, err := getRecord(ctx, n.own.records, "a"); err != nil || rec.Count != 0 {
		t.Fatalf("a node alone renews a lease: %+v %v", rec, err)
	}
	if got := n.own.Owned(); len(got) != 1 || got[0] != p {
		t.Fatal(got)
	}
	n.close()
	_, err := n.own.Ensure(ctx, part64(9))
	wantKind(t, err, lode.Unavailable)
	n.own.Close(ctx)
}

// TestManyPartitions has a restart take back a whole kind in one pass.
func TestManyPartitions(t *testing.T) {
	t.Parallel()
	b, ctx := openBus(t, t.TempDir()), t.Context()
	c := newCluster(t, "a")
	n := c.open("a", b)
	var all sync.WaitGroup
	errs := make([]error, 64)
	for i := range 64 {
		all.Go(func() {
			_, err := n.own.Ensure(ctx, part64(i))
			errs[i] = errors.Join(err, n.turn(part64(i), fmt.Sprint("t", i)))
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	n.close()
	n = c.open("a", b)
	for i := range 64 {
		n.owns(part64(i))
		n.wants(part64(i), fmt.Sprint("t", i))
	}
	if got := n.loads.Load(); got > 3 {
		t.Fatalf("%d passes over the same journal", got)
	}
	until(t, "a lease", n.own.LeaseValid)
}

// TestFencedTerm has another writer open the journal under a node: its term
// ends, and the next one has everything back, also what was about to be stored.
func TestFencedTerm(t *testing.T) {
	t.Parallel()
	b, ctx := openBus(t, t.TempDir()), t.Context()
	c := newCluster(t, "a")
	n := c.open("a", b)
	p := part64(1)
	must(n.own.Ensure(ctx, p))(t)
	if err := n.turn(p, "1"); err != nil {
		t.Fatal(err)
	}
	must(b.OpenLog(ctx, JournalName("a")))(t)
	first := n.own.Incarnation()
	wantKind(t, n.turn(p, "late"), lode.Conflict)
	until(t, "the end of the term", func() bool { return n.ends.Load() == 1 })
	until(t, "another term", func() bool { return n.own.Incarnation() != first })
	n.owns(p)
	n.wants(p, "1")
	if err := n.turn(p, "2"); err != nil {
		t.Fatal(err)
	}
	n.own.Fenced(first) // it is over: nothing happens
	n.wants(p, "1", "2")
}

// TestSuspectedInVain has somebody suspect a node and then do nothing: it ends
// its term by itself, keeps its partitions and gets a lease again.
func TestSuspectedInVain(t *testing.T) {
	t.Parallel()
	b, ctx := openBus(t, t.TempDir()), t.Context()
	c := newCluster(t, "a")
	n := c.open("a", b)
	p := part64(1)
	must(n.own.Ensure(ctx, p))(t)
	if err := n.turn(p, "1"); err != nil {
		t.Fatal(err)
	}
	until(t, "a lease", n.own.LeaseValid)
	first := n.own.Incarnation()
	until(t, "the suspicion", func() bool { // between two renewals
		rec, rev, err := getRecord(ctx, n.own.records, "a")
		if err != nil {
			t.Fatal(err)
		}
		rec.State = NodeSuspect
		_, err = n.own.records.Update(ctx, "a", encode(rec), rev)
		return err == nil
	})
	until(t, "another term", func() bool { return n.own.Incarnation() != first })
	n.owns(p)
	n.wants(p, "1")
	until(t, "a lease again", n.own.LeaseValid)
}

// TestHandedToFormerSelf has a node be given a partition while it is not there:
// its next self takes it, from where it was.
func TestHandedToFormerSelf(t *testing.T) {
	t.Parallel()
	b, ctx := openBus(t, t.TempDir()), t.Context()
	c := newCluster(t, "a", "b")
	n := c.open("a", b)
	z := c.open("b", b)
	p := part64(1)
	at := ensure(t, p, n, z)
	other := map[*node]*node{n: z, z: n}[at]
	if err := at.turn(p, "1"); err != nil {
		t.Fatal(err)
	}
	other.close() // nobody has noticed yet
	if err := at.own.Move(ctx, p, other.id); err != nil {
		t.Fatal(err)
	}
	back := c.open(other.id, b)
	back.owns(p)
	back.wants(p, "1")
	if own, _ := back.own.Lookup(p); own.Epoch != 3 {
		t.Fatalf("%+v", own)
	}
}
