package job

import (
	"context"
	"slices"
	"sync"

	"lode"
)

// turns are tokens that jobs share fairly: a free one goes to the job that
// holds the fewest, and in it to the group of the first shards, so that groups
// end one after the other and no job waits behind another's whole queue.
type turns struct {
	mu      sync.Mutex
	free    int
	held    map[string]int // by job
	waiting []*turn        // in no order
}

type turn struct {
	job   string
	first int // shard of the group
	ready chan struct{}
}

func newTurns(n int) *turns { return &turns{free: n, held: map[string]int{}} }

// take waits for a token; release gives it back, once.
func (t *turns) take(ctx context.Context, job string, first int) (release func(), err error) {
	w := &turn{job, first, make(chan struct{})}
	t.mu.Lock()
	t.waiting = append(t.waiting, w)
	t.hand()
	t.mu.Unlock()
	release = sync.OnceFunc(func() { t.give(job) })
	select {
	case <-w.ready:
		return release, nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	at := slices.Index(t.waiting, w)
	if at >= 0 {
		t.waiting = slices.Delete(t.waiting, at, at+1)
	}
	t.mu.Unlock()
	if at < 0 { // it was handed over meanwhile
		release()
	}
	return nil, lode.Errorf(lode.Cancelled, "wait for a core: %w", ctx.Err())
}

func (t *turns) give(job string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.free++
	if t.held[job]--; t.held[job] == 0 {
		delete(t.held, job)
	}
	t.hand()
}

// hand gives free tokens to those who wait. mu is held.
func (t *turns) hand() {
	for t.free > 0 && len(t.waiting) > 0 {
		next := 0
		for i, w := range t.waiting {
			if best := t.waiting[next]; t.held[w.job] < t.held[best.job] || t.held[w.job] == t.held[best.job] && w.first < best.first {
				next = i
			}
		}
		w := t.waiting[next]
		t.waiting = slices.Delete(t.waiting, next, next+1)
		t.free--
		t.held[w.job]++
		close(w.ready)
	}
}
