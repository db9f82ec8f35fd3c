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

// Call is one asynchronous invocation, as people and programs ask for it. Its
// JSON is what travels between nodes.
type Call struct {
	ID        lode.InvocationID `json:"id"`
	Function  lode.Name         `json:"function"`
	Revision  string            `json:"revision,omitempty"` // ns/name@rev, of the last attempt
	Trigger   lode.Trigger      `json:"trigger"`
	State     lode.State        `json:"state"`
	Dead      bool              `json:"dead,omitempty"` // failed, and not to be tried again by itself
	Attempts  int               `json:"attempts"`
	Created   time.Time         `json:"created"`
	Ended     time.Time         `json:"ended,omitzero"`       // zero: it has not
	Next      time.Time         `json:"next,omitzero"`        // of the next attempt; zero: none is waiting for its time
	Status    int               `json:"status,omitempty"`     // the function's own, when done
	ResultLen int64             `json:"result_len,omitempty"` // bytes of the answer
	Trace     string            `json:"trace,omitempty"`      // 32 hexadecimal digits
	Usage     *lode.Usage       `json:"usage,omitempty"`
	Error     *lode.Error       `json:"error,omitempty"` // of the last attempt
}

// CallFilter chooses calls; zero fields choose all.
type CallFilter struct {
	Function lode.Name  `json:"function,omitempty"`
	State    lode.State `json:"state,omitempty"`
	Dead     bool       `json:"dead,omitempty"` // dead letters only
}

func (f CallFilter) takes(e *entry) bool {
	return (f.Function == "" || f.Function == e.fn) && (f.State == "" || f.State == e.state) && (!f.Dead || e.dead)
}

func noCalls() error { return lode.Errorf(lode.Unavailable, "this node keeps no asynchronous work") }

func noCall(id lode.InvocationID) error {
	return lode.Errorf(lode.NotFound, "there is no asynchronous invocation %s", id).WithHint("results are kept for a day, dead letters for seven")
}

// lookup returns a copy of the entry.
func (c *calls) lookup(ns lode.Namespace, id lode.InvocationID) (entry, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries[callKey(ns, id)]; e != nil {
		return *e, nil
	}
	return entry{}, noCall(id)
}

// entry is lookup for those who ask from outside.
func (k *Keeper) entry(ns lode.Namespace, id lode.InvocationID) (entry, error) {
	if k.calls == nil {
		return entry{}, noCalls()
	}
	if err := k.gone(); err != nil {
		return entry{}, err
	}
	return k.calls.lookup(ns, id)
}

// GetCall tells how an asynchronous invocation stands. It waits up to wait
// for its end first. ErrNotKeeper: ask the next keeper.
func (k *Keeper) GetCall(ctx context.Context, ns lode.Namespace, id lode.InvocationID, wait time.Duration) (Call, error) {
	e, err := k.entry(ns, id)
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
		case <-k.base.Done():
			return Call{}, notKeeper()
		}
	}
	return k.show(ctx, ns, id)
}

// show describes an invocation as it stands now.
func (k *Keeper) show(ctx context.Context, ns lode.Namespace, id lode.InvocationID) (c Call, err error) {
	err = k.bounded(ctx, "read "+string(id), func(ctx context.Context) error {
		for {
			e, err := k.entry(ns, id)
			if err != nil {
				return err
			}
			c, err = k.calls.describe(ctx, &e)
			if lode.KindOf(err) != lode.NotFound {
				return err
			}
			// It ended, or was replayed, between the two looks; or it is gone.
			if again, e2 := k.entry(ns, id); e2 != nil || again.over() == e.over() && again.cycle == e.cycle {
				return err
			}
		}
	})
	return c, err
}

// describe reads the rest of what is known of an entry.
func (c *calls) describe(ctx context.Context, e *entry) (Call, error) {
	if e.over() {
		r, _, err := c.record(ctx, e.key, e.id)
		if err != nil {
			return Call{}, err
		}
		w := &r.Work
		return Call{ID: w.ID, Function: w.Function, Revision: r.Revision, Trigger: w.Trigger, State: r.State, Dead: r.Dead, Attempts: r.Attempts,
			Created: w.Created, Ended: r.Ended, Status: r.Status, ResultLen: r.Size, Trace: traceID(w.Trace), Usage: r.Usage, Error: r.Error}, nil
	}
	it, err := c.k.cfg.Queues.Get(ctx, callQueue(e.ns, e.fn), e.work().itemID())
	if err != nil {
		return Call{}, err
	}
	w, _, err := decodeWork(it.Body)
	if err != nil {
		return Call{}, err
	}
	attempts, _ := counted(&it)
	out := Call{ID: w.ID, Function: w.Function, Trigger: w.Trigger, State: e.state, Attempts: attempts, Created: w.Created, Trace: traceID(w.Trace), Error: errorOf(it.Note)}
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

// record reads the record of a call; NotFound if it has none.
func (c *calls) record(ctx context.Context, key string, id lode.InvocationID) (*record, uint64, error) {
	v, ok, err := c.table.Get(ctx, key)
	if err != nil {
		return nil, 0, err
	}
	if !ok {
		return nil, 0, noCall(id)
	}
	r, err := decodeRecord(v.Value)
	return r, v.Rev, err
}

// ListCalls lists the asynchronous invocations of a namespace, by id, newest
// first. after is the id of the last one of the page before; next is empty at
// the end.
func (k *Keeper) ListCalls(ctx context.Context, ns lode.Namespace, f CallFilter, limit int, after lode.InvocationID) (list []Call, next lode.InvocationID, err error) {
	if k.calls == nil {
		return nil, "", noCalls()
	}
	if err := k.gone(); err != nil {
		return nil, "", err
	}
	var found []entry
	k.calls.mu.Lock()
	for _, e := range k.calls.entries {
		if e.ns == ns && f.takes(e) && (after == "" || e.id < after) {
			found = append(found, *e)
		}
	}
	k.calls.mu.Unlock()
	slices.SortFunc(found, func(a, b entry) int { return strings.Compare(string(b.id), string(a.id)) })
	limit = orDefault(limit, 100)
	for i := range found {
		if len(list) == limit {
			return list, list[limit-1].ID, nil
		}
		c, err := k.calls.describe(ctx, &found[i])
		if lode.KindOf(err) == lode.NotFound { // it ended or was dropped meanwhile
			c, err = k.show(ctx, ns, found[i].id)
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

// CancelCall ends an asynchronous invocation; see Service.CancelCall.
func (k *Keeper) CancelCall(ctx context.Context, ns lode.Namespace, id lode.InvocationID) (Call, error) {
	e, err := k.entry(ns, id)
	if err != nil {
		return Call{}, err
	}
	if !e.over() {
		if err := k.bounded(ctx, "cancel "+string(id), func(ctx context.Context) error { return k.calls.cancel(ctx, &e) }); err != nil {
			return Call{}, err
		}
	}
	c, err := k.show(ctx, ns, id)
	if err == nil && c.State != lode.StateCancelled {
		return c, lode.Errorf(lode.Conflict, "%s is %s already", id, c.State)
	}
	return c, err
}

// cancel records the cancellation, then interrupts and removes. Another end
// may win.
func (c *calls) cancel(ctx context.Context, e *entry) error {
	queue, item := callQueue(e.ns, e.fn), e.work().itemID()
	it, err := c.k.cfg.Queues.Get(ctx, queue, item)
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
	attempts, _ := counted(&it)
	r := &record{Work: *w, State: lode.StateCancelled, Attempts: attempts, Ended: c.k.cfg.Now().UTC(), Body: inline, Part: c.k.token,
		Error: lode.Errorf(lode.Cancelled, "cancelled on request")}
	rev, err := c.store(ctx, r)
	if err != nil {
		return err
	}
	if rev == 0 {
		_, err := c.adopt(ctx, w)
		return err
	}
	c.ended(r, rev)
	if _, err := c.k.cfg.Queues.Remove(ctx, queue, item); err != nil && lode.KindOf(err) != lode.NotFound {
		return err // the record stands: whoever pulls the item will see it
	}
	return nil
}

// ReplayCall queues a failed or cancelled invocation again, under its id and
// with all its attempts.
func (k *Keeper) ReplayCall(ctx context.Context, ns lode.Namespace, id lode.InvocationID) (Call, error) {
	e, err := k.entry(ns, id)
	if err != nil {
		return Call{}, err
	}
	if e.state != lode.StateFailed && e.state != lode.StateCancelled {
		return Call{}, lode.Errorf(lode.Conflict, "%s is %s; only what failed or was cancelled is replayed", id, e.state)
	}
	if err := k.bounded(ctx, "replay "+string(id), func(ctx context.Context) error { return k.calls.replay(ctx, &e) }); err != nil {
		return Call{}, err
	}
	return k.show(ctx, ns, id)
}

func (c *calls) replay(ctx context.Context, e *entry) error {
	r, rev, err := c.record(ctx, e.key, e.id)
	if err != nil {
		return err
	}
	body, err := getChunks(ctx, c.bodies, requestPrefix(e.key), r.Body, r.Work.Chunks)
	if err != nil {
		return err
	}
	// A Keeper that is none any more may be about to drop the record as too
	// old, and with it the body: once it is written again, it cannot.
	b, err := encodeRecord(r)
	if err != nil {
		return err
	}
	if _, err := c.table.Update(ctx, e.key, b, rev); err != nil {
		return err
	}
	w := r.Work
	w.Cycle++
	w.Deadline = time.Time{} // it has passed, or soon will
	return c.put(ctx, &w, body)
}

// CallResult is the answer of an invocation that is done; see
// Service.CallResult.
func (k *Keeper) CallResult(ctx context.Context, ns lode.Namespace, id lode.InvocationID) (b *lode.Buffered, err error) {
	e, err := k.entry(ns, id)
	if err != nil {
		return nil, err
	}
	if !e.over() {
		return nil, lode.Errorf(lode.NotFound, "%s is still %s", id, e.state).WithHint("wait for it, or ask again later")
	}
	err = k.bounded(ctx, "read the result of "+string(id), func(ctx context.Context) error {
		r, _, err := k.calls.record(ctx, e.key, e.id)
		if err != nil {
			return err
		}
		if r.Status == 0 {
			return cmp.Or(r.Error, lode.Errorf(lode.Internal, "%s has no answer", id))
		}
		body, err := getChunks(ctx, k.calls.bodies, r.answerPrefix(), r.Answer, r.Chunks)
		b = &lode.Buffered{Status: r.Status, Msg: lode.Message{Head: r.Head, Body: body}}
		return err
	})
	if err != nil {
		return nil, err
	}
	return b, nil
}

// halt ends the intake; what runs goes on.
func (c *calls) halt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopIntake()
}
