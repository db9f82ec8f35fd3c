package journal

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"lode"
)

// memory is a log in memory that a test can make fail.
type memory struct {
	mu   sync.Mutex
	fail func(entries []Entry) error
	msgs [][]Entry
}

func (l *memory) Commit(ctx context.Context, entries ...[]byte) (uint64, error) {
	var es []Entry
	for _, b := range entries {
		e, err := Decode(append([]byte(nil), b...))
		if err != nil {
			return 0, err
		}
		es = append(es, e)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail != nil {
		if err := l.fail(es); err != nil {
			return 0, err
		}
	}
	if ctx.Err() != nil {
		return 0, lode.Errorf(lode.Unavailable, "closed")
	}
	l.msgs = append(l.msgs, es)
	return uint64(len(l.msgs)), nil
}

func (l *memory) ids() (out []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range l.msgs {
		for i := range m {
			out = append(out, m[i].ID)
		}
	}
	return out
}

var _ Log = (*memory)(nil)

func turn(p int, id string) *Entry {
	return &Entry{Op: Turn, Epoch: 1, Partition: Partition{"ns", "k", p}, ID: id}
}

// TestWriterOrder (S4, S9): entries are stored and applied in the order of
// appends, and each is applied before it is acknowledged.
func TestWriterOrder(t *testing.T) {
	l := &memory{}
	var mu sync.Mutex
	var applied []string
	w := NewWriter(l, func(pos uint64, es []*Entry) error {
		mu.Lock()
		defer mu.Unlock()
		for _, e := range es {
			applied = append(applied, e.ID)
		}
		return nil
	}, func(error) {}, func(error) {})
	defer w.Close()
	var all sync.WaitGroup
	var order sync.Mutex
	var want, done []string
	for g := range 8 {
		all.Go(func() {
			for i := range 200 {
				id := fmt.Sprint(g, ".", i)
				acked := make(chan struct{})
				order.Lock()
				want = append(want, id)
				w.Append(turn(g, id), func(pos uint64, err error) {
					mu.Lock()
					if err != nil || !slices.Contains(applied[max(0, len(applied)-2000):], id) {
						t.Errorf("%s: %v, or it was acknowledged before it was applied", id, err)
					}
					done = append(done, id)
					mu.Unlock()
					close(acked)
				})
				order.Unlock()
				if i%3 == 0 {
					<-acked
				}
			}
		})
	}
	all.Wait()
	last := make(chan struct{})
	w.Barrier(func(_ uint64, err error) { close(last) })
	<-last
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(want, applied) || !slices.Equal(want, done) || len(want) != 1600 {
		t.Errorf("%d appended, %d applied, %d done, or in another order", len(want), len(applied), len(done))
	}
	if n, _ := w.Stats(); n >= 1600 {
		t.Errorf("%d messages: nothing was packed", n)
	}
}

// TestWriterRefused: a message without room fails with what its partitions
// withdraw; everything else is written, in order.
func TestWriterRefused(t *testing.T) {
	for _, kind := range []lode.Kind{lode.Full, lode.TooLarge} {
		l := &memory{}
		refuse, refusing := make(chan struct{}), make(chan struct{})
		var once sync.Once
		l.fail = func(es []Entry) error {
			bad := false
			for i := range es {
				bad = bad || es[i].ID == "bad"
			}
			if !bad {
				return nil
			}
			once.Do(func() { close(refusing) })
			<-refuse
			return lode.Errorf(kind, "no room")
		}
		var w *Writer
		ready := make(chan struct{})
		w = NewWriter(l, func(uint64, []*Entry) error { return nil }, func(err error) {
			<-ready
			if lode.KindOf(err) != kind {
				t.Error(err)
			}
			w.Withdraw(Partition{"ns", "k", 1})
		}, func(err error) { t.Error("the writer has ended:", err) })
		close(ready)
		var mu sync.Mutex
		got := map[string]lode.Kind{}
		var all sync.WaitGroup
		app := func(e *Entry) {
			all.Add(1)
			w.Append(e, func(_ uint64, err error) {
				mu.Lock()
				got[e.ID] = lode.KindOf(err)
				mu.Unlock()
				all.Done()
			})
		}
		app(turn(1, "bad"))
		<-refusing
		app(turn(1, "rests on it"))
		app(turn(2, "another's"))
		app(&Entry{Op: Snap, Partition: Partition{"ns", "k", 1}})
		close(refuse)
		all.Wait()
		app(turn(1, "after"))
		all.Wait()
		w.Close()
		if got["bad"] != kind || got["rests on it"] != kind || got["another's"] != "" || got["after"] != "" {
			t.Errorf("%v", got)
		}
		if ids := l.ids(); !slices.Equal(ids, []string{"another's", "", "after"}) {
			t.Errorf("stored: %q", ids)
		}
	}
}

// TestWriterEnds: another writer, a failure to apply and Close end a writer; no
// append is left without an answer, and none of them calls back on its own
// stack.
func TestWriterEnds(t *testing.T) {
	for _, how := range []string{"conflict", "apply", "close"} {
		l := &memory{}
		ended := make(chan error, 2)
		w := NewWriter(l, func(pos uint64, _ []*Entry) error {
			if how == "apply" {
				return lode.Errorf(lode.Damaged, "it cannot be applied")
			}
			return nil
		}, func(error) {}, func(err error) { ended <- err })
		if how == "conflict" {
			l.fail = func([]Entry) error { return lode.Errorf(lode.Conflict, "another has it") }
		}
		var all sync.WaitGroup
		var mu sync.Mutex // as a partition has it
		for i := range 50 {
			mu.Lock()
			all.Add(1)
			w.Append(turn(0, fmt.Sprint(i)), func(_ uint64, err error) {
				mu.Lock()
				defer mu.Unlock()
				if err == nil && how != "close" {
					t.Error("acknowledged")
				}
				all.Done()
			})
			mu.Unlock()
			if how == "close" && i == 25 {
				w.Close()
			}
		}
		all.Wait()
		if how != "close" {
			if err := <-ended; err == nil {
				t.Error(how, "ended with no error")
			}
		}
		w.Close()
		w.Close()
		if len(ended) > 0 {
			t.Error(how, "ended twice:", <-ended)
		}
	}
}

// TestWriterTooLarge: an entry over the bound is refused alone.
func TestWriterTooLarge(t *testing.T) {
	l := &memory{}
	w := NewWriter(l, func(uint64, []*Entry) error { return nil }, func(err error) { t.Error(err) }, func(err error) { t.Error(err) })
	defer w.Close()
	errs := make(chan error, 2)
	e := turn(1, "large")
	e.Changes = []Change{{Kind: Set, Key: []byte("k"), Value: make([]byte, MaxEntry)}}
	w.Append(e, func(_ uint64, err error) { errs <- err })
	if err := <-errs; lode.KindOf(err) != lode.TooLarge {
		t.Error(err)
	}
	e = turn(1, "just")
	e.Changes = []Change{{Kind: Set, Key: []byte("k"), Value: make([]byte, MaxEntry-100)}}
	w.Append(e, func(_ uint64, err error) { errs <- err })
	w.Append(turn(1, "small"), func(_ uint64, err error) { errs <- err })
	if err := cmp(<-errs, <-errs); err != nil {
		t.Error(err)
	}
	if w.Waiting() != 0 {
		t.Errorf("%d bytes wait", w.Waiting())
	}
}

func cmp(a, b error) error {
	if a != nil {
		return a
	}
	return b
}
