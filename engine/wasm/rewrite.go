package wasm

import (
	"encoding/binary"
	"sync"

	"github.com/zeebo/blake3"

	"lode/engine/rewrite"
	"lode/sdk"
)

// scriptStack is the stack of Lode's own JavaScript engine, as the pass
// estimates it. Its interpreter is one function of thousands of places where
// ways meet, which the pass takes to need 1 MiB a call where some 20 KiB are
// used; and it bounds its own recursion. So a thousand calls of JavaScript are
// some 30 MiB in truth.
const scriptStack = 1 << 30

// rewriteModule is the same for all revisions: code is shared by those with
// different limits, so the memory's maximum is imposed by the allocator.
func rewriteModule(module []byte, period uint32) (*rewrite.Module, error) {
	o := rewrite.Options{Period: period}
	if isScript(module) {
		o.MaxStack = scriptStack
	}
	return rewrite.Rewrite(module, o)
}

// script is the size and the sum of the JavaScript engine that comes with this
// version.
var script = sync.OnceValue(func() (s struct {
	size int
	sum  [32]byte
}) {
	if b, err := sdk.QuickJS(); err == nil {
		s.size, s.sum = len(b), blake3.Sum256(b)
	}
	return s
})

// isScript reports whether a module is the JavaScript engine as it is shipped,
// with nothing behind it but custom sections: a program.
func isScript(module []byte) bool {
	s := script()
	if s.size == 0 || len(module) < s.size || blake3.Sum256(module[:s.size]) != s.sum {
		return false
	}
	for rest := module[s.size:]; len(rest) > 0; {
		n, w := binary.Uvarint(rest[1:])
		if rest[0] != 0 || w <= 0 || n > uint64(len(rest)-1-w) {
			return false
		}
		rest = rest[1+w+int(n):]
	}
	return true
}
