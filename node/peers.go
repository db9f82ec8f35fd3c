package node

import (
	"context"
	"sync/atomic"
	"time"

	"lode"
	"lode/data/job"
	"lode/invoke"
	"lode/link"
	"lode/node/member"
	"lode/store"
)

// peers are the nodes of the cluster as invoke sees them.
type peers struct {
	f    *fleet
	last atomic.Pointer[picture]
}

// picture is what is known of the nodes at a moment. It is believed for a
// short while: invocations ask for it one by one.
type picture struct {
	at    time.Time
	nodes []invoke.NodeView
}

const pictureFor = 5 * time.Millisecond

// Self is this node.
func (p *peers) Self() lode.NodeID { return p.f.id }

// Nodes are those that can be reached, this one among them.
func (p *peers) Nodes() []invoke.NodeView {
	if v := p.last.Load(); v != nil && time.Since(v.at) < pictureFor {
		return v.nodes
	}
	now := time.Now()
	v := &picture{at: now, nodes: []invoke.NodeView{{Node: p.f.id, Draining: p.f.leaves(p.f.id)}}}
	for _, k := range p.f.link.Peers() {
		if !k.Up {
			continue
		}
		w := invoke.NodeView{Node: k.Node, RTT: k.RTT, Bandwidth: k.Bandwidth, Draining: p.f.leaves(k.Node)}
		p.f.mu.Lock()
		if h := p.f.heard[k.Node]; h != nil && h.load != nil {
			w.Load, w.Age = h.load, now.Sub(h.at)
			w.Draining = w.Draining || h.load.Draining
		}
		p.f.mu.Unlock()
		v.nodes = append(v.nodes, w)
	}
	p.last.Store(v)
	return v.nodes
}

// Call calls another node.
func (p *peers) Call(ctx context.Context, to lode.NodeID, r *link.Request, a link.Answer) error {
	return p.f.link.Call(ctx, to, r, a)
}

var _ invoke.Peers = (*peers)(nil)

// leaves reports whether a node drains or has drained.
func (f *fleet) leaves(node lode.NodeID) bool {
	r, ok := f.members.Get(node)
	return ok && (r.State == member.Draining || r.State == member.Drained)
}

// runs reports whether a node still runs an incarnation, or may: one that is
// out of reach for a moment is not given up.
func (f *fleet) runs(node lode.NodeID, incarnation string) bool {
	r, ok := f.members.Get(node)
	return ok && r.Incarnation == incarnation && f.lostFor(node) < giveUp
}

// giveUp is how long a node may be out of reach before what it had begun is
// taken over. What it does later loses by compare-and-swap.
const giveUp = 2 * time.Second

// alone reports whether this node is the only one of its cluster.
func (f *fleet) alone() bool { return len(f.known()) < 2 }

// states are the nodes as stores see them. A node that joined and does not
// know yet who else there is takes itself for nobody, so that nothing is
// acknowledged with one copy.
func (f *fleet) states() []store.NodeState {
	if f.members == nil {
		return []store.NodeState{{Node: f.id, Alive: true}}
	}
	var out []store.NodeState
	free, _ := freeBytes(f.n.dir.path)
	for _, r := range f.members.List() {
		if r.State == member.Joining && r.Name != f.id {
			continue
		}
		lost := f.lostFor(r.Name)
		s := store.NodeState{Node: r.Name, Alive: lost == 0, Zone: r.Zone, Gone: lost > f.n.cfg.RepairAfter, Leaving: f.leaves(r.Name)}
		if r.Name == f.id {
			s.Free = max(0, free-diskReserve)
		}
		out = append(out, s)
	}
	return out
}

// diskReserve is what replicas leave free on the disk, for the bus and logs.
const diskReserve = 128 << 20

// passesOn reports whether a node runs nothing itself.
func (f *fleet) passesOn(node lode.NodeID) bool {
	if node == f.id {
		return f.n.cfg.GatewayOnly
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.heard[node]
	return h != nil && h.load != nil && h.load.Draining
}

// workers are the nodes as jobs see them.
type workers struct{ n *Node }

// Self is this node.
func (w workers) Self() lode.NodeID { return w.n.fleet.id }

// Nodes are those that take shards.
func (w workers) Nodes() []job.Node {
	var out []job.Node
	f := w.n.fleet
	for _, r := range f.members.List() {
		if f.alive(r.Name) && !f.leaves(r.Name) && !f.passesOn(r.Name) && r.State != member.Joining {
			out = append(out, job.Node{Node: r.Name, Slots: max(1, r.CPU), Zone: r.Zone, Labels: r.Labels})
		}
	}
	return out
}

// Work has a node work on a group.
func (w workers) Work(ctx context.Context, node lode.NodeID, g *job.Group) (*job.Done, error) {
	if node == w.n.fleet.id {
		return w.n.executor.Work(ctx, g, g.Heard)
	}
	return job.CallWork(ctx, w.n.fleet.link, node, g)
}

// Link is how fast bytes go from one node to another, as far as this one knows.
func (w workers) Link(from, to lode.NodeID) (float64, time.Duration) {
	for _, p := range w.n.fleet.link.Peers() {
		if p.Node == from || p.Node == to {
			return p.Bandwidth, p.RTT
		}
	}
	return 0, 0
}

// Holders says which node has which of the shards.
func (w workers) Holders(ctx context.Context, ds []lode.Digest) (map[lode.NodeID][]bool, error) {
	out := map[lode.NodeID][]bool{w.n.fleet.id: w.n.shards.Local(ds)}
	for i, where := range w.n.shards.Where(ctx, ds) {
		for _, node := range where {
			if out[node] == nil {
				out[node] = make([]bool, len(ds))
			}
			out[node][i] = true
		}
	}
	return out, nil
}

var _ job.Cluster = workers{}
