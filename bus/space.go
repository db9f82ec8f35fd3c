package bus

import (
	"sync"
	"time"

	"lode"
)

// space refuses writes before the disk is full, or the bus has reached its
// limit: a server that meets a full disk stops its whole store, and needs
// space even to clean up. What frees space may use up half of the reserve.
type space struct {
	broken  func() error // refuses while the store takes nothing; nil = never
	dir     string
	reserve int64
	limit   int64        // of used; 0 = none
	used    func() int64 // bytes kept

	mu      sync.Mutex
	checked time.Time
	left    int64 // bytes that may be written, as of checked, less what was written since
	budget  int64 // the part of left that is used up before the next look
}

// lookAgain is how long a look at the disk is believed: others fill it too.
const lookAgain = 20 * time.Millisecond

// take accounts for n bytes about to be written, or refuses them with Full.
func (s *space) take(n int, frees bool) error {
	if s.broken != nil {
		if err := s.broken(); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.budget < int64(n) || time.Since(s.checked) > lookAgain {
		s.look()
	}
	s.left -= int64(n)
	s.budget -= int64(n)
	if s.left >= 0 && (n > 0 || s.left > 0) || frees && s.left > -s.reserve/2 {
		return nil
	}
	s.left += int64(n)
	e := lode.Errorf(lode.Full, "%s has no space left: %d MiB of the disk are kept in reserve", s.dir, s.reserve>>20)
	if s.limit > 0 && s.used() >= s.limit-int64(n) {
		e = lode.Errorf(lode.Full, "%s has reached its limit of %d MiB", s.dir, s.limit>>20)
	}
	e.RetryAfter = 5 * time.Second
	return e.WithHint("free some disk space, or raise the limit")
}

// look reads how much may be written. Others write to the same disk, so it
// looks again after half of it.
func (s *space) look() {
	s.left = 1 << 50
	if free, err := freeBytes(s.dir); err == nil {
		s.left = free - s.reserve
	} // else there is no such figure here, and the write itself will tell
	if s.limit > 0 {
		s.left = min(s.left, s.limit-s.used())
	}
	s.checked, s.budget = time.Now(), s.left/2
}
