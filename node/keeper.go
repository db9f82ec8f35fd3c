package node

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"lode"
	"lode/bus"
	"lode/data/job"
	"lode/invoke"
	"lode/link"
)

// seat is where the keeper sits, and what this node has open while it is the
// keeper itself.
//
//	waiting -(it gets the lease)-> keeping -(it is lost, or given back)-> waiting
type seat struct {
	n     *Node
	table *bus.Table

	mu     sync.Mutex
	holder lode.NodeID    // "": not known
	keeper *invoke.Keeper // nil: this node is not the keeper
	jobs   *job.Jobs
	first  chan struct{} // closed when somebody is known to keep
	leave  context.CancelFunc
	stays  bool // it may be the keeper
}

// keeperTTL is how long the others wait for a keeper that has fallen silent.
const keeperTTL = 4 * time.Second

// openSeat begins to compete for the lease, and to follow who holds it. On a
// node that is alone it returns as the keeper.
func (n *Node) openSeat(ctx context.Context) error {
	t, err := n.bus.Table(ctx, "cluster")
	if err != nil {
		return err
	}
	s := &seat{n: n, table: t, first: make(chan struct{}), stays: true}
	n.seat = s
	n.invoke.SetKeeper(nil)
	ctx2, cancel := context.WithCancel(context.WithoutCancel(n.ctx)) // it outlives the doors: what they let in needs a keeper
	var running sync.WaitGroup
	running.Go(func() { s.compete(ctx2) })
	running.Go(func() { s.follow(ctx2) })
	n.opened("keeper", func(context.Context) error {
		cancel()
		running.Wait()
		return nil
	})
	if len(n.fleet.known()) > 1 {
		return nil
	}
	select {
	case <-s.first:
		return nil
	case <-ctx.Done():
		return lode.Errorf(lode.Cancelled, "start: %w", ctx.Err())
	}
}

// compete takes the lease whenever it is free.
func (s *seat) compete(ctx context.Context) {
	var warned time.Time // it is tried every few seconds, and said once a minute
	for ctx.Err() == nil {
		if !s.may() {
			wait(ctx, 200*time.Millisecond)
			continue
		}
		lease, err := s.table.Acquire(ctx, "keeper", string(s.n.fleet.id), keeperTTL)
		if err != nil {
			if ctx.Err() == nil && time.Since(warned) > time.Minute {
				warned = time.Now()
				s.n.cfg.Logger.Warn("the keeper's lease cannot be taken", "err", err)
			}
			wait(ctx, time.Second)
			continue
		}
		s.keep(ctx, lease)
	}
}

// wait sleeps, and returns early when ctx ends.
func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func (s *seat) may() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stays
}

// set says whether this node may be the keeper; if it is and may not, it gives
// the lease back.
func (s *seat) set(stays bool) {
	s.mu.Lock()
	s.stays = stays
	leave := s.leave
	s.mu.Unlock()
	if !stays && leave != nil {
		leave()
	}
}

// retire gives the lease to another node, if there is one that takes it.
func (s *seat) retire() {
	f := s.n.fleet
	for _, r := range f.members.List() {
		if r.Name != f.id && f.alive(r.Name) && !f.leaves(r.Name) {
			s.set(false)
			return
		}
	}
}

// keep is the keeper until the lease is lost, ctx ends or set says so.
func (s *seat) keep(ctx context.Context, lease *bus.Lease) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	log := s.n.cfg.Logger
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if err := lease.Release(ctx); err != nil {
			log.Warn("the keeper's lease cannot be given back: the others wait until it ends", "err", err)
		}
	}()
	began := time.Now()
	q, k, jobs, err := s.open(ctx, lease)
	if err != nil {
		if ctx.Err() == nil {
			log.Error("this node cannot be the keeper", "err", err)
			wait(ctx, time.Second)
		}
		return
	}
	s.mu.Lock()
	s.keeper, s.jobs, s.leave = k, jobs, cancel
	stays := s.stays
	s.mu.Unlock()
	s.known(s.n.fleet.id)
	log.Info("this node is the keeper", "epoch", lease.Epoch(), "opened", time.Since(began).Round(time.Millisecond))
	var tending sync.WaitGroup
	tending.Go(func() { s.n.tend(ctx) })
	if stays {
		select {
		case <-ctx.Done():
		case <-lease.Lost():
		case <-k.Lost():
		}
	}
	cancel()
	tending.Wait()
	select {
	case <-k.Lost():
	default:
		if lease.Valid() { // it takes what comes in meanwhile
			dctx, stop := context.WithTimeout(context.WithoutCancel(ctx), shutdownWait)
			k.Drain(dctx) // what is cut runs again at the next keeper
			stop()
		}
	}
	s.mu.Lock()
	s.keeper, s.jobs, s.leave, s.holder = nil, nil, nil, ""
	s.mu.Unlock()
	s.n.invoke.SetKeeper(nil)
	if err := errors.Join(jobs.Close(), k.Close(), q.Close()); err != nil {
		log.Warn("close what the keeper had open", "err", err)
	}
	log.Info("this node is not the keeper any more")
}

// open opens what has one writer.
func (s *seat) open(ctx context.Context, lease *bus.Lease) (*bus.Queues, *invoke.Keeper, *job.Jobs, error) {
	n := s.n
	q, err := n.bus.OpenQueues(ctx, "queues", bus.QueuesConfig{})
	if err != nil {
		return nil, nil, nil, err
	}
	k, err := invoke.OpenKeeper(ctx, n.invoke, invoke.KeeperConfig{Tables: invoke.BusTables(n.bus), Queues: invoke.BusQueues(q), Lease: lease.Lost()})
	if err != nil {
		return nil, nil, nil, errors.Join(err, q.Close())
	}
	jobs, err := n.newJobs(ctx)
	if err != nil {
		return nil, nil, nil, errors.Join(err, k.Close(), q.Close())
	}
	return q, k, jobs, nil
}

// follow follows who holds the lease.
func (s *seat) follow(ctx context.Context) {
	for ctx.Err() == nil {
		w, err := s.table.Watch(ctx, "keeper")
		if err != nil {
			wait(ctx, time.Second)
			continue
		}
		for {
			c, err := w.Next(ctx)
			if err != nil {
				break
			}
			if c.Op == bus.Set && c.Key == "keeper" {
				s.read(c.Value)
			}
		}
		w.Close()
		wait(ctx, 100*time.Millisecond)
	}
}

func (s *seat) read(record []byte) {
	var r struct {
		Holder lode.NodeID `json:"holder"`
		Free   bool        `json:"free"`
	}
	if json.Unmarshal(record, &r) != nil || r.Free {
		return
	}
	if r.Holder != s.n.fleet.id { // of itself a node knows more than the record says
		s.known(r.Holder)
	}
}

// known says who keeps from now on.
func (s *seat) known(node lode.NodeID) {
	s.mu.Lock()
	if s.keeper != nil && node != s.n.fleet.id || s.holder == node {
		s.mu.Unlock()
		return
	}
	s.holder = node
	k := s.keeper
	s.mu.Unlock()
	if node == s.n.fleet.id {
		s.n.invoke.SetKeeper(k)
	} else {
		s.n.invoke.SetKeeper(invoke.RemoteKeeper(func(ctx context.Context, r *link.Request, a link.Answer) error {
			return s.n.fleet.link.Call(ctx, node, r, a)
		}))
	}
	select {
	case <-s.first:
	default:
		close(s.first)
	}
}

// who is the keeper, as far as is known, and this node's jobs if it is.
func (s *seat) who() (lode.NodeID, *job.Jobs) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.holder, s.jobs
}

// serve answers what other nodes ask this one as the keeper.
func (s *seat) serve(ctx context.Context, in *link.Incoming) error {
	s.mu.Lock()
	k := s.keeper
	s.mu.Unlock()
	return k.HandleRemote(ctx, in) // of a nil one too: it says that it is none
}

// noKeeper says that nobody keeps for now.
func noKeeper() error {
	e := lode.Errorf(lode.Unavailable, "the cluster has no keeper at the moment")
	e.RetryAfter = time.Second
	return e.WithHint("try again in a second; if it stays so, lode nodes shows whether most bus members answer")
}

// noMajority says that nothing can be kept from here for now.
func noMajority() error {
	e := lode.Errorf(lode.Unavailable, "most members of the bus cannot be reached from this node: nothing new is kept until they can")
	e.RetryAfter = 2 * time.Second
	return e.WithHint("lode nodes shows who is lost; another node may be on the side that goes on")
}
