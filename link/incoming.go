package link

import (
	"context"
	"fmt"
	"io"
	"runtime/debug"
	"time"

	"lode"
)

// Handler answers a call. ctx ends when the caller's does, when the caller's
// deadline has passed, when the connection is lost and when the handler has
// returned. A nil error without a Reply or a Begin is an empty answer. Its
// error goes to the caller as a *lode.Error with all its fields, also after a
// part of the answer; one after a Reply is only logged.
type Handler func(ctx context.Context, in *Incoming) error

// Incoming is a call of a peer. Its methods are for the handler's goroutine,
// but for Note and Notes, which any goroutine may use until the handler
// returns. Head and Body are the handler's own.
type Incoming struct {
	From   lode.NodeID
	Method string
	Head   []byte
	Body   []byte    // the whole body, or where Stream is not nil its beginning
	Stream io.Reader // the rest of the body; nil: Body is all. It has WriteTo

	c       *conn
	id      uint64
	flags   uint8
	handle  Handler
	ctx     callCtx
	state   answerState
	headDue []byte   // a head that Begin was given and that was not sent yet
	out     *outflow // of a streamed answer
	part    *buf     // what was written and not sent yet, after room for a header
	body    *inBody
	cost    int64

	// guarded by conn.mu
	gone  bool // the caller cancelled, or the connection died
	notes chan []byte
	noted int // notes without a reply yet; most never get one
}

// answerState is how far an answer is.
//
//	none --Reply--> whole
//	none --Begin--> begun --the handler returns--> whole
type answerState uint8

const (
	none answerState = iota
	begun
	whole
)

// maxReplies is how many replies to notes wait in Notes; later ones are dropped.
const maxReplies = 64

// Whole returns the call's body as one reader.
func (in *Incoming) Whole() io.Reader { return &wholeBody{in.Body, in.Stream} }

// takeCall starts a handler for a call, or refuses it.
func (c *conn) takeCall(h header, p []byte) error {
	k, err := parseCall(p)
	if err != nil {
		return &protocolError{err}
	}
	m, ok := c.l.methods[string(k.method)]
	c.mu.Lock()
	defer c.mu.Unlock()
	if h.id <= c.lastIn {
		return &protocolError{fmt.Errorf("call %d after call %d", h.id, c.lastIn)}
	}
	c.lastIn = h.id
	cost := int64(len(p)) + 512
	if h.flags&flagStream != 0 {
		cost += baseWindow
	}
	switch {
	case !ok:
		c.refuse(h.id, lode.Errorf(lode.NotFound, "node %s has no method %q", c.l.cfg.Self, cut(string(k.method), maxMethod)).WithHint("the nodes run different versions of Lode: `lode nodes` shows them"))
		return nil
	case c.closing != nil || c.p.stopped():
		c.refuse(h.id, &lode.Error{Kind: lode.Unavailable, Detail: "node " + string(c.l.cfg.Self) + " is stopping", RetryAfter: retryAfter})
		return nil
	case len(c.incoming) >= maxOpen || c.held+cost > maxHeld:
		c.refuse(h.id, &lode.Error{Kind: lode.Overloaded, Detail: "node " + string(c.l.cfg.Self) + " has too many open calls of this peer", RetryAfter: retryAfter})
		return nil
	}
	in := &Incoming{From: c.p.node, Method: m.name, Head: k.head, Body: k.body, c: c, id: h.id, flags: h.flags, handle: m.handle, cost: cost}
	if k.left > 0 {
		in.ctx.deadline = time.Now().Add(k.left)
	}
	if h.flags&flagStream != 0 {
		in.body = &inBody{in: in, flow: newInflow(), wake: make(chan struct{}, 1)}
		in.Stream = in.body
	}
	c.held += cost
	c.incoming[h.id] = in
	c.p.served.Add(1)
	c.l.start(in)
	return nil
}

// refuse answers a call that is not started; c.mu is held.
func (c *conn) refuse(id uint64, e *lode.Error) {
	c.post(appendFrame(nil, kindReply, flagError|flagRefused, id, appendError(e)))
	c.pushLater()
}

// warm is how many handler goroutines wait for the next call.
const warm = 64

// start hands a call to a goroutine that waits, or to a new one: a handler
// that blocks never delays another. It does not block.
func (l *Link) start(in *Incoming) {
	select {
	case l.work <- in:
	default:
		l.wg.Go(func() { l.handlers(in) })
	}
}

func (l *Link) handlers(in *Incoming) {
	for {
		in.run()
		if l.idle.Add(1) > warm {
			l.idle.Add(-1)
			return
		}
		select {
		case in = <-l.work:
			l.idle.Add(-1)
		case <-l.done:
			l.idle.Add(-1)
			return
		}
	}
}

// run runs the handler and ends its answer.
func (in *Incoming) run() {
	err := in.guarded()
	in.finish(err)
	in.ctx.cancel()
}

// guarded turns a handler's panic into an error: one bad call must not take
// the node down.
func (in *Incoming) guarded() (err error) {
	defer func() {
		if v := recover(); v != nil {
			in.c.l.log.Error("a handler panicked", "method", in.Method, "panic", v, "stack", string(debug.Stack()))
			err = lode.Errorf(lode.Internal, "node %s failed in method %s", in.c.l.cfg.Self, in.Method)
		}
	}()
	return in.handle(&in.ctx, in)
}

// finish sends what is left of the answer.
func (in *Incoming) finish(err error) {
	if in.state == begun && !in.endsSmall() {
		in.Flush() // an error is the same as that of the connection, below
	}
	c := in.c
	c.mu.Lock()
	if in.state == whole {
		heard := !in.gone && c.err == nil
		c.mu.Unlock()
		if err != nil && heard { // else its reply found nobody, and that is no failure
			c.l.log.Warn("a handler failed after its reply", "method", in.Method, "from", in.From, "err", err)
		}
		return
	}
	dead := in.gone || c.err != nil
	streamed := in.state == begun
	in.state = whole
	switch {
	case dead:
	case !streamed && err != nil:
		c.post(appendFrame(nil, kindReply, flagError, in.id, appendError(err)))
	case !streamed:
		c.post(appendReply(nil, in.id, nil, nil))
	default:
		in.postHead()
		in.postEnd(err)
	}
	in.leave()
	c.push(true)
	c.l.bufs.put(in.part)
	in.part = nil
}

// endsSmall reports whether what is left of the answer may go along with its
// end.
func (in *Incoming) endsSmall() bool {
	if in.part == nil {
		return true
	}
	in.c.mu.Lock()
	defer in.c.mu.Unlock()
	n := len(in.part.b) - headerSize
	return small(n) && n <= in.out.credit
}

// postEnd posts the end of a streamed answer with what is left of it; conn.mu
// is held.
func (in *Incoming) postEnd(err error) {
	c := in.c
	if in.part != nil && len(in.part.b) > headerSize {
		n := len(in.part.b) - headerSize
		putHeader(in.part.b, n, kindAnswer, 0, in.id)
		c.writer.bulkSent += uint64(n)
		in.out.credit -= n
		in.out.total += int64(n)
		c.post(in.part.b)
	}
	c.p.sample(in.out.total, in.out.began)
	if err != nil {
		c.post(appendFrame(nil, kindAnswerEnd, flagError, in.id, appendError(err)))
	} else {
		c.post(appendHeader(nil, 0, kindAnswerEnd, 0, in.id))
	}
}

// leave takes the call off the connection's books; conn.mu is held.
func (in *Incoming) leave() {
	c := in.c
	if c.incoming[in.id] != in {
		return // the connection died and has been tidied up
	}
	delete(c.incoming, in.id)
	c.held -= in.cost
	if in.body != nil {
		c.release(&in.body.flow)
		in.body.drop(errStopped)
	}
	c.settle()
}

// wakeAll wakes whoever waits for something of this call; conn.mu is held.
func (in *Incoming) wakeAll() {
	in.gone = true
	if in.body != nil {
		in.body.drop(nil)
	}
	if in.out != nil {
		in.out.signal()
	}
}

// lostErr is why nothing can be sent to the caller any longer; conn.mu is held.
func (in *Incoming) lostErr() error {
	switch {
	case in.c.err != nil:
		return lost(in.From, in.c.err)
	case in.gone:
		return lode.Errorf(lode.Cancelled, "node %s does not wait for the answer any longer: %w", in.From, context.Canceled)
	}
	return nil
}

// Reply is the whole answer, in one frame where body has at most MaxBody
// bytes. The head has at most MaxHead bytes. It may be called once, and not
// after Begin; an error means that the caller has gone.
func (in *Incoming) Reply(head, body []byte) error {
	if len(body) > MaxBody {
		if err := in.Begin(head); err != nil {
			return err
		}
		_, err := in.Write(body)
		return err
	}
	if err := in.mayBegin(head); err != nil {
		return err
	}
	c := in.c
	c.mu.Lock()
	c.wait(nil)
	err := in.lostErr()
	in.state = whole
	if err == nil {
		n := len(c.writer.pend)
		c.writer.pend = appendReply(c.writer.pend, in.id, head, body)
		c.posted(n)
	}
	in.leave()
	c.push(true)
	return err
}

func (in *Incoming) mayBegin(head []byte) error {
	if in.state != none {
		return lode.Errorf(lode.Internal, "method %s answered twice", in.Method)
	}
	if len(head) > MaxHead {
		return lode.Errorf(lode.TooLarge, "the head of an answer of %s has %d bytes; at most %d", in.Method, len(head), MaxHead)
	}
	return nil
}

// Begin starts a streamed answer. The head, at most MaxHead bytes, goes out
// with the first piece, or with Flush.
func (in *Incoming) Begin(head []byte) error {
	if err := in.mayBegin(head); err != nil {
		return err
	}
	f := newOutflow()
	in.c.mu.Lock()
	defer in.c.mu.Unlock()
	in.state = begun
	in.headDue = append(make([]byte, 0, len(head)), head...)
	in.out = &f
	return in.lostErr()
}

// Write adds to a streamed answer. Pieces are gathered up to 64 KiB, and sent
// as far as the caller takes them; Flush sends what there is.
func (in *Incoming) Write(p []byte) (int, error) {
	if in.state != begun {
		return 0, lode.Errorf(lode.Internal, "method %s wrote to an answer that it did not begin", in.Method)
	}
	total := len(p)
	for len(p) > 0 {
		if in.part == nil {
			in.part = in.c.l.bufs.get(headerSize + maxChunk)
			in.part.b = in.part.b[:headerSize]
		}
		n := min(len(p), headerSize+maxChunk-len(in.part.b))
		in.part.b = append(in.part.b, p[:n]...)
		p = p[n:]
		if len(in.part.b) == headerSize+maxChunk {
			if err := in.Flush(); err != nil {
				return total - len(p), err
			}
		}
	}
	return total, nil
}

// Flush sends what Begin and Write have gathered. It waits while the caller
// does not take it.
func (in *Incoming) Flush() error {
	if in.state != begun {
		return lode.Errorf(lode.Internal, "method %s flushed an answer that it did not begin", in.Method)
	}
	c := in.c
	c.mu.Lock()
	err := in.lostErr()
	due := err == nil && in.postHead()
	if err != nil || in.part == nil || len(in.part.b) == headerSize {
		if due {
			c.push(true)
		} else {
			c.mu.Unlock()
		}
		return err
	}
	c.mu.Unlock()
	err = c.stream(in.ctx.Done(), in.out, kindAnswer, in.id, in.part.b)
	in.part.b = in.part.b[:headerSize]
	if err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		if e := in.lostErr(); e != nil {
			return e
		}
		return lode.Errorf(lode.Deadline, "node %s did not take the answer in time: %w", in.From, context.DeadlineExceeded)
	}
	return nil
}

// postHead posts the head that Begin was given, once; conn.mu is held.
func (in *Incoming) postHead() bool {
	if in.headDue == nil {
		return false
	}
	in.c.post(appendFrame(nil, kindAnswerHead, 0, in.id, in.headDue))
	in.headDue = nil
	return true
}

// Note sends b, at most MaxNote bytes, to Request.Note. When it returns nil
// the socket has taken it: it will arrive though this process dies next, as
// long as the machine and the network live. Where the caller hears no notes
// nothing is sent.
func (in *Incoming) Note(b []byte) error {
	if len(b) > MaxNote {
		return lode.Errorf(lode.TooLarge, "a note of %s has %d bytes; at most %d", in.Method, len(b), MaxNote)
	}
	c := in.c
	c.mu.Lock()
	err := in.lostErr()
	if err != nil || in.flags&flagNotes == 0 {
		c.mu.Unlock()
		return err
	}
	in.noted++
	c.post(appendFrame(nil, kindNote, 0, in.id, b))
	off := c.writer.queued
	c.push(true)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waitFor(off, nil) != nil {
		return in.lostErr()
	}
	return nil
}

// Notes is where the caller's replies to notes arrive. At most 64 wait there,
// later ones are dropped. It is never closed: wait on ctx as well.
func (in *Incoming) Notes() <-chan []byte {
	in.c.mu.Lock()
	defer in.c.mu.Unlock()
	return in.replies()
}

func (in *Incoming) replies() chan []byte {
	if in.notes == nil {
		in.notes = make(chan []byte, maxReplies)
	}
	return in.notes
}
