package job

import (
	"encoding/binary"
	"encoding/json"
	"time"

	"lode"
	"lode/data/reduce"
)

// Group is a piece of a job that one node works on: an aligned block of the
// merge tree, the shards from Index<<Level to (Index+1)<<Level or to the end.
// Merging inside it follows the tree, so that who works on what changes no bit
// of the result.
type Group struct {
	Job       string         `json:"job"`
	Namespace lode.Namespace `json:"namespace"`
	Dataset   lode.Name      `json:"dataset"`
	Version   int            `json:"version"`
	Records   lode.Records   `json:"records"`
	What      What           `json:"what"`
	Reduce    string         `json:"reduce"`
	Retries   int            `json:"retries"` // of one shard, on this node; below 1 none
	Attempt   time.Duration  `json:"attempt"` // bounds one attempt at one shard, in nanoseconds
	Total     int            `json:"total"`   // shards of the job
	Level     int            `json:"level"`
	Index     int            `json:"index"`
	Shards    []lode.Shard   `json:"shards"`
	// Parallel bounds the shards worked on at once; 0: the node's cores.
	Parallel int `json:"parallel,omitempty"`
	// Tried is how often the group was given to a node before.
	Tried int `json:"tried,omitempty"`
	// Heard is called with how far the group is, some times a second. It must
	// not block, and stays with whoever made the group.
	Heard func(Progress) `json:"-"`

	wire []byte // what Encode made
}

// maxTotal bounds the shards of a job, and so the tree's levels.
const maxTotal, maxLevels = 1 << 30, 30

// First is the number of the group's first shard in the job.
func (g *Group) First() int { return g.Index << g.Level }

// Encode writes the group for another node: JSON, with the names above; times
// in nanoseconds, digests in hexadecimal. The group must not change after it.
func (g *Group) Encode() ([]byte, error) {
	if g.wire != nil {
		return g.wire, nil
	}
	b, err := json.Marshal(g)
	if err != nil {
		return nil, lode.Errorf(lode.Internal, "write a group of job %s: %w", g.Job, err)
	}
	g.wire = b
	return b, nil
}

// DecodeGroup reads what Encode wrote; Invalid for other bytes.
func DecodeGroup(b []byte) (*Group, error) {
	g := new(Group)
	if err := json.Unmarshal(b, g); err != nil {
		return nil, lode.Errorf(lode.Invalid, "a group of shards: %w", err)
	}
	return g, g.check()
}

// check reports a group that is no block of a tree.
func (g *Group) check() error {
	if g.Total < 1 || g.Total > maxTotal || g.Level < 0 || g.Level > maxLevels || g.Index < 0 || g.Index > (g.Total-1)>>g.Level {
		return lode.Errorf(lode.Invalid, "a group at level %d, place %d of %d shards is none", g.Level, g.Index, g.Total)
	}
	if n := (place{g.Level, g.Index}).shards(g.Total); len(g.Shards) != n {
		return lode.Errorf(lode.Invalid, "a group of %d shards names %d", n, len(g.Shards))
	}
	if g.Attempt <= 0 || g.Parallel < 0 || g.Tried < 0 {
		return lode.Errorf(lode.Invalid, "a group with %s for an attempt, %d shards at once, tried %d times", g.Attempt, g.Parallel, g.Tried)
	}
	for _, s := range g.Shards {
		if s.Bytes < 0 {
			return lode.Errorf(lode.Invalid, "a shard of %d bytes", s.Bytes)
		}
	}
	return nil
}

// Progress is how far a group is on one node, counted from its beginning
// there. Bytes are of shards.
type Progress struct {
	Shards  int           `json:"shards"` // done
	Running int           `json:"running,omitempty"`
	Retried int           `json:"retried,omitempty"` // attempts after the first of a shard
	Bytes   int64         `json:"bytes"`             // of the shards that are done
	Read    int64         `json:"read"`              // of those, in shards that were on the node before
	Fetched int64         `json:"fetched"`           // that the node got over the network, whatever became of the attempt
	Wasted  int64         `json:"wasted"`            // of attempts that failed
	CPU     time.Duration `json:"cpu"`               // of guests, failed attempts included
	Wall    time.Duration `json:"wall"`              // since the first shard got a core; 0 before
}

// Done is what became of a group on one node.
type Done struct {
	Progress
	// Error is why it failed; nil for one that ended well.
	Error *lode.Error `json:"error,omitempty"`
	// ContentType goes with State.
	ContentType string `json:"content_type,omitempty"`
	// State is the merged partial result, packed; see package reduce. It is nil
	// where the group was worked on in this process.
	State []byte `json:"-"`

	state reduce.State // the same, where State is nil
}

// Encode writes what goes to another node, to the byte:
//
//	uint32, little endian: length of the head
//	head: JSON of Done, without State
//	State, to the end
//
// in two pieces, so that State is not copied.
func (d *Done) Encode() (head, state []byte, err error) {
	if state, err = d.pack(); err != nil {
		return nil, nil, err
	}
	b, err := json.Marshal(d)
	if err != nil {
		return nil, nil, lode.Errorf(lode.Internal, "write a partial result: %w", err)
	}
	head = binary.LittleEndian.AppendUint32(make([]byte, 0, 4+len(b)), uint32(len(b)))
	return append(head, b...), state, nil
}

// pack fills State and ContentType and gives State.
func (d *Done) pack() ([]byte, error) {
	if d.State != nil || d.state == nil {
		return d.State, nil
	}
	state, kind, err := d.state.Pack()
	if err != nil {
		return nil, err
	}
	d.State, d.ContentType, d.state = state, kind, nil
	return state, nil
}

// DecodeDone reads what Encode wrote, in one piece; Invalid for other bytes. b
// is kept.
func DecodeDone(b []byte) (*Done, error) {
	if len(b) < 4 || uint64(binary.LittleEndian.Uint32(b)) > uint64(len(b)-4) {
		return nil, lode.Errorf(lode.Invalid, "a group's answer of %d bytes breaks off", len(b))
	}
	end := 4 + int(binary.LittleEndian.Uint32(b))
	d := new(Done)
	if err := json.Unmarshal(b[4:end], d); err != nil {
		return nil, lode.Errorf(lode.Invalid, "a group's answer: %w", err)
	}
	if !d.Progress.valid() {
		return nil, lode.Errorf(lode.Invalid, "a group's answer counts below zero")
	}
	d.State = b[end:len(b):len(b)]
	return d, nil
}

// valid reports whether nothing is below zero.
func (p *Progress) valid() bool {
	return min(p.Shards, p.Running, p.Retried) >= 0 && min(p.Bytes, p.Read, p.Fetched, p.Wasted) >= 0 && min(p.CPU, p.Wall) >= 0
}
