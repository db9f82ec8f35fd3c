package invoke

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"lode"
	"lode/engine"
)

func submit(t *testing.T, s *Service, name, key, body string) lode.InvocationID {
	t.Helper()
	id, err := s.Submit(context.Background(), &lode.Request{Namespace: "default", Function: lode.Name(name), Trigger: lode.TriggerAsync, IdempotencyKey: key, Body: []byte(body)})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func get(t *testing.T, s *Service, id lode.InvocationID, wait time.Duration) Call {
	t.Helper()
	c, err := s.GetCall(context.Background(), "default", id, wait)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// durable opens a service over m inside a synctest bubble; the caller closes.
func durable(t *testing.T, w *world, m *memory, cfg Config) *Service {
	t.Helper()
	m.restart()
	cfg.Catalog, cfg.Pools, cfg.Observer, cfg.Tables, cfg.Queues = w, w, w, m, m
	s, err := Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestAsyncResult(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, size := range []int{10, 2 << 20} {
			w, m := newWorld(), newMemory()
			w.deploy("echo", lode.Function{}, echo)
			s := durable(t, w, m, Config{})
			body := strings.Repeat("x", size)
			id := submit(t, s, "echo", "", body)
			c := get(t, s, id, time.Minute)
			if c.State != lode.StateDone || c.Status != 200 || c.Attempts != 1 || c.Trigger != lode.TriggerAsync || c.ResultLen != int64(size) || c.Trace == "" {
				t.Errorf("%+v", c)
			}
			s.Close()
			// The result is there after a restart, and until its time is over.
			s = durable(t, w, m, Config{})
			ans, err := s.CallResult(context.Background(), "default", id)
			if err != nil || !bytes.Equal(ans.Msg.Body, []byte(body)) {
				t.Errorf("result of %d bytes: %v", size, err)
			}
			time.Sleep(24*time.Hour + 2*time.Minute)
			if _, err := s.GetCall(context.Background(), "default", id, 0); lode.KindOf(err) != lode.NotFound {
				t.Errorf("after a day: %v", err)
			}
			if n := m.count("bodies", "calls"); n != 0 {
				t.Errorf("%d entries are left", n)
			}
			s.Close()
		}
	})
}

// Attempts are made until one succeeds, never before they are due, the waits
// within their bounds.
func TestAsyncRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newWorld(), newMemory()
		var at []time.Time
		var attempts []string
		w.deploy("flaky", lode.Function{Retry: lode.Retry{Attempts: 5, First: time.Second, Max: 3 * time.Second}}, func(g *guest) error {
			at, attempts = append(at, time.Now()), append(attempts, g.head.Get(":attempt"))
			switch len(at) {
			case 1:
				return crash(g)
			case 2:
				return g.answer(503, "later")
			case 3:
				return lode.Errorf(lode.Overloaded, "full")
			}
			return g.answer(200, "ok")
		})
		s := durable(t, w, m, Config{})
		defer s.Close()
		id := submit(t, s, "flaky", "", "")
		synctest.Wait()
		if c := get(t, s, id, 0); c.State != lode.StateQueued || c.Attempts != 1 || c.Error == nil || c.Error.Kind != lode.Crashed || c.Next.IsZero() {
			t.Errorf("between attempts: %+v", c)
		} else if time.Sleep(time.Until(c.Next) - time.Nanosecond); len(at) != 1 {
			t.Error("an attempt was made before it was due")
		}
		if c := get(t, s, id, time.Minute); c.State != lode.StateDone || c.Attempts != 4 {
			t.Errorf("%+v", c)
		}
		if fmt.Sprint(attempts) != "[1 2 3 4]" {
			t.Errorf("attempts %v", attempts)
		}
		for i, most := range []time.Duration{time.Second, 2 * time.Second, 3 * time.Second} {
			if d := at[i+1].Sub(at[i]); d < 0 || d > most {
				t.Errorf("wait %d is %s, over %s", i+1, d, most)
			}
		}
	})
}

func TestBackoff(t *testing.T) {
	r := lode.Retry{First: time.Second, Max: 10 * time.Second}
	for n, most := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 4: 8 * time.Second, 5: 10 * time.Second, 1000: 10 * time.Second} {
		if d := backoff(r, n, 0.5); d != most/2 {
			t.Errorf("after %d: %s, want %s", n, d, most/2)
		}
		if d := backoff(r, n, 0); d != 0 {
			t.Errorf("after %d, no jitter: %s", n, d)
		}
	}
}

func TestVerdict(t *testing.T) {
	r := lode.Retry{Attempts: 2}
	for _, c := range []struct {
		n, status int
		kind      lode.Kind
		want      step
	}{
		{1, 200, "", stepDone}, {1, 404, "", stepDone}, {1, 500, "", stepRetry}, {2, 500, "", stepFail},
		{1, 0, lode.Crashed, stepRetry}, {2, 0, lode.Crashed, stepFail}, {3, 0, lode.Crashed, stepFail},
		{1, 0, lode.Deadline, stepRetry}, {1, 0, lode.Overloaded, stepRetry}, {1, 0, lode.Unavailable, stepRetry},
		{1, 0, lode.Invalid, stepFail}, {1, 0, lode.NotFound, stepFail}, {1, 0, lode.TooLarge, stepFail}, {1, 0, lode.Cancelled, stepFail},
	} {
		var err error
		if c.kind != "" {
			err = lode.Errorf(c.kind, "x")
		}
		if got := verdictOf(r, c.n, c.status, err); got != c.want {
			t.Errorf("attempt %d, status %d, %q: %d, want %d", c.n, c.status, c.kind, got, c.want)
		}
	}
}

func TestAsyncDeadLetterAndReplay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newWorld(), newMemory()
		w.queues["graves"] = lode.Queue{}
		bad := true
		w.deploy("bad", lode.Function{Retry: lode.Retry{Attempts: 2, Dead: "graves"}}, func(g *guest) error {
			if bad {
				return crash(g)
			}
			return echo(g)
		})
		s := durable(t, w, m, Config{})
		body := strings.Repeat("b", 100<<10)
		id := submit(t, s, "bad", "", body)
		c := get(t, s, id, time.Hour)
		if c.State != lode.StateFailed || !c.Dead || c.Attempts != 2 || c.Error == nil || c.Error.Kind != lode.Crashed || c.Error.Guest == nil {
			t.Errorf("%+v", c)
		}
		synctest.Wait()
		if q := s.QueueState("default", "graves"); q.Depth != 1 {
			t.Errorf("dead letters: %+v", q)
		}
		dead, _, err := s.ListCalls(context.Background(), "default", CallFilter{Dead: true}, 0, "")
		if err != nil || len(dead) != 1 || dead[0].ID != id {
			t.Errorf("%v %+v", err, dead)
		}
		// It is replayed after a restart, with its body and all its attempts.
		s.Close()
		bad = false
		s = durable(t, w, m, Config{})
		defer s.Close()
		if _, err := s.ReplayCall(context.Background(), "default", id); err != nil {
			t.Fatal(err)
		}
		if c := get(t, s, id, time.Hour); c.State != lode.StateDone || c.Attempts != 1 {
			t.Errorf("%+v", c)
		}
		if ans, err := s.CallResult(context.Background(), "default", id); err != nil || string(ans.Msg.Body) != body {
			t.Errorf("replayed: %v", err)
		}
		_, err = s.ReplayCall(context.Background(), "default", id)
		wantKind(t, err, lode.Conflict)
	})
}

// The node dies between the record of a failure and its acknowledgement: the
// work is not done again, and its dead letter is sent.
func TestAsyncAckIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newWorld(), newMemory()
		w.queues["graves"] = lode.Queue{}
		var runs atomic.Int32
		w.deploy("bad", lode.Function{Retry: lode.Retry{Attempts: 1, Dead: "graves"}}, func(g *guest) error { runs.Add(1); return crash(g) })
		m.fail = func(op, key string) error {
			if op == "queue ack" {
				return lode.Errorf(lode.Unavailable, "the node is dying")
			}
			return nil
		}
		s := durable(t, w, m, Config{})
		id := submit(t, s, "bad", "", "x")
		if c := get(t, s, id, time.Minute); c.State != lode.StateFailed {
			t.Errorf("%+v", c)
		}
		s.Close()
		m.fail = nil
		s = durable(t, w, m, Config{})
		defer s.Close()
		synctest.Wait()
		if c := get(t, s, id, 0); c.State != lode.StateFailed || runs.Load() != 1 {
			t.Errorf("%+v after %d runs", c, runs.Load())
		}
		if q := s.QueueState("default", "graves"); q.Depth != 1 {
			t.Errorf("dead letters: %+v", q)
		}
		if d := m.Depth("call/default/bad"); d.Taken+d.Ready+d.Waiting != 0 {
			t.Errorf("left in the queue: %+v", d)
		}
	})
}

// What kills the node each time is given up in the end.
func TestAsyncNodeDiesEachTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newWorld(), newMemory()
		var runs atomic.Int32
		w.deploy("killer", lode.Function{Retry: lode.Retry{Attempts: 1}}, func(g *guest) error { runs.Add(1); return g.block(nil) })
		s := durable(t, w, m, Config{})
		id := submit(t, s, "killer", "", "x")
		for range 5 {
			synctest.Wait()
			s.Close() // in the middle of the attempt
			s = durable(t, w, m, Config{})
		}
		defer s.Close()
		if c := get(t, s, id, time.Minute); c.State != lode.StateFailed || !c.Dead || runs.Load() != 1+extraAttempts {
			t.Errorf("%+v after %d runs", c, runs.Load())
		}
	})
}

func TestAsyncCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newWorld(), newMemory()
		var began atomic.Int32
		w.deploy("slow", lode.Function{Limits: lode.Limits{Total: time.Hour}}, func(g *guest) error { began.Add(1); return g.block(nil) })
		s := durable(t, w, m, Config{AsyncSlots: 1})
		defer s.Close()
		running := submit(t, s, "slow", "", "")
		synctest.Wait()
		waiting := submit(t, s, "slow", "", "")
		synctest.Wait()
		if c := get(t, s, running, 0); c.State != lode.StateRunning {
			t.Errorf("%+v", c)
		}
		for _, id := range []lode.InvocationID{waiting, running, running} {
			c, err := s.CancelCall(context.Background(), "default", id)
			if err != nil || c.State != lode.StateCancelled {
				t.Errorf("%v %+v", err, c)
			}
		}
		synctest.Wait()
		if n := began.Load(); n != 1 {
			t.Errorf("%d began", n)
		}
		if d := m.Depth("call/default/slow"); d.Taken+d.Ready+d.Waiting != 0 {
			t.Errorf("left in the queue: %+v", d)
		}
		w.deploy("slow", lode.Function{}, echo)
		id := submit(t, s, "slow", "", "")
		get(t, s, id, time.Minute)
		_, err := s.CancelCall(context.Background(), "default", id)
		wantKind(t, err, lode.Conflict)
	})
}

func TestAsyncList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newWorld(), newMemory()
		w.deploy("echo", lode.Function{}, echo)
		w.deploy("bad", lode.Function{Retry: lode.Retry{Attempts: 1}}, crash)
		s := durable(t, w, m, Config{})
		defer s.Close()
		var ids []lode.InvocationID
		for range 5 {
			ids = append(ids, submit(t, s, "echo", "", ""))
			time.Sleep(time.Millisecond)
		}
		submit(t, s, "bad", "", "")
		synctest.Wait()
		var got []lode.InvocationID
		for after, pages := lode.InvocationID(""), 0; ; pages++ {
			page, next, err := s.ListCalls(context.Background(), "default", CallFilter{Function: "echo"}, 2, after)
			if err != nil || pages > 3 {
				t.Fatal(err, pages)
			}
			for _, c := range page {
				got = append(got, c.ID)
			}
			if after = next; next == "" {
				break
			}
		}
		for i, id := range got {
			if id != ids[len(ids)-1-i] {
				t.Errorf("page order: %v, want the reverse of %v", got, ids)
			}
		}
		if failed, _, _ := s.ListCalls(context.Background(), "default", CallFilter{State: lode.StateFailed}, 0, ""); len(failed) != 1 || failed[0].Function != "bad" {
			t.Errorf("%+v", failed)
		}
		if other, _, _ := s.ListCalls(context.Background(), "other", CallFilter{}, 0, ""); len(other) != 0 {
			t.Errorf("another namespace sees %+v", other)
		}
	})
}

// A function that was removed cannot run what waits: it fails at once, and can
// be replayed when the function is back.
func TestAsyncFunctionRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newWorld(), newMemory()
		w.deploy("f", lode.Function{}, crash)
		s := durable(t, w, m, Config{})
		defer s.Close()
		id := submit(t, s, "f", "", "")
		synctest.Wait()
		w.remove("f")
		if c := get(t, s, id, time.Hour); c.State != lode.StateFailed || c.Error.Kind != lode.NotFound {
			t.Errorf("%+v", c)
		}
		_, err := s.Submit(context.Background(), &lode.Request{Namespace: "default", Function: "f"})
		wantKind(t, err, lode.NotFound)
	})
}

func TestAsyncKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newWorld(), newMemory()
		var runs atomic.Int32
		w.deploy("f", lode.Function{}, func(g *guest) error { runs.Add(1); return echo(g) })
		s := durable(t, w, m, Config{})
		var wg sync.WaitGroup
		ids := make([]lode.InvocationID, 20)
		for i := range ids {
			wg.Go(func() { ids[i] = submit(t, s, "f", "k", "body") })
		}
		wg.Wait()
		for _, id := range ids {
			if id != ids[0] {
				t.Fatalf("one key, ids %v", ids)
			}
		}
		_, err := s.Submit(context.Background(), &lode.Request{Namespace: "default", Function: "f", IdempotencyKey: "k", Body: []byte("other")})
		wantKind(t, err, lode.KeyReused)
		get(t, s, ids[0], time.Minute)
		s.Close()
		s = durable(t, w, m, Config{})
		defer s.Close()
		if id := submit(t, s, "f", "k", "body"); id != ids[0] {
			t.Errorf("after a restart: %s, want %s", id, ids[0])
		}
		synctest.Wait()
		if n := runs.Load(); n != 1 {
			t.Errorf("ran %d times", n)
		}
		time.Sleep(keepKeys + time.Minute)
		if id := submit(t, s, "f", "k", "other"); id == ids[0] {
			t.Error("the key is remembered for ever")
		}
	})
}

// Heads that no record can hold are refused, or fail the work; nothing is
// tried for ever.
func TestAsyncLargeHeads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newWorld(), newMemory()
		var huge []lode.Pair
		for range 40 {
			huge = append(huge, lode.Pair{Key: "x", Value: strings.Repeat("v", 60<<10)})
		}
		w.deploy("f", lode.Function{Retry: lode.Retry{Attempts: 1}}, func(g *guest) error { return g.inv.Out.Head(engine.EncodeHead(nil, huge)) })
		s := durable(t, w, m, Config{})
		defer s.Close()
		_, err := s.Submit(context.Background(), &lode.Request{Namespace: "default", Function: "f", Head: huge})
		wantKind(t, err, lode.TooLarge)
		id := submit(t, s, "f", "", "")
		if c := get(t, s, id, time.Minute); c.State != lode.StateFailed || c.Error.Kind != lode.TooLarge {
			t.Errorf("%+v", c)
		}
	})
}

// Whatever write fails, an acknowledged invocation ends, and its result is
// whole.
func TestAsyncWritesFail(t *testing.T) {
	for _, at := range []string{"calls create", "bodies put", "queue put"} {
		t.Run(strings.ReplaceAll(at, " ", "_"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, m := newWorld(), newMemory()
				w.deploy("echo", lode.Function{}, echo)
				s := durable(t, w, m, Config{})
				defer s.Close()
				left := 2
				m.fail = func(op, key string) error {
					if op == at && left > 0 {
						left--
						return lode.Errorf(lode.Full, "the disk is full")
					}
					return nil
				}
				body := strings.Repeat("z", 1<<20)
				var id lode.InvocationID
				for tries := 0; id == ""; tries++ {
					if tries > 3 {
						t.Fatal("never accepted")
					}
					got, err := s.Submit(context.Background(), &lode.Request{Namespace: "default", Function: "echo", Body: []byte(body)})
					if err == nil {
						id = got
					} else if list, _, _ := s.ListCalls(context.Background(), "default", CallFilter{}, 0, ""); len(list) != 0 {
						t.Errorf("refused, and there: %+v", list)
					}
				}
				if c := get(t, s, id, time.Hour); c.State != lode.StateDone {
					t.Fatalf("%+v", c)
				}
				if ans, err := s.CallResult(context.Background(), "default", id); err != nil || string(ans.Msg.Body) != body {
					t.Errorf("result: %v", err)
				}
			})
		})
	}
}

// One key is one execution, however many ask at once, and one answer.
func TestInvokeOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newWorld(), newMemory()
		var runs atomic.Int32
		w.deploy("f", lode.Function{}, func(g *guest) error {
			n := runs.Add(1)
			tick := make(chan struct{})
			time.AfterFunc(time.Second, func() { close(tick) })
			if err := g.block(tick); err != nil {
				return err
			}
			return g.answer(201, strings.Repeat(fmt.Sprint(n), 100<<10))
		})
		s := durable(t, w, m, Config{})
		ask := func(body string) (string, error) {
			ans := &lode.Buffered{}
			_, err := s.Invoke(context.Background(), &lode.Request{Namespace: "default", Function: "f", IdempotencyKey: "k", Body: []byte(body)}, ans)
			return fmt.Sprintf("%d %d %.1s", ans.Status, len(ans.Msg.Body), ans.Msg.Body), err
		}
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if got, err := ask("a"); err != nil || got != "201 102400 1" {
					t.Errorf("%q %v", got, err)
				}
			})
		}
		synctest.Wait()
		_, err := ask("b")
		wantKind(t, err, lode.KeyReused)
		wg.Wait()
		s.Close()
		s = durable(t, w, m, Config{})
		defer s.Close()
		if got, err := ask("a"); err != nil || got != "201 102400 1" {
			t.Errorf("after a restart: %q %v", got, err)
		}
		_, err = ask("b")
		wantKind(t, err, lode.KeyReused)
		if n := runs.Load(); n != 1 {
			t.Errorf("ran %d times", n)
		}
		time.Sleep(keepKeys + 2*time.Hour)
		if n := m.count("keys", "bodies"); n != 0 {
			t.Errorf("%d entries are left", n)
		}
	})
}

// Who runs the request may go away; those who wait then run it themselves.
func TestInvokeOnceLeaderLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newWorld(), newMemory()
		var runs atomic.Int32
		w.deploy("f", lode.Function{}, func(g *guest) error {
			if runs.Add(1) == 1 {
				return g.block(nil)
			}
			return g.answer(200, "ok")
		})
		s := durable(t, w, m, Config{})
		defer s.Close()
		req := &lode.Request{Namespace: "default", Function: "f", IdempotencyKey: "k"}
		ctx, leave := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := s.Invoke(ctx, req, &lode.Buffered{})
			if lode.KindOf(err) != lode.Cancelled {
				t.Errorf("the leader: %v", err)
			}
		})
		synctest.Wait()
		wg.Go(func() {
			ans := &lode.Buffered{}
			if _, err := s.Invoke(context.Background(), req, ans); err != nil || string(ans.Msg.Body) != "ok" {
				t.Errorf("%v %q", err, ans.Msg.Body)
			}
		})
		synctest.Wait()
		leave()
		wg.Wait()
	})
}
