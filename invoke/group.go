package invoke

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"lode"
)

// Groups. Members join under a name, each with a rank; the node that the name
// belongs to by rendezvous, the group's root, gives the set a session when all
// are there, and says where each rank is. From then on a round goes
//
//	member -> band (its node: waits for its ranks, combines them in order)
//	       -> circle (the root: waits for all bands, combines in order of nodes)
//	       -> band -> member
//
// in one call of the link for each node. Rounds are numbered by each member for
// itself, and known by session, number and rank or node, so that telling one
// twice does no harm. A round ends for all with who is missing: when its time
// is up, at once when a member has ended, when its node is lost, or when the
// root is. If one node has all members it is alone and there is no circle.
//
//	bout, the round at a node:  gathering -> telling -> over
//	meet, the round at the root:  open -> over
//
// Lock order: reach.mu is taken alone, groups.mu may be taken under band.mu or
// circle.mu, and these two are never taken under one another.

const (
	groupWait = 30 * time.Second // for a round's members, where nobody says
	// attachWait is how long a node waits for those who have joined on it to
	// hear of that.
	attachWait = 10 * time.Second
	// maxOpenRounds is how many rounds of a session wait for somebody.
	maxOpenRounds = 1024
	// maxGroup is how many members a group may have.
	maxGroup = 16384
	// lookEvery is how often the root looks whether nodes are lost.
	lookEvery = 100 * time.Millisecond
)

// groupResult is how a round, or the way into a group, ended.
type groupResult struct {
	body    []byte
	err     *lode.Error
	missing []int // ranks; only with err
}

// message is what the operation completes with.
func (r *groupResult) message() (lode.Message, error) {
	if r.err == nil {
		return lode.Message{Body: r.body}, nil
	}
	return missingMessage(r.missing), r.err
}

func missingMessage[T int | string](list []T) lode.Message {
	b, err := json.Marshal(append([]T{}, list...))
	if err != nil || len(b) > maxMissing {
		return lode.Message{}
	}
	return lode.Message{Head: []lode.Pair{{Key: ":missing", Value: string(b)}}}
}

// maxMissing is how long the list of who is missing may be.
const maxMissing = 60 << 10

// without is the end of a round that some did not reach.
func without(what string, missing []int) *groupResult {
	slices.Sort(missing)
	missing = slices.Compact(missing)
	e := lode.Errorf(lode.Unavailable, "%s ended without %d of its members: ranks %s", what, len(missing), someOf(missing))
	return &groupResult{err: e, missing: missing}
}

// someOf writes a list that may be long.
func someOf(list []int) string {
	more := ""
	if len(list) > 20 {
		list, more = list[:20], " ..."
	}
	b, _ := json.Marshal(list)
	return string(b) + more
}

// groups are a node's part in groups: the bands of its members, and the
// circles whose root it is.
type groups struct {
	s    *Service
	ctx  context.Context
	stop context.CancelFunc
	work sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	bands   map[string]*band // by session, as are circles
	circles map[string]*circle
	forming map[formKey]*forming
}

func newGroups(s *Service) *groups {
	g := &groups{s: s, bands: map[string]*band{}, circles: map[string]*circle{}, forming: map[formKey]*forming{}}
	g.ctx, g.stop = context.WithCancel(s.base)
	return g
}

// start runs f in the background; false: the node stops, and it does not run.
func (g *groups) start(f func()) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.work.Go(f)
	return true
}

// close ends what goes on in the background, and waits for it. Rounds that are
// open end.
func (g *groups) close() {
	g.mu.Lock()
	g.closed = true
	bands := make([]*band, 0, len(g.bands))
	for _, b := range g.bands {
		bands = append(bands, b)
	}
	g.mu.Unlock()
	g.stop()
	g.work.Wait()
	for _, b := range bands {
		b.halt()
	}
}

func (g *groups) self() lode.NodeID { return lode.NodeID(g.s.cfg.Node) }

// member is an invocation's membership in a group. next and timeout belong to
// its reach.
type member struct {
	b       *band
	rank    int
	next    int // round
	timeout time.Duration
}

// group is the operation group. Rounds are numbered here, on the guest's own
// goroutine, so that they keep its order.
func (a *attempt) group(ctx context.Context, m *lode.Message, done func(lode.Message, error)) {
	r := a.reach()
	if r == nil {
		done(lode.Message{}, over())
		return
	}
	var slow func(context.Context, *lode.Message) (lode.Message, error)
	switch verb := m.Get(":verb"); verb {
	case "gather", "broadcast":
		n := int(r.manies.Add(1))
		slow = func(ctx context.Context, m *lode.Message) (lode.Message, error) { return a.many(ctx, m, n) }
	case "join":
		if err := r.joining(m.Get(":group")); err != nil {
			done(lode.Message{}, err)
			return
		}
		slow = func(ctx context.Context, m *lode.Message) (lode.Message, error) { return a.join(ctx, r, m) }
	case "leave":
		done(lode.Message{}, r.leave(m.Get(":group")))
		return
	default:
		round, err := a.round(r, m)
		if err != nil {
			done(lode.Message{}, err)
			return
		}
		slow = round
	}
	a.slowly(ctx, m, slow, done)
}

// slowly performs an operation on a goroutine of its own.
func (a *attempt) slowly(ctx context.Context, m *lode.Message, slow func(context.Context, *lode.Message) (lode.Message, error), done func(lode.Message, error)) {
	a.began.Add(1)
	a.s.under.Add(1)
	go func() {
		defer a.s.end()
		m, err := slow(ctx, m)
		done(m, err)
	}()
}

// round takes the number of a member's next round, and returns what makes it.
func (a *attempt) round(r *reach, m *lode.Message) (func(context.Context, *lode.Message) (lode.Message, error), error) {
	st, err := stepOf(m)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	k := r.groups[m.Get(":group")]
	if k == nil {
		return nil, lode.Errorf(lode.NotFound, "this invocation has not joined the group %.100q", m.Get(":group"))
	}
	timeout, err := timeoutOf(m, k.timeout)
	if err != nil {
		return nil, err
	}
	n := k.next
	k.next++
	return func(ctx context.Context, m *lode.Message) (lode.Message, error) {
		t := k.b.enter(n, k.rank, st, m.Body, timeout)
		ctx, cancel := context.WithDeadline(ctx, a.inv.Deadline)
		defer cancel()
		select {
		case <-t.over:
			return t.out.message()
		case <-ctx.Done():
			return lode.Message{}, ended(ctx, "waiting for the group "+k.b.group)
		}
	}, nil
}

// timeoutOf is how long an operation waits for others.
func timeoutOf(m *lode.Message, def time.Duration) (time.Duration, error) {
	ms, err := number(m, ":timeout", def.Milliseconds(), int64(24*time.Hour/time.Millisecond))
	return max(time.Duration(ms)*time.Millisecond, time.Millisecond), err
}

// joining reserves the name of a group in an invocation.
func (r *reach) joining(group string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.ended:
		return over()
	case r.joins[group] || r.groups[group] != nil:
		return lode.Errorf(lode.Conflict, "this invocation is a member of the group %.100q already", group).WithHint("leave it first")
	case len(r.joins)+len(r.groups) >= maxStreams:
		return lode.Errorf(lode.Overloaded, "this invocation is in %d groups already", maxStreams)
	}
	if r.joins == nil {
		r.joins, r.groups = map[string]bool{}, map[string]*member{}
	}
	r.joins[group] = true
	return nil
}

// joined ends what joining began; k is nil where it failed. false: the
// invocation has ended.
func (r *reach) joined(group string, k *member) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.joins, group)
	if k != nil && !r.ended {
		r.groups[group] = k
	}
	return !r.ended
}

// leave ends a membership. Who is no member may leave too.
func (r *reach) leave(group string) error {
	r.mu.Lock()
	k := r.groups[group]
	delete(r.groups, group)
	r.mu.Unlock()
	if k != nil {
		k.b.leave(k.rank, k.next)
	}
	return nil
}

// leaveAll ends all memberships, with the invocation.
func (r *reach) leaveAll() {
	r.mu.Lock()
	all := r.groups
	r.ended, r.groups = true, nil
	r.mu.Unlock()
	for _, k := range all {
		k.b.leave(k.rank, k.next)
	}
}
