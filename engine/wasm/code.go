package wasm

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"

	"lode"
	"lode/engine/rewrite"
)

// Compiled code is a file of four parts, integers little-endian:
//
//	8 bytes   "lodewasm"
//	u32       length of the head; the head, JSON: see codeHead
//	u64       length of the rewritten module; the module
//	n times   the active data segments: their bytes one after the other, with
//	          the lengths in the head
//	the rest  the engine's own cache file, native code, named by the head
//
// It does not hold the module's custom sections, so that modules that differ
// in those alone share it.
type code struct {
	head   codeHead
	wasm   []byte
	data   []rewrite.Segment
	native []byte
}

type codeHead struct {
	Format    int           `json:"format"`
	Native    string        `json:"native"` // name of the engine's cache file, with its folder
	HasStart  bool          `json:"start,omitempty"`
	Slots     int           `json:"slots,omitempty"`
	Fresh     string        `json:"fresh,omitempty"` // why instances are not reset
	FreshOnly bool          `json:"fresh_only,omitempty"`
	MayDirty  int           `json:"may_dirty,omitempty"`
	Memory    bool          `json:"memory,omitempty"`
	MinPages  uint32        `json:"min_pages,omitempty"`
	Exports   []string      `json:"exports,omitempty"` // functions among wanted
	Imports   []string      `json:"imports,omitempty"` // "module.name"
	SIMD      bool          `json:"simd,omitempty"`
	Data      []codeSegment `json:"data,omitempty"`
}

type codeSegment struct {
	Offset uint32 `json:"o"`
	Length uint32 `json:"n"`
}

const (
	codeMagic  = "lodewasm"
	codeFormat = 1
)

func (h *codeHead) has(export string) bool {
	for _, e := range h.Exports {
		if e == export {
			return true
		}
	}
	return false
}

// newCode makes the code of a rewritten module; native is added later.
func newCode(m *rewrite.Module) *code {
	c := &code{wasm: m.Wasm, data: m.Data, head: codeHead{Format: codeFormat, HasStart: m.HasStart, Slots: m.Slots, Fresh: m.Fresh,
		FreshOnly: m.FreshOnly, MayDirty: m.MayDirty, Memory: m.Memory.Present, MinPages: m.Memory.MinPages, SIMD: m.Features.SIMD}}
	for _, d := range m.Data {
		c.head.Data = append(c.head.Data, codeSegment{d.Offset, uint32(len(d.Bytes))})
	}
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
	var b bytes.Buffer
	b.Grow(len(codeMagic) + 12 + len(head) + len(c.wasm) + len(c.native))
	b.WriteString(codeMagic)
	b.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(head))))
	b.Write(head)
	b.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(c.wasm))))
	b.Write(c.wasm)
	for _, d := range c.data {
		b.Write(d.Bytes)
	}
	b.Write(c.native)
	return b.Bytes(), nil
}

// decodeCode shares b's memory. The error is of kind Damaged.
func decodeCode(b []byte) (*code, error) {
	bad := lode.Errorf(lode.Damaged, "compiled code is cut short or of another version")
	b, ok := bytes.CutPrefix(b, []byte(codeMagic))
	if !ok || len(b) < 4 {
		return nil, bad
	}
	n := uint64(binary.LittleEndian.Uint32(b))
	b = b[4:]
	c := &code{}
	if uint64(len(b)) < n+8 || json.Unmarshal(b[:n], &c.head) != nil || c.head.Format != codeFormat {
		return nil, bad
	}
	b = b[n:]
	n = binary.LittleEndian.Uint64(b)
	b = b[8:]
	if uint64(len(b)) < n {
		return nil, bad
	}
	c.wasm, b = b[:n:n], b[n:]
	for _, s := range c.head.Data {
		if uint64(len(b)) < uint64(s.Length) {
			return nil, bad
		}
		c.data = append(c.data, rewrite.Segment{Offset: s.Offset, Bytes: b[:s.Length:s.Length]})
		b = b[s.Length:]
	}
	c.native = b
	return c, nil
}

// takeNative moves the one file that the engine has written below dir into c.
func (c *code) takeNative(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*", "*"))
	if err != nil || len(files) != 1 {
		return lode.Errorf(lode.Internal, "the engine wrote %d files of code, not one", len(files))
	}
	c.native, err = os.ReadFile(files[0])
	if err != nil {
		return err
	}
	rel, err := filepath.Rel(dir, files[0])
	c.head.Native = filepath.ToSlash(rel)
	return err
}

// putNative writes c's file below dir, where the engine finds it, and returns
// its path.
func (c *code) putNative(dir string) (string, error) {
	if !filepath.IsLocal(filepath.FromSlash(c.head.Native)) {
		return "", lode.Errorf(lode.Damaged, "compiled code names a file outside its folder")
	}
	path := filepath.Join(dir, filepath.FromSlash(c.head.Native))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", err
	}
	return path, os.WriteFile(path, c.native, 0o600)
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
