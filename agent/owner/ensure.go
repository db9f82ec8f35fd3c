package owner

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"lode"
	"lode/agent/journal"
)

// Lookup says who owns p, by what this node has heard: no I/O and no lock.
// False: nobody has ever owned it.
func (o *Owners) Lookup(p journal.Partition) (Owner, bool) { return o.view.get(p) }

// Ensure returns the node that has p, after waiting until there is one that can
// be asked: this node, then p is StateOwner here; or another one that is alive.
// Where nobody has it, it is claimed here if this node is the first for it, and
// else the first is named: its own Ensure claims it. ctx bounds the wait.
func (o *Owners) Ensure(ctx context.Context, p journal.Partition) (lode.NodeID, error) {
	if own, ok := o.view.get(p); ok && own.State == StateOwner {
		return o.c.Self, nil
	}
	if p.N < 0 || p.N >= mostParts || p.Namespace == "" || p.Kind == "" {
		return "", lode.Errorf(lode.Invalid, "%s is no partition", p)
	}
	for {
		var node lode.NodeID
		var changed <-chan struct{}
		if err := o.ask(ctx, func() { node, changed = o.ensure(p) }); err != nil {
			return "", err // the loop may look yet: node is its
		}
		if node != "" {
			return node, nil
		}
		if err := o.await(ctx, changed, o.c.Detect/2); err != nil {
			return "", lode.Errorf(lode.KindOf(err), "%s has no owner yet: %w", p, err).
				WithHint("lode nodes tells which nodes are up; a partition of a dead node moves by itself if most nodes are")
		}
	}
}

// await waits for a change, or for a time after which it is worth looking
// again: what nodes are alive is not announced.
func (o *Owners) await(ctx context.Context, changed <-chan struct{}, most time.Duration) error {
	t := time.NewTimer(most)
	defer t.Stop()
	select {
	case <-changed:
	case <-t.C:
	case <-o.looped:
		return errClosed()
	case <-ctx.Done():
		return ctxError(ctx, "wait for an owner")
	}
	return nil
}

// ensure is one look of Ensure.
func (o *Owners) ensure(p journal.Partition) (lode.NodeID, <-chan struct{}) {
	s := o.slot(p)
	switch {
	case s.part.state == StateOwner:
		return o.c.Self, nil
	case s.rev != 0 && s.reg.Node != o.c.Self && o.c.Alive(s.reg.Node):
		return s.reg.Node, nil
	case s.rev == 0 && o.term != nil && s.part.state == StateClosed:
		order := lode.Rendezvous([]byte(p.String()), o.eligible(""))
		if len(order) > 0 && order[0] != o.c.Self {
			return order[0], nil
		}
		if len(order) > 0 {
			o.do(s, s.part.claim(o.term.self))
		}
	}
	return "", s.waiter()
}

// waiter is closed at the next change.
func (s *slot) waiter() <-chan struct{} {
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	return s.changed
}

// Owned lists the partitions that are StateOwner here, sorted.
func (o *Owners) Owned() (out []journal.Partition) {
	o.ask(o.ctx, func() { out = o.owned() }) // closed: it has none
	slices.SortFunc(out, func(a, b journal.Partition) int { return strings.Compare(a.String(), b.String()) })
	return out
}

func (o *Owners) owned() (out []journal.Partition) {
	for p, s := range o.slots {
		if s.part.state == StateOwner {
			out = append(out, p)
		}
	}
	return out
}

// Move gives p, which is StateOwner here, to another node, and returns when the
// register names it. When ctx ends first the move may go on. Precondition: p is
// not this node's to give. Unavailable: to cannot take it.
func (o *Owners) Move(ctx context.Context, p journal.Partition, to lode.NodeID) error {
	if to == o.c.Self {
		return nil
	}
	if !o.c.Eligible(to) || !slices.Contains(o.c.Nodes(), to) {
		return lode.Errorf(lode.Unavailable, "%s cannot take %s: it is not there, or drains", to, p)
	}
	done := make(chan error, 1)
	err := o.ask(ctx, func() {
		s := o.slots[p]
		if s == nil || s.part.state != StateOwner {
			done <- lode.Errorf(lode.Precondition, "%s is not here", p)
			return
		}
		s.moving = done
		o.do(s, s.part.give(to))
	})
	if err != nil {
		return err
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctxError(ctx, "give "+p.String()+" to "+string(to))
	case <-o.looped:
		return errClosed()
	}
}

// Drain gives every partition to other nodes, and takes no more. Unavailable:
// no other node can take them; they stay here.
func (o *Owners) Drain(ctx context.Context) error {
	for {
		var parts []journal.Partition
		var to []lode.NodeID
		var left int
		err := o.ask(ctx, func() {
			o.draining = true
			parts, to = o.owned(), o.eligible(o.c.Self)
			for _, s := range o.slots {
				if s.part.state != StateClosed {
					left++
				}
			}
		})
		if err != nil || left == 0 {
			return err
		}
		if len(to) == 0 {
			return lode.Errorf(lode.Unavailable, "no other node can take the agents of this one")
		}
		if err := o.drain(ctx, parts, to); err != nil {
			return err
		}
		if len(parts) == left {
			continue
		}
		if err := o.await(ctx, nil, retryPause/4); err != nil { // what is on its way here comes first
			return err
		}
	}
}

// Undrain takes a Drain back: partitions may come here again.
func (o *Owners) Undrain(ctx context.Context) error {
	return o.ask(ctx, func() { o.draining = false })
}

// drain moves partitions, several at a time. One that is not here any more is
// no failure.
func (o *Owners) drain(ctx context.Context, parts []journal.Partition, to []lode.NodeID) error {
	var all sync.WaitGroup
	places := make(chan struct{}, swapsMax)
	errs := make([]error, len(parts))
	for i, p := range parts {
		places <- struct{}{}
		all.Go(func() {
			defer func() { <-places }()
			err := o.Move(ctx, p, lode.Rendezvous([]byte(p.String()), to)[0])
			if lode.KindOf(err) != lode.Precondition {
				errs[i] = err
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// Settled says that this node's own journal and snapshots hold all of p, so
// that nobody needs its base any more. Precondition: p is not StateOwner here.
func (o *Owners) Settled(ctx context.Context, p journal.Partition) error {
	var want Register
	var rev uint64
	var t *term
	var due bool
	err := o.ask(ctx, func() {
		s := o.slots[p]
		if t = o.term; t == nil || s == nil || s.part.state != StateOwner {
			t = nil
			return
		}
		want, due = s.part.settled()
		rev = s.part.rev
	})
	if err != nil || t != nil && !due {
		return err
	}
	if t == nil {
		return lode.Errorf(lode.Precondition, "%s is not here", p)
	}
	at, ok, err := swap(ctx, o.registers, p.String(), encode(want), rev)
	if err != nil {
		return err
	}
	if !ok {
		return lode.Errorf(lode.Precondition, "%s has another owner", p)
	}
	o.inTerm(t, func() {
		s := o.slots[p]
		if o.learn(s, want, at) {
			o.see(s)
			o.publish(s)
		}
	})
	return nil
}

// Pinned says whether entries of this node's journal may be needed to load a
// partition, of whichever owner: then nothing may be trimmed. Settled, called
// by each owner after its first snapshot in an epoch, ends it.
func (o *Owners) Pinned() bool {
	pinned := true
	o.ask(o.ctx, func() { // closed: it is
		if pinned = o.term == nil; pinned {
			return
		}
		for _, s := range o.slots {
			if s.reg.Node == o.c.Self && s.part.state != StateOwner || s.reg.needs(o.c.Self) {
				pinned = true
				return
			}
		}
	})
	return pinned
}
