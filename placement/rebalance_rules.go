package placement

import (
	"cmp"
	"math"
	"slices"
)

// surplus is by how many partitions a host has more than its share.
func (s *spread) surplus(host int) float64 { return float64(s.count[host]) - s.share[host] }

// far reports whether a host with so many partitions would have far too few or
// too many, or some where it should have none.
func (s *spread) far(host, count int) bool {
	share := s.share[host]
	if share == 0 {
		return count > 0
	}
	n := float64(count)
	return n < share/2 && share-n > 1+eps || n > 2*share && n-share > 1+eps
}

// uneven reports whether some host is far off.
func (s *spread) uneven() bool {
	for i := range s.count {
		if s.far(i, s.count[i]) {
			return true
		}
	}
	return false
}

// takes reports whether a host should have partitions.
func (s *spread) takes(host int) bool { return s.share[host] > 0 }

// spreadAll spreads the kinds, each by itself, and then all of them: many kinds
// with a few partitions each may all be on one host, and each look even.
func (b *balance) spreadAll() {
	if !slices.ContainsFunc(b.Hosts, func(h Host) bool { return h.Eligible }) {
		return
	}
	for _, name := range b.names {
		k := b.kinds[name]
		b.spread(k, func(from, _ int) int { return last(k.parts[from]) })
	}
	b.spread(b.all, b.cheapest)
}

func last(parts []int) int {
	if len(parts) == 0 {
		return -1
	}
	return parts[len(parts)-1]
}

// cheapest is the partition of any kind that may go from one host to another
// without making its kind less even; -1: none.
func (b *balance) cheapest(from, to int) int {
	best := -1
	for _, name := range b.names {
		k := b.kinds[name]
		i := last(k.parts[from])
		if i < 0 || !k.takes(to) || k.surplus(from)-k.surplus(to) < 1-eps {
			continue
		}
		if best < 0 || b.dearer(best, i) < 0 {
			best = i
		}
	}
	return best
}

// spread moves partitions of s from who has the most too many to who has the
// most too few. Each move makes the sum of the squares of the surpluses less:
// it ends. pick names the partition to move; -1: there is none.
func (b *balance) spread(s *spread, pick func(from, to int) int) {
	if !b.m.spreads[s.kind] && !s.uneven() {
		return
	}
	b.m.spreads[s.kind] = true
	stuck := make([]bool, len(b.Hosts)) // has none that may move
	for {
		from, to, held := b.ends(s, stuck)
		if from < 0 {
			if !held {
				delete(b.m.spreads, s.kind)
			}
			return
		}
		i := pick(from, to)
		if i < 0 {
			stuck[from] = true
			continue
		}
		k := b.kinds[b.Parts[i].Kind]
		k.parts[from] = k.parts[from][:len(k.parts[from])-1]
		b.give(i, to, Spread)
	}
}

// ends are the hosts between which the next partition moves; -1: none does.
// held: some would, but that there are enough moves for now.
func (b *balance) ends(s *spread, stuck []bool) (from, to int, held bool) {
	from, to = -1, -1
	most, least := -1, -1 // without a bound of moves
	over := func(i int) float64 {
		if s.share[i] == 0 {
			return math.Inf(1) // whoever should have none goes first
		}
		return s.surplus(i)
	}
	for i := range b.Hosts {
		if s.count[i] > 0 && !stuck[i] {
			if most < 0 || over(i) > over(most) {
				most = i
			}
			if b.began[i] < spreadMost && (from < 0 || over(i) > over(from)) {
				from = i
			}
		}
		if s.takes(i) {
			if least < 0 || s.surplus(i) < s.surplus(least) {
				least = i
			}
			if b.began[i] < spreadMost && (to < 0 || s.surplus(i) < s.surplus(to)) {
				to = i
			}
		}
	}
	held = s.better(most, least)
	if !s.better(from, to) {
		return -1, -1, held
	}
	return from, to, held
}

// better reports whether a move between two hosts makes s more even.
func (s *spread) better(from, to int) bool {
	if from < 0 || to < 0 || from == to {
		return false
	}
	return s.share[from] == 0 || s.surplus(from)-s.surplus(to) > 1+eps
}

// due is a partition whose debt has reached the cost of its move.
type due struct {
	part, to int
	ratio    float64 // gain by cost
}

// gains counts what each partition loses where it is, and moves those that have
// lost enough.
func (b *balance) gains() {
	var dues []due
	idle := b.idlest()
	for i := range b.Parts {
		x := &b.Parts[i]
		if x.Fixed || b.m.Spreads(x.Kind) {
			continue
		}
		to, gain := b.best(x, idle)
		d := b.m.debts[x.ID]
		if to < 0 {
			if d != nil && d.regret.Sum(b.now) < d.cost/1000 {
				delete(b.m.debts, x.ID)
			}
			continue
		}
		if d == nil || d.to != b.Hosts[to].ID {
			d = &debt{to: b.Hosts[to].ID}
			d.regret.at = b.now
			b.m.debts[x.ID] = d
		}
		d.gain, d.cost = gain, b.cost(x)
		sum := d.regret
		if sum.Add(gain*b.dt, b.now, max(d.cost, eps)) {
			dues = append(dues, due{i, to, gain / max(d.cost, eps)})
			continue // it stays due until it moves, or the reason is gone
		}
		d.regret = sum
	}
	slices.SortFunc(dues, func(x, y due) int {
		return cmp.Or(cmp.Compare(y.ratio, x.ratio), cmp.Compare(b.Parts[x.part].ID, b.Parts[y.part].ID))
	})
	for _, d := range dues {
		b.take(d)
	}
}

// take moves a partition for gain, if it may be now.
func (b *balance) take(d due) {
	from, to := b.Hosts[b.Parts[d.part].Owner].ID, b.Hosts[d.to].ID
	if b.m.credit < 1 || b.m.quiet[from] > 0 || b.m.quiet[to] > 0 {
		return
	}
	b.m.credit--
	b.m.quiet[from], b.m.quiet[to] = b.now+settle, b.now+settle
	b.give(d.part, d.to, Gain)
}

// idlest are the two hosts whose cores are used least.
func (b *balance) idlest() []int {
	var out []int
	use := func(i int) float64 { return b.Hosts[i].Busy / max(b.Hosts[i].Cores, 0.1) }
	for i := range b.Hosts {
		if !b.Hosts[i].Eligible {
			continue
		}
		out = append(out, i)
		slices.SortFunc(out, func(i, j int) int {
			return cmp.Or(cmp.Compare(use(i), use(j)), cmp.Compare(b.Hosts[i].ID, b.Hosts[j].ID))
		})
		out = out[:min(len(out), 2)]
	}
	return out
}

// best is the host where x would save most, and how many seconds a second that
// is; -1: none is better than where it is. Looked at are the hosts that call
// it, and the idlest.
func (b *balance) best(x *Part, idle []int) (host int, gain float64) {
	host = -1
	look := func(to int) {
		if to == x.Owner || !b.mayGain(x, to) {
			return
		}
		if g := b.saves(x, to); g > eps && (host < 0 || g > gain) {
			host, gain = to, g
		}
	}
	for _, c := range x.Callers {
		look(c.Host)
	}
	for _, to := range idle {
		look(to)
	}
	return host, gain
}

// mayGain reports whether x may go to a host without making one of the two far
// off.
func (b *balance) mayGain(x *Part, to int) bool {
	k, from := b.kinds[x.Kind], x.Owner
	for _, s := range []*spread{k, b.all} {
		if !s.takes(to) || s.far(from, s.count[from]-1) || s.far(to, s.count[to]+1) {
			return false
		}
	}
	return true
}

// saves is how many seconds a second callers of x wait less if it is at to.
func (b *balance) saves(x *Part, to int) float64 {
	here := b.wait(x.Owner, b.Hosts[x.Owner].Busy)
	there := b.wait(to, b.Hosts[to].Busy+x.CPU)
	g := x.Turns * (Excess(here, there, b.mean) - Excess(there, here, 0))
	all := 0.0
	for _, c := range x.Callers {
		all += c.Rate
	}
	calls := x.callsFrom(to) - x.callsFrom(x.Owner)
	if calls > 0 {
		calls = max(0, calls-callMargin*all)
	}
	return g + calls*b.RTT
}
