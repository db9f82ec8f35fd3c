package invoke

import (
	"context"
	"strconv"
	"strings"
	"time"

	"lode"
	"lode/bus"
)

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
		c.k.cfg.Logger.Error("asynchronous work is dropped", "item", d.Work().ID, "err", err)
		c.ack(d)
		return
	}
	ctx, cancel := context.WithCancelCause(c.k.base)
	defer cancel(nil)
	attempts, free := counted(d.Work())
	if !c.claim(w, attempts, cancel) {
		c.again(d, w)
		return
	}
	r := &record{Work: *w, Attempts: attempts, Part: c.k.token}
	next, wait := c.attempt(ctx, r, inline, free)
	switch {
	case c.k.base.Err() != nil: // cut short by Close, or this is not the keeper any more: it comes again
	case next == stepWait:
		c.release(w)
		c.logged(d.Nak(c.k.base, wait, noteOf(r.Error, free+1)), "give back", w)
	case next == stepRetry:
		c.release(w)
		c.logged(d.Nak(c.k.base, wait, noteOf(r.Error, free)), "give back", w)
	default:
		c.conclude(d, r)
	}
}

// attempt runs the work and fills r with what came of it. free is how often
// it was handed out without having begun.
func (c *calls) attempt(ctx context.Context, r *record, inline []byte, free int) (next step, wait time.Duration) {
	w, retry := &r.Work, lode.Retry{}
	body, err := getChunks(ctx, c.bodies, requestPrefix(w.key()), inline, w.Chunks)
	ans := &lode.Buffered{}
	if err == nil {
		req := w.request(r.Attempts, body)
		var rev *lode.Revision
		if rev, err = c.k.s.resolve(req); err == nil {
			retry = rev.Function.Retry
		}
		switch {
		case c.early(w, err):
			r.Error = lode.AsError(err)
			return stepWait, soon(free)
		case err != nil:
		case exhausted(retry, r.Attempts):
			err = lode.Errorf(lode.Unavailable, "the node stopped during each of %d attempts", r.Attempts-1)
		default:
			var out lode.Outcome
			if out, err = c.k.s.run(ctx, req, ans, true); err == nil {
				r.Status, r.Head, r.Answer = ans.Status, ans.Msg.Head, ans.Msg.Body
			}
			r.Revision, r.Usage = out.Revision, &out.Usage
		}
	}
	r.Error = lode.AsError(err)
	switch next = verdictOf(retry, r.Attempts, r.Status, err); next {
	case stepWait:
		return next, soon(free)
	case stepDone:
		r.State = lode.StateDone
	case stepFail:
		r.State, r.Dead = lode.StateFailed, true
		r.Body = inline
	}
	if err == nil && next != stepDone {
		r.Error = lode.Errorf(lode.Crashed, "%s answered with the status %d", r.Revision, r.Status)
	}
	return next, pauseAfter(retry, r.Attempts, err)
}

// early reports whether err says of a function that was just called on another
// node that there is none: then this node's catalog is a moment behind.
func (c *calls) early(w *work, err error) bool {
	return lode.KindOf(err) == lode.NotFound && c.k.s.cfg.Alive != nil && c.k.cfg.Now().Sub(w.Created) < catalogLag
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
	r.Ended = c.k.cfg.Now().UTC()
	r.Size = int64(len(r.Answer))
	rev, err := c.store(c.k.base, r)
	if lode.KindOf(err) == lode.TooLarge { // a head that no record holds: it never will
		r.State, r.Dead, r.Error = lode.StateFailed, true, lode.AsError(err)
		r.Status, r.Head, r.Answer, r.Size = 0, nil, nil, 0
		rev, err = c.store(c.k.base, r)
	}
	switch {
	case err != nil:
		// Without its result it has not ended: it is done again.
		c.release(&r.Work)
		c.logged(d.Nak(c.k.base, callPause, noteOf(lode.AsError(err), 0)), "give back", &r.Work)
	case rev == 0: // another end was there first
		c.again(d, &r.Work)
	default:
		var then []bus.Item
		if r.Dead {
			then = c.deadLetter(r)
		}
		c.ended(r, rev)
		c.logged(d.Ack(c.k.base, then...), "acknowledge", &r.Work)
	}
}

// store writes chunks and record, and returns the record's revision; 0 where
// another end was there first.
func (c *calls) store(ctx context.Context, r *record) (rev uint64, err error) {
	whole := r.Answer
	if r.Answer, r.Chunks, err = putChunks(ctx, c.bodies, r.answerPrefix(), whole); err != nil {
		r.Answer = whole
		return 0, err
	}
	b, err := encodeRecord(r)
	if err != nil {
		return 0, err
	}
	key := r.Work.key()
	for {
		old, ok, err := c.table.Get(ctx, key)
		if err != nil {
			return 0, err
		}
		if ok {
			if o, err := decodeRecord(old.Value); err == nil && o.Work.Cycle >= r.Work.Cycle {
				return 0, nil
			}
			rev, err = c.table.Update(ctx, key, b, old.Rev)
		} else {
			rev, err = c.table.Create(ctx, key, b)
		}
		if k := lode.KindOf(err); k != lode.Conflict && k != lode.Precondition {
			return rev, err
		}
	}
}

// ended marks the entry of r as ended.
func (c *calls) ended(r *record, rev uint64) {
	c.mu.Lock()
	e := c.entries[r.Work.key()]
	if e == nil || e.cycle != r.Work.Cycle || e.over() {
		c.mu.Unlock()
		return
	}
	e.state, e.dead, e.attempts, e.ended, e.trigger = r.State, r.Dead, r.Attempts, r.Ended, r.Work.Trigger
	e.idem, e.rev = r.Work.Key, rev
	cancel := e.cancel
	e.cancel = nil
	close(e.done)
	c.mu.Unlock()
	if c.k.schedules != nil && r.Work.Trigger == lode.TriggerSchedule {
		c.k.schedules.poke()
	}
	if cancel != nil && r.State == lode.StateCancelled {
		cancel(lode.Errorf(lode.Cancelled, "cancelled on request"))
	}
}

// again acknowledges what has ended already: the node died, or another end won,
// between the record and the acknowledgement.
func (c *calls) again(d Delivery, w *work) {
	var then []bus.Item
	r, err := c.adopt(c.k.base, w)
	if err != nil && lode.KindOf(err) != lode.NotFound {
		c.release(w)
		c.logged(d.Nak(c.k.base, callPause, d.Work().Note), "give back", w)
		return
	}
	if err == nil && r.Dead && r.Work.Cycle == w.Cycle {
		then = c.deadLetter(r)
	}
	c.logged(d.Ack(c.k.base, then...), "acknowledge", w)
}

// adopt makes the end that is on record the end of w: a Keeper before this one
// may have written it.
func (c *calls) adopt(ctx context.Context, w *work) (*record, error) {
	r, rev, err := c.record(ctx, w.key(), w.ID)
	if err == nil {
		c.ended(r, rev)
	}
	return r, err
}

// noteOf is the note of an item that was given back: why, after how often it
// had been handed out without having begun,
//
//	[~FREE ]KIND DETAIL
func noteOf(e *lode.Error, free int) string {
	note := ""
	if free > 0 {
		note = "~" + strconv.Itoa(free) + noteKinds
	}
	if e != nil {
		note += string(e.Kind) + noteKinds + e.Error()
	}
	return note
}

func splitNote(note string) (free int, rest string) {
	if count, why, ok := strings.Cut(note, noteKinds); ok && strings.HasPrefix(count, "~") {
		if n, err := strconv.Atoi(count[1:]); err == nil && n > 0 {
			return n, why
		}
	}
	return 0, note
}

func errorOf(note string) *lode.Error {
	_, note = splitNote(note)
	kind, detail, ok := strings.Cut(note, noteKinds)
	if !ok {
		return nil
	}
	return &lode.Error{Kind: lode.Kind(kind), Detail: detail}
}

// counted is how many attempts have been made with this delivery, and how
// often the item was handed out without having begun.
func counted(it *bus.Item) (attempts, free int) {
	free, _ = splitNote(it.Note)
	free = min(free, max(0, it.Deliveries-1)) // a delivery may have been forgotten
	return it.Deliveries - free, free
}
