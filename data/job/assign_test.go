package job

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"lode"
	"lode/data/reduce"
)

func TestGroupLevel(t *testing.T) {
	for _, c := range []struct{ shards, slots, want int }{
		{0, 4, 0}, {1, 1, 0}, {7, 1, 1}, {8, 1, 1}, {7, 2, 0}, {15, 2, 1}, {16, 2, 1}, {100, 2, 3}, {1000, 6, 5}, {1 << 20, 6, 6}, {100, 0, 5},
	} {
		if got := groupLevel(c.shards, c.slots); got != c.want {
			t.Errorf("%d shards on %d slots: level %d, want %d", c.shards, c.slots, got, c.want)
		}
	}
}

// What is left beside any set of disjoint places covers the rest, once.
func TestBlocks(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 2000 {
		shards := rng.IntN(70)
		var all []place
		for range rng.IntN(6) {
			all = append(all, place{rng.IntN(8) - 1, rng.IntN(20) - 1})
		}
		done := map[place]bool{}
		if shards > 0 {
			done = disjoint(shards, all)
		}
		level := rng.IntN(5)
		covered := make([]int, shards)
		last := -1
		rest := blocks(shards, level, done)
		for _, at := range rest {
			if at.level > level || at.i<<at.level <= last {
				t.Fatalf("%d shards, level %d, %v done: %v", shards, level, done, rest)
			}
			last = at.i << at.level
		}
		for at := range done {
			rest = append(rest, at)
		}
		for _, at := range rest {
			for i := range at.shards(shards) {
				covered[at.i<<at.level+i]++
			}
		}
		if slices.ContainsFunc(covered, func(n int) bool { return n != 1 }) {
			t.Fatalf("%d shards, level %d, %v done: covered %v by %v", shards, level, done, covered, rest)
		}
		if len(done) == 0 && shards > 0 && len(rest) != (shards+1<<level-1)>>level {
			t.Fatalf("%d shards at level %d: %v", shards, level, rest)
		}
	}
}

// shape is a state that says how it was merged.
type shape string

func (s shape) Merge(_ context.Context, right reduce.State) (reduce.State, error) {
	return "(" + s + " " + right.(shape) + ")", nil
}
func (s shape) Encode() ([]byte, string, error) { return []byte(s), "", nil }
func (s shape) Pack() ([]byte, string, error)   { return []byte(s), "", nil }

// Groups of any size, merged apart, in any order, give the tree of one.
func TestTreeOfGroups(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 1))
	build := func(n int, parts []place) string {
		whole := newTree(n, top(n))
		rng.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
		for _, at := range parts {
			part := newTree(n, at)
			first := at.i << at.level
			for _, k := range rng.Perm(at.shards(n)) {
				if err := part.add(t.Context(), place{0, first + k}, shape(fmt.Sprint(first+k))); err != nil {
					t.Fatal(err)
				}
			}
			if err := whole.add(t.Context(), at, part.result(nil)); err != nil {
				t.Fatal(err)
			}
		}
		return string(whole.result(shape("")).(shape))
	}
	if got := build(5, blocks(5, 0, nil)); got != "(((0 1) (2 3)) 4)" {
		t.Fatal(got)
	}
	for n := range 40 {
		want := build(n, blocks(n, 0, nil))
		for level := range 6 {
			done := map[place]bool{}
			if n > 0 {
				done = disjoint(n, []place{{rng.IntN(4), rng.IntN(8)}, {rng.IntN(3), rng.IntN(8)}})
			}
			parts := blocks(n, level, done)
			for at := range done {
				parts = append(parts, at)
			}
			if got := build(n, parts); got != want {
				t.Fatalf("%d shards in %v: %s, want %s", n, parts, got, want)
			}
		}
	}
}

func TestAssign(t *testing.T) {
	free := func(ids string) (out []load) {
		for _, id := range ids {
			out = append(out, load{node: lode.NodeID(id), slots: 2, room: 3})
		}
		return out
	}
	needs := func(n int, fetch ...float64) (out []need) {
		for i := range n {
			out = append(out, need{weight: 100, fetch: fetch, not: make([]bool, len(fetch)), turn: i})
		}
		return out
	}
	count := func(picks []pick, nodes int) []int {
		out := make([]int, nodes)
		for _, p := range picks {
			out[p.node]++
		}
		return out
	}
	const rate = 0.01 // a second for a group
	for name, c := range map[string]struct {
		needs []need
		nodes []load
		want  []int // groups by node
	}{
		"the same everywhere is spread":       {needs(6, 0, 0, 0), free("abc"), []int{2, 2, 2}},
		"no more than there is room":          {needs(100, 0, 0, 0), free("abc"), []int{3, 3, 3}},
		"to the bytes":                        {needs(3, 100, 0, 100), free("abc"), []int{0, 3, 0}},
		"waits for the bytes":                 {needs(6, 100, 0, 100), free("abc"), []int{0, 3, 0}},
		"copies when that is sooner":          {needs(12, 0.1, 0, 0.1), free("abc"), []int{3, 3, 3}},
		"one copy pays at a time":             {needs(6, 1.6, 0), free("ab"), []int{1, 3}},
		"a busy node is not chosen":           {needs(2, 0, 0), []load{{node: "a", slots: 2, flying: 6, room: 3}, {node: "b", slots: 2, room: 3}}, []int{0, 2}},
		"bytes on their way are in the queue": {needs(1, 1, 1), []load{{node: "a", slots: 2, room: 3, backlog: 5}, {node: "b", slots: 2, room: 3}}, []int{0, 1}},
		"larger nodes get more":               {needs(12, 0, 0), []load{{node: "a", slots: 8, room: 9}, {node: "b", slots: 2, room: 3}}, []int{9, 2}},
		"nothing":                             {nil, free("ab"), []int{0, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			before := slices.Clone(c.nodes)
			picks := assign(c.needs, c.nodes, rate)
			if got := count(picks, len(c.nodes)); !slices.Equal(got, c.want) {
				t.Errorf("%v, want %v", got, c.want)
			}
			if !slices.Equal(before, c.nodes) {
				t.Error("the loads were changed")
			}
			if again := assign(c.needs, c.nodes, rate); !slices.Equal(again, picks) {
				t.Errorf("%v, then %v", picks, again)
			}
		})
	}
	barred := needs(2, 0, 5)
	barred[0].not[0], barred[1].not = true, []bool{true, true}
	if got := assign(barred, free("ab"), rate); !slices.Equal(got, []pick{{0, 1}}) {
		t.Errorf("a node that may not have it: %v", got)
	}
}

func TestSlow(t *testing.T) {
	paces := []float64{0.1, 0.2, 5}
	for _, c := range []struct {
		ran    time.Duration
		weight int64
		paces  []float64
		least  time.Duration
		want   bool
	}{
		{time.Minute, 10, nil, time.Second, false},
		{3 * time.Second, 10, paces, time.Second, false},
		{5 * time.Second, 10, paces, time.Second, true},
		{5 * time.Second, 20, paces, time.Second, false},
		{500 * time.Millisecond, 1, paces, time.Second, false},
	} {
		if got := slow(c.ran, c.weight, c.paces, c.least); got != c.want {
			t.Errorf("%s for %d after %v: %v", c.ran, c.weight, c.paces, got)
		}
	}
}

// Turns go to the job that holds the fewest, then to the first shards.
func TestTurns(t *testing.T) {
	tu := newTurns(1)
	release, err := tu.take(t.Context(), "a", 0)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 10)
	queued := 0
	wait := func(job string, first int) {
		queued++
		go func() {
			release, err := tu.take(t.Context(), job, first)
			if err != nil {
				t.Error(err)
				return
			}
			got <- fmt.Sprint(job, first)
			release()
		}()
		for {
			tu.mu.Lock()
			n := len(tu.waiting)
			tu.mu.Unlock()
			if n == queued {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}
	wait("a", 8)
	wait("a", 4)
	wait("b", 6)
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if _, err := tu.take(ctx, "c", 0); lode.KindOf(err) != lode.Cancelled {
		t.Errorf("a turn after the end: %v", err)
	}
	hold, err := newTurns(2).take(t.Context(), "x", 0)
	if err != nil {
		t.Fatal(err)
	}
	hold()
	hold() // once is enough
	tu.mu.Lock()
	tu.held["a"]++ // a has another one
	tu.mu.Unlock()
	release()
	var order []string
	for range 3 {
		order = append(order, <-got)
	}
	if s := strings.Join(order, " "); s != "b6 a4 a8" {
		t.Errorf("turns went to %s", s)
	}
}
