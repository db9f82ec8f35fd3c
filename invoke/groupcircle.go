package invoke

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"lode"
)

// circle is a group at its root.
type circle struct {
	g     *groups
	id    string // session
	group string
	size  int
	order []lode.NodeID         // nodes with members, by name: sums are made in this order
	ranks map[lode.NodeID][]int // of each node, ascending

	mu    sync.Mutex
	meets map[int]*meet
	left  map[int]int // rank -> rounds it has made, of nodes that are done
	done  map[lode.NodeID]bool
	used  time.Time
}

// meet is a round at the root; circle.mu guards it until over is closed.
type meet struct {
	n        int
	fold     *fold // nil: no part has come yet
	got      map[lode.NodeID]bool
	missing  []int
	late     bool // its time is up: the nodes that have not come are asked
	asking   bool
	asked    bool // once already
	deadline time.Time
	over     chan struct{}
	out      *groupResult
}

// wireRound is what a node tells of a round. Err, Missing: it has failed there.
type wireRound struct {
	Session string        `json:"session"`
	N       int           `json:"n"`
	Step    groupStep     `json:"step"`
	Timeout time.Duration `json:"timeout"` // ns
	Err     *lode.Error   `json:"err,omitempty"`
	Missing []int         `json:"missing,omitempty"`
	Late    bool          `json:"late,omitempty"` // Missing have not come in time; else they never will
}

type wireOutcome struct {
	Err     *lode.Error `json:"err,omitempty"`
	Missing []int       `json:"missing"`
}

// wireDone says that a node has no members any more.
type wireDone struct {
	Session string      `json:"session"`
	Left    map[int]int `json:"left"` // rank -> rounds it has made
}

func roundOf(group string, n int) string { return fmt.Sprintf("round %d of the group %s", n, group) }

func newCircle(g *groups, id, group string, nodes []lode.NodeID) *circle {
	c := &circle{g: g, id: id, group: group, size: len(nodes), ranks: map[lode.NodeID][]int{}, meets: map[int]*meet{}, left: map[int]int{},
		done: map[lode.NodeID]bool{}, used: time.Now()}
	for rank, n := range nodes {
		if c.ranks[n] == nil {
			c.order = append(c.order, n)
		}
		c.ranks[n] = append(c.ranks[n], rank)
	}
	slices.Sort(c.order)
	return c
}

func (g *groups) circle(session string) *circle {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.circles[session]
}

func (g *groups) serveRound(ctx context.Context, from lode.NodeID, r io.Reader) (any, []byte, error) {
	var w wireRound
	part, err := unpack(r, &w)
	if err != nil {
		return nil, nil, err
	}
	out := g.tellCircle(ctx, from, &w, part)
	return wireOutcome{out.err, out.missing}, out.body, nil
}

// tellCircle tells the root's circle of a round, and waits for the round's end.
func (g *groups) tellCircle(ctx context.Context, from lode.NodeID, w *wireRound, part []byte) *groupResult {
	c := g.circle(w.Session)
	if c == nil || c.ranks[from] == nil {
		return &groupResult{err: lode.Errorf(lode.Unavailable, "node %s does not know the group", g.self()).WithHint("it was started anew, or all members have left"), missing: []int{}}
	}
	t, err := c.tell(from, w, part)
	if err != nil {
		return &groupResult{err: lode.AsError(err)}
	}
	return c.wait(ctx, t)
}

// tell takes what a node tells of a round. The round of a node that tells it
// again is as it was.
func (c *circle) tell(from lode.NodeID, w *wireRound, part []byte) (*meet, error) {
	if err := w.check(part); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.used = time.Now()
	t := c.meets[w.N]
	if t == nil {
		if len(c.meets) >= maxOpenRounds {
			return nil, lode.Errorf(lode.Unavailable, "%d rounds of the group %s wait for members", maxOpenRounds, c.group)
		}
		t = &meet{n: w.N, got: map[lode.NodeID]bool{}, over: make(chan struct{}), deadline: time.Now().Add(w.Timeout)}
		c.meets[w.N] = t
	}
	if t.got[from] {
		return t, nil
	}
	t.deadline = earlier(t.deadline, time.Now().Add(w.Timeout))
	t.got[from] = true
	if t.out == nil {
		c.take(t, from, w, part)
	}
	c.tidy(t.n)
	return t, nil
}

func (w *wireRound) check(part []byte) error {
	failed := w.Err != nil || len(w.Missing) > 0
	if err := w.Step.check(); err != nil && !failed {
		return err
	}
	if w.N < 0 || w.Timeout <= 0 || !failed && w.Step.Verb == "reduce" && len(part) != w.Step.Size {
		return lode.Errorf(lode.Invalid, "a node tells a round that cannot be: number %d, %s, with %d bytes", w.N, w.Step, len(part))
	}
	return nil
}

// take takes a node's part, or its failure, and ends the round where that is
// the last of it; c.mu is held.
func (c *circle) take(t *meet, from lode.NodeID, w *wireRound, part []byte) {
	mine := c.ranks[from]
	missing := slices.DeleteFunc(slices.Clone(w.Missing), func(r int) bool { _, ok := slices.BinarySearch(mine, r); return !ok })
	switch {
	case w.Err != nil:
		c.end(t, &groupResult{err: w.Err})
		return
	case len(missing) > 0 && !w.Late:
		c.end(t, without(roundOf(c.group, t.n), missing))
		return
	case len(missing) > 0:
		t.missing, t.late = append(t.missing, missing...), true
	case t.fold == nil:
		t.fold = newFold(w.Step, len(c.order))
	case t.fold.st != w.Step:
		c.end(t, &groupResult{err: differ(c.group, t.n, t.fold.st, w.Step)})
		return
	}
	if len(missing) == 0 {
		i, _ := slices.BinarySearch(c.order, from)
		t.fold.add(i, part)
	}
	switch {
	case len(t.got) < len(c.order):
		c.without(t)
	case len(t.missing) > 0:
		c.end(t, without(roundOf(c.group, t.n), t.missing))
	default:
		c.conclude(t)
	}
}

// conclude ends a round that all have made; c.mu is held.
func (c *circle) conclude(t *meet) {
	ranks := make([][]int, len(c.order))
	for i, n := range c.order {
		ranks[i] = c.ranks[n]
	}
	body, err := t.fold.conclude(c.size, ranks)
	c.end(t, &groupResult{body: body, err: lode.AsError(err)})
}

// without ends a round at once that a member has left before; c.mu is held.
func (c *circle) without(t *meet) {
	var missing []int
	for r, made := range c.left {
		if made <= t.n {
			missing = append(missing, r)
		}
	}
	if len(missing) > 0 && t.out == nil {
		c.end(t, without(roundOf(c.group, t.n), missing))
	}
}

// end ends a round; c.mu is held.
func (c *circle) end(t *meet, out *groupResult) {
	t.out, t.fold = out, nil
	close(t.over)
}

// tidy forgets round n and the one before where all have told of both: the
// results of one round are kept, for those who ask again; c.mu is held.
func (c *circle) tidy(n int) {
	for _, k := range [...]int{n - 1, n} {
		if c.all(c.meets[k]) && c.all(c.meets[k+1]) {
			delete(c.meets, k)
		}
	}
}

// all reports whether every node has told of a round; c.mu is held.
func (c *circle) all(t *meet) bool {
	if t == nil {
		return false
	}
	for _, n := range c.order {
		if !t.got[n] && !c.done[n] {
			return false
		}
	}
	return true
}

// wait waits for the end of a round. Meanwhile it looks whether its time is up
// or a node is lost.
func (c *circle) wait(ctx context.Context, t *meet) *groupResult {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for ticked := false; ; ticked = true {
		c.look(ctx, t, ticked)
		select {
		case <-t.over:
			return t.out
		case <-ctx.Done():
			return &groupResult{err: lode.AsError(ended(ctx, "waiting for "+roundOf(c.group, t.n)))}
		case <-tick.C:
		}
	}
}

// look asks the nodes that have not told of a round, where its time is up or
// one of them is lost, and ends it with who is missing.
func (c *circle) look(ctx context.Context, t *meet, ticked bool) {
	c.mu.Lock()
	if t.out != nil || t.asking || !t.late && !ticked {
		c.mu.Unlock()
		return
	}
	absent := slices.DeleteFunc(slices.Clone(c.order), func(n lode.NodeID) bool { return t.got[n] })
	dead := slices.DeleteFunc(slices.Clone(absent), c.g.alive)
	if !t.late && len(dead) == 0 && time.Now().Before(t.deadline) {
		c.mu.Unlock()
		return
	}
	t.asking = true
	again := t.asked
	c.mu.Unlock()
	missing := c.ask(ctx, t.n, absent, dead)
	c.mu.Lock()
	defer c.mu.Unlock()
	t.asking = false
	if t.out != nil || ctx.Err() != nil {
		return
	}
	if missing = append(missing, t.missing...); len(missing) == 0 && again {
		for _, n := range absent {
			missing = append(missing, c.ranks[n]...)
		}
	}
	if len(missing) > 0 {
		c.end(t, without(roundOf(c.group, t.n), missing))
		return
	}
	t.asked, t.late, t.deadline = true, false, time.Now().Add(endWait) // they have all come by now, and will tell
}

// endWait is how long a node has to say who is missing.
const endWait = 2 * time.Second

// ask has nodes end a round and say who is missing there.
func (c *circle) ask(ctx context.Context, n int, absent, dead []lode.NodeID) (missing []int) {
	ctx, cancel := context.WithTimeout(ctx, endWait)
	defer cancel()
	got := make([][]int, len(absent))
	var wg sync.WaitGroup
	for i, node := range absent {
		if slices.Contains(dead, node) {
			got[i] = c.ranks[node]
			continue
		}
		wg.Go(func() {
			var e wireEnded
			var err error
			if w := (wireEnd{c.id, n}); node == c.g.self() {
				e = c.g.endRound(&w)
			} else {
				_, err = c.g.s.ask(ctx, node, talkEnd, w, nil, &e)
			}
			if got[i] = e.Missing; err != nil || e.Unknown {
				got[i] = c.ranks[node]
			}
		})
	}
	wg.Wait()
	return slices.Concat(got...)
}

func (g *groups) serveDone(from lode.NodeID, r io.Reader) (any, []byte, error) {
	var w wireDone
	if _, err := unpack(r, &w); err != nil {
		return nil, nil, err
	}
	g.done(from, &w)
	return struct{}{}, nil, nil
}

// done notes that a node has no members any more.
func (g *groups) done(from lode.NodeID, w *wireDone) {
	c := g.circle(w.Session)
	if c == nil || c.ranks[from] == nil {
		return
	}
	c.mu.Lock()
	c.done[from] = true
	for _, r := range c.ranks[from] {
		c.left[r] = w.Left[r]
	}
	for _, t := range c.meets {
		if !t.got[from] {
			c.without(t)
		}
	}
	over := len(c.done) == len(c.order)
	c.mu.Unlock()
	if over {
		g.forget(c)
	}
}

func (g *groups) forget(c *circle) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.circles, c.id)
}

// keepCircle is how long a circle is kept whose members make no rounds and
// whose nodes do not say that they are gone.
const keepCircle = 24 * time.Hour

// sweep forgets the circles whose nodes were all lost or are done.
func (g *groups) sweep() {
	g.mu.Lock()
	all := make([]*circle, 0, len(g.circles))
	for _, c := range g.circles {
		all = append(all, c)
	}
	g.mu.Unlock()
	for _, c := range all {
		c.mu.Lock()
		idle := time.Since(c.used)
		gone := !slices.ContainsFunc(c.order, func(n lode.NodeID) bool { return !c.done[n] && g.alive(n) })
		c.mu.Unlock()
		if gone && idle > time.Minute || idle > keepCircle {
			g.forget(c)
		}
	}
}
