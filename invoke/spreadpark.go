package invoke

import (
	"cmp"
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"lode"
)

// The time between two rounds of placement of an invocation that nobody took.
const (
	parkLeast  = 10 * time.Millisecond
	parkSpread = 20 * time.Millisecond
	parkShift  = 5 // a patient one's grows to 320-960 ms
)

// lot is where invocations of one function wait that no node took. Each brings
// a timer, and each timer that goes off lets the oldest go: so as many go as
// have come, and none is passed by a younger one.
type lot struct {
	waiting []*parked // by begin
}

type parked struct {
	begin time.Time
	ready chan struct{} // closed when it may go
}

// park waits until the attempt may be placed anew. Its error is Overloaded
// where as many wait as may, Deadline, Cancelled, or Unavailable when the
// service closes.
func (j *journey) park(ctx context.Context) error {
	sp, a, to := j.sp, j.a, j.to // the timer outlives the journey
	p := &parked{begin: a.start, ready: make(chan struct{})}
	bound := cmp.Or(j.lim.QueueMax, defaultQueueMax)
	sp.mu.Lock()
	l := sp.lots[to]
	if l == nil {
		l = &lot{}
		sp.lots[to] = l
	}
	if len(l.waiting) >= bound && !a.w.patient {
		sp.mu.Unlock()
		return parkedFull(to, bound)
	}
	at, _ := slices.BinarySearchFunc(l.waiting, p, func(x, p *parked) int { return x.begin.Compare(p.begin) })
	l.waiting = slices.Insert(l.waiting, at, p)
	sp.mu.Unlock()
	sp.stats.parked.Add(1)
	j.tried(Try{What: "parked"})
	timer := time.AfterFunc(j.pause(), func() { sp.letGo(to) })
	err := j.wait(ctx, p)
	if err != nil {
		timer.Stop()
		sp.unpark(to, p)
		return err
	}
	j.refusals, j.full, j.down = 0, false, j.down[:0]
	return nil
}

// pause is the time between two rounds. What is patient may wait for hours, and
// asks less often the longer it has waited.
func (j *journey) pause() time.Duration {
	shift := 0
	if j.a.w.patient {
		shift = min(j.rounds, parkShift)
	}
	j.rounds++
	return (parkLeast + rand.N(parkSpread)) << shift
}

func parkedFull(to target, bound int) error {
	e := lode.Errorf(lode.Overloaded, "no node has room for %s, and %d invocations of it wait already", to, bound)
	e.RetryAfter = time.Second
	return e.WithHint("retry later, call it asynchronously, raise its queue_max, or add a node")
}

// wait waits for p's turn.
func (j *journey) wait(ctx context.Context, p *parked) error {
	var late <-chan time.Time
	if !j.deadline.IsZero() {
		t := time.NewTimer(time.Until(j.deadline))
		defer t.Stop()
		late = t.C
	}
	select {
	case <-p.ready:
		return nil
	case <-ctx.Done():
		return ended(ctx, "waiting for a node with room for "+j.to.String())
	case <-late:
		return lode.Errorf(lode.Deadline, "the deadline passed while %s was waiting for a node with room", j.to).
			WithHint("all nodes are busy: see lode top")
	case <-j.sp.s.base.Done():
		return draining()
	}
}

// letGo lets the oldest of a lot go, which may be none.
func (sp *spread) letGo(to target) {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	l := sp.lots[to]
	if l == nil {
		return
	}
	p := l.waiting[0]
	close(p.ready)
	sp.remove(to, l, 0)
}

// unpark takes out one that gives up.
func (sp *spread) unpark(to target, p *parked) {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if l := sp.lots[to]; l != nil {
		if i := slices.Index(l.waiting, p); i >= 0 {
			sp.remove(to, l, i)
			return
		}
	}
	// It was let go meanwhile: another goes in its place.
	if l := sp.lots[to]; l != nil {
		close(l.waiting[0].ready)
		sp.remove(to, l, 0)
	}
}

// remove takes the i-th out of a lot; an empty lot is dropped. sp.mu is held.
func (sp *spread) remove(to target, l *lot, i int) {
	l.waiting = slices.Delete(l.waiting, i, i+1)
	if len(l.waiting) == 0 {
		delete(sp.lots, to)
	}
}
