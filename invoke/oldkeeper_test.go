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
)

// An old keeper that does not know that it is none ends an attempt: whichever
// end is on record first counts, everywhere, whole, and with one dead letter.
func TestOldKeeperEndsACall(t *testing.T) {
	for _, late := range []bool{false, true} {
		for _, fails := range []bool{false, true} {
			t.Run(fmt.Sprintf("late=%v,fails=%v", late, fails), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { oldKeeperEndsACall(t, late, fails) })
			})
		}
	}
}

func oldKeeperEndsACall(t *testing.T, late, fails bool) {
	w, m := newWorld(), newMemory()
	w.queues["graves"] = lode.Queue{}
	gates := []chan struct{}{make(chan struct{}), make(chan struct{})}
	var runs atomic.Int32
	w.deploy("slow", lode.Function{Retry: lode.Retry{Attempts: 1, Dead: "graves"}, Limits: lode.Limits{Total: time.Hour}}, func(g *guest) error {
		n := runs.Add(1)
		if err := g.block(gates[n-1]); err != nil {
			return err
		}
		if fails {
			return lode.Errorf(lode.Invalid, "run %d", n)
		}
		return g.answer(200, strings.Repeat(fmt.Sprint(n), 3*chunkBytes))
	})
	a, b := node(t, w, m, "a", Config{}), node(t, w, m, "b", Config{})
	defer a.Close()
	defer b.Close()
	ka := keeper(t, a, m)
	defer ka.Close()
	a.SetKeeper(ka)
	id := submit(t, a, "slow", "", "")
	synctest.Wait()
	// The count of deliveries was not on the disk yet: both take attempt 1.
	m.items[0].Deliveries = 0
	kb := keeper(t, b, m)
	defer kb.Close()
	b.SetKeeper(kb)
	synctest.Wait()
	first, second := 0, 1
	if late {
		first, second = 1, 0
	}
	close(gates[first])
	synctest.Wait()
	close(gates[second])
	synctest.Wait()
	c := get(t, b, id, time.Minute)
	if !lostNow(ka) || lostNow(kb) {
		t.Error("who is lost?")
	}
	if fails {
		if c.State != lode.StateFailed || c.Error == nil || c.Error.Detail != fmt.Sprintf("run %d", first+1) {
			t.Errorf("%+v", c)
		}
		if q, _ := kb.QueueState(context.Background(), "default", "graves"); q.Depth != 1 {
			t.Errorf("dead letters: %+v", q)
		}
		return
	}
	ans, err := b.CallResult(context.Background(), "default", id)
	if err != nil || string(ans.Msg.Body) != strings.Repeat(fmt.Sprint(first+1), 3*chunkBytes) {
		t.Errorf("the answer of run %d is not whole: %v", first+1, err)
	}
	if d := m.Depth("call/default/slow"); d.Taken+d.Ready+d.Waiting != 0 {
		t.Errorf("left in the queue: %+v", d)
	}
}

// Keepers follow each other while a schedule runs, each for a while not knowing
// of the next: every due time is run once.
func TestTwoClocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newWorld(), newMemory()
		var mu sync.Mutex
		due := map[string]int{}
		w.deploy("tick", lode.Function{Schedules: []lode.Schedule{{Cron: "@every 10s"}}}, func(g *guest) error {
			mu.Lock()
			defer mu.Unlock()
			due[g.head.Get(":schedule")+" "+g.head.Get(":id")]++
			return g.answer(200, "")
		})
		s := node(t, w, m, "a", Config{})
		defer s.Close()
		var ks []*Keeper
		begin := time.Now()
		for i := range 20 {
			ks = append(ks, keeper(t, s, m))
			time.Sleep(7*time.Second + time.Duration(i)*300*time.Millisecond)
		}
		for _, k := range ks {
			k.Close()
		}
		seen := map[string]string{}
		for k, n := range due {
			at, id, _ := strings.Cut(k, " ")
			if n != 1 || seen[at] != "" {
				t.Errorf("%s ran %d times as %s, and as %q", at, n, id, seen[at])
			}
			seen[at] = id
		}
		if want := int(time.Since(begin) / (10 * time.Second)); len(seen) != want {
			t.Errorf("%d due times were run, want %d", len(seen), want)
		}
	})
}

// An old keeper sweeps what the new one has replayed: nothing of it goes.
func TestOldKeeperSweeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newWorld(), newMemory()
		var fixed atomic.Bool
		open := make(chan struct{})
		w.deploy("bad", lode.Function{Retry: lode.Retry{Attempts: 1}, Limits: lode.Limits{Total: time.Hour}}, func(g *guest) error {
			if !fixed.Load() {
				return crash(g)
			}
			if err := g.block(open); err != nil {
				return err
			}
			return echo(g)
		})
		a, b := node(t, w, m, "a", Config{}), node(t, w, m, "b", Config{})
		defer a.Close()
		defer b.Close()
		ka := keeper(t, a, m)
		defer ka.Close()
		a.SetKeeper(ka)
		body := strings.Repeat("b", 2*chunkBytes)
		id := submit(t, a, "bad", "", body)
		if c := get(t, a, id, time.Minute); c.State != lode.StateFailed {
			t.Fatalf("%+v", c)
		}
		fixed.Store(true)
		kb := keeper(t, b, m)
		defer kb.Close()
		if _, err := kb.ReplayCall(context.Background(), "default", id); err != nil {
			t.Fatal(err)
		}
		ka.calls.expire(time.Now().Add(8 * 24 * time.Hour))
		ka.calls.expireKeys(time.Now().Add(8 * 24 * time.Hour))
		close(open)
		if c, err := kb.GetCall(context.Background(), "default", id, time.Minute); err != nil || c.State != lode.StateDone {
			t.Fatalf("%+v %v", c, err)
		}
		ka.calls.expire(time.Now().Add(8 * 24 * time.Hour))
		if ans, err := kb.CallResult(context.Background(), "default", id); err != nil || string(ans.Msg.Body) != body {
			t.Errorf("replayed: %v", err)
		}
		// Who keeps it now may drop it, and leaves nothing.
		kb.calls.expire(time.Now().Add(8 * 24 * time.Hour))
		kb.calls.expireKeys(time.Now().Add(8 * 24 * time.Hour))
		if n := m.count("calls", "bodies", "keys"); n != 0 {
			t.Errorf("%d entries are left", n)
		}
	})
}

// A node dies between the chunks of a request and its item: an hour later they
// are gone. Those of a request that is known stay.
func TestChunksThatNothingNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newWorld(), newMemory()
		w.deploy("slow", lode.Function{Limits: lode.Limits{Total: 5 * time.Hour}}, func(g *guest) error { return g.block(nil) })
		s := node(t, w, m, "a", Config{})
		defer s.Close()
		k := keeper(t, s, m)
		defer k.Close()
		s.SetKeeper(k)
		m.fail = func(op, key string) error {
			if op == "queue put" {
				return lode.Errorf(lode.Full, "the disk is full")
			}
			return nil
		}
		body := strings.Repeat("x", 2*chunkBytes)
		_, err := s.Submit(context.Background(), &lode.Request{Namespace: "default", Function: "slow", Body: []byte(body)})
		wantKind(t, err, lode.Full)
		m.mu.Lock()
		m.fail = nil
		m.mu.Unlock()
		if n := m.count("bodies"); n != 2 {
			t.Fatalf("%d chunks", n)
		}
		id := submit(t, s, "slow", "", body)
		time.Sleep(30 * time.Minute)
		if n := m.count("bodies"); n != 4 {
			t.Errorf("%d chunks after half an hour", n)
		}
		time.Sleep(2 * time.Hour)
		if n, marks := m.count("bodies"), m.count("keys"); n != 2 || marks != 0 {
			t.Errorf("%d chunks and %d marks after hours", n, marks)
		}
		if c := get(t, s, id, 0); c.State != lode.StateRunning {
			t.Errorf("%+v", c)
		}
	})
}
