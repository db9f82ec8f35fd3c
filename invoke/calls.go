package invoke

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"lode"
	"lode/bus"
)

// Call is one asynchronous invocation, as people and programs ask for it.
type Call struct {
	ID        lode.InvocationID
	Function  lode.Name
	Revision  string // ns/name@rev, of the last attempt
	Trigger   lode.Trigger
	State     lode.State
	Dead      bool // failed, and not to be tried again by itself
	Attempts  int
	Created   time.Time
	Ended     time.Time // zero: it has not
	Next      time.Time // of the next attempt; zero: none is waiting for its time
	Status    int       // the function's own, when done
	ResultLen int64     // bytes of the answer
	Trace     string    // 32 hexadecimal digits
	Usage     *lode.Usage
	Error     *lode.Error // of the last attempt
}

// CallFilter chooses calls; zero fields choose all.
type CallFilter struct {
	Function lode.Name
	State    lode.State
	Dead     bool // dead letters only
}

func (f CallFilter) takes(e *entry) bool {
	return (f.Function == "" || f.Function == e.fn) && (f.State == "" || f.State == e.state) && (!f.Dead || e.dead)
}

func noCalls() error { return lode.Errorf(lode.Unavailable, "this node keeps no asynchronous work") }

func noCall(id lode.InvocationID) error {
	return lode.Errorf(lode.NotFound, "there is no asynchronous invocation %s", id).WithHint("results are kept for a day, dead letters for seven")
}

// lookup returns a copy of the entry.
func (s *Service) lookup(ns lode.Namespace, id lode.InvocationID) (entry, error) {
	if s.calls == nil {
		return entry{}, noCalls()
	}
	s.calls.mu.Lock()
	defer s.calls.mu.Unlock()
	if e := s.calls.entries[callKey(ns, id)]; e != nil {
		return *e, nil
	}
	return entry{}, noCall(id)
}

// GetCall tells how an asynchronous invocation stands. It waits up to wait
// for its end first.
func (s *Service) GetCall(ctx context.Context, ns lode.Namespace, id lode.InvocationID, wait time.Duration) (Call, error) {
	e, err := s.lookup(ns, id)
	if err != nil {
		return Call{}, err
	}
	if wait > 0 && !e.over() {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-e.done:
		case <-t.C:
		case <-ctx.Done():
			return Call{}, ended(ctx, "waiting for "+string(id))
		case <-s.base.Done():
		}
	}
	for {
		if e, err = s.lookup(ns, id); err != nil {
			return Call{}, err
		}
		c, err := s.calls.describe(ctx, &e)
		if again, _ := s.lookup(ns, id); err == nil || lode.KindOf(err) != lode.NotFound || again.over() == e.over() && again.cycle == e.cycle {
			return c, err
		}
	}
}

// describe reads the rest of what is known of an entry.
func (c *calls) describe(ctx context.Context, e *entry) (Call, error) {
	if e.over() {
		r, err := c.record(ctx, e)
		if err != nil {
			return Call{}, err
		}
		w := &r.Work
		return Call{ID: w.ID, Function: w.Function, Revision: r.Revision, Trigger: w.Trigger, State: r.State, Dead: r.Dead, Attempts: r.Attempts,
			Created: w.Created, Ended: r.Ended, Status: r.Status, ResultLen: r.Size, Trace: traceID(w.Trace), Usage: r.Usage, Error: r.Error}, nil
	}
	it, err := c.s.cfg.Queues.Get(ctx, callQueue(e.ns, e.fn), e.work().itemID())
	if err != nil {
		return Call{}, err
	}
	w, _, err := decodeWork(it.Body)
	if err != nil {
		return Call{}, err
	}
	out := Call{ID: w.ID, Function: w.Function, Trigger: w.Trigger, State: e.state, Attempts: it.Deliveries, Created: w.Created, Trace: traceID(w.Trace), Error: errorOf(it.Note)}
	if e.state == lode.StateQueued && it.State == bus.Waiting {
		out.Next = it.Due
	}
	return out, nil
}

func traceID(traceparent string) string {
	var t Trace
	if !t.parse(traceparent) {
		return ""
	}
	return t.TraceID()
}

func (c *calls) record(ctx context.Context, e *entry) (*record, error) {
	v, ok, err := c.table.Get(ctx, e.key)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, noCall(e.id)
	}
	return decodeRecord(v.Value)
}

// ListCalls lists the asynchronous invocations of a namespace, by id, newest
// first. after is the id of the last one of the page before; next is empty at
// the end.
func (s *Service) ListCalls(ctx context.Context, ns lode.Namespace, f CallFilter, limit int, after lode.InvocationID) (list []Call, next lode.InvocationID, err error) {
	if s.calls == nil {
		return nil, "", noCalls()
	}
	var found []entry
	s.calls.mu.Lock()
	for _, e := range s.calls.entries {
		if e.ns == ns && f.takes(e) && (after == "" || e.id < after) {
			found = append(found, *e)
		}
	}
	s.calls.mu.Unlock()
	slices.SortFunc(found, func(a, b entry) int { return strings.Compare(string(b.id), string(a.id)) })
	limit = orDefault(limit, 100)
	for i := range found {
		if len(list) == limit {
			return list, list[limit-1].ID, nil
		}
		c, err := s.calls.describe(ctx, &found[i])
		if lode.KindOf(err) == lode.NotFound { // it ended or was dropped meanwhile
			c, err = s.GetCall(ctx, ns, found[i].id, 0)
		}
		switch {
		case err == nil:
			list = append(list, c)
		case lode.KindOf(err) != lode.NotFound:
			return nil, "", err
		}
	}
	return list, "", nil
}

// CancelCall ends an asynchronous invocation: a queued one never begins, a
// running one is interrupted. It is idempotent, and a Conflict for one that
// has ended otherwise.
func (s *Service) CancelCall(ctx context.Context, ns lode.Namespace, id lode.InvocationID) (Call, error) {
	e, err := s.lookup(ns, id)
	if err != nil {
		return Call{}, err
	}
	if !e.over() {
		if err := s.calls.cancel(ctx, &e); err != nil {
			return Call{}, err
		}
	}
	c, err := s.GetCall(ctx, ns, id, 0)
	if err == nil && c.State != lode.StateCancelled {
		return c, lode.Errorf(lode.Conflict, "%s is %s already", id, c.State)
	}
	return c, err
}

// cancel records the cancellation, then interrupts and removes. Another end
// may win.
func (c *calls) cancel(ctx context.Context, e *entry) error {
	queue, item := callQueue(e.ns, e.fn), e.work().itemID()
	it, err := c.s.cfg.Queues.Get(ctx, queue, item)
	if lode.KindOf(err) == lode.NotFound {
		return nil // it has just ended
	}
	if err != nil {
		return err
	}
	w, inline, err := decodeWork(it.Body)
	if err != nil {
		return err
	}
	r := &record{Work: *w, State: lode.StateCancelled, Attempts: it.Deliveries, Ended: c.s.cfg.Now().UTC(), Body: inline,
		Error: lode.Errorf(lode.Cancelled, "cancelled on request")}
	won, err := c.store(ctx, r)
	if err != nil || !won {
		return err
	}
	c.ended(r)
	if _, err := c.s.cfg.Queues.Remove(ctx, queue, item); err != nil && lode.KindOf(err) != lode.NotFound {
		return err // the record stands: whoever pulls the item will see it
	}
	return nil
}

// ReplayCall queues a failed or cancelled invocation again, under its id and
// with all its attempts.
func (s *Service) ReplayCall(ctx context.Context, ns lode.Namespace, id lode.InvocationID) (Call, error) {
	e, err := s.lookup(ns, id)
	if err != nil {
		return Call{}, err
	}
	if e.state != lode.StateFailed && e.state != lode.StateCancelled {
		return Call{}, lode.Errorf(lode.Conflict, "%s is %s; only what failed or was cancelled is replayed", id, e.state)
	}
	r, err := s.calls.record(ctx, &e)
	if err != nil {
		return Call{}, err
	}
	body, err := getChunks(ctx, s.calls.bodies, requestPrefix(e.key), r.Body, r.Work.Chunks)
	if err != nil {
		return Call{}, err
	}
	w := r.Work
	w.Cycle++
	w.Deadline = time.Time{} // it has passed, or soon will
	if err := s.calls.put(ctx, &w, body); err != nil {
		return Call{}, err
	}
	return s.GetCall(ctx, ns, id, 0)
}

// CallResult is the answer of an invocation that is done: its status, head and
// body. NotFound before the end; the error of the last attempt if it failed.
func (s *Service) CallResult(ctx context.Context, ns lode.Namespace, id lode.InvocationID) (*lode.Buffered, error) {
	e, err := s.lookup(ns, id)
	if err != nil {
		return nil, err
	}
	if !e.over() {
		return nil, lode.Errorf(lode.NotFound, "%s is still %s", id, e.state).WithHint("wait for it, or ask again later")
	}
	r, err := s.calls.record(ctx, &e)
	if err != nil {
		return nil, err
	}
	if r.Status == 0 {
		return nil, cmp.Or(r.Error, lode.Errorf(lode.Internal, "%s has no answer", id))
	}
	body, err := getChunks(ctx, s.calls.bodies, r.answerPrefix(), r.Answer, r.Chunks)
	if err != nil {
		return nil, err
	}
	return &lode.Buffered{Status: r.Status, Msg: lode.Message{Head: r.Head, Body: body}}, nil
}

// janitor drops what was kept long enough.
func (c *calls) janitor() {
	for round := 0; ; round++ {
		c.expire(c.s.cfg.Now())
		if round%60 == 0 {
			c.expireKeys(c.s.cfg.Now())
		}
		pause(c.s.base, time.Minute)
		if c.s.base.Err() != nil {
			return
		}
	}
}

// expire drops the records that are old, and the oldest beyond KeepCalls.
func (c *calls) expire(now time.Time) {
	var over []*entry
	c.mu.Lock()
	for _, e := range c.entries {
		if e.over() {
			over = append(over, e)
		}
	}
	slices.SortFunc(over, func(a, b *entry) int { return a.ended.Compare(b.ended) })
	excess := len(over) - c.s.cfg.KeepCalls
	var drop []entry
	for i, e := range over {
		keep := c.s.cfg.KeepResults
		if e.state != lode.StateDone {
			keep = max(keep, keepFailed)
		}
		if i < excess || now.Sub(e.ended) > keep {
			delete(c.entries, e.key)
			drop = append(drop, *e)
		}
	}
	c.mu.Unlock()
	for i := range drop {
		// The record last: while it is there, all of it is dropped again.
		err := dropAll(c.s.base, c.bodies, drop[i].key+"/")
		if err == nil {
			err = c.table.Delete(c.s.base, drop[i].key, 0)
		}
		c.logged(err, "drop a result", drop[i].work())
	}
}

// halt ends the intake; what runs goes on.
func (c *calls) halt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopIntake()
}
