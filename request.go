package lode

import (
	"io"
	"time"
)

// Request is one invocation as a door or a trigger asks for it. Whoever makes
// it fills what it knows; invoke fills the rest. It is not changed after it
// was handed over.
type Request struct {
	ID        InvocationID // empty: invoke makes one
	Namespace Namespace
	Function  Name
	Alias     string // "": live; a number asks for that revision
	Handler   string // handler of the module; "": the revision's own
	Trigger   Trigger
	Attempt   int // 1, 2, 3; 0 = 1

	Method string // HTTP method; "": POST
	Path   string // path and query; "": /
	Head   []Pair // header fields, keys in lower case, and ":route.*" pairs
	Body   []byte // the body, or its first part
	// Stream is the rest of the body, or nil. It is read by one goroutine, and
	// not after Invoke has returned.
	Stream io.Reader

	Deadline       time.Time // zero: from the revision's limits
	Trace          string    // W3C traceparent, or empty
	IdempotencyKey string
	Caller         string // "ns/name@rev" of the calling function, or empty
	Depth          int    // calls above this one in the chain
}

// Answer takes the answer to a Request. Head is called at most once, before
// Write; both are called from one goroutine at a time. When Invoke returns an
// error and Head was not called, the error is the answer; if it was, the
// answer is cut short.
type Answer interface {
	Head(status int, head []Pair) error // head is valid until Head returns
	Write(p []byte) (int, error)        // p is valid until Write returns
}

// Outcome is what a door tells beside the answer.
type Outcome struct {
	ID       InvocationID
	Revision string // ns/name@rev
	Trace    string // trace id, 32 hexadecimal digits
	Usage    Usage
	Node     NodeID // that ran it; "": the one that it came in at
}

// Buffered is an Answer that keeps everything.
type Buffered struct {
	Status int
	Msg    Message
	Max    int64 // bytes of body; 0 = no limit
}

// Head keeps the head.
func (b *Buffered) Head(status int, head []Pair) error {
	b.Status, b.Msg.Head = status, append(b.Msg.Head[:0], head...)
	return nil
}

// Write keeps p; TooLarge over Max.
func (b *Buffered) Write(p []byte) (int, error) {
	if b.Max > 0 && int64(len(b.Msg.Body)+len(p)) > b.Max {
		return 0, Errorf(TooLarge, "the answer is over %d bytes", b.Max)
	}
	b.Msg.Body = append(b.Msg.Body, p...)
	return len(p), nil
}

var _ Answer = (*Buffered)(nil)
