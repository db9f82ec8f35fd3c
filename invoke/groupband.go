package invoke

import (
	"context"
	"io"
	"slices"
	"sync"
	"time"

	"lode"
)

// band is the members of a group that are on this node.
type band struct {
	g       *groups
	session string
	group   string
	root    lode.NodeID
	size    int
	local   []int // ranks, ascending
	rooted  []int // ranks at the root
	alone   bool  // it has all members

	mu       sync.Mutex
	bouts    map[int]*bout // by number
	here     map[int]bool  // ranks that have been seen
	left     map[int]int   // rank -> rounds it has made
	over     bool
	awaiting *time.Timer // for those that have not been seen
}

// bout is a round at one node; band.mu guards it until over is closed.
type bout struct {
	n       int
	st      groupStep
	fold    *fold // nil: nobody has come yet
	got     map[int]bool
	telling bool
	tell    wireRound // what the root is told, without the part
	timer   *time.Timer
	over    chan struct{}
	out     *groupResult
}

func newBand(g *groups, session, group string, root lode.NodeID, nodes []lode.NodeID) *band {
	b := &band{g: g, session: session, group: group, root: root, size: len(nodes), bouts: map[int]*bout{}, here: map[int]bool{}, left: map[int]int{}}
	for rank, n := range nodes {
		if n == g.self() {
			b.local = append(b.local, rank)
		}
		if n == root {
			b.rooted = append(b.rooted, rank)
		}
	}
	b.alone = len(b.local) == b.size
	b.mu.Lock()
	defer b.mu.Unlock()
	b.awaiting = time.AfterFunc(attachWait, b.absent)
	return b
}

// attached notes that a member is here; false: too late.
func (b *band) attached(rank int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, gone := b.left[rank]; gone || b.over || b.here[rank] {
		return false
	}
	if b.here[rank] = true; len(b.here) == len(b.local) {
		b.awaiting.Stop()
	}
	return true
}

// absent gives up the members that have not come, though they joined.
func (b *band) absent() {
	b.mu.Lock()
	var lost []int
	for _, r := range b.local {
		if _, gone := b.left[r]; !gone && !b.here[r] {
			lost = append(lost, r)
		}
	}
	b.mu.Unlock()
	for _, r := range lost {
		b.leave(r, 0)
	}
}

// bout is round n, made where it is new; b.mu is held. nil: too many are open.
func (b *band) bout(n int, timeout time.Duration) *bout {
	t := b.bouts[n]
	if t == nil && len(b.bouts) < maxOpenRounds {
		t = &bout{n: n, got: map[int]bool{}, over: make(chan struct{})}
		t.tell = wireRound{Session: b.session, N: n, Timeout: timeout}
		t.timer = time.AfterFunc(timeout, func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.late(t)
		})
		b.bouts[n] = t
	}
	return t
}

// enter gives a member's part to round n, whose end the bout tells.
func (b *band) enter(n, rank int, st groupStep, part []byte, timeout time.Duration) *bout {
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.bout(n, timeout)
	if t == nil {
		t = &bout{over: make(chan struct{}), out: &groupResult{err: lode.Errorf(lode.Unavailable, "%d rounds of the group %s wait for members", maxOpenRounds, b.group)}}
		close(t.over)
		return t
	}
	t.got[rank] = true
	if t.telling {
		b.tidy(t)
		return t
	}
	switch {
	case t.fold == nil:
		t.st, t.fold = st, newFold(st, len(b.local))
	case t.st != st:
		t.tell.Err = differ(b.group, n, t.st, st)
		b.tell(t)
		return t
	}
	i, _ := slices.BinarySearch(b.local, rank)
	t.fold.add(i, part)
	if len(t.got) == len(b.local) {
		b.tell(t)
	} else {
		b.without(t)
	}
	return t
}

func differ(group string, n int, a, b groupStep) *lode.Error {
	return lode.Errorf(lode.Conflict, "in round %d of the group %s one member makes a %s and another a %s", n, group, a, b).
		WithHint("all members have to make the same operations in the same order")
}

// without ends a round at once that a member has left before; b.mu is held.
func (b *band) without(t *bout) {
	if t.telling {
		return
	}
	for r, made := range b.left {
		if made <= t.n && !t.got[r] {
			t.tell.Missing = append(t.tell.Missing, r)
		}
	}
	if len(t.tell.Missing) > 0 {
		slices.Sort(t.tell.Missing)
		b.tell(t)
	}
}

// late ends a round whose time is up; b.mu is held.
func (b *band) late(t *bout) {
	if t.telling {
		return
	}
	for _, r := range b.local {
		if !t.got[r] {
			t.tell.Missing = append(t.tell.Missing, r)
		}
	}
	t.tell.Late = true
	b.tell(t)
}

// tell tells the root of a round, and ends it with what that says; b.mu is
// held.
func (b *band) tell(t *bout) {
	t.telling = true
	t.timer.Stop()
	w, f := t.tell, t.fold
	w.Step = t.st
	if !b.g.start(func() { b.end(t, b.told(&w, f)) }) {
		b.finish(t, &groupResult{err: draining()})
	}
}

// told is how a round ends, as the root says, or this node where it is alone.
func (b *band) told(w *wireRound, f *fold) *groupResult {
	what := roundOf(b.group, w.N)
	if b.alone {
		switch {
		case w.Err != nil:
			return &groupResult{err: w.Err}
		case len(w.Missing) > 0:
			return without(what, w.Missing)
		}
		body, err := f.conclude(b.size, nil)
		return &groupResult{body: body, err: lode.AsError(err)}
	}
	var part []byte
	if w.Err == nil && len(w.Missing) == 0 {
		part = f.partial()
	}
	if b.root == b.g.self() {
		return b.g.tellCircle(b.g.ctx, b.root, w, part)
	}
	return b.ask(w, part)
}

// tries is how often a node that was lost is asked again.
const tries = 4

// ask tells the root of another node of a round. Telling it twice does no harm.
func (b *band) ask(w *wireRound, part []byte) *groupResult {
	ctx, cancel := context.WithTimeout(b.g.ctx, w.Timeout+askGrace)
	defer cancel()
	var err error
	for try := range tries {
		var o wireOutcome
		var body []byte
		if body, err = b.g.s.ask(ctx, b.root, talkRound, w, part, &o); err == nil {
			return &groupResult{body: body, err: o.Err, missing: o.Missing}
		}
		if !unreached(err) {
			break
		}
		pause(ctx, 50*time.Millisecond<<try)
	}
	e := lode.Errorf(lode.Unavailable, "the node %s, where the group %s comes together, does not answer: %w", b.root, b.group, err)
	return &groupResult{err: e.WithHint("join again under another name"), missing: append([]int{}, b.rooted...)}
}

// askGrace is how much longer the root is waited for than a round may take.
const askGrace = 10 * time.Second

// end ends a round.
func (b *band) end(t *bout, out *groupResult) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.finish(t, out)
}

// finish is end; b.mu is held.
func (b *band) finish(t *bout, out *groupResult) {
	if t.out != nil {
		return
	}
	t.telling, t.out, t.fold = true, out, nil
	t.timer.Stop()
	close(t.over)
	b.tidy(t)
}

// tidy forgets a round that is over and that all members have come to; b.mu is
// held.
func (b *band) tidy(t *bout) {
	if t.out == nil {
		return
	}
	for _, r := range b.local {
		if made, gone := b.left[r]; !t.got[r] && (!gone || made > t.n) {
			return
		}
	}
	delete(b.bouts, t.n)
}

// leave ends a membership after so many rounds.
func (b *band) leave(rank, made int) {
	b.mu.Lock()
	if _, twice := b.left[rank]; twice || b.over {
		b.mu.Unlock()
		return
	}
	b.left[rank] = made
	for _, t := range b.bouts {
		b.without(t)
		b.tidy(t)
	}
	done := len(b.left) == len(b.local)
	if done {
		b.over = true
		b.awaiting.Stop()
	}
	b.mu.Unlock()
	if done {
		b.forget()
	}
}

// forget drops a band that nobody is in any more, and tells the root.
func (b *band) forget() {
	b.g.mu.Lock()
	delete(b.g.bands, b.session)
	b.g.mu.Unlock()
	if b.alone {
		return
	}
	w := &wireDone{Session: b.session, Left: map[int]int{}}
	b.mu.Lock()
	for r, made := range b.left {
		w.Left[r] = made
	}
	b.mu.Unlock()
	b.g.start(func() {
		if b.root == b.g.self() {
			b.g.done(b.root, w)
			return
		}
		ctx, cancel := context.WithTimeout(b.g.ctx, askGrace)
		defer cancel()
		for try := range tries {
			if _, err := b.g.s.ask(ctx, b.root, talkDone, w, nil, &struct{}{}); err == nil || !unreached(err) {
				return // the root forgets it some day
			}
			pause(ctx, 50*time.Millisecond<<try)
		}
	})
}

// halt ends what is open: the node stops.
func (b *band) halt() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.over = true
	b.awaiting.Stop()
	for _, t := range b.bouts {
		b.finish(t, &groupResult{err: draining()})
	}
}

// wireEnd asks a node who is missing from a round whose time is up.
type wireEnd struct {
	Session string `json:"session"`
	N       int    `json:"n"`
}

type wireEnded struct {
	Unknown bool  `json:"unknown,omitempty"` // the session
	Missing []int `json:"missing,omitempty"`
}

func (g *groups) serveEnd(_ lode.NodeID, r io.Reader) (any, []byte, error) {
	var w wireEnd
	if _, err := unpack(r, &w); err != nil {
		return nil, nil, err
	}
	return g.endRound(&w), nil, nil
}

// endRound ends a round at this node, unless all its members have made it; they
// learn of the end from the root.
func (g *groups) endRound(w *wireEnd) wireEnded {
	g.mu.Lock()
	b := g.bands[w.Session]
	g.mu.Unlock()
	if b == nil || w.N < 0 {
		return wireEnded{Unknown: true}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.bout(w.N, groupWait)
	if t == nil || b.over {
		return wireEnded{Missing: slices.Clone(b.local)}
	}
	b.late(t)
	return wireEnded{Missing: slices.Clone(t.tell.Missing)}
}
