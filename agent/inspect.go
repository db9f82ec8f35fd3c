package agent

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"lode"
	"lode/agent/journal"
	"lode/agent/owner"
	"lode/agent/state"
)

// Place is where an agent is.
type Place struct {
	Partition  int
	Partitions int         // of the kind
	Node       lode.NodeID // "": nobody has the partition
}

// Where is the partition of a key, and the node that has it. It answers from
// memory.
func (s *Service) Where(ns lode.Namespace, kind lode.Name, key string) (Place, error) {
	rev, err := s.cfg.Catalog.Kind(ns, kind)
	if err != nil {
		return Place{}, err
	}
	n := partitionsOf(rev)
	at := Place{Partition: lode.PartitionOf(key, n), Partitions: n}
	if own, ok := s.owners.Lookup(journal.Partition{Namespace: ns, Kind: kind, N: at.Partition}); ok {
		at.Node = own.Node
	}
	return at, nil
}

// PartState is where the ownership of a partition stands, in words.
type PartState string

// The states.
const (
	PartFree   PartState = "free"
	PartTaking PartState = "taking"
	PartOwned  PartState = "owned"
	PartGiving PartState = "giving"
	PartLost   PartState = "lost"
)

// Part is one partition in a listing.
type Part struct {
	N       int
	Node    lode.NodeID // "": nobody
	Epoch   uint64
	State   PartState
	Here    bool          // this node has it: what follows is known
	Agents  int64         // that have a record
	Bytes   int64         // of their state
	Turns   float64       // a second, over the last minute
	Waiting int           // messages in mailboxes
	CPU     time.Duration // of a turn, of those since it came here; 0: not known
}

// Parts lists the partitions of a kind. Of those that this node has, agents and
// bytes may be some seconds old where there are many.
func (s *Service) Parts(ctx context.Context, ns lode.Namespace, kind lode.Name) ([]Part, error) {
	rev, err := s.cfg.Catalog.Kind(ns, kind)
	if err != nil {
		return nil, err
	}
	out := make([]Part, 0, partitionsOf(rev))
	for n := range partitionsOf(rev) {
		v, err := s.part(ctx, journal.Partition{Namespace: ns, Kind: kind, N: n})
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// part shows one partition.
func (s *Service) part(ctx context.Context, id journal.Partition) (Part, error) {
	own, ok := s.owners.Lookup(id)
	if !ok {
		return Part{N: id.N, State: PartFree}, nil
	}
	v := Part{N: id.N, Node: own.Node, Epoch: own.Epoch, State: PartOwned}
	switch {
	case own.Node != s.cfg.Self && !s.cfg.Alive(own.Node):
		v.State = PartLost
	case own.Node != s.cfg.Self:
	case own.State == owner.StateGiving:
		v.State = PartGiving
	case own.State != owner.StateOwner:
		v.State = PartTaking
	}
	p := s.partition(id)
	if p == nil {
		return v, nil
	}
	if rev, err := s.cfg.Catalog.Kind(id.Namespace, id.Kind); err != nil {
		return v, err
	} else if err := s.suits(ctx, p, rev); err != nil && !isMoved(err) {
		return v, err
	}
	c, err := p.count(ctx)
	if err != nil {
		return v, err
	}
	v.Here, v.Agents, v.Bytes = true, c.agents, c.bytes
	p.mu.Lock()
	v.Turns = p.rate.perSecond(p.s.now())
	p.mu.Unlock()
	_, v.Waiting = p.inMemory()
	v.CPU = p.spent.perTurn()
	return v, nil
}

// counted is how much there is in a partition.
type counted struct {
	agents, bytes int64
	at            time.Time
	took          time.Duration
	last          uint64 // position of the newest entry then
}

// count counts a partition's agents. Where that takes long, it is done as
// rarely as costs a twentieth of the time.
func (p *partition) count(ctx context.Context) (*counted, error) {
	last, now := p.last.Load(), time.Now()
	if c := p.counts.Load(); c != nil && (c.last == last || now.Sub(c.at) < 20*c.took) {
		return c, nil
	}
	c := &counted{at: now, last: last}
	for key := ""; ; {
		next, ok, err := p.nextAgent(key)
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		key = next
		m, _, err := readMeta(p.part, agentPrefix(key))
		if err != nil {
			return nil, err
		}
		c.agents++
		c.bytes += m.Bytes
	}
	c.took = time.Since(now)
	p.counts.Store(c)
	return c, nil
}

// nextAgent is the first agent with a record whose key is behind key.
func (p *partition) nextAgent(key string) (next string, ok bool, err error) {
	start := []byte{spaceAgent}
	if key != "" {
		start = after(agentPrefix(key))
	}
	lerr := p.part.List(start, []byte{spaceAgent + 1}, false, func(k, _ []byte) bool {
		if next, _, ok = unescape(k[1:]); !ok {
			err = damaged("the name")
		}
		return false
	})
	return next, ok, cmpErr(err, lerr)
}

// readMeta reads what is known of an agent; false: there is nothing.
func readMeta(from store, prefix []byte) (m meta, ok bool, err error) {
	b, ok, err := from.Get(in(prefix, partMeta, ""))
	if err == nil && ok {
		m, err = decodeMeta(b)
	}
	return m, ok, err
}

// Info is one agent in a listing.
type Info struct {
	Kind      lode.Name
	Key       string
	Partition int
	Bytes     int64 // of keys and values
	Keys      int64 // of state; 0 in a listing, where they are not counted
	Timers    int   // that are set, messages that wait for their time among them
	Dead      int   // messages given up
	Waiting   int   // messages, in its mailbox and before it
	Active    bool  // it is in memory
	Last      time.Time
	Method    string // of the turn that runs; "": none does
	Revision  int    // that its last turn ran on
}

// Address is the agent's name.
func (i *Info) Address() string { return string(i.Kind) + "/" + i.Key }

// List lists agents in the partitions that this node has, by address, from
// behind one: at most limit of them. kind "" is all kinds that are deployed,
// partition -1 all of the kind. more: there are others.
func (s *Service) List(ctx context.Context, ns lode.Namespace, kind lode.Name, partition int, behind string, limit int) (out []Info, more bool, err error) {
	if kind != "" {
		if _, err := s.cfg.Catalog.Kind(ns, kind); err != nil {
			return nil, false, err
		}
	}
	var cs []*cursor
	for _, p := range s.ordered(ns, kind) {
		if partition >= 0 && p.id.N != partition {
			continue
		}
		rev, err := s.cfg.Catalog.Kind(ns, p.id.Kind)
		if err != nil {
			continue // it was removed, and may come back
		}
		if err := s.suits(ctx, p, rev); err != nil && !isMoved(err) {
			return nil, false, err
		}
		if c, ok := p.cursor(behind); ok {
			if err := c.read(); err != nil {
				return nil, false, err
			}
			if ok, err = c.next(); err != nil {
				return nil, false, err
			} else if ok {
				cs = append(cs, c)
			}
		}
	}
	for len(cs) > 0 {
		i := first(cs)
		if limit > 0 && len(out) == limit {
			return out, true, nil
		}
		v, err := cs[i].p.info(cs[i].at)
		if err != nil {
			return nil, false, err
		}
		out = append(out, v)
		ok, err := cs[i].next()
		if err != nil {
			return nil, false, err
		}
		if !ok {
			cs = slices.Delete(cs, i, i+1)
		}
	}
	return out, false, nil
}

// Unserved names the nodes that have partitions of a kind, or of all (""), whose
// agents nobody can list now: they are lost, or, where it is this one, it takes
// them just now.
func (s *Service) Unserved(ns lode.Namespace, kind lode.Name) []lode.NodeID {
	out := map[lode.NodeID]bool{}
	for id, own := range s.owners.All() {
		if id.Namespace != ns || kind != "" && id.Kind != kind {
			continue
		}
		if own.Node == s.cfg.Self && s.partition(id) == nil || own.Node != s.cfg.Self && !s.cfg.Alive(own.Node) {
			out[own.Node] = true
		}
	}
	return slices.Sorted(maps.Keys(out))
}

// ordered are the partitions of a kind, or all, that this node has.
func (s *Service) ordered(ns lode.Namespace, kind lode.Name) []*partition {
	var out []*partition
	for id, p := range s.owned() {
		if id.Namespace == ns && (kind == "" || id.Kind == kind) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b *partition) int {
		return cmp.Or(strings.Compare(string(a.id.Kind), string(b.id.Kind)), cmp.Compare(a.id.N, b.id.N))
	})
	return out
}

// occupied reports whether something runs in an agent, or waits for it: then it
// is there, whether it has state or not; p.mu is held.
func (a *activation) occupied() bool { return a.busy || a.box.n > 0 || a.beside > 0 }

// cursor goes over the agents of a partition in the order of their keys: those
// with a record, and those with work.
type cursor struct {
	p      *partition
	at     string   // the agent here
	memory []string // of those with work, the ones behind at
	stored string   // the next one with a record
	left   bool     // there is one
}

// cursor begins behind an address; false: all agents of the kind are before it.
func (p *partition) cursor(behind string) (*cursor, bool) {
	c := &cursor{p: p, left: true}
	kind := string(p.id.Kind) + "/"
	if key, ok := strings.CutPrefix(behind, kind); ok {
		c.stored = key
	} else if kind < behind {
		return nil, false
	}
	p.mu.Lock()
	for key, a := range p.agents {
		if a.occupied() {
			c.memory = append(c.memory, key)
		}
	}
	p.mu.Unlock()
	slices.Sort(c.memory)
	i, there := slices.BinarySearch(c.memory, c.stored)
	if there {
		i++
	}
	c.memory = c.memory[i:]
	return c, true
}

// read looks for the next agent with a record.
func (c *cursor) read() (err error) {
	if c.left {
		c.stored, c.left, err = c.p.nextAgent(c.stored)
	}
	return err
}

// next goes to the next agent; false: there is none.
func (c *cursor) next() (bool, error) {
	switch {
	case !c.left && len(c.memory) == 0:
		return false, nil
	case !c.left || len(c.memory) > 0 && c.memory[0] < c.stored:
		c.at, c.memory = c.memory[0], c.memory[1:]
		return true, nil
	}
	c.at = c.stored
	if len(c.memory) > 0 && c.memory[0] == c.at {
		c.memory = c.memory[1:]
	}
	return true, c.read()
}

// address is the name of the agent here.
func (c *cursor) address() string { return string(c.p.id.Kind) + "/" + c.at }

// first is the cursor whose agent comes first.
func first(cs []*cursor) (best int) {
	for i := range cs {
		if cs[i].address() < cs[best].address() {
			best = i
		}
	}
	return best
}

// info shows one agent.
func (p *partition) info(key string) (Info, error) {
	v := Info{Kind: p.id.Kind, Key: key, Partition: p.id.N}
	prefix := agentPrefix(key)
	m, _, err := readMeta(p.part, prefix)
	if err != nil {
		return v, err
	}
	v.Bytes, v.Revision = m.Bytes, m.Revision
	touched := m.Touched
	p.mu.Lock()
	v.Waiting = p.waitingAt(key)
	if a := p.agents[key]; a != nil {
		v.Active = true
		if a.run != nil {
			v.Method = a.run.word()
		}
		if a.known {
			v.Bytes, v.Revision, touched = a.meta.Bytes, a.meta.Revision, a.meta.Touched
		}
	}
	p.mu.Unlock()
	if touched != 0 {
		v.Last = time.UnixMilli(touched).UTC()
	}
	if err := countKeys(p.part, prefix, partTimer, func(k []byte) {
		if string(k) != ttlTimer {
			v.Timers++
		}
	}); err != nil {
		return v, err
	}
	err = countKeys(p.part, prefix, partDead, func([]byte) { v.Dead++ })
	return v, err
}

// waitingAt is how many messages wait at an agent: in its mailbox, and in line
// behind others of their sender that failed and are tried again; p.mu is held.
func (p *partition) waitingAt(key string) (n int) {
	for _, box := range p.in {
		for at, line := range box.lanes {
			if at.to == key {
				n += len(line)
			}
		}
	}
	a := p.agents[key]
	if a == nil {
		return n
	}
	for m := a.box.head; m != nil; m = m.next {
		if m.letter == nil {
			n++
		}
	}
	if a.run != nil && a.run.m.letter != nil {
		n--
	}
	return max(n, 0)
}

// word is what a turn does, for people.
func (t *turn) word() string {
	if t.m.c.Method != "" {
		return t.m.c.Method
	}
	return string(t.m.turn)
}

// countKeys calls f for the keys of a part of an agent, without what comes
// before them.
func countKeys(from store, prefix []byte, part byte, f func(k []byte)) error {
	base := in(prefix, part, "")
	return from.List(base, after(base), false, func(k, _ []byte) bool {
		f(k[len(base):])
		return true
	})
}

var (
	_ store = (*state.Part)(nil)
	_ store = (*state.View)(nil)
)
