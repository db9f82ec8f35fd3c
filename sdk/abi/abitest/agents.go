package abitest

import (
	"context"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"lode/sdk/abi"
	"lode/sdk/abi/solo"
)

// Agents runs turns of a guest's agents against a World. Each turn says
// whether it is warm, as a host does: if the guest ran the agent's last turn
// and that took effect. One turn runs at a time.
type Agents struct {
	Guest *Guest
	World *solo.World
	Class string     // of the turns; empty: the kind in the address
	Ops   Operations // what is no operation of agents; may be nil
	Cold  bool       // never warm
	Later bool       // operations of state are not complete at once
	warm  map[string]bool
	turns int
}

// Turn is one message to an agent.
type Turn struct {
	Agent  string // kind/key
	Kind   string // call by default
	Verb   string
	Type   string // content type; application/json by default where there is a body
	Body   string
	Timer  string
	Socket string            // that the client offers
	Head   map[string]string // more of it
}

// Do runs a turn. An error is a trap; a turn that failed has a Code, or
// the status of an error.
func (a *Agents) Do(ctx context.Context, t Turn) (*Result, []solo.Delivery, error) {
	if t.Kind == "" {
		t.Kind = "call"
	}
	turn, err := a.World.Begin(ctx, t.Agent, t.Kind, t.Timer, t.Socket, nil)
	if err != nil {
		return nil, nil, err
	}
	now := func(op abi.Op) bool {
		return !a.Later && (op == abi.OpState || op == abi.OpTimer || op == abi.OpSend || op == abi.OpSocket)
	}
	r, err := a.Guest.Invoke(ctx, Call{Head: a.head(t), Body: []byte(t.Body), AtOnce: now, Ops: func(ctx context.Context, op abi.Op, m Message) (abi.Status, Message) {
		switch op {
		case abi.OpState, abi.OpTimer, abi.OpSocket, abi.OpSend, abi.OpCall, abi.OpReceive, abi.OpGroup, abi.OpSelf:
			status, out := turn.Operate(ctx, op, solo.Message(m))
			return status, Message(out)
		}
		if a.Ops != nil {
			return a.Ops(ctx, op, m)
		}
		return abi.StatusOf("unavailable"), Message{}
	}})
	ok := err == nil && r.Code == 0 && !refused(t.Kind, r.Status)
	if ok && turn.Accepted() != (r.Status == "101") {
		ok, err = false, fmt.Errorf("the socket was accepted: %v; the answer has the status %q", turn.Accepted(), r.Status)
	}
	sent := turn.End(ok)
	if a.warm == nil {
		a.warm = map[string]bool{}
	}
	a.warm[t.Agent] = ok
	return r, sent, err
}

// refused reports whether the answer of a turn undoes it.
func refused(kind, status string) bool {
	n, _ := strconv.Atoi(status)
	return n >= 400 && (kind == "call" || kind == "read" || kind == "timer")
}

// head is the head of the turn's request.
func (a *Agents) head(t Turn) map[string]string {
	kind, key, _ := strings.Cut(t.Agent, "/")
	a.turns++
	h := map[string]string{":kind": "agent", ":turn": t.Kind, ":class": kind, ":address": t.Agent, ":agent": key, ":turn-id": fmt.Sprint("t", a.turns),
		":id": "01TURN", ":attempt": "1", ":function": kind, ":namespace": "default", ":revision": "default/" + kind + "@3",
		":deadline": fmt.Sprint(time.Now().Add(time.Minute).UnixMilli())}
	if a.Class != "" {
		h[":class"] = a.Class
	}
	if t.Verb != "" {
		h[":verb"] = t.Verb
	}
	if t.Body != "" && t.Kind != "fetch" && t.Kind != "socket" {
		h["content-type"] = "application/json"
		h["content-length"] = fmt.Sprint(len(t.Body))
	}
	if t.Type != "" {
		h["content-type"] = t.Type
	}
	if t.Timer != "" {
		h[":timer"] = t.Timer
	}
	if t.Socket != "" {
		h[":socket"] = t.Socket
	}
	if a.warm[t.Agent] && !a.Cold {
		h[":warm"] = "1"
	}
	maps.Copy(h, t.Head)
	return h
}

// Timer runs the earliest timer that is due at now; nil if there is none.
func (a *Agents) Timer(ctx context.Context, now time.Time) (*Result, []solo.Delivery, error) {
	due, _ := a.World.Due(now)
	if len(due) == 0 {
		return nil, nil, nil
	}
	d := due[0]
	return a.Do(ctx, Turn{Agent: d.To, Kind: "timer", Verb: d.Verb, Type: d.Type, Body: string(d.Args), Timer: d.Timer,
		Head: map[string]string{":due": fmt.Sprint(d.Due.UnixMilli())}})
}
