package bus

import (
	"cmp"
	"container/heap"
	"slices"
)

// An item is where its queue says:
//
//	put -> waiting -(due)-> ready -(taken)-> taken -(done)-> done -(forgotten)->
//	          ^               ^------(lapsed)--|
//	          |-------------(later)------------|
//
// waiting and ready may be done too (cancelled). done without a memory of the
// id is forgotten at once. moveTo is the one function that changes the state.
type itemState int

const (
	itemWaiting itemState = iota // due later
	itemReady
	itemTaken // somebody works on it
	itemDone  // only its id is remembered
	itemGone
)

type item struct {
	num        uint64
	q          *queueState
	id         string
	priority   int
	put, due   int64 // wall clock, ms
	remember   int64 // ms that the id is remembered after the end
	deliveries int
	note       string
	body       []byte // nil: only on disk, at at
	size       int    // of the body
	at         place
	state      itemState
	until      int64 // taken: monotonic ms; done: wall clock
	index      int   // in the heap of its state
}

// place is where the newest full state of an item stands in the log.
type place struct {
	seq   uint64
	entry int
}

// instant is a moment by both clocks, in ms: what survives a restart is by the
// wall clock, what does not by the one that cannot jump.
type instant struct{ wall, mono int64 }

type itemHeap struct {
	items []*item
	less  func(a, b *item) bool
}

var _ heap.Interface = (*itemHeap)(nil)

func (h *itemHeap) Len() int           { return len(h.items) }
func (h *itemHeap) Less(i, j int) bool { return h.less(h.items[i], h.items[j]) }
func (h *itemHeap) Swap(i, j int) {
	h.items[i], h.items[j] = h.items[j], h.items[i]
	h.items[i].index, h.items[j].index = i, j
}
func (h *itemHeap) Push(x any) {
	x.(*item).index = len(h.items)
	h.items = append(h.items, x.(*item))
}
func (h *itemHeap) Pop() any {
	last := len(h.items) - 1
	x := h.items[last]
	h.items[last] = nil
	h.items = h.items[:last]
	return x
}

// queueState is one queue.
type queueState struct {
	name  string
	ids   map[string]*item
	heaps [itemGone]itemHeap // by itemState
	order []*item            // by number, ended ones among them
	ended int                // of order

	unsorted bool  // order has to be sorted before use
	seen     int64 // wall clock of the last advance; 0 = none yet
}

func newQueueState(name string) *queueState {
	q := &queueState{name: name, ids: make(map[string]*item)}
	q.heaps[itemWaiting].less = func(a, b *item) bool { return a.due < b.due }
	q.heaps[itemReady].less = func(a, b *item) bool {
		return a.priority > b.priority || a.priority == b.priority && a.num < b.num
	}
	byUntil := func(a, b *item) bool { return a.until < b.until }
	q.heaps[itemTaken].less, q.heaps[itemDone].less = byUntil, byUntil
	return q
}

func (q *queueState) depth() int {
	return len(q.heaps[itemWaiting].items) + len(q.heaps[itemReady].items) + len(q.heaps[itemTaken].items)
}

func (q *queueState) moveTo(it *item, s itemState) {
	if it.state != itemGone {
		heap.Remove(&q.heaps[it.state], it.index)
	}
	it.state = s
	if s != itemGone {
		heap.Push(&q.heaps[s], it)
	}
}

// live is order without the ended ones in front.
func (q *queueState) live() []*item {
	if q.unsorted {
		slices.SortFunc(q.order, func(a, b *item) int { return cmp.Compare(a.num, b.num) })
		q.unsorted = false
	}
	for len(q.order) > 0 && q.order[0].state >= itemDone {
		q.order[0] = nil
		q.order = q.order[1:]
		q.ended--
	}
	if q.ended > 1024 && q.ended > len(q.order)/2 {
		q.order = slices.DeleteFunc(q.order, func(it *item) bool { return it.state >= itemDone })
		q.ended = 0
	}
	return q.order
}

// queuesState is the whole state of Queues: a pure function of the operations
// in the log, plus what is taken. It is not locked.
type queuesState struct {
	queues map[string]*queueState
	items  map[uint64]*item
	last   uint64 // highest number given
	packs  packs
	held   int64 // bytes of bodies in memory
	budget int64 // for held
}

func newQueuesState(budget int64) *queuesState {
	return &queuesState{queues: make(map[string]*queueState), items: make(map[uint64]*item), budget: budget}
}

func (s *queuesState) queue(name string) *queueState {
	q := s.queues[name]
	if q == nil {
		q = newQueueState(name)
		s.queues[name] = q
	}
	return q
}

// apply does what a stored operation says. It is the same in a replay and
// after an append.
func (s *queuesState) apply(o *op, at place) {
	s.last = max(s.last, o.num)
	it := s.items[o.num]
	switch o.kind {
	case opPut:
		s.applyPut(o, at)
	case opMark:
		s.forget(it)
		it = s.add(&item{num: o.num, id: o.id, state: itemGone, until: o.forget}, o.queue, at)
		it.q.moveTo(it, itemDone)
	case opDone:
		s.done(it, o.forget, at)
	case opLater:
		if it != nil && it.state < itemDone {
			it.q.moveTo(it, itemGone)
			it.due, it.note = o.due, o.note
			it.q.moveTo(it, itemWaiting)
		}
	case opGiven:
		if it != nil {
			it.deliveries = max(it.deliveries, o.deliveries)
		}
	}
}

func (s *queuesState) applyPut(o *op, at place) {
	if it := s.items[o.num]; it != nil {
		// Carried forward: only its place has changed, for what the state
		// was when it was written is what the operations before it made.
		s.packs.move(it, at)
		it.deliveries = max(it.deliveries, o.deliveries)
		return
	}
	it := s.add(&item{num: o.num, id: o.id, priority: o.priority, put: o.put, due: o.due, remember: o.remember,
		deliveries: o.deliveries, note: o.note, size: len(o.body), state: itemGone}, o.queue, at)
	if s.held+int64(len(o.body)) <= s.budget {
		it.body = slices.Clone(o.body)
		if it.body == nil {
			it.body = []byte{}
		}
		s.held += int64(len(o.body))
	}
	if n := len(it.q.order); n > 0 && it.q.order[n-1].num > it.num {
		it.q.unsorted = true // carried forward past younger ones
	}
	it.q.order = append(it.q.order, it)
	it.q.moveTo(it, itemWaiting)
}

func (s *queuesState) add(it *item, queue string, at place) *item {
	it.q = s.queue(queue)
	s.items[it.num] = it
	it.q.ids[it.id] = it
	s.packs.move(it, at)
	return it
}

// done ends an item; its id stays known until forget, if that is not 0.
func (s *queuesState) done(it *item, forget int64, at place) {
	if it == nil || it.state >= itemDone {
		return
	}
	it.q.ended++
	s.drop(it)
	if forget == 0 {
		s.forget(it)
		return
	}
	it.q.moveTo(it, itemGone)
	it.until = forget
	it.q.moveTo(it, itemDone)
	s.packs.move(it, place{})
	it.size, it.note = 0, ""
	s.packs.move(it, at) // the memory of the id lives where it was made
}

// drop lets go of the body.
func (s *queuesState) drop(it *item) {
	if it.body != nil {
		s.held -= int64(len(it.body))
		it.body = nil
	}
}

func (s *queuesState) forget(it *item) {
	if it == nil {
		return
	}
	it.q.moveTo(it, itemGone)
	s.packs.move(it, place{})
	delete(s.items, it.num)
	if it.q.ids[it.id] == it {
		delete(it.q.ids, it.id)
	}
}

// advance lets time pass in q: what is due is ready, what was taken for too
// long is ready again, old ids are forgotten.
func (s *queuesState) advance(q *queueState, now instant) {
	if q.seen == 0 || now.wall < q.seen-backwards {
		q.rewind(now)
	}
	q.seen = now.wall
	for h := q.heaps[itemWaiting].items; len(h) > 0 && h[0].due <= now.wall; h = q.heaps[itemWaiting].items {
		q.moveTo(h[0], itemReady)
	}
	for h := q.heaps[itemTaken].items; len(h) > 0 && h[0].until <= now.mono; h = q.heaps[itemTaken].items {
		q.moveTo(h[0], itemReady)
	}
	for h := q.heaps[itemDone].items; len(h) > 0 && h[0].until <= now.wall; h = q.heaps[itemDone].items {
		s.forget(h[0])
	}
}

// backwards is the step in ms from which on a clock is taken to have been set
// back.
const backwards = 1000

// rewind is for a clock that was set back: what was put in the future, as it
// looks now, waits for as long as it was meant to when it was put, from now on,
// and not until the clock has caught up.
func (q *queueState) rewind(now instant) {
	h := &q.heaps[itemWaiting]
	for _, it := range h.items {
		if it.put > now.wall {
			it.due, it.put = min(it.due, now.wall+max(0, it.due-it.put)), now.wall
		}
	}
	heap.Init(h)
}

// next is how many ms to wait until something of q may be ready; -1: nothing
// is to be waited for.
func (q *queueState) next(now instant) int64 {
	wait := int64(-1)
	if h := q.heaps[itemWaiting].items; len(h) > 0 {
		wait = max(0, h[0].due-now.wall)
	}
	if h := q.heaps[itemTaken].items; len(h) > 0 {
		if w := max(0, h[0].until-now.mono); wait < 0 || w < wait {
			wait = w
		}
	}
	return wait
}

// take marks up to n ready items as taken until now + visible.
func (s *queuesState) take(q *queueState, n int, visible int64, now instant) []*item {
	s.advance(q, now)
	var out []*item
	for len(out) < n && len(q.heaps[itemReady].items) > 0 {
		it := q.heaps[itemReady].items[0]
		q.moveTo(it, itemGone)
		it.until = now.mono + visible
		it.deliveries++
		q.moveTo(it, itemTaken)
		out = append(out, it)
	}
	return out
}
