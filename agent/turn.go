package agent

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"lode"
	"lode/agent/journal"
	"lode/agent/state"
)

// turn is one run of an agent's code, and what it has changed so far. It is
// used by the goroutine that runs the code; what other goroutines see of it is
// guarded by mu.
type turn struct {
	p     *partition
	a     *activation
	m     *message
	gen   uint64
	store store // what is acknowledged
	began time.Time
	aside bool // it runs beside turns, and sees only what is acknowledged

	run    Turn
	answer outcome
	calls  int // made so far, with the sends: their ids follow from it
	synced int // commits before the end

	writes  map[string]write
	order   []string // keys of writes, as they came
	cleared bool     // everything that was there before writes
	remove  bool
	timers  map[string]*timer // set; nil: cleared
	letters []letter
	frames  []lode.SocketFrame
	sockets map[string]*socket // changed; nil: gone
	events  []lode.AgentEvent
	delta   int64          // of the bytes of state
	sizes   map[string]int // see known
	extra   []journal.Change
	kept    []journal.Change // the answer, for repetitions
	passed  bool             // a turn within it may have written: its instance is old; guarded by partition.mu

	mu      sync.Mutex
	calling map[*lode.AgentCall]time.Time // what it waits for, and since when
}

// write is a value of state as it is stored; nil: deleted.
type write struct {
	value []byte
	big   []byte // the bytes of a value that is to become a blob
}

func (p *partition) newTurn(a *activation, m *message) *turn {
	t := &turn{p: p, a: a, m: m, store: p.part, began: p.s.started()}
	p.mu.Lock()
	t.gen = p.gen
	if !m.beside && a.sized != p.gen {
		a.sizes, a.sized = nil, p.gen
	}
	t.run.Sandbox = a.sandbox
	if a.beside > 0 || m.nested {
		t.run.Sandbox = 0 // its instance may be another's by the time it is asked
	}
	t.run.Apart = m.beside || m.nested
	p.mu.Unlock()
	return t
}

// exec runs the code.
func (t *turn) exec() error {
	m := t.m
	r := &t.run
	r.Revision, r.Body, r.Turn, r.Ops = m.rev, m.c.Body, m.turn, t
	r.Method, r.Within = m.c.Method, m.within
	r.Head = t.head()
	r.Run.Deadline, r.Run.Trace, r.Run.Caller, r.Run.Depth, r.Run.Chain = m.deadline(t.p.s.started()), m.c.Trace, m.c.Caller, m.c.Depth, append(slices.Clone(m.c.Chain), linkOf(t))
	err := t.p.s.cfg.Runner.Run(t.p.ctx, r)
	t.p.spent.add(r.CPU)
	if err != nil {
		if t.p.ctx.Err() != nil {
			return &moved{}
		}
		return err
	}
	t.answer = outcome{Hash: m.hash, Status: r.Answer.Status, Head: r.Answer.Head, Body: r.Answer.Body}
	if t.answer.Status == 0 {
		t.answer.Status = 200
	}
	if t.answer.Status >= 400 && (m.turn != lode.TurnFetch || r.Failed) {
		return refusal(&t.answer)
	}
	return nil
}

// head is what the code is told of the turn; see sdk/abi, section 2.
func (t *turn) head() []lode.Pair {
	m, spec := t.m, t.m.rev.Function.Agent
	h := make([]lode.Pair, 0, len(m.c.Head)+10)
	h = append(h, lode.Pair{Key: ":turn", Value: string(m.turn)}, lode.Pair{Key: ":class", Value: spec.Class}, lode.Pair{Key: ":address", Value: t.a.address()},
		lode.Pair{Key: ":agent", Value: t.a.key}, lode.Pair{Key: ":turn-id", Value: m.id})
	switch m.turn {
	case lode.TurnFetch:
		h = append(h, lode.Pair{Key: ":method", Value: m.c.Method}, lode.Pair{Key: ":path", Value: m.c.Path})
	case lode.TurnTimer:
		h = append(h, lode.Pair{Key: ":verb", Value: m.c.Method}, lode.Pair{Key: ":timer", Value: m.timer}, lode.Pair{Key: ":due", Value: decimal(m.due.First / 1000)})
	case lode.TurnCall, lode.TurnRead:
		h = append(h, lode.Pair{Key: ":verb", Value: m.c.Method})
	}
	if m.c.Caller != "" {
		h = append(h, lode.Pair{Key: ":caller", Value: m.c.Caller})
	}
	return append(h, m.c.Head...)
}

// outcome is what the turn answered.
func (t *turn) outcome() outcome { return t.answer }

// empty reports whether the turn needs no entry: nothing is different after it.
func (t *turn) empty() bool {
	return len(t.writes) == 0 && !t.cleared && !t.remove && len(t.timers) == 0 && len(t.letters) == 0 && len(t.sockets) == 0 && len(t.events) == 0 && len(t.extra) == 0 &&
		t.m.letter == nil && t.m.timer == "" && !t.m.c.Given && t.synced == 0
}

// keepPlace notes where the agent's instance is now; p.mu is held.
func (t *turn) keepPlace() {
	t.a.sandbox = t.run.Sandbox
	if t.a.beside > 0 || t.m.nested || t.passed || t.remove || t.m.edit != nil && !t.m.post {
		t.a.sandbox = 0 // it does not know what has changed
	}
}

// spill makes blobs of large values, before the turn is written down.
func (t *turn) spill(ctx context.Context) error {
	for k, w := range t.writes {
		if w.big == nil {
			continue
		}
		d, err := t.p.s.cfg.Blobs.Put(ctx, w.big)
		if err != nil {
			return err
		}
		w.value, w.big = state.EncodeBlob(d, int64(len(w.big))), nil
		t.writes[k] = w
	}
	return t.p.s.reached(pointSpilled)
}

// record is a turn on its way through the journal.
type record struct {
	a       *activation
	n       uint64
	keys    []string // of the overlay
	f       *flight  // nil: the turn goes on
	out     outcome
	frames  []lode.SocketFrame
	events  []lode.AgentEvent
	peers   []peer
	due     int64 // the first timer that was set; 0: none
	letter  *arrival
	fired   string
	after   func(error) // nil: nobody else wants to know
	removed bool
}

// commit writes the turn down and passes the baton on. The journal's answer
// ends f.
func (t *turn) commit(f *flight) error {
	p, a := t.p, t.a
	p.mu.Lock()
	if !p.open && p.ctx.Err() != nil || t.gen != p.gen {
		stale := t.gen != p.gen
		p.mu.Unlock()
		return t.abandon(f, stale)
	}
	e, r, err := t.entry(true)
	if err != nil {
		p.mu.Unlock()
		return t.refused(f, err)
	}
	r.f, r.out = f, t.answer
	t.keepPlace()
	t.write(e, r)
	p.drop(a, t.m)
	p.mu.Unlock()
	return nil
}

// commitPart writes down what the turn has changed so far; it goes on, with the
// baton in hand. The journal's answer ends f.
func (t *turn) commitPart(f *flight) error {
	p := t.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx.Err() != nil || t.gen != p.gen {
		return &moved{}
	}
	e, r, err := t.entry(false)
	if err != nil {
		return err
	}
	r.f = f
	t.write(e, r)
	return nil
}

// write appends an entry of the turn; p.mu is held.
func (t *turn) write(e *journal.Entry, r *record) {
	p, a := t.p, t.a
	p.pending++
	a.n++
	r.n, a.tail = a.n, r.f
	t.overlay(r)
	p.turns++
	p.rate.add(p.s.now())
	p.s.counts.turns.Add(1)
	p.w.Append(e, func(_ uint64, err error) { p.acked(r, err) })
}

// abandon ends a turn that cannot be written down any more.
func (t *turn) abandon(f *flight, stale bool) error {
	var err error = &moved{}
	if stale {
		err = lode.Errorf(lode.Full, "%s was reset while its turn ran: there was no room to write down what it rests on", t.a.address())
	}
	return t.refused(f, err)
}

// refused ends a turn that changes nothing after all.
func (t *turn) refused(f *flight, err error) error {
	p := t.p
	p.mu.Lock()
	t.a.sandbox, t.a.sizes = 0, nil
	p.unlist(t.a, f)
	p.drop(t.a, t.m)
	p.mu.Unlock()
	f.end(outcome{}, err)
	p.failed(t.a, t.m, err)
	return err
}

// entry makes the journal's entry of what the turn has changed; p.mu is held.
func (t *turn) entry(last bool) (*journal.Entry, *record, error) {
	p, a, m := t.p, t.a, t.m
	now := p.s.now()
	r := &record{a: a, frames: t.frames, letter: nil}
	if n := t.bytes(); n > journal.MaxEntry {
		return nil, nil, lode.Errorf(lode.TooLarge, "the turn %s of %s changes %d bytes; at most %d", m.c.Method, a.address(), n, journal.MaxEntry).
			WithHint("sync in between, or write values over 64 KiB, which are kept apart")
	}
	b := &builder{}
	if err := t.state(b, now); err != nil {
		return nil, nil, err
	}
	if err := t.timerChanges(b, r); err != nil {
		return nil, nil, err
	}
	if err := t.outbox(b, r); err != nil {
		return nil, nil, err
	}
	if !t.remove {
		t.socketChanges(b)
		t.eventChanges(b, r)
	}
	if last {
		t.reply(b, now)
		if m.letter != nil {
			r.letter = m.letter
			b.set(peerKey(spaceInbox, m.letter.from), m.letter.box.consume(m.letter.n))
		}
		if m.timer != "" {
			r.fired = string(dueKey(m.due.Due, a.key, m.timer))
		}
		r.removed = t.remove
	}
	b.changes = append(b.changes, t.extra...)
	t.metaChange(b, now)
	b.changes = append(b.changes, t.kept...)
	e := &journal.Entry{Op: journal.Turn, Epoch: p.epoch, Partition: p.id, Agent: a.key, ID: m.id, Method: m.c.Method, Revision: m.rev.Number, Changes: b.changes}
	return e, r, nil
}

// bytes is about how many bytes the entry of the turn will have, and not less.
func (t *turn) bytes() int {
	each := len(t.a.prefix) + 16
	n := 16<<10 + 20*each + 2*len(t.m.id)
	if len(t.answer.Body) <= mostGiven {
		n += len(t.answer.Body)
	}
	for i := range t.answer.Head {
		n += len(t.answer.Head[i].Key) + len(t.answer.Head[i].Value) + 8
	}
	for k, w := range t.writes {
		n += each + len(k) + len(w.value)
	}
	for k, tm := range t.timers {
		n += 4*each + 3*len(k)
		if tm != nil {
			n += 64 + len(tm.Body) + len(tm.Method) + len(tm.Type) + len(tm.Caller) + len(tm.ID) + len(tm.Why)
		}
	}
	for i := range t.letters {
		l := &t.letters[i]
		n += 128 + each + len(l.Body) + len(l.To) + len(l.From) + len(l.Method) + len(l.Type) + len(l.Trace)
	}
	for id, s := range t.sockets {
		n += each + len(id)
		if s != nil {
			n += len(s.Attachment) + 64
			for _, tag := range s.Tags {
				n += len(tag) + 8
			}
		}
	}
	for i := range t.events {
		n += each + len(t.events[i].Type) + len(t.events[i].Data)
	}
	for i := range t.extra {
		n += each + len(t.extra[i].Key) + len(t.extra[i].Value)
	}
	return n
}

// builder collects changes.
type builder struct{ changes []journal.Change }

func (b *builder) set(k, v []byte) {
	b.changes = append(b.changes, journal.Change{Kind: journal.Set, Key: k, Value: v})
}
func (b *builder) del(k []byte) {
	b.changes = append(b.changes, journal.Change{Kind: journal.Delete, Key: k})
}
func (b *builder) cut(from, to []byte) {
	b.changes = append(b.changes, journal.Change{Kind: journal.Cut, Key: from, Value: to})
}

// state adds what was written to the agent's state.
func (t *turn) state(b *builder, now int64) error {
	a, spec := t.a, t.m.rev.Function.Agent
	if t.remove {
		b.cut(a.prefix, after(a.prefix))
		return nil
	}
	if t.cleared {
		p := in(a.prefix, partState, "")
		b.cut(p, after(p))
		t.delta -= a.meta.Bytes
	}
	for _, k := range t.order {
		w := t.writes[k]
		if w.value == nil {
			b.del(in(a.prefix, partState, k))
		} else {
			b.set(in(a.prefix, partState, k), w.value)
		}
	}
	most := spec.StateMax
	if most <= 0 {
		most = 1 << 30
	}
	if a.meta.Bytes+t.delta > most && t.delta > 0 {
		return lode.Errorf(lode.TooLarge, "the state of %s would have %d bytes; at most %d", a.address(), a.meta.Bytes+t.delta, most).
			WithHint("raise state_max of the kind, or keep less")
	}
	return nil
}

// metaChange writes the agent's record where it has changed much.
func (t *turn) metaChange(b *builder, now int64) {
	a := t.a
	if t.remove {
		a.meta, a.stored = meta{}, meta{}
		return
	}
	m := &a.meta
	m.Bytes = max(0, m.Bytes+t.delta)
	if t.m.timer != ttlTimer { // that was no message
		m.Touched = now
	}
	if m.Created == 0 {
		m.Created = now
		if ttl := t.m.rev.Function.Agent.TTL; ttl > 0 {
			due := (now + ttl.Milliseconds() + touchLag(t.m.rev)) * 1000
			tm := &timer{Due: due, First: due}
			b.set(in(a.prefix, partTimer, ttlTimer), tm.encode())
			b.set(dueKey(due, a.key, ttlTimer), nil)
			t.setTimer(ttlTimer, tm) // for the next turns, until this is acknowledged
			t.p.sooner(due)
		}
	}
	if t.m.edit == nil { // else its code has not seen it
		m.Revision = t.m.rev.Number
	}
	drift := m.Bytes - a.stored.Bytes
	if s := a.stored; m.Created == s.Created && m.Revision == s.Revision && m.Events == s.Events && m.Kept == s.Kept && drift*drift < 4096*4096 && now-s.Touched < touchLag(t.m.rev) {
		return
	}
	a.stored = *m
	b.set(in(a.prefix, partMeta, ""), m.encode())
}

// touchEvery is how many milliseconds the record of when an agent was last
// used may lag behind.
const touchEvery = 60_000

// touchLag is touchEvery, or less where agents live shortly.
func touchLag(rev *lode.Revision) int64 {
	if ttl := rev.Function.Agent.TTL.Milliseconds(); ttl > 0 {
		return min(touchEvery, ttl/10)
	}
	return touchEvery
}

// reply keeps the answer for repetitions.
func (t *turn) reply(b *builder, now int64) {
	m, a := t.m, t.a
	if m.letter != nil || m.timer != "" || m.id == "" {
		return // their ids are known by other means
	}
	out := t.answer
	out.Hash = m.hash
	most := 64 << 10
	if m.c.Given {
		most = mostGiven
	}
	if len(out.Body) > most {
		out.Body, out.Lost = nil, true
	}
	if !m.c.Given || t.remove {
		c := journal.Change{Kind: journal.Set, Key: replyKey(t.p.age(), m.id), Value: out.encode()}
		if m.fresh && !m.c.Given {
			// Who waits for it is in this process, and asks nobody else unless
			// this journal is another's by then.
			c.Kind = journal.Recall
		}
		t.kept = []journal.Change{c}
		t.p.prune(b)
		return
	}
	b.set(in(a.prefix, partReply, m.id), out.encode())
	b.set(append(inN(a.prefix, partOrder, uint64(now)), m.id...), nil)
	if a.meta.Kept++; a.meta.Kept > keptReplies || t.p.s.dueReplies(a, now) {
		t.forget(b, now)
	}
}

const (
	mostGiven   = 1 << 20 // bytes of an answer that is kept
	keptReplies = 1000
	keptFor     = 24 * 3600 * 1000 // ms
)

// forget drops the oldest kept answers: those over the number, or the age.
func (t *turn) forget(b *builder, now int64) {
	a := t.a
	prefix := in(a.prefix, partOrder, "")
	from := prefix
	if a.forgot != nil {
		from = a.forgot // what was dropped and is not acknowledged yet is still there
	}
	over, more := a.meta.Kept-keptReplies, false
	_ = t.p.part.List(from, after(prefix), false, func(k, _ []byte) bool {
		at, id, ok := parseOrder(k[len(prefix):])
		if more = len(b.changes) > 256; more || !ok || over <= 0 && now-at < keptFor {
			return false
		}
		over--
		a.meta.Kept--
		a.forgot = append(slices.Clone(k), 0)
		b.del(slices.Clone(k))
		b.del(in(a.prefix, partReply, id))
		return true
	})
	if over > 0 {
		a.forgot = nil // there are others before it
	}
	if !more {
		a.pruned = now
	}
}

// prune drops the answers of turns whose callers are long gone.
func (p *partition) prune(b *builder) {
	age := p.age()
	if age == p.pruned {
		return
	}
	p.pruned = age
	b.cut([]byte{spaceReply}, replyKey(age-1, ""))
}

// overlay makes what was written visible to the next turns; p.mu is held.
func (t *turn) overlay(r *record) {
	a := t.a
	if a.over == nil {
		a.over = map[string]*pend{}
	}
	if t.cleared || t.remove {
		maps.DeleteFunc(a.over, func(k string, _ *pend) bool { return k[0] == partState || t.remove })
		a.cut = r.n
	}
	if t.remove {
		a.gone, a.sizes, t.sizes = r.n, nil, nil
		t.writes, t.timers, t.sockets = nil, nil, nil // they went with it
	}
	put := func(k string, v []byte) {
		a.over[k] = &pend{r.n, v}
		r.keys = append(r.keys, k)
	}
	for k, w := range t.writes {
		put(string(partState)+k, w.value)
	}
	for name, tm := range t.timers {
		if tm == nil {
			put(string(partTimer)+name, nil)
		} else {
			put(string(partTimer)+name, tm.encode())
		}
	}
	for id, s := range t.sockets {
		if s == nil {
			put(string(partSocket)+id, nil)
		} else {
			put(string(partSocket)+id, s.encode())
		}
	}
	t.writes, t.order, t.cleared, t.timers, t.sockets, t.frames, t.letters, t.events, t.delta, t.extra = nil, nil, false, nil, nil, nil, nil, nil, 0, nil
}

// acked is told what became of a turn in the journal.
func (p *partition) acked(r *record, err error) {
	a := r.a
	p.mu.Lock()
	for _, k := range r.keys {
		v := a.over[k]
		switch {
		case v == nil || v.n != r.n:
		case err != nil || len(v.value) > keptValue || len(a.over) > keptValues:
			delete(a.over, k)
		default:
			v.n = 0 // it stays as what is remembered
		}
	}
	if a.cut == r.n {
		a.cut = 0
	}
	if a.gone == r.n {
		a.gone = 0
	}
	if r.f != nil {
		p.unlist(a, r.f)
		if a.tail == r.f {
			a.tail = nil
		}
	}
	if k := lode.KindOf(err); err != nil && k != lode.Full && k != lode.TooLarge {
		err = &unsure{err}
	}
	if err == nil {
		p.took(r)
	} else if r.letter != nil {
		r.letter.box.lost(r.letter)
	}
	if r.fired != "" {
		delete(p.fired, r.fired)
	}
	if err != nil { // its timer is set still, or the one that it had changed
		p.sooner((p.s.now() + p.s.backoff(1).Milliseconds()) * 1000)
	}
	a.used = p.s.started()
	subs := slices.Collect(maps.Keys(a.subs))
	p.pending--
	p.settled()
	p.mu.Unlock()
	if err == nil {
		p.s.send(r.frames)
		for _, s := range subs {
			s.tell(r.events)
		}
	}
	if r.f != nil {
		r.f.end(r.out, err)
	}
	if r.after != nil {
		r.after(err)
	}
}

// took passes on what an acknowledged turn sets off; p.mu is held.
func (p *partition) took(r *record) {
	if r.due != 0 {
		p.sooner(r.due)
	}
	for _, to := range r.peers {
		p.channel(to).push()
	}
	if r.letter != nil {
		r.letter.box.acked(r.letter)
	}
}

// release lets out what a turn that has written nothing sends.
func (t *turn) release(error) {
	if len(t.frames) == 0 {
		return
	}
	frames := t.frames
	t.frames = nil
	t.p.mu.Lock()
	tail := t.a.tail
	t.p.mu.Unlock()
	if tail != nil {
		<-tail.done
		if tail.err != nil {
			return
		}
	}
	t.p.s.send(frames)
}

// waits names an agent that the turn waits for, or is "".
func (t *turn) waits() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	for c := range t.calling {
		return string(c.Kind) + "/" + c.Key
	}
	return ""
}

// refusal is the error of a turn that answered with one.
func refusal(o *outcome) error { return &answered{*o} }

// answered is an answer of the code that undoes its turn.
type answered struct{ out outcome }

func (a *answered) Error() string {
	return "the agent answered with the status " + decimal(int64(a.out.Status))
}
