package job

import (
	"maps"
	"slices"

	"lode"
)

// sharesOf lists what nodes did, by name, without those that did nothing.
func sharesOf(m map[lode.NodeID]*NodeShare) []NodeShare {
	var out []NodeShare
	for _, n := range slices.Sorted(maps.Keys(m)) {
		if *m[n] != (NodeShare{Node: n}) {
			out = append(out, *m[n])
		}
	}
	return out
}

// share is where a node's part is counted. mu is held.
func (r *run) share(node lode.NodeID) *NodeShare {
	s := r.shares[node]
	if s == nil {
		s = &NodeShare{Node: node}
		r.shares[node] = s
	}
	return s
}

// takeoff counts a group that is given to a node.
func (r *run) takeoff(f *flight) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.flying[f] = true
	r.share(f.node)
	r.job.Sent += f.sent
	switch n := len(f.piece.shards); {
	case f.second:
		r.job.Doubled += n
	case f.piece.tries > 0:
		r.job.Retried += n
	}
	r.wake()
}

// land counts what a flight took, and its shards if it counts: then the other
// flights of its group are none any more. What became of a lost node's work is
// known as far as it told.
func (r *run) land(f *flight, counts bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.flying, f)
	p := f.p
	if f.done != nil {
		p = f.done.Progress
	}
	j, s := &r.job, r.share(f.node)
	j.Fetched += p.Fetched
	s.Fetched += p.Fetched
	j.Retried += p.Retried
	s.Retried += p.Retried
	j.CPU += p.CPU
	if f.done != nil && f.remote {
		j.Partial += int64(len(f.done.State))
		s.Partial += int64(len(f.done.State))
	}
	waste := p.Wasted
	if counts {
		j.Done += p.Shards
		j.Read += p.Read
		s.Shards += p.Shards
		s.Bytes += p.Bytes
		s.Read += p.Read
		for _, other := range f.piece.flights {
			other.late = true
		}
	} else {
		waste += p.Bytes
	}
	j.Wasted += waste
	s.Wasted += waste
	r.wake()
}

// lose counts that a node was lost with a group, if it had it at all.
func (r *run) lose(f *flight) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if notSent(f.err) {
		r.job.Sent -= f.sent
	}
	if refused(f.err) {
		return
	}
	r.share(f.node).Lost += len(f.piece.shards)
	r.job.Lost += len(f.piece.shards)
}
