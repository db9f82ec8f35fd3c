package bus

import (
	"context"
	"fmt"
	"sync"
	"time"

	"lode"
)

// gate holds this node's writes back while the bus moves to other members
// (move.go): they wait, they do not fail. It also keeps the clock of leases,
// which stands still meanwhile: nobody can renew a lease then, and nobody can
// take one.
//
//	open -(freeze)-> frozen -(thaw, or the freeze was not repeated in time)-> open
//
// That a freeze lapses is safe: what a node writes after it, its server
// refuses, until the move was undone or the node has learned of its end.
type gate struct {
	mu      sync.Mutex
	began   time.Time     // of the clock
	stopped time.Duration // sum of all freezes that have ended
	open    chan struct{} // while frozen: closed at its end
	since   time.Time     // while frozen: its begin
	lapse   *time.Timer
	inside  int           // writes under way
	idle    chan struct{} // somebody waits for inside to be 0
}

// freezeWait is how long a write waits for a gate at most.
const freezeWait = 10 * time.Second

func newGate() *gate { return &gate{began: time.Now()} }

// enter waits until writes are allowed; leave must follow. Its error is
// Unavailable, or that of ctx.
func (g *gate) enter(ctx context.Context) error {
	var late <-chan time.Time
	for {
		g.mu.Lock()
		open := g.open
		if open == nil {
			g.inside++
			g.mu.Unlock()
			return nil
		}
		g.mu.Unlock()
		if late == nil {
			t := time.NewTimer(freezeWait)
			defer t.Stop()
			late = t.C
		}
		select {
		case <-open:
		case <-ctx.Done():
			return ctxError(ctx, "writes wait while the members of the bus change")
		case <-late:
			e := lode.Errorf(lode.Unavailable, "the members of the bus are changing, and have been for %s", freezeWait)
			e.RetryAfter = time.Second
			return e
		}
	}
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside--; g.inside == 0 && g.idle != nil {
		close(g.idle)
		g.idle = nil
	}
}

// freeze closes the gate for a while, or keeps it closed for another.
func (g *gate) freeze(d time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open == nil {
		g.open, g.since = make(chan struct{}), time.Now()
		open := g.open
		g.lapse = time.AfterFunc(d, func() { g.end(open) })
		return
	}
	g.lapse.Reset(d)
}

func (g *gate) thaw() {
	g.mu.Lock()
	open := g.open
	g.mu.Unlock()
	g.end(open)
}

// end opens the gate, if it is still the same freeze.
func (g *gate) end(open chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if open == nil || g.open != open {
		return
	}
	g.lapse.Stop()
	g.stopped += time.Since(g.since)
	close(g.open)
	g.open = nil
}

// settle waits until no write is under way.
func (g *gate) settle(ctx context.Context) error {
	g.mu.Lock()
	if g.inside == 0 {
		g.mu.Unlock()
		return nil
	}
	if g.idle == nil {
		g.idle = make(chan struct{})
	}
	idle := g.idle
	g.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctxError(ctx, "wait for writes that are under way")
	}
}

// frozen reports whether the gate is closed, by a channel that ends with it;
// nil: it is open.
func (g *gate) frozen() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.open
}

// clock is a time that stands still while the gate is closed.
func (g *gate) clock() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	d := time.Since(g.began) - g.stopped
	if g.open != nil {
		d -= time.Since(g.since)
	}
	return d
}

// errPatience is why a context of patient or within ended.
var errPatience = fmt.Errorf("no answer from the bus in time: %w", context.DeadlineExceeded)

// patient gives a context the usual time for a write.
func (b *Bus) patient(ctx context.Context) (context.Context, context.CancelFunc) {
	return b.within(ctx, b.gate.clock()+callWait)
}

// within gives a context an end by the clock of the gate.
func (b *Bus) within(ctx context.Context, until time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	a := &alarm{g: b.gate, until: until, ring: func() { cancel(errPatience) }}
	a.mu.Lock()
	a.t = time.AfterFunc(max(0, until-b.gate.clock()), a.look)
	a.mu.Unlock()
	return ctx, func() {
		a.mu.Lock()
		a.t.Stop()
		a.mu.Unlock()
		cancel(nil)
	}
}

// alarm rings when the clock of a gate has reached a time.
type alarm struct {
	g     *gate
	until time.Duration
	ring  func()

	mu sync.Mutex
	t  *time.Timer
}

func (a *alarm) look() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if left := a.until - a.g.clock(); left > 0 {
		a.t.Reset(max(left, 10*time.Millisecond))
		return
	}
	a.ring()
}
