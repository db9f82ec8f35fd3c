package wasm

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"reflect"
	"runtime"
	"time"
	"unsafe"

	"github.com/tetratelabs/wazero/api"

	"lode"
	"lode/engine"
	"lode/engine/rewrite"
)

// sandbox is one instance.
//
//	clean --Invoke--> used --Reset--> clean
//	  any --trap, exit, kill--> dead --Close--> closed
type sandbox struct {
	p    *program
	mod  api.Module
	mem  memory
	refs []funcRef // what mod's tables refer to; kept as long as mod

	entry  api.Function // lode_invoke or _start
	reset  api.Function // nil: fresh instances only
	params []uint64     // for entry
	slots  []uint64     // for reset
	stack  *[]byte      // the engine's stack for entry, or nil

	call   call
	used   bool // lode_invoke or _start ran since the last reset
	dead   bool
	closed bool
}

// maxKeptStack is the size above which the engine's stack is not kept between
// invocations.
const maxKeptStack = 256 << 10

// prepare looks the functions up, once: each look-up makes a stack.
func (s *sandbox) prepare(img *image) error {
	if img != nil {
		have, want := len(s.mem.bytes()), len(img.b)
		if _, ok := s.mod.Memory().Grow(uint32((want - have) / rewrite.PageSize)); !ok {
			return lode.Errorf(lode.Internal, "the image does not fit into a sandbox")
		}
	}
	name := exportInvoke
	if s.p.c.Contract == lode.ContractCommand {
		name = exportStart
	}
	s.entry = s.mod.ExportedFunction(name)
	if s.entry == nil {
		return lode.Errorf(lode.Invalid, "the module does not export %s", name)
	}
	def := s.entry.Definition()
	if len(def.ParamTypes()) > 0 || len(def.ResultTypes()) > 1 {
		return lode.Errorf(lode.Invalid, "%s has parameters, or more than one result", name)
	}
	s.params = make([]uint64, 1)
	s.stack = engineStack(s.entry)
	if !s.p.s.code.head.FreshOnly {
		s.reset = s.mod.ExportedFunction(rewrite.ExportReset)
		s.slots = make([]uint64, max(s.p.s.code.head.Slots, 1))
	}
	s.call.sb = s
	return nil
}

// engineStack finds the stack that the engine keeps for f, which its API does
// not show: a guest that recurses deeply makes it large.
func engineStack(f api.Function) *[]byte {
	v := reflect.ValueOf(f)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		return nil
	}
	field := v.Elem().FieldByName("stack")
	if !field.IsValid() || field.Type() != reflect.TypeFor[[]byte]() {
		return nil
	}
	return (*[]byte)(unsafe.Pointer(field.UnsafeAddr()))
}

// resetGlobals sets the snapshot's globals and reports whether nothing else of
// the instance was changed.
func (s *sandbox) resetGlobals() bool {
	if s.reset == nil {
		return false
	}
	copy(s.slots, s.p.slots)
	if err := s.reset.CallWithStack(idle{}, s.slots); err != nil {
		return false
	}
	return uint32(s.slots[0]) == 0
}

// idle is the context of the pass's own functions, which call nobody.
type idle struct{}

func (idle) Deadline() (t time.Time, ok bool) { return t, false }
func (idle) Done() <-chan struct{}            { return nil }
func (idle) Err() error                       { return nil }
func (idle) Value(any) any                    { return nil }

// Invoke implements engine.Sandbox.
func (s *sandbox) Invoke(ctx context.Context, inv *engine.Invocation) error {
	if s.dead || s.closed || s.used {
		return lode.Errorf(lode.Internal, "%s: a sandbox was used without a reset", s.p.c.Revision)
	}
	s.used = true
	c := &s.call
	if err := c.begin(ctx, inv); err != nil {
		return err
	}
	if s.p.c.Contract == lode.ContractCommand {
		c.asCommand()
	}
	err := c.run(s.entry, s.params[:])
	if err == nil && s.p.c.Contract == lode.ContractHandler && uint32(s.params[0]) != 0 {
		err = c.failed(int32(s.params[0]))
	}
	c.end()
	return err
}

// Reset implements engine.Sandbox.
func (s *sandbox) Reset() bool {
	if s.dead || s.closed || s.p.fresh {
		return false
	}
	if s.stack != nil && len(*s.stack) > maxKeptStack {
		return false
	}
	if s.p.c.Reuse && s.p.c.Contract == lode.ContractHandler {
		// Kept as it is, but never until its memory is full.
		s.used = false
		return len(s.mem.bytes()) < s.p.limit/4*3
	}
	if !s.used {
		return true
	}
	if !s.resetGlobals() || !s.mem.restore() {
		return false
	}
	s.used = false
	return true
}

// Digest is the SHA-256 of all memory and all mutable globals, for tests of
// what a reset restores.
func (s *sandbox) Digest() (sum [32]byte) {
	h := sha256.New()
	h.Write(s.mem.bytes())
	globals := make([]uint64, max(s.p.s.code.head.Slots, 1))
	if f := s.mod.ExportedFunction(rewrite.ExportGlobals); f != nil {
		f.CallWithStack(idle{}, globals)
	}
	binary.Write(h, binary.LittleEndian, globals)
	h.Sum(sum[:0])
	return sum
}

// Memory implements engine.Sandbox.
func (s *sandbox) Memory() int64 {
	n := int64(len(s.mem.bytes()))
	if s.stack != nil {
		n += int64(len(*s.stack))
	}
	return n
}

// Close implements engine.Sandbox.
func (s *sandbox) Close() error {
	if s.closed {
		return nil
	}
	s.free()
	s.p.release()
	return nil
}

// free gives everything back but the reference to the program.
func (s *sandbox) free() {
	s.closed = true
	if s.mod != nil {
		s.mod.Close(context.Background())
	}
	s.mem.close()
}

// initialise runs what comes before the first invocation.
func (s *sandbox) initialise(ctx context.Context) error {
	mem := s.mem.bytes()
	for _, d := range s.p.s.code.data {
		copy(mem[d.Offset:], d.Bytes) // the pass has checked that it fits
	}
	c := &s.call
	c.beginInit(ctx, startLimit(s.p.c.Limits))
	defer c.end()
	steps := []string{rewrite.ExportStart, exportInitialize, exportInit, exportWarm}
	if s.p.c.Contract == lode.ContractCommand {
		steps = steps[:1]
	}
	for _, name := range steps {
		if err := s.step(c, name); err != nil {
			return err
		}
	}
	return nil
}

// step runs one export, if it is there.
func (s *sandbox) step(c *call, name string) error {
	f := s.mod.ExportedFunction(name)
	if f == nil {
		return nil
	}
	stack := make([]uint64, 1)
	if len(f.Definition().ParamTypes()) > 0 || len(f.Definition().ResultTypes()) > 1 {
		return lode.Errorf(lode.Invalid, "%s has parameters, or more than one result", name)
	}
	c.rewind(s.p.init)
	if err := c.run(f, stack); err != nil {
		return err
	}
	if len(f.Definition().ResultTypes()) == 1 && uint32(stack[0]) != 0 {
		return c.failed(int32(stack[0]))
	}
	return nil
}

// describe runs lode_describe and returns what it wrote.
func (s *sandbox) describe(ctx context.Context) ([]byte, error) {
	c := &s.call
	c.beginInit(ctx, startLimit(s.p.c.Limits))
	defer c.end()
	if err := s.step(c, exportDescribe); err != nil {
		return nil, err
	}
	return c.text, nil
}

// image is the snapshot of an initialised sandbox; nil when it cannot serve
// another instance.
func (s *sandbox) image(ctx context.Context) (*image, []uint64, error) {
	h := &s.p.s.code.head
	if h.FreshOnly {
		return nil, nil, nil
	}
	var dirty [1]uint64
	if err := s.mod.ExportedFunction(rewrite.ExportDirty).CallWithStack(idle{}, dirty[:]); err != nil {
		return nil, nil, err
	}
	if uint32(dirty[0]) != 0 {
		return nil, nil, nil
	}
	slots := make([]uint64, max(h.Slots, 1))
	if err := s.mod.ExportedFunction(rewrite.ExportGlobals).CallWithStack(idle{}, slots); err != nil {
		return nil, nil, err
	}
	return newImage(s.mem.bytes()), slots, nil
}

// run calls into the guest and says what came of it. On a locked thread, whose
// faults tell which pages the guest wrote: but for sandboxes that are kept as
// they are, of which nothing has to be known.
func (c *call) run(f api.Function, stack []uint64) error {
	s := c.sb
	keeps := c.keeps()
	if !keeps {
		runtime.LockOSThread()
		c.locked = true
		s.mem.enter()
	}
	began := c.now()
	err := f.CallWithStack(c, stack)
	c.computed += time.Duration(c.now() - began)
	if c.locked && !keeps {
		s.mem.leave()
	} else {
		s.mem.moved()
	}
	c.unlock()
	if err != nil {
		s.dead = true
		return c.crashed(err)
	}
	return nil
}

var _ engine.Sandbox = (*sandbox)(nil)
