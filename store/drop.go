package store

import (
	"time"

	"lode"
)

// settle removes a replica that was deleted, and reports whether it did.
func (s *Shelf) settle(d lode.Digest) (int64, bool) {
	if s.cutoff(d).IsZero() {
		return 0, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	here, err := s.own.stat(d)
	if err != nil || here.Modified.After(s.cutoff(d)) || s.open(d) {
		return 0, false
	}
	if err := s.own.remove(d); err != nil {
		s.log.Warn("a deleted blob could not be removed", "digest", d, "err", err)
		return 0, false
	}
	return here.Size, true
}

// leave marks a replica as about to be dropped: it does not count for others
// any more. False for one that is open, or promised.
func (s *Shelf) leave(d lode.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open(d) || time.Now().Before(s.promised[d]) {
		return false
	}
	s.leaving[d] = true
	return true
}

// stay takes the mark away.
func (s *Shelf) stay(d lode.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.leaving, d)
}

// drop removes a replica that is marked; a put in between took the mark away.
func (s *Shelf) drop(d lode.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.leaving[d] || s.open(d) {
		return false
	}
	if err := s.own.remove(d); err != nil {
		s.log.Warn("a replica that is more than wanted could not be dropped", "digest", d, "err", err)
		return false
	}
	return true
}

// expire forgets promises that are over.
func (s *Shelf) expire(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for d, until := range s.promised {
		if now.After(until) {
			delete(s.promised, d)
		}
	}
}
