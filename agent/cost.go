package agent

import (
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"lode"
	"lode/agent/journal"
)

// Cost is what a partition costs this node, and who calls it: by this it is
// decided where partitions should be.
type Cost struct {
	Partition journal.Partition
	Epoch     uint64
	Turns     int64         // that ran since the partition came here, reads too
	CPU       time.Duration // of them, as far as it is known
	Bytes     int64         // of state, as it was counted last
	Callers   []CallerRate
}

// CallerRate is how many calls a second come from a node, at least, of late.
type CallerRate struct {
	Node lode.NodeID
	Rate float64
}

// spent counts what a partition has cost.
type spent struct {
	turns, cpu atomic.Int64
	counting   atomic.Bool // its bytes are being counted
}

// add counts one turn.
func (c *spent) add(cpu time.Duration) {
	c.turns.Add(1)
	c.cpu.Add(int64(cpu))
}

// perTurn is the CPU time of a turn.
func (c *spent) perTurn() time.Duration {
	if n := c.turns.Load(); n > 0 {
		return time.Duration(c.cpu.Load() / n)
	}
	return 0
}

// recountAfter is how old a count of bytes may be that a Cost is told with.
const recountAfter = 10 * time.Minute

// Costs tells what each partition costs that this node has, in no order.
func (s *Service) Costs() []Cost {
	var out []Cost
	rates := s.callers.rates(time.Now())
	for id, p := range s.owned() {
		v := Cost{Partition: id, Epoch: p.epoch, Turns: p.spent.turns.Load(), CPU: time.Duration(p.spent.cpu.Load()), Callers: rates[id]}
		c := p.counts.Load()
		if c != nil {
			v.Bytes = c.bytes
		}
		if c == nil || time.Since(c.at) > recountAfter {
			s.recount(p)
		}
		out = append(out, v)
	}
	return out
}

// recount counts a partition's bytes behind the back of who asks: that may
// take long.
func (s *Service) recount(p *partition) {
	s.mu.Lock() // Close takes it between the end of ctx and the wait
	defer s.mu.Unlock()
	if s.ctx.Err() != nil || !p.spent.counting.CompareAndSwap(false, true) {
		return
	}
	s.work.Go(func() {
		defer p.spent.counting.Store(false)
		if _, err := p.count(s.ctx); err != nil && s.ctx.Err() == nil {
			s.log().Warn("a partition's bytes cannot be counted", "partition", p.id, "err", err)
		}
	})
}

const (
	callerCells = 64
	callerEvery = 16               // calls of which one is counted
	callerSpan  = 30 * time.Second // in which a count falls to 1/e
)

// callers counts which nodes call which partitions of this one: a space-saving
// sketch, of one call in sixteen, that forgets. A new pair takes the place of
// the one with the fewest calls, and its count, which is how much it may be
// overcounted. The zero value is ready.
type callers struct {
	mu    sync.Mutex
	at    time.Time // of the last decay
	cells []callerCell
}

type callerCell struct {
	node        lode.NodeID
	part        journal.Partition
	count, over float64
}

// note counts a call, or most often does not.
func (c *callers) note(node lode.NodeID, part journal.Partition) {
	if rand.Uint32()%callerEvery == 0 {
		c.count(node, part, time.Now())
	}
}

// count counts a call at now.
func (c *callers) count(node lode.NodeID, part journal.Partition, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Sub(c.at) > time.Second {
		c.decay(now)
	}
	least := -1
	for i := range c.cells {
		x := &c.cells[i]
		if x.part == part && x.node == node {
			x.count++
			return
		}
		if least < 0 || x.count < c.cells[least].count {
			least = i
		}
	}
	if len(c.cells) < callerCells {
		c.cells = append(c.cells, callerCell{node, part, 1, 0})
		return
	}
	x := &c.cells[least]
	*x = callerCell{node, part, x.count + 1, x.count}
}

// decay makes all counts what they are at now; c.mu is held.
func (c *callers) decay(now time.Time) {
	f := math.Exp(-now.Sub(c.at).Seconds() / callerSpan.Seconds())
	c.at = now
	for i := range c.cells {
		c.cells[i].count *= f
		c.cells[i].over *= f
	}
	c.cells = slices.DeleteFunc(c.cells, func(x callerCell) bool { return x.count < 0.01 })
}

// rates are the callers of each partition at now, by what is certain.
func (c *callers) rates(now time.Time) map[journal.Partition][]CallerRate {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.decay(now)
	out := map[journal.Partition][]CallerRate{}
	for _, x := range c.cells {
		if r := (x.count - x.over) * callerEvery / callerSpan.Seconds(); r > 0 {
			out[x.part] = append(out[x.part], CallerRate{x.node, r})
		}
	}
	return out
}
