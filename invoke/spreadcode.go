package invoke

import (
	"context"

	"lode/placement"
)

// bringCode counts the hop that c costs, and when the hops of a while have
// cost more than having the code here would, has it brought. here: this very
// invocation brings it.
func (j *journey) bringCode(c *placement.Candidate) (here bool) {
	s := j.sp.s
	own := &j.table.Nodes[j.table.Own]
	if own.State != placement.Ready || own.Code >= placement.Loaded || own.Queue > 0 {
		return false
	}
	cost := own.Code.Time(j.work.Size, c.Node.Bandwidth)
	j.sp.mu.Lock()
	due := j.used.regret.Add(c.Cost.Hop, j.sp.now(), cost)
	j.sp.mu.Unlock()
	if !due {
		return false
	}
	runner, err := s.cfg.Pools.Pool(j.used.rev)
	if err != nil {
		return false
	}
	w, ok := runner.(warmer)
	if !ok {
		j.sp.stats.brought.Add(1)
		return true
	}
	j.sp.warm(j.used, w)
	return false
}

// warmer is an optional ability of a Runner: to load its code and make n
// sandboxes ready.
type warmer interface {
	Warm(ctx context.Context, n int) error
}

// warm brings code in the background, once at a time.
func (sp *spread) warm(u *used, w warmer) {
	if !u.warming.CompareAndSwap(false, true) {
		return
	}
	s := sp.s
	if s.codeHere(u, s.used.now()) >= placement.Loaded { // it came meanwhile
		u.warming.Store(false)
		return
	}
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if sp.over {
		return
	}
	s.work.Go(func() {
		defer u.warming.Store(false)
		sp.stats.brought.Add(1)
		if err := w.Warm(s.base, 1); err != nil {
			if s.base.Err() == nil {
				s.cfg.Logger.Warn("bring the code of a function that is called here", "revision", u.rev.ID(), "err", err)
			}
			return
		}
		u.ran.Store(s.used.now())
	})
}

// close lets nothing more begin in the background.
func (sp *spread) close() {
	sp.mu.Lock()
	sp.over = true
	sp.mu.Unlock()
}
