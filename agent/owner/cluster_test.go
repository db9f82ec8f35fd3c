package owner

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"lode"
	"lode/agent/journal"
	"lode/bus"
	"lode/bus/bustest"
)

// world is three members of one bus in this process, with mutual TLS.
type world struct {
	*cluster
	dir   string
	ca    *bustest.Authority
	route map[lode.NodeID]string

	bmu   sync.Mutex
	buses map[lode.NodeID]*bus.Bus
}

var names = []lode.NodeID{"a", "b", "c"}

func newWorld(t testing.TB) *world {
	w := &world{cluster: newCluster(t, names...), dir: t.TempDir(), ca: bustest.NewAuthority(t),
		route: make(map[lode.NodeID]string), buses: make(map[lode.NodeID]*bus.Bus)}
	var members []bus.Member
	for _, n := range names {
		w.route[n] = bustest.Address(12000)
		members = append(members, bus.Member{Node: n, Route: w.route[n]})
	}
	w.up("a", nil)
	l := w.buses["a"].Layout()
	w.up("b", &l)
	w.up("c", &l)
	if err := w.buses["a"].Move(t.Context(), members); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) reach(n lode.NodeID) (*bus.Bus, error) {
	w.bmu.Lock()
	defer w.bmu.Unlock()
	if b := w.buses[n]; b != nil {
		return b, nil
	}
	return nil, lode.Errorf(lode.Unavailable, "%s is down", n)
}

func (w *world) up(n lode.NodeID, join *bus.Layout) *bus.Bus {
	w.t.Helper()
	b, err := bus.Open(context.Background(), bus.Config{Dir: filepath.Join(w.dir, string(n)), Node: n, Logger: w.log.With("bus", n), Cluster: &bus.ClusterConfig{
		Listen: w.route[n],
		Server: func() *tls.Config { return w.ca.TLS(n) },
		Client: func() *tls.Config { return w.ca.TLS(n) },
		Dial: func(_ context.Context, to lode.NodeID) (net.Conn, error) {
			b, err := w.reach(to)
			if err != nil {
				return nil, err
			}
			near, far, err := bustest.Pipe()
			if err == nil {
				go b.ServeClient(far)
			}
			return near, err
		},
		Ask: func(ctx context.Context, to lode.NodeID, msg []byte) ([]byte, error) {
			b, err := w.reach(to)
			if err != nil {
				return nil, err
			}
			return b.Handle(ctx, n, msg)
		},
		Known: func() []lode.NodeID { return slices.Clone(names) },
		Join:  join,
	}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.bmu.Lock()
	w.buses[n] = b
	w.bmu.Unlock()
	w.t.Cleanup(func() { b.Close() })
	return b
}

// down ends a node's bus as if the node had been killed.
func (w *world) down(n lode.NodeID) {
	w.silence(n, true)
	w.bmu.Lock()
	b := w.buses[n]
	delete(w.buses, n)
	w.bmu.Unlock()
	b.Close()
}

// agents opens the owners of all three nodes.
func (w *world) agents() (a, b, c *node) {
	return w.open("a", w.buses["a"]), w.open("b", w.buses["b"]), w.open("c", w.buses["c"])
}

// turn is a turn at whichever of the nodes has p.
func (w *world) turn(p journal.Partition, id string, nodes ...*node) *node {
	w.t.Helper()
	var at *node
	until(w.t, "a turn "+id, func() bool {
		for _, n := range nodes {
			own, ok := n.own.Lookup(p)
			if ok && own.State == StateOwner && n.turn(p, id) == nil {
				at = n
				return true
			}
		}
		return false
	})
	return at
}

// ensure has the nodes agree on who has p, and returns it.
func ensure(t testing.TB, p journal.Partition, nodes ...*node) *node {
	t.Helper()
	var at *node
	until(t, "an owner of "+p.String(), func() bool { // what others were told may be on its way
		for _, n := range nodes {
			if to := must(n.own.Ensure(t.Context(), p))(t); to == n.id {
				at = n
				return true
			}
		}
		return false
	})
	return at
}

func TestClusterMoves(t *testing.T) {
	t.Parallel()
	w, ctx := newWorld(t), t.Context()
	a, b, c := w.agents()
	p := part64(3)
	at := ensure(t, p, a, b, c)
	for _, n := range []*node{a, b, c} {
		if to := must(n.own.Ensure(ctx, p))(t); to != at.id {
			t.Fatalf("%s says %s, not %s", n.id, to, at.id)
		}
	}
	var want []string
	for i := range 9 { // around
		id := fmt.Sprint("t", i)
		want = append(want, id)
		if err := at.turn(p, id); err != nil {
			t.Fatal(err)
		}
		next := map[*node]*node{a: b, b: c, c: a}[at]
		if err := at.own.Move(ctx, p, next.id); err != nil {
			t.Fatal(err)
		}
		next.owns(p)
		next.wants(p, want...)
		wantKind(t, at.own.Move(ctx, p, next.id), lode.Precondition)
		wantKind(t, at.turn(p, "elsewhere"), lode.Unavailable)
		at = next
	}
	for _, n := range []*node{a, b, c} {
		if n.ends.Load() != 0 {
			t.Fatalf("a term of %s has ended", n.id)
		}
	}
	// One that cannot be stopped stays.
	at.mu.Lock()
	at.stopErr = lode.Errorf(lode.Deadline, "a turn runs on")
	at.mu.Unlock()
	other := map[*node]*node{a: b, b: c, c: a}[at]
	wantKind(t, at.own.Move(ctx, p, other.id), lode.Deadline)
	if err := at.turn(p, "still here"); err != nil {
		t.Fatal(err)
	}
	wantKind(t, at.own.Move(ctx, p, "nobody"), lode.Unavailable)
	at.mu.Lock()
	at.stopErr = nil
	at.mu.Unlock()
	if err := at.own.Move(ctx, p, at.id); err != nil {
		t.Fatal(err)
	}
	// Pinned: another's take-over rests on entries of this one's journal until it says otherwise.
	if err := at.own.Move(ctx, p, other.id); err != nil || !at.own.Pinned() {
		t.Fatal(err, "nothing is pinned")
	}
	other.owns(p)
	if err := other.own.Settled(ctx, p); err != nil {
		t.Fatal(err)
	}
	until(t, "the end of the pin", func() bool { return !at.own.Pinned() })
}

func TestClusterDrain(t *testing.T) {
	t.Parallel()
	w, ctx := newWorld(t), t.Context()
	a, b, c := w.agents()
	for i := range 12 {
		at := ensure(t, part64(i), a, b, c)
		if err := at.turn(part64(i), fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.own.Drain(ctx); err != nil {
		t.Fatal(err)
	}
	if got := b.own.Owned(); len(got) != 0 {
		t.Fatal(got)
	}
	for i := range 12 {
		at := ensure(t, part64(i), a, c)
		at.owns(part64(i))
		at.wants(part64(i), fmt.Sprint(i))
	}
}

// TestClusterTakeOver kills one node after another; nothing acknowledged is
// lost, and the last one's return brings back what nobody could take.
func TestClusterTakeOver(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b, c := w.agents()
	var want [8][]string
	place := func(round string, nodes ...*node) {
		for i := range want {
			ensure(t, part64(i), nodes...)
			id := fmt.Sprint(round, i)
			w.turn(part64(i), id, nodes...)
			want[i] = append(want[i], id)
		}
	}
	check := func(nodes ...*node) {
		for i := range want {
			at := ensure(t, part64(i), nodes...)
			at.wants(part64(i), want[i]...)
		}
	}
	place("first", a, b, c)
	until(t, "leases", func() bool { return a.own.LeaseValid() || b.own.LeaseValid() || c.own.LeaseValid() })
	w.down("c")
	c.close()
	place("second", a, b)
	check(a, b)
	if left := func() int { // c's own part is nobody's but its successors'
		n := 0
		for i := range want {
			if own, _ := a.own.Lookup(part64(i)); own.Node == "c" {
				n++
			}
		}
		return n
	}(); left != 0 {
		t.Fatalf("%d partitions are still the dead node's", left)
	}
	// It comes back, and gets what it is given.
	w.silence("c", false)
	c = w.open("c", w.up("c", nil))
	place("third", a, b, c)
	if err := a.own.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	place("fourth", b, c)
	check(b, c)
}

// TestClusterWrongSuspicion takes a node over that lives and works: it finds
// out by its next write, its turn is not lost, and it reads nothing meanwhile.
func TestClusterWrongSuspicion(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b, c := w.agents()
	p := part64(5)
	at := ensure(t, p, a, b, c)
	w.turn(p, "1", at)
	others := slices.DeleteFunc([]*node{a, b, c}, func(n *node) bool { return n == at })
	until(t, "a lease", at.own.LeaseValid)
	stop := make(chan struct{})
	var reading sync.WaitGroup
	reading.Go(func() { // while others have it and write, nobody else reads
		for {
			select {
			case <-stop:
				return
			default:
			}
			got, ok := at.read(p)
			own, _ := others[0].own.Lookup(p)
			if ok && own.Node != at.id && own.State == StateOwner {
				t.Errorf("%s reads %v while %s owns the partition", at.id, got, own.Node)
			}
			time.Sleep(time.Millisecond)
		}
	})
	w.silence(at.id, true)
	then := w.turn(p, "2", others...)
	then.wants(p, "1", "2")
	w.silence(at.id, false)
	if err := at.turn(p, "late"); err == nil {
		t.Fatal("a turn of a node that was taken over was acknowledged")
	}
	until(t, "another term", func() bool { return at.ends.Load() > 0 })
	close(stop)
	reading.Wait()
	if to := must(at.own.Ensure(t.Context(), p))(t); to != then.id {
		t.Fatal(to)
	}
	if err := then.own.Move(t.Context(), p, at.id); err != nil {
		t.Fatal(err)
	}
	at.owns(p)
	at.wants(p, "1", "2")
}
