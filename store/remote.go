package store

import (
	"context"
	"io"
	"iter"
	"time"

	"lode"
)

// NodeState is what the cluster knows of one of its nodes.
type NodeState struct {
	Node  lode.NodeID
	Alive bool   // answers; a node always takes itself for alive
	Zone  string // nodes of one zone fail together; "" is a zone like any other
	Free  int64  // bytes free on the disk of its replicas; 0 where that is not known

	// Gone is a node that has been dead for longer than the cluster waits:
	// what it held is made again elsewhere. One that is neither alive nor gone
	// is waited for.
	Gone bool
	// Leaving is a node that is being drained: it still serves what it holds,
	// takes nothing new, and its own repair moves what it holds away.
	Leaving bool
}

// tight reports whether the node is known to have no room for so many bytes.
func (n NodeState) tight(size int64) bool { return n.Free > 0 && n.Free < size+size/8 }

// Held says what a node has of a blob.
type Held uint8

// From nothing to the most. The values are those on the wire.
const (
	HeldNothing Held = 0
	HeldDeleted Held = 1 // nothing, and it knows that the blob was deleted
	HeldCopy    Held = 2 // a copy in its cache, gone when the room is needed
	HeldReplica Held = 3 // one of the durable copies
)

// Query asks for a blob, of which the asker has a replica put at Modified, or
// none (zero). HeldDeleted answers for a deletion that covers that time.
type Query struct {
	Digest   lode.Digest
	Modified time.Time
}

// PutAs says how a blob comes to a node.
type PutAs struct {
	// Modified becomes the blob's, unless the node has a younger one.
	Modified time.Time
	// Repair is a copy of what was acknowledged before: the node refuses it
	// with Gone if the blob was deleted since, and with Conflict while another
	// node sends it the same. Without Repair the put is newer than any deletion
	// that the node knows of, and Modified is moved behind it.
	Repair bool
}

// Remote is the blobs that one other node holds. Implementations are safe for
// concurrent use; every method ends with its context.
//
// Errors are *lode.Error: NotFound for a blob that is not there, Full for a
// node without room, Damaged for bytes that do not match their name,
// Unavailable for a node that does not answer.
type Remote interface {
	// Put makes the blob durable there, as one of its replicas, verified
	// against its name before it returns. A blob that is there already, whole,
	// moves no bytes. src may be read more than once.
	Put(ctx context.Context, d lode.Digest, src *io.SectionReader, as PutAs) (Info, error)
	// Get writes the blob to w, a replica or a cached copy, and does not check
	// it. After an error w may have got a part.
	Get(ctx context.Context, d lode.Digest, w io.Writer) error
	// Have says what the node has of each blob, in the order asked. With verify a replica counts
	// only if its checksum holds, and the node promises to keep it for
	// KeepPromise.
	Have(ctx context.Context, qs []Query, verify bool) ([]Held, error)
	// Stat describes the node's replica.
	Stat(ctx context.Context, d lode.Digest) (Info, error)
	// Delete removes the replica if it is not younger than before (zero: of
	// whatever age) and a cached copy, remembers that so that the blob is not
	// brought back, and reports whether a replica was removed. Conflict for a
	// blob that is open there: it goes when it is closed.
	Delete(ctx context.Context, d lode.Digest, before time.Time) (bool, error)
	// List yields the node's replicas, in no order. The first error ends it.
	List(ctx context.Context) iter.Seq2[Info, error]
	// Bad tells the node that what it gave did not match its name: it looks,
	// moves a bad copy away and fetches a good one.
	Bad(ctx context.Context, d lode.Digest) error
}

// KeepPromise is how long a node keeps a replica of which it told another node,
// with verify, that it has it. Two nodes that each hold more than is wanted
// cannot both drop theirs on each other's word.
const KeepPromise = 10 * time.Minute

type copiesKey struct{}

// WithCopies makes puts under ctx keep n copies of each blob on the nodes of a
// cluster; 0 is the home's default.
func WithCopies(ctx context.Context, n int) context.Context {
	return context.WithValue(ctx, copiesKey{}, n)
}

func copiesOf(ctx context.Context, otherwise int) int {
	if n, _ := ctx.Value(copiesKey{}).(int); n > 0 {
		return n
	}
	return otherwise
}

// Arrange orders nodes by how much d belongs on each: rendezvous order, but no
// zone comes a second time before each had its turn. The first k are where k
// copies belong; everybody who knows the same nodes gives the same answer.
func Arrange(d lode.Digest, nodes []NodeState) []lode.NodeID {
	zones := make(map[lode.NodeID]string, len(nodes))
	ids, several := make([]lode.NodeID, len(nodes)), false
	for i, n := range nodes {
		ids[i], zones[n.Node] = n.Node, n.Zone
		several = several || n.Zone != nodes[0].Zone
	}
	order := lode.Rendezvous(d[:], ids)
	if !several {
		return order
	}
	out := make([]lode.NodeID, 0, len(order))
	for len(order) > 0 {
		var later []lode.NodeID
		used := map[string]bool{}
		for _, n := range order {
			if used[zones[n]] {
				later = append(later, n)
				continue
			}
			used[zones[n]] = true
			out = append(out, n)
		}
		order = later
	}
	return out
}
