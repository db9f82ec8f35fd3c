package placement

import "math"

// forget is the time in which a regret falls to 1/e, in seconds.
const forget = 5.0

// Regret is a decayed sum of what was paid because something is not here: hops
// for code that runs elsewhere, waits at the holders of a shard. When it has
// reached what having it here costs, having it pays. The zero value is ready.
type Regret struct{ sum, at float64 }

// Add counts x seconds, paid at now (seconds of any clock that goes on), and
// reports whether the sum has reached cost; then it begins anew. By this rule
// at most twice is paid what the best plan would have, and one x.
func (r *Regret) Add(x, now, cost float64) (due bool) {
	if dt := now - r.at; dt > 0 {
		r.sum *= math.Exp(-dt / forget)
		r.at = now
	}
	r.sum += max(x, 0)
	if r.sum < cost {
		return false
	}
	r.sum = 0
	return true
}

// Sum is the regret at now.
func (r *Regret) Sum(now float64) float64 {
	return r.sum * math.Exp(-max(now-r.at, 0)/forget)
}

// Excess is the regret of a wait at a holder of data where another node would
// have waited less. The margin of one mean run keeps the noise of a queue from
// counting: without it copies are made for ever.
func Excess(holder, other, mean float64) float64 { return max(0, holder-other-mean) }
