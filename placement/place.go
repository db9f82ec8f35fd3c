package placement

import (
	"math"
	"math/bits"

	"lode"
)

const (
	fewHolders = 4    // so many are all looked at
	sampled    = 2    // of more
	askFrom    = 10   // times the round trip: work that is longer is worth a question
	tieShare   = 0.05 // costs that differ by less are equal
)

// Place chooses a node for w. Where out.Ask names candidates, the choice is
// Settle's, once they have answered. It does not allocate.
func Place(v View, w *Work, out *Choice) {
	r := rand{w.Seed}
	out.N, out.Best, out.Ask, out.Parted = 0, -1, [2]int{-1, -1}, false
	gather(v, w, &r, Ready, out)
	if out.N == 0 {
		out.Parted = true
		gather(v, w, &r, Draining, out)
	}
	pick(w, out)
	ask(w, out)
}

// gather fills out.Why with candidates of a state.
func gather(v View, w *Work, r *rand, state State, out *Choice) {
	own := v.Self()
	if own >= 0 {
		consider(v, w, own, state, out)
	}
	holders := v.Holders(w)
	if len(holders) <= fewHolders {
		for _, i := range holders {
			consider(v, w, int(i), state, out)
		}
	} else {
		draw(r, sampled, len(holders), func(k int) bool { return consider(v, w, int(holders[k]), state, out) })
	}
	if w.Copies+w.Flying > 0 && w.Flying >= w.Copies {
		return
	}
	strangers := 1
	if len(holders) == 0 {
		strangers = sampled // nobody has it: two to choose from
	}
	draw(r, strangers, v.Len(), func(i int) bool { return consider(v, w, i, state, out) })
	// A small cluster is seen whole when all that chance found take no work.
	for i := 0; out.N == 0 && i < v.Len(); i++ {
		consider(v, w, i, state, out)
	}
}

// lookOn is how many after the one that was drawn are looked at for one that
// will do.
const lookOn = 16

// draw calls try with numbers below size until it has taken n of them: each
// time with one at random and those that follow it.
func draw(r *rand, n, size int, try func(int) bool) {
	for ; n > 0 && size > 0; n-- {
		from := r.below(size)
		for k := range min(size, lookOn) {
			if try((from + k) % size) {
				break
			}
		}
	}
}

// consider adds node i, unless it is there, is in another state or the list is
// full. It reports whether it was added.
func consider(v View, w *Work, i int, state State, out *Choice) bool {
	for k := range out.N {
		if out.Why[k].Index == int32(i) {
			return false
		}
	}
	if out.N == Most {
		return false
	}
	c := &out.Why[out.N]
	c.Index, c.Own, c.Asked = int32(i), i == v.Self(), false
	v.Look(w, i, &c.Node)
	if c.Node.State != state {
		return false
	}
	c.Holder = c.Node.holds(w)
	if !c.Holder && w.Kind == Shard && w.Copies+w.Flying > 0 && w.Flying >= w.Copies {
		return false
	}
	c.Cost = costOf(w, &c.Node)
	out.N++
	return true
}

// costOf is the formula of the package.
func costOf(w *Work, n *Node) Cost {
	c := Cost{Hop: n.Hop, Queue: Wait(n.Queue, n.Slots, n.Mean), Run: n.Run}
	if c.Run == 0 {
		c.Run = w.Run
	}
	if n.Slow > 1 {
		c.Hop, c.Run = c.Hop*n.Slow, c.Run*n.Slow
	}
	c.Code = n.Code.Time(w.Size, n.Bandwidth)
	if n.Missing > 0 {
		ship := float64(n.Missing) / orSome(n.Bandwidth)
		c.Data = n.Backlog + ship
		rho := min(max(n.Busy, 0), 0.95)
		c.Ext = ship * rho / (1 - rho)
	}
	return c
}

// Wait is how long the next of queue invocations on so many slots waits, when
// each takes mean seconds of a slot.
func Wait(queue float64, slots int, mean float64) float64 {
	s := float64(max(slots, 1))
	return max(0, queue-s+1) * mean / s
}

// pick sets out.Best: the cheapest, and of those as good as the cheapest the
// caller's own, then who has what is needed, then who has more memory by its
// order of magnitude, then chance by request and node.
func pick(w *Work, out *Choice) {
	out.Best = -1
	best := math.Inf(1)
	var hop float64
	for i := range out.N {
		if t := out.Why[i].Cost.Total(); t < best {
			best, out.Best, hop = t, i, out.Why[i].Cost.Hop
		}
	}
	if out.Best < 0 {
		return
	}
	near := best + max(tieShare*best, hop)
	for i := range out.N {
		if i != out.Best && out.Why[i].Cost.Total() <= near && before(w, &out.Why[i], &out.Why[out.Best]) {
			out.Best = i
		}
	}
}

// before orders candidates of about the same cost.
func before(w *Work, a, b *Candidate) bool {
	if a.Own != b.Own {
		return a.Own
	}
	if a.Holder != b.Holder {
		return a.Holder
	}
	if x, y := bits.Len64(uint64(a.Node.Memory)), bits.Len64(uint64(b.Node.Memory)); x != y {
		return x > y
	}
	return lot(w.Seed, a.Node.ID) > lot(w.Seed, b.Node.ID)
}

// ask names the two best where the work is long enough for a question: its
// answer costs a round trip, and is true. The caller's own node knows itself.
func ask(w *Work, out *Choice) {
	if out.Best < 0 || out.N < 2 {
		return
	}
	c := &out.Why[out.Best]
	if c.Own && c.Cost.Queue == 0 {
		return
	}
	second := -1
	for i := range out.N {
		if i != out.Best && (second < 0 || out.Why[i].Cost.Total() < out.Why[second].Cost.Total()) {
			second = i
		}
	}
	rtt := max(c.Cost.Hop, out.Why[second].Cost.Hop)
	if m := max(c.Cost.Run, c.Node.Mean); m > askFrom*rtt {
		out.Ask = [2]int{out.Best, second}
	}
}

// Answer is what a node says of itself.
type Answer struct {
	Heard bool    // false: no answer came in time
	Wait  float64 // seconds until it would begin
	Code  Code
	After float64 // not heard: seconds that were waited for it
}

// Settle decides again, now that those in c.Ask have answered, in that order.
// Who did not answer is taken for later by what was waited, and then some.
func Settle(w *Work, c *Choice, answers [2]Answer) {
	for k, i := range c.Ask {
		if i < 0 || c.Why[i].Own {
			continue
		}
		cand, a := &c.Why[i], &answers[k]
		if !a.Heard {
			cand.Cost.Hop += unheard * a.After
			continue
		}
		cand.Asked = true
		cand.Cost.Queue = a.Wait
		cand.Cost.Code = a.Code.Time(w.Size, cand.Node.Bandwidth)
		cand.Holder = w.Kind == Shard && cand.Holder || w.Kind == Call && a.Code >= Loaded
	}
	c.Ask = [2]int{-1, -1}
	pick(w, c)
}

// unheard is how much worse than what was waited a node is that did not answer.
const unheard = 10

// rand is splitmix64.
type rand struct{ s uint64 }

func (r *rand) next() uint64 {
	r.s += 0x9e3779b97f4a7c15
	return mix(r.s)
}

// below is a number from 0 to n-1.
func (r *rand) below(n int) int {
	hi, _ := bits.Mul64(r.next(), uint64(n))
	return int(hi)
}

func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// lot is the weight of a node for a request: FNV-1a over its name.
func lot(seed uint64, id lode.NodeID) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(id) {
		h = (h ^ uint64(id[i])) * 1099511628211
	}
	return mix(h ^ seed)
}
