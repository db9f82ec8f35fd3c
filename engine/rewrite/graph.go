package rewrite

import "fmt"

// graph is who may call whom. Its nodes are the defined functions and, after
// them, one node for each distinct type, which stands for every function of
// that type that a table may hold.
type graph struct {
	first []int32 // edges of node n are to[first[n]:first[n+1]]
	to    []int32
	funcs int

	order  []int32 // nodes, callees before callers
	cyclic []bool  // the node can be reached from itself
}

// survey is what the first look at all code finds.
type survey struct {
	features Features
	dirty    int
	segments bool              // some instruction names a data segment
	refs     map[uint32]uint32 // functions of ref.func in code -> place in the hidden table
	refList  []uint32
	taken    []bool   // by function index: a table or a reference may hold it
	typeNode []uint32 // type -> the first type equal to it
	g        graph
}

// look reads all code once.
func look(s *source) (*survey, error) {
	v := &survey{refs: map[uint32]uint32{}, taken: make([]bool, s.funcCount()), typeNode: canonical(s.types)}
	v.g.funcs = len(s.funcs)
	v.g.first = make([]int32, 0, len(s.funcs)+len(s.types)+1)
	for i := range s.bodies {
		v.g.first = append(v.g.first, int32(len(v.g.to)))
		r := s.code(i)
		v.lookAt(s, r)
		if r.err != nil {
			return nil, r.err
		}
	}
	if err := v.take(s); err != nil {
		return nil, err
	}
	for _, t := range s.types {
		v.features.MultiValue = v.features.MultiValue || len(t.Results) > 1
	}
	v.typeEdges(s)
	v.g.sort()
	return v, nil
}

// code is a reader of the instructions of defined function i.
func (s *source) code(i int) *reader {
	return &reader{b: s.b, p: s.bodies[i].code, end: s.bodies[i].hi, at: s.funcAt(i)}
}

func (s *source) funcAt(i int) string {
	return fmt.Sprintf("code section, function %d", len(s.imports)+i)
}

func (v *survey) lookAt(s *source, r *reader) {
	var in instr
	for r.next(&in) {
		switch in.op {
		case opCall:
			v.call(s, r, &in)
		case opCallIndirect:
			if int(in.a) >= len(s.types) || int(in.b) >= len(s.tables) {
				r.fail(in.pos, "call_indirect of type %d through table %d, of %d and %d", in.a, in.b, len(s.types), len(s.tables))
				return
			}
			v.g.to = append(v.g.to, int32(len(s.funcs))+int32(v.typeNode[in.a]))
		case opRefFunc:
			v.ref(s, r, &in)
		default:
			v.note(s, r, &in)
		}
	}
}

func (v *survey) call(s *source, r *reader, in *instr) {
	if int(in.a) >= s.funcCount() {
		r.fail(in.pos, "call of function %d of %d", in.a, s.funcCount())
		return
	}
	if n := int(in.a) - len(s.imports); n >= 0 {
		v.g.to = append(v.g.to, int32(n))
	}
}

func (v *survey) ref(s *source, r *reader, in *instr) {
	if int(in.a) >= s.funcCount() {
		r.fail(in.pos, "ref.func of function %d of %d", in.a, s.funcCount())
		return
	}
	v.features.RefTypes = true
	if _, ok := v.refs[in.a]; !ok {
		v.refs[in.a] = uint32(len(v.refList))
		v.refList = append(v.refList, in.a)
	}
	if len(v.refList) > 1<<16 {
		r.refuse(in.pos, "keep references to functions in a table", "references to more than %d functions in code", 1<<16)
	}
}

// note collects features and dirty flags, and checks the indices that the
// pass itself relies on.
func (v *survey) note(s *source, r *reader, in *instr) {
	f := &v.features
	switch op := in.op; {
	case op >= 0xc0 && op <= 0xc4:
		f.SignExt = true
	case op == opTableSet, op == opTableInit, op == opTableCopy, op == opTableGrow, op == opTableFill:
		v.dirty |= DirtyTable
		f.RefTypes = true
		if first, second := tablesOf(in); int(first) >= len(s.tables) || int(second) >= len(s.tables) {
			r.fail(in.pos, "table %d of %d", max(first, second), len(s.tables))
		}
		if op == opTableInit && int(in.a) >= len(s.elems) {
			r.fail(in.pos, "element segment %d of %d", in.a, len(s.elems))
		}
	case op == opElemDrop:
		v.dirty |= DirtyElem
		f.RefTypes = true
	case op == opDataDrop:
		v.dirty |= DirtyData
		v.segments = true
		f.Bulk = true
	case op == opMemoryInit && int(in.a) >= len(s.data):
		r.fail(in.pos, "data segment %d of %d", in.a, len(s.data))
	case op == opMemoryInit, op == opMemoryCopy, op == opMemoryFill:
		v.segments = v.segments || op == opMemoryInit
		f.Bulk = true
	case op == opTableGet, op == opTableSize, op >= opRefNull && op <= opRefFunc:
		f.RefTypes = true
	case op>>8 == 0xfc:
		f.SatFloat = true
	case op>>8 == 0xfd:
		f.SIMD = true
	}
}

// tablesOf gives the tables that an instruction writes and reads.
func tablesOf(in *instr) (dst, src uint32) {
	switch in.op {
	case opTableInit:
		return in.b, in.b
	case opTableCopy:
		return in.a, in.b
	}
	return in.a, in.a
}

// take marks the functions that tables, globals or references may hold.
func (v *survey) take(s *source) error {
	r := &reader{b: s.b, at: "element section"}
	mark := func(fn uint32) {
		if int(fn) >= len(v.taken) {
			r.fail(0, "function %d of %d", fn, len(v.taken))
			return
		}
		v.taken[fn] = true
	}
	for i := range s.elems {
		for _, fn := range s.elems[i].funcs {
			mark(fn)
		}
		for _, c := range s.elems[i].exprs {
			if c.op == opRefFunc {
				mark(c.fn)
			}
		}
	}
	for _, fn := range v.refList {
		mark(fn)
	}
	for _, g := range s.globals {
		if g.init.op == opRefFunc {
			mark(g.init.fn)
		}
	}
	if r.err != nil {
		return r.err
	}
	return nil
}

// typeEdges adds the nodes of types.
func (v *survey) typeEdges(s *source) {
	byType := make([][]int32, len(s.types))
	for i, t := range s.funcs {
		if v.taken[len(s.imports)+i] {
			n := v.typeNode[t]
			byType[n] = append(byType[n], int32(i))
		}
	}
	for _, fns := range byType {
		v.g.first = append(v.g.first, int32(len(v.g.to)))
		v.g.to = append(v.g.to, fns...)
	}
	v.g.first = append(v.g.first, int32(len(v.g.to)))
}

// canonical maps each type to the first one equal to it.
func canonical(types []FuncType) []uint32 {
	seen, out := map[string]uint32{}, make([]uint32, len(types))
	for i, t := range types {
		key := make([]byte, 0, len(t.Params)+len(t.Results)+1)
		for _, p := range t.Params {
			key = append(key, byte(p))
		}
		key = append(key, 0)
		for _, p := range t.Results {
			key = append(key, byte(p))
		}
		n, ok := seen[string(key)]
		if !ok {
			n = uint32(i)
			seen[string(key)] = n
		}
		out[i] = n
	}
	return out
}

// sort finds the cycles and an order of callees before callers: Tarjan's
// strongly connected components, without recursion.
func (g *graph) sort() {
	n := len(g.first) - 1
	t := &tarjan{g: g, index: make([]int32, n), low: make([]int32, n), next: make([]int32, n), on: make([]bool, n)}
	g.order = make([]int32, 0, n)
	g.cyclic = make([]bool, n)
	for v := range n {
		if t.index[v] == 0 {
			t.visit(int32(v))
		}
	}
}

type tarjan struct {
	g          *graph
	index, low []int32
	next       []int32 // edges of a node that have been followed
	on         []bool  // the node is on the stack of components
	stack      []int32
	path       []int32
	count      int32
}

func (t *tarjan) enter(v int32) {
	t.count++
	t.index[v], t.low[v], t.on[v] = t.count, t.count, true
	t.stack = append(t.stack, v)
	t.path = append(t.path, v)
}

func (t *tarjan) visit(root int32) {
	t.enter(root)
	for len(t.path) > 0 {
		v := t.path[len(t.path)-1]
		edges := t.g.to[t.g.first[v]:t.g.first[v+1]]
		if int(t.next[v]) < len(edges) {
			w := edges[t.next[v]]
			t.next[v]++
			switch {
			case t.index[w] == 0:
				t.enter(w)
			case t.on[w]:
				t.low[v] = min(t.low[v], t.index[w])
				t.g.cyclic[v] = t.g.cyclic[v] || v == w
			}
			continue
		}
		t.path = t.path[:len(t.path)-1]
		if len(t.path) > 0 {
			p := t.path[len(t.path)-1]
			t.low[p] = min(t.low[p], t.low[v])
		}
		if t.low[v] == t.index[v] {
			t.pop(v)
		}
	}
}

// pop takes the component whose root is v off the stack.
func (t *tarjan) pop(v int32) {
	for size := 0; ; size++ {
		w := t.stack[len(t.stack)-1]
		t.stack = t.stack[:len(t.stack)-1]
		t.on[w] = false
		t.g.order = append(t.g.order, w)
		if w != v {
			t.g.cyclic[w] = true
			continue
		}
		t.g.cyclic[v] = t.g.cyclic[v] || size > 0
		return
	}
}
