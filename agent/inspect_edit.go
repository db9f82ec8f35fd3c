package agent

import (
	"bytes"
	"context"
	"time"

	"lode"
	"lode/agent/journal"
	"lode/link"
)

// change changes an agent without its code, as a turn of its own, in its
// mailbox. what names the turn in listings.
func (p *partition) change(ctx context.Context, rev *lode.Revision, key, what string, f func(*turn) error) error {
	c := &lode.AgentCall{Namespace: p.id.Namespace, Kind: p.id.Kind, Key: key, Method: what}
	m := &message{c: c, turn: lode.TurnCall, id: p.s.ids.next(), rev: rev, fresh: true, edit: f}
	ctx, cancel := context.WithDeadline(ctx, m.deadline(p.s.started()))
	defer cancel()
	_, err := p.do(ctx, m)
	if isMoved(err) {
		return elsewhere(p.id)
	}
	return err
}

// changing is change for an agent of whose partition the key is.
func (s *Service) changing(ctx context.Context, ns lode.Namespace, kind lode.Name, key string, take bool, what string, f func(*turn) error) error {
	p, err := s.having(ctx, ns, kind, key, take)
	if err != nil {
		return err
	}
	rev, err := s.cfg.Catalog.Kind(ns, kind)
	if err != nil {
		return err
	}
	return p.change(ctx, rev, key, what, f)
}

// Remove removes an agent with all that is known of it, behind the turns that
// wait already; its sockets are closed. One that is not there is none that
// stays.
func (s *Service) Remove(ctx context.Context, ns lode.Namespace, kind lode.Name, key string) error {
	err := s.changing(ctx, ns, kind, key, false, "(remove)", func(t *turn) error {
		open, err := t.allSockets()
		if err != nil {
			return err
		}
		for id := range open {
			t.frame(id, lode.SocketFrame{Socket: id, Close: true, Code: 1001, Data: []byte("the agent was removed")})
		}
		t.remove = true
		return nil
	})
	if _, kerr := s.cfg.Catalog.Kind(ns, kind); kerr == nil && lode.KindOf(err) == lode.NotFound {
		return nil
	}
	return err
}

// Replay makes a dead message a message again, with a new id: it is dead no
// more by the same turn. NotFound: there is none of that number.
func (s *Service) Replay(ctx context.Context, ns lode.Namespace, kind lode.Name, key string, n uint64) (d DeadInfo, err error) {
	err = s.changing(ctx, ns, kind, key, false, "(replay)", func(t *turn) error {
		k := inN(t.a.prefix, partDead, n)
		b, ok, err := t.store.Get(k)
		if err != nil {
			return err
		}
		if !ok {
			return lode.Errorf(lode.NotFound, "%s has no dead message %d", t.a.address(), n).WithHint("lode agents dead %s lists them", t.a.address())
		}
		x, err := decodeDead(bytes.Clone(b))
		if err != nil {
			return err
		}
		d = x.info(n)
		t.extra = append(t.extra, journal.Change{Kind: journal.Delete, Key: k})
		return t.revive(&x.Letter)
	})
	return d, err
}

// revive sends a dead message anew, or has a dead timer fire.
func (t *turn) revive(l *letter) error {
	now, id := t.p.s.now()*1000, t.m.id+"-again"
	switch {
	case l.kind != t.p.id.Kind || l.To != t.a.key: // its receiver has never had it
		if _, err := t.p.s.cfg.Catalog.Kind(t.p.id.Namespace, l.kind); err != nil {
			return err
		}
		again := *l
		again.ID = id
		t.letters = append(t.letters, again)
	case l.timer != "" && l.timer[0] > 1:
		if _, set, err := t.timer(l.timer); err != nil {
			return err
		} else if set {
			return lode.Errorf(lode.Conflict, "the timer %s of %s is set anew", l.timer, t.a.address()).WithHint("clear it, or let it be: both cannot be")
		}
		t.setTimer(l.timer, &timer{Due: now, First: now, N: number(id), Method: l.Method, Type: l.Type, Body: l.Body, Caller: l.From})
	default:
		t.later(id, now, &lode.AgentCall{Method: l.Method, Head: typed(l.Type), Body: l.Body, Caller: l.From})
	}
	return nil
}

// typed are the header fields of arguments of a media type.
func typed(t string) []lode.Pair {
	if t == "" {
		return nil
	}
	return []lode.Pair{{Key: "content-type", Value: t}}
}

// later has the agent get a message of its own turn's making.
func (t *turn) later(id string, due int64, c *lode.AgentCall) {
	t.setTimer(waiting+id, &timer{Due: due, First: due, N: number(id), Method: c.Method, Type: headOf(c.Head, "content-type"), Body: c.Body, Caller: c.Caller, ID: id, Hash: hashOf(c)})
}

// Move gives a partition that this node has to another, "" the one with the
// fewest, and waits until that one serves it.
func (s *Service) Move(ctx context.Context, ns lode.Namespace, kind lode.Name, n int, to lode.NodeID) (Part, error) {
	rev, err := s.cfg.Catalog.Kind(ns, kind)
	if err != nil {
		return Part{}, err
	}
	id := journal.Partition{Namespace: ns, Kind: kind, N: n}
	if _, err := s.taken(ctx, id, rev); err != nil {
		return Part{}, err
	}
	if to == "" {
		best, ok := s.owners.Best(id)
		if !ok {
			return Part{}, lode.Errorf(lode.Conflict, "no other node can take partition %d of %s", n, kind).WithHint("lode nodes shows which nodes are ready; let another one join")
		}
		to = best
	}
	if to == s.cfg.Self {
		return s.part(ctx, id)
	}
	if err := s.owners.Move(ctx, id, to); err != nil {
		return Part{}, s.unmoved(id, to, err)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		err := s.askTake(ctx, to, id)
		if err == nil || !again(err) {
			v, perr := s.part(ctx, id)
			return v, cmpErr(err, perr)
		}
		if sleep(ctx, retryPause); ctx.Err() != nil {
			return Part{}, lode.Errorf(lode.Deadline, "partition %d of %s was given to node %s, which does not serve it yet", n, kind, to).WithHint("lode agents ls --partitions %s", kind)
		}
	}
}

// unmoved says why a partition was not moved.
func (s *Service) unmoved(id journal.Partition, to lode.NodeID, err error) error {
	switch lode.KindOf(err) {
	case lode.Precondition:
		return elsewhere(id)
	case lode.Unavailable:
		return lode.Errorf(lode.Conflict, "node %s cannot take partition %d of %s: there is no such node, it is lost, or it drains", to, id.N, id.Kind).WithHint("lode nodes lists the nodes and how they are")
	}
	return err
}

// askTake asks a node to serve a partition that is its to have, and waits until
// it does; moved: it does not.
func (s *Service) askTake(ctx context.Context, to lode.NodeID, id journal.Partition) error {
	e := newEnc(64)
	e.u(askServe)
	e.s(string(id.Namespace))
	e.s(string(id.Kind))
	e.u(uint64(id.N))
	head, _, err := s.cfg.Peers.Ask(ctx, to, e.b, nil)
	if err != nil {
		return err
	}
	_, err = result(head)
	return err
}

// serveTake is the other side of askTake.
func (s *Service) serveTake(ctx context.Context, in *link.Incoming, d *dec) error {
	id := journal.Partition{Namespace: lode.Namespace(d.s()), Kind: lode.Name(d.s()), N: int(d.u())}
	if !d.end() {
		return lode.Errorf(lode.Invalid, "a question of node %s cannot be read", in.From)
	}
	rev, err := s.kindSoon(ctx, id.Namespace, id.Kind)
	if err != nil {
		return err
	}
	if id.N >= partitionsOf(rev) {
		return lode.Errorf(lode.Invalid, "kind %s has no partition %d", id.Kind, id.N)
	}
	p, err := s.here(ctx, id)
	if err != nil {
		return err
	}
	if p == nil {
		return replyMoved(in)
	}
	e := newEnc(2)
	e.u(resultDone)
	return in.Reply(e.b, nil)
}
