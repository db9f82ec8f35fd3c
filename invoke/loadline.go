package invoke

import (
	"time"

	"lode"
)

// longFrom is the cost of an invocation from which a function is taken to
// compute on in the gate of the long ones.
const longFrom = int64(2 * time.Millisecond)

// try admits w where nobody has to wait for that: it is enter without the line.
func (g *gate) try(w *waiter, t target, lim *lode.Limits) (admitted, long bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.laneOf(t)
	long = l.cost > longFrom
	if l.max = lim.ScaleMax * max(1, lim.Each); g.free == 0 || len(g.ready) > 0 || l.fresh.n > 0 || !l.open() {
		return false, long
	}
	w.lane, w.charged, w.waited, w.slot = l, 0, false, true
	g.free--
	l.places++
	l.granted++
	return true, long
}

// back undoes an admission whose invocation did not begin.
func (g *gate) back(w *waiter) {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := w.lane
	l.places--
	l.granted--
	l.clock -= w.charged
	if w.slot {
		w.slot = false
		g.free++
	}
	w.lane, w.charged = nil, 0
	g.settle(l)
	g.grant()
}

// crowded reports whether nobody more can compute at once.
func (g *gate) crowded() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.free == 0 || len(g.ready) > 0
}

// waiting is how many wait in the lanes that could use a slot; g.mu is held.
func (g *gate) waiting() (n int) {
	for _, l := range g.ready {
		n += l.resume.n + l.fresh.n
	}
	return n
}

// count is how many compute or wait.
func (g *gate) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.slots - g.free + g.waiting()
}

// inLine is how many invocations compute or wait on this node, and for how
// many ns one has a slot, on average.
func (s *Service) inLine() (n int, mean int64) {
	s.gate.mu.Lock()
	n, mean = s.gate.slots-s.gate.free+s.gate.waiting(), s.gate.mean
	s.gate.mu.Unlock()
	return n + s.long.count(), max(mean, int64(leastCost))
}

// tryEnter is the fast path of admission: a slot at once, or none. A function
// that computes for long needs one of the long ones' slots besides, or it
// would only begin to wait when it has computed for a turn.
func (s *Service) tryEnter(w *waiter, t target, lim *lode.Limits) bool {
	ok, long := s.gate.try(w, t, lim)
	if ok && long && s.long.crowded() {
		s.gate.back(w)
		return false
	}
	return ok
}

// standing is how long the next invocation of t would wait here, and for how
// long what runs here has a slot, on average. run is what one takes
// from its beginning to its end (0: not known), which counts where a function
// has places.
//
// The lanes that wait take turns, so that of a function waits at most as long
// as its own line times the number of lanes, and not longer than all that
// wait.
func (s *Service) standing(t target, lim *lode.Limits, run time.Duration) (wait, mean time.Duration) {
	g := s.gate
	g.mu.Lock()
	l := g.fns[t]
	cost, hold, own, places, width := int64(firstCost), int64(firstCost), 0, 0, lim.ScaleMax*max(1, lim.Each)
	if l != nil {
		cost, hold, own, places = l.cost, l.hold, l.fresh.n+l.resume.n, l.places
	}
	mean = time.Duration(max(g.mean, int64(leastCost)))
	if g.free == 0 || len(g.ready) > 0 {
		lanes := len(g.ready)
		if own == 0 {
			lanes++
		}
		var all int64
		for _, x := range g.ready {
			all += int64(x.fresh.n+x.resume.n) * x.hold
		}
		// What computes now is half done, on average.
		mine := int64(own+1) * hold * int64(lanes)
		wait = time.Duration(min(mine, all+hold)/int64(g.slots) + (g.mean+1)/2)
	}
	g.mu.Unlock()
	if width > 0 && places+own >= width {
		wait = max(wait, time.Duration(own+1)*max(run, time.Duration(hold))/time.Duration(width))
	}
	if cost > longFrom {
		if n, slots := s.long.count(), s.long.slots; n >= slots {
			wait = max(wait, time.Duration(int64(n-slots+1)*cost/int64(slots)))
		}
		mean = max(mean, time.Duration(cost))
	}
	return wait, mean
}
