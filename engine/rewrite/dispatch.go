package rewrite

// Dispatch loops. Go compiles a function into one loop around nested blocks:
//
//	loop; block ... block; local.get X; br_table ...; end ... end; end
//
// and a jump into i32.const K; local.set X; br to the loop. What such a jump
// does is known here: it goes to the end of the block that entry K of the
// table names. When that block is still open the jump goes forward, and the
// branch is aimed at the block itself: no table, and no way around the loop's
// check. X is still set, since other code may look at it. The jumps that are
// left go backward; if all of them are plain branches, they carry the check
// and the loop's head has none. Then whoever enters the function has paid the
// longest way through the loop's body, and a jump back from P to Q pays
// anew what it wins: the longest way from the head to P, less that to Q. No
// way from Q to P is longer.

// dispatch is the dispatch loop of a function.
type dispatch struct {
	loop    int // index of the loop's frame; its blocks are the next ones
	top     int // index of the innermost of these blocks that is open
	blocks  int
	local   uint32
	targets []uint32 // the default one is the last
	ways    []int32  // of each entry's block that has ended: the way to its end
	closed  bool
	plain   bool // only plain branches go to the loop's head
}

// jump is a plain branch that names the dispatch loop.
type jump struct {
	pos    int
	label  uint32 // where it is to go
	weight int32  // of a jump back: its check; 0: a jump forward
}

// findDispatch looks whether the loop whose opcode has just been read, to be
// opened as frame index frame, is a dispatch loop.
func findDispatch(r *reader, loop *instr, frame int) *dispatch {
	if loop.block != blockEmpty {
		return nil
	}
	ahead := &reader{b: r.b, p: r.p, end: r.end}
	d := &dispatch{loop: frame, plain: true}
	var in instr
	for ahead.next(&in) && in.op == opBlock && in.block == blockEmpty {
		d.blocks++
	}
	if in.op != opLocalGet || d.blocks == 0 {
		return nil
	}
	d.local = in.a
	if !ahead.next(&in) || in.op != opBrTable {
		return nil
	}
	d.top, d.ways = frame+d.blocks, make([]int32, d.blocks)
	t := &reader{b: r.b, p: in.targets, end: in.end}
	d.targets = make([]uint32, in.a+1)
	for i := range d.targets {
		d.targets[i] = t.u32()
	}
	return d
}

// history are the last two instructions before the one at hand.
type history [2]instr

func (h *history) push(in *instr) { h[0], h[1] = h[1], *in }

// aim gives the frame that a branch to the dispatch loop reaches: the frame of
// a block that is open, or else the loop. way is the longest way from the
// loop's head to where the jump goes.
func (d *dispatch) aim(h *history) (frame int, way int32) {
	if h[0].op != opI32Const || h[1].op != opLocalSet || h[1].a != d.local {
		return d.loop, 0
	}
	k := min(int64(h[0].a), int64(len(d.targets)-1))
	t := d.targets[k]
	if int64(t) >= int64(d.blocks) {
		return d.loop, 0
	}
	frame = d.loop + d.blocks - int(t)
	if frame <= d.top {
		return frame, 0
	}
	return d.loop, d.ways[d.blocks-int(t)-1]
}

// end notes that a block ends, n blocks being open around it; way is the
// longest way to what follows it.
func (d *dispatch) end(n int, way int32) {
	if d.closed || n != d.top {
		return
	}
	if d.top == d.loop {
		d.closed = true
		return
	}
	d.ways[d.top-d.loop-1] = max(way, 0)
	d.top--
}
