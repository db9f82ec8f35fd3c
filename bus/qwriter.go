package bus

import (
	"context"
	"errors"
	"time"

	"lode"
)

const (
	itemCost   = 1600    // bytes that an item takes in a write beside its body, at most
	cleanBatch = 1 << 20 // bytes of live items carried forward in one write

	// givenPause is how long a delivery waits for another write to be noted
	// with. A crash within it may forget one delivery, which only makes an
	// item come once more than it is counted.
	givenPause = 20 * time.Millisecond
	sweepEvery = 30 * time.Second
	cleanPause = 5 * time.Second // after an attempt that could not read
)

// request is one call that changes something: all of it or nothing.
type request struct {
	finish     []uint64
	onlyIfLive uint64 // unless this item is there, nothing is done
	later      *op
	deliveries int // later: only if the item is taken with this count
	puts       []Item

	added int
	err   error
	done  chan struct{}
}

func (r *request) size() int {
	n := 32 * (len(r.finish) + 1)
	if r.later != nil {
		n += maxNote + 64
	}
	for i := range r.puts {
		n += len(r.puts[i].Body) + itemCost
	}
	return n
}

// do hands r to the writer and waits for it; it returns how many items are new.
func (s *Queues) do(ctx context.Context, r *request) (int, error) {
	ctx, cancel := s.log.b.patient(ctx)
	defer cancel()
	r.done = make(chan struct{})
	s.mu.Lock()
	if err := s.failed; err != nil {
		s.mu.Unlock()
		return 0, err
	}
	s.pending = append(s.pending, r)
	s.mu.Unlock()
	s.poke()
	select {
	case <-r.done:
		return r.added, r.err
	case <-ctx.Done():
		if errors.Is(context.Cause(ctx), errPatience) {
			return 0, wrap(errPatience, "write to queues %s", s.log.name)
		}
		return 0, ctxError(ctx, "the outcome is not known")
	}
}

func (s *Queues) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run is the writer: it packs what has gathered while the last write was under
// way into the next one.
func (s *Queues) run() {
	defer close(s.stopped)
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	var pause <-chan time.Time // runs while only deliveries are to be noted
	for {
		select {
		case <-s.ctx.Done():
			s.fail(errClosed())
			return
		case <-s.wake:
			if s.idle() {
				if pause == nil {
					pause = time.After(givenPause)
				}
				continue
			}
		case <-pause:
		case <-sweep.C:
			s.sweep()
		}
		pause = nil
		for s.writeBatch() {
		}
	}
}

// idle reports whether no call waits for the writer.
func (s *Queues) idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.pending) == 0
}

// fail ends every call, now and later.
func (s *Queues) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = err
	for _, r := range s.pending {
		r.err = err
		close(r.done)
	}
	s.pending = nil
	for name := range s.changed {
		s.notify(name)
	}
}

// writeBatch makes one write of what is pending; false if there is nothing.
func (s *Queues) writeBatch() bool {
	full := s.log.b.room(0, false)
	s.mu.Lock()
	b := s.plan(full)
	s.mu.Unlock()
	if len(b.ops) == 0 {
		b.answer(nil)
		s.trim()
		return len(b.requests) > 0
	}
	entries, err := s.encode(b)
	if err != nil {
		// A body that cannot be read must stay where it is: for good if it is
		// damaged, else until another attempt.
		s.mu.Lock()
		defer s.mu.Unlock()
		s.cleaner = cleaner{after: time.Now().Add(cleanPause)}
		if k := lode.KindOf(err); k == lode.Damaged || k == lode.NotFound {
			s.logger.Error("bus: a queue's log cannot be cleaned", "err", err)
			s.cleaner = cleaner{stuck: true}
		}
		s.pending = append(b.requests, s.pending...)
		return s.ctx.Err() == nil
	}
	seq, err := s.log.appendPart(s.ctx, entries, full != nil || !b.grows)
	switch lode.KindOf(err) {
	case "":
		s.applied(b, seq)
		s.trim()
	case lode.Full, lode.TooLarge:
		s.mu.Lock()
		s.cleaner = cleaner{} // what it was about to carry is not carried
		s.mu.Unlock()
	default:
		s.fail(err) // fenced or closed: what is in memory is no longer the truth
	}
	b.answer(err)
	return err == nil
}

func (s *Queues) encode(b *batch) ([][]byte, error) {
	entries := make([][]byte, len(b.ops))
	for i := range b.ops {
		if it := b.loads[i]; it != nil {
			body, err := s.load(s.ctx, it)
			if err != nil {
				return nil, err
			}
			b.ops[i].body = body
		}
		entries[i] = b.ops[i].encode()
	}
	return entries, nil
}

// applied lets the state follow a write.
func (s *Queues) applied(b *batch, seq uint64) {
	size := recordHead + recordSum
	for i := range b.ops {
		size += b.ops[i].bytes()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.packs.add(seq, size)
	for i := range b.ops {
		s.state.apply(&b.ops[i], place{seq, i})
		switch b.ops[i].kind {
		case opPut:
			s.notify(b.ops[i].queue)
		case opLater:
			if it := s.state.items[b.ops[i].num]; it != nil {
				s.notify(it.q.name)
			}
		}
	}
}

func (o *op) bytes() int { return 40 + len(o.queue) + len(o.id) + len(o.note) + len(o.body) }

// batch is what goes into one write.
type batch struct {
	ops      []op
	loads    map[int]*item // ops whose body is only on disk
	requests []*request
	fresh    map[[2]string]bool // queue and id of what the batch puts
	more     map[string]int     // queue: how many the batch puts
	ending   map[uint64]bool
	size     int
	grows    bool // it puts something
}

func (b *batch) answer(err error) {
	for _, r := range b.requests {
		if r.err == nil {
			r.err = err
		}
		close(r.done)
	}
}

// plan decides what to write next. Live items to be carried forward come
// first, for a batch may also end them. On a full disk only what frees space
// goes on. Under mu.
func (s *Queues) plan(full error) *batch {
	b := &batch{fresh: make(map[[2]string]bool), more: make(map[string]int), ending: make(map[uint64]bool), loads: make(map[int]*item)}
	s.planCleaning(b)
	for len(s.pending) > 0 {
		r := s.pending[0]
		n := r.size()
		if b.size+n > s.maxBatch && len(b.ops) > 0 {
			return b
		}
		s.pending = s.pending[1:]
		b.size += n
		b.requests = append(b.requests, r)
		if r.err = full; full == nil || len(r.puts) == 0 {
			r.err = s.planRequest(b, r)
		}
	}
	for num := range s.given {
		delete(s.given, num)
		if it := s.state.items[num]; it != nil && it.state < itemDone && !b.ending[num] {
			b.ops = append(b.ops, op{kind: opGiven, num: num, deliveries: it.deliveries})
		}
		if b.size += 32; b.size > s.maxBatch {
			break
		}
	}
	return b
}

func (s *Queues) planRequest(b *batch, r *request) error {
	if r.onlyIfLive != 0 && !s.endable(b, r.onlyIfLive) {
		return nil
	}
	puts, err := s.planPuts(b, r)
	if err != nil {
		return err
	}
	now := s.now().wall
	for _, num := range r.finish {
		if s.endable(b, num) {
			b.ending[num] = true
			o := op{kind: opDone, num: num}
			if it := s.state.items[num]; it.remember > 0 {
				o.forget = now + it.remember
			}
			b.ops = append(b.ops, o)
		}
	}
	if r.later != nil {
		it := s.state.items[r.later.num]
		if !s.endable(b, r.later.num) || it.state != itemTaken || it.deliveries != r.deliveries {
			return lapsed(itemName(it, r.later.num))
		}
		// It rides with the count, which may not be noted yet.
		b.ops = append(b.ops, op{kind: opGiven, num: it.num, deliveries: it.deliveries}, *r.later)
		delete(s.given, it.num)
	}
	b.ops = append(b.ops, puts...)
	b.grows = b.grows || len(puts) > 0
	r.added = len(puts)
	return nil
}

func itemName(it *item, num uint64) string {
	if it == nil {
		return "#" + utoa(num)
	}
	return it.id
}

// endable reports whether an item is in its queue and this batch leaves it.
func (s *Queues) endable(b *batch, num uint64) bool {
	it := s.state.items[num]
	return it != nil && it.state < itemDone && !b.ending[num]
}

func (s *Queues) planPuts(b *batch, r *request) ([]op, error) {
	now := time.Now()
	var ops []op
	mine := make(map[string]int)
	for i := range r.puts {
		it := &r.puts[i]
		cfg, q := s.config(it.Queue), s.state.queue(it.Queue)
		id, remember := it.ID, it.Remember
		if remember == 0 {
			remember = cfg.Remember
		}
		if id == "" {
			id, remember = string(lode.NewInvocationID(now)), -1
		}
		s.state.advance(q, s.now())
		if key := [2]string{it.Queue, id}; q.ids[id] != nil || b.fresh[key] {
			continue
		} else {
			b.fresh[key] = true
		}
		if mine[it.Queue]++; q.depth()+b.more[it.Queue]+mine[it.Queue] > cfg.Max {
			b.unplan(ops)
			e := lode.Errorf(lode.Overloaded, "queue %s is full: it holds %d items", it.Queue, cfg.Max)
			e.RetryAfter = time.Second
			return nil, e.WithHint("let its work be done, or raise max")
		}
		s.state.last++
		o := op{kind: opPut, num: s.state.last, queue: it.Queue, id: id, priority: it.Priority, put: now.UnixMilli(),
			remember: max(0, remember.Milliseconds()), body: it.Body}
		if o.due = o.put; !it.Due.IsZero() {
			o.due = ceilMilli(it.Due)
		}
		ops = append(ops, o)
	}
	for q, n := range mine {
		b.more[q] += n
	}
	return ops, nil
}

// unplan takes back the ids of puts that will not be written.
func (b *batch) unplan(ops []op) {
	for i := range ops {
		delete(b.fresh, [2]string{ops[i].queue, ops[i].id})
	}
}

// sweep drops what is too old and forgets ids of queues that nobody uses.
func (s *Queues) sweep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	for name, q := range s.state.queues {
		s.state.advance(q, now)
		if len(q.ids) == 0 {
			delete(s.state.queues, name)
			continue
		}
		keep := s.config(name).Keep.Milliseconds()
		if keep <= 0 {
			continue
		}
		r := &request{done: make(chan struct{})}
		for _, it := range q.live() {
			if it.put+keep > now.wall || len(r.finish) == 10_000 {
				break
			}
			r.finish = append(r.finish, it.num)
		}
		if len(r.finish) > 0 {
			s.pending = append(s.pending, r)
		}
	}
}

// cleaner carries live items from the front of the log to its end.
type cleaner struct {
	upto  uint64    // positions before this one are to be freed; 0: nothing to do
	todo  []*item   // what may still stand there
	stuck bool      // something in front cannot be read
	after time.Time // not before: the last attempt could not read just then
}

// planCleaning adds the next live items of the front, oldest first. Under mu.
func (s *Queues) planCleaning(b *batch) {
	c := &s.cleaner
	if c.stuck || time.Now().Before(c.after) {
		return
	}
	if c.upto == 0 {
		if c.upto = s.state.packs.clean(s.slack); c.upto == 0 {
			return
		}
		for _, it := range s.state.items {
			if it.at.seq < c.upto {
				c.todo = append(c.todo, it)
			}
		}
	}
	for len(c.todo) > 0 && b.size < min(cleanBatch, s.maxBatch/2) {
		it := c.todo[len(c.todo)-1]
		c.todo = c.todo[:len(c.todo)-1]
		if it.at.seq == 0 || it.at.seq >= c.upto {
			continue // ended or moved meanwhile
		}
		if it.state == itemDone {
			b.ops = append(b.ops, op{kind: opMark, num: it.num, queue: it.q.name, id: it.id, forget: it.until})
		} else {
			if it.body == nil {
				b.loads[len(b.ops)] = it
			}
			b.ops = append(b.ops, op{kind: opPut, num: it.num, queue: it.q.name, id: it.id, priority: it.priority, put: it.put, due: it.due,
				remember: it.remember, deliveries: it.deliveries, note: it.note, body: it.body})
		}
		b.size += it.size + itemCost
	}
}

// trim frees the front of the log when everything live has left it.
func (s *Queues) trim() {
	s.mu.Lock()
	upto, ready := s.cleaner.upto, len(s.cleaner.todo) == 0
	if upto != 0 && ready {
		upto = s.state.packs.firstLive(upto)
		s.cleaner = cleaner{}
	}
	s.mu.Unlock()
	if upto == 0 || !ready {
		return
	}
	if err := s.log.Trim(s.ctx, upto); s.ctx.Err() != nil {
		return
	} else if err != nil {
		s.logger.Warn("bus: a queue's log was not trimmed", "err", err)
		if lode.KindOf(err) != lode.Full {
			return // the next message settles it; the front is still counted
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.packs.add(s.log.Tail(), recordHead+recordSum)
	s.state.packs.trim(upto)
}
