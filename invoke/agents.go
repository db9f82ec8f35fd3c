package invoke

import (
	"context"
	"strconv"
	"strings"
	"time"

	"lode"
)

// callAgent calls an agent of the namespace.
func (a *attempt) callAgent(ctx context.Context, to lode.Address, m *lode.Message) (lode.Message, error) {
	if a.s.cfg.Agents == nil {
		return lode.Message{}, lode.Errorf(lode.Unavailable, "this node has no agents")
	}
	r, err := a.s.cfg.Agents.Call(ctx, a.toAgent(to, m))
	if err != nil {
		return lode.Message{}, err
	}
	return lode.Message{Head: append([]lode.Pair{{Key: ":status", Value: strconv.Itoa(r.Status)}}, r.Head...), Body: r.Body}, nil
}

// toAgent is an operation of the guest as a call of an agent.
func (a *attempt) toAgent(to lode.Address, m *lode.Message) *lode.AgentCall {
	c := &lode.AgentCall{Namespace: a.rev.Namespace, Kind: to.Name, Key: to.Key, Method: m.Get(":verb"), ID: m.Get(":key"), Body: m.Body, Deadline: a.inv.Deadline,
		Caller: string(a.rev.Name), Trace: a.trace.Traceparent(), Depth: a.depth + 1}
	c.Given = c.ID != ""
	if c.Method == "" {
		c.Turn, c.Method, c.Path = lode.TurnFetch, orWord(m.Get(":method"), "POST"), orWord(m.Get(":path"), "/")
	}
	for _, p := range m.Head {
		if !strings.HasPrefix(p.Key, ":") {
			c.Head = append(c.Head, p)
		}
	}
	return c
}

// send has an agent do something that nobody waits for. It is durable when the
// operation completes.
func (a *attempt) send(ctx context.Context, m *lode.Message) (lode.Message, error) {
	to, err := lode.ParseAddress(m.Get(":address"))
	if err != nil {
		return lode.Message{}, err
	}
	if run, ok, err := parseRun(to); err != nil {
		return lode.Message{}, err
	} else if ok {
		return a.toRunning(ctx, run, m, false)
	}
	if to.Key == "" {
		return lode.Message{}, lode.Errorf(lode.Invalid, "%s is no address of an agent: want kind/key", to).WithHint("put work for a function into a queue")
	}
	if a.s.cfg.Agents == nil {
		return lode.Message{}, lode.Errorf(lode.Unavailable, "this node has no agents")
	}
	delay, err := number(m, ":delay", 0, int64(maxDelay/time.Millisecond))
	if err != nil {
		return lode.Message{}, err
	}
	c := a.toAgent(to, m)
	if c.Method == "" || c.Turn == lode.TurnFetch {
		return lode.Message{}, lode.Errorf(lode.Invalid, "a message to %s names no method", to)
	}
	c.Deadline, c.Delay = time.Time{}, time.Duration(delay)*time.Millisecond
	id, err := a.s.cfg.Agents.Post(ctx, c)
	if err != nil {
		return lode.Message{}, err
	}
	return lode.Message{Head: []lode.Pair{{Key: ":id", Value: id}}}, nil
}
