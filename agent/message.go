package agent

import (
	"context"
	"sync"
	"time"

	"lode"
)

// message is something that an agent is to do: it becomes one turn.
type message struct {
	c      *lode.AgentCall
	turn   lode.TurnKind
	id     string
	hash   uint64
	rev    *lode.Revision
	letter *arrival          // it came on a channel; nil: somebody waits for it
	timer  string            // name of the timer that is due; "": none
	due    *timer            // the timer as it is stored
	edit   func(*turn) error // instead of code
	post   bool              // edit has a message wait for its time
	at     int64             // that time, Unix us

	fresh  bool // its id was made here and now: nothing can have it
	nested bool // it runs within a turn of its agent, which waits for it
	beside bool // a read that runs while turns go on
	within any  // what the turn that waits for it lends; see Turn

	came  time.Time // into the mailbox
	until time.Time // when nobody waits for it any more; zero: never

	ready chan struct{} // the mailbox has come to it; nil: nobody waits, or it has
	err   error         // why it will not run; set before ready
	next  *message
}

// flight is a turn that was written down, or will be: who waits for its reply
// waits for done.
type flight struct {
	done chan struct{}
	out  outcome
	id   string
	hash uint64
	err  error
}

func newFlight(m *message) *flight {
	return &flight{done: make(chan struct{}), id: m.id, hash: m.hash}
}

func (f *flight) end(out outcome, err error) {
	f.out, f.err = out, err
	close(f.done)
}

// wait waits for the end of f, until ctx ends or the deadline has passed.
func (f *flight) wait(ctx context.Context, until time.Time) (outcome, error) {
	select {
	case <-f.done:
		return f.out, f.err
	default:
	}
	t := timerFor(until)
	defer t.release()
	select {
	case <-f.done:
		return f.out, f.err
	case <-ctx.Done():
	case <-t.t.C:
	}
	return outcome{}, unknown(f.id)
}

// clockTimer is a timer that is used again.
type clockTimer struct{ t *time.Timer }

var timers = sync.Pool{New: func() any { return &clockTimer{time.NewTimer(time.Hour)} }}

// timerFor is a timer that rings then; zero: in a year.
func timerFor(until time.Time) *clockTimer {
	t := timers.Get().(*clockTimer)
	d := 365 * 24 * time.Hour
	if !until.IsZero() {
		d = time.Until(until)
	}
	t.t.Reset(d)
	return t
}

func (t *clockTimer) release() {
	t.t.Stop()
	timers.Put(t)
}

// unknown is the error of a turn whose outcome was not heard in time.
func unknown(id string) error {
	return lode.Errorf(lode.Deadline, "the outcome of turn %s is not known yet", id).WithHint("ask again with the same idempotency key: it takes effect once")
}

// moved says that this node does not have the agent, or not any more, and that
// nothing has happened.
type moved struct{}

func (m *moved) Error() string { return "the agent is on another node" }

// unsure says that a turn was written down, and that this node does not know
// what became of it: whoever has the agent next knows by the turn's id.
type unsure struct{ err error }

func (u *unsure) Error() string { return "the outcome of the turn is not known here: " + u.err.Error() }

// mailbox is a line of messages.
type mailbox struct {
	head, tail *message
	n          int
}

func (q *mailbox) push(m *message) {
	m.came = time.Now()
	if q.tail != nil {
		q.tail.next = m
	} else {
		q.head = m
	}
	q.tail = m
	q.n++
}

func (q *mailbox) pop() *message {
	m := q.head
	if m == nil {
		return nil
	}
	if q.head, m.next = m.next, nil; q.head == nil {
		q.tail = nil
	}
	q.n--
	return m
}

// drop takes m out, and reports whether it was there.
func (q *mailbox) drop(m *message) bool {
	var prev *message
	for x := q.head; x != nil; prev, x = x, x.next {
		if x != m {
			continue
		}
		if prev == nil {
			q.head = x.next
		} else {
			prev.next = x.next
		}
		if q.tail == x {
			q.tail = prev
		}
		x.next = nil
		q.n--
		return true
	}
	return false
}

// hashPrime is that of FNV-1a: hashes are kept, and compared by other nodes.
const hashPrime = 1099511628211

// hashOf is a hash of what a call asks for, to tell a repetition from another
// call with its id.
func hashOf(c *lode.AgentCall) uint64 {
	h := uint64(14695981039346656037)
	mix := func(s string) {
		for i := range len(s) {
			h = (h ^ uint64(s[i])) * hashPrime
		}
		h = (h ^ 0xff) * hashPrime
	}
	mix(c.Method)
	mix(c.Path)
	for i := 0; i+8 <= len(c.Body); i += 8 {
		h = (h ^ (uint64(c.Body[i]) | uint64(c.Body[i+1])<<8 | uint64(c.Body[i+2])<<16 | uint64(c.Body[i+3])<<24 |
			uint64(c.Body[i+4])<<32 | uint64(c.Body[i+5])<<40 | uint64(c.Body[i+6])<<48 | uint64(c.Body[i+7])<<56)) * hashPrime
		h ^= h >> 29
	}
	for _, b := range c.Body[len(c.Body)&^7:] {
		h = (h ^ uint64(b)) * hashPrime
	}
	return h
}

// deadlineOf is when nobody waits for m any more.
func (m *message) deadline(started time.Time) time.Time {
	d := started.Add(totalOf(m.rev))
	if !m.c.Deadline.IsZero() && m.c.Deadline.Before(d) {
		return m.c.Deadline
	}
	return d
}

// totalOf is how long a turn of a kind may take.
func totalOf(rev *lode.Revision) time.Duration {
	if t := rev.Function.Limits.Total; t > 0 {
		return t
	}
	return 30 * time.Second
}
