package invoke

import (
	"context"
	"errors"
	"time"

	"lode"
)

const (
	firstLook  = 5 * time.Millisecond // at a claim of another node
	lastLook   = 100 * time.Millisecond
	goneFor    = time.Second     // for how long its node must be gone before it is taken over
	settleWait = 5 * time.Second // for the end of a claim to be written
	settleTry  = time.Second
	settleSeen = 5 // looks at a claim that is not there, until it is taken for never written
)

var errOnItsWay = errors.New("a claim may still be on its way")

// claim is a key that this node is about to run, or runs.
type claim struct {
	key  string
	id   lode.InvocationID
	body string
	rev  uint64 // of the claim in the table; of what is in its place if it is not there
	made bool   // the claim is in the table
}

// answer is the answer that the key stands for: the one that is kept, or that
// of a run whose end is kept before it is told.
func (k *keys) answer(ctx context.Context, req *lode.Request, key, hash string) (*keyRecord, lode.Outcome, error) {
	out := lode.Outcome{ID: req.ID}
	var gone absence
	for look := firstLook; ; {
		r, rev, err := k.readKey(ctx, key)
		switch {
		case err != nil:
			return nil, out, err
		case r != nil && r.Body != hash:
			return nil, out, keyReused(req.IdempotencyKey)
		case r != nil && !r.Running:
			return r, lode.Outcome{ID: r.ID, Revision: r.Revision, Trace: r.Trace}, nil
		case r != nil && !gone.sure(rev, k.runs(key, r), r.Node == k.self()):
			if err := k.wait(ctx, req, jitter(look)); err != nil {
				return nil, out, err
			}
			look = min(2*look, lastLook)
			continue
		}
		c := &claim{key: key, id: req.ID, body: hash, rev: rev}
		if c.id == "" {
			c.id = lode.NewInvocationID(time.Now())
		}
		if k.shared() || r != nil {
			if err := k.make(ctx, c); wasFirst(err) {
				continue
			} else if err != nil {
				return nil, out, err
			}
		}
		if r != nil { // of a node that is gone
			if err := r.dropChunks(ctx, k.bodies, key); err != nil {
				k.s.cfg.Logger.Warn("the pieces of an answer that nobody was told are not dropped", "err", err)
			}
		}
		r, out, err = k.run(ctx, req, c)
		if r != nil || err != nil {
			return r, out, err
		}
		// The claim was taken over: what the other kept is the answer.
	}
}

// absence is for how long the node of one claim has been seen to be gone. It
// must have been for a while: who just joined is not known everywhere, and who
// is cut off for a moment goes on with what it runs.
type absence struct {
	rev   uint64
	since time.Time
}

// sure takes one look at the claim with that revision. A former process of this
// very node is gone for sure.
func (a *absence) sure(rev uint64, runs, own bool) bool {
	switch {
	case runs:
		*a = absence{}
		return false
	case own:
		return true
	case a.rev != rev:
		*a = absence{rev, time.Now()}
	}
	return time.Since(a.since) >= goneFor
}

// shared reports whether another node may get the same key.
func (k *keys) shared() bool {
	return k.s.cfg.Alive != nil && (k.s.cfg.Alone == nil || !k.s.cfg.Alone())
}

// runs reports whether the claim of r is to be waited for.
func (k *keys) runs(key string, r *keyRecord) bool {
	if r.Node == k.self() && r.Incarnation == k.s.cfg.Incarnation {
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.unsettled[key] // else it was left over by the flight before
	}
	return k.s.cfg.Alive != nil && k.s.cfg.Alive(r.Node, r.Incarnation)
}

func (k *keys) self() lode.NodeID { return lode.NodeID(k.s.cfg.Node) }

// wait lets d pass, unless it is in vain.
func (k *keys) wait(ctx context.Context, req *lode.Request, d time.Duration) error {
	if !req.Deadline.IsZero() && time.Now().Add(d).After(req.Deadline) {
		return lode.Errorf(lode.Deadline, "the deadline passed while %s", waitingForKey)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-k.s.base.Done():
		return draining()
	case <-ctx.Done():
		return ended(ctx, waitingForKey)
	}
}

// make puts the claim into the table.
func (k *keys) make(ctx context.Context, c *claim) error {
	rev, err := k.writeKey(ctx, c.key, &keyRecord{ID: c.id, Body: c.body, Created: k.now().UTC(), Running: true, Node: k.self(), Incarnation: k.s.cfg.Incarnation}, c.rev)
	if err == nil {
		c.rev, c.made = rev, true
	} else if !wasFirst(err) {
		k.settleLater(c, nil) // it may be there, and others would wait for it
	}
	return err
}

// run runs the request and keeps its answer. r is nil, and err too, where the
// claim was taken over meanwhile: that answer must not be told.
func (k *keys) run(ctx context.Context, req *lode.Request, c *claim) (r *keyRecord, out lode.Outcome, err error) {
	got := &lode.Buffered{}
	own := *req
	own.ID = c.id
	out, err = k.s.run(ctx, &own, got, false)
	// Whether the caller still waits or not: a run that failed leaves no claim,
	// and the answer of one that did not is what the key stands for.
	keep, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleWait)
	defer cancel()
	if err != nil {
		if c.made {
			if _, e := k.release(keep, c); e != nil {
				k.settleLater(c, nil)
			}
		}
		return nil, out, err
	}
	r = &keyRecord{ID: c.id, Body: c.body, Revision: out.Revision, Trace: out.Trace, Status: got.Status, Head: got.Msg.Head}
	switch err := k.settle(keep, c, r, got.Msg.Body); {
	case wasFirst(err):
		return nil, out, nil
	case err != nil && c.made:
		r.Answer = got.Msg.Body
		k.settleLater(c, r)
		return nil, out, err
	case err != nil:
		return nil, out, err
	}
	return r, out, nil
}

// settle writes the answer in the place of the claim. The chunks of a long one
// are covered by a claim, so that they are found if this node dies now.
func (k *keys) settle(ctx context.Context, c *claim, r *keyRecord, body []byte) (err error) {
	if len(body) > inlineBytes && !c.made {
		if err := k.make(ctx, c); err != nil {
			return err
		}
	}
	if r.Answer, r.Chunks, err = putChunks(ctx, k.bodies, chunksOf(c.key, c.id), body); err != nil {
		return err
	}
	for r.Created = k.now().UTC(); ; {
		if _, err = k.writeKey(ctx, c.key, r, c.rev); !wasFirst(err) {
			return err
		}
		switch now, rev, e := k.readKey(ctx, c.key); {
		case e != nil:
			return e
		case now != nil && now.ID == c.id && !now.Running:
			return nil // an earlier try came through without saying so
		case now == nil || now.ID == c.id:
			c.rev = rev // nobody else's: the table was moved, and counts anew
			continue
		}
		if r.Chunks > 0 {
			if e := dropAll(ctx, k.bodies, chunksOf(c.key, c.id)+"/"); e != nil {
				k.s.cfg.Logger.Warn("the pieces of an answer that came too late are not dropped", "err", e)
			}
		}
		return err
	}
}

// release takes the claim out of the table, if it is there and still this
// node's. found: something was there.
func (k *keys) release(ctx context.Context, c *claim) (found bool, err error) {
	r, rev, err := k.readKey(ctx, c.key)
	if err != nil || r == nil || r.ID != c.id || !r.Running {
		return r != nil, err
	}
	if err = k.keys.Delete(ctx, c.key, rev); wasFirst(err) {
		return true, nil
	}
	return true, err
}

// close lets nothing more begin in the background.
func (k *keys) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.over = true
}

// settleLater goes on trying to end a claim, for as long as it holds others up:
// by the answer r, or, where that is nil, by taking it away.
func (k *keys) settleLater(c *claim, r *keyRecord) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.over { // the claim ends with this incarnation
		return
	}
	k.unsettled[c.key] = true
	k.s.work.Go(func() {
		defer func() {
			k.mu.Lock()
			defer k.mu.Unlock()
			delete(k.unsettled, c.key)
		}()
		for seen := 0; k.s.base.Err() == nil; {
			ctx, cancel := context.WithTimeout(k.s.base, settleWait)
			var err error
			if r == nil {
				var found bool
				if found, err = k.release(ctx, c); err == nil && !found && !c.made {
					if seen++; seen < settleSeen {
						err = errOnItsWay
					}
				}
			} else {
				answer := *r
				err = k.settle(ctx, c, &answer, r.Answer)
			}
			cancel()
			if err == nil || wasFirst(err) {
				return
			}
			pause(k.s.base, settleTry)
		}
	})
}
