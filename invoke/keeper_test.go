package invoke

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"lode"
	"lode/bus"
	"lode/link"
)

// writer is a memory as one writer of its queues sees it: opening another ends
// it, as with bus.Queues.
type memWriter struct {
	*memory
	gen int
}

func (m *memory) writer() *memWriter {
	m.mu.Lock()
	m.gen++
	w := &memWriter{m, m.gen}
	m.mu.Unlock()
	m.restart()
	return w
}

func (w *memWriter) fence() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gen != w.memory.gen {
		return lode.Errorf(lode.Conflict, "the log was opened by another writer")
	}
	return nil
}

func (w *memWriter) Put(ctx context.Context, items ...bus.Item) (int, error) {
	if err := w.fence(); err != nil {
		return 0, err
	}
	return w.memory.Put(ctx, items...)
}

func (w *memWriter) Pull(ctx context.Context, queue string, n int, wait time.Duration) ([]Delivery, error) {
	// An old writer sees nothing new, and does not know why.
	ds, err := w.memory.pull(ctx, queue, n, wait, func() bool { return w.gen == w.memory.gen })
	for i := range ds {
		ds[i] = writerDelivery{ds[i], w}
	}
	return ds, err
}

func (w *memWriter) Remove(ctx context.Context, queue, id string) (bus.Item, error) {
	if err := w.fence(); err != nil {
		return bus.Item{}, err
	}
	return w.memory.Remove(ctx, queue, id)
}

type writerDelivery struct {
	Delivery
	w *memWriter
}

func (d writerDelivery) Ack(ctx context.Context, then ...bus.Item) error {
	if err := d.w.fence(); err != nil {
		return err
	}
	return d.Delivery.Ack(ctx, then...)
}

func (d writerDelivery) Nak(ctx context.Context, delay time.Duration, note string) error {
	if err := d.w.fence(); err != nil {
		return err
	}
	return d.Delivery.Nak(ctx, delay, note)
}

// node opens a service that keeps nothing itself.
func node(t *testing.T, w *world, m *memory, name string, cfg Config) *Service {
	t.Helper()
	cfg.Catalog, cfg.Pools, cfg.Observer, cfg.Tables, cfg.Node = w, w, w, m, name
	s, err := Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.SetKeeper(nil)
	return s
}

func keeper(t *testing.T, s *Service, m *memory) *Keeper {
	t.Helper()
	k, err := OpenKeeper(context.Background(), s, KeeperConfig{Tables: m, Queues: m.writer()})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func lostNow(k *Keeper) bool {
	select {
	case <-k.Lost():
		return true
	default:
		return false
	}
}

// TestNoKeeperToCome: where most members of the bus are out of reach, nobody
// waits for a keeper as long as elsewhere, also who has waited for one that was
// lost meanwhile.
func TestNoKeeperToCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newWorld(), newMemory()
		w.deploy("echo", lode.Function{}, echo)
		s := node(t, w, m, "a", Config{Hopeless: func(since time.Time) bool { return time.Since(since) >= 2*time.Second }})
		defer s.Close()
		begin := time.Now()
		_, err := s.Submit(context.Background(), &lode.Request{Namespace: "default", Function: "echo", Body: []byte("x")})
		e := lode.AsError(err)
		if d := time.Since(begin); e == nil || e.Kind != lode.Unavailable || e.RetryAfter <= 0 || !strings.Contains(e.Detail, "most members of the bus") || d < 2*time.Second || d >= keeperWait {
			t.Fatalf("%v after %s", err, d)
		}
	})
}

// Where there is no keeper, whoever asks waits for one, for a while.
func TestKeeperIsAwaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newWorld(), newMemory()
		w.deploy("echo", lode.Function{}, echo)
		w.queues["orders"] = lode.Queue{}
		s := node(t, w, m, "a", Config{})
		defer s.Close()
		begin := time.Now()
		req := &lode.Request{Namespace: "default", Function: "echo", Body: []byte("x")}
		_, err := s.Submit(context.Background(), req)
		e := lode.AsError(err)
		if d := time.Since(begin); e == nil || e.Kind != lode.Unavailable || e.RetryAfter != time.Second || !strings.Contains(e.Detail, "no keeper at the moment") || d < keeperWait || d > 2*keeperWait {
			t.Fatalf("no keeper: %v after %s", err, d)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err = s.PutQueue(ctx, "default", "orders", "", 0, "", nil)
		wantKind(t, err, lode.Deadline)

		k := keeper(t, s, m)
		defer k.Close()
		time.AfterFunc(2*time.Second, func() { s.SetKeeper(k) })
		begin = time.Now()
		id := submit(t, s, "echo", "", "x")
		if d := time.Since(begin); d != 2*time.Second {
			t.Errorf("submitted after %s", d)
		}
		if c := get(t, s, id, time.Minute); c.State != lode.StateDone {
			t.Errorf("%+v", c)
		}
		if q, err := s.Queue(context.Background(), "default", "orders"); err != nil || q.Depth != 0 {
			t.Errorf("%+v %v", q, err)
		}
	})
}

// A keeper that another one has replaced says so when it is asked, and the
// service asks the next one. Who waits for a call goes on waiting there.
func TestKeeperIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newWorld(), newMemory()
		open := make(chan struct{})
		var runs atomic.Int32
		w.deploy("slow", lode.Function{Limits: lode.Limits{Total: time.Hour}}, func(g *guest) error {
			runs.Add(1)
			if err := g.block(open); err != nil {
				return err
			}
			return g.answer(200, "done")
		})
		a, b := node(t, w, m, "a", Config{}), node(t, w, m, "b", Config{})
		defer a.Close()
		defer b.Close()
		ka := keeper(t, a, m)
		defer ka.Close()
		a.SetKeeper(ka)
		b.SetKeeper(ka)
		id := submit(t, b, "slow", "", "")
		synctest.Wait()
		var wg sync.WaitGroup
		wg.Go(func() {
			if c := get(t, b, id, time.Hour); c.State != lode.StateDone || c.Attempts != 2 {
				t.Errorf("waited for: %+v", c)
			}
		})
		synctest.Wait()
		kb := keeper(t, b, m)
		defer kb.Close()
		time.AfterFunc(time.Second, func() { a.SetKeeper(kb); b.SetKeeper(kb) })
		// The write is refused at the old one, which ends, and done at the new one.
		second := submit(t, a, "slow", "", "")
		if !lostNow(ka) || lostNow(kb) {
			t.Error("the old keeper does not know, or the new one is taken for lost")
		}
		synctest.Wait()
		close(open)
		if c := get(t, a, second, time.Minute); c.State != lode.StateDone {
			t.Errorf("%+v", c)
		}
		wg.Wait()
		if runs.Load() != 3 {
			t.Errorf("%d runs, want 3", runs.Load())
		}
	})
}

func TestKeeperLosesItsLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newWorld(), newMemory()
		var cut atomic.Bool
		w.deploy("slow", lode.Function{Limits: lode.Limits{Total: time.Hour}}, func(g *guest) error {
			err := g.block(nil)
			cut.Store(true)
			return err
		})
		s := node(t, w, m, "a", Config{})
		defer s.Close()
		lease := make(chan struct{})
		k, err := OpenKeeper(context.Background(), s, KeeperConfig{Tables: m, Queues: m.writer(), Lease: lease})
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		s.SetKeeper(k)
		id := submit(t, s, "slow", "", "")
		synctest.Wait()
		close(lease)
		synctest.Wait()
		if !lostNow(k) || !cut.Load() {
			t.Error("the attempt goes on")
		}
		if n := m.count("calls"); n != 0 {
			t.Errorf("%d records after the loss", n)
		}
		if _, err := k.GetCall(context.Background(), "default", id, 0); !keeperGone(err) {
			t.Errorf("%v", err)
		}
		if d := m.Depth("call/default/slow"); d.Taken+d.Ready != 1 {
			t.Errorf("the work is gone: %+v", d)
		}
	})
}

// What did not begin is not counted, and comes again soon; what was lost with
// its node is counted, and comes again soon.
func TestAttemptsThatAreLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newWorld(), newMemory()
		var attempts []string
		w.deploy("far", lode.Function{Retry: lode.Retry{Attempts: 2, First: time.Hour, Max: time.Hour}}, func(g *guest) error {
			attempts = append(attempts, g.head.Get(":attempt"))
			switch n := len(attempts); {
			case n <= 5 || n == 7:
				return &lode.Error{Kind: lode.Unavailable, Detail: "no node took it", Err: link.ErrNotSent}
			case n == 6:
				return &lode.Error{Kind: lode.Unavailable, Detail: "the connection was lost", Err: link.ErrLost}
			}
			return echo(g)
		})
		s := node(t, w, m, "a", Config{})
		defer s.Close()
		k := keeper(t, s, m)
		defer k.Close()
		s.SetKeeper(k)
		begin := time.Now()
		id := submit(t, s, "far", "", "x")
		c := get(t, s, id, time.Hour)
		if got := fmt.Sprint(attempts); c.State != lode.StateDone || c.Attempts != 2 || got != "[1 1 1 1 1 1 2 2]" {
			t.Errorf("%+v after attempts %s", c, got)
		}
		if d := time.Since(begin); d > 10*time.Second {
			t.Errorf("it took %s", d)
		}
	})
}

func TestNotes(t *testing.T) {
	for _, free := range []int{0, 1, 12} {
		for _, e := range []*lode.Error{nil, lode.Errorf(lode.Crashed, "it fell over")} {
			note := noteOf(e, free)
			it := &bus.Item{Deliveries: 20, Note: note}
			if attempts, f := counted(it); attempts != 20-free || f != free {
				t.Errorf("%q: %d attempts, %d free", note, attempts, f)
			}
			got := errorOf(note)
			if (got == nil) != (e == nil) || got != nil && (got.Kind != e.Kind || got.Detail != e.Detail) {
				t.Errorf("%q: %v", note, got)
			}
		}
	}
	if attempts, _ := counted(&bus.Item{Deliveries: 1, Note: "~9 unavailable x"}); attempts != 1 {
		t.Errorf("a delivery that was forgotten: %d", attempts)
	}
}

// What was dropped for lack of room, or by a copy of the tables has another
// revision, is not run again by the keeper that comes next.
func TestDroppedIsNotRunAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newWorld(), newMemory()
		var ticks, runs atomic.Int32
		w.deploy("tick", lode.Function{Schedules: []lode.Schedule{{Cron: "@every 4h"}}}, func(g *guest) error { ticks.Add(1); return g.answer(200, "") })
		w.deploy("task", lode.Function{}, func(g *guest) error { runs.Add(1); return g.answer(200, "") })
		s := node(t, w, m, "a", Config{KeepCalls: 2})
		defer s.Close()
		k := keeper(t, s, m)
		s.SetKeeper(k)
		id := submit(t, s, "task", "key", "x")
		time.Sleep(4*time.Hour + time.Minute)
		for range 5 {
			time.Sleep(2 * time.Minute)
			submit(t, s, "task", "", "x")
		}
		time.Sleep(10 * time.Minute)
		if n := m.count("calls"); n != 2 || ticks.Load() != 1 {
			t.Fatalf("%d records, %d ticks", n, ticks.Load())
		}
		k.Close()
		m.renumber()
		k = keeper(t, s, m)
		defer k.Close()
		s.SetKeeper(k)
		if again := submit(t, s, "task", "key", "x"); again != id {
			t.Errorf("the key gives %s, and gave %s", again, id)
		}
		_, err := s.Submit(context.Background(), &lode.Request{Namespace: "default", Function: "task", IdempotencyKey: "key", Body: []byte("y")})
		wantKind(t, err, lode.KeyReused)
		time.Sleep(time.Hour)
		if ticks.Load() != 1 || runs.Load() != 6 {
			t.Errorf("%d ticks, %d runs", ticks.Load(), runs.Load())
		}
		m.renumber() // while the keeper lives
		time.Sleep(3 * time.Hour)
		if ticks.Load() != 2 {
			t.Errorf("%d ticks", ticks.Load())
		}
		time.Sleep(25 * time.Hour)
		if n := m.count("calls"); n > 7 {
			t.Errorf("%d records are left", n)
		}
	})
}

// Who did not hear that something was stored sends it again, though it has
// ended meanwhile.
func TestSentAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newWorld(), newMemory()
		w.queues["orders"] = lode.Queue{}
		var runs, shipped atomic.Int32
		w.deploy("task", lode.Function{}, func(g *guest) error { runs.Add(1); return g.answer(200, "") })
		w.deploy("ship", lode.Function{Queue: &lode.Consume{Queue: "orders", Size: 1}}, func(g *guest) error { shipped.Add(1); return g.answer(200, "") })
		s := node(t, w, m, "a", Config{KeepCalls: 1})
		defer s.Close()
		k := keeper(t, s, m)
		defer k.Close()
		ctx := context.Background()
		for range 3 {
			id, err := k.Submit(ctx, &lode.Request{ID: "01", Namespace: "default", Function: "task"})
			if err != nil || id != "01" {
				t.Errorf("%s %v", id, err)
			}
			if id, err := k.PutQueue(ctx, Put{Namespace: "default", Queue: "orders", ID: "02", Repeats: true}); err != nil || id != "02" {
				t.Errorf("%s %v", id, err)
			}
			time.Sleep(5 * time.Second)
			if _, err := k.Submit(ctx, &lode.Request{Namespace: "default", Function: "task"}); err != nil {
				t.Error(err)
			}
			synctest.Wait()
			k.calls.expire(time.Now()) // there is no room for two, but for a while
		}
		synctest.Wait()
		if runs.Load() != 4 || shipped.Load() != 1 {
			t.Errorf("%d runs and %d messages", runs.Load(), shipped.Load())
		}
	})
}

// deaf is a keeper whose first answer is lost.
type deaf struct {
	Durable
	lost bool
}

func (d *deaf) ReplayCall(ctx context.Context, ns lode.Namespace, id lode.InvocationID) (Call, error) {
	c, err := d.Durable.ReplayCall(ctx, ns, id)
	if err == nil && !d.lost {
		d.lost = true
		return Call{}, &lode.Error{Kind: lode.Unavailable, Detail: "the connection was lost", Err: link.ErrLost}
	}
	return c, err
}

func TestReplayIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newWorld(), newMemory()
		var runs atomic.Int32
		w.deploy("bad", lode.Function{Retry: lode.Retry{Attempts: 1}}, func(g *guest) error {
			if runs.Add(1) == 1 {
				return crash(g)
			}
			return echo(g)
		})
		s := node(t, w, m, "a", Config{})
		defer s.Close()
		k := keeper(t, s, m)
		defer k.Close()
		s.SetKeeper(&deaf{Durable: k})
		id := submit(t, s, "bad", "", "x")
		get(t, s, id, time.Minute)
		if c, err := s.ReplayCall(context.Background(), "default", id); err != nil || c.State == lode.StateFailed {
			t.Errorf("%+v %v", c, err)
		}
		if c := get(t, s, id, time.Minute); c.State != lode.StateDone || runs.Load() != 2 {
			t.Errorf("%+v after %d runs", c, runs.Load())
		}
	})
}

// Queues that take nothing any more, whatever the reason, end their keeper, so
// that they are opened anew. One write that fails does not.
func TestKeeperOfDeadQueues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newWorld(), newMemory()
		w.deploy("task", lode.Function{}, echo)
		s := node(t, w, m, "a", Config{})
		defer s.Close()
		k := keeper(t, s, m)
		defer k.Close()
		ctx := context.Background()
		fail := func(all bool) {
			m.setFail(false, func(op, key string) error {
				if op == "queue put" && (all || key != "") {
					return lode.Errorf(lode.Internal, "the log is in a strange state")
				}
				return nil
			})
		}
		fail(false)
		_, err := k.Submit(ctx, &lode.Request{Namespace: "default", Function: "task"})
		wantKind(t, err, lode.Internal)
		if lostNow(k) {
			t.Error("lost by one write")
		}
		fail(true)
		if _, err := k.Submit(ctx, &lode.Request{Namespace: "default", Function: "task"}); !keeperGone(err) || !lostNow(k) {
			t.Errorf("%v", err)
		}
	})
}

// A keeper that is drained ends what it began, takes what is submitted, and
// leaves that to the next one.
func TestKeeperDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newWorld(), newMemory()
		open := make(chan struct{})
		var runs atomic.Int32
		w.deploy("task", lode.Function{Limits: lode.Limits{Total: time.Hour}}, func(g *guest) error {
			runs.Add(1)
			if err := g.block(open); err != nil {
				return err
			}
			return echo(g)
		})
		s := node(t, w, m, "a", Config{})
		defer s.Close()
		k := keeper(t, s, m)
		s.SetKeeper(k)
		first := submit(t, s, "task", "", "x")
		synctest.Wait()
		drained := make(chan error, 1)
		go func() { drained <- k.Drain(context.Background()) }()
		synctest.Wait()
		second := submit(t, s, "task", "", "y")
		short, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		wantKind(t, k.Drain(short), lode.Deadline)
		if len(drained) != 0 || runs.Load() != 1 {
			t.Errorf("drained: %v, %d runs", len(drained) == 1, runs.Load())
		}
		close(open)
		if err := <-drained; err != nil {
			t.Error(err)
		}
		if c := get(t, s, first, 0); c.State != lode.StateDone || c.Attempts != 1 {
			t.Errorf("%+v", c)
		}
		k.Close()
		k = keeper(t, s, m)
		defer k.Close()
		s.SetKeeper(k)
		if c := get(t, s, second, time.Minute); c.State != lode.StateDone || c.Attempts != 1 || runs.Load() != 2 {
			t.Errorf("%+v after %d runs", c, runs.Load())
		}
	})
}
