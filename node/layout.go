package node

import (
	"cmp"
	"slices"

	"lode"
)

// candidate is a node as the choice of bus members sees it.
type candidate struct {
	id     lode.NodeID
	zone   string
	member bool // of the bus now
	alive  bool // heard of just now
	gone   bool // not heard of for so long that it is replaced
	leaves bool // draining
}

// rank orders candidates: members stay, who is there goes before who is not,
// and who leaves is taken only where nobody else is left.
func (c *candidate) rank() int {
	switch {
	case c.gone:
		return 4
	case c.leaves:
		return 3
	case c.member:
		return 0
	case c.alive:
		return 1
	}
	return 2
}

// chooseMembers picks the members of the bus among the nodes of a cluster: 1
// of one or two nodes, 3 of three or four, 5 of more. Two members would stop
// when either of them does, so a second node never is one. Members are kept
// where that is possible; a new one comes from a zone that has none yet, if
// there is such a node. It is a pure function of its arguments, and the answer
// is sorted.
func chooseMembers(cs []candidate) []lode.NodeID {
	size := 0
	for _, c := range cs {
		if c.alive || c.member {
			size++
		}
	}
	want := 1
	switch {
	case size >= 5:
		want = 5
	case size >= 3:
		want = 3
	}
	rest := slices.Clone(cs)
	zones := map[string]int{}
	var out []lode.NodeID
	for len(out) < want {
		best := slices.MinFunc(rest, func(a, b candidate) int {
			return cmp.Or(cmp.Compare(a.rank(), b.rank()), cmp.Compare(zones[a.zone], zones[b.zone]), cmp.Compare(a.id, b.id))
		})
		rest = slices.DeleteFunc(rest, func(c candidate) bool { return c.id == best.id })
		zones[best.zone]++
		out = append(out, best.id)
	}
	slices.Sort(out)
	return out
}
