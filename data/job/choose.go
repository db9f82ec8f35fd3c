package job

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"lode"
)

func (p *piece) first() int { return p.at.i << p.at.level }

// String is the group's shards: "8", or "8 to 15".
func (p *piece) String() string {
	if len(p.shards) == 1 {
		return fmt.Sprint(p.first())
	}
	return fmt.Sprintf("%d to %d", p.first(), p.first()+max(1, len(p.shards))-1)
}

// pause is how long a node is left alone after it failed so often: 0.1 s,
// doubling, to about 5 s.
func (d *dispatch) pause(fails int) time.Duration {
	base := 100 * time.Millisecond << min(fails, 5)
	return base + rand.N(base/2)
}

// candidates are the nodes that may be given groups now.
func (d *dispatch) candidates() []Node {
	now := d.cfg.Now()
	return slices.DeleteFunc(matching(d.cluster.Nodes(), d.job.Where), func(n Node) bool { return now.Before(d.cool[n.Node].until) })
}

// give gives groups to the nodes that have room for them. When none waits any
// more, slow ones go to a second node.
func (d *dispatch) give(ctx context.Context) error {
	if ctx.Err() != nil || len(d.waiting) == 0 && len(d.flying) == 0 {
		return nil
	}
	nodes := d.candidates()
	if len(nodes) == 0 {
		return d.nobody()
	}
	if len(d.waiting) == 0 {
		return d.doubles(ctx, nodes)
	}
	loads := d.loads(nodes, 1)
	if d.full() || !slices.ContainsFunc(loads, func(l load) bool { return l.room > 0 }) {
		return nil
	}
	d.look(ctx, nodes)
	window := d.waiting[:min(len(d.waiting), ahead)]
	links := d.links()
	needs := make([]need, len(window))
	for i, p := range window {
		needs[i] = d.need(p, nodes, links)
	}
	picks := assign(needs, loads, d.rate)
	var given []*piece
	for _, pick := range picks {
		if d.full() {
			break
		}
		p := window[pick.need]
		if err := d.launch(ctx, p, nodes[pick.node].Node, needs[pick.need].fetch[pick.node], false); err != nil {
			return err
		}
		given = append(given, p)
	}
	d.waiting = slices.DeleteFunc(d.waiting, func(p *piece) bool { return slices.Contains(given, p) })
	return nil
}

// full reports whether the job's own limit is reached.
func (d *dispatch) full() bool { return d.job.Limit > 0 && len(d.flying) >= d.job.Limit }

// nobody waits for a node to come up, for a while.
func (d *dispatch) nobody() error {
	if len(d.flying) > 0 || d.cfg.Now().Sub(d.hope) <= d.cfg.Patience {
		return nil
	}
	if len(d.waiting) > 0 && d.waiting[0].err != nil {
		return d.waiting[0].err
	}
	if len(d.job.Where) > 0 {
		return errNowhere(d.cluster.Nodes(), d.job.Where)
	}
	return lode.Errorf(lode.Unavailable, "no node that is up takes work for the job").WithHint("see lode nodes: all others drain or are down")
}

// loads is how busy nodes are. A node may hold so many groups more than slots.
func (d *dispatch) loads(nodes []Node, more int) []load {
	flying := d.r.jobs.flights()
	out := make([]load, len(nodes))
	for i, n := range nodes {
		out[i] = load{node: n.Node, slots: n.Slots, flying: flying[n.Node], room: max(1, n.Slots) + more}
		for _, f := range d.flying {
			if f.node == n.Node {
				out[i].room--
				out[i].backlog += f.fetch
			}
		}
		out[i].room = max(0, out[i].room)
	}
	return out
}

// links gives the fastest known connection to a node from one of several.
func (d *dispatch) links() func(from []lode.NodeID, to lode.NodeID) (float64, time.Duration) {
	type pair struct{ from, to lode.NodeID }
	type speed struct {
		bandwidth float64
		rtt       time.Duration
	}
	known := map[pair]speed{}
	return func(from []lode.NodeID, to lode.NodeID) (best float64, rtt time.Duration) {
		for _, n := range from {
			if n == to {
				continue
			}
			s, ok := known[pair{n, to}]
			if !ok {
				s.bandwidth, s.rtt = d.cluster.Link(n, to)
				known[pair{n, to}] = s
			}
			if s.bandwidth > best {
				best, rtt = s.bandwidth, s.rtt
			}
		}
		return best, rtt
	}
}

// need is a group as assign sees it.
func (d *dispatch) need(p *piece, nodes []Node, link func([]lode.NodeID, lode.NodeID) (float64, time.Duration)) need {
	w := need{weight: p.weight, fetch: make([]float64, len(nodes)), not: make([]bool, len(nodes)), turn: p.at.i}
	var holders []lode.NodeID
	for n, missing := range p.missing {
		if missing < p.bytes || p.bytes == 0 {
			holders = append(holders, n)
		}
	}
	slices.Sort(holders)
	for i, n := range nodes {
		w.not[i] = p.not[n.Node]
		missing, ok := p.missing[n.Node]
		if !ok {
			missing = p.bytes
		}
		if missing > 0 {
			bandwidth, rtt := link(holders, n.Node)
			w.fetch[i] = seconds(missing, bandwidth, rtt)
		}
	}
	return w
}

// look asks which nodes hold the shards of the groups that are next, once for
// each group and again when other nodes are there.
func (d *dispatch) look(ctx context.Context, nodes []Node) {
	names := make([]lode.NodeID, len(nodes))
	for i, n := range nodes {
		names[i] = n.Node
	}
	slices.Sort(names)
	now := d.cfg.Now()
	changed := !slices.Equal(names, d.known) && now.Sub(d.asked) > 2*time.Second
	var ask []*piece
	var shards []lode.Digest
	for _, p := range d.waiting[:min(len(d.waiting), ahead)] {
		if p.asked && !changed {
			continue
		}
		ask = append(ask, p)
		for _, s := range p.shards {
			shards = append(shards, s.Digest)
		}
	}
	if len(ask) == 0 || len(nodes) == 1 {
		return
	}
	d.known, d.asked = names, now
	ctx, stop := context.WithTimeout(ctx, time.Second)
	defer stop()
	held, err := d.cluster.Holders(ctx, shards)
	if err != nil {
		d.cfg.Log.Info("who holds the shards is not known", "job", d.job.ID, "err", err)
	}
	at := 0
	for _, p := range ask {
		p.asked, p.missing = true, map[lode.NodeID]int64{}
		for node, has := range held {
			if len(has) != len(shards) {
				continue
			}
			missing := int64(0)
			for k, s := range p.shards {
				if !has[at+k] {
					missing += s.Bytes
				}
			}
			p.missing[node] = missing
		}
		at += len(p.shards)
	}
}

// doubles gives groups that take far longer than others to another node that
// has a free slot; where that one is slow too, to a third.
func (d *dispatch) doubles(ctx context.Context, nodes []Node) error {
	if len(d.paces) == 0 {
		return nil
	}
	links := d.links()
	for _, f := range slices.Clone(d.flying) {
		p := f.piece
		if p.won || p.flights[0] != f || d.full() || !d.slow(p) {
			continue
		}
		w := d.need(p, nodes, links)
		for i, n := range nodes {
			w.not[i] = w.not[i] || slices.ContainsFunc(p.flights, func(o *flight) bool { return o.node == n.Node })
		}
		for _, pick := range assign([]need{w}, d.loads(nodes, 0), d.rate) {
			d.cfg.Log.Info("a slow group of shards goes to another node", "job", d.job.ID, "shards", p, "first", f.node, "another", nodes[pick.node].Node)
			if err := d.launch(ctx, p, nodes[pick.node].Node, w.fetch[pick.node], true); err != nil {
				return err
			}
		}
	}
	return nil
}

// slow reports whether every node that has a group is slow with it.
func (d *dispatch) slow(p *piece) bool {
	now := d.cfg.Now()
	d.r.mu.Lock()
	defer d.r.mu.Unlock()
	return !slices.ContainsFunc(p.flights, func(f *flight) bool {
		since := f.since
		if !f.begun.IsZero() {
			since = f.begun
		}
		return !slow(now.Sub(since), p.weight, d.paces, d.cfg.Slow)
	})
}
