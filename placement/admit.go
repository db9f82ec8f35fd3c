package placement

// leastBound is how long a line may be, in seconds, whatever it holds.
const leastBound = 0.150

// Bound is the longest wait, in seconds, that a node takes work for: 150 ms,
// or four times the mean of what it runs where that is longer.
func Bound(mean float64) float64 { return max(leastBound, 4*mean) }

// Admit is a node's own answer to work that would wait so long there: mean is
// what it runs on average, promised the wait that the sender counted on, rtt
// the way between them, all in seconds. A node refuses what would wait longer
// than promised by half a run, for there may be a better place. By how much
// that is less than two round trips does not matter: finding another place
// costs as much.
func Admit(wait, mean, promised, rtt float64) bool {
	if wait <= 0 {
		return true
	}
	return wait <= min(Bound(mean), promised+max(mean/2, 2*rtt))
}

// Line is how many invocations make a wait: Wait(Line(w, s, m), s, m) is w.
func Line(wait float64, slots int, mean float64) float64 {
	if wait <= 0 || mean <= 0 {
		return 0
	}
	s := float64(max(slots, 1))
	return wait*s/mean + s - 1
}
