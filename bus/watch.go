package bus

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"lode"
)

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

const (
	beatEvery = time.Second             // of a watch that has nothing to say
	beatLost  = 2500 * time.Millisecond // without a word for so long, it is begun again
	watchRoom = 256                     // messages that wait for Next beside the library's own buffer
)

// Watch streams a table: first every entry that is there, then one Synced,
// then each change in the order of revisions. A watcher that is slow may see
// only the newest of several changes of one key. Among the first entries there
// may be newer ones than there were when the watch began, but none is missing.
//
// A watch goes on by itself when the connection, the server or the members of
// the bus change: behind the last revision that it has delivered. Where that
// is not possible (it was away for so long that marks of deleted keys may be
// gone) it reads everything again, and what differs from what it has delivered
// comes as plain changes.
//
//	reading -(all there)-> following -(connection lost)-> following, begun again
//	   ^                                      |(away for long)
//	   |--------------------------------------|
type Watch struct {
	t      *Table
	prefix string
	filter string

	sub   *feed
	delay time.Duration // before the next begin, after one that failed
	heard time.Time     // when the server last said something
	out   []Change      // to be delivered

	told    bool              // Synced has been delivered
	reading bool              // everything is being read (again)
	known   map[string]uint64 // revisions of the keys delivered and not deleted, escaped
	seen    map[string]uint64 // while reading: what has come
	wanted  map[string]bool   // while reading: escaped keys still to come; nil: not known yet
	due     uint64            // while reading: how many there were when it began
	start   uint64            // while reading: last revision of the table before it began
	last    uint64            // highest revision seen
	base    uint64            // while reading: what is not above it was delivered before
	cons    uint64            // number of the last delivery of this feed
	stuck   time.Time         // while reading: when something last came
}

// feed is one subscription; a watch begins another one when it breaks.
type feed struct {
	sub  *nats.Subscription
	in   chan *nats.Msg
	done chan struct{}
	lost <-chan struct{} // the connection was lost
	once sync.Once
}

func (f *feed) close() {
	f.once.Do(func() {
		close(f.done)
		f.sub.Unsubscribe() // the server forgets its side when nobody listens
	})
}

// Watch begins to stream the entries whose key starts with prefix.
func (t *Table) Watch(ctx context.Context, prefix string) (*Watch, error) {
	w := &Watch{t: t, prefix: prefix, filter: tableSubject(t.name, filterFor(prefix)), reading: true, known: make(map[string]uint64)}
	err := t.b.retry(ctx, func(ctx context.Context) error { return w.begin(ctx) })
	if err != nil {
		return nil, wrap(err, "watch table %s", t.name)
	}
	return w, nil
}

// begin makes a feed: from behind the last revision, or of everything.
func (w *Watch) begin(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, tryWait)
	defer cancel()
	info, err := w.t.st.Info(ctx)
	if err != nil {
		return err
	}
	cfg := jetstream.ConsumerConfig{
		DeliverSubject: w.t.b.nc.NewInbox(), FilterSubject: w.filter, AckPolicy: jetstream.AckNonePolicy, MaxDeliver: 1,
		IdleHeartbeat: beatEvery, InactiveThreshold: 10 * time.Second, MemoryStorage: true, Replicas: 1,
	}
	rolled := info.State.LastSeq < w.last // another table: restored from a backup
	if w.reading = w.reading || rolled || time.Since(w.heard) > deletedFor/2; w.reading {
		cfg.DeliverPolicy = jetstream.DeliverLastPerSubjectPolicy
		w.start, w.wanted, w.seen, w.base = info.State.LastSeq, nil, make(map[string]uint64), 0
		if rolled {
			w.last = 0
		} else if w.told {
			w.base = w.last
		}
	} else {
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, w.last+1
	}
	f := &feed{in: make(chan *nats.Msg, watchRoom), done: make(chan struct{}), lost: w.t.b.reconnected()}
	f.sub, err = w.t.b.nc.Subscribe(cfg.DeliverSubject, func(m *nats.Msg) {
		select {
		case f.in <- m:
		case <-f.done:
		}
	})
	if err != nil {
		return err
	}
	c, err := w.t.b.js.CreatePushConsumer(ctx, w.t.stream, cfg)
	if err != nil {
		f.close()
		return err
	}
	w.sub, w.cons, w.heard, w.stuck = f, 0, time.Now(), time.Now()
	w.due = c.CachedInfo().NumPending
	if w.reading && w.due == 0 {
		if err := w.mark(ctx); err != nil {
			w.again()
			return err
		}
	}
	return nil
}

// again drops the feed: Next begins another one.
func (w *Watch) again() {
	if w.sub != nil {
		w.sub.close()
		w.sub = nil
	}
}

// Next waits for the next change. Its error is Cancelled or Deadline by ctx,
// Unavailable when the bus was closed, or Damaged if what is there cannot all
// be read. One caller at a time.
func (w *Watch) Next(ctx context.Context) (Change, error) {
	beat := time.NewTimer(beatLost)
	defer beat.Stop()
	for {
		if len(w.out) > 0 {
			c := w.out[0]
			w.out = w.out[1:]
			return c, nil
		}
		if w.sub == nil {
			if err := w.resume(ctx); err != nil {
				return Change{}, err
			}
			continue
		}
		beat.Reset(beatLost)
		select {
		case <-ctx.Done():
			return Change{}, ctxError(ctx, "watch table "+w.t.name)
		case <-w.t.b.closed:
			return Change{}, errClosed()
		case m := <-w.sub.in:
			if err := w.take(ctx, m); err != nil {
				return Change{}, err
			}
		case <-w.sub.lost:
			w.again()
		case <-beat.C:
			w.again()
		}
	}
}

// resume begins another feed, after a pause if the last attempt failed.
func (w *Watch) resume(ctx context.Context) error {
	if w.delay > 0 {
		select {
		case <-ctx.Done():
			return ctxError(ctx, "watch table "+w.t.name)
		case <-w.t.b.closed:
			return errClosed()
		case <-time.After(w.delay):
		}
	}
	err := w.begin(ctx)
	if err == nil {
		w.delay = 0
		return nil
	}
	if ctx.Err() != nil {
		return ctxError(ctx, "watch table "+w.t.name)
	}
	if lode.KindOf(err) == lode.Damaged {
		return err
	}
	w.delay = min(max(2*w.delay, firstPause), lastPause)
	return nil
}

// take deals with one message of the feed.
func (w *Watch) take(ctx context.Context, m *nats.Msg) error {
	w.heard = time.Now()
	if m.Header.Get("Status") != "" { // a heartbeat says up to where it has delivered
		if n, err := strconv.ParseUint(m.Header.Get("Nats-Last-Consumer"), 10, 64); err == nil && n != w.cons {
			w.again()
		} else if w.reading && time.Since(w.stuck) > stallWait {
			return w.unstick(ctx)
		}
		return nil
	}
	meta, err := m.Metadata()
	if err != nil || meta.Sequence.Consumer != w.cons+1 {
		w.again() // something was dropped
		return nil
	}
	w.cons = meta.Sequence.Consumer
	w.stuck = w.heard
	w.last = max(w.last, meta.Sequence.Stream)
	w.change(m, meta.Sequence.Stream)
	if !w.reading {
		return nil
	}
	if w.wanted == nil && (meta.NumPending == 0 || meta.Sequence.Stream >= w.start) {
		mctx, cancel := context.WithTimeout(ctx, tryWait)
		defer cancel()
		if err := w.mark(mctx); err != nil {
			w.again()
		}
	} else if w.wanted != nil && len(w.wanted) == 0 {
		w.synced()
	}
	return nil
}

// change notes what came for a key, and delivers it if it is news.
func (w *Watch) change(m *nats.Msg, rev uint64) {
	k := strings.TrimPrefix(m.Subject, tableSubject(w.t.name, ""))
	if w.reading {
		w.seen[k] = rev
		delete(w.wanted, k)
	}
	was, there := w.known[k]
	key, ok := unescapeKey(k)
	if !ok || !strings.HasPrefix(key, w.prefix) || there && was == rev || rev <= w.base {
		return
	}
	c := Change{Op: Set, Entry: Entry{Key: key, Value: m.Data, Rev: rev}}
	if isMark(m.Header) {
		// A mark of something deleted long ago is no news to who never saw it.
		if !there && w.reading {
			return
		}
		c.Op, c.Value = Deleted, nil
		delete(w.known, k)
	} else {
		w.known[k] = rev
	}
	w.out = append(w.out, c)
}

// mark is called when all that was there seems to have come. The deliveries
// that were pending are no proof when entries are written again meanwhile: if
// anything was, the keys that there are tell what is still to come.
func (w *Watch) mark(ctx context.Context) error {
	info, err := w.t.st.Info(ctx)
	if err == nil && (info.State.LastSeq != w.start || w.t.b.replicas() > 1 || uint64(len(w.seen)) < w.due) {
		info, err = w.t.st.Info(ctx, jetstream.WithSubjectFilter(w.filter))
	}
	if err != nil {
		return err
	}
	w.wanted = make(map[string]bool)
	for subject := range info.State.Subjects {
		if key := strings.TrimPrefix(subject, tableSubject(w.t.name, "")); w.seen[key] == 0 {
			w.wanted[key] = true
		}
	}
	if len(w.wanted) == 0 {
		w.synced()
	}
	return nil
}

// synced ends the reading of everything: what was delivered earlier and did
// not come again is no more.
func (w *Watch) synced() {
	for k := range w.known {
		if w.seen[k] != 0 {
			continue
		}
		delete(w.known, k)
		if key, ok := unescapeKey(k); ok {
			w.out = append(w.out, Change{Op: Deleted, Entry: Entry{Key: key, Rev: w.last}})
		}
	}
	w.reading, w.seen, w.wanted, w.base = false, nil, nil, 0
	if !w.told {
		w.told = true
		w.out = append(w.out, Change{Op: Synced})
	}
}

// unstick is for a reading that stands still: the server waits for ever behind
// an entry that it cannot read. If all can be read, what it waits for has gone
// by itself.
func (w *Watch) unstick(ctx context.Context) error {
	vctx, cancel := bounded(ctx)
	defer cancel()
	if err := w.t.verify(vctx, w.prefix); lode.KindOf(err) == lode.Damaged {
		return err
	}
	w.again()
	return nil
}

// Close ends the watch. It may be called again.
func (w *Watch) Close() error {
	w.again()
	return nil
}
