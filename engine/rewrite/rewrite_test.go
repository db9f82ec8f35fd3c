package rewrite

import (
	"bytes"
	"context"
	"math"
	"strings"
	"testing"

	"lode"

	"github.com/tetratelabs/wazero/api"
)

// simple is a module with one function run: () -> () of the given code.
func simple(code ...byte) *asmModule {
	m := &asmModule{memory: limits(nil, 1, 200)}
	m.export("run", ExportKindFunc, m.fn(nil, nil, nil, code...))
	return m
}

func globalI32(mutable byte) []byte { return []byte{byte(I32), mutable, opI32Const, 0, opEnd} }

// What is not taken is refused by name, with a place and a hint.
func TestRefused(t *testing.T) {
	imports := func(desc ...byte) []byte {
		b := append(appendName(appendName(nil, "env"), "thing"), desc...)
		return section([]byte("\x00asm\x01\x00\x00\x00"), secImport, 1, b)
	}
	with := func(f func(*asmModule)) []byte {
		m := simple()
		f(m)
		return m.bytes()
	}
	tests := []struct {
		name string
		wasm []byte
		want string
	}{
		{"not wasm", []byte("#!/bin/sh"), "not a WebAssembly module"},
		{"component", []byte("\x00asm\x0d\x00\x01\x00"), "not a WebAssembly module"},
		{"cut short", simple().bytes()[:20], "section"},
		{"memory import", imports(2, 0, 1), `imports the memory "thing" from "env"`},
		{"table import", imports(1, 0x70, 0, 1), "imports the table"},
		{"global import", imports(3, 0x7f, 0), "imports the global"},
		{"reserved import", with(func(m *asmModule) { m.imports = []Import{{HostModule, "yield", FuncType{}}} }), "kept for the platform"},
		{"reserved export", with(func(m *asmModule) { m.export("lode:reset", ExportKindFunc, 0) }), "kept for the platform"},
		{"shared memory", with(func(m *asmModule) { m.memory = []byte{3, 1, 2} }), "a shared memory"},
		{"64-bit memory", with(func(m *asmModule) { m.memory = []byte{5, 1, 2} }), "64-bit"},
		{"two memories", section([]byte("\x00asm\x01\x00\x00\x00"), secMemory, 2, []byte{0, 1, 0, 1}), "more than one memory"},
		{"memory over the limit", with(func(m *asmModule) { m.memory = limits(nil, 300, 300) }), "the limit is 12 MiB"},
		{"table over the limit", with(func(m *asmModule) { m.tables = [][]byte{appendU32([]byte{byte(FuncRef), 0}, 1<<16+1)} }), "tables start with"},
		{"data outside", with(func(m *asmModule) { m.data = [][]byte{activeData(65530, "too long a text")} }), "outside the memory"},
		{"atomics", simple(0xfe, 0x03, 0).bytes(), "an atomic instruction"},
		{"try", simple(0x06, 0x40, opEnd).bytes(), "exception handling"},
		{"try_table", simple(0x1f, 0x40, 0, opEnd).bytes(), "exception handling"},
		{"tag", section([]byte("\x00asm\x01\x00\x00\x00"), secTag, 1, []byte{0, 0}), "exception handling"},
		{"tail call", simple(0x12, 0).bytes(), "a tail call"},
		{"call_ref", simple(0x14, 0).bytes(), "typed function references"},
		{"struct.new", simple(0xfb, 0, 0).bytes(), "garbage collection"},
		{"relaxed simd", simple(0xfd, 0x80, 0x02).bytes(), "relaxed SIMD"},
		{"unknown", simple(0x27).bytes(), "an instruction that is not known"},
		{"unknown simd", simple(0xfd, 0x9a, 0x01).bytes(), "an instruction that is not known"},
		{"label", simple(opBr, 5).bytes(), "label 5"},
		{"callee", simple(opCall, 9).bytes(), "call of function 9"},
		{"open block", simple(opBlock, 0x40).bytes(), "not ended"},
		{"nested loops", simple(code(bytes.Repeat([]byte{opLoop, 0x40}, maxNested+1), bytes.Repeat([]byte{opEnd}, maxNested+1))...).bytes(), "loops nested"},
		{"too many ends", simple(opEnd).bytes(), "after the end"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Rewrite(tt.wasm, Options{MaxMemory: 200 * PageSize})
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if lode.KindOf(err) != lode.Invalid || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %q of kind %q, want %q", err, lode.KindOf(err), tt.want)
			}
		})
	}
}

func TestOptions(t *testing.T) {
	for _, o := range []Options{{MaxTable: maxTables + 1}, {MaxStack: maxStack + 1}, {Period: minPeriod - 1}, {Period: maxPeriod + 1}} {
		if _, err := Rewrite(simple().bytes(), o); lode.KindOf(err) != lode.Invalid {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// hostile guests and how they end when the first yield stops them.
func TestHostile(t *testing.T) {
	loop := func(body ...byte) []byte {
		return code(raw(opLoop, 0x40), body, raw(opBr, 0, opEnd))
	}
	nested := func(n int) []byte {
		return code(bytes.Repeat([]byte{opLoop, 0x40}, n), raw(opBr), appendU32(nil, uint32(n-1)), bytes.Repeat([]byte{opEnd}, n))
	}
	fill := code(i32c(0), i32c(1), i32c(200*PageSize-1), raw(0xfc, 0x0b, 0))
	copies := code(i32c(0), i32c(1), i32c(100*PageSize), raw(0xfc, 0x0a, 0, 0))
	monster := code(i32c(1), raw(opBrTable), appendU32(nil, 20000), bytes.Repeat([]byte{0}, 20001))
	tests := []struct {
		name string
		m    *asmModule
		want uint32
	}{
		{"endless loop", simple(loop()...), YieldFuel},
		{"fill loop", simple(loop(fill...)...), YieldFuel},
		{"copy loop", simple(loop(copies...)...), YieldFuel},
		{"straight line", simple(bytes.Repeat(code(raw(opMemorySize, 0), raw(0x1a)), 400000)...), YieldFuel},
		{"nested loops", simple(nested(maxNested)...), YieldFuel},
		{"br_table", simple(code(raw(opLoop, 0x40), monster, raw(opEnd))...), YieldFuel},
		{"recursion", simple(opCall, 0), YieldStack},
		{"table.grow", simple(loop(opRefNull, byte(FuncRef), opI32Const, 1, 0xfc, 0x0f, 0, 0x1a)...), YieldFuel},
		{"ref.func", simple(loop(opRefFunc, 0, 0x1a)...), YieldFuel},
		{"memory.grow", simple(loop(opI32Const, 0, opMemoryGrow, 0, 0x1a)...), YieldFuel},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.m.memory = limits(nil, 200, 200)
			tt.m.tables = [][]byte{{byte(FuncRef), 0, 1}}
			tt.m.elems = [][]byte{{3, 0, 1, 0}}
			m := rewritten(t, tt.m.bytes(), Options{MaxMemory: 200 * PageSize})
			h := newHost(t)
			reason := uint32(99)
			h.onYield = func(r uint32) {
				if r == tt.want || h.yields > 1000 {
					reason = r
					panic(stopped{})
				}
			}
			mod := h.instance(t, m)
			if _, err := mod.ExportedFunction("run").Call(context.Background()); err == nil || reason != tt.want {
				t.Fatalf("ended with %v, reason %d; want reason %d", err, reason, tt.want)
			}
		})
	}
}

// Tables stop at their cap, memory at its limit; ref.func keeps nothing.
func TestCaps(t *testing.T) {
	m := &asmModule{memory: []byte{0, 1}, tables: [][]byte{{byte(FuncRef), 0, 5}, {byte(ExternRef), 0, 5}}}
	grow := m.fn(one, one, nil, code(raw(opRefNull, byte(FuncRef)), op1(opLocalGet, 0), raw(0xfc, 0x0f, 0))...)
	mem := m.fn(one, one, nil, code(op1(opLocalGet, 0), raw(opMemoryGrow, 0))...)
	m.export("grow", ExportKindFunc, grow)
	m.export("mem", ExportKindFunc, mem)
	r := rewritten(t, m.bytes(), Options{MaxTable: 100, MaxMemory: 3*PageSize + 5})
	mod := newHost(t).instance(t, r)
	for _, c := range []struct {
		name      string
		arg, want uint64
	}{{"grow", 46, math.MaxUint32}, {"grow", 45, 5}, {"grow", 1, math.MaxUint32}, {"grow", 0, 50}, {"mem", 3, math.MaxUint32}, {"mem", 2, 1}, {"mem", 1, math.MaxUint32}} {
		if got := call1(t, mod, c.name, c.arg); got != c.want {
			t.Errorf("%s(%d) = %d, want %d", c.name, c.arg, int32(got), int32(c.want))
		}
	}
	if r.Memory != (Memory{Present: true, MinPages: 1, MaxPages: 3}) || r.MayDirty != DirtyTable {
		t.Errorf("memory %+v, may dirty %d", r.Memory, r.MayDirty)
	}
}

// Reset brings every mutable global back, in the instance that was saved and
// in another.
func TestReset(t *testing.T) {
	m := &asmModule{memory: []byte{0, 1}}
	m.globals = [][]byte{
		{byte(I32), 1, opI32Const, 1, opEnd},
		{byte(I64), 0, opI64Const, 2, opEnd},
		{byte(I64), 1, opI64Const, 3, opEnd},
		{byte(F32), 1, 0x43, 1, 0, 0xa0, 0x7f, opEnd}, // a signalling NaN
		append(append([]byte{byte(V128), 1, 0xfd, 12}, "0123456789abcdef"...), opEnd),
		{byte(F64), 1, 0x44, 0, 0, 0, 0, 0, 0, 0xf4, 0x7f, opEnd},
	}
	spoil := m.fn(nil, nil, nil, code(
		i32c(-9), op1(opGlobalSet, 0), raw(opI64Const, 0x70), op1(opGlobalSet, 2), raw(0x43, 0, 0, 0, 0), op1(opGlobalSet, 3),
		raw(0xfd, 12), make([]byte, 16), op1(opGlobalSet, 4), raw(0x44), make([]byte, 8), op1(opGlobalSet, 5))...)
	m.export("spoil", ExportKindFunc, spoil)
	r := rewritten(t, m.bytes(), Options{})
	if r.FreshOnly || r.Slots != 6 || len(r.Globals) != 5 || r.Globals[3] != (Global{4, V128, 3}) {
		t.Fatalf("%v %d %+v", r.FreshOnly, r.Slots, r.Globals)
	}
	h := newHost(t)
	first, second := h.instance(t, r), h.instance(t, r)
	saved := words(t, first, r.Slots)
	if saved[0] != 1 || saved[2] != 0x7fa00001 || saved[3] != 0x3736353433323130 || saved[4] != 0x6665646362613938 || saved[5] != 0x7ff4<<48 {
		t.Errorf("saved %x", saved)
	}
	for _, mod := range []api.Module{first, second, first} {
		if _, err := mod.ExportedFunction("spoil").Call(context.Background()); err != nil {
			t.Fatal(err)
		}
		if words(t, mod, r.Slots)[4] != 0 {
			t.Error("not spoiled")
		}
		stack := append([]uint64{}, saved...)
		if err := mod.ExportedFunction(ExportReset).CallWithStack(context.Background(), stack); err != nil || stack[0] != 0 {
			t.Fatal(err, stack[0])
		}
		if got := words(t, mod, r.Slots); !bytes.Equal(u64bytes(got), u64bytes(saved)) {
			t.Errorf("after reset %x, want %x", got, saved)
		}
	}
}

func u64bytes(ws []uint64) (b []byte) {
	for _, w := range ws {
		b = append(b, byte(w), byte(w>>8), byte(w>>16), byte(w>>24), byte(w>>32), byte(w>>40), byte(w>>48), byte(w>>56))
	}
	return b
}

func words(t *testing.T, mod api.Module, n int) []uint64 {
	stack := make([]uint64, max(n, 1))
	if err := mod.ExportedFunction(ExportGlobals).CallWithStack(context.Background(), stack); err != nil {
		t.Fatal(err)
	}
	return stack[:n]
}

// A reset also refills the fuel, so that what a call costs does not depend on
// the calls before it.
func TestResetFuel(t *testing.T) {
	r := rewritten(t, simple(bytes.Repeat(code(raw(opMemorySize, 0), raw(0x1a)), 100)...).bytes(), Options{})
	h := newHost(t)
	mod := h.instance(t, r)
	var left [2]uint64
	for i := range left {
		stack := []uint64{0}
		if err := mod.ExportedFunction(ExportReset).CallWithStack(context.Background(), stack); err != nil {
			t.Fatal(err)
		}
		if full := call1(t, mod, ExportFuel); full != defaultPeriod {
			t.Errorf("%d units after reset", full)
		}
		mod.ExportedFunction("run").Call(context.Background())
		left[i] = call1(t, mod, ExportFuel)
	}
	if left[0] != left[1] {
		t.Errorf("first %d, then %d", left[0], left[1])
	}
}

// Each instruction that changes tables or drops segments leaves its flag.
func TestDirty(t *testing.T) {
	tests := []struct {
		name string
		code []byte
		want uint64
	}{
		{"nothing", nil, 0},
		{"table.get", raw(opI32Const, 0, opTableGet, 0, 0x1a), 0},
		{"table.set", raw(opI32Const, 0, opRefNull, 0x70, opTableSet, 0), DirtyTable},
		{"table.grow", raw(opRefNull, 0x70, opI32Const, 1, 0xfc, 0x0f, 0, 0x1a), DirtyTable},
		{"table.fill", raw(opI32Const, 0, opRefNull, 0x70, opI32Const, 1, 0xfc, 0x11, 0), DirtyTable},
		{"table.copy", raw(opI32Const, 0, opI32Const, 0, opI32Const, 1, 0xfc, 0x0e, 0, 0), DirtyTable},
		{"table.init", raw(opI32Const, 0, opI32Const, 0, opI32Const, 1, 0xfc, 0x0c, 0, 0), DirtyTable},
		{"elem.drop", raw(0xfc, 0x0d, 0), DirtyElem},
		{"data.drop", raw(0xfc, 0x09, 0), DirtyData},
		{"both", raw(0xfc, 0x09, 0, 0xfc, 0x0d, 0), DirtyData | DirtyElem},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := simple(tt.code...)
			m.tables = [][]byte{{byte(FuncRef), 0, 3}}
			m.elems = [][]byte{{1, 0, 2, 0, 0}}
			m.data = [][]byte{passiveData("x")}
			r := rewritten(t, m.bytes(), Options{})
			mod := newHost(t).instance(t, r)
			if got := call1(t, mod, ExportDirty); got != 0 {
				t.Errorf("dirty %d before", got)
			}
			mod.ExportedFunction("run").Call(context.Background())
			stack := []uint64{0}
			if got := call1(t, mod, ExportDirty); got != tt.want || uint64(r.MayDirty) != tt.want {
				t.Errorf("dirty %d, may %d, want %d", got, r.MayDirty, tt.want)
			}
			if mod.ExportedFunction(ExportReset).CallWithStack(context.Background(), stack); stack[0] != tt.want {
				t.Errorf("reset answered %d, want %d", stack[0], tt.want)
			}
			if got := call1(t, mod, ExportDirty); got != 0 {
				t.Errorf("dirty %d after reset", got)
			}
		})
	}
}

// References in globals, and too many globals, leave no reset.
func TestFreshOnly(t *testing.T) {
	m := simple()
	m.globals = [][]byte{{byte(FuncRef), 1, opRefFunc, 0, opEnd}}
	if r := rewritten(t, m.bytes(), Options{}); !r.FreshOnly || r.Fresh == "" || r.Globals[0].Slot != -1 {
		t.Errorf("%+v", r)
	}
	m.globals = nil
	for range MaxSlots + 1 {
		m.globals = append(m.globals, globalI32(1))
	}
	r := rewritten(t, m.bytes(), Options{})
	if mod := newHost(t).instance(t, r); !r.FreshOnly || mod.ExportedFunction(ExportReset) != nil {
		t.Errorf("fresh only: %v", r.FreshOnly)
	}
}

// What the host takes over: data, start, custom sections, lists.
func TestTakenOut(t *testing.T) {
	m := &asmModule{memory: []byte{0, 1}}
	m.imports = []Import{{"env", "log", FuncType{Params: one}}}
	m.globals = [][]byte{globalI32(1)}
	start := m.fn(nil, nil, nil, code(i32c(42), op1(opGlobalSet, 0))...)
	m.start = start + 1
	m.export("load", ExportKindFunc, m.fn(one, one, nil, code(op1(opLocalGet, 0), raw(0x2d, 0, 0))...))
	m.data = [][]byte{activeData(5, "hello"), passiveData("there"), activeData(8, "p!")}
	m.custom = [][]byte{append(appendName(nil, "lode.describe"), "text"...), append(appendName(nil, ".debug_info"), 1, 2)}
	r := rewritten(t, m.bytes(), Options{})
	if len(r.Data) != 2 || r.Data[1].Offset != 8 || string(r.Data[0].Bytes) != "hello" {
		t.Errorf("data %+v", r.Data)
	}
	if len(r.Custom) != 1 || string(r.Custom["lode.describe"]) != "text" || bytes.Contains(r.Wasm, []byte(".debug_info")) {
		t.Errorf("custom %q", r.Custom)
	}
	if len(r.Imports) != 1 || r.Imports[0].Name != "log" || len(r.Exports) != 1 || r.Exports[0].Name != "load" || len(r.Exports[0].Type.Params) != 1 {
		t.Errorf("imports %+v, exports %+v", r.Imports, r.Exports)
	}
	h := newHost(t)
	if _, err := h.rt.NewHostModuleBuilder("env").NewFunctionBuilder().WithFunc(func(uint32) {}).Export("log").Instantiate(context.Background()); err != nil {
		t.Fatal(err)
	}
	mod := h.instance(t, r)
	if !r.HasStart || words(t, mod, 1)[0] != 42 {
		t.Errorf("start did not run: %v", r.HasStart)
	}
	if got := call1(t, mod, "load", 8); got != 'p' {
		t.Errorf("byte 8 is %q", rune(got))
	}
}

// A trap still names the guest's functions.
func TestNames(t *testing.T) {
	m := simple(opUnreachable)
	m.imports = []Import{{"wasi_snapshot_preview1", "sched_yield", FuncType{Results: one}}}
	m.exports = nil
	m.export("run", ExportKindFunc, 1)
	names := appendName(appendU32([]byte{1}, 1), "the_culprit")
	m.custom = [][]byte{append(appendName(nil, "name"), append([]byte{nameFunctions, byte(len(names))}, names...)...)}
	mod := newHost(t).instance(t, rewritten(t, m.bytes(), Options{}))
	_, err := mod.ExportedFunction("run").Call(context.Background())
	if err == nil || !strings.Contains(err.Error(), "the_culprit") {
		t.Errorf("trap: %v", err)
	}
	m.custom[0] = m.custom[0][:len(m.custom[0])-3] // damaged names are left out
	rewritten(t, m.bytes(), Options{})
}

// Recursion ends at the same depth each time, and goes on after a reset.
func TestDepth(t *testing.T) {
	m := &asmModule{memory: []byte{0, 1}, globals: [][]byte{globalI32(1)}}
	m.export("run", ExportKindFunc, m.fn(nil, nil, nil, code(op1(opGlobalGet, 0), i32c(1), raw(0x6a), op1(opGlobalSet, 0), op1(opCall, 0))...))
	m.export("depth", ExportKindGlobal, 0)
	r := rewritten(t, m.bytes(), Options{MaxStack: 1 << 20})
	h := newHost(t)
	var depths []uint64
	for range 3 {
		mod := h.instance(t, r)
		mod.ExportedFunction("run").Call(context.Background())
		depths = append(depths, mod.ExportedGlobal("depth").Get())
	}
	if depths[0] < 1000 || depths[0] > 1<<20/frameBase || depths[0] != depths[1] || depths[1] != depths[2] {
		t.Errorf("depths %v", depths)
	}
}
