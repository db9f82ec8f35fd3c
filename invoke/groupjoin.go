package invoke

import (
	"cmp"
	"context"
	"errors"
	"io"
	"math"
	"slices"
	"time"

	"lode"
	"lode/link"
)

// formKey names a group that members are joining.
type formKey struct {
	ns   lode.Namespace
	name string
}

// forming is a group, at its root, that is not complete; groups.mu guards it.
type forming struct {
	size    int
	joiners map[int]*joiner
	over    chan struct{}
	out     *groupResult // of a failure
	session string
	nodes   []lode.NodeID // by rank
}

// joiner is a member that waits at the root.
type joiner struct {
	node     lode.NodeID
	replaced chan struct{} // another came with its rank: it was tried again
}

type wireJoin struct {
	Namespace lode.Namespace `json:"ns"`
	Group     string         `json:"group"`
	Rank      int            `json:"rank"`
	Size      int            `json:"size"`
	Timeout   time.Duration  `json:"timeout"` // ns
}

// joined is the answer to a join: the members by rank, as indices into Nodes.
type joined struct {
	Session string        `json:"session,omitempty"`
	Nodes   []lode.NodeID `json:"nodes,omitempty"`
	Of      []int         `json:"of,omitempty"`
	Err     *lode.Error   `json:"err,omitempty"`
	Missing []int         `json:"missing,omitempty"`
}

// byRank are the nodes of the members.
func (j *joined) byRank(size int) ([]lode.NodeID, error) {
	if j.Session == "" || len(j.Of) != size {
		return nil, lode.Errorf(lode.Internal, "a group's root named %d of its %d members", len(j.Of), size)
	}
	out := make([]lode.NodeID, size)
	for rank, i := range j.Of {
		if i < 0 || i >= len(j.Nodes) {
			return nil, lode.Errorf(lode.Internal, "a group's root named a node that it did not list")
		}
		out[rank] = j.Nodes[i]
	}
	return out, nil
}

func (w *wireJoin) check() error {
	switch {
	case w.Group == "" || len(w.Group) > 256:
		return lode.Errorf(lode.Invalid, "the name of a group has 1 to 256 bytes, not %d", len(w.Group))
	case w.Size < 1 || w.Size > maxGroup:
		return lode.Errorf(lode.Invalid, "a group has 1 to %d members, not %d", maxGroup, w.Size)
	case w.Rank < 0 || w.Rank >= w.Size:
		return lode.Errorf(lode.Invalid, "the rank %d is none of a group of %d: want 0 to %d", w.Rank, w.Size, w.Size-1)
	}
	return nil
}

// join is the operation join.
func (a *attempt) join(ctx context.Context, r *reach, m *lode.Message) (lode.Message, error) {
	var k *member
	w := &wireJoin{Namespace: a.rev.Namespace, Group: m.Get(":group")}
	rank, err1 := number(m, ":rank", -1, math.MaxInt32)
	size, err2 := number(m, ":size", 0, math.MaxInt32)
	timeout, err3 := timeoutOf(m, groupWait)
	w.Rank, w.Size, w.Timeout = int(rank), int(size), timeout
	err := cmp.Or(err1, err2, err3)
	if err == nil {
		err = w.check()
	}
	var out lode.Message
	if err == nil {
		ctx, cancel := context.WithDeadline(ctx, earlier(a.inv.Deadline, time.Now().Add(timeout+time.Second)))
		k, out, err = a.s.groups.join(ctx, w)
		cancel()
	}
	if !r.joined(w.Group, k) && k != nil {
		k.b.leave(k.rank, 0)
		return lode.Message{}, over()
	}
	return out, err
}

// join waits until a group is complete. The root is asked again when it cannot
// be reached, and another one when the nodes have changed so that the group
// belongs there.
func (g *groups) join(ctx context.Context, w *wireJoin) (*member, lode.Message, error) {
	for {
		root := g.rootOf(w.Namespace, w.Group)
		j, err := g.joinAt(ctx, root, w)
		switch {
		case err == nil && j.Err != nil:
			m, err := (&groupResult{err: j.Err, missing: j.Missing}).message()
			return nil, m, err
		case err == nil:
			k, err := g.attach(root, w, j)
			return k, lode.Message{}, err
		case ctx.Err() != nil:
			return nil, lode.Message{}, ended(ctx, "waiting for the members of the group "+w.Group)
		case root == g.self() || !unreached(err) && !errors.Is(err, errElsewhere):
			return nil, lode.Message{}, err
		}
		pause(ctx, 50*time.Millisecond)
	}
}

// errElsewhere: a group belongs to another root by now.
var errElsewhere = errors.New("the group belongs to another node now")

// unreached reports whether another node did not do what it was asked, or has
// not said so.
func unreached(err error) bool {
	return errors.Is(err, link.ErrNotSent) || errors.Is(err, link.ErrRefused) || errors.Is(err, link.ErrLost)
}

// rootOf is the node that a group belongs to, of those that live.
func (g *groups) rootOf(ns lode.Namespace, group string) lode.NodeID {
	if g.s.spread == nil {
		return g.self()
	}
	views := g.s.spread.peers.Nodes()
	ids := make([]lode.NodeID, 0, len(views))
	for i := range views {
		ids = append(ids, views[i].Node)
	}
	if len(ids) == 0 {
		return g.self()
	}
	return lode.Rendezvous([]byte(string(ns)+"/"+group), ids)[0]
}

// alive reports whether a node can be reached.
func (g *groups) alive(node lode.NodeID) bool {
	if node == g.self() || g.s.spread == nil {
		return node == g.self()
	}
	return slices.ContainsFunc(g.s.spread.peers.Nodes(), func(v NodeView) bool { return v.Node == node })
}

// joinAt joins at one root, as long as it is that.
func (g *groups) joinAt(ctx context.Context, root lode.NodeID, w *wireJoin) (*joined, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var watch *time.Timer
	watch = time.AfterFunc(time.Hour, func() {
		if ctx.Err() != nil {
			return
		}
		if g.rootOf(w.Namespace, w.Group) != root {
			cancel(errElsewhere)
			return
		}
		watch.Reset(2 * lookEvery)
	})
	watch.Reset(2 * lookEvery)
	defer watch.Stop()
	var j *joined
	var err error
	if root == g.self() {
		j, err = g.gather(ctx, root, w)
	} else {
		j = &joined{}
		_, err = g.s.ask(ctx, root, talkJoin, w, nil, j)
	}
	if err != nil && context.Cause(ctx) == errElsewhere {
		return nil, errElsewhere
	}
	return j, err
}

// serveJoin is gather for another node.
func (g *groups) serveJoin(ctx context.Context, from lode.NodeID, r io.Reader) (any, []byte, error) {
	var w wireJoin
	if _, err := unpack(r, &w); err != nil {
		return nil, nil, err
	}
	if err := w.check(); err != nil {
		return nil, nil, err
	}
	j, err := g.gather(ctx, from, &w)
	return j, nil, err
}

// gather waits at the root until all members of a group are there.
func (g *groups) gather(ctx context.Context, from lode.NodeID, w *wireJoin) (*joined, error) {
	f, me, err := g.arrive(from, w)
	if err != nil {
		return nil, err
	}
	key := formKey{w.Namespace, w.Group}
	timer := time.NewTimer(w.Timeout)
	defer timer.Stop()
	select {
	case <-f.over:
	case <-me.replaced:
		return nil, rankTaken(w)
	case <-timer.C:
		g.giveUp(key, f)
		<-f.over
	case <-ctx.Done():
		if !g.withdraw(key, f, me, w.Rank) {
			break
		}
		return nil, ended(ctx, "waiting for the members of the group "+w.Group)
	}
	select {
	case <-me.replaced:
		return nil, rankTaken(w)
	default:
	}
	if f.out != nil {
		return &joined{Err: f.out.err, Missing: f.out.missing}, nil
	}
	if w.Rank == 0 {
		g.sweep()
	}
	return f.joined(), nil
}

func rankTaken(w *wireJoin) error {
	return lode.Errorf(lode.Conflict, "another invocation has joined the group %s with the rank %d", w.Group, w.Rank)
}

// joined is the answer to a member of a group that is complete.
func (f *forming) joined() *joined {
	j := &joined{Session: f.session, Of: make([]int, f.size)}
	at := map[lode.NodeID]int{}
	for rank, n := range f.nodes {
		i, ok := at[n]
		if !ok {
			i, at[n] = len(j.Nodes), len(j.Nodes)
			j.Nodes = append(j.Nodes, n)
		}
		j.Of[rank] = i
	}
	return j
}

// arrive puts a member into its group. The last one completes it.
func (g *groups) arrive(from lode.NodeID, w *wireJoin) (*forming, *joiner, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, nil, draining()
	}
	key := formKey{w.Namespace, w.Group}
	f := g.forming[key]
	if f == nil {
		f = &forming{size: w.Size, joiners: map[int]*joiner{}, over: make(chan struct{})}
		g.forming[key] = f
	}
	if f.size != w.Size {
		return nil, nil, lode.Errorf(lode.Conflict, "the group %s has %d members, says one who joined before; not %d", w.Group, f.size, w.Size)
	}
	me := &joiner{from, make(chan struct{})}
	if old := f.joiners[w.Rank]; old != nil {
		close(old.replaced)
	}
	if f.joiners[w.Rank] = me; len(f.joiners) < f.size {
		return f, me, nil
	}
	f.session = string(lode.NewInvocationID(time.Now()))
	f.nodes = make([]lode.NodeID, f.size)
	for rank, j := range f.joiners {
		f.nodes[rank] = j.node
	}
	if c := newCircle(g, f.session, w.Group, f.nodes); len(c.order) > 1 {
		g.circles[c.id] = c
	}
	delete(g.forming, key)
	close(f.over)
	return f, me, nil
}

// giveUp ends a group that is not complete in time, for all who wait.
func (g *groups) giveUp(key formKey, f *forming) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.forming[key] != f {
		return // complete, or ended already
	}
	var missing []int
	for rank := range f.size {
		if f.joiners[rank] == nil {
			missing = append(missing, rank)
		}
	}
	f.out = without("joining the group "+key.name, missing)
	delete(g.forming, key)
	close(f.over)
}

// withdraw takes a member out whose caller is gone; false: too late.
func (g *groups) withdraw(key formKey, f *forming, me *joiner, rank int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.forming[key] != f {
		return false
	}
	if f.joiners[rank] == me {
		delete(f.joiners, rank)
	}
	if len(f.joiners) == 0 {
		delete(g.forming, key)
		f.out = without("joining the group "+key.name, nil)
		close(f.over)
	}
	return true
}

// attach makes a member of whoever has joined on this node.
func (g *groups) attach(root lode.NodeID, w *wireJoin, j *joined) (*member, error) {
	nodes, err := j.byRank(w.Size)
	if err != nil {
		return nil, err
	}
	if nodes[w.Rank] != g.self() {
		return nil, rankTaken(w)
	}
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return nil, draining()
	}
	b := g.bands[j.Session]
	if b == nil {
		b = newBand(g, j.Session, w.Group, root, nodes)
		g.bands[j.Session] = b
	}
	g.mu.Unlock()
	if !b.attached(w.Rank) {
		return nil, lode.Errorf(lode.Unavailable, "the group %s went on without the rank %d, which came too late", w.Group, w.Rank)
	}
	return &member{b: b, rank: w.Rank, timeout: w.Timeout}, nil
}
