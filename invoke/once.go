package invoke

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"time"

	"lode"
)

// keepKeys is how long an idempotency key is remembered.
const keepKeys = 24 * time.Hour

// keyRecord is what the table "keys" holds of an idempotency key, as JSON,
// under "s/NS/FUNCTION/HASH" for a request that was answered and
// "a/NS/FUNCTION/HASH" for one that was submitted; HASH is the SHA-256 of the
// key. The chunks of a long answer are in "bodies" under "keys/" and that.
type keyRecord struct {
	ID      lode.InvocationID `json:"id"`
	Body    string            `json:"body"` // SHA-256 of the request's body
	Created time.Time         `json:"created"`

	Revision string      `json:"revision,omitempty"`
	Trace    string      `json:"trace,omitempty"`
	Status   int         `json:"status,omitempty"`
	Head     []lode.Pair `json:"head,omitempty"`
	Answer   []byte      `json:"answer,omitempty"`
	Chunks   int         `json:"chunks,omitempty"`
}

func keyOf(kind string, req *lode.Request) string {
	return kind + "/" + string(req.Namespace) + "/" + string(req.Function) + "/" + sum([]byte(req.IdempotencyKey))
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

func keyReused(key string) error {
	return lode.Errorf(lode.KeyReused, "the idempotency key %.64q was used with another body", key).WithHint("use a new key for each new request")
}

// readKey returns the record of a key that is still remembered, and the
// revision of the one that is there.
func (c *calls) readKey(ctx context.Context, key string) (*keyRecord, uint64, error) {
	e, ok, err := c.keys.Get(ctx, key)
	if err != nil || !ok {
		return nil, 0, err
	}
	var r keyRecord
	if err := json.Unmarshal(e.Value, &r); err != nil {
		return nil, e.Rev, lode.Errorf(lode.Damaged, "the record of an idempotency key is not readable: %w", err)
	}
	if c.s.cfg.Now().Sub(r.Created) > keepKeys {
		return nil, e.Rev, nil
	}
	return &r, e.Rev, nil
}

// writeKey writes r where nothing is remembered; rev is what readKey said.
func (c *calls) writeKey(ctx context.Context, key string, r *keyRecord, rev uint64) error {
	b, err := json.Marshal(r)
	if err != nil {
		return lode.Errorf(lode.Internal, "keep an idempotency key: %w", err)
	}
	if rev == 0 {
		_, err = c.keys.Create(ctx, key, b)
	} else {
		_, err = c.keys.Update(ctx, key, b, rev)
	}
	return err
}

// claimKey gives the id of a submitted request with a key. known: it was
// stored before.
func (c *calls) claimKey(ctx context.Context, req *lode.Request, body []byte) (id lode.InvocationID, known bool, err error) {
	key, hash := keyOf("a", req), sum(body)
	for {
		r, rev, err := c.readKey(ctx, key)
		if err != nil {
			return "", false, err
		}
		if r != nil {
			if r.Body != hash {
				return "", false, keyReused(req.IdempotencyKey)
			}
			c.mu.Lock()
			_, known := c.entries[callKey(req.Namespace, r.ID)]
			c.mu.Unlock()
			return r.ID, known, nil // not known: the node died before it was queued, so it is now
		}
		err = c.writeKey(ctx, key, &keyRecord{ID: req.ID, Body: hash, Created: c.s.cfg.Now().UTC()}, rev)
		if k := lode.KindOf(err); k != lode.Conflict && k != lode.Precondition {
			return req.ID, false, err
		}
	}
}

// flight is a request with a key that runs now.
type flight struct {
	body string
	done chan struct{}
	err  error // set before done is closed; nil: the answer is kept
}

// invokeOnce is Invoke with an idempotency key.
func (s *Service) invokeOnce(ctx context.Context, req *lode.Request, ans lode.Answer) (lode.Outcome, error) {
	if s.calls == nil {
		return lode.Outcome{ID: req.ID}, lode.Errorf(lode.Unavailable, "this node keeps no idempotency keys")
	}
	rev, err := s.resolve(req)
	if err != nil {
		return lode.Outcome{ID: req.ID}, err
	}
	if err := admissible(req, rev); err != nil {
		return lode.Outcome{ID: req.ID}, err
	}
	body, err := whole(req, rev)
	if err != nil {
		return lode.Outcome{ID: req.ID}, err
	}
	own := *req
	own.Body, own.Stream = body, nil
	key, hash := keyOf("s", req), sum(body)
	for {
		f, first := s.calls.join(key, hash)
		if f == nil {
			return lode.Outcome{ID: req.ID}, keyReused(req.IdempotencyKey)
		}
		if first {
			out, err := s.lead(ctx, &own, key, f, ans)
			return out, err
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return lode.Outcome{ID: req.ID}, ended(ctx, "waiting for the request with the same idempotency key")
		}
		if f.err != nil && lode.KindOf(f.err) != lode.Cancelled {
			return lode.Outcome{ID: req.ID}, f.err
		}
		// The answer is kept: lead finds it. Or who ran it went away: run it.
	}
}

// join returns the flight of key; first: it has just begun, and the caller
// leads it. nil: another body is under way.
func (c *calls) join(key, body string) (f *flight, first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.flights[key]; f != nil {
		if f.body != body {
			return nil, false
		}
		return f, false
	}
	f = &flight{body: body, done: make(chan struct{})}
	c.flights[key] = f
	return f, true
}

// lead answers from what is kept, or runs the request and keeps its answer.
func (s *Service) lead(ctx context.Context, req *lode.Request, key string, f *flight, ans lode.Answer) (out lode.Outcome, err error) {
	r, out, err := s.leadFlight(ctx, req, key, f.body)
	c := s.calls
	c.mu.Lock()
	delete(c.flights, key)
	c.mu.Unlock()
	f.err = err
	close(f.done)
	if err != nil {
		return out, err
	}
	body, err := getChunks(ctx, c.bodies, chunksOf(key, r), r.Answer, r.Chunks)
	if err != nil {
		return out, err
	}
	if err := ans.Head(r.Status, r.Head); err != nil {
		return out, err
	}
	_, err = ans.Write(body)
	return out, err
}

func chunksOf(key string, r *keyRecord) string { return "keys/" + key + "/" + string(r.ID) }

func (s *Service) leadFlight(ctx context.Context, req *lode.Request, key, hash string) (*keyRecord, lode.Outcome, error) {
	c := s.calls
	r, rev, err := c.readKey(ctx, key)
	if err != nil {
		return nil, lode.Outcome{ID: req.ID}, err
	}
	if r != nil {
		if r.Body != hash {
			return nil, lode.Outcome{ID: req.ID}, keyReused(req.IdempotencyKey)
		}
		return r, lode.Outcome{ID: r.ID, Revision: r.Revision, Trace: r.Trace}, nil
	}
	got := &lode.Buffered{}
	out, err := s.run(ctx, req, got, false)
	if err != nil {
		return nil, out, err
	}
	// The work is done: whether the caller still waits or not, its answer is
	// what the key stands for from now on.
	keep, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	r = &keyRecord{ID: out.ID, Body: hash, Created: c.s.cfg.Now().UTC(), Revision: out.Revision, Trace: out.Trace, Status: got.Status, Head: got.Msg.Head}
	if r.Answer, r.Chunks, err = putChunks(keep, c.bodies, chunksOf(key, r), got.Msg.Body); err != nil {
		return nil, out, err
	}
	return r, out, c.writeKey(keep, key, r, rev)
}

// expireKeys forgets old keys.
func (c *calls) expireKeys(now time.Time) {
	es, err := c.keys.List(c.s.base, "")
	for i := 0; i < len(es) && err == nil; i++ {
		var r keyRecord
		if json.Unmarshal(es[i].Value, &r) != nil || now.Sub(r.Created) <= keepKeys {
			continue
		}
		if err = c.keys.Delete(c.s.base, es[i].Key, es[i].Rev); err == nil && r.Chunks > 0 {
			err = dropAll(c.s.base, c.bodies, "keys/"+es[i].Key+"/")
		}
		if lode.KindOf(err) == lode.Precondition {
			err = nil // used again meanwhile
		}
	}
	if err != nil && c.s.base.Err() == nil {
		c.s.cfg.Logger.Warn("idempotency keys could not be swept", "err", err)
	}
}
