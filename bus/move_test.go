package bus

import (
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"lode"
)

// three is a cluster of three that grew from one.
func three(t testing.TB) (w *world, a, b, c *Bus) {
	w = newWorld(t)
	a = w.up("a", nil)
	l := a.Layout()
	b, c = w.up("b", &l), w.up("c", &l)
	if err := a.Move(t.Context(), w.members("a", "b", "c")); err != nil {
		t.Fatal(err)
	}
	return w, a, b, c
}

// load writes to a bus until stop, and keeps what was acknowledged.
type load struct {
	b     *Bus
	tab   *Table
	q     *Queues
	acked atomic.Int64
	wait  atomic.Int64 // longest wait of a write, ns
	stop  chan struct{}
	done  chan struct{}
	err   error
}

func startLoad(t testing.TB, b *Bus, name string) *load {
	l := &load{b: b, tab: must(b.Table(t.Context(), "load-"+name))(t), q: must(b.OpenQueues(t.Context(), "load-q-"+name, QueuesConfig{}))(t),
		stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(l.done)
		for i := 0; ; i++ {
			select {
			case <-l.stop:
				return
			default:
			}
			began := time.Now()
			if _, l.err = l.tab.Create(t.Context(), fmt.Sprintf("k/%06d", i), []byte("v")); l.err != nil {
				return
			}
			if _, l.err = l.q.Put(t.Context(), Item{Queue: "q", ID: fmt.Sprint(i), Body: []byte("body")}); l.err != nil {
				return
			}
			l.wait.Store(max(l.wait.Load(), int64(time.Since(began))))
			l.acked.Add(1)
		}
	}()
	return l
}

// end checks that everything acknowledged is there, once.
func (l *load) end(t testing.TB) {
	t.Helper()
	close(l.stop)
	<-l.done
	if l.err != nil {
		t.Fatal("a write failed: ", l.err)
	}
	n := int(l.acked.Load())
	all := must(l.tab.List(t.Context(), ""))(t)
	items := l.q.List("q", 0, 1_000_000)
	if len(all) != n || len(items) != n || n == 0 {
		t.Fatalf("%d were acknowledged; %d keys and %d items are there", n, len(all), len(items))
	}
	t.Logf("%d writes, the longest waited %s", n, time.Duration(l.wait.Load()).Round(time.Millisecond))
}

// TestGrow goes from one to three to five and back under load, with 10,000
// items in a queue, a watch, a log and a lease.
func TestGrow(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	w := newWorld(t)
	a := w.up("a", nil)
	l := a.Layout()
	for _, n := range []lode.NodeID{"b", "c", "d", "e"} {
		w.up(n, &l)
	}
	b := w.nodes["b"]
	q := openQueues(t, a, QueuesConfig{})
	for i := range 20 {
		items := make([]Item, 500)
		for j := range items {
			items[j] = Item{Queue: "q", ID: fmt.Sprintf("%d-%d", i, j), Body: make([]byte, 200)}
		}
		must(q.Put(ctx, items...))(t)
	}
	lease := must(must(b.Table(ctx, "leases"))(t).Acquire(ctx, "x", "b", 3*time.Second))(t) // as the keeper's
	watched := must(must(b.Table(ctx, "load-a"))(t).Watch(ctx, ""))(t)
	defer watched.Close()
	la, lb := startLoad(t, a, "a"), startLoad(t, b, "b")
	for _, names := range [][]lode.NodeID{{"a", "b", "c"}, {"a", "b", "c", "d", "e"}, {"c", "d", "e"}, {"b"}} {
		time.Sleep(300 * time.Millisecond)
		began := time.Now()
		if err := a.Move(ctx, w.members(names...)); err != nil {
			t.Fatal(names, err)
		}
		t.Log(names, "took", time.Since(began))
	}
	time.Sleep(300 * time.Millisecond)
	if !lease.Valid() {
		t.Error("the lease was lost")
	}
	la.end(t)
	lb.end(t)
	for i, last := 0, uint64(0); i < int(la.acked.Load()); {
		c := must(watched.Next(ctx))(t)
		if c.Op == Synced {
			continue
		}
		if c.Op != Set || c.Key != fmt.Sprintf("k/%06d", i) || c.Rev <= last {
			t.Fatalf("%+v after %d changes", c, i)
		}
		i, last = i+1, c.Rev
	}
	if d := q.Depth("q"); d.Ready != 10_000 {
		t.Fatalf("%+v", d)
	}
	again := openQueues(t, w.nodes["e"], QueuesConfig{})
	if d := again.Depth("q"); d.Ready != 10_000 {
		t.Fatalf("%+v", d)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		left, _ := filepath.Glob(filepath.Join(w.dir, "*", "store*", "jetstream"))
		if len(left) == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("old stores are left:", left)
		}
	}
	if _, err := os.Stat(storeDir(filepath.Join(w.dir, "b"), b.Layout().Generation)); err != nil {
		t.Fatal(err)
	}
}
