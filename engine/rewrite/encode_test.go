package rewrite

import "slices"

// asmModule is a module written by hand, for tests.
type asmModule struct {
	types   []FuncType
	imports []Import
	funcs   []asmFunc
	tables  [][]byte // type and limits
	memory  []byte   // limits
	globals [][]byte // type, mutability, initialiser with its end
	exports [][]byte
	start   int // function, if not zero: its index + 1
	elems   [][]byte
	data    [][]byte
	custom  [][]byte // content with its name
}

type asmFunc struct {
	typ    int
	locals []ValType
	code   []byte // without the final end
}

func (m *asmModule) typ(params, results []ValType) int {
	t := FuncType{params, results}
	for i, x := range m.types {
		if slices.Equal(x.Params, params) && slices.Equal(x.Results, results) {
			return i
		}
	}
	m.types = append(m.types, t)
	return len(m.types) - 1
}

// fn adds a function and returns its index.
func (m *asmModule) fn(params, results, locals []ValType, code ...byte) int {
	m.funcs = append(m.funcs, asmFunc{m.typ(params, results), locals, code})
	return len(m.imports) + len(m.funcs) - 1
}

func (m *asmModule) export(name string, kind ExportKind, index int) {
	m.exports = append(m.exports, appendU32(append(appendName(nil, name), byte(kind)), uint32(index)))
}

func (m *asmModule) bytes() []byte {
	out := []byte("\x00asm\x01\x00\x00\x00")
	var b []byte
	for _, im := range m.imports {
		m.typ(im.Type.Params, im.Type.Results)
	}
	for _, t := range m.types {
		b = appendTypes(appendTypes(append(b, 0x60), t.Params), t.Results)
	}
	vector := func(id byte, n int, b []byte) {
		if n > 0 {
			out = section(out, id, uint32(n), b)
		}
	}
	vector(secType, len(m.types), b)
	b = nil
	for _, im := range m.imports {
		b = appendName(appendName(b, im.Module), im.Name)
		b = appendU32(append(b, 0), uint32(m.typ(im.Type.Params, im.Type.Results)))
	}
	vector(secImport, len(m.imports), b)
	b = nil
	for _, f := range m.funcs {
		b = appendU32(b, uint32(f.typ))
	}
	vector(secFunction, len(m.funcs), b)
	vector(secTable, len(m.tables), slices.Concat(m.tables...))
	if m.memory != nil {
		vector(secMemory, 1, m.memory)
	}
	vector(secGlobal, len(m.globals), slices.Concat(m.globals...))
	vector(secExport, len(m.exports), slices.Concat(m.exports...))
	if m.start > 0 {
		s := appendU32(nil, uint32(m.start-1))
		out = append(append(out, secStart, byte(len(s))), s...)
	}
	vector(secElement, len(m.elems), slices.Concat(m.elems...))
	if len(m.data) > 0 {
		c := appendU32(nil, uint32(len(m.data)))
		out = append(append(out, secDataCount, byte(len(c))), c...)
	}
	b = nil
	for _, f := range m.funcs {
		body := appendU32(nil, uint32(len(f.locals)))
		for _, l := range f.locals {
			body = append(body, 1, byte(l))
		}
		body = append(append(body, f.code...), opEnd)
		b = append(appendU32(b, uint32(len(body))), body...)
	}
	vector(secCode, len(m.funcs), b)
	vector(secData, len(m.data), slices.Concat(m.data...))
	for _, c := range m.custom {
		out = append(appendU32(append(out, secCustom), uint32(len(c))), c...)
	}
	return out
}

// Pieces of code.
func i32c(v int32) []byte         { return appendS64([]byte{opI32Const}, int64(v)) }
func op1(op byte, n int) []byte   { return appendU32([]byte{op}, uint32(n)) }
func code(parts ...[]byte) []byte { return slices.Concat(parts...) }
func raw(b ...byte) []byte        { return b }
func activeData(at int32, s string) []byte {
	return append(appendU32(append(append([]byte{0}, i32c(at)...), opEnd), uint32(len(s))), s...)
}
func passiveData(s string) []byte { return append(appendU32([]byte{1}, uint32(len(s))), s...) }

var (
	one   = []ValType{I32}
	two   = []ValType{I32, I32}
	three = []ValType{I32, I32, I32}
)
