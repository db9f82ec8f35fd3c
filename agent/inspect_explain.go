package agent

import (
	"fmt"
	"time"

	"lode"
	"lode/agent/journal"
)

// WaitInfo is a turn that waits for an agent.
type WaitInfo struct {
	From   string // address of the agent, or function, whose turn waits; "": somebody outside
	To     string // address of the agent
	Method string
	Turn   string // id of the one that is waited for
	Since  time.Time
	Queued bool // it is in the mailbox; else it runs, or is on its way
}

// Waits are who waits for whom, of a namespace, as far as this node knows: for
// agents that it has, and of those for others. A wait that both sides know is
// there once where this node is both.
func (s *Service) Waits(ns lode.Namespace) []WaitInfo {
	var out []WaitInfo
	at := map[string]int{} // by id of the turn
	for id, p := range s.owned() {
		if id.Namespace == ns {
			out = p.waits(out, at)
		}
	}
	return out
}

// waits adds the waits of a partition's agents. What an agent that has the turn
// says of it is put in place of what the one that waits says.
func (p *partition) waits(out []WaitInfo, at map[string]int) []WaitInfo {
	add := func(w WaitInfo, known bool) {
		i, there := at[w.Turn]
		switch {
		case !there:
			at[w.Turn] = len(out)
			out = append(out, w)
		case known:
			out[i] = w
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range p.agents {
		to := a.address()
		for m := a.box.head; m != nil; m = m.next {
			if !m.alone() {
				add(WaitInfo{From: m.c.Caller, To: to, Method: m.c.Method, Turn: m.id, Since: m.came.UTC(), Queued: true}, true)
			}
		}
		if a.run == nil {
			continue
		}
		if m := a.run.m; !m.alone() {
			add(WaitInfo{From: m.c.Caller, To: to, Method: a.run.word(), Turn: m.id, Since: a.run.began.UTC()}, true)
		}
		a.run.mu.Lock()
		for c, since := range a.run.calling {
			add(WaitInfo{From: to, To: string(c.Kind) + "/" + c.Key, Method: c.Method, Turn: c.ID, Since: since.UTC()}, false)
		}
		a.run.mu.Unlock()
	}
	return out
}

// alone reports whether nobody waits for the reply of m.
func (m *message) alone() bool { return m.letter != nil || m.timer != "" }

// Reason is one thing that explains where an agent is, and what it does.
type Reason struct {
	At   time.Time // zero: it is so now
	What string
	Why  string
}

// Explanation says where an agent is and why.
type Explanation struct {
	Here    bool // this node has it
	Summary string
	Reasons []Reason
	Facts   map[string]string
	Waits   []WaitInfo // of the whole namespace
}

// Explain explains an agent, as far as this node knows of it.
func (s *Service) Explain(ns lode.Namespace, kind lode.Name, key string) (*Explanation, error) {
	at, err := s.Where(ns, kind, key)
	if err != nil {
		return nil, err
	}
	x := &Explanation{Waits: s.Waits(ns), Facts: map[string]string{}}
	id := journal.Partition{Namespace: ns, Kind: kind, N: at.Partition}
	p := s.partition(id)
	if p == nil {
		x.Summary = s.away(at)
		return x, nil
	}
	x.Here = true
	v, err := p.info(key)
	if err != nil {
		return nil, err
	}
	x.Summary = fmt.Sprintf("on node %s, which owns partition %d of %d", s.cfg.Self, at.Partition, at.Partitions)
	x.Facts["partition"] = fmt.Sprintf("%d of %d, epoch %d", at.Partition, at.Partitions, p.epoch)
	x.Facts["reads"] = "by the node's lease"
	if rev, err := s.cfg.Catalog.Kind(ns, kind); err == nil && rev.Function.Agent.Reads == lode.ReadsBarrier {
		x.Facts["reads"] = "by a write to the journal"
	}
	x.Facts["revision"] = revisionWord(v.Revision)
	x.Reasons = append(x.Reasons, p.owned(), p.doing(key, &v))
	if !v.Last.IsZero() {
		x.Facts["last turn"] = v.Last.Format(time.RFC3339)
	}
	if v.Dead > 0 {
		x.Reasons = append(x.Reasons, Reason{What: fmt.Sprintf("messages and timers that it has given up: %d", v.Dead), Why: "lode agents dead " + v.Address() + " lists them"})
	}
	return x, nil
}

func revisionWord(n int) string {
	if n == 0 {
		return "none has written anything"
	}
	return fmt.Sprint(n)
}

// away says where an agent is that is not here.
func (s *Service) away(at Place) string {
	switch {
	case at.Node == "":
		return fmt.Sprintf("nobody has asked for an agent of partition %d yet: the first call decides which node has it", at.Partition)
	case at.Node == s.cfg.Self:
		return fmt.Sprintf("node %s takes partition %d just now", at.Node, at.Partition)
	case !s.cfg.Alive(at.Node):
		return fmt.Sprintf("partition %d is on node %s, which is not heard of: another one takes it over", at.Partition, at.Node)
	}
	return fmt.Sprintf("on node %s, which owns partition %d of %d", at.Node, at.Partition, at.Partitions)
}

// owned says how the partition came to this node.
func (p *partition) owned() Reason {
	why := "it was the first to be asked, and the first by the partition's name"
	if p.epoch > 1 {
		why = fmt.Sprintf("it took the partition for epoch %d: another node gave it, or was lost, or this one has started again", p.epoch)
	}
	return Reason{What: "node " + string(p.s.cfg.Self) + " owns it", Why: why}
}

// doing says what runs in an agent, and what waits.
func (p *partition) doing(key string, v *Info) Reason {
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.agents[key]
	queue := ""
	if v.Waiting > 0 {
		queue = fmt.Sprintf("; messages that wait: %d", v.Waiting)
	}
	switch {
	case a == nil:
		return Reason{What: "it is not in memory", Why: "it had no message for a while; the next one brings it back"}
	case a.run == nil && a.beside == 0:
		return Reason{What: "it is in memory and idle" + queue}
	case a.run == nil:
		return Reason{What: "it reads" + queue}
	}
	r := Reason{At: a.run.began.UTC(), What: fmt.Sprintf("runs %s on revision %d%s", a.run.word(), a.run.m.rev.Number, queue)}
	if w := a.run.waits(); w != "" {
		r.Why = "it waits for " + w
	} else {
		r.Why = "turn " + a.run.m.id
	}
	return r
}
