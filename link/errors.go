package link

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"lode"
)

// What became of a call that did not end with an answer, or with an error of
// the peer's handler. Each is inside a *lode.Error of kind Unavailable (or
// Overloaded, for a refusal for lack of room) that says when to try again.
var (
	// ErrNotSent: not one byte of the call reached the peer.
	ErrNotSent = errors.New("the call was not sent")
	// ErrRefused: the peer read the call and did not start its handler.
	ErrRefused = errors.New("the call was refused before it started")
	// ErrLost: bytes of the call may have reached the peer, and the connection
	// was lost before the answer's end.
	ErrLost = errors.New("the connection was lost in the middle of the call")
)

// Why connections end.
var (
	errClosing  = errors.New("this node is stopping")
	errPeerStop = errors.New("the peer is stopping")
	errReplaced = errors.New("a newer connection took over")
	errCrossed  = errors.New("two connections crossed; the other one stays")
	errRemoved  = errors.New("the node is no longer a peer")
	errSilent   = errors.New("nothing was heard from the peer")
	errClogged  = errors.New("the peer does not take what it is sent")
	errHung     = errors.New("the peer closed the connection")
)

// protocolError is what a peer did that no peer does.
type protocolError struct{ err error }

func (e *protocolError) Error() string { return "the peer broke the protocol: " + e.err.Error() }
func (e *protocolError) Unwrap() error { return e.err }

// retryAfter is the hint for how long a lost peer needs to be back.
const retryAfter = time.Second

func notSent(to lode.NodeID, why error) error {
	e := lode.Errorf(lode.Unavailable, "no connection to node %s", to)
	if why != nil {
		e.Detail += ": " + why.Error()
	}
	e.Err, e.RetryAfter = ErrNotSent, retryAfter
	return e.WithHint("`lode nodes` shows which nodes answer; the call was not started")
}

func lost(to lode.NodeID, why error) error {
	e := lode.Errorf(lode.Unavailable, "the connection to node %s was lost in the middle of a call", to)
	if why != nil {
		e.Detail += ": " + why.Error()
	}
	e.Err, e.RetryAfter = ErrLost, retryAfter
	return e.WithHint("what became of the call is not known; `lode nodes` shows which nodes answer")
}

// ended is the error of a call whose context ended.
func ended(ctx context.Context, to lode.NodeID) error {
	cause := context.Cause(ctx)
	if errors.Is(cause, context.DeadlineExceeded) || errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return lode.Errorf(lode.Deadline, "node %s did not answer in time: %w", to, cause)
	}
	return lode.Errorf(lode.Cancelled, "a call to node %s was cancelled: %w", to, cause)
}

// appendError writes err as it travels: the JSON of a *lode.Error, cut to what
// a frame holds. The cause stays here.
func appendError(err error) []byte {
	e := *wireError(err)
	b, jerr := json.Marshal(&e)
	if jerr != nil || len(b) > maxError {
		small := lode.Error{Kind: e.Kind, Detail: cut(e.Detail, 4<<10), Hint: cut(e.Hint, 4<<10), Invocation: lode.InvocationID(cut(string(e.Invocation), 64)), RetryAfter: e.RetryAfter}
		if g := e.Guest; g != nil {
			small.Guest = &lode.GuestError{Type: cut(g.Type, 256), Message: cut(g.Message, 4<<10)}
		}
		b, _ = json.Marshal(&small)
	}
	return b
}

// wireError gives err its kind: a handler that gave up because its context
// ended was cancelled or came too late.
func wireError(err error) *lode.Error {
	if e, ok := errors.AsType[*lode.Error](err); ok {
		return e
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return lode.Errorf(lode.Deadline, "%w", err)
	case errors.Is(err, context.Canceled):
		return lode.Errorf(lode.Cancelled, "%w", err)
	}
	return lode.AsError(err)
}

func parseError(p []byte) *lode.Error {
	e := new(lode.Error)
	if err := json.Unmarshal(p, e); err != nil || e.Kind == "" {
		return lode.Errorf(lode.Internal, "a peer failed and did not say why in words that this node reads")
	}
	if e.Title == (&lode.Error{Kind: e.Kind}).Error() {
		e.Title = "" // the kind's own
	}
	return e
}

func cut(s string, n int) string { return s[:min(len(s), n)] }
