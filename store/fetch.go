package store

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"lode"
)

// Times of what goes between nodes.
const (
	hedgeAfter = 300 * time.Millisecond // a source that gave nothing for so long gets a rival
	stallAfter = 10 * time.Second       // and one that gave nothing for so long is given up
	lookFor    = time.Second            // for the word of a node that may have a blob
	askFor     = 5 * time.Second        // for other answers without content
)

// Peers are the other nodes of a cluster, as a store needs them.
type Peers struct {
	Self lode.NodeID
	// Nodes are the members of the cluster, this one included; those that were
	// removed are not among them. It answers from memory.
	Nodes func() []NodeState
	// Remote is the side of another node.
	Remote func(lode.NodeID) Remote
}

// peers fetch from other nodes. What runs on after an answer (a source that
// lost the race, a word to a node about its bad copy) is waited for by close.
type peers struct {
	Peers
	count *counts
	log   *slog.Logger

	ctx    context.Context
	cancel context.CancelFunc
	mu     sync.Mutex // guards wg against an Add after Wait
	wg     sync.WaitGroup
	closed bool
}

func newPeers(cfg Peers, count *counts, log *slog.Logger) *peers {
	p := &peers{Peers: cfg, count: count, log: log}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// close ends what runs and waits for it. Idempotent.
func (p *peers) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	p.wg.Wait()
}

// spawn runs fn in a goroutine that close waits for; false once closed.
func (p *peers) spawn(fn func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.wg.Go(fn)
	return true
}

// nodes are the members; this node alone where nobody says.
func (p *peers) nodes() []NodeState {
	var out []NodeState
	if p.Nodes != nil && p.Remote != nil {
		out = p.Nodes()
	}
	if len(out) == 0 {
		return []NodeState{{Node: p.Self, Alive: true}}
	}
	return out
}

// others are the living nodes but this one, in d's order, and those that do
// not answer.
func (p *peers) others(d lode.Digest) (alive, silent []lode.NodeID) {
	nodes := p.nodes()
	up := make(map[lode.NodeID]bool, len(nodes))
	for _, n := range nodes {
		up[n.Node] = n.Alive
	}
	for _, n := range Arrange(d, nodes) {
		switch {
		case n == p.Self:
		case up[n]:
			alive = append(alive, n)
		default:
			silent = append(silent, n)
		}
	}
	return alive, silent
}

// sources yields the nodes to ask for a blob, one after the other, and at its
// end those that could not be asked.
type sources func(ctx context.Context) (next lode.NodeID, ok bool, silent []lode.NodeID)

// everybody yields the living nodes in d's order: the first few as they come,
// for there the blob belongs; then those of the rest that say they have it.
func (p *peers) everybody(d lode.Digest) sources {
	const first = 3
	queue, silent := p.others(d)
	var rest []lode.NodeID
	if len(queue) > first {
		queue, rest = queue[:first], queue[first:]
	}
	return func(ctx context.Context) (lode.NodeID, bool, []lode.NodeID) {
		if len(queue) == 0 && len(rest) > 0 {
			var mute []lode.NodeID
			queue, mute = p.ask(ctx, d, rest, lookFor)
			silent, rest = append(silent, mute...), nil
		}
		if len(queue) == 0 {
			return "", false, silent
		}
		n := queue[0]
		queue = queue[1:]
		return n, true, nil
	}
}

type hintsKey struct{}

// hints says, of many blobs, which other nodes have them. holders finds it in
// the context.
func (p *peers) hints(ctx context.Context, ds []lode.Digest) context.Context {
	on := make(map[lode.Digest][]lode.NodeID, len(ds))
	for i, nodes := range p.where(ctx, ds) {
		on[ds[i]] = nodes
	}
	return context.WithValue(ctx, hintsKey{}, on)
}

// where asks each living node once for all the blobs, and gives for each blob
// those that have it, in its order.
func (p *peers) where(ctx context.Context, ds []lode.Digest) [][]lode.NodeID {
	qs := make([]Query, len(ds))
	for i, d := range ds {
		qs[i].Digest = d
	}
	alive, _ := p.others(lode.Digest{})
	held := each(ctx, lookFor, alive, func(ctx context.Context, n lode.NodeID) ([]Held, error) { return p.have(ctx, n, qs, false) })
	out := make([][]lode.NodeID, len(ds))
	for i, d := range ds {
		for k, a := range held {
			if a.err == nil && a.value[i] >= HeldCopy {
				out[i] = append(out[i], alive[k])
			}
		}
		out[i] = lode.Rendezvous(d[:], out[i])
	}
	return out
}

// holders yields the living nodes that say they have d, in d's order.
func (p *peers) holders(d lode.Digest) sources {
	var have []lode.NodeID
	asked := false
	return func(ctx context.Context) (lode.NodeID, bool, []lode.NodeID) {
		if !asked {
			asked = true
			on, _ := ctx.Value(hintsKey{}).(map[lode.Digest][]lode.NodeID)
			var known bool
			if have, known = on[d]; !known {
				alive, _ := p.others(d)
				have, _ = p.ask(ctx, d, alive, hedgeAfter)
			}
		}
		if len(have) == 0 {
			return "", false, nil
		}
		n := have[0]
		have = have[1:]
		return n, true, nil
	}
}

// ask returns those of the nodes that have d, in the order given, and those
// that did not say.
func (p *peers) ask(ctx context.Context, d lode.Digest, nodes []lode.NodeID, limit time.Duration) (have, mute []lode.NodeID) {
	held := each(ctx, limit, nodes, func(ctx context.Context, n lode.NodeID) (Held, error) {
		h, err := p.have(ctx, n, []Query{{Digest: d}}, false)
		if err != nil {
			return HeldNothing, err
		}
		return h[0], nil
	})
	for i, h := range held {
		if h.err != nil {
			mute = append(mute, nodes[i])
		} else if h.value >= HeldCopy {
			have = append(have, nodes[i])
		}
	}
	return have, mute
}

// have asks one node and checks that it answered for every blob.
func (p *peers) have(ctx context.Context, n lode.NodeID, qs []Query, verify bool) ([]Held, error) {
	h, err := p.Remote(n).Have(ctx, qs, verify)
	if err == nil && len(h) != len(qs) {
		err = lode.Errorf(lode.Internal, "node %s answered for %d of %d blobs", n, len(h), len(qs))
	}
	return h, err
}

type answer[T any] struct {
	value T
	err   error
}

// each asks all nodes at once and waits for the answers, at most for limit.
func each[T any](ctx context.Context, limit time.Duration, nodes []lode.NodeID, ask func(context.Context, lode.NodeID) (T, error)) []answer[T] {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	out := make([]answer[T], len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { out[i].value, out[i].err = ask(ctx, n) })
	}
	wg.Wait()
	return out
}

// race is one fetch: attempts at several nodes, of which the first whole and
// right one wins.
type race struct {
	p       *peers
	d       lode.Digest
	t       *tree
	ctx     context.Context
	results chan finish
	moved   atomic.Int64
	running map[lode.NodeID]*attempt
	failed  []error
	silent  []lode.NodeID
}

type attempt struct {
	cancel context.CancelFunc
	at     atomic.Int64 // bytes so far
	seen   int64        // at the last look
	idle   time.Duration
}

type finish struct {
	node lode.NodeID
	sp   *spool
	err  error
}

// fetch spools d, verified, in t from the first of the sources that gives it
// whole, and returns the bytes moved by all. NotFound if every node said so;
// Unavailable while nodes that may have it do not answer.
func (p *peers) fetch(ctx context.Context, d lode.Digest, t *tree, from sources) (*spool, int64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // of the attempts that lost
	r := &race{p: p, d: d, t: t, ctx: ctx, results: make(chan finish), running: map[lode.NodeID]*attempt{}}
	sp, err := r.run(from)
	return sp, r.moved.Load(), err
}

func (r *race) run(from sources) (*spool, error) {
	tick := time.NewTicker(hedgeAfter)
	defer tick.Stop()
	more := r.start(from)
	for len(r.running) > 0 {
		select {
		case f := <-r.results:
			delete(r.running, f.node)
			if f.err == nil {
				return f.sp, nil
			}
			r.failed = append(r.failed, f.err)
			if lode.KindOf(f.err) == lode.Full {
				return nil, f.err // the disk here, not that node
			}
			if more && len(r.running) == 0 {
				more = r.start(from)
			}
		case <-tick.C:
			if r.idle() && more {
				more = r.start(from)
			}
		case <-r.ctx.Done():
			return nil, cancelled(r.ctx)
		}
	}
	return nil, r.why()
}

// idle reports whether no attempt got a byte since the last look, and gives up
// those that have not for long.
func (r *race) idle() bool {
	idle := true
	for _, a := range r.running {
		if at := a.at.Load(); at > a.seen {
			a.seen, a.idle, idle = at, 0, false
			continue
		}
		if a.idle += hedgeAfter; a.idle >= stallAfter {
			a.cancel()
		}
	}
	return idle
}

// start begins one more attempt; false when there is nobody left to ask.
func (r *race) start(from sources) bool {
	node, ok, silent := from(r.ctx)
	if !ok {
		r.silent = silent
		return false
	}
	ctx, cancel := context.WithCancel(r.ctx)
	a := &attempt{cancel: cancel}
	began := r.p.spawn(func() {
		defer cancel()
		sp, err := r.copy(ctx, node, a)
		select {
		case r.results <- finish{node, sp, err}:
		case <-r.ctx.Done(): // it lost, or nobody waits any more
			if sp != nil {
				sp.discard()
			}
		}
		if lode.KindOf(err) == lode.Damaged {
			r.p.tell(node, r.d)
		}
	})
	if !began {
		cancel()
		r.failed = append(r.failed, lode.Errorf(lode.Unavailable, "the store is closed"))
		return false
	}
	r.running[node] = a
	return true
}

// copy spools the blob from one node and checks it.
func (r *race) copy(ctx context.Context, node lode.NodeID, a *attempt) (_ *spool, err error) {
	sp, err := r.t.spool()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			sp.discard()
		}
	}()
	w := &progress{to: sp, a: a, moved: &r.moved}
	err = r.p.Remote(node).Get(ctx, r.d, w)
	switch {
	case w.err != nil: // of this machine's disk
		return nil, w.err
	case err == nil:
	case ctx.Err() != nil && r.ctx.Err() == nil:
		return nil, lode.Errorf(lode.Unavailable, "node %s stopped in the middle of blob %s", node, r.d)
	default:
		return nil, err
	}
	if got := sp.digest(); got != r.d {
		return nil, damaged(r.d, "node "+string(node), got, sp.size)
	}
	return sp, nil
}

// progress writes to a spool and counts.
type progress struct {
	to    *spool
	a     *attempt
	moved *atomic.Int64
	err   error
}

func (p *progress) Write(b []byte) (int, error) {
	n, err := p.to.Write(b)
	p.a.at.Add(int64(n))
	p.moved.Add(int64(n))
	p.err = err
	return n, err
}

// why says what a fetch that failed everywhere failed of.
func (r *race) why() error {
	var worst error
	for _, err := range r.failed {
		if lode.KindOf(err) != lode.NotFound {
			worst = err
		}
		if lode.KindOf(err) == lode.Damaged {
			break
		}
	}
	if worst != nil {
		return worst
	}
	if len(r.silent) > 0 {
		e := lode.Errorf(lode.Unavailable, "blob %s is on none of the nodes that answer, and %s", r.d, doNotAnswer(r.silent)).
			WithHint("it can be read again when they are back")
		e.RetryAfter = time.Second
		return e
	}
	return notFound(r.d, "any node of the cluster")
}

// tell lets a node know that its copy is bad.
func (p *peers) tell(node lode.NodeID, d lode.Digest) {
	ctx, cancel := context.WithTimeout(p.ctx, stallAfter)
	defer cancel()
	if err := p.Remote(node).Bad(ctx, d); err != nil {
		p.log.Warn("a node could not be told of its bad copy", "node", node, "digest", d, "err", err)
	}
}

// doNotAnswer is the end of a sentence about nodes.
func doNotAnswer(nodes []lode.NodeID) string {
	if len(nodes) == 1 {
		return "node " + string(nodes[0]) + " does not answer"
	}
	names := make([]string, len(nodes))
	for i, n := range nodes {
		names[i] = string(n)
	}
	return "nodes " + strings.Join(names, ", ") + " do not answer"
}
