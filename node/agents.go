package node

import (
	"context"
	"encoding/json"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"lode"
	"lode/agent"
	"lode/agent/journal"
	"lode/engine"
	"lode/gateway"
	"lode/invoke"
	"lode/link"
	"lode/node/member"
	"lode/store"
)

// openAgents starts this node's agents. It comes after invoke, which runs
// their code, and before the gateway, which calls them.
func (n *Node) openAgents(ctx context.Context) (err error) {
	n.agents, err = agent.Open(ctx, agent.Config{Self: n.fleet.id, Dir: filepath.Join(n.dir.path, "agents"), Bus: n.bus, Catalog: kinds{n}, Runner: &turns{n: n},
		Blobs: snapshots{n.snapshots}, Peers: askers{n.fleet}, Sockets: sockets{n}, Alive: n.fleet.alive, Nodes: n.fleet.known, Eligible: n.fleet.hosts, Alone: n.fleet.alone,
		Now: n.fleet.clusterTime, Kept: n.keptState, Stored: n.storedStates, Idle: n.cfg.Idle, Short: memoryShort, Logger: n.cfg.Logger})
	if err != nil {
		return err
	}
	n.opened("agents", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, shutdownWait)
		defer cancel()
		if !n.fleet.alone() { // else they would wait for somebody to miss this node
			gctx, stop := context.WithTimeout(ctx, giveWait)
			if err := n.agents.Drain(gctx); err != nil && ctx.Err() == nil {
				n.cfg.Logger.Warn("not all partitions of agents were given away: others take them over", "err", err)
			}
			stop()
		}
		return n.agents.Close(ctx)
	})
	close(n.agentsOpen)
	return nil
}

// memoryShort reports whether under a sixteenth of the machine's memory, and
// under 1 GiB, is free.
func memoryShort() bool {
	free := freeMemory()
	return free > 0 && free < min(totalMemory()/16, 1<<30)
}

// Agents are this node's agents, for callers in its own process.
func (n *Node) Agents() *agent.Service { return n.agents }

// AgentNode names the node that has an agent, as far as this one knows.
func (n *Node) AgentNode(ns lode.Namespace, kind lode.Name, key string) (lode.NodeID, bool) {
	rev, err := n.catalog.ResolveAgent(ns, kind)
	if err != nil {
		return "", false
	}
	o, ok := n.agents.Owners().Lookup(journal.Partition{Namespace: ns, Kind: kind, N: lode.PartitionOf(key, rev.Function.Agent.Partitions)})
	return o.Node, ok
}

// hosts reports whether a node may be given agents now.
func (f *fleet) hosts(node lode.NodeID) bool {
	r, ok := f.members.Get(node)
	return ok && r.State != member.Joining && f.alive(node) && !f.leaves(node) && !f.passesOn(node)
}

// clusterTime is this node's clock, set right by the median of all nodes'.
func (f *fleet) clusterTime() time.Time {
	now := time.Now()
	if f.link == nil {
		return now
	}
	return now.Add(f.skew.get(now, f))
}

// medianSkew remembers for a while by how much this node's clock is off.
type medianSkew struct {
	mu  sync.Mutex
	at  time.Time
	off atomic.Int64
	due atomic.Int64
}

func (m *medianSkew) get(now time.Time, f *fleet) time.Duration {
	if now.UnixNano() < m.due.Load() {
		return time.Duration(m.off.Load())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if time.Since(m.at) < time.Second {
		return time.Duration(m.off.Load())
	}
	all := []time.Duration{0}
	for _, p := range f.link.Peers() {
		if p.Up {
			all = append(all, p.Skew)
		}
	}
	slices.Sort(all)
	off := all[len(all)/2]
	m.at = time.Now()
	m.off.Store(int64(off))
	m.due.Store(now.Add(time.Second).UnixNano())
	return off
}

// kinds is the catalog as agents see it.
type kinds struct{ n *Node }

// Kind is the live revision of a kind.
func (k kinds) Kind(ns lode.Namespace, kind lode.Name) (*lode.Revision, error) {
	return k.n.catalog.ResolveAgent(ns, kind)
}

var _ agent.Catalog = kinds{}

// turns runs turns of agents with invoke.
type turns struct{ n *Node }

// running is a turn as both rooms see it.
type running struct {
	t *agent.Turn
	i invoke.Turn
}

// Run runs one turn.
func (r *turns) Run(ctx context.Context, t *agent.Turn) error {
	x := &running{t: t}
	x.i = invoke.Turn{Revision: t.Revision, Head: t.Head, Body: t.Body, Method: t.Method, Deadline: t.Run.Deadline, Trace: t.Run.Trace, Caller: t.Run.Caller,
		Depth: t.Run.Depth, Chain: t.Run.Chain, Ops: x, Sandbox: t.Sandbox, Apart: t.Apart}
	x.i.Within, _ = t.Within.(*invoke.Turn)
	err := r.n.invoke.RunTurn(ctx, &x.i)
	a := &x.i.Answer
	t.Sandbox, t.Span, t.CPU, t.Failed = x.i.Sandbox, x.i.Span, x.i.CPU, x.i.Failed
	t.Answer = lode.AgentReply{Status: a.Status, Head: a.Msg.Head, Body: a.Msg.Body}
	return err
}

// Operate passes an operation of the code on.
func (x *running) Operate(ctx context.Context, op engine.Op, req lode.Message, done func(lode.Message, error)) bool {
	x.t.Span, x.t.Lend = x.i.Span, &x.i
	return x.t.Ops.Operate(ctx, agent.Op(op), req, done)
}

var (
	_ agent.Runner   = (*turns)(nil)
	_ invoke.TurnOps = (*running)(nil)
)

// snapshots keeps the blobs of agents.
type snapshots struct{ s *store.Store }

// Put keeps b.
func (s snapshots) Put(ctx context.Context, b []byte) (lode.Digest, error) {
	return s.s.PutBytes(ctx, b)
}

// Get reads what Put kept.
func (s snapshots) Get(ctx context.Context, d lode.Digest) ([]byte, error) {
	return s.s.ReadAll(ctx, d, 64<<20)
}

var _ agent.Blobs = snapshots{}

// askers asks other nodes about agents.
type askers struct{ f *fleet }

// Ask has another node answer.
func (a askers) Ask(ctx context.Context, to lode.NodeID, head, body []byte) (ahead, abody []byte, err error) {
	var ans link.Bytes
	if err := a.f.link.Call(ctx, to, &link.Request{Method: agent.LinkMethod, Head: head, Body: body}, &ans); err != nil {
		return nil, nil, err
	}
	return ans.HeadBytes, ans.Body, nil
}

var _ agent.Peers = askers{}

// framesMethod is the method of link that brings frames to a gateway.
const framesMethod = "frames"

// sockets brings frames to the gateways that hold WebSockets.
type sockets struct{ n *Node }

// Deliver gives frames to the gateway of a node.
func (s sockets) Deliver(ctx context.Context, node lode.NodeID, frames []lode.SocketFrame) (gone []string, err error) {
	if node == s.n.fleet.id {
		return s.n.gateway.Deliver(ctx, frames)
	}
	b, err := json.Marshal(frames)
	if err != nil {
		return nil, lode.Errorf(lode.Internal, "write frames: %w", err)
	}
	var ans link.Bytes
	if err := s.n.fleet.link.Call(ctx, node, &link.Request{Method: framesMethod, Body: b}, &ans); err != nil {
		return nil, err
	}
	err = json.Unmarshal(ans.Body, &gone)
	return gone, err
}

var _ agent.Sockets = sockets{}

// serveFrames takes frames of another node's agents.
func (n *Node) serveFrames(ctx context.Context, in *link.Incoming) error {
	var frames []lode.SocketFrame
	if err := json.NewDecoder(in.Whole()).Decode(&frames); err != nil {
		return lode.Errorf(lode.Invalid, "frames of node %s cannot be read: %w", in.From, err)
	}
	gone, err := n.gateway.Deliver(ctx, frames)
	if err != nil {
		return err
	}
	b, err := json.Marshal(gone)
	if err != nil {
		return lode.Errorf(lode.Internal, "write an answer: %w", err)
	}
	return in.Reply(nil, b)
}

// agentDoors is what the gateway sees of agents.
type agentDoors struct {
	*agent.Service
	n *Node
}

// Kind is the live revision of a kind.
func (d agentDoors) Kind(ns lode.Namespace, kind lode.Name) (lode.Access, *lode.Function, bool) {
	rev, err := d.n.catalog.ResolveAgent(ns, kind)
	if err != nil {
		return "", nil, false
	}
	return rev.Function.Access, &rev.Function, true
}

var _ gateway.Agents = agentDoors{}

// callees are the agents that functions call. They are opened after invoke.
type callees struct{ n *Node }

// Call has an agent do something.
func (c callees) Call(ctx context.Context, call *lode.AgentCall) (*lode.AgentReply, error) {
	if err := c.n.awaitAgents(ctx); err != nil {
		return nil, err
	}
	return c.n.agents.Call(ctx, call)
}

// Post has an agent do something later.
func (c callees) Post(ctx context.Context, call *lode.AgentCall) (string, error) {
	if err := c.n.awaitAgents(ctx); err != nil {
		return "", err
	}
	return c.n.agents.Post(ctx, call)
}

var _ invoke.Agents = callees{}

// awaitAgents waits until this node's agents are open.
func (n *Node) awaitAgents(ctx context.Context) error {
	select {
	case <-n.agentsOpen:
		return nil
	case <-ctx.Done():
		return lode.Errorf(lode.Unavailable, "the agents of this node are not open yet")
	}
}
