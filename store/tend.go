package store

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"lode"
)

// Tending says how a node looks after its replicas.
type Tending struct {
	Every      time.Duration              // between repairs while nothing changes; 0: 5 minutes
	ScrubEvery time.Duration              // between scrubs; 0: a week
	ScrubRate  int64                      // bytes a second; 0: 8 MiB
	Want       func(lode.Digest) int      // as for Repair; it is called during each repair
	Repaired   func(Report, error)        // hears of each repair; nil: the log does
	Scrubbed   func(Scrubbed, error)      // hears of each scrub; nil: the log does
	Ready      func(context.Context) bool // whether to repair now (what Want needs is there); nil: yes
}

// settleAfter is how long the nodes must stay as they are before a change of
// them is repaired: several often come and go together.
const settleAfter = 2 * time.Second

// Tend repairs now and then, soon after a node came, died, was given up or
// began to leave, and scrubs in the background. It returns when ctx ends.
func (r *Replicas) Tend(ctx context.Context, t Tending) {
	t.fill(r)
	var wg sync.WaitGroup
	wg.Go(func() {
		for wait(ctx, jitter(t.ScrubEvery)) {
			t.Scrubbed(r.Scrub(ctx, t.ScrubRate))
		}
	})
	for r.wait(ctx, jitter(t.Every)) {
		if t.Ready(ctx) {
			t.Repaired(r.Repair(ctx, t.Want))
		}
	}
	wg.Wait()
}

func (t *Tending) fill(r *Replicas) {
	if t.Every <= 0 {
		t.Every = 5 * time.Minute
	}
	if t.ScrubEvery <= 0 {
		t.ScrubEvery = 7 * 24 * time.Hour
	}
	if t.ScrubRate <= 0 {
		t.ScrubRate = 8 << 20
	}
	if t.Ready == nil {
		t.Ready = func(context.Context) bool { return true }
	}
	if t.Repaired == nil {
		t.Repaired = func(did Report, err error) {
			if err != nil || did.Trouble != "" {
				r.log.Warn("replicas are not all where they should be", "short", did.Short, "waiting", did.Waiting, "trouble", did.Trouble, "err", err)
			} else if did.Copied+did.Dropped+did.Deleted > 0 {
				r.log.Info("replicas were repaired", "copied", did.Copied, "sent", did.Sent, "dropped", did.Dropped, "deleted", did.Deleted)
			}
		}
	}
	if t.Scrubbed == nil {
		t.Scrubbed = func(did Scrubbed, err error) {
			if err != nil || did.Trouble != "" {
				r.log.Warn("replicas were scrubbed, not all well", "bad", did.Bad, "repaired", did.Repaired, "trouble", did.Trouble, "err", err)
			}
		}
	}
}

// jitter keeps nodes from working in step: d, a fifth more or less.
func jitter(d time.Duration) time.Duration {
	return d - d/5 + rand.N(2*d/5+1)
}

// wait reports whether d passed before ctx ended.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// wait returns true when most has passed, or the nodes have changed and stayed
// so for settleAfter; false when ctx ends.
func (r *Replicas) wait(ctx context.Context, most time.Duration) bool {
	end := time.Now().Add(most)
	first := r.roll()
	last, since := first, time.Now()
	for wait(ctx, min(time.Second, max(time.Until(end), 0))) {
		if !time.Now().Before(end) {
			return true
		}
		if now := r.roll(); !slices.Equal(now, last) {
			last, since = now, time.Now()
		}
		if !slices.Equal(last, first) && time.Since(since) >= settleAfter {
			return true
		}
	}
	return false
}

// roll is what repair depends on, of every node.
func (r *Replicas) roll() []NodeState {
	out := slices.Clone(r.peers.nodes())
	for i := range out {
		out[i].Free = 0
	}
	slices.SortFunc(out, func(a, b NodeState) int {
		if a.Node < b.Node {
			return -1
		}
		return 1
	})
	return out
}
