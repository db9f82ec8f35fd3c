package job

import (
	"cmp"
	"math"
	"slices"
	"time"

	"lode"
)

// What is decided here is decided from values alone: which groups a job falls
// into, which node works on which, and which is so slow that a second node gets
// it too.

const (
	groupsPerSlot = 4 // at least, so that work balances and a lost node costs little
	maxGroupLevel = 6 // 64 shards
	ahead         = 256
)

// groupLevel is the size of a job's groups, as a level of the merge tree: the
// largest that leaves each slot some groups.
func groupLevel(shards, slots int) int {
	level := 0
	for level < maxGroupLevel && (shards+1<<(level+1)-1)>>(level+1) >= groupsPerSlot*max(1, slots) {
		level++
	}
	return level
}

// blocks covers the shards that no place of done covers with places of at most
// the given level, in the order of shards. Places of done do not overlap.
func blocks(shards, level int, done map[place]bool) (out []place) {
	above := map[place]bool{} // something below it is done
	root := top(shards)
	for at := range done {
		for at.level < root.level {
			at = place{at.level + 1, at.i >> 1}
			above[at] = true
		}
	}
	var walk func(place)
	walk = func(at place) {
		switch {
		case at.i<<at.level >= shards || done[at]:
		case at.level <= level && !above[at]:
			out = append(out, at)
		default:
			walk(place{at.level - 1, 2 * at.i})
			walk(place{at.level - 1, 2*at.i + 1})
		}
	}
	if shards > 0 {
		walk(root)
	}
	return out
}

// disjoint keeps the places of a tree over shards that no other kept place
// overlaps.
func disjoint(shards int, all []place) map[place]bool {
	kept, above := map[place]bool{}, map[place]bool{}
	root := top(shards)
next:
	for _, at := range all {
		if at.level < 0 || at.level > root.level || at.i < 0 || at.i > (shards-1)>>at.level || kept[at] || above[at] {
			continue
		}
		var up []place
		for p := at; p.level < root.level; {
			p = place{p.level + 1, p.i >> 1}
			if kept[p] {
				continue next
			}
			up = append(up, p)
		}
		kept[at] = true
		for _, p := range up {
			above[p] = true
		}
	}
	return kept
}

// load is a node as a choice sees it.
type load struct {
	node    lode.NodeID
	slots   int
	flying  int     // groups that it works on or will, of all jobs
	room    int     // groups that it may be given now
	backlog float64 // seconds of bytes that are on their way to it
}

// need is a group that waits for a node.
type need struct {
	weight int64
	fetch  []float64 // by node: seconds until the bytes that it lacks are there
	not    []bool    // by node: it may not have the group
	turn   int       // spreads what costs the same
}

// pick gives a group to a node; both by number.
type pick struct{ need, node int }

// assign chooses a node for each group, as if all were given out now, and
// returns those that can begin: the node has room. Others are chosen for again
// when a slot is free, with what is known then. rate is the seconds that a
// core takes for a unit of weight.
//
// The cost is that of package placement: max(wait for a slot, wait for the
// bytes), since bytes travel while others work; the wait for a slot is of the
// groups in front, the wait for bytes of those on their way.
func assign(needs []need, nodes []load, rate float64) (out []pick) {
	nodes = slices.Clone(nodes)
	free := 0
	for _, n := range nodes {
		free += n.room
	}
	for i, w := range needs[:min(len(needs), ahead)] {
		if free == 0 {
			break
		}
		best, cost := -1, math.Inf(1)
		for k := range nodes {
			at := (k + w.turn) % len(nodes)
			if w.not[at] {
				continue
			}
			c := startAfter(&nodes[at], &w, at, rate)
			if best < 0 || c < cost*0.95-1e-3 || c < cost*1.05+1e-3 && before(&nodes[at], &nodes[best], w.fetch[at], w.fetch[best]) {
				best, cost = at, c
			}
		}
		if best < 0 {
			continue
		}
		n := &nodes[best]
		n.flying++
		n.backlog += w.fetch[best]
		if n.room > 0 {
			n.room--
			free--
			out = append(out, pick{i, best})
		}
	}
	return out
}

// startAfter is how many seconds pass until the node can begin the group.
func startAfter(n *load, w *need, at int, rate float64) float64 {
	slots := max(1, n.slots)
	queue := float64(max(0, n.flying-slots+1)) * float64(w.weight) * rate / float64(slots)
	data := 0.0
	if w.fetch[at] > 0 {
		data = n.backlog + w.fetch[at]
	}
	return max(queue, data)
}

// before breaks a tie: fewer bytes to move, then the shorter queue.
func before(a, b *load, fetchA, fetchB float64) bool {
	if fetchA != fetchB {
		return fetchA < fetchB
	}
	return a.flying*max(1, b.slots) < b.flying*max(1, a.slots)
}

// slow reports whether a group of so many bytes has run for so long that
// another node should have it too: over twice what the median of those that
// ended took for as many, and over the least time.
func slow(ran time.Duration, weight int64, paces []float64, least time.Duration) bool {
	if len(paces) == 0 || ran < least {
		return false
	}
	sorted := slices.Sorted(slices.Values(paces))
	return ran.Seconds() > 2*sorted[len(sorted)/2]*float64(weight)
}

// weight is what a group's time is thought to grow with: its bytes, and
// something for each shard.
func weight(shards []lode.Shard) (w int64) {
	for _, s := range shards {
		w += s.Bytes + 64<<10
	}
	return w
}

// seconds is how long bytes take over a connection whose speed is not always
// known.
func seconds(missing int64, bandwidth float64, rtt time.Duration) float64 {
	if missing <= 0 {
		return 0
	}
	return float64(missing)/cmp.Or(max(0, bandwidth), 125e6) + max(0, rtt).Seconds()
}
