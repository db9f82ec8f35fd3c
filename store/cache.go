package store

import (
	"container/list"
	"context"
	"errors"
	"io"
	"slices"

	"lode"
)

// Stats counts what a store did since it was opened, and what its cache holds.
type Stats struct {
	Fetched int64 `json:"fetched"` // bytes that came from the home over the network
	Sent    int64 `json:"sent"`    // bytes that went there
	Hits    int64 `json:"hits"`    // openings of a blob that was here
	Misses  int64 `json:"misses"`  // openings that had to fetch
	Cached  int64 `json:"cached"`  // bytes in the cache; 0 where the home is local
	Budget  int64 `json:"budget"`  // bytes the cache may hold
}

// Stats returns the counters.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{s.fetched.Load(), s.sent.Load(), s.hits.Load(), s.misses.Load(), s.lru.bytes, s.budget}
}

// lru orders the cached blobs by last use, the newest in front. Fetching a
// byte costs the same whichever blob it belongs to, so recency alone decides
// (GreedyDual with cost = size is LRU).
type lru struct {
	order *list.List // of cached
	at    map[lode.Digest]*list.Element
	bytes int64
}

type cached struct {
	digest lode.Digest
	size   int64
}

func newLRU() lru { return lru{list.New(), map[lode.Digest]*list.Element{}, 0} }

func (l *lru) add(d lode.Digest, size int64) {
	l.drop(d)
	l.at[d] = l.order.PushFront(cached{d, size})
	l.bytes += size
}

func (l *lru) touch(d lode.Digest) {
	if e := l.at[d]; e != nil {
		l.order.MoveToFront(e)
	}
}

func (l *lru) drop(d lode.Digest) {
	if e := l.at[d]; e != nil {
		l.bytes -= e.Value.(cached).size
		l.order.Remove(e)
		delete(l.at, d)
	}
}

// victims are what must go, oldest first, so that at most budget bytes stay;
// what is pinned stays.
func (l *lru) victims(budget int64, pins map[lode.Digest]int) []lode.Digest {
	var out []lode.Digest
	left := l.bytes
	for e := l.order.Back(); e != nil && left > budget; e = e.Prev() {
		c := e.Value.(cached)
		if pins[c.digest] == 0 {
			out = append(out, c.digest)
			left -= c.size
		}
	}
	return out
}

// loadCache takes over what is in the folder, by age, and trims it.
func (s *Store) loadCache() error {
	var found []Info
	for info, err := range s.files.list(context.Background()) {
		if err != nil {
			return err
		}
		found = append(found, info)
	}
	slices.SortFunc(found, func(a, b Info) int { return a.Modified.Compare(b.Modified) })
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, info := range found {
		s.lru.add(info.Digest, info.Size)
	}
	s.trim(s.budget)
	return nil
}

// trim evicts down to budget. s.mu is held, which keeps pins still; removing
// a name is quick.
func (s *Store) trim(budget int64) {
	for _, d := range s.lru.victims(budget, s.pins) {
		if err := s.files.remove(d); err != nil {
			s.log.Warn("a cached blob could not be evicted", "err", err)
		}
		s.lru.drop(d)
		delete(s.ready, d)
	}
}

// shrink evicts all that is not in use.
func (s *Store) shrink() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trim(0)
}

func (s *Store) pin(d lode.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pins[d]++
	s.lru.touch(d)
}

func (s *Store) unpin(d lode.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pins[d]--; s.pins[d] == 0 {
		delete(s.pins, d)
		if s.remote != nil {
			s.trim(s.budget)
		}
	}
}

// seen remembers that the file with this stamp matches its name.
func (s *Store) seen(d lode.Digest, st stamp) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready[d] = st
}

func (s *Store) forget(d lode.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.ready, d)
	s.lru.drop(d)
}

// admit moves a spooled copy into the cache. Copies need no fsync: what a
// crash spoils is found by its checksum and fetched again.
func (s *Store) admit(d lode.Digest, sp *spool) error {
	if err := sp.f.Chmod(0o444); err != nil {
		return ioError("cache a blob", err)
	}
	size := sp.size
	st, err := sp.keep(d, false)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready[d] = st
	s.lru.add(d, size)
	s.trim(s.budget)
	return nil
}

// fetch copies d from its home into the cache and returns the bytes moved. A
// copy that arrives damaged is asked for once more, in case the wire did it;
// a full disk evicts all that is not in use and tries once more. The key lock
// is held.
func (s *Store) fetch(ctx context.Context, d lode.Digest) (moved int64, err error) {
	for try := range 3 {
		var n int64
		n, err = s.fetchOnce(ctx, d)
		moved += n
		kind := lode.KindOf(err)
		switch {
		case err == nil || ctx.Err() != nil:
			return moved, err
		case kind == lode.Full:
			s.shrink()
		case kind != lode.Damaged && kind != lode.Unavailable:
			return moved, err
		}
		s.log.Debug("a fetch failed", "try", try+1, "digest", d, "err", err)
	}
	return moved, err
}

func (s *Store) fetchOnce(ctx context.Context, d lode.Digest) (int64, error) {
	r, err := s.remote.Get(ctx, d)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	sp, err := s.files.spool()
	if err != nil {
		return 0, err
	}
	defer sp.discard()
	n, err := io.CopyBuffer(struct{ io.Writer }{sp}, struct{ io.Reader }{r}, make([]byte, 256<<10))
	s.fetched.Add(n)
	if err != nil {
		if cerr := cancelled(ctx); cerr != nil {
			return n, cerr
		}
		if _, ok := errors.AsType[*lode.Error](err); ok {
			return n, err
		}
		return n, lode.Errorf(lode.Unavailable, "fetch blob %s from %s: %w", d, s.remote, err)
	}
	if got := sp.digest(); got != d {
		return n, damaged(d, s.remote.String(), got, n)
	}
	return n, s.admit(d, sp)
}
