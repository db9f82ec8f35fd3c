package invoke

import (
	"context"
	"encoding/binary"
	"errors"
	"time"

	"lode"
	"lode/link"
	"lode/placement"
)

// maxLosses is how many nodes an invocation may lose before it is given up.
const maxLosses = 3

// failureMost is how long an error from another node may be.
const failureMost = 1 << 20

// forward is one attempt on its way to another node, and its answer on the way
// back. Its methods are called from the goroutine of Peers.Call alone.
//
//	sent -> queued -> went -> answered
//	     -> answered          it was admitted at once
//
// Only a queued one is known not to have started.
type forward struct {
	j      *journey // nil: a question
	view   *replayView
	queued bool
	went   bool

	what   byte
	more   int64  // bytes of the head that are still to come
	head   []byte // collected
	reply  *wireReply
	body   []byte // of a failure
	usage  lode.Usage
	done   bool  // usage is set
	failed error // of the answer that it writes to
}

// Head takes the answer's head, or its first part.
func (f *forward) Head(b []byte) error {
	r := wireReader{b: b}
	f.what, f.more = r.begin(hasMore)
	if r.err != nil {
		return lode.Errorf(lode.Internal, "%w", r.err)
	}
	if f.more > 0 {
		f.head = append(f.head[:0], r.b...)
		return nil
	}
	return f.parsed(r.b)
}

// Write takes what is missing of the head, then the body.
func (f *forward) Write(p []byte) (int, error) {
	all := len(p)
	if f.more > 0 {
		n := min(f.more, int64(len(p)))
		f.head, p, f.more = append(f.head, p[:n]...), p[n:], f.more-n
		if f.more > 0 {
			return all, nil
		}
		if err := f.parsed(f.head); err != nil {
			return 0, err
		}
	}
	switch {
	case len(p) == 0 || f.j == nil:
	case f.what == wireFailed:
		if len(f.body)+len(p) <= failureMost {
			f.body = append(f.body, p...)
		}
	case f.what == wireWhole || f.what == wireBegun:
		if err := f.answer(p); err != nil {
			return 0, err
		}
	}
	return all, nil
}

// parsed takes the whole head.
func (f *forward) parsed(b []byte) (err error) {
	if f.reply, err = parseReply(f.what, b); err != nil || f.j == nil {
		return err
	}
	a := f.j.a
	if hasMore(f.what) {
		f.view.admit()
		a.status = f.reply.status
		if st, ok := a.ans.(starter); ok {
			st.Started(f.reply.cold, f.reply.queued)
		}
		f.failed = a.ans.Head(f.reply.status, f.reply.pairs)
		if f.failed == nil && f.what == wireBegun && a.flusher != nil {
			a.flusher.Flush()
		}
		return f.failed
	}
	return nil
}

// answer hands a piece of the body on.
func (f *forward) answer(p []byte) error {
	a := f.j.a
	n, err := a.ans.Write(p)
	a.out += int64(n)
	if err != nil {
		f.failed = err
		return err
	}
	if f.what == wireBegun && a.flusher != nil {
		a.flusher.Flush()
	}
	return nil
}

// note takes a note of the node that was asked to run it.
func (f *forward) note(b []byte) (reply []byte) {
	if len(b) == 0 {
		return nil
	}
	switch b[0] {
	case noteAdmitted:
		f.view.admit()
	case noteQueued:
		f.queued = true
	case noteReady:
		f.went = true
		f.view.admit()
		return []byte{noteGo}
	case noteDone:
		r := wireReader{b: b[1:]}
		f.usage = r.usage()
		f.done = r.err == nil
	}
	return nil
}

// order is the attempt as it travels to c.
func (j *journey) order(c *placement.Candidate) *wireOrder {
	a, rev := j.a, j.a.rev
	o := &wireOrder{what: wireRun, ns: rev.Namespace, function: rev.Name, rev: rev.Number, digest: rev.Digest,
		patient: a.w.patient, streamed: a.req.Stream != nil, promised: seconds(c.Cost.Queue), rtt: seconds(c.Cost.Hop), trace: a.trace, attempt: j.attempt, depth: a.depth}
	_, o.kept = a.ans.(*lode.Buffered)
	if !j.deadline.IsZero() {
		o.left = max(time.Until(j.deadline), 1)
	}
	q := a.req
	o.req = lode.Request{ID: a.id, Handler: q.Handler, Trigger: q.Trigger, Method: q.Method, Path: q.Path, Caller: q.Caller, IdempotencyKey: q.IdempotencyKey, Head: q.Head}
	return o
}

// forward sends the attempt to c. done: it has ended, as err says; else it is
// to be placed anew.
func (j *journey) forward(ctx context.Context, c *placement.Candidate) (done bool, err error) {
	sp, a := j.sp, j.a
	if !j.deadline.IsZero() && !time.Now().Before(j.deadline) {
		return true, lode.Errorf(lode.Deadline, "the deadline passed before a node took %s", a.rev.ID())
	}
	f := &forward{j: j}
	head, more := j.order(c).append(make([]byte, 0, 512))
	r := &link.Request{Method: LinkMethod, Head: head, Body: a.req.Body, Note: f.note}
	if len(more) > 0 {
		r.Body = append(more, a.req.Body...)
	}
	if a.req.Stream != nil {
		if a.body == nil {
			a.body = &replay{src: a.req.Stream}
		}
		f.view = a.body.view()
		defer f.view.end()
		r.Stream = f.view
	}
	expect := 0.0
	if c.Cost.Run > 0 {
		expect = c.Cost.Hop + c.Cost.Queue + c.Cost.Code + c.Cost.Run
	}
	began, within := sp.now(), max(expect, leastExpect)
	if expect == 0 {
		within = someExpect
	}
	sp.tell(c.Node.ID, func(p *placement.Peer) { p.Sent(began, within) })
	err = sp.peers.Call(ctx, c.Node.ID, r, f)
	return j.verdict(ctx, c, f, err, began, expect)
}

// What an answer is given time for, in seconds, before its absence counts
// against a node: at least, and where nobody knows how long a run takes.
const (
	leastExpect = 20e-3
	someExpect  = 1.0
)

// tell tells what is known of a node something more.
func (sp *spread) tell(id lode.NodeID, f func(*placement.Peer)) {
	sp.mu.Lock()
	f(sp.peer(id))
	sp.mu.Unlock()
}

// verdict says what became of an attempt that was sent to c.
func (j *journey) verdict(ctx context.Context, c *placement.Candidate, f *forward, err error, began, expect float64) (done bool, _ error) {
	sp, a, now := j.sp, j.a, j.sp.now()
	whole := err == nil && f.what == wireWhole && !f.usage.Cold && a.req.Stream == nil
	switch {
	case whole && expect > 0:
		sp.tell(c.Node.ID, func(p *placement.Peer) { p.Answered(now, now-began, expect) })
	case err == nil && f.what == wireRefused && f.reply.why == refusedFull:
		sp.tell(c.Node.ID, func(p *placement.Peer) { p.Refused(now, f.reply.wait.Seconds()) })
	default:
		sp.tell(c.Node.ID, func(p *placement.Peer) { p.Lost(now) })
	}
	switch {
	case f.failed != nil: // the caller's side of the answer is broken
		a.ranAt(c.Node.ID, f)
		return true, f.failed
	case err == nil && f.reply == nil:
		return true, lode.Errorf(lode.Internal, "node %s answered nothing for %s", c.Node.ID, a.rev.ID())
	case err == nil && f.what == wireRefused:
		return j.saidNo(c, f)
	case err == nil:
		sp.stats.forwarded.Add(1)
		a.ranAt(c.Node.ID, f)
		if f.what == wireFailed {
			return true, parseFailure(f.body)
		}
		return true, nil
	case ctx.Err() != nil:
		if !f.queued || f.went { // it ends there as well, with a record
			a.away, a.node = true, c.Node.ID
		}
		return true, ended(ctx, "running "+a.rev.ID())
	case errors.Is(err, link.ErrNotSent), errors.Is(err, link.ErrRefused):
		j.down = append(j.down, c.Node.ID)
		j.tried(Try{Node: c.Node.ID, What: "not reached"})
		return j.again()
	case errors.Is(err, link.ErrLost):
		return j.nodeLost(c, f, err)
	case hasMore(f.what): // it failed in the middle of its answer
		sp.stats.forwarded.Add(1)
		a.ranAt(c.Node.ID, f)
	}
	return true, err
}

// ranAt notes that an attempt ran on another node, which gives its record.
func (a *attempt) ranAt(node lode.NodeID, f *forward) {
	a.node, a.away = node, true
	switch {
	case f.done:
		a.inv.Usage = f.usage
	case f.reply != nil:
		a.inv.Usage = f.reply.usage
	}
}

// saidNo is what a refusal leads to.
func (j *journey) saidNo(c *placement.Candidate, f *forward) (done bool, err error) {
	why := "its line is full"
	switch f.reply.why {
	case refusedFull:
		j.full = true
	case refusedDraining:
		why = "it drains"
	case refusedUnknown:
		why = "it does not know the revision yet"
	}
	j.refused(c, f.reply.wait.Seconds(), why)
	return j.again()
}

// again says whether the request can be sent once more: not when more of its
// stream was taken than is kept.
func (j *journey) again() (done bool, err error) {
	if b := j.a.body; b != nil && !b.whole() {
		e := lode.Errorf(lode.Unavailable, "the node that was to run %s did not, and the body that it has taken cannot be sent again", j.a.rev.ID())
		e.RetryAfter = time.Second
		return true, e.WithHint("send the request again: it was not started")
	}
	return false, nil
}

// nodeLost is what becomes of an attempt whose node was lost: it goes
// elsewhere where it did not start, or where running twice does no harm.
func (j *journey) nodeLost(c *placement.Candidate, f *forward, err error) (bool, error) {
	sp, a := j.sp, j.a
	j.down = append(j.down, c.Node.ID)
	unstarted := f.queued && !f.went
	j.losses++
	if unstarted {
		j.tried(Try{Node: c.Node.ID, What: "lost while it was queued"})
	} else {
		j.tried(Try{Node: c.Node.ID, What: "lost while it may have run"})
	}
	switch {
	case hasMore(f.what):
		sp.stats.lost.Add(1)
		e := lode.Errorf(lode.Unavailable, "node %s was lost while it answered %s; the answer is cut short: %w", c.Node.ID, a.rev.ID(), link.ErrLost)
		return true, e.WithHint("`lode nodes` shows which nodes answer")
	case unstarted && j.losses < maxLosses:
	case idempotent(a.req) && j.losses < maxLosses && (a.body == nil || a.body.whole()):
		j.attempt++
	default:
		sp.stats.lost.Add(1)
		return true, lostError(c.Node.ID, a.rev, unstarted)
	}
	if done, err := j.again(); done {
		sp.stats.lost.Add(1)
		return true, err
	}
	sp.stats.retried.Add(1)
	if j.attempt > max(1, a.req.Attempt) {
		own := *a.req
		own.Attempt = j.attempt
		a.req = &own
	}
	return false, nil
}

func lostError(node lode.NodeID, rev *lode.Revision, unstarted bool) error {
	e := lode.Errorf(lode.Unavailable, "node %s was lost while it ran %s@%d; whether it ran to its end is not known: %w", node, rev.Name, rev.Number, link.ErrLost)
	if unstarted {
		e = lode.Errorf(lode.Unavailable, "%d nodes were lost before %s@%d began, node %s the last: %w", maxLosses, rev.Name, rev.Number, node, link.ErrLost)
	}
	e.RetryAfter = time.Second
	return e.WithHint("send an Idempotency-Key and it is tried elsewhere")
}

// appendWait writes the note of an invocation that is queued.
func appendWait(b []byte, wait time.Duration) []byte {
	return binary.AppendUvarint(b, uint64(max(wait, 0)))
}
