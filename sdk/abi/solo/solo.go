// Package solo is the host's side of agents in the memory of one process: what
// a turn reads and writes, its timers, messages and sockets, and groups and
// running invocations, as the page of lode/sdk/abi has them. The Go SDK serves
// agents with it when a program is run natively, and the tests of the SDKs run
// their guests against it, so that there is one reading of the page. It
// promises the page's words and nothing else: nothing is durable, nothing is
// fast, nothing is bounded but what the page bounds.
//
// It uses the standard library only, since it travels with the Go SDK.
//
// Locks: an agent's turn, which its caller holds from Begin to End; World.mu
// below it.
package solo

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"lode/sdk/abi"
)

// Message is a decoded message; a repeated key has its last value.
type Message struct {
	Head map[string]string
	Body []byte
}

// Delivery is a message for an agent.
type Delivery struct {
	To    string // kind/key
	Turn  string // call, timer
	Verb  string
	Type  string // content type of Args
	Args  []byte
	After time.Duration
	Timer string // name, where Turn is timer
	Due   time.Time
	From  string
	Chain []string // agents that wait for this call
}

// World holds the agents of a process. The zero value is empty and ready but
// for Call.
type World struct {
	// Call runs a turn of an agent and gives its answer: :status, fields,
	// body. nil: calls fail with unavailable.
	Call func(ctx context.Context, d Delivery) Message

	mu     sync.Mutex
	agents map[string]*agent
	groups map[string]*group
	runs   map[string]*run
	lastID int
	frames []Frame
}

// agent is what is stored of one.
type agent struct {
	turn    chan struct{} // holds one while a turn runs
	state   map[string][]byte
	timers  map[string]Timer
	sockets map[string]*socket
	events  int
}

// Timer is one that is set.
type Timer struct {
	At     time.Time
	Method string
	Type   string
	Args   []byte
}

// Frame is what a socket, or who listens, was told.
type Frame struct {
	Agent, Socket string // Socket "": an event, and Type is its own
	Type          string // text, binary, close
	Body          []byte
}

func (w *World) agent(address string) *agent {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.agents == nil {
		w.agents = map[string]*agent{}
	}
	a := w.agents[address]
	if a == nil {
		a = &agent{turn: make(chan struct{}, 1), state: map[string][]byte{}, timers: map[string]Timer{}, sockets: map[string]*socket{}}
		w.agents[address] = a
	}
	return a
}

// State is a copy of what an agent has stored.
func (w *World) State(address string) map[string][]byte {
	a := w.agent(address)
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(a.state)
}

// Frames are all frames and events so far.
func (w *World) Frames() []Frame {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.frames)
}

// Due lists the timers that are due at now, earliest first, and says when the
// next one is: zero if none is set. A timer is gone when its turn has ended
// well.
func (w *World) Due(now time.Time) (due []Delivery, next time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for address, a := range w.agents {
		for name, t := range a.timers {
			if t.At.After(now) {
				if next.IsZero() || t.At.Before(next) {
					next = t.At
				}
				continue
			}
			due = append(due, Delivery{To: address, Turn: "timer", Verb: t.Method, Type: t.Type, Args: t.Args, Timer: name, Due: t.At})
		}
	}
	slices.SortFunc(due, func(a, b Delivery) int { return a.Due.Compare(b.Due) })
	return due, next
}

// Postpone sets a timer to a later time, if it is the one that was due.
func (w *World) Postpone(d Delivery, at time.Time) {
	a := w.agent(d.To)
	w.mu.Lock()
	defer w.mu.Unlock()
	if t, ok := a.timers[d.Timer]; ok && t.At.Equal(d.Due) {
		t.At = at
		a.timers[d.Timer] = t
	}
}

// Turn is one turn under way. Its operations may come from several goroutines.
type Turn struct {
	*Session
	address  string
	kind     string // of the turn
	socket   string // that the client offers
	agent    *agent
	mu       sync.Mutex
	state    map[string][]byte
	timers   map[string]Timer
	sockets  map[string]*socket
	sent     []Delivery
	frames   []Frame
	events   int
	accepted bool
	removed  bool
}

// Begin waits for the agent's turn before it and begins one. kind is that of
// the turn, timer the name of the timer that is due, offered the WebSocket that
// a client offers.
func (w *World) Begin(ctx context.Context, address, kind, timer, offered string, chain []string) (*Turn, error) {
	a := w.agent(address)
	select {
	case a.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	t := &Turn{Session: &Session{w: w, from: address, chain: append(slices.Clone(chain), address)}, address: address, kind: kind, socket: offered, agent: a,
		state: maps.Clone(a.state), timers: maps.Clone(a.timers), sockets: map[string]*socket{}, events: a.events}
	for id, s := range a.sockets {
		c := *s
		t.sockets[id] = &c
	}
	delete(t.timers, timer)
	return t, nil
}

// End ends the turn. If it went well, what it did is the agent's, and what it
// sent is returned, to be delivered.
func (t *Turn) End(ok bool) []Delivery {
	defer func() { <-t.agent.turn }()
	t.Session.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	if !ok || t.kind == "read" {
		return nil
	}
	t.store()
	return t.sent
}

// store makes what was done so far the agent's.
func (t *Turn) store() {
	t.w.mu.Lock()
	defer t.w.mu.Unlock()
	a := t.agent
	if t.removed {
		t.state, t.timers = map[string][]byte{}, map[string]Timer{}
	}
	a.state, a.timers, a.events = maps.Clone(t.state), maps.Clone(t.timers), t.events
	a.sockets = t.sockets
	t.w.frames = append(t.w.frames, t.frames...)
	t.frames = nil
}

// Accepted reports whether the turn took the socket that it was offered.
func (t *Turn) Accepted() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.accepted
}

// Operate performs one operation of the turn.
func (t *Turn) Operate(ctx context.Context, op abi.Op, m Message) (abi.Status, Message) {
	switch op {
	case abi.OpState, abi.OpTimer, abi.OpSocket, abi.OpSend:
	default:
		return t.Session.Operate(ctx, op, m)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.kind == "read" && changes(op, m.Head[":verb"]) {
		return refuse("denied", "a method that only reads may not do that")
	}
	switch op {
	case abi.OpState:
		return t.stateOp(m)
	case abi.OpTimer:
		return t.timerOp(m)
	case abi.OpSocket:
		return t.socketOp(m)
	}
	d, err := delivery(m)
	if err != "" {
		return refuse("invalid", err)
	}
	d.From = t.address
	t.sent = append(t.sent, d)
	return 0, Message{Head: map[string]string{":id": t.w.id("s")}}
}

// changes tells the operations that a read may not have.
func changes(op abi.Op, verb string) bool {
	switch verb {
	case "get", "mget", "list":
		return false
	case "send", "close", "emit":
		return op != abi.OpSocket
	}
	return true
}

// delivery reads the request of a send; err says what is wrong with it.
func delivery(m Message) (d Delivery, err string) {
	kind, key, _ := strings.Cut(m.Head[":address"], "/")
	if kind == "" || key == "" || m.Head[":verb"] == "" {
		return d, "a message needs the address of an agent and a method"
	}
	ms, _ := strconv.ParseInt(m.Head[":delay"], 10, 64)
	return Delivery{To: m.Head[":address"], Turn: "call", Verb: m.Head[":verb"], Type: m.Head["content-type"], Args: m.Body, After: time.Duration(ms) * time.Millisecond}, ""
}

func (w *World) id(prefix string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lastID++
	return prefix + strconv.Itoa(w.lastID)
}

// refuse is an operation that failed.
func refuse(kind, detail string) (abi.Status, Message) {
	return abi.StatusOf(kind), Message{Head: map[string]string{":error": kind, ":detail": detail}}
}

func done(kv ...string) (abi.Status, Message) {
	m := Message{Head: map[string]string{}}
	for i := 0; i < len(kv); i += 2 {
		m.Head[kv[i]] = kv[i+1]
	}
	return 0, m
}

func found(ok bool) string {
	if ok {
		return "1"
	}
	return "0"
}

func jsonBody(v any) (abi.Status, Message) {
	b, err := json.Marshal(v)
	if err != nil {
		return refuse("internal", err.Error())
	}
	return 0, Message{Body: b}
}
