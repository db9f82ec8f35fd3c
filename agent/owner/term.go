package owner

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"sync"
	"time"

	"lode"
	"lode/agent/journal"
	"lode/bus"
)

// term is the time between two openings of this node's journal, by whoever:
//
//	opening -(journal opened, record swapped)-> on -(journal opened by another)-> over, and the next one opens
type term struct {
	self
	ctx    context.Context
	cancel context.CancelFunc
	hooks  sync.WaitGroup // calls of Load and Stop
	log    *bus.Log

	rec       NodeRecord // of this node, as it was last swapped
	rev       uint64
	renewing  bool
	sent      time.Duration // when the last renewal was
	suspected time.Duration // since when the record says that this node is being taken over; 0: it does not

	held     map[journal.Partition]uint64 // epochs that the journal has of earlier terms; nil: not read yet
	scanning bool
	swapping int // registers that are being swapped
	toLoad   map[lode.NodeID][]*slot
	loading  map[lode.NodeID]bool
	failed   map[lode.NodeID]int  // loads of a journal in a row
	takes    map[lode.NodeID]bool // nodes that are being taken over here
}

// newTerm opens the journal and makes the term known, in another goroutine; the
// term is there when the loop has it.
func (o *Owners) newTerm() {
	t := &term{self: self{node: o.c.Self}, toLoad: make(map[lode.NodeID][]*slot), loading: make(map[lode.NodeID]bool), failed: make(map[lode.NodeID]int), takes: make(map[lode.NodeID]bool)}
	t.ctx, t.cancel = context.WithCancel(o.ctx)
	o.work.Go(func() {
		var d time.Duration
		for {
			err := o.open(t)
			if err == nil {
				o.post(func() { o.beginTerm(t) })
				return
			}
			o.c.Logger.Warn("agents: the journal of this node cannot be opened", "err", err)
			if !pause(t.ctx, &d) {
				return
			}
		}
	})
}

// open ends the former self of this node, then says so in its record. The
// record comes second: whoever finds it changed knows that the journal was.
func (o *Owners) open(t *term) (err error) {
	var id [16]byte
	rand.Read(id[:]) // never fails
	t.inc = hex.EncodeToString(id[:])
	if t.log, err = o.c.Bus.OpenLog(t.ctx, JournalName(t.node)); err != nil {
		return err
	}
	t.opened = t.log.Opened()
	t.rec = NodeRecord{Incarnation: t.inc, State: NodeUp}
	for ok := false; !ok; {
		_, rev, err := getRecord(t.ctx, o.records, t.node)
		if err != nil && lode.KindOf(err) != lode.Damaged {
			return err
		}
		if t.rev, ok, err = swap(t.ctx, o.records, string(t.node), encode(t.rec), rev); err != nil {
			return err
		}
	}
	return nil
}

// beginTerm takes back what earlier terms of this node owned, and what was
// given to it.
func (o *Owners) beginTerm(t *term) {
	if o.closing {
		t.cancel()
		return
	}
	o.term = t
	o.inc.Store(&t.inc)
	o.c.Journal.Begin(t.log, t.inc)
	for _, s := range o.slots {
		o.see(s)
	}
	select {
	case <-o.begun:
	default:
		close(o.begun)
	}
}

// endTerm closes all partitions, and has the next term begin unless the owners
// are closing.
func (o *Owners) endTerm(why string) {
	t := o.term
	if t == nil {
		return
	}
	o.term, o.former = nil, t.self
	o.lease.Store(0)
	t.cancel()
	for _, s := range o.slots {
		s.part = part{}
		s.moved(lode.Errorf(lode.Unavailable, "the node began a new term while %s was being given away", s.id))
		o.publish(s)
	}
	o.c.Logger.Info("agents: a term of this node has ended", "why", why)
	o.work.Go(func() {
		o.c.Hooks.Ended()
		t.hooks.Wait()
		o.post(func() {
			if !o.closing {
				o.newTerm()
			}
		})
	})
}

// Fenced says that a write of the journal was refused because another has
// opened it. The term that incarnation names ends, if it is the present one.
func (o *Owners) Fenced(incarnation string) {
	o.post(func() {
		if o.term != nil && o.term.inc == incarnation {
			o.endTerm("another has opened the journal")
		}
	})
}

// Incarnation names the present term, or the last one.
func (o *Owners) Incarnation() string { return *o.inc.Load() }

// LeaseValid says whether a read that was made before this call may be answered
// now, without a write: nobody can have begun to write what this node owns. The
// answer must leave at once.
func (o *Owners) LeaseValid() bool {
	until := o.lease.Load()
	if until == 0 {
		return false
	}
	if until == forever && o.c.Alone() {
		return true
	}
	at := now()
	return at >= 0 && until != forever && int64(at) < until
}

// forever is the lease of a node that is alone, while it is.
const forever = -1

// renew keeps the lease while there is something to read here.
func (o *Owners) renew() {
	t := o.term
	if t == nil || t.renewing || !o.holding() {
		return
	}
	if o.c.Alone() {
		o.lease.Store(forever)
		return
	}
	at := now()
	if at < 0 || t.suspected > 0 || t.sent > 0 && at-t.sent < o.c.LeaseTTL/4 {
		return
	}
	t.renewing, t.sent = true, at
	rec := t.rec
	rec.Count++
	rev := t.rev
	o.work.Go(func() {
		ctx, cancel := context.WithTimeout(t.ctx, o.c.LeaseTTL)
		defer cancel()
		rev, err := o.records.Update(ctx, string(t.node), encode(rec), rev)
		var is NodeRecord
		lost := lode.KindOf(err) == lode.Precondition
		if lost {
			is, rev, err = getRecord(ctx, o.records, t.node)
		}
		o.inTerm(t, func() {
			t.renewing = false
			switch {
			case err != nil:
			case lost:
				o.sawOwn(is, rev)
			default:
				t.rec, t.rev = rec, max(t.rev, rev)
				o.lease.Store(int64(at) + int64(float64(o.c.LeaseTTL)*(1-clockRate)))
			}
		})
	})
}

// sawOwn takes this node's record as somebody has left it.
func (o *Owners) sawOwn(rec NodeRecord, rev uint64) {
	t := o.term
	if t == nil || rev <= t.rev {
		return
	}
	switch {
	case rec.Incarnation != t.inc:
		o.endTerm("the node has begun another term elsewhere")
	case rec.State != NodeUp:
		t.rev, t.rec = rev, rec
		if t.suspected == 0 {
			t.suspected = max(now(), 1)
			o.c.Logger.Warn("agents: another node takes this one to be dead")
		}
	default: // a renewal whose answer was lost: it extends nothing
		t.rev, t.rec = rev, rec
	}
}

// holding reports whether a partition is, or is about to be, this node's.
func (o *Owners) holding() bool {
	for _, s := range o.slots {
		if s.part.state >= StateTaking {
			return true
		}
	}
	return false
}

// tick looks at the others and at the lease.
func (o *Owners) tick() {
	at := now()
	late := at-o.ticked > 4*o.interval()
	o.ticked = at
	o.renew()
	o.suspect(late)
	// A suspicion that nobody follows up would leave the node without a lease
	// for ever; a new term has one. It is not at once: where the other one
	// goes on, the partitions move, and the two do not end each other in turn.
	if t := o.term; t != nil && t.suspected > 0 && at-t.suspected > 2*o.c.LeaseTTL {
		o.endTerm("nobody has taken over, and the lease cannot be renewed")
	}
}
