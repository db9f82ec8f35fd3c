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
