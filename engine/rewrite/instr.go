package rewrite

// instr is one decoded instruction.
type instr struct {
	op       uint32 // prefixed ones: prefix<<8 | code
	pos, end int    // bytes of the module that it takes
	a, b     uint32 // immediates: index, alignment and offset, i32 constant, or the number of targets of a br_table
	block    int64  // block type: an index, or a negative code
	targets  int    // where a br_table's targets begin
	weight   int32
}

// blockEmpty is the block type without parameters and results.
const blockEmpty = -64

// next decodes the instruction at r.p into in; false at the end or when
// something is wrong.
func (r *reader) next(in *instr) bool {
	if r.p >= r.end || r.err != nil {
		return false
	}
	in.pos = r.p
	op := uint32(r.b[r.p])
	r.p++
	t := plain[op]
	if op >= 0xfb {
		op, t = r.prefixed(op)
	}
	if t.shape == shapeUnknown {
		what, hint := refusal(op)
		r.refuse(in.pos, hint, "opcode %#x is %s, which is refused", op, what)
		return false
	}
	in.op, in.weight = op, int32(t.weight)
	if t.shape != shapeNone {
		r.immediates(in, t.shape)
	}
	in.end = r.p
	return r.err == nil
}

// prefixed reads the second part of an opcode. Codes over 0xff, none of which
// is taken, are numbered prefix<<12 | code.
func (r *reader) prefixed(prefix uint32) (uint32, traits) {
	code := r.u32()
	if code > 0xff {
		return prefix<<12 | code&0xfff, traits{}
	}
	switch prefix {
	case 0xfc:
		return prefix<<8 | code, bulk[code]
	case 0xfd:
		return prefix<<8 | code, vector[code]
	}
	return prefix<<8 | code, traits{}
}

func (r *reader) immediates(in *instr, s shape) {
	switch s {
	case shapeIndex:
		in.a = r.u32()
	case shapeMem:
		r.memArg(in)
	case shapeI32:
		in.a = uint32(r.signed(32))
	case shapeBlock:
		in.block = r.blockType()
	case shapeIndex2:
		in.a, in.b = r.u32(), r.u32()
	case shapeI64:
		r.signed(64)
	case shapeTable:
		in.a = uint32(r.count(1))
		in.targets = r.p
		for i := uint32(0); i <= in.a && r.err == nil; i++ {
			r.u32()
		}
	case shapeMemLane:
		r.memArg(in)
		r.byte()
	case shapeLane:
		r.byte()
	case shape4:
		r.bytes(4)
	case shape8:
		r.bytes(8)
	case shape16:
		r.bytes(16)
	case shapeZero:
		r.zero()
	case shapeZero2:
		r.zero()
		r.zero()
	case shapeInit:
		in.a = r.u32()
		r.zero()
	case shapeTypes:
		for n := r.count(1); n > 0; n-- {
			r.valType()
		}
	case shapeRef:
		r.refType()
	}
}

func (r *reader) memArg(in *instr) {
	in.a, in.b = r.u32(), r.u32()
	if in.a >= 64 && r.err == nil {
		r.refuse(in.pos, "build without multiple memories", "an access to a second memory")
	}
}

func (r *reader) zero() {
	pos := r.p
	if r.byte() != 0 && r.err == nil {
		r.refuse(pos, "build without multiple memories", "an access to a second memory")
	}
}

// blockType gives an index into the types, or the negative code of a value
// type or of blockEmpty.
func (r *reader) blockType() int64 {
	start := r.p
	v := r.signed(33)
	if v >= 0 || v == blockEmpty || r.err != nil {
		return v
	}
	r.p = start
	r.valType()
	return v
}
