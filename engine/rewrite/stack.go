package rewrite

// Stack. A function that can be reached from itself, or with which a chain of
// calls gets large, is guarded: its size is off the counter while it runs. How
// much stack the engine takes is known after it has compiled only; the
// estimate gives a word to each parameter, local and result and to each
// instruction that makes a value, since the engine may keep every value in a
// slot of its own, and a part of a word to each local at each place where ways
// meet, where it may make a new value.
const (
	frameBase  = 96
	perValue   = 8
	perMeeting = 2
	chainLimit = 128 << 10
)

func (c *charger) stack(i int, chains []uint32) {
	p, b, t := &c.plans[i], &c.s.bodies[i], c.s.types[c.s.funcs[i]]
	fixed := b.locals + uint64(len(t.Params)+len(t.Results))
	size := frameBase + perValue*(fixed+uint64(c.values)) + perMeeting*uint64(c.meetings)*min(fixed, uint64(c.sets))
	if b.wide || c.vector {
		size *= 2
	}
	own := uint32(min(size, 1<<30))
	var below uint32
	for _, n := range c.v.g.to[c.v.g.first[i]:c.v.g.first[i+1]] {
		if int(n) >= len(c.s.funcs) {
			below = max(below, chains[int(n)-len(c.s.funcs)])
		} else if c.plans[n].guard == 0 {
			below = max(below, c.plans[n].chain)
		}
	}
	p.chain = own + below
	if c.v.g.cyclic[i] || p.chain > chainLimit {
		p.guard = min(p.chain, 1<<30)
		if p.entry == 0 {
			p.entry, p.cost = p.cost, weightCall
		}
	}
}

// measure counts what the estimate of the stack needs.
func (c *charger) measure(in *instr) {
	switch op := in.op; {
	case op == opLocalSet, op == opLocalTee:
		c.sets++
	case op == opLoop, op == opEnd:
		c.meetings++
	case op == opCall:
		if t, ok := c.s.typeOf(in.a); ok {
			c.values += len(c.s.types[t].Results)
		}
	case op == opCallIndirect:
		c.values += len(c.s.types[in.a].Results)
	case op >= 0x45, op >= 0x28 && op <= 0x35, op == opGlobalGet, op == opTableGet, op == 0x1b, op == 0x1c, op == opMemoryGrow:
		c.values++
		c.vector = c.vector || op>>8 == 0xfd
	}
}
