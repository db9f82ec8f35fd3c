package rewrite

// The counter is one i64, stack left * 2^32 + fuel left, so that a guarded
// function pays both with one addition and a loop needs a small constant only.
// When either is negative the slow path is due.
const bothSigns = -0x7fff_ffff_8000_0000 // 0x8000_0000_8000_0000

// emitter writes the code of functions.
type emitter struct {
	s       *source
	v       *survey
	plans   []plan
	counter uint32 // index of the counter's global
	dirty   uint32 // index of the global of dirty flags
	slow    uint32 // function to call when the counter is negative
	lease   uint32 // function that takes fuel for loops that count in a local
	hidden  uint32 // table that holds what ref.func answers
	types   *typeTable
	helpers helpers
	stats   Stats
	// of the function being written
	b       []byte
	local   uint32   // counts what is left of the lease
	wrapped bool     // a block stands around the body
	places  []uint32 // of each open block of the original: its depth as written
	depth   uint32   // open blocks as written
	moved   uint32   // loops around loops that are open
	jumps   []jump
	// of the loop whose body is being repeated
	copies, body, last int
	saved              []jump
	edge               bool // the dispatch loop's check is at its branches back
}

// fn is the new index of a function.
func (e *emitter) fn(old uint32) uint32 {
	if int(old) < len(e.s.imports) {
		return old
	}
	return old + 1
}

// add emits counter += delta.
func (e *emitter) add(delta int64) {
	e.op(opGlobalGet, e.counter)
	e.b = appendS64(append(e.b, opI64Const), delta)
	e.b = append(e.b, 0x7c)
	e.op(opGlobalSet, e.counter)
}

func (e *emitter) op(op byte, index uint32) { e.b = appendU32(append(e.b, op), index) }

func (e *emitter) i32(v int32) { e.b = appendS64(append(e.b, opI32Const), int64(v)) }

func (e *emitter) i64(v int64) { e.b = appendS64(append(e.b, opI64Const), v) }

// check takes weight units of fuel and calls the slow path when none is left.
func (e *emitter) check(weight int32) {
	e.stats.Checks++
	e.add(-int64(weight))
	e.ask()
}

// ask calls the slow path when the fuel is negative.
func (e *emitter) ask() {
	e.spent()
	e.raw(opIf, 0x40)
	e.op(opCall, e.slow)
	e.raw(opEnd)
}

// spent leaves 1 when the fuel is negative.
func (e *emitter) spent() {
	e.op(opGlobalGet, e.counter)
	e.raw(0xa7) // i32.wrap_i64
	e.i32(0)
	e.raw(0x48) // i32.lt_s
}

// enter is the check of a guarded function: fuel and stack.
func (e *emitter) enter(weight int32, guard uint32) {
	e.stats.Checks++
	e.stats.Guarded++
	e.add(-int64(weight) - int64(guard)<<32)
	e.op(opGlobalGet, e.counter)
	e.i64(bothSigns)
	e.b = append(e.b, 0x83) // i64.and
	e.i64(0)
	e.b = append(e.b, 0x52, opIf, 0x40) // i64.ne
	e.op(opCall, e.slow)
	e.b = append(e.b, opEnd)
}

// mark raises dirty flags.
func (e *emitter) mark(flags int32) {
	e.op(opGlobalGet, e.dirty)
	e.i32(flags)
	e.b = append(e.b, 0x72) // i32.or
	e.op(opGlobalSet, e.dirty)
}

// function appends the new code of defined function i to e.b.
func (e *emitter) function(i int) {
	p, b := &e.plans[i], &e.s.bodies[i]
	t := e.s.types[e.s.funcs[i]]
	e.depth, e.moved, e.wrapped = 1, 0, p.guard > 0
	e.locals(p, b, len(t.Params))
	switch {
	case p.guard > 0:
		e.enter(p.entry, p.guard)
	case p.entry > 0:
		e.check(p.entry)
	}
	if p.leases {
		e.i32(firstLease)
		e.op(opLocalSet, e.local)
	}
	if e.wrapped {
		e.b = append(e.b, opBlock)
		e.b = e.types.block(e.b, t.Results)
		e.depth++
	}
	e.places = append(e.places[:0], e.depth)
	e.code(i, p)
	if e.wrapped {
		e.add(int64(p.guard) << 32)
		e.b = append(e.b, opEnd)
	}
}

// locals writes the list of locals, with those that the pass needs: one that
// counts, and three for the operands of a bulk instruction.
func (e *emitter) locals(p *plan, b *body, params int) {
	more := uint32(1)
	if p.bulk {
		more += 3
	}
	if !p.leases && !p.bulk {
		e.b = append(e.b, e.s.b[b.lo:b.code]...)
		return
	}
	r := &reader{b: e.s.b, p: b.lo, end: b.code}
	r.u32()
	e.b = appendU32(e.b, b.groups+1)
	e.b = append(e.b, e.s.b[r.p:b.code]...)
	e.b = append(appendU32(e.b, more), byte(I32))
	e.local = uint32(params) + uint32(b.locals)
}

// code copies the instructions, changing those that need it.
func (e *emitter) code(i int, p *plan) {
	r := e.s.code(i)
	from, loops, mids := r.p, p.loops, p.mids
	e.jumps, e.edge, e.copies = p.jumps, p.edge, 0
	var in, last instr
	for r.next(&in) {
		for len(mids) > 0 && mids[0] == in.pos {
			e.b = append(e.b, e.s.b[from:in.pos]...)
			from, mids = in.pos, mids[1:]
			e.check(chunk)
		}
		if e.copies > 1 && in.pos == e.last {
			e.b = append(e.b, e.s.b[from:in.pos]...)
			if in.op == opBrIf {
				e.raw(0x45, opBrIf, 2) // i32.eqz: leave the loop
			}
			from, e.copies = e.body, e.copies-1
			r.p, e.jumps, last = from, e.saved, instr{}
			continue
		}
		small := last.op == opI32Const && last.a <= memorySmall && isMemory(in.op)
		last = in
		if small || !e.changes(&in) {
			continue
		}
		e.b = append(e.b, e.s.b[from:in.pos]...)
		from = in.end
		if in.op == opLoop {
			e.loop(&in, &loops[0], p.edge && len(loops) == len(p.loops))
			loops = loops[1:]
		} else {
			e.change(&in)
		}
	}
	e.b = append(e.b, e.s.b[from:r.end]...)
}

// changes keeps count of blocks and says whether the instruction must be
// written anew.
func (e *emitter) changes(in *instr) bool {
	switch in.op {
	case opBlock, opIf:
		e.open()
	case opEnd:
		top := len(e.places) - 1
		e.depth = e.places[top] - 1
		e.places = e.places[:top]
		return top > 0 && e.depth > e.places[top-1]
	case opBr:
		return e.moved > 0 || len(e.jumps) > 0 && e.jumps[0].pos == in.pos
	case opBrIf, opBrTable:
		return e.moved > 0
	case opReturn:
		return e.wrapped
	case opLoop, opCall, opRefFunc, opTableSet, opElemDrop, opDataDrop,
		opMemoryInit, opMemoryCopy, opMemoryFill, opTableInit, opTableCopy, opTableGrow, opTableFill:
		return true
	}
	return false
}

// open notes a block of the original.
func (e *emitter) open() {
	e.depth++
	e.places = append(e.places, e.depth)
}

func (e *emitter) change(in *instr) {
	switch in.op {
	case opEnd: // of a loop, and of the loop around it
		e.raw(opEnd)
		for e.depth > e.places[len(e.places)-1] {
			e.raw(opEnd)
			e.depth--
		}
		e.moved--
	case opBr:
		e.branch(in)
	case opBrIf:
		e.op(opBrIf, e.label(in.a))
	case opBrTable:
		r := &reader{b: e.s.b, p: in.targets, end: in.end}
		e.op(opBrTable, in.a)
		for n := uint32(0); n <= in.a; n++ {
			e.b = appendU32(e.b, e.label(r.u32()))
		}
	case opReturn:
		e.op(opBr, e.depth-2)
	case opCall:
		e.op(opCall, e.fn(in.a))
	case opRefFunc:
		e.i32(int32(e.v.refs[in.a]))
		e.op(opTableGet, e.hidden)
	case opTableSet, opElemDrop, opDataDrop:
		e.b = append(e.b, e.s.b[in.pos:in.end]...)
		e.mark(dirtyOf(in.op))
	case opMemoryCopy, opMemoryFill, opMemoryInit:
		e.memory(in)
	default:
		e.stats.Split++
		e.op(opCall, e.helper(in))
	}
}

func isMemory(op uint32) bool { return op >= opMemoryInit && op <= opMemoryFill && op != opDataDrop }

// memory writes a bulk instruction on memory: small ones run where they are.
func (e *emitter) memory(in *instr) {
	e.stats.Split++
	dst, src, n := e.local+1, e.local+2, e.local+3
	operands := func() {
		e.op(opLocalGet, dst)
		e.op(opLocalGet, src)
		e.op(opLocalGet, n)
	}
	e.op(opLocalSet, n)
	e.op(opLocalSet, src)
	e.op(opLocalSet, dst)
	e.op(opLocalGet, n)
	e.i32(memorySmall)
	e.raw(0x4d, opIf, 0x40) // i32.le_u
	operands()
	e.b = append(e.b, e.s.b[in.pos:in.end]...)
	e.raw(opElse)
	operands()
	e.op(opCall, e.helper(in))
	e.raw(opEnd)
}

// branch writes a plain branch, which may be a jump of the dispatch loop. One
// that goes back holds no call either: out of fuel, it goes to the loop around.
func (e *emitter) branch(in *instr) {
	if len(e.jumps) == 0 || e.jumps[0].pos != in.pos {
		e.op(opBr, e.label(in.a))
		return
	}
	j := e.jumps[0]
	e.jumps = e.jumps[1:]
	label := e.label(j.label)
	if j.weight > 0 && e.edge {
		e.stats.Checks++
		e.add(-int64(j.weight))
		e.spent()
		e.op(opBrIf, label+1)
	}
	e.op(opBr, label)
}

func dirtyOf(op uint32) int32 {
	switch op {
	case opElemDrop:
		return DirtyElem
	case opDataDrop:
		return DirtyData
	case opMemoryInit, opMemoryCopy, opMemoryFill:
		return 0
	}
	return DirtyTable
}

// label is the label, as written, of a block of the original.
func (e *emitter) label(l uint32) uint32 {
	return e.depth - e.places[len(e.places)-1-int(l)]
}

// maxMoved is how many loops around loops are put into each other: engines
// take long to compile deep nests of them, and no real code gains there.
const maxMoved = 6

// loop writes a loop and its check. The check holds no call: when the fuel is
// used up it goes back to a loop around the loop, whose head calls the slow
// path. So the loop keeps its values in registers. One that has no calls and
// no loops in it counts in a local, on a lease, and stays off memory too.
func (e *emitter) loop(in *instr, l *loop, edge bool) {
	head := e.s.b[in.pos:in.end]
	if e.moved >= maxMoved && !edge && !l.leased() {
		e.b = append(e.b, head...)
		e.open()
		e.check(max(l.weight, 1))
		return
	}
	if e.copies = l.copies; e.copies > 1 { // a block to leave from between two bodies
		e.raw(opBlock, 0x40)
		e.depth++
		e.body, e.last, e.saved = in.end, l.last, e.jumps
	}
	e.b = append(e.b, head...)
	e.depth++
	e.moved++
	e.open()
	switch {
	case edge: // the branches back check
		e.ask()
		e.b = append(e.b, head...)
		return
	case l.leased():
		e.leasedHeads(head, max(l.weight, 1))
	default:
		e.ask()
		e.b = append(e.b, head...)
		e.add(-int64(max(l.weight, 1)))
		e.spent()
	}
	e.stats.Checks++
	e.raw(opBrIf, 1)
}

// leasedHeads writes the rest of the outer head and the inner head of a loop
// that counts in the local; what is left says whether to go out.
func (e *emitter) leasedHeads(head []byte, weight int32) {
	e.op(opLocalGet, e.local)
	e.i32(0)
	e.raw(0x48, opIf, 0x40) // i32.lt_s
	e.op(opCall, e.lease)
	e.op(opLocalSet, e.local)
	e.raw(opEnd)
	e.b = append(e.b, head...)
	e.op(opLocalGet, e.local)
	e.i32(weight)
	e.raw(0x6b) // i32.sub
	e.op(opLocalTee, e.local)
	e.i32(0)
	e.raw(0x48) // i32.lt_s
}
