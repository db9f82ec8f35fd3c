package invoke

import (
	"context"
	"io"
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

// calls is the asynchronous work of a Keeper.
//
//	queued -> running -> done
//	   ^         |-----> failed -> (queued, by replay)
//	   |--retry--|-----> cancelled
//
// The queue holds what has not ended, the table what has; the first record of
// a cycle that is in the table is the end of it, whoever wrote it. entries
// mirror both in memory.
type calls struct {
	keyTables
	k     *Keeper
	table Table
	slots chan struct{} // one a running attempt

	intake     context.Context // ends when nothing more may begin
	stopIntake context.CancelFunc

	mu      sync.Mutex
	entries map[string]*entry // by callKey
	pullers map[string]bool   // by queue
	putting map[string]int    // by callKey: how many are being stored
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
	idem     string          // SHA-256 of its idempotency key; "": none, or it has not ended
	rev      uint64          // of its record; 0: it has none
	done     chan struct{}   // closed when it ended
	cancel   func(err error) // while running
}

func (e *entry) over() bool { return e.state != lode.StateQueued && e.state != lode.StateRunning }

func (e *entry) work() *work { return &work{ID: e.id, Namespace: e.ns, Function: e.fn, Cycle: e.cycle} }

// openCalls reads what a former process left.
func openCalls(ctx context.Context, k *Keeper) (*calls, error) {
	c := &calls{k: k, slots: make(chan struct{}, k.cfg.AsyncSlots), entries: make(map[string]*entry), pullers: make(map[string]bool), putting: make(map[string]int)}
	c.intake, c.stopIntake = context.WithCancel(k.base)
	var err error
	if c.keyTables, err = openKeyTables(ctx, k.cfg.Tables, k.cfg.Now); err != nil {
		return nil, err
	}
	if c.table, err = k.cfg.Tables.Table(ctx, "calls"); err != nil {
		return nil, err
	}
	es, err := c.table.List(ctx, "")
	if err != nil {
		return nil, err
	}
	for _, e := range es {
		if r, err := decodeRecord(e.Value); err != nil {
			k.cfg.Logger.Error("a record of an invocation is damaged", "key", e.Key, "err", err)
		} else {
			c.entries[e.Key] = entryOf(r, e.Rev)
		}
	}
	for _, q := range k.cfg.Queues.Names() {
		if rest, ok := strings.CutPrefix(q, "call/"); ok {
			ns, fn, _ := strings.Cut(rest, "/")
			c.loadQueue(q, lode.Namespace(ns), lode.Name(fn))
		}
	}
	return c, nil
}

func entryOf(r *record, rev uint64) *entry {
	w := &r.Work
	e := &entry{key: w.key(), ns: w.Namespace, fn: w.Function, id: w.ID, trigger: w.Trigger, state: r.State, dead: r.Dead, cycle: w.Cycle,
		attempts: r.Attempts, ended: r.Ended, idem: w.Key, rev: rev, done: make(chan struct{})}
	close(e.done)
	return e
}

func (c *calls) loadQueue(q string, ns lode.Namespace, fn lode.Name) {
	for after := uint64(0); ; {
		items := c.k.cfg.Queues.List(q, after, 1000)
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
	for _, q := range c.k.cfg.Queues.Names() {
		if strings.HasPrefix(q, "call/") {
			c.pull(q)
		}
	}
	c.k.work.Go(c.janitor)
}

// Submit stores a request, and has it run until it succeeds or its attempts
// are used up. One whose id is known is passed over: its sender repeats itself.
func (k *Keeper) Submit(ctx context.Context, req *lode.Request) (id lode.InvocationID, err error) {
	if k.calls == nil {
		return "", noCalls()
	}
	own := *req
	if own.ID == "" {
		own.ID = lode.NewInvocationID(k.cfg.Now())
	}
	if own.Stream != nil {
		rev, err := k.s.resolve(req)
		if err != nil {
			return "", err
		}
		if own.Body, err = whole(req, rev); err != nil {
			return "", err
		}
	}
	err = k.bounded(ctx, "store "+string(own.ID), func(ctx context.Context) error {
		if own.IdempotencyKey != "" {
			id, known, err := k.calls.claimKey(ctx, &own, own.Body)
			if own.ID = id; err != nil || known {
				return err
			}
		} else if k.calls.knows(callKey(own.Namespace, own.ID)) {
			return nil
		}
		return k.calls.put(ctx, workOf(&own, k.cfg.Now()), own.Body)
	})
	return own.ID, err
}

func (c *calls) knows(key string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.entries[key] != nil
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
	unmark, err := c.mark(ctx, w, body)
	if err != nil {
		return err
	}
	defer unmark()
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
	if _, err := c.k.cfg.Queues.Put(ctx, bus.Item{Queue: w.queue(), ID: w.itemID(), Body: b, Remember: -1}); err != nil {
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
	c.k.cfg.Queues.Configure(queue, bus.QueueConfig{Visible: callVisible})
	c.k.pulls.Go(func() { c.serve(queue) })
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
		ds, err := c.k.cfg.Queues.Pull(c.intake, queue, 1, callPause)
		if err != nil {
			if c.intake.Err() != nil {
				return
			}
			c.k.cfg.Logger.Error("asynchronous work cannot be pulled", "queue", queue, "err", err)
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
	if d := c.k.cfg.Queues.Depth(queue); d.Waiting+d.Ready+d.Taken > 0 {
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

func (c *calls) ack(d Delivery) {
	if err := d.Ack(c.k.base); err != nil && c.k.base.Err() == nil {
		c.k.cfg.Logger.Warn("an item could not be acknowledged; it comes again", "item", d.Work().ID, "err", err)
	}
}

func (c *calls) logged(err error, doing string, w *work) {
	if err != nil && c.k.base.Err() == nil {
		c.k.cfg.Logger.Warn("asynchronous work: could not "+doing, "id", w.ID, "function", w.Function, "err", err)
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
