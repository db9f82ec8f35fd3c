package agent

import (
	"bytes"
	"context"
	"math"
	"slices"
	"strings"
	"time"

	"lode"
)

// Dump is one agent, or a part of one, outside of a cluster.
type Dump struct {
	Key    string
	Part   int // 0, 1, 2 ... of an agent that is too large for one
	State  []DumpValue
	Timers []DumpTimer // in part 0
}

// DumpValue is one key of state.
type DumpValue struct{ Key, Value []byte }

// DumpTimer is a timer, or a message that waits for its time: then its name is
// byte 1 and the id of its turn.
type DumpTimer struct {
	Name   string
	At     time.Time
	Method string
	Type   string // media type of Body
	Body   []byte
}

// dumpPair is what a pair counts beside its bytes.
const dumpPair = 32

// Export calls see with every agent in the partitions of a kind that this node
// has, and returns the numbers of those partitions. Each agent is as it was at
// one moment, between two turns. No dump has much more than part bytes of keys
// and values. A partition that was given away meanwhile is not returned.
func (s *Service) Export(ctx context.Context, ns lode.Namespace, kind lode.Name, part int, see func(*Dump) error) (covered []int, err error) {
	rev, err := s.cfg.Catalog.Kind(ns, kind)
	if err != nil {
		return nil, err
	}
	for _, p := range s.ordered(ns, kind) {
		if err := s.suits(ctx, p, rev); isMoved(err) {
			continue
		} else if err != nil {
			return covered, err
		}
		for key := ""; ; {
			next, ok, err := p.nextAgent(key)
			if err != nil {
				return covered, err
			}
			if !ok {
				break
			}
			key = next
			if err := p.dump(ctx, key, part, see); err != nil {
				return covered, err
			}
		}
		if s.partition(p.id) == p {
			covered = append(covered, p.id.N)
		}
	}
	return covered, nil
}

// dump shows one agent.
func (p *partition) dump(ctx context.Context, key string, part int, see func(*Dump) error) error {
	view := p.part.View()
	defer view.Close()
	prefix := agentPrefix(key)
	d := &Dump{Key: key}
	err := eachTimer(view, prefix, func(name string, tm *timer) error {
		if name != ttlTimer {
			d.Timers = append(d.Timers, DumpTimer{Name: name, At: time.UnixMicro(tm.Due).UTC(), Method: tm.Method, Type: tm.Type, Body: tm.Body})
		}
		return nil
	})
	if err != nil {
		return err
	}
	base, size := in(prefix, partState, ""), 0
	var bad error
	err = view.List(base, after(base), false, func(k, v []byte) bool {
		if bad = ctx.Err(); bad != nil {
			return false
		}
		var value []byte
		if value, bad = p.s.open(ctx, v); bad != nil {
			return false
		}
		n := len(k) - len(base) + len(value) + dumpPair
		if size += n; size > part && len(d.State) > 0 {
			if bad = see(d); bad != nil {
				return false
			}
			d, size = &Dump{Key: key, Part: d.Part + 1}, n
		}
		d.State = append(d.State, DumpValue{bytes.Clone(k[len(base):]), bytes.Clone(value)})
		return true
	})
	if err := cmpErr(bad, err); err != nil {
		return err
	}
	if d.Part == 0 && len(d.State) == 0 && len(d.Timers) == 0 {
		return nil // nothing but kept answers
	}
	return see(d)
}

// Imported is what an import brought in.
type Imported struct{ Agents, Keys, Timers, Bytes int64 }

// Import makes agents what dumps say, each dump in one turn. An agent that has
// state or timers already is a Conflict, unless replace is set; part 1 and the
// next add to what is there. Those before the one that failed are imported.
func (s *Service) Import(ctx context.Context, ns lode.Namespace, kind lode.Name, dumps []Dump, replace bool) (sum Imported, err error) {
	for i := range dumps {
		d := &dumps[i]
		var n Imported
		err := s.changing(ctx, ns, kind, d.Key, true, "(import)", func(t *turn) (err error) {
			n, err = t.become(d, replace)
			return err
		})
		if err != nil {
			return sum, err
		}
		sum.Agents, sum.Keys, sum.Timers, sum.Bytes = sum.Agents+n.Agents, sum.Keys+n.Keys, sum.Timers+n.Timers, sum.Bytes+n.Bytes
	}
	return sum, nil
}

// become makes the agent what a dump says.
func (t *turn) become(d *Dump, replace bool) (n Imported, err error) {
	if d.Part == 0 {
		n.Agents = 1
		if err := t.vacate(replace); err != nil {
			return n, err
		}
	}
	for _, kv := range d.State {
		if err := t.put(string(kv.Key), kv.Value); err != nil {
			return n, err
		}
		n.Keys, n.Bytes = n.Keys+1, n.Bytes+int64(len(kv.Key)+len(kv.Value))
	}
	for i := range d.Timers {
		if err := t.dumped(&d.Timers[i]); err != nil {
			return n, err
		}
		n.Timers++
	}
	return n, nil
}

// vacate checks that the agent has neither state nor timers, or takes them
// away.
func (t *turn) vacate(replace bool) error {
	set, err := t.allTimers()
	if err != nil {
		return err
	}
	delete(set, ttlTimer)
	keys, _, err := t.list(query{limit: 1})
	if err != nil {
		return err
	}
	if len(keys)+len(set) == 0 {
		return nil
	}
	if !replace {
		return lode.Errorf(lode.Conflict, "%s is there already", t.a.address()).WithHint("--replace makes it what the export says; lode agents rm %s removes it", t.a.address())
	}
	for name := range set {
		t.setTimer(name, nil)
	}
	return t.clear()
}

// dumped sets a timer of a dump.
func (t *turn) dumped(d *DumpTimer) error {
	due := d.At.UnixMicro()
	id, message := strings.CutPrefix(d.Name, waiting)
	switch {
	case d.Name == "" || len(d.Name) > maxName || d.Name[0] == 0 || message && id == "":
		return lode.Errorf(lode.Invalid, "%s: a timer has a bad name, %q", t.a.address(), d.Name)
	case due < 0 || due > math.MaxInt64/2:
		return lode.Errorf(lode.Invalid, "%s: the timer %s is at %s", t.a.address(), d.Name, d.At)
	case len(d.Body) > maxLetter:
		return lode.Errorf(lode.TooLarge, "%s: the arguments of the timer %s have %d bytes; at most %d", t.a.address(), d.Name, len(d.Body), maxLetter)
	case message:
		t.later(id, due, &lode.AgentCall{Method: d.Method, Head: typed(d.Type), Body: slices.Clone(d.Body)})
		return nil
	}
	t.calls++
	t.setTimer(d.Name, &timer{Due: due, First: due, N: number(lode.TurnIDOf(t.m.id, t.calls)), Method: d.Method, Type: d.Type, Body: slices.Clone(d.Body)})
	return nil
}
