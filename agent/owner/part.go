package owner

import (
	"lode"
	"lode/agent/journal"
)

// part is one partition on one node, in one term: a machine without clock or
// I/O. Each event is a method that returns what is to be done next. It is a
// value: a copy is another machine in the same state.
type part struct {
	state State
	stage stage
	reg   Register // that names this term: seen, or being swapped in
	rev   uint64   // of the register when it was last known; a higher one is news
	took  uint64   // highest epoch that was taken in this term; it is never taken again
	over  bool     // the wait of reg is over
	to    lode.NodeID
}

// stage is how far a state has come.
type stage uint8

const (
	idle     stage = iota
	loading        // taking: until the data is here
	writing        // taking: until the take entry is stored; giving: the give entry
	waiting        // taking: until nobody else can be reading
	stopping       // giving: until turns and reads have ended
	handing        // giving: until the register is swapped
)

// act is what a machine wants done.
type act uint8

const (
	actNone   act = iota
	actSwap       // swap the register from rev to p.wanted()
	actLoad       // load p.claim(), and from now on count p.reg.Wait
	actTake       // append the take entry
	actStart      // the partition is this node's
	actStop       // end turns and reads
	actGive       // append the give entry
	actGone       // it was given away
	actReread     // read the register and say what it is
	actFenced     // the register was swapped by another: the journal must have been opened by it
)

// self is who a machine works for.
type self struct {
	node   lode.NodeID
	inc    string
	opened uint64 // position where this term began in the node's journal
}

// see takes a register as it is or was. held says whether this node's journal
// has, before this term, a take or a snapshot of the partition in reg.Epoch;
// it is asked only where an earlier term of this node is named.
func (p *part) see(me self, reg Register, rev uint64, held bool) act {
	if rev <= p.rev {
		return actNone
	}
	mine := reg.Node == me.node && reg.Incarnation == me.inc
	if p.state == StateGiving && p.stage == handing && !(mine && reg.Epoch == p.reg.Epoch) {
		p.rev = rev
		p.close() // the swap came through, or somebody was faster
		return actGone
	}
	if p.state > StateClaiming {
		p.rev = rev
		if mine && reg.Epoch == p.reg.Epoch {
			p.reg = reg // settled
			return actNone
		}
		return actFenced
	}
	switch {
	case mine && reg.Epoch > p.took:
		p.rev = rev
		return p.adopt(reg)
	case p.state == StateClaiming:
		return actNone // the swap will tell
	case reg.Node != me.node || mine:
		p.rev = rev
		return actNone
	}
	p.rev = rev
	p.state = StateClaiming
	base := reg.Base
	if held {
		base = journal.Base{Journal: me.node, Cut: me.opened, Epoch: reg.Epoch}
	}
	p.reg = Register{Epoch: reg.Epoch + 1, Node: me.node, Incarnation: me.inc, Base: base, Pins: reg.pins(held)}
	if !reg.Settled {
		p.reg.Wait = reg.Wait
	}
	return actSwap
}

// claim is for a partition that nobody has ever owned.
func (p *part) claim(me self) act {
	if p.state != StateClosed || p.rev != 0 {
		return actNone
	}
	p.state = StateClaiming
	p.reg = Register{Epoch: 1, Node: me.node, Incarnation: me.inc}
	return actSwap
}

// adopt begins to take the partition as reg says.
func (p *part) adopt(reg Register) act {
	p.reg, p.over = reg, reg.Wait == 0
	p.state, p.stage = StateTaking, loading
	return actLoad
}

// wanted is the register of a swap.
func (p *part) wanted(me self, inc string) Register {
	if p.state != StateGiving {
		return p.reg
	}
	return Register{Epoch: p.reg.Epoch + 1, Node: p.to, Incarnation: inc, Base: p.reg.Base, Pins: p.reg.Pins}
}

// swapped says that the register is as wanted, at rev.
func (p *part) swapped(rev uint64) act {
	switch {
	case p.state == StateClaiming:
		p.rev = max(p.rev, rev)
		return p.adopt(p.reg)
	case p.state == StateGiving && p.stage == handing:
		p.rev = max(p.rev, rev)
		p.close()
		return actGone
	}
	return actNone
}

// lost says that the register was not as expected: it is read again, and said
// to again.
func (p *part) lost() act {
	switch {
	case p.state == StateClaiming:
		p.close()
		p.rev = 0 // whatever is read is news
		return actReread
	case p.state == StateGiving && p.stage == handing:
		return actReread
	}
	return actNone
}

// again is see for what was read after lost. Only a settled register of this
// very epoch may be swapped once more.
func (p *part) again(me self, reg Register, rev uint64, held bool) act {
	if p.state == StateGiving && p.stage == handing {
		p.rev = max(p.rev, rev)
		if reg.Node == me.node && reg.Incarnation == me.inc && reg.Epoch == p.reg.Epoch {
			return actSwap
		}
		p.close()
		return actGone
	}
	return p.see(me, reg, rev, held)
}

// loaded says that the data is here.
func (p *part) loaded(epoch uint64) act {
	if p.state != StateTaking || p.stage != loading || p.reg.Epoch != epoch {
		return actNone
	}
	p.stage = writing
	return actTake
}

// taken says that the take entry is stored.
func (p *part) taken(epoch uint64) act {
	if p.state != StateTaking || p.stage != writing || p.reg.Epoch != epoch {
		return actNone
	}
	p.took = epoch
	p.stage = waiting
	return p.waited(epoch, p.over)
}

// waited says that the wait that the register asked for is over.
func (p *part) waited(epoch uint64, over bool) act {
	if p.state != StateTaking || p.reg.Epoch != epoch || !over {
		return actNone
	}
	p.over = true
	if p.stage != waiting {
		return actNone
	}
	p.state, p.stage = StateOwner, idle
	return actStart
}

// give begins to give the partition to another node.
func (p *part) give(to lode.NodeID) act {
	if p.state != StateOwner {
		return actNone
	}
	p.state, p.stage, p.to = StateGiving, stopping, to
	return actStop
}

// stopped says that turns and reads have ended, or that they could not be.
func (p *part) stopped(ok bool) act {
	switch {
	case p.state != StateGiving || p.stage != stopping:
		return actNone
	case !ok:
		p.state, p.stage = StateOwner, idle
		return actNone
	}
	p.stage = writing
	return actGive
}

// given says that the give entry is stored at pos. Entries of the same message
// are before it: the cut is behind.
func (p *part) given(me self, pos uint64) act {
	if p.state != StateGiving || p.stage != writing {
		return actNone
	}
	p.stage = handing
	p.reg.Pins = p.reg.pins(true)
	p.reg.Base = journal.Base{Journal: me.node, Cut: pos + 1, Epoch: p.reg.Epoch}
	return actSwap
}

// settled is the register that says that the base is not needed any more.
func (p *part) settled() (Register, bool) {
	r := p.reg
	r.Settled, r.Wait, r.Pins = true, 0, ""
	return r, p.state == StateOwner && !p.reg.Settled
}

// close ends what was under way. What was taken stays known.
func (p *part) close() {
	*p = part{rev: p.rev, took: p.took}
}
