package rewrite

// Bulk instructions work on as many bytes as the guest likes, in one go. Each
// becomes a call of a function that does it piece by piece and pays for each
// piece. Traps stay what they were: when the whole range does not fit, the
// original instruction runs and traps before it has written anything.

// Pieces, and what runs unsplit and unpaid: the call's own weight covers it.
const (
	memoryPiece = 64 << 10
	memorySmall = 1 << 10
	memoryShift = 2 // bytes per unit of fuel, as a shift
	tablePiece  = 4 << 10
	tableSmall  = 64
)

// helperKey names a generated function: an instruction with its immediates.
type helperKey struct{ op, a, b uint32 }

// helpers are the functions that the pass adds behind the original's.
type helpers struct {
	base   uint32 // index of the first
	types  []uint32
	bodies [][]byte // with their size
	names  []string
	byKey  map[helperKey]uint32
}

// put adds a function and returns its index. code has neither locals nor the
// final end.
func (h *helpers) put(name string, typ uint32, locals []ValType, code []byte) uint32 {
	b := appendU32(nil, uint32(len(locals)))
	for _, l := range locals {
		b = append(b, 1, byte(l))
	}
	b = append(append(b, code...), opEnd)
	h.types = append(h.types, typ)
	h.bodies = append(h.bodies, append(appendU32(nil, uint32(len(b))), b...))
	h.names = append(h.names, name)
	return h.base + uint32(len(h.types)) - 1
}

// asm writes code with the emitter's instructions, apart from the function
// that is being written.
func (e *emitter) asm(write func()) []byte {
	saved := e.b
	e.b = nil
	write()
	code := e.b
	e.b = saved
	return code
}

// raw appends opcodes that have no immediates, or whose immediates are bytes.
func (e *emitter) raw(b ...byte) { e.b = append(e.b, b...) }

// helper is the index of the function that stands for a bulk instruction.
func (e *emitter) helper(in *instr) uint32 {
	key := helperKey{op: in.op, a: in.a, b: in.b}
	if i, ok := e.helpers.byKey[key]; ok {
		return i
	}
	i := e.newHelper(key)
	e.helpers.byKey[key] = i
	return i
}

func (e *emitter) newHelper(k helperKey) uint32 {
	three := e.types.index([]ValType{I32, I32, I32}, nil)
	switch k.op {
	case opMemoryFill:
		return e.splitter("lode:memory.fill", three, splitMemory(e, func() { e.raw(0xfc, 0x0b, 0) }))
	case opMemoryCopy:
		m := splitMemory(e, func() { e.raw(0xfc, 0x0a, 0, 0) })
		m.sizeSrc, m.moves, m.overlaps = m.sizeDst, true, true
		return e.splitter("lode:memory.copy", three, m)
	case opMemoryInit:
		m := splitMemory(e, func() { e.raw(0xfc, 0x08); e.b = appendU32(e.b, k.a); e.raw(0) })
		m.moves = true
		m.sizeSrc = func() { e.i64(int64(len(e.s.data[k.a].bytes))) }
		return e.splitter("lode:memory.init", three, m)
	case opTableFill:
		t := e.types.index([]ValType{I32, e.s.tables[k.a].typ, I32}, nil)
		m := splitTable(e, k.a, func() { e.raw(0xfc, 0x11); e.b = appendU32(e.b, k.a) })
		return e.splitter("lode:table.fill", t, m)
	case opTableCopy:
		m := splitTable(e, k.a, func() { e.raw(0xfc, 0x0e); e.b = appendU32(appendU32(e.b, k.a), k.b) })
		m.moves, m.overlaps, m.sizeSrc = true, k.a == k.b, tableSize(e, k.b)
		return e.splitter("lode:table.copy", three, m)
	case opTableInit:
		m := splitTable(e, k.b, func() { e.raw(0xfc, 0x0c); e.b = appendU32(appendU32(e.b, k.a), k.b) })
		m.moves = true
		seg := &e.s.elems[k.a]
		m.sizeSrc = func() { e.i64(int64(len(seg.funcs) + len(seg.exprs))) }
		return e.splitter("lode:table.init", three, m)
	}
	return e.grower(k)
}

// grower stands for table.grow. The table's limit bounds the work; what fits
// into it is paid.
func (e *emitter) grower(k helperKey) uint32 {
	t := e.types.index([]ValType{e.s.tables[k.a].typ, I32}, []ValType{I32})
	return e.helpers.put("lode:table.grow", t, nil, e.asm(func() {
		e.mark(DirtyTable)
		e.op(opLocalGet, 1)
		e.i32(maxTables)
		e.raw(0x49, opIf, 0x40) // i32.lt_u
		e.op(opLocalGet, 1)
		e.pay(0)
		e.raw(opEnd)
		e.op(opLocalGet, 0)
		e.op(opLocalGet, 1)
		e.raw(0xfc, 0x0f)
		e.b = appendU32(e.b, k.a)
	}))
}

// pay takes the i32 on the stack, shifted right, off the fuel.
func (e *emitter) pay(shift int32) {
	if shift > 0 {
		e.i32(shift)
		e.raw(0x76) // i32.shr_u
	}
	e.raw(0xad) // i64.extend_i32_u
	e.i64(-1)
	e.raw(0x7e) // i64.mul
	e.op(opGlobalGet, e.counter)
	e.raw(0x7c)
	e.op(opGlobalSet, e.counter)
	e.ask()
}

// split says how a bulk instruction is taken apart.
type split struct {
	do               func() // the instruction
	sizeDst, sizeSrc func() // i64: elements there are; sizeSrc nil: the second operand is a value
	moves            bool   // the second operand is a position that moves along
	overlaps         bool   // source and destination may be one
	piece, small     int32
	shift            int32
	dirty            int32
}

func splitMemory(e *emitter, do func()) split {
	size := func() {
		e.raw(opMemorySize, 0, 0xad) // extended to i64
		e.i64(16)
		e.raw(0x86) // i64.shl
	}
	return split{do: do, sizeDst: size, piece: memoryPiece, small: memorySmall, shift: memoryShift}
}

func tableSize(e *emitter, t uint32) func() {
	return func() {
		e.raw(0xfc, 0x10)
		e.b = appendU32(e.b, t)
		e.raw(0xad)
	}
}

func splitTable(e *emitter, t uint32, do func()) split {
	return split{do: do, sizeDst: tableSize(e, t), piece: tablePiece, small: tableSmall, dirty: DirtyTable}
}

// Locals of a splitter.
const (
	argDst = iota
	argSrc
	argLen
	locPiece
)

// splitter generates: (dst, src or value, n) -> ().
func (e *emitter) splitter(name string, typ uint32, m split) uint32 {
	return e.helpers.put(name, typ, []ValType{I32}, e.asm(func() {
		if m.dirty != 0 {
			e.mark(m.dirty)
		}
		e.op(opLocalGet, argLen)
		e.i32(m.small)
		e.raw(0x4d) // i32.le_u
		e.outside(argDst, m.sizeDst)
		e.raw(0x72) // i32.or
		if m.sizeSrc != nil {
			e.outside(argSrc, m.sizeSrc)
			e.raw(0x72)
		}
		e.raw(opIf, 0x40)
		e.args(argLen)
		m.do()
		e.raw(opReturn, opEnd)
		if m.overlaps {
			e.op(opLocalGet, argSrc)
			e.op(opLocalGet, argDst)
			e.raw(0x49, opIf, 0x40) // i32.lt_u: the end goes first
			e.pieces(&m, true)
			e.raw(opReturn, opEnd)
		}
		e.pieces(&m, false)
	}))
}

func (e *emitter) args(length uint32) {
	e.op(opLocalGet, argDst)
	e.op(opLocalGet, argSrc)
	e.op(opLocalGet, length)
}

// outside leaves 1 when position+n is beyond size, else 0.
func (e *emitter) outside(position uint32, size func()) {
	e.op(opLocalGet, position)
	e.raw(0xad)
	e.op(opLocalGet, argLen)
	e.raw(0xad, 0x7c) // i64.add
	size()
	e.raw(0x56) // i64.gt_u
}

// pieces loops over the range, from its end or from its beginning.
func (e *emitter) pieces(m *split, backward bool) {
	e.raw(opLoop, 0x40)
	e.op(opLocalGet, argLen) // piece = min(n, m.piece)
	e.i32(m.piece)
	e.op(opLocalGet, argLen)
	e.i32(m.piece)
	e.raw(0x49, 0x1b) // i32.lt_u, select
	e.op(opLocalTee, locPiece)
	e.pay(m.shift)
	e.step(argLen, 0x6b)
	if backward {
		e.op(opLocalGet, argDst)
		e.op(opLocalGet, argLen)
		e.raw(0x6a)
		e.op(opLocalGet, argSrc)
		e.op(opLocalGet, argLen)
		e.raw(0x6a)
		e.op(opLocalGet, locPiece)
		m.do()
	} else {
		e.args(locPiece)
		m.do()
		e.step(argDst, 0x6a)
		if m.moves {
			e.step(argSrc, 0x6a)
		}
	}
	e.op(opLocalGet, argLen)
	e.raw(opBrIf, 0, opEnd)
}

// step adds the piece to a local (0x6a), or subtracts it (0x6b).
func (e *emitter) step(local uint32, op byte) {
	e.op(opLocalGet, local)
	e.op(opLocalGet, locPiece)
	e.raw(op)
	e.op(opLocalSet, local)
}
