package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"lode"
	"lode/agent/journal"
	"lode/link"
)

// retryPause is how long a call waits before it asks again who has an agent.
const retryPause = 20 * time.Millisecond

// idMaker makes ids of turns that nobody else makes.
type idMaker struct {
	prefix string
	n      atomic.Uint64
}

func (m *idMaker) init() {
	var b [9]byte
	rand.Read(b[:]) // never fails
	m.prefix = hex.EncodeToString(b[:]) + "-"
}

func (m *idMaker) next() string { return m.prefix + strconv.FormatUint(m.n.Add(1), 36) }

// maxDepth is how many calls a chain may have.
const maxDepth = 64

// Call has an agent do something, wherever it is, and returns its answer. What
// the platform has to repeat takes effect once. A refusal of the agent (a
// status of 400 or more) is an answer; an error is Lode's own, or Crashed.
func (s *Service) Call(ctx context.Context, c *lode.AgentCall) (*lode.AgentReply, error) {
	m, err := s.message(c)
	if err != nil {
		return nil, err
	}
	m.until = m.deadline(s.started())
	return s.route(ctx, m)
}

// Post has an agent do something later, or as soon as it can: when it returns
// the message is durable. Its id names the turn.
func (s *Service) Post(ctx context.Context, c *lode.AgentCall) (string, error) {
	m, err := s.message(c)
	if err != nil {
		return "", err
	}
	if m.turn != lode.TurnCall {
		return "", lode.Errorf(lode.Invalid, "%s only reads: nobody would learn what it says", c.Method)
	}
	m.later(s.now()*1000 + c.Delay.Microseconds())
	m.until = s.started().Add(30 * time.Second)
	if _, err := s.route(ctx, m); err != nil {
		return "", err
	}
	return m.id, nil
}

// message checks a call, and completes it.
func (s *Service) message(c *lode.AgentCall) (*message, error) {
	rev, err := s.cfg.Catalog.Kind(c.Namespace, c.Kind)
	if err != nil {
		return nil, err
	}
	if c.Key == "" || len(c.Key) > 512 {
		return nil, lode.Errorf(lode.Invalid, "the key of an agent has 1 to 512 bytes, not %d", len(c.Key))
	}
	if len(c.ID) > 256 {
		return nil, lode.Errorf(lode.Invalid, "an idempotency key has at most 256 bytes, not %d", len(c.ID))
	}
	if c.Depth >= maxDepth {
		return nil, lode.Errorf(lode.Conflict, "the chain of calls to %s/%s is %d deep", c.Kind, c.Key, c.Depth).WithHint("this looks like a cycle of agents that call each other")
	}
	m := &message{c: c, turn: c.Turn, id: c.ID, rev: rev}
	if m.turn == "" {
		m.turn = lode.TurnCall
	}
	if m.turn == lode.TurnCall {
		if err := checkMethod(rev, c); err != nil {
			return nil, err
		}
		if slices.Contains(rev.Function.Agent.Read, c.Method) {
			m.turn = lode.TurnRead
		}
	}
	if m.id == "" {
		m.id, m.fresh = s.ids.next(), true
	}
	m.hash = hashOf(c)
	return m, nil
}

// checkMethod refuses what the code does not have, before anything runs.
func checkMethod(rev *lode.Revision, c *lode.AgentCall) error {
	spec := rev.Function.Agent
	if len(spec.Methods) == 0 || slices.Contains(spec.Methods, c.Method) {
		return nil
	}
	for _, m := range spec.Methods { // Go's own spelling of it
		if len(m) == len(c.Method) && m[1:] == c.Method[1:] && m[0]-'a' == c.Method[0]-'A' {
			c.Method = m
			return nil
		}
	}
	err := lode.Errorf(lode.NotFound, "kind %s has no method %q", c.Kind, c.Method)
	list := ""
	for i, m := range spec.Methods {
		if i > 0 {
			list += ", "
		}
		if list += m; slices.Contains(spec.Read, m) {
			list += " (read)"
		}
	}
	if near := lode.Suggest(c.Method, spec.Methods); near != "" {
		return err.WithHint("did you mean %q? methods: %s", near, list)
	}
	return err.WithHint("methods: %s", list)
}

// route brings a message to whoever has its agent, until it is answered or
// nobody waits any more.
func (s *Service) route(ctx context.Context, m *message) (*lode.AgentReply, error) {
	id := journal.Partition{Namespace: m.c.Namespace, Kind: m.c.Kind, N: lode.PartitionOf(m.c.Key, partitionsOf(m.rev))}
	maybe := false // it may have taken effect
	began := s.started()
	for try := 0; ; try++ {
		r, err := s.attempt(ctx, id, m, try)
		switch {
		case err == nil:
			return r, nil
		case !again(err):
			return nil, err
		}
		maybe = maybe || !isMoved(err) && !errors.Is(err, link.ErrNotSent) && !errors.Is(err, link.ErrRefused)
		n := *m
		m = &n
		m.fresh = m.fresh && !maybe
		sleep(ctx, min(time.Millisecond<<min(try, 8), 200*time.Millisecond))
		if now := s.started(); ctx.Err() == nil && s.ctx.Err() == nil && now.Before(m.until) && (maybe || now.Sub(began) < ownerless) {
			continue
		}
		if maybe {
			return nil, unknown(m.id)
		}
		if s.ctx.Err() != nil {
			return nil, lode.Errorf(lode.Unavailable, "this node closes its agents; %s did not begin", m.c.Method)
		}
		if s.started().Before(m.until) && ctx.Err() == nil {
			return nil, nobodyHas(m)
		}
		e := lode.Errorf(lode.Deadline, "nobody had %s/%s in time: %w", m.c.Kind, m.c.Key, err)
		return nil, e.WithHint("lode agents ls and lode nodes show whether its node is lost")
	}
}

// ownerless is how long a call waits for somebody to have its agent: longer
// than a lost node is replaced in, with a slow bus too.
const ownerless = 15 * time.Second

// nobodyHas is the error of a call to an agent whose node is lost, where no
// other can take it.
func nobodyHas(m *message) error {
	e := lode.Errorf(lode.Unavailable, "no node has %s/%s at the moment", m.c.Kind, m.c.Key)
	e.RetryAfter = 5 * time.Second
	return e.WithHint("its node is lost and no other can take it over: lode nodes says what a failure costs")
}

// again reports whether a call may be made again after err, with the same id.
func again(err error) bool {
	return isMoved(err) || isUnsure(err) || errors.Is(err, link.ErrNotSent) || errors.Is(err, link.ErrRefused) || errors.Is(err, link.ErrLost)
}

// attempt asks whoever has the partition, once.
func (s *Service) attempt(ctx context.Context, id journal.Partition, m *message, try int) (*lode.AgentReply, error) {
	if p := s.partition(id); p != nil { // the way of most calls: no look-up, no context
		s.callers.note(s.cfg.Self, id)
		out, err := p.do(ctx, m)
		return s.answer(m, out, err)
	}
	ctx, cancel := context.WithDeadline(ctx, m.until)
	defer cancel()
	node, err := s.find(ctx, id, try)
	if err != nil {
		return nil, err
	}
	if node != s.cfg.Self {
		return s.ask(ctx, node, m)
	}
	p := s.partition(id)
	if p == nil {
		return nil, &moved{}
	}
	out, err := p.do(ctx, m)
	return s.answer(m, out, err)
}

// find names the node that has a partition.
func (s *Service) find(ctx context.Context, id journal.Partition, try int) (lode.NodeID, error) {
	if o, ok := s.owners.Lookup(id); ok && o.Node == s.cfg.Self && s.partition(id) != nil {
		return o.Node, nil
	} else if ok && o.Node != s.cfg.Self && try == 0 && s.cfg.Alive(o.Node) {
		return o.Node, nil
	}
	node, err := s.owners.Ensure(ctx, id)
	if err != nil && ctx.Err() != nil {
		return "", lode.Errorf(lode.Deadline, "nobody had %s in time: %w", id, err)
	}
	if k := lode.KindOf(err); k == lode.Unavailable {
		return "", &moved{}
	}
	return node, err
}

// answer makes the reply of an outcome.
func (s *Service) answer(m *message, out outcome, err error) (*lode.AgentReply, error) {
	if err != nil {
		a, ok := errors.AsType[*answered](err)
		if !ok {
			return nil, err
		}
		out = a.out
	}
	return &lode.AgentReply{Status: out.Status, Head: out.Head, Body: out.Body, ID: m.id, Node: s.cfg.Self, Repeated: out.repeated}, nil
}
