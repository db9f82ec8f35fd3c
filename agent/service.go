package agent

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"lode"
	"lode/agent/journal"
	"lode/agent/owner"
	"lode/agent/state"
	"lode/bus"
)

// Config is what a Service works with. Everything but the last group is
// needed.
type Config struct {
	Self    lode.NodeID
	Dir     string // of the local state: rebuilt where it is damaged or missing
	Bus     *bus.Bus
	Catalog Catalog
	Runner  Runner
	Blobs   Blobs
	Peers   Peers
	Sockets Sockets

	// Alive, Nodes and Eligible are those of owner.Config.
	Alive    func(lode.NodeID) bool
	Nodes    func() []lode.NodeID
	Eligible func(lode.NodeID) bool
	Alone    func() bool

	// Now is the cluster's time; nil: time.Now.
	Now func() time.Time
	// Kept tells the state of a kind of this name from that of an earlier one,
	// which was removed for ever: born only grows. False: there is none to be kept.
	// It is asked often, and answers from memory. Nil: all state is kept.
	Kept func(ns lode.Namespace, kind lode.Name) (born uint64, kept bool)
	// Stored is what Kept says, with all that was changed before the call.
	Stored func(context.Context) (kept func(lode.Namespace, lode.Name) bool, err error)
	Idle   time.Duration // that an agent stays in memory without a message; 0: 60 s
	Trim   int64         // bytes of journal at which snapshots are taken; 0: 64 MiB
	// Short says that memory is short: agents leave it as soon as they have
	// nothing to do. Nil: it never is.
	Short  func() bool
	Logger *slog.Logger // nil: slog.Default

	probe probe
}

// Service is a node's agents. All methods may be called at the same time.
type Service struct {
	cfg    Config
	db     *state.DB
	owners *owner.Owners
	ready  chan struct{} // closed when owners is set

	parts   atomic.Pointer[map[journal.Partition]*partition]
	clock   atomic.Int64 // last time given out, Unix ms
	frames  atomic.Uint64
	alarms  chan struct{}
	out     *outgoing
	slow    slowClock
	ids     idMaker
	counts  counts
	callers callers

	draining atomic.Bool

	mu    sync.Mutex
	term  *term
	takes map[journal.Partition]uint64 // positions of the takes of this term
	held  map[journal.Partition]kept

	trimming sync.Mutex // one trim at a time

	ctx  context.Context
	stop context.CancelFunc
	work sync.WaitGroup
	once sync.Once
}

// term is what belongs to one incarnation's journal.
type term struct {
	incarnation string
	log         *bus.Log
	w           *journal.Writer
	bytes       atomic.Int64 // written since snapshots were last taken
	kept        atomic.Int64 // written and not removed: what a new owner has to read, as far as is known
	floor       uint64       // trimmed up to here
}

// Open starts a node's agents: its partitions come back, from what is here and
// from its journal.
func Open(ctx context.Context, cfg Config) (*Service, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Idle <= 0 {
		cfg.Idle = time.Minute
	}
	if cfg.Trim <= 0 {
		cfg.Trim = 64 << 20
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	s := &Service{cfg: cfg, ready: make(chan struct{}), alarms: make(chan struct{}, 1), takes: map[journal.Partition]uint64{}, held: map[journal.Partition]kept{}}
	s.parts.Store(&map[journal.Partition]*partition{})
	s.frames.Store(uint64(cfg.Now().UnixMicro()))
	s.ids.init()
	s.ctx, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	s.out = newOutgoing(s)
	var err error
	if s.db, err = s.openState(); err != nil {
		return nil, err
	}
	s.owners, err = owner.Open(ctx, owner.Config{Self: cfg.Self, Bus: cfg.Bus, Alive: cfg.Alive, Nodes: cfg.Nodes, Eligible: cfg.Eligible, Alone: cfg.Alone,
		Journal: (*journals)(s), Hooks: (*hooks)(s), Logger: cfg.Logger, LeaseTTL: cfg.probe.lease, Detect: cfg.probe.detect})
	if err != nil {
		return nil, errors.Join(err, s.db.Close())
	}
	close(s.ready)
	s.work.Go(func() { s.runTimers(s.ctx) })
	s.work.Go(func() { s.tend(s.ctx) })
	return s, nil
}

// openState opens the local state; what is damaged is made anew.
func (s *Service) openState() (*state.DB, error) {
	db, err := state.Open(s.cfg.Dir, state.Config{Logger: s.cfg.Logger})
	if lode.KindOf(err) != lode.Damaged {
		return db, err
	}
	s.cfg.Logger.Warn("the local state of agents is damaged: it is made again from snapshots and journals", "err", err)
	if err := state.Wipe(s.cfg.Dir); err != nil {
		return nil, err
	}
	return state.Open(s.cfg.Dir, state.Config{Logger: s.cfg.Logger})
}

// Drain gives all partitions to other nodes.
func (s *Service) Drain(ctx context.Context) error {
	s.draining.Store(true)
	return s.owners.Drain(ctx)
}

// Undrain takes a Drain back.
func (s *Service) Undrain(ctx context.Context) error {
	s.draining.Store(false)
	return s.owners.Undrain(ctx)
}

// Draining reports whether this node gives its partitions away.
func (s *Service) Draining() bool { return s.draining.Load() }

// Owners is who has which partition.
func (s *Service) Owners() *owner.Owners { return s.owners }

// Close ends turns and the journal. Partitions stay this node's: its next start
// takes them back, unless others do before. It may be called again.
func (s *Service) Close(ctx context.Context) (err error) {
	s.once.Do(func() {
		for _, p := range s.owned() {
			p.shut(ctx, stopGrace)
		}
		s.stop()
		err = s.owners.Close(ctx)
		s.mu.Lock()
		t := s.term
		s.mu.Unlock()
		if t != nil {
			t.w.Close()
		}
		s.out.close()
		s.work.Wait()
		err = errors.Join(err, s.db.Close())
	})
	return err
}

// stopGrace is how long turns may go on when their partition stops.
const stopGrace = 250 * time.Millisecond

func (s *Service) log() *slog.Logger { return s.cfg.Logger }

// now is the cluster's time in Unix ms. It never goes back here: where the clock
// was set back it goes on at half its pace, until the clock has caught up.
func (s *Service) now() int64 {
	t := s.cfg.Now().UnixMilli()
	for {
		last := s.clock.Load()
		if t == last {
			return last
		}
		n := t
		if t < last-slowAfter {
			n = s.slow.now(last)
		} else if t < last {
			return last
		} else if s.slow.on.Load() {
			s.slow.on.Store(false)
		}
		if n <= last {
			return last
		}
		if s.clock.CompareAndSwap(last, n) {
			return n
		}
	}
}

// slowAfter is by how many milliseconds a clock may be set back that just
// stands still until it has caught up.
const slowAfter = 1000

// slowClock is a clock that goes at half its pace.
type slowClock struct {
	on   atomic.Bool
	mu   sync.Mutex
	from time.Time // by the monotonic clock
	base int64     // Unix ms then
}

// now begins at last where it was off.
func (c *slowClock) now(last int64) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.on.Load() {
		c.from, c.base = time.Now(), last
		c.on.Store(true)
	}
	return c.base + time.Since(c.from).Milliseconds()/2
}

// started is this machine's time, for deadlines and idleness.
func (s *Service) started() time.Time { return time.Now() }

// frameNumber grows with each call, over restarts and moves too.
func (s *Service) frameNumber() uint64 {
	for {
		last := s.frames.Load()
		n := max(last+1, uint64(s.now())*1000)
		if s.frames.CompareAndSwap(last, n) {
			return n
		}
	}
}

// partition is a partition that this node serves, or nil.
func (s *Service) partition(id journal.Partition) *partition { return (*s.parts.Load())[id] }

// owned are the partitions that this node serves.
func (s *Service) owned() map[journal.Partition]*partition { return *s.parts.Load() }

// change replaces the table of partitions; s.mu is held.
func (s *Service) change(f func(map[journal.Partition]*partition)) {
	m := maps.Clone(*s.parts.Load())
	f(m)
	s.parts.Store(&m)
}

// dueReplies reports whether an agent's kept answers should be looked through.
func (s *Service) dueReplies(a *activation, now int64) bool { return now-a.pruned > 3600_000 }

// current reports whether what a turn has read is what everybody would read:
// by the lease, or by a write.
func (s *Service) current(p *partition, m *message) error {
	if m.rev.Function.Agent.Reads != lode.ReadsBarrier && s.owners.LeaseValid() {
		return nil
	}
	done := make(chan error, 1)
	p.w.Barrier(func(_ uint64, err error) { done <- err })
	select {
	case err := <-done:
		if err != nil {
			return &moved{}
		}
		return nil
	case <-p.ctx.Done():
		return &moved{}
	}
}

// hooks are what owner tells the Service.
type hooks Service

var _ owner.Hooks = (*hooks)(nil)

// Load implements owner.Hooks.
func (h *hooks) Load(ctx context.Context, claims []owner.Claim) ([]owner.Loaded, error) {
	s := (*Service)(h)
	return s.load(ctx, claims)
}

// Start implements owner.Hooks.
func (h *hooks) Start(id journal.Partition, epoch uint64) {
	s := (*Service)(h)
	p := s.newPartition(id, epoch)
	s.mu.Lock()
	if s.term == nil {
		s.mu.Unlock()
		return
	}
	p.w = s.term.w
	s.change(func(m map[journal.Partition]*partition) { m[id] = p })
	s.mu.Unlock()
	p.begin()
}

// begin takes up what the former owner left: timers and messages to others.
func (p *partition) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sooner(1)
	base := []byte{spaceOutbox}
	err := p.part.List(base, after(base), false, func(k, _ []byte) bool {
		if to, _, ok := parsePeer(k); ok && p.out[to] == nil {
			p.channel(to).push()
		}
		return true
	})
	if err != nil {
		p.s.log().Error("read the messages that a partition has to deliver", "partition", p.id, "err", err)
	}
}

// Stop implements owner.Hooks.
func (h *hooks) Stop(ctx context.Context, id journal.Partition) error {
	s := (*Service)(h)
	p := s.partition(id)
	if p == nil {
		return nil
	}
	if err := p.shut(ctx, stopGrace); err != nil {
		s.reopen(p)
		return err
	}
	return s.reached(pointStopped)
}

// reopen has a partition go on whose move was called off.
func (s *Service) reopen(old *partition) {
	p := s.newPartition(old.id, old.epoch)
	p.w = old.w
	s.mu.Lock()
	s.change(func(m map[journal.Partition]*partition) { m[p.id] = p })
	s.mu.Unlock()
	p.begin()
}

// Gone implements owner.Hooks.
func (h *hooks) Gone(id journal.Partition, _ uint64, _ lode.NodeID) {
	s := (*Service)(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.change(func(m map[journal.Partition]*partition) { delete(m, id) })
	delete(s.takes, id)
	s.reached(pointGone)
}

// Ended implements owner.Hooks.
func (h *hooks) Ended() {
	s := (*Service)(h)
	s.mu.Lock()
	t := s.term
	s.term = nil
	gone := *s.parts.Load()
	s.parts.Store(&map[journal.Partition]*partition{})
	clear(s.takes)
	s.mu.Unlock()
	for _, p := range gone {
		p.stop()
	}
	if t != nil {
		t.w.Close() // what is not acknowledged fails now
	}
	for _, p := range gone {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		p.shut(ctx, 0)
	}
}

// journals is where owner's entries go.
type journals Service

var _ owner.Journal = (*journals)(nil)

// Begin implements owner.Journal.
func (j *journals) Begin(log *bus.Log, incarnation string) {
	s := (*Service)(j)
	t := &term{incarnation: incarnation, log: log}
	if log.Opened() > 1 {
		t.kept.Store(s.cfg.Trim) // how much is there is not known
	}
	t.w = journal.NewWriter(s.wrapped(log), func(pos uint64, es []*journal.Entry) error { return s.apply(t, pos, es) }, s.refused, func(err error) {
		if lode.KindOf(err) != lode.Conflict {
			s.log().Error("the journal of this node's agents has ended: it is opened again", "err", err)
		}
		s.owners.Fenced(incarnation)
	})
	s.mu.Lock()
	s.term = t
	s.mu.Unlock()
}

// Append implements owner.Journal.
func (j *journals) Append(e *journal.Entry, done func(uint64, error)) {
	s := (*Service)(j)
	s.mu.Lock()
	t := s.term
	s.mu.Unlock()
	if t == nil {
		done(0, lode.Errorf(lode.Conflict, "the term of this node's journal is over"))
		return
	}
	t.w.Append(e, done)
}

// apply brings a message that is durable into the local state.
func (s *Service) apply(t *term, pos uint64, es []*journal.Entry) error {
	list := make([]state.Applied, 0, len(es))
	size := int64(0)
	for _, e := range es {
		switch e.Op {
		case journal.Take:
			s.mu.Lock()
			s.takes[e.Partition] = pos
			s.mu.Unlock()
		case journal.Give:
			continue
		case journal.Turn, journal.Note:
			if p := s.partition(e.Partition); p != nil {
				p.last.Store(pos)
			}
		}
		changes := e.Changes
		if n := len(changes); n > 0 && changes[n-1].Kind == journal.Recall {
			changes = changes[:n-1]
		}
		list = append(list, state.Applied{Part: e.Partition, Epoch: e.Epoch, Changes: changes})
		for i := range e.Changes {
			size += int64(len(e.Changes[i].Key) + len(e.Changes[i].Value))
		}
	}
	t.bytes.Add(size)
	t.kept.Add(size)
	s.counts.messages.Add(1)
	s.counts.entries.Add(uint64(len(es)))
	if err := s.reached(pointApply); err != nil {
		return err
	}
	for try := 0; ; try++ {
		err := s.db.Apply(s.cfg.Self, pos, list)
		if err == nil {
			return s.reached(pointApplied)
		}
		if s.ctx.Err() != nil || try == 100 {
			return err
		}
		s.log().Warn("the local state of agents cannot be written", "err", err)
		sleep(s.ctx, time.Second)
	}
}

// refused forgets what the journal had no room for.
func (s *Service) refused(err error) {
	s.log().Warn("the journal has refused turns", "err", err)
	for _, p := range s.owned() {
		p.reset()
	}
}
