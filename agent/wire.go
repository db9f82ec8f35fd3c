package agent

import (
	"context"
	"time"

	"lode"
	"lode/agent/journal"
	"lode/link"
)

// LinkMethod is the method of link by which nodes ask each other for agents.
const LinkMethod = "agent"

// What one node asks another. The head of a call of link is a version, the
// number, and fields (codec.go); the body is the body of the message. The head
// of an answer is a version, a result, and fields.
//
//	request    fields                                        body       reply's fields               body
//	call       namespace, kind, key, turn, method, path, id, arguments  status, head, id, repeated   the answer's
//	           given, fresh, head, caller, chain, trace, depth
//	post       as call, and the time (Unix us)               arguments  as call
//	deliver    namespace, kind, n of the sender, of the      messages   session, mark                 -
//	           receiver, mark, count
//	events     namespace, kind, key, behind                  -          -                            count, events
//	serve      namespace, kind, n                            -          -                            -
//	warm       namespace, kind, n, manifest                  -          -                            -
const (
	askCall    = 1
	askPost    = 2
	askDeliver = 3
	askEvents  = 4
	askServe   = 5
	askWarm    = 6

	resultDone   = 0
	resultMoved  = 1 // nothing happened here
	resultUnsure = 2 // it may have
)

// ask asks another node.
func (s *Service) ask(ctx context.Context, to lode.NodeID, m *message) (*lode.AgentReply, error) {
	e := newEnc(256)
	what := uint64(askCall)
	if m.post {
		what = askPost
	}
	e.u(what)
	c := m.c
	e.s(string(c.Namespace))
	e.s(string(c.Kind))
	e.s(c.Key)
	e.s(string(m.turn))
	e.s(c.Method)
	e.s(c.Path)
	e.s(m.id)
	e.flag(c.Given)
	e.flag(m.fresh)
	e.pairs(c.Head)
	e.s(c.Caller)
	e.list(c.Chain)
	e.s(c.Trace)
	e.u(uint64(c.Depth))
	if m.post {
		e.i(m.at)
	}
	head, body, err := s.cfg.Peers.Ask(ctx, to, e.b, c.Body)
	if err != nil {
		return nil, err
	}
	d, err := result(head)
	if err != nil {
		return nil, err
	}
	r := &lode.AgentReply{Status: int(d.u()), Head: d.pairs(), ID: d.s(), Repeated: d.flag(), Body: body, Node: to}
	if !d.end() {
		return nil, unreadable(to)
	}
	return r, nil
}

func unreadable(from lode.NodeID) error {
	return lode.Errorf(lode.Internal, "node %s gave an answer about an agent that cannot be read", from).WithHint("the nodes run different versions of Lode: `lode nodes` shows them")
}

// result reads the begin of an answer.
func result(head []byte) (*dec, error) {
	d := newDec(head)
	switch d.u() {
	case resultDone:
		return d, nil
	case resultMoved:
		return nil, &moved{}
	case resultUnsure:
		return nil, &unsure{errElsewhere}
	}
	return nil, lode.Errorf(lode.Internal, "an answer about an agent has a result that is not known")
}

var errElsewhere = lode.Errorf(lode.Unavailable, "the node that had the agent has lost it")

// HandleRemote answers what another node asks. node makes it the handler of
// LinkMethod.
func (s *Service) HandleRemote(ctx context.Context, in *link.Incoming) error {
	d := newDec(in.Head)
	switch d.u() {
	case askCall, askPost:
		return s.serveCall(ctx, in)
	case askDeliver:
		return s.serveDeliver(ctx, in, d)
	case askEvents:
		return s.serveEvents(ctx, in, d)
	case askWarm:
		return s.serveWarm(ctx, in, d)
	case askServe:
		return s.serveTake(ctx, in, d)
	}
	return lode.Errorf(lode.Invalid, "node %s asks something about agents that this one does not know", in.From)
}

// replyMoved says that nothing happened here.
func replyMoved(in *link.Incoming) error { return replyOnly(in, resultMoved) }

func replyOnly(in *link.Incoming, result uint64) error {
	e := newEnc(2)
	e.u(result)
	return in.Reply(e.b, nil)
}

// parseCall reads a call or a post.
func (s *Service) parseCall(head, body []byte) (*message, error) {
	d := newDec(head)
	what := d.u()
	c := &lode.AgentCall{Namespace: lode.Namespace(d.s()), Kind: lode.Name(d.s()), Key: d.s(), Body: body}
	m := &message{c: c, turn: lode.TurnKind(d.s())}
	c.Method, c.Path = d.s(), d.s()
	m.id = d.s()
	c.Given, m.fresh = d.flag(), false
	d.flag()
	c.Head, c.Caller, c.Chain, c.Trace, c.Depth = d.pairs(), d.s(), d.list(), d.s(), int(d.u())
	m.post = what == askPost
	if m.post {
		m.at = d.i()
	}
	if !d.end() || c.Key == "" || len(c.Key) > 512 || m.id == "" {
		return nil, lode.Errorf(lode.Invalid, "a call of another node cannot be read")
	}
	m.hash = hashOf(c)
	return m, nil
}

func (s *Service) serveCall(ctx context.Context, in *link.Incoming) error {
	body, err := whole(in)
	if err != nil {
		return err
	}
	m, err := s.parseCall(in.Head, body)
	if err != nil {
		return err
	}
	if m.rev, err = s.kindSoon(ctx, m.c.Namespace, m.c.Kind); err != nil {
		return err
	}
	if m.post {
		m.later(m.at)
	}
	id := journal.Partition{Namespace: m.c.Namespace, Kind: m.c.Kind, N: lode.PartitionOf(m.c.Key, partitionsOf(m.rev))}
	p, err := s.here(ctx, id)
	if err != nil {
		return err
	}
	if p == nil {
		return replyMoved(in)
	}
	s.callers.note(in.From, id)
	if m.until, _ = ctx.Deadline(); !m.until.IsZero() {
		m.c.Deadline = m.until // the turn is of no use later either
	}
	out, err := p.do(ctx, m)
	r, err := s.answer(m, out, err)
	if isMoved(err) {
		return replyMoved(in)
	}
	if isUnsure(err) {
		return replyOnly(in, resultUnsure)
	}
	if err != nil {
		return err
	}
	e := newEnc(64)
	e.u(resultDone)
	e.u(uint64(r.Status))
	e.pairs(r.Head)
	e.s(r.ID)
	e.flag(r.Repeated)
	return in.Reply(e.b, r.Body)
}

// here is a partition that this node has, or is to take; nil: another has it.
func (s *Service) here(ctx context.Context, id journal.Partition) (*partition, error) {
	if p := s.partition(id); p != nil {
		return p, nil
	}
	select {
	case <-s.ready:
	default:
		return nil, nil // it starts
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	node, err := s.owners.Ensure(ctx, id)
	if err != nil || node != s.cfg.Self {
		return nil, nil //nolint:nilerr // who asks looks again
	}
	return s.partition(id), nil
}

// kindSoon finds a kind; one that this node has not heard of yet is waited for.
func (s *Service) kindSoon(ctx context.Context, ns lode.Namespace, kind lode.Name) (*lode.Revision, error) {
	for until := time.Now().Add(2 * time.Second); ; {
		rev, err := s.cfg.Catalog.Kind(ns, kind)
		if err == nil || lode.KindOf(err) != lode.NotFound || ctx.Err() != nil || time.Now().After(until) {
			return rev, err
		}
		sleep(ctx, 20*time.Millisecond)
	}
}

// whole is the body of a call.
func whole(in *link.Incoming) ([]byte, error) {
	if in.Stream == nil {
		return in.Body, nil
	}
	return readAll(in.Whole(), 16<<20)
}

// deliver brings messages of a channel to the partition that they are for, and
// says how far it has consumed the channel.
func (s *Service) deliver(ctx context.Context, from journal.Partition, to peer, mark uint64, ls []letter) (receipt, error) {
	id := to.in(from.Namespace)
	if _, err := s.cfg.Catalog.Kind(id.Namespace, id.Kind); err != nil {
		return receipt{}, err
	}
	node, err := s.find(ctx, id, 0)
	if err != nil {
		return receipt{}, err
	}
	if node == s.cfg.Self {
		p := s.partition(id)
		if p == nil {
			return receipt{}, &moved{}
		}
		return p.receive(ctx, peer{from.Kind, from.N}, mark, ls)
	}
	e := newEnc(64)
	e.u(askDeliver)
	e.s(string(from.Namespace))
	e.s(string(from.Kind))
	e.u(uint64(from.N))
	e.s(string(to.kind))
	e.u(uint64(to.n))
	e.u(mark)
	e.u(uint64(len(ls)))
	body := &enc{}
	for i := range ls {
		body.u(ls[i].N)
		ls[i].encode(body)
	}
	head, _, err := s.cfg.Peers.Ask(ctx, node, e.b, body.b)
	if err != nil {
		return receipt{}, err
	}
	d, err := result(head)
	if err != nil {
		return receipt{}, err
	}
	r := receipt{d.u(), d.u()}
	if !d.end() {
		return receipt{}, unreadable(node)
	}
	return r, nil
}

func (s *Service) serveDeliver(ctx context.Context, in *link.Incoming, d *dec) error {
	ns := lode.Namespace(d.s())
	from := peer{lode.Name(d.s()), int(d.u())}
	id := journal.Partition{Namespace: ns, Kind: lode.Name(d.s()), N: int(d.u())}
	mark, n := d.u(), d.u()
	body, err := whole(in)
	if err != nil {
		return err
	}
	if !d.end() || n > windowMax || n > uint64(len(body)) {
		return lode.Errorf(lode.Invalid, "a delivery of node %s cannot be read", in.From)
	}
	b := &dec{journal.Reader{B: body}}
	ls := make([]letter, 0, n)
	for range n {
		num := b.u()
		l := decodeLetterFrom(b)
		l.N = num
		ls = append(ls, l)
	}
	if !b.end() {
		return lode.Errorf(lode.Invalid, "a delivery of node %s cannot be read", in.From)
	}
	if _, err := s.kindSoon(ctx, ns, id.Kind); err != nil {
		return err
	}
	p, err := s.here(ctx, id)
	if err != nil {
		return err
	}
	if p == nil {
		return replyMoved(in)
	}
	r, err := p.receive(ctx, from, mark, ls)
	if isMoved(err) {
		return replyMoved(in)
	}
	if err != nil {
		return err
	}
	e := newEnc(32)
	e.u(resultDone)
	e.u(r.session)
	e.u(r.mark)
	return in.Reply(e.b, nil)
}

// eventsWait is how long one question for events is kept open.
const eventsWait = 20 * time.Second

// eventsOf asks for events behind a number; none: there were none for a while.
func (s *Service) eventsOf(ctx context.Context, id journal.Partition, key string, behind uint64) ([]lode.AgentEvent, error) {
	ctx, cancel := context.WithTimeout(ctx, eventsWait)
	defer cancel()
	node, err := s.find(ctx, id, 0)
	if err != nil {
		return nil, err
	}
	if node == s.cfg.Self {
		p := s.partition(id)
		if p == nil {
			return nil, &moved{}
		}
		return p.events(ctx, key, behind)
	}
	e := newEnc(64)
	e.u(askEvents)
	e.s(string(id.Namespace))
	e.s(string(id.Kind))
	e.s(key)
	e.u(behind)
	head, body, err := s.cfg.Peers.Ask(ctx, node, e.b, nil)
	if err != nil {
		if ctx.Err() != nil {
			return nil, nil // nothing happened for so long
		}
		return nil, err
	}
	d, err := result(head)
	if err != nil {
		return nil, err
	}
	var out []lode.AgentEvent
	b := &dec{journal.Reader{B: body}}
	for range b.count() {
		out = append(out, lode.AgentEvent{N: b.u(), Type: b.s(), Data: b.bytes()})
	}
	if !d.end() || !b.end() {
		return nil, unreadable(node)
	}
	return out, nil
}

func (s *Service) serveEvents(ctx context.Context, in *link.Incoming, d *dec) error {
	ns, kind, key, behind := lode.Namespace(d.s()), lode.Name(d.s()), d.s(), d.u()
	if !d.end() {
		return lode.Errorf(lode.Invalid, "a question of node %s cannot be read", in.From)
	}
	rev, err := s.kindSoon(ctx, ns, kind)
	if err != nil {
		return err
	}
	p, err := s.here(ctx, journal.Partition{Namespace: ns, Kind: kind, N: lode.PartitionOf(key, partitionsOf(rev))})
	if err != nil {
		return err
	}
	if p == nil {
		return replyMoved(in)
	}
	ctx, cancel := context.WithTimeout(ctx, eventsWait-time.Second)
	defer cancel()
	evs, err := p.events(ctx, key, behind)
	if isMoved(err) {
		return replyMoved(in)
	}
	if err != nil {
		return err
	}
	e, body := newEnc(2), &enc{}
	e.u(resultDone)
	body.u(uint64(len(evs)))
	for _, ev := range evs {
		body.u(ev.N)
		body.s(ev.Type)
		body.bytes(ev.Data)
	}
	return in.Reply(e.b, body.b)
}
