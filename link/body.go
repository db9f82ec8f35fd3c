package link

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"

	"lode"
)

// inBody is the rest of a call's body as its handler reads it. Reads are for
// one goroutine.
type inBody struct {
	in   *Incoming
	wake chan struct{} // capacity 1: the queue grew, or the body is over
	cur  *buf          // being read, from off on
	off  int

	// guarded by conn.mu
	flow  inflow
	queue []*buf
	ended bool
	err   error // why it broke off
}

var (
	_ io.Reader   = (*inBody)(nil)
	_ io.WriterTo = (*inBody)(nil)
)

// Read gives what has arrived, or waits. An error of the caller's stream comes
// as it was; one of kind Cancelled, or with ErrLost in it, says that the
// caller has gone.
func (b *inBody) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if b.cur == nil {
		if err := b.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, b.cur.b[b.off:])
	b.off += n
	if b.off == len(b.cur.b) {
		b.done()
	}
	return n, nil
}

// WriteTo hands chunk by chunk to w without a copy.
func (b *inBody) WriteTo(w io.Writer) (total int64, err error) {
	for {
		if b.cur == nil {
			if err := b.next(); err == io.EOF {
				return total, nil
			} else if err != nil {
				return total, err
			}
		}
		n, err := w.Write(b.cur.b[b.off:])
		total += int64(n)
		b.off += n
		if err != nil {
			return total, err
		}
		b.done()
	}
}

// done gives the chunk's credit back to the caller.
func (b *inBody) done() {
	n := len(b.cur.b)
	b.in.c.l.bufs.put(b.cur)
	b.cur, b.off = nil, 0
	b.in.c.eat(&b.flow, kindBodyCredit, b.in.id, n)
}

// next waits for a chunk.
func (b *inBody) next() error {
	c := b.in.c
	for {
		c.mu.Lock()
		if len(b.queue) > 0 {
			b.cur = b.queue[0]
			b.queue = slices.Delete(b.queue, 0, 1)
			c.mu.Unlock()
			return nil
		}
		err := b.err
		if err == nil && b.ended {
			err = io.EOF
		}
		if err == nil {
			err = b.in.lostErr()
		}
		c.mu.Unlock()
		if err != nil {
			return err
		}
		select {
		case <-b.wake:
		case <-c.done:
		case <-b.in.ctx.Done():
			c.mu.Lock()
			defer c.mu.Unlock()
			if err := b.in.lostErr(); err != nil {
				return err
			}
			return lode.Errorf(lode.Deadline, "the body of a call from node %s came too late: %w", b.in.From, context.DeadlineExceeded)
		}
	}
}

// drop frees what was not read; conn.mu is held.
func (b *inBody) drop(err error) {
	for _, x := range b.queue {
		b.in.c.l.bufs.put(x)
	}
	b.queue = nil
	if b.err == nil && err != nil {
		b.err = err
	}
	wake(b.wake)
}

// takeBody queues a chunk of a call's body for its handler.
func (c *conn) takeBody(h header, b *buf) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.took(h.size)
	in := c.incoming[h.id]
	if in == nil {
		c.l.bufs.put(b)
		return c.unknown(h)
	}
	if h.size == 0 || in.body == nil || in.body.ended || !in.body.flow.take(h.size) {
		return &protocolError{fmt.Errorf("a chunk of a body without a right to it")}
	}
	if in.gone {
		c.l.bufs.put(b)
		return nil
	}
	if q := in.body.queue; len(q) > 0 && c.l.bufs.merge(q[len(q)-1], b) {
		return nil // whoever reads was woken for the one before
	}
	in.body.queue = append(in.body.queue, b)
	wake(in.body.wake)
	return nil
}

// unknown judges a frame for a call that is not open: one that is over is
// common, one that never was breaks the protocol. c.mu is held.
func (c *conn) unknown(h header) error {
	if h.id > c.lastIn {
		return &protocolError{fmt.Errorf("a frame of kind 0x%02x for call %d, which was not made", uint8(h.kind), h.id)}
	}
	return nil
}

// takeOfCaller handles the small frames that a caller sends in its call.
func (c *conn) takeOfCaller(h header, p []byte) error {
	c.mu.Lock()
	in := c.incoming[h.id]
	if in == nil {
		defer c.mu.Unlock()
		return c.unknown(h)
	}
	err := in.take(h, p)
	c.mu.Unlock()
	if h.kind == kindCancel {
		in.ctx.cancel()
	}
	if err != nil {
		return &protocolError{err}
	}
	return nil
}

// take handles one of them; conn.mu is held.
func (in *Incoming) take(h header, p []byte) error {
	switch h.kind {
	case kindCancel:
		in.wakeAll()
	case kindBodyEnd:
		if in.body == nil || in.body.ended {
			return fmt.Errorf("an end of a body that has none")
		}
		in.body.ended = true
		if h.flags&flagError != 0 {
			in.body.err = parseError(p)
		}
		wake(in.body.wake)
	case kindNoteReply:
		if in.noted == 0 {
			return fmt.Errorf("a reply to a note that was not sent")
		}
		in.noted--
		select {
		case in.replies() <- bytes.Clone(p):
		default: // the handler does not read them
		}
	case kindAnswerCredit:
		n, err := parseCredit(p)
		if err != nil {
			return err
		}
		if in.out == nil || !in.out.add(n) {
			return fmt.Errorf("credit for an answer that does not need it")
		}
	}
	return nil
}

// wholeBody is a body as one reader.
type wholeBody struct {
	first []byte
	rest  io.Reader
}

func (b *wholeBody) Read(p []byte) (int, error) {
	if len(b.first) > 0 {
		n := copy(p, b.first)
		b.first = b.first[n:]
		return n, nil
	}
	if b.rest == nil {
		return 0, io.EOF
	}
	return b.rest.Read(p)
}

func (b *wholeBody) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(b.first)
	b.first = b.first[n:]
	if err != nil || b.rest == nil {
		return int64(n), err
	}
	m, err := io.Copy(w, b.rest)
	return int64(n) + m, err
}
