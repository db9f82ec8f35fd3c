package invoke

import (
	"context"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"lode"
)

// order fills the line of a gate with one slot and lists who is granted.
func order(t *testing.T, g *gate, arrivals []string, cost map[string]time.Duration, most int) []string {
	t.Helper()
	var got []string
	var hold waiter
	if err := g.enter(context.Background(), &hold, target{"ns", "holder"}, &lode.Limits{}, time.Time{}); err != nil {
		t.Fatal(err)
	}
	ws := map[*waiter]string{}
	for _, name := range arrivals {
		w := &waiter{patient: true, ready: make(chan struct{}, 1)}
		g.mu.Lock()
		w.lane = g.laneOf(target{"ns", lode.Name(name)})
		if c, ok := cost[name]; ok {
			w.lane.cost = int64(c)
		}
		g.push(w.lane, &w.lane.fresh, w)
		g.mu.Unlock()
		ws[w] = name
	}
	g.exit(&hold, 0)
	for len(got) < most {
		var next *waiter
		for w := range ws {
			select {
			case <-w.ready:
				next = w
			default:
			}
		}
		if next == nil {
			t.Fatalf("nobody was granted after %v", got)
		}
		got = append(got, ws[next])
		used := cost[ws[next]]
		delete(ws, next)
		g.exit(next, used)
	}
	return got
}

func repeat(name string, n int) (out []string) {
	for range n {
		out = append(out, name)
	}
	return out
}

func count(got []string, name string) (n int) {
	for _, g := range got {
		if g == name {
			n++
		}
	}
	return n
}

// A flood of one function does not take another's turns: with equal costs the
// grants alternate, however long the flood's line is.
func TestGateFloodDoesNotStarve(t *testing.T) {
	arrivals := append(repeat("flood", 1000), repeat("modest", 10)...)
	got := order(t, newGate(1), arrivals, map[string]time.Duration{"flood": time.Millisecond, "modest": time.Millisecond}, 22)
	if n := count(got, "modest"); n != 10 {
		t.Errorf("modest got %d of 22 grants: %v", n, got)
	}
}

// What is shared is CPU: a function whose invocations cost a tenth is granted
// ten times as often.
func TestGateSharesCPU(t *testing.T) {
	arrivals := append(repeat("heavy", 100), repeat("light", 200)...)
	got := order(t, newGate(1), arrivals, map[string]time.Duration{"heavy": 10 * time.Millisecond, "light": time.Millisecond}, 110)
	if n := count(got, "light"); n < 98 || n > 102 {
		t.Errorf("light got %d of 110 grants", n)
	}
}

// One very expensive invocation is forgotten after mostDebt.
func TestGateDebtIsBounded(t *testing.T) {
	g := newGate(1)
	g.laneOf(target{"ns", "once"}).clock = int64(time.Hour)
	arrivals := append(repeat("flood", 2000), "once")
	got := order(t, g, arrivals, map[string]time.Duration{"flood": time.Millisecond, "once": time.Millisecond}, 1010)
	if count(got, "once") != 1 {
		t.Errorf("not granted among 1,010")
	}
}

func TestGateFirstInFirstOut(t *testing.T) {
	g := newGate(1)
	var hold waiter
	if err := g.enter(context.Background(), &hold, target{"ns", "f"}, &lode.Limits{}, time.Time{}); err != nil {
		t.Fatal(err)
	}
	ws := make([]*waiter, 5)
	g.mu.Lock()
	for i := range ws {
		ws[i] = &waiter{patient: true, lane: g.laneOf(target{"ns", "f"})}
		g.push(ws[i].lane, &ws[i].lane.fresh, ws[i])
	}
	g.mu.Unlock()
	g.exit(&hold, 0)
	for i, w := range ws {
		select {
		case <-w.ready:
		default:
			t.Fatalf("waiter %d is not the next", i)
		}
		g.exit(w, 0)
	}
}

func TestGateBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, ctx := newGate(8), context.Background()
		lim := &lode.Limits{ScaleMax: 1, Each: 2, QueueMax: 3}
		f := target{"ns", "f"}
		var first, second waiter
		for _, w := range []*waiter{&first, &second} {
			if err := g.enter(ctx, w, f, lim, time.Time{}); err != nil {
				t.Fatal(err)
			}
		}
		var wg sync.WaitGroup
		waiting := make([]waiter, 3)
		for i := range waiting {
			wg.Go(func() {
				if err := g.enter(ctx, &waiting[i], f, lim, time.Time{}); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		var over waiter
		err := g.enter(ctx, &over, f, lim, time.Time{})
		wantKind(t, err, lode.Overloaded)
		if lode.AsError(err).RetryAfter < time.Second {
			t.Error("no RetryAfter")
		}
		// Another function is not concerned.
		var other waiter
		if err := g.enter(ctx, &other, target{"ns", "other"}, lim, time.Time{}); err != nil {
			t.Error(err)
		}
		// What waits durably elsewhere is not refused.
		patient := waiter{patient: true}
		wg.Go(func() {
			if err := g.enter(ctx, &patient, f, lim, time.Time{}); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		g.exit(&other, 0)
		g.exit(&first, 0)
		g.exit(&second, 0)
		synctest.Wait()
		held := 0
		for i := range waiting {
			if waiting[i].slot {
				held++
			}
		}
		if held != 2 {
			t.Errorf("%d of the waiting were admitted, want 2", held)
		}
		for range 2 {
			for i := range waiting {
				if waiting[i].slot {
					g.exit(&waiting[i], 0)
				}
			}
			synctest.Wait()
		}
		wg.Wait()
		g.exit(&patient, 0)
		if g.free != 8 || g.fns[f].places != 0 || g.fns[f].counted != 0 || len(g.ready) != 0 {
			t.Errorf("left over: free %d, %+v", g.free, g.fns[f])
		}
	})
}

func TestGateGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, lim := newGate(1), &lode.Limits{QueueMax: 1}
		var hold waiter
		if err := g.enter(context.Background(), &hold, target{"ns", "f"}, lim, time.Time{}); err != nil {
			t.Fatal(err)
		}
		var w waiter
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(time.Second, cancel)
		wantKind(t, g.enter(ctx, &w, target{"ns", "f"}, lim, time.Now().Add(time.Hour)), lode.Cancelled)
		start := time.Now()
		wantKind(t, g.enter(context.Background(), &w, target{"ns", "f"}, lim, start.Add(3*time.Second)), lode.Deadline)
		if d := time.Since(start); d != 3*time.Second {
			t.Errorf("gave up after %s", d)
		}
		if l := g.fns[target{"ns", "f"}]; l.fresh.n != 0 || l.counted != 0 || l.index != -1 {
			t.Errorf("left in line: %+v", l)
		}
	})
}

// A guest that waits holds no slot, and comes back before those that have not
// begun.
func TestGateLeaveAndEnter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, ctx, lim := newGate(1), context.Background(), &lode.Limits{}
		var a, b, c waiter
		f := target{"ns", "f"}
		if err := g.enter(ctx, &a, f, lim, time.Time{}); err != nil {
			t.Fatal(err)
		}
		g.leave(&a)
		if err := g.enter(ctx, &b, f, lim, time.Time{}); err != nil {
			t.Fatal("the slot of a waiting guest was not free")
		}
		var wg sync.WaitGroup
		wg.Go(func() { g.enter(ctx, &c, f, lim, time.Time{}) })
		synctest.Wait()
		wg.Go(func() { g.reenter(ctx, &a, time.Time{}) })
		synctest.Wait()
		g.exit(&b, 0)
		synctest.Wait()
		if !a.slot || c.slot {
			t.Errorf("a has a slot: %t, c: %t", a.slot, c.slot)
		}
		g.exit(&a, 0)
		wg.Wait()
		g.exit(&c, 0)
		if g.free != 1 {
			t.Errorf("%d slots are free", g.free)
		}
	})
}

// However invocations come, wait, give up and go, no slot and no place is lost
// or given twice.
func TestGateInvariants(t *testing.T) {
	const slots, places = 3, 2
	g := newGate(slots)
	var computing, inF atomic.Int64
	compute := func(r *rand.Rand) {
		if n := computing.Add(1); n > slots {
			t.Errorf("%d compute at once", n)
		}
		for range r.IntN(50) {
			runtime.Gosched()
		}
		computing.Add(-1)
	}
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(i)))
			var w waiter
			for range 200 {
				name, lim := "g", &lode.Limits{QueueMax: 4}
				if r.IntN(2) == 0 {
					name, lim = "f", &lode.Limits{ScaleMax: places, QueueMax: 3}
				}
				ctx, cancel := context.WithCancel(context.Background())
				if r.IntN(4) == 0 {
					go cancel()
				}
				w.patient = r.IntN(3) == 0
				if g.enter(ctx, &w, target{"ns", lode.Name(name)}, lim, time.Time{}) == nil {
					if name == "f" {
						if n := inF.Add(1); n > places {
							t.Errorf("%d in f at once", n)
						}
					}
					compute(r)
					for range r.IntN(3) {
						g.leave(&w)
						if g.reenter(ctx, &w, time.Time{}) != nil {
							break
						}
						compute(r)
					}
					if name == "f" {
						inF.Add(-1)
					}
					g.exit(&w, time.Duration(r.IntN(1000)))
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if g.free != slots || len(g.ready) != 0 {
		t.Errorf("%d slots are free, %d lanes are ready", g.free, len(g.ready))
	}
	for _, l := range g.fns {
		if l.places != 0 || l.counted != 0 || l.fresh.n != 0 || l.resume.n != 0 {
			t.Errorf("left: %+v", l)
		}
	}
	g.forget()
	if len(g.fns) != 0 {
		t.Errorf("%d lanes are left", len(g.fns))
	}
}
