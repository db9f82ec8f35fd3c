package agent

import (
	"context"
	"encoding/binary"
	"sync"

	"lode"
	"lode/agent/journal"
)

// subscriber waits for events of one agent.
type subscriber struct {
	mu   sync.Mutex
	over bool
	wake chan struct{}
}

// tell says that there are events.
func (s *subscriber) tell(evs []lode.AgentEvent) {
	if len(evs) == 0 {
		return
	}
	s.signal()
}

func (s *subscriber) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// end says that the agent is here no more.
func (s *subscriber) end() {
	s.mu.Lock()
	s.over = true
	s.mu.Unlock()
	s.signal()
}

func (s *subscriber) ended() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.over
}

// events gives what an agent has emitted behind n; where there is nothing it
// waits, until there is or ctx ends. Events that are not kept any more are left
// out. last is the number to go on behind.
func (p *partition) events(ctx context.Context, key string, n uint64) (out []lode.AgentEvent, err error) {
	s := &subscriber{wake: make(chan struct{}, 1)}
	p.mu.Lock()
	if !p.open {
		p.mu.Unlock()
		return nil, &moved{}
	}
	a := p.activate(key)
	if a.subs == nil {
		a.subs = map[*subscriber]bool{}
	}
	a.subs[s] = true
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(a.subs, s)
		a.used = p.s.started()
		p.mu.Unlock()
	}()
	for {
		if out, err = p.eventsAfter(a.prefix, n); err != nil || len(out) > 0 {
			return out, err
		}
		select {
		case <-s.wake:
			if s.ended() {
				return nil, &moved{}
			}
		case <-ctx.Done():
			return nil, nil
		}
	}
}

// eventsAfter reads kept events behind n, at most 256.
func (p *partition) eventsAfter(prefix []byte, n uint64) (out []lode.AgentEvent, err error) {
	base := in(prefix, partEvent, "")
	lerr := p.part.List(inN(prefix, partEvent, n+1), after(base), false, func(k, v []byte) bool {
		if len(k) != len(base)+8 {
			return true
		}
		ev, derr := decodeEvent(binary.BigEndian.Uint64(k[len(base):]), append([]byte(nil), v...))
		if derr != nil {
			err = derr
			return false
		}
		out = append(out, ev)
		return len(out) < 256
	})
	return out, cmpErr(err, lerr)
}

// Events calls f for what an agent has emitted behind a number, as far as it is
// kept, and then for each event as it becomes durable, until ctx ends or f
// fails. It goes on when the agent moves.
func (s *Service) Events(ctx context.Context, ns lode.Namespace, kind lode.Name, key string, behind uint64, f func(lode.AgentEvent) error) error {
	rev, err := s.cfg.Catalog.Kind(ns, kind)
	if err != nil {
		return err
	}
	id := journal.Partition{Namespace: ns, Kind: kind, N: lode.PartitionOf(key, partitionsOf(rev))}
	for ctx.Err() == nil {
		evs, err := s.eventsOf(ctx, id, key, behind)
		if err != nil && !again(err) {
			return err
		}
		if err != nil {
			sleep(ctx, retryPause)
			continue
		}
		for _, ev := range evs {
			if err := f(ev); err != nil {
				return err
			}
			behind = ev.N
		}
	}
	return nil
}
