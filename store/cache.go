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
	Fetched int64 `json:"fetched"` // bytes that came over the network, from the home or from other nodes
	Sent    int64 `json:"sent"`    // bytes that went to a home that is not on nodes
	Hits    int64 `json:"hits"`    // openings of a blob that was here
	Misses  int64 `json:"misses"`  // openings that had to fetch
	Cached  int64 `json:"cached"`  // bytes in the cache; 0 where the home is local
	Budget  int64 `json:"budget"`  // bytes the cache may hold

	FromPeers   int64 `json:"from_peers"`  // of Fetched, the bytes that other nodes gave
	ToPeers     int64 `json:"to_peers"`    // bytes that other nodes read here, and that were copied to them
	Repaired    int64 `json:"repaired"`    // copies that were made because one was missing or bad
	Quarantined int64 `json:"quarantined"` // copies here that did not match their name
}

// Stats returns the counters.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Stats{Fetched: s.fetched.Load(), Sent: s.sent.Load(), Hits: s.hits.Load(), Misses: s.misses.Load(),
		Cached: s.lru.bytes, Budget: s.budget, FromPeers: s.peered.Load()}
	s.shelf.count.addTo(&st)
	return st
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
	for info, err := range s.cache.list(context.Background()) {
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
		if err := s.cache.remove(d); err != nil {
			s.log.Warn("a cached blob could not be evicted", "err", err)
		}
		s.lru.drop(d)
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

// release unpins d, and lets go what was deleted while it was open.
func (s *Store) release(d lode.Digest) {
	s.unpin(d)
	if s.replicas != nil {
		s.shelf.settle(d)
	}
}

func (s *Store) unpin(d lode.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pins[d]--; s.pins[d] == 0 {
		delete(s.pins, d)
		if s.cache != nil {
			s.trim(s.budget)
		}
	}
}

func (s *Store) forget(d lode.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lru.drop(d)
}

// admit moves a spooled copy into the cache. Copies need no fsync: what a
// crash spoils is found by its checksum and fetched again.
func (s *Store) admit(d lode.Digest, sp *spool) error {
	if err := sp.f.Chmod(0o444); err != nil {
		return ioError("cache a blob", err)
	}
	if err := sp.keep(s.cache, d, false); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lru.add(d, sp.size)
	s.trim(s.budget)
	return nil
}

// fetch copies d into the cache and returns the bytes moved. A copy that
// arrives damaged is asked for once more, in case the wire did it; a full disk
// evicts all that is not in use and tries once more. The key lock is held.
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
		case kind != lode.Damaged && kind != lode.Unavailable || s.replicas != nil:
			return moved, err // replicas have tried every node there is
		}
		s.log.Debug("a fetch failed", "try", try+1, "digest", d, "err", err)
	}
	return moved, err
}

// fetchOnce asks the peers, then the home.
func (s *Store) fetchOnce(ctx context.Context, d lode.Digest) (int64, error) {
	sp, n, err := s.fromPeers(ctx, d)
	if sp == nil && err == nil {
		sp, n, err = s.fromHome(ctx, d)
	}
	s.fetched.Add(n)
	if err != nil {
		return n, err
	}
	defer sp.discard()
	return n, s.admit(d, sp)
}

// fromPeers spools d from another node; nil, without an error, where the home
// must be asked.
func (s *Store) fromPeers(ctx context.Context, d lode.Digest) (*spool, int64, error) {
	if s.peers == nil {
		return nil, 0, nil
	}
	if s.replicas != nil {
		sp, n, err := s.peers.fetch(ctx, d, s.cache, s.peers.everybody(d))
		s.peered.Add(n)
		if err != nil {
			err = s.replicas.lost(d, err)
		}
		return sp, n, err
	}
	sp, n, err := s.peers.fetch(ctx, d, s.cache, s.peers.holders(d))
	s.peered.Add(n)
	if err != nil {
		if lode.KindOf(err) == lode.Full || ctx.Err() != nil {
			return nil, n, err
		}
		return nil, n, nil // the home has it, whatever became of the peers
	}
	return sp, n, nil
}

// fromHome spools d from the durable home.
func (s *Store) fromHome(ctx context.Context, d lode.Digest) (_ *spool, n int64, err error) {
	r, err := s.home.Get(ctx, d)
	if err != nil {
		return nil, 0, err
	}
	defer r.Close()
	sp, err := s.cache.spool()
	if err != nil {
		return nil, 0, err
	}
	defer func() {
		if err != nil {
			sp.discard()
		}
	}()
	n, err = io.CopyBuffer(struct{ io.Writer }{sp}, struct{ io.Reader }{r}, make([]byte, 256<<10))
	if err != nil {
		if cerr := cancelled(ctx); cerr != nil {
			return nil, n, cerr
		}
		if _, ok := errors.AsType[*lode.Error](err); ok {
			return nil, n, err
		}
		return nil, n, lode.Errorf(lode.Unavailable, "fetch blob %s from %s: %w", d, s.home, err)
	}
	if got := sp.digest(); got != d {
		return nil, n, damaged(d, s.home.String(), got, n)
	}
	return sp, n, nil
}
