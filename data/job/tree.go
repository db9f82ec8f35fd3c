package job

import (
	"context"
	"sync"

	"lode"
	"lode/data/reduce"
)

// tree merges the states of n shards pairwise. Which pairs depends on n alone,
// not on who is ready first: node (level, i) covers the shards from i<<level
// to (i+1)<<level. Whoever brings the second of a pair merges it.
type tree struct {
	n  int
	mu sync.Mutex
	// ready holds nodes that wait for their sibling.
	ready map[place]reduce.State
	root  reduce.State
}

type place struct{ level, i int }

func newTree(n int) *tree { return &tree{n: n, ready: map[place]reduce.State{}} }

// add brings the state of shard i, once, and merges as far as that goes.
func (t *tree) add(ctx context.Context, i int, s reduce.State) error {
	for at := (place{0, i}); ; at = (place{at.level + 1, at.i >> 1}) {
		if 1<<at.level >= t.n {
			t.mu.Lock()
			t.root = s
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
	if t.root == nil {
		return zero
	}
	return t.root
}

// guestReducer merges by the guest's own function.
type guestReducer struct {
	runner Runner
	job    *Job
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
	job := s.g.job
	var body []byte
	err := retry(ctx, job.Retries, func() (err error) {
		ctx, stop := context.WithTimeout(ctx, job.Attempt)
		defer stop()
		body, err = s.g.runner.Merge(ctx, job.Namespace, job.What, s.body, r.body)
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

// reducerOf resolves a job's reduction.
func reducerOf(r Runner, j *Job) (reduce.Reducer, error) {
	switch {
	case j.What.Builtin == BuiltinWords:
		if j.Reduce != "" && j.Reduce != BuiltinWords && j.Reduce != "merge" {
			return nil, lode.Errorf(lode.Invalid, "the built-in word count cannot be reduced by %s", j.Reduce).WithHint("leave --reduce away")
		}
		return reduce.Words(), nil
	case j.What.Builtin != "":
		return nil, lode.Errorf(lode.Invalid, "there is no built-in job %q", j.What.Builtin)
	case j.What.Function == nil:
		return nil, lode.Errorf(lode.Invalid, "the job has no code")
	case j.Reduce == ReduceGuest:
		return &guestReducer{r, j}, nil
	case j.Reduce == "":
		return reduce.ByName("concat")
	}
	return reduce.ByName(j.Reduce)
}
