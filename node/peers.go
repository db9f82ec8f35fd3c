package node

import (
	"context"
	"sync"
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
const giveUp = 5 * time.Second

// states are the nodes as stores see them.
func (f *fleet) states() []store.NodeState {
	if f.members == nil {
		return []store.NodeState{{Node: f.id, Alive: true}}
	}
	var out []store.NodeState
	for _, r := range f.members.List() {
		if r.State == member.Joining && r.Name != f.id {
			continue
		}
		lost := f.lostFor(r.Name)
		out = append(out, store.NodeState{Node: r.Name, Alive: lost == 0, Zone: r.Zone, Gone: lost > f.n.cfg.RepairAfter, Leaving: f.leaves(r.Name)})
	}
	if len(out) == 0 {
		out = append(out, store.NodeState{Node: f.id, Alive: true})
	}
	return out
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
		if f.alive(r.Name) && !f.leaves(r.Name) && r.State != member.Joining {
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

// holdersWait is how long a node may take to say what it has.
const holdersWait = 500 * time.Millisecond

// Holders says which node has which of the shards. Nodes that do not answer in
// time are left out.
func (w workers) Holders(ctx context.Context, ds []lode.Digest) (map[lode.NodeID][]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, holdersWait)
	defer cancel()
	out := map[lode.NodeID][]bool{w.n.fleet.id: w.n.shards.Local(ds)}
	queries := make([]store.Query, len(ds))
	for i, d := range ds {
		queries[i].Digest = d
	}
	var mu sync.Mutex
	var asked sync.WaitGroup
	for _, s := range w.n.fleet.states() {
		if s.Node == w.n.fleet.id || !s.Alive {
			continue
		}
		asked.Go(func() {
			held, err := w.n.remoteStore("shards")(s.Node).Have(ctx, queries, false)
			if err != nil {
				return
			}
			has := make([]bool, len(held))
			for i, h := range held {
				has[i] = h >= store.HeldCopy
			}
			mu.Lock()
			out[s.Node] = has
			mu.Unlock()
		})
	}
	asked.Wait()
	return out, nil
}

var _ job.Cluster = workers{}
