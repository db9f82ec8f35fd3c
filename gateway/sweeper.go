package gateway

import (
	"sync"
	"time"
)

// sweepEvery is how often held bytes are looked at; they leave after one to
// two of it.
const sweepEvery = 3 * time.Millisecond

// sweeper hands on what answers have held too long. One goroutine looks at
// all of them, so that a short answer needs neither a timer nor a goroutine of
// its own. It sleeps while no answer has begun.
type sweeper struct {
	wake chan struct{}
	quit chan struct{}
	done chan struct{}
	once sync.Once

	mu     sync.Mutex
	head   *answer // list of answers that have begun
	tick   uint64
	asleep bool
}

func newSweeper() *sweeper {
	s := &sweeper{wake: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{}), asleep: true}
	go s.run()
	return s
}

func (s *sweeper) close() {
	s.once.Do(func() { close(s.quit) })
	<-s.done
}

func (s *sweeper) add(a *answer) {
	s.mu.Lock()
	a.mark = s.tick
	a.prev, a.next = nil, s.head
	if s.head != nil {
		s.head.prev = a
	}
	s.head = a
	a.listed = true
	rouse := s.asleep
	s.asleep = false
	s.mu.Unlock()
	if rouse {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// remove takes a off the list; afterwards no new flush of a begins. Those
// under way are in a.flushes.
func (s *sweeper) remove(a *answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !a.listed {
		return
	}
	if a.prev != nil {
		a.prev.next = a.next
	} else {
		s.head = a.next
	}
	if a.next != nil {
		a.next.prev = a.prev
	}
	a.next, a.prev, a.listed = nil, nil, false
}

func (s *sweeper) run() {
	defer close(s.done)
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	t.Stop()
	for {
		select {
		case <-s.quit:
			return
		case <-s.wake:
			t.Reset(sweepEvery)
		case <-t.C:
			if !s.sweep() {
				t.Stop()
			}
		}
	}
}

// sweep starts the flushes that are due; false: no answer is left. A flush
// runs in a goroutine of its own, for its client may be slow; the answer's
// door waits for it.
func (s *sweeper) sweep() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tick++
	if s.head == nil {
		s.asleep = true
		return false
	}
	for a := s.head; a != nil; a = a.next {
		if a.mark+2 <= s.tick && a.dirty.CompareAndSwap(true, false) {
			a.flushes.Go(a.flush)
		}
	}
	return true
}
