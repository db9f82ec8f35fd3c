package agent

import (
	"sync/atomic"
)

// counts are what a node has done with agents since it started.
type counts struct {
	turns, messages, entries, fired, failed, dead atomic.Uint64
}

// Stats are a node's agents, in numbers.
type Stats struct {
	Partitions int // that it owns
	Agents     int // in memory
	Waiting    int // messages in mailboxes

	// Since the node started.
	Turns    uint64 // that were written down
	Messages uint64 // of the journal
	Entries  uint64 // in them
	Fired    uint64 // turns of timers that began
	Failed   uint64 // of these, those that failed
	Dead     uint64 // messages and timers given up
}

// Stats counts.
func (s *Service) Stats() Stats {
	c := &s.counts
	out := Stats{Turns: c.turns.Load(), Messages: c.messages.Load(), Entries: c.entries.Load(), Fired: c.fired.Load(), Failed: c.failed.Load(), Dead: c.dead.Load()}
	for _, p := range s.owned() {
		out.Partitions++
		n, waiting := p.inMemory()
		out.Agents, out.Waiting = out.Agents+n, out.Waiting+waiting
	}
	return out
}

// inMemory is how many agents are in memory, and how many messages wait at
// them.
func (p *partition) inMemory() (agents, waiting int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range p.agents {
		waiting += a.box.n
	}
	return len(p.agents), waiting
}

const (
	rateSlots = 12
	rateSlot  = 5000 // ms
)

// rate counts what happened in the last minute, in steps of five seconds. Its
// zero value is ready. It is guarded by whoever has it.
type rate struct {
	last int64 // number of the newest slot
	n    [rateSlots]uint32
}

// add notes something at now, in Unix ms.
func (r *rate) add(now int64) {
	r.turn(now)
	r.n[r.last%rateSlots]++
}

// turn empties the slots of a time that is over.
func (r *rate) turn(now int64) {
	at := now / rateSlot
	if at-r.last > rateSlots {
		r.last = at - rateSlots
	}
	for ; r.last < at; r.last++ {
		r.n[(r.last+1)%rateSlots] = 0
	}
}

// perSecond is the mean of the last minute.
func (r *rate) perSecond(now int64) float64 {
	r.turn(now)
	sum := uint64(0)
	for _, n := range r.n {
		sum += uint64(n)
	}
	return float64(sum) * 1000 / float64((rateSlots-1)*rateSlot+now%rateSlot+1)
}
