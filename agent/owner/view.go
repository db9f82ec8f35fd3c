package owner

import (
	"sync/atomic"

	"lode"
	"lode/agent/journal"
)

// view is the table that Lookup reads: without a lock, and written by one
// goroutine. Maps and slices in it are never changed, but replaced.
type view struct {
	kinds atomic.Pointer[map[kindID]*kindView]
}

type kindID struct {
	ns   lode.Namespace
	kind lode.Name
}

type kindView struct {
	parts atomic.Pointer[[]*atomic.Pointer[Owner]]
}

func (v *view) get(p journal.Partition) (Owner, bool) {
	kinds := v.kinds.Load()
	if kinds == nil {
		return Owner{}, false
	}
	k := (*kinds)[kindID{p.Namespace, p.Kind}]
	if k == nil {
		return Owner{}, false
	}
	parts := *k.parts.Load()
	if p.N < 0 || p.N >= len(parts) {
		return Owner{}, false
	}
	if o := parts[p.N].Load(); o != nil {
		return *o, true
	}
	return Owner{}, false
}

// at is where the owner of p stands; p.N is not negative.
func (v *view) at(p journal.Partition) *atomic.Pointer[Owner] {
	id := kindID{p.Namespace, p.Kind}
	var kinds map[kindID]*kindView
	if was := v.kinds.Load(); was != nil {
		kinds = *was
	}
	k := kinds[id]
	if k == nil {
		k = &kindView{}
		k.parts.Store(&[]*atomic.Pointer[Owner]{})
		more := make(map[kindID]*kindView, len(kinds)+1)
		for id, k := range kinds {
			more[id] = k
		}
		more[id] = k
		v.kinds.Store(&more)
	}
	parts := *k.parts.Load()
	if p.N >= len(parts) {
		more := make([]*atomic.Pointer[Owner], max(64, 2*len(parts), p.N+1))
		for i := copy(more, parts); i < len(more); i++ {
			more[i] = new(atomic.Pointer[Owner])
		}
		k.parts.Store(&more)
		parts = more
	}
	return parts[p.N]
}
