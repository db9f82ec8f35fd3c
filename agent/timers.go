package agent

import (
	"context"
	"encoding/binary"
	"math"
	"slices"
	"time"

	"lode"
	"lode/agent/journal"
)

// Names of timers that are Lode's own. A message that waits for its time is a
// timer too: its name is byte 1 and the id of its turn.
const (
	ttlTimer = "\x00ttl"
	waiting  = "\x01"
)

// later makes m a message that waits for its time (Unix us), instead of one
// that runs code.
func (m *message) later(due int64) {
	c := m.c
	tm := &timer{Due: due, First: due, N: number(m.id), Method: c.Method, Type: headOf(c.Head, "content-type"), Body: c.Body, Caller: c.Caller, ID: m.id, Hash: m.hash}
	m.post, m.at = true, due
	m.edit = func(t *turn) error {
		t.setTimer(waiting+m.id, tm)
		t.answer.Status = 202
		return nil
	}
}

// sooner notes that a timer is due then; p.mu is held.
func (p *partition) sooner(due int64) {
	if p.next == 0 || due < p.next {
		p.next = due
		p.s.alarm()
	}
}

// runTimers fires what is due, in all partitions, until ctx ends.
func (s *Service) runTimers(ctx context.Context) {
	for {
		now, next := s.now()*1000, int64(math.MaxInt64)
		for _, p := range s.owned() {
			p.mu.Lock()
			due := p.open && p.next != 0 && p.next <= now
			p.mu.Unlock()
			if due {
				p.fire(now)
			}
			p.mu.Lock()
			if p.open && p.next != 0 {
				next = min(next, p.next)
			}
			p.mu.Unlock()
		}
		d := time.Hour
		if next != math.MaxInt64 {
			d = min(d, max(s.untilDue(next), 100*time.Microsecond))
		}
		t := time.NewTimer(d)
		select {
		case <-t.C:
		case <-s.alarms:
		case <-ctx.Done():
			t.Stop()
			return
		}
		t.Stop()
	}
}

// untilDue is how long it is until a time (Unix us) by the cluster's clock: to
// the microsecond, where that clock is the machine's and not one that was set
// back.
func (s *Service) untilDue(at int64) time.Duration {
	ms := s.now()
	us := s.cfg.Now().UnixMicro()
	if us/1000 != ms {
		us = ms * 1000
	}
	return time.Duration(at-us) * time.Microsecond
}

// alarm has runTimers look again.
func (s *Service) alarm() {
	select {
	case s.alarms <- struct{}{}:
	default:
	}
}

// mostFired bounds how many turns of timers a partition has under way.
const mostFired = 512

// fire begins the turns of the timers that are due.
func (p *partition) fire(now int64) {
	type due struct {
		k         []byte
		key, name string
	}
	var list []due
	next := int64(0)
	p.mu.Lock()
	room := mostFired - len(p.fired)
	p.next = 0 // what is set from here on says so itself
	p.mu.Unlock()
	end := binary.BigEndian.AppendUint64([]byte{spaceDue}, math.MaxUint64)
	err := p.part.List([]byte{spaceDue}, end, false, func(k, _ []byte) bool {
		at, key, name, ok := parseDue(k)
		if !ok {
			return true
		}
		p.mu.Lock()
		under := p.fired[string(k)]
		p.mu.Unlock()
		switch {
		case under:
			return true
		case at > now:
			next = at
			return false
		case len(list) >= room:
			next = now + 50_000 // when some of those under way have ended
			return false
		}
		list = append(list, due{slices.Clone(k), key, name})
		return true
	})
	if err != nil {
		p.s.log().Warn("read the timers of a partition", "partition", p.id, "err", err)
		next = now + 1_000_000
	}
	if next != 0 {
		p.retryAt(next)
	}
	for _, d := range list {
		p.ring(d.k, d.key, d.name)
	}
}

// ring begins the turn of one timer.
func (p *partition) ring(k []byte, key, name string) {
	b, ok, err := p.part.Get(in(agentPrefix(key), partTimer, name))
	if err != nil || !ok {
		return
	}
	tm, err := decodeTimer(b)
	if err != nil {
		p.s.log().Error("a timer cannot be read", "partition", p.id, "agent", key, "timer", name, "err", err)
		return
	}
	rev, err := p.s.cfg.Catalog.Kind(p.id.Namespace, p.id.Kind)
	if err != nil {
		p.retryAt(p.s.now()*1000 + 5_000_000) // the kind is gone; it may come back
		return
	}
	if err := p.s.suits(p.ctx, p, rev); err != nil {
		p.retryAt(p.s.now()*1000 + 1_000_000)
		return
	}
	c := &lode.AgentCall{Namespace: p.id.Namespace, Kind: p.id.Kind, Key: key, Method: tm.Method, Caller: tm.Caller, Body: tm.Body}
	if tm.Type != "" {
		c.Head = []lode.Pair{{Key: "content-type", Value: tm.Type}}
	}
	m := &message{c: c, turn: lode.TurnTimer, rev: rev, timer: name, due: &tm, id: lode.TurnIDOf(string(p.id.Kind)+"/"+key+"/"+name, int(tm.N&math.MaxInt64)) + decimal(tm.Due)}
	switch {
	case name == ttlTimer:
		m.edit = func(t *turn) error { return t.expire(&tm) }
	case name[:1] == waiting:
		m.turn, c.ID, m.hash = lode.TurnCall, tm.ID, tm.Hash
	}
	p.s.counts.fired.Add(1)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fired[string(k)] = true
	if !p.postLocked(m) {
		delete(p.fired, string(k))
	}
}

// retryAt has the timers looked at again then.
func (p *partition) retryAt(at int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sooner(at)
}

// stillDue reports whether a timer that was due is still set as it was.
func (p *partition) stillDue(a *activation, m *message) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := &turn{p: p, a: a, m: m}
	tm, ok, err := t.oldTimer(m.timer)
	if ok = ok && tm.N == m.due.N && tm.Due == m.due.Due; !ok || err != nil {
		delete(p.fired, string(dueKey(m.due.Due, a.key, m.timer)))
	}
	return ok, err
}

// expire removes an agent that had no turn for its time to live, or looks
// again when that may be over.
func (t *turn) expire(tm *timer) error {
	ttl := t.m.rev.Function.Agent.TTL.Milliseconds()
	idle := t.p.s.now() - t.a.meta.Touched
	switch {
	case ttl == 0:
		t.setTimer(ttlTimer, nil)
	case idle >= ttl+touchLag(t.m.rev): // the record may be so old after a crash
		t.remove = true
	default:
		due := (t.a.meta.Touched + ttl + touchLag(t.m.rev)) * 1000
		t.setTimer(ttlTimer, &timer{Due: due, First: due, N: tm.N + 1})
	}
	return nil
}

// failed deals with the failure of a message that nobody waits for: it is
// tried again, and in the end it is dead.
func (p *partition) failed(a *activation, m *message, err error) {
	if m.timer == "" && m.letter == nil {
		return
	}
	if m.timer != "" {
		p.mu.Lock()
		delete(p.fired, string(dueKey(m.due.Due, a.key, m.timer)))
		p.mu.Unlock()
	}
	if isMoved(err) || p.ctx.Err() != nil {
		return // who has it next does it
	}
	counts := lode.KindOf(err) == lode.Crashed || isAnswered(err) || lode.KindOf(err) == lode.Deadline || lode.KindOf(err) == lode.NotFound || lode.KindOf(err) == lode.TooLarge
	if m.timer != "" {
		p.failedTimer(a, m, err, counts)
		return
	}
	x := m.letter
	if counts {
		x.tries++
	}
	if x.tries >= mostTries {
		p.edit(a.key, m, "", func(t *turn) error { return t.bury(x.l, err) }, x)
		return
	}
	time.AfterFunc(p.s.backoff(max(x.tries, 1)), func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.open {
			x.box.start(x)
		}
	})
}

// failedTimer has a timer fire again later, or makes it dead.
func (p *partition) failedTimer(a *activation, m *message, why error, counts bool) {
	p.s.counts.failed.Add(1)
	tm := *m.due
	if counts {
		tm.Fails++
	}
	tm.Due = (p.s.now() + p.s.backoff(max(tm.Fails, 1)).Milliseconds()) * 1000
	tm.Why = why.Error()
	p.retryAt(tm.Due) // even if the edit fails
	p.edit(a.key, m, "retry of "+m.timer, func(t *turn) error {
		now, ok, err := t.timer(m.timer)
		if err != nil || !ok || now.N != m.due.N || now.Due != m.due.Due {
			return err // it was set anew, or cleared
		}
		if tm.Fails < mostTries {
			t.setTimer(m.timer, &tm)
			return nil
		}
		t.setTimer(m.timer, nil)
		id := tm.ID
		if id == "" {
			id = m.id
		}
		return t.bury(letter{To: a.key, From: tm.Caller, ID: id, Method: tm.Method, Type: tm.Type, Body: tm.Body, timer: m.timer}, why)
	}, nil)
}

// edit changes an agent without code of its own, as a turn; x is consumed by
// it, if there is one.
func (p *partition) edit(key string, m *message, what string, f func(*turn) error, x *arrival) {
	e := &message{c: &lode.AgentCall{Namespace: p.id.Namespace, Kind: p.id.Kind, Key: key, Method: what}, turn: lode.TurnCall, id: "", rev: m.rev, edit: f, letter: x, fresh: true}
	e.id = "edit-" + m.id + decimal(int64(p.s.frameNumber()))
	p.post(e)
}

// bury keeps a message that failed for good.
func (t *turn) bury(l letter, why error) error {
	l.kind = t.p.id.Kind
	t.p.s.counts.dead.Add(1)
	x := dead{At: t.p.s.now(), Letter: l, Why: why.Error(), Kind: lode.KindOf(why), Tries: mostTries}
	t.extra = append(t.extra, journal.Change{Kind: journal.Set, Key: inN(t.a.prefix, partDead, t.p.s.frameNumber()), Value: x.encode()})
	return nil
}

func isAnswered(err error) bool {
	_, ok := err.(*answered)
	return ok
}

// migrate has the code of a new revision see an agent that another one ran,
// before its first turn.
func (p *partition) migrate(a *activation, m *message) error {
	p.mu.Lock()
	from := a.meta.Revision
	p.mu.Unlock()
	if from == 0 || from == m.rev.Number || m.edit != nil || m.nested || !wantsMigrate(m.rev) {
		return nil
	}
	c := &lode.AgentCall{Namespace: p.id.Namespace, Kind: p.id.Kind, Key: a.key, Method: "migrate",
		Head: []lode.Pair{{Key: ":from", Value: decimal(int64(from))}, {Key: ":to", Value: decimal(int64(m.rev.Number))}}}
	mm := &message{c: c, turn: "migrate", id: m.id + "/migrate", rev: m.rev, fresh: true, nested: true}
	t := p.newTurn(a, mm)
	p.mu.Lock()
	t.run.Sandbox = 0
	p.mu.Unlock()
	if err := t.exec(); err != nil {
		e := *lode.AsError(err)
		e.Detail = "migrate " + a.address() + " from revision " + decimal(int64(from)) + ": " + e.Error()
		return &e
	}
	if err := t.spill(p.ctx); err != nil {
		return err
	}
	f := newFlight(mm)
	t.synced++
	if err := t.commitPart(f); err != nil {
		return err
	}
	<-f.done
	p.mu.Lock()
	a.sandbox = 0
	p.mu.Unlock()
	return f.err
}

func wantsMigrate(rev *lode.Revision) bool {
	k := kindOf(rev)
	return k != nil && k.Migrate
}

// kindOf is what the code says of the kind; nil: nothing.
func kindOf(rev *lode.Revision) *lode.KindExp {
	f := &rev.Function
	if f.Exports == nil || f.Agent == nil {
		return nil
	}
	for i := range f.Exports.Kinds {
		if k := &f.Exports.Kinds[i]; k.Name == f.Agent.Class || f.Agent.Class == "" && len(f.Exports.Kinds) == 1 {
			return k
		}
	}
	return nil
}
