package node

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"lode"
	"lode/agent"
	"lode/agent/journal"
	"lode/api"
	"lode/link"
	"lode/node/member"
	"lode/placement"
)

// The keeper moves partitions of agents to where they should be: it asks all
// nodes what theirs cost, has placement decide, and tells the owners.

const (
	rebalanceEvery = 2 * time.Second
	rebalanceCalm  = 2 * time.Second        // the nodes must have been the same ones for so long
	rebalanceSoon  = 100 * time.Millisecond // until the next look, while partitions are spread
	costsWait      = time.Second
	moveWait       = 15 * time.Second
	firstBlackout  = 0.05 // seconds, before a move was measured

	costsMethod = "partition-costs" // of link
	moveMethod  = "partition-move"
)

// rebalancer is what the keeper remembers of partitions. It is used by one
// goroutine; mu guards what explain reads.
type rebalancer struct {
	n     *Node
	began time.Time
	calm  calm
	seen  sightings

	mu     sync.Mutex
	ledger placement.Ledger
	last   *placement.Picture // as it was decided by
	why    string             // nothing is moved for now; "": it may be
}

// calm tells since when the cluster has been as it is.
type calm struct {
	nodes string
	since time.Time
}

// rebalance moves partitions for as long as this node is the keeper.
func (n *Node) rebalance(ctx context.Context) {
	if n.awaitAgents(ctx) != nil {
		return
	}
	r := &rebalancer{n: n, began: time.Now(), seen: newSightings()}
	n.balance.Store(r)
	defer n.balance.CompareAndSwap(r, nil)
	for pause := rebalanceEvery; ; {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		pause = r.seen.every()
		if r.step(ctx) {
			pause = rebalanceSoon
		}
	}
}

// step looks once, and makes the moves that are due. It reports whether there
// will be more at once.
func (r *rebalancer) step(ctx context.Context) (soon bool) {
	why := r.unrest()
	var p *placement.Picture
	if why == "" {
		var err error
		if p, err = r.seen.look(ctx, r.n); err != nil {
			why = "what partitions cost is not known of all nodes: " + err.Error()
		}
	}
	r.mu.Lock()
	r.why = why
	if why != "" {
		r.mu.Unlock()
		return false
	}
	moves := placement.Rebalance(p, &r.ledger, time.Since(r.began).Seconds())
	r.last = p
	r.mu.Unlock()
	if len(moves) == 0 {
		return false
	}
	done, spread := r.make(ctx, moves)
	return done > 0 && spread
}

// unrest says why nothing may be moved now; "": it may. Where nodes come and
// go, or the bus moves, partitions that move too are only in the way.
func (r *rebalancer) unrest() string {
	n, now := r.n, time.Now()
	var nodes strings.Builder
	for _, m := range n.fleet.members.List() {
		if m.State == member.Joining {
			continue
		}
		if lost := n.fleet.lostFor(m.Name); lost > 0 && lost < n.cfg.RepairAfter {
			r.calm = calm{}
			return fmt.Sprintf("node %s is lost", m.Name)
		}
		fmt.Fprintf(&nodes, "%s %t ", m.Name, n.fleet.hosts(m.Name))
	}
	if to := n.moving.Load(); to != nil {
		r.calm = calm{}
		return "the bus moves " + to.text()
	}
	if n.cfg.NATS == nil && !n.busSettled() {
		r.calm = calm{}
		return "the bus has not the members yet that it should have"
	}
	if s := nodes.String(); s != r.calm.nodes {
		r.calm = calm{s, now}
	}
	if now.Sub(r.calm.since) < rebalanceCalm {
		return "the nodes have changed just now"
	}
	return ""
}

// busSettled reports whether the bus is on the nodes that should have it, and
// answers.
func (n *Node) busSettled() bool {
	cs := n.candidates()
	if len(cs) == 0 || !n.health().Quorum {
		return false
	}
	to, l := chooseMembers(cs), n.bus.Layout()
	return len(to) == len(l.Members) && !slices.ContainsFunc(to, func(id lode.NodeID) bool { return !l.Has(id) })
}

// make makes moves: those from one node to another one after the other. It
// reports how many were made, and whether they were to spread partitions.
func (r *rebalancer) make(ctx context.Context, moves []placement.Move) (done int, spread bool) {
	by := map[[2]lode.NodeID][]placement.Move{}
	for _, m := range moves {
		way := [2]lode.NodeID{m.From, m.To}
		by[way] = append(by[way], m)
		spread = spread || m.Why == placement.Spread
	}
	began := time.Now()
	var all sync.WaitGroup
	var mu sync.Mutex
	for _, ms := range by {
		all.Go(func() {
			for _, m := range ms {
				if ctx.Err() != nil || r.n.moving.Load() != nil || !r.n.fleet.hosts(m.To) {
					return
				}
				if err := r.move(ctx, m); err != nil {
					if ctx.Err() == nil {
						r.n.cfg.Logger.Warn("a partition of agents is not moved yet", "partition", m.Part, "from", m.From, "to", m.To, "err", err)
					}
					return
				}
				mu.Lock()
				done++
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if done > 0 {
		r.n.cfg.Logger.Info("partitions of agents were moved", "moved", done, "why", moves[0].Why, "took", time.Since(began).Round(time.Millisecond))
	}
	return done, spread
}

// moveRequest has the owner of a partition give it to another node.
type moveRequest struct {
	Namespace lode.Namespace `json:"namespace"`
	Kind      lode.Name      `json:"kind"`
	N         int            `json:"n"`
	To        lode.NodeID    `json:"to"`
}

// moveAnswer says how it is owned then.
type moveAnswer struct {
	Epoch uint64 `json:"epoch"`
}

// move makes one move, and learns from how long it took.
func (r *rebalancer) move(ctx context.Context, m placement.Move) error {
	ctx, cancel := context.WithTimeout(ctx, moveWait)
	defer cancel()
	id, ok := r.seen.id(m.Part)
	if !ok {
		return lode.Errorf(lode.Internal, "there is no partition %s", m.Part)
	}
	q := moveRequest{id.Namespace, id.Kind, id.N, m.To}
	began := time.Now()
	var a moveAnswer
	var err error
	if m.From == r.n.fleet.id {
		a, err = r.n.movePartition(ctx, q)
	} else {
		err = askJSON(ctx, r.n.fleet.link, m.From, moveMethod, q, &a)
	}
	if err != nil {
		return err
	}
	r.seen.movedTo(id, m.To, a.Epoch, time.Since(began))
	return nil
}

// movePartition gives a partition of this node to another one.
func (n *Node) movePartition(ctx context.Context, q moveRequest) (moveAnswer, error) {
	p, err := n.agents.Move(ctx, q.Namespace, q.Kind, q.N, q.To)
	return moveAnswer{p.Epoch}, err
}

// serveMove answers the keeper.
func (n *Node) serveMove(ctx context.Context, in *link.Incoming) error {
	var q moveRequest
	if err := json.Unmarshal(in.Body, &q); err != nil {
		return lode.Errorf(lode.Invalid, "a question of node %s cannot be read: %w", in.From, err)
	}
	a, err := n.movePartition(ctx, q)
	if err != nil {
		return err
	}
	return replyJSON(in, a)
}

// askJSON puts a question to another node, and reads its answer.
func askJSON(ctx context.Context, l *link.Link, to lode.NodeID, method string, q, a any) error {
	b, err := json.Marshal(q)
	if err != nil {
		return lode.Errorf(lode.Internal, "write a question: %w", err)
	}
	var ans link.Bytes
	if err := l.Call(ctx, to, &link.Request{Method: method, Body: b}, &ans); err != nil {
		return err
	}
	if err := json.Unmarshal(ans.Body, a); err != nil {
		return lode.Errorf(lode.Internal, "the answer of node %s cannot be read: %w", to, err)
	}
	return nil
}

func replyJSON(in *link.Incoming, a any) error {
	b, err := json.Marshal(a)
	if err != nil {
		return lode.Errorf(lode.Internal, "write an answer: %w", err)
	}
	return in.Reply(nil, b)
}

// explain says what speaks for a partition's being elsewhere, as far as this
// node is the keeper.
func (r *rebalancer) explain(id journal.Partition) (what, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.why != "" {
		return "no partition is moved for now", r.why
	}
	kind := kindWord(id)
	if r.ledger.Spreads(kind) {
		return "partitions are being spread", "a node has far fewer than its share, or far more"
	}
	o, ok := r.ledger.Owed(id.String(), time.Since(r.began).Seconds())
	if !ok {
		return "it stays where it is", "no other node would save its callers time; a node that joins, or one that is full, changes that"
	}
	return fmt.Sprintf("node %s would save its callers %s a second", o.To, seconds(o.Gain)),
		fmt.Sprintf("it moves when what was lost lately, %s, has reached what a move costs, %s, and its turn has come", seconds(o.Sum), seconds(o.Cost))
}

// explainPlacing says what this node knows of why an agent's partition is where
// it is: the owner what it costs, the keeper what would move it.
func (n *Node) explainPlacing(ns lode.Namespace, kind lode.Name, key string, here bool) (out []api.Step) {
	at, err := n.agents.Where(ns, kind, key)
	if err != nil || at.Node == "" || len(n.fleet.known()) < 2 {
		return nil
	}
	id := journal.Partition{Namespace: ns, Kind: kind, N: at.Partition}
	if rev, err := n.catalog.ResolveAgent(ns, kind); err == nil && here && rev.Function.Agent.Near != "" {
		out = append(out, api.Step{What: "the kind is to be near " + rev.Function.Agent.Near, Why: "lode.yaml says so"})
	}
	if here {
		for _, c := range n.agents.Costs() {
			if c.Partition == id && len(c.Callers) > 0 {
				out = append(out, api.Step{What: "its partition is called from " + callersText(c.Callers)})
			}
		}
	}
	if r := n.balance.Load(); r != nil {
		what, why := r.explain(id)
		out = append(out, api.Step{What: what, Why: why})
	}
	return out
}

func callersText(cs []agent.CallerRate) string {
	slices.SortFunc(cs, func(a, b agent.CallerRate) int { return cmp.Compare(b.Rate, a.Rate) })
	var out []string
	for _, c := range cs {
		out = append(out, fmt.Sprintf("%s (%.1f/s)", c.Node, c.Rate))
	}
	return strings.Join(out, ", ")
}

func seconds(s float64) time.Duration {
	return time.Duration(min(s, 1e6) * 1e9).Round(10 * time.Microsecond)
}

// kindWord names the kind of a partition, in all namespaces.
func kindWord(id journal.Partition) string { return string(id.Namespace) + "/" + string(id.Kind) }
