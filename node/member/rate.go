package member

import (
	"sync"
	"time"
)

// rate bounds how often something may be tried from one address: a bucket of
// tries that fills by one each interval.
type rate struct {
	burst int
	each  time.Duration

	mu    sync.Mutex
	since map[string]time.Time // when the bucket of an address began to be empty, had it never been full
}

// maxRated bounds the addresses that are remembered.
const maxRated = 4096

func newRate(burst int, each time.Duration) *rate {
	return &rate{burst: burst, each: each, since: map[string]time.Time{}}
}

// take is 0 for a try that is allowed; else how long to wait.
func (r *rate) take(addr string, now time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.since) >= maxRated {
		r.forget(now)
	}
	full := now.Add(-time.Duration(r.burst) * r.each)
	at, ok := r.since[addr]
	if !ok || at.Before(full) || at.After(now) { // a clock that went back forgives
		at = full
	}
	if at = at.Add(r.each); at.After(now) {
		return at.Sub(now)
	}
	if len(r.since) >= maxRated && !ok {
		return r.each // too many addresses at once: none of the new ones
	}
	r.since[addr] = at
	return 0
}

// forget drops the addresses whose buckets are full again.
func (r *rate) forget(now time.Time) {
	for addr, at := range r.since {
		if !at.After(now.Add(-time.Duration(r.burst) * r.each)) {
			delete(r.since, addr)
		}
	}
}
