package state

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	"lode"
)

// tableBytes is how long the files are that Restore hands to the database.
const tableBytes = 32 << 20

// Restore makes the partition what the snapshot says, and its Mark the one that
// the snapshot covers; what was there before is removed. It is durable when it
// returns. When it fails the partition is what it was, or, if the disk failed
// at the end, not held at all.
//
// Damaged: a blob's bytes are not what the manifest says; the error names the
// segment and the partition. Conflict: a Save or Restore of the partition is
// under way. The caller applies nothing to the partition meanwhile.
func (p *Part) Restore(ctx context.Context, b Blobs, manifest lode.Digest) error {
	d := p.d
	if err := d.enter(); err != nil {
		return err
	}
	defer d.leave()
	ctx, cancel := d.within(ctx)
	defer cancel()
	m, err := ReadManifest(ctx, b, manifest)
	if err == nil && m.Part != p.p {
		err = lode.Errorf(lode.Invalid, "manifest %s is of the partition %s", manifest, m.Part)
	}
	if err != nil {
		return named(err, "restore "+p.p.String())
	}
	s, err := p.begin(ctx, b)
	if err != nil {
		return err
	}
	defer s.end()
	dir, err := os.MkdirTemp(filepath.Join(d.dir, "in"), "")
	if err != nil {
		return diskError("restore "+p.p.String(), err)
	}
	defer os.RemoveAll(dir)
	t := &tables{d: d, dir: dir}
	defer t.abort()
	if err := p.build(ctx, b, m, t); err != nil {
		return named(err, "restore "+p.p.String())
	}
	if err := p.replace(ctx, m, t); err != nil {
		return named(err, "restore "+p.p.String())
	}
	s.done = newDirt(manifest, m)
	return nil
}

// build writes the files of the partition.
func (p *Part) build(ctx context.Context, b Blobs, m *Manifest, t *tables) error {
	if err := fetch(ctx, b, m.Segments, func(i int, raw []byte) error {
		var next []byte
		if i+1 < len(m.Segments) {
			next = m.Segments[i+1].First
		}
		return p.rows(raw, &m.Segments[i], next, t)
	}); err != nil {
		return err
	}
	if err := t.roll(); err != nil {
		return err
	}
	if err := t.set(p.markKey(), m.Mark.append(nil)); err != nil {
		return err
	}
	return t.roll()
}

// ahead is how many segments are fetched at once: who restores is waited for.
const ahead = 4

// fetch calls use for every segment in order, and gets the next ones meanwhile.
func fetch(ctx context.Context, b Blobs, segs []Segment, use func(i int, raw []byte) error) error {
	type got struct {
		raw []byte
		err error
	}
	ctx, cancel := context.WithCancel(ctx)
	var under sync.WaitGroup
	defer under.Wait()
	defer cancel()
	coming := make([]chan got, 0, len(segs))
	for i := range segs {
		for n := len(coming); n < min(len(segs), i+ahead); n++ {
			c := make(chan got, 1)
			coming = append(coming, c)
			under.Go(func() {
				raw, err := get(ctx, b, segs[n].Digest)
				c <- got{raw, err}
			})
		}
		g := <-coming[i]
		if g.err == nil {
			g.err = use(i, g.raw)
		}
		if g.err != nil {
			return named(g.err, fmt.Sprintf("segment %d of %d (blob %s)", i, len(segs), segs[i].Digest))
		}
	}
	return nil
}

// rows writes the rows of one segment.
func (p *Part) rows(raw []byte, seg *Segment, next []byte, t *tables) error {
	n := 0
	err := readSegment(raw, func(k, v []byte) error {
		if n == 0 && string(k) != string(seg.First) || next != nil && string(k) >= string(next) {
			return lode.Errorf(lode.Damaged, "key %d is not one that the manifest says", n)
		}
		n++
		return t.set(p.key(k), v)
	})
	if err == nil && (n != seg.Keys || int64(len(raw)) != seg.Bytes) {
		err = lode.Errorf(lode.Damaged, "it has %d keys in %d bytes, the manifest says %d in %d", n, len(raw), seg.Keys, seg.Bytes)
	}
	return err
}

// replace puts the files in the place of what was there. The database must
// have nothing of the partition in memory then, else everybody's changes would
// wait for it.
func (p *Part) replace(ctx context.Context, m *Manifest, t *tables) error {
	d := p.d
	d.mu.Lock()
	err := p.drop()
	d.mu.Unlock()
	if err != nil {
		return err
	}
	if err := d.flush(); err != nil {
		return err
	}
	if err := d.db.Ingest(ctx, t.paths); err != nil {
		return d.failed("take the files in", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.copyOf(p.p)
	c.mark, c.held, c.since = m.Mark, true, new(log)
	return nil
}

// tables writes files for the database to take in.
type tables struct {
	d     *DB
	dir   string
	paths []string
	w     *sstable.Writer
}

func (t *tables) set(k, v []byte) error {
	if t.w == nil {
		path := filepath.Join(t.dir, fmt.Sprintf("%d.sst", len(t.paths)))
		f, err := vfs.Default.Create(path, vfs.WriteCategoryUnspecified)
		if err != nil {
			return diskError("write a file", err)
		}
		t.paths = append(t.paths, path)
		t.w = sstable.NewWriter(objstorageprovider.NewFileWritable(f), t.d.opts.MakeWriterOptions(0, t.d.db.TableFormat()))
	}
	if err := t.w.Set(k, v); err != nil {
		return t.d.failed("write a file", err)
	}
	if t.w.Raw().EstimatedSize() >= tableBytes {
		return t.roll()
	}
	return nil
}

// roll ends the file that is being written, if there is one.
func (t *tables) roll() error {
	if t.w == nil {
		return nil
	}
	w := t.w
	t.w = nil
	if err := w.Close(); err != nil {
		return t.d.failed("write a file", err)
	}
	return nil
}

// abort ends it too, when it is not wanted.
func (t *tables) abort() {
	if t.w != nil {
		t.w.Close()
		t.w = nil
	}
}
