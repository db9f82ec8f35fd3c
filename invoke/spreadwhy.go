package invoke

import (
	"sync"
	"time"

	"lode"
	"lode/placement"
)

// ringSize is how many decisions are kept.
const ringSize = 4096

// Decision is how an invocation came to the node that ran it.
type Decision struct {
	ID       lode.InvocationID
	Revision string
	At       time.Time
	Node     lode.NodeID // where it ran, or was sent last; "": it was parked to its end
	Err      string      // how it ended, where not well
	Tries    []Try       // what went before, oldest first; of many the first and the last
	Why      []Candidate // of the last placement
}

// Try is a step on the way.
type Try struct {
	Node lode.NodeID   // "": parked
	What string        // "refused: its line is full", "parked", "lost while it was queued"
	Wait time.Duration // that a refusal told
}

// Candidate is a node that was compared.
type Candidate struct {
	Node   lode.NodeID
	Chosen bool
	Own    bool // the node that the invocation came in at
	Asked  bool // Cost.Queue is what the node said itself
	Code   placement.Code
	Cost   placement.Cost
}

// Decision tells how an invocation that came in at this node was placed, if it
// is among the last 4,096. One that ran here at once was not compared with
// anything, and is not found.
func (s *Service) Decision(id lode.InvocationID) (Decision, bool) {
	if s.spread == nil {
		return Decision{}, false
	}
	return s.spread.ring.get(id)
}

// decision is what j came to.
func (j *journey) decision(away bool, err error) *Decision {
	d := &Decision{ID: j.a.id, Revision: j.a.rev.ID(), At: j.a.start, Tries: j.tries, Why: make([]Candidate, j.choice.N)}
	for i := range d.Why {
		c := &j.choice.Why[i]
		d.Why[i] = Candidate{Node: c.Node.ID, Chosen: i == j.choice.Best, Own: c.Own, Asked: c.Asked, Code: c.Node.Code, Cost: c.Cost}
	}
	if c := j.choice.Chosen(); c != nil {
		d.Node = c.Node.ID
	}
	if !away && err == nil {
		d.Node = j.sp.self
	}
	if err != nil {
		d.Err = err.Error()
	}
	return d
}

// ring keeps the last decisions.
type ring struct {
	mu   sync.Mutex
	all  []*Decision // made when the first comes
	next int
	byID map[lode.InvocationID]*Decision
}

func (r *ring) put(d *Decision) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all == nil {
		r.all, r.byID = make([]*Decision, ringSize), make(map[lode.InvocationID]*Decision)
	}
	if old := r.all[r.next]; old != nil && r.byID[old.ID] == old {
		delete(r.byID, old.ID)
	}
	r.all[r.next], r.byID[d.ID] = d, d
	r.next = (r.next + 1) % ringSize
}

func (r *ring) get(id lode.InvocationID) (Decision, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	d, ok := r.byID[id]
	if !ok {
		return Decision{}, false
	}
	return *d, true
}
