package placement

import "slices"

// Cached is a copy that a node keeps and may drop.
type Cached struct {
	Bytes int64
	Hits  float64 // decayed count of uses
	Cost  float64 // seconds to fetch it again
	Age   float64 // seconds since it came
	Base  float64 // the level when it was last used: see Evict
	InUse bool
}

// youngest is the age in seconds below which a copy is not dropped.
const youngest = 10.0

// Evict picks copies to drop until need bytes are free, those least worth
// their bytes first (GreedyDual-Size), never one in use or younger than 10 s.
// It appends their numbers to dst, and returns the level to which what is used
// from now on counts: the value of the dearest that went, so that what is not
// used any more goes in its turn. Fewer bytes may be found than are needed.
func Evict(dst []int, c []Cached, need int64, level float64) ([]int, float64) {
	from := len(dst)
	for i := range c {
		if !c[i].InUse && c[i].Age >= youngest && c[i].Bytes > 0 {
			dst = append(dst, i)
		}
	}
	slices.SortStableFunc(dst[from:], func(a, b int) int {
		switch x, y := c[a].worth(), c[b].worth(); {
		case x < y:
			return -1
		case x > y:
			return 1
		}
		return a - b
	})
	n := from
	for n < len(dst) && need > 0 {
		need -= c[dst[n]].Bytes
		level = max(level, c[dst[n]].worth())
		n++
	}
	return dst[:n], level
}

// worth is what a copy spares, by byte, above the level of its last use.
func (c *Cached) worth() float64 { return c.Base + c.Hits*c.Cost/float64(c.Bytes) }
