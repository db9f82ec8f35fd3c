package invoke

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"lode"
	"lode/engine"
)

// players are a group of which a test plays the members.
type players struct {
	t    *testing.T
	c    *fleet
	r    *roles
	name string
	on   []lode.NodeID // by rank
}

// lacking is an error with the list that came with it.
type lacking struct {
	error
	list string
}

func (m *lacking) Unwrap() error { return m.error }

func (g *guest) group(body []byte, head ...string) ([]byte, error) {
	m, err := g.op(engine.OpGroup, lode.Message{Head: pairs(head...), Body: body})
	if err != nil {
		err = &lacking{err, m.Get(":missing")}
	}
	return m.Body, err
}

func missingOf(err error) string {
	if m, ok := errors.AsType[*lacking](err); ok {
		return m.list
	}
	return ""
}

// start has each rank join and then do what f says; the channels tell how they
// ended.
func (p *players) start(f func(rank int, g *guest) error) []<-chan error {
	out := make([]<-chan error, len(p.on))
	for rank, node := range p.on {
		role := p.name + strconv.Itoa(rank)
		p.r.set(role, func(g *guest) error {
			if _, err := g.group(nil, ":verb", "join", ":group", p.name, ":rank", strconv.Itoa(rank), ":size", strconv.Itoa(len(p.on))); err != nil {
				return fmt.Errorf("join: %w", err)
			}
			return f(rank, g)
		})
		out[rank] = p.c.nodes[node].play(p.t.Context(), role)
	}
	return out
}

func (p *players) all(f func(rank int, g *guest) error) {
	p.t.Helper()
	for rank, ch := range p.start(f) {
		if err := <-ch; err != nil {
			p.t.Errorf("rank %d: %v %s", rank, err, missingOf(err))
		}
	}
}

// empty waits until no node has anything of groups any more.
func (c *fleet) empty(t *testing.T) {
	t.Helper()
	for _, n := range c.nodes {
		if n.gone() {
			continue
		}
		eventually(t, "node "+string(n.id)+" has forgotten its groups", func() bool {
			g := n.s.groups
			g.mu.Lock()
			defer g.mu.Unlock()
			return len(g.bands) == 0 && len(g.circles) == 0 && len(g.forming) == 0
		})
	}
}

// rootedAt is a name of a group that belongs to a node.
func (c *fleet) rootedAt(node lode.NodeID) string {
	for i := 0; ; i++ {
		name := "g" + strconv.Itoa(i)
		if c.nodes[node].s.groups.rootOf("default", name) == node {
			return name
		}
	}
}

func f64s(vs ...float64) (b []byte) {
	for _, v := range vs {
		b = binary.LittleEndian.AppendUint64(b, math.Float64bits(v))
	}
	return b
}

func f32s(vs ...float32) (b []byte) {
	for _, v := range vs {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
	}
	return b
}

// spreadOver puts n ranks on nodes, by turns.
func spreadOver(n int, nodes ...lode.NodeID) []lode.NodeID {
	out := make([]lode.NodeID, n)
	for i := range out {
		out[i] = nodes[i%len(nodes)]
	}
	return out
}

// What each round gives, on one node, on several, and whoever is the root.
func TestGroupRounds(t *testing.T) {
	c, r := talkers(t, "a", "b", "c")
	for name, on := range map[string][]lode.NodeID{
		c.rootedAt("a"): {"a"}, c.rootedAt("b"): {"a", "a", "a"}, c.rootedAt("c"): {"b", "a", "b"}, c.rootedAt("a") + "x": {"c", "b", "a", "a", "c"},
	} {
		t.Run(fmt.Sprint(on), func(t *testing.T) {
			n := len(on)
			p := &players{t: t, c: c, r: r, name: name, on: on}
			p.all(func(rank int, g *guest) error {
				x := float64(rank + 1)
				sum, most := float64(n*(n+1)/2), float64(n)
				parts := make([][]byte, n)
				for i := range parts {
					parts[i] = bytes.Repeat([]byte{byte(i)}, i)
				}
				for i, s := range []struct {
					head []string
					in   []byte
					want []byte
				}{
					{[]string{":verb", "reduce", ":op", "sum", ":form", "f64"}, f64s(x, -x), f64s(sum, -sum)},
					{[]string{":verb", "reduce", ":op", "mean", ":form", "f64"}, f64s(x, 1), f64s(sum/float64(n), 1)},
					{[]string{":verb", "reduce", ":op", "max", ":form", "f64"}, f64s(x, -x, math.Inf(-1)), f64s(most, -1, math.Inf(-1))},
					{[]string{":verb", "barrier"}, nil, nil},
					{[]string{":verb", "reduce", ":op", "sum", ":form", "f32"}, f32s(float32(x)), f32s(float32(sum))},
					{[]string{":verb", "reduce", ":op", "mean", ":form", "f32"}, f32s(float32(x), 3), f32s(float32(sum)/float32(n), 3)},
					{[]string{":verb", "reduce", ":op", "max", ":form", "f32"}, f32s(float32(x)), f32s(float32(most))},
					{[]string{":verb", "reduce", ":op", "sum", ":form", "f32"}, nil, nil},
					{[]string{":verb", "exchange"}, parts[rank], appendParts(nil, parts)},
					{[]string{":verb", "leave"}, nil, nil},
				} {
					got, err := g.group(s.in, append(s.head, ":group", name)...)
					if err != nil || !bytes.Equal(got, s.want) {
						return fmt.Errorf("%d %v: %x, want %x: %w", i, s.head, got, s.want, err)
					}
				}
				_, err := g.group(nil, ":verb", "barrier", ":group", name)
				if lode.KindOf(err) != lode.NotFound {
					return fmt.Errorf("after leaving: %w", err)
				}
				return nil
			})
			c.empty(t)
		})
	}
}

// All members get the same bits, and the same members on the same nodes get
// them again: sums are made in one order, whoever comes first.
func TestGroupSameBits(t *testing.T) {
	c, r := talkers(t, "a", "b", "c")
	rounds, size := 100, 64
	nodes := spreadOver(size, "a", "b", "c")
	vector := func(rank, round int) []byte {
		rnd := rand.New(rand.NewPCG(uint64(rank), uint64(round)))
		vs := make([]float64, 5)
		for i := range vs {
			vs[i] = (rnd.Float64() - 0.5) * math.Pow(10, float64(rnd.IntN(30)))
		}
		return f64s(vs...)
	}
	var first [][]byte
	for again := range 2 {
		got := make([][][]byte, size)
		p := &players{t: t, c: c, r: r, name: "bits" + strconv.Itoa(again), on: nodes}
		p.all(func(rank int, g *guest) error {
			for round := range rounds {
				b, err := g.group(vector(rank, round), ":verb", "reduce", ":op", "sum", ":form", "f64", ":group", p.name)
				if err != nil {
					return fmt.Errorf("round %d: %w", round, err)
				}
				got[rank] = append(got[rank], b)
			}
			return nil
		})
		c.empty(t)
		if t.Failed() {
			return
		}
		if first == nil {
			first = got[0]
		}
		for rank := range got {
			for round := range rounds {
				if !bytes.Equal(got[rank][round], first[round]) {
					t.Fatalf("run %d, rank %d, round %d: %x and %x", again, rank, round, got[rank][round], first[round])
				}
			}
		}
	}
	// The order is as it is written down.
	by := map[lode.NodeID][]int{}
	for rank, n := range nodes {
		by[n] = append(by[n], rank)
	}
	whole := newFold(groupStep{Verb: "reduce", Op: "sum", Form: "f64", Size: 40}, 3)
	for i, n := range []lode.NodeID{"a", "b", "c"} {
		part := vector(by[n][0], 0)
		for _, rank := range by[n][1:] {
			for j := range 5 {
				at := part[8*j:]
				x := math.Float64frombits(binary.LittleEndian.Uint64(at)) + math.Float64frombits(binary.LittleEndian.Uint64(vector(rank, 0)[8*j:]))
				binary.LittleEndian.PutUint64(at, math.Float64bits(x))
			}
		}
		whole.add(i, part)
	}
	if !bytes.Equal(whole.acc, first[0]) {
		t.Errorf("the sum is not made in the order of ranks and nodes: %x, want %x", first[0], whole.acc)
	}
}

// A million numbers go through a round.
func TestGroupLargeVector(t *testing.T) {
	c, r := talkers(t, "a", "b")
	p := &players{t: t, c: c, r: r, name: c.rootedAt("b"), on: []lode.NodeID{"a", "b", "a", "a"}}
	const n = 1_000_000
	p.all(func(rank int, g *guest) error {
		v := make([]byte, 8*n)
		for i := range n {
			binary.LittleEndian.PutUint64(v[8*i:], math.Float64bits(float64(i*(rank+1))))
		}
		b, err := g.group(v, ":verb", "reduce", ":op", "mean", ":form", "f64", ":group", p.name)
		if err != nil || len(b) != 8*n {
			return fmt.Errorf("%d bytes: %w", len(b), err)
		}
		for i := range n {
			if x := math.Float64frombits(binary.LittleEndian.Uint64(b[8*i:])); x != float64(i*10)/4 {
				return fmt.Errorf("number %d is %g", i, x)
			}
		}
		_, err = g.group(make([]byte, maxCombined+8), ":verb", "reduce", ":op", "sum", ":form", "f64", ":group", p.name)
		if lode.KindOf(err) != lode.TooLarge {
			return fmt.Errorf("over the limit: %w", err)
		}
		_, err = g.group(make([]byte, maxPart+1), ":verb", "exchange", ":group", p.name)
		if lode.KindOf(err) != lode.TooLarge {
			return fmt.Errorf("too long a part: %w", err)
		}
		return nil
	})
	c.empty(t)
}

// A round without a member ends for all who came, and names it. Whoever comes
// after that learns the same, and then the group goes on.
func TestGroupMissingMember(t *testing.T) {
	c, r := talkers(t, "a", "b", "c")
	for name, on := range map[string][]lode.NodeID{
		"alone": {"a", "a", "a", "a"}, "last of its node": {"a", "b", "a", "c"}, "beside another": {"a", "c", "b", "c"}, "at the root": {"b", "c", "b", "a"},
	} {
		t.Run(name, func(t *testing.T) {
			p := &players{t: t, c: c, r: r, name: c.rootedAt("a") + name, on: on}
			if name == "at the root" {
				p.name = c.rootedAt("a")
			}
			release := make(chan struct{})
			failed := make(chan struct{}, 3)
			ends := p.start(func(rank int, g *guest) error {
				if rank == 3 {
					if err := g.block(release); err != nil {
						return err
					}
				}
				_, err := g.group(f64s(1), ":verb", "reduce", ":op", "sum", ":form", "f64", ":group", p.name, ":timeout", "150")
				if lode.KindOf(err) != lode.Unavailable || missingOf(err) != "[3]" {
					return fmt.Errorf("rank %d: %w, missing %s", rank, err, missingOf(err))
				}
				if rank != 3 {
					failed <- struct{}{}
				}
				b, err := g.group(f64s(float64(rank)), ":verb", "reduce", ":op", "sum", ":form", "f64", ":group", p.name)
				if err == nil && !bytes.Equal(b, f64s(6)) {
					err = fmt.Errorf("sum %x", b)
				}
				return err
			})
			for range 3 {
				<-failed
			}
			close(release)
			for rank, ch := range ends {
				if err := <-ch; err != nil {
					t.Errorf("rank %d: %v", rank, err)
				}
			}
			c.empty(t)
		})
	}
}

// A member that has ended is missed at once, however long a round may take.
func TestGroupMemberEnds(t *testing.T) {
	c, r := talkers(t, "a", "b")
	for name, on := range map[string][]lode.NodeID{"alone": {"a", "a", "a"}, "beside": {"a", "b", "b"}, "the only one of its node": {"a", "a", "b"}} {
		t.Run(name, func(t *testing.T) {
			for _, root := range []lode.NodeID{"a", "b"} {
				p := &players{t: t, c: c, r: r, name: c.rootedAt(root), on: on}
				for rank, ch := range p.start(func(rank int, g *guest) error {
					if rank == 2 {
						return errBoom
					}
					for range 3 {
						_, err := g.group(nil, ":verb", "barrier", ":group", p.name, ":timeout", "3600000")
						if lode.KindOf(err) != lode.Unavailable || missingOf(err) != "[2]" {
							return fmt.Errorf("%w, missing %s", err, missingOf(err))
						}
					}
					return nil
				}) {
					if err := <-ch; (err == nil) == (rank == 2) {
						t.Errorf("rank %d: %v", rank, err)
					}
				}
				c.empty(t)
			}
		})
	}
}

// Members that do different things in a round all learn it.
func TestGroupDiffers(t *testing.T) {
	c, r := talkers(t, "a", "b")
	for name, on := range map[string][]lode.NodeID{"on one node": {"a", "a"}, "on two": {"a", "b"}} {
		t.Run(name, func(t *testing.T) {
			p := &players{t: t, c: c, r: r, name: "differ", on: on}
			p.all(func(rank int, g *guest) error {
				for i, head := range [][]string{{":verb", []string{"barrier", "exchange"}[rank]}, {":verb", "reduce", ":form", "f64", ":op", []string{"sum", "max"}[rank]}} {
					if _, err := g.group(f64s(1), append(head, ":group", p.name)...); lode.KindOf(err) != lode.Conflict {
						return fmt.Errorf("%d: %w", i, err)
					}
				}
				if _, err := g.group(f64s(1, 2)[:8*(rank+1)], ":verb", "reduce", ":form", "f64", ":op", "sum", ":group", p.name); lode.KindOf(err) != lode.Conflict {
					return fmt.Errorf("lengths: %w", err)
				}
				_, err := g.group(nil, ":verb", "barrier", ":group", p.name)
				return err
			})
			c.empty(t)
		})
	}
}

// The loss of the root, or of a node with members, ends the round.
func TestGroupNodeLost(t *testing.T) {
	for lost, want := range map[lode.NodeID]string{"b": "[1]", "c": "[2]"} {
		t.Run(string(lost), func(t *testing.T) {
			c, r := talkers(t, "a", "b", "c")
			p := &players{t: t, c: c, r: r, name: c.rootedAt("b"), on: []lode.NodeID{"a", "b", "c"}}
			ready := make(chan struct{}, 3)
			release := make(chan struct{})
			ends := p.start(func(rank int, g *guest) error {
				if _, err := g.group(nil, ":verb", "barrier", ":group", p.name); err != nil {
					return err
				}
				ready <- struct{}{}
				if p.on[rank] == lost {
					return g.block(release)
				}
				_, err := g.group(nil, ":verb", "barrier", ":group", p.name, ":timeout", "3600000")
				if lode.KindOf(err) != lode.Unavailable || missingOf(err) != want && !(lost == "b" && rank == 2) {
					return fmt.Errorf("%w, missing %s", err, missingOf(err))
				}
				return nil
			})
			for range 3 {
				<-ready
			}
			c.nodes[lost].die()
			for rank, ch := range ends {
				if p.on[rank] == lost {
					continue
				}
				if err := <-ch; err != nil {
					t.Errorf("rank %d: %v", rank, err)
				}
			}
			close(release)
			<-ends[slices.Index(p.on, lost)]
		})
	}
}

// What can go wrong on the way into a group.
func TestGroupJoin(t *testing.T) {
	c, r := talkers(t, "a", "b")
	join := func(n lode.NodeID, ctx context.Context, head ...string) error {
		var err error
		role := fmt.Sprint(n, head, rand.Int())
		r.set(role, func(g *guest) error {
			_, err = g.group(nil, append(head, ":verb", "join")...)
			return err
		})
		<-c.nodes[n].play(ctx, role)
		return err
	}
	for _, root := range []lode.NodeID{"a", "b"} {
		t.Run("root_"+string(root), func(t *testing.T) {
			g := c.rootedAt(root)
			for _, bad := range [][]string{{":rank", "0", ":size", "1"}, {":group", g, ":rank", "2", ":size", "2"}, {":group", g, ":size", "2"}, {":group", g, ":rank", "0", ":size", "0"},
				{":group", g, ":rank", "x", ":size", "2"}, {":group", g, ":rank", "0", ":size", "99999999"}, {":group", g, ":rank", "0", ":size", "2", ":timeout", "-1"}} {
				if err := join("a", t.Context(), bad...); lode.KindOf(err) != lode.Invalid {
					t.Errorf("%q: %v", bad, err)
				}
			}
			err := join("a", t.Context(), ":group", g, ":rank", "1", ":size", "4", ":timeout", "30")
			if lode.KindOf(err) != lode.Unavailable || missingOf(err) != "[0,2,3]" {
				t.Errorf("alone: %v, missing %s", err, missingOf(err))
			}
			ctx, cancel := context.WithCancel(t.Context())
			first, second := make(chan error, 1), make(chan error, 1)
			go func() { first <- join("a", ctx, ":group", g, ":rank", "0", ":size", "2") }()
			waits := func(n int) func() bool {
				gs := c.nodes[root].s.groups
				return func() bool {
					gs.mu.Lock()
					defer gs.mu.Unlock()
					f := gs.forming[formKey{"default", g}]
					return f == nil && n == 0 || f != nil && len(f.joiners) == n
				}
			}
			eventually(t, "one waits", waits(1))
			if err := join("b", t.Context(), ":group", g, ":rank", "1", ":size", "3"); lode.KindOf(err) != lode.Conflict {
				t.Errorf("another size: %v", err)
			}
			go func() { second <- join("b", t.Context(), ":group", g, ":rank", "0", ":size", "2") }()
			if err := <-first; lode.KindOf(err) != lode.Conflict {
				t.Errorf("the rank was taken over: %v", err)
			}
			cancel()
			if err := join("a", t.Context(), ":group", g, ":rank", "1", ":size", "2"); err != nil {
				t.Error(err)
			}
			if err := <-second; err != nil {
				t.Error(err)
			}
			ctx, cancel = context.WithCancel(t.Context())
			go func() { first <- join("b", ctx, ":group", g, ":rank", "0", ":size", "2") }()
			eventually(t, "one waits", waits(1))
			cancel()
			if err := <-first; lode.KindOf(err) != lode.Cancelled {
				t.Errorf("cancelled: %v", err)
			}
			c.empty(t)
		})
	}
}

// A root told a round again answers as it did.
func TestGroupToldTwice(t *testing.T) {
	c, _ := talkers(t, "a", "b")
	g := c.nodes["a"].s.groups
	root := newCircle(g, "s", "g", []lode.NodeID{"a", "b"})
	g.circles["s"] = root
	tell := func(from lode.NodeID, n int, x float64) *groupResult {
		return g.tellCircle(t.Context(), from, &wireRound{Session: "s", N: n, Timeout: time.Minute, Step: groupStep{Verb: "reduce", Op: "sum", Form: "f64", Size: 8}}, f64s(x))
	}
	for n := range 5 {
		early := make(chan *groupResult, 2)
		for range 2 {
			go func() { early <- tell("a", n, 1) }()
		}
		eventually(t, "a has told", func() bool { root.mu.Lock(); defer root.mu.Unlock(); m := root.meets[n]; return m != nil && m.got["a"] })
		for _, out := range []*groupResult{tell("b", n, 2), tell("b", n, 100), tell("a", n, 100), <-early, <-early} {
			if out.err != nil || !bytes.Equal(out.body, f64s(3)) {
				t.Fatalf("round %d: %x, %v", n, out.body, out.err)
			}
		}
		if len(root.meets) > 2 {
			t.Fatalf("%d rounds are kept", len(root.meets))
		}
	}
	if out := tell("c", 9, 1); lode.KindOf(out.err) != lode.Unavailable {
		t.Errorf("a stranger: %v", out.err)
	}
}

// agentsOf are the agents of a node; their homes follow from their keys.
type agentsOf struct {
	node  lode.NodeID
	homes map[string]lode.NodeID
	calls chan *lode.AgentCall
}

func (a *agentsOf) Call(ctx context.Context, c *lode.AgentCall) (*lode.AgentReply, error) {
	a.calls <- c
	switch c.Key {
	case "never":
		<-ctx.Done()
		return nil, lode.Errorf(lode.Deadline, "late")
	case "none":
		return nil, lode.Errorf(lode.NotFound, "there is no such method")
	case "no":
		return &lode.AgentReply{Status: 409, Body: []byte(`{"kind":"conflict"}`)}, nil
	case "bytes":
		return &lode.AgentReply{Status: 200, Head: pairs("content-type", "application/octet-stream"), Body: []byte("1")}, nil
	}
	b, err := json.Marshal(string(a.node) + " " + c.Key + " " + string(c.Body))
	return &lode.AgentReply{Status: 200, Body: b}, err
}

func (a *agentsOf) Post(context.Context, *lode.AgentCall) (string, error) { return "", errBoom }

func (a *agentsOf) Home(_ lode.Namespace, _ lode.Name, key string) (lode.NodeID, bool) {
	n, ok := a.homes[key]
	return n, ok
}

var (
	_ Agents = (*agentsOf)(nil)
	_ Homes  = (*agentsOf)(nil)
)

// A gather reaches agents where they are, and running invocations, and keeps
// the order of members.
func TestGather(t *testing.T) {
	c, r := talkers(t, "a", "b")
	calls := make(chan *lode.AgentCall, 1000)
	for id, n := range c.nodes {
		n.s.cfg.Agents = &agentsOf{id, map[string]lode.NodeID{"1": "a", "2": "b", "3": "b", "no": "b", "none": "b", "never": "b", "lost": "gone"}, calls}
	}
	addr, heard := make(chan string, 1), make(chan lode.Message, 10)
	r.set("member", func(g *guest) error {
		addr <- runOf(g)
		for {
			m, err := g.next()
			if err != nil || m.Get(":verb") == "stop" {
				return err
			}
			heard <- m
			if m.Get(":reply") != "" {
				if err := g.reply(m, "200", `{"run":true}`); err != nil {
					return err
				}
			}
		}
	})
	member := c.nodes["b"].play(t.Context(), "member")
	run := <-addr
	var got []byte
	var gotErr error
	gather := func(verb, members string, more ...string) string {
		r.set("caller", func(g *guest) error {
			got, gotErr = g.group([]byte(`{"members":`+members+`,"method":"m","args":[1,"x"]}`), append(more, ":verb", verb)...)
			return nil
		})
		if err := <-c.nodes["a"].play(t.Context(), "caller"); err != nil {
			t.Fatal(err)
		}
		return string(got)
	}
	want := `[{"member":"k/2","status":200,"value":"b 2 [1,\"x\"]"},{"member":"` + run + `","status":200,"value":{"run":true}},{"member":"k/1","status":200,"value":"a 1 [1,\"x\"]"},` +
		`{"member":"k/no","status":409,"value":{"kind":"conflict"}},{"member":"k/2","status":200,"value":"b 2 [1,\"x\"]"},{"member":"k/bytes","status":200,"value":"MQ=="},` +
		`{"member":"k/lost","status":200,"value":"a lost [1,\"x\"]"}]`
	if s := gather("gather", `["k/2","`+run+`","k/1","k/no","k/2","k/bytes","k/lost"]`); s != want || gotErr != nil {
		t.Errorf("got %s, %v\nwant %s", s, gotErr, want)
	}
	if m := <-heard; m.Get("content-type") != argsType || string(m.Body) != `[1,"x"]` || m.Get(":caller") != "f" {
		t.Errorf("the invocation heard %+v", m)
	}
	ids := map[string]bool{}
	for range 6 {
		k := <-calls
		if ids[k.ID] || k.Caller != "f" || k.Method != "m" || k.Depth != 1 || k.Deadline.IsZero() {
			t.Errorf("called %+v", k)
		}
		ids[k.ID] = true
	}
	if s := gather("gather", `["k/none"]`); gotErr != nil || !bytes.Contains(got, []byte(`"status":404`)) || !bytes.Contains(got, []byte(`"kind":"not_found"`)) {
		t.Errorf("got %s, %v", s, gotErr)
	}
	gather("gather", `["k/1","k/never","f/~b~gone","k/2"]`, ":timeout", "100")
	if lode.KindOf(gotErr) != lode.Unavailable || missingOf(gotErr) != `["k/never"]` {
		t.Errorf("got %v, missing %s", gotErr, missingOf(gotErr))
	}
	if s := gather("broadcast", `["k/2","`+run+`","k/no"]`); s != "" || gotErr != nil {
		t.Errorf("got %q, %v", s, gotErr)
	}
	if m := <-heard; m.Get(":reply") != "" {
		t.Errorf("a broadcast waits for an answer: %+v", m)
	}
	for _, bad := range []string{`["k"]`, `["/"]`, `"x"`} {
		if gather("gather", bad); lode.KindOf(gotErr) != lode.Invalid {
			t.Errorf("%s: %v", bad, gotErr)
		}
	}
	r.set("stop", func(g *guest) error {
		_, err := g.op(engine.OpSend, lode.Message{Head: pairs(":address", run, ":verb", "stop")})
		return err
	})
	if err := <-c.nodes["a"].play(t.Context(), "stop"); err != nil {
		t.Error(err)
	}
	if err := <-member; err != nil {
		t.Error(err)
	}
}

// FuzzSpreadParts reads what a node tells of an exchange.
func FuzzSpreadParts(f *testing.F) {
	f.Add(appendParts(nil, [][]byte{[]byte("a"), nil, []byte("bc")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		parts, ranks := make([][]byte, 5), []int{4, 0, 2}
		if err := spreadParts(parts, ranks, b); err == nil && !bytes.Equal(appendParts(nil, [][]byte{parts[4], parts[0], parts[2]}), b) {
			t.Errorf("%x was read as %x", b, parts)
		}
	})
}
