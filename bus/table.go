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
	b    *Bus
	name string
	kv   jetstream.KeyValue
	st   jetstream.Stream // what is behind kv
}

// Table opens the table of that name, which follows the law of lode.Name, and
// makes it if it is new.
func (b *Bus) Table(ctx context.Context, name string) (*Table, error) {
	bucket, err := tableName(name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	kv, err := b.js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{
		Bucket: bucket, History: 1, Storage: jetstream.FileStorage, Replicas: b.cfg.Replicas,
		MaxValueSize: -1, LimitMarkerTTL: deletedFor,
	})
	if err != nil {
		return nil, wrap(err, "open table %s", name)
	}
	st, err := b.js.Stream(ctx, tableStream(bucket))
	if err != nil {
		return nil, wrap(err, "open table %s", name)
	}
	return &Table{b: b, name: name, kv: kv, st: st}, nil
}

// Get returns the newest acknowledged entry of key; false if there is none.
// Damaged: there is one, and it cannot be read.
func (t *Table) Get(ctx context.Context, key string) (Entry, bool, error) {
	k, err := escapeKey(key)
	if err != nil {
		return Entry{}, false, err
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	m, err := t.last(ctx, tableSubject(t.name, k))
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
	m, err := t.st.GetLastMsgForSubject(ctx, subject)
	if !errors.Is(err, jetstream.ErrMsgNotFound) {
		return m, err
	}
	info, err := t.st.Info(ctx, jetstream.WithSubjectFilter(subject))
	if err != nil || info.State.Subjects[subject] == 0 {
		return nil, err
	}
	if m, err = t.st.GetLastMsgForSubject(ctx, subject); !errors.Is(err, jetstream.ErrMsgNotFound) {
		return m, err // it was written between the two looks
	}
	return nil, lode.Errorf(lode.Damaged, "an entry of table %s is damaged: %s", t.name, subject).WithHint("restore the folder of the bus from a backup")
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
	return t.write(ctx, "put", key, value, func(ctx context.Context, k string) (uint64, error) { return t.kv.Put(ctx, k, value) })
}

// Create sets key only if it does not exist, else Conflict.
func (t *Table) Create(ctx context.Context, key string, value []byte) (uint64, error) {
	rev, err := t.write(ctx, "create", key, value, func(ctx context.Context, k string) (uint64, error) { return t.kv.Create(ctx, k, value) })
	if lode.KindOf(err) == lode.Precondition {
		return 0, lode.Errorf(lode.Conflict, "%s exists in table %s", key, t.name)
	}
	return rev, err
}

// Update sets key only if its revision is still rev, else Precondition. A rev
// of 0 means that the key has never existed or has been forgotten; see Create.
func (t *Table) Update(ctx context.Context, key string, value []byte, rev uint64) (uint64, error) {
	return t.write(ctx, "update", key, value, func(ctx context.Context, k string) (uint64, error) { return t.kv.Update(ctx, k, value, rev) })
}

// Delete removes key only if its revision is still rev, else Precondition; a
// rev of 0 removes it whatever it is, and if it is there at all.
func (t *Table) Delete(ctx context.Context, key string, rev uint64) error {
	_, err := t.write(ctx, "delete", key, nil, func(ctx context.Context, k string) (uint64, error) {
		opts := []jetstream.KVDeleteOpt{jetstream.PurgeTTL(deletedFor)}
		if rev != 0 {
			opts = append(opts, jetstream.LastRevision(rev))
		}
		return 0, t.kv.Purge(ctx, k, opts...)
	})
	return err
}

func (t *Table) write(ctx context.Context, doing, key string, value []byte, do func(context.Context, string) (uint64, error)) (uint64, error) {
	k, err := escapeKey(key)
	if err != nil {
		return 0, err
	}
	if len(value) > MaxValue {
		return 0, lode.Errorf(lode.TooLarge, "%s %s in table %s: a value has at most %d bytes, not %d", doing, key, t.name, MaxValue, len(value))
	}
	if err := t.b.space.take(len(value)+256, doing == "delete"); err != nil {
		return 0, err
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	rev, err := do(ctx, k)
	if lostSwap(err) {
		return 0, lode.Errorf(lode.Precondition, "%s %s in table %s: somebody else changed it", doing, key, t.name).WithHint("read it again and repeat")
	}
	return rev, wrap(err, "%s %s in table %s", doing, key, t.name)
}

// lostSwap reports whether a condition was refused for good. The client maps
// the server's refusals to errors of its own.
func lostSwap(err error) bool {
	return err != nil && (errors.Is(err, jetstream.ErrKeyExists) || classify(err) == lode.Precondition)
}

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

// Op says what a Change is.
type Op int

// The changes.
const (
	Set     Op = iota // the key has this value
	Deleted           // the key is no more
	Synced            // everything that was there when the watch began has been delivered
)

// Change is one step of a Watch.
type Change struct {
	Op
	Entry
}

// Watch streams a table: first every entry that is there, then one Synced,
// then each change in the order of revisions. A watcher that is slow may see
// only the newest of several changes of one key. Among the first entries there
// may be newer ones than there were when the watch began, but none is missing.
type Watch struct {
	t      *Table
	prefix string
	w      jetstream.KeyWatcher
	cancel context.CancelFunc
	synced bool
	due    bool              // Synced comes next
	seen   map[string]uint64 // until synced: the revisions delivered, by escaped key
	start  uint64            // last revision of the table before the watch began
	wanted map[string]bool   // escaped keys still to come before Synced
}

// Watch begins to stream the entries whose key starts with prefix.
func (t *Table) Watch(ctx context.Context, prefix string) (*Watch, error) {
	w := &Watch{t: t, prefix: prefix, seen: make(map[string]uint64)}
	return w, w.begin(ctx)
}

func (w *Watch) begin(ctx context.Context) error {
	ictx, icancel := bounded(ctx)
	defer icancel()
	info, err := w.t.st.Info(ictx)
	if err != nil {
		return wrap(err, "watch table %s", w.t.name)
	}
	w.start, w.wanted = info.State.LastSeq, nil
	// The library ends a watch with the context of its making, and keeps a
	// goroutine until then.
	wctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	kw, err := w.t.kv.Watch(wctx, filterFor(w.prefix))
	if err != nil {
		cancel()
		return wrap(err, "watch table %s", w.t.name)
	}
	w.w, w.cancel = kw, cancel
	return nil
}

// Next waits for the next change. Its error is Cancelled or Deadline by ctx,
// Unavailable when the bus was closed, or Damaged if what was there when the
// watch began cannot all be read. One caller at a time.
func (w *Watch) Next(ctx context.Context) (Change, error) {
	var stall <-chan time.Time // the server waits for ever behind a damaged entry
	if !w.synced {
		t := time.NewTicker(stallWait)
		defer t.Stop()
		stall = t.C
	}
	for {
		if w.due {
			w.due, w.synced, w.seen = false, true, nil
			return Change{Op: Synced}, nil
		}
		select {
		case <-ctx.Done():
			return Change{}, ctxError(ctx, "watch table "+w.t.name)
		case <-stall:
			if err := w.restart(ctx); err != nil {
				return Change{}, err
			}
		case e, ok := <-w.w.Updates():
			if !ok {
				return Change{}, errClosed()
			}
			if e == nil {
				if err := w.mark(ctx); err != nil {
					return Change{}, err
				}
			} else if c, ok := w.change(e); ok {
				return c, nil
			}
		}
	}
}

// mark follows the library's own mark. That one counts deliveries, and so
// comes too early when entries are written again meanwhile: if anything was,
// the keys that there are tell what is still to come.
func (w *Watch) mark(ctx context.Context) error {
	if w.synced {
		return nil
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	info, err := w.t.st.Info(ctx)
	if err == nil && info.State.LastSeq != w.start {
		info, err = w.t.st.Info(ctx, jetstream.WithSubjectFilter(tableSubject(w.t.name, filterFor(w.prefix))))
	}
	if err != nil {
		return wrap(err, "watch table %s", w.t.name)
	}
	w.wanted = make(map[string]bool)
	for subject := range info.State.Subjects {
		if key := strings.TrimPrefix(subject, tableSubject(w.t.name, "")); w.seen[key] == 0 {
			w.wanted[key] = true
		}
	}
	w.due = len(w.wanted) == 0
	return nil
}

// restart is for a watch that got stuck before it was synced: if everything
// can be read, what it waits for has gone by itself.
func (w *Watch) restart(ctx context.Context) error {
	if err := w.t.verify(ctx, w.prefix); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return w.begin(ctx)
}

// change makes what the library delivers a Change; false if it is none.
func (w *Watch) change(e jetstream.KeyValueEntry) (Change, bool) {
	if !w.synced && w.wanted != nil {
		delete(w.wanted, e.Key())
		w.due = len(w.wanted) == 0
	}
	if !w.synced && w.seen[e.Key()] >= e.Revision() {
		return Change{}, false // once more, after a restart
	}
	_, known := w.seen[e.Key()]
	if !w.synced {
		w.seen[e.Key()] = e.Revision()
	}
	key, ok := unescapeKey(e.Key())
	if !ok || !strings.HasPrefix(key, w.prefix) {
		return Change{}, false
	}
	c := Change{Op: Set, Entry: Entry{Key: key, Value: e.Value(), Rev: e.Revision()}}
	if e.Operation() != jetstream.KeyValuePut {
		// A mark of something deleted long ago is no news to a new watcher.
		c.Op, c.Value = Deleted, nil
		return c, w.synced || known
	}
	return c, true
}

// Close ends the watch. It may be called again.
func (w *Watch) Close() error {
	err := w.w.Stop()
	w.cancel()
	if errors.Is(err, nats.ErrBadSubscription) || errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, nats.ErrConsumerNotFound) {
		return nil // the last: the store was opened anew, and forgot it
	}
	return wrap(err, "end a watch")
}

// ctxError says that ctx ended while doing something.
func ctxError(ctx context.Context, doing string) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return lode.Errorf(lode.Deadline, "%s: %w", doing, ctx.Err())
	}
	return lode.Errorf(lode.Cancelled, "%s: %w", doing, context.Cause(ctx))
}
