package owner

import (
	"context"
	"iter"
	"maps"
	"slices"

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

// Journals lists the nodes in whose journals there may be something of a
// partition, as the bus has it: those that ever had a term, and those that
// registers name.
func (o *Owners) Journals(ctx context.Context) ([]lode.NodeID, error) {
	records, err := o.records.List(ctx, "")
	if err != nil {
		return nil, err
	}
	registers, err := o.registers.List(ctx, "")
	if err != nil {
		return nil, err
	}
	all := map[lode.NodeID]bool{}
	for _, e := range records {
		all[lode.NodeID(e.Key)] = true
	}
	for _, e := range registers {
		var reg Register
		if err := decode(e, &reg); err != nil {
			return nil, err
		}
		all[reg.Node], all[reg.Base.Journal] = true, true
	}
	delete(all, "")
	return slices.Sorted(maps.Keys(all)), nil
}
