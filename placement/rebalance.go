package placement

import (
	"cmp"
	"math"
	"slices"

	"lode"
)

// Host is a node as Rebalance sees it.
type Host struct {
	ID       lode.NodeID
	Cores    float64 // its capacity
	Busy     float64 // cores in use, by all work
	Eligible bool    // it may be given partitions
}

// Part is a partition of agents as Rebalance sees it.
type Part struct {
	ID      string // names it, and orders what is equal
	Kind    string
	Owner   int     // index in Picture.Hosts
	Fixed   bool    // it cannot be moved now
	Turns   float64 // a second
	CPU     float64 // cores in use by it
	Bytes   int64   // of state
	Callers []Caller
}

// Caller is where calls of a partition come from.
type Caller struct {
	Host int     // index in Picture.Hosts; the owner is one too
	Rate float64 // calls a second
}

// Picture is what Rebalance decides by. Whoever makes it owns it; Rebalance
// changes the owners and loads in it as its moves would.
type Picture struct {
	Hosts []Host
	Parts []Part
	// Near names, by kind, the hosts that it wants to be on. A wish: where none
	// of them is eligible, or none is named, all hosts will do.
	Near      map[string][]int
	Blackout  float64 // seconds that a moving partition does not answer, as measured
	Bandwidth float64 // bytes/s at which state comes to its new owner; 0: not known
	RTT       float64 // seconds between two hosts
}

// Cause is why a partition moves.
type Cause uint8

// The causes.
const (
	Spread Cause = iota // some host has far fewer partitions than its share, or some that it should not have
	Gain                // what was lost by its being where it is has reached what the move costs
)

func (c Cause) String() string { return [...]string{"spread", "gain"}[c] }

// Move is a decision to give a partition to another host.
type Move struct {
	Part     string
	From, To lode.NodeID
	Why      Cause
	Cost     float64 // seconds of delay that the move is thought to cost
}

// Ledger is what Rebalance remembers between two calls. The zero value is
// ready. It may be lost at any time: what was owed is owed anew.
type Ledger struct {
	spreads map[string]bool // kinds that are being spread, "": all together
	debts   map[string]*debt
	quiet   map[lode.NodeID]float64 // until when a host takes part in no gain
	credit  float64                 // gains that may be made
	at      float64
	began   bool
}

// debt is what is lost because a partition is not elsewhere.
type debt struct {
	to     lode.NodeID
	regret Regret
	gain   float64 // seconds a second, as seen last
	cost   float64
}

const (
	spreadMost = 16   // moves to spread that begin at one host, or end there, in one call
	gainShare  = 0.01 // of all partitions that move for gain in a minute
	settle     = 15.0 // seconds after a gain in which its two hosts take part in no other: their loads are means
	callMargin = 0.2  // share of all calls by which those from elsewhere must exceed those from here
	localWorth = 10.0 // seconds of saved round trips that a partition which is called from its own node is dearer to move
	moveWork   = 0.02 // seconds of work of the two nodes for any move
	someMean   = 1e-3 // seconds of a turn, where none is known
	someBytes  = 100e6
	fullest    = 0.98 // utilisation beyond which waits are not extrapolated
	eps        = 1e-9
)

// Rebalance decides which partitions are to move, by two rules.
//
// Spread: the share of a host is the partitions of a kind by its cores, and
// likewise all partitions. Where one has less than half of its share (it is
// new, or it was away) or more than twice as many, or has some that it should
// not have, the cheapest ones move until all are within one of their share;
// idle ones are cheapest.
//
// Gain: each partition owes what its callers lose by its being where it is:
// waits for a CPU beyond those elsewhere, and round trips of calls that come
// from elsewhere. When the sum, which is forgotten within seconds, reaches what
// a move costs, it moves and begins anew. At most one in a hundred does so in a
// minute, and none that would leave its host so few that Spread undoes it:
// under a load that stays the same all moves end.
//
// now is in seconds of any clock that goes on. Equal pictures, ledgers and
// times give equal moves.
func Rebalance(p *Picture, m *Ledger, now float64) []Move {
	b := newBalance(p, m, now)
	b.spreadAll()
	b.gains()
	return b.moves
}

// Owed is what the ledger has about one partition.
type Owed struct {
	To   lode.NodeID // where it would be better
	Sum  float64     // seconds lost lately by its not being there
	Cost float64     // seconds that the move costs: it moves when Sum reaches this
	Gain float64     // seconds saved a second
}

// Owed tells what is owed to a partition at now; false: nothing speaks for
// another host.
func (m *Ledger) Owed(part string, now float64) (Owed, bool) {
	d := m.debts[part]
	if d == nil {
		return Owed{}, false
	}
	return Owed{d.to, d.regret.Sum(now), d.cost, d.gain}, true
}

// Spreads reports whether partitions of a kind are being spread.
func (m *Ledger) Spreads(kind string) bool { return m.spreads[kind] || m.spreads[""] }

// balance is one call of Rebalance.
type balance struct {
	*Picture
	m     *Ledger
	now   float64
	dt    float64 // since the call before
	mean  float64 // seconds of a turn
	kinds map[string]*spread
	names []string
	all   *spread
	began []int // moves that begin or end at each host
	moves []Move
}

// spread is how partitions, of one kind or all, lie on the hosts.
type spread struct {
	kind  string
	share []float64 // of each host; 0: it should have none
	count []int
	parts [][]int // by host, those that may move, the dearest first
}

func newBalance(p *Picture, m *Ledger, now float64) *balance {
	if m.debts == nil {
		m.spreads, m.debts, m.quiet = map[string]bool{}, map[string]*debt{}, map[lode.NodeID]float64{}
	}
	b := &balance{Picture: p, m: m, now: now, kinds: map[string]*spread{}, began: make([]int, len(p.Hosts))}
	b.all = b.newSpread("")
	var cpu, turns float64
	for i := range p.Parts {
		x := &p.Parts[i]
		cpu, turns = cpu+x.CPU, turns+x.Turns
		k := b.kinds[x.Kind]
		if k == nil {
			k = b.newSpread(x.Kind)
			b.kinds[x.Kind] = k
			b.names = append(b.names, x.Kind)
		}
		k.count[x.Owner]++
		b.all.count[x.Owner]++
		if !x.Fixed {
			k.parts[x.Owner] = append(k.parts[x.Owner], i)
		}
	}
	if b.mean = someMean; turns > 0 && cpu > 0 {
		b.mean = cpu / turns
	}
	slices.Sort(b.names)
	for _, name := range b.names {
		k := b.kinds[name]
		b.shares(k, p.Near[name])
		for _, parts := range k.parts {
			slices.SortFunc(parts, b.dearer)
		}
	}
	b.shares(b.all, nil)
	b.account()
	return b
}

func (b *balance) newSpread(kind string) *spread {
	n := len(b.Hosts)
	return &spread{kind, make([]float64, n), make([]int, n), make([][]int, n)}
}

// shares gives each host its part by its cores: all eligible ones, or those of
// near where one of them is.
func (b *balance) shares(s *spread, near []int) {
	takes := func(i int) bool { return b.Hosts[i].Eligible && slices.Contains(near, i) }
	if !slices.ContainsFunc(near, takes) {
		takes = func(i int) bool { return b.Hosts[i].Eligible }
	}
	sum, total := 0.0, 0
	for i, n := range s.count {
		total += n
		if takes(i) {
			s.share[i] = max(b.Hosts[i].Cores, 0.1)
			sum += s.share[i]
		}
	}
	for i := range s.share {
		s.share[i] *= float64(total) / max(sum, 0.1)
	}
}

// account grants gains for the time since the call before, and forgets what is
// over.
func (b *balance) account() {
	m, most := b.m, max(1, gainShare*float64(len(b.Parts)))
	if !m.began {
		m.began, m.credit, m.at = true, most, b.now
	}
	b.dt = max(0, b.now-m.at)
	m.credit = min(most, m.credit+b.dt/60*most)
	m.at = b.now
	for id, until := range m.quiet {
		if until <= b.now {
			delete(m.quiet, id)
		}
	}
	for kind := range m.spreads {
		if kind != "" && b.kinds[kind] == nil {
			delete(m.spreads, kind)
		}
	}
	b.prune()
}

// prune drops debts of partitions that are no more.
func (b *balance) prune() {
	if len(b.m.debts) == 0 {
		return
	}
	live := make(map[string]bool, len(b.Parts))
	for i := range b.Parts {
		live[b.Parts[i].ID] = true
	}
	for id := range b.m.debts {
		if !live[id] {
			delete(b.m.debts, id)
		}
	}
}

// cost is how many seconds a move of x costs: turns that wait until it is
// there, the bytes on their way, and what it is for the nodes.
func (b *balance) cost(x *Part) float64 {
	bw := b.Bandwidth
	if bw <= 0 {
		bw = someBytes
	}
	return moveWork + x.Turns*b.Blackout*b.Blackout/2 + float64(x.Bytes)/bw
}

// dearer orders partitions of one host by what their move costs, that of local
// callers included; the cheapest comes last.
func (b *balance) dearer(i, j int) int {
	x, y := &b.Parts[i], &b.Parts[j]
	worth := func(x *Part) float64 { return b.cost(x) + x.callsFrom(x.Owner)*b.RTT*localWorth }
	return cmp.Or(cmp.Compare(worth(y), worth(x)), cmp.Compare(y.Turns, x.Turns), cmp.Compare(y.ID, x.ID))
}

func (x *Part) callsFrom(host int) float64 {
	for _, c := range x.Callers {
		if c.Host == host {
			return c.Rate
		}
	}
	return 0
}

// give notes a decision, and makes the picture what it will be.
func (b *balance) give(i, to int, why Cause) {
	x := &b.Parts[i]
	from, k := x.Owner, b.kinds[x.Kind]
	b.moves = append(b.moves, Move{x.ID, b.Hosts[from].ID, b.Hosts[to].ID, why, b.cost(x)})
	x.Owner, x.Fixed = to, true
	for _, s := range []*spread{k, b.all} {
		s.count[from]--
		s.count[to]++
	}
	b.Hosts[from].Busy -= x.CPU
	b.Hosts[to].Busy += x.CPU
	b.began[from]++
	b.began[to]++
	delete(b.m.debts, x.ID)
}

// wait is how long a turn waits for one of a host's cores when so many are
// busy (Sakasegawa's approximation of a line with several servers).
func (b *balance) wait(host int, busy float64) float64 {
	c := max(b.Hosts[host].Cores, 1)
	rho := min(max(busy/c, 0), fullest)
	return b.mean * math.Pow(rho, math.Sqrt(2*(c+1))-1) / (c * (1 - rho))
}
