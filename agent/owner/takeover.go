package owner

import (
	"time"

	"lode"
	"lode/agent/journal"
)

// takeover is the way from a node that seems dead to registers that name
// others: a machine without clock or I/O, like part. The order is what makes it
// safe:
//
//	suspecting  the node's record is swapped to suspect: it cannot renew its lease any more
//	reading     the registers that name it are read, after that and before the seal
//	checking    its record is still that of the suspicion, so each of those registers is of a term that it covers
//	sealing     its journal is opened: nothing of that term is stored after the cut
//	scanning    which of the epochs had begun there before the cut
//	swapping    each register is swapped, if it is still as it was read
//
// Whatever does not go on is begun again from the front.
type takeover struct {
	node    lode.NodeID
	stage   takeStage
	rec     NodeRecord // as it was before the suspicion
	rev     uint64     // of the record
	named   []named    // never changed in place
	cut     uint64
	waitFor bool // the node may have a lease
}

// named is a register that names the node.
type named struct {
	partition journal.Partition
	reg       Register
	rev       uint64
}

type takeStage uint8

const (
	takeSuspecting takeStage = iota
	takeReading
	takeChecking
	takeSealing
	takeScanning
	takeSwapping
	takeOver // done, or to be begun again
)

// begin takes the node's record. It says whether the record is to be swapped to
// suspect; if not, the node has ended by itself and the registers are read.
func (t *takeover) begin(rec NodeRecord, rev uint64) (swap bool) {
	t.rec, t.rev = rec, rev
	if rec.State == NodeDown {
		t.stage = takeReading
		return false
	}
	t.waitFor = rec.Count > 0
	return true
}

// suspect is the record that takes the lease away.
func (t *takeover) suspect() NodeRecord {
	return NodeRecord{Incarnation: t.rec.Incarnation, Count: t.rec.Count, State: NodeSuspect}
}

// suspected says that the record is swapped.
func (t *takeover) suspected(rev uint64) { t.rev, t.stage = rev, takeReading }

// read takes all registers. False: none names the node.
func (t *takeover) read(all []named) bool {
	for _, n := range all {
		if n.reg.Node == t.node {
			t.named = append(t.named[:len(t.named):len(t.named)], n)
		}
	}
	if t.stage = takeChecking; len(t.named) == 0 {
		t.stage = takeOver
	}
	return t.stage != takeOver
}

// checked takes the revision of the node's record, read after the registers.
// False: the node has begun a new term, and takes back what it had.
func (t *takeover) checked(rev uint64) bool {
	if t.stage = takeSealing; rev != t.rev {
		t.stage = takeOver
	}
	return t.stage != takeOver
}

// sealed says that the journal was opened at cut.
func (t *takeover) sealed(cut uint64) { t.cut, t.stage = cut, takeScanning }

// scanned says that what the journal holds before the cut is known.
func (t *takeover) scanned() { t.stage = takeSwapping }

// register is what n's register becomes when to gets the partition. held says
// whether the journal has a take or a snapshot of n's epoch before the cut.
// wait is for how long the node may still read.
func (t *takeover) register(n named, held bool, to lode.NodeID, inc string, wait time.Duration) Register {
	r := Register{Epoch: n.reg.Epoch + 1, Node: to, Incarnation: inc, Base: n.reg.Base, Pins: n.reg.pins(held)}
	if held {
		r.Base = journal.Base{Journal: t.node, Cut: t.cut, Epoch: n.reg.Epoch}
	}
	if t.waitFor {
		r.Wait = wait
	}
	if !n.reg.Settled {
		r.Wait = max(r.Wait, n.reg.Wait)
	}
	return r
}
