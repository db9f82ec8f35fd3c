package invoke

import (
	"testing"
	"testing/synctest"
	"time"

	"lode"
	"lode/engine"
)

// compute is a guest that computes for n turns, and calls each after every one.
func compute(n int, each func()) code {
	return func(g *guest) error {
		for range n {
			time.Sleep(time.Millisecond)
			if err := g.inv.Slot.(engine.Turner).Turn(g.ctx, time.Millisecond); err != nil {
				return err
			}
			each()
		}
		return g.answer(200, "done")
	}
}

func freeSlots(g *gate) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.free
}

// Whoever computes on and on gives its slot to those that are soon done, and
// the long ones take turns.
func TestLongOnesTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.service(t, Config{Slots: 1})
		var order []string
		w.deploy("short", lode.Function{}, echo)
		for _, name := range []string{"a", "b"} {
			w.deploy(name, lode.Function{}, compute(100, func() { order = append(order, name) }))
		}
		ended := make(chan error, 2)
		for _, name := range []string{"a", "b"} {
			go func() {
				_, _, err := call(s, name, "")
				ended <- err
			}()
		}
		time.Sleep(20500 * time.Microsecond)
		if free := freeSlots(s.gate); free != 1 {
			t.Errorf("%d slots are free beside two long invocations, want 1", free)
		}
		if _, out, err := call(s, "short", "x"); err != nil || out.Usage.Queued > 0 {
			t.Errorf("beside long ones: waited %s, %v", out.Usage.Queued, err)
		}
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		if a, b := count(order[:100], "a"), count(order[:100], "b"); a < 30 || b < 30 {
			t.Errorf("of the first 100 turns a had %d and b %d", a, b)
		}
		if freeSlots(s.gate) != 1 || freeSlots(s.long) != 1 {
			t.Errorf("slots are lost: %d and %d are free", freeSlots(s.gate), freeSlots(s.long))
		}
	})
}

// A deadline ends the wait for a turn, and nothing is held afterwards.
func TestTurnAfterDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		s := w.service(t, Config{Slots: 1})
		release := make(chan struct{})
		w.deploy("holder", lode.Function{}, func(g *guest) error {
			err := g.inv.Slot.(engine.Turner).Turn(g.ctx, time.Millisecond)
			<-release
			return err
		})
		w.deploy("late", lode.Function{Limits: lode.Limits{Total: 50 * time.Millisecond}}, compute(10, func() {}))
		ended := make(chan error)
		go func() {
			_, _, err := call(s, "holder", "")
			ended <- err
		}()
		synctest.Wait()
		_, _, err := call(s, "late", "")
		wantKind(t, err, lode.Deadline)
		close(release)
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if freeSlots(s.gate) != 1 || freeSlots(s.long) != 1 {
			t.Errorf("slots are lost: %d and %d are free", freeSlots(s.gate), freeSlots(s.long))
		}
	})
}
