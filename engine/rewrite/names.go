package rewrite

// Subsections of the name section.
const (
	nameModule    = 0
	nameFunctions = 1
)

// nameSection writes the names of functions, with their new indices, so that
// traps can name them; of the other names only the module's is kept. A name
// section that cannot be read is left out, as engines do.
func (w *writer) nameSection(out []byte) []byte {
	var b []byte
	r := &reader{b: w.s.names, end: len(w.s.names), at: "name section"}
	var module, funcs []byte
	n := uint32(0)
	for r.more() {
		id := r.byte()
		content := r.bytes(r.u32())
		switch id {
		case nameModule:
			module = checkedName(content)
		case nameFunctions:
			funcs, n = w.functionNames(content)
		}
	}
	if r.err != nil {
		funcs, n = nil, 0
	}
	b = appendName(b, "name")
	if module != nil {
		b = appendU32(append(b, nameModule), uint32(len(module)))
		b = append(b, module...)
	}
	for i, name := range w.e.helpers.names {
		funcs = appendName(appendU32(funcs, w.e.helpers.base+uint32(i)), name)
		n++
	}
	count := appendU32(nil, n)
	b = appendU32(append(b, nameFunctions), uint32(len(count)+len(funcs)))
	b = append(append(b, count...), funcs...)
	out = appendU32(append(out, secCustom), uint32(len(b)))
	return append(out, b...)
}

// checkedName gives content back when it is one name and nothing else.
func checkedName(content []byte) []byte {
	r := &reader{b: content, end: len(content)}
	r.name()
	if r.err != nil || r.p != r.end {
		return nil
	}
	return content
}

// functionNames gives the entries of a map of names with new indices, and how
// many they are; none when they cannot be read or are not in order.
func (w *writer) functionNames(content []byte) (b []byte, n uint32) {
	r := &reader{b: content, end: len(content)}
	last := -1
	for left := r.count(2); left > 0; left-- {
		index, name := r.u32(), r.name()
		if r.err != nil || int(index) <= last || int(index) >= w.s.funcCount() {
			return nil, 0
		}
		last = int(index)
		b = appendName(appendU32(b, w.e.fn(index)), name)
		n++
	}
	return b, n
}
