package node

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"lode"
	"lode/bus"
	"lode/node/member"
	"lode/store"
)

// What goes on in the background of a cluster: the keeper tends the bus, and
// every node its own blobs and its own drain.

const (
	tendEvery  = 500 * time.Millisecond
	tendSteady = 2 * time.Second // a better choice of members must last so long
)

// tend is the keeper's part: it keeps the bus on the nodes that should have
// it, and sweeps.
func (n *Node) tend(ctx context.Context) {
	var swept sync.WaitGroup
	defer swept.Wait()
	swept.Go(func() { n.sweep(ctx) })
	swept.Go(func() { n.rebalance(ctx) })
	if n.cfg.NATS != nil {
		return
	}
	t := time.NewTicker(tendEvery)
	defer t.Stop()
	var want []lode.NodeID
	var since time.Time
	pause := time.Duration(0)
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		cs := n.candidates()
		if len(cs) == 0 {
			continue
		}
		to := chooseMembers(cs)
		empty := n.emptyMember()
		if !slices.Equal(to, want) {
			want, since, pause = to, time.Now(), 0
			continue
		}
		if time.Since(since) < tendSteady+pause {
			continue
		}
		if err := n.move(ctx, to, empty); err != nil && ctx.Err() == nil {
			n.cfg.Logger.Warn("the members of the bus are not changed yet", "to", to, "err", err)
			since, pause = time.Now(), min(2*pause+time.Second, 30*time.Second)
		}
	}
}

// emptyMember reports whether a member has lost its copy of the bus: a move to
// the same members gives it a new one.
func (n *Node) emptyMember() bool {
	return slices.ContainsFunc(n.health().Members, func(m bus.MemberHealth) bool { return m.Empty })
}

// tendBlobs keeps the wanted copies of what this node has of one store.
func (n *Node) tendBlobs(ctx context.Context, name string, r *store.Replicas) {
	var copies map[lode.Digest]int
	r.Tend(ctx, store.Tending{Want: func(d lode.Digest) int { return copies[d] }, Ready: func(ctx context.Context) bool {
		var err error
		if len(n.fleet.states()) < 2 {
			return false
		}
		if name == shardStore {
			copies, err = n.copies(ctx)
		}
		return err == nil // else the next time
	}})
}

// repairAll makes one pass over this node's replicas, and tells what is here
// and not yet where it belongs.
func (n *Node) repairAll(ctx context.Context) (left []string) {
	if len(n.fleet.states()) < 2 {
		return nil
	}
	copies, err := n.copies(ctx)
	if err != nil {
		return []string{"the copies that datasets want are not known: " + err.Error()}
	}
	for _, name := range slices.Sorted(maps.Keys(n.replicas)) {
		r := n.replicas[name]
		want := func(lode.Digest) int { return 0 }
		if name == shardStore {
			want = func(d lode.Digest) int { return copies[d] }
		}
		rep, err := r.Repair(ctx, want)
		if err != nil && ctx.Err() == nil {
			n.cfg.Logger.Warn("copies are not repaired", "of", name, "err", err)
			left = append(left, fmt.Sprintf("%s: %v", name, err))
		}
		if rep.Needed > 0 {
			what := fmt.Sprintf("%d %s that are not where they belong yet", rep.Needed, name)
			if rep.Trouble != "" {
				what += ": " + rep.Trouble
			}
			left = append(left, what)
		}
	}
	return left
}

// copies is how many copies datasets want of their shards, where they say so.
func (n *Node) copies(ctx context.Context) (map[lode.Digest]int, error) {
	heads, err := n.data.List(ctx, "")
	if err != nil {
		return nil, err
	}
	out := map[lode.Digest]int{}
	for _, h := range heads {
		if h.Spec.Copies == 0 || h.Spec.Copies == store.DefaultCopies {
			continue
		}
		for _, v := range h.Versions {
			err := n.data.Names(ctx, v.Manifest, func(d lode.Digest) { out[d] = max(out[d], h.Spec.Copies) })
			if err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// drain gives away what this node carries while it is asked to.
//
//	ready -(draining)-> gives away -(nothing is left)-> drained -(undrain)-> ready
type drain struct {
	mu   sync.Mutex
	what []string // is left, in words
}

func (d *drain) left() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.what
}

func (d *drain) set(what []string) {
	d.mu.Lock()
	d.what = what
	d.mu.Unlock()
}

// drains follows this node's own state.
func (n *Node) drains(ctx context.Context) {
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	gave := false // agents, and takes no more
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		r, ok := n.fleet.members.Get(n.fleet.id)
		leaves := ok && (r.State == member.Draining || r.State == member.Drained)
		n.invoke.SetDraining(leaves || n.cfg.GatewayOnly)
		n.seat.set(!leaves)
		if leaves {
			n.gateway.Drain()
		} else {
			n.gateway.Undrain()
		}
		if !leaves {
			n.drain.set(nil)
			if gave && n.agents.Undrain(ctx) == nil {
				gave = false
			}
		}
		if !ok || r.State != member.Draining {
			continue
		}
		gave = true
		left := n.leftHere(ctx)
		n.drain.set(left)
		if len(left) > 0 {
			continue
		}
		if err := n.fleet.members.SetState(ctx, n.fleet.id, member.Drained); err != nil && ctx.Err() == nil {
			n.cfg.Logger.Warn("this node is empty, and cannot say so", "err", err)
		}
	}
}

// giveAgents gives partitions of agents to other nodes, and says what is left
// of them here.
func (n *Node) giveAgents(ctx context.Context) (left []string) {
	ctx, cancel := context.WithTimeout(ctx, giveWait)
	defer cancel()
	err := n.agents.Drain(ctx)
	if err == nil {
		return nil
	}
	return []string{fmt.Sprintf("%d partitions of agents: %v", n.agents.Stats().Partitions, err)}
}

// giveWait is how long partitions are given away before the rest is looked at.
const giveWait = 5 * time.Second

// leftHere is what this node still carries, in words.
func (n *Node) leftHere(ctx context.Context) (left []string) {
	if running, queued := n.carries(); running+queued > 0 {
		left = append(left, fmt.Sprintf("%d invocations and groups of shards", running+queued))
	}
	left = append(left, n.giveAgents(ctx)...)
	if keeper, jobs := n.seat.who(); jobs != nil || keeper == n.fleet.id || keeper == "" {
		left = append(left, "the keeper's lease")
	}
	if len(left) == 0 {
		left = n.repairAll(ctx)
	}
	if len(left) > 0 || n.cfg.NATS != nil || !n.bus.Layout().Has(n.fleet.id) {
		return left
	}
	if cs := n.candidates(); !slices.Contains(chooseMembers(cs), n.fleet.id) {
		left = append(left, "a seat on the bus that another node can take")
	}
	return left
}
