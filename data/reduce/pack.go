package reduce

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/big"
	"unicode/utf8"

	"lode"
	"lode/data/words"
)

// Packed states go from node to node and into checkpoints. A result is not
// enough there: it has lost what the next merge needs to give the same bits,
// the whole part beside the floating point part, or the number of lines.
//
// To the byte, with varints as in encoding/binary:
//
//	number  a byte of flags, 1: with a float, 2: big; then the whole part, a
//	        signed varint, or for big a sign byte (0, or 1 for negative), an
//	        unsigned varint length and the magnitude's bytes, the highest
//	        first; then with a float its 8 bytes, little endian
//	sum and count   number
//	min and max     a byte 0 for none, or 1 and a number
//	merge           a byte 1 and a number, or a byte 0 and an object
//	object          an unsigned varint count; for each key an unsigned varint
//	                length, the key, and a value: a byte 0 and a signed varint,
//	                1 and a number, or 2 and an object
//	concat          the bytes; the media type travels beside them
//	words           as words.Counts.Encode
const (
	hasFloat = 1
	hasBig   = 2

	valueInt    = 0
	valueNumber = 1
	valueObject = 2
)

func (e *exact) pack(b []byte) []byte {
	flags := byte(0)
	if e.float {
		flags |= hasFloat
	}
	if e.big != nil {
		flags |= hasBig
	}
	b = append(b, flags)
	if e.big == nil {
		b = binary.AppendVarint(b, e.i)
	} else {
		sign := byte(0)
		if e.big.Sign() < 0 {
			sign = 1
		}
		m := e.big.Bytes()
		b = binary.AppendUvarint(append(b, sign), uint64(len(m)))
		b = append(b, m...)
	}
	if e.float {
		b = binary.LittleEndian.AppendUint64(b, math.Float64bits(e.f))
	}
	return b
}

func (o *object) pack(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(o.table.Len()))
	for i, v := range o.ints {
		key := o.table.Key(i)
		b = binary.AppendUvarint(b, uint64(len(key)))
		b = append(b, key...)
		switch x := o.odd[i]; {
		case x == nil:
			b = binary.AppendVarint(append(b, valueInt), v)
		case x.obj != nil:
			b = x.obj.pack(append(b, valueObject))
		default:
			b = x.n.pack(append(b, valueNumber))
		}
	}
	return b
}

// unpacker reads packed bytes; the first fault ends it.
type unpacker struct {
	b     []byte
	total int
	depth int
	bad   bool
}

func unpack(b []byte) *unpacker { return &unpacker{b: b, total: len(b)} }

// end is the fault, or what is left over.
func (u *unpacker) end() error {
	if u.bad || len(u.b) > 0 {
		return lode.Errorf(lode.Invalid, "a packed partial result breaks off at byte %d of %d", u.total-len(u.b), u.total)
	}
	return nil
}

func (u *unpacker) take(n uint64) []byte {
	if u.bad || n > uint64(len(u.b)) {
		u.bad = true
		return nil
	}
	out := u.b[:n:n]
	u.b = u.b[n:]
	return out
}

func (u *unpacker) byte() byte {
	if b := u.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (u *unpacker) uvarint() uint64 {
	v, n := binary.Uvarint(u.b)
	if n <= 0 {
		u.bad = true
		return 0
	}
	u.take(uint64(n))
	return v
}

func (u *unpacker) varint() int64 {
	v, n := binary.Varint(u.b)
	if n <= 0 {
		u.bad = true
		return 0
	}
	u.take(uint64(n))
	return v
}

func (u *unpacker) number() (e exact) {
	flags := u.byte()
	if flags&^(hasFloat|hasBig) != 0 {
		u.bad = true
		return e
	}
	if flags&hasBig == 0 {
		e.i = u.varint()
	} else {
		sign := u.byte()
		e.big = new(big.Int).SetBytes(u.take(u.uvarint()))
		if sign == 1 {
			e.big.Neg(e.big)
		}
		u.bad = u.bad || sign > 1
	}
	if flags&hasFloat != 0 {
		if b := u.take(8); b != nil {
			e.f, e.float = math.Float64frombits(binary.LittleEndian.Uint64(b)), true
		}
	}
	return e
}

// object reads one object. A key that is there twice, or is not UTF-8, was
// not written by pack.
func (u *unpacker) object() *object {
	o := new(object)
	if u.depth++; u.depth > maxDepth {
		u.bad = true
	}
	defer func() { u.depth-- }()
	for n := u.uvarint(); n > 0 && !u.bad; n-- {
		key := u.take(u.uvarint())
		if u.bad || !utf8.Valid(key) {
			u.bad = true
			break
		}
		number := o.table.Number(key)
		if number < len(o.ints) {
			u.bad = true
			break
		}
		o.ints = append(o.ints, 0)
		switch u.byte() {
		case valueInt:
			o.ints[number] = u.varint()
		case valueNumber:
			o.put(number, &odd{n: u.number()})
		case valueObject:
			o.put(number, &odd{obj: u.object()})
		default:
			u.bad = true
		}
	}
	return o
}

// Pack implements State.
func (s *sum) Pack() ([]byte, string, error) { return s.n.pack(nil), "", nil }

func unpackSum(b []byte) (State, error) {
	u := unpack(b)
	n := u.number()
	return &sum{n}, u.end()
}

// Unpack implements Reducer.
func (sums) Unpack(b []byte, _ string) (State, error) { return unpackSum(b) }

// Unpack implements Reducer.
func (counts) Unpack(b []byte, _ string) (State, error) { return unpackSum(b) }

// Pack implements State.
func (e *extreme) Pack() ([]byte, string, error) {
	if !e.has {
		return []byte{0}, "", nil
	}
	return e.n.pack([]byte{1}), "", nil
}

// Unpack implements Reducer.
func (e extremes) Unpack(b []byte, _ string) (State, error) {
	u := unpack(b)
	out := &extreme{sign: e.sign}
	switch u.byte() {
	case 0:
	case 1:
		out.has, out.n = true, u.number()
	default:
		u.bad = true
	}
	return out, u.end()
}

// Pack implements State.
func (m *merged) Pack() ([]byte, string, error) {
	if m.number {
		return m.n.pack([]byte{1}), "", nil
	}
	return m.obj.pack(make([]byte, 1, 16*m.obj.table.Len()+16)), "", nil
}

// Unpack implements Reducer.
func (merges) Unpack(b []byte, _ string) (State, error) {
	u := unpack(b)
	m := &merged{obj: new(object)}
	switch u.byte() {
	case 0:
		m.obj = u.object()
	case 1:
		m.number, m.n = true, u.number()
	default:
		u.bad = true
	}
	return m, u.end()
}

// Pack implements State. One piece is not copied.
func (p *pieces) Pack() ([]byte, string, error) {
	if len(p.list) == 1 {
		return p.list[0], p.kind, nil
	}
	return bytes.Join(p.list, nil), p.kind, nil
}

// Unpack implements Reducer.
func (concats) Unpack(b []byte, contentType string) (State, error) {
	return &pieces{[][]byte{b}, contentType}, nil
}

// Pack implements State.
func (w WordState) Pack() ([]byte, string, error) {
	return w.Counts.Encode(), words.ContentType, nil
}

// Unpack implements Reducer.
func (wordCounts) Unpack(b []byte, _ string) (State, error) {
	c, err := words.Decode(b)
	return WordState{c}, err
}
