package enginetest

import "encoding/binary"

// handModule assembles a module that no compiler here would write: one table
// of ten elements, one memory of one page, one mutable global, and lode_invoke
// with the given code (without locals declarations and end).
func handModule(locals int, code ...byte) []byte {
	section := func(id byte, body ...byte) []byte { return append(leb([]byte{id}, len(body)), body...) }
	m := []byte("\x00asm\x01\x00\x00\x00")
	m = append(m, section(1, 1, 0x60, 0, 1, 0x7f)...)                                               // () -> i32
	m = append(m, section(3, 1, 0)...)                                                              // one function
	m = append(m, section(4, 1, 0x70, 0, 10)...)                                                    // funcref
	m = append(m, section(5, 1, 0, 1)...)                                                           // memory
	m = append(m, section(6, 1, 0x7f, 1, 0x41, 42, 0x0b)...)                                        // i32, mutable, 42
	m = append(m, section(7, append([]byte("\x02\x06memory\x02\x00\x0blode_invoke\x00"), 0)...)...) // exports
	m = append(m, section(9, 1, 3, 0, 1, 0)...)                                                     // declares function 0
	body := []byte{0}
	if locals > 0 {
		body = []byte{1, byte(locals), 0x7f}
	}
	body = append(append(body, code...), 0x0b)
	return append(m, section(10, append(leb([]byte{1}, len(body)), body...)...)...)
}

func leb(b []byte, n int) []byte { return binary.AppendUvarint(b, uint64(n)) }

// WithInit is module with content in its section lode.init, as bundles for one
// engine in wasm are made.
func WithInit(module []byte, content string) []byte {
	body := append(leb(nil, 9), "lode.init"+content...)
	return append(append([]byte(nil), module...), append(leb([]byte{0}, len(body)), body...)...)
}
