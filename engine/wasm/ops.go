package wasm

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"time"

	"lode"
	"lode/sdk/abi"
)

// ops are the operations of one invocation. It is made by the first submit;
// completions that come after the invocation's end find it closed and are
// dropped, so they can never reach the next invocation.
type ops struct {
	parent context.Context // of the invocation
	ready  chan struct{}   // holds one token while done may be non-empty

	mu     sync.Mutex
	ctx    context.Context // of the operations that take their time; nil: there was none
	cancel context.CancelFunc
	closed bool
	next   uint32
	open   map[uint32]*op // submitted and not taken
	wait   int            // of them not complete
	done   []uint32       // complete and not yet told, in order
	held   int            // bytes of requests under way and results not taken
}

// maxHeld bounds what the operations of one invocation hold in the host: over
// it submit answers TooMany, and results fail.
const maxHeld = 8 * abi.MaxMessage

type op struct {
	cancel func()
	bytes  int // counted in held
	result []byte
	status abi.Status
	over   bool
	told   bool
}

func newOps(ctx context.Context) *ops {
	return &ops{parent: ctx, ready: make(chan struct{}, 1), open: map[uint32]*op{}}
}

// context is what operations end with that take their time.
func (o *ops) context() context.Context {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ctx == nil {
		o.ctx, o.cancel = context.WithCancel(o.parent)
	}
	return o.ctx
}

func (o *ops) close() {
	o.mu.Lock()
	o.closed = true
	open := o.open
	o.open, o.done = nil, nil
	cancel := o.cancel
	o.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	for _, p := range open {
		if !p.over && p.cancel != nil {
			p.cancel()
		}
	}
}

// add makes an operation with a request of n bytes, or returns 0 when too many
// are under way.
func (o *ops) add(n int, cancel func()) uint32 {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.open) >= abi.MaxOps || o.held+n > maxHeld {
		return 0
	}
	for {
		o.next = (o.next + 1) & 0x7fffffff
		if _, taken := o.open[o.next]; !taken && o.next != 0 {
			break
		}
	}
	o.open[o.next] = &op{cancel: cancel, bytes: n}
	o.held += n
	o.wait++
	return o.next
}

// complete ends operation id. Calls after the first, and after close, do
// nothing.
func (o *ops) complete(id uint32, m lode.Message, err error) {
	result, status := encodeResult(m, err)
	o.mu.Lock()
	defer o.mu.Unlock()
	p := o.open[id]
	if o.closed || p == nil || p.over {
		return
	}
	o.held -= p.bytes
	if o.held+len(result) > maxHeld {
		result, status = encodeResult(lode.Message{}, lode.Errorf(lode.Overloaded, "%d bytes of results wait to be taken", o.held))
	}
	p.over, p.result, p.status, p.bytes = true, result, status, len(result)
	o.held += p.bytes
	o.wait--
	o.done = append(o.done, id)
	select {
	case o.ready <- struct{}{}:
	default:
	}
}

// tell takes the next completion off the list. idle says that there is none
// and none can come.
func (o *ops) tell() (c abi.Completion, ok, idle bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.done) > 0 {
		id := o.done[0]
		o.done = o.done[1:]
		p := o.open[id]
		if p == nil || p.told {
			continue // taken before it was told
		}
		p.told = true
		return abi.Completion{ID: id, Status: p.status, Length: uint32(len(p.result))}, true, false
	}
	return c, false, o.wait == 0
}

// waiting reports whether tell would find something.
func (o *ops) waiting() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.done) > 0
}

// encodeResult makes the bytes that take gives.
func encodeResult(m lode.Message, err error) ([]byte, abi.Status) {
	var status abi.Status
	if err != nil {
		e := lode.AsError(err)
		if _, ok := errors.AsType[*lode.Error](err); !ok && errors.Is(err, context.Canceled) {
			e = lode.Errorf(lode.Cancelled, "cancelled")
		}
		status = abi.StatusOf(string(e.Kind))
		head := []lode.Pair{{Key: ":error", Value: string(e.Kind)}, {Key: ":detail", Value: cut(e.Error())}, {Key: ":hint", Value: cut(e.Hint)}}
		if list := m.Get(":missing"); list != "" { // of a group's members
			head = append(head, lode.Pair{Key: ":missing", Value: list})
		}
		m = lode.Message{Head: head}
	}
	b := encodeMessage(nil, m)
	if len(b) > abi.MaxMessage {
		return encodeResult(lode.Message{}, lode.Errorf(lode.TooLarge, "the result is over %d bytes", abi.MaxMessage))
	}
	return b, status
}

func cut(s string) string { return s[:min(len(s), abi.MaxField)] }

// encodeMessage appends m. Pairs over the limits are left out.
func encodeMessage(b []byte, m lode.Message) []byte {
	n := 0
	for _, p := range m.Head {
		if fits(p) && n < abi.MaxPairs {
			n++
		}
	}
	b = abi.AppendHead(b, n)
	for _, p := range m.Head {
		if n > 0 && fits(p) {
			b = abi.AppendPair(b, p.Key, p.Value)
			n--
		}
	}
	return append(b, m.Body...)
}

func fits(p lode.Pair) bool { return len(p.Key) <= abi.MaxField && len(p.Value) <= abi.MaxField }

// known says which operations there are, and which of them change nothing
// outside.
var known = [...]struct{ ok, reads bool }{
	abi.OpCall: {ok: true}, abi.OpSend: {ok: true}, abi.OpReceive: {ok: true}, abi.OpState: {ok: true}, abi.OpTimer: {ok: true},
	abi.OpData: {true, true}, abi.OpConfig: {true, true}, abi.OpSecret: {true, true}, abi.OpFetch: {ok: true}, abi.OpQueue: {ok: true},
	abi.OpGroup: {ok: true}, abi.OpSelf: {true, true}, abi.OpBodyRead: {true, true}, abi.OpBodyWrite: {true, false},
	abi.OpStreamRead: {true, true}, abi.OpStreamClose: {true, true}, abi.OpSleep: {true, true}, abi.OpSocket: {ok: true},
}

func lodeSubmit(c *call, s []uint64) int32 {
	kind := abi.Op(uint32(s[0]))
	raw := c.need(s[1], s[2])
	if c.inv == nil || int64(kind) >= int64(len(known)) || !known[kind].ok {
		return abi.UnknownOp
	}
	req, err := decodeMessage(raw)
	if err != nil {
		return abi.Malformed
	}
	if c.ops == nil {
		c.ops = newOps(c.ctx)
	}
	id := c.start(kind, req, len(raw))
	if id == 0 {
		return abi.TooMany
	}
	c.inv.Usage.Operations++
	c.effect = c.effect || !known[kind].reads
	return int32(id)
}

// decodeMessage copies everything: nothing of it lies in the guest's memory.
func decodeMessage(raw []byte) (m lode.Message, err error) {
	if len(raw) >= 4 {
		m.Head = make([]lode.Pair, 0, min(binary.LittleEndian.Uint32(raw), 16))
	}
	body, err := abi.Decode(raw, func(k, v []byte) { m.Head = append(m.Head, lode.Pair{Key: word(k), Value: string(v)}) })
	if len(body) > 0 {
		m.Body = append([]byte(nil), body...)
	}
	return m, err
}

// word is string(k), without an allocation for what operations have most.
func word(k []byte) string {
	switch string(k) {
	case ":key":
		return ":key"
	case ":verb":
		return ":verb"
	case ":address":
		return ":address"
	case "content-type":
		return "content-type"
	}
	return string(k)
}

// start begins an operation with a request of n bytes and returns its id, or
// 0.
func (c *call) start(kind abi.Op, req lode.Message, n int) uint32 {
	o := c.ops
	switch kind {
	case abi.OpBodyRead:
		if c.stream == nil || len(c.body) > 0 {
			return o.immediate()
		}
		id := o.add(0, nil)
		if id != 0 {
			c.stream.want(func() { o.complete(id, lode.Message{}, nil) })
		}
		return id
	case abi.OpBodyWrite:
		return c.startWrite()
	case abi.OpSleep:
		ctx, cancel := context.WithCancel(o.context())
		id := o.add(n, cancel)
		if id == 0 {
			cancel()
			return 0
		}
		sleep(ctx, nanoseconds(req.Get(":ns")), func(err error) { cancel(); o.complete(id, lode.Message{}, err) })
		return id
	case abi.OpState, abi.OpTimer, abi.OpSocket: // answered before Submit returns, but for a sync, which nobody can take back
		id := o.add(n, nil)
		if id != 0 {
			c.submit(o.parent, kind, req, func(m lode.Message, err error) { o.complete(id, m, err) })
		}
		return id
	}
	ctx, cancel := context.WithCancel(o.context())
	id := o.add(n, cancel)
	if id == 0 {
		cancel()
		return 0
	}
	c.submit(ctx, kind, req, func(m lode.Message, err error) { cancel(); o.complete(id, m, err) })
	return id
}

// submit gives an operation to the host.
func (c *call) submit(ctx context.Context, kind abi.Op, req lode.Message, done func(lode.Message, error)) {
	if c.inv.Host == nil {
		done(lode.Message{}, lode.Errorf(lode.Unavailable, "operations are not available here"))
		return
	}
	c.inv.Host.Submit(ctx, kind, req, done)
}

// immediate is an operation that is done already.
func (o *ops) immediate() uint32 {
	id := o.add(0, nil)
	if id != 0 {
		o.complete(id, lode.Message{}, nil)
	}
	return id
}

// startWrite hands the answer on as far as it goes. Out may only be called
// from this goroutine, so that is done now, outside of the computing time; the
// guest sees a completed operation.
func (c *call) startWrite() uint32 {
	id := c.ops.add(0, nil)
	if id != 0 {
		c.ops.complete(id, lode.Message{}, c.send())
	}
	return id
}

// send gives Out what was written so far.
func (c *call) send() error {
	if c.inv.Out == nil {
		return lode.Errorf(lode.Unavailable, "nobody takes the answer")
	}
	c.answered = true
	c.inv.Usage.BodyOut += int64(len(c.inv.Reply.Body))
	began := c.pause()
	err := c.inv.Flush()
	if c.inv.Slot != nil {
		c.inv.Slot.Leave() // lets what was written go out
	}
	c.resume(began)
	return err
}

// sleep calls done once, after d or when ctx has ended.
func sleep(ctx context.Context, d time.Duration, done func(error)) {
	var once sync.Once
	end := func(err error) { once.Do(func() { done(err) }) }
	t := time.AfterFunc(d, func() { end(nil) })
	context.AfterFunc(ctx, func() {
		t.Stop()
		end(ctx.Err())
	})
}

func lodeWait(c *call, s []uint64) int32 {
	out := c.need(s[1], 12)
	timeout := int64(s[0])
	if c.ops == nil {
		return abi.Idle
	}
	var until int64 // 0: no end
	if timeout > 0 {
		until = c.now() + timeout
	}
	for {
		done, ok, idle := c.ops.tell()
		switch {
		case ok:
			done.Append(out[:0])
			return 1
		case idle:
			return abi.Idle
		case timeout == 0 || until != 0 && c.now() >= until:
			return 0
		}
		c.block(until)
	}
}

// block waits for a completion, or until the clock says until (0: never). It
// stops the guest at its own end.
func (c *call) block(until int64) {
	var ready chan struct{}
	if c.ops != nil {
		ready = c.ops.ready
	}
	select {
	case <-ready:
		return
	default:
	}
	began := c.pause()
	if c.until != 0 && (until == 0 || c.until < until) {
		until = c.until
	}
	var clock <-chan time.Time
	if until != 0 {
		t := time.NewTimer(time.Duration(until - began))
		defer t.Stop()
		clock = t.C
	}
	select {
	case <-ready:
	case <-clock:
	case <-c.done:
	}
	c.resume(began)
	c.check()
}

func lodeTake(c *call, s []uint64) int32 {
	if c.ops == nil {
		return abi.Malformed
	}
	o := c.ops
	o.mu.Lock()
	defer o.mu.Unlock()
	p := o.open[uint32(s[0])]
	if p == nil || !p.over {
		return abi.Malformed
	}
	if uint64(len(p.result)) <= uint64(uint32(s[2])) {
		copy(c.need(s[1], uint64(len(p.result))), p.result)
		o.held -= p.bytes
		delete(o.open, uint32(s[0]))
	}
	return int32(len(p.result))
}

func lodeCancel(c *call, s []uint64) int32 {
	if c.ops == nil {
		return abi.Malformed
	}
	o, id := c.ops, uint32(s[0])
	o.mu.Lock()
	p := o.open[id]
	o.mu.Unlock()
	if p == nil {
		return abi.Malformed
	}
	if p.cancel != nil {
		p.cancel()
	} else {
		o.complete(id, lode.Message{}, context.Canceled)
	}
	return 0
}
