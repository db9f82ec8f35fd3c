package state

import (
	"encoding/binary"
	"slices"

	"github.com/zeebo/blake3"

	"lode"
	"lode/agent/journal"
)

// A segment is a blob of a run of keys in order, and their values:
//
//	u8 1, then for each key: uvarint length, key, uvarint length, value
//
// It ends where its last value ends. Segments can be joined: the rows of one,
// the rows of the next.
const segmentVersion = 1

// The sizes of segments. A longer run is cut into pieces of about target
// bytes; one shorter than small is joined to a neighbour if both together are
// no longer than target.
const (
	segmentTarget = 512 << 10
	segmentMost   = 1 << 20
	segmentSmall  = 128 << 10
)

// rows is a segment that is being made.
type rows struct {
	body []byte // with the version
	ends []int  // of rows in body
}

func (r *rows) add(k, v []byte) {
	if len(r.body) == 0 {
		r.body = append(r.body, segmentVersion)
	}
	r.body = binary.AppendUvarint(r.body, uint64(len(k)))
	r.body = append(r.body, k...)
	r.body = binary.AppendUvarint(r.body, uint64(len(v)))
	r.body = append(r.body, v...)
	r.ends = append(r.ends, len(r.body))
}

// cut takes the first rows off, as many as make target bytes.
func (r *rows) cut() rows {
	n := slices.IndexFunc(r.ends, func(end int) bool { return end >= segmentTarget }) + 1
	if n == 0 {
		n = len(r.ends)
	}
	at := r.ends[n-1]
	head := rows{body: slices.Clone(r.body[:at]), ends: slices.Clone(r.ends[:n])}
	rest := rows{}
	if n < len(r.ends) {
		rest.body = append([]byte{segmentVersion}, r.body[at:]...)
		for _, end := range r.ends[n:] {
			rest.ends = append(rest.ends, end-at+1)
		}
	}
	*r = rest
	return head
}

// join appends the rows of o, which come later.
func (r *rows) join(o rows) {
	if len(r.ends) == 0 {
		*r = o
		return
	}
	at := len(r.body) - 1
	r.body = append(r.body, o.body[min(1, len(o.body)):]...)
	for _, end := range o.ends {
		r.ends = append(r.ends, at+end)
	}
}

// segment describes the blob that the rows are.
func (r *rows) segment() (Segment, error) {
	s := Segment{Digest: lode.Digest(blake3.Sum256(r.body)), Bytes: int64(len(r.body)), Keys: len(r.ends)}
	err := readSegment(r.body, func(k, v []byte) error {
		if s.First == nil {
			s.First = append([]byte{}, k...)
		}
		if d, ok := blobOf(v); ok {
			s.Blobs = append(s.Blobs, d)
		}
		return nil
	})
	slices.SortFunc(s.Blobs, compareDigests)
	s.Blobs = slices.Compact(s.Blobs)
	return s, err
}

func compareDigests(a, b lode.Digest) int { return slices.Compare(a[:], b[:]) }

// readSegment calls f for each row of a segment, in order. k and v are parts
// of b. Damaged: b is no segment, or its keys are not in order.
func readSegment(b []byte, f func(k, v []byte) error) error {
	if len(b) == 0 || b[0] != segmentVersion {
		return lode.Errorf(lode.Damaged, "%d bytes are no segment", len(b))
	}
	r := journal.Reader{B: b[1:]}
	var last []byte
	for n := 0; len(r.B) > 0; n++ {
		k, v := r.Bytes(), r.Bytes()
		if r.Bad || n > 0 && string(k) <= string(last) {
			return lode.Errorf(lode.Damaged, "row %d of a segment cannot be read", n)
		}
		if err := f(k, v); err != nil {
			return err
		}
		last = k
	}
	return nil
}
