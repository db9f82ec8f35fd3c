package bus

import (
	"context"
	"errors"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"lode"
)

// Replay calls f with every message from the front of the log to the one with
// which this writer opened it, in order, and checks that none is missing. An
// error of f ends it. Damaged names the position that cannot be trusted.
func (l *Log) Replay(ctx context.Context, f func(Message) error) error {
	ictx, cancel := bounded(ctx)
	info, err := l.st.Info(ictx)
	cancel()
	if err != nil {
		return wrap(err, "replay log %s", l.name)
	}
	c, err := l.st.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverAllPolicy})
	if err != nil {
		return wrap(err, "replay log %s", l.name)
	}
	it, err := c.Messages(jetstream.PullMaxMessagesWithBytesLimit(512, 2*maxPayload))
	if err != nil {
		return wrap(err, "replay log %s", l.name)
	}
	defer it.Stop()
	var ch chain
	for ch.last.seq < l.opened {
		r, err := l.nextRecord(ctx, it, max(ch.last.seq+1, info.State.FirstSeq))
		if err != nil {
			return err
		}
		if err := ch.add(r); err != nil {
			return l.damaged(r.seq, err)
		}
		if err := f(Message{Seq: r.seq, Entries: r.entries, Size: r.size}); err != nil {
			return err
		}
	}
	if err := ch.end(); err != nil {
		return l.damaged(ch.first, err)
	}
	l.mu.Lock()
	l.next.floor = max(l.next.floor, ch.floor)
	l.mu.Unlock()
	return nil
}

// nextRecord waits for the next message of a replay. The server passes over
// what it cannot read, or stalls on it: then position want is asked for by
// itself, to know.
func (l *Log) nextRecord(ctx context.Context, it jetstream.MessagesContext, want uint64) (record, error) {
	wctx, cancel := context.WithTimeout(ctx, stallWait)
	defer cancel()
	m, err := it.Next(jetstream.NextContext(wctx))
	if err != nil {
		if ctx.Err() != nil {
			return record{}, ctxError(ctx, "replay log "+l.name)
		}
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout) {
			if _, gerr := l.raw(ctx, want); gerr != nil {
				return record{}, l.damaged(want, lode.Errorf(lode.Damaged, "message %d cannot be read: %w", want, gerr))
			}
		}
		return record{}, wrap(err, "replay log %s", l.name)
	}
	meta, err := m.Metadata()
	if err != nil {
		return record{}, wrap(err, "replay log %s", l.name)
	}
	seq := meta.Sequence.Stream
	r, err := decodeRecord(m.Data())
	if err != nil {
		return record{}, l.damaged(seq, err)
	}
	r.seq = seq
	return r, nil
}

// purgeBefore asks for the removal of everything before floor.
func purgeBefore(floor uint64) jetstream.StreamPurgeOpt { return jetstream.WithPurgeSequence(floor) }
