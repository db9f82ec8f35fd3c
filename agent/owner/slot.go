package owner

import (
	"context"
	"sync/atomic"
	"time"

	"lode"
	"lode/agent/journal"
	"lode/bus"
)

// retryPause is before something that failed and must be done is tried again;
// where it fails again and again, up to mostPause.
const (
	retryPause = 250 * time.Millisecond
	mostPause  = 5 * time.Second
)

// slot is one partition as the loop knows it: what its register is, and how far
// this node has come with it.
type slot struct {
	id      journal.Partition
	part    part
	reg     Register // as it was last known
	rev     uint64   // 0: nobody has ever owned it, as far as is known
	loaded  Loaded
	shown   *atomic.Pointer[Owner]
	changed chan struct{} // closed at the next change; nil: nobody waits
	moving  chan error    // who asked for the move that is under way
}

func (o *Owners) slot(p journal.Partition) *slot {
	s := o.slots[p]
	if s == nil {
		s = &slot{id: p, shown: o.view.at(p)}
		o.slots[p] = s
	}
	return s
}

// moved answers who asked for a move.
func (s *slot) moved(err error) {
	if s.moving != nil {
		s.moving <- err
		s.moving = nil
	}
}

// publish shows what has changed.
func (o *Owners) publish(s *slot) {
	own := Owner{Node: s.reg.Node, Epoch: s.reg.Epoch, State: s.part.state}
	if was := s.shown.Load(); s.rev != 0 && (was == nil || *was != own) {
		s.shown.Store(&own)
	}
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// sawRegister takes a change of the table of registers.
func (o *Owners) sawRegister(c bus.Change) {
	if c.Op == bus.Synced {
		o.sawTable(0)
		return
	}
	p, ok := parsePartition(c.Key)
	if !ok || c.Op == bus.Deleted {
		return // what was deleted by hand is nobody's until the next start
	}
	var reg Register
	if err := decode(c.Entry, &reg); err != nil {
		o.c.Logger.Error("agents: who owns a partition cannot be read", "partition", p.String(), "err", err)
		return
	}
	s := o.slot(p)
	if o.learn(s, reg, c.Rev) {
		o.see(s)
		o.publish(s)
	}
}

// learn notes what a register is or was; false: that is old.
func (o *Owners) learn(s *slot, reg Register, rev uint64) bool {
	if rev <= s.rev {
		return false
	}
	s.reg, s.rev = reg, rev
	return true
}

// sawRecord takes a change of the table of nodes.
func (o *Owners) sawRecord(c bus.Change) {
	var rec NodeRecord
	n := lode.NodeID(c.Key)
	switch {
	case c.Op == bus.Synced:
		o.sawTable(1)
	case c.Op == bus.Deleted || decode(c.Entry, &rec) != nil || c.Rev <= o.known[n].rev:
	default:
		o.known[n] = record{rec, c.Rev}
		if n == o.c.Self {
			o.sawOwn(rec, c.Rev)
		}
	}
}

// see lets the machine have what is known of the register.
func (o *Owners) see(s *slot) {
	if held, ok := o.heldBefore(s, s.reg); ok && s.rev != 0 {
		o.do(s, s.part.see(o.term.self, s.reg, s.rev, held))
	}
}

// heldBefore says whether earlier terms of this node took the partition in the
// epoch of reg. Not ok: that is not known yet, or there is no term; see follows.
func (o *Owners) heldBefore(s *slot, reg Register) (held, ok bool) {
	t := o.term
	switch {
	case t == nil:
		return false, false
	case reg.Node != t.node || reg.Incarnation == t.inc:
		return false, true
	case reg.Settled:
		return true, true
	case t.held == nil:
		o.scanOwn(t)
		return false, false
	}
	return t.held[s.id] == reg.Epoch, true
}

// scanOwn reads what epochs this node's journal has of earlier terms.
func (o *Owners) scanOwn(t *term) {
	if t.scanning {
		return
	}
	t.scanning = true
	o.work.Go(func() {
		var d time.Duration
		for {
			held, err := scan(t.ctx, o.c.Bus, t.node, t.opened)
			if err == nil {
				o.inTerm(t, func() {
					t.held = held
					for _, s := range o.slots {
						o.see(s)
						o.publish(s)
					}
				})
				return
			}
			if t.ctx.Err() == nil {
				o.c.Logger.Error("agents: the journal of this node cannot be read", "err", err)
			}
			if !pause(t.ctx, &d) {
				return
			}
		}
	})
}

// scan reads the newest epoch of each partition that a node's journal holds
// before cut. A take or a snapshot of an epoch says so; who trims a journal
// keeps the newer of the two for each partition that the node owns.
func scan(ctx context.Context, b *bus.Bus, n lode.NodeID, cut uint64) (map[journal.Partition]uint64, error) {
	held := make(map[journal.Partition]uint64)
	err := b.ReadLog(ctx, JournalName(n), 0, cut, func(m bus.Message) error {
		for _, b := range m.Entries {
			if len(b) == 0 || journal.Op(b[0]) != journal.Take && journal.Op(b[0]) != journal.Snap {
				continue
			}
			e, err := journal.Decode(b)
			if err != nil {
				return err
			}
			held[e.Partition] = e.Epoch
		}
		return nil
	})
	return held, err
}

// do does what a machine wants, on the loop; what takes time goes on elsewhere
// and comes back as an event.
func (o *Owners) do(s *slot, a act) {
	t := o.term
	switch a {
	case actSwap:
		o.swapRegister(t, s)
	case actReread:
		o.reread(t, s)
	case actLoad:
		o.countWait(t, s)
		base := s.part.reg.Base.Journal
		t.toLoad[base] = append(t.toLoad[base], s)
	case actTake:
		epoch, reg := s.part.reg.Epoch, s.part.reg
		o.append(t, s, &journal.Entry{Op: journal.Take, Epoch: epoch, Partition: s.id, Base: reg.Base, Manifest: s.loaded.Manifest, Covers: s.loaded.Covers},
			func(uint64) act { return s.part.taken(epoch) })
	case actStart:
		o.c.Hooks.Start(s.id, s.part.reg.Epoch)
		o.renew()
	case actStop:
		o.stopPart(t, s, s.part.to)
	case actGive:
		o.append(t, s, &journal.Entry{Op: journal.Give, Epoch: s.part.reg.Epoch, Partition: s.id, To: s.part.to},
			func(pos uint64) act { return s.part.given(t.self, pos) })
	case actGone:
		o.c.Hooks.Gone(s.id, s.part.took, s.reg.Node)
		s.moved(nil)
	case actFenced:
		o.endTerm("another owns " + s.id.String())
		return
	default:
		return
	}
	o.publish(s)
}

// swapRegister swaps the register to what the machine wants.
func (o *Owners) swapRegister(t *term, s *slot) {
	want, rev := s.part.wanted(t.self, o.known[s.part.to].Incarnation), s.part.rev
	t.swapping++
	o.work.Go(func() {
		select {
		case o.swaps <- struct{}{}:
		case <-t.ctx.Done():
			return
		}
		at, ok, err := swap(t.ctx, o.registers, s.id.String(), encode(want), rev)
		<-o.swaps
		o.inTerm(t, func() {
			t.swapping--
			switch {
			case err != nil: // the term ends
			case ok:
				o.learn(s, want, at)
				o.do(s, s.part.swapped(at))
			default:
				o.do(s, s.part.lost())
			}
			o.publish(s)
		})
	})
}

// reread reads the register after a swap was lost.
func (o *Owners) reread(t *term, s *slot) {
	o.work.Go(func() {
		reg, rev, err := getRegister(t.ctx, o.registers, s.id.String())
		o.inTerm(t, func() {
			if err != nil {
				o.c.Logger.Error("agents: who owns a partition cannot be read", "partition", s.id.String(), "err", err)
				return
			}
			o.learn(s, reg, rev)
			if held, ok := o.heldBefore(s, reg); ok && rev != 0 {
				o.do(s, s.part.again(t.self, reg, rev, held))
			}
			o.publish(s)
		})
	})
}

// append writes an entry; one that was refused and is not stored is written
// again after a while.
func (o *Owners) append(t *term, s *slot, e *journal.Entry, stored func(pos uint64) act) {
	o.c.Journal.Append(e, func(pos uint64, err error) {
		o.inTerm(t, func() {
			switch {
			case err == nil:
				o.do(s, stored(pos))
			case lode.KindOf(err) == lode.Conflict:
				o.endTerm("another has opened the journal")
			default:
				o.c.Logger.Warn("agents: an entry of the journal was refused", "partition", s.id.String(), "err", err)
				o.later(t, retryPause, func() { o.append(t, s, e, stored) })
			}
		})
	})
}

// countWait tells the machine when what its register asked to wait is over.
func (o *Owners) countWait(t *term, s *slot) {
	wait, epoch, from := s.part.reg.Wait, s.part.reg.Epoch, now()
	if wait == 0 {
		return
	}
	var look func()
	look = func() {
		if left := wait - (now() - from); left > 0 { // timers may stand still while the machine sleeps
			o.later(t, left, look)
			return
		}
		o.do(s, s.part.waited(epoch, true))
	}
	o.later(t, wait, look)
}

// stopPart ends turns and reads of a partition that is given away.
func (o *Owners) stopPart(t *term, s *slot, to lode.NodeID) {
	t.hooks.Add(1)
	o.work.Go(func() {
		defer t.hooks.Done()
		if w, ok := o.c.Hooks.(Warmer); ok {
			w.Warm(t.ctx, s.id, to)
		}
		err := o.c.Hooks.Stop(t.ctx, s.id)
		o.inTerm(t, func() {
			if err != nil {
				s.moved(err)
			}
			o.do(s, s.part.stopped(err == nil))
			o.publish(s)
		})
	})
}

// startLoads begins to load what waits for it: all partitions whose data is in
// the same journal in one go, once no more of them are being swapped.
func (o *Owners) startLoads() {
	t := o.term
	if t == nil || t.swapping > 0 {
		return
	}
	for base, slots := range t.toLoad {
		if !t.loading[base] {
			delete(t.toLoad, base)
			o.load(t, base, slots)
		}
	}
}

func (o *Owners) load(t *term, base lode.NodeID, slots []*slot) {
	claims := make([]Claim, len(slots))
	for i, s := range slots {
		claims[i] = Claim{Partition: s.id, Epoch: s.part.reg.Epoch, Base: s.part.reg.Base}
	}
	t.loading[base] = true
	t.hooks.Add(1)
	o.work.Go(func() {
		defer t.hooks.Done()
		got, err := o.c.Hooks.Load(t.ctx, claims)
		if err == nil && len(got) != len(claims) {
			err = lode.Errorf(lode.Internal, "%d partitions were loaded, not %d", len(got), len(claims))
		}
		o.inTerm(t, func() {
			if err != nil {
				o.c.Logger.Error("agents: partitions cannot be loaded", "journal", base, "partitions", len(claims), "err", err)
				wait := min(retryPause<<min(t.failed[base], 8), mostPause)
				t.failed[base]++
				o.later(t, wait, func() {
					t.loading[base] = false
					t.toLoad[base] = append(t.toLoad[base], slots...)
				})
				return
			}
			t.loading[base] = false
			delete(t.failed, base)
			for i, s := range slots {
				s.loaded = got[i]
				o.do(s, s.part.loaded(claims[i].Epoch))
			}
		})
	})
}
