package wasm

import (
	"bytes"
	"encoding/binary"
	"encoding/json"

	"lode"
	"lode/engine/rewrite"
)

// Compiled code is a file of six parts, integers little-endian:
//
//	8 bytes   "lodewasm"
//	u32       length of the head; the head, JSON: see codeHead
//	u32       n, number of active data segments; n times u32 offset, u32 length
//	u64       length of the shell; the shell
//	n times   the bytes of the segments, one after the other
//	the rest  the engine's own cache file, native code
//
// The shell is the rewritten module with all function bodies empty and a mark
// of its own, see shellOf: the engine needs the module's types, tables and
// exports to load native code, and would decode and check bodies for nothing.
//
// It does not hold the module's custom sections, so that modules that differ
// in those alone share it.
type code struct {
	head   codeHead
	shell  []byte
	data   []rewrite.Segment
	native []byte
}

type codeHead struct {
	Format    int         `json:"format"`
	Native    lode.Digest `json:"native"` // what the engine calls the native code of the shell
	HasStart  bool        `json:"start,omitempty"`
	Slots     int         `json:"slots,omitempty"`
	Fresh     string      `json:"fresh,omitempty"` // why instances are not reset
	FreshOnly bool        `json:"fresh_only,omitempty"`
	MayDirty  int         `json:"may_dirty,omitempty"`
	Memory    bool        `json:"memory,omitempty"`
	MinPages  uint32      `json:"min_pages,omitempty"`
	Exports   []string    `json:"exports,omitempty"` // functions among wanted
	Imports   []string    `json:"imports,omitempty"` // "module.name"
	SIMD      bool        `json:"simd,omitempty"`
}

const (
	codeMagic  = "lodewasm"
	codeFormat = 2
)

func (h *codeHead) has(export string) bool {
	for _, e := range h.Exports {
		if e == export {
			return true
		}
	}
	return false
}

// newCode makes the code of a rewritten module; shell and native are added
// later.
func newCode(m *rewrite.Module) *code {
	c := &code{data: m.Data, head: codeHead{Format: codeFormat, HasStart: m.HasStart, Slots: m.Slots, Fresh: m.Fresh,
		FreshOnly: m.FreshOnly, MayDirty: m.MayDirty, Memory: m.Memory.Present, MinPages: m.Memory.MinPages, SIMD: m.Features.SIMD}}
	for _, i := range m.Imports {
		c.head.Imports = append(c.head.Imports, i.Module+"."+i.Name)
	}
	for _, e := range m.Exports {
		if e.Kind == rewrite.ExportKindFunc {
			c.head.Exports = append(c.head.Exports, e.Name)
		}
	}
	return c
}

func (c *code) encode() ([]byte, error) {
	head, err := json.Marshal(c.head)
	if err != nil {
		return nil, err
	}
	n := len(codeMagic) + 16 + len(head) + 8*len(c.data) + len(c.shell) + len(c.native)
	for _, d := range c.data {
		n += len(d.Bytes)
	}
	le := binary.LittleEndian
	b := append(make([]byte, 0, n), codeMagic...)
	b = append(le.AppendUint32(b, uint32(len(head))), head...)
	b = le.AppendUint32(b, uint32(len(c.data)))
	for _, d := range c.data {
		b = le.AppendUint32(le.AppendUint32(b, d.Offset), uint32(len(d.Bytes)))
	}
	b = append(le.AppendUint64(b, uint64(len(c.shell))), c.shell...)
	for _, d := range c.data {
		b = append(b, d.Bytes...)
	}
	return append(b, c.native...), nil
}

// decodeCode shares b's memory. The error is of kind Damaged.
func decodeCode(b []byte) (*code, error) {
	c := &code{}
	p := parts{b: b, ok: true}
	p.ok = string(p.take(uint64(len(codeMagic)))) == codeMagic
	if head := p.take(uint64(p.u32())); !p.ok || json.Unmarshal(head, &c.head) != nil || c.head.Format != codeFormat {
		return nil, lode.Errorf(lode.Damaged, "compiled code is cut short or of another version")
	}
	list := parts{b: p.take(8 * uint64(p.u32())), ok: true}
	c.shell = p.take(uint64(p.u32()) | uint64(p.u32())<<32)
	c.data = make([]rewrite.Segment, 0, len(list.b)/8)
	for len(list.b) > 0 {
		offset, n := list.u32(), list.u32()
		c.data = append(c.data, rewrite.Segment{Offset: offset, Bytes: p.take(uint64(n))})
	}
	if !p.ok {
		return nil, lode.Errorf(lode.Damaged, "compiled code is cut short")
	}
	c.native = p.b
	return c, nil
}

// parts are bytes that are taken off from the front. When there are too few, ok
// is false from then on and nothing is left.
type parts struct {
	b  []byte
	ok bool
}

func (p *parts) take(n uint64) []byte {
	if !p.ok || n > uint64(len(p.b)) {
		p.b, p.ok = nil, false
		return nil
	}
	a := p.b[:n:n]
	p.b = p.b[n:]
	return a
}

func (p *parts) u32() uint32 {
	b := p.take(4)
	if b == nil {
		return 0
	}
	return binary.LittleEndian.Uint32(b)
}

// compact gives the segments memory of their own.
func (c *code) compact() {
	n := 0
	for _, d := range c.data {
		n += len(d.Bytes)
	}
	all := make([]byte, 0, n)
	for i, d := range c.data {
		at := len(all)
		all = append(all, d.Bytes...)
		c.data[i].Bytes = all[at:len(all):len(all)]
	}
}

// shellOf gives module with each function's body replaced by one unreachable,
// and with a custom section that holds mark. Modules of different code need
// different marks: to the engine, modules with equal bytes are one.
func shellOf(module []byte, mark string) ([]byte, error) {
	out := bytes.Clone(module[:8])
	good := true
	ok := sections(module, func(id byte, whole, body []byte) bool {
		const secCode = 10
		if id != secCode {
			out = append(out, whole...)
			return true
		}
		n, k := binary.Uvarint(body)
		good = k > 0 && n <= uint64(len(body))
		if good {
			bodies := bytes.Repeat([]byte{3, 0, 0x00, 0x0b}, int(n)) // size, no locals, unreachable, end
			out = section(out, id, append(bytes.Clone(body[:k]), bodies...))
		}
		return good
	})
	if !ok || !good {
		return nil, lode.Errorf(lode.Internal, "a rewritten module cannot be read")
	}
	const name = "lode.code"
	return section(out, 0, append(append([]byte{byte(len(name))}, name...), mark...)), nil
}

func section(out []byte, id byte, body []byte) []byte {
	return append(binary.AppendUvarint(append(out, id), uint64(len(body))), body...)
}

// customSection returns the content of module's first custom section called
// name, or nil. It gives up quietly on anything malformed.
func customSection(module []byte, name string) []byte {
	var found []byte
	sections(module, func(id byte, _, body []byte) bool {
		if id == 0 {
			n, k := binary.Uvarint(body)
			if k > 0 && n <= uint64(len(body)-k) && string(body[k:k+int(n)]) == name {
				found = body[k+int(n):]
				return false
			}
		}
		return true
	})
	return found
}

// sections calls f for each section, whole is the section with its head, until
// f returns false. It reports whether everything was well-formed.
func sections(module []byte, f func(id byte, whole, body []byte) bool) bool {
	if len(module) < 8 {
		return false
	}
	for b := module[8:]; len(b) > 0; {
		n, k := binary.Uvarint(b[1:])
		if k <= 0 || n > uint64(len(b)-1-k) {
			return false
		}
		end := 1 + k + int(n)
		if !f(b[0], b[:end], b[1+k:end]) {
			return true
		}
		b = b[end:]
	}
	return true
}
