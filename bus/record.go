package bus

import (
	"bytes"
	"encoding/binary"

	"github.com/zeebo/blake3"

	"lode"
)

// A message of a Log, all integers big endian:
//
//	 0  1   version, 1
//	 1 16   incarnation of its writer: random, one a start
//	17  8   n: 0 for the message that opens the incarnation, then +1
//	25  8   prev: position of the message before, 0 for the first of the log
//	33  8   floor: every position from here on must be there; less may be trimmed
//	41  4   count of entries
//	45      count times: uvarint length, bytes
//	-16     BLAKE3-256 of all before, its first 16 bytes
//
// The entries are the caller's. A reader checks the sum, n, prev and that
// positions have no gap: what is missing is damage and never skipped.
const (
	recordVersion = 1
	recordHead    = 45
	recordSum     = 16
)

type incarnation [16]byte

type record struct {
	inc            incarnation
	n, prev, floor uint64
	entries        [][]byte
	seq            uint64 // where it was read; not in the bytes
	size           int
}

func (r *record) message() Message {
	return Message{Seq: r.seq, Entries: r.entries, Size: r.size, Opens: r.n == 0}
}

func (r *record) encode() []byte {
	size := recordHead + recordSum
	for _, e := range r.entries {
		size += binary.MaxVarintLen32 + len(e)
	}
	b := make([]byte, 0, size)
	b = append(b, recordVersion)
	b = append(b, r.inc[:]...)
	b = binary.BigEndian.AppendUint64(b, r.n)
	b = binary.BigEndian.AppendUint64(b, r.prev)
	b = binary.BigEndian.AppendUint64(b, r.floor)
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.entries)))
	for _, e := range r.entries {
		b = binary.AppendUvarint(b, uint64(len(e)))
		b = append(b, e...)
	}
	sum := blake3.Sum256(b)
	return append(b, sum[:recordSum]...)
}

// decodeRecord reads what encode wrote; the entries are parts of b.
func decodeRecord(b []byte) (record, error) {
	if len(b) < recordHead+recordSum {
		return record{}, lode.Errorf(lode.Damaged, "a message of %d bytes is too short", len(b))
	}
	if b[0] != recordVersion {
		return record{}, lode.Errorf(lode.Damaged, "message version %d is not known", b[0])
	}
	body := b[:len(b)-recordSum]
	sum := blake3.Sum256(body)
	if !bytes.Equal(sum[:recordSum], b[len(body):]) {
		return record{}, lode.Errorf(lode.Damaged, "a message does not match its checksum")
	}
	r := record{size: len(b), n: binary.BigEndian.Uint64(b[17:]), prev: binary.BigEndian.Uint64(b[25:]), floor: binary.BigEndian.Uint64(b[33:])}
	copy(r.inc[:], b[1:])
	count := binary.BigEndian.Uint32(b[41:])
	rest := body[recordHead:]
	if uint64(count) > uint64(len(rest)) {
		return record{}, lode.Errorf(lode.Damaged, "a message of %d bytes cannot have %d entries", len(b), count)
	}
	r.entries = make([][]byte, 0, count)
	for range count {
		n, w := binary.Uvarint(rest)
		if w <= 0 || n > uint64(len(rest)-w) {
			return record{}, lode.Errorf(lode.Damaged, "an entry goes beyond its message")
		}
		r.entries = append(r.entries, rest[w:w+int(n):w+int(n)])
		rest = rest[w+int(n):]
	}
	if len(rest) != 0 {
		return record{}, lode.Errorf(lode.Damaged, "%d bytes behind the last entry", len(rest))
	}
	return r, nil
}

// chain checks that records follow each other without a gap. The zero chain
// takes any record first.
type chain struct {
	last  record
	first uint64
	floor uint64
}

func (c *chain) add(r record) error {
	if c.first == 0 {
		c.first = r.seq
		if r.seq == 1 && r.prev != 0 {
			return lode.Errorf(lode.Damaged, "message 1 names %d as the one before", r.prev)
		}
	} else {
		switch {
		case r.seq != c.last.seq+1:
			return lode.Errorf(lode.Damaged, "message %d is missing", c.last.seq+1)
		case r.prev != c.last.seq:
			return lode.Errorf(lode.Damaged, "message %d names %d as the one before, not %d", r.seq, r.prev, c.last.seq)
		case r.inc == c.last.inc && r.n != c.last.n+1, r.inc != c.last.inc && r.n != 0:
			return lode.Errorf(lode.Damaged, "message %d has number %d of its writer after %d", r.seq, r.n, c.last.n)
		}
	}
	c.floor = max(c.floor, r.floor)
	r.entries = nil
	c.last = r
	return nil
}

// end checks that nothing is missing in front.
func (c *chain) end() error {
	if c.first > max(c.floor, 1) {
		return lode.Errorf(lode.Damaged, "messages %d to %d are missing", max(c.floor, 1), c.first-1)
	}
	return nil
}
