package bus

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"lode"
)

func errClosed() *lode.Error { return lode.Errorf(lode.Unavailable, "the bus is closed") }

// wrap turns what NATS says into an Error.
func wrap(err error, doing string, args ...any) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*lode.Error](err); ok {
		return e
	}
	kind := classify(err)
	if kind == lode.Unavailable {
		err = plain{plainly(err), err}
	}
	e := lode.Errorf(kind, doing+": %w", append(args, err)...)
	switch kind {
	case lode.Full:
		e.Hint = "free some disk space, or raise the store limit"
		e.RetryAfter = 5 * time.Second
	case lode.Unavailable:
		e.RetryAfter = time.Second
		e.Hint = "lode nodes tells which members of the bus answer; it goes on by itself when most of them do"
	}
	return e
}

// plain is an error of the library in Lode's words.
type plain struct {
	words string
	err   error
}

func (p plain) Error() string { return p.words }

// Unwrap gives the library's own error.
func (p plain) Unwrap() error { return p.err }

// plainly says what it means to a person that the bus does not answer.
func plainly(err error) string {
	if notSent(err) || errors.Is(err, nats.ErrNoServers) || errors.Is(err, nats.ErrDisconnected) || errors.Is(err, nats.ErrConnectionClosed) {
		return "no member of the bus can be reached"
	}
	if api, ok := errors.AsType[*jetstream.APIError](err); ok && api.ErrorCode == codeNoLeader {
		return "most members of the bus cannot be reached"
	}
	return "the members of the bus did not answer in time"
}

func classify(err error) lode.Kind {
	if api, ok := errors.AsType[*jetstream.APIError](err); ok {
		return classifyAPI(api)
	}
	if api, ok := errors.AsType[*nats.APIError](err); ok {
		return classifyAPI(&jetstream.APIError{ErrorCode: jetstream.ErrorCode(api.ErrorCode), Description: api.Description})
	}
	switch {
	case errors.Is(err, context.Canceled):
		return lode.Cancelled
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout), errors.Is(err, nats.ErrNoResponders),
		errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, jetstream.ErrNoStreamResponse),
		errors.Is(err, nats.ErrConnectionReconnecting), errors.Is(err, nats.ErrNoServers), errors.Is(err, nats.ErrReconnectBufExceeded),
		errors.Is(err, nats.ErrDisconnected), errors.Is(err, nats.ErrSlowConsumer), errors.Is(err, nats.ErrBadSubscription):
		return lode.Unavailable
	case errors.Is(err, nats.ErrMaxPayload):
		return lode.TooLarge
	}
	return lode.Internal
}

// The server's error codes that mean something to us. That they keep their
// meaning is held by contract_test.go.
const (
	codeNoLeader       = 10008
	codeInsufficient   = 10023 // store limit
	codeNoStore        = 10047
	codeTooLarge       = 10054
	codeWrongLast      = 10071 // with the true last sequence
	codeStoreFailed    = 10077 // any error of the disk
	codeDuplicate      = 10158 // same id in flight
	codeWrongLastBlind = 10164 // a neighbour is in flight
)

func classifyAPI(e *jetstream.APIError) lode.Kind {
	if strings.Contains(e.Description, "no space left") {
		return lode.Full // whatever it was that had no space
	}
	switch e.ErrorCode {
	case codeInsufficient, codeNoStore:
		return lode.Full
	case codeTooLarge:
		return lode.TooLarge
	case codeWrongLast:
		return lode.Precondition
	case codeDuplicate, codeWrongLastBlind:
		return lode.Unavailable
	case codeStoreFailed:
		if strings.Contains(e.Description, "maximum") || strings.Contains(e.Description, "resource") {
			return lode.Full
		}
		return lode.Unavailable
	}
	if e.Code >= 500 {
		return lode.Unavailable
	}
	return lode.Internal
}

// notSent reports whether a request certainly reached nobody who could act on
// it: it may be made again whatever it was.
func notSent(err error) bool {
	return errors.Is(err, nats.ErrNoResponders) || errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, nats.ErrReconnectBufExceeded) ||
		errors.Is(err, nats.ErrConnectionReconnecting)
}

// refused reports whether the server has turned this very attempt down, for
// the time being: another write was under way.
func refused(err error) bool {
	api, ok := errors.AsType[*jetstream.APIError](err)
	return ok && (api.ErrorCode == codeWrongLastBlind || api.ErrorCode == codeDuplicate)
}

// passing reports whether err may be gone at the next attempt: the outcome of
// this one is not known, or nobody was there.
func passing(err error) bool {
	if err == nil {
		return false
	}
	if notSent(err) || errors.Is(err, nats.ErrTimeout) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrDisconnected) {
		return true
	}
	if api, ok := errors.AsType[*jetstream.APIError](err); ok {
		return classifyAPI(api) == lode.Unavailable
	}
	return false
}

// ctxError says that ctx ended while doing something.
func ctxError(ctx context.Context, doing string) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return lode.Errorf(lode.Deadline, "%s: %w", doing, ctx.Err())
	}
	return lode.Errorf(lode.Cancelled, "%s: %w", doing, context.Cause(ctx))
}
