package bus

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"lode"
)

const (
	tryWait    = 2 * time.Second // for one answer; then the same is sent again
	askAgain   = tryWait / 4     // for one that comes at once
	firstPause = 20 * time.Millisecond
	lastPause  = 500 * time.Millisecond
)

// write sends a message that changes a table until its outcome is known or
// the time is over, always with the same id, so that it takes effect once.
// unsure says that an attempt before the last had no answer: a refusal of the
// last one may then be about itself.
func (b *Bus) write(ctx context.Context, m *nats.Msg, frees, free bool) (ack *jetstream.PubAck, unsure bool, err error) {
	if m.Header == nil {
		m.Header = nats.Header{}
	}
	m.Header.Set(jetstream.MsgIDHeader, newID())
	try := b.persist
	if free {
		try = b.read
	}
	err = try(ctx, func(ctx context.Context) error {
		if err := b.room(len(m.Data)+256, frees); err != nil {
			return err
		}
		ack, err = b.js.PublishMsg(ctx, m, jetstream.WithRetryAttempts(0))
		if err != nil && !notSent(err) && !refused(err) && passing(err) {
			unsure = true
		}
		return err
	})
	return ack, unsure, err
}

func newID() string {
	var id [16]byte
	rand.Read(id[:]) // never fails
	return hex.EncodeToString(id[:])
}

// persist tries something that changes the bus until it has succeeded, is
// refused for good, or ctx or the usual time is over. It waits while writes
// are held back, and that does not count. The attempts must be safe to repeat.
func (b *Bus) persist(ctx context.Context, attempt func(context.Context) error) error {
	return b.retry(ctx, func(ctx context.Context) error {
		if err := b.gate.enter(ctx); err != nil {
			return err
		}
		defer b.gate.leave()
		ctx, cancel := context.WithTimeout(ctx, tryWait)
		defer cancel()
		return attempt(ctx)
	})
}

// retry is persist for what only reads.
func (b *Bus) retry(ctx context.Context, attempt func(context.Context) error) error {
	began := b.gate.clock()
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		err := attempt(ctx)
		if err == nil {
			b.timeouts.Store(0)
		} else if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout) {
			b.probe()
		}
		if !passing(err) || ctx.Err() != nil {
			return err
		}
		if _, own := errors.AsType[*lode.Error](err); own {
			return err
		}
		if b.gate.clock()-began > callWait-tryWait {
			return err
		}
		if errors.Is(err, nats.ErrNoResponders) || errors.Is(err, jetstream.ErrNoStreamResponse) {
			b.doubt()
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return err
		case <-b.closed:
			return errClosed()
		}
	}
}

// read is retry for one answer that may take its time.
func (b *Bus) read(ctx context.Context, attempt func(context.Context) error) error {
	return b.retry(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, tryWait)
		defer cancel()
		return attempt(ctx)
	})
}

// soon is read for an answer that comes at once, unless whoever was asked has
// just died: then it is asked for again early.
func (b *Bus) soon(ctx context.Context, attempt func(context.Context) error) error {
	return b.read(ctx, func(ctx context.Context) error {
		early, cancel := context.WithTimeout(ctx, askAgain)
		err := attempt(early)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			return attempt(ctx)
		}
		return err
	})
}

// room refuses what this node's disk has no space for, if it keeps a copy.
func (b *Bus) room(n int, frees bool) error {
	if b.instance(b.Layout().Generation) == nil {
		return nil
	}
	return b.space.take(n, frees)
}

// probe looks whether the connection still leads anywhere, when an answer did
// not come: if not, another member is tried.
func (b *Bus) probe() {
	if b.plug == nil || b.probing.Swap(true) {
		return
	}
	b.work.Go(func() {
		defer b.probing.Store(false)
		b.plug.mu.Lock()
		at := b.plug.at
		b.plug.mu.Unlock()
		if at == b.cfg.Node {
			return // in this process
		}
		late := b.nc.FlushTimeout(time.Second) != nil
		if !late && b.timeouts.Add(1) < 2 {
			return
		}
		// It answers, but cannot reach the others: then it is no use either.
		b.timeouts.Store(0)
		b.plug.mu.Lock()
		b.plug.avoid = at
		b.plug.mu.Unlock()
		select {
		case <-b.closed:
		default:
			b.nc.ForceReconnect()
		}
	})
}
