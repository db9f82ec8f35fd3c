package invoke

import (
	"context"
	"io"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"lode"
	"lode/bus"
)

const (
	callVisible = 10 * time.Minute // an attempt extends it while it runs
	callPause   = 2 * time.Second  // a puller without work looks whether it may end
	keepFailed  = 7 * 24 * time.Hour
	noteKinds   = " " // between kind and detail in the note of an item
)

// calls is the asynchronous work of a Service.
//
//	queued -> running -> done
//	   ^         |-----> failed -> (queued, by replay)
//	   |--retry--|-----> cancelled
//
// The queue holds what has not ended, the table what has; the first record of
// a cycle that is in the table is the end of it, whoever wrote it. entries
// mirror both in memory.
type calls struct {
	s      *Service
	table  Table
	bodies Table
	keys   Table
	slots  chan struct{} // one a running attempt

	intake     context.Context // ends when nothing more may begin
	stopIntake context.CancelFunc

	mu      sync.Mutex
	entries map[string]*entry // by callKey
	pullers map[string]bool   // by queue
	flights map[string]*flight
}

// entry is one asynchronous invocation. calls.mu guards it.
type entry struct {
	key      string
	ns       lode.Namespace
	fn       lode.Name
	id       lode.InvocationID
	trigger  lode.Trigger
	state    lode.State
	dead     bool
	cycle    int
	attempts int
	ended    time.Time
	done     chan struct{}   // closed when it ended
	cancel   func(err error) // while running
}

func (e *entry) over() bool { return e.state != lode.StateQueued && e.state != lode.StateRunning }

func (e *entry) work() *work { return &work{ID: e.id, Namespace: e.ns, Function: e.fn, Cycle: e.cycle} }

// openCalls reads what a former process left.
func openCalls(ctx context.Context, s *Service) (*calls, error) {
	c := &calls{s: s, slots: make(chan struct{}, s.cfg.AsyncSlots), entries: make(map[string]*entry), pullers: make(map[string]bool), flights: make(map[string]*flight)}
	c.intake, c.stopIntake = context.WithCancel(s.base)
	var err error
	for name, t := range map[string]*Table{"calls": &c.table, "bodies": &c.bodies, "keys": &c.keys} {
		if *t, err = s.cfg.Tables.Table(ctx, name); err != nil {
			return nil, err
		}
	}
	es, err := c.table.List(ctx, "")
	if err != nil {
		return nil, err
	}
	for _, e := range es {
		if r, err := decodeRecord(e.Value); err != nil {
			s.cfg.Logger.Error("a record of an invocation is damaged", "key", e.Key, "err", err)
		} else {
			c.entries[e.Key] = entryOf(r)
		}
	}
	for _, q := range s.cfg.Queues.Names() {
		if rest, ok := strings.CutPrefix(q, "call/"); ok {
			ns, fn, _ := strings.Cut(rest, "/")
			c.loadQueue(q, lode.Namespace(ns), lode.Name(fn))
		}
	}
	return c, nil
}

func entryOf(r *record) *entry {
	w := &r.Work
	e := &entry{key: w.key(), ns: w.Namespace, fn: w.Function, id: w.ID, trigger: w.Trigger, state: r.State, dead: r.Dead, cycle: w.Cycle,
		attempts: r.Attempts, ended: r.Ended, done: make(chan struct{})}
	close(e.done)
	return e
}

func (c *calls) loadQueue(q string, ns lode.Namespace, fn lode.Name) {
	for after := uint64(0); ; {
		items := c.s.cfg.Queues.List(q, after, 1000)
		if len(items) == 0 {
			return
		}
		for _, it := range items {
			after = it.Number
			id, cycle, _ := strings.Cut(it.ID, ".")
			n, _ := strconv.Atoi(cycle)
			w := &work{ID: lode.InvocationID(id), Namespace: ns, Function: fn, Cycle: n}
			if old := c.entries[w.key()]; old == nil || old.cycle < n {
				c.queued(w)
			}
		}
	}
}

// queued notes that w waits. Under mu, or before anything runs.
func (c *calls) queued(w *work) *entry {
	e := &entry{key: w.key(), ns: w.Namespace, fn: w.Function, id: w.ID, trigger: w.Trigger, state: lode.StateQueued, cycle: w.Cycle, done: make(chan struct{})}
	c.entries[e.key] = e
	return e
}

// start begins to work on what is there.
func (c *calls) start() {
	for _, q := range c.s.cfg.Queues.Names() {
		if strings.HasPrefix(q, "call/") {
			c.pull(q)
		}
	}
	c.s.work.Go(c.janitor)
}

// Submit stores req durably, to be run until it succeeds or its attempts are
// used up, and returns its id. The same idempotency key with the same body
// gives the same id for 24 hours, with another body KeyReused.
func (s *Service) Submit(ctx context.Context, req *lode.Request) (lode.InvocationID, error) {
	if err := s.begin(req.Depth > 0); err != nil {
		return "", err
	}
	defer s.end()
	if s.calls == nil {
		return "", lode.Errorf(lode.Unavailable, "this node keeps no asynchronous work")
	}
	rev, err := s.resolve(req)
	if err != nil {
		return "", err
	}
	if err := admissible(req, rev); err != nil {
		return "", err
	}
	body, err := whole(req, rev)
	if err != nil {
		return "", err
	}
	own := *req
	if own.ID == "" {
		own.ID = lode.NewInvocationID(s.cfg.Now())
	}
	if own.Trigger == "" || own.Trigger == lode.TriggerHTTP || own.Trigger == lode.TriggerCall {
		own.Trigger = lode.TriggerAsync
	}
	if own.IdempotencyKey != "" {
		id, known, err := s.calls.claimKey(ctx, &own, body)
		if err != nil || known {
			return id, err
		}
		own.ID = id
	}
	return own.ID, s.calls.put(ctx, workOf(&own, s.cfg.Now()), body)
}

// whole reads the body to its end, within the function's limit.
func whole(req *lode.Request, rev *lode.Revision) ([]byte, error) {
	if req.Stream == nil {
		return req.Body, nil
	}
	limit := orDefault(rev.Function.Limits.Body, defaultBody)
	rest, err := io.ReadAll(io.LimitReader(req.Stream, limit-int64(len(req.Body))+1))
	if err != nil {
		return nil, lode.Errorf(lode.Cancelled, "read the body: %w", err)
	}
	body := append(append(make([]byte, 0, len(req.Body)+len(rest)), req.Body...), rest...)
	if int64(len(body)) > limit {
		return nil, lode.Errorf(lode.TooLarge, "the body is over %d bytes, the limit of %s", limit, rev.ID()).WithHint("raise its body limit")
	}
	return body, nil
}

// put stores w and its body, and sees to it that somebody works on it.
func (c *calls) put(ctx context.Context, w *work, body []byte) error {
	inline, chunks, err := putChunks(ctx, c.bodies, requestPrefix(w.key()), body)
	if err != nil {
		return err
	}
	w.Chunks = chunks
	b, err := encodeWork(w, inline)
	if err != nil {
		return err
	}
	if len(b)-len(inline) > maxWork {
		return lode.Errorf(lode.TooLarge, "the request's head has %d bytes; at most %d are kept", len(b)-len(inline), maxWork)
	}
	if _, err := c.s.cfg.Queues.Put(ctx, bus.Item{Queue: w.queue(), ID: w.itemID(), Body: b, Remember: -1}); err != nil {
		return err
	}
	c.mu.Lock()
	if old := c.entries[w.key()]; old == nil || old.cycle < w.Cycle {
		c.queued(w)
	}
	c.mu.Unlock()
	c.pull(w.queue())
	return nil
}

// pull makes sure that a puller works on the queue.
func (c *calls) pull(queue string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pullers[queue] || c.intake.Err() != nil {
		return
	}
	c.pullers[queue] = true
	c.s.cfg.Queues.Configure(queue, bus.QueueConfig{Visible: callVisible})
	c.s.work.Go(func() { c.serve(queue) })
}

// serve runs what is in one queue until it is empty. One function gets at most
// half of the slots.
func (c *calls) serve(queue string) {
	var running sync.WaitGroup
	defer running.Wait()
	mine := make(chan struct{}, max(1, cap(c.slots)/2))
	for {
		select {
		case mine <- struct{}{}:
		case <-c.intake.Done():
			return
		}
		ds, err := c.s.cfg.Queues.Pull(c.intake, queue, 1, callPause)
		if err != nil {
			if c.intake.Err() != nil {
				return
			}
			c.s.cfg.Logger.Error("asynchronous work cannot be pulled", "queue", queue, "err", err)
			pause(c.intake, callPause)
		}
		if len(ds) == 0 {
			<-mine
			if c.idle(queue) {
				return
			}
			continue
		}
		running.Go(func() {
			defer func() { <-mine }()
			c.handle(ds[0])
		})
	}
}

// idle ends the puller of an empty queue. Whoever puts something calls pull
// afterwards, so nothing is left behind.
func (c *calls) idle(queue string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d := c.s.cfg.Queues.Depth(queue); d.Waiting+d.Ready+d.Taken > 0 {
		return false
	}
	delete(c.pullers, queue)
	return true
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// handle makes one attempt of a piece of work.
func (c *calls) handle(d Delivery) {
	defer extending(d, callVisible)()
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-c.intake.Done():
		return // it comes again after the restart
	}
	w, inline, err := decodeWork(d.Work().Body)
	if err != nil {
		c.s.cfg.Logger.Error("asynchronous work is dropped", "item", d.Work().ID, "err", err)
		c.ack(d)
		return
	}
	ctx, cancel := context.WithCancelCause(c.s.base)
	defer cancel(nil)
	if !c.claim(w, d.Work().Deliveries, cancel) {
		c.again(d, w)
		return
	}
	r := &record{Work: *w, Attempts: d.Work().Deliveries}
	next, wait := c.attempt(ctx, r, inline)
	switch {
	case c.s.base.Err() != nil: // cut short by Close: it comes again
	case next == stepRetry:
		c.release(w)
		c.logged(d.Nak(c.s.base, wait, noteOf(r.Error)), "give back", w)
	default:
		c.conclude(d, r)
	}
}

// attempt runs the work and fills r with what came of it.
func (c *calls) attempt(ctx context.Context, r *record, inline []byte) (next step, wait time.Duration) {
	w, retry := &r.Work, lode.Retry{}
	body, err := getChunks(ctx, c.bodies, requestPrefix(w.key()), inline, w.Chunks)
	ans := &lode.Buffered{}
	if err == nil {
		req := w.request(r.Attempts, body)
		var rev *lode.Revision
		if rev, err = c.s.resolve(req); err == nil {
			retry = rev.Function.Retry
		}
		switch {
		case err != nil:
		case exhausted(retry, r.Attempts):
			err = lode.Errorf(lode.Unavailable, "the node stopped during each of %d attempts", r.Attempts-1)
		default:
			var out lode.Outcome
			if out, err = c.s.run(ctx, req, ans, true); err == nil {
				r.Status, r.Head, r.Answer = ans.Status, ans.Msg.Head, ans.Msg.Body
			}
			r.Revision, r.Usage = out.Revision, &out.Usage
		}
	}
	r.Error = lode.AsError(err)
	next = verdictOf(retry, r.Attempts, r.Status, err)
	switch next {
	case stepDone:
		r.State = lode.StateDone
	case stepFail:
		r.State, r.Dead = lode.StateFailed, true
		r.Body = inline
	}
	if err == nil && next != stepDone {
		r.Error = lode.Errorf(lode.Crashed, "%s answered with the status %d", r.Revision, r.Status)
	}
	return next, backoff(retry, r.Attempts, rand.Float64())
}

// claim marks w as running; false if it has ended already.
func (c *calls) claim(w *work, attempts int, cancel func(error)) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[w.key()]
	if e == nil || e.cycle < w.Cycle {
		e = c.queued(w)
	}
	if e.over() || e.cycle > w.Cycle {
		return false
	}
	e.state, e.trigger, e.attempts, e.cancel = lode.StateRunning, w.Trigger, attempts, cancel
	return true
}

// release marks w as waiting for its next attempt.
func (c *calls) release(w *work) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries[w.key()]; e != nil && e.state == lode.StateRunning && e.cycle == w.Cycle {
		e.state, e.cancel = lode.StateQueued, nil
	}
}

// conclude makes r the end of its work: first the record, then the
// acknowledgement, with the dead letter in the same write.
func (c *calls) conclude(d Delivery, r *record) {
	r.Ended = c.s.cfg.Now().UTC()
	r.Size = int64(len(r.Answer))
	won, err := c.store(c.s.base, r)
	if lode.KindOf(err) == lode.TooLarge { // a head that no record holds: it never will
		r.State, r.Dead, r.Error = lode.StateFailed, true, lode.AsError(err)
		r.Status, r.Head, r.Answer, r.Size = 0, nil, nil, 0
		won, err = c.store(c.s.base, r)
	}
	if err != nil {
		// Without its result it has not ended: it is done again.
		c.release(&r.Work)
		c.logged(d.Nak(c.s.base, callPause, noteOf(lode.AsError(err))), "give back", &r.Work)
		return
	}
	var then []bus.Item
	if won && r.Dead {
		then = c.deadLetter(r)
	}
	if won {
		c.ended(r)
	}
	c.logged(d.Ack(c.s.base, then...), "acknowledge", &r.Work)
}

// store writes chunks and record; won is false where another end was there
// first.
func (c *calls) store(ctx context.Context, r *record) (won bool, err error) {
	whole := r.Answer
	if r.Answer, r.Chunks, err = putChunks(ctx, c.bodies, r.answerPrefix(), whole); err != nil {
		r.Answer = whole
		return false, err
	}
	b, err := encodeRecord(r)
	if err != nil {
		return false, err
	}
	key := r.Work.key()
	for {
		old, ok, err := c.table.Get(ctx, key)
		if err != nil {
			return false, err
		}
		if ok {
			if o, err := decodeRecord(old.Value); err == nil && o.Work.Cycle >= r.Work.Cycle {
				return false, nil
			}
			_, err = c.table.Update(ctx, key, b, old.Rev)
		} else {
			_, err = c.table.Create(ctx, key, b)
		}
		if k := lode.KindOf(err); k != lode.Conflict && k != lode.Precondition {
			return err == nil, err
		}
	}
}

// ended marks the entry of r as ended.
func (c *calls) ended(r *record) {
	c.mu.Lock()
	e := c.entries[r.Work.key()]
	if e == nil || e.cycle != r.Work.Cycle || e.over() {
		c.mu.Unlock()
		return
	}
	e.state, e.dead, e.attempts, e.ended, e.trigger = r.State, r.Dead, r.Attempts, r.Ended, r.Work.Trigger
	cancel := e.cancel
	e.cancel = nil
	close(e.done)
	c.mu.Unlock()
	if c.s.schedules != nil && r.Work.Trigger == lode.TriggerSchedule {
		c.s.schedules.poke()
	}
	if cancel != nil && r.State == lode.StateCancelled {
		cancel(lode.Errorf(lode.Cancelled, "cancelled on request"))
	}
}

// again acknowledges what has ended already: the node died, or another end won,
// between the record and the acknowledgement.
func (c *calls) again(d Delivery, w *work) {
	var then []bus.Item
	if r, err := c.record(c.s.base, &entry{key: w.key(), id: w.ID}); err == nil && r.Dead && r.Work.Cycle == w.Cycle {
		then = c.deadLetter(r)
	}
	c.logged(d.Ack(c.s.base, then...), "acknowledge", w)
}

func (c *calls) ack(d Delivery) {
	if err := d.Ack(c.s.base); err != nil && c.s.base.Err() == nil {
		c.s.cfg.Logger.Warn("an item could not be acknowledged; it comes again", "item", d.Work().ID, "err", err)
	}
}

func (c *calls) logged(err error, doing string, w *work) {
	if err != nil && c.s.base.Err() == nil {
		c.s.cfg.Logger.Warn("asynchronous work: could not "+doing, "id", w.ID, "function", w.Function, "err", err)
	}
}

// extending keeps d the caller's until the returned function is called.
func extending(d Delivery, visible time.Duration) (stop func()) {
	var t *time.Timer
	var mu sync.Mutex
	ended := false
	mu.Lock()
	defer mu.Unlock()
	t = time.AfterFunc(visible/3, func() {
		mu.Lock()
		defer mu.Unlock()
		if !ended && d.Extend(visible) == nil {
			t.Reset(visible / 3)
		}
	})
	return func() {
		mu.Lock()
		defer mu.Unlock()
		ended = true
		t.Stop()
	}
}

func noteOf(e *lode.Error) string {
	if e == nil {
		return ""
	}
	return string(e.Kind) + noteKinds + e.Error()
}

func errorOf(note string) *lode.Error {
	kind, detail, ok := strings.Cut(note, noteKinds)
	if !ok {
		return nil
	}
	return &lode.Error{Kind: lode.Kind(kind), Detail: detail}
}
