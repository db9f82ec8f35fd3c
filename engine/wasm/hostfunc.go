package wasm

import (
	"context"
	"runtime"

	"github.com/tetratelabs/wazero/api"
)

// hostFunc is a function that guests import. f has its parameters in stack and
// leaves its result in stack[0].
type hostFunc struct {
	name    string
	f       func(c *call, stack []uint64)
	params  []api.ValueType
	results []api.ValueType
}

func (f hostFunc) run() api.GoModuleFunc {
	return func(ctx context.Context, _ api.Module, stack []uint64) { f.f(ctx.(*call), stack) }
}

// sig makes types of letters: i is i32, l is i64.
func sig(letters string) []api.ValueType {
	var ts []api.ValueType
	for _, l := range letters {
		if l == 'l' {
			ts = append(ts, api.ValueTypeI64)
		} else {
			ts = append(ts, api.ValueTypeI32)
		}
	}
	return ts
}

// fn makes a hostFunc with one i32 as its result.
func fn(name, params string, f func(c *call, stack []uint64) int32) hostFunc {
	return hostFunc{name, func(c *call, stack []uint64) { stack[0] = uint64(uint32(f(c, stack))) }, sig(params), sig("i")}
}

// unlock gives the locked thread back for the rest of the call.
func (c *call) unlock() {
	if c.locked {
		c.locked = false
		c.stepUp()
		runtime.UnlockOSThread()
	}
}
