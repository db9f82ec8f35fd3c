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
	"lode/bus/fence"
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
// Append are stored together or not at all. What an answer means is decided in
// the package fence.
//
//	open -> (Append, Commit, Trim)* -> fenced   another writer opened the log
//	                                -> closed   the bus was closed
//
// Replay and Read may run at any time; Append, Commit and Trim wait for each
// other.
type Log struct {
	logRef
	subject string
	inc     incarnation
	opened  uint64 // position of this writer's first message

	mu      sync.Mutex
	w       fence.Writer
	next    record // the next message: n and prev as w has them, and floor
	unknown []byte // sent, and not known to be stored or refused
	fenced  error
}

// logRef is a log to be read.
type logRef struct {
	b      *Bus
	name   string
	stream string
	st     jetstream.Stream
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
	l := &Log{logRef: logRef{b: b, name: name, stream: stream, st: st}, subject: subject}
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
	l.mu.Lock()
	defer l.mu.Unlock()
	l.w.Tail = tail
	for {
		l.next.prev = l.w.Tail
		seq, err := l.settle(ctx, l.next.encode(), urgently)
		if errors.Is(err, errMoved) {
			continue
		}
		if err == nil {
			l.opened = seq
			l.advance()
		}
		return err
	}
}

// Opened is the position of the message with which this writer opened the log,
// and ended every earlier one.
func (l *Log) Opened() uint64 { return l.opened }

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
	if err := l.fits(entries); err != nil {
		return 0, err
	}
	ctx, cancel := l.b.patient(ctx)
	defer cancel()
	return l.appendPart(ctx, entries, false)
}

// Commit is Append that does not give up: while ctx lives and the bus is open,
// it sends until the outcome is known. Conflict: another writer has opened the
// log; these entries are not stored and never will be, unless the error is
// [ErrTrimmed]. Had they been stored before the other one opened, Commit would
// have returned their position. Full and TooLarge: nothing is stored.
// Unavailable, Cancelled, Deadline: the outcome is not known, and the next
// call settles it first.
func (l *Log) Commit(ctx context.Context, entries ...[]byte) (uint64, error) {
	if err := l.fits(entries); err != nil {
		return 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.append(ctx, entries, false, surely)
}

// ErrTrimmed is in the chain of a Conflict where it cannot be told whether the
// entries had been stored before another writer opened the log: that writer has
// since trimmed what would tell.
var ErrTrimmed = errors.New("what would tell was trimmed")

// fits refuses entries that are too large for one message.
func (l *Log) fits(entries [][]byte) error {
	size := 0
	for _, e := range entries {
		size += len(e) + 8
	}
	if most := l.b.maxAppend(); size > most {
		return lode.Errorf(lode.TooLarge, "append to log %s: %d bytes, at most %d", l.name, size, most)
	}
	return nil
}

// appendPart is Append of entries known to be small enough. What frees space
// may use some of the reserve.
func (l *Log) appendPart(ctx context.Context, entries [][]byte, frees bool) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.append(ctx, entries, frees, urgently)
}

func (l *Log) append(ctx context.Context, entries [][]byte, frees bool, p patience) (uint64, error) {
	if l.fenced != nil {
		return 0, l.fenced
	}
	if l.unknown != nil {
		_, err := l.settle(ctx, l.unknown, p)
		if err := l.outcome(err); err != nil {
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
	seq, err := l.settle(ctx, msg, p)
	return seq, l.outcome(err)
}

// outcome is the one place that changes the writer's state after a message.
func (l *Log) outcome(err error) error {
	switch lode.KindOf(err) {
	case "":
		l.advance()
		return nil
	case lode.Full, lode.TooLarge:
		l.unknown = nil
		l.w.Drop()
	case lode.Conflict:
		l.unknown, l.fenced = nil, err
	}
	return err
}

func (l *Log) advance() {
	l.unknown = nil
	l.next.n, l.next.prev = l.w.N, l.w.Tail
}

// errMoved says that an opening message is to be made anew.
var errMoved = errors.New("the log is longer than was known")

// patience is how a message is settled.
type patience int

const (
	urgently patience = iota // a full store ends it
	surely                   // only what is known ends it; and an answer is missed early
)

// try is how long the n-th attempt waits for an answer.
func (p patience) try(n int) time.Duration {
	if p == surely {
		return min(tryWait/4<<min(n, 2), tryWait)
	}
	return tryWait
}

// settle sends msg behind the tail until it is known to be stored or refused.
func (l *Log) settle(ctx context.Context, msg []byte, p patience) (uint64, error) {
	pause := firstPause
	for n := 0; ; n++ {
		seq, err := l.publish(ctx, msg, p.try(n))
		verdict, err := l.judge(ctx, msg, seq, err)
		if err != nil && verdict == fence.Again && p == urgently {
			if k := lode.KindOf(wrap(err, "")); k == lode.Full || k == lode.TooLarge {
				verdict = fence.Refused
			}
		}
		switch verdict {
		case fence.Landed:
			return l.w.Tail, nil
		case fence.Moved:
			return 0, errMoved
		case fence.Refused:
			return 0, wrap(err, "append to log %s", l.name)
		case fence.Lost:
			if err != nil {
				return 0, lode.Errorf(lode.Conflict, "log %s was opened by another writer: %w", l.name, err)
			}
			return 0, lode.Errorf(lode.Conflict, "log %s was opened by another writer at %d", l.name, l.w.Tail+1)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return 0, lode.Errorf(lode.Unavailable, "append to log %s: the outcome is not known: %w", l.name, err)
		case <-l.b.closed:
			return 0, errClosed()
		}
		pause = min(2*pause, lastPause)
	}
}

// judge tells what an answer means. Its error is the reason.
func (l *Log) judge(ctx context.Context, msg []byte, seq uint64, err error) (fence.Verdict, error) {
	if err == nil {
		return l.w.Stored(seq), lode.Errorf(lode.Unavailable, "log %s answered position %d", l.name, seq)
	}
	if last, ok := lastSequence(err); ok {
		if l.w.Ends(last) != fence.Look {
			return fence.Again, err
		}
		stand, err := l.stands(ctx, msg)
		return l.w.Found(stand, last), err
	}
	switch lode.KindOf(wrap(err, "")) {
	case lode.Full, lode.TooLarge:
		return l.w.NoRoom(), err
	}
	if _, held := errors.AsType[*lode.Error](err); held || notSent(err) {
		return fence.Again, err // it has not left
	}
	return l.w.Silent(), err
}

func (l *Log) publish(ctx context.Context, msg []byte, wait time.Duration) (uint64, error) {
	if err := l.b.gate.enter(ctx); err != nil {
		return 0, err
	}
	defer l.b.gate.leave()
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	ack, err := l.b.js.PublishMsg(ctx, &nats.Msg{Subject: l.subject, Data: msg}, jetstream.WithRetryAttempts(0),
		jetstream.WithExpectLastSequence(l.w.Tail), jetstream.WithMsgID(hex.EncodeToString(l.inc[:])+"/"+strconv.FormatUint(l.w.N, 10)))
	if err != nil {
		if notSent(err) {
			l.b.doubt()
		}
		return 0, err
	}
	return ack.Sequence, nil
}

// stands looks what stands at the position after the tail, in a log that is
// longer.
func (l *Log) stands(ctx context.Context, msg []byte) (fence.Stand, error) {
	got, err := l.raw(ctx, l.w.Tail+1)
	switch {
	case err == nil && bytes.Equal(got, msg):
		return fence.Mine, nil
	case err == nil:
		return fence.Other, nil
	case lode.KindOf(err) != lode.NotFound:
		return fence.Unread, err
	}
	info, err := l.info(ctx)
	if err == nil && info.State.FirstSeq > l.w.Tail+1 {
		return fence.Trimmed, ErrTrimmed
	}
	return fence.Unread, err
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
func (l *logRef) raw(ctx context.Context, seq uint64) (data []byte, err error) {
	err = l.b.soon(ctx, func(ctx context.Context) error {
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
	Opens   bool     // with it another writer began; it has no entries
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
	r.seq = seq
	return r.message(), nil
}

func (l *logRef) damaged(seq uint64, err error) error {
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
	if _, err := l.append(ctx, nil, true, urgently); err != nil {
		if l.unknown == nil {
			l.next.floor = before
		}
		return err
	}
	err := l.b.persist(ctx, func(ctx context.Context) error { return l.st.Purge(ctx, purgeBefore(l.next.floor)) })
	return wrap(err, "trim log %s", l.name)
}
