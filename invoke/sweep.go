package invoke

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"lode"
	"lode/bus"
)

// Chunks of a request are written before the item that names them, and dropped
// after the record that named them, so a node that dies in between leaves
// chunks that nothing names. Therefore a mark goes before: the entry "p/NS/ID"
// of the table "keys", a keyRecord with the id and the time. When it is an hour
// old, either the call is known or nobody will ever name its chunks.
const (
	markPrefix = "p/"
	markFor    = time.Hour
	// keepEnded is for how long at least a call that has ended is known: its
	// sender may be repeating itself.
	keepEnded = time.Minute
	sweepEach = time.Minute
	keysEach  = 60 // sweeps of results for one of keys and marks
)

// mark notes that chunks of w are about to be written. unmark is called when
// they are named, or will never be.
func (c *calls) mark(ctx context.Context, w *work, body []byte) (unmark func(), err error) {
	if len(body) <= inlineBytes {
		return func() {}, nil
	}
	key := w.key()
	c.mu.Lock()
	c.putting[key]++
	c.mu.Unlock()
	unmark = func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.putting[key]--; c.putting[key] == 0 {
			delete(c.putting, key)
		}
	}
	if _, err := c.putMark(ctx, key, w.ID); err != nil {
		unmark()
		return nil, err
	}
	return unmark, nil
}

func (c *calls) putMark(ctx context.Context, call string, id lode.InvocationID) (uint64, error) {
	b, err := json.Marshal(keyRecord{ID: id, Created: c.now().UTC()})
	if err != nil {
		return 0, lode.Errorf(lode.Internal, "mark the body of %s: %w", id, err)
	}
	return c.keys.Put(ctx, markPrefix+call, b)
}

// janitor drops what was kept long enough.
func (c *calls) janitor() {
	for round := 0; c.k.base.Err() == nil; round++ {
		c.expire(c.k.cfg.Now())
		if round%keysEach == 0 {
			c.expireKeys(c.k.cfg.Now())
		}
		pause(c.k.base, sweepEach)
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
	excess := len(over) - c.k.cfg.KeepCalls
	var drop []entry
	for i, e := range over {
		keep := c.k.cfg.KeepResults
		if e.state != lode.StateDone {
			keep = max(keep, keepFailed)
		}
		if age := now.Sub(e.ended); age > keep || i < excess && age > keepEnded {
			drop = append(drop, *e)
		}
	}
	c.mu.Unlock()
	for i := range drop {
		c.logged(c.drop(&drop[i]), "drop a result", drop[i].work())
	}
}

// drop forgets a call. Its record goes before its chunks, on condition that it
// is the one that was judged: another Keeper may have replayed it since. A mark
// tells of the chunks meanwhile.
func (c *calls) drop(e *entry) error {
	chunks, err := c.bodies.List(c.k.base, e.key+"/")
	if err != nil {
		return err
	}
	var mark uint64
	if len(chunks) > 0 {
		if mark, err = c.putMark(c.k.base, e.key, e.id); err != nil {
			return err
		}
	}
	if e.idem != "" {
		if err := c.outlive(e); err != nil {
			return err
		}
	}
	err = c.table.Delete(c.k.base, e.key, e.rev)
	if lode.KindOf(err) == lode.Precondition {
		return c.refresh(e)
	}
	if err != nil {
		return err
	}
	c.forget(e)
	for i := range chunks {
		if err := c.bodies.Delete(c.k.base, chunks[i].Key, chunks[i].Rev); err != nil && lode.KindOf(err) != lode.Precondition {
			return err
		}
	}
	if mark != 0 {
		return c.keys.Delete(c.k.base, markPrefix+e.key, mark)
	}
	return nil
}

// outlive has the key of a call that is dropped before its time go on to tell
// that the call was there.
func (c *calls) outlive(e *entry) error {
	key := keyFor("a", e.ns, e.fn, e.idem)
	r, rev, err := c.readKey(c.k.base, key)
	if err != nil || r == nil || r.ID != e.id || r.Over {
		return err
	}
	r.Over = true
	if _, err = c.writeKey(c.k.base, key, r, rev); wasFirst(err) {
		return nil // it was forgotten and used again meanwhile
	}
	return err
}

// forget drops the entry, if it is still what e was.
func (c *calls) forget(e *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.entries[e.key]; now != nil && now.rev == e.rev && now.over() {
		delete(c.entries, e.key)
	}
}

// refresh looks at a record that is not as e says.
func (c *calls) refresh(e *entry) error {
	r, rev, err := c.record(c.k.base, e.key, e.id)
	if lode.KindOf(err) == lode.NotFound {
		c.forget(e)
		return nil
	}
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.entries[e.key]; now != nil && now.over() && now.cycle == r.Work.Cycle {
		now.rev = rev
	}
	return nil
}

// expireKeys forgets old keys and what marks tell of.
func (c *calls) expireKeys(now time.Time) {
	es, err := c.keys.List(c.k.base, "")
	for i := 0; i < len(es) && err == nil; i++ {
		var r keyRecord
		if json.Unmarshal(es[i].Value, &r) != nil {
			continue
		}
		age := now.Sub(r.Created)
		switch call, marked := strings.CutPrefix(es[i].Key, markPrefix); {
		case marked && age > markFor:
			err = c.unmark(es[i], call)
		case !marked && age > keepKeys:
			if err = c.keys.Delete(c.k.base, es[i].Key, es[i].Rev); err == nil {
				err = r.dropChunks(c.k.base, c.bodies, es[i].Key)
			}
		}
		if lode.KindOf(err) == lode.Precondition {
			err = nil // used again meanwhile
		}
	}
	if err != nil && c.k.base.Err() == nil {
		c.k.cfg.Logger.Warn("idempotency keys could not be swept", "err", err)
	}
}

// unmark drops the chunks that a mark tells of, unless their call is known.
func (c *calls) unmark(e bus.Entry, call string) error {
	c.mu.Lock()
	known, putting := c.entries[call] != nil, c.putting[call] > 0
	c.mu.Unlock()
	if putting {
		return nil
	}
	rev := e.Rev
	if !known {
		// Written again it tells that nobody else has marked the call anew.
		var err error
		if rev, err = c.keys.Update(c.k.base, e.Key, e.Value, rev); err != nil {
			return err
		}
		if err := dropAll(c.k.base, c.bodies, call+"/"); err != nil {
			return err
		}
	}
	return c.keys.Delete(c.k.base, e.Key, rev)
}
