package invoke

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"sync"
	"time"

	"lode"
)

// keepKeys is how long an idempotency key is remembered.
const keepKeys = 24 * time.Hour

// keyRecord is what the table "keys" holds of an idempotency key, as JSON,
// under "s/NS/FUNCTION/HASH" for a request that was answered and
// "a/NS/FUNCTION/HASH" for one that was submitted; HASH is the SHA-256 of the
// key. The chunks of a long answer are in "bodies" under "keys/", that and
// "/ID/I".
//
//	(none) -> running -> answered
//	 ^  ^------|  ^-|    the run failed; its node is gone: taken over
//	 |--------------|    after keepKeys
//
// A record that is running is a claim: nobody else runs the request while the
// node and incarnation that it names are alive. Every step is made on
// condition that the record is as it was read.
type keyRecord struct {
	ID      lode.InvocationID `json:"id"`
	Body    string            `json:"body"`    // SHA-256 of the request's body
	Created time.Time         `json:"created"` // when it was claimed, or answered

	// Over: what was submitted has ended, and was dropped before its time.
	Over bool `json:"over,omitempty"`

	Running     bool        `json:"running,omitempty"`
	Node        lode.NodeID `json:"node,omitempty"`        // where it came in
	Incarnation string      `json:"incarnation,omitempty"` // of that node

	Revision string      `json:"revision,omitempty"`
	Trace    string      `json:"trace,omitempty"`
	Status   int         `json:"status,omitempty"`
	Head     []lode.Pair `json:"head,omitempty"`
	Answer   []byte      `json:"answer,omitempty"`
	Chunks   int         `json:"chunks,omitempty"`
}

func keyOf(kind string, req *lode.Request) string {
	return keyFor(kind, req.Namespace, req.Function, sum([]byte(req.IdempotencyKey)))
}

func keyFor(kind string, ns lode.Namespace, fn lode.Name, hash string) string {
	return kind + "/" + string(ns) + "/" + string(fn) + "/" + hash
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

func keyReused(key string) error {
	return lode.Errorf(lode.KeyReused, "the idempotency key %.64q was used with another body", key).WithHint("use a new key for each new request")
}

func chunksOf(key string, id lode.InvocationID) string { return "keys/" + key + "/" + string(id) }

// dropChunks removes what the record names, or may name once it is answered.
func (r *keyRecord) dropChunks(ctx context.Context, bodies Table, key string) error {
	if r.Chunks == 0 && !r.Running {
		return nil
	}
	return dropAll(ctx, bodies, chunksOf(key, r.ID)+"/")
}

// keyTables are the tables of idempotency keys.
type keyTables struct {
	keys   Table
	bodies Table
	now    func() time.Time
}

func openKeyTables(ctx context.Context, ts Tables, now func() time.Time) (t keyTables, err error) {
	t.now = now
	if t.keys, err = ts.Table(ctx, "keys"); err != nil {
		return t, err
	}
	t.bodies, err = ts.Table(ctx, "bodies")
	return t, err
}

// readKey returns the record of a key that is still remembered, and the
// revision of the one that is there.
func (t *keyTables) readKey(ctx context.Context, key string) (*keyRecord, uint64, error) {
	e, ok, err := t.keys.Get(ctx, key)
	if err != nil || !ok {
		return nil, 0, err
	}
	var r keyRecord
	if err := json.Unmarshal(e.Value, &r); err != nil {
		return nil, e.Rev, lode.Errorf(lode.Damaged, "the record of an idempotency key is not readable: %w", err)
	}
	if t.now().Sub(r.Created) > keepKeys {
		return nil, e.Rev, nil
	}
	return &r, e.Rev, nil
}

// writeKey writes r in the place of the revision rev, 0 for none, and returns
// its own. Conflict, Precondition: somebody else was first.
func (t *keyTables) writeKey(ctx context.Context, key string, r *keyRecord, rev uint64) (uint64, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return 0, lode.Errorf(lode.Internal, "keep an idempotency key: %w", err)
	}
	if rev == 0 {
		return t.keys.Create(ctx, key, b)
	}
	return t.keys.Update(ctx, key, b, rev)
}

func wasFirst(err error) bool {
	k := lode.KindOf(err)
	return k == lode.Conflict || k == lode.Precondition
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
			// Not known: the node died before it was queued, so it is now.
			return r.ID, r.Over || c.knows(callKey(req.Namespace, r.ID)), nil
		}
		_, err = c.writeKey(ctx, key, &keyRecord{ID: req.ID, Body: hash, Created: c.now().UTC()}, rev)
		if !wasFirst(err) {
			return req.ID, false, err
		}
	}
}

// keys are the idempotency keys of requests that wait for their answer. Among
// those that come to this node one at a time, the flight, is in the table.
type keys struct {
	keyTables
	s *Service

	mu        sync.Mutex
	flights   map[string]*flight
	unsettled map[string]bool // claims of this node whose end is still to be written
	over      bool            // nothing more begins in the background
}

func openKeys(ctx context.Context, s *Service) (*keys, error) {
	t, err := openKeyTables(ctx, s.cfg.Tables, s.cfg.Now)
	return &keys{keyTables: t, s: s, flights: make(map[string]*flight), unsettled: make(map[string]bool)}, err
}

// flight is a request with a key that runs now.
type flight struct {
	body string
	done chan struct{}
	err  error // set before done is closed; nil: the answer is kept
}

// invokeOnce is Invoke with an idempotency key.
func (s *Service) invokeOnce(ctx context.Context, req *lode.Request, ans lode.Answer) (lode.Outcome, error) {
	if s.keys == nil {
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
		f, first := s.keys.join(key, hash)
		if f == nil {
			return lode.Outcome{ID: req.ID}, keyReused(req.IdempotencyKey)
		}
		if first {
			return s.keys.lead(ctx, &own, key, f, ans)
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return lode.Outcome{ID: req.ID}, ended(ctx, waitingForKey)
		}
		if f.err != nil && lode.KindOf(f.err) != lode.Cancelled {
			return lode.Outcome{ID: req.ID}, f.err
		}
		// The answer is kept: lead finds it. Or who ran it went away: run it.
	}
}

const waitingForKey = "waiting for the request with the same idempotency key"

// join returns the flight of key; first: it has just begun, and the caller
// leads it. nil: another body is under way.
func (k *keys) join(key, body string) (f *flight, first bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if f := k.flights[key]; f != nil {
		if f.body != body {
			return nil, false
		}
		return f, false
	}
	f = &flight{body: body, done: make(chan struct{})}
	k.flights[key] = f
	return f, true
}

// lead answers from what is kept, or runs the request and keeps its answer.
func (k *keys) lead(ctx context.Context, req *lode.Request, key string, f *flight, ans lode.Answer) (out lode.Outcome, err error) {
	r, out, err := k.answer(ctx, req, key, f.body)
	k.mu.Lock()
	delete(k.flights, key)
	k.mu.Unlock()
	f.err = err
	close(f.done)
	if err != nil {
		return out, err
	}
	body, err := getChunks(ctx, k.bodies, chunksOf(key, r.ID), r.Answer, r.Chunks)
	if err != nil {
		return out, err
	}
	if err := ans.Head(r.Status, r.Head); err != nil {
		return out, err
	}
	_, err = ans.Write(body)
	return out, err
}
