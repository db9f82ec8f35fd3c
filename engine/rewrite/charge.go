package rewrite

// Charging. A check takes units off the fuel in advance: as many as the
// longest way through the code from the check to the next one, a way being
// free of cycles because every loop's head has a check. So what runs between
// two looks at the fuel is never more than was charged.
const (
	// chunk bounds what one check covers. Longer ways get checks in between.
	chunk = 4096
	// freeCost bounds the ways through a function that has no check at its
	// entry: its callers are charged for it.
	freeCost = 400
	// firstLease is what a function's entry pays in advance for all loops in
	// it that count in a local; nextLease is what they take when it is gone.
	firstLease = 256
	nextLease  = 4096
	checkCost  = 3 // of a check itself
	// smallBody and largeBody are the bytes up to which the body of a loop is
	// written four times, and twice.
	smallBody = 48
	// maxNested bounds loops in loops: the time that the engine takes to
	// compile a check in each grows with the square of their depth.
	maxNested = 256
	largeBody = 160
)

// loop is one loop of a function, in order of its opcode.
type loop struct {
	weight int32 // of its check: the longest way through its body, or copies of it
	inner  bool  // no loops and no calls in it
	split  bool  // has checks in the middle
	last   int   // position of the branch back that ends the body; 0: none
	copies int   // how often the body is written
}

// plan is what is to be done with one function.
type plan struct {
	loops  []loop
	mids   []int // positions of instructions that get a check before them
	entry  int32 // weight of the check at the entry; 0: none
	cost   int32 // what a call of it costs its caller
	guard  uint32
	chain  uint32 // estimated stack of it and what it calls, up to guarded functions
	bulk   bool   // has memory.copy, fill or init, which want locals
	leases bool   // some loop counts in the local
	edge   bool   // the first loop is a dispatch loop whose check is at its plain branches back
	jumps  []jump
}

// frame is an open block.
type frame struct {
	op    byte  // opBlock, opLoop, opIf, opElse
	ways  int32 // longest way that branches to its end, -1: none
	start int32 // of an if: the way to its condition
	depth int32 // loops around it; its own for a loop
	arity int32 // values that a branch to it carries
	dead  bool  // the block begins in dead code
}

// scope is a loop, or the function around all loops.
type scope struct {
	loop  int   // index in plan.loops; -1: the function
	entry int32 // the way in the scope around it that leads here
	worst int32
	split bool
	busy  bool // has loops or calls
	body  int  // where its code begins; 0: it takes parameters
}

// charger computes the plan of one function.
type charger struct {
	s      *source
	plans  []plan
	indir  []int32 // cost of a call through each type, by canonical type
	v      *survey
	frames []frame
	scopes []scope
	pc     *dispatch // of the function, or nil
	past   history
	// what the function was seen to hold, for the estimate of its stack
	values, sets, meetings int
	vector                 bool
	cur                    int32 // longest way from the last check to here; -1: dead code
}

// charge plans all functions, callees first.
func charge(s *source, v *survey) ([]plan, error) {
	c := &charger{s: s, v: v, plans: make([]plan, len(s.funcs)), indir: make([]int32, len(s.types))}
	chains := make([]uint32, len(s.types))
	for _, n := range v.g.order {
		if int(n) >= len(s.funcs) {
			t := int(n) - len(s.funcs)
			for _, fn := range v.g.to[v.g.first[n]:v.g.first[n+1]] {
				c.indir[t] = max(c.indir[t], c.plans[fn].cost)
				if c.plans[fn].guard == 0 {
					chains[t] = max(chains[t], c.plans[fn].chain)
				}
			}
			continue
		}
		if err := c.function(int(n)); err != nil {
			return nil, err
		}
		c.stack(int(n), chains)
	}
	return c.plans, nil
}

func (c *charger) function(i int) error {
	p := &c.plans[i]
	c.frames = append(c.frames[:0], frame{op: opBlock, ways: -1, arity: int32(len(c.s.types[c.s.funcs[i]].Results))})
	c.scopes = append(c.scopes[:0], scope{loop: -1})
	c.cur, c.pc, c.past = 0, nil, history{}
	c.values, c.sets, c.meetings, c.vector = 0, 0, 0, false
	r := c.s.code(i)
	var in instr
	for r.next(&in) {
		if len(c.frames) == 0 {
			r.fail(in.pos, "code after the end of the function")
			break
		}
		c.measure(&in)
		c.step(r, p, &in)
		c.past.push(&in)
	}
	if r.err == nil && len(c.frames) != 0 {
		r.fail(r.p, "%d blocks are not ended", len(c.frames))
	}
	if r.err != nil {
		return r.err
	}
	top := &c.scopes[0]
	w := top.worst + checkCost
	if top.split {
		w = chunk
	}
	if p.edge = c.pc != nil && c.pc.plain && !p.loops[0].split; p.edge {
		w += p.loops[0].weight // the first time through, nobody else pays
	}
	if p.leases = hasLeases(p); p.leases {
		w += firstLease
	}
	p.cost = weightCall + w
	if c.v.g.cyclic[i] || top.split || w > freeCost {
		p.entry, p.cost = w, weightCall
	}
	return nil
}

func hasLeases(p *plan) bool {
	for i := range p.loops {
		if p.loops[i].leased() && !(i == 0 && p.edge) {
			return true
		}
	}
	return false
}

// bodyOf is where a loop's code begins, or 0 if it has parameters or results.
func bodyOf(in *instr) int {
	if in.block != blockEmpty {
		return 0
	}
	return in.end
}

// repeat decides how often the body of a loop is written. In a small one the
// check would take a good part of the time; between two checks it may as well
// run several times. last is the instruction before the loop's end.
func (l *loop) repeat(last *instr, body int) {
	l.copies = 1
	if !l.leased() || body == 0 || last.op != opBrIf && last.op != opBr || last.a != 0 || l.weight > chunk/4 {
		return
	}
	switch size := last.pos - body; {
	case size <= smallBody:
		l.copies = 4
	case size <= largeBody:
		l.copies = 2
	}
	l.last = last.pos
	l.weight *= int32(l.copies)
}

// leased: the loop counts in the function's local.
func (l *loop) leased() bool { return l.inner && !l.split }

func (c *charger) step(r *reader, p *plan, in *instr) {
	switch in.op {
	case opBlock, opIf, opLoop:
		c.open(r, p, in)
	case opElse:
		f := &c.frames[len(c.frames)-1]
		if f.op != opIf {
			r.fail(in.pos, "else without if")
			return
		}
		f.op = opElse
		f.ways = max(f.ways, c.cur)
		c.cur = f.start
	case opEnd:
		c.close(p)
	case opBr, opBrIf:
		c.branch(r, p, in)
		if in.op == opBr {
			c.cur = -1
		}
	case opBrTable:
		c.brTable(r, p, in)
		c.cur = -1
	case opReturn, opUnreachable:
		c.spend(p, in, 1)
		c.cur = -1
	case opCall, opCallIndirect, opMemoryGrow:
		c.spend(p, in, c.callCost(in))
		c.busy()
	default:
		c.spend(p, in, in.weight)
		if in.op >= opMemoryInit && in.op <= opTableFill {
			c.busy()
			p.bulk = p.bulk || isMemory(in.op)
		}
	}
}

func (c *charger) busy() { c.scopes[len(c.scopes)-1].busy = true }

func (c *charger) callCost(in *instr) int32 {
	switch in.op {
	case opCall:
		if n := int(in.a) - len(c.s.imports); n >= 0 {
			return max(c.plans[n].cost, weightCall)
		}
		return weightHost
	case opCallIndirect:
		return weightIndirect + c.indir[c.v.typeNode[in.a]]
	}
	return in.weight
}

// spend adds w to the way here; where it gets too long, a check is put before
// the instruction.
func (c *charger) spend(p *plan, in *instr, w int32) {
	if c.cur < 0 || w == 0 {
		return
	}
	sc := &c.scopes[len(c.scopes)-1]
	if c.cur+w > chunk {
		p.mids = append(p.mids, in.pos)
		sc.split = true
		c.cur = 0
	}
	c.cur += min(w, chunk)
	sc.worst = max(sc.worst, c.cur)
}

func (c *charger) open(r *reader, p *plan, in *instr) {
	params, results := c.arity(r, in)
	c.spend(p, in, in.weight)
	f := frame{op: byte(in.op), ways: -1, start: c.cur, depth: int32(len(c.scopes) - 1), arity: results, dead: c.cur < 0}
	if in.op == opLoop {
		if len(c.scopes) > maxNested {
			r.refuse(in.pos, "split the function", "loops nested more than %d deep", maxNested)
			return
		}
		c.busy()
		if len(p.loops) == 0 && len(c.scopes) == 1 && c.cur >= 0 {
			c.pc = findDispatch(r, in, len(c.frames))
		}
		c.scopes = append(c.scopes, scope{loop: len(p.loops), entry: c.cur, body: bodyOf(in)})
		p.loops = append(p.loops, loop{})
		f.depth, f.arity = f.depth+1, params
		c.cur = min(c.cur, 0)
		c.spend(p, in, checkCost)
	}
	c.frames = append(c.frames, f)
}

func (c *charger) arity(r *reader, in *instr) (params, results int32) {
	switch {
	case in.block == blockEmpty:
		return 0, 0
	case in.block < 0:
		return 0, 1
	case in.block >= int64(len(c.s.types)):
		r.fail(in.pos, "block type %d of %d", in.block, len(c.s.types))
		return 0, 0
	}
	t := c.s.types[in.block]
	return int32(len(t.Params)), int32(len(t.Results))
}

func (c *charger) close(p *plan) {
	f := c.frames[len(c.frames)-1]
	c.frames = c.frames[:len(c.frames)-1]
	switch f.op {
	case opLoop:
		sc := c.scopes[len(c.scopes)-1]
		c.scopes = c.scopes[:len(c.scopes)-1]
		l := &p.loops[sc.loop]
		l.weight, l.inner, l.split = sc.worst, !sc.busy && !f.dead, sc.split
		if sc.split {
			l.weight = chunk
		}
		l.repeat(&c.past[1], sc.body)
		if sc.busy {
			c.busy()
		}
		if c.cur >= 0 {
			c.cur = sc.entry
		}
	case opIf:
		c.cur = max(c.cur, f.start, f.ways)
	default:
		c.cur = max(c.cur, f.ways)
	}
	if c.pc != nil {
		c.pc.end(len(c.frames), c.cur)
	}
}

// branch spends for a branch to label and its values.
func (c *charger) branch(r *reader, p *plan, in *instr) {
	f := c.label(r, in, in.a)
	if d := c.pc; d != nil && !d.closed && f == &c.frames[d.loop] {
		if in.op == opBr {
			f = c.jump(p, in)
		} else {
			d.plain = false
		}
	}
	c.spend(p, in, in.weight+f.arity)
	c.reach(f)
}

// jump notes a plain branch to the dispatch loop and gives the frame it reaches.
func (c *charger) jump(p *plan, in *instr) *frame {
	d := c.pc
	to, way := d.aim(&c.past)
	j := jump{pos: in.pos, label: uint32(len(c.frames) - 1 - to)}
	if to == d.loop {
		here := c.cur
		if len(c.scopes) > 2 {
			here = c.scopes[2].entry
		}
		j.weight = checkCost + max(here, 0) - min(way, max(here, 0))
	}
	p.jumps = append(p.jumps, j)
	return &c.frames[to]
}

// label is the frame that a label names.
func (c *charger) label(r *reader, in *instr, label uint32) *frame {
	if int64(label) >= int64(len(c.frames)) {
		r.fail(in.pos, "branch to label %d of %d", label, len(c.frames))
		return &c.frames[0]
	}
	return &c.frames[len(c.frames)-1-int(label)]
}

// reach adds the way here to those that end at f. A branch back to a loop's
// head ends at its check; one out of loops goes on from where the outermost
// of them was entered, since what ran inside was paid there.
func (c *charger) reach(f *frame) {
	if c.cur < 0 || f.op == opLoop {
		return
	}
	way := c.cur
	if int(f.depth) < len(c.scopes)-1 {
		way = c.scopes[f.depth+1].entry
	}
	f.ways = max(f.ways, way)
}

// brTable spends once, for the costliest target.
func (c *charger) brTable(r *reader, p *plan, in *instr) {
	var arity int32
	c.targets(r, in, func(f *frame) {
		arity = max(arity, f.arity)
		if d := c.pc; d != nil && !d.closed && f == &c.frames[d.loop] {
			d.plain = false
		}
	})
	c.spend(p, in, in.weight+arity)
	c.targets(r, in, c.reach)
}

// targets calls do with the frame of each target of a br_table.
func (c *charger) targets(r *reader, in *instr, do func(*frame)) {
	t := &reader{b: r.b, p: in.targets, end: in.end}
	for i := uint32(0); i <= in.a && r.err == nil; i++ {
		do(c.label(r, in, t.u32()))
	}
}
