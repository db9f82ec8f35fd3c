package bus

import (
	"encoding/binary"
	"strconv"

	"lode"
)

// An entry in the log of Queues is one operation. Integers are varints as of
// encoding/binary (u: unsigned, s: signed), text and bytes have an unsigned
// length in front; times are milliseconds since 1970.
//
//	put    1, u number, queue, id, s priority, s put, s due, s remember, u deliveries, note, body
//	done   2, u number, s forget
//	later  3, u number, s due, note
//	given  4, u number, u deliveries
//	mark   5, u number, queue, id, s forget
//
// put says the whole state of an item: a later put of the same number replaces
// the earlier one (that is how live items leave the front of the log before it
// is trimmed). done ends an item; until forget its id is remembered, so that
// the same id is not taken again. mark is such a memory carried forward. done,
// later and given of an unknown number are about something trimmed.
type opKind byte

const (
	opPut opKind = 1 + iota
	opDone
	opLater
	opGiven
	opMark
)

type op struct {
	kind       opKind
	num        uint64
	queue, id  string
	priority   int
	put, due   int64
	remember   int64
	deliveries int
	forget     int64
	note       string
	body       []byte
}

func (o *op) encode() []byte {
	b := make([]byte, 0, 64+len(o.queue)+len(o.id)+len(o.note)+len(o.body))
	b = binary.AppendUvarint(append(b, byte(o.kind)), o.num)
	switch o.kind {
	case opPut:
		b = appendText(appendText(b, o.queue), o.id)
		for _, v := range []int64{int64(o.priority), o.put, o.due, o.remember} {
			b = binary.AppendVarint(b, v)
		}
		b = appendText(binary.AppendUvarint(b, uint64(o.deliveries)), o.note)
		b = append(binary.AppendUvarint(b, uint64(len(o.body))), o.body...)
	case opDone:
		b = binary.AppendVarint(b, o.forget)
	case opLater:
		b = appendText(binary.AppendVarint(b, o.due), o.note)
	case opGiven:
		b = binary.AppendUvarint(b, uint64(o.deliveries))
	case opMark:
		b = binary.AppendVarint(appendText(appendText(b, o.queue), o.id), o.forget)
	}
	return b
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// decodeOp reads what encode wrote; the body is a part of b.
func decodeOp(b []byte) (op, error) {
	r := opReader{b: b}
	o := op{kind: opKind(r.byte()), num: r.uint()}
	switch o.kind {
	case opPut:
		o.queue, o.id = string(r.bytes()), string(r.bytes())
		o.priority, o.put, o.due, o.remember = int(r.int()), r.int(), r.int(), r.int()
		o.deliveries, o.note, o.body = int(r.uint()), string(r.bytes()), r.bytes()
	case opDone:
		o.forget = r.int()
	case opLater:
		o.due, o.note = r.int(), string(r.bytes())
	case opGiven:
		o.deliveries = int(r.uint())
	case opMark:
		o.queue, o.id, o.forget = string(r.bytes()), string(r.bytes()), r.int()
	default:
		r.bad = true
	}
	if r.bad || len(r.b) != 0 {
		return op{}, lode.Errorf(lode.Damaged, "an operation of %d bytes cannot be read", len(b))
	}
	return o, nil
}

// opReader takes values off the front of b; bad after the first that is not
// there.
type opReader struct {
	b   []byte
	bad bool
}

func (r *opReader) byte() byte {
	if len(r.b) == 0 {
		r.bad = true
		return 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

func (r *opReader) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	r.skip(n)
	return v
}

func (r *opReader) int() int64 {
	v, n := binary.Varint(r.b)
	r.skip(n)
	return v
}

func (r *opReader) skip(n int) {
	if n <= 0 {
		r.bad, n = true, 0
	}
	r.b = r.b[n:]
}

func (r *opReader) bytes() []byte {
	n := r.uint()
	if r.bad || n > uint64(len(r.b)) {
		r.bad = true
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func utoa(n uint64) string { return strconv.FormatUint(n, 10) }
