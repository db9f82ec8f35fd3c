package job

import (
	"context"
	"errors"
	"slices"
	"time"

	"lode"
	"lode/data/reduce"
)

// maxLost is how many nodes may be lost while they work on one group: a group
// that kills its nodes must not kill them all.
const maxLost = 4

// piece is a group of the job and what became of it so far. It belongs to the
// goroutine of dispatch.run.
type piece struct {
	at      place
	shards  []lode.Shard
	weight  int64
	bytes   int64
	flights []*flight // now under way
	tries   int       // flights so far
	lost    int
	won     bool
	not     map[lode.NodeID]bool // nodes that failed it for reasons of their own
	missing map[lode.NodeID]int64
	asked   bool // missing is known
	err     error
}

// flight is a group given to a node.
type flight struct {
	piece  *piece
	node   lode.NodeID
	remote bool
	second bool // the first was slow
	sent   int64
	fetch  float64 // seconds that its bytes were thought to take
	since  time.Time
	cancel context.CancelFunc

	p     Progress  // guarded by run.mu
	begun time.Time // guarded by run.mu; when it got a core there, by our clock
	late  bool      // guarded by run.mu; another flight counts

	done *Done
	err  error
}

// dispatch gives the groups of one job to nodes until all are merged. What is
// not said to be shared belongs to the goroutine of run.
type dispatch struct {
	r       *run
	cfg     *Config
	cluster Cluster
	m       *lode.Manifest
	job     Job // as it began
	red     reduce.Reducer
	tree    *tree         // shared
	gate    chan struct{} // shared; merges at once

	left    int      // groups that are not merged yet
	waiting []*piece // for a node, in the order of shards
	flying  []*flight
	merging int
	saving  bool
	results chan *flight
	merged  chan error
	saved   chan error

	paces []float64 // seconds for a unit of weight, of groups that ended well
	rate  float64   // core seconds for a unit of weight
	cool  map[lode.NodeID]cooling
	known []lode.NodeID // nodes at the last question for holders
	asked time.Time     // when that was
	hope  time.Time     // when something last went well
	next  time.Time     // when a checkpoint is due
}

// cooling is a node that was lost, or refused, and is left alone for a while.
type cooling struct {
	fails int
	until time.Time
}

func newDispatch(r *run, m *lode.Manifest, job Job, red reduce.Reducer) *dispatch {
	cfg := &r.jobs.cfg
	return &dispatch{r: r, cfg: cfg, cluster: cfg.Cluster, m: m, job: job, red: red, tree: newTree(len(m.Shards), top(len(m.Shards))),
		gate: make(chan struct{}, cfg.Cores), results: make(chan *flight), merged: make(chan error), saved: make(chan error),
		cool: map[lode.NodeID]cooling{}, rate: 1 / 100e6}
}

// run works until every group is merged or one fails, and waits until nothing
// of it runs.
func (d *dispatch) run(parent context.Context) (failed error) {
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	d.begin(ctx)
	stopping := parent.Done()
	for {
		if failed == nil && d.left > 0 {
			failed = d.give(ctx)
		}
		if failed != nil || d.left == 0 {
			cancel()
			if len(d.flying) == 0 && d.merging == 0 && !d.saving {
				return failed
			}
		}
		var err error
		select {
		case f := <-d.results:
			err = d.settle(ctx, f)
		case err = <-d.merged:
			d.merging--
			d.left--
		case err = <-d.saved:
			d.saving = false
		case <-tick.C:
		case <-stopping:
			stopping = nil
			err = lode.Errorf(lode.Cancelled, "job %s: %w", d.job.ID, parent.Err())
		}
		if failed == nil {
			failed = err
			d.checkpoint()
		}
	}
}

// begin cuts the job into groups, and brings those of a checkpoint.
func (d *dispatch) begin(ctx context.Context) {
	n := len(d.m.Shards)
	now := d.cfg.Now()
	d.hope, d.next = now, now.Add(d.cfg.Checkpoint)
	slots := 0
	for _, node := range matching(d.cluster.Nodes(), d.job.Where) {
		slots += node.Slots
	}
	if d.job.Limit > 0 {
		slots = min(slots, d.job.Limit)
	}
	old := d.r.resume(ctx, d.job, n)
	done := map[place]bool{}
	for at, p := range old {
		done[at] = true
		first := at.i << at.level
		d.bring(ctx, &piece{at: at, shards: d.m.Shards[first : first+at.shards(n)]}, p.node, &Done{State: p.body, ContentType: p.kind})
	}
	for _, at := range blocks(n, groupLevel(n, slots), done) {
		first := at.i << at.level
		p := &piece{at: at, shards: d.m.Shards[first : first+at.shards(n)], not: map[lode.NodeID]bool{}}
		for _, s := range p.shards {
			p.bytes += s.Bytes
		}
		p.weight = weight(p.shards)
		d.waiting = append(d.waiting, p)
	}
	d.left = len(old) + len(d.waiting)
}

// checkpoint writes what is done, or sees whether the job is still ours, from
// time to time and not in the way of the others.
func (d *dispatch) checkpoint() {
	now := d.cfg.Now()
	if d.saving || d.left == 0 || now.Before(d.next) {
		return
	}
	d.saving, d.next = true, now.Add(d.cfg.Checkpoint)
	go func() {
		err := d.r.save()
		if !errors.Is(err, errTaken) {
			err = nil // it was logged
		}
		d.saved <- err
	}()
}

// launch has a node work on a group.
func (d *dispatch) launch(ctx context.Context, p *piece, node lode.NodeID, fetch float64, second bool) error {
	j := &d.job
	g := &Group{Job: j.ID, Namespace: j.Namespace, Dataset: j.Dataset, Version: j.Version, Records: d.m.Records, What: j.What, Reduce: j.Reduce,
		Retries: j.Retries, Attempt: j.Attempt, Total: len(d.m.Shards), Level: p.at.level, Index: p.at.i, Shards: p.shards, Tried: p.tries * (max(0, j.Retries) + 1)}
	if j.Limit > 0 {
		g.Parallel = 1
	}
	fctx, cancel := context.WithCancel(ctx)
	f := &flight{piece: p, node: node, remote: node != d.cluster.Self(), second: second, fetch: fetch, since: d.cfg.Now(), cancel: cancel}
	if f.remote {
		b, err := g.Encode()
		if err != nil {
			cancel()
			return err
		}
		f.sent = int64(len(b))
	}
	g.Heard = func(p Progress) { d.r.hear(f, p) }
	d.r.takeoff(f)
	d.r.jobs.fly(node, 1)
	p.tries++
	p.flights = append(p.flights, f)
	d.flying = append(d.flying, f)
	go func() {
		f.done, f.err = d.cluster.Work(fctx, node, g)
		d.results <- f
	}()
	return nil
}

// hear takes note of how far a flight is.
func (r *run) hear(f *flight, p Progress) {
	if !p.valid() || p.Shards > len(f.piece.shards) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.jobs.cfg.Now()
	r.heard = now
	if f.begun.IsZero() && p.Wall > 0 {
		f.begun = now.Add(-p.Wall)
	}
	if f.p.Shards != p.Shards || f.p.Running != p.Running || f.p.Fetched != p.Fetched {
		f.p = p
		r.wake()
		return
	}
	f.p = p
}

// settle decides what a flight that ended means.
func (d *dispatch) settle(ctx context.Context, f *flight) error {
	f.cancel()
	p := f.piece
	p.flights = slices.DeleteFunc(p.flights, func(o *flight) bool { return o == f })
	d.flying = slices.DeleteFunc(d.flying, func(o *flight) bool { return o == f })
	d.r.jobs.fly(f.node, -1)
	if f.err == nil && (f.done == nil || !f.done.valid() || f.done.Shards != len(p.shards) || f.done.Bytes != p.bytes) {
		f.done, f.err = nil, lode.Errorf(lode.Internal, "node %s answered for other shards than it was asked about", f.node)
	}
	counts := f.err == nil && !p.won
	d.r.land(f, counts)
	switch {
	case counts:
		d.win(ctx, f)
	case p.won || ctx.Err() != nil:
	case f.done == nil || lode.KindOf(f.err) == lode.Cancelled:
		return d.lose(f)
	default:
		return d.fail(f)
	}
	return nil
}

// win takes the first result of a group; what comes later is dropped.
func (d *dispatch) win(ctx context.Context, f *flight) {
	p := f.piece
	p.won = true
	for _, other := range p.flights {
		other.cancel()
	}
	delete(d.cool, f.node)
	d.hope = d.cfg.Now()
	if wall := f.done.Wall.Seconds(); wall > 0 && p.weight > 0 {
		pace := wall / float64(p.weight)
		d.paces = append(d.paces, pace)
		if len(d.paces) > 101 {
			d.paces = d.paces[1:]
		}
		core := pace * float64(min(len(p.shards), max(1, d.slotsOf(f.node))))
		if len(d.paces) == 1 {
			d.rate = core
		}
		d.rate += (core - d.rate) / 8
	}
	d.bring(ctx, p, f.node, f.done)
}

func (d *dispatch) slotsOf(node lode.NodeID) int {
	for _, n := range d.cluster.Nodes() {
		if n.Node == node {
			return n.Slots
		}
	}
	return 1
}

// bring merges the result of a group, beside the others, and keeps its bytes
// for the next checkpoint: those that are packed already, and others that are
// small or took long.
func (d *dispatch) bring(ctx context.Context, p *piece, node lode.NodeID, done *Done) {
	d.merging++
	go func() { d.merged <- d.merge(ctx, p, node, done) }()
}

func (d *dispatch) merge(ctx context.Context, p *piece, node lode.NodeID, done *Done) error {
	s := done.state
	if s == nil || d.job.What.Builtin == "" || d.r.old() {
		body, err := done.pack()
		if err != nil {
			return err
		}
		d.r.remember(p.at, packed{body: body, kind: done.ContentType, node: node, progress: done.Progress})
	}
	select {
	case d.gate <- struct{}{}:
		defer func() { <-d.gate }()
	case <-ctx.Done():
		return lode.Errorf(lode.Cancelled, "merge job %s: %w", d.job.ID, ctx.Err())
	}
	if s == nil {
		var err error
		if s, err = d.red.Unpack(done.State, done.ContentType); err != nil {
			return lode.Errorf(lode.Internal, "the partial result of shards %s: %w", p, err)
		}
	}
	return d.tree.add(ctx, p.at, s)
}

// lose gives the group of a node that was lost, or did not take it, to another.
func (d *dispatch) lose(f *flight) error {
	p, now := f.piece, d.cfg.Now()
	p.err = f.err
	if refused(f.err) {
		p.tries--
	}
	d.r.lose(f)
	c := d.cool[f.node]
	c.until = now.Add(d.pause(c.fails))
	c.fails++
	d.cool[f.node] = c
	d.cfg.Log.Info("a group of shards was lost with its node", "job", d.job.ID, "node", f.node, "shards", p, "err", f.err)
	d.r.mu.Lock()
	began := !f.begun.IsZero()
	if d.r.heard.After(d.hope) {
		d.hope = d.r.heard
	}
	d.r.mu.Unlock()
	if began {
		if p.lost++; p.lost > maxLost {
			return onNode(f, lode.Errorf(lode.Unavailable, "shards %s: %d nodes were lost while they worked on them: %w", p, p.lost, f.err).
				WithHint("see whether these shards need more memory than a node has"))
		}
	}
	if len(d.flying) == 0 && now.Sub(d.hope) > d.cfg.Patience {
		return onNode(f, f.err)
	}
	d.again(p)
	return nil
}

// fail ends the job, unless the failure may be of the node's own making and
// there is another that has not tried.
func (d *dispatch) fail(f *flight) error {
	p := f.piece
	p.err = f.err
	d.cfg.Log.Info("a group of shards failed", "job", d.job.ID, "node", f.node, "shards", p, "err", f.err)
	switch lode.KindOf(f.err) {
	case lode.Unavailable, lode.Overloaded, lode.Damaged, lode.Internal, lode.Full, lode.NotFound:
		p.not[f.node] = true
	default:
		if len(p.flights) > 0 {
			return nil // the other may end better
		}
		return onNode(f, f.err)
	}
	if len(p.flights) > 0 || slices.ContainsFunc(matching(d.cluster.Nodes(), d.job.Where), func(n Node) bool { return !p.not[n.Node] }) {
		d.again(p)
		return nil
	}
	return onNode(f, f.err)
}

// again has a group wait for a node, unless one is at it.
func (d *dispatch) again(p *piece) {
	if len(p.flights) > 0 || slices.Contains(d.waiting, p) {
		return
	}
	at, _ := slices.BinarySearchFunc(d.waiting, p, func(a, b *piece) int { return a.first() - b.first() })
	d.waiting = slices.Insert(d.waiting, at, p)
}

// onNode says where it happened, if there is more than one place.
func onNode(f *flight, err error) error {
	if f.node == "" {
		return err
	}
	e := lode.AsError(err)
	named := *e
	named.Detail, named.Err = "on node "+string(f.node)+": "+e.Error(), err
	return &named
}
