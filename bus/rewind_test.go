package bus

import "testing"

// TestClockSetBack: an item waits for as long as it was meant to, also when
// the clock goes back, at a restart or in between; one that was put before is
// not early.
func TestClockSetBack(t *testing.T) {
	const hour = int64(3_600_000)
	now := int64(100 * hour)
	for name, first := range map[string]int64{"in between": now + hour, "at a restart": now} {
		s := newQueuesState(1 << 20)
		s.packs.add(1, 100)
		s.packs.add(2, 100)
		s.apply(&op{kind: opPut, num: 1, queue: "q", id: "ahead", put: now + hour, due: now + hour + 2000}, place{1, 0})
		s.apply(&op{kind: opPut, num: 2, queue: "q", id: "old", put: now - hour, due: now + 3*hour}, place{2, 0})
		q := s.queue("q")
		s.advance(q, instant{wall: first})
		s.advance(q, instant{wall: now})
		if wait := q.next(instant{wall: now}); wait != 2000 {
			t.Errorf("%s: it waits %d ms, want 2,000", name, wait)
		}
		s.advance(q, instant{wall: now + 1999})
		if n := len(q.heaps[itemReady].items); n != 0 {
			t.Errorf("%s: %d are early", name, n)
		}
		s.advance(q, instant{wall: now + 2000})
		if h := q.heaps[itemReady].items; len(h) != 1 || h[0].id != "ahead" {
			t.Errorf("%s: %d are ready", name, len(h))
		}
		if h := q.heaps[itemWaiting].items; len(h) != 1 || h[0].due != now+3*hour {
			t.Errorf("%s: the one that was put before has moved", name)
		}
	}
}
