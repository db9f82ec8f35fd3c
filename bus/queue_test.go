package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lode"
)

func openQueues(t testing.TB, b *Bus, cfg QueuesConfig) *Queues {
	t.Helper()
	return must(b.OpenQueues(t.Context(), "work", cfg))(t)
}

func pull(t testing.TB, s *Queues, queue string, n int) []*Delivery {
	t.Helper()
	return must(s.Pull(t.Context(), queue, n, 0))(t)
}

func ids(ds []*Delivery) []string {
	var out []string
	for _, d := range ds {
		out = append(out, d.ID)
	}
	return out
}

func TestQueueOrderAndAcknowledgement(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	b := open(t, dir)
	s := openQueues(t, b, QueuesConfig{})
	n := must(s.Put(ctx, Item{Queue: "q", ID: "a", Body: []byte("A")}, Item{Queue: "q", ID: "b", Priority: 1}, Item{Queue: "other", ID: "a"},
		Item{Queue: "q", ID: "a", Body: []byte("again")}))(t)
	if n != 3 {
		t.Fatalf("%d new, want 3", n)
	}
	ds := pull(t, s, "q", 10)
	if got := ids(ds); !slices.Equal(got, []string{"b", "a"}) || string(ds[1].Body) != "A" || ds[1].Deliveries != 1 {
		t.Fatalf("pulled %v, %+v", got, ds[1])
	}
	if len(pull(t, s, "q", 10)) != 0 {
		t.Fatal("a taken item was pulled")
	}
	if err := ds[0].Ack(ctx, Item{Queue: "next", ID: "after-b", Body: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	if err := ds[1].Nak(ctx, 0, "not today"); err != nil {
		t.Fatal(err)
	}
	wantKind(t, ds[1].Nak(ctx, 0, ""), lode.Precondition)
	wantKind(t, ds[1].Extend(time.Minute), lode.Precondition)
	again := must(s.Pull(ctx, "q", 1, 5*time.Second))(t)
	if len(again) != 1 || again[0].Deliveries != 2 || again[0].Note != "not today" {
		t.Fatalf("pulled %+v", again)
	}
	if n := must(s.Put(ctx, Item{Queue: "q", ID: "b"}))(t); n != 0 {
		t.Fatal("the id of an item that just ended was taken again")
	}
	b.Close()

	b = open(t, dir)
	s = openQueues(t, b, QueuesConfig{})
	if n := must(s.Put(ctx, Item{Queue: "q", ID: "b"}))(t); n != 0 {
		t.Fatal("after a restart the id of an item that just ended was taken again")
	}
	ds = pull(t, s, "q", 10)
	if len(ds) != 1 || ds[0].ID != "a" || string(ds[0].Body) != "A" || ds[0].Deliveries < 2 || ds[0].Note != "not today" {
		t.Fatalf("after a restart: %+v", ds)
	}
	if got := s.Names(); !slices.Equal(got, []string{"next", "other", "q"}) {
		t.Fatalf("queues %v", got)
	}
	if err := ds[0].Ack(ctx); err != nil {
		t.Fatal(err)
	}
	if err := ds[0].Ack(ctx, Item{Queue: "q", ID: "late"}); err != nil {
		t.Fatal(err)
	}
	if d := s.Depth("q"); d != (Depth{}) {
		t.Fatalf("depth %+v: what a second Ack puts must not come", d)
	}
}

func TestQueueDelay(t *testing.T) {
	ctx := t.Context()
	s := openQueues(t, open(t, t.TempDir()), QueuesConfig{})
	due := time.Now().Add(300*time.Millisecond + 100*time.Microsecond)
	must(s.Put(ctx, Item{Queue: "q", ID: "later", Due: due}, Item{Queue: "q", ID: "never", Due: due.Add(time.Hour)}))(t)
	if d := s.Depth("q"); d.Waiting != 2 || d.Oldest.IsZero() {
		t.Fatalf("depth %+v", d)
	}
	if len(pull(t, s, "q", 1)) != 0 {
		t.Fatal("pulled before it was due")
	}
	ds := must(s.Pull(ctx, "q", 2, 20*time.Second))(t)
	if now := time.Now(); now.Before(due) || len(ds) != 1 || ds[0].ID != "later" {
		t.Fatalf("at %s, due %s: %v", now, due, ids(ds))
	}
	if err := ds[0].Nak(ctx, time.Hour, ""); err != nil {
		t.Fatal(err)
	}
	if d := s.Depth("q"); d.Waiting != 2 {
		t.Fatalf("depth %+v", d)
	}
}

func TestQueueLapse(t *testing.T) {
	ctx := t.Context()
	s := openQueues(t, open(t, t.TempDir()), QueuesConfig{})
	s.Configure("q", QueueConfig{Visible: 50 * time.Millisecond})
	must(s.Put(ctx, Item{Queue: "q", ID: "a"}))(t)
	first := pull(t, s, "q", 1)[0]
	second := must(s.Pull(ctx, "q", 1, 20*time.Second))(t)[0]
	if second.Deliveries != 2 {
		t.Fatalf("%d deliveries", second.Deliveries)
	}
	wantKind(t, first.Extend(time.Hour), lode.Precondition)
	if err := second.Extend(time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := first.Ack(ctx); err != nil { // late, but the work is done
		t.Fatal(err)
	}
	if d := s.Depth("q"); d.Taken+d.Ready != 0 {
		t.Fatalf("depth %+v", d)
	}
}

func TestQueueListRemovePurge(t *testing.T) { everywhere(t, testQueueListRemovePurge) }

func testQueueListRemovePurge(t *testing.T, b *Bus) {
	ctx := t.Context()
	s := openQueues(t, b, QueuesConfig{Memory: 1}) // bodies on disk
	var items []Item
	for i := range 30 {
		items = append(items, Item{Queue: "q", ID: fmt.Sprint(i), Body: fmt.Appendf(nil, "body %d", i)})
	}
	must(s.Put(ctx, items...))(t)
	if _, err := s.Remove(ctx, "q", "3"); err != nil {
		t.Fatal(err)
	}
	_, err := s.Remove(ctx, "q", "3")
	wantKind(t, err, lode.NotFound)
	_, err = s.Get(ctx, "q", "3")
	wantKind(t, err, lode.NotFound)
	if it := must(s.Get(ctx, "q", "17"))(t); string(it.Body) != "body 17" || it.State != Ready {
		t.Fatalf("%+v", it)
	}
	page := s.List("q", 0, 5)
	if len(page) != 5 || page[3].ID != "4" || page[0].Body != nil {
		t.Fatalf("%+v", page)
	}
	rest := s.List("q", page[4].Number, 100)
	if len(rest) != 24 || rest[0].ID != "6" {
		t.Fatalf("%d more, first %s", len(rest), rest[0].ID)
	}
	for i, d := range pull(t, s, "q", 4) {
		if want := "body " + []string{"0", "1", "2", "4"}[i]; string(d.Body) != want {
			t.Fatalf("body %q, want %q", d.Body, want)
		}
	}
	if n := must(s.Purge(ctx, "q"))(t); n != 29 || s.Depth("q") != (Depth{}) {
		t.Fatalf("purged %d, left %+v", n, s.Depth("q"))
	}
}

func TestQueueLimits(t *testing.T) {
	ctx := t.Context()
	s := openQueues(t, open(t, t.TempDir()), QueuesConfig{})
	s.Configure("q", QueueConfig{Max: 2})
	must(s.Put(ctx, Item{Queue: "q", ID: "1"}))(t)
	_, err := s.Put(ctx, Item{Queue: "q", ID: "2"}, Item{Queue: "q", ID: "3"})
	wantKind(t, err, lode.Overloaded)
	if n := must(s.Put(ctx, Item{Queue: "q", ID: "2"}))(t); n != 1 {
		t.Fatal("a refused put kept its id")
	}
	_, err = s.Put(ctx, Item{Queue: "", ID: "2"})
	wantKind(t, err, lode.Invalid)
	_, err = s.Put(ctx, Item{Queue: "x", Body: make([]byte, MaxAppend)})
	wantKind(t, err, lode.TooLarge)
}

// TestQueueCleaning puts and ends far more than the slack and expects the log
// to stay small and what is left to be whole, also after a restart.
func TestQueueCleaning(t *testing.T) {
	t.Parallel()
	dir, ctx := t.TempDir(), t.Context()
	b := open(t, dir)
	s := openQueues(t, b, QueuesConfig{Slack: 256 << 10, Memory: 64 << 10})
	body := func(i int) []byte { return fmt.Appendf(nil, "%d %s", i, make([]byte, 8<<10)) }
	for i := range 600 {
		must(s.Put(ctx, Item{Queue: "q", ID: fmt.Sprint(i), Body: body(i), Remember: time.Hour}))(t)
		if i%20 != 7 {
			if _, err := s.Remove(ctx, "q", fmt.Sprint(i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if used := b.Stats().Bytes; used > 2<<20 {
		t.Fatalf("the log has %d bytes", used)
	}
	for round := range 2 {
		if d := s.Depth("q"); d.Ready != 30 {
			t.Fatalf("round %d: depth %+v", round, d)
		}
		if n := must(s.Put(ctx, Item{Queue: "q", ID: "0"}, Item{Queue: "q", ID: "7"}))(t); n != 0 {
			t.Fatal("an id was forgotten by cleaning")
		}
		for i, d := range pull(t, s, "q", 100) {
			if want := 20*i + 7; d.ID != fmt.Sprint(want) || string(d.Body) != string(body(want)) {
				t.Fatalf("item %d is %s with %d bytes", i, d.ID, len(d.Body))
			}
		}
		b.Close()
		b = open(t, dir)
		s = openQueues(t, b, QueuesConfig{Slack: 256 << 10, Memory: 64 << 10})
	}
}

// TestQueueFull fills the store and expects that what frees space still works.
func TestQueueFull(t *testing.T) {
	ctx := t.Context()
	b := must(Open(ctx, Config{Dir: t.TempDir(), MaxStore: 2 << 20}))(t)
	defer b.Close()
	s := openQueues(t, b, QueuesConfig{})
	var err error
	n := 0
	for ; n < 100 && err == nil; n++ {
		_, err = s.Put(ctx, Item{Queue: "q", ID: fmt.Sprint(n), Body: make([]byte, 100<<10)})
	}
	wantKind(t, err, lode.Full)
	tab := must(b.Table(ctx, "t"))(t)
	_, err = tab.Put(ctx, "k", make([]byte, 1<<20))
	wantKind(t, err, lode.Full)
	if d := s.Depth("q"); d.Ready != n-1 {
		t.Fatalf("%d acknowledged, depth %+v", n-1, d)
	}
	if got := must(s.Purge(ctx, "q"))(t); got != n-1 {
		t.Fatalf("purged %d of %d", got, n-1)
	}
	for {
		if _, err := s.Put(ctx, Item{Queue: "q", Body: make([]byte, 100<<10)}); err == nil {
			return
		} else if !errors.Is(err, &lode.Error{Kind: lode.Full}) || ctx.Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestReserveOfTheDisk(t *testing.T) {
	ctx := t.Context()
	b := must(Open(ctx, Config{Dir: t.TempDir(), Reserve: 1 << 60}))(t) // more than any disk has
	defer b.Close()
	tab := must(b.Table(ctx, "t"))(t)
	_, err := tab.Put(ctx, "k", []byte("v"))
	wantKind(t, err, lode.Full)
	s := openQueues(t, b, QueuesConfig{})
	_, err = s.Put(ctx, Item{Queue: "q"})
	wantKind(t, err, lode.Full)
}

// TestQueueConcurrent has many putters and pullers; each item ends once.
func TestQueueConcurrent(t *testing.T) { everywhere(t, testQueueConcurrent) }

func testQueueConcurrent(t *testing.T, b *Bus) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := openQueues(t, b, QueuesConfig{})
	const putters, each = 16, 50
	var done sync.Map
	var ended atomic.Int64
	var pullers, puts sync.WaitGroup
	for range 4 {
		pullers.Go(func() {
			for {
				ds, err := s.Pull(ctx, "q", 8, -1)
				if err != nil {
					return
				}
				for _, d := range ds {
					if _, twice := done.LoadOrStore(d.ID, true); twice {
						t.Errorf("%s came twice", d.ID)
					}
					if err := d.Ack(ctx); err != nil {
						t.Error(err)
					}
					if ended.Add(1) == putters*each {
						cancel()
					}
				}
			}
		})
	}
	for p := range putters {
		puts.Go(func() {
			for i := range each {
				if _, err := s.Put(t.Context(), Item{Queue: "q", ID: fmt.Sprintf("%d/%d", p, i), Body: []byte("x")}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	puts.Wait()
	pullers.Wait()
}

func TestQueueOfTwoWriters(t *testing.T) { everywhere(t, testQueueOfTwoWriters) }

func testQueueOfTwoWriters(t *testing.T, b *Bus) {
	ctx := t.Context()
	old := openQueues(t, b, QueuesConfig{})
	must(old.Put(ctx, Item{Queue: "q", ID: "a"}))(t)
	now := openQueues(t, b, QueuesConfig{})
	_, err := old.Put(ctx, Item{Queue: "q", ID: "b"})
	wantKind(t, err, lode.Conflict)
	_, err = old.Pull(ctx, "q", 1, 0)
	wantKind(t, err, lode.Conflict)
	if got := ids(pull(t, now, "q", 10)); !slices.Equal(got, []string{"a"}) {
		t.Fatalf("%v", got)
	}
}

func BenchmarkQueuePut64(b *testing.B) {
	bus := must(Open(b.Context(), Config{Dir: b.TempDir(), Logger: slog.New(slog.DiscardHandler)}))(b)
	defer bus.Close()
	s := openQueues(b, bus, QueuesConfig{})
	body := make([]byte, 1024)
	b.SetParallelism(32) // 64 with two cores
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := s.Put(b.Context(), Item{Queue: "q", Body: body}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "puts/s")
}

// TestQueueClose ends a set, and opens it again.
func TestQueueClose(t *testing.T) { everywhere(t, testQueueClose) }

func testQueueClose(t *testing.T, b *Bus) {
	ctx := t.Context()
	s := openQueues(t, b, QueuesConfig{})
	must(s.Put(ctx, Item{Queue: "q", ID: "1", Body: []byte("x")}))(t)
	waiting := make(chan error)
	go func() {
		_, err := s.Pull(ctx, "other", 1, -1)
		waiting <- err
	}()
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	wantKind(t, <-waiting, lode.Unavailable)
	_, err := s.Put(ctx, Item{Queue: "q", ID: "2"})
	wantKind(t, err, lode.Unavailable)
	_, err = s.Remove(ctx, "q", "1")
	wantKind(t, err, lode.Unavailable)
	again := openQueues(t, b, QueuesConfig{})
	if ds := pull(t, again, "q", 2); len(ds) != 1 || ds[0].ID != "1" {
		t.Fatal(ids(ds))
	}
}
