package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"lode"
)

// town is agents of one kind, in memory: each does one turn at a time, all or
// nothing, and remembers the replies of its turns by their ids.
type town struct {
	gate   *Gateway
	access lode.Access
	fn     lode.Function

	mu      sync.Mutex
	agents  map[string]*resident
	queued  sync.WaitGroup // turns that were posted
	refuse  []error        // what the next calls fail with
	begun   chan bool      // turns of the method wait say that they began
	blocked chan bool      // and take a token
}

// resident is one agent of the town: it counts, and keeps a guest book.
type resident struct {
	mu      sync.Mutex
	total   int
	replies map[string]*lode.AgentReply
	events  []lode.AgentEvent
	changed chan bool // closed at the next event
	sockets map[string]uint64
	log     []string // what came, in words
}

func newTown() *town {
	return &town{access: lode.AccessToken, agents: map[string]*resident{}, fn: lode.Function{
		Agent:   &lode.AgentSpec{Methods: []string{"add", "total", "emit", "fail", "say", "wait"}, Read: []string{"total"}},
		Exports: &lode.Description{Kinds: []lode.KindExp{{Name: "cart", Fetch: true, Socket: true}}},
	}}
}

func (o *town) Kind(ns lode.Namespace, kind lode.Name) (lode.Access, *lode.Function, bool) {
	if ns != lode.DefaultNamespace || kind != "cart" {
		return "", nil, false
	}
	return o.access, &o.fn, true
}

func (o *town) resident(key string) *resident {
	o.mu.Lock()
	defer o.mu.Unlock()
	a := o.agents[key]
	if a == nil {
		a = &resident{replies: map[string]*lode.AgentReply{}, changed: make(chan bool), sockets: map[string]uint64{}}
		o.agents[key] = a
	}
	return a
}

func (o *town) nextRefusal() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.refuse) == 0 {
		return nil
	}
	err := o.refuse[0]
	o.refuse = o.refuse[1:]
	return err
}

func (o *town) Call(ctx context.Context, c *lode.AgentCall) (*lode.AgentReply, error) {
	if err := o.nextRefusal(); err != nil {
		return nil, err
	}
	a := o.resident(c.Key)
	a.mu.Lock()
	defer a.mu.Unlock()
	if old := a.replies[c.ID]; old != nil {
		rep := *old
		rep.Repeated = true
		return &rep, nil
	}
	rep, frames, err := o.turn(ctx, a, c)
	if err != nil {
		return nil, err
	}
	rep.ID, rep.Node = c.ID, "n2"
	a.replies[c.ID] = rep
	gone, err := o.gate.Deliver(ctx, frames)
	for _, s := range gone {
		delete(a.sockets, s)
		a.log = append(a.log, "gone")
	}
	return rep, err
}

func pairs(head []lode.Pair) map[string]string {
	m := map[string]string{}
	for _, p := range head {
		m[p.Key] = p.Value
	}
	return m
}

// turn is the code of the kind.
func (o *town) turn(ctx context.Context, a *resident, c *lode.AgentCall) (*lode.AgentReply, []lode.SocketFrame, error) {
	head := pairs(c.Head)
	switch c.Turn {
	case lode.TurnFetch:
		return a.fetch(c, head)
	case lode.TurnSocket:
		return a.socket(c, head)
	}
	var args []json.RawMessage
	switch {
	case len(c.Body) == 0:
	case head["content-type"] == typeArgs:
		if err := json.Unmarshal(c.Body, &args); err != nil {
			return nil, nil, lode.Errorf(lode.Invalid, "no list")
		}
	default:
		args = []json.RawMessage{bytes.Clone(c.Body)}
	}
	a.log = append(a.log, fmt.Sprintf("%s %s %s %s", c.Turn, c.Method, head["content-type"], args))
	switch c.Method {
	case "add":
		for _, s := range args {
			n, err := strconv.Atoi(string(s))
			if err != nil {
				return nil, nil, &lode.Error{Kind: lode.Crashed, Detail: "cart failed", Guest: &lode.GuestError{Type: "TypeError", Message: err.Error()}}
			}
			a.total += n
		}
	case "emit":
		a.emit(lode.AgentEvent{Type: c.Key, Data: bytes.Clone(c.Body)})
		return &lode.AgentReply{Status: 204}, nil, nil
	case "say":
		return &lode.AgentReply{Status: 204}, a.frames(func(f *lode.SocketFrame) { f.Data = bytes.Clone(c.Body) }), nil
	case "fail":
		return nil, nil, &lode.Error{Kind: lode.Crashed, Detail: "cart failed", Guest: &lode.GuestError{Type: "Error", Message: "no"}}
	case "wait":
		o.begun <- true
		select {
		case <-ctx.Done():
			return nil, nil, lode.Errorf(lode.Cancelled, "the caller went away")
		case <-o.blocked:
		}
	}
	return &lode.AgentReply{Status: 200, Head: []lode.Pair{{Key: "content-type", Value: "application/json"}}, Body: []byte(strconv.Itoa(a.total))}, nil, nil
}

// frames makes one frame for each socket.
func (a *resident) frames(make func(*lode.SocketFrame)) (out []lode.SocketFrame) {
	for id := range a.sockets {
		a.sockets[id]++
		f := lode.SocketFrame{Socket: id, N: a.sockets[id]}
		make(&f)
		out = append(out, f)
	}
	return out
}

func (a *resident) fetch(c *lode.AgentCall, head map[string]string) (*lode.AgentReply, []lode.SocketFrame, error) {
	id := head[":socket"]
	if id == "" || strings.HasPrefix(c.Path, "/no") {
		return &lode.AgentReply{Status: 418, Head: []lode.Pair{{Key: "x-path", Value: c.Path}, {Key: "x-method", Value: c.Method}, {Key: "lode-error", Value: "forged"},
			{Key: "x-auth", Value: head["authorization"]}, {Key: "x-upgrade", Value: head["upgrade"]}}, Body: slices.Clone(c.Body)}, nil, nil
	}
	a.sockets[id] = 1
	a.log = append(a.log, "accept "+head["upgrade"])
	rep := &lode.AgentReply{Status: 101, Head: []lode.Pair{{Key: "sec-websocket-protocol", Value: "chat"}, {Key: "x-mine", Value: "1"}}}
	return rep, []lode.SocketFrame{{Socket: id, N: 1, Data: []byte("welcome " + c.Key)}, {Socket: id, N: 1, Data: []byte("again")}}, nil
}

func (a *resident) socket(c *lode.AgentCall, head map[string]string) (*lode.AgentReply, []lode.SocketFrame, error) {
	id := head[":socket"]
	if _, known := a.sockets[id]; !known {
		a.log = append(a.log, "unknown socket: "+head[":event"])
		return &lode.AgentReply{Status: 204}, nil, nil
	}
	if head[":event"] != "message" {
		delete(a.sockets, id)
		a.log = append(a.log, fmt.Sprintf("%s %s %q clean=%s", head[":event"], head[":code"], head[":reason"], head[":clean"]))
		return &lode.AgentReply{Status: 204}, nil, nil
	}
	a.log = append(a.log, fmt.Sprintf("%s %.20q", head[":type"], c.Body))
	a.sockets[id]++
	f := lode.SocketFrame{Socket: id, N: a.sockets[id], Binary: head[":type"] == "binary", Data: c.Body}
	switch string(c.Body) {
	case "bye":
		f = lode.SocketFrame{Socket: id, N: f.N, Close: true, Code: 4000, Data: []byte("as you wish")}
	case "crash":
		return nil, nil, &lode.Error{Kind: lode.Crashed, Detail: "cart failed", Guest: &lode.GuestError{Type: "Error", Message: "no"}}
	}
	return &lode.AgentReply{Status: 204}, []lode.SocketFrame{f, f}, nil
}

func (a *resident) emit(e lode.AgentEvent) {
	e.N = uint64(len(a.events)) + 1
	a.events = append(a.events, e)
	close(a.changed)
	a.changed = make(chan bool)
}

func (o *town) Post(_ context.Context, c *lode.AgentCall) (string, error) {
	if err := o.nextRefusal(); err != nil {
		return "", err
	}
	o.queued.Go(func() { _, _ = o.Call(context.Background(), c) })
	return c.ID, nil
}

func (o *town) Events(ctx context.Context, _ lode.Namespace, _ lode.Name, key string, after uint64, f func(lode.AgentEvent) error) error {
	if err := o.nextRefusal(); err != nil {
		return err
	}
	for a := o.resident(key); ; {
		a.mu.Lock()
		events, changed := a.events, a.changed
		a.mu.Unlock()
		for _, e := range events[min(after, uint64(len(events))):] {
			if err := f(e); err != nil {
				return err
			}
			after = e.N
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
			if err := o.nextRefusal(); err != nil {
				return err
			}
		}
	}
}

var _ Agents = (*town)(nil)

// logged is what an agent has written down.
func (o *town) logged(key string) string {
	a := o.resident(key)
	a.mu.Lock()
	defer a.mu.Unlock()
	return strings.Join(a.log, "\n")
}

// start serves the town, and a small node with a function.
func (o *town) start(t testing.TB, change func(*Config)) (*Gateway, string) {
	w := newWorld()
	w.deploy("censor", lode.Function{}, echo)
	w.fns["cart"] = &o.fn // a directory knows all names
	g, url := w.start(t, func(c *Config) {
		c.Agents = o
		if change != nil {
			change(c)
		}
	})
	o.gate = g
	return g, url
}
