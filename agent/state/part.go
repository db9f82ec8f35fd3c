package state

import (
	"errors"
	"io"

	"github.com/cockroachdb/pebble/v2"

	"lode"
	"lode/agent/journal"
)

// Part is a handle of one partition of a DB. It costs nothing to make and
// needs no closing; the partition need not be held.
type Part struct {
	d      *DB
	p      journal.Partition
	prefix []byte
}

// Part is the handle of p.
func (d *DB) Part(p journal.Partition) *Part {
	return &Part{d, p, appendPartition([]byte{'d'}, p)}
}

// View is a partition as it was at one moment. It must be closed; while it is
// open, what it sees takes room on disk.
type View struct {
	p    *Part
	snap *pebble.Snapshot
}

// source is where a partition is read: the database, or one moment of it.
type source interface {
	Get(key []byte) ([]byte, io.Closer, error)
	NewIter(*pebble.IterOptions) (*pebble.Iterator, error)
}

var (
	_ source = (*pebble.DB)(nil)
	_ source = (*pebble.Snapshot)(nil)
)

// Mark says what the copy holds; ok is false if there is none, or none that
// may be used.
func (p *Part) Mark() (m Mark, ok bool, err error) {
	if err := p.d.enter(); err != nil {
		return Mark{}, false, err
	}
	defer p.d.leave()
	p.d.mu.Lock()
	defer p.d.mu.Unlock()
	if c := p.d.parts[p.p]; c != nil && c.held {
		return c.mark, true, nil
	}
	return Mark{}, false, nil
}

// Get returns a copy of the key's value, and whether there is one.
func (p *Part) Get(key []byte) (value []byte, ok bool, err error) {
	if err := p.d.enter(); err != nil {
		return nil, false, err
	}
	defer p.d.leave()
	return p.get(p.d.db, key)
}

func (p *Part) get(s source, key []byte) ([]byte, bool, error) {
	v, c, err := s.Get(p.key(key))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, p.failed(err)
	}
	out := append(make([]byte, 0, len(v)), v...)
	return out, true, c.Close()
}

func (p *Part) key(key []byte) []byte {
	return append(append(make([]byte, 0, len(p.prefix)+len(key)), p.prefix...), key...)
}

func (p *Part) failed(err error) error { return p.d.failed("read the partition "+p.p.String(), err) }

// List calls f for the keys from start (inclusive) to end (exclusive, nil: to
// the last one), in order or in reverse, until f returns false. k and v are
// valid in f only.
func (p *Part) List(start, end []byte, reverse bool, f func(k, v []byte) bool) error {
	if err := p.d.enter(); err != nil {
		return err
	}
	defer p.d.leave()
	return p.list(p.d.db, start, end, reverse, f)
}

func (p *Part) list(s source, start, end []byte, reverse bool, f func(k, v []byte) bool) error {
	upper := after(p.prefix)
	if end != nil {
		if string(start) >= string(end) {
			return nil
		}
		upper = p.key(end)
	}
	it, err := s.NewIter(&pebble.IterOptions{LowerBound: p.key(start), UpperBound: upper})
	if err != nil {
		return p.failed(err)
	}
	step, ok := it.Next, it.First()
	if reverse {
		step, ok = it.Prev, it.Last()
	}
	for ; ok; ok = step() {
		v, err := it.ValueAndErr()
		if err != nil {
			it.Close()
			return p.failed(err)
		}
		if !f(it.Key()[len(p.prefix):], v) {
			break
		}
	}
	if err := it.Close(); err != nil {
		return p.failed(err)
	}
	return nil
}

// View is the partition as it is now. Of a DB that is closed, it is a View
// whose reads fail.
func (p *Part) View() *View {
	v := &View{p: p}
	if p.d.enter() != nil {
		return v
	}
	defer p.d.leave()
	p.d.mu.Lock()
	defer p.d.mu.Unlock()
	v.snap = p.d.db.NewSnapshot()
	p.d.views[v] = true
	return v
}

// Get is Part.Get.
func (v *View) Get(key []byte) (value []byte, ok bool, err error) {
	if err := v.p.d.enter(); err != nil {
		return nil, false, err
	}
	defer v.p.d.leave()
	return v.p.get(v.snap, key)
}

// List is Part.List.
func (v *View) List(start, end []byte, reverse bool, f func(k, v []byte) bool) error {
	if err := v.p.d.enter(); err != nil {
		return err
	}
	defer v.p.d.leave()
	return v.p.list(v.snap, start, end, reverse, f)
}

// Close ends the view; no read of it may be under way. It may be called twice.
func (v *View) Close() {
	d := v.p.d
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.views[v] {
		delete(d.views, v)
		v.snap.Close()
	}
}

// Drop removes everything of the partition, its Mark too.
func (p *Part) Drop() error {
	d := p.d
	if err := d.enter(); err != nil {
		return err
	}
	defer d.leave()
	d.mu.Lock()
	defer d.mu.Unlock()
	return p.drop()
}

// drop is Drop; d.mu is held.
func (p *Part) drop() error {
	b := p.d.db.NewBatch()
	defer b.Close()
	b.DeleteRange(p.prefix, after(p.prefix), nil)
	b.Delete(p.markKey(), nil)
	if err := b.Commit(pebble.NoSync); err != nil {
		return p.d.failed("drop the partition "+p.p.String(), err)
	}
	if c := p.d.parts[p.p]; c != nil {
		c.mark, c.held, c.dirt = Mark{}, false, nil
		c.touchRange(nil, nil)
	}
	return nil
}

func (p *Part) markKey() []byte { return appendPartition([]byte{'m'}, p.p) }

// check says whether the partition can have keys here at all.
func (p *Part) check() error {
	if !nameable(p.p) {
		return lode.Errorf(lode.Invalid, "%s is no partition", p.p)
	}
	return nil
}
