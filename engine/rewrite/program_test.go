package rewrite

// program writes a valid module out of any bytes: the bytes decide what comes
// next. Every statement counts itself in an exported global, so that a test
// can see how far a guest gets between two yields.
type program struct {
	m      asmModule
	choice []byte
	budget int // statements left
	b      []byte
	labels []byte // open blocks, outermost first: their result count
	loops  int
	fns    int
}

// Locals of each function of a program: four to compute with, and one to count
// each depth of loops.
const (
	progLocals = 4
	progLoops  = 6
	progFuncs  = 5
	stepGlobal = 0
)

func (p *program) pick(n int) int {
	if len(p.choice) == 0 {
		return 0
	}
	c := p.choice[0]
	p.choice = p.choice[1:]
	return int(c) % n
}

func (p *program) put(b ...byte)     { p.b = append(p.b, b...) }
func (p *program) op(op byte, n int) { p.b = appendU32(append(p.b, op), uint32(n)) }
func (p *program) i32(v int32)       { p.b = append(p.b, i32c(v)...) }

// generate makes a module that exports run: (i32) -> i32, memory and steps.
func generate(choice []byte) []byte {
	p := &program{choice: choice, budget: 120}
	p.m.memory = []byte{1, 1, 4}
	p.m.tables = [][]byte{{byte(FuncRef), 1, 8, 100}}
	p.m.globals = [][]byte{
		{byte(I64), 1, opI64Const, 0, opEnd},
		{byte(I32), 1, opI32Const, 7, opEnd},
		append(append([]byte{byte(V128), 1, 0xfd, 12}, make([]byte, 16)...), opEnd),
	}
	p.m.data = [][]byte{activeData(16, "some bytes to begin with"), passiveData("and some that wait")}
	elems := append([]byte{0}, append(i32c(1), opEnd, progFuncs)...)
	for i := range progFuncs {
		elems = append(elems, byte(i))
	}
	p.m.elems = [][]byte{elems, {3, 0, 2, 0, 1}}
	locals := make([]ValType, progLocals-1+progLoops)
	for i := range locals {
		locals[i] = I32
	}
	for i := range progFuncs {
		p.b, p.labels, p.loops, p.fns = nil, []byte{1}, 0, i
		if p.pick(3) == 0 {
			p.dispatch()
		}
		p.statements(8)
		p.expr(2)
		p.m.fn(one, one, locals, p.b...)
	}
	p.m.export("run", ExportKindFunc, 0)
	p.m.export("memory", ExportKindMemory, 0)
	p.m.export("steps", ExportKindGlobal, stepGlobal)
	return p.m.bytes()
}

func (p *program) statements(n int) {
	for range 1 + p.pick(n) {
		if p.budget <= 0 {
			return
		}
		p.budget--
		p.statement()
	}
}

func (p *program) step() {
	p.op(opGlobalGet, stepGlobal)
	p.put(opI64Const, 1, 0x7c)
	p.op(opGlobalSet, stepGlobal)
}

func (p *program) statement() {
	p.step()
	switch p.pick(17) {
	case 0, 1:
		p.expr(3)
		p.op(opLocalSet, p.pick(progLocals))
	case 2:
		p.block(opBlock)
	case 3, 4:
		p.loop()
	case 5:
		p.expr(2)
		p.block(opIf)
	case 6:
		p.branch(opBrIf)
	case 7:
		p.branch(opBr)
		p.put(opUnreachable)
	case 8:
		p.table()
	case 9:
		p.expr(2)
		p.op(opGlobalSet, 1)
	case 10:
		p.address()
		p.expr(2)
		p.put(0x36, 2, 0)
	case 11:
		p.bulk()
	case 12:
		p.expr(1)
		p.op(opCall, p.callee())
		p.op(opLocalSet, p.pick(progLocals))
	case 13:
		p.expr(1)
		p.i32(int32(p.pick(8)))
		p.op(opCallIndirect, 0)
		p.put(0, 0x1a)
	case 14:
		p.tables()
	case 15:
		p.vector()
	case 16:
		p.filler()
	}
}

// filler is straight-line code, sometimes longer than one check may cover.
func (p *program) filler() {
	for range []int{3, 40, 400}[p.pick(3)] {
		p.step()
	}
}

// callee prefers later functions, so that programs end.
func (p *program) callee() int {
	if p.pick(12) == 0 {
		return p.pick(progFuncs)
	}
	return min(p.fns+1, progFuncs-1)
}

func (p *program) address() {
	p.expr(1)
	p.i32(0xffff)
	p.put(0x71)
}

func (p *program) expr(depth int) {
	if depth == 0 {
		p.i32(int32(p.pick(256)) - 100)
		return
	}
	switch p.pick(9) {
	case 0, 1, 2:
		p.op(opLocalGet, p.pick(progLocals))
	case 3:
		p.op(opGlobalGet, 1)
	case 4:
		p.address()
		p.put(0x28, 2, 0)
	case 5:
		p.put(opMemorySize, 0)
	case 6:
		p.expr(depth - 1)
		p.expr(depth - 1)
		p.put([]byte{0x6a, 0x6b, 0x6c, 0x71, 0x73, 0x48, 0x6e, 0x1a}[p.pick(7)])
	case 7:
		p.put(opBlock, byte(I32))
		p.labels = append(p.labels, 1)
		p.expr(depth - 1)
		p.expr(depth - 1)
		p.put(opBrIf, 0)
		p.end()
	default:
		p.expr(0)
	}
}

func (p *program) end() {
	p.put(opEnd)
	p.labels = p.labels[:len(p.labels)-1]
}

func (p *program) block(op byte) {
	p.put(op, 0x40)
	p.labels = append(p.labels, 0)
	p.statements(4)
	if op == opIf && p.pick(2) == 0 {
		p.put(opElse)
		p.statements(3)
	}
	p.end()
}

// loop runs a few times: it counts in a local of its own depth.
func (p *program) loop() {
	if p.loops == progLoops {
		return
	}
	counter := progLocals + p.loops
	p.loops++
	p.i32(int32([]int{2, 10, 300, 20000}[p.pick(4)]))
	p.op(opLocalSet, counter)
	p.put(opLoop, 0x40)
	p.labels = append(p.labels, 0)
	p.statements(4)
	p.op(opLocalGet, counter)
	p.i32(1)
	p.put(0x6b)
	p.op(opLocalTee, counter)
	p.i32(0)
	p.put(0x4a, opBrIf, 0) // i32.gt_s
	p.end()
	p.loops--
}

// branch goes to a label that takes the values there are: a block, or the
// function with a result. Loops are left to their counters.
func (p *program) branch(op byte) {
	label := p.pick(len(p.labels))
	n := p.labels[len(p.labels)-1-label]
	if n == 1 {
		p.expr(1)
	}
	if op == opBrIf {
		p.expr(2)
	}
	p.op(op, label)
	if op == opBrIf && n == 1 {
		p.put(0x1a)
	}
}

func (p *program) table() {
	var fit []int
	for i := range p.labels {
		if p.labels[len(p.labels)-1-i] == 0 {
			fit = append(fit, i)
		}
	}
	if len(fit) == 0 {
		return
	}
	p.expr(2)
	p.op(opBrTable, 2)
	for range 3 {
		p.b = appendU32(p.b, uint32(fit[p.pick(len(fit))]))
	}
	p.put(opUnreachable)
}

func (p *program) bulk() {
	p.address()
	p.address()
	length := []int32{0, 8, 1024, 1025, 40000, 70000, 200000, -1}[p.pick(8)]
	if p.pick(3) == 0 {
		p.op(opLocalGet, 0)
		p.i32(length)
		p.put(0x71)
	} else {
		p.i32(length)
	}
	switch p.pick(3) {
	case 0:
		p.put(0xfc, 0x0b, 0)
	case 1:
		p.put(0xfc, 0x0a, 0, 0)
	case 2:
		p.put(0xfc, 0x08, 1, 0)
	}
}

func (p *program) tables() {
	switch p.pick(7) {
	case 0:
		p.i32(int32(p.pick(8)))
		p.op(opRefFunc, p.pick(2)+1)
		p.op(opTableSet, 0)
	case 1:
		p.op(opRefFunc, p.pick(2)+1)
		p.i32(int32(p.pick(40)))
		p.put(0xfc, 0x0f, 0)
		p.op(opLocalSet, 1)
	case 2:
		p.i32(int32(p.pick(9)))
		p.put(opRefNull, byte(FuncRef))
		p.i32(int32(p.pick(90)))
		p.put(0xfc, 0x11, 0)
	case 3:
		p.i32(int32(p.pick(9)))
		p.i32(int32(p.pick(9)))
		p.i32(int32(p.pick(90)))
		p.put(0xfc, 0x0e, 0, 0)
	case 4:
		p.i32(int32(p.pick(9)))
		p.i32(0)
		p.i32(int32(p.pick(4)))
		p.put(0xfc, 0x0c, 1, 0)
	case 5:
		p.put(0xfc, 0x0d, 1)
	case 6:
		p.put(0xfc, 0x09, 1)
	}
}

func (p *program) vector() {
	p.op(opGlobalGet, 2)
	p.expr(1)
	p.put(0xfd, 0x11) // i32x4.splat
	p.put(0xfd)
	p.b = appendU32(p.b, 0xae) // i32x4.add
	p.op(opGlobalSet, 2)
	p.op(opGlobalGet, 2)
	p.put(0xfd, 0x1b, byte(p.pick(4))) // i32x4.extract_lane
	p.op(opLocalSet, p.pick(progLocals))
}

// dispatch is a loop as Go's compiler makes it: blocks, a table, and jumps
// that set the local and go to the loop. Jumps back are bounded by a counter.
func (p *program) dispatch() {
	const x, counter = 3, progLocals
	n := 2 + p.pick(5)
	if p.pick(2) == 0 {
		p.put(opBlock, 0x40)
		p.labels = append(p.labels, 0)
		defer p.end()
	}
	p.loops++
	p.i32(int32([]int{3, 50, 30000}[p.pick(3)]))
	p.op(opLocalSet, counter)
	p.i32(int32(p.pick(n)))
	p.op(opLocalSet, x)
	p.put(opLoop, 0x40)
	p.labels = append(p.labels, 2) // 2: no generated branch goes there
	for range n {
		p.put(opBlock, 0x40)
		p.labels = append(p.labels, 2)
	}
	p.op(opLocalGet, x)
	p.op(opBrTable, n-1)
	for i := range n {
		p.b = appendU32(p.b, uint32(i))
	}
	for i := range n {
		p.end()
		p.statements(2)
		p.jump(x, counter, n, n-1-i)
	}
	p.end()
	p.loops--
}

// jump goes to some block, if the counter allows; around blocks are open
// inside the loop.
func (p *program) jump(x, counter, n, around int) {
	p.step()
	p.op(opLocalGet, counter)
	p.i32(1)
	p.put(0x6b)
	p.op(opLocalTee, counter)
	p.i32(0)
	p.put(0x4a, opIf, 0x40)
	p.i32(int32(p.pick(n + 1)))
	p.op(opLocalSet, x)
	if p.pick(8) == 0 {
		p.put(0x01) // a nop hides the pattern
	}
	p.op(opBr, around+1)
	p.put(opEnd)
}
