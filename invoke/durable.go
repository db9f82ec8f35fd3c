package invoke

import (
	"context"
	"errors"
	"sync"
	"time"

	"lode"
)

// Durable is asynchronous work as whoever keeps it offers it: a Keeper on this
// node, or the stub of one on another. What comes back from Submit and PutQueue
// without an error is durable. Submit and PutQueue may be repeated with the
// same id while it is not known what became of the first try.
//
// An error with ErrNotKeeper in it, or one of the link that says that the call
// did not get through, means that the keeper is gone: a Service waits for the next one and repeats.
type Durable interface {
	// Submit stores a request whose body is whole. An id that is there already
	// is passed over.
	Submit(ctx context.Context, req *lode.Request) (lode.InvocationID, error)
	PutQueue(ctx context.Context, p Put) (id string, err error)
	QueueState(ctx context.Context, ns lode.Namespace, name lode.Name) (QueueState, error)
	GetCall(ctx context.Context, ns lode.Namespace, id lode.InvocationID, wait time.Duration) (Call, error)
	ListCalls(ctx context.Context, ns lode.Namespace, f CallFilter, limit int, after lode.InvocationID) (list []Call, next lode.InvocationID, err error)
	CancelCall(ctx context.Context, ns lode.Namespace, id lode.InvocationID) (Call, error)
	ReplayCall(ctx context.Context, ns lode.Namespace, id lode.InvocationID) (Call, error)
	CallResult(ctx context.Context, ns lode.Namespace, id lode.InvocationID) (*lode.Buffered, error)
}

const (
	keeperWait  = 5 * time.Second  // for a keeper, where there is none
	keeperTries = 10 * time.Second // for keepers that come and go
	keeperPause = 20 * time.Millisecond
	keeperLast  = 500 * time.Millisecond
)

// seat is where the keeper sits, as a Service knows it.
type seat struct {
	mu      sync.Mutex
	d       Durable
	known   bool          // somebody sets it: when it is empty, one is to come
	changed chan struct{} // closed when d changes
}

func (k *seat) set(d Durable) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.d, k.known = d, true
	if k.changed != nil {
		close(k.changed)
		k.changed = nil
	}
}

func (k *seat) get() (d Durable, known bool, changed <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.changed == nil {
		k.changed = make(chan struct{})
	}
	return k.d, k.known, k.changed
}

// SetKeeper says who keeps asynchronous work from now on; nil: nobody, as far
// as is known, and what asks for it waits for a while. A node that is one of
// several calls it as soon as its Service is open.
func (s *Service) SetKeeper(d Durable) { s.seat.set(d) }

// keep does something with the keeper. Where there is none it waits for one;
// where it is lost meanwhile, for the next, and does it again. extra is how
// long do itself may wait.
func (s *Service) keep(ctx context.Context, extra time.Duration, do func(ctx context.Context, d Durable, repeated bool) error) error {
	kctx, cancel := context.WithTimeout(ctx, keeperTries+extra)
	defer cancel()
	defer context.AfterFunc(s.base, cancel)()
	begin, empty := time.Now(), time.Time{} // empty: since when there has been no keeper
	var last error
	for pause, tries := keeperPause, 0; ; pause = min(2*pause, keeperLast) {
		d, known, changed := s.seat.get()
		switch {
		case d != nil:
			empty = time.Time{}
			last = do(kctx, d, tries > 0)
			if tries++; !keeperGone(last) {
				return s.unkept(ctx, kctx, last)
			}
		case !known:
			return noCalls()
		case empty.IsZero():
			empty = time.Now()
		case time.Since(empty) >= keeperWait:
			return noKeeper(last)
		default:
			pause = keeperLast
		}
		if s.cfg.Hopeless != nil && s.cfg.Hopeless(begin) {
			return noMajority(last)
		}
		if !waitFor(kctx, changed, pause) {
			return s.unkept(ctx, kctx, noKeeper(last))
		}
	}
}

// unkept is err, unless the caller or this node has ended: then that is why.
func (s *Service) unkept(ctx, kctx context.Context, err error) error {
	switch {
	case err == nil || kctx.Err() == nil:
		return err
	case s.base.Err() != nil:
		return draining()
	case ctx.Err() != nil:
		return ended(ctx, "waiting for the node that keeps asynchronous work")
	case lode.KindOf(err) == lode.Deadline || lode.KindOf(err) == lode.Cancelled:
		return noKeeper(err) // our own bound
	}
	return err
}

// waitFor waits for a change or until d is over; false: ctx has ended.
func waitFor(ctx context.Context, changed <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(jitter(d))
	defer t.Stop()
	select {
	case <-changed:
	case <-t.C:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// keeperGone reports whether err says that who was asked keeps nothing any
// more, or cannot be reached.
func keeperGone(err error) bool {
	return errors.Is(err, ErrNotKeeper) || notStarted(err) || nodeLost(err)
}

func noKeeper(cause error) error {
	e := lode.Errorf(lode.Unavailable, "the cluster has no keeper at the moment, which asynchronous work goes to")
	e.RetryAfter, e.Err = time.Second, cause
	return e.WithHint("try again in a second; with an idempotency key nothing is done twice. If it stays so, lode nodes shows whether most bus members answer")
}

func noMajority(cause error) error {
	e := lode.Errorf(lode.Unavailable, "most members of the bus cannot be reached from this node: asynchronous work and messages are not kept until they can")
	e.RetryAfter, e.Err = 2*time.Second, cause
	return e.WithHint("lode nodes shows who is lost; another node may be on the side that goes on")
}

// Submit stores req durably, to be run until it succeeds or its attempts are
// used up, and returns its id. The same idempotency key with the same body
// gives the same id for 24 hours, with another body KeyReused.
func (s *Service) Submit(ctx context.Context, req *lode.Request) (id lode.InvocationID, err error) {
	if err := s.begin(req.Depth > 0); err != nil {
		return "", err
	}
	defer s.end()
	rev, err := s.resolve(req)
	if err != nil {
		return "", err
	}
	if err := admissible(req, rev); err != nil {
		return "", err
	}
	own := *req
	if own.Body, err = whole(req, rev); err != nil {
		return "", err
	}
	own.Stream = nil
	if own.ID == "" {
		own.ID = lode.NewInvocationID(s.cfg.Now())
	}
	if own.Trigger == "" || own.Trigger == lode.TriggerHTTP || own.Trigger == lode.TriggerCall {
		own.Trigger = lode.TriggerAsync
	}
	err = s.keep(ctx, 0, func(ctx context.Context, d Durable, _ bool) (err error) {
		id, err = d.Submit(ctx, &own)
		return err
	})
	return id, err
}

// PutQueue appends a message durably to a declared queue and returns its id.
// A key, if not empty, is that id: a message whose key is in the queue, or was
// within 24 hours, is passed over. delay is for the first delivery, never
// early. body is not kept.
func (s *Service) PutQueue(ctx context.Context, ns lode.Namespace, queue lode.Name, key string, delay time.Duration, contentType string, body []byte) (id string, err error) {
	p := Put{Namespace: ns, Queue: queue, Key: key, ID: string(lode.NewInvocationID(s.cfg.Now())), Type: contentType, Body: body, Repeats: s.own == nil}
	if len(key) > maxKey || delay < 0 || delay > maxDelay {
		return "", lode.Errorf(lode.Invalid, "a message's key has at most %d bytes, its delay is from 0 to %s", maxKey, maxDelay)
	}
	begin := time.Now()
	err = s.keep(ctx, 0, func(ctx context.Context, d Durable, _ bool) (err error) {
		p.Delay = max(0, delay-time.Since(begin))
		id, err = d.PutQueue(ctx, p)
		return err
	})
	return id, err
}

// Queue tells how full a queue is. The queue need not be declared.
func (s *Service) Queue(ctx context.Context, ns lode.Namespace, name lode.Name) (q QueueState, err error) {
	err = s.keep(ctx, 0, func(ctx context.Context, d Durable, _ bool) (err error) {
		q, err = d.QueueState(ctx, ns, name)
		return err
	})
	return q, err
}

// QueueState is Queue for who has no use for an error: what cannot be told at
// once is zero.
func (s *Service) QueueState(ns lode.Namespace, name lode.Name) QueueState {
	d, _, _ := s.seat.get()
	if d == nil {
		return QueueState{}
	}
	ctx, cancel := context.WithTimeout(s.base, time.Second)
	defer cancel()
	q, err := d.QueueState(ctx, ns, name)
	if err != nil {
		s.cfg.Logger.Debug("a queue's state is not known", "queue", name, "err", err)
	}
	return q
}

// GetCall tells how an asynchronous invocation stands. It waits up to wait for
// its end first.
func (s *Service) GetCall(ctx context.Context, ns lode.Namespace, id lode.InvocationID, wait time.Duration) (c Call, err error) {
	until := time.Now().Add(wait)
	err = s.keep(ctx, max(0, wait), func(ctx context.Context, d Durable, _ bool) (err error) {
		c, err = d.GetCall(ctx, ns, id, max(0, time.Until(until)))
		return err
	})
	return c, err
}

// ListCalls lists the asynchronous invocations of a namespace, by id, newest
// first. after is the id of the last one of the page before; next is empty at
// the end.
func (s *Service) ListCalls(ctx context.Context, ns lode.Namespace, f CallFilter, limit int, after lode.InvocationID) (list []Call, next lode.InvocationID, err error) {
	err = s.keep(ctx, 0, func(ctx context.Context, d Durable, _ bool) (err error) {
		list, next, err = d.ListCalls(ctx, ns, f, limit, after)
		return err
	})
	return list, next, err
}

// CancelCall ends an asynchronous invocation: a queued one never begins, a
// running one is interrupted. It is idempotent, and a Conflict for one that
// has ended otherwise.
func (s *Service) CancelCall(ctx context.Context, ns lode.Namespace, id lode.InvocationID) (c Call, err error) {
	err = s.keep(ctx, 0, func(ctx context.Context, d Durable, _ bool) (err error) {
		c, err = d.CancelCall(ctx, ns, id)
		return err
	})
	return c, err
}

// ReplayCall queues a failed or cancelled invocation again, under its id and
// with all its attempts.
func (s *Service) ReplayCall(ctx context.Context, ns lode.Namespace, id lode.InvocationID) (c Call, err error) {
	err = s.keep(ctx, 0, func(ctx context.Context, d Durable, repeated bool) (err error) {
		c, err = d.ReplayCall(ctx, ns, id)
		if repeated && lode.KindOf(err) == lode.Conflict { // the try before did it, and its answer was lost
			c, err = d.GetCall(ctx, ns, id, 0)
		}
		return err
	})
	return c, err
}

// CallResult is the answer of an invocation that is done: its status, head and
// body. NotFound before the end; the error of the last attempt if it failed.
func (s *Service) CallResult(ctx context.Context, ns lode.Namespace, id lode.InvocationID) (b *lode.Buffered, err error) {
	err = s.keep(ctx, 0, func(ctx context.Context, d Durable, _ bool) (err error) {
		b, err = d.CallResult(ctx, ns, id)
		return err
	})
	return b, err
}
