package link

import (
	"bytes"
	"context"
	"io"
	"time"

	"lode"
)

// Request is a call to make. Nothing of it is kept after Call has returned,
// but for a Read of Stream that was already waiting.
type Request struct {
	Method string // at most 64 bytes
	Head   []byte // at most MaxHead bytes
	// Body travels in the call's own frame, up to MaxBody bytes of it; the rest
	// goes before Stream, as chunks.
	Body []byte
	// Stream is the rest of the body, or nil. One goroutine reads it, as far as
	// the handler takes it. An error other than io.EOF fails the call. Call does
	// not wait for a Read that blocks: it may return while one goes on, and what
	// that one reads is thrown away.
	Stream io.Reader
	// Note is called for each note of the handler, in order and before the
	// answer's end, from Call's goroutine. A reply that is not nil goes back to
	// Incoming.Notes. nil: notes are dropped. b is valid until it returns.
	Note func(b []byte) (reply []byte)
}

// Answer takes what a call brings: Head once, also where the head is empty,
// then Write for each piece of the body. Both are called from Call's
// goroutine; the bytes are valid until they return. An error from either
// cancels the call and is what Call returns.
type Answer interface {
	Head(b []byte) error
	Write(p []byte) (int, error)
}

// Bytes is an Answer that keeps all.
type Bytes struct {
	Max       int    // bytes of body at most; 0: 16 MiB
	HeadBytes []byte // the answer's head
	Body      []byte // the answer's body
}

var _ Answer = (*Bytes)(nil)

// Head keeps the head.
func (a *Bytes) Head(b []byte) error {
	a.HeadBytes = bytes.Clone(b)
	return nil
}

// Write keeps a piece of the body. Past Max it fails with TooLarge.
func (a *Bytes) Write(p []byte) (int, error) {
	most := a.Max
	if most == 0 {
		most = 16 << 20
	}
	if len(a.Body)+len(p) > most {
		return 0, lode.Errorf(lode.TooLarge, "a peer's answer is larger than %d bytes", most)
	}
	a.Body = append(a.Body, p...)
	return len(p), nil
}

func (r *Request) check() error {
	switch {
	case r.Method == "" || len(r.Method) > maxMethod:
		return lode.Errorf(lode.Invalid, "a call needs a method of 1 to %d bytes; this one has %d", maxMethod, len(r.Method))
	case len(r.Head) > MaxHead:
		return lode.Errorf(lode.TooLarge, "the head of a call to %s has %d bytes; at most %d", r.Method, len(r.Head), MaxHead)
	}
	return nil
}

// Call asks node to for an answer and gives it to a (nil: nobody wants it). It
// returns nil when the answer is whole; the error of the peer's handler, with
// all its fields, as a *lode.Error; an error with ErrNotSent, ErrRefused or
// ErrLost in it; the error of a; or, when ctx ends first, an error of kind
// Cancelled or Deadline. ctx's deadline and its end travel to the handler.
func (l *Link) Call(ctx context.Context, to lode.NodeID, r *Request, a Answer) error {
	if err := r.check(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return ended(ctx, to)
	}
	p := l.peer(to)
	if p == nil {
		return notSent(to, nil)
	}
	for {
		c, why := p.conn()
		if c == nil {
			return notSent(to, why)
		}
		o, err := c.open(ctx, r)
		if err == errCrossed {
			continue // c stopped taking calls: the peer has another one by now, or none
		}
		if err != nil {
			return err
		}
		return c.await(ctx, o, r, a)
	}
}

// remaining is how long ctx has, as it travels; 0: no deadline.
func remaining(ctx context.Context) time.Duration {
	d, ok := ctx.Deadline()
	if !ok {
		return 0
	}
	return max(time.Until(d), 1)
}
