package owner

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"lode"
	"lode/agent/journal"
	"lode/bus"
)

const (
	clockRate = 0.01                   // by how much the rates of two clocks may differ
	margin    = 200 * time.Millisecond // between the last look at the lease and the answer's leaving
	swapsMax  = 16                     // registers that are swapped at the same time
	mostParts = 1 << 16                // of a kind
)

// Owners is this node's part in the ownership of partitions. All methods may be
// called at the same time.
//
// One goroutine, the loop, owns all state; everything else posts to it.
type Owners struct {
	c         Config
	registers *bus.Table
	records   *bus.Table
	view      view
	lease     atomic.Int64 // by now(): until when reads need no write; 0: they do
	inc       atomic.Pointer[string]

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	work   sync.WaitGroup // goroutines
	swaps  chan struct{}  // places for swaps
	wake   chan struct{}
	looped chan struct{} // the loop has ended
	once   sync.Once

	mu     sync.Mutex
	posted []func()
	closed bool

	// Of the loop.
	term     *term
	former   self // of the term that ended, to name it
	slots    map[journal.Partition]*slot
	known    map[lode.NodeID]record
	synced   [2]bool // of the two tables
	closing  bool
	draining bool
	begun    chan struct{} // closed when the first term has begun
	dead     suspicion
	ticked   time.Duration
}

// record is a node's record as it was last seen.
type record struct {
	NodeRecord
	rev uint64
}

func (c Config) withDefaults() (Config, error) {
	if c.Self == "" || c.Bus == nil || c.Alive == nil || c.Nodes == nil || c.Eligible == nil || c.Journal == nil || c.Hooks == nil {
		return c, lode.Errorf(lode.Invalid, "owners of agents need a node, a bus, its view of the cluster, a journal and hooks")
	}
	if c.LeaseTTL < 0 || c.Detect < 0 {
		return c, lode.Errorf(lode.Invalid, "times of owners must not be negative")
	}
	if c.LeaseTTL == 0 {
		c.LeaseTTL = time.Second
	}
	if c.Detect == 0 {
		c.Detect = 400 * time.Millisecond
	}
	if c.Alone == nil {
		c.Alone = func() bool { return false }
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c, nil
}

// Open begins a term: it ends the former self of this node, takes back what
// that owned, and from then on watches the others. It returns when the term has
// begun; the partitions follow. ctx bounds Open alone.
func Open(ctx context.Context, c Config) (*Owners, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	o := &Owners{c: c, swaps: make(chan struct{}, swapsMax), wake: make(chan struct{}, 1), looped: make(chan struct{}), begun: make(chan struct{}),
		slots: make(map[journal.Partition]*slot), known: make(map[lode.NodeID]record), dead: newSuspicion()}
	o.ctx, o.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if o.registers, err = c.Bus.Table(ctx, registersTable); err == nil {
		o.records, err = c.Bus.Table(ctx, nodesTable)
	}
	if err != nil {
		o.cancel()
		return nil, err
	}
	o.inc.Store(new(string))
	go o.loop()
	o.work.Go(func() { o.watch(o.registers, o.sawRegister) })
	o.work.Go(func() { o.watch(o.records, o.sawRecord) })
	select {
	case <-o.begun:
		return o, nil
	case <-ctx.Done():
		o.stop(context.WithoutCancel(ctx))
		return nil, lode.Errorf(lode.Unavailable, "the owners of agents wait for the bus: %w", ctx.Err())
	}
}

// post has the loop call f; false: it has ended.
func (o *Owners) post(f func()) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return false
	}
	o.posted = append(o.posted, f)
	select {
	case o.wake <- struct{}{}:
	default:
	}
	return true
}

// ask has the loop call f, and waits for it.
func (o *Owners) ask(ctx context.Context, f func()) error {
	done := make(chan struct{})
	if !o.post(func() { f(); close(done) }) {
		return errClosed()
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctxError(ctx, "ask for the owner of a partition")
	case <-o.looped:
		return errClosed()
	}
}

func errClosed() error { return lode.Errorf(lode.Unavailable, "this node's agents are closed") }

func ctxError(ctx context.Context, doing string) error {
	kind := lode.Cancelled
	if ctx.Err() == context.DeadlineExceeded {
		kind = lode.Deadline
	}
	return lode.Errorf(kind, "%s: %w", doing, context.Cause(ctx))
}

// loop is the one goroutine that changes state.
func (o *Owners) loop() {
	defer close(o.looped)
	every := time.NewTicker(o.interval())
	defer every.Stop()
	for {
		select {
		case <-o.wake:
		case <-every.C:
			o.tick()
		}
		for {
			o.mu.Lock()
			fs, closed := o.posted, o.closed
			o.posted = nil
			o.mu.Unlock()
			for _, f := range fs {
				f()
			}
			if len(fs) == 0 {
				if closed {
					return
				}
				break
			}
		}
		o.startLoads()
	}
}

// interval is between two looks at the others, and at the lease.
func (o *Owners) interval() time.Duration { return min(o.c.Detect/4, o.c.LeaseTTL/8) }

// wait is how long after its record was swapped to suspect a node may still
// read by its lease.
func (o *Owners) wait() time.Duration {
	return time.Duration(float64(o.c.LeaseTTL)*(1+clockRate)) + margin
}

// watch follows a table for as long as the owners are open.
func (o *Owners) watch(t *bus.Table, saw func(bus.Change)) {
	for d := time.Duration(0); o.ctx.Err() == nil; {
		w, err := t.Watch(o.ctx, "")
		for err == nil {
			var c bus.Change
			if c, err = w.Next(o.ctx); err == nil {
				d = 0
				o.post(func() { saw(c) })
			}
		}
		if w != nil {
			w.Close()
		}
		if o.ctx.Err() == nil && d == 0 {
			o.c.Logger.Error("agents: the owners of partitions cannot be followed", "err", err)
		}
		if !pause(o.ctx, &d) {
			return
		}
	}
}

// sawTable notes that a table was read; after both, the first term begins.
func (o *Owners) sawTable(n int) {
	if o.synced[n] {
		return // it was watched anew
	}
	if o.synced[n] = true; o.synced[0] && o.synced[1] && !o.closing {
		o.newTerm()
	}
}

// later has the loop call f after a while, if the term still lasts.
func (o *Owners) later(t *term, d time.Duration, f func()) {
	time.AfterFunc(d, func() { o.inTerm(t, f) })
}

// inTerm has the loop call f if t still lasts then.
func (o *Owners) inTerm(t *term, f func()) {
	o.post(func() {
		if o.term == t {
			f()
		}
	})
}

// Close ends the term without giving anything away: registers go on naming this
// node, and its next self takes them back. ctx bounds what is told to the
// others. It may be called again.
func (o *Owners) Close(ctx context.Context) error {
	o.stop(ctx)
	return nil
}

func (o *Owners) stop(ctx context.Context) {
	o.once.Do(func() {
		over := make(chan *term, 1)
		o.post(func() {
			o.closing = true
			t := o.term
			o.endTerm("closed")
			over <- t
		})
		t := <-over
		o.cancel()
		o.work.Wait()
		if t != nil {
			o.sayDown(ctx, t)
		}
		o.mu.Lock()
		o.closed = true
		o.mu.Unlock()
		select {
		case o.wake <- struct{}{}:
		default:
		}
	})
	<-o.looped
}

// sayDown spares the others the wait for a lease that has ended.
func (o *Owners) sayDown(ctx context.Context, t *term) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	rec := t.rec
	rec.State = NodeDown
	if _, err := o.records.Update(ctx, string(o.c.Self), encode(rec), t.rev); err != nil {
		o.c.Logger.Debug("agents: the others were not told that this node stops", "err", err)
	}
}
