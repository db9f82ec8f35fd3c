package invoke

import (
	"context"
	"hash/fnv"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"lode"
	"lode/link"
	"lode/placement"
)

// Peers are the nodes of the cluster. node implements it over link. All but
// Call answer from memory, and are called for invocations that this node does
// not run at once.
type Peers interface {
	Self() lode.NodeID
	// Nodes are those alive that can be reached, this one among them. The
	// slice is not changed afterwards.
	Nodes() []NodeView
	// Call is link's Call: its errors tell whether the call was sent.
	Call(ctx context.Context, to lode.NodeID, r *link.Request, a link.Answer) error
}

// NodeView is what is known of a node.
type NodeView struct {
	Node      lode.NodeID
	Draining  bool          // it is asked to take no more work
	RTT       time.Duration // 0: not known
	Bandwidth float64       // bytes/s of transfers; 0: not known
	Load      *NodeLoad     // what it broadcast last; nil: nothing yet, or this node
	Age       time.Duration // of Load
}

var _ link.Answer = (*forward)(nil)

// leastRTT is the round trip to a node of which none is known.
const leastRTT = 100e-6

// spread places invocations on the nodes of the cluster. Of many the own node
// runs them at once, by a look-up and the lock of admission; what follows is
// for the others.
//
// mu guards what is known of the peers, the regrets, and the parked. It is
// held over no call; gate.mu may be taken under it.
type spread struct {
	s     *Service
	peers Peers
	self  lode.NodeID

	journeys sync.Pool // of *journey

	mu    sync.Mutex
	nodes map[lode.NodeID]*placement.Peer
	lots  map[target]*lot
	told  chan struct{} // closed when the catalog has changed
	over  bool          // nothing more begins in the background

	ring  ring
	stats counters
}

func newSpread(s *Service) *spread {
	sp := &spread{s: s, peers: s.cfg.Peers, self: s.cfg.Peers.Self(), nodes: map[lode.NodeID]*placement.Peer{}, lots: map[target]*lot{}, told: make(chan struct{})}
	sp.journeys.New = func() any { return &journey{sp: sp} }
	return sp
}

// changed wakes those who wait for a revision.
func (sp *spread) changed() {
	sp.s.used.changed()
	sp.mu.Lock()
	close(sp.told)
	sp.told = make(chan struct{})
	sp.mu.Unlock()
}

// now is in seconds.
func (sp *spread) now() float64 { return float64(sp.s.used.now()) / 1e9 }

// others reports whether another node could take work.
func (sp *spread) others() bool {
	for _, v := range sp.peers.Nodes() {
		if v.Node != sp.self {
			return true
		}
	}
	return false
}

// peer is what is known of a node; sp.mu is held.
func (sp *spread) peer(id lode.NodeID) *placement.Peer {
	p := sp.nodes[id]
	if p == nil {
		p = &placement.Peer{}
		sp.nodes[id] = p
	}
	return p
}

// leaving reports whether this node takes no more work.
func (s *Service) leaving() bool { return s.parting.Load() || s.draining.Load() }

// stays reports whether an invocation runs on this node whatever its load:
// those of jobs, which were placed with their shards.
func (a *attempt) stays(to target) bool {
	_, mapped := a.ans.(windower)
	return mapped || to == jobs || headTooLong(a.req)
}

// place finds the node for an attempt that came in at this one. away: it has
// ended on another node, as err tells. Else it is to run here, and may be
// admitted by now.
func (sp *spread) place(ctx context.Context, a *attempt, to target, lim *lode.Limits, deadline time.Time) (away bool, err error) {
	s := sp.s
	if !s.leaving() && s.used.near(a.rev, a.start) && s.tryEnter(&a.w, to, lim) || a.stays(to) {
		return false, nil
	}
	views := sp.peers.Nodes()
	if !slices.ContainsFunc(views, func(v NodeView) bool { return v.Node != sp.self }) {
		return false, nil
	}
	j := sp.journeys.Get().(*journey)
	j.begin(a, to, lim, deadline, views)
	away, err = j.run(ctx)
	sp.ring.put(j.decision(away, err))
	j.end()
	return away, err
}

// journey is the way of one attempt to the node that runs it. It is used
// again.
type journey struct {
	sp       *spread
	a        *attempt
	used     *used
	to       target
	lim      *lode.Limits
	deadline time.Time

	views    []NodeView
	table    placement.Table
	work     placement.Work
	choice   placement.Choice
	down     []lode.NodeID // that did not take it in this round
	refusals int           // in this round
	full     bool          // one of them by a node that will have room
	attempt  int
	losses   int // nodes that were lost with it
	rounds   int // times that it was parked
	tries    []Try
}

func (j *journey) begin(a *attempt, to target, lim *lode.Limits, deadline time.Time, views []NodeView) {
	j.a, j.used, j.to, j.lim, j.deadline, j.views = a, j.sp.s.used.entry(a.rev), to, lim, deadline, views
	j.attempt = max(1, a.req.Attempt)
	h := fnv.New64a()
	h.Write([]byte(a.id))
	j.work = placement.Work{Kind: placement.Call, Size: a.rev.Function.Size, Seed: h.Sum64()}
}

func (j *journey) end() {
	sp, table := j.sp, j.table
	*j = journey{sp: sp, table: table, down: j.down[:0]}
	sp.journeys.Put(j)
}

// run places until the attempt has ended elsewhere or is to run here.
func (j *journey) run(ctx context.Context) (away bool, err error) {
	for ; ; j.work.Seed++ {
		j.look()
		placement.Place(&j.table, &j.work, &j.choice)
		if j.choice.Ask[0] >= 0 {
			j.ask(ctx)
		}
		c := j.choice.Chosen()
		switch {
		case c == nil:
			j.refusals = maxRefusals
		case c.Own:
			if ok, err := j.here(c); ok || err != nil {
				return false, err
			}
		default:
			if j.bringCode(c) {
				return false, nil
			}
			if done, err := j.forward(ctx, c); done {
				return true, err
			}
		}
		if ctx.Err() != nil {
			return false, ended(ctx, "placing "+j.a.rev.ID())
		}
		if j.refusals >= maxRefusals {
			if err := j.park(ctx); err != nil {
				return false, err
			}
		}
	}
}

// maxRefusals is after how many an invocation is parked.
const maxRefusals = 2

// look makes the picture that a placement is decided on.
func (j *journey) look() {
	sp, s := j.sp, j.sp.s
	if len(j.tries) > 0 {
		j.views = sp.peers.Nodes()
	}
	nowHere := s.used.now()
	own := placement.Node{ID: sp.self, Slots: s.gate.slots, Code: s.codeHere(j.used, nowHere), Run: float64(j.used.run(nowHere)) / 1e9}
	wait, mean := s.standing(j.to, j.lim, time.Duration(own.Run*1e9))
	own.Mean = mean.Seconds()
	own.Queue = placement.Line(wait.Seconds(), own.Slots, own.Mean)
	if s.leaving() {
		own.State = placement.Draining
	}
	now, reference := sp.now(), own.Run
	j.table.Own, j.table.Nodes = -1, j.table.Nodes[:0]
	sp.mu.Lock()
	for i := range j.views {
		v := &j.views[i]
		n := own
		if v.Node != sp.self {
			n = sp.peerNode(v, j.used.hash, now)
		} else {
			j.table.Own = len(j.table.Nodes)
		}
		if v.Draining && n.State == placement.Ready {
			n.State = placement.Draining
		}
		if slices.Contains(j.down, v.Node) {
			n.State = placement.Down
		}
		if n.Run > 0 && (reference == 0 || n.Run < reference) {
			reference = n.Run
		}
		j.table.Nodes = append(j.table.Nodes, n)
	}
	sp.mu.Unlock()
	if j.table.Own < 0 { // whoever made the views forgot this node
		j.table.Own = len(j.table.Nodes)
		j.table.Nodes = append(j.table.Nodes, own)
	}
	j.work.Run = reference
}

// peerNode is one peer for a revision; sp.mu is held.
func (sp *spread) peerNode(v *NodeView, hash uint64, now float64) placement.Node {
	n := placement.Node{ID: v.Node, Bandwidth: v.Bandwidth}
	p := sp.peer(v.Node)
	if v.Load == nil { // it has said nothing yet: a last resort
		n.State = placement.Draining
	} else {
		p.Heard(v.Load.Load, now-v.Age.Seconds())
		n.Code, n.Run = v.Load.rev(hash)
		if v.Load.Draining {
			n.State = placement.Draining
		}
	}
	rtt := v.RTT.Seconds()
	if rtt <= 0 {
		rtt = leastRTT
	}
	p.Fill(&n, now, rtt)
	return n
}

// here reports whether the attempt is to run on this node, which was chosen. A
// line that is too long is as good as a refusal, and so is that it drains
// while another node is only full.
func (j *journey) here(c *placement.Candidate) (bool, error) {
	s := j.sp.s
	stops := s.draining.Load() && j.a.depth == 0 && !j.a.w.patient
	wait := c.Cost.Queue
	switch {
	case stops && len(j.table.Nodes) == 1:
		return false, draining()
	case stops, s.leaving() && j.full:
		j.refused(c, 0, "it drains")
		return false, nil
	case placement.Admit(wait, c.Node.Mean, wait, 0):
		return true, nil
	}
	j.refused(c, wait, "its line is full")
	return false, nil
}

// triesMost is how many steps of a way are kept: the first, and the last.
const triesMost = 24

// tried notes a step of the way.
func (j *journey) tried(t Try) {
	if len(j.tries) == triesMost {
		j.tries = slices.Delete(j.tries, triesMost/2, triesMost/2+1)
	}
	j.tries = append(j.tries, t)
}

// refused notes that a node said no.
func (j *journey) refused(c *placement.Candidate, wait float64, why string) {
	j.down = append(j.down, c.Node.ID)
	j.refusals++
	j.tried(Try{Node: c.Node.ID, What: "refused: " + why, Wait: seconds(wait)})
	if !c.Own {
		j.sp.stats.refused.Add(1)
	}
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// ask asks the two best for their true wait, and decides on the answers.
func (j *journey) ask(ctx context.Context) {
	var answers [2]placement.Answer
	var wg sync.WaitGroup
	for k, i := range j.choice.Ask {
		c := &j.choice.Why[i]
		if c.Own {
			continue
		}
		j.sp.stats.asked.Add(1)
		if k == 0 && !j.choice.Why[j.choice.Ask[1]].Own {
			wg.Go(func() { answers[0] = j.askOne(ctx, c) })
			continue
		}
		answers[k] = j.askOne(ctx, c)
	}
	wg.Wait()
	placement.Settle(&j.work, &j.choice, answers)
}

// A question waits so many round trips for its answer, and not less than that.
const (
	askTrips = 5
	askLeast = 5 * time.Millisecond
)

func (j *journey) askOne(ctx context.Context, c *placement.Candidate) placement.Answer {
	most := max(seconds(askTrips*c.Cost.Hop), askLeast)
	ctx, cancel := context.WithTimeout(ctx, min(most, 20*askLeast))
	defer cancel()
	began := time.Now()
	rev := j.a.rev
	o := wireOrder{what: wireAsk, ns: rev.Namespace, function: rev.Name, rev: rev.Number, digest: rev.Digest}
	head, _ := o.append(nil)
	f := &forward{}
	if err := j.sp.peers.Call(ctx, c.Node.ID, &link.Request{Method: LinkMethod, Head: head}, f); err != nil || f.reply == nil || f.reply.what != wireAsked {
		return placement.Answer{After: time.Since(began).Seconds()}
	}
	a := placement.Answer{Heard: true, Wait: f.reply.wait.Seconds(), Code: f.reply.code}
	if f.reply.drains {
		a.Wait += placement.Bound(0)
	}
	return a
}

// LinkMethod is the method of the link that HandleRemote answers.
const LinkMethod = "invoke"

// counters count what became of placements since the start.
type counters struct {
	forwarded, served, refused, pushed, parked, retried, lost, asked, brought atomic.Int64
}

// SpreadStats count what became of placements since the start. Those that ran
// at once on the node they came to are in none of them.
type SpreadStats struct {
	Forwarded int64 // sent to another node that ran them
	Served    int64 // of other nodes, run here
	Refused   int64 // sent to another node that said no
	Pushed    int64 // of other nodes, refused here
	Parked    int64 // waits after two refusals
	Retried   int64 // placed again after a node was lost
	Lost      int64 // failed, because a node was lost and they may have run
	Asked     int64 // questions for a true wait
	Brought   int64 // times that a function's code was brought here by its calls
}

// SpreadStats tells what became of placements; zeros on a node that is alone.
func (s *Service) SpreadStats() SpreadStats {
	if s.spread == nil {
		return SpreadStats{}
	}
	c := &s.spread.stats
	return SpreadStats{Forwarded: c.forwarded.Load(), Served: c.served.Load(), Refused: c.refused.Load(), Pushed: c.pushed.Load(), Parked: c.parked.Load(),
		Retried: c.retried.Load(), Lost: c.lost.Load(), Asked: c.asked.Load(), Brought: c.brought.Load()}
}
