package storetest

import (
	"context"
	"io"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"lode"
	"lode/store"
)

// Cluster is a number of nodes in this process, each with a directory, whose
// ways to each other are in memory and can be broken. It is for tests of what
// stands on a store, too.
type Cluster struct {
	t      testing.TB
	change func(*store.ReplicasConfig)

	mu    sync.Mutex
	nodes []*Node
	cut   map[[2]lode.NodeID]bool
	// Meddle, if not nil, is asked before each call from one node to another;
	// its error is the call's. It may block until ctx ends.
	meddle func(ctx context.Context, from, to lode.NodeID, method string) error
}

// Node is one node of a Cluster.
type Node struct {
	ID       lode.NodeID
	Replicas *store.Replicas // of the running node; the last one's after Kill
	Store    *store.Store    // over Replicas
	Dir      string          // of the replicas

	c          *Cluster
	down, gone bool
	leaving    bool
	full       bool
	slow       time.Duration // before each piece of a Get
	zone       string
	free       int64
	received   int64 // bytes that other nodes sent
}

// NewCluster starts n nodes, n1 to nN. change, if not nil, alters each node's
// configuration.
func NewCluster(t testing.TB, n int, change func(*store.ReplicasConfig)) *Cluster {
	t.Helper()
	c := &Cluster{t: t, change: change, cut: map[[2]lode.NodeID]bool{}}
	for i := range n {
		c.nodes = append(c.nodes, &Node{ID: lode.NodeID("n" + string(rune('1'+i))), Dir: t.TempDir(), c: c, down: true})
	}
	for _, n := range c.nodes {
		n.Start()
	}
	t.Cleanup(func() {
		for _, n := range c.nodes {
			n.Kill()
		}
	})
	return c
}

// Nodes are all nodes, in order.
func (c *Cluster) Nodes() []*Node { return c.nodes }

// Node finds a node by name.
func (c *Cluster) Node(id lode.NodeID) *Node {
	i := slices.IndexFunc(c.nodes, func(n *Node) bool { return n.ID == id })
	if i < 0 {
		c.t.Fatalf("there is no node %s", id)
	}
	return c.nodes[i]
}

// Meddle sets what is asked before each call from one node to another.
func (c *Cluster) Meddle(fn func(ctx context.Context, from, to lode.NodeID, method string) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.meddle = fn
}

// Cut breaks, or mends, the network between the given nodes and all others.
func (c *Cluster) Cut(broken bool, side ...lode.NodeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range c.nodes {
		for _, b := range c.nodes {
			if slices.Contains(side, a.ID) != slices.Contains(side, b.ID) {
				c.cut[[2]lode.NodeID{a.ID, b.ID}] = broken
			}
		}
	}
}

// view is what node from knows of all.
func (c *Cluster) view(from lode.NodeID) []store.NodeState {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []store.NodeState
	for _, n := range c.nodes {
		out = append(out, store.NodeState{Node: n.ID, Alive: !n.down && !c.cut[[2]lode.NodeID{from, n.ID}],
			Gone: n.gone, Leaving: n.leaving, Zone: n.zone, Free: n.free})
	}
	return out
}

// Start starts a node that is not running over the directory that it had.
func (n *Node) Start() {
	n.c.t.Helper()
	if !n.isDown() {
		return
	}
	dir, err := store.OpenDir(n.Dir)
	if err != nil {
		n.c.t.Fatal(err)
	}
	quiet := slog.New(slog.DiscardHandler)
	cfg := store.ReplicasConfig{Self: n.ID, Local: dir, Logger: quiet,
		Nodes:  func() []store.NodeState { return n.c.view(n.ID) },
		Remote: func(to lode.NodeID) store.Remote { return wire{n.c, n.ID, n.c.Node(to)} }}
	if n.c.change != nil {
		n.c.change(&cfg)
	}
	r, err := store.OpenReplicas(cfg)
	if err != nil {
		n.c.t.Fatal(err)
	}
	s, err := store.Open(store.Config{Home: r, Cache: filepath.Join(n.Dir, "cache"), Log: quiet})
	if err != nil {
		n.c.t.Fatal(err)
	}
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	n.Replicas, n.Store, n.down, n.gone = r, s, false, false
}

func (n *Node) isDown() bool {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	return n.down
}

// Kill stops a node; all see it at once.
func (n *Node) Kill() {
	n.c.mu.Lock()
	was, running := n.down, n.Store
	n.down = true
	n.c.mu.Unlock()
	if !was {
		running.Close()
	}
}

// Down reports whether the node is not running.
func (n *Node) Down() bool { return n.isDown() }

// Set changes what the cluster sees of a node.
func (n *Node) Set(change func(n *NodeSettings)) {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	s := NodeSettings{n.gone, n.leaving, n.full, n.slow, n.zone, n.free}
	change(&s)
	n.gone, n.leaving, n.full, n.slow, n.zone, n.free = s.Gone, s.Leaving, s.Full, s.Slow, s.Zone, s.Free
}

// NodeSettings are what can be changed of a node.
type NodeSettings struct {
	Gone, Leaving bool          // as in store.NodeState
	Full          bool          // takes nothing from others
	Slow          time.Duration // before each piece that others read
	Zone          string
	Free          int64
}

// Wipe loses the disk of a node that is not running.
func (n *Node) Wipe() {
	n.c.t.Helper()
	if err := os.RemoveAll(n.Dir); err != nil {
		n.c.t.Fatal(err)
	}
}

// Received is the bytes that other nodes sent to this one.
func (n *Node) Received() int64 {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	return n.received
}

// Holds reports whether the node has a replica, running or not.
func (n *Node) Holds(d lode.Digest) bool {
	_, err := os.Stat(n.Path(d))
	return err == nil
}

// Path is where the node has its replica.
func (n *Node) Path(d lode.Digest) string {
	return filepath.Join(n.Dir, "blobs", d.String()[:2], d.String())
}

// Holders are the nodes with a replica, running or not.
func (c *Cluster) Holders(d lode.Digest) (out []*Node) {
	for _, n := range c.nodes {
		if n.Holds(d) {
			out = append(out, n)
		}
	}
	return out
}

// Repair lets every running node repair, so many rounds.
func (c *Cluster) Repair(rounds int) (out []store.Report) {
	c.t.Helper()
	for range rounds {
		for _, n := range c.nodes {
			if n.isDown() {
				continue
			}
			rep, err := n.Replicas.Repair(c.t.Context(), nil)
			if err != nil {
				c.t.Errorf("repair of %s: %v", n.ID, err)
			}
			out = append(out, rep)
		}
	}
	return out
}

// wire is the way from one node to another.
type wire struct {
	c    *Cluster
	from lode.NodeID
	to   *Node
}

var _ store.Remote = wire{}

// reach fails where the way is broken.
func (w wire) reach(ctx context.Context, method string) (*store.Shelf, error) {
	w.c.mu.Lock()
	meddle, broken := w.c.meddle, w.to.down || w.c.cut[[2]lode.NodeID{w.from, w.to.ID}]
	shelf := w.to.Replicas.Shelf()
	w.c.mu.Unlock()
	if broken {
		return nil, lode.Errorf(lode.Unavailable, "node %s does not answer", w.to.ID)
	}
	if meddle != nil {
		if err := meddle(ctx, w.from, w.to.ID, method); err != nil {
			return nil, err
		}
	}
	return shelf, nil
}

func (w wire) Put(ctx context.Context, d lode.Digest, src *io.SectionReader, as store.PutAs) (store.Info, error) {
	shelf, err := w.reach(ctx, "put")
	if err != nil {
		return store.Info{}, err
	}
	info, ok, err := shelf.Offer(ctx, d, as)
	if ok || err != nil {
		return info, err
	}
	w.c.mu.Lock()
	full := w.to.full
	w.to.received += src.Size()
	w.c.mu.Unlock()
	if full {
		return store.Info{}, lode.Errorf(lode.Full, "node %s: no space left on device", w.to.ID)
	}
	return shelf.Receive(ctx, d, reaching{w, ctx, io.NewSectionReader(src, 0, src.Size())}, src.Size(), as)
}

// reaching is a stream that breaks with the way.
type reaching struct {
	w   wire
	ctx context.Context
	r   io.Reader
}

func (r reaching) Read(p []byte) (int, error) {
	if _, err := r.w.reach(r.ctx, "put piece"); err != nil {
		return 0, err
	}
	return r.r.Read(p[:min(len(p), 64<<10)])
}

func (w wire) Get(ctx context.Context, d lode.Digest, to io.Writer) error {
	shelf, err := w.reach(ctx, "get")
	if err != nil {
		return err
	}
	return shelf.Get(ctx, d, pieces{w, ctx, to})
}

// pieces writes slowly where the node is slow.
type pieces struct {
	w   wire
	ctx context.Context
	to  io.Writer
}

func (p pieces) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		if _, err := p.w.reach(p.ctx, "get piece"); err != nil {
			return n, err
		}
		p.w.c.mu.Lock()
		slow := p.w.to.slow
		p.w.c.mu.Unlock()
		if slow > 0 {
			select {
			case <-time.After(slow):
			case <-p.ctx.Done():
				return n, p.ctx.Err()
			}
		}
		m, err := p.to.Write(b[:min(len(b), 64<<10)])
		n += m
		if err != nil {
			return n, err
		}
		b = b[m:]
	}
	return n, nil
}

func (w wire) Have(ctx context.Context, qs []store.Query, verify bool) ([]store.Held, error) {
	shelf, err := w.reach(ctx, "have")
	if err != nil {
		return nil, err
	}
	held, err := shelf.Have(ctx, qs, verify)
	if err == nil {
		_, err = w.reach(ctx, "have answered")
	}
	return held, err
}

func (w wire) Stat(ctx context.Context, d lode.Digest) (store.Info, error) {
	shelf, err := w.reach(ctx, "stat")
	if err != nil {
		return store.Info{}, err
	}
	return shelf.Stat(ctx, d)
}

func (w wire) Delete(ctx context.Context, d lode.Digest, before time.Time) (bool, error) {
	shelf, err := w.reach(ctx, "delete")
	if err != nil {
		return false, err
	}
	return shelf.Delete(ctx, d, before)
}

func (w wire) List(ctx context.Context) iter.Seq2[store.Info, error] {
	shelf, err := w.reach(ctx, "list")
	if err != nil {
		return func(yield func(store.Info, error) bool) { yield(store.Info{}, err) }
	}
	return shelf.List(ctx)
}

func (w wire) Bad(ctx context.Context, d lode.Digest) error {
	shelf, err := w.reach(ctx, "bad")
	if err != nil {
		return err
	}
	return shelf.Bad(ctx, d)
}
