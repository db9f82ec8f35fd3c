package rewrite

import (
	"bytes"
	"slices"
	"strings"
)

// Section codes of the binary format.
const (
	secCustom = iota
	secType
	secImport
	secFunction
	secTable
	secMemory
	secGlobal
	secExport
	secStart
	secElement
	secCode
	secData
	secDataCount
	secTag
)

var sectionNames = [...]string{"custom", "type", "import", "function", "table", "memory", "global", "export", "start", "element", "code", "data", "data count"}

// source is the module as read.
type source struct {
	b        []byte
	types    []FuncType
	typeSec  []byte   // the types as they were, without their count
	imports  []Import // functions only
	impTypes []uint32
	funcs    []uint32 // type of each defined function
	tables   []table
	memory   Memory
	globals  []global
	exports  []export
	start    int // -1: none
	elems    []element
	data     []dataSegment
	hasCount bool
	bodies   []body
	names    []byte // content of the name section
	custom   map[string][]byte
}

type table struct {
	typ      ValType
	min, max uint32
	hasMax   bool
}

type global struct {
	typ     ValType
	mutable bool
	init    constExpr
}

// constExpr is an initialiser: bytes lo to hi of the module, its end opcode
// included, or a reference to function fn.
type constExpr struct {
	lo, hi int
	op     uint32
	fn     uint32 // of ref.func
	value  int64  // of i32.const
}

type export struct {
	name  string
	kind  ExportKind
	index uint32
}

// element is one element segment. Its items are function indices, or
// expressions when exprs is set.
type element struct {
	flags  uint32
	table  uint32
	offset constExpr
	typ    ValType
	funcs  []uint32
	exprs  []constExpr
}

type dataSegment struct {
	passive bool
	offset  constExpr
	bytes   []byte
}

// body is the code of one defined function.
type body struct {
	lo, code, hi int // locals begin at lo, instructions at code, hi is one past
	locals       uint64
	groups       uint32 // entries of the list of locals
	wide         bool   // some local is a v128
}

func (s *source) funcCount() int { return len(s.imports) + len(s.funcs) }

// typeOf is the type of a function, by index; ok is false outside.
func (s *source) typeOf(fn uint32) (t uint32, ok bool) {
	if int(fn) < len(s.impTypes) {
		return s.impTypes[fn], true
	}
	if i := int(fn) - len(s.impTypes); i < len(s.funcs) {
		return s.funcs[i], true
	}
	return 0, false
}

// parse reads everything but the instructions of functions.
func parse(b []byte) (*source, error) {
	s := &source{b: b, start: -1, custom: map[string][]byte{}}
	r := &reader{b: b, end: len(b), at: "header"}
	if !bytes.HasPrefix(b, []byte("\x00asm\x01\x00\x00\x00")) {
		r.refuse(0, "this takes core modules in binary form; a component or a text file must be converted first", "not a WebAssembly module of version 1")
		return nil, r.err
	}
	r.p = 8
	for r.more() {
		s.section(r)
	}
	if r.err != nil {
		return nil, r.err
	}
	if len(s.bodies) != len(s.funcs) {
		r.at = "code section"
		r.fail(len(b), "%d functions are declared, %d have code", len(s.funcs), len(s.bodies))
		return nil, r.err
	}
	return s, nil
}

func (s *source) section(r *reader) {
	pos := r.p
	id := r.byte()
	r.at = "section header"
	size := r.u32()
	if r.err == nil && uint64(size) > uint64(r.end-r.p) {
		r.fail(pos, "a section of %d bytes with %d left", size, r.end-r.p)
	}
	if r.err != nil {
		return
	}
	if id == secTag {
		r.refuse(pos, "build without WebAssembly exceptions", "a tag section: exception handling is refused")
		return
	}
	if int(id) >= len(sectionNames) {
		r.fail(pos, "section %d is not known", id)
		return
	}
	in := &reader{b: r.b, p: r.p, end: r.p + int(size), at: sectionNames[id] + " section"}
	s.content(id, in)
	if in.err == nil && in.p != in.end {
		in.fail(in.p, "%d bytes too many", in.end-in.p)
	}
	r.p, r.err = r.p+int(size), in.err
}

func (s *source) content(id byte, r *reader) {
	switch id {
	case secCustom:
		s.readCustom(r)
	case secType:
		s.readTypes(r)
	case secImport:
		s.readImports(r)
	case secFunction:
		for n := r.count(1); n > 0 && r.err == nil; n-- {
			s.funcs = append(s.funcs, s.typeIndex(r))
		}
	case secTable:
		for n := r.count(3); n > 0 && r.err == nil; n-- {
			s.tables = append(s.tables, readTable(r))
		}
	case secMemory:
		for n := r.count(2); n > 0 && r.err == nil; n-- {
			s.readMemory(r)
		}
	case secGlobal:
		for n := r.count(3); n > 0 && r.err == nil; n-- {
			s.readGlobal(r)
		}
	case secExport:
		for n := r.count(3); n > 0 && r.err == nil; n-- {
			s.readExport(r)
		}
	case secStart:
		s.start = int(r.u32())
	case secElement:
		for n := r.count(3); n > 0 && r.err == nil; n-- {
			s.elems = append(s.elems, readElement(r))
		}
	case secCode:
		s.readBodies(r)
	case secData:
		for n := r.count(2); n > 0 && r.err == nil; n-- {
			s.data = append(s.data, readData(r))
		}
	case secDataCount:
		s.hasCount = true
		r.u32()
	}
}

func (s *source) readCustom(r *reader) {
	name := r.name()
	rest := r.bytes(uint32(r.end - r.p))
	if name == "name" && s.names == nil {
		s.names = rest
	}
	if _, twice := s.custom[name]; strings.HasPrefix(name, CustomPrefix) && !twice {
		s.custom[name] = rest
	}
}

func (s *source) readTypes(r *reader) {
	n := r.count(3)
	lo := r.p
	for ; n > 0 && r.err == nil; n-- {
		pos := r.p
		if form := r.byte(); form != 0x60 && r.err == nil {
			r.refuse(pos, "build without garbage collection or typed references", "type form %#x is not known", form)
		}
		s.types = append(s.types, FuncType{readValTypes(r), readValTypes(r)})
	}
	s.typeSec = append(s.typeSec, r.b[lo:r.p]...)
}

func readValTypes(r *reader) []ValType {
	ts := make([]ValType, r.count(1))
	for i := range ts {
		ts[i] = r.valType()
	}
	return ts
}

// typeIndex reads the index of a type that exists.
func (s *source) typeIndex(r *reader) uint32 {
	pos := r.p
	t := r.u32()
	if r.err == nil && int(t) >= len(s.types) {
		r.fail(pos, "type %d of %d", t, len(s.types))
		return 0
	}
	return t
}

func (s *source) readImports(r *reader) {
	for n := r.count(4); n > 0 && r.err == nil; n-- {
		pos := r.p
		module, name := r.name(), r.name()
		if module == HostModule || strings.HasPrefix(module, ReservedPrefix) {
			r.refuse(pos, "rename the import", "imports %q from %q, a name kept for the platform", name, module)
			return
		}
		if kind := ExportKind(r.byte()); kind != ExportKindFunc {
			r.refuse(pos, "link the module so that it defines its own memory, tables and globals (no --import-memory, --import-table, no dynamic linking)",
				"imports the %s %q from %q; only functions can be imported", kind, name, module)
			return
		}
		t := s.typeIndex(r)
		if r.err != nil {
			return
		}
		s.impTypes = append(s.impTypes, t)
		s.imports = append(s.imports, Import{module, name, s.types[t]})
	}
}

// String names the kind as people do.
func (k ExportKind) String() string {
	switch k {
	case ExportKindFunc:
		return "function"
	case ExportKindTable:
		return "table"
	case ExportKindMemory:
		return "memory"
	case ExportKindGlobal:
		return "global"
	}
	return "thing of unknown kind"
}

func readTable(r *reader) table {
	t := table{typ: r.refType()}
	pos := r.p
	flags := r.byte()
	if flags > 1 && r.err == nil {
		r.refuse(pos, "build without 64-bit or shared tables", "a table with limits of form %#x", flags)
	}
	t.min = r.u32()
	if flags&1 != 0 {
		t.hasMax, t.max = true, r.u32()
	}
	return t
}

func (s *source) readMemory(r *reader) {
	pos := r.p
	if s.memory.Present {
		r.refuse(pos, "build without multiple memories", "more than one memory")
		return
	}
	flags := r.byte()
	switch {
	case flags&2 != 0:
		r.refuse(pos, "build without threads: a sandbox has one thread", "a shared memory")
	case flags > 1:
		r.refuse(pos, "build for wasm32", "a memory with limits of form %#x (64-bit, or another page size)", flags)
	}
	s.memory = Memory{Present: true, MinPages: r.u32(), MaxPages: 1 << 16}
	if flags&1 != 0 {
		s.memory.MaxPages = r.u32()
	}
}

func (s *source) readGlobal(r *reader) {
	g := global{typ: r.valType()}
	pos := r.p
	m := r.byte()
	if m > 1 && r.err == nil {
		r.refuse(pos, "build without threads", "a global of form %#x", m)
	}
	g.mutable = m == 1
	g.init = readConst(r)
	s.globals = append(s.globals, g)
}

func (s *source) readExport(r *reader) {
	pos := r.p
	e := export{r.name(), ExportKind(r.byte()), r.u32()}
	switch {
	case r.err != nil:
	case strings.HasPrefix(e.name, ReservedPrefix):
		r.refuse(pos, "rename the export", "exports %q, a name kept for the platform", e.name)
	case e.kind > ExportKindGlobal:
		r.fail(pos, "export %q of a kind that is not known", e.name)
	case e.kind == ExportKindFunc && int(e.index) >= s.funcCount():
		r.fail(pos, "export %q is of function %d of %d", e.name, e.index, s.funcCount())
	}
	s.exports = append(s.exports, e)
	if e.kind == ExportKindMemory {
		s.memory.Exported = true
	}
}

// readConst reads an initialiser of one constant instruction.
func readConst(r *reader) constExpr {
	var in instr
	c := constExpr{lo: r.p}
	if !r.next(&in) {
		if r.err == nil {
			r.fail(r.p, "ends too early")
		}
		return c
	}
	c.op = in.op
	switch in.op {
	case opI32Const:
		v := &reader{b: r.b, p: in.pos + 1, end: in.end}
		c.value = v.signed(32)
	case opRefFunc:
		c.fn = in.a
	case opI64Const, 0x43, 0x44, opV128Const, opRefNull:
	case opGlobalGet:
		r.refuse(in.pos, "link the module so that it is not position independent", "a constant taken from a global")
	default:
		r.refuse(in.pos, "build without extended constant expressions", "opcode %#x in a constant", in.op)
	}
	pos := r.p
	if end := r.byte(); end != opEnd && r.err == nil {
		r.refuse(pos, "build without extended constant expressions", "a constant of more than one instruction")
	}
	c.hi = r.p
	return c
}

func readElement(r *reader) element {
	pos := r.p
	e := element{flags: r.u32(), typ: FuncRef}
	if e.flags > 7 {
		r.fail(pos, "element segment of form %d", e.flags)
		return e
	}
	if e.flags&1 == 0 {
		if e.flags&2 != 0 {
			e.table = r.u32()
		}
		e.offset = readConst(r)
	}
	if e.flags&3 != 0 {
		kindPos := r.p
		if e.flags&4 != 0 {
			e.typ = r.refType()
		} else if k := r.byte(); k != 0 && r.err == nil {
			r.fail(kindPos, "element kind %#x is not known", k)
		}
	}
	for n := r.count(1); n > 0 && r.err == nil; n-- {
		if e.flags&4 != 0 {
			e.exprs = append(e.exprs, readConst(r))
		} else {
			e.funcs = append(e.funcs, r.u32())
		}
	}
	return e
}

func readData(r *reader) dataSegment {
	pos := r.p
	flags := r.u32()
	d := dataSegment{passive: flags == 1}
	if flags == 2 && r.u32() != 0 || flags > 2 {
		r.refuse(pos, "build without multiple memories", "data segment of form %d", flags)
		return d
	}
	if !d.passive {
		d.offset = readConst(r)
	}
	d.bytes = r.bytes(r.u32())
	return d
}

func (s *source) readBodies(r *reader) {
	for n := r.count(2); n > 0 && r.err == nil; n-- {
		r.at = "code section"
		size := r.u32()
		if r.err == nil && uint64(size) > uint64(r.end-r.p) {
			r.fail(r.p, "the code of a function ends too early")
			return
		}
		in := &reader{b: r.b, p: r.p, end: r.p + int(size), at: s.funcAt(len(s.bodies))}
		s.bodies = append(s.bodies, readLocals(in))
		r.p, r.err = r.p+int(size), in.err
	}
}

func readLocals(r *reader) body {
	b := body{lo: r.p, hi: r.end}
	pos := r.p
	n := r.count(2)
	b.groups = uint32(n)
	for ; n > 0 && r.err == nil; n-- {
		b.locals += uint64(r.u32())
		b.wide = r.valType() == V128 || b.wide
	}
	if b.locals > 1<<16 {
		r.refuse(pos, "split the function", "%d locals; at most %d", b.locals, 1<<16)
	}
	b.code = r.p
	return b
}

// mutableSlots lays the mutable globals out in words.
func (s *source) mutableSlots() (gs []Global, slots int, refs bool) {
	for i, g := range s.globals {
		if !g.mutable {
			continue
		}
		slot := slots
		switch g.typ {
		case V128:
			slots += 2
		case FuncRef, ExternRef:
			slot, refs = -1, true
		default:
			slots++
		}
		gs = append(gs, Global{uint32(i), g.typ, slot})
	}
	return slices.Clip(gs), slots, refs
}
