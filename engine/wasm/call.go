package wasm

import (
	"context"
	"errors"
	"runtime"
	"time"

	"lode"
	"lode/engine"
	"lode/engine/rewrite"
	"lode/sdk/abi"
)

// call is the invocation under way in a sandbox, or its initialisation. It is
// the context that the engine carries to the host functions, so that they need
// no look-up. Each sandbox has one and uses it again.
type call struct {
	sb    *sandbox
	ctx   context.Context
	done  <-chan struct{}
	inv   *engine.Invocation // nil: initialisation
	base  int64              // clock at the beginning
	until int64              // clock at which it is stopped; 0: never

	locked   bool          // the thread is ours since sandbox.run began
	turner   engine.Turner // nil: nobody wants to know how long it computes
	turn     int64         // clock at its next turn
	behind   bool          // the thread is behind others
	computed time.Duration // between entering the guest and leaving it
	waited   time.Duration // of that, in host functions that wait
	effect   bool          // something has left the sandbox
	answered bool          // respond or write was called
	text     []byte        // what initialisation wrote
	failure  *lode.GuestError

	body   []byte // the part of the request's body not read yet
	stream *pump  // the rest of it
	slept  int64  // nanoseconds slept in initialisation
	seed   uint64 // random stream of initialisation
	ops    *ops   // nil: no operation was submitted
	wasi   wasi
}

// Deadline implements context.Context.
func (c *call) Deadline() (time.Time, bool) { return c.ctx.Deadline() }

// Done implements context.Context.
func (c *call) Done() <-chan struct{} { return c.done }

// Err implements context.Context.
func (c *call) Err() error { return c.ctx.Err() }

// Value implements context.Context. It knows nothing: the engine asks for its
// own switches in every call, and none is used.
func (c *call) Value(any) any { return nil }

var _ context.Context = (*call)(nil)

func (c *call) now() int64 { return c.sb.p.d.nanos() }

// begin prepares for inv. The error is that of an invocation that is over
// before it began.
func (c *call) begin(ctx context.Context, inv *engine.Invocation) error {
	sb, w := c.sb, c.wasi
	*c = call{sb: sb, ctx: ctx, done: ctx.Done(), inv: inv, body: inv.Body, wasi: w.again()}
	c.base = c.now()
	if !inv.Deadline.IsZero() {
		left := time.Until(inv.Deadline)
		if left <= 0 {
			return c.stopped(stopDeadline)
		}
		c.until = c.base + int64(left)
	}
	if ctx.Err() != nil {
		return c.stopped(stopCancelled)
	}
	inv.Usage.Operations, inv.Usage.CPU, inv.Usage.Clean = 0, 0, true
	inv.Usage.BodyIn, inv.Usage.BodyOut = int64(len(inv.Body)), 0
	if inv.Stream != nil {
		c.stream = newPump(inv.Stream)
	}
	if c.turner, _ = inv.Slot.(engine.Turner); c.turner != nil {
		c.turn = c.base + int64(turn)
	}
	return nil
}

// beginInit prepares for initialisation, bounded by limit.
func (c *call) beginInit(ctx context.Context, limit time.Duration) {
	*c = call{sb: c.sb, ctx: ctx, done: ctx.Done(), seed: 0x10de}
	c.base = c.now()
	c.until = c.base + int64(limit)
}

// rewind makes read begin at b again.
func (c *call) rewind(b []byte) { c.body = b }

// end cancels what is under way and fills Usage.
func (c *call) end() {
	if c.ops != nil {
		c.ops.close()
	}
	if c.stream != nil {
		c.stream.close()
		if c.inv != nil {
			c.inv.Usage.BodyIn += c.stream.taken
		}
	}
	if c.inv == nil {
		c.ctx, c.done = nil, nil
		return
	}
	c.wasi.flush(c)
	u := &c.inv.Usage
	u.CPU = c.computed - c.waited
	u.Clean = !c.effect
	u.BodyOut += int64(len(c.inv.Reply.Body))
	u.Memory = max(u.Memory, c.sb.Memory())
	// Nothing of the invocation is held until the next one.
	c.ctx, c.done, c.inv, c.ops, c.body, c.stream, c.failure, c.turner = nil, nil, nil, nil, nil, nil, nil, nil
	c.wasi = c.wasi.again()
}

// Reasons to stop a guest.
type stop int

const (
	stopDeadline stop = iota + 1
	stopCancelled
	stopStack
	stopBody
)

func (s stop) Error() string {
	switch s {
	case stopDeadline:
		return "deadline exceeded"
	case stopCancelled:
		return "cancelled"
	case stopBody:
		return "the request's body broke off"
	}
	return "call stack exhausted"
}

// check stops the guest by a panic when its time is over.
func (c *call) check() {
	if c.until != 0 && c.now() >= c.until {
		panic(stopDeadline)
	}
	select {
	case <-c.done:
		panic(c.why())
	default:
	}
}

// why tells a deadline of the context from its cancellation.
func (c *call) why() stop {
	if errors.Is(c.ctx.Err(), context.DeadlineExceeded) {
		return stopDeadline
	}
	return stopCancelled
}

// yield is lode_sys.yield: every guest comes by here at least once in 100
// microseconds of computing, so that the Go runtime can stop it too.
func yield(c *call, stack []uint64) {
	if uint32(stack[0]) != rewrite.YieldFuel {
		panic(stopStack)
	}
	c.check()
	if c.turner != nil {
		if now := c.now(); now >= c.turn {
			c.letOthers(now)
		}
	}
}

// turn is how long a guest computes before it is one of the long ones, and
// then between two of its turns.
const turn = time.Millisecond

// letOthers tells the slot that the guest goes on, and puts its thread behind
// those of guests that are soon done.
func (c *call) letOthers(now int64) {
	err := c.turner.Turn(c.ctx, time.Duration(now-c.turn)+turn)
	after := c.now()
	c.waited += time.Duration(after - now)
	c.turn = after + int64(turn)
	if err != nil {
		c.check()
		panic(c.why())
	}
	if !c.locked && c.keeps() {
		runtime.LockOSThread()
		c.locked = true
	}
	if c.locked && !c.behind {
		c.behind = stepBehind()
	}
}

// keeps reports whether the sandbox stays as the call leaves it.
func (c *call) keeps() bool {
	return c.inv != nil && c.sb.p.c.Reuse && c.sb.p.c.Contract == lode.ContractHandler
}

// stepUp takes letOthers' effect on the thread back, before it is anybody's.
func (c *call) stepUp() {
	if c.behind {
		stepUp()
		c.behind = false
	}
}

func sysFuncs() []hostFunc { return []hostFunc{{"yield", yield, sig("i"), nil}} }

// pause gives thread and CPU slot back, before a host function blocks.
func (c *call) pause() (began int64) {
	c.unlock()
	if c.inv != nil && c.inv.Slot != nil {
		c.inv.Slot.Leave()
	}
	return c.now()
}

// resume takes the slot again. It stops the guest if that is not possible.
func (c *call) resume(began int64) {
	var err error
	if c.inv != nil && c.inv.Slot != nil {
		err = c.inv.Slot.Enter(c.ctx)
	}
	now := c.now()
	c.waited += time.Duration(now - began)
	c.turn = now + int64(turn)
	if err != nil {
		panic(c.why())
	}
}

// stopped is the error of an invocation that was stopped.
func (c *call) stopped(s stop) *lode.Error {
	switch s {
	case stopDeadline:
		return lode.Errorf(lode.Deadline, "%s did not end in time", c.sb.p.c.Revision)
	case stopCancelled:
		return lode.Errorf(lode.Cancelled, "the invocation was cancelled")
	}
	if s == stopBody {
		return lode.Errorf(lode.Cancelled, "the request's body broke off: %w", c.stream.err())
	}
	e := lode.Errorf(lode.Crashed, "the function's calls are nested too deeply")
	e.Guest = &lode.GuestError{Type: "stack overflow", Message: "call stack exhausted"}
	return e
}

// view is [ptr, ptr+n) of the guest's memory; ok is false outside of it.
func (c *call) view(ptr, n uint64) (b []byte, ok bool) {
	mem := c.sb.mem.bytes()
	p, n := uint64(uint32(ptr)), uint64(uint32(n))
	if p+n > uint64(len(mem)) {
		return nil, false
	}
	return mem[p : p+n : p+n], true
}

// need is view for our own imports, which trap on a bad pointer.
func (c *call) need(ptr, n uint64) []byte {
	b, ok := c.view(ptr, n)
	if !ok {
		panic(errPointer)
	}
	return b
}

var errPointer = errors.New("a pointer given to " + abi.Module + " lies outside the memory")
