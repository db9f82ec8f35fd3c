package link

import (
	"context"
	"fmt"
	"io"

	"lode"
)

// Bounds on notes that nobody took yet.
const (
	maxNotes    = 256      // of one call
	maxNoteHeld = 64 << 20 // bytes, of all calls of a connection
)

// outCall is a call of this node; guarded by conn.mu.
type outCall struct {
	id               uint64
	off              int64 // where its frame begins in what the writer queued
	queue            []event
	spare            []event
	wake             chan struct{} // capacity 1: the queue grew, or the connection died
	in               inflow
	headed, over     bool
	notes, noteBytes int
	fault            error // why this side gives it up
	out              *outflow
}

// event is a frame of an answer.
type event struct {
	kind  kind
	flags uint8
	buf   *buf
}

func (o *outCall) signal() { wake(o.wake) }

// open sends a call, or errCrossed where another connection has to take it.
func (c *conn) open(ctx context.Context, r *Request) (*outCall, error) {
	inline := r.Body[:min(len(r.Body), MaxBody)]
	o := &outCall{wake: make(chan struct{}, 1), in: newInflow()}
	var flags uint8
	if len(inline) < len(r.Body) || r.Stream != nil {
		flags |= flagStream
		f := newOutflow()
		o.out = &f
	}
	if r.Note != nil {
		flags |= flagNotes
	}
	left := remaining(ctx)
	c.mu.Lock()
	if err := c.wait(ctx.Done()); err != nil {
		c.mu.Unlock()
		if err == errStopped {
			return nil, ended(ctx, c.p.node)
		}
		return nil, notSent(c.p.node, err)
	}
	if c.retired {
		c.mu.Unlock()
		return nil, errCrossed
	}
	if len(c.calls) >= maxOpen {
		c.mu.Unlock()
		e := lode.Errorf(lode.Overloaded, "%d calls to node %s are open already", maxOpen, c.p.node)
		e.Err, e.RetryAfter = ErrNotSent, retryAfter
		return nil, e
	}
	c.nextID++
	o.id, o.off = c.nextID, c.writer.queued
	c.calls[o.id] = o
	n := len(c.writer.pend)
	c.writer.pend = appendCall(c.writer.pend, o.id, flags, left, r, inline)
	c.posted(n)
	c.push(true)
	c.p.calls.Add(1)
	return o, nil
}

// await gives the answer of o to a.
func (c *conn) await(ctx context.Context, o *outCall, r *Request, a Answer) error {
	var p *pump
	if o.out != nil {
		p = c.pump(o, r)
	}
	err, over := c.collect(ctx, o, r, a)
	c.forget(o, over)
	p.stop()
	return err
}

// forget drops what is left of a call, and tells the peer unless it is over.
func (c *conn) forget(o *outCall, over bool) {
	c.mu.Lock()
	delete(c.calls, o.id)
	for _, ev := range o.queue {
		c.l.bufs.put(ev.buf)
	}
	o.queue = nil
	c.tookNotes(o)
	c.release(&o.in)
	c.settle()
	if over || c.err != nil {
		c.mu.Unlock()
		return
	}
	c.post(appendHeader(nil, 0, kindCancel, 0, o.id))
	c.push(false)
}

// tookNotes says that o's notes are off the queue; c.mu is held.
func (c *conn) tookNotes(o *outCall) {
	c.noteHeld -= o.noteBytes
	o.notes, o.noteBytes = 0, 0
}

// collect waits for the answer and gives it to a. over: the peer has ended it,
// or cannot be told anything.
func (c *conn) collect(ctx context.Context, o *outCall, r *Request, a Answer) (err error, over bool) {
	for {
		select {
		case <-o.wake:
		case <-ctx.Done():
			return ended(ctx, c.p.node), false
		}
		c.mu.Lock()
		events, fault, dead, unsent := o.queue, o.fault, c.err, o.off >= c.writer.handed
		o.queue, o.spare = o.spare[:0], nil
		c.tookNotes(o)
		c.mu.Unlock()
		for i, ev := range events {
			err, over = c.deliver(o, ev, r, a)
			c.l.bufs.put(ev.buf)
			if err != nil || over {
				for _, rest := range events[i+1:] {
					c.l.bufs.put(rest.buf)
				}
				if err != nil && fault != nil {
					err = fault // the cause; the handler has only heard of it
				}
				return err, over
			}
		}
		switch {
		case fault != nil:
			return fault, false
		case dead != nil && unsent:
			return notSent(c.p.node, dead), true
		case dead != nil:
			return lost(c.p.node, dead), true
		}
		o.spare = events[:0]
	}
}

// deliver gives one frame of the answer to a.
func (c *conn) deliver(o *outCall, ev event, r *Request, a Answer) (err error, over bool) {
	p := ev.buf.b
	switch ev.kind {
	case kindReply:
		if ev.flags&flagError != 0 {
			return failure(p, ev.flags), true
		}
		head, body, err := parseReply(p)
		if err == nil && a != nil {
			if err = a.Head(head); err == nil && len(body) > 0 {
				_, err = a.Write(body)
			}
		}
		return err, true
	case kindAnswerHead:
		if a != nil {
			err = a.Head(p)
		}
	case kindAnswer:
		if a != nil {
			_, err = a.Write(p)
		}
		c.eat(&o.in, kindAnswerCredit, o.id, len(p))
	case kindAnswerEnd:
		if ev.flags&flagError != 0 {
			return failure(p, 0), true
		}
		return nil, true
	case kindNote:
		if r.Note == nil {
			return nil, false
		}
		if reply := r.Note(p); reply != nil {
			err = c.noteReply(o, reply)
		}
	}
	return err, false
}

func (c *conn) noteReply(o *outCall, reply []byte) error {
	if len(reply) > MaxNote {
		return lode.Errorf(lode.TooLarge, "a reply to a note has %d bytes; at most %d", len(reply), MaxNote)
	}
	c.mu.Lock()
	c.post(appendFrame(nil, kindNoteReply, 0, o.id, reply))
	c.push(true)
	return nil
}

// failure is the error that a peer's handler, or its link, ended a call with.
func failure(p []byte, flags uint8) error {
	e := parseError(p)
	if flags&flagRefused != 0 {
		e.Err = ErrRefused
	}
	return e
}

// takeAnswer queues a frame of an answer for the goroutine of its call.
func (c *conn) takeAnswer(h header, b *buf) error {
	if h.kind == kindReply && h.flags&flagError == 0 {
		if _, _, err := parseReply(b.b); err != nil {
			return &protocolError{err}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if h.kind == kindAnswer {
		c.took(h.size)
	}
	o := c.calls[h.id]
	if o == nil || o.over {
		c.l.bufs.put(b)
		if h.id > c.nextID {
			return &protocolError{fmt.Errorf("an answer to call %d, which was not made", h.id)}
		}
		return nil // to a call that was cancelled
	}
	if err := o.accept(h); err != nil {
		return &protocolError{err}
	}
	if h.kind == kindNote {
		c.noteHeld += h.size
		if c.noteHeld > maxNoteHeld || o.notes > maxNotes {
			o.fault = lode.Errorf(lode.Overloaded, "node %s sent notes faster than they were taken", c.p.node)
		}
	}
	if n := len(o.queue); n > 0 && h.kind == kindAnswer && o.queue[n-1].kind == kindAnswer && c.l.bufs.merge(o.queue[n-1].buf, b) {
		return nil
	}
	o.queue = append(o.queue, event{h.kind, h.flags, b})
	o.signal()
	return nil
}

// accept checks that a frame may come at this point of an answer.
func (o *outCall) accept(h header) error {
	switch h.kind {
	case kindReply:
		if o.headed {
			return fmt.Errorf("a reply in the middle of an answer")
		}
		o.over = true
	case kindAnswerHead:
		if o.headed {
			return fmt.Errorf("a second head of an answer")
		}
		o.headed = true
	case kindAnswer, kindAnswerEnd:
		if !o.headed {
			return fmt.Errorf("an answer without a head")
		}
		if h.kind == kindAnswer && (h.size == 0 || !o.in.take(h.size)) {
			return fmt.Errorf("an answer beyond its credit")
		}
		o.over = h.kind == kindAnswerEnd
	case kindNote:
		o.notes++
		o.noteBytes += h.size
	}
	return nil
}

// takeBodyCredit: the handler takes more of a body.
func (c *conn) takeBodyCredit(h header, p []byte) error {
	n, err := parseCredit(p)
	if err != nil {
		return &protocolError{err}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.calls[h.id]
	if o == nil {
		if h.id > c.nextID {
			return &protocolError{fmt.Errorf("credit for call %d, which was not made", h.id)}
		}
		return nil
	}
	if o.out == nil || !o.out.add(n) {
		return &protocolError{fmt.Errorf("credit for a body that does not need it")}
	}
	return nil
}

// pump sends a call's body while the call waits for its answer.
type pump struct {
	c       *conn
	o       *outCall
	quit    chan struct{}
	over    chan struct{}
	reading bool // a Read of the caller's stream runs; guarded by conn.mu
	quits   bool
}

func (c *conn) pump(o *outCall, r *Request) *pump {
	p := &pump{c: c, o: o, quit: make(chan struct{}), over: make(chan struct{})}
	go p.run(r.Body[min(len(r.Body), MaxBody):], r.Stream)
	return p
}

// stop ends the pump and waits for it, but not for a Read of the caller's
// stream: nobody can end that one but who made the stream.
func (p *pump) stop() {
	if p == nil {
		return
	}
	p.c.mu.Lock()
	p.quits = true
	reading := p.reading
	p.c.mu.Unlock()
	close(p.quit)
	if !reading {
		<-p.over
	}
}

// read is one Read of the caller's stream; errStopped: nobody wants it.
func (p *pump) read(stream io.Reader, b []byte) (int, error) {
	if !p.enter(true) {
		return 0, errStopped
	}
	n, err := stream.Read(b)
	if !p.enter(false) {
		return 0, errStopped
	}
	return n, err
}

func (p *pump) enter(reading bool) bool {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	p.reading = reading && !p.quits
	return !p.quits
}

func (p *pump) run(rest []byte, stream io.Reader) {
	defer close(p.over)
	b := p.c.l.bufs.get(headerSize + maxChunk)
	defer p.c.l.bufs.put(b)
	for len(rest) > 0 {
		n := copy(b.b[headerSize:], rest)
		rest = rest[n:]
		if p.c.stream(p.quit, p.o.out, kindBody, p.o.id, b.b[:headerSize+n]) != nil {
			return
		}
	}
	err := io.EOF
	for stream != nil {
		var n int
		n, err = p.read(stream, b.b[headerSize:])
		if err == errStopped {
			return
		}
		if n > 0 && p.c.stream(p.quit, p.o.out, kindBody, p.o.id, b.b[:headerSize+n]) != nil {
			return
		}
		if err != nil {
			break
		}
	}
	p.end(err)
}

// end tells the handler that the body is over, or that it broke off.
func (p *pump) end(err error) {
	c := p.c
	c.mu.Lock()
	c.p.sample(p.o.out.total, p.o.out.began)
	if c.calls[p.o.id] != p.o {
		c.mu.Unlock()
		return // the handler did not wait for it
	}
	if err == io.EOF {
		c.post(appendHeader(nil, 0, kindBodyEnd, 0, p.o.id))
	} else {
		c.post(appendFrame(nil, kindBodyEnd, flagError, p.o.id, appendError(err)))
		p.o.fault = fmt.Errorf("read the body of a call to node %s: %w", c.p.node, err)
		p.o.signal()
	}
	c.push(true)
}
