package invoke

import (
	"errors"
	"math/rand/v2"
	"time"

	"lode"
	"lode/link"
)

const (
	defaultAttempts = 3
	defaultFirst    = time.Second
	defaultMax      = 5 * time.Minute
	// An attempt that the node did not live to finish is not held against the
	// work, up to so many: what kills the node each time must end too.
	extraAttempts = 2
	// An attempt that was lost with its node, or that no node took, comes again
	// after about firstSoon: another node may take it at once.
	firstSoon = 50 * time.Millisecond
	lastSoon  = 5 * time.Second
	// catalogLag is how far the catalog of one node may be behind another's.
	catalogLag = 5 * time.Second
)

// step is what is to be done with a piece of work after an attempt.
type step int

const (
	stepDone  step = iota // it has its answer
	stepRetry             // again, after a while
	stepFail              // never again: a dead letter
	stepWait              // again, soon: it did not begin, and is not counted
)

// verdictOf decides what follows an attempt, the n-th, that ended with err and
// the guest's status. A status of 500 and above is a failed attempt, since
// there is nobody who would look at it.
func verdictOf(r lode.Retry, n int, status int, err error) step {
	switch {
	case err == nil && status < 500:
		return stepDone
	case notStarted(err):
		return stepWait
	}
	if err != nil && !retryable(lode.KindOf(err)) || n >= orDefault(r.Attempts, defaultAttempts) {
		return stepFail
	}
	return stepRetry
}

// retryable reports whether the same work may succeed later.
func retryable(k lode.Kind) bool {
	switch k {
	case lode.Crashed, lode.Deadline, lode.Overloaded, lode.Unavailable, lode.Full, lode.Internal:
		return true
	}
	return false
}

// exhausted reports whether the n-th delivery of a piece of work is one too
// many, because those before it never came to an end.
func exhausted(r lode.Retry, n int) bool {
	return n > orDefault(r.Attempts, defaultAttempts)+extraAttempts
}

// backoff is how long to wait after n failed attempts: anything up to
// First*2^(n-1), at most Max. u is uniform in [0, 1). All of it is jitter, so
// that what failed together does not come back together.
func backoff(r lode.Retry, n int, u float64) time.Duration {
	first, most := orDefault(r.First, defaultFirst), orDefault(r.Max, defaultMax)
	d := first
	for i := 1; i < n && d < most; i++ {
		d *= 2
	}
	return time.Duration(u * float64(min(d, most)))
}

// pauseAfter is how long to wait after the n-th attempt, which failed with err
// or, where that is nil, by its answer.
func pauseAfter(r lode.Retry, n int, err error) time.Duration {
	if nodeLost(err) {
		return jitter(4 * firstSoon)
	}
	return backoff(r, n, rand.Float64())
}

// soon is how long to wait for a node after n attempts that did not begin.
func soon(n int) time.Duration {
	return jitter(min(firstSoon<<min(n, 10), lastSoon))
}

// jitter is from d/2 to d.
func jitter(d time.Duration) time.Duration {
	return d/2 + time.Duration(rand.Float64()*float64(d/2))
}

// notStarted reports whether err says of an attempt, or of a call of another
// node, that it provably did not begin.
func notStarted(err error) bool {
	return errors.Is(err, link.ErrNotSent) || errors.Is(err, link.ErrRefused)
}

// nodeLost reports whether err says that the node was lost with it.
func nodeLost(err error) bool { return errors.Is(err, link.ErrLost) }
