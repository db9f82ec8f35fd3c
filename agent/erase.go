package agent

import (
	"context"
	"encoding/binary"
	"time"

	"lode"
	"lode/agent/journal"
)

// A kind that was removed for ever, or not brought back in time, leaves agents
// behind. Whoever owns a partition erases them: as an entry of the journal, so
// that it holds wherever the partition goes. What remains is how far the
// partition's channels are, since the partitions at their other ends go on
// counting. A kind of the same name that is deployed later finds nothing: a
// partition keeps, under bornKey, when the kind was born whose agents it has,
// and no turn begins before that is as the kind says.
var bornKey = []byte{spaceBorn}

// spaceBorn is the space of bornKey.
const spaceBorn = 'b'

// eraseEvery is how often a node looks for agents of kinds that are gone.
const eraseEvery = 10 * time.Second

// suits sees to it that what a partition has is of the kind that rev is of.
func (s *Service) suits(ctx context.Context, p *partition, rev *lode.Revision) error {
	if s.cfg.Kept == nil || p.born.Load() == rev {
		return nil
	}
	p.erasing.Lock()
	defer p.erasing.Unlock()
	if p.born.Load() == rev {
		return nil
	}
	born, kept := s.cfg.Kept(p.id.Namespace, p.id.Kind)
	if !kept {
		return lode.Errorf(lode.NotFound, "kind %s was removed", p.id.Kind)
	}
	was, known, err := p.bornAs()
	if err != nil {
		return err
	}
	switch {
	case known && was > born:
		e := lode.Errorf(lode.Unavailable, "this node has not heard yet of the newest kind %s", p.id.Kind)
		e.RetryAfter = 100 * time.Millisecond
		return e
	case known && was < born:
		if err := p.erase(ctx, born); err != nil {
			return err
		}
	case !known:
		p.mu.Lock()
		open := p.open
		if open {
			p.born.Store(rev)
			p.note(p.birth(born), func() { p.born.CompareAndSwap(rev, nil) })
		}
		p.mu.Unlock()
		if !open {
			return &moved{}
		}
		return nil
	}
	p.born.Store(rev)
	return nil
}

// bornAs is when the kind was born whose agents the partition has.
func (p *partition) bornAs() (born uint64, known bool, err error) {
	b, ok, err := p.part.Get(bornKey)
	if err != nil || !ok {
		return 0, false, err
	}
	if len(b) != 8 {
		return 0, false, damaged("the birth")
	}
	return binary.BigEndian.Uint64(b), true, nil
}

func (p *partition) birth(born uint64) *builder {
	b := &builder{}
	b.set(bornKey, binary.BigEndian.AppendUint64(nil, born))
	return b
}

// erase removes all agents of the partition, and waits until that is durable;
// p.erasing is held. Turns that run change nothing.
func (p *partition) erase(ctx context.Context, born uint64) error {
	b := p.birth(born)
	for _, space := range []byte{spaceAgent, spaceDue, spaceReply} {
		b.cut([]byte{space}, []byte{space + 1})
	}
	done := make(chan error, 1)
	p.mu.Lock()
	if !p.open {
		p.mu.Unlock()
		return &moved{}
	}
	p.born.Store(nil)
	p.forget()
	p.pending++
	p.w.Append(&journal.Entry{Op: journal.Note, Epoch: p.epoch, Partition: p.id, Changes: b.changes}, func(_ uint64, err error) {
		p.mu.Lock()
		p.forget() // what has begun meanwhile has seen what is gone
		p.counts.Store(nil)
		p.pending--
		p.settled()
		p.mu.Unlock()
		done <- err
	})
	p.mu.Unlock()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return lode.Errorf(lode.Deadline, "the agents of an earlier kind %s are still being erased", p.id.Kind)
	}
}

// forget drops what is known of agents beside what is stored; p.mu is held.
func (p *partition) forget() {
	p.gen++
	for _, a := range p.agents {
		a.over, a.cut, a.gone, a.sandbox, a.known = nil, 0, 0, 0, false
	}
}

// eraseGone erases agents of kinds that are kept no more, in the partitions of
// this node.
func (s *Service) eraseGone(ctx context.Context) {
	if s.cfg.Kept == nil {
		return
	}
	gone := map[*partition]*lode.Revision{}
	for id, p := range s.owned() {
		rev, err := s.cfg.Catalog.Kind(id.Namespace, id.Kind)
		if err == nil {
			if err := s.suits(ctx, p, rev); err != nil {
				s.log().Debug("agents of an earlier kind are not erased yet", "partition", id, "err", err)
			}
			continue
		}
		if _, kept := s.cfg.Kept(id.Namespace, id.Kind); !kept && p.peopled() {
			gone[p] = p.born.Load()
		}
	}
	if len(gone) == 0 {
		return
	}
	kept, err := s.cfg.Stored(ctx)
	if err != nil {
		s.log().Debug("which kinds are kept is not known", "err", err)
		return
	}
	for p, born := range gone {
		if kept(p.id.Namespace, p.id.Kind) {
			continue
		}
		if err := s.eraseOne(ctx, p, born); err != nil && ctx.Err() == nil && !isMoved(err) {
			s.log().Warn("the agents of a removed kind are not erased", "partition", p.id, "err", err)
		}
	}
}

// eraseOne erases a partition whose kind was not kept when its agents were of
// the kind of rev, unless they are of another one by now.
func (s *Service) eraseOne(ctx context.Context, p *partition, rev *lode.Revision) error {
	p.erasing.Lock()
	defer p.erasing.Unlock()
	if p.born.Load() != rev {
		return nil
	}
	was, _, err := p.bornAs()
	if err != nil {
		return err
	}
	return p.erase(ctx, was)
}

// peopled reports whether the partition has agents.
func (p *partition) peopled() bool {
	_, ok, err := p.nextAgent("")
	return ok && err == nil
}
