package engine

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/zeebo/blake3"

	"lode"
)

// Pool keeps the warm sandboxes of one revision. It is safe for concurrent
// use.
type Pool struct {
	e   *Engine
	c   Config
	src Source

	mu     sync.Mutex
	prog   Program  // nil: not loaded
	load   *loading // nil: nobody loads it now
	warm   []warm   // a stack: the last one used is the first taken
	busy   int
	used   time.Time
	closed bool
	idle   *sync.Cond // busy == 0
	stats  Stats
}

// loading is a load under way. It belongs to the pool, not to who asked for it
// first: a caller who gives up does not throw it away.
type loading struct {
	done chan struct{}
	err  error // set before done is closed
}

// warm is a sandbox, and when it was used last.
type warm struct {
	sb     Sandbox
	number uint64
	since  time.Time
}

// Stats say what a Pool, or an Engine, holds and did.
type Stats struct {
	Pools   int   // pools
	Loaded  int   // of them with their program in memory
	Bytes   int64 // code and images in memory
	Warm    int   // sandboxes ready
	Busy    int   // sandboxes at work
	Memory  int64 // bytes of the warm sandboxes
	Calls   int64 // invocations ended
	Cold    int64 // sandboxes made
	Retired int64 // sandboxes closed because they could not be made clean
	Loads   int64 // times the program was loaded
}

func (s *Stats) add(o Stats) {
	s.Pools += o.Pools
	s.Loaded += o.Loaded
	s.Bytes += o.Bytes
	s.Warm += o.Warm
	s.Busy += o.Busy
	s.Memory += o.Memory
	s.Calls += o.Calls
	s.Cold += o.Cold
	s.Retired += o.Retired
	s.Loads += o.Loads
}

// Pool makes the pool of one revision. Nothing is loaded until it is needed:
// by Invoke, or by Limits.ScaleMin. Close it when the revision is gone.
func (e *Engine) Pool(c Config, src Source) (*Pool, error) {
	p := &Pool{e: e, c: c, src: src, used: time.Now()}
	p.idle = sync.NewCond(&p.mu)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, lode.Errorf(lode.Unavailable, "the engine is closed")
	}
	e.pools[p] = struct{}{}
	return p, nil
}

// Config is what the pool was made with.
func (p *Pool) Config() Config { return p.c }

// Warm loads the program and makes sandboxes until n are ready, at least
// Limits.ScaleMin.
func (p *Pool) Warm(ctx context.Context, n int) error {
	n = max(n, p.c.Limits.ScaleMin)
	for {
		p.mu.Lock()
		enough := len(p.warm)+p.busy >= n
		p.mu.Unlock()
		if enough {
			return nil
		}
		w, _, err := p.take(ctx, true)
		if err != nil {
			return err
		}
		p.mu.Lock()
		w.since = time.Now()
		p.warm = append(p.warm, w)
		p.leaveLocked()
		p.mu.Unlock()
	}
}

// Invoke runs one invocation in a clean sandbox and hands its answer on. Errors
// are those of Sandbox.Invoke, and those of loading: Invalid, Damaged,
// Unavailable.
func (p *Pool) Invoke(ctx context.Context, inv *Invocation) error {
	inv.ExitCode = 0
	inv.Reply = Reply{Head: inv.Reply.Head[:0], Body: inv.Reply.Body[:0]}
	w, cold, err := p.takeUntil(ctx, inv.Deadline, inv.Sandbox)
	if err != nil {
		return err
	}
	inv.Usage.Cold = cold
	if same := inv.Sandbox == w.number; inv.Placed != nil {
		inv.Sandbox = w.number
		inv.Placed.Placed(inv, same)
	}
	err = w.sb.Invoke(ctx, inv)
	inv.Usage.Memory = max(inv.Usage.Memory, w.sb.Memory())
	if inv.Apart {
		w.number = p.e.numbers.Add(1)
	}
	p.give(w, inv.Windows != nil)
	if err != nil {
		return err
	}
	return inv.Flush()
}

// takeUntil is take within a deadline, which matters only where none is warm.
func (p *Pool) takeUntil(ctx context.Context, deadline time.Time, number uint64) (w warm, cold bool, err error) {
	if w := p.pop(number); w.sb != nil {
		return w, false, nil
	}
	if !deadline.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline)
		defer cancel()
	}
	return p.take(ctx, false)
}

// pop hands out the sandbox of that number, or else the one that was used
// last, if one is warm, and counts it as busy.
func (p *Pool) pop(number uint64) (w warm) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.warm)
	if n == 0 || p.closed {
		return warm{}
	}
	at := n - 1
	for i := n - 1; i >= 0 && number != 0; i-- {
		if p.warm[i].number == number {
			at = i
			break
		}
	}
	w = p.warm[at]
	copy(p.warm[at:], p.warm[at+1:]) // the order by use stays
	p.warm[n-1] = warm{}
	p.warm = p.warm[:n-1]
	p.busy++
	return w
}

// take hands out a clean sandbox and counts it as busy; a new one if fresh is
// set and the program is there. cold says that somebody had to wait for it.
func (p *Pool) take(ctx context.Context, fresh bool) (w warm, cold bool, err error) {
	if err := p.enter(); err != nil {
		return warm{}, false, err
	}
	defer p.leave() // pop and the end below count for themselves
	loaded, err := p.await(ctx)
	if err != nil {
		return warm{}, true, err
	}
	if loaded || !fresh {
		if w := p.pop(0); w.sb != nil {
			return w, true, nil
		}
	}
	w, err = p.make(ctx)
	if err != nil {
		return warm{}, true, err
	}
	p.mu.Lock()
	p.busy++
	p.mu.Unlock()
	return w, true, nil
}

// give takes a sandbox back, cleans it, and counts it as idle.
func (p *Pool) give(w warm, discard bool) {
	ok := !discard && w.sb.Reset()
	if !ok {
		w.sb.Close()
	}
	now := time.Now()
	w.since = now
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stats.Calls++
	p.used = now
	if ok {
		p.warm = append(p.warm, w)
	} else {
		p.stats.Retired++
	}
	p.leaveLocked()
}

func (p *Pool) enter() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return lode.Errorf(lode.Unavailable, "%s is being removed", p.c.Revision)
	}
	p.busy++
	return nil
}

func (p *Pool) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leaveLocked()
}

func (p *Pool) leaveLocked() {
	p.busy--
	if p.busy == 0 {
		p.idle.Broadcast()
	}
}

// make makes a sandbox of the loaded program. The caller has entered, so that
// the program stays.
func (p *Pool) make(ctx context.Context) (warm, error) {
	p.mu.Lock()
	prog := p.prog
	p.mu.Unlock()
	sb, err := prog.Sandbox(ctx)
	if err != nil {
		return warm{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stats.Cold++
	return warm{sb: sb, number: p.e.numbers.Add(1)}, nil
}

// await returns when the program is loaded, and reports whether it had to be.
// Of many callers one starts that. The caller has entered.
func (p *Pool) await(ctx context.Context) (loaded bool, err error) {
	p.mu.Lock()
	if p.prog != nil {
		p.mu.Unlock()
		return false, nil
	}
	l := p.load
	if l == nil {
		l = &loading{done: make(chan struct{})}
		p.load = l
		p.busy++ // until runLoad has ended: Close waits for it
		go p.runLoad(l)
	}
	p.mu.Unlock()
	select {
	case <-l.done:
		return true, l.err
	case <-ctx.Done():
		return false, over(ctx, p.c.Revision)
	}
}

// over is the error of waiting for a program for too long.
func over(ctx context.Context, revision string) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return lode.Errorf(lode.Deadline, "%s was not loaded in time", revision)
	}
	return lode.Errorf(lode.Cancelled, "waiting for %s: %w", revision, ctx.Err())
}

// runLoad loads the program and makes the first sandbox, and with it the
// snapshot.
//
// What is over the budget goes before anybody is told: a load that was told
// of and still counts as busy could not be dropped for the next one.
func (p *Pool) runLoad(l *loading) {
	var sb Sandbox
	prog, err := p.e.load(p.e.ctx, p.src, p.c)
	if err == nil {
		if sb, err = prog.Sandbox(p.e.ctx); err != nil {
			prog.Close()
		}
	}
	if err == nil {
		now := time.Now()
		p.mu.Lock()
		p.prog, p.used = prog, now
		p.warm = append(p.warm, warm{sb, p.e.numbers.Add(1), now})
		p.stats.Loads++
		p.stats.Cold++
		p.mu.Unlock()
		p.e.noteProgram(p)
		p.e.fit(p)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.load, l.err = nil, err
	close(l.done)
	p.leaveLocked()
}

// shrink closes the sandboxes that were not used since t, but for
// Limits.ScaleMin of them.
func (p *Pool) shrink(t time.Time) {
	p.mu.Lock()
	n := 0 // warm is ordered by since: the bottom of the stack is the oldest
	for n < len(p.warm)-p.c.Limits.ScaleMin && p.warm[n].since.Before(t) {
		n++
	}
	old := slices.Clone(p.warm[:n])
	p.warm = slices.Delete(p.warm, 0, n)
	p.mu.Unlock()
	for _, w := range old {
		w.sb.Close()
	}
}

// drop unloads the program if nothing runs in it, and reports the bytes freed.
func (p *Pool) drop() int64 {
	p.mu.Lock()
	if p.busy > 0 || p.prog == nil || p.c.Limits.ScaleMin > 0 && !p.closed {
		p.mu.Unlock()
		return 0
	}
	prog, old := p.prog, p.warm
	p.prog, p.warm = nil, nil
	p.mu.Unlock()
	p.forget()
	n := prog.Bytes()
	for _, w := range old {
		w.sb.Close()
	}
	if err := prog.Close(); err != nil {
		p.e.c.Logger.Warn("program cannot be closed", "revision", p.c.Revision, "err", err)
	}
	return n
}

// forget takes p off the list of loaded pools, unless it was loaded again.
func (p *Pool) forget() {
	p.e.mu.Lock()
	defer p.e.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.prog == nil {
		delete(p.e.loaded, p)
	}
}

// fit drops the least recently used programs until the budget holds. keep is
// never dropped.
func (e *Engine) fit(keep *Pool) {
	type loaded struct {
		p     *Pool
		used  time.Time
		bytes int64
	}
	var sum int64
	var all []loaded
	for _, p := range e.withProgram() {
		p.mu.Lock()
		if p.prog != nil {
			l := loaded{p, p.used, p.prog.Bytes()}
			sum += l.bytes
			all = append(all, l)
		}
		p.mu.Unlock()
	}
	if sum <= e.c.CodeBudget {
		return
	}
	slices.SortFunc(all, func(a, b loaded) int { return cmp.Compare(a.used.UnixNano(), b.used.UnixNano()) })
	for _, l := range all {
		if sum <= e.c.CodeBudget {
			return
		}
		if l.p != keep {
			sum -= l.p.drop()
		}
	}
}

// Stats say what the pool holds and did.
func (p *Pool) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.stats
	s.Pools, s.Warm, s.Busy = 1, len(p.warm), p.busy
	for _, w := range p.warm {
		s.Memory += w.sb.Memory()
	}
	if p.prog != nil {
		s.Loaded, s.Bytes = 1, p.prog.Bytes()
	}
	return s
}

// Close closes the sandboxes and the program. It waits for invocations under
// way; new ones get Unavailable.
func (p *Pool) Close() error {
	p.mu.Lock()
	p.closed = true
	for p.busy > 0 {
		p.idle.Wait()
	}
	p.mu.Unlock()
	p.drop()
	p.e.mu.Lock()
	delete(p.e.pools, p)
	delete(p.e.loaded, p)
	p.e.mu.Unlock()
	return nil
}

// macKey makes the key of the code's MAC from the platform's.
func macKey(key []byte) (k [32]byte) {
	if len(key) == 0 {
		rand.Read(k[:]) // never fails
		return k
	}
	blake3.DeriveKey("lode 2026 compiled code", key, k[:])
	return k
}
