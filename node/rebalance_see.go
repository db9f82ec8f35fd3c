package node

import (
	"context"
	"maps"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"lode"
	"lode/agent"
	"lode/agent/journal"
	"lode/link"
	"lode/placement"
)

// costs is what a node says of its partitions, and of itself.
type costs struct {
	Cores  float64      `json:"cores"`
	Up     float64      `json:"up"`               // seconds since it started
	Used   float64      `json:"used"`             // seconds of CPU since then
	Leaves bool         `json:"leaves,omitempty"` // it gives its partitions away
	Parts  []agent.Cost `json:"parts"`
}

// costs tells what this node's partitions cost.
func (n *Node) costs() costs {
	return costs{float64(runtime.GOMAXPROCS(0)), time.Since(n.started).Seconds(), cpuTime().Seconds(), n.agents.Draining(), n.agents.Costs()}
}

// cpuTime is what this process has used of the CPUs.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// serveCosts answers the keeper.
func (n *Node) serveCosts(_ context.Context, in *link.Incoming) error {
	return replyJSON(in, n.costs())
}

// sightings is what the keeper has seen of nodes and partitions. It makes
// means of what it sees, since one look is chance.
type sightings struct {
	hosts map[lode.NodeID]*hostSight
	parts map[journal.Partition]*partSight
	ids   map[string]journal.Partition
	near  nearness

	mu       sync.Mutex
	moved    map[journal.Partition]moved
	blackout float64 // seconds, a mean
}

// moved is a partition that was moved, until the table of owners says so here.
type moved struct {
	to    lode.NodeID
	epoch uint64
}

type hostSight struct{ up, used, busy float64 }

type partSight struct {
	epoch      uint64
	at         time.Time
	turns      int64
	cpu        time.Duration
	rate, load float64 // means: turns a second, cores
}

func newSightings() sightings {
	return sightings{hosts: map[lode.NodeID]*hostSight{}, parts: map[journal.Partition]*partSight{}, moved: map[journal.Partition]moved{}, blackout: firstBlackout,
		near: nearness{data: map[string]dataSight{}}}
}

// every is how often it is worth looking: all partitions are asked for.
func (s *sightings) every() time.Duration {
	return max(rebalanceEvery, time.Duration(len(s.parts))*rebalanceEvery/2000)
}

func (s *sightings) id(name string) (journal.Partition, bool) {
	id, ok := s.ids[name]
	return id, ok
}

// movedTo notes a move that was made, and how long it took.
func (s *sightings) movedTo(id journal.Partition, to lode.NodeID, epoch uint64, took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.moved[id] = moved{to, epoch}
	s.blackout += (took.Seconds() - s.blackout) / 5
}

// meanSpan is the time in which what was seen counts for 1/e.
const meanSpan = 10.0

func mean(m *float64, x, dt float64) { *m += (x - *m) * (1 - math.Exp(-dt/meanSpan)) }

// look makes a picture of all nodes and partitions. The error is that of a
// node that gave no answer.
func (s *sightings) look(ctx context.Context, n *Node) (*placement.Picture, error) {
	told, err := n.askCosts(ctx)
	if err != nil {
		return nil, err
	}
	p := &placement.Picture{Near: map[string][]int{}}
	at := map[lode.NodeID]int{}
	for _, node := range slices.Sorted(maps.Keys(told)) {
		c := told[node]
		at[node] = len(p.Hosts)
		p.Hosts = append(p.Hosts, placement.Host{ID: node, Cores: c.Cores, Busy: s.host(node, c), Eligible: n.fleet.hosts(node) && !c.Leaves})
	}
	s.mu.Lock()
	p.Blackout = s.blackout
	s.mu.Unlock()
	p.RTT, p.Bandwidth = n.linkMeans()
	s.fill(ctx, n, p, told, at)
	return p, nil
}

// askCosts asks all nodes that answer.
func (n *Node) askCosts(ctx context.Context) (map[lode.NodeID]costs, error) {
	ctx, cancel := context.WithTimeout(ctx, costsWait)
	defer cancel()
	told := map[lode.NodeID]costs{n.fleet.id: n.costs()}
	var all sync.WaitGroup
	var mu sync.Mutex
	var err error
	for _, p := range n.fleet.link.Peers() {
		if !p.Up {
			continue
		}
		all.Go(func() {
			var c costs
			e := askJSON(ctx, n.fleet.link, p.Node, costsMethod, struct{}{}, &c)
			mu.Lock()
			defer mu.Unlock()
			if e != nil {
				err = e
				return
			}
			told[p.Node] = c
		})
	}
	all.Wait()
	return told, err
}

// linkMeans are the median round trip to the others, in seconds, and the best
// bandwidth seen, in bytes/s; 0: not known.
func (n *Node) linkMeans() (rtt, bandwidth float64) {
	var all []float64
	for _, p := range n.fleet.link.Peers() {
		if p.Up && p.RTT > 0 {
			all = append(all, p.RTT.Seconds())
		}
		bandwidth = max(bandwidth, p.Bandwidth)
	}
	if len(all) == 0 {
		return 0, bandwidth
	}
	slices.Sort(all)
	return all[len(all)/2], bandwidth
}

// host is how many cores a node uses, a mean.
func (s *sightings) host(node lode.NodeID, c costs) float64 {
	h := s.hosts[node]
	if h == nil || c.Up <= h.up {
		s.hosts[node] = &hostSight{up: c.Up, used: c.Used}
		return 0
	}
	dt := c.Up - h.up
	mean(&h.busy, (c.Used-h.used)/dt, dt)
	h.up, h.used = c.Up, c.Used
	return h.busy
}

// fill adds the partitions that kinds have now.
func (s *sightings) fill(ctx context.Context, n *Node, p *placement.Picture, told map[lode.NodeID]costs, at map[lode.NodeID]int) {
	served := map[journal.Partition]*agent.Cost{}
	for node := range told {
		c := told[node].Parts
		for i := range c {
			if was := served[c[i].Partition]; was == nil || was.Epoch < c[i].Epoch {
				served[c[i].Partition] = &c[i]
			}
		}
	}
	s.ids = map[string]journal.Partition{}
	seen := map[journal.Partition]*partSight{}
	owned := map[string]map[lode.NodeID]bool{}
	wishes := map[string]nearWish{}
	for id, own := range n.agents.Owners().All() {
		rev, err := n.catalog.ResolveAgent(id.Namespace, id.Kind)
		if err != nil || id.N >= rev.Function.Agent.Partitions {
			continue
		}
		node, epoch := s.owner(id, own.Node, own.Epoch)
		host, ok := at[node]
		if !ok {
			continue
		}
		kind := kindWord(id)
		if owned[kind] == nil {
			owned[kind] = map[lode.NodeID]bool{}
			wishes[kind] = nearWish{id.Namespace, id.Kind, rev.Function.Agent.Near}
		}
		owned[kind][node] = true
		x := placement.Part{ID: id.String(), Kind: kind, Owner: host}
		c := served[id]
		x.Fixed = c == nil || c.Epoch != epoch // it is on its way
		seen[id] = s.part(id, c, &x, at)
		s.ids[x.ID] = id
		p.Parts = append(p.Parts, x)
	}
	s.parts = seen
	for kind, w := range wishes {
		for _, node := range s.near.find(ctx, n, w, owned) {
			if i, ok := at[node]; ok {
				p.Near[kind] = append(p.Near[kind], i)
			}
		}
	}
	slices.SortFunc(p.Parts, func(a, b placement.Part) int { return strings.Compare(a.ID, b.ID) })
}

// owner is who has a partition: what this node moved lately, the table of
// owners may not say yet.
func (s *sightings) owner(id journal.Partition, node lode.NodeID, epoch uint64) (lode.NodeID, uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.moved[id]
	if !ok || epoch >= m.epoch {
		delete(s.moved, id)
		return node, epoch
	}
	return m.to, m.epoch
}

// part is what was seen of a partition, with what its owner says now; c may be
// nil.
func (s *sightings) part(id journal.Partition, c *agent.Cost, x *placement.Part, at map[lode.NodeID]int) *partSight {
	now := time.Now()
	v := s.parts[id]
	if v == nil {
		v = &partSight{}
	}
	if c != nil {
		dt := now.Sub(v.at).Seconds()
		if v.epoch == c.Epoch && dt > 0 && c.Turns >= v.turns {
			mean(&v.rate, float64(c.Turns-v.turns)/dt, dt)
			mean(&v.load, (c.CPU-v.cpu).Seconds()/dt, dt)
		}
		v.epoch, v.at, v.turns, v.cpu = c.Epoch, now, c.Turns, c.CPU
		x.Bytes = c.Bytes
		for _, from := range c.Callers {
			if h, ok := at[from.Node]; ok {
				x.Callers = append(x.Callers, placement.Caller{Host: h, Rate: from.Rate})
			}
		}
	}
	x.Turns, x.CPU = v.rate, v.load
	return v
}
