package rewrite

import (
	"fmt"
	"unicode/utf8"

	"lode"
)

// reader walks over bytes of the binary format. The first thing that is wrong
// stays in err with its place; from then on every read gives zeros and
// more() is false, so callers look at err once, at the end.
type reader struct {
	b   []byte // the whole module
	p   int    // next byte
	end int    // one past the last byte of what is read
	err *lode.Error
	at  string // "type section", "code section, function 12"
}

// fail records what is wrong at byte pos of the module.
func (r *reader) fail(pos int, format string, args ...any) {
	if r.err == nil {
		r.err = lode.Errorf(lode.Invalid, "wasm module, %s, byte %#x: %s", r.at, pos, fmt.Sprintf(format, args...))
	}
	r.p = r.end
}

// refuse is fail with a hint for what is legal but not taken.
func (r *reader) refuse(pos int, hint, format string, args ...any) {
	if r.err == nil {
		r.fail(pos, format, args...)
		r.err.Hint = hint
	}
}

func (r *reader) more() bool { return r.p < r.end && r.err == nil }

func (r *reader) byte() byte {
	if r.p >= r.end {
		r.fail(r.p, "ends too early")
		return 0
	}
	c := r.b[r.p]
	r.p++
	return c
}

// bytes gives the next n bytes, sharing memory with the module.
func (r *reader) bytes(n uint32) []byte {
	if uint64(n) > uint64(r.end-r.p) {
		r.fail(r.p, "ends too early: %d bytes wanted, %d left", n, r.end-r.p)
		return nil
	}
	s := r.b[r.p : r.p+int(n)]
	r.p += int(n)
	return s
}

func (r *reader) u32() uint32 {
	if r.p < r.end && r.b[r.p] < 0x80 {
		r.p++
		return uint32(r.b[r.p-1])
	}
	return r.u32Slow()
}

func (r *reader) u32Slow() uint32 {
	start, v := r.p, uint32(0)
	for shift := 0; shift < 35; shift += 7 {
		c := r.byte()
		v |= uint32(c&0x7f) << shift
		if c < 0x80 {
			if shift == 28 && c > 0x0f {
				break
			}
			return v
		}
	}
	r.fail(start, "an integer of more than 32 bits")
	return 0
}

// signed reads a signed integer of up to size bits: 32, 33 or 64.
func (r *reader) signed(size int) int64 {
	start, v := r.p, int64(0)
	for shift := 0; shift < size; shift += 7 {
		c := r.byte()
		v |= int64(c&0x7f) << shift
		if c < 0x80 {
			if shift+7 < 64 && c&0x40 != 0 {
				v |= -1 << (shift + 7)
			}
			return v
		}
	}
	r.fail(start, "an integer of more than %d bits", size)
	return 0
}

func (r *reader) name() string {
	start := r.p
	s := r.bytes(r.u32())
	if !utf8.Valid(s) {
		r.fail(start, "a name that is not UTF-8")
	}
	return string(s)
}

// count reads the length of a vector whose elements have at least size bytes,
// so that nothing is allocated for elements that cannot be there.
func (r *reader) count(size int) int {
	start := r.p
	n := r.u32()
	if uint64(n)*uint64(size) > uint64(r.end-r.p) {
		r.fail(start, "a vector of %d elements in %d bytes", n, r.end-r.p)
		return 0
	}
	return int(n)
}

func (r *reader) valType() ValType {
	start := r.p
	t := ValType(r.byte())
	switch t {
	case I32, I64, F32, F64, V128, FuncRef, ExternRef:
		return t
	}
	r.refuse(start, "build for WebAssembly 2.0, without garbage collection or typed references", "value type %#x is not known", byte(t))
	return 0
}

func (r *reader) refType() ValType {
	start := r.p
	t := r.valType()
	if r.err == nil && t != FuncRef && t != ExternRef {
		r.fail(start, "%#x is not a reference type", byte(t))
	}
	return t
}

// appendU32 writes an unsigned LEB128.
func appendU32(b []byte, v uint32) []byte {
	for v >= 0x80 {
		b = append(b, byte(v)|0x80)
		v >>= 7
	}
	return append(b, byte(v))
}

// appendS64 writes a signed LEB128.
func appendS64(b []byte, v int64) []byte {
	for {
		c := byte(v & 0x7f)
		v >>= 7
		if v == 0 && c&0x40 == 0 || v == -1 && c&0x40 != 0 {
			return append(b, c)
		}
		b = append(b, c|0x80)
	}
}

func appendName(b []byte, s string) []byte {
	return append(appendU32(b, uint32(len(s))), s...)
}
