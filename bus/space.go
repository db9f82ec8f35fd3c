package bus

import (
	"sync"
	"time"

	"lode"
)

// space refuses writes before the disk is full: a server that meets a full
// disk stops its whole store, and needs space again even to clean up.
type space struct {
	dir     string
	reserve int64

	mu      sync.Mutex
	checked time.Time
	budget  int64 // bytes that may be written before the next look
}

// take accounts for n bytes about to be written, or refuses them with Full.
func (s *space) take(n int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.budget < int64(n) || time.Since(s.checked) > time.Second {
		free, err := freeBytes(s.dir)
		if err != nil {
			return nil // no such figure here: the write itself will tell
		}
		s.checked = time.Now()
		if free-s.reserve < int64(n) {
			s.budget = 0
			e := lode.Errorf(lode.Full, "the disk of %s has %d MiB left, the reserve is %d MiB", s.dir, free>>20, s.reserve>>20)
			e.RetryAfter = 5 * time.Second
			return e.WithHint("free some disk space")
		}
		// Others write to the same disk: look again after half of it.
		s.budget = (free - s.reserve + 1) / 2
		if s.budget < int64(n) {
			s.budget = int64(n)
		}
	}
	s.budget -= int64(n)
	return nil
}

