package invoke

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"strconv"
	"time"

	"lode"
	"lode/link"
	"lode/placement"
)

const (
	// catchUp is how long an invocation waits for a revision that its gateway
	// knows and this node does not yet.
	catchUp = 2 * time.Second
	// goWithin is how long a slot is held for a gateway that is to say go.
	goWithin = 5 * time.Second
	// wholeMost is how much of an answer waits for its end, to leave in one
	// frame.
	wholeMost = 48 << 10
)

// HandleRemote runs an invocation that another node has placed here, or
// answers its question for the wait. node makes it the handler of LinkMethod.
// A nil Service answers too: that it begins nothing.
func (s *Service) HandleRemote(ctx context.Context, in *link.Incoming) error {
	if s == nil {
		return in.Reply(appendWait([]byte{wireVersion, wireRefused, refusedDraining}, 0), nil)
	}
	if s.spread == nil {
		return lode.Errorf(lode.Unavailable, "this node runs no work of other nodes")
	}
	body, err := fill(in.Body, in.Stream, missing(in.Head))
	if err != nil {
		return err
	}
	o, body, err := parseOrder(in.Head, body)
	if err != nil {
		return err
	}
	if o.what == wireAsk {
		return s.answerAsk(in, o)
	}
	if s.leaving() || s.begin(false) != nil {
		return s.refuse(in, refusedDraining, 0)
	}
	defer s.end()
	rev, err := s.spread.await(ctx, o)
	if err != nil {
		return s.refuse(in, refusedUnknown, 0)
	}
	if !o.streamed { // it was whole, and only too long for one frame
		if body, err = fill(body, in.Stream, orDefault(rev.Function.Limits.Body, defaultBody)+1); err != nil {
			return err
		}
	}
	return s.serve(ctx, in, o, rev, body)
}

// fill reads on until body has n bytes or the stream has ended.
func fill(body []byte, stream io.Reader, n int64) ([]byte, error) {
	if stream == nil || int64(len(body)) >= n {
		return body, nil
	}
	b := bytes.NewBuffer(body)
	if _, err := io.Copy(b, io.LimitReader(stream, n-int64(len(body)))); err != nil {
		return nil, lode.Errorf(lode.Cancelled, "the request of another node ended early: %w", err)
	}
	return b.Bytes(), nil
}

// refuse tells that nothing was started.
func (s *Service) refuse(in *link.Incoming, why byte, wait time.Duration) error {
	s.spread.stats.pushed.Add(1)
	in.Reply(appendWait([]byte{wireVersion, wireRefused, why}, wait), nil) // its error: nobody listens
	return nil
}

// answerAsk answers the question how long a revision would wait.
func (s *Service) answerAsk(in *link.Incoming, o *wireOrder) error {
	wait, code := time.Duration(0), placement.Absent
	if rev, err := s.exactly(o); err == nil {
		now := s.used.now()
		u := s.used.entry(rev)
		wait, _ = s.standing(target{rev.Namespace, rev.Name}, &rev.Function.Limits, time.Duration(u.run(now)))
		code = s.codeHere(u, now)
	}
	b := binary.AppendUvarint([]byte{wireVersion, wireAsked}, uint64(wait))
	return in.Reply(append(b, byte(code), flag(s.leaving())), nil)
}

// exactly is the revision that an order names, if this node knows it.
func (s *Service) exactly(o *wireOrder) (*lode.Revision, error) {
	rev, err := s.cfg.Catalog.Resolve(o.ns, o.function, strconv.Itoa(o.rev), 0)
	if err != nil {
		return nil, err
	}
	if rev.Number != o.rev || rev.Digest != o.digest {
		return nil, lode.Errorf(lode.NotFound, "this node does not know %s/%s@%d yet", o.ns, o.function, o.rev)
	}
	return rev, nil
}

// await is exactly for a catalog that may lag: it waits a while for a revision
// that is not known yet.
func (sp *spread) await(ctx context.Context, o *wireOrder) (*lode.Revision, error) {
	var late <-chan time.Time
	for {
		sp.mu.Lock()
		told := sp.told
		sp.mu.Unlock()
		rev, err := sp.s.exactly(o)
		if err == nil {
			return rev, nil
		}
		if late == nil {
			most := catchUp
			if o.left > 0 {
				most = min(most, o.left)
			}
			t := time.NewTimer(most)
			defer t.Stop()
			late = t.C
		}
		select {
		case <-told:
		case <-late:
			return nil, err
		case <-ctx.Done():
			return nil, ended(ctx, "waiting for a revision")
		}
	}
}

// arrival is an invocation from another node, and the way its answer goes
// back.
type arrival struct {
	in     *link.Incoming
	o      *wireOrder
	a      *attempt
	told   bool // refused; nothing more is to be said
	queued time.Duration
	cold   bool

	status int
	pairs  []byte // of the answer's head, encoded; nil: none yet
	body   []byte // that waits for the end
	begun  bool
}

var (
	_ lode.Answer = (*arrival)(nil)
	_ starter     = (*arrival)(nil)
	_ flusher     = (*arrival)(nil)
)

// serve runs an order to its end and answers it.
func (s *Service) serve(ctx context.Context, in *link.Incoming, o *wireOrder, rev *lode.Revision, body []byte) error {
	req := &o.req
	req.Namespace, req.Function, req.Alias = o.ns, o.function, strconv.Itoa(o.rev)
	if req.Body = body; o.streamed && in.Stream != nil {
		b := newArrivalBody(s, in.Stream)
		defer b.Close()
		req.Stream = b
	}
	req.Attempt, req.Depth = o.attempt, o.depth
	req.Trace = o.trace.Traceparent()
	if o.left > 0 {
		req.Deadline = time.Now().Add(o.left)
	}
	v := &arrival{in: in, o: o}
	a := s.attempts.Get().(*attempt)
	a.prepare(req, v)
	a.trace, a.rev, a.came, v.a = o.trace, rev, v, a
	a.w.patient = o.patient
	err := a.run(ctx)
	if v.told {
		a.away = true // nothing ran: the gateway goes on with it
	} else {
		s.spread.stats.served.Add(1)
	}
	out, err := a.finish(err)
	a.recycle()
	return v.end(&out.Usage, err)
}

// admit takes a place for an order, refuses it, or has it wait for its turn
// and for the gateway's word. The attempt is admitted unless the error says
// otherwise.
func (v *arrival) admit(ctx context.Context, s *Service, to target, lim *lode.Limits, deadline time.Time) error {
	a := v.a
	if s.tryEnter(&a.w, to, lim) {
		if v.o.streamed {
			return v.in.Note([]byte{noteAdmitted})
		}
		return nil
	}
	wait, mean := s.standing(to, lim, time.Duration(s.used.entry(a.rev).run(s.used.now())))
	if !placement.Admit(wait.Seconds(), mean.Seconds(), v.o.promised.Seconds(), v.o.rtt.Seconds()) {
		v.told = true
		s.refuse(v.in, refusedFull, wait)
		return errRefused
	}
	if err := v.in.Note(appendWait([]byte{noteQueued}, wait)); err != nil {
		return err
	}
	if err := s.gate.enter(ctx, &a.w, to, lim, deadline); err != nil {
		return v.unstarted(ctx, s, wait, err)
	}
	a.w.waited = true
	if err := v.ready(ctx); err != nil {
		s.gate.back(&a.w)
		return v.unstarted(ctx, s, wait, err)
	}
	return nil
}

// unstarted ends an order that was queued and did not start: the gateway goes
// on with it, unless its deadline has passed.
func (v *arrival) unstarted(ctx context.Context, s *Service, wait time.Duration, err error) error {
	if lode.KindOf(err) == lode.Deadline {
		return err
	}
	v.told = true
	if ctx.Err() == nil {
		s.refuse(v.in, refusedFull, wait)
	}
	return err
}

// errRefused ends the run of an order that was refused.
var errRefused = lode.Errorf(lode.Overloaded, "the invocation was refused")

// ready tells the gateway that the order's turn has come, and waits for its
// word.
func (v *arrival) ready(ctx context.Context) error {
	if err := v.in.Note([]byte{noteReady}); err != nil {
		return err
	}
	t := time.NewTimer(goWithin)
	defer t.Stop()
	select {
	case b := <-v.in.Notes():
		if len(b) == 1 && b[0] == noteGo {
			return nil
		}
		return lode.Errorf(lode.Unavailable, "the gateway did not say go")
	case <-ctx.Done():
		return ended(ctx, "waiting for the word of its gateway")
	case <-t.C:
		return lode.Errorf(lode.Unavailable, "the gateway did not say go within %s", goWithin)
	}
}

// Started keeps how the run began.
func (v *arrival) Started(cold bool, queued time.Duration) { v.cold, v.queued = cold, queued }

// Head keeps the head until there is enough to send.
func (v *arrival) Head(status int, head []lode.Pair) error {
	v.status = status
	v.pairs = appendPairs(make([]byte, 0, 256), head)
	return nil
}

// Write sends a piece, or keeps it while the answer may yet be a small one.
func (v *arrival) Write(p []byte) (int, error) {
	if !v.begun {
		if len(v.body)+len(p) <= wholeMost {
			v.body = append(v.body, p...)
			return len(p), nil
		}
		if err := v.begin(); err != nil {
			return 0, err
		}
	}
	return v.in.Write(p)
}

// Flush sends what there is: the guest waits, and will answer more.
func (v *arrival) Flush() {
	if v.pairs == nil {
		return
	}
	if !v.begun && v.begin() != nil {
		return
	}
	v.in.Flush() // an error shows in the next Write
}

// begin begins an answer whose end is not known yet.
func (v *arrival) begin() error {
	v.begun = true
	b := []byte{wireVersion, wireBegun}
	b = binary.AppendUvarint(b, uint64(v.status))
	b = append(b, flag(v.cold))
	b = appendWait(b, v.queued)
	head, more := splitHead(append(b, v.pairs...), 2)
	if err := v.in.Begin(head); err != nil {
		return err
	}
	if len(more) > 0 {
		if _, err := v.in.Write(more); err != nil {
			return err
		}
	}
	body := v.body
	v.body = nil
	if len(body) == 0 {
		return nil
	}
	_, err := v.in.Write(body)
	return err
}

// end ends the answer.
func (v *arrival) end(u *lode.Usage, err error) error {
	switch {
	case v.told:
		return nil
	case v.begun:
		if nerr := v.in.Note(appendUsage([]byte{noteDone}, u)); nerr != nil && err == nil {
			return nerr
		}
		return err
	case err != nil:
		v.in.Reply(appendUsage([]byte{wireVersion, wireFailed}, u), appendFailure(err)) // its error: nobody listens
		return nil
	}
	b := binary.AppendUvarint([]byte{wireVersion, wireWhole}, uint64(v.status))
	head, more := splitHead(append(appendUsage(b, u), v.pairs...), 2)
	if len(more) > 0 {
		v.body = append(more, v.body...)
	}
	v.in.Reply(head, v.body) // as above
	return nil
}
