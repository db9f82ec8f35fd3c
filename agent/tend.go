package agent

import (
	"context"
	"math"
	"time"

	"lode"
	"lode/agent/journal"
	"lode/agent/state"
)

const (
	tendEvery = time.Second
	snapAfter = 10 * time.Minute // a journal that is not full is trimmed too
)

// tend takes agents out of memory, and keeps the journal short, until ctx ends.
func (s *Service) tend(ctx context.Context) {
	last, looked := time.Now(), time.Now()
	for {
		sleep(ctx, tendEvery)
		if ctx.Err() != nil {
			return
		}
		now := time.Now()
		short := s.cfg.Short != nil && s.cfg.Short()
		for _, p := range s.owned() {
			idle := s.idleOf(p)
			if short {
				idle = 0
			}
			p.sweep(now, idle)
		}
		if now.Sub(looked) >= eraseEvery {
			looked = now
			s.eraseGone(ctx)
		}
		s.mu.Lock()
		t := s.term
		s.mu.Unlock()
		if n := s.written(t); n == 0 || n < s.cfg.Trim && now.Sub(last) < snapAfter {
			continue
		}
		last = now
		if err := s.Trim(ctx); err != nil && ctx.Err() == nil {
			s.log().Warn("the journal of this node's agents cannot be trimmed", "err", err)
		}
	}
}

// written is how many bytes of changes a term has written since the last trim.
func (s *Service) written(t *term) int64 {
	if t == nil {
		return 0
	}
	return t.bytes.Load()
}

// Passivate takes every agent out of memory that has nothing under way, as when
// memory is short.
func (s *Service) Passivate() {
	for _, p := range s.owned() {
		p.sweep(time.Now(), 0)
	}
}

// Trim takes snapshots of this node's partitions and removes the part of its
// journal that they make needless. It is done from time to time without being
// asked for.
func (s *Service) Trim(ctx context.Context) error {
	s.mu.Lock()
	t := s.term
	s.mu.Unlock()
	if t == nil {
		return lode.Errorf(lode.Unavailable, "this node has no journal of agents at the moment")
	}
	s.trimming.Lock()
	defer s.trimming.Unlock()
	return s.trim(ctx, t)
}

// idleOf is how long agents of a partition stay in memory.
func (s *Service) idleOf(p *partition) time.Duration {
	rev, err := s.cfg.Catalog.Kind(p.id.Namespace, p.id.Kind)
	if err != nil || rev.Function.Agent.Idle <= 0 {
		return s.cfg.Idle
	}
	return rev.Function.Agent.Idle
}

// trim takes snapshots of what the front of the journal is needed for, and
// removes that front. The order is what makes it safe: blobs are durable, then
// the entry that names them, then the front goes.
func (s *Service) trim(ctx context.Context, t *term) error {
	t.bytes.Store(0)
	before := t.kept.Load()
	for _, p := range s.owned() {
		began := time.Now()
		if err := s.snapshot(ctx, t, p); err != nil {
			return err
		}
		sleep(ctx, min(4*time.Since(began), 200*time.Millisecond)) // its syncs are in the way of the journal's
	}
	if s.owners.Pinned() {
		return nil
	}
	floor := uint64(math.MaxUint64)
	s.mu.Lock()
	for id, take := range s.takes { // those that are only being taken, too
		if k := s.held[id]; k.journal == s.cfg.Self {
			take = k.from
		}
		floor = min(floor, take)
	}
	s.mu.Unlock()
	if floor == math.MaxUint64 || floor <= t.floor {
		return nil
	}
	if err := s.reached(pointTrim); err != nil {
		return err
	}
	if err := t.log.Trim(ctx, floor); err != nil {
		return err
	}
	t.floor = floor
	t.kept.Add(-before)
	return s.reached(pointTrimmed)
}

// snapshot saves a partition, unless nothing has changed since it was saved,
// and writes down where.
func (s *Service) snapshot(ctx context.Context, t *term, p *partition) error {
	s.mu.Lock()
	k := s.held[p.id]
	s.mu.Unlock()
	p.mu.Lock()
	open := p.open
	p.mu.Unlock()
	if !open {
		return nil
	}
	pos, err := s.db.Applied(s.cfg.Self)
	if err != nil {
		return err
	}
	manifest := k.manifest
	if manifest.IsZero() || k.journal != s.cfg.Self || p.last.Load() > k.from {
		if err := s.reached(pointSave); err != nil {
			return err
		}
		manifest, _, err = p.part.Save(ctx, s.cfg.Blobs, k.manifest, state.Mark{Epoch: p.epoch, Journal: s.cfg.Self, Pos: pos})
		if lode.KindOf(err) == lode.Conflict {
			return nil // it is being moved
		}
		if err != nil {
			return err
		}
	}
	if err := s.reached(pointSaved); err != nil {
		return err
	}
	done := make(chan error, 1)
	t.w.Append(&journal.Entry{Op: journal.Snap, Epoch: p.epoch, Partition: p.id, Manifest: manifest, Covers: pos}, func(_ uint64, err error) { done <- err })
	if err := <-done; err != nil {
		return err
	}
	if err := s.reached(pointSnapped); err != nil {
		return err
	}
	n := kept{manifest: manifest, from: pos, settled: k.settled && k.journal == s.cfg.Self, journal: s.cfg.Self}
	if !n.settled {
		if err := s.owners.Settled(ctx, p.id); err != nil {
			s.log().Warn("the base of a partition is kept", "partition", p.id, "err", err)
		} else {
			n.settled = true
		}
	}
	s.mu.Lock()
	s.held[p.id] = n
	s.mu.Unlock()
	return s.reached(pointSettled)
}

// Manifests are the newest snapshots of the partitions that this node has, which
// must not be swept.
func (s *Service) Manifests() []lode.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []lode.Digest
	for _, k := range s.held {
		if !k.manifest.IsZero() {
			out = append(out, k.manifest)
		}
	}
	return out
}
