package invoke

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"lode"
)

// MaxDepth is how many calls of functions by functions a chain may have.
const MaxDepth = 64

// Config says what a Service works with. Catalog and Pools are needed.
type Config struct {
	Catalog  Catalog
	Pools    Pools
	Datasets Datasets // nil: the operation data is Unavailable
	Agents   Agents   // nil: there are none
	Observer Observer // nil: nobody
	// Tables keep idempotency keys, and for a Keeper of its own results and the
	// cron clock. Nil: asking for any of them is Unavailable.
	Tables Tables
	// Queues keep what is asynchronous: the Service has a Keeper of its own on
	// them. Nil: SetKeeper says who keeps it, else it is Unavailable.
	Queues Queues
	// Node is this node's name, as guests see it.
	Node string
	// Incarnation names this process of the node among those before and after
	// it; "": a random one.
	Incarnation string
	// Alive reports whether a node still runs that incarnation. It is called
	// often, and answers from memory. Nil: this node is alone. Else the
	// idempotency key of a request is claimed in Tables before it runs, so that
	// of several nodes that get it one runs it.
	Alive func(node lode.NodeID, incarnation string) bool
	// Alone reports whether this node is the only member of its cluster, so
	// that keys need no claim. It answers from memory. Nil: it is not, where
	// there is Alive.
	Alone func() bool
	// Hopeless reports whether no keeper is to be expected by who has waited
	// for one since then: most members of the bus are out of reach. It answers
	// within a second. Nil: one may always come.
	Hopeless func(since time.Time) bool
	// Peers are the nodes of the cluster, to which invocations are spread. Nil:
	// this node runs what comes to it.
	Peers Peers
	// FreeMemory tells the others how many bytes of memory are free here; nil:
	// they are not told.
	FreeMemory func() int64
	// Slots is how many invocations compute at once; 0: cores + 2.
	Slots int
	// AsyncSlots is how many asynchronous attempts run at once, of one
	// function at most half of them; 0: 64.
	AsyncSlots int
	// KeepResults is how long an asynchronous invocation that has ended is
	// kept; 0: 24 h. KeepCalls is how many at most, oldest dropped first; 0:
	// 20,000.
	KeepResults time.Duration
	KeepCalls   int
	// Now is the wall clock of schedules and records; nil: time.Now. Deadlines
	// and waits never follow it.
	Now    func() time.Time
	Logger *slog.Logger // nil: slog.Default
}

func (c Config) withDefaults() Config {
	if c.Observer == nil {
		c.Observer = nobody{}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.AsyncSlots <= 0 {
		c.AsyncSlots = 64
	}
	if c.KeepResults <= 0 {
		c.KeepResults = 24 * time.Hour
	}
	if c.KeepCalls <= 0 {
		c.KeepCalls = 20000
	}
	if c.Incarnation == "" {
		c.Incarnation = string(lode.NewInvocationID(time.Now()))
	}
	return c
}

// Service invokes functions. All methods may be called at the same time.
type Service struct {
	cfg       Config
	gate      *gate
	long      *gate // of those that have computed for a turn
	fetch     *fetcher
	keys      *keys   // nil: no tables
	seat      seat    // who keeps asynchronous work
	own       *Keeper // a Keeper of its own; nil: there is none
	spread    *spread // nil: this node is alone
	used      usage
	boxes     mailboxes
	groups    *groups
	attempts  sync.Pool   // of *attempt
	jobLimits lode.Limits // of the lane of jobs

	under    atomic.Int64  // invocations under way
	draining atomic.Bool   // for good
	parting  atomic.Bool   // see SetDraining
	quiet    chan struct{} // told when under falls to 0 while draining

	base    context.Context // ends when Close is called
	stop    context.CancelFunc
	stopCat func()
	work    sync.WaitGroup // the goroutines of background loops
	once    sync.Once
}

// Open makes a Service and begins its background work: asynchronous work that
// a former process left, schedules, and the consumers of queues.
func Open(ctx context.Context, cfg Config) (*Service, error) {
	if cfg.Catalog == nil || cfg.Pools == nil {
		return nil, lode.Errorf(lode.Invalid, "invoke needs a catalog and pools")
	}
	cfg = cfg.withDefaults()
	s := &Service{cfg: cfg, gate: newGate(cfg.Slots), fetch: newFetcher(nil), quiet: make(chan struct{}, 1)}
	s.long = newGate(max(1, min(s.gate.slots-moreSlots, runtime.GOMAXPROCS(0)-1)))
	s.jobLimits = lode.Limits{ScaleMax: max(1, s.gate.slots-jobSpared)}
	s.attempts.New = func() any { return &attempt{s: s} }
	s.base, s.stop = context.WithCancel(context.Background())
	s.used.begin()
	s.groups = newGroups(s)
	if cfg.Peers != nil {
		s.spread = newSpread(s)
	}
	if err := s.open(ctx); err != nil {
		s.Close()
		return nil, err
	}
	s.stopCat = cfg.Catalog.Watch(s.changed)
	s.changed(0)
	return s, nil
}

// open opens what is durable: idempotency keys, and a Keeper of its own.
func (s *Service) open(ctx context.Context) (err error) {
	if s.cfg.Tables != nil {
		if s.keys, err = openKeys(ctx, s); err != nil {
			return err
		}
	}
	if s.cfg.Queues == nil {
		return nil
	}
	if s.own, err = OpenKeeper(ctx, s, KeeperConfig{Tables: s.cfg.Tables, Queues: s.cfg.Queues}); err != nil {
		return err
	}
	s.SetKeeper(s.own)
	return nil
}

// changed follows the catalog.
func (s *Service) changed(uint64) {
	s.gate.forget()
	s.long.forget()
	if s.spread != nil {
		s.spread.changed()
	}
}

// halt ends the intake of background work.
func (s *Service) halt() {
	s.draining.Store(true)
	if s.own != nil {
		s.own.halt()
	}
}

// Invoke runs one invocation to its end and writes its answer to ans. The
// outcome is also set, as far as it got, where the error is not nil. ctx
// cancels; see lode.Answer for what an error means to what was written.
//
// With an idempotency key the answer is kept, durably, before it is told: a
// second request with the key and the same body gets that answer, one with
// another body KeyReused, one that comes while the first runs waits for it.
func (s *Service) Invoke(ctx context.Context, req *lode.Request, ans lode.Answer) (lode.Outcome, error) {
	if req.IdempotencyKey != "" {
		return s.invokeOnce(ctx, req, ans)
	}
	return s.run(ctx, req, ans, false)
}

// run makes one attempt. A patient one is not refused by a full line, and its
// time begins when it is admitted: what waits durably elsewhere is patient.
func (s *Service) run(ctx context.Context, req *lode.Request, ans lode.Answer, patient bool) (lode.Outcome, error) {
	if err := s.begin(req.Depth > 0 || patient); err != nil {
		return lode.Outcome{ID: req.ID}, err
	}
	defer s.end()
	a := s.attempts.Get().(*attempt)
	a.prepare(req, ans)
	a.w.patient = patient
	err := a.run(ctx)
	out, err := a.finish(err)
	a.recycle()
	return out, err
}

func (s *Service) resolve(req *lode.Request) (*lode.Revision, error) {
	return s.cfg.Catalog.Resolve(req.Namespace, req.Function, req.Alias, rand.Uint32())
}

// begin counts an invocation in. While draining only those that belong to a
// chain under way are let in, and those that another node can run.
func (s *Service) begin(chain bool) error {
	s.under.Add(1)
	if s.draining.Load() && !chain && (s.spread == nil || !s.spread.others()) || s.base.Err() != nil {
		s.end()
		return draining()
	}
	return nil
}

func draining() *lode.Error {
	e := lode.Errorf(lode.Unavailable, "this node is draining")
	e.RetryAfter = time.Second
	return e.WithHint("try again: another node, or this one after its restart, takes it")
}

func (s *Service) end() {
	if s.under.Add(-1) == 0 && s.draining.Load() {
		select {
		case s.quiet <- struct{}{}:
		default:
		}
	}
}

// Drain stops taking work, and waits until what is under way has ended or ctx
// has. Asynchronous work that has not begun stays queued for the next start.
func (s *Service) Drain(ctx context.Context) error {
	s.halt()
	if s.own != nil {
		if err := s.own.Drain(ctx); err != nil {
			return err
		}
	}
	for s.under.Load() > 0 {
		select {
		case <-s.quiet:
		case <-ctx.Done():
			return lode.Errorf(lode.Deadline, "drain: %d invocations are still under way", s.under.Load())
		}
	}
	return nil
}

// Close cancels what is under way in the background, and waits for it.
// Invocations of doors end with their own contexts. It may be called again.
func (s *Service) Close() error {
	s.once.Do(func() {
		s.halt()
		if s.stopCat != nil {
			s.stopCat()
		}
		if s.own != nil {
			s.own.Close()
		}
		s.stop()
		s.groups.close()
		if s.keys != nil {
			s.keys.close()
		}
		if s.spread != nil {
			s.spread.close()
		}
		s.work.Wait()
		s.fetch.close()
	})
	return nil
}

// Load is what one function does now.
type Load struct {
	Namespace lode.Namespace
	Function  lode.Name
	Running   int           // admitted and not ended
	Queued    int           // waiting for admission, or to compute again
	Cost      time.Duration // CPU of an invocation, moving average
	Admitted  uint64        // since the start
	Refused   uint64        // with Overloaded, since the start
}

// Loads tells what every function does that was called since the catalog last
// changed, in no order.
func (s *Service) Loads() []Load {
	s.gate.mu.Lock()
	defer s.gate.mu.Unlock()
	out := make([]Load, 0, len(s.gate.fns))
	for _, l := range s.gate.fns {
		if l.target == jobs {
			continue
		}
		out = append(out, Load{Namespace: l.ns, Function: l.name, Running: l.places, Queued: l.fresh.n + l.resume.n,
			Cost: time.Duration(l.cost), Admitted: l.granted, Refused: l.refused})
	}
	return out
}
