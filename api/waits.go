package api

import (
	"cmp"
	"slices"
	"strings"
)

// MergePartitions makes one list of what each node says of partitions, the
// first node's being the base: of each partition what its owner says, by kind
// and number.
func MergePartitions(parts [][]Partition) []Partition {
	type id struct {
		kind string
		n    int
	}
	best := map[id]Partition{}
	for i, list := range parts {
		for _, p := range list {
			k := id{string(p.Kind), p.N}
			old, known := best[k]
			// While one moves, two may say that it is theirs: the later epoch has it.
			if !known && i == 0 || p.Answered && (!old.Answered || p.Epoch > old.Epoch) {
				best[k] = p
			}
		}
	}
	out := make([]Partition, 0, len(best))
	for _, p := range best {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b Partition) int {
		return cmp.Or(strings.Compare(string(a.Kind), string(b.Kind)), cmp.Compare(a.N, b.N))
	})
	return out
}

// MergeAgents makes one page of at most limit (0: all) of each node's page. An
// agent that two nodes have, while its partition moves, is there once.
func MergeAgents(parts []List[Agent], limit int) List[Agent] {
	var out List[Agent]
	more := ""
	for _, p := range parts {
		out.Items = append(out.Items, p.Items...)
		out.Missing = append(out.Missing, p.Missing...)
		// Behind the end of a page that is not the last, a node has more: what
		// comes after that is of the next page.
		if p.Next != "" && (more == "" || p.Next < more) {
			more = p.Next
		}
	}
	slices.SortStableFunc(out.Items, func(a, b Agent) int { return strings.Compare(a.Address, b.Address) })
	out.Items = slices.CompactFunc(out.Items, func(a, b Agent) bool { return a.Address == b.Address })
	if more != "" {
		end := slices.IndexFunc(out.Items, func(a Agent) bool { return a.Address > more })
		if end >= 0 {
			out.Items = out.Items[:end]
		}
		out.Next = more
	}
	if limit > 0 && len(out.Items) > limit {
		out.Items = out.Items[:limit]
		out.Next = out.Items[limit-1].Address
	}
	return out
}

// WaitsAround is the part of a wait graph that an agent is in: what it waits
// for, and what that waits for, and so on; and who waits for it, and for those.
// The oldest wait is first. The same wait is there once.
func WaitsAround(address string, all []Wait) []Wait {
	keep := map[Wait]bool{}
	walk := func(next func(Wait) (at, to string)) {
		seen, todo := map[string]bool{address: true}, []string{address}
		for len(todo) > 0 {
			here := todo[0]
			todo = todo[1:]
			for _, w := range all {
				at, to := next(w)
				if at != here {
					continue
				}
				keep[w] = true
				if to != "" && !seen[to] {
					seen[to] = true
					todo = append(todo, to)
				}
			}
		}
	}
	walk(func(w Wait) (string, string) { return w.From, w.To })
	walk(func(w Wait) (string, string) { return w.To, w.From })
	var out []Wait
	for w := range keep {
		out = append(out, w)
	}
	slices.SortFunc(out, func(a, b Wait) int {
		return cmp.Or(a.Since.Compare(b.Since), strings.Compare(a.From, b.From), strings.Compare(a.To, b.To), strings.Compare(a.Turn, b.Turn))
	})
	return out
}

// WaitRing is a circle of waits that an agent is in: addresses from it to
// itself; nil if there is none.
func WaitRing(address string, all []Wait) []string {
	came, todo := map[string]string{}, []string{address}
	for len(todo) > 0 {
		here := todo[0]
		todo = todo[1:]
		for _, w := range all {
			if w.From != here {
				continue
			}
			if w.To == address {
				ring := []string{address}
				for at := here; at != address; at = came[at] {
					ring = append(ring, at)
				}
				ring = append(ring, address)
				slices.Reverse(ring)
				return ring
			}
			if _, seen := came[w.To]; !seen {
				came[w.To] = here
				todo = append(todo, w.To)
			}
		}
	}
	return nil
}
