package bus

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"time"

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
	err = b.soon(ctx, func(ctx context.Context) error {
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
	err = l.b.soon(ctx, func(ctx context.Context) (err error) {
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

// replayTo reads from one position to another, page by page, from whichever copy
// answers. A consumer would have to be made by the leader of all streams: a
// node that takes over from a dead one must not wait for a new one of those.
func (l *logRef) replayTo(ctx context.Context, ch *chain, from, to uint64, f func(Message) error) error {
	moved, pause, wait := time.Now(), firstPause, askAgain
	for ch.last.seq < to && from <= to {
		want := max(ch.last.seq+1, from)
		var over error // what ends it
		err := l.page(ctx, want, to, wait, func(r record) error {
			m := r.message()
			if over = ch.add(r); over != nil {
				over = l.damaged(r.seq, over)
			} else {
				over = f(m)
			}
			return over
		})
		switch {
		case over != nil:
			return over
		case ctx.Err() != nil:
			return ctxError(ctx, "replay log "+l.name)
		case err != nil && lode.KindOf(err) != lode.Unavailable:
			return err
		case ch.last.seq >= want:
			moved, pause, wait = time.Now(), firstPause, askAgain
			continue
		case time.Since(moved) > stallWait:
			if err = l.stalled(ctx, want, err); lode.KindOf(err) == lode.Damaged || time.Since(moved) > replayWait {
				return err
			}
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(2*pause, lastPause)
		if err != nil {
			wait = min(2*wait, stallWait)
		}
	}
	return nil
}

// A page of a log: so many messages, or so many bytes, after which the server
// sends no further one.
const (
	pageMessages = 1024
	pageBytes    = 8 << 20
	replayWait   = 6 * stallWait // a replay that stands still for so long fails
)

// pageRequest asks a copy of a stream for messages from a position on. The
// answers are messages, and an empty one with a status.
type pageRequest struct {
	Seq      uint64 `json:"seq"`
	Batch    int    `json:"batch"`
	MaxBytes int    `json:"max_bytes"`
}

// page calls f with the records from position want on, as many as one copy
// sends at once: none if it does not have them yet. Unavailable: the copy did
// not answer, or stopped. The first answer may take as long as wait. An error of
// f ends it.
func (l *logRef) page(ctx context.Context, want, to uint64, wait time.Duration, f func(record) error) error {
	ask, err := json.Marshal(pageRequest{want, int(min(pageMessages, to-want+1)), pageBytes})
	if err != nil {
		return err
	}
	inbox := l.b.nc.NewInbox()
	sub, err := l.b.nc.SubscribeSync(inbox)
	if err != nil {
		return wrap(err, "replay log %s", l.name)
	}
	defer sub.Unsubscribe()
	if err := l.b.nc.PublishRequest("$JS.API.DIRECT.GET."+l.stream, inbox, ask); err != nil {
		return wrap(err, "replay log %s", l.name)
	}
	for {
		wctx, cancel := context.WithTimeout(ctx, wait)
		m, err := sub.NextMsgWithContext(wctx)
		cancel()
		if err != nil {
			return wrap(err, "replay log %s", l.name)
		}
		wait = stallWait
		switch status := m.Header.Get("Status"); status {
		case "":
		case "204", "404":
			return nil
		default:
			return lode.Errorf(lode.Unavailable, "replay log %s: the bus answered %s %s", l.name, status, m.Header.Get("Description"))
		}
		seq, err := strconv.ParseUint(m.Header.Get(jetstream.SequenceHeader), 10, 64)
		if err != nil || seq < want {
			return lode.Errorf(lode.Internal, "replay log %s: an answer with position %q, after %d was asked for", l.name, m.Header.Get(jetstream.SequenceHeader), want)
		}
		if seq > want { // a copy may pass over what it cannot read; another may have it
			data, err := l.raw(ctx, want)
			if err == nil {
				return l.pageOf(want, data, f)
			}
			if lode.KindOf(err) != lode.NotFound {
				return err
			}
		}
		if seq > to {
			return nil
		}
		if err := l.pageOf(seq, m.Data, f); err != nil {
			return err
		}
		if want = seq + 1; want > to || m.Header.Get("Nats-Num-Pending") == "" { // a server older than 2.11 sends one
			return nil
		}
	}
}

// pageOf calls f with one record.
func (l *logRef) pageOf(seq uint64, data []byte, f func(record) error) error {
	r, err := decodeRecord(data)
	if err != nil {
		return l.damaged(seq, err)
	}
	r.seq = seq
	return f(r)
}

// stalled tells why position want does not come: it is not there yet where it
// is read, or it cannot be read.
func (l *logRef) stalled(ctx context.Context, want uint64, err error) error {
	if err == nil {
		err = lode.Errorf(lode.Unavailable, "replay log %s: message %d does not come", l.name, want)
	}
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
