package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"lode"
	"lode/agent/journal"
	"lode/agent/state"
)

// store is what can be read of a partition: what is acknowledged, or a picture
// of it.
type store interface {
	Get(key []byte) ([]byte, bool, error)
	List(start, end []byte, reverse bool, f func(k, v []byte) bool) error
}

// partition is a partition that this node owns, in one epoch.
//
//	open -> stopping -> closed    no turn begins once it stops
//
// What is acknowledged is in part. What was written down and is not yet
// acknowledged is in the overlays of its agents and in the counters here.
type partition struct {
	s     *Service
	id    journal.Partition
	epoch uint64
	part  *state.Part
	w     *journal.Writer
	ctx   context.Context // of turns; ends when they are cut short
	stop  context.CancelFunc

	mu      sync.Mutex
	open    bool
	gen     uint64 // a turn that began in another one may not commit
	agents  map[string]*activation
	running int           // batons that are held
	pending int           // entries appended and not acknowledged
	quiet   chan struct{} // somebody waits for running and pending to be 0
	out     map[peer]*channel
	in      map[peer]*inbox
	next    int64           // Unix us: when the first timer is due, at the latest; 0: none
	fired   map[string]bool // due keys of timers whose turns are under way
	turns   uint64
	rate    rate   // of turns
	spent   spent  // since it came here
	pruned  uint32 // see prune
	aged    uint32 // see age
	began   time.Time

	born    atomic.Pointer[lode.Revision] // of the kind whose state this is; see suits
	counts  atomic.Pointer[counted]       // as they were found last
	erasing sync.Mutex                    // held where born changes; before mu

	last atomic.Uint64 // position of the newest entry that changed it
}

// activation is an agent in memory.
type activation struct {
	p       *partition
	key     string
	prefix  []byte
	busy    bool // somebody holds the baton: runs its turn
	box     mailbox
	run     *turn              // the turn that runs, by whoever holds the baton
	inner   []string           // marks of the turns that run within it, one within another
	waits   []*message         // to run within it; see nested.go
	flights map[string]*flight // by id: running, or not acknowledged
	over    map[string]*pend   // keys that were written and not acknowledged, and a few that are remembered
	cut     uint64             // number of the turn, not acknowledged, that cleared everything
	gone    uint64             // number of the turn, not acknowledged, that removed the agent
	sizes   map[string]int     // bytes of values, of keys that are known; only for whoever holds the baton
	sized   uint64             // the partition's gen that sizes are of
	n       uint64             // turns written down, of this activation
	tail    *flight            // the last of them that is not acknowledged
	sandbox uint64             // where its instance is; 0: nowhere
	beside  int                // reads that run beside
	meta    meta
	known   bool // meta is
	stored  meta // as it was written last
	used    time.Time
	pruned  int64  // Unix ms: when its kept answers were looked through
	forgot  []byte // behind the key of the last kept answer that was dropped; nil: none was
	subs    map[*subscriber]bool
}

// pend is a value that is not, or not only, in the store.
type pend struct {
	n     uint64 // number of the turn that wrote it; 0: it is acknowledged, and remembered
	value []byte // nil: deleted
}

func (s *Service) newPartition(id journal.Partition, epoch uint64) *partition {
	p := &partition{s: s, id: id, epoch: epoch, part: s.db.Part(id), open: true, agents: map[string]*activation{},
		out: map[peer]*channel{}, in: map[peer]*inbox{}, fired: map[string]bool{}}
	p.ctx, p.stop = context.WithCancel(context.Background())
	if err := p.findAge(); err != nil {
		s.log().Error("read the kept replies of a partition", "partition", id, "err", err)
	}
	return p
}

// age numbers spans of two minutes, for the replies that are kept for a while.
// It goes on from the last reply that was kept, not from a clock: the owner
// before may have had another one, and its replies must be found.
func (p *partition) age() uint32 {
	return p.aged + 1 + uint32(time.Since(p.began)/(replyAge*time.Millisecond))
}

// findAge reads the number of the last reply.
func (p *partition) findAge() error {
	p.began = time.Now()
	return p.part.List([]byte{spaceReply}, []byte{spaceReply + 1}, true, func(k, _ []byte) bool {
		if len(k) >= 5 {
			p.aged = max(binary.BigEndian.Uint32(k[1:]), 1) - 1
		}
		return false
	})
}

// activate finds an agent, or brings it into memory; p.mu is held.
func (p *partition) activate(key string) *activation {
	a := p.agents[key]
	if a == nil {
		a = &activation{p: p, key: key, prefix: agentPrefix(key)}
		p.agents[key] = a
	}
	return a
}

// address is the agent's name.
func (a *activation) address() string { return string(a.p.id.Kind) + "/" + a.key }

// do takes m to its end. It is called on the goroutine of whoever waits.
func (p *partition) do(ctx context.Context, m *message) (outcome, error) {
	if err := p.s.suits(ctx, p, m.rev); err != nil {
		return outcome{}, err
	}
	m.ready = make(chan struct{})
	a, f, mine, err := p.enter(m)
	if err != nil {
		return outcome{}, err
	}
	if !mine {
		return f.wait(ctx, m.until)
	}
	if m.ready != nil {
		if err := p.await(ctx, a, m, f); err != nil {
			return outcome{}, err
		}
	}
	p.hold(a, m, f)
	return f.wait(ctx, m.until)
}

// enter gives m the baton of its agent (m.ready is nil then), or a place in
// the mailbox. mine is false where the same turn is under way already: f is
// that one.
func (p *partition) enter(m *message) (a *activation, f *flight, mine bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.open {
		return nil, nil, false, &moved{}
	}
	a = p.activate(m.c.Key)
	if f := a.flights[m.id]; f != nil {
		if f.hash != m.hash {
			return nil, nil, false, reused(m, a)
		}
		return a, f, false, nil
	}
	level := a.level(m)
	nested := level >= 0
	if nested && m.rev.Function.Agent.Reentrant != lode.ReentrantChain {
		return nil, nil, false, cycle(m, a)
	}
	if a.busy && !nested && m.letter == nil && m.timer == "" && a.box.n >= mailboxOf(m.rev) {
		return nil, nil, false, p.overloaded(a)
	}
	if p.w.Waiting() > maxWaiting {
		e := lode.Errorf(lode.Overloaded, "%d MiB of turns wait to be written down", maxWaiting>>20)
		e.RetryAfter = time.Second
		return nil, nil, false, e
	}
	f = newFlight(m)
	if a.flights == nil {
		a.flights = map[string]*flight{}
	}
	a.flights[m.id] = f
	switch {
	case nested:
		a.nest(m, level)
	case !a.busy:
		a.busy, m.ready = true, nil
		p.running++
	default:
		a.box.push(m)
	}
	return a, f, true, nil
}

// maxWaiting is how many bytes of entries wait for the journal at most.
const maxWaiting = 32 << 20

func mailboxOf(rev *lode.Revision) int {
	if n := rev.Function.Agent.Mailbox; n > 0 {
		return n
	}
	return 1000
}

func (p *partition) overloaded(a *activation) error {
	e := lode.Errorf(lode.Overloaded, "%d messages wait at %s", a.box.n, a.address())
	e.RetryAfter = time.Second
	return e.WithHint("retry later; an agent takes one message at a time: spread the work over more keys, or raise its mailbox")
}

func cycle(m *message, a *activation) error {
	way := ""
	for _, c := range m.c.Chain {
		address, _ := parseLink(c)
		way += address + " -> "
	}
	e := lode.Errorf(lode.Conflict, "%s is called by a call that it waits for itself: %s%s", a.address(), way, a.address())
	e.Title = "cycle"
	return e.WithHint("use send, or declare the kind with reentrant: chain")
}

// await waits until the mailbox has come to m. A read does not wait for long:
// it runs beside the turn, on what is acknowledged.
func (p *partition) await(ctx context.Context, a *activation, m *message, f *flight) error {
	var late <-chan time.Time
	if m.turn == lode.TurnRead {
		t := time.NewTimer(readPatience)
		defer t.Stop()
		late = t.C
	}
	var why error
	over := timerFor(m.until)
	defer over.release()
	select {
	case <-m.ready:
		return nil
	case <-late:
	case <-over.t.C:
		why = p.holder(a, m)
	case <-ctx.Done():
		why = p.holder(a, m)
	}
	p.mu.Lock()
	if !a.box.drop(m) && !a.dropWait(m) {
		p.mu.Unlock()
		<-m.ready // the baton is here, or m was turned away
		return nil
	}
	if why == nil {
		a.beside++
		a.sandbox = 0
		p.running++
		p.mu.Unlock()
		m.beside, m.ready = true, nil
		return nil
	}
	p.unlist(a, f)
	p.mu.Unlock()
	f.end(outcome{}, why)
	return why
}

// readPatience is how long a read waits for turns before it runs beside them.
const readPatience = 10 * time.Millisecond

// holder is the error of a message that waited for too long: it names what it
// waited for.
func (p *partition) holder(a *activation, m *message) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	doing := "another turn"
	if a.run != nil {
		doing = "its turn " + a.run.m.c.Method
		if w := a.run.waits(); w != "" {
			doing += ", which waits for " + w
		}
	}
	return lode.Errorf(lode.Deadline, "%s was still at %s when the deadline passed; %s did not begin", a.address(), doing, m.c.Method).
		WithHint("lode explain %s shows who waits for whom", a.address())
}

// unlist forgets a flight that did not become one; p.mu is held.
func (p *partition) unlist(a *activation, f *flight) {
	if a.flights[f.id] == f {
		delete(a.flights, f.id)
	}
}

// pass gives the baton on; p.mu is held.
func (p *partition) pass(a *activation) {
	a.run = nil
	a.outlived()
	next := a.box.pop()
	switch {
	case next == nil:
		a.busy, a.used = false, time.Now()
		p.leave()
	case next.ready != nil:
		close(next.ready)
	default: // nobody waits for it
		f := a.flights[next.id]
		go p.hold(a, next, f)
	}
}

// leave counts a baton out; p.mu is held.
func (p *partition) leave() {
	p.running--
	p.settled()
}

// settled tells who waits that nothing is under way; p.mu is held.
func (p *partition) settled() {
	if p.quiet != nil && p.running == 0 && p.pending == 0 {
		close(p.quiet)
		p.quiet = nil
	}
}

// post gives m to its agent; nobody waits for it. It reports whether it was
// taken.
func (p *partition) post(m *message) bool {
	m.ready = nil
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.postLocked(m)
}

func (p *partition) postLocked(m *message) bool {
	if !p.open {
		return false
	}
	a := p.activate(m.c.Key)
	if a.flights[m.id] != nil {
		return false
	}
	f := newFlight(m)
	if a.flights == nil {
		a.flights = map[string]*flight{}
	}
	a.flights[m.id] = f
	if a.busy {
		a.box.push(m)
		return true
	}
	a.busy = true
	p.running++
	go p.hold(a, m, f)
	return true
}

// hold runs m with the baton in hand, and passes it on. When it returns f has
// ended, or ends when the journal has answered.
func (p *partition) hold(a *activation, m *message, f *flight) {
	if m.err != nil {
		return // turned away: the flight has ended
	}
	if m.beside {
		p.readBeside(a, m, f)
		return
	}
	out, written, err := p.serve(a, m, f)
	if written {
		return // commit has passed the baton; the journal ends the flight
	}
	p.mu.Lock()
	if err != nil {
		a.sandbox, a.sizes = 0, nil
	}
	tail := a.tail
	p.unlist(a, f)
	p.drop(a, m)
	p.mu.Unlock()
	if said := err == nil || isAnswered(err) || lode.KindOf(err) == lode.Crashed; said && tail != nil { // it has seen what is not acknowledged yet
		<-tail.done
		err = cmpErr(tail.err, err)
	}
	if said := err == nil || isAnswered(err) || lode.KindOf(err) == lode.Crashed; said && m.turn != lode.TurnTimer && m.letter == nil {
		err = cmpErr(p.s.current(p, m), err)
	}
	f.end(out, err)
	if err != nil {
		p.failed(a, m, err)
	}
}

// drop passes the baton of m on, unless it had none of its own; p.mu is held.
func (p *partition) drop(a *activation, m *message) {
	if m.nested {
		a.unnest(m)
		return
	}
	p.pass(a)
}

// readBeside runs a read on what is acknowledged, while turns go on.
func (p *partition) readBeside(a *activation, m *message, f *flight) {
	view := p.part.View()
	t := p.newTurn(a, m)
	t.store, t.aside = view, true
	err := t.exec()
	view.Close()
	p.mu.Lock()
	a.beside--
	p.unlist(a, f)
	p.leave()
	p.mu.Unlock()
	if err == nil {
		err = p.s.current(p, m)
	}
	f.end(t.outcome(), err)
}

// serve runs the code for m, or answers without. written: the turn was
// appended to the journal.
func (p *partition) serve(a *activation, m *message, f *flight) (out outcome, written bool, err error) {
	if err := p.load(a); err != nil {
		return outcome{}, false, err
	}
	if out, ok, err := p.repeated(a, m); ok || err != nil {
		return out, false, err
	}
	if m.letter != nil && !p.stillWanted(m.letter) {
		return outcome{}, false, nil
	}
	if m.timer != "" {
		if ok, err := p.stillDue(a, m); !ok || err != nil {
			return outcome{}, false, err
		}
	}
	if err := p.migrate(a, m); err != nil {
		return outcome{}, false, err
	}
	t := p.newTurn(a, m)
	if ok, err := t.ofSocket(); !ok || err != nil {
		return outcome{Status: 204}, false, err
	}
	if m.edit != nil {
		err = m.edit(t)
	} else {
		p.mu.Lock()
		if !m.nested {
			a.run = t
		}
		p.mu.Unlock()
		if m.timer != "" {
			t.setTimer(m.timer, nil)
		}
		err = t.exec()
	}
	if err != nil {
		return outcome{}, false, err
	}
	if t.empty() {
		p.ran(a, t)
		t.release(nil)
		return t.outcome(), false, nil
	}
	if err := t.spill(p.ctx); err != nil {
		return outcome{}, false, err
	}
	return outcome{}, true, t.commit(f)
}

// ran notes where the agent's instance is; see commit for turns that write.
func (p *partition) ran(a *activation, t *turn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t.keepPlace()
}

// load reads what is known of an agent.
func (p *partition) load(a *activation) error {
	p.mu.Lock()
	known := a.known
	p.mu.Unlock()
	if known {
		return nil
	}
	b, ok, err := p.part.Get(in(a.prefix, partMeta, ""))
	if err != nil {
		return err
	}
	var m meta
	if ok {
		if m, err = decodeMeta(b); err != nil {
			return err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !a.known {
		a.meta, a.stored, a.known = m, m, true
	}
	return nil
}

// repeated finds the answer of an earlier turn with the id of m.
func (p *partition) repeated(a *activation, m *message) (out outcome, ok bool, err error) {
	if m.fresh || m.turn == lode.TurnRead || m.timer != "" {
		return outcome{}, false, nil
	}
	age := p.age()
	keys := [][]byte{replyKey(age, m.id), replyKey(age-1, m.id)}
	if m.c.Given {
		keys = append(keys, in(a.prefix, partReply, m.id)) // the others: that of a turn which removed the agent
		if m.post {
			if b, ok, err := p.part.Get(in(a.prefix, partTimer, waiting+m.id)); ok || err != nil {
				return waits(a, m, b, err)
			}
		}
	}
	for _, k := range keys {
		b, found, err := p.part.Get(k)
		if err != nil {
			return outcome{}, false, err
		}
		if !found {
			continue
		}
		if out, err = decodeOutcome(b); err != nil {
			return outcome{}, false, err
		}
		if out.Hash != m.hash {
			return outcome{}, false, reused(m, a)
		}
		if out.Lost {
			e := lode.Errorf(lode.Deadline, "turn %s of %s took effect; its answer was too large to be kept", m.id, a.address())
			return outcome{}, false, e
		}
		out.repeated = true
		return out, true, nil
	}
	return outcome{}, false, nil
}

// waits is the answer to a message whose id has one that still waits for its
// time.
func waits(a *activation, m *message, b []byte, err error) (outcome, bool, error) {
	var tm timer
	if err == nil {
		tm, err = decodeTimer(b)
	}
	if err == nil && tm.Hash != m.hash {
		err = reused(m, a)
	}
	return outcome{Status: 202, repeated: true}, err == nil, err
}

func reused(m *message, a *activation) error {
	return lode.Errorf(lode.KeyReused, "turn %s of %s was another call", m.id, a.address()).WithHint("use a new idempotency key for each call")
}

// reset forgets everything that is not acknowledged: the journal has refused
// it for want of room. Turns that run may not commit.
func (p *partition) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gen++
	p.w.Withdraw(p.id)
	for _, a := range p.agents {
		a.forgot = nil
		a.over, a.cut, a.gone, a.sandbox, a.known = nil, 0, 0, 0, false
	}
	for _, c := range p.out {
		c.loaded = false
	}
	for _, i := range p.in {
		i.rewind()
	}
}

// shut ends the partition: no turn begins any more, those that wait are turned
// away, those that run get a while to end.
func (p *partition) shut(ctx context.Context, grace time.Duration) error {
	p.mu.Lock()
	p.open = false
	var gone []*flight
	for _, a := range p.agents {
		for _, m := range a.waits {
			a.box.push(m)
		}
		a.waits = nil
		for m := a.box.pop(); m != nil; m = a.box.pop() {
			m.err = &moved{}
			f := a.flights[m.id]
			p.unlist(a, f)
			gone = append(gone, f)
			if m.ready != nil {
				close(m.ready)
			}
		}
		for s := range a.subs {
			s.end()
		}
	}
	if p.running == 0 && p.pending == 0 {
		p.mu.Unlock()
		for _, f := range gone {
			f.end(outcome{}, &moved{})
		}
		p.stop()
		return nil
	}
	quiet := p.quiet
	if quiet == nil {
		quiet = make(chan struct{})
		p.quiet = quiet
	}
	p.mu.Unlock()
	for _, f := range gone {
		f.end(outcome{}, &moved{})
	}
	t := time.NewTimer(grace)
	defer t.Stop()
	defer p.stop()
	select {
	case <-quiet:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
	}
	p.stop() // turns end at once, and change nothing
	select {
	case <-quiet:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// sweep takes agents out of memory that had no message for their idle time.
func (p *partition) sweep(now time.Time, idle time.Duration) (left int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, a := range p.agents {
		if a.atRest() && now.Sub(a.used) >= idle {
			delete(p.agents, key)
		}
	}
	return len(p.agents)
}

// atRest reports whether nothing is lost if a is forgotten; p.mu is held.
func (a *activation) atRest() bool {
	return !a.busy && a.box.n == 0 && len(a.flights) == 0 && a.tail == nil && a.cut == 0 && a.gone == 0 && a.beside == 0 && len(a.subs) == 0
}

// isUnsure reports whether err says that a turn may have taken effect.
func isUnsure(err error) bool {
	_, ok := errors.AsType[*unsure](err)
	return ok
}

// isMoved reports whether err says that the agent is elsewhere.
func isMoved(err error) bool {
	_, ok := errors.AsType[*moved](err)
	return ok
}
