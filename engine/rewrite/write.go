package rewrite

import "slices"

// writer puts the sections of the new module together.
type writer struct {
	s *source
	v *survey
	o Options
	m *Module
	e emitter

	reset, globals, dirty, fuel uint32 // functions
	yield                       uint32 // type of the imported function
}

func newWriter(s *source, v *survey, plans []plan, o Options, m *Module) *writer {
	w := &writer{s: s, v: v, o: o, m: m}
	w.e = emitter{s: s, v: v, plans: plans,
		counter: uint32(len(s.globals)), dirty: uint32(len(s.globals)) + 1, hidden: uint32(len(s.tables)),
		types:   &typeTable{n: uint32(len(s.types)), added: map[string]uint32{}},
		helpers: helpers{base: uint32(s.funcCount()) + 1, byKey: map[helperKey]uint32{}},
	}
	w.runtime()
	return w
}

// full is the counter at its start.
func (w *writer) full() int64 { return int64(w.o.MaxStack)<<32 + int64(w.o.Period) }

// runtime adds the functions that do not depend on the code.
func (w *writer) runtime() {
	e := &w.e
	yield := uint32(len(w.s.imports))
	w.yield = e.types.index([]ValType{I32}, nil)
	none, answer := e.types.index(nil, nil), e.types.index(nil, []ValType{I32})
	e.slow = e.helpers.put("lode:slow", none, nil, e.asm(func() {
		stack := func() { // (counter - fuel) >> 32
			e.op(opGlobalGet, e.counter)
			e.op(opGlobalGet, e.counter)
			e.raw(0xc4, 0x7d) // i64.extend32_s, i64.sub
		}
		stack()
		e.i64(0)
		e.raw(0x53, opIf, 0x40) // i64.lt_s
		e.i32(YieldStack)
		e.op(opCall, yield)
		e.raw(opUnreachable, opEnd)
		stack()
		e.i64(int64(w.o.Period))
		e.raw(0x7c) // i64.add
		e.op(opGlobalSet, e.counter)
		e.i32(YieldFuel)
		e.op(opCall, yield)
	}))
	e.lease = e.helpers.put("lode:lease", answer, nil, e.asm(func() {
		e.check(nextLease)
		e.i32(nextLease)
	}))
	e.stats = Stats{}
	w.dirty = e.helpers.put(ExportDirty, answer, nil, e.asm(func() { e.op(opGlobalGet, e.dirty) }))
	w.fuel = e.helpers.put(ExportFuel, answer, nil, e.asm(func() {
		e.op(opGlobalGet, e.counter)
		e.raw(0xa7) // i32.wrap_i64
	}))
	if !w.m.FreshOnly {
		w.resetters()
	}
}

// resetters adds lode:reset and lode:globals.
func (w *writer) resetters() {
	e := &w.e
	slots := slices.Repeat([]ValType{I64}, w.m.Slots)
	w.globals = e.helpers.put(ExportGlobals, e.types.index(nil, slots), nil, e.asm(func() {
		for _, g := range w.m.Globals {
			e.toSlots(g)
		}
	}))
	w.reset = e.helpers.put(ExportReset, e.types.index(slots, []ValType{I32}), nil, e.asm(func() {
		for _, g := range w.m.Globals {
			e.fromSlots(g)
		}
		e.i64(w.full())
		e.op(opGlobalSet, e.counter)
		e.op(opGlobalGet, e.dirty)
		e.i32(0)
		e.op(opGlobalSet, e.dirty)
	}))
}

func (e *emitter) toSlots(g Global) {
	e.op(opGlobalGet, g.Index)
	switch g.Type {
	case I32:
		e.raw(0xad) // i64.extend_i32_u
	case F32:
		e.raw(0xbc, 0xad) // i32.reinterpret_f32
	case F64:
		e.raw(0xbd) // i64.reinterpret_f64
	case V128:
		e.raw(0xfd, 0x1d, 0) // i64x2.extract_lane
		e.op(opGlobalGet, g.Index)
		e.raw(0xfd, 0x1d, 1)
	}
}

func (e *emitter) fromSlots(g Global) {
	e.op(opLocalGet, uint32(g.Slot))
	switch g.Type {
	case I32:
		e.raw(0xa7) // i32.wrap_i64
	case F32:
		e.raw(0xa7, 0xbe) // f32.reinterpret_i32
	case F64:
		e.raw(0xbf) // f64.reinterpret_i64
	case V128:
		e.raw(0xfd, 0x12) // i64x2.splat
		e.op(opLocalGet, uint32(g.Slot)+1)
		e.raw(0xfd, 0x1e, 1) // i64x2.replace_lane
	}
	e.op(opGlobalSet, g.Index)
}

// write gives the whole module. The code comes first, since it decides which
// types and helpers there are.
func (w *writer) write() []byte {
	code := w.code()
	out := make([]byte, 0, len(code)+len(w.s.b)/4+1<<10)
	out = append(out, "\x00asm\x01\x00\x00\x00"...)
	out = section(out, secType, w.e.types.n, append(w.s.typeSec, w.e.types.b...))
	out = w.importSection(out)
	out = w.functionSection(out)
	out = w.tableSection(out)
	if w.s.memory.Present {
		out = section(out, secMemory, 1, limits(nil, w.s.memory.MinPages, w.s.memory.MaxPages))
	}
	out = w.globalSection(out)
	out = w.exportSection(out)
	out = w.elementSection(out)
	data := w.dataSection()
	if data != nil {
		out = append(out, secDataCount)
		count := appendU32(nil, uint32(len(w.s.data)))
		out = append(appendU32(out, uint32(len(count))), count...)
	}
	out = section(out, secCode, uint32(len(w.s.funcs)+len(w.e.helpers.bodies)), code)
	out = append(out, data...)
	return w.nameSection(out)
}

// section appends a section that is a vector of n elements.
func section(out []byte, id byte, n uint32, content []byte) []byte {
	count := appendU32(nil, n)
	out = appendU32(append(out, id), uint32(len(count)+len(content)))
	return append(append(out, count...), content...)
}

func limits(b []byte, lo, hi uint32) []byte {
	return appendU32(appendU32(append(b, 1), lo), hi)
}

// code writes all functions, each with its size.
func (w *writer) code() []byte {
	total := 0
	for i := range w.s.bodies {
		total += w.s.bodies[i].hi - w.s.bodies[i].lo
	}
	out := make([]byte, 0, total+total/4)
	for i := range w.s.bodies {
		w.e.b = w.e.b[:0]
		w.e.function(i)
		out = append(appendU32(out, uint32(len(w.e.b))), w.e.b...)
	}
	for _, b := range w.e.helpers.bodies {
		out = append(out, b...)
	}
	return out
}

func (w *writer) importSection(out []byte) []byte {
	var b []byte
	for i, im := range w.s.imports {
		b = appendName(appendName(b, im.Module), im.Name)
		b = appendU32(append(b, byte(ExportKindFunc)), w.s.impTypes[i])
	}
	b = appendName(appendName(b, HostModule), YieldFunc)
	b = appendU32(append(b, byte(ExportKindFunc)), w.yield)
	return section(out, secImport, uint32(len(w.s.imports))+1, b)
}

func (w *writer) functionSection(out []byte) []byte {
	var b []byte
	for _, t := range w.s.funcs {
		b = appendU32(b, t)
	}
	for _, t := range w.e.helpers.types {
		b = appendU32(b, t)
	}
	return section(out, secFunction, uint32(len(w.s.funcs)+len(w.e.helpers.types)), b)
}

func (w *writer) tableSection(out []byte) []byte {
	var b []byte
	n := uint32(len(w.s.tables))
	for _, t := range w.s.tables {
		b = limits(append(b, byte(t.typ)), t.min, t.max)
	}
	if refs := uint32(len(w.v.refList)); refs > 0 {
		n++
		b = limits(append(b, byte(FuncRef)), refs, refs)
	}
	if n == 0 {
		return out
	}
	return section(out, secTable, n, b)
}

func (w *writer) globalSection(out []byte) []byte {
	var b []byte
	for _, g := range w.s.globals {
		mutable := byte(0)
		if g.mutable {
			mutable = 1
		}
		b = w.constant(append(b, byte(g.typ), mutable), g.init)
	}
	b = appendS64(append(b, byte(I64), 1, opI64Const), w.full())
	b = append(b, opEnd, byte(I32), 1, opI32Const, 0, opEnd)
	return section(out, secGlobal, uint32(len(w.s.globals))+2, b)
}

// constant copies an initialiser, with the new index of a function.
func (w *writer) constant(b []byte, c constExpr) []byte {
	if c.op != opRefFunc {
		return append(b, w.s.b[c.lo:c.hi]...)
	}
	return append(appendU32(append(b, opRefFunc), w.e.fn(c.fn)), opEnd)
}

func (w *writer) exportSection(out []byte) []byte {
	var b []byte
	n := uint32(len(w.s.exports))
	add := func(name string, kind ExportKind, index uint32) {
		b = appendU32(append(appendName(b, name), byte(kind)), index)
		n++
	}
	for _, x := range w.s.exports {
		index := x.index
		if x.kind == ExportKindFunc {
			index = w.e.fn(index)
		}
		b = appendU32(append(appendName(b, x.name), byte(x.kind)), index)
	}
	if w.s.memory.Present {
		add(ExportMemory, ExportKindMemory, 0)
	}
	if !w.m.FreshOnly {
		add(ExportReset, ExportKindFunc, w.reset)
		add(ExportGlobals, ExportKindFunc, w.globals)
	}
	add(ExportDirty, ExportKindFunc, w.dirty)
	add(ExportFuel, ExportKindFunc, w.fuel)
	if w.s.start >= 0 {
		add(ExportStart, ExportKindFunc, w.e.fn(uint32(w.s.start)))
	}
	return section(out, secExport, n, b)
}

func (w *writer) elementSection(out []byte) []byte {
	var b []byte
	n := uint32(len(w.s.elems))
	for i := range w.s.elems {
		b = w.element(b, &w.s.elems[i])
	}
	if len(w.v.refList) > 0 {
		n++
		b = appendU32(append(b, 2), w.e.hidden)
		b = append(b, opI32Const, 0, opEnd, 0)
		b = appendU32(b, uint32(len(w.v.refList)))
		for _, fn := range w.v.refList {
			b = appendU32(b, w.e.fn(fn))
		}
	}
	if n == 0 {
		return out
	}
	return section(out, secElement, n, b)
}

func (w *writer) element(b []byte, e *element) []byte {
	b = appendU32(b, e.flags)
	if e.flags&1 == 0 {
		if e.flags&2 != 0 {
			b = appendU32(b, e.table)
		}
		b = w.constant(b, e.offset)
	}
	if e.flags&3 != 0 {
		if e.flags&4 != 0 {
			b = append(b, byte(e.typ))
		} else {
			b = append(b, 0)
		}
	}
	b = appendU32(b, uint32(len(e.funcs)+len(e.exprs)))
	for _, fn := range e.funcs {
		b = appendU32(b, w.e.fn(fn))
	}
	for _, c := range e.exprs {
		b = w.constant(b, c)
	}
	return b
}

// dataSection keeps passive segments and leaves an empty one for each active
// one: dropped after instantiation, it answered like an empty one too. Where no
// code names a segment there is none, since an instance pays for each of them,
// and Go writes thousands.
func (w *writer) dataSection() []byte {
	if len(w.s.data) == 0 || !w.v.segments {
		return nil
	}
	var b []byte
	for _, d := range w.s.data {
		b = append(b, 1)
		if !d.passive {
			b = append(b, 0)
			continue
		}
		b = append(appendU32(b, uint32(len(d.bytes))), d.bytes...)
	}
	return section(nil, secData, uint32(len(w.s.data)), b)
}
