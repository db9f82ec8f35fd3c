package rewrite

// Opcodes that the pass looks at. Prefixed ones are prefix<<8 | code.
const (
	opUnreachable  = 0x00
	opBlock        = 0x02
	opLoop         = 0x03
	opIf           = 0x04
	opElse         = 0x05
	opEnd          = 0x0b
	opBr           = 0x0c
	opBrIf         = 0x0d
	opBrTable      = 0x0e
	opReturn       = 0x0f
	opCall         = 0x10
	opCallIndirect = 0x11
	opLocalGet     = 0x20
	opLocalSet     = 0x21
	opLocalTee     = 0x22
	opGlobalGet    = 0x23
	opGlobalSet    = 0x24
	opTableGet     = 0x25
	opTableSet     = 0x26
	opMemorySize   = 0x3f
	opMemoryGrow   = 0x40
	opI32Const     = 0x41
	opI64Const     = 0x42
	opRefNull      = 0xd0
	opRefFunc      = 0xd2

	opMemoryInit = 0xfc08
	opDataDrop   = 0xfc09
	opMemoryCopy = 0xfc0a
	opMemoryFill = 0xfc0b
	opTableInit  = 0xfc0c
	opElemDrop   = 0xfc0d
	opTableCopy  = 0xfc0e
	opTableGrow  = 0xfc0f
	opTableSize  = 0xfc10
	opTableFill  = 0xfc11

	opV128Const = 0xfd0c
)

// shape says what follows an opcode.
type shape byte

const (
	shapeUnknown shape = iota
	shapeNone
	shapeBlock   // block type
	shapeIndex   // one u32
	shapeIndex2  // two u32
	shapeTable   // br_table
	shapeMem     // alignment, offset
	shapeMemLane // alignment, offset, lane
	shapeLane
	shapeI32
	shapeI64
	shape4     // four bytes
	shape8     // eight bytes
	shape16    // sixteen bytes
	shapeZero  // a byte that must be zero: the memory
	shapeZero2 // two such bytes
	shapeInit  // memory.init: u32 and the memory
	shapeTypes // select with types
	shapeRef   // reference type
)

// traits of one opcode. weight is about the number of machine instructions,
// or what else takes as long; calls are weighed apart.
type traits struct {
	shape  shape
	weight byte
}

// Weights of instructions that leave compiled code.
const (
	weightCall     = 4
	weightIndirect = 8
	weightHost     = 32
	weightGrow     = 250
	weightBulk     = 64
)

var (
	plain  = plainTraits()
	bulk   = bulkTraits()
	vector = vectorTraits()
)

func fill(t *[256]traits, from, to int, s shape, weight byte) {
	for i := from; i <= to; i++ {
		t[i] = traits{s, weight}
	}
}

func plainTraits() (t [256]traits) {
	fill(&t, 0x00, 0x01, shapeNone, 0)
	fill(&t, 0x02, 0x04, shapeBlock, 0)
	t[opIf].weight = 1
	fill(&t, 0x05, 0x05, shapeNone, 0)
	fill(&t, 0x0b, 0x0b, shapeNone, 0)
	fill(&t, 0x0c, 0x0d, shapeIndex, 1)
	t[opBrTable] = traits{shapeTable, 3}
	t[opReturn] = traits{shapeNone, 1}
	t[opCall] = traits{shapeIndex, weightCall}
	t[opCallIndirect] = traits{shapeIndex2, weightIndirect}
	t[0x1a] = traits{shapeNone, 0} // drop
	t[0x1b] = traits{shapeNone, 2} // select
	t[0x1c] = traits{shapeTypes, 2}
	t[opLocalGet] = traits{shapeIndex, 0}
	fill(&t, 0x21, 0x24, shapeIndex, 1)
	fill(&t, 0x25, 0x26, shapeIndex, 3)
	fill(&t, 0x28, 0x3e, shapeMem, 2)
	t[opMemorySize] = traits{shapeZero, 1}
	t[opMemoryGrow] = traits{shapeZero, weightGrow}
	t[opI32Const] = traits{shapeI32, 1}
	t[opI64Const] = traits{shapeI64, 1}
	t[0x43] = traits{shape4, 1}
	t[0x44] = traits{shape8, 1}
	fill(&t, 0x45, 0xc4, shapeNone, 1)
	fill(&t, 0x67, 0x69, shapeNone, 3) // bit counts
	fill(&t, 0x6d, 0x70, shapeNone, 10)
	fill(&t, 0x79, 0x7b, shapeNone, 3)
	fill(&t, 0x7f, 0x82, shapeNone, 20)
	fill(&t, 0x8b, 0xbf, shapeNone, 4) // float arithmetic and conversions
	t[0x91], t[0x9f] = traits{shapeNone, 12}, traits{shapeNone, 12}
	t[0x95], t[0xa3] = traits{shapeNone, 8}, traits{shapeNone, 8}
	t[opRefNull] = traits{shapeRef, 1}
	t[0xd1] = traits{shapeNone, 1}
	t[opRefFunc] = traits{shapeIndex, 3}
	return t
}

func bulkTraits() (t [256]traits) {
	fill(&t, 0x00, 0x07, shapeNone, 6)
	t[0x08] = traits{shapeInit, weightBulk}
	t[0x09] = traits{shapeIndex, weightHost}
	t[0x0a] = traits{shapeZero2, weightBulk}
	t[0x0b] = traits{shapeZero, weightBulk}
	t[0x0c] = traits{shapeIndex2, weightBulk}
	t[0x0d] = traits{shapeIndex, weightHost}
	t[0x0e] = traits{shapeIndex2, weightBulk}
	t[0x0f] = traits{shapeIndex, weightBulk}
	t[0x10] = traits{shapeIndex, 2}
	t[0x11] = traits{shapeIndex, weightBulk}
	return t
}

func vectorTraits() (t [256]traits) {
	fill(&t, 0x00, 0xff, shapeNone, 3)
	fill(&t, 0x00, 0x0b, shapeMem, 3)
	fill(&t, 0x0c, 0x0d, shape16, 2)
	fill(&t, 0x15, 0x22, shapeLane, 2)
	fill(&t, 0x54, 0x5b, shapeMemLane, 3)
	fill(&t, 0x5c, 0x5d, shapeMem, 3)
	for _, slow := range []int{0x0e, 0x61, 0x62, 0x66, 0x6b, 0x6c, 0x6d, 0x8b, 0x8c, 0x8d, 0xcc, 0xd5, 0xe3, 0xe7, 0xef, 0xf3, 0xf8, 0xf9, 0xfc, 0xfd} {
		t[slow].weight = 12
	}
	for _, gap := range []int{0x9a, 0xa2, 0xa5, 0xa6, 0xaf, 0xb0, 0xb2, 0xb3, 0xb4, 0xbb, 0xc2, 0xc5, 0xc6, 0xcf, 0xd0, 0xd2, 0xd3, 0xd4, 0xe2, 0xee} {
		t[gap] = traits{}
	}
	return t
}

// refusal explains why an opcode without a shape is not taken.
func refusal(op uint32) (what, hint string) {
	const flags = "build without that proposal; the compiler's default target features are taken"
	switch {
	case op >= 0x06 && op <= 0x0a, op == 0x18, op == 0x19, op == 0x1f:
		return "exception handling", "build without WebAssembly exceptions: each try copies the guest's stack"
	case op == 0x12 || op == 0x13:
		return "a tail call", "build without -mtail-call"
	case op == 0x14 || op == 0x15 || op >= 0xd3 && op <= 0xd6:
		return "an instruction of typed function references", flags
	case op>>8 == 0xfb, op>>12 == 0xfb:
		return "an instruction of garbage collection", flags
	case op>>8 == 0xfe, op>>12 == 0xfe:
		return "an atomic instruction", "build without threads: a sandbox has one thread"
	case op >= 0xfd100 && op <= 0xfdfff: // as prefixed numbers long codes
		return "a relaxed SIMD instruction", "build without -mrelaxed-simd: results would differ between machines"
	}
	return "an instruction that is not known", flags
}
