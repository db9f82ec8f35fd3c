package member

import (
	"context"
	"math/rand/v2"
	"time"
)

// Clock is the time as this package sees it. Nil means the machine's.
type Clock interface {
	Now() time.Time
	// Sleep returns after d, or ctx's error as soon as it ends.
	Sleep(ctx context.Context, d time.Duration) error
}

type wallClock struct{}

var _ Clock = wallClock{}

func (wallClock) Now() time.Time { return time.Now() }

func (wallClock) Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func orWall(c Clock) Clock {
	if c == nil {
		return wallClock{}
	}
	return c
}

// backoff is how long to wait after the n-th failure in a row (from 0): twice
// as long each time, between first and most, with a jitter of a quarter.
func backoff(n int, first, most time.Duration) time.Duration {
	d := min(first<<min(n, 20), most)
	return d - time.Duration(rand.Int64N(int64(d)/4+1))
}
