package invoke

import (
	"cmp"
	"container/heap"
	"context"
	"runtime"
	"sync"
	"time"

	"lode"
)

// target is whom admission is fair to: a function, all revisions together.
type target struct {
	ns   lode.Namespace
	name lode.Name
}

func (t target) String() string { return string(t.ns) + "/" + string(t.name) }

const (
	defaultQueueMax = 1000
	firstCost       = 100 * time.Microsecond // of a function that never ran
	leastCost       = 10 * time.Microsecond  // what any invocation costs the node
	mostDebt        = time.Second            // of CPU that a function can be behind by
	moreSlots       = 2                      // than cores: who computes may wait for the kernel
)

// gate admits invocations. It shares slots of CPU among functions by
// start-time fair queueing: every function has a virtual clock that the CPU
// of its invocations advances, and the waiting function with the lowest clock
// is next. A function that comes back starts at the present, so idleness earns
// no credit; debt is bounded, so one long invocation is forgotten.
//
// An invocation holds a place of its function (of at most max) from admission
// to its end, and a slot only while it computes. Within a function those that
// come back for a slot go before those that have not begun.
//
// A Service has two gates. What has computed for a turn gives its slot back
// and goes on in the gate of the long ones. That has a slot for each core, but
// fewer than Go runs threads at once: whatever computes there, one is left to
// serve the rest.
//
// The clock moves only for what was granted from the line: without
// contention there is nothing to be fair about, and the path is one lock.
type gate struct {
	mu    sync.Mutex
	slots int // in all
	free  int
	now   int64 // virtual, ns: the clock of the last function granted from the line
	ready readyHeap
	fns   map[target]*lane
	mean  int64 // ns of a slot that one takes, of all lanes, moving average
}

// lane is one function in the gate.
type lane struct {
	target
	max     int   // places; 0 = no limit
	places  int   // taken
	clock   int64 // virtual, ns
	cost    int64 // ns of CPU, moving average
	hold    int64 // ns of a slot, moving average
	index   int   // in ready; -1 = not ready
	resume  line
	fresh   line
	counted int // of fresh, those that queue_max counts

	granted, refused uint64
}

// waiter is one invocation in the gate. It may be used again when released.
type waiter struct {
	lane       *lane
	next, prev *waiter
	in         *line // that it waits in, or nil
	hold       int64 // ns that it had its slot for; 0 = not known: what it computed
	charged    int64 // ns, ahead of what it turns out to use; 0 = not charged
	patient    bool  // not counted against queue_max
	slot       bool  // holds a slot
	waited     bool  // it was not admitted at once
	ready      chan struct{}
	timer      *time.Timer
}

func newGate(slots int) *gate {
	if slots <= 0 {
		slots = min(runtime.GOMAXPROCS(0), runtime.NumCPU()) + moreSlots
	}
	return &gate{slots: slots, free: slots, fns: make(map[target]*lane)}
}

func (g *gate) laneOf(t target) *lane {
	l := g.fns[t]
	if l == nil {
		l = &lane{target: t, cost: int64(firstCost), hold: int64(firstCost), index: -1}
		g.fns[t] = l
	}
	return l
}

// enter waits for a place and a slot. Its error is Overloaded where the line
// is full, Cancelled by ctx, Deadline past the deadline; then w holds nothing.
func (g *gate) enter(ctx context.Context, w *waiter, t target, lim *lode.Limits, deadline time.Time) error {
	g.mu.Lock()
	l := g.laneOf(t)
	w.lane, w.charged, w.waited = l, 0, false
	if l.max = lim.ScaleMax * max(1, lim.Each); g.free > 0 && len(g.ready) == 0 && l.fresh.n == 0 && l.open() {
		g.free--
		l.places++
		l.granted++
		w.slot = true
		g.mu.Unlock()
		return nil
	}
	w.waited = true
	bound := cmp.Or(lim.QueueMax, defaultQueueMax)
	if !w.patient && l.counted >= bound {
		l.refused++
		err := l.overloaded(bound, g.slots)
		g.mu.Unlock()
		return err
	}
	if !w.patient {
		l.counted++
	}
	g.push(l, &l.fresh, w)
	g.mu.Unlock()
	return g.wait(ctx, w, deadline)
}

func (l *lane) open() bool { return l.max <= 0 || l.places < l.max }

func (l *lane) overloaded(bound, slots int) error {
	width := slots
	if l.max > 0 {
		width = min(width, l.max)
	}
	after := time.Duration(l.cost * int64(l.fresh.n) / int64(max(1, width)))
	e := lode.Errorf(lode.Overloaded, "%d invocations of %s wait already", bound, l.target)
	e.RetryAfter = min(max(after.Round(time.Second), time.Second), time.Minute)
	return e.WithHint("retry later, call it asynchronously, or raise its queue_max or scale")
}

// push puts w at the end of q and gives out what is free.
func (g *gate) push(l *lane, q *line, w *waiter) {
	if w.ready == nil {
		w.ready = make(chan struct{}, 1)
	}
	if l.fresh.n == 0 && l.resume.n == 0 {
		l.clock = min(max(l.clock, g.now), g.now+int64(mostDebt))
	}
	q.push(w)
	g.settle(l)
	g.grant()
}

// settle puts l into the heap or takes it out, as its state asks.
func (g *gate) settle(l *lane) {
	want := l.resume.n > 0 || l.fresh.n > 0 && l.open()
	switch {
	case want && l.index < 0:
		heap.Push(&g.ready, l)
	case want:
		heap.Fix(&g.ready, l.index)
	case l.index >= 0:
		heap.Remove(&g.ready, l.index)
	}
}

// grant gives the free slots to the lanes that are furthest behind.
func (g *gate) grant() {
	for g.free > 0 && len(g.ready) > 0 {
		l := g.ready[0]
		g.now = max(g.now, l.clock)
		w := l.resume.pop()
		if w == nil {
			w = l.fresh.pop()
			if !w.patient {
				l.counted--
			}
			l.places++
			l.granted++
			w.charged = l.cost
			l.clock += l.cost
		}
		g.free--
		w.slot = true
		w.ready <- struct{}{}
		g.settle(l)
	}
}

// wait waits until w is granted or has to give up.
func (g *gate) wait(ctx context.Context, w *waiter, deadline time.Time) error {
	var late <-chan time.Time
	if !deadline.IsZero() {
		if w.timer == nil {
			w.timer = time.NewTimer(time.Until(deadline))
		} else {
			w.timer.Reset(time.Until(deadline))
		}
		defer w.timer.Stop()
		late = w.timer.C
	}
	var err error
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
		err = ended(ctx, "waiting for its turn")
	case <-late:
		err = lode.Errorf(lode.Deadline, "the deadline passed while %s was waiting for its turn", w.lane.target).
			WithHint("the node or the function is busy: see lode top")
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if w.in == nil { // granted meanwhile: what was given is used
		<-w.ready
		return nil
	}
	if w.in == &w.lane.fresh && !w.patient {
		w.lane.counted--
	}
	w.in.remove(w)
	g.settle(w.lane)
	g.grant()
	return err
}

// leave gives w's slot back while its guest waits.
func (g *gate) leave(w *waiter) {
	g.mu.Lock()
	if w.slot {
		w.slot = false
		g.free++
		g.grant()
	}
	g.mu.Unlock()
}

// reenter takes a slot again.
func (g *gate) reenter(ctx context.Context, w *waiter, deadline time.Time) error {
	g.mu.Lock()
	if w.slot {
		g.mu.Unlock()
		return nil
	}
	if g.free > 0 && len(g.ready) == 0 {
		g.free--
		w.slot = true
		g.mu.Unlock()
		return nil
	}
	g.push(w.lane, &w.lane.resume, w)
	g.mu.Unlock()
	return g.wait(ctx, w, deadline)
}

// contended reports whether somebody waits who could be granted a slot.
func (g *gate) contended() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.ready) > 0
}

// exit ends w, whose guest computed for cpu.
func (g *gate) exit(w *waiter, cpu time.Duration) {
	g.mu.Lock()
	l := w.lane
	used := max(int64(cpu), int64(leastCost))
	l.cost += (used - l.cost) / 8
	hold := max(used, w.hold)
	w.hold = 0
	l.hold += (hold - l.hold) / 8
	g.mean += (hold - g.mean) / 32
	if w.charged > 0 {
		l.clock = min(l.clock+used-w.charged, g.now+int64(mostDebt))
	}
	l.places--
	if w.slot {
		w.slot = false
		g.free++
	}
	w.lane = nil
	g.settle(l)
	g.grant()
	g.mu.Unlock()
}

// forget drops the lanes that nobody uses.
func (g *gate) forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for t, l := range g.fns {
		if l.places == 0 && l.fresh.n == 0 && l.resume.n == 0 {
			delete(g.fns, t)
		}
	}
}

// line is a queue of waiters, linked through them.
type line struct {
	head, tail *waiter
	n          int
}

func (q *line) push(w *waiter) {
	w.in, w.prev, w.next = q, q.tail, nil
	if q.tail != nil {
		q.tail.next = w
	} else {
		q.head = w
	}
	q.tail = w
	q.n++
}

func (q *line) pop() *waiter {
	w := q.head
	if w != nil {
		q.remove(w)
	}
	return w
}

func (q *line) remove(w *waiter) {
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		q.head = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	} else {
		q.tail = w.prev
	}
	w.in, w.prev, w.next = nil, nil, nil
	q.n--
}

// readyHeap orders the lanes that could use a slot by their clocks.
type readyHeap []*lane

func (h readyHeap) Len() int           { return len(h) }
func (h readyHeap) Less(i, j int) bool { return h[i].clock < h[j].clock }
func (h readyHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *readyHeap) Push(x any) {
	l := x.(*lane)
	l.index = len(*h)
	*h = append(*h, l)
}

func (h *readyHeap) Pop() any {
	old := *h
	l := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	l.index = -1
	return l
}

var _ heap.Interface = (*readyHeap)(nil)

// ended says that ctx ended while doing something.
func ended(ctx context.Context, doing string) error {
	cause := context.Cause(ctx)
	if e, ok := cause.(*lode.Error); ok {
		return e
	}
	if cause == context.DeadlineExceeded {
		return lode.Errorf(lode.Deadline, "the deadline passed while %s: %w", doing, cause)
	}
	return lode.Errorf(lode.Cancelled, "cancelled while %s: %w", doing, cause)
}
