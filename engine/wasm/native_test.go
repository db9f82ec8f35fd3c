package wasm

import (
	"bytes"
	"context"
	"sync"
	"testing"

	"lode"
	"lode/engine"
	"lode/engine/enginetest"
)

// twin is module with another last byte of data.
func twin(t *testing.T, module []byte, last byte) []byte {
	t.Helper()
	const secData = 11
	var out []byte
	sections(module, func(id byte, whole, _ []byte) bool {
		if id == secData {
			at := bytes.Index(module, whole) + len(whole) - 1
			out = bytes.Clone(module)
			out[at] = last
		}
		return true
	})
	if out == nil {
		t.Fatal("the guest has no data")
	}
	return out
}

// TestTwins: modules that differ in data alone are made into equal code; they
// are loaded and dropped side by side all the same.
func TestTwins(t *testing.T) {
	d, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	guest := enginetest.C(t, "probe")
	var modules, codes [][]byte
	for i := range 4 {
		modules = append(modules, twin(t, guest, byte(i)))
		codes = append(codes, enginetest.Code(t, d, modules[i]))
	}
	var wg sync.WaitGroup
	for i := range modules {
		wg.Go(func() {
			for range 30 {
				if err := d.once(modules[i], codes[i]); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// once loads a module, makes a sandbox and drops both.
func (d *Driver) once(module, code []byte) error {
	p, err := d.Load(context.Background(), module, code, engine.Config{Contract: lode.ContractHandler, Limits: enginetest.Limits()})
	if err != nil {
		return err
	}
	defer p.Close()
	sb, err := p.Sandbox(context.Background())
	if err != nil {
		return err
	}
	return sb.Close()
}

// TestShell: the empty functions of a shell never run. Without the native code
// that belongs to it the load fails.
func TestShell(t *testing.T) {
	d, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	guest := enginetest.C(t, "echo")
	good := enginetest.Code(t, d, guest)
	for name, change := range map[string]func(*code){
		"another key":     func(c *code) { c.head.Native[0]++ },
		"no code":         func(c *code) { c.native = nil },
		"another engine":  func(c *code) { c.native[7]++ }, // the version, after 6 bytes of magic and its length
		"another magic":   func(c *code) { c.native[0]++ },
		"changed code":    func(c *code) { c.native[len(c.native)/2]++ },
		"without its end": func(c *code) { c.native = c.native[:len(c.native)/2] },
		"another mark":    func(c *code) { c.shell[len(c.shell)-1]++ },
	} {
		t.Run(name, func(t *testing.T) {
			c, err := decodeCode(bytes.Clone(good))
			if err != nil {
				t.Fatal(err)
			}
			change(c)
			bad, err := c.encode()
			if err != nil {
				t.Fatal(err)
			}
			if err := d.once(guest, bad); lode.KindOf(err) != lode.Damaged {
				t.Errorf("%v, want damaged", err)
			}
		})
	}
	if err := d.once(guest, good); err != nil {
		t.Error("afterwards:", err)
	}
}
