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
	ch, err := l.replay(ctx, 0, l.opened, f)
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.next.floor = max(l.next.floor, ch.floor)
	l.mu.Unlock()
	return nil
}

// ReadLog calls f with the messages of a log from position from, or from its
// front if that is 0, to position to, in order, without becoming its writer,
// and checks that none is missing. to must be known to be stored: the call
// waits for it, where the copy that is read lags behind. Gone: from was
// trimmed. NotFound: there is no such log. Damaged names the position that
// cannot be trusted. An error of f ends it.
func (b *Bus) ReadLog(ctx context.Context, name string, from, to uint64, f func(Message) error) error {
	stream, _, err := logNames(name)
	if err != nil {
		return err
	}
	l := logRef{b: b, name: name, stream: stream}
	err = b.read(ctx, func(ctx context.Context) error {
		l.st, err = b.js.Stream(ctx, stream)
		return err
	})
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return lode.Errorf(lode.NotFound, "there is no log %s", name)
	}
	if err != nil {
		return wrap(err, "read log %s", name)
	}
	_, err = l.replay(ctx, from, to, f)
	return err
}

func (l *logRef) info(ctx context.Context) (info *jetstream.StreamInfo, err error) {
	err = l.b.read(ctx, func(ctx context.Context) (err error) {
		info, err = l.st.Info(ctx)
		return err
	})
	return info, err
}

// replay reads from one position to another; from 0 is the front.
func (l *logRef) replay(ctx context.Context, from, to uint64, f func(Message) error) (*chain, error) {
	ch := &chain{}
	info, err := l.info(ctx)
	if err != nil {
		return ch, wrap(err, "replay log %s", l.name)
	}
	first := info.State.FirstSeq
	if from != 0 && from < first {
		return ch, lode.Errorf(lode.Gone, "log %s begins at %d; %d was trimmed", l.name, first, from)
	}
	if err := l.replayTo(ctx, ch, max(first, from), to, f); err != nil {
		return ch, err
	}
	if from != 0 {
		if ch.first > from {
			return ch, l.damaged(from, lode.Errorf(lode.Damaged, "messages %d to %d are missing", from, ch.first-1))
		}
		return ch, nil
	}
	if ch.end() != nil { // perhaps a message behind says that they may be
		if err := l.replayTo(ctx, ch, to+1, info.State.LastSeq, func(Message) error { return nil }); err != nil {
			return ch, err
		}
	}
	if err := ch.end(); err != nil {
		return ch, l.damaged(ch.first, err)
	}
	return ch, nil
}

// replayTo reads to a position over as many connections as it takes.
func (l *logRef) replayTo(ctx context.Context, ch *chain, from, to uint64, f func(Message) error) error {
	for tries := 0; ch.last.seq < to; tries++ {
		before := ch.last.seq
		err := l.replayFrom(ctx, ch, max(before+1, from), to, f)
		if ch.last.seq != before {
			tries = 0
		}
		if err != nil && (lode.KindOf(err) != lode.Unavailable || tries == 5) {
			return err
		}
	}
	return nil
}

// replayFrom reads from position want on, as far as one connection carries.
func (l *logRef) replayFrom(ctx context.Context, ch *chain, want, to uint64, f func(Message) error) error {
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
	for ch.last.seq < to {
		r, err := l.nextRecord(ctx, it, max(ch.last.seq+1, want))
		if err != nil {
			return err
		}
		m := r.message()
		if err := ch.add(r); err != nil {
			return l.damaged(r.seq, err)
		}
		if err := f(m); err != nil {
			return err
		}
	}
	return nil
}

// nextRecord waits for the next message of a replay. The server passes over
// what it cannot read, or stalls on it: then position want is asked for by
// itself, to know.
func (l *logRef) nextRecord(ctx context.Context, it jetstream.MessagesContext, want uint64) (record, error) {
	wctx, cancel := context.WithTimeout(ctx, stallWait)
	defer cancel()
	m, err := it.Next(jetstream.NextContext(wctx))
	if err != nil {
		if ctx.Err() != nil {
			return record{}, ctxError(ctx, "replay log "+l.name)
		}
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout) {
			return record{}, l.stalled(ctx, want, err)
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

// stalled tells why position want does not come: it is not there yet where it
// is read, or it cannot be read.
func (l *logRef) stalled(ctx context.Context, want uint64, err error) error {
	_, gerr := l.raw(ctx, want)
	if gerr == nil || lode.KindOf(gerr) == lode.Unavailable || ctx.Err() != nil {
		return wrap(err, "replay log %s", l.name)
	}
	if info, ierr := l.info(ctx); ierr != nil || info.State.LastSeq < want {
		return wrap(err, "replay log %s", l.name)
	}
	return l.damaged(want, lode.Errorf(lode.Damaged, "message %d cannot be read: %w", want, gerr))
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
