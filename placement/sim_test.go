package placement

import (
	"container/heap"
	"math"
	mrand "math/rand/v2"
	"slices"
	"testing"

	"lode"
)

// sim is a cluster in fake time: nodes with slots and one line each, gateways
// that place by an old picture, broadcasts, questions and refusals, all events
// of one heap.
type sim struct {
	naive bool // the least loaded of all on the picture, as it is
	rtt   float64
	mean  float64 // seconds of work at speed 1
	every float64 // between broadcasts
	nodes []simNode
	gates []simGate
	rate  float64 // arrivals a second at each gateway
	end   float64

	rnd   *mrand.Rand
	now   float64
	queue simHeap

	done    []simDone
	sent    []simSent
	refused int
	parked  int
	longest int // line of any node
}

type simNode struct {
	id      lode.NodeID
	slots   int
	speed   float64
	deadAt  float64 // 0: it lives
	seenAt  float64 // when the gateways know
	taken   bool    // all its slots are held by others, for ever
	busy    int
	line    []*simReq
	load    Load
	pending []*simReq // began and not ended
}

type simGate struct {
	own   int
	peers []Peer
	out   Choice
	work  Work
	all   []int32
	down  uint64 // nodes that refused this round, as bits; of the request placed now
}

type simReq struct {
	gate, node int
	began      float64
	sentAt     float64
	expect     float64
	promised   float64
	refusals   int
	down       uint64
	gone       bool // its node died: whatever is still to happen is void
}

type simDone struct{ at, took float64 }
type simSent struct {
	at   float64
	node int
}

type simEvent struct {
	at float64
	do func()
}
type simHeap []simEvent

func (h simHeap) Len() int           { return len(h) }
func (h simHeap) Less(i, j int) bool { return h[i].at < h[j].at }
func (h simHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *simHeap) Push(x any)        { *h = append(*h, x.(simEvent)) }
func (h *simHeap) Pop() any {
	o := *h
	x := o[len(o)-1]
	*h = o[:len(o)-1]
	return x
}

func newSim(nodes, gates, slots int, load float64) *sim {
	s := &sim{rtt: 200e-6, mean: 5e-3, every: 0.2, end: 2.2, rnd: mrand.New(mrand.NewPCG(1, 2))}
	for i := range nodes {
		s.nodes = append(s.nodes, simNode{id: lode.NodeID("n" + string(rune('a'+i%26)) + string(rune('a'+i/26%26)) + string(rune('a'+i/676))), slots: slots, speed: 1})
	}
	for g := range gates {
		s.gates = append(s.gates, simGate{own: g, peers: make([]Peer, nodes)})
		for i := range nodes {
			s.gates[g].all = append(s.gates[g].all, int32(i))
		}
	}
	s.rate = load * float64(nodes*slots) / s.mean / float64(gates)
	return s
}

func (s *sim) after(d float64, do func()) { heap.Push(&s.queue, simEvent{s.now + d, do}) }

func (s *sim) run() {
	for i := range s.nodes {
		s.after(s.every*float64(i)/float64(len(s.nodes)), func() { s.broadcast(i) })
		if n := &s.nodes[i]; n.deadAt > 0 {
			s.after(n.deadAt, func() { s.kill(i) })
		}
	}
	for g := range s.gates {
		s.arrive(g)
	}
	for len(s.queue) > 0 {
		e := heap.Pop(&s.queue).(simEvent)
		if s.now = e.at; s.now > s.end {
			return
		}
		e.do()
	}
}

func (s *sim) arrive(g int) {
	s.after(s.rnd.ExpFloat64()/s.rate, func() {
		s.arrive(g)
		s.place(&simReq{gate: g, began: s.now})
	})
}

func (s *sim) dead(n *simNode) bool { return n.deadAt > 0 && s.now >= n.deadAt }

func (s *sim) broadcast(i int) {
	n := &s.nodes[i]
	if s.dead(n) {
		return
	}
	n.load = Load{Epoch: n.load.Epoch + 1, Slots: n.slots, Queue: float64(s.inLine(n)), Mean: s.mean / n.speed}
	for g := range s.gates {
		s.gates[g].peers[i].Heard(n.load, s.now)
	}
	s.after(s.every, func() { s.broadcast(i) })
}

func (s *sim) inLine(n *simNode) int {
	if n.taken {
		return n.slots + 200
	}
	return n.busy + len(n.line)
}

func (s *sim) trueWait(n *simNode) float64 {
	return Wait(float64(s.inLine(n)), n.slots, s.mean/n.speed)
}

// The View of the gateway whose request is placed now.
type simView struct {
	s *sim
	g *simGate
}

func (v simView) Len() int              { return len(v.s.nodes) }
func (v simView) Self() int             { return v.g.own }
func (v simView) Holders(*Work) []int32 { return v.g.all }
func (v simView) Look(_ *Work, i int, n *Node) {
	d := &v.s.nodes[i]
	*n = Node{ID: d.id, Code: Loaded, Run: v.s.mean}
	if v.g.down&(1<<(i%64)) != 0 && len(v.s.nodes) <= 64 || d.seenAt > 0 && v.s.now >= d.seenAt {
		n.State = Down
	}
	if i == v.g.own {
		n.Slots, n.Queue, n.Mean = d.slots, float64(v.s.inLine(d)), v.s.mean/d.speed
		return
	}
	v.g.peers[i].Fill(n, v.s.now, v.s.rtt)
}

func (s *sim) place(r *simReq) {
	g := &s.gates[r.gate]
	g.down = r.down
	v := simView{s, g}
	if s.naive {
		best, at := math.Inf(1), -1
		for i := range s.nodes {
			var n Node
			if v.Look(&g.work, i, &n); n.State == Down {
				continue
			}
			q := s.nodes[i].load.Queue
			if i == g.own {
				q = n.Queue
			}
			if w := Wait(q, n.Slots, s.mean); w < best {
				best, at = w, i
			}
		}
		s.send(r, at, best)
		return
	}
	g.work = Work{Run: s.mean, Seed: s.rnd.Uint64()}
	Place(v, &g.work, &g.out)
	if g.out.Ask[0] < 0 {
		s.take(r, &g.out)
		return
	}
	out, w := g.out, g.work
	s.after(s.rtt, func() {
		var as [2]Answer
		for k, i := range out.Ask {
			n := &s.nodes[out.Why[i].Index]
			as[k] = Answer{Heard: !s.dead(n), Wait: s.trueWait(n), Code: Loaded, After: 5 * s.rtt}
		}
		Settle(&w, &out, as)
		s.take(r, &out)
	})
}

func (s *sim) take(r *simReq, out *Choice) {
	c := out.Chosen()
	if c == nil {
		s.park(r)
		return
	}
	s.send(r, int(c.Index), c.Cost.Queue)
	r.expect = c.Cost.Total()
}

func (s *sim) park(r *simReq) {
	s.parked++
	r.refusals, r.down = 0, 0
	s.after(0.010+0.020*s.rnd.Float64(), func() { s.place(r) })
}

func (s *sim) send(r *simReq, node int, promised float64) {
	g := &s.gates[r.gate]
	r.node, r.promised, r.sentAt, r.expect = node, promised, s.now, s.rtt+promised+s.mean
	s.sent = append(s.sent, simSent{s.now, node})
	way := 0.0
	if node != g.own {
		g.peers[node].Sent(s.now, r.expect)
		way = s.rtt / 2
	}
	s.after(way, func() { s.reach(r, node) })
}

func (s *sim) reach(r *simReq, node int) {
	n := &s.nodes[node]
	if s.dead(n) {
		s.lose(r, node)
		return
	}
	wait := s.trueWait(n)
	if !s.naive && !Admit(wait, s.mean/n.speed, r.promised, s.rtt) {
		s.refused++
		s.after(s.rtt/2, func() { s.refuse(r, node, wait) })
		return
	}
	n.line = append(n.line, r)
	s.longest = max(s.longest, len(n.line))
	s.start(node)
}

func (s *sim) refuse(r *simReq, node int, wait float64) {
	g := &s.gates[r.gate]
	if node != g.own {
		g.peers[node].Refused(s.now, wait)
	}
	r.down |= 1 << (node % 64)
	if r.refusals++; r.refusals >= 2 {
		s.park(r)
		return
	}
	s.place(r)
}

func (s *sim) start(node int) {
	n := &s.nodes[node]
	for !n.taken && n.busy < n.slots && len(n.line) > 0 {
		r := n.line[0]
		n.line = n.line[1:]
		n.busy++
		n.pending = append(n.pending, r)
		took := (0.5 + 0.5*s.rnd.ExpFloat64()) * s.mean / n.speed
		s.after(took, func() {
			if r.gone {
				return
			}
			n.busy--
			n.pending = slices.DeleteFunc(n.pending, func(x *simReq) bool { return x == r })
			s.start(node)
			s.finish(r, node)
		})
	}
}

func (s *sim) finish(r *simReq, node int) {
	g := &s.gates[r.gate]
	way := s.rtt / 2
	if node == g.own {
		way = 0
	}
	s.after(way, func() {
		if node != g.own {
			g.peers[node].Answered(s.now, s.now-r.sentAt, r.expect)
		}
		s.done = append(s.done, simDone{r.began, s.now - r.began})
	})
}

// kill ends a node; its work is tried again when that is seen.
func (s *sim) kill(node int) {
	n := &s.nodes[node]
	for _, r := range append(n.pending, n.line...) {
		s.lose(r, node)
	}
	n.line, n.pending = nil, nil
}

func (s *sim) lose(r *simReq, node int) {
	r.gone = true
	again := &simReq{gate: r.gate, began: r.began}
	s.after(max(0, s.nodes[node].seenAt-s.now), func() {
		s.gates[r.gate].peers[node].Lost(s.now)
		s.place(again)
	})
}

// p99 is of those that began in a span of time.
func (s *sim) p99(from, to float64) float64 {
	var v []float64
	for _, d := range s.done {
		if d.at >= from && d.at < to {
			v = append(v, d.took)
		}
	}
	if len(v) < 100 {
		return math.Inf(1)
	}
	slices.Sort(v)
	return v[len(v)*99/100]
}

// share is what part of the work that was sent in a span went to a node.
func (s *sim) share(node int, from, to float64) float64 {
	var all, mine int
	for _, x := range s.sent {
		if x.at >= from && x.at < to {
			all++
			if x.node == node {
				mine++
			}
		}
	}
	return float64(mine) / float64(all)
}

func TestSpreadsOnSmallClusters(t *testing.T) {
	for _, nodes := range []int{3, 5, 9} {
		for _, load := range []float64{0.5, 0.85} {
			mine := newSim(nodes, nodes, 4, load)
			mine.run()
			naive := newSim(nodes, nodes, 4, load)
			naive.naive = true
			naive.run()
			a, b := mine.p99(0.5, 1.8), naive.p99(0.5, 1.8)
			t.Logf("%d nodes at %.0f %%: p99 %.1f ms, naive %.1f ms; %d refused, %d parked, longest %d and %d", nodes, load*100, a*1e3, b*1e3, mine.refused, mine.parked, mine.longest, naive.longest)
			if a > b/2 {
				t.Errorf("%d nodes at %.0f %%: p99 %.1f ms, a naive rival has %.1f", nodes, load*100, a*1e3, b*1e3)
			}
		}
	}
}

// All arrives at one gateway: its picture alone decides, and work must not
// herd to whoever looked best 200 ms ago.
func TestOneDoorDoesNotHerd(t *testing.T) {
	for _, nodes := range []int{3, 5, 9} {
		mine := newSim(nodes, 1, 4, 0.8)
		mine.run()
		naive := newSim(nodes, 1, 4, 0.8)
		naive.naive = true
		naive.run()
		a, b := mine.p99(0.5, 1.8), naive.p99(0.5, 1.8)
		t.Logf("%d nodes, one door: p99 %.1f ms, naive %.1f ms; refused %d of %d, parked %d", nodes, a*1e3, b*1e3, mine.refused, len(mine.sent), mine.parked)
		if a > b/3 {
			t.Errorf("%d nodes: p99 %.1f ms, a naive rival has %.1f", nodes, a*1e3, b*1e3)
		}
		// A line is bounded: 150 ms of it, by all slots.
		if bound := int(Bound(mine.mean)/mine.mean)*4 + 4; mine.longest > bound {
			t.Errorf("%d nodes: a line of %d, bound %d", nodes, mine.longest, bound)
		}
	}
}

func TestSlowNodeIsAvoided(t *testing.T) {
	for _, nodes := range []int{3, 5, 9} {
		s := newSim(nodes, nodes, 4, 0.4)
		s.gates = s.gates[:nodes-1] // nobody comes to its own door
		s.nodes[nodes-1].speed = 0.1
		s.run()
		share := s.share(nodes-1, 1, s.end)
		t.Logf("%d nodes: %.2f %% to the slow one, p99 %.1f ms", nodes, share*100, s.p99(1, 1.8)*1e3)
		if share >= 0.01 {
			t.Errorf("%d nodes: %.2f %% of the work went to the slow node", nodes, share*100)
		}
	}
}

func TestFullNodeIsAvoided(t *testing.T) {
	for _, nodes := range []int{3, 5, 9} {
		s := newSim(nodes, nodes, 4, 0.5)
		s.nodes[0].taken = true
		s.run()
		if share := s.share(0, 1, s.end); share >= 0.01 {
			t.Errorf("%d nodes: %.2f %% of the work went to the full node", nodes, share*100)
		}
	}
}

func TestDeadNodeIsAvoided(t *testing.T) {
	for _, nodes := range []int{3, 5, 9} {
		s := newSim(nodes, 1, 4, 0.6)
		d := &s.nodes[nodes-1]
		d.deadAt, d.seenAt = 0.8, 1.8 // a machine that falls silent, not a process that dies
		s.run()
		before, silent := s.share(nodes-1, 0.3, 0.8), s.share(nodes-1, 1.5, 1.8)
		t.Logf("%d nodes: %.1f %% before, %.2f %% while it is silent", nodes, before*100, silent*100)
		if before < 0.02 {
			t.Fatalf("%d nodes: the node got %.2f %% while it lived: nothing is shown", nodes, before*100)
		}
		if silent >= 0.01 {
			t.Errorf("%d nodes: %.2f %% of the work went to the dead node before anybody said so", nodes, silent*100)
		}
		if share := s.share(nodes-1, 1.8, s.end); share > 0 {
			t.Errorf("%d nodes: %.2f %% of the work went to a node that is known to be dead", nodes, share*100)
		}
	}
}

// Work that is shorter than the way to another node.
func TestShortWorkAtOneDoor(t *testing.T) {
	s := newSim(3, 1, 4, 0.8)
	s.mean, s.end = 100e-6, 0.8
	s.rate = 0.8 * 12 / s.mean
	s.run()
	p := s.p99(0.3, 0.7)
	t.Logf("p99 %.2f ms; refused %d of %d, parked %d, longest %d", p*1e3, s.refused, len(s.sent), s.parked, s.longest)
	if p > 5e-3 {
		t.Errorf("p99 %.2f ms for work of 0.1 ms", p*1e3)
	}
}

func TestThousandNodes(t *testing.T) {
	if testing.Short() {
		t.Skip("a million events")
	}
	mine := newSim(1000, 32, 8, 0.7)
	mine.mean, mine.end = 36.7e-3, 0.75
	mine.rate = 0.7 * 8000 / mine.mean / 32
	mine.run()
	t.Logf("p99 %.0f ms of %d; refused %d, parked %d, longest %d", mine.p99(0.25, 0.5)*1e3, len(mine.done), mine.refused, mine.parked, mine.longest)
	// Bare service has a p99 of 103 ms.
	if p := mine.p99(0.25, 0.5); p > 0.150 {
		t.Errorf("p99 %.0f ms at 70 %% of a thousand nodes", p*1e3)
	}
}
