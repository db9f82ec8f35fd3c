package owner

import (
	"context"

	"lode"
	"lode/agent/journal"
)

// Owners is this node's part in the ownership of partitions. All methods may be
// called at the same time.
type Owners struct{}

var errSoon = lode.Errorf(lode.Unavailable, "agents have no owners yet")

// Open begins a term: it ends the former self of this node, takes back what
// that owned, and from then on watches the others. It returns when the term has
// begun; the partitions follow. ctx bounds Open alone.
func Open(ctx context.Context, c Config) (*Owners, error) { return nil, errSoon }

// Lookup says who owns p, by what this node has heard: no I/O and no lock.
// False: nobody has ever owned it.
func (o *Owners) Lookup(p journal.Partition) (Owner, bool) { return Owner{}, false }

// Ensure returns the node that has p, after waiting until there is one that can
// be asked: this node, then p is StateOwner here; or another one that is alive.
// Where nobody has it, it is claimed here if this node is the first for it, and
// else the first is named: its own Ensure claims it. ctx bounds the wait.
func (o *Owners) Ensure(ctx context.Context, p journal.Partition) (lode.NodeID, error) {
	return "", errSoon
}

// LeaseValid says whether a read that was made before this call may be answered
// now, without a write: nobody can have begun to write what this node owns. The
// answer must leave at once.
func (o *Owners) LeaseValid() bool { return false }

// Move gives p to another node and returns when the register names it.
func (o *Owners) Move(ctx context.Context, p journal.Partition, to lode.NodeID) error { return errSoon }

// Drain gives every partition to other nodes, and takes no more. Where no other
// node is eligible nothing is given.
func (o *Owners) Drain(ctx context.Context) error { return errSoon }

// Owned lists the partitions that are StateOwner here.
func (o *Owners) Owned() []journal.Partition { return nil }

// Incarnation names the present term.
func (o *Owners) Incarnation() string { return "" }

// Fenced says that a write of the journal was refused because another has
// opened it. The term that incarnation names ends, if it is the present one.
func (o *Owners) Fenced(incarnation string) {}

// Settled says that this node's own journal and snapshots hold all of p, so
// that nobody needs its base any more. p is StateOwner here.
func (o *Owners) Settled(ctx context.Context, p journal.Partition) error { return errSoon }

// Pinned says whether somebody may still need entries of this node's journal
// for a partition that this node does not own: then nothing may be trimmed.
func (o *Owners) Pinned() bool { return true }

// Close ends the term without giving anything away: registers go on naming this
// node, and its next self takes them back. It may be called again.
func (o *Owners) Close(ctx context.Context) error { return nil }
