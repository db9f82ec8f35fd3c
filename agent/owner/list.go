package owner

import (
	"iter"

	"lode"
	"lode/agent/journal"
)

// All yields every partition that somebody has owned, as Lookup says it, in no
// order: no I/O and no lock.
func (o *Owners) All() iter.Seq2[journal.Partition, Owner] {
	return func(yield func(journal.Partition, Owner) bool) {
		kinds := o.view.kinds.Load()
		if kinds == nil {
			return
		}
		for id, k := range *kinds {
			for n, at := range *k.parts.Load() {
				own := at.Load()
				if own != nil && !yield(journal.Partition{Namespace: id.ns, Kind: id.kind, N: n}, *own) {
					return
				}
			}
		}
	}
}

// Best names the node, of those that may be given partitions now, to which p
// is to move: the one with the fewest, and among equals the first by
// rendezvous. False: there is no other.
func (o *Owners) Best(p journal.Partition) (lode.NodeID, bool) {
	has := map[lode.NodeID]int{}
	for _, own := range o.All() {
		has[own.Node]++
	}
	var best lode.NodeID
	for _, n := range lode.Rendezvous([]byte(p.String()), o.eligible(o.c.Self)) {
		if best == "" || has[n] < has[best] {
			best = n
		}
	}
	return best, best != ""
}
