package state

import (
	"encoding/binary"

	"github.com/cockroachdb/pebble/v2"

	"lode"
	"lode/agent/journal"
)

// Applied is what one entry of a journal does to a partition. One without
// changes moves the partition's Mark alone.
type Applied struct {
	Part    journal.Partition
	Epoch   uint64
	Changes []journal.Change
}

// Apply applies the entries of one acknowledged message, at pos of a journal,
// and the new Marks of their partitions and Applied of the journal with them:
// all or nothing. Entries that a partition's copy already holds (of an earlier
// epoch than its Mark, or at or before its position) are left out, so that a
// journal may be read again. Positions may repeat for other partitions;
// Applied never goes back. All entries that one message has for a partition
// are in one call.
//
// It waits while the disk is behind. Full, Internal: the disk cannot be
// written; nothing was applied, and the same message may be tried again.
func (d *DB) Apply(journal lode.NodeID, pos uint64, entries []Applied) error {
	if err := d.enter(); err != nil {
		return err
	}
	defer d.leave()
	if err := d.room(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	b := d.db.NewBatch()
	defer b.Close()
	moved, err := d.fill(b, journal, pos, entries)
	if err != nil {
		return err
	}
	high := max(pos, d.applied[journal])
	b.Set(append([]byte{'a'}, journal...), binary.LittleEndian.AppendUint64(nil, high), nil)
	n := b.Len()
	if err := b.Commit(pebble.NoSync); err != nil {
		return d.failed("apply changes to the local state", err)
	}
	d.applied[journal] = high
	for p, m := range moved {
		c := d.copyOf(p)
		c.mark, c.held = m, true
	}
	d.unflushed.Add(int64(n))
	return nil
}

// fill writes what is not yet held of the entries into the batch, and notes
// what becomes dirty. It returns the new marks.
func (d *DB) fill(b *pebble.Batch, j lode.NodeID, pos uint64, entries []Applied) (map[journal.Partition]Mark, error) {
	moved := map[journal.Partition]Mark{}
	for i := range entries {
		e := &entries[i]
		if !nameable(e.Part) {
			return nil, lode.Errorf(lode.Invalid, "%s is no partition", e.Part)
		}
		c := d.copyOf(e.Part)
		if c.held && c.mark.has(e.Epoch, pos) {
			continue
		}
		if m := moved[e.Part]; m.Epoch <= e.Epoch {
			moved[e.Part] = Mark{e.Epoch, j, pos}
		}
		d.key = appendPartition(append(d.key[:0], 'd'), e.Part)
		for n := range e.Changes {
			d.change(b, c, &e.Changes[n])
		}
	}
	for p, m := range moved {
		d.key = appendPartition(append(d.key[:0], 'm'), p)
		b.Set(d.key, m.append(nil), nil)
	}
	return moved, nil
}

// change writes one change into the batch. d.key begins with the partition.
func (d *DB) change(b *pebble.Batch, c *copyOf, ch *journal.Change) {
	n := len(d.key)
	d.key = append(d.key, ch.Key...)
	switch ch.Kind {
	case journal.Set:
		b.Set(d.key, ch.Value, nil)
		c.touch(ch.Key)
	case journal.Delete:
		b.Delete(d.key, nil)
		c.touch(ch.Key)
	case journal.Cut:
		if string(ch.Key) < string(ch.Value) {
			end := append(append([]byte(nil), d.key[:n]...), ch.Value...)
			b.DeleteRange(d.key, end, nil)
			c.touchRange(ch.Key, ch.Value)
		}
	}
	d.key = d.key[:n]
}

// room waits until the disk has kept up, or says why it cannot.
func (d *DB) room() error {
	for {
		changed, err := d.health.look(false)
		if err != nil || d.unflushed.Load() < int64(d.opts.MemTableSize)/4 {
			return err
		}
		m := d.db.Metrics()
		if m.MemTable.Size <= waitingMemtables*d.opts.MemTableSize {
			if m.Levels[0].Sublevels <= waitingDepth {
				d.unflushed.Store(0)
				return nil
			}
			if changed, err = d.health.look(true); err != nil {
				d.db.AsyncFlush() // it tries to merge again only after it has flushed
				return err
			}
		}
		select {
		case <-changed:
		case <-d.closing.Done():
			return lode.Errorf(lode.Unavailable, "the local state of agents is being closed")
		}
	}
}

// copyOf is what is known of p; d.mu is held.
func (d *DB) copyOf(p journal.Partition) *copyOf {
	c := d.parts[p]
	if c == nil {
		c = new(copyOf)
		d.parts[p] = c
	}
	return c
}

// Applied is the position of the newest message of a journal that was applied
// and, if the node crashed, was not lost; 0: none.
func (d *DB) Applied(journal lode.NodeID) (uint64, error) {
	if err := d.enter(); err != nil {
		return 0, err
	}
	defer d.leave()
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.applied[journal], nil
}

// Parts lists the partitions that are held, with their Marks, in no order.
func (d *DB) Parts() (map[journal.Partition]Mark, error) {
	if err := d.enter(); err != nil {
		return nil, err
	}
	defer d.leave()
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make(map[journal.Partition]Mark, len(d.parts))
	for p, c := range d.parts {
		if c.held {
			out[p] = c.mark
		}
	}
	return out, nil
}
