package invoke

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lode"
	"lode/link"
)

// fleet is several nodes in this process: each has its own catalog and
// Service, and real links over loopback to all others.
type fleet struct {
	t     testing.TB
	nodes map[lode.NodeID]*tnode
}

type tnode struct {
	c  *fleet
	id lode.NodeID
	w  *world
	s  *Service
	l  *link.Link

	asked atomic.Int64 // calls of Nodes
	deaf  atomic.Bool  // it takes what reports say to be what they said before

	mu    sync.Mutex
	loads map[lode.NodeID]heard
	conns []net.Conn
	dead  bool
}

type heard struct {
	load *NodeLoad
	at   time.Time
}

func newFleet(t testing.TB, cfg Config, ids ...lode.NodeID) *fleet {
	t.Helper()
	c := &fleet{t: t, nodes: map[lode.NodeID]*tnode{}}
	for _, id := range ids {
		n := &tnode{c: c, id: id, w: newWorld(), loads: map[lode.NodeID]heard{}}
		c.nodes[id] = n
		own := cfg
		own.Peers, own.Node = n, string(id)
		n.s = n.w.service(t, own)
		n.l = link.New(link.Config{Self: id, Dial: n.dial, Handle: map[string]link.Handler{LinkMethod: n.s.HandleRemote, TalkMethod: n.s.HandleTalk}, Beat: n.s.LoadReport, Heard: n.heard, BeatEvery: 20 * time.Millisecond})
		t.Cleanup(func() { n.l.Close() })
	}
	for _, n := range c.nodes {
		n.l.SetPeers(ids)
	}
	c.settle()
	return c
}

// settle waits until everybody has heard of everybody anew.
func (c *fleet) settle() {
	from := time.Now()
	for _, n := range c.nodes {
		for _, o := range c.nodes {
			for deadline := from.Add(5 * time.Second); n != o && !n.gone() && !o.gone() && !n.heardSince(o.id, from); {
				if time.Now().After(deadline) {
					c.t.Fatalf("%s does not hear %s", n.id, o.id)
				}
				time.Sleep(time.Millisecond)
			}
		}
	}
}

func (n *tnode) gone() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dead
}

// heardSince reports whether two beats came after from: the second was made
// after it.
func (n *tnode) heardSince(id lode.NodeID, from time.Time) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.loads[id].at.After(from.Add(25 * time.Millisecond))
}

func (n *tnode) dial(_ context.Context, to lode.NodeID) (net.Conn, error) {
	o := n.c.nodes[to]
	if n.gone() || o.gone() {
		return nil, errors.New("connection refused")
	}
	here, there := net.Pipe()
	n.keep(here)
	o.keep(there)
	go o.l.Serve(there, n.id)
	return here, nil
}

func (n *tnode) keep(c net.Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conns = append(n.conns, c)
}

// die cuts a node off for good, as kill -9 does.
func (n *tnode) die() {
	n.mu.Lock()
	n.dead = true
	conns := n.conns
	n.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
}

func (n *tnode) heard(from lode.NodeID, b link.Beat) {
	load, err := ParseLoad(b.Payload)
	if err != nil {
		n.c.t.Errorf("a report of %s: %v", from, err)
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.deaf.Load() {
		load = n.loads[from].load
	}
	n.loads[from] = heard{load, time.Now()}
}

func (n *tnode) Self() lode.NodeID { return n.id }

// testRTT is what nodes are told of a way that takes microseconds, so that
// lines as short as a test's are admitted.
const testRTT = 2 * time.Millisecond

func (n *tnode) Nodes() []NodeView {
	n.asked.Add(1)
	out := []NodeView{{Node: n.id}}
	for _, p := range n.l.Peers() {
		if !p.Up {
			continue
		}
		n.mu.Lock()
		h := n.loads[p.Node]
		n.mu.Unlock()
		out = append(out, NodeView{Node: p.Node, RTT: testRTT, Load: h.load, Age: time.Since(h.at)})
	}
	return out
}

func (n *tnode) Call(ctx context.Context, to lode.NodeID, r *link.Request, a link.Answer) error {
	return n.l.Call(ctx, to, r, a)
}

var _ Peers = (*tnode)(nil)

// costs makes a node believe that an invocation of a function, and whatever
// else it runs, takes so long.
func (n *tnode) costs(name string, d time.Duration) {
	g := n.s.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.laneOf(target{"default", lode.Name(name)})
	g.mean, l.cost, l.hold = int64(d), int64(d), int64(d)
}

// deploy makes a function on all nodes, whose code knows where it runs.
func (c *fleet) deploy(name string, f lode.Function, make func(n *tnode) code) {
	for _, n := range c.nodes {
		n.w.deploy(name, f, make(n))
	}
}

// records are those that all nodes gave of an invocation.
func (c *fleet) records(id lode.InvocationID) (out []string) {
	for _, n := range c.nodes {
		n.w.mu.Lock()
		for _, r := range n.w.records {
			if r.ID == id {
				out = append(out, fmt.Sprintf("%s %d %v", n.id, r.Status, r.Err))
			}
		}
		n.w.mu.Unlock()
	}
	return out
}

// taker is an Answer that tells when something happens.
type taker struct {
	lode.Buffered
	mu      sync.Mutex
	started int
	flushed int
	first   chan struct{} // closed at the first byte
}

func newTaker() *taker { return &taker{first: make(chan struct{})} }

func (a *taker) Started(bool, time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.started++
}

func (a *taker) Flush() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.flushed++
}

func (a *taker) Write(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.Msg.Body) == 0 && len(p) > 0 {
		close(a.first)
	}
	return a.Buffered.Write(p)
}

// runs counts how often a guest ran, by node.
type runs struct {
	mu sync.Mutex
	by map[lode.NodeID]int
}

func (r *runs) add(n *tnode) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.by == nil {
		r.by = map[lode.NodeID]int{}
	}
	r.by[n.id]++
}

func (r *runs) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return fmt.Sprint(r.by)
}

func (r *runs) all() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range r.by {
		n += k
	}
	return n
}

func request(name string) *lode.Request {
	return &lode.Request{Namespace: "default", Function: lode.Name(name), Trigger: lode.TriggerHTTP}
}

// eventually waits for something that other goroutines bring about.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !f(); {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 5 s", what)
		}
		time.Sleep(time.Millisecond)
	}
}
