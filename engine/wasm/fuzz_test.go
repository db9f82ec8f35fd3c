package wasm

import (
	"bytes"
	"testing"

	"lode"
	"lode/engine/rewrite"
)

// FuzzCode: compiled code from a store that was changed is an error, or the
// same code.
func FuzzCode(f *testing.F) {
	c := &code{shell: []byte("wasm"), native: []byte("native"), data: []rewrite.Segment{{Offset: 3, Bytes: []byte("abc")}},
		head: codeHead{Format: codeFormat, Native: lode.Digest{1}}}
	b, err := c.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:20])
	f.Add([]byte("lodewasm\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeCode(b)
		if err != nil {
			return
		}
		again, err := c.encode()
		if err != nil {
			t.Fatal(err)
		}
		d, err := decodeCode(again)
		if err != nil || !bytes.Equal(c.shell, d.shell) || !bytes.Equal(c.native, d.native) || len(c.data) != len(d.data) {
			t.Fatalf("%v: not the same after a second time", err)
		}
	})
}

// FuzzSections: a module's sections, whatever they are.
func FuzzSections(f *testing.F) {
	f.Add([]byte("\x00asm\x01\x00\x00\x00\x00\x0b\x09lode.initx"))
	f.Add([]byte("\x00asm\x01\x00\x00\x00\x00\xff\xff\xff\xff\x0f"))
	f.Fuzz(func(t *testing.T, b []byte) {
		customSection(b, "lode.init")
		n := 8
		if sections(b, func(_ byte, whole, body []byte) bool { n += len(whole); return len(body) <= len(whole) }) && n != len(b) {
			t.Fatalf("%d of %d bytes", n, len(b))
		}
	})
}

// FuzzPath: paths lead into the tree or fail.
func FuzzPath(f *testing.F) {
	for _, p := range []string{"/tmp/x", "../..", "tmp/../tmp/./a//b", "", "a\x00b"} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, path string) {
		root := &node{id: 1, ro: true, kids: map[string]*node{"tmp": {id: 2, kids: map[string]*node{}}}}
		fs := &files{root: root, limit: 100, open: map[uint32]*file{3: {n: root, pre: true}}}
		p, e := fs.find(3, path)
		if e != eOK {
			return
		}
		if p.dir == nil || p.name == "" && p.n != root || len(p.name) > maxName {
			t.Fatalf("%q: %+v", path, p)
		}
		if p.n == nil && fs.make(&p, false, 0) == eOK && p.dir != root.kids["tmp"] {
			t.Fatalf("%q was made outside of /tmp", path)
		}
	})
}

// FuzzTrap: the engine's text about a crash, with any names in it.
func FuzzTrap(f *testing.F) {
	f.Add("wasm error: unreachable\nwasm stack trace:\n\t.main.(*T).f(i32,i32) i32\n\t.$3()")
	f.Fuzz(func(t *testing.T, s string) {
		_, stack := trap(s)
		for _, n := range stack {
			if n == "" {
				t.Fatal("an empty name")
			}
		}
		goPanic(s)
	})
}

func TestFrameName(t *testing.T) {
	for line, want := range map[string]string{".main.(*T).f(i32,i32) i32": "main.(*T).f", ".$3()": "$3", ".a(b)(i64) (i32,i32)": "a(b)", ".x": "x"} {
		if got := frameName(line); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}
