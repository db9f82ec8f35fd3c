package solo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"lode/sdk/abi"
)

// Session is what an invocation, of a function or a turn, does with agents
// from outside of them: call, send, receive, group.
type Session struct {
	w     *World
	from  string // address of the agent; "": a function
	chain []string

	mu      sync.Mutex
	run     *run
	members map[string]*member
}

// Open begins an invocation of a function.
func (w *World) Open() *Session { return &Session{w: w} }

// Close ends it: its address is gone.
func (s *Session) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.run != nil {
		s.w.mu.Lock()
		delete(s.w.runs, s.run.address)
		s.w.mu.Unlock()
		close(s.run.over)
		s.run = nil
	}
}

// Operate performs one operation; unavailable if it is none of agents.
func (s *Session) Operate(ctx context.Context, op abi.Op, m Message) (abi.Status, Message) {
	switch op {
	case abi.OpCall:
		return s.call(ctx, m)
	case abi.OpSend:
		return s.send(ctx, m)
	case abi.OpSelf:
		return done(":address", s.from, ":run", s.Run(), ":node", "solo", ":namespace", "default")
	case abi.OpReceive:
		return s.receive(ctx, m)
	case abi.OpGroup:
		return s.group(ctx, m)
	}
	return refuse("unavailable", "this operation needs a node")
}

func (s *Session) call(ctx context.Context, m Message) (abi.Status, Message) {
	address := m.Head[":address"]
	if strings.HasPrefix(address, "run/") {
		return s.w.deliver(ctx, Delivery{To: address, Verb: m.Head[":verb"], Type: m.Head["content-type"], Args: m.Body, From: s.from}, true)
	}
	if s.w.Call == nil {
		return refuse("unavailable", "nobody runs agents here")
	}
	if slices.Contains(s.chain, address) {
		return refuse("conflict", address+" waits for this very call")
	}
	d := Delivery{To: address, Turn: "call", Verb: m.Head[":verb"], Type: m.Head["content-type"], Args: m.Body, From: s.from, Chain: s.chain}
	if d.Verb == "" {
		d.Turn = "fetch"
	}
	return 0, s.w.Call(ctx, d)
}

// send from a function is done when it is delivered.
func (s *Session) send(ctx context.Context, m Message) (abi.Status, Message) {
	if strings.HasPrefix(m.Head[":address"], "run/") {
		return s.w.deliver(ctx, Delivery{To: m.Head[":address"], Verb: m.Head[":verb"], Type: m.Head["content-type"], Args: m.Body, From: s.from}, false)
	}
	d, wrong := delivery(m)
	if wrong != "" {
		return refuse("invalid", wrong)
	}
	if s.w.Call == nil {
		return refuse("unavailable", "nobody runs agents here")
	}
	id := s.w.id("s")
	s.w.Call(ctx, d)
	return done(":id", id)
}

// run is the mailbox of a running invocation.
type run struct {
	address string
	inbox   chan *incoming
	over    chan struct{}

	mu      sync.Mutex
	waiting map[string]*incoming
}

type incoming struct {
	Delivery
	reply chan Message // nil: nobody waits
}

// Run is the invocation's own address.
func (s *Session) Run() string { return s.mailbox().address }

func (s *Session) mailbox() *run {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.run == nil {
		s.run = &run{address: "run/" + s.w.id(""), inbox: make(chan *incoming, 1024), over: make(chan struct{}), waiting: map[string]*incoming{}}
		s.w.mu.Lock()
		defer s.w.mu.Unlock()
		if s.w.runs == nil {
			s.w.runs = map[string]*run{}
		}
		s.w.runs[s.run.address] = s.run
	}
	return s.run
}

// Deliver sends a message to a running invocation, and waits for its reply if
// wait.
func (w *World) Deliver(ctx context.Context, d Delivery, wait bool) (abi.Status, Message) {
	return w.deliver(ctx, d, wait)
}

func (w *World) deliver(ctx context.Context, d Delivery, wait bool) (abi.Status, Message) {
	w.mu.Lock()
	r := w.runs[d.To]
	w.mu.Unlock()
	if r == nil {
		return refuse("not_found", d.To+" does not run")
	}
	in := &incoming{Delivery: d}
	if wait {
		in.reply = make(chan Message, 1)
	}
	select {
	case r.inbox <- in:
	default:
		return refuse("overloaded", "1,024 messages wait at "+d.To)
	}
	if !wait {
		return done(":id", w.id("s"))
	}
	select {
	case m := <-in.reply:
		return 0, m
	case <-r.over:
		return refuse("not_found", d.To+" has ended")
	case <-ctx.Done():
		return refuse("cancelled", "nobody waits any more")
	}
}

func (s *Session) receive(ctx context.Context, m Message) (abi.Status, Message) {
	r := s.mailbox()
	switch m.Head[":verb"] {
	case "next":
		select {
		case in := <-r.inbox:
			_, out := done(":verb", in.Verb, ":caller", in.From, "content-type", in.Type)
			out.Body = in.Args
			if in.reply != nil {
				out.Head[":reply"] = s.w.id("")
				r.mu.Lock()
				r.waiting[out.Head[":reply"]] = in
				r.mu.Unlock()
			}
			return 0, out
		case <-ctx.Done():
			return refuse("cancelled", "nobody waits any more")
		}
	case "reply":
		r.mu.Lock()
		in := r.waiting[m.Head[":reply"]]
		delete(r.waiting, m.Head[":reply"])
		r.mu.Unlock()
		if in == nil {
			return refuse("not_found", "nobody waits for this reply")
		}
		status := m.Head[":status"]
		if status == "" {
			status = "200"
		}
		_, out := done(":status", status, "content-type", m.Head["content-type"])
		out.Body = bytes.Clone(m.Body)
		in.reply <- out
		return done()
	}
	return refuse("invalid", "receive has no verb "+strconv.Quote(m.Head[":verb"]))
}

// gather calls all members at once.
func (s *Session) gather(ctx context.Context, m Message) (abi.Status, Message) {
	var q struct {
		Members []string
		Method  string
		Args    json.RawMessage
	}
	if err := json.Unmarshal(m.Body, &q); err != nil {
		return refuse("invalid", err.Error())
	}
	if s.w.Call == nil {
		return refuse("unavailable", "nobody runs agents here")
	}
	type answer struct {
		Member string          `json:"member"`
		Status int             `json:"status"`
		Value  json.RawMessage `json:"value"`
	}
	out := make([]answer, len(q.Members))
	var wg sync.WaitGroup
	for i, member := range q.Members {
		wg.Go(func() {
			r := s.w.Call(ctx, Delivery{To: member, Turn: "call", Verb: q.Method, Type: "application/vnd.lode.args+json", Args: q.Args, From: s.from, Chain: s.chain})
			status, _ := strconv.Atoi(r.Head[":status"])
			out[i] = answer{Member: member, Status: max(status, 200), Value: json.RawMessage("null")}
			if json.Valid(r.Body) {
				out[i].Value = r.Body
			}
		})
	}
	wg.Wait()
	if m.Head[":verb"] == "broadcast" {
		return done()
	}
	return jsonBody(out)
}

// timeout is the request's own, or 30 s.
func timeout(m Message) time.Duration {
	if ms, err := strconv.ParseInt(m.Head[":timeout"], 10, 64); err == nil && ms >= 0 {
		return time.Duration(ms) * time.Millisecond
	}
	return 30 * time.Second
}

func ranks(list []int) string { return strings.ReplaceAll(fmt.Sprint(list), " ", ",") }
