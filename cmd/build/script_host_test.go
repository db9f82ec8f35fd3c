package build

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"lode/sdk/abi"
	"lode/sdk/abi/abitest"
)

// agentHost is a host of agents in memory: state, timers and sockets as
// sdk/abi/README.md has them. A turn works on a copy that a success keeps.
type agentHost struct {
	t     *testing.T
	guest *abitest.Guest

	agents map[string]*agentState // by address

	mu   sync.Mutex
	now  *agentState // of the turn under way
	read bool
	log  []string // operations of the last turn: op and verb
	full bool     // writes are refused
}

// agentState is what is kept of one agent.
type agentState struct {
	keys    map[string][]byte
	timers  map[string]agentTimer
	sockets []agentSocket
	warm    bool
	removed bool
}

type agentTimer struct {
	Name   string `json:"name"`
	At     int64  `json:"at"`
	Method string `json:"method"`
}

type agentSocket struct {
	Socket     string   `json:"socket"`
	Tags       []string `json:"tags"`
	Attachment string   `json:"attachment,omitempty"`
}

func newAgentHost(t *testing.T, source string) *agentHost {
	t.Helper()
	skipUnderRace(t)
	a := build(t, Source{Path: source})
	g, err := abitest.Load(context.Background(), a.Wasm)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close(context.Background()) })
	return &agentHost{t: t, guest: g, agents: map[string]*agentState{}}
}

func (h *agentHost) agent(address string) *agentState {
	a := h.agents[address]
	if a == nil {
		a = &agentState{keys: map[string][]byte{}, timers: map[string]agentTimer{}}
		h.agents[address] = a
	}
	return a
}

func (a *agentState) clone() *agentState {
	return &agentState{keys: maps.Clone(a.keys), timers: maps.Clone(a.timers), sockets: slices.Clone(a.sockets)}
}

// turn runs one turn of an agent. head is keys and values; body is its body.
func (h *agentHost) turn(address, how, body string, head ...string) *abitest.Result {
	h.t.Helper()
	kind, key, _ := strings.Cut(address, "/")
	was := h.agent(address)
	c := abitest.Call{Body: []byte(body), Ops: h.operate, Head: map[string]string{":kind": "agent", ":turn": how, ":class": kind, ":address": address, ":agent": key, ":turn-id": "t1", "host": "h"}}
	if was.warm {
		c.Head[":warm"] = "1"
	}
	for i := 0; i < len(head); i += 2 {
		c.Head[head[i]] = head[i+1]
	}
	h.now, h.read, h.log = was.clone(), how == "read", nil
	r, err := h.guest.Invoke(context.Background(), c)
	if err != nil {
		h.t.Fatal(err)
	}
	was.warm = r.Code == 0
	if r.Code == 0 {
		h.now.warm = true
		h.agents[address] = h.now
		if h.now.removed {
			delete(h.agents, address)
		}
	}
	return r
}

// call runs a method with a list of arguments in JSON; what it answers.
func (h *agentHost) call(address, verb, args string) string {
	h.t.Helper()
	return h.said(h.turn(address, "call", args, ":verb", verb, "content-type", "application/vnd.lode.args+json"))
}

// said is an answer in one line.
func (h *agentHost) said(r *abitest.Result) string {
	switch {
	case r.Fail != nil:
		return r.Fail.Type + ": " + r.Fail.Message
	case r.Code != 0:
		return fmt.Sprintf("code %d", r.Code)
	case r.Status == "204":
		return "nothing"
	case r.Status != "" && r.Status != "200":
		return r.Status + " " + string(r.Body)
	}
	return string(r.Body)
}

func failed(kind, detail string) (abi.Status, abitest.Message) {
	return abi.StatusOf(kind), abitest.Message{Head: map[string]string{":error": kind, ":detail": detail}}
}

func (h *agentHost) operate(ctx context.Context, op abi.Op, m abitest.Message) (abi.Status, abitest.Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	names := map[abi.Op]string{abi.OpCall: "call", abi.OpSend: "send", abi.OpState: "state", abi.OpTimer: "timer", abi.OpSocket: "socket", abi.OpConfig: "config"}
	if names[op] != "config" {
		h.log = append(h.log, strings.TrimSpace(names[op]+" "+m.Head[":verb"]))
	}
	switch op {
	case abi.OpState:
		return h.state(m)
	case abi.OpTimer:
		return h.timer(m)
	case abi.OpSocket:
		return h.socket(m)
	case abi.OpCall:
		return 0, abitest.Message{Head: map[string]string{":status": "200", "content-type": "application/json"},
			Body: fmt.Appendf(nil, "%q", m.Head[":address"]+" "+m.Head[":verb"]+m.Head[":method"]+m.Head[":path"]+" "+string(m.Body))}
	case abi.OpSend:
		return 0, abitest.Message{Head: map[string]string{":id": m.Head[":address"] + " " + m.Head[":verb"] + string(m.Body) + m.Head[":delay"] + m.Head[":key"]}}
	}
	return scriptOps(ctx, op, m)
}

func (h *agentHost) state(m abitest.Message) (abi.Status, abitest.Message) {
	a, verb, key := h.now, m.Head[":verb"], m.Head[":key"]
	if h.read && slices.Contains([]string{"put", "delete", "write", "clear", "remove"}, verb) {
		return failed("denied", "this turn only reads")
	}
	if h.full && verb == "put" {
		return failed("full", "the agent has more than it may")
	}
	old, found := a.keys[key]
	answer := abitest.Message{Head: map[string]string{":found": map[bool]string{true: "1", false: "0"}[found]}}
	switch verb {
	case "get":
		answer.Body = old
	case "put":
		a.keys[key] = m.Body
	case "delete":
		delete(a.keys, key)
	case "clear":
		clear(a.keys)
	case "remove":
		a.removed = true
	case "mget":
		answer.Body = a.many(m.Body)
	case "write":
		a.write(m.Body)
	case "list":
		answer = a.list(m.Head)
	}
	return 0, answer
}

// u32 takes numbers and pieces off a body.
type piece []byte

func (p *piece) u32() int {
	n := binary.LittleEndian.Uint32(*p)
	*p = (*p)[4:]
	return int(n)
}

func (p *piece) take(n int) []byte {
	b := (*p)[:n:n]
	*p = (*p)[n:]
	return b
}

func (a *agentState) many(body piece) []byte {
	n := body.u32()
	out := binary.LittleEndian.AppendUint32(nil, uint32(n))
	for range n {
		v, ok := a.keys[string(body.take(body.u32()))]
		out = append(out, map[bool]byte{true: 1, false: 0}[ok])
		out = append(binary.LittleEndian.AppendUint32(out, uint32(len(v))), v...)
	}
	return out
}

func (a *agentState) write(body piece) {
	for range body.u32() {
		op := body.take(1)[0]
		k, v := body.u32(), body.u32()
		key, value := string(body.take(k)), body.take(v)
		if op == 2 {
			delete(a.keys, key)
		} else {
			a.keys[key] = value
		}
	}
}

// list gives at most two pairs at once, so that readers have to ask on.
func (a *agentState) list(head map[string]string) abitest.Message {
	var keys []string
	for _, k := range slices.Sorted(maps.Keys(a.keys)) {
		if strings.HasPrefix(k, head[":prefix"]) && k >= head[":start"] && (head[":end"] == "" || k < head[":end"]) {
			keys = append(keys, k)
		}
	}
	if head[":reverse"] == "1" {
		slices.Reverse(keys)
	}
	most := 2
	if n, err := strconv.Atoi(head[":limit"]); err == nil {
		most = min(most, n)
	}
	answer := abitest.Message{Head: map[string]string{}}
	if len(keys) > most {
		keys, answer.Head[":more"] = keys[:most], "1"
	}
	answer.Body = binary.LittleEndian.AppendUint32(nil, uint32(len(keys)))
	for _, k := range keys {
		answer.Body = binary.LittleEndian.AppendUint32(answer.Body, uint32(len(k)))
		answer.Body = binary.LittleEndian.AppendUint32(answer.Body, uint32(len(a.keys[k])))
		answer.Body = append(append(answer.Body, k...), a.keys[k]...)
	}
	return answer
}

func (h *agentHost) timer(m abitest.Message) (abi.Status, abitest.Message) {
	name := m.Head[":name"]
	old, found := h.now.timers[name]
	answer := abitest.Message{Head: map[string]string{":found": map[bool]string{true: "1", false: "0"}[found], ":at": strconv.FormatInt(old.At, 10)}}
	switch m.Head[":verb"] {
	case "set":
		at, _ := strconv.ParseInt(m.Head[":at"], 10, 64)
		h.now.timers[name] = agentTimer{Name: name, At: at, Method: m.Head[":call"]}
	case "clear":
		delete(h.now.timers, name)
	case "list":
		all := []agentTimer{}
		for _, n := range slices.Sorted(maps.Keys(h.now.timers)) {
			all = append(all, h.now.timers[n])
		}
		answer.Body, _ = json.Marshal(all)
	}
	return 0, answer
}

func (h *agentHost) socket(m abitest.Message) (abi.Status, abitest.Message) {
	i := slices.IndexFunc(h.now.sockets, func(s agentSocket) bool { return s.Socket == m.Head[":socket"] })
	answer := abitest.Message{Head: map[string]string{":n": "1"}}
	switch m.Head[":verb"] {
	case "accept":
		h.now.sockets = append(h.now.sockets, agentSocket{Socket: m.Head[":socket"], Tags: strings.Fields(m.Head[":tags"])})
	case "attach":
		h.now.sockets[i].Attachment = base64.StdEncoding.EncodeToString(m.Body)
	case "send", "close", "emit":
		h.log[len(h.log)-1] += fmt.Sprintf(" %s %s%s%q", m.Head[":socket"], m.Head[":type"], m.Head[":code"], string(m.Body)+m.Head[":reason"])
		if m.Head[":verb"] == "send" && i < 0 {
			answer.Head[":found"] = "0"
		}
	case "list":
		all := []agentSocket{}
		for _, s := range h.now.sockets {
			if t := m.Head[":tag"]; t == "" || slices.Contains(s.Tags, t) {
				all = append(all, s)
			}
		}
		answer.Body, _ = json.Marshal(all)
	}
	return 0, answer
}
