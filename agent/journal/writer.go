package journal

import (
	"context"
	"sync"

	"lode"
)

// Log keeps messages; bus.Log is one. Commit stores entries as one message
// behind the last, durably, and returns its position. It gives up only when
// ctx ends. Conflict: another writer has taken the log. Full or TooLarge:
// nothing was stored. It is called by one goroutine.
type Log interface {
	Commit(ctx context.Context, entries ...[]byte) (uint64, error)
}

// maxMessage is how many bytes of entries go into one message: a log takes
// 4 MiB with its own bytes.
const maxMessage = 4<<20 - 64<<10

// MaxEntry is the most bytes that an entry may have.
const MaxEntry = maxMessage - 64

// Applier is told of every message that is durable, in order, before those who
// wait for its entries are. One goroutine calls it. An error ends the Writer.
type Applier func(pos uint64, entries []*Entry) error

// Writer packs the entries of many goroutines into the messages of one log:
// one message is under way, and what comes meanwhile goes with the next.
//
//	open -> ended   the log was taken by another writer, or Close was called
//
// A message that is refused because there is no room fails. Refused is called
// then, and nothing is written before it has returned: what was appended behind
// that message and rests on what is lost must be withdrawn there.
type Writer struct {
	log     Log
	apply   Applier
	refused func(error)
	ended   func(error)
	ctx     context.Context
	stop    context.CancelFunc
	wake    chan struct{}
	batches chan batch
	work    sync.WaitGroup

	mu      sync.Mutex
	items   []item
	spare   []item
	bytes   int    // of items
	gone    []item // withdrawn, and not yet told
	err     error
	written uint64 // messages
	entries uint64
}

type item struct {
	e    *Entry // nil: a barrier
	b    []byte
	done func(pos uint64, err error)
}

type batch struct {
	pos     uint64
	items   []item
	err     error
	settled chan struct{} // refused: closed when what rests on it was withdrawn
}

// NewWriter begins to write to log. apply, refused and ended must not wait for
// an Append. ended is called once, if the log was taken or apply failed.
func NewWriter(log Log, apply Applier, refused, ended func(error)) *Writer {
	w := &Writer{log: log, apply: apply, refused: refused, ended: ended, wake: make(chan struct{}, 1), batches: make(chan batch, 16)}
	w.ctx, w.stop = context.WithCancel(context.Background())
	w.work.Go(w.commits)
	w.work.Go(w.applies)
	return w
}

// Append writes e down, and calls done when it is durable and applied, or when
// that is known to have failed: Conflict, Full, TooLarge; Unavailable at
// Close, when the outcome is not known. done is called by another goroutine,
// in the order of appends unless it fails at once; it must not block, and may
// be nil. e must not be changed afterwards.
func (w *Writer) Append(e *Entry, done func(pos uint64, err error)) {
	b := e.Append(make([]byte, 0, 256))
	if len(b) > MaxEntry {
		if done != nil {
			go done(0, lode.Errorf(lode.TooLarge, "a turn changes %d bytes; at most %d", len(b), MaxEntry).
				WithHint("write less in one turn, or values over 64 KiB, which are kept apart"))
		}
		return
	}
	w.add(item{e, b, done})
}

// Barrier calls done when a message that was sent after the call is durable:
// then this writer was still the only one.
func (w *Writer) Barrier(done func(pos uint64, err error)) { w.add(item{done: done}) }

func (w *Writer) add(i item) {
	w.mu.Lock()
	if err := w.err; err != nil {
		w.mu.Unlock()
		if i.done != nil {
			go i.done(0, err) // who appends may hold what done needs
		}
		return
	}
	w.items = append(w.items, i)
	w.bytes += len(i.b)
	first := len(w.items) == 1
	w.mu.Unlock()
	if first {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// Waiting is how many bytes were appended and are not on their way.
func (w *Writer) Waiting() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.bytes
}

// Stats are how many messages and entries were written.
func (w *Writer) Stats() (messages, entries uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.written, w.entries
}

// take is what goes into the next message: as much as fits, in order.
func (w *Writer) take() []item {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, size := 0, 0
	for n < len(w.items) && (n == 0 || size+len(w.items[n].b)+8 <= maxMessage) {
		size += len(w.items[n].b) + 8
		n++
	}
	if n == len(w.items) {
		out := w.items
		w.items, w.spare = w.spare[:0], nil
		w.bytes = 0
		return out
	}
	out := append([]item(nil), w.items[:n]...)
	w.items = append(w.items[:0], w.items[n:]...)
	for _, i := range out {
		w.bytes -= len(i.b)
	}
	return out
}

func (w *Writer) commits() {
	defer close(w.batches)
	var parts [][]byte
	for {
		items := w.take()
		if len(items) == 0 {
			select {
			case <-w.wake:
				continue
			case <-w.ctx.Done():
				w.fail(w.closing())
				return
			}
		}
		parts = parts[:0]
		for _, i := range items {
			if i.b != nil {
				parts = append(parts, i.b)
			}
		}
		pos, err := w.log.Commit(w.ctx, parts...)
		switch kind := lode.KindOf(err); {
		case err == nil:
			w.batches <- batch{pos: pos, items: items}
		case kind == lode.Full || kind == lode.TooLarge:
			settled := make(chan struct{})
			w.batches <- batch{items: items, err: err, settled: settled}
			<-settled
		default:
			w.batches <- batch{items: items, err: err}
			w.fail(err)
			if w.ctx.Err() == nil {
				w.ended(err)
			}
			return
		}
	}
}

// Withdraw takes back the turns and notes of a partition that are not on their
// way: they fail with the refusal that is being dealt with. It may be called in
// refused only, by whoever keeps others from appending to the partition
// meanwhile.
func (w *Writer) Withdraw(p Partition) {
	w.mu.Lock()
	defer w.mu.Unlock()
	kept := w.items[:0]
	for _, i := range w.items {
		if i.e != nil && i.e.Partition == p && (i.e.Op == Turn || i.e.Op == Note) {
			w.gone = append(w.gone, i)
			w.bytes -= len(i.b)
			continue
		}
		kept = append(kept, i)
	}
	clear(w.items[len(kept):])
	w.items = kept
}

// withdrawn takes what was withdrawn.
func (w *Writer) withdrawn() []item {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.gone
	w.gone = nil
	return out
}

// rest takes everything that was appended so far.
func (w *Writer) rest() []item {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.items
	w.items, w.bytes = nil, 0
	return out
}

// fail ends the Writer.
func (w *Writer) fail(err error) {
	w.mu.Lock()
	if w.err == nil {
		w.err = err
	}
	err = w.err
	w.mu.Unlock()
	w.batches <- batch{items: w.rest(), err: err}
}

func (w *Writer) closing() error {
	return lode.Errorf(lode.Unavailable, "this node is closing its journal: the outcome is not known")
}

func (w *Writer) applies() {
	var es []*Entry
	var broken error
	for b := range w.batches {
		err := b.err
		if broken != nil {
			err = broken
		}
		if err == nil {
			es = es[:0]
			for i := range b.items {
				if b.items[i].e != nil {
					es = append(es, b.items[i].e)
				}
			}
			if err = w.apply(b.pos, es); err != nil {
				broken = err
				w.mu.Lock()
				w.err = err
				w.mu.Unlock()
				w.stop()
				w.ended(err)
			}
		} else if k := lode.KindOf(err); broken == nil && (k == lode.Full || k == lode.TooLarge) {
			w.refused(err)
		}
		tell(b.items, b.pos, err)
		if b.settled != nil {
			tell(w.withdrawn(), 0, err)
			close(b.settled)
		}
		w.recycle(b.items, len(es), err == nil)
	}
}

// tell calls those who wait for items.
func tell(items []item, pos uint64, err error) {
	for i := range items {
		if d := items[i].done; d != nil {
			d(pos, err)
		}
	}
}

// recycle keeps the memory of a batch for the next one.
func (w *Writer) recycle(items []item, entries int, ok bool) {
	clear(items)
	w.mu.Lock()
	defer w.mu.Unlock()
	if ok {
		w.written++
		w.entries += uint64(entries)
	}
	if w.spare == nil && cap(items) <= 4096 {
		w.spare = items[:0]
	}
}

// Close ends the Writer: what is under way fails, its outcome is not known. It
// may be called again.
func (w *Writer) Close() {
	w.stop()
	w.work.Wait()
}
