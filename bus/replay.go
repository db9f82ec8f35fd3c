package bus

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"lode"
)

// Replay calls f with every message from the front of the log to the one with
// which this writer opened it, in order, and checks that none is missing. An
// error of f ends it. Damaged names the position that cannot be trusted.
func (l *Log) Replay(ctx context.Context, f func(Message) error) error {
	var info *jetstream.StreamInfo
	err := l.b.read(ctx, func(ctx context.Context) (err error) {
		info, err = l.st.Info(ctx)
		return err
	})
	if err != nil {
		return wrap(err, "replay log %s", l.name)
	}
	ch := chain{}
	for tries := 0; ch.last.seq < l.opened; tries++ {
		before := ch.last.seq
		err := l.replayFrom(ctx, &ch, max(before+1, info.State.FirstSeq), f)
		if ch.last.seq != before {
			tries = 0
		}
		if err != nil && (lode.KindOf(err) != lode.Unavailable || tries == 5) {
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

// replayFrom reads from position want on, as far as one connection carries.
func (l *Log) replayFrom(ctx context.Context, ch *chain, want uint64, f func(Message) error) error {
	cfg := orderedFrom(want)
	var it jetstream.MessagesContext
	err := l.b.read(ctx, func(rctx context.Context) error {
		c, err := l.st.OrderedConsumer(rctx, cfg)
		if err == nil {
			it, err = c.Messages(jetstream.PullMaxMessagesWithBytesLimit(512, 2*maxPayload))
		}
		return err
	})
	if err != nil {
		return wrap(err, "replay log %s", l.name)
	}
	defer it.Stop()
	for ch.last.seq < l.opened {
		r, err := l.nextRecord(ctx, it, max(ch.last.seq+1, want))
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
			if _, gerr := l.raw(ctx, want); gerr != nil && lode.KindOf(gerr) != lode.Unavailable {
				return record{}, l.damaged(want, lode.Errorf(lode.Damaged, "message %d cannot be read: %w", want, gerr))
			}
		}
		if errors.Is(err, jetstream.ErrOrderedConsumerReset) || errors.Is(err, jetstream.ErrNoHeartbeat) || errors.Is(err, jetstream.ErrConsumerDeleted) {
			return record{}, lode.Errorf(lode.Unavailable, "replay log %s: %w", l.name, err)
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

// orderedFrom reads a stream from a position on. The server forgets the reader
// soon after its end: it takes a thousand of a stream at most.
func orderedFrom(seq uint64) jetstream.OrderedConsumerConfig {
	cfg := jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverAllPolicy, InactiveThreshold: 10 * time.Second}
	if seq > 1 {
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, seq
	}
	return cfg
}

// purgeBefore asks for the removal of everything before floor.
func purgeBefore(floor uint64) jetstream.StreamPurgeOpt { return jetstream.WithPurgeSequence(floor) }
