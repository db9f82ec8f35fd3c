package store

import (
	"context"
	"io"
	"iter"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"lode"
)

// Shelf is what this node holds of a store, as the other nodes of the cluster
// see it: replicas, and copies in the cache. It is the other end of Remote. A
// store whose home is not on nodes has only copies on its shelf, and takes
// nothing.
//
// mu guards names, times and promises; it is held over a rename, a removal or
// a change of time, never over content or its sync. Store.mu, the graves' and
// the tree's come after it.
type Shelf struct {
	own   *tree   // replicas; nil: none are kept here
	dead  *graves // nil where the home is not Replicas
	log   *slog.Logger
	count *counts
	// heal gets a good copy of a replica that was found bad and moved away.
	heal func(lode.Digest)

	mu        sync.Mutex
	store     *Store // once serves was called: the cache, and what is open
	receiving map[lode.Digest]int
	promised  map[lode.Digest]time.Time // until when a replica must stay
	leaving   map[lode.Digest]bool      // replicas that are about to be dropped
}

// counts are shared by a store and what it stands on.
type counts struct{ toPeers, repaired, quarantined atomic.Int64 }

func (c *counts) addTo(s *Stats) {
	s.ToPeers, s.Repaired, s.Quarantined = c.toPeers.Load(), c.repaired.Load(), c.quarantined.Load()
}

var _ Remote = (*Shelf)(nil)

func newShelf(own *tree, log *slog.Logger) *Shelf {
	return &Shelf{own: own, log: log, count: new(counts), receiving: map[lode.Digest]int{},
		promised: map[lode.Digest]time.Time{}, leaving: map[lode.Digest]bool{}}
}

// serves adds a store's cache, and respect for what it has open.
func (s *Shelf) serves(st *Store) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.store = st
}

func (s *Shelf) of() *Store {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.store
}

// open reports whether this node has the blob open; s.mu is held. One that is
// opened next finds the file, or that it is gone and fetches it.
func (s *Shelf) open(d lode.Digest) bool {
	if s.store == nil {
		return false
	}
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	return s.store.pins[d] > 0
}

// takes fails for a shelf that takes no replicas.
func (s *Shelf) takes() error {
	if s.dead == nil {
		return lode.Errorf(lode.Invalid, "no replicas are kept on nodes here: the durable home is elsewhere")
	}
	return nil
}

// cutoff is the time up to which copies of d are deleted.
func (s *Shelf) cutoff(d lode.Digest) time.Time {
	if s.dead == nil {
		return time.Time{}
	}
	return s.dead.cutoff(d)
}

// behind is how far in the past a put may be dated: the clock of a node that is
// further behind would make what it puts look old enough to be collected.
const behind = time.Hour

// admits is the time that a put of d gets here, or Gone.
func (s *Shelf) admits(d lode.Digest, as PutAs) (time.Time, error) {
	cut, at := s.cutoff(d), as.Modified
	if as.Repair {
		if !cut.Before(at) {
			return at, lode.Errorf(lode.Gone, "blob %s was deleted after this copy of it was put", d)
		}
		return at, nil
	}
	if now := time.Now(); now.Sub(at) > behind {
		at = now
	}
	if !cut.Before(at) {
		at = cut.Add(1)
	}
	return at, nil
}

// Offer takes a blob that is here already and whole, makes it as young as the
// offer, durably, and reports that it did; false asks for the content.
func (s *Shelf) Offer(ctx context.Context, d lode.Digest, as PutAs) (Info, bool, error) {
	if err := s.takes(); err != nil {
		return Info{}, false, err
	}
	if _, err := s.admits(d, as); err != nil {
		return Info{}, false, err
	}
	f, err := s.own.open(ctx, d)
	switch lode.KindOf(err) {
	case "":
	case lode.NotFound:
		return s.promote(ctx, d, as)
	case lode.Damaged:
		s.setAside(d, err)
		return Info{}, false, nil
	default:
		return Info{}, false, err
	}
	defer f.Close()
	info, err := s.renew(d, as)
	if lode.KindOf(err) == lode.NotFound {
		return Info{}, false, nil // deleted or dropped meanwhile
	}
	if err == nil {
		err = ioError("sync "+f.Name(), f.Sync())
	}
	return info, err == nil, err
}

// promote makes a replica of a cached copy; false where there is none.
func (s *Shelf) promote(ctx context.Context, d lode.Digest, as PutAs) (Info, bool, error) {
	st := s.of()
	if st == nil || st.cache == nil {
		return Info{}, false, nil
	}
	f, err := st.cache.open(ctx, d)
	if err != nil {
		return Info{}, false, nil
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return Info{}, false, ioError("stat "+f.Name(), err)
	}
	info, err := s.Receive(ctx, d, f, fi.Size(), as)
	return info, err == nil, err
}

// uncache drops the copy of what is a replica now.
func (s *Shelf) uncache(d lode.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.store; st != nil && st.cache != nil && !s.open(d) {
		st.forget(d)
		if err := st.cache.remove(d); err != nil {
			s.log.Warn("a cached blob could not be removed", "err", err)
		}
	}
}

// renew gives d's file, which was just verified, the time of a put.
func (s *Shelf) renew(d lode.Digest, as PutAs) (Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	path := s.own.path(d)
	fi, err := os.Stat(path)
	if isMissing(err) {
		return Info{}, notFound(d, s.own.root)
	}
	if err != nil {
		return Info{}, ioError("stat "+path, err)
	}
	at, err := s.admits(d, as)
	if err != nil {
		return Info{}, err
	}
	delete(s.leaving, d)
	info := Info{Digest: d, Size: fi.Size(), Modified: fi.ModTime()}
	if !at.After(info.Modified) {
		return info, nil
	}
	whole := s.own.holds(d, stampOf(fi))
	if err := os.Chtimes(path, at, at); err != nil {
		return Info{}, ioError("renew "+path, err)
	}
	if fi, err = os.Stat(path); err == nil && whole {
		s.own.seen(d, stampOf(fi))
	}
	info.Modified = at
	return info, ioError("stat "+path, err)
}

// Put implements Remote, for this node itself.
func (s *Shelf) Put(ctx context.Context, d lode.Digest, src *io.SectionReader, as PutAs) (Info, error) {
	info, ok, err := s.Offer(ctx, d, as)
	if ok || err != nil {
		return info, err
	}
	return s.Receive(ctx, d, io.NewSectionReader(src, 0, src.Size()), src.Size(), as)
}

// Receive makes what r yields the replica of d: of that size, verified while
// it is written, durable when Receive returns.
func (s *Shelf) Receive(ctx context.Context, d lode.Digest, r io.Reader, size int64, as PutAs) (Info, error) {
	if err := s.takes(); err != nil {
		return Info{}, err
	}
	end, err := s.begin(d, as)
	if err != nil {
		return Info{}, err
	}
	defer end()
	sp, err := s.own.spool()
	if err != nil {
		return Info{}, err
	}
	defer sp.discard()
	n, err := io.CopyBuffer(&exactly{sp, size}, r, make([]byte, 256<<10))
	if cerr := cancelled(ctx); cerr != nil {
		return Info{}, cerr
	}
	if err != nil {
		return Info{}, ioError("put blob "+d.String(), err)
	}
	if got := sp.digest(); n != size || got != d {
		return Info{}, damaged(d, "what was sent to "+s.own.root, got, n)
	}
	return s.place(d, sp, as)
}

// exactly takes no more than was announced.
type exactly struct {
	to   *spool
	left int64
}

func (e *exactly) Write(p []byte) (int, error) {
	if e.left -= int64(len(p)); e.left < 0 {
		return 0, lode.Errorf(lode.Damaged, "more bytes came than were announced")
	}
	return e.to.Write(p)
}

// begin marks a blob as being received. Of a repair there is one at a time:
// several nodes may have found the same copy missing.
func (s *Shelf) begin(d lode.Digest, as PutAs) (end func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if as.Repair && s.receiving[d] > 0 {
		return nil, lode.Errorf(lode.Conflict, "blob %s is being received from another node", d)
	}
	s.receiving[d]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.receiving[d]--; s.receiving[d] == 0 {
			delete(s.receiving, d)
		}
	}, nil
}

// place makes a verified spool the replica of d. A deletion or a younger put
// that comes while the content is synced moves the time once more.
func (s *Shelf) place(d lode.Digest, sp *spool, as PutAs) (Info, error) {
	for {
		at, err := s.admits(d, as)
		if err != nil {
			return Info{}, err
		}
		if here, err := s.own.stat(d); err == nil && here.Modified.After(at) {
			at = here.Modified
		}
		if err := os.Chtimes(sp.f.Name(), at, at); err != nil {
			return Info{}, ioError("write to "+s.own.root, err)
		}
		if err := sp.seal(); err != nil {
			return Info{}, err
		}
		done, err := s.name(d, sp, at)
		if err != nil {
			return Info{}, err
		}
		if done {
			s.uncache(d)
			return Info{Digest: d, Size: sp.size, Modified: at}, ioError("write to "+s.own.root, s.own.syncNames(d))
		}
	}
}

// name gives the spool its name unless its time has been overtaken.
func (s *Shelf) name(d lode.Digest, sp *spool, at time.Time) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.cutoff(d).Before(at) {
		return false, nil
	}
	if here, err := s.own.stat(d); err == nil && here.Modified.After(at) {
		return false, nil
	}
	if err := sp.keep(s.own, d, false); err != nil {
		return false, err
	}
	delete(s.leaving, d)
	if err := s.dead.end(d, time.Now()); err != nil {
		s.log.Warn("the end of a deletion could not be recorded", "digest", d, "err", err)
	}
	return true, nil
}

// Get implements Remote.
func (s *Shelf) Get(ctx context.Context, d lode.Digest, w io.Writer) error {
	f, err := s.reader(d)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := cancelled(ctx); err != nil {
		return err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{f}, make([]byte, 256<<10))
	s.count.toPeers.Add(n)
	return ioError("read "+f.Name(), err)
}

// Reader opens the blob for another node and gives its size; whoever reads it
// checks it. The caller closes it.
func (s *Shelf) Reader(d lode.Digest) (io.ReadCloser, int64, error) {
	f, err := s.reader(d)
	if err != nil {
		return nil, 0, err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, ioError("stat "+f.Name(), err)
	}
	s.count.toPeers.Add(fi.Size())
	return f, fi.Size(), nil
}

func (s *Shelf) reader(d lode.Digest) (*os.File, error) {
	where := "this node"
	for _, t := range s.trees() {
		f, err := os.Open(t.path(d))
		if err == nil {
			return f, nil
		}
		if !isMissing(err) {
			return nil, ioError("open "+t.path(d), err)
		}
		where = t.root
	}
	return nil, notFound(d, where)
}

// trees are where blobs of this node may be, replicas first.
func (s *Shelf) trees() (out []*tree) {
	if s.own != nil {
		out = append(out, s.own)
	}
	if st := s.of(); st != nil && st.cache != nil {
		out = append(out, st.cache)
	}
	return out
}

// Have implements Remote.
func (s *Shelf) Have(ctx context.Context, qs []Query, verify bool) ([]Held, error) {
	out := make([]Held, len(qs))
	for i, q := range qs {
		if err := cancelled(ctx); err != nil {
			return nil, err
		}
		held, err := s.have(ctx, q, verify)
		if err != nil {
			return nil, err
		}
		out[i] = held
	}
	return out, nil
}

func (s *Shelf) have(ctx context.Context, q Query, verify bool) (Held, error) {
	d, copied := q.Digest, false
	for _, t := range s.trees() {
		_, err := t.stat(d)
		if lode.KindOf(err) == lode.NotFound {
			continue
		}
		if err != nil {
			return HeldNothing, err
		}
		if t != s.own {
			copied = true
			break
		}
		if !verify || s.promise(ctx, d) {
			return HeldReplica, nil
		}
		return HeldNothing, cancelled(ctx)
	}
	if cut := s.cutoff(d); !cut.IsZero() && !cut.Before(q.Modified) {
		return HeldDeleted, nil
	}
	if copied {
		return HeldCopy, nil
	}
	return HeldNothing, nil
}

// promise reports whether d's replica is whole, and keeps it for KeepPromise.
func (s *Shelf) promise(ctx context.Context, d lode.Digest) bool {
	f, err := s.own.open(ctx, d)
	if err != nil {
		if lode.KindOf(err) == lode.Damaged {
			s.quarantine(d, err)
		}
		return false
	}
	f.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leaving[d] {
		return false
	}
	if _, err := s.own.stat(d); err != nil {
		return false
	}
	s.promised[d] = time.Now().Add(KeepPromise)
	return true
}

// Stat implements Remote.
func (s *Shelf) Stat(ctx context.Context, d lode.Digest) (Info, error) {
	if err := cancelled(ctx); err != nil {
		return Info{}, err
	}
	if s.own == nil {
		return Info{}, notFound(d, "the replicas of this node")
	}
	return s.own.stat(d)
}

// Delete implements Remote.
func (s *Shelf) Delete(ctx context.Context, d lode.Digest, before time.Time) (bool, error) {
	if err := cancelled(ctx); err != nil {
		return false, err
	}
	if err := s.takes(); err != nil {
		return false, err
	}
	gone, err := s.bury(d, before)
	if err == nil {
		s.uncache(d)
	}
	return gone, err
}

// bury remembers a deletion and removes the replica that it covers.
func (s *Shelf) bury(d lode.Digest, before time.Time) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	here, err := s.own.stat(d)
	missing := lode.KindOf(err) == lode.NotFound
	if err != nil && !missing {
		return false, err
	}
	if before.IsZero() {
		before = now
		if here.Modified.After(before) {
			before = here.Modified // put by a clock that is ahead of this one
		}
	}
	if err := s.dead.bury(d, before, now); err != nil {
		s.log.Warn("a deletion could not be recorded", "digest", d, "err", err) // a full disk must not keep it from making room
	}
	if missing || here.Modified.After(before) {
		return false, nil
	}
	if s.open(d) {
		return false, lode.Errorf(lode.Conflict, "blob %s is in use", d).WithHint("it goes when what reads it has ended")
	}
	return true, s.own.remove(d)
}

// List implements Remote.
func (s *Shelf) List(ctx context.Context) iter.Seq2[Info, error] {
	if s.own == nil {
		return func(func(Info, error) bool) {}
	}
	return s.own.list(ctx)
}

// Bad implements Remote.
func (s *Shelf) Bad(ctx context.Context, d lode.Digest) error {
	for _, t := range s.trees() {
		t.forget(d)
		f, err := t.open(ctx, d)
		if err == nil {
			f.Close()
			continue
		}
		switch {
		case lode.KindOf(err) != lode.Damaged:
		case t == s.own && s.dead != nil:
			s.quarantine(d, err)
		case t != s.own:
			s.spoiled(t, d, err)
		}
		if err := cancelled(ctx); err != nil {
			return err
		}
	}
	return nil
}

// spoiled moves a bad cached copy away.
func (s *Shelf) spoiled(t *tree, d lode.Digest, why error) {
	bad, err := t.quarantine(d, time.Now())
	if err != nil {
		s.log.Error("a bad copy could not be moved away", "digest", d, "err", err)
		return
	}
	s.of().forget(d)
	s.count.quarantined.Add(1)
	s.log.Warn("a cached blob was damaged", "err", why, "moved", bad)
}

// quarantine moves a bad replica away, so that it is not served, and has a
// good one fetched.
func (s *Shelf) quarantine(d lode.Digest, why error) {
	if s.setAside(d, why) && s.heal != nil {
		s.heal(d)
	}
}

// setAside moves a bad replica away, unless it was replaced since it was
// found, and reports whether it did.
func (s *Shelf) setAside(d lode.Digest, why error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	fi, err := os.Stat(s.own.path(d))
	if err != nil || s.own.holds(d, stampOf(fi)) {
		return false
	}
	bad, err := s.own.quarantine(d, time.Now())
	if err != nil {
		s.log.Error("a bad replica could not be moved away", "digest", d, "err", err)
		return false
	}
	s.count.quarantined.Add(1)
	s.log.Warn("a replica was damaged and is fetched again", "err", why, "moved", bad)
	return true
}
