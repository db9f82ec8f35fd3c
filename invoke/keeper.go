package invoke

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"sync"
	"time"

	"lode"
	"lode/bus"
)

// KeeperConfig says what a Keeper works with. Queues is needed; what is not set
// is as in the Config of the Service.
type KeeperConfig struct {
	// Tables keep results, keys and the cron clock. Nil: the Keeper keeps the
	// messages of queues and nothing else.
	Tables Tables
	// Queues keep what has not ended. The Keeper is their only user: whoever
	// opens them anew ends it.
	Queues Queues
	// Lease is closed when this node is not the keeper any more; nil: it is for
	// as long as the Keeper is open.
	Lease <-chan struct{}

	AsyncSlots  int              // see Config
	KeepResults time.Duration    // see Config
	KeepCalls   int              // see Config
	Now         func() time.Time // see Config
	Logger      *slog.Logger     // see Config
}

func (c KeeperConfig) withDefaults(s Config) KeeperConfig {
	c.AsyncSlots = orDefault(c.AsyncSlots, s.AsyncSlots)
	c.KeepResults = orDefault(c.KeepResults, s.KeepResults)
	c.KeepCalls = orDefault(c.KeepCalls, s.KeepCalls)
	if c.Now == nil {
		c.Now = s.Now
	}
	if c.Logger == nil {
		c.Logger = s.Logger
	}
	return c
}

// Keeper keeps what has one writer in a cluster: asynchronous calls, the
// messages of queues with their consumers, and schedules. It runs them through
// a Service, which may place them on any node.
//
//	open -> draining -> closed
//	     -> lost     -> closed   the lease is gone, another Keeper has opened the
//	                             queues, or they cannot be written any more
//
// There may be two Keepers for a while, of which the older does not know yet
// that it is one no more, since its process was stopped or its network cut.
// What it does then is harmless: the queues refuse it; the end of a call is the
// first record of it, whoever wrote that; every other write of a table is made
// on condition that the entry is as it was read.
//
// All methods may be called at the same time.
type Keeper struct {
	s         *Service
	cfg       KeeperConfig
	token     string // of this Keeper alone: part of the names of chunks
	calls     *calls // nil: no tables
	queues    *queues
	schedules *schedules // nil: no tables

	base     context.Context // ends when Close is called or the Keeper is lost
	stop     context.CancelFunc
	loss     chan struct{}
	lossOnce sync.Once
	stopCat  func()
	pulls    sync.WaitGroup // what takes work in: ends when that is done, once the intake has ended
	work     sync.WaitGroup // everything else
	once     sync.Once
}

// OpenKeeper reads what is kept and begins to work on it. The Service must
// outlive the Keeper, and learns of it only by SetKeeper.
func OpenKeeper(ctx context.Context, s *Service, cfg KeeperConfig) (*Keeper, error) {
	if cfg.Queues == nil {
		return nil, lode.Errorf(lode.Invalid, "a keeper needs queues")
	}
	k := &Keeper{s: s, cfg: cfg.withDefaults(s.cfg), token: rand.Text()[:8], loss: make(chan struct{})}
	k.base, k.stop = context.WithCancel(context.Background())
	k.cfg.Queues = fenced{cfg.Queues, k}
	if err := k.open(ctx); err != nil {
		k.Close()
		return nil, err
	}
	k.stopCat = s.cfg.Catalog.Watch(k.changed)
	k.changed(0)
	if cfg.Lease != nil {
		k.work.Go(func() {
			select {
			case <-cfg.Lease:
				k.lose("its lease has ended")
			case <-k.base.Done():
			}
		})
	}
	return k, nil
}

// open reads durable state and begins the background work.
func (k *Keeper) open(ctx context.Context) (err error) {
	k.queues = newQueues(k)
	if k.cfg.Tables == nil {
		return nil
	}
	if k.calls, err = openCalls(ctx, k); err != nil {
		return err
	}
	if k.schedules, err = openSchedules(ctx, k); err != nil {
		return err
	}
	k.calls.start()
	k.schedules.start()
	return nil
}

// changed follows the catalog.
func (k *Keeper) changed(uint64) {
	k.queues.poke()
	if k.schedules != nil {
		k.schedules.poke()
	}
}

// halt ends the intake of work; what was taken goes on.
func (k *Keeper) halt() {
	if k.queues != nil {
		k.queues.stopIntake()
	}
	if k.calls != nil {
		k.calls.halt()
	}
	if k.schedules != nil {
		k.schedules.stopIntake()
	}
}

// Drain begins nothing any more, and waits until what it began has ended and
// is recorded, or ctx has. What is submitted meanwhile is stored, for the next
// Keeper.
func (k *Keeper) Drain(ctx context.Context) error {
	k.halt()
	quiet := make(chan struct{})
	k.work.Go(func() {
		k.pulls.Wait()
		close(quiet)
	})
	select {
	case <-quiet:
		return nil
	case <-ctx.Done():
		return lode.Errorf(lode.Deadline, "drain the keeper: attempts are still under way")
	}
}

// Close cancels what is under way, which comes again at the next Keeper, and
// waits for it. It may be called again.
func (k *Keeper) Close() error {
	k.once.Do(func() {
		k.halt()
		if k.stopCat != nil {
			k.stopCat()
		}
		k.stop()
		k.pulls.Wait()
		k.work.Wait()
	})
	return nil
}

// Lost is closed when this is not the keeper any more though nobody closed it:
// its lease has ended, or another has opened the queues. Its attempts are
// cancelled then, and come again at the other. It remains to be closed.
func (k *Keeper) Lost() <-chan struct{} { return k.loss }

func (k *Keeper) lose(why string) {
	k.lossOnce.Do(func() {
		if k.base.Err() == nil {
			k.cfg.Logger.Warn("this node keeps the asynchronous work no more", "why", why)
		}
		k.stop()
		close(k.loss)
	})
}

// ErrNotKeeper is in the error of what was asked of a Keeper that is none any
// more: what became of a write is not known, and the next keeper may be asked
// the same.
var ErrNotKeeper = errors.New("not the keeper")

func notKeeper() *lode.Error {
	return &lode.Error{Kind: lode.Unavailable, Detail: "this node keeps the asynchronous work no more", RetryAfter: time.Second, Err: ErrNotKeeper}
}

// storeWait bounds one operation of a Keeper on durable state.
const storeWait = 5 * time.Second

// bounded runs an operation on durable state for at most storeWait, and not
// beyond the life of the Keeper.
func (k *Keeper) bounded(ctx context.Context, doing string, do func(context.Context) error) error {
	octx, cancel := context.WithTimeout(ctx, storeWait)
	defer cancel()
	defer context.AfterFunc(k.base, cancel)()
	err := k.gone()
	if err == nil {
		err = do(octx)
	}
	switch {
	case err == nil:
		return nil
	case k.gone() != nil:
		return k.gone()
	case octx.Err() != nil && ctx.Err() == nil:
		e := lode.Errorf(lode.Unavailable, "%s: the storage did not answer within %s, and what became of it is not known: %w", doing, storeWait, err)
		e.RetryAfter = time.Second
		return e.WithHint("try again; with an idempotency key nothing is done twice")
	}
	return err
}

// gone is not nil once this is not the keeper.
func (k *Keeper) gone() error {
	if k.base.Err() != nil {
		return notKeeper()
	}
	return nil
}

// fenced are the queues of a Keeper: it is lost when they have another writer,
// or cannot be written for good.
type fenced struct {
	Queues
	k *Keeper
}

// check looks at the error of an operation on the queues: the refusal of a
// writer that was one ends its Keeper, and so does a writer that gave up.
func (f fenced) check(ctx context.Context, err error) error {
	if f.k.base.Err() != nil || alive(err) {
		return err
	}
	if lode.KindOf(err) == lode.Conflict {
		f.k.lose("another node has opened its queues")
		return notKeeper()
	}
	if ctx.Err() == nil && f.dead() {
		f.k.lose("its queues cannot be written any more: " + err.Error())
		return notKeeper()
	}
	return err
}

// alive reports whether err is one that queues give that can be written.
func alive(err error) bool {
	switch lode.KindOf(err) {
	case "", lode.Overloaded, lode.Full, lode.TooLarge, lode.Invalid, lode.NotFound, lode.Precondition:
		return true
	}
	return false
}

// dead tries to write nothing, which queues refuse only when they take nothing
// any more.
func (f fenced) dead() bool {
	ctx, cancel := context.WithTimeout(f.k.base, time.Second)
	defer cancel()
	_, err := f.Queues.Put(ctx)
	return !alive(err) && ctx.Err() == nil
}

func (f fenced) Put(ctx context.Context, items ...bus.Item) (int, error) {
	n, err := f.Queues.Put(ctx, items...)
	return n, f.check(ctx, err)
}

func (f fenced) Pull(ctx context.Context, queue string, n int, wait time.Duration) ([]Delivery, error) {
	ds, err := f.Queues.Pull(ctx, queue, n, wait)
	for i := range ds {
		ds[i] = fencedDelivery{ds[i], f}
	}
	return ds, f.check(ctx, err)
}

func (f fenced) Remove(ctx context.Context, queue, id string) (bus.Item, error) {
	it, err := f.Queues.Remove(ctx, queue, id)
	return it, f.check(ctx, err)
}

type fencedDelivery struct {
	Delivery
	f fenced
}

func (d fencedDelivery) Ack(ctx context.Context, then ...bus.Item) error {
	return d.f.check(ctx, d.Delivery.Ack(ctx, then...))
}

func (d fencedDelivery) Nak(ctx context.Context, delay time.Duration, note string) error {
	return d.f.check(ctx, d.Delivery.Nak(ctx, delay, note))
}

var (
	_ Queues   = fenced{}
	_ Delivery = fencedDelivery{}
)
