package journal

import "encoding/binary"

// Reader takes parts off B: what a node wrote down, or another sent. After the
// first part that is not there everything is zero, and Bad is set.
type Reader struct {
	B   []byte
	Bad bool
}

// Take is the next n bytes; they are a part of B.
func (r *Reader) Take(n uint64) []byte {
	if r.Bad || n > uint64(len(r.B)) {
		r.Bad = true
		return nil
	}
	p := r.B[:n:n]
	r.B = r.B[n:]
	return p
}

// Byte is one byte.
func (r *Reader) Byte() byte {
	if p := r.Take(1); p != nil {
		return p[0]
	}
	return 0
}

// U32 is four bytes, little-endian.
func (r *Reader) U32() uint32 {
	if p := r.Take(4); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

// U64 is eight bytes, little-endian.
func (r *Reader) U64() uint64 {
	if p := r.Take(8); p != nil {
		return binary.LittleEndian.Uint64(p)
	}
	return 0
}

// Uvarint is a number of up to ten bytes.
func (r *Reader) Uvarint() uint64 {
	n, w := binary.Uvarint(r.B)
	if r.Bad || w <= 0 {
		r.Bad = true
		return 0
	}
	r.B = r.B[w:]
	return n
}

// Number is a uvarint that fits an int on every machine.
func (r *Reader) Number() int {
	n := r.Uvarint()
	if n > 1<<31-1 {
		r.Bad = true
		return 0
	}
	return int(n)
}

// Bytes is what AppendString wrote; it is a part of B.
func (r *Reader) Bytes() []byte { return r.Take(uint64(r.Number())) }

// End reports whether everything was there, and nothing more.
func (r *Reader) End() bool { return !r.Bad && len(r.B) == 0 }

// AppendString appends a uvarint length, and s.
func AppendString[S ~string | ~[]byte](b []byte, s S) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}
