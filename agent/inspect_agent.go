package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"slices"
	"strings"
	"time"

	"lode"
	"lode/agent/journal"
	"lode/agent/owner"
	"lode/agent/state"
	"lode/bus"
)

// The bounds of what Show reads.
const (
	shownBytes   = 16 << 20 // of state
	shownTurns   = 50
	tailMessages = 20_000 // of the journal
	tailBytes    = 8 << 20
)

// Detail is everything about one agent, but its state.
type Detail struct {
	Info
	Epoch   uint64 // of the partition's owner
	More    bool   // there is state that was not shown
	Set     []TimerInfo
	Sockets []SocketInfo
	Letters []DeadInfo
	Journal []TurnInfo // the newest turns that are in the journal still, oldest first
}

// TimerInfo is a timer that is set, or a message that waits for its time.
type TimerInfo struct {
	Name   string // in parentheses: one that the code has not set
	At     time.Time
	Method string
	Tries  int // turns of it that failed
}

// SocketInfo is a WebSocket of an agent.
type SocketInfo struct {
	Socket string
	Node   lode.NodeID // that holds it
	Tags   []string
}

// DeadInfo is a message or a timer that failed for good.
type DeadInfo struct {
	N      uint64
	At     time.Time
	ID     string // of the turn
	Turn   lode.TurnKind
	Kind   lode.Name // of the agent that it was for
	Key    string
	Method string
	Timer  string // its name; "": it is a message
	Caller string
	Tries  int
	Bytes  int64 // of the arguments
	Error  *lode.Error
}

// TurnInfo is one turn in the journal.
type TurnInfo struct {
	Position uint64
	Node     lode.NodeID
	Epoch    uint64
	ID       string
	Method   string
	Revision int
	Puts     int // keys of state
	Deletes  int
	Sends    int
	Bytes    int64 // of all that it changed
}

// Show shows an agent as it is at one moment, between two of its turns. state
// is called with the keys and values of its state, in order, until it returns
// false. NotFound: there is nothing of it, and nothing
// runs in it.
func (s *Service) Show(ctx context.Context, ns lode.Namespace, kind lode.Name, key string, state func(k, v []byte) bool) (*Detail, error) {
	p, err := s.having(ctx, ns, kind, key, false)
	if err != nil {
		return nil, err
	}
	view := p.part.View()
	defer view.Close()
	prefix := agentPrefix(key)
	d := &Detail{Epoch: p.epoch}
	if d.Info, err = p.info(key); err != nil {
		return nil, err
	}
	there, err := exists(view, prefix)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	a := p.agents[key]
	there = there || a != nil && a.occupied()
	p.mu.Unlock()
	if !there {
		return nil, noAgent(kind, key)
	}
	if err := p.showState(ctx, view, d, state); err != nil {
		return nil, err
	}
	if d.Set, err = timersOf(view, prefix); err != nil {
		return nil, err
	}
	if d.Sockets, err = socketsOf(view, prefix); err != nil {
		return nil, err
	}
	if d.Letters, err = deadOf(view, prefix, kind); err != nil {
		return nil, err
	}
	d.Journal, err = s.turnsOf(ctx, p, key)
	return d, err
}

func noAgent(kind lode.Name, key string) error {
	return lode.Errorf(lode.NotFound, "there is no agent %s/%s: it has no state", kind, key).WithHint("lode agents ls %s lists those that there are; an agent comes to be with its first turn that writes", kind)
}

// exists reports whether there is anything of an agent.
func exists(from store, prefix []byte) (there bool, err error) {
	err = from.List(prefix, after(prefix), false, func(_, _ []byte) bool {
		there = true
		return false
	})
	return there, err
}

// having is the partition of a key on this node. Unavailable: another node has
// it. One that nobody has is taken if take is set, and else NotFound.
func (s *Service) having(ctx context.Context, ns lode.Namespace, kind lode.Name, key string, take bool) (*partition, error) {
	rev, err := s.cfg.Catalog.Kind(ns, kind)
	if err != nil {
		return nil, err
	}
	id := journal.Partition{Namespace: ns, Kind: kind, N: lode.PartitionOf(key, partitionsOf(rev))}
	if p := s.partition(id); p != nil {
		return p, s.suits(ctx, p, rev)
	}
	if _, owned := s.owners.Lookup(id); !owned && !take {
		return nil, noAgent(kind, key)
	}
	return s.taken(ctx, id, rev)
}

// taken is a partition that this node has, or takes; Unavailable: another one
// has it, or takes it now.
func (s *Service) taken(ctx context.Context, id journal.Partition, rev *lode.Revision) (*partition, error) {
	p, err := s.here(ctx, id)
	if err != nil {
		return nil, err
	}
	if p != nil {
		return p, s.suits(ctx, p, rev)
	}
	if own, ok := s.owners.Lookup(id); !ok || own.Node == s.cfg.Self { // nobody has it: who is to take it has not been asked
		if node, err := s.owners.Ensure(ctx, id); err == nil && node != s.cfg.Self {
			if err := s.askTake(ctx, node, id); err != nil && !again(err) {
				return nil, err
			}
		}
	}
	return nil, elsewhere(id)
}

// elsewhere says that who asked was told of an owner that is it no more.
func elsewhere(id journal.Partition) error {
	e := lode.Errorf(lode.Unavailable, "partition %d of %s is not on this node", id.N, id.Kind)
	e.RetryAfter = 100 * time.Millisecond
	return e.WithHint("it is being moved: try again")
}

// showState shows keys and values of state.
func (p *partition) showState(ctx context.Context, from store, d *Detail, see func(k, v []byte) bool) error {
	base := in(agentPrefix(d.Key), partState, "")
	size, on := 0, true
	d.Bytes = 0 // the record of it may lag behind
	var bad error
	err := from.List(base, after(base), false, func(k, v []byte) bool {
		var n int
		if n, bad = storedSize(v); bad != nil {
			return false
		}
		d.Keys++
		d.Bytes += int64(len(k) - len(base) + n)
		if !on || size > shownBytes {
			d.More = true
			return true
		}
		var value []byte
		if value, bad = p.s.open(ctx, v); bad != nil {
			return false
		}
		size += len(k) + len(value)
		if on = see(k[len(base):], value); !on {
			d.More = true
		}
		return true
	})
	return cmpErr(bad, err)
}

// storedSize is how many bytes the value has that a stored value stands for.
func storedSize(v []byte) (int, error) {
	inline, _, size, blob, err := state.DecodeValue(v)
	if blob {
		return int(size), err
	}
	return len(inline), err
}

// open is the value that a stored value stands for.
func (s *Service) open(ctx context.Context, v []byte) ([]byte, error) {
	inline, digest, _, blob, err := state.DecodeValue(v)
	if err != nil || !blob {
		return inline, err
	}
	return s.cfg.Blobs.Get(ctx, digest)
}

// timersOf are the timers of an agent, the next one first.
func timersOf(from store, prefix []byte) (out []TimerInfo, err error) {
	err = eachTimer(from, prefix, func(name string, tm *timer) error {
		out = append(out, TimerInfo{Name: timerWord(name), At: time.UnixMicro(tm.Due).UTC(), Method: orWord(tm.Method, "remove"), Tries: tm.Fails})
		return nil
	})
	slices.SortStableFunc(out, func(a, b TimerInfo) int { return a.At.Compare(b.At) })
	return out, err
}

// timerWord is a timer's name for people.
func timerWord(name string) string {
	switch {
	case name == ttlTimer:
		return "(time to live)"
	case strings.HasPrefix(name, waiting):
		return "(message)"
	}
	return name
}

// eachTimer calls f for the timers of an agent, by name.
func eachTimer(from store, prefix []byte, f func(name string, tm *timer) error) error {
	base := in(prefix, partTimer, "")
	var bad error
	err := from.List(base, after(base), false, func(k, v []byte) bool {
		var tm timer
		if tm, bad = decodeTimer(bytes.Clone(v)); bad == nil {
			bad = f(string(k[len(base):]), &tm)
		}
		return bad == nil
	})
	return cmpErr(bad, err)
}

func socketsOf(from store, prefix []byte) (out []SocketInfo, err error) {
	base := in(prefix, partSocket, "")
	var bad error
	err = from.List(base, after(base), false, func(k, v []byte) bool {
		var x socket
		if x, bad = decodeSocket(bytes.Clone(v)); bad != nil {
			return false
		}
		id := string(k[len(base):])
		node, _, _ := strings.Cut(id, "~")
		out = append(out, SocketInfo{Socket: id, Node: lode.NodeID(node), Tags: x.Tags})
		return true
	})
	return out, cmpErr(bad, err)
}

// deadOf are the dead messages that an agent keeps, the oldest first.
func deadOf(from store, prefix []byte, kind lode.Name) (out []DeadInfo, err error) {
	base := in(prefix, partDead, "")
	var bad error
	err = from.List(base, after(base), false, func(k, v []byte) bool {
		if len(k) != len(base)+8 {
			return true
		}
		var x dead
		if x, bad = decodeDead(v); bad != nil {
			return false
		}
		out = append(out, x.info(binary.BigEndian.Uint64(k[len(base):])))
		return true
	})
	slices.SortStableFunc(out, func(a, b DeadInfo) int { return a.At.Compare(b.At) })
	return out, cmpErr(bad, err)
}

func (x *dead) info(n uint64) DeadInfo {
	l := &x.Letter
	d := DeadInfo{N: n, At: time.UnixMilli(x.At).UTC(), ID: l.ID, Turn: lode.TurnCall, Kind: l.kind, Key: l.To, Method: l.Method, Caller: l.From, Tries: x.Tries, Bytes: int64(len(l.Body)),
		Error: &lode.Error{Kind: x.Kind, Detail: x.Why}}
	if l.timer != "" && l.timer[0] > 1 {
		d.Turn, d.Timer = lode.TurnTimer, l.timer
	}
	return d
}

// turnsOf reads the newest part of this node's journal, from its end, until it
// has seen enough turns of an agent, or too much of others'.
func (s *Service) turnsOf(ctx context.Context, p *partition, key string) (out []TurnInfo, err error) {
	to, err := s.db.Applied(s.cfg.Self)
	if err != nil {
		return nil, err
	}
	read, size, step := uint64(0), 0, uint64(16)
	for to > 0 && step > 0 && len(out) < shownTurns {
		step = min(step, to)
		var found []TurnInfo
		err := s.cfg.Bus.ReadLog(ctx, owner.JournalName(s.cfg.Self), to-step+1, to, func(m bus.Message) error {
			found = p.pick(found, key, m)
			size += m.Size
			return nil
		})
		if lode.KindOf(err) == lode.Gone { // trimmed: less of it
			step /= 2
			continue
		}
		if err != nil {
			return nil, err
		}
		out, to, read = append(found, out...), to-step, read+step
		if size >= tailBytes || read >= tailMessages {
			break
		}
		step = min(4*step, tailMessages-read, uint64(tailBytes-size)/(uint64(size)/read+1))
	}
	return lastTurns(out), nil
}

func lastTurns(all []TurnInfo) []TurnInfo { return all[max(0, len(all)-shownTurns):] }

// pick adds the turns of an agent in one message.
func (p *partition) pick(to []TurnInfo, key string, m bus.Message) []TurnInfo {
	for _, b := range m.Entries {
		if len(b) == 0 || journal.Op(b[0]) != journal.Turn || !bytes.Contains(b, []byte(key)) {
			continue
		}
		e, err := journal.Decode(b)
		if err != nil || e.Partition != p.id || e.Agent != key {
			continue
		}
		to = append(to, turnInfo(&e, m.Seq, p.s.cfg.Self))
	}
	return to
}

func turnInfo(e *journal.Entry, pos uint64, node lode.NodeID) TurnInfo {
	t := TurnInfo{Position: pos, Node: node, Epoch: e.Epoch, ID: e.ID, Method: e.Method, Revision: e.Revision}
	base := in(agentPrefix(e.Agent), partState, "")
	for i := range e.Changes {
		c := &e.Changes[i]
		t.Bytes += int64(len(c.Key) + len(c.Value))
		switch ours := bytes.HasPrefix(c.Key, base); {
		case ours && c.Kind == journal.Set:
			t.Puts++
		case ours, c.Kind == journal.Cut && bytes.HasPrefix(base, c.Key):
			t.Deletes++
		case c.Kind == journal.Set && c.Key[0] == spaceOutbox:
			t.Sends++
		}
	}
	return t
}
