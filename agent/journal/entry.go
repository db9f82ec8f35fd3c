// Package journal is what a node writes down of its agents: the entries, to
// the byte, and the loop that packs them into the messages of one log.
//
// It promises that an entry which was acknowledged is durable, that entries
// are in the order in which they were appended, and that a reader never takes
// bytes for an entry that are none. It knows nothing of what the entries mean;
// agent and agent/owner do.
package journal

import (
	"encoding/binary"
	"strconv"

	"lode"
)

// Partition is a part of the agents of one kind: the unit of ownership.
type Partition struct {
	Namespace lode.Namespace
	Kind      lode.Name
	N         int // 0 to the kind's number of partitions - 1
}

// String is ns/kind/n.
func (p Partition) String() string {
	return string(p.Namespace) + "/" + string(p.Kind) + "/" + strconv.Itoa(p.N)
}

// Op is what an entry does.
type Op byte

// The operations. Data of a partition and epoch is valid only between its Take
// and its Give, or the end of the writer's term, whichever comes first.
const (
	Take Op = 1 // the writer owns the partition from here on, in this epoch
	Turn Op = 2 // changes of an agent
	Snap Op = 3 // everything up to Covers is in the snapshot Manifest
	Give Op = 4 // the last entry of the epoch
	Note Op = 5 // changes of the partition that belong to no turn: acknowledgements, pruning
)

// Entry is one record of a journal. Its bytes, all integers little-endian:
//
//	0  1   op
//	1  8   epoch
//	9  var string namespace, string kind, uvarint n
//	   var by op:
//	       Take  Base: string journal, u64 cut, u64 epoch; 32 bytes manifest; u64 covers
//	       Snap  32 bytes manifest, u64 covers
//	       Turn  string agent, string id, string method, uvarint revision, changes
//	       Note  changes
//	       Give  string node to which it goes
//
// A string is a uvarint length and bytes. changes are a uvarint count, and for
// each: u8 Kind, string key, and for Set and Recall string value, for Cut string end.
type Entry struct {
	Op        Op
	Epoch     uint64
	Partition Partition

	Base     Base        // Take: where the data of the epoch before ends
	Manifest lode.Digest // Take, Snap: a snapshot; zero: none
	Covers   uint64      // Take, Snap: position in Base.Journal, or in this one, that the snapshot covers

	Agent    string // Turn: its key
	ID       string // Turn: of the turn
	Method   string // Turn
	Revision int    // Turn
	Changes  []Change

	To lode.NodeID // Give
}

// Base is where the data of a partition was when an epoch began: the entries of
// Epoch in the journal of a node, before the position Cut. The zero Base is a
// partition that never had an owner.
type Base struct {
	Journal lode.NodeID `json:"journal,omitempty"`
	Cut     uint64      `json:"cut,omitempty"`
	Epoch   uint64      `json:"epoch,omitempty"`
}

// ChangeKind is what becomes of a key.
type ChangeKind byte

// The kinds of changes.
const (
	Set    ChangeKind = 1
	Delete ChangeKind = 2
	Cut    ChangeKind = 3 // every key from Key to before Value
	// Recall sets a key that only who reads the journal needs: its writer does
	// not, as long as it is the writer. It is the last change of its entry.
	Recall ChangeKind = 4
)

// Change is a change of one key of a partition, or of a range of keys.
type Change struct {
	Kind  ChangeKind
	Key   []byte
	Value []byte // Set, Recall: the value; Cut: the end of the range
}

// Append appends the bytes of e.
func (e *Entry) Append(b []byte) []byte {
	b = append(b, byte(e.Op))
	b = binary.LittleEndian.AppendUint64(b, e.Epoch)
	b = AppendString(b, e.Partition.Namespace)
	b = AppendString(b, e.Partition.Kind)
	b = binary.AppendUvarint(b, uint64(e.Partition.N))
	switch e.Op {
	case Take:
		b = AppendString(b, e.Base.Journal)
		b = binary.LittleEndian.AppendUint64(b, e.Base.Cut)
		b = binary.LittleEndian.AppendUint64(b, e.Base.Epoch)
		fallthrough
	case Snap:
		b = append(b, e.Manifest[:]...)
		b = binary.LittleEndian.AppendUint64(b, e.Covers)
	case Turn:
		b = AppendString(b, e.Agent)
		b = AppendString(b, e.ID)
		b = AppendString(b, e.Method)
		b = binary.AppendUvarint(b, uint64(e.Revision))
		fallthrough
	case Note:
		b = binary.AppendUvarint(b, uint64(len(e.Changes)))
		for i := range e.Changes {
			c := &e.Changes[i]
			b = append(b, byte(c.Kind))
			b = AppendString(b, c.Key)
			if c.Kind != Delete {
				b = AppendString(b, c.Value)
			}
		}
	case Give:
		b = AppendString(b, e.To)
	}
	return b
}

// Decode reads what Append wrote. Keys and values are parts of b. Damaged: b is
// no entry.
func Decode(b []byte) (Entry, error) {
	r := Reader{B: b}
	e := Entry{Op: Op(r.Byte()), Epoch: r.U64()}
	e.Partition = Partition{lode.Namespace(r.Bytes()), lode.Name(r.Bytes()), r.Number()}
	switch e.Op {
	case Take:
		e.Base = Base{lode.NodeID(r.Bytes()), r.U64(), r.U64()}
		copy(e.Manifest[:], r.Take(uint64(len(e.Manifest))))
		e.Covers = r.U64()
	case Snap:
		copy(e.Manifest[:], r.Take(uint64(len(e.Manifest))))
		e.Covers = r.U64()
	case Turn:
		e.Agent, e.ID, e.Method, e.Revision = string(r.Bytes()), string(r.Bytes()), string(r.Bytes()), r.Number()
		e.Changes = readChanges(&r)
	case Note:
		e.Changes = readChanges(&r)
	case Give:
		e.To = lode.NodeID(r.Bytes())
	default:
		r.Bad = true
	}
	if !r.End() {
		return Entry{}, lode.Errorf(lode.Damaged, "%d bytes of a journal are no entry", len(b))
	}
	return e, nil
}

func readChanges(r *Reader) []Change {
	n := r.Number()
	if n > len(r.B) {
		r.Bad = true
		return nil
	}
	out := make([]Change, 0, n)
	for range n {
		c := Change{Kind: ChangeKind(r.Byte()), Key: r.Bytes()}
		if c.Kind < Set || c.Kind > Recall {
			r.Bad = true
		}
		if c.Kind != Delete {
			c.Value = r.Bytes()
		}
		if r.Bad {
			return nil
		}
		out = append(out, c)
	}
	return out
}
