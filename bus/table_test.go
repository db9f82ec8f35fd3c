package bus

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lode"
)

// TestWatchOrder has writers beside a watcher that began among them: it gets
// everything that was there, one mark, and then each key's values in order.
func TestWatchOrder(t *testing.T) { everywhere(t, testWatchOrder) }

func testWatchOrder(t *testing.T, b *Bus) {
	ctx := t.Context()
	tab := must(b.Table(ctx, "t"))(t)
	for i := range 50 {
		must(tab.Put(ctx, fmt.Sprintf("a/%d", i), []byte("0")))(t)
	}
	must(tab.Put(ctx, "b/1", []byte("0")))(t)
	if err := tab.Delete(ctx, "a/7", 0); err != nil {
		t.Fatal(err)
	}
	var writers sync.WaitGroup
	for w := range 2 {
		writers.Go(func() {
			for n := range 50 {
				if _, err := tab.Put(ctx, fmt.Sprintf("a/%d", w), fmt.Appendf(nil, "%03d", n)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	w := must(tab.Watch(ctx, "a/"))(t)
	defer w.Close()
	synced, last, rev := false, map[string]string{}, uint64(0)
	for last["a/0"] != "049" || last["a/1"] != "049" || !synced {
		c := must(w.Next(ctx))(t)
		switch c.Op {
		case Synced:
			if synced || len(last) != 49 {
				t.Fatalf("synced %v with %d keys", synced, len(last))
			}
			synced = true
		case Deleted:
			t.Fatalf("%s was deleted before the watch", c.Key)
		case Set:
			if c.Rev <= rev || string(c.Value) <= last[c.Key] && last[c.Key] != "" {
				t.Fatalf("%s: %q at %d after %q at %d", c.Key, c.Value, c.Rev, last[c.Key], rev)
			}
			rev, last[c.Key] = c.Rev, string(c.Value)
		}
	}
	writers.Wait()
	if err := tab.Delete(ctx, "a/3", 0); err != nil {
		t.Fatal(err)
	}
	if c := must(w.Next(ctx))(t); c.Op != Deleted || c.Key != "a/3" {
		t.Fatalf("%+v", c)
	}
	short, cancel := context.WithCancel(ctx)
	cancel()
	_, err := w.Next(short)
	wantKind(t, err, lode.Cancelled)
	w.Close()
	w.Close()
}

func TestWatchOfNothing(t *testing.T) { everywhere(t, testWatchOfNothing) }

func testWatchOfNothing(t *testing.T, b *Bus) {
	tab := must(b.Table(t.Context(), "t"))(t)
	w := must(tab.Watch(t.Context(), "x/"))(t)
	if c := must(w.Next(t.Context()))(t); c.Op != Synced {
		t.Fatalf("%+v", c)
	}
	b.Close()
	_, err := w.Next(t.Context())
	wantKind(t, err, lode.Unavailable)
	_, err = tab.Put(t.Context(), "k", nil)
	wantKind(t, err, lode.Unavailable)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestConcurrentSwaps counts with compare-and-swap from many sides.
func TestConcurrentSwaps(t *testing.T) { everywhere(t, testConcurrentSwaps) }

func testConcurrentSwaps(t *testing.T, b *Bus) {
	ctx := t.Context()
	tab := must(b.Table(ctx, "t"))(t)
	var won, unknown, created atomic.Int64 // unknown: a machine that is busy may answer too late
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if _, err := tab.Create(ctx, "n", nil); err == nil {
				created.Add(1)
			} else if lode.KindOf(err) != lode.Conflict {
				t.Error(err)
			}
			for range 25 {
				e, _, err := tab.Get(ctx, "n")
				if err != nil {
					t.Error(err)
					return
				}
				_, err = tab.Update(ctx, "n", append(e.Value, 'x'), e.Rev)
				switch lode.KindOf(err) {
				case "":
					won.Add(1)
				case lode.Unavailable:
					unknown.Add(1)
				case lode.Precondition:
				default:
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	e, _, err := tab.Get(ctx, "n")
	n := int64(len(e.Value))
	if err != nil || created.Load() != 1 || n < won.Load() || n > won.Load()+unknown.Load() || won.Load() == 0 {
		t.Fatalf("%d swaps won, the value counts %d, created %d (%v)", won.Load(), len(e.Value), created.Load(), err)
	}
}

func TestTenThousandKeys(t *testing.T) {
	t.Parallel()
	dir, ctx := t.TempDir(), t.Context()
	b := must(Open(ctx, Config{Dir: dir, unsynced: true}))(t)
	tab := must(b.Table(ctx, "many"))(t)
	for i := range 10_000 {
		must(tab.Put(ctx, fmt.Sprintf("f/%05d", i), bytes.Repeat([]byte("v"), 200)))(t)
	}
	b.Close()
	start := time.Now()
	tab = must(open(t, dir).Table(ctx, "many"))(t)
	t.Log("10,000 keys: open after", time.Since(start))
	if got := must(tab.List(ctx, ""))(t); len(got) != 10_000 || got[9_999].Key != "f/09999" {
		t.Fatalf("%d entries", len(got))
	}
	t.Log("10,000 keys: listed after", time.Since(start))
}

// TestDamagedTable flips a byte of a value: it must not be given out as good.
func TestDamagedTable(t *testing.T) {
	t.Parallel()
	dir, ctx := t.TempDir(), t.Context()
	b := open(t, dir)
	tab := must(b.Table(ctx, "t"))(t)
	for i := range 10 {
		must(tab.Put(ctx, fmt.Sprint(i), fmt.Appendf(nil, "value %d", i)))(t)
	}
	b.Close()
	path := blocks(t, dir, "KV_t")[0]
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[bytes.Index(data, []byte("value 4"))+6] = '9'
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	tab = must(open(t, dir).Table(ctx, "t"))(t)
	for i := range 10 {
		e, ok, err := tab.Get(ctx, fmt.Sprint(i))
		if i == 4 {
			wantKind(t, err, lode.Damaged)
		} else if !ok || err != nil || string(e.Value) != fmt.Sprintf("value %d", i) {
			t.Fatalf("%d is %q (%v)", i, e.Value, err)
		}
	}
	_, err = tab.List(ctx, "")
	wantKind(t, err, lode.Damaged)
}

func TestLockedFolder(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir)
	_, err := Open(t.Context(), Config{Dir: dir})
	wantKind(t, err, lode.Conflict)
	b.Close()
	b.Close()
	open(t, dir)
	_, err = Open(t.Context(), Config{})
	wantKind(t, err, lode.Invalid)
}
