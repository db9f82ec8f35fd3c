package bus

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"lode"
)

const (
	// MaxAppend is the most bytes of entries that one Append takes. A cluster
	// outside may take less.
	MaxAppend = 4 << 20

	stallWait = 3 * time.Second // a replay without a message for so long is looked into
)

// Log is an append log with one writer. Opening it ends the writer before: each
// message is accepted only behind the tail that this writer has itself
// acknowledged, so an older writer is refused for ever after. Entries of one
// Append are stored together or not at all.
//
//	open -> (Append, Trim)* -> fenced   another writer opened the log
//	                        -> closed   the bus was closed
//
// Replay and Read may run at any time; Append and Trim wait for each other.
type Log struct {
	b       *Bus
	name    string
	stream  string
	subject string
	st      jetstream.Stream
	inc     incarnation
	opened  uint64 // position of this writer's first message

	mu      sync.Mutex
	next    record // n, prev and floor of the next message
	unknown []byte // sent, and not known to be stored or refused
	fenced  error
}

// OpenLog opens the log of that name, which follows the law of lode.Name, makes
// it if it is new, and becomes its writer.
func (b *Bus) OpenLog(ctx context.Context, name string) (*Log, error) {
	stream, subject, err := logNames(name)
	if err != nil {
		return nil, err
	}
	st, err := b.stream(ctx, logConfig(stream, subject))
	if err != nil {
		return nil, wrap(err, "open log %s", name)
	}
	l := &Log{b: b, name: name, stream: stream, subject: subject, st: st}
	rand.Read(l.inc[:]) // never fails
	l.next.inc = l.inc
	ctx, cancel := b.patient(ctx)
	defer cancel()
	return l, l.begin(ctx, st.CachedInfo().State.LastSeq)
}

func logConfig(stream, subject string) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: stream, Subjects: []string{subject}, Storage: jetstream.FileStorage,
		Discard: jetstream.DiscardNew, DenyDelete: true, AllowDirect: true, MaxMsgSize: maxPayload,
		Duplicates: 2 * time.Minute,
	}
}

// begin publishes the message that ends earlier writers. The tail may be
// stale: then the refusal names the true one.
func (l *Log) begin(ctx context.Context, tail uint64) error {
	for {
		l.next.prev = tail
		seq, err := l.settle(ctx, l.next.encode())
		if err == nil {
			l.opened = seq
			l.advance(seq)
			return nil
		}
		moved, ok := errors.AsType[*tailMoved](err)
		if !ok {
			return err
		}
		tail = moved.last
	}
}

// Tail is the position of the last message of this writer.
func (l *Log) Tail() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.next.prev
}

// Append stores entries behind the tail, in one message, and returns its
// position. Conflict: another writer has opened the log; this one has ended.
// Full: refused, nothing is stored. Unavailable, Cancelled, Deadline: not
// known; the message may be stored, and the next Append waits until that is
// settled.
func (l *Log) Append(ctx context.Context, entries ...[]byte) (uint64, error) {
	size := 0
	for _, e := range entries {
		size += len(e) + 8
	}
	if most := l.b.maxAppend(); size > most {
		return 0, lode.Errorf(lode.TooLarge, "append to log %s: %d bytes, at most %d", l.name, size, most)
	}
	ctx, cancel := l.b.patient(ctx)
	defer cancel()
	return l.appendPart(ctx, entries, false)
}

// appendPart is Append of entries known to be small enough. What frees space
// may use some of the reserve.
func (l *Log) appendPart(ctx context.Context, entries [][]byte, frees bool) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.append(ctx, entries, frees)
}

func (l *Log) append(ctx context.Context, entries [][]byte, frees bool) (uint64, error) {
	if l.fenced != nil {
		return 0, l.fenced
	}
	if l.unknown != nil {
		seq, err := l.settle(ctx, l.unknown)
		if err := l.outcome(seq, err); err != nil {
			return 0, err
		}
	}
	r := l.next
	r.entries = entries
	msg := r.encode()
	if err := l.b.room(len(msg), frees); err != nil {
		return 0, err
	}
	l.unknown = msg
	seq, err := l.settle(ctx, msg)
	return seq, l.outcome(seq, err)
}

// outcome is the one place that changes the writer's state after a message.
func (l *Log) outcome(seq uint64, err error) error {
	switch lode.KindOf(err) {
	case "":
		l.advance(seq)
		return nil
	case lode.Full, lode.TooLarge:
		l.unknown = nil
	case lode.Conflict:
		l.unknown, l.fenced = nil, err
	}
	return err
}

func (l *Log) advance(seq uint64) {
	l.unknown = nil
	l.next.n++
	l.next.prev = seq
}

// tailMoved says that the log is longer than its writer knows.
type tailMoved struct{ last uint64 }

func (e *tailMoved) Error() string { return "the log ends at " + strconv.FormatUint(e.last, 10) }

// settle sends msg behind l.next.prev until it is known to be stored or
// refused. An answer that does not come, and a refusal that names a shorter
// log, mean "not known": the same bytes go out again.
func (l *Log) settle(ctx context.Context, msg []byte) (uint64, error) {
	tail, n := l.next.prev, l.next.n
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		seq, err := l.publish(ctx, msg, tail, n)
		if err == nil {
			if seq == tail+1 {
				return seq, nil
			}
			err = lode.Errorf(lode.Unavailable, "log %s answered position %d, want %d", l.name, seq, tail+1)
		}
		if last, ok := lastSequence(err); ok && last > tail {
			seq, err = l.landed(ctx, msg, tail, last)
			if _, moved := errors.AsType[*tailMoved](err); err == nil || moved || lode.KindOf(err) == lode.Conflict {
				return seq, err
			} // else what stands there cannot be read just now, whatever the cause
		}
		switch lode.KindOf(wrap(err, "")) {
		case lode.Full, lode.TooLarge:
			return 0, wrap(err, "append to log %s", l.name)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return 0, lode.Errorf(lode.Unavailable, "append to log %s: the outcome is not known: %w", l.name, err)
		case <-l.b.closed:
			return 0, errClosed()
		}
	}
}

func (l *Log) publish(ctx context.Context, msg []byte, tail, n uint64) (uint64, error) {
	if err := l.b.gate.enter(ctx); err != nil {
		return 0, err
	}
	defer l.b.gate.leave()
	ctx, cancel := context.WithTimeout(ctx, tryWait)
	defer cancel()
	ack, err := l.b.js.PublishMsg(ctx, &nats.Msg{Subject: l.subject, Data: msg}, jetstream.WithRetryAttempts(0),
		jetstream.WithExpectLastSequence(tail), jetstream.WithMsgID(hex.EncodeToString(l.inc[:])+"/"+strconv.FormatUint(n, 10)))
	if err != nil {
		if notSent(err) {
			l.b.doubt()
		}
		return 0, err
	}
	return ack.Sequence, nil
}

// landed decides, by what stands at tail+1, what became of msg.
func (l *Log) landed(ctx context.Context, msg []byte, tail, last uint64) (uint64, error) {
	got, err := l.raw(ctx, tail+1)
	switch {
	case err == nil && bytes.Equal(got, msg):
		return tail + 1, nil
	case l.next.n == 0:
		return 0, &tailMoved{last}
	case err != nil:
		return 0, err
	}
	return 0, lode.Errorf(lode.Conflict, "log %s was opened by another writer at %d", l.name, tail+1)
}

// lastSequence reads N of "wrong last sequence: N".
func lastSequence(err error) (uint64, bool) {
	api, ok := errors.AsType[*jetstream.APIError](err)
	if !ok || api.ErrorCode != codeWrongLast {
		return 0, false
	}
	_, num, _ := strings.Cut(api.Description, ": ")
	n, err := strconv.ParseUint(num, 10, 64)
	return n, err == nil
}

// raw reads a message from any copy; that it is missing there is asked of the
// leader.
func (l *Log) raw(ctx context.Context, seq uint64) (data []byte, err error) {
	err = l.b.read(ctx, func(ctx context.Context) error {
		m, err := l.st.GetMsg(ctx, seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) && l.b.replicas() > 1 {
			m, err = l.b.get(ctx, l.stream, getRequest{Seq: seq})
		}
		if err == nil {
			data = m.Data
		}
		return err
	})
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, lode.Errorf(lode.NotFound, "log %s has no message %d", l.name, seq)
	}
	return data, wrap(err, "read message %d of log %s", seq, l.name)
}

// Message is what one Append stored.
type Message struct {
	Seq     uint64   // position; positions have no gaps
	Entries [][]byte // parts of one buffer, the caller's to keep
	Size    int      // bytes on the wire
}

// Read returns the message at a position; NotFound if it was trimmed or is
// not written yet.
func (l *Log) Read(ctx context.Context, seq uint64) (Message, error) {
	b, err := l.raw(ctx, seq)
	if err != nil {
		return Message{}, err
	}
	r, err := decodeRecord(b)
	if err != nil {
		return Message{}, l.damaged(seq, err)
	}
	return Message{Seq: seq, Entries: r.entries, Size: r.size}, nil
}

func (l *Log) damaged(seq uint64, err error) error {
	return lode.Errorf(lode.Damaged, "log %s at %d: %w", l.name, seq, err).WithHint("restore the folder of the bus from a backup")
}

// Trim removes every message before floor. It is stored that these may be
// missing before they are.
func (l *Log) Trim(ctx context.Context, floor uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if floor <= max(l.next.floor, 1) {
		return nil
	}
	before := l.next.floor
	l.next.floor = min(floor, l.next.prev+1)
	if _, err := l.append(ctx, nil, true); err != nil {
		if l.unknown == nil {
			l.next.floor = before
		}
		return err
	}
	err := l.b.persist(ctx, func(ctx context.Context) error { return l.st.Purge(ctx, purgeBefore(l.next.floor)) })
	return wrap(err, "trim log %s", l.name)
}
