package owner

import (
	"context"
	"sync"
	"time"

	"lode"
	"lode/agent/journal"
)

const (
	rankTicks = 8  // looks by which each further node waits for the one before it to take over
	newFactor = 5  // times Detect for a node that has not been heard of since this one began
	scanAgain = 20 // looks after which a take-over that came to nothing is tried again at the soonest
)

// suspicion counts for how many looks in a row each node was not heard of. It
// counts looks and not time: a node that slept knows nothing of the others.
type suspicion struct {
	quiet map[lode.NodeID]int
	heard map[lode.NodeID]bool // since this node began
}

func newSuspicion() suspicion {
	return suspicion{quiet: make(map[lode.NodeID]int), heard: make(map[lode.NodeID]bool)}
}

// look notes whether a node is heard of. late: this node was not there to hear.
func (u *suspicion) look(n lode.NodeID, alive, late bool) {
	switch {
	case alive:
		u.heard[n] = true
		delete(u.quiet, n)
	case late:
		u.quiet[n] = 0
	default:
		u.quiet[n]++
	}
}

// dead says whether a node that is to be unheard of for want looks is to be
// taken over by the rank-th of the others.
func (u *suspicion) dead(n lode.NodeID, rank, want int) bool {
	if !u.heard[n] {
		want *= newFactor
	}
	return u.quiet[n] >= want+rank*rankTicks
}

// suspect looks which owners are not heard of, and takes them over where it is
// this node's turn.
func (o *Owners) suspect(late bool) {
	t := o.term
	if t == nil {
		return
	}
	owners := make(map[lode.NodeID]bool)
	for _, s := range o.slots {
		if s.rev != 0 && s.reg.Node != o.c.Self {
			owners[s.reg.Node] = true
		}
	}
	var living []lode.NodeID
	for n := range owners {
		alive := o.c.Alive(n)
		o.dead.look(n, alive, late)
		if alive || t.takes[n] {
			continue
		}
		if living == nil {
			living = o.living()
		}
		for rank, l := range lode.Rendezvous([]byte(n), living) {
			if l == o.c.Self && o.dead.dead(n, rank, int(o.c.Detect/o.interval())) {
				o.takeFrom(t, n)
			}
		}
	}
}

// living are the nodes that could take over, this one among them.
func (o *Owners) living() []lode.NodeID {
	out := []lode.NodeID{o.c.Self}
	for _, n := range o.c.Nodes() {
		if n != o.c.Self && o.c.Alive(n) {
			out = append(out, n)
		}
	}
	return out
}

// eligible are the nodes that may be given a partition now, but for one.
func (o *Owners) eligible(but lode.NodeID) (out []lode.NodeID) {
	for _, n := range o.c.Nodes() {
		if n != but && o.c.Eligible(n) && (n != o.c.Self || !o.draining) {
			out = append(out, n)
		}
	}
	return out
}

func (o *Owners) takeFrom(t *term, n lode.NodeID) {
	to := o.eligible(n)
	if len(to) == 0 {
		return
	}
	incs := make(map[lode.NodeID]string)
	for _, n := range to {
		incs[n] = o.known[n].Incarnation
	}
	incs[o.c.Self] = t.inc
	t.takes[n] = true
	o.c.Logger.Warn("agents: a node is taken to be dead", "node", n)
	o.work.Go(func() {
		moved, err := o.takeOver(t, n, to, incs)
		if err != nil && t.ctx.Err() == nil {
			o.c.Logger.Error("agents: a node could not be taken over", "node", n, "err", err)
		} else if moved > 0 {
			o.c.Logger.Info("agents: a node was taken over", "node", n, "partitions", moved)
		}
		o.inTerm(t, func() {
			delete(t.takes, n)
			o.dead.quiet[n] = -scanAgain
		})
	})
}

// takeOver goes through the machine takeover, and returns how many registers
// it has swapped.
func (o *Owners) takeOver(t *term, dead lode.NodeID, to []lode.NodeID, incs map[lode.NodeID]string) (int, error) {
	ctx := t.ctx
	k := &takeover{node: dead}
	rec, rev, err := getRecord(ctx, o.records, dead)
	if err != nil {
		return 0, err
	}
	if k.begin(rec, rev) {
		rev, ok, err := swap(ctx, o.records, string(dead), encode(k.suspect()), k.rev)
		if err != nil || !ok {
			return 0, err
		}
		k.suspected(rev)
	}
	since := now()
	all, err := o.readRegisters(ctx)
	if err != nil {
		return 0, err
	}
	// Two nodes that suspect each other, and are told late, would else take
	// from each other in turn: this way the one that has lost ends here.
	if err := o.ask(ctx, func() { o.learnAll(t, all) }); err != nil || !k.read(all) {
		return 0, err
	}
	if _, rev, err = getRecord(ctx, o.records, dead); err != nil || !k.checked(rev) {
		return 0, err
	}
	log, err := o.c.Bus.OpenLog(ctx, JournalName(dead))
	if err != nil {
		return 0, err
	}
	k.sealed(log.Opened())
	held := make(map[journal.Partition]uint64)
	for _, n := range k.named {
		if !n.reg.Settled {
			if held, err = scan(ctx, o.c.Bus, dead, k.cut); err != nil {
				return 0, err
			}
			break
		}
	}
	k.scanned()
	return o.nameOthers(t, k, held, to, incs, since), nil
}

// readRegisters reads the registers as they are.
func (o *Owners) readRegisters(ctx context.Context) ([]named, error) {
	entries, err := o.registers.List(ctx, "")
	if err != nil {
		return nil, err
	}
	out := make([]named, 0, len(entries))
	for _, e := range entries {
		p, ok := parsePartition(e.Key)
		var reg Register
		if !ok {
			continue
		}
		if err := decode(e, &reg); err != nil {
			return nil, err
		}
		out = append(out, named{p, reg, e.Rev})
	}
	return out, nil
}

// learnAll takes registers as they were just read.
func (o *Owners) learnAll(t *term, all []named) {
	for _, n := range all {
		if o.term != t {
			return
		}
		if s := o.slot(n.partition); o.learn(s, n.reg, n.rev) {
			o.see(s)
			o.publish(s)
		}
	}
}

// nameOthers swaps the registers, several at a time. One that was not as it
// was read is somebody else's business.
func (o *Owners) nameOthers(t *term, k *takeover, held map[journal.Partition]uint64, to []lode.NodeID, incs map[lode.NodeID]string, since time.Duration) (moved int) {
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, n := range k.named {
		select {
		case o.swaps <- struct{}{}:
		case <-t.ctx.Done():
		}
		if t.ctx.Err() != nil {
			break
		}
		all.Go(func() {
			defer func() { <-o.swaps }()
			first := lode.Rendezvous([]byte(n.partition.String()), to)[0]
			left := o.wait() - time.Duration(float64(now()-since)*(1-2*clockRate))
			reg := k.register(n, n.reg.Settled || held[n.partition] == n.reg.Epoch, first, incs[first], max(left, 0))
			at, ok, err := swap(t.ctx, o.registers, n.partition.String(), encode(reg), n.rev)
			if err != nil || !ok {
				return
			}
			mu.Lock()
			moved++
			mu.Unlock()
			o.inTerm(t, func() { o.learnAll(t, []named{{n.partition, reg, at}}) })
		})
	}
	all.Wait()
	return moved
}
