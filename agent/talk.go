package agent

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"

	"lode"
	"lode/agent/journal"
)

// isRunning reports whether an address is that of a running invocation.
func isRunning(addr string) bool {
	_, key, _ := strings.Cut(addr, "/")
	return strings.HasPrefix(key, "~")
}

// callOp calls another agent. Calls to functions and running invocations are
// none of a turn's own.
func (t *turn) callOp(ctx context.Context, req *lode.Message, done func(lode.Message, error)) bool {
	to, err := lode.ParseAddress(req.Get(":address"))
	if err != nil || to.Key == "" || isRunning(req.Get(":address")) {
		return t.leaves(done)
	}
	c := t.callOf(to, req)
	chain := t.m.rev.Function.Agent.Reentrant == lode.ReentrantChain && !t.aside && t.m.turn != lode.TurnRead
	if chain {
		t.syncOp(func(_ lode.Message, err error) {
			if err != nil {
				done(lode.Message{}, err)
				return
			}
			go t.call(ctx, c, done)
		})
		return true
	}
	if !t.readWithin(ctx, c, done) {
		go t.call(ctx, c, done)
	}
	return true
}

// readWithin calls a method that only reads, of an agent that is here and idle,
// on the goroutine of the caller's code, with what that holds of the machine:
// two wake-ups less. false: it is a call like others.
func (t *turn) readWithin(ctx context.Context, c *lode.AgentCall, done func(lode.Message, error)) bool {
	s := t.p.s
	if t.run.Lend == nil || t.run.Within != nil || c.Turn != "" || c.Given {
		return false
	}
	m, err := s.message(c)
	if err != nil || m.turn != lode.TurnRead {
		return false
	}
	p := s.partition(journal.Partition{Namespace: c.Namespace, Kind: c.Kind, N: lode.PartitionOf(c.Key, partitionsOf(m.rev))})
	if p == nil || !p.idle(c.Key) || !t.free() {
		return false
	}
	m.within, m.until = t.run.Lend, m.deadline(s.started())
	out, err := p.do(ctx, m)
	if again(err) {
		return false
	}
	r, err := s.answer(m, out, err)
	done(message2(r), err)
	return true
}

// idle reports whether nobody is at work on an agent.
func (p *partition) idle(key string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.agents[key]
	return p.open && (a == nil || !a.busy && a.beside == 0)
}

// free reports whether nothing that the turn rests on has still to become
// durable.
func (t *turn) free() bool {
	t.p.mu.Lock()
	defer t.p.mu.Unlock()
	return t.a.tail == nil
}

func (t *turn) callOf(to lode.Address, req *lode.Message) *lode.AgentCall {
	t.calls++
	c := &lode.AgentCall{Namespace: t.p.id.Namespace, Kind: to.Name, Key: to.Key, Method: req.Get(":verb"), ID: lode.TurnIDOf(t.m.id, t.calls), Body: req.Body,
		Deadline: before(t.run.Run.Deadline), Caller: t.a.address(), Chain: append(slices.Clone(t.m.c.Chain), linkOf(t)), Trace: t.run.Span, Depth: t.m.c.Depth + 1}
	if c.Method == "" {
		c.Turn, c.Method, c.Path = lode.TurnFetch, orWord(req.Get(":method"), "POST"), orWord(req.Get(":path"), "/")
	}
	if k := req.Get(":key"); k != "" {
		c.ID, c.Given = k, true
	}
	for _, p := range req.Head {
		if !strings.HasPrefix(p.Key, ":") {
			c.Head = append(c.Head, p)
		}
	}
	return c
}

// before is a bit earlier than the deadline of a turn: what it calls ends
// first, and says what it waited for.
func before(deadline time.Time) time.Time {
	return deadline.Add(-min(time.Until(deadline)/10, 200*time.Millisecond))
}

func orWord(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

// call makes a call of the turn.
func (t *turn) call(ctx context.Context, c *lode.AgentCall, done func(lode.Message, error)) {
	if err := t.gate(); err != nil {
		done(lode.Message{}, err)
		return
	}
	t.waiting(c, true)
	r, err := t.p.s.Call(ctx, c)
	t.waiting(c, false)
	done(message2(r), err)
}

// gate waits until everything that the turn may have seen of its agent is
// acknowledged: what leaves the node must not rest on what may be lost.
func (t *turn) gate() error {
	if t.aside {
		return nil
	}
	t.p.mu.Lock()
	tail := t.a.tail
	t.p.mu.Unlock()
	if tail == nil {
		return nil
	}
	<-tail.done
	return tail.err
}

// message2 is a reply as an operation's result.
func message2(r *lode.AgentReply) lode.Message {
	if r == nil {
		return lode.Message{}
	}
	return lode.Message{Head: append([]lode.Pair{{Key: ":status", Value: strconv.Itoa(r.Status)}}, r.Head...), Body: r.Body}
}

// waiting notes that the turn waits for a call, or does no more.
func (t *turn) waiting(c *lode.AgentCall, on bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !on {
		delete(t.calling, c)
		return
	}
	if t.calling == nil {
		t.calling = map[*lode.AgentCall]time.Time{}
	}
	t.calling[c] = t.p.s.started()
}

// sendOp sends a message when the turn takes effect.
func (t *turn) sendOp(req *lode.Message) (lode.Message, error) {
	if err := t.mayWrite(); err != nil {
		return lode.Message{}, err
	}
	to, err := lode.ParseAddress(req.Get(":address"))
	if err != nil {
		return lode.Message{}, err
	}
	if to.Key == "" {
		return lode.Message{}, lode.Errorf(lode.Invalid, "%s is no address of an agent: want kind/key", to).WithHint("put work for a function into a queue")
	}
	if req.Get(":verb") == "" {
		return lode.Message{}, lode.Errorf(lode.Invalid, "a message to %s names no method", to)
	}
	if _, err := t.p.s.cfg.Catalog.Kind(t.p.id.Namespace, to.Name); err != nil {
		return lode.Message{}, err
	}
	if len(req.Body) > maxLetter {
		return lode.Message{}, lode.Errorf(lode.TooLarge, "the arguments of a message have %d bytes; at most %d", len(req.Body), maxLetter)
	}
	if len(t.letters) >= maxLetters {
		return lode.Message{}, busy(to)
	}
	var delay int64
	if s := req.Get(":delay"); s != "" {
		if delay, err = strconv.ParseInt(s, 10, 64); err != nil || delay < 0 || delay > 1<<40 {
			return lode.Message{}, lode.Errorf(lode.Invalid, "the delay of a message is %q, not a number of milliseconds", s)
		}
	}
	t.calls++
	l := letter{To: to.Key, From: t.a.address(), ID: lode.TurnIDOf(t.m.id, t.calls), Method: req.Get(":verb"), Type: req.Get("content-type"), Body: req.Body, Trace: t.run.Span, kind: to.Name}
	if delay > 0 {
		l.Due = (t.p.s.now() + delay) * 1000
	}
	t.letters = append(t.letters, l)
	return lode.Message{Head: []lode.Pair{{Key: ":id", Value: l.ID}}}, nil
}

func busy(to lode.Address) error {
	e := lode.Errorf(lode.Overloaded, "%d messages wait to be taken by %s and its neighbours", windowMax, to)
	e.RetryAfter = time.Second
	return e.WithHint("send less in one turn, or let the receiver catch up")
}

// outbox adds the messages that the turn sends; p.mu is held.
func (t *turn) outbox(b *builder, r *record) error {
	before := map[*channel]uint64{}
	for i := range t.letters {
		if err := t.mail(b, &t.letters[i], before); err != nil {
			for ch, n := range before {
				ch.next = n // the numbers were not used
			}
			return err
		}
	}
	for ch := range before {
		r.peers = append(r.peers, ch.to)
		e := newEnc(16)
		e.u(ch.next)
		b.set(peerKey(spaceChannel, ch.to), e.b)
	}
	return nil
}

// mail gives a message the next number of its channel.
func (t *turn) mail(b *builder, l *letter, before map[*channel]uint64) error {
	to, err := t.p.peerOf(l.kind, l.To)
	if err != nil {
		return err
	}
	ch := t.p.channel(to)
	if err := ch.load(); err != nil {
		return err
	}
	if ch.next+1 > ch.mark+windowMax {
		return busy(lode.Address{Name: l.kind, Key: l.To})
	}
	if _, ok := before[ch]; !ok {
		before[ch] = ch.next
	}
	ch.next++
	e := newEnc(128 + len(l.Body))
	l.encode(e)
	b.set(outKey(to, ch.next), e.b)
	return nil
}

// peerOf is the partition of an agent of this namespace.
func (p *partition) peerOf(kind lode.Name, key string) (peer, error) {
	rev, err := p.s.cfg.Catalog.Kind(p.id.Namespace, kind)
	if err != nil {
		return peer{}, err
	}
	return peer{kind, lode.PartitionOf(key, partitionsOf(rev))}, nil
}

func partitionsOf(rev *lode.Revision) int {
	if n := rev.Function.Agent.Partitions; n > 0 {
		return n
	}
	return lode.DefaultPartitions
}

// socketOp is an operation on the agent's WebSockets and listeners.
func (t *turn) socketOp(req *lode.Message) (lode.Message, error) {
	id, verb := req.Get(":socket"), req.Get(":verb")
	if verb == "list" {
		return t.listSockets(req.Get(":tag"))
	}
	if verb != "send" && verb != "close" {
		if err := t.mayWrite(); err != nil {
			return lode.Message{}, err
		}
	}
	switch verb {
	case "emit":
		return t.emit(req)
	case "accept":
		tags := strings.Fields(req.Get(":tags"))
		if id == "" || id != headOf(t.m.c.Head, ":socket") || len(tags) > maxSockTags {
			return lode.Message{}, lode.Errorf(lode.Invalid, "only the socket of the request can be accepted, with at most %d tags", maxSockTags)
		}
		t.setSocket(id, &socket{Tags: tags})
		return lode.Message{}, nil
	}
	s, ok, err := t.socket(id)
	if err != nil || !ok {
		return lode.Message{Head: found(false)}, err
	}
	switch verb {
	case "send":
		if len(req.Body) > maxFrame {
			return lode.Message{}, lode.Errorf(lode.TooLarge, "a message to a socket has %d bytes; at most %d", len(req.Body), maxFrame)
		}
		t.frame(id, lode.SocketFrame{Socket: id, Binary: req.Get(":type") == "binary", Data: req.Body})
	case "close":
		code, _ := strconv.Atoi(orWord(req.Get(":code"), "1000"))
		t.frame(id, lode.SocketFrame{Socket: id, Close: true, Code: code, Data: []byte(req.Get(":reason"))})
		t.setSocket(id, nil)
	case "attach":
		if len(req.Body) > maxAttach {
			return lode.Message{}, lode.Errorf(lode.TooLarge, "an attachment has %d bytes; at most %d", len(req.Body), maxAttach)
		}
		s.Attachment = slices.Clone(req.Body)
		t.setSocket(id, &s)
	default:
		return lode.Message{}, lode.Errorf(lode.Invalid, "socket has no verb %q", verb)
	}
	return lode.Message{Head: found(true)}, nil
}

// frame tells a socket something. Frames are numbered by the turn and their
// order in it, so that a turn that runs again numbers them alike.
func (t *turn) frame(id string, f lode.SocketFrame) {
	f.N = t.p.s.frameNumber()
	t.frames = append(t.frames, f)
}

func headOf(head []lode.Pair, key string) string {
	for i := range head {
		if head[i].Key == key {
			return head[i].Value
		}
	}
	return ""
}

func (t *turn) socket(id string) (socket, bool, error) {
	if s, ok := t.sockets[id]; ok {
		if s == nil {
			return socket{}, false, nil
		}
		return *s, true, nil
	}
	b, ok, err := t.under(partSocket, id)
	if err != nil || !ok {
		return socket{}, false, err
	}
	s, err := decodeSocket(b)
	return s, err == nil, err
}

func (t *turn) setSocket(id string, s *socket) {
	if t.sockets == nil {
		t.sockets = map[string]*socket{}
	}
	t.sockets[id] = s
}

// ofSocket checks a turn that is about a socket: the end of one that is not
// known any more is nothing to run code for. One that ends is forgotten.
func (t *turn) ofSocket() (ok bool, err error) {
	if t.m.turn != lode.TurnSocket {
		return true, nil
	}
	id, event := headOf(t.m.c.Head, ":socket"), headOf(t.m.c.Head, ":event")
	_, known, err := t.socket(id)
	switch {
	case err != nil:
		return false, err
	case event == "message" && !known:
		return false, lode.Errorf(lode.Gone, "%s does not know the socket %s", t.a.address(), id)
	case event != "message":
		if !known {
			return false, nil
		}
		t.setSocket(id, nil)
	}
	return true, nil
}

// allSockets are the sockets that are open.
func (t *turn) allSockets() (map[string]socket, error) {
	out := map[string]socket{}
	var bad error
	err := t.walk(partSocket, "", "", false, t.overlaid(partSocket, "", ""), func(k string, v, _ []byte) bool {
		var s socket
		if s, bad = decodeSocket(slices.Clone(v)); bad == nil {
			out[k] = s
		}
		return bad == nil
	})
	for id, s := range t.sockets {
		if s == nil {
			delete(out, id)
		} else {
			out[id] = *s
		}
	}
	return out, cmpErr(err, bad)
}

func (t *turn) listSockets(tag string) (lode.Message, error) {
	type entry struct {
		Socket     string   `json:"socket"`
		Tags       []string `json:"tags,omitempty"`
		Attachment string   `json:"attachment,omitempty"`
	}
	all, err := t.allSockets()
	if err != nil {
		return lode.Message{}, err
	}
	out := []entry{}
	for id, s := range all {
		if tag == "" || slices.Contains(s.Tags, tag) {
			out = append(out, entry{id, s.Tags, base64.StdEncoding.EncodeToString(s.Attachment)})
		}
	}
	slices.SortFunc(out, func(a, b entry) int { return strings.Compare(a.Socket, b.Socket) })
	b, err := json.Marshal(out)
	return lode.Message{Body: b}, err
}

// socketChanges adds what became of sockets; p.mu is held.
func (t *turn) socketChanges(b *builder) {
	for id, s := range t.sockets {
		if s == nil {
			b.del(in(t.a.prefix, partSocket, id))
		} else {
			b.set(in(t.a.prefix, partSocket, id), s.encode())
		}
	}
}

// emit adds an event for those who listen.
func (t *turn) emit(req *lode.Message) (lode.Message, error) {
	if len(req.Body) > maxEvent {
		return lode.Message{}, lode.Errorf(lode.TooLarge, "an event has %d bytes; at most %d", len(req.Body), maxEvent)
	}
	t.p.mu.Lock()
	n := t.a.meta.Events + uint64(len(t.events)) + 1
	t.p.mu.Unlock()
	t.events = append(t.events, lode.AgentEvent{N: n, Type: req.Get(":type"), Data: slices.Clone(req.Body)})
	return lode.Message{Head: []lode.Pair{{Key: ":n", Value: strconv.FormatUint(n, 10)}}}, nil
}

// eventChanges adds the events, and drops those that are too many; p.mu is
// held.
func (t *turn) eventChanges(b *builder, r *record) {
	a := t.a
	for i := range t.events {
		a.meta.Events++
		t.events[i].N = a.meta.Events
		b.set(inN(a.prefix, partEvent, a.meta.Events), encodeEvent(t.events[i].Type, t.events[i].Data))
	}
	if n := a.meta.Events; len(t.events) > 0 && n > keptEvents {
		b.cut(inN(a.prefix, partEvent, 0), inN(a.prefix, partEvent, n-keptEvents+1))
	}
	r.events = t.events
}
