package state

import (
	"context"
	"runtime"

	"github.com/cockroachdb/pebble/v2"
	"github.com/zeebo/blake3"

	"lode"
)

// SaveStats says what a Save did.
type SaveStats struct {
	Segments int   // of the snapshot
	Bytes    int64 // of its segments
	Keys     int
	Read     int64 // bytes of segments that were read from the state, because something in them may have changed
	Put      int64 // bytes of blobs that were new
}

// Save makes a snapshot of the partition as it is when Save is called, and
// returns the digest of its manifest when all blobs are durable. The caller has
// applied everything up to mark before; the manifest says that it covers mark.
//
// prev is an earlier snapshot of the partition that b still keeps, zero: none.
// What has not changed since is not read and not put again; if it is not known
// what has (after a restart, or when prev is not the newest snapshot) all is
// read, but only what is new is put. A prev that is missing or damaged is as
// none.
//
// Changes may be applied meanwhile. Conflict: another Save or a Restore of the
// partition is under way.
func (p *Part) Save(ctx context.Context, b Blobs, prev lode.Digest, mark Mark) (lode.Digest, SaveStats, error) {
	d := p.d
	if err := d.enter(); err != nil {
		return lode.Digest{}, SaveStats{}, err
	}
	defer d.leave()
	if err := p.check(); err != nil {
		return lode.Digest{}, SaveStats{}, err
	}
	ctx, cancel := d.within(ctx)
	defer cancel()
	s, err := p.begin(ctx, b)
	if err != nil {
		return lode.Digest{}, SaveStats{}, err
	}
	defer s.end()
	if err := s.base(prev); err != nil {
		return lode.Digest{}, SaveStats{}, p.saving(err)
	}
	m := &Manifest{Part: p.p, Mark: mark}
	if m.Segments, err = s.segments(); err != nil {
		return lode.Digest{}, SaveStats{}, p.saving(err)
	}
	raw := m.encode()
	digest := lode.Digest(blake3.Sum256(raw))
	if err := put(ctx, b, digest, raw); err != nil {
		return lode.Digest{}, SaveStats{}, p.saving(err)
	}
	s.done = newDirt(digest, m)
	s.stats.Segments, s.stats.Bytes, s.stats.Keys = len(m.Segments), m.Bytes(), m.Keys()
	s.stats.Put += int64(len(raw))
	return digest, s.stats, nil
}

func (p *Part) saving(err error) error { return named(err, "save a snapshot of "+p.p.String()) }

// within is a context that also ends when the DB is closed.
func (d *DB) within(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(d.closing, cancel)
	return ctx, func() { stop(); cancel() }
}

// save is a Save under way.
type save struct {
	p     *Part
	ctx   context.Context
	b     Blobs
	snap  *pebble.Snapshot
	dirt  *dirt // at the beginning; nil: not known
	done  *dirt // at the end; nil: it failed
	old   *Manifest
	known map[lode.Digest]bool // segments that need not be put
	stats SaveStats

	held piece // the newest piece, that the next one may be joined to
	out  []Segment
}

// piece is a segment of the snapshot: one of the old, whose keys are those from
// the segments first to before last, or rows.
type piece struct {
	old  *Segment
	at   int // old: which
	rows rows
}

func (p piece) bytes() int64 {
	if p.old != nil {
		return p.old.Bytes
	}
	return int64(len(p.rows.body))
}

// begin takes the partition as it is now, and from now on notes changes apart.
func (p *Part) begin(ctx context.Context, b Blobs) (*save, error) {
	p.d.mu.Lock()
	defer p.d.mu.Unlock()
	c := p.d.copyOf(p.p)
	if c.since != nil {
		return nil, lode.Errorf(lode.Conflict, "a snapshot of %s is being made or restored already", p.p)
	}
	c.since = new(log)
	return &save{p: p, ctx: ctx, b: b, snap: p.d.db.NewSnapshot(), dirt: c.dirt}, nil
}

// end notes what is dirty from here on.
func (s *save) end() {
	d := s.p.d
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.copyOf(s.p.p)
	if s.done != nil {
		c.dirt = s.done
	}
	if c.dirt != nil {
		c.dirt.add(c.since)
	}
	c.since = nil
	s.snap.Close()
}

// base reads the manifest of the snapshot before.
func (s *save) base(prev lode.Digest) error {
	s.old = new(Manifest)
	if !prev.IsZero() {
		m, err := ReadManifest(s.ctx, s.b, prev)
		switch k := lode.KindOf(err); {
		case err == nil && m.Part == s.p.p:
			s.old = m
		case err == nil, k == lode.NotFound, k == lode.Damaged:
		default:
			return err
		}
	}
	if s.dirt != nil && (s.dirt.base != prev || len(s.dirt.firsts) != len(s.old.Segments)) {
		s.dirt = nil
	}
	s.known = map[lode.Digest]bool{}
	for i := range s.old.Segments {
		s.known[s.old.Segments[i].Digest] = true
	}
	return nil
}

// segments makes the segments of the snapshot, from those of the one before.
func (s *save) segments() ([]Segment, error) {
	for i := range max(1, len(s.old.Segments)) {
		if s.dirt != nil && !s.dirt.marks[i] {
			if i < len(s.old.Segments) {
				if err := s.next(piece{old: &s.old.Segments[i], at: i}); err != nil {
					return nil, err
				}
			}
			continue
		}
		rest, err := s.read(i, func(r rows) error { return s.next(piece{rows: r}) })
		if err == nil && len(rest.ends) > 0 {
			err = s.next(piece{rows: rest})
		}
		if err != nil {
			return nil, err
		}
	}
	return s.out, s.emit(s.held)
}

// read reads the keys of an old segment. It hands on pieces while there are
// more than fit one, and returns the rest, which may be empty.
func (s *save) read(i int, more func(rows) error) (rows, error) {
	var start, end []byte
	if i > 0 {
		start = s.old.Segments[i].First
	}
	if i+1 < len(s.old.Segments) {
		end = s.old.Segments[i+1].First
	}
	var r rows
	var failed error
	err := s.p.list(s.snap, start, end, false, func(k, v []byte) bool {
		r.add(k, v)
		if len(r.body) > segmentMost {
			failed = more(r.cut())
		}
		return failed == nil
	})
	if err == nil {
		err = failed
	}
	return r, err
}

// next joins a piece to the one before, or writes that one.
func (s *save) next(n piece) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	h := s.held
	if h.bytes() > 0 && min(h.bytes(), n.bytes()) < segmentSmall && h.bytes()+n.bytes() <= segmentTarget {
		if err := s.load(&h); err != nil {
			return err
		}
		if err := s.load(&n); err != nil {
			return err
		}
		h.rows.join(n.rows)
		s.held = h
		return nil
	}
	s.held = n
	return s.emit(h)
}

// load reads the rows of a piece that is one of the old.
func (s *save) load(p *piece) error {
	if p.old == nil {
		return nil
	}
	r, err := s.read(p.at, func(rows) error { return lode.Errorf(lode.Internal, "segment %d has grown without a mark", p.at) })
	*p = piece{rows: r}
	return err
}

// emit writes a piece, and makes room for the work of others.
func (s *save) emit(p piece) error {
	if p.old != nil {
		s.out = append(s.out, *p.old)
		return nil
	}
	if len(p.rows.ends) == 0 {
		return nil
	}
	seg, err := p.rows.segment()
	if err != nil {
		return err
	}
	s.out = append(s.out, seg)
	s.stats.Read += seg.Bytes
	if err := s.p.d.pace(s.ctx, seg.Bytes); err != nil || s.known[seg.Digest] {
		return err
	}
	s.known[seg.Digest] = true
	s.stats.Put += seg.Bytes
	return put(s.ctx, s.b, seg.Digest, p.rows.body)
}

// pace waits so that Saves stay within their rate.
func (d *DB) pace(ctx context.Context, n int64) error {
	runtime.Gosched()
	if d.limit == nil {
		return nil
	}
	return d.limit.WaitN(ctx, min(int(n), d.limit.Burst()))
}
