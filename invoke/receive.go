package invoke

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"lode"
	"lode/engine"
)

// Bounds of what waits at one running invocation.
const (
	maxMail      = 1024
	maxMailBytes = 64 << 20
)

// runAddress is the address of a running invocation, NAME/~NODE~ID: its node
// is part of it, so nobody has to look it up.
type runAddress struct {
	name lode.Name
	node lode.NodeID
	id   lode.InvocationID
}

func (r runAddress) String() string {
	return string(r.name) + "/~" + string(r.node) + "~" + string(r.id)
}

// parseRun reads the address of a running invocation; ok: to is meant as one.
func parseRun(to lode.Address) (r runAddress, ok bool, err error) {
	rest, ok := strings.CutPrefix(to.Key, "~")
	if !ok {
		return r, false, nil
	}
	node, id, _ := strings.Cut(rest, "~")
	r = runAddress{to.Name, lode.NodeID(node), lode.InvocationID(id)}
	if _, err := lode.ParseNodeID(node); err != nil || id == "" || strings.Contains(id, "~") {
		return r, true, lode.Errorf(lode.Invalid, "%.100q is no address of a running invocation: want NAME/~NODE~ID", to.String()).WithHint("take it from the operation self, as it is")
	}
	return r, true, nil
}

// mail is a message to a running invocation.
type mail struct {
	verb, caller string
	head         []lode.Pair
	body         []byte
	answer       chan lode.Message // holds one; nil: nobody waits
	handle       string            // of its answer, once it was taken
}

func (m *mail) message() lode.Message {
	head := append(make([]lode.Pair, 0, len(m.head)+3), lode.Pair{Key: ":verb", Value: m.verb}, lode.Pair{Key: ":caller", Value: m.caller})
	if m.handle != "" {
		head = append(head, lode.Pair{Key: ":reply", Value: m.handle})
	}
	return lode.Message{Head: append(head, m.head...), Body: m.body}
}

// nextOp is an operation next that waits.
type nextOp struct {
	done func(lode.Message, error)
	stop func() bool // the watch of its context
}

// mailbox is what a running invocation can be reached by. It is there from
// when the invocation asks for its address, or receives, to its end. mu is
// taken alone; nobody is told anything while it is held.
type mailbox struct {
	run runAddress
	ns  lode.Namespace
	end chan struct{} // closed with the invocation

	mu     sync.Mutex
	ended  bool
	waits  []*mail // oldest first
	bytes  int     // of their bodies
	takers []*nextOp
	open   map[string]*mail // taken, and somebody waits for the answer
	handle int
}

func (b *mailbox) gone() error {
	return lode.Errorf(lode.Gone, "%s: the invocation has ended", b.run)
}

// deliver gives a message to whoever takes it next.
func (b *mailbox) deliver(m *mail) error {
	b.mu.Lock()
	switch {
	case b.ended:
		b.mu.Unlock()
		return b.gone()
	case len(b.takers) > 0:
		t := b.takers[0]
		b.takers = b.takers[1:]
		b.taken(m)
		b.mu.Unlock()
		t.stop()
		t.done(m.message(), nil)
		return nil
	case len(b.waits) >= maxMail || b.bytes+len(m.body) > maxMailBytes:
		n := len(b.waits)
		b.mu.Unlock()
		e := lode.Errorf(lode.Overloaded, "%d messages wait at %s already", n, b.run)
		e.RetryAfter = 100 * time.Millisecond
		return e.WithHint("send less, or receive faster")
	}
	b.waits = append(b.waits, m)
	b.bytes += len(m.body)
	b.mu.Unlock()
	return nil
}

// taken notes that the invocation has m; b.mu is held.
func (b *mailbox) taken(m *mail) {
	if m.answer == nil {
		return
	}
	b.handle++
	m.handle = strconv.Itoa(b.handle)
	if b.open == nil {
		b.open = map[string]*mail{}
	}
	b.open[m.handle] = m
}

// next completes with the oldest message, or when there is one.
func (b *mailbox) next(ctx context.Context, done func(lode.Message, error)) {
	b.mu.Lock()
	if b.ended {
		b.mu.Unlock()
		done(lode.Message{}, b.gone())
		return
	}
	if len(b.waits) > 0 {
		m := b.waits[0]
		b.waits[0], b.waits = nil, b.waits[1:]
		b.bytes -= len(m.body)
		b.taken(m)
		b.mu.Unlock()
		done(m.message(), nil)
		return
	}
	t := &nextOp{done: done}
	t.stop = context.AfterFunc(ctx, func() { b.giveUp(t) })
	b.takers = append(b.takers, t)
	b.mu.Unlock()
}

// giveUp ends an operation next that was cancelled.
func (b *mailbox) giveUp(t *nextOp) {
	b.mu.Lock()
	i := slices.Index(b.takers, t)
	if i >= 0 {
		b.takers = slices.Delete(b.takers, i, i+1)
	}
	b.mu.Unlock()
	if i >= 0 {
		t.done(lode.Message{}, lode.Errorf(lode.Cancelled, "nobody waits for the next message any longer"))
	}
}

// reply answers a message that was taken, once.
func (b *mailbox) reply(handle string, m lode.Message) error {
	b.mu.Lock()
	to := b.open[handle]
	delete(b.open, handle)
	b.mu.Unlock()
	if to == nil {
		return lode.Errorf(lode.Gone, "nobody waits for the answer %.20q", handle).WithHint("the caller has given up, or has its answer already")
	}
	to.answer <- m
	return nil
}

// call delivers m and waits for its answer.
func (b *mailbox) call(ctx context.Context, m *mail) (lode.Message, error) {
	m.answer = make(chan lode.Message, 1)
	if err := b.deliver(m); err != nil {
		return lode.Message{}, err
	}
	select {
	case ans := <-m.answer:
		return ans, nil
	case <-b.end:
		select {
		case ans := <-m.answer: // its last deed
			return ans, nil
		default:
			return lode.Message{}, b.gone()
		}
	case <-ctx.Done():
		b.forget(m)
		return lode.Message{}, ended(ctx, "waiting for "+b.run.String())
	}
}

// forget drops a message that nobody waits for any longer.
func (b *mailbox) forget(m *mail) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if m.handle != "" {
		delete(b.open, m.handle)
	} else if i := slices.Index(b.waits, m); i >= 0 {
		b.waits = slices.Delete(b.waits, i, i+1)
		b.bytes -= len(m.body)
	}
}

// close ends the mailbox: who waits learns that the invocation has ended.
func (b *mailbox) close() {
	b.mu.Lock()
	takers := b.takers
	b.ended, b.takers, b.waits, b.open = true, nil, nil, nil
	b.mu.Unlock()
	close(b.end)
	for _, t := range takers {
		t.stop()
		t.done(lode.Message{}, b.gone())
	}
}

// mailboxes are those of a node.
type mailboxes struct {
	mu sync.Mutex
	of map[lode.InvocationID]*mailbox
}

func (m *mailboxes) add(b *mailbox) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.of == nil {
		m.of = map[lode.InvocationID]*mailbox{}
	}
	m.of[b.run.id] = b
}

func (m *mailboxes) remove(b *mailbox) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.of[b.run.id] == b { // else another attempt of the same invocation has it
		delete(m.of, b.run.id)
	}
}

// get finds an invocation of this node that runs and has asked for its
// address.
func (m *mailboxes) get(ns lode.Namespace, run runAddress) (*mailbox, error) {
	m.mu.Lock()
	b := m.of[run.id]
	m.mu.Unlock()
	if b == nil || b.ns != ns || b.run != run {
		return nil, (&mailbox{run: run}).gone()
	}
	return b, nil
}

// reach is what others can reach of an attempt while it runs: its mailbox and
// its memberships in groups.
type reach struct {
	box *mailbox

	manies atomic.Int32 // gathers so far

	mu     sync.Mutex
	ended  bool
	groups map[string]*member
	joins  map[string]bool // under way
}

// reach makes the attempt one that others can reach, if it is not yet; nil:
// it has ended.
func (a *attempt) reach() *reach {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.reached == nil && !a.gone {
		a.began.Add(1)
		run := runAddress{a.rev.Name, lode.NodeID(a.s.cfg.Node), a.id}
		a.reached = &reach{box: &mailbox{run: run, ns: a.rev.Namespace, end: make(chan struct{})}}
		a.s.boxes.add(a.reached.box)
	}
	return a.reached
}

// unreach ends what others reach of the attempt.
func (a *attempt) unreach() {
	if a.began.Load() == 0 {
		return
	}
	a.mu.Lock()
	r := a.reached
	a.reached, a.gone = nil, true
	a.mu.Unlock()
	if r == nil {
		return
	}
	a.s.boxes.remove(r.box)
	r.box.close()
	r.leaveAll()
}

func over() error { return lode.Errorf(lode.Cancelled, "the invocation has ended") }

// selfOp is the operation self. In a turn the turn's own part comes first.
func (a *attempt) selfOp(m lode.Message) lode.Message {
	if r := a.reach(); r != nil {
		m.Head = append(m.Head, lode.Pair{Key: ":run", Value: r.box.run.String()})
	}
	return m
}

// receive is the operation receive.
func (a *attempt) receive(ctx context.Context, m *lode.Message, done func(lode.Message, error)) {
	r := a.reach()
	if r == nil {
		done(lode.Message{}, over())
		return
	}
	switch verb := m.Get(":verb"); verb {
	case "next":
		r.box.next(ctx, done)
	case "reply":
		status, err := number(m, ":status", 200, 599)
		if err == nil && status < 200 {
			err = lode.Errorf(lode.Invalid, "a reply has the status %d; want 200 to 599", status)
		}
		if err == nil {
			head := append([]lode.Pair{{Key: ":status", Value: strconv.FormatInt(status, 10)}}, fieldsOf(m)...)
			err = r.box.reply(m.Get(":reply"), lode.Message{Head: head, Body: m.Body})
		}
		done(lode.Message{}, err)
	default:
		done(lode.Message{}, lode.Errorf(lode.Invalid, "receive has no verb %.20q", verb).WithHint("verbs: next, reply"))
	}
}

// fieldsOf are the header fields among the pairs of a message.
func fieldsOf(m *lode.Message) (out []lode.Pair) {
	for _, p := range m.Head {
		if !strings.HasPrefix(p.Key, ":") {
			out = append(out, p)
		}
	}
	return out
}

// caller is the address of the agent or function that asks for something.
func (a *attempt) caller() string {
	if a.turn != nil {
		for _, p := range a.turn.Head {
			if p.Key == ":address" {
				return p.Value
			}
		}
	}
	return string(a.rev.Name)
}

// toRunning calls a running invocation, or only sends it a message.
func (a *attempt) toRunning(ctx context.Context, to runAddress, m *lode.Message, wait bool) (lode.Message, error) {
	if len(m.Body) > engine.MaxMessage-maxAnswerHead {
		return lode.Message{}, lode.Errorf(lode.TooLarge, "the message to %s has %d bytes; at most %d", to, len(m.Body), engine.MaxMessage-maxAnswerHead)
	}
	if !wait && m.Get(":delay") != "" && m.Get(":delay") != "0" {
		return lode.Message{}, lode.Errorf(lode.Invalid, "a message to %s cannot be delayed: nothing of it is durable", to).WithHint("send it later, or to an agent")
	}
	ctx, cancel := context.WithDeadline(ctx, a.inv.Deadline)
	defer cancel()
	w := &wireMail{Namespace: a.rev.Namespace, To: to.String(), Verb: m.Get(":verb"), Caller: a.caller(), Head: fieldsOf(m), Wait: wait}
	return a.s.callRunning(ctx, to, w, m.Body)
}

// callRunning brings a message to a running invocation of any node.
func (s *Service) callRunning(ctx context.Context, to runAddress, w *wireMail, body []byte) (lode.Message, error) {
	if string(to.node) != s.cfg.Node {
		return s.askMail(ctx, to, w, body)
	}
	b, err := s.boxes.get(w.Namespace, to)
	if err != nil {
		return lode.Message{}, err
	}
	m := &mail{verb: w.Verb, caller: w.Caller, head: w.Head, body: body}
	if !w.Wait {
		return lode.Message{Head: []lode.Pair{{Key: ":id", Value: string(lode.NewInvocationID(time.Now()))}}}, b.deliver(m)
	}
	return b.call(ctx, m)
}
