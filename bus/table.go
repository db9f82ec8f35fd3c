package bus

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"lode"
)

// deletedFor is how long the mark of a deleted key is kept for watchers that
// have not seen it yet.
const deletedFor = time.Hour

// Entry is one key of a Table.
type Entry struct {
	Key   string
	Value []byte
	// Rev grows with every change of the table, so a key that was deleted and
	// made again has another one.
	Rev uint64
}

// Table is a map of keys to values that is changed by compare-and-swap and
// can be watched. A key is any string of 1 to 512 bytes; a prefix that ends
// in "/" is cheaper than another one. A value has at most MaxValue bytes.
// All methods may be called at the same time.
type Table struct {
	b      *Bus
	name   string
	stream string
	st     jetstream.Stream
	free   bool // writes do not wait at the gate
}

// Table opens the table of that name, which follows the law of lode.Name, and
// makes it if it is new.
func (b *Bus) Table(ctx context.Context, name string) (*Table, error) {
	bucket, err := tableName(name)
	if err != nil {
		return nil, err
	}
	st, err := b.stream(ctx, tableConfig(bucket))
	if err != nil {
		return nil, wrap(err, "open table %s", name)
	}
	return &Table{b: b, name: bucket, stream: tableStream(bucket), st: st}, nil
}

// tableConfig is what the server's own key-value clients would make too.
func tableConfig(bucket string) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: tableStream(bucket), Subjects: []string{tableSubject(bucket, ">")}, Storage: jetstream.FileStorage,
		MaxMsgsPerSubject: 1, MaxBytes: -1, MaxMsgSize: -1, MaxMsgs: -1, MaxConsumers: -1, Discard: jetstream.DiscardNew,
		AllowRollup: true, DenyDelete: true, AllowDirect: true, Duplicates: 2 * time.Minute,
		AllowMsgTTL: true, SubjectDeleteMarkerTTL: deletedFor,
	}
}

// stream finds a stream, or makes it. One that is there is left as it is: a
// change would undo the fence of a move that this node has not heard of.
func (b *Bus) stream(ctx context.Context, cfg jetstream.StreamConfig) (st jetstream.Stream, err error) {
	err = b.read(ctx, func(ctx context.Context) error {
		st, err = b.js.Stream(ctx, cfg.Name)
		return err
	})
	if !errors.Is(err, jetstream.ErrStreamNotFound) {
		return st, err
	}
	err = b.persist(ctx, func(ctx context.Context) error {
		cfg.Replicas = b.replicas()
		st, err = b.js.CreateStream(ctx, cfg)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			st, err = b.js.Stream(ctx, cfg.Name)
		}
		return err
	})
	return st, err
}

// Get returns the newest acknowledged entry of key; false if there is none.
// Damaged: there is one, and it cannot be read.
func (t *Table) Get(ctx context.Context, key string) (Entry, bool, error) {
	k, err := escapeKey(key)
	if err != nil {
		return Entry{}, false, err
	}
	var m *jetstream.RawStreamMsg
	err = t.b.read(ctx, func(ctx context.Context) error {
		m, err = t.last(ctx, tableSubject(t.name, k))
		return err
	})
	if err != nil {
		return Entry{}, false, wrap(err, "get %s from table %s", key, t.name)
	}
	if m == nil || isMark(m.Header) {
		return Entry{}, false, nil
	}
	return Entry{Key: key, Value: m.Data, Rev: m.Sequence}, true, nil
}

// last is the newest message of a subject; nil if there is none. The server
// says "not found" of bytes that it found damaged: only its index tells.
func (t *Table) last(ctx context.Context, subject string) (*jetstream.RawStreamMsg, error) {
	m, err := t.newest(ctx, subject)
	if !errors.Is(err, jetstream.ErrMsgNotFound) {
		return m, err
	}
	info, err := t.st.Info(ctx, jetstream.WithSubjectFilter(subject))
	if err != nil || info.State.Subjects[subject] == 0 {
		return nil, err
	}
	if m, err = t.newest(ctx, subject); !errors.Is(err, jetstream.ErrMsgNotFound) {
		return m, err // it was written between the two looks
	}
	return nil, lode.Errorf(lode.Damaged, "an entry of table %s is damaged: %s", t.name, subject).WithHint("restore the folder of the bus from a backup")
}

// newest asks the leader where there are several copies.
func (t *Table) newest(ctx context.Context, subject string) (*jetstream.RawStreamMsg, error) {
	if t.b.replicas() == 1 {
		return t.st.GetLastMsgForSubject(ctx, subject)
	}
	return t.b.get(ctx, t.stream, getRequest{Last: subject})
}

// isMark reports whether a message is the mark of a deleted key.
func isMark(h nats.Header) bool {
	return h.Get("KV-Operation") != "" || h.Get(jetstream.MarkerReasonHeader) != ""
}

// verify reads every entry with a prefix and returns Damaged for the first
// that cannot be read.
func (t *Table) verify(ctx context.Context, prefix string) error {
	info, err := t.st.Info(ctx, jetstream.WithSubjectFilter(tableSubject(t.name, filterFor(prefix))))
	if err != nil {
		return wrap(err, "verify table %s", t.name)
	}
	for subject := range info.State.Subjects {
		if _, err := t.last(ctx, subject); err != nil {
			return wrap(err, "verify table %s", t.name)
		}
	}
	return nil
}

// Put sets key, whatever it was, and returns its new revision.
func (t *Table) Put(ctx context.Context, key string, value []byte) (uint64, error) {
	return t.write(ctx, "put", key, value, nil)
}

// Create sets key only if it does not exist, else Conflict.
func (t *Table) Create(ctx context.Context, key string, value []byte) (uint64, error) {
	var none uint64
	rev, err := t.write(ctx, "create", key, value, &none)
	if lode.KindOf(err) == lode.Precondition {
		// What was deleted leaves a mark, which has a revision.
		var mark uint64
		if mark, err = t.mark(ctx, key); err == nil && mark != 0 {
			rev, err = t.write(ctx, "create", key, value, &mark)
		} else if err == nil {
			return 0, lode.Errorf(lode.Conflict, "%s exists in table %s", key, t.name)
		}
	}
	if lode.KindOf(err) == lode.Precondition {
		return 0, lode.Errorf(lode.Conflict, "%s exists in table %s", key, t.name)
	}
	return rev, err
}

// mark is the revision of the mark of a deleted key; 0: it is not deleted.
func (t *Table) mark(ctx context.Context, key string) (rev uint64, err error) {
	k, err := escapeKey(key)
	if err != nil {
		return 0, err
	}
	err = t.b.read(ctx, func(ctx context.Context) error {
		m, err := t.last(ctx, tableSubject(t.name, k))
		if err == nil && m != nil && isMark(m.Header) {
			rev = m.Sequence
		}
		return err
	})
	return rev, wrap(err, "create %s in table %s", key, t.name)
}

// Update sets key only if its revision is still rev, else Precondition. A rev
// of 0 means that the key has never existed or has been forgotten; see Create.
func (t *Table) Update(ctx context.Context, key string, value []byte, rev uint64) (uint64, error) {
	return t.write(ctx, "update", key, value, &rev)
}

// Delete removes key only if its revision is still rev, else Precondition; a
// rev of 0 removes it whatever it is, and if it is there at all.
func (t *Table) Delete(ctx context.Context, key string, rev uint64) error {
	expect := &rev
	if rev == 0 {
		expect = nil
	}
	_, err := t.write(ctx, "delete", key, nil, expect)
	return err
}

// write publishes one change. Where an answer was lost and the repetition is
// refused, what stands there now tells whose it is.
func (t *Table) write(ctx context.Context, doing, key string, value []byte, expect *uint64) (uint64, error) {
	k, err := escapeKey(key)
	if err != nil {
		return 0, err
	}
	if len(value) > MaxValue {
		return 0, lode.Errorf(lode.TooLarge, "%s %s in table %s: a value has at most %d bytes, not %d", doing, key, t.name, MaxValue, len(value))
	}
	m := &nats.Msg{Subject: tableSubject(t.name, k), Data: value, Header: nats.Header{}}
	if doing == "delete" {
		m.Header.Set("KV-Operation", "PURGE")
		m.Header.Set(jetstream.MsgRollup, jetstream.MsgRollupSubject)
		m.Header.Set(jetstream.MsgTTLHeader, deletedFor.String())
	}
	if expect != nil {
		m.Header.Set(jetstream.ExpectedLastSubjSeqHeader, utoa(*expect))
	}
	ack, unsure, err := t.b.write(ctx, m, doing == "delete", t.free)
	if err == nil {
		return ack.Sequence, nil
	}
	if !lostSwap(err) {
		return 0, wrap(err, "%s %s in table %s", doing, key, t.name)
	}
	if unsure {
		rev, whose := t.whose(ctx, m)
		if rev != 0 {
			return rev, nil
		}
		if !whose {
			e := lode.Errorf(lode.Unavailable, "%s %s in table %s: the outcome is not known", doing, key, t.name)
			e.RetryAfter = time.Second
			return 0, e
		}
	}
	return 0, lode.Errorf(lode.Precondition, "%s %s in table %s: somebody else changed it", doing, key, t.name).WithHint("read it again and repeat")
}

// whose looks what became of a message without an answer: its revision if it
// is the newest of its key, or 0. certain says that it has never been stored,
// for what is there is older than the message could be.
func (t *Table) whose(ctx context.Context, m *nats.Msg) (rev uint64, certain bool) {
	var now *jetstream.RawStreamMsg
	err := t.b.read(ctx, func(ctx context.Context) (err error) {
		now, err = t.last(ctx, m.Subject)
		return err
	})
	if err != nil || now == nil {
		return 0, false
	}
	if now.Header.Get(jetstream.MsgIDHeader) == m.Header.Get(jetstream.MsgIDHeader) {
		return now.Sequence, true
	}
	return 0, false
}

// lostSwap reports whether a condition was refused for good.
func lostSwap(err error) bool { return classify(err) == lode.Precondition }

// List returns every entry whose key starts with prefix, sorted by key: what
// was acknowledged when the call began, and perhaps newer.
func (t *Table) List(ctx context.Context, prefix string) ([]Entry, error) {
	w, err := t.Watch(ctx, prefix)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	found := make(map[string]Entry)
	for {
		c, err := w.Next(ctx)
		if err != nil {
			return nil, err
		}
		switch c.Op {
		case Synced:
			out := make([]Entry, 0, len(found))
			for _, e := range found {
				out = append(out, e)
			}
			slices.SortFunc(out, func(a, b Entry) int { return strings.Compare(a.Key, b.Key) })
			return out, nil
		case Deleted:
			delete(found, c.Key)
		case Set:
			found[c.Key] = c.Entry
		}
	}
}
