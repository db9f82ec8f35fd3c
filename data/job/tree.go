package job

import (
	"context"
	"sync"
	"time"

	"lode"
	"lode/data/reduce"
)

// place is a node of the merge tree: it covers the shards from i<<level to
// (i+1)<<level, or to the end.
type place struct{ level, i int }

// shards is how many of n shards the place covers.
func (at place) shards(n int) int { return min(n, (at.i+1)<<at.level) - at.i<<at.level }

// top is the place that covers all of n shards.
func top(n int) place {
	at := place{}
	for 1<<at.level < n {
		at.level++
	}
	return at
}

// tree merges states pairwise. Which pairs depends on the number of shards
// alone, not on who is ready first, nor on where it is done. Whoever brings the
// second of a pair merges it.
type tree struct {
	n    int   // shards of the job
	root place // where merging ends
	mu   sync.Mutex
	// ready holds nodes that wait for their sibling.
	ready map[place]reduce.State
	whole reduce.State
}

// newTree merges what is below root in the tree over n shards.
func newTree(n int, root place) *tree {
	return &tree{n: n, root: root, ready: map[place]reduce.State{}}
}

// add brings the state of a place, once, and merges as far as that goes.
func (t *tree) add(ctx context.Context, at place, s reduce.State) error {
	for ; ; at = (place{at.level + 1, at.i >> 1}) {
		if at.level >= t.root.level {
			t.mu.Lock()
			t.whole = s
			t.mu.Unlock()
			return nil
		}
		sibling := place{at.level, at.i ^ 1}
		if sibling.i<<at.level >= t.n {
			continue // nothing beside it: it moves up alone
		}
		t.mu.Lock()
		other, ok := t.ready[sibling]
		if !ok {
			t.ready[at] = s
			t.mu.Unlock()
			return nil
		}
		delete(t.ready, sibling)
		t.mu.Unlock()
		left, right := s, other
		if sibling.i < at.i {
			left, right = other, s
		}
		var err error
		if s, err = left.Merge(ctx, right); err != nil {
			return err
		}
	}
}

// result is the state of all shards; zero for none.
func (t *tree) result(zero reduce.State) reduce.State {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.whole == nil {
		return zero
	}
	return t.whole
}

// code is what the merging of a job needs to know of it.
type code struct {
	ns      lode.Namespace
	what    What
	reduce  string
	retries int
	attempt time.Duration
}

func (j *Job) code() code   { return code{j.Namespace, j.What, j.Reduce, j.Retries, j.Attempt} }
func (g *Group) code() code { return code{g.Namespace, g.What, g.Reduce, g.Retries, g.Attempt} }

// guestReducer merges by the guest's own function.
type guestReducer struct {
	runner Runner
	code   code
}

type guestState struct {
	g    *guestReducer
	body []byte
	kind string
	has  bool
}

var (
	_ reduce.Reducer = (*guestReducer)(nil)
	_ reduce.State   = (*guestState)(nil)
)

// Zero implements reduce.Reducer: the guest's zero is not known here, so no
// shard gives no bytes.
func (g *guestReducer) Zero() reduce.State { return &guestState{g: g} }

// Parse implements reduce.Reducer.
func (g *guestReducer) Parse(body []byte, kind string) (reduce.State, error) {
	return &guestState{g, body, kind, true}, nil
}

// Unpack implements reduce.Reducer.
func (g *guestReducer) Unpack(body []byte, kind string) (reduce.State, error) {
	return g.Parse(body, kind)
}

// Pack implements reduce.State: what the guest answered, as it is.
func (s *guestState) Pack() ([]byte, string, error) { return s.body, s.kind, nil }

// Merge implements reduce.State.
func (s *guestState) Merge(ctx context.Context, right reduce.State) (reduce.State, error) {
	r := right.(*guestState)
	if !s.has || !r.has {
		if r.has {
			return r, nil
		}
		return s, nil
	}
	c := &s.g.code
	var body []byte
	err := retry(ctx, c.retries, func() (err error) {
		ctx, stop := context.WithTimeout(ctx, c.attempt)
		defer stop()
		body, err = s.g.runner.Merge(ctx, c.ns, c.what, s.body, r.body)
		return err
	})
	return &guestState{s.g, body, s.kind, true}, err
}

// Encode implements reduce.State.
func (s *guestState) Encode() ([]byte, string, error) {
	if s.kind == "" {
		s.kind = "application/octet-stream"
	}
	return s.body, s.kind, nil
}

// reducer resolves a job's reduction.
func (c code) reducer(r Runner) (reduce.Reducer, error) {
	switch {
	case c.what.Builtin == BuiltinWords:
		if c.reduce != "" && c.reduce != BuiltinWords && c.reduce != "merge" {
			return nil, lode.Errorf(lode.Invalid, "the built-in word count cannot be reduced by %s", c.reduce).WithHint("leave --reduce away")
		}
		return reduce.Words(), nil
	case c.what.Builtin != "":
		return nil, lode.Errorf(lode.Invalid, "there is no built-in job %q", c.what.Builtin)
	case c.what.Function == nil:
		return nil, lode.Errorf(lode.Invalid, "the job has no code")
	case c.reduce == ReduceGuest:
		return &guestReducer{r, c}, nil
	case c.reduce == "":
		return reduce.ByName("concat")
	}
	return reduce.ByName(c.reduce)
}
