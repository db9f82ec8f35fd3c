package rewrite

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"

	"lode"
)

// bulkCase is one bulk instruction on operands that lie on, before and beyond
// every border: of memory, of the segment, of a piece, of what runs in place.
type bulkCase struct {
	name   string
	code   []byte
	second ValType
	dst    []uint32
	src    []uint32
	n      []uint32
}

// Bulk instructions do and trap as they did.
func TestBulk(t *testing.T) {
	const top = 4 * PageSize
	edges := []uint32{0, 1, 70000, 140000, top - 70000, top - 1, top, top + 1, 1<<32 - 1}
	sizes := []uint32{0, 1, 1023, 1024, 1025, 65536, 65537, 70000, 131072, 200000, top, top + 1, 1<<32 - 1}
	segment := []uint32{0, 1, 69999, 70000, 70001, 1<<32 - 1}
	slots, counts := []uint32{0, 1, 4000, 9999, 10000, 1<<32 - 1}, []uint32{0, 1, 64, 65, 4096, 4097, 9999, 10000, 10001, 1<<32 - 1}
	cases := []bulkCase{
		{"memory.fill", raw(0xfc, 0x0b, 0), I32, edges, []uint32{0, 7, 0x1ff}, sizes},
		{"memory.copy", raw(0xfc, 0x0a, 0, 0), I32, edges, edges, sizes},
		{"memory.init", raw(0xfc, 0x08, 0, 0), I32, edges, segment, sizes},
		{"table.copy", raw(0xfc, 0x0e, 0, 0), I32, slots, slots, counts},
		{"table.init", raw(0xfc, 0x0c, 0, 0), I32, slots, []uint32{0, 1, 5000, 6000}, counts},
		{"table.fill", raw(0xfc, 0x11, 0), FuncRef, slots, []uint32{0}, counts},
	}
	p := newPair(t)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { p.bulk(t, c) })
	}
}

// bulkModule exports run: (dst, src, n) -> (), and hash: () -> i32, a digest
// of the table. Its memory and table start with contents that differ.
func bulkModule(c bulkCase) []byte {
	m := &asmModule{memory: limits(nil, 4, 4), tables: [][]byte{append([]byte{byte(FuncRef)}, limits(nil, 10000, 10000)...)}}
	src := op1(opLocalGet, 1)
	if c.second == FuncRef {
		src = raw(opRefFunc, 0)
	}
	m.export("run", ExportKindFunc, m.fn(three, nil, nil, code(op1(opLocalGet, 0), src, op1(opLocalGet, 2), c.code)...))
	m.export("hash", ExportKindFunc, m.fn(nil, one, two, code(raw(opLoop, 0x40),
		op1(opLocalGet, 1), i32c(31), raw(0x6c), op1(opLocalGet, 0), raw(opTableGet, 0, 0xd1, 0x6a), op1(opLocalSet, 1),
		op1(opLocalGet, 0), i32c(1), raw(0x6a), op1(opLocalTee, 0), i32c(10000), raw(0x49, opBrIf, 0, opEnd), op1(opLocalGet, 1))...))
	r := rand.New(rand.NewPCG(1, 2))
	text := make([]byte, 70000)
	for i := range text {
		text[i] = byte(r.Uint32())
	}
	m.data = [][]byte{passiveData(string(text)), activeData(0, string(text)), activeData(150000, string(text))}
	passive, active := appendU32([]byte{5, byte(FuncRef)}, 6000), append([]byte{4}, append(i32c(3000), opEnd)...)
	active = appendU32(active, 5000)
	for i := range 6000 {
		item := []byte{opRefFunc, byte(r.Uint32() & 1), opEnd}
		if r.Uint32()&3 == 0 {
			item = []byte{opRefNull, byte(FuncRef), opEnd}
		}
		passive = append(passive, item...)
		if i < 5000 {
			active = append(active, item...)
		}
	}
	m.elems = [][]byte{passive, active}
	m.export("memory", ExportKindMemory, 0)
	return m.bytes()
}

func (p *pair) bulk(t *testing.T, c bulkCase) {
	ctx := context.Background()
	wasm := bulkModule(c)
	a, b := p.after.original(t, wasm), p.after.instance(t, rewritten(t, wasm, Options{}))
	before, after := a.ExportedFunction("run"), b.ExportedFunction("run")
	for _, dst := range c.dst {
		for _, src := range c.src {
			for _, n := range c.n {
				_, want := before.Call(ctx, uint64(dst), uint64(src), uint64(n))
				_, got := after.Call(ctx, uint64(dst), uint64(src), uint64(n))
				if (want == nil) != (got == nil) || want != nil && trapName(want) != trapName(got) {
					t.Fatalf("%d, %d, %d: %v, want %v", dst, src, n, got, want)
				}
				if want == nil && n > 0 {
					p.same(t, dst, src, n, a.Memory().Read, b.Memory().Read)
				}
			}
			if x, y := call1(t, a, "hash"), call1(t, b, "hash"); x != y {
				t.Fatalf("%d, %d: tables differ", dst, src)
			}
		}
	}
	p.same(t, 0, 0, 0, a.Memory().Read, b.Memory().Read)
}

func (p *pair) same(t *testing.T, dst, src, n uint32, a, b func(uint32, uint32) ([]byte, bool)) {
	x, _ := a(0, 4*PageSize)
	y, _ := b(0, 4*PageSize)
	if !bytes.Equal(x, y) {
		t.Fatalf("%d, %d, %d: memories differ", dst, src, n)
	}
}

// Damaged modules give an error or a module, never a panic.
func TestDamaged(t *testing.T) {
	guests := [][]byte{generate([]byte("abcdefghijklmnopqrstuvwxyz0123456789")), generate(bytes.Repeat([]byte{4, 7, 2, 11}, 80)), simple(opUnreachable).bytes()}
	r := rand.New(rand.NewPCG(3, 4))
	for round := range 5000 {
		wasm := bytes.Clone(guests[round%len(guests)])
		for range 1 + r.IntN(4) {
			wasm[8+r.IntN(len(wasm)-8)] = byte(r.Uint32())
		}
		if r.IntN(4) == 0 {
			wasm = wasm[:r.IntN(len(wasm))]
		}
		if _, err := Rewrite(wasm, small); err != nil && lode.KindOf(err) != lode.Invalid {
			t.Fatalf("round %d: %v", round, err)
		}
	}
}
