package solo

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
	"time"

	"lode/sdk/abi"
)

// group is one that members have joined. Its rounds are numbered by each
// member for itself; World.mu guards it all.
type group struct {
	size   int
	rounds map[int]*round
	left   int
}

// round collects a part of each rank.
type round struct {
	what    string // verb and operation, the same for all
	parts   map[int][]byte
	done    chan struct{}
	missing []int // of a round that ended without them
}

// member is a session's membership.
type member struct {
	group   *group
	rank    int
	next    int // round
	timeout time.Duration
}

func (s *Session) group(ctx context.Context, m Message) (abi.Status, Message) {
	verb, name := m.Head[":verb"], m.Head[":group"]
	switch verb {
	case "gather", "broadcast":
		return s.gather(ctx, m)
	case "join":
		return s.join(ctx, name, m)
	case "reduce", "exchange", "barrier", "leave":
	default:
		return refuse("invalid", "group has no verb "+strconv.Quote(verb))
	}
	s.mu.Lock()
	k := s.members[name]
	if verb == "leave" {
		delete(s.members, name)
	}
	s.mu.Unlock()
	if k == nil {
		return refuse("not_found", "this invocation has not joined the group "+name)
	}
	if verb == "leave" {
		s.w.mu.Lock()
		defer s.w.mu.Unlock()
		if k.group.left++; k.group.left == k.group.size && s.w.groups[name] == k.group {
			delete(s.w.groups, name)
		}
		return done()
	}
	if verb == "exchange" && len(m.Body) > abi.MaxPart {
		return refuse("too_large", "a part has at most 1 MiB")
	}
	parts, status, r := s.meet(ctx, k, verb+m.Head[":op"]+m.Head[":form"], m.Body)
	if status != 0 {
		return status, r
	}
	switch verb {
	case "reduce":
		return reduce(m.Head[":op"], m.Head[":form"], parts)
	case "exchange":
		out := abi.AppendCount(nil, len(parts))
		for _, p := range parts {
			out = abi.AppendKey(out, string(p))
		}
		return 0, Message{Body: out}
	}
	return done()
}

func (s *Session) join(ctx context.Context, name string, m Message) (abi.Status, Message) {
	rank, err1 := strconv.Atoi(m.Head[":rank"])
	size, err2 := strconv.Atoi(m.Head[":size"])
	if err1 != nil || err2 != nil || name == "" || rank < 0 || rank >= size {
		return refuse("invalid", "a member needs a group, a rank and a size above it")
	}
	s.w.mu.Lock()
	if s.w.groups == nil {
		s.w.groups = map[string]*group{}
	}
	g := s.w.groups[name]
	if g == nil {
		g = &group{size: size, rounds: map[int]*round{}}
		s.w.groups[name] = g
	}
	s.w.mu.Unlock()
	if g.size != size {
		return refuse("conflict", fmt.Sprintf("the group %s has %d members", name, g.size))
	}
	k := &member{group: g, rank: rank, timeout: timeout(m)}
	_, status, r := s.meet(ctx, k, "join", nil)
	if status != 0 {
		s.w.mu.Lock()
		if s.w.groups[name] == g {
			delete(s.w.groups, name)
		}
		s.w.mu.Unlock()
		return status, r
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.members == nil {
		s.members = map[string]*member{}
	}
	s.members[name] = k
	return done()
}

// meet gives a part to the member's next round and waits for all others.
func (s *Session) meet(ctx context.Context, k *member, what string, part []byte) ([][]byte, abi.Status, Message) {
	g := k.group
	s.w.mu.Lock()
	n := k.next
	k.next++
	r := g.rounds[n]
	if r == nil {
		r = &round{what: what, parts: map[int][]byte{}, done: make(chan struct{})}
		g.rounds[n] = r
	}
	if r.missing != nil { // it has ended already
		s.w.mu.Unlock()
		return late(g, r)
	}
	if _, twice := r.parts[k.rank]; twice || r.what != what {
		s.w.mu.Unlock()
		status, m := refuse("conflict", fmt.Sprintf("round %d of the group: rank %d is there twice, or does something else than the others", n, k.rank))
		return nil, status, m
	}
	r.parts[k.rank] = part
	if len(r.parts) == g.size {
		close(r.done)
		delete(g.rounds, n)
	}
	s.w.mu.Unlock()
	timer := time.NewTimer(k.timeout)
	defer timer.Stop()
	select {
	case <-r.done:
	case <-timer.C:
		s.giveUp(g, r)
	case <-ctx.Done():
		s.giveUp(g, r)
	}
	if r.missing != nil {
		return late(g, r)
	}
	parts := make([][]byte, g.size)
	for rank, p := range r.parts {
		parts[rank] = p
	}
	return parts, 0, Message{}
}

// late is the end of a round that some did not reach in time.
func late(g *group, r *round) ([][]byte, abi.Status, Message) {
	status, m := refuse("unavailable", fmt.Sprintf("%d of %d members did not come", len(r.missing), g.size))
	m.Head[":missing"] = ranks(r.missing)
	return nil, status, m
}

// giveUp ends a round for all, unless it is complete.
func (s *Session) giveUp(g *group, r *round) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if len(r.parts) == g.size || r.missing != nil {
		return
	}
	for rank := range g.size {
		if _, ok := r.parts[rank]; !ok {
			r.missing = append(r.missing, rank)
		}
	}
	close(r.done)
}

// reduce combines vectors in the order of ranks.
func reduce(op, form string, parts [][]byte) (abi.Status, Message) {
	width := map[string]int{"f32": 4, "f64": 8}[form]
	if width == 0 || op != "sum" && op != "mean" && op != "max" {
		return refuse("invalid", "a reduction is a sum, mean or max of f32 or f64")
	}
	for _, p := range parts {
		if len(p) != len(parts[0]) || len(p)%width != 0 {
			return refuse("invalid", "the vectors of a reduction have one length")
		}
	}
	out := make([]byte, 0, len(parts[0]))
	for at := 0; at < len(parts[0]); at += width {
		x := number(parts[0][at:], width)
		for _, p := range parts[1:] {
			y := number(p[at:], width)
			if op == "max" {
				x = max(x, y)
			} else if x += y; width == 4 {
				x = float64(float32(x))
			}
		}
		if op == "mean" {
			x /= float64(len(parts))
		}
		if width == 4 {
			out = binary.LittleEndian.AppendUint32(out, math.Float32bits(float32(x)))
		} else {
			out = binary.LittleEndian.AppendUint64(out, math.Float64bits(x))
		}
	}
	return 0, Message{Body: out}
}

func number(b []byte, width int) float64 {
	if width == 4 {
		return float64(math.Float32frombits(binary.LittleEndian.Uint32(b)))
	}
	return math.Float64frombits(binary.LittleEndian.Uint64(b))
}
