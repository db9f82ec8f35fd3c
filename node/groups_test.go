package node

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"lode"
	"lode/api"
	"lode/cmd/build"
)

// party is a guest whose invocations form groups, speak with each other while
// they run, and gather agents.
const party = `package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"lode/sdk/go"
)

type Counter struct{ N int }

func (c *Counter) Add(n int) int { c.N += n; return c.N }
func (c *Counter) Fail() error   { return lode.Conflict }

// All adds to other agents, in a turn.
func (c *Counter) All(ctx context.Context, others []string) ([]int, error) {
	return lode.Gather[int](ctx, others, "Add", 100)
}

// Back calls an invocation that runs, in a turn.
func (c *Counter) Back(ctx context.Context, run string) (string, error) {
	return lode.Call[string](ctx, run, "from", "agent")
}

type Member struct {
	Group      string
	Rank, Size int
	Agents     bool
}

type Result struct {
	Sum   []float64
	Max   []float32
	Node  string
	Heard []string
}

func main() {
	lode.Agent("counter", func(string) *Counter { return new(Counter) })
	lode.HandleNamed("reduce", reduce)
	lode.HandleNamed("gather", gather)
	lode.HandleNamed("alone", alone)
}

func reduce(ctx context.Context, m Member) (r Result, err error) {
	r.Node, _ = lode.Node(ctx)
	g, err := lode.JoinGroup(ctx, m.Group, m.Rank, m.Size)
	if err != nil {
		return r, err
	}
	r.Sum, r.Max = make([]float64, 100000), []float32{float32(m.Rank)}
	for round := range 20 {
		for i := range r.Sum {
			r.Sum[i] = float64((m.Rank + 1) * (i + 1)) / 3
		}
		r.Sum[0] += float64(round)
		if err := g.AllReduceF64(lode.Sum, r.Sum); err != nil {
			return r, err
		}
	}
	r.Sum = r.Sum[:2]
	if err := g.AllReduceF32(lode.Max, r.Max); err != nil {
		return r, err
	}
	addrs, err := g.Exchange([]byte(lode.Run(ctx)))
	if err != nil {
		return r, err
	}
	if m.Size == 1 {
		return r, g.Leave()
	}
	if m.Rank != 0 {
		said, err := lode.Call[string](ctx, string(addrs[0]), "from", fmt.Sprint("rank ", m.Rank))
		if err != nil || said != strings.ToUpper(fmt.Sprint("rank ", m.Rank)) {
			return r, fmt.Errorf("rank 0 said %q: %w", said, err)
		}
		return r, errors.Join(g.Barrier(), g.Leave())
	}
	callers := m.Size - 1
	if m.Agents {
		callers++
		go lode.Call[string](ctx, "counter/back", "Back", string(addrs[0]))
	}
	for range callers {
		in, err := lode.Receive(ctx)
		if err != nil {
			return r, err
		}
		var who string
		if err := in.Args(&who); err != nil {
			return r, err
		}
		r.Heard = append(r.Heard, who)
		if err := in.Reply(ctx, strings.ToUpper(who)); err != nil {
			return r, err
		}
	}
	return r, errors.Join(g.Barrier(), g.Leave())
}

func gather(ctx context.Context, n int) ([]int, error) {
	var members []string
	for i := range n {
		members = append(members, fmt.Sprint("counter/", i))
	}
	if _, err := lode.Gather[int](ctx, members, "Add", 1); err != nil {
		return nil, err
	}
	if err := lode.Broadcast(ctx, members, "Add", 10); err != nil {
		return nil, err
	}
	if _, err := lode.Gather[int](ctx, members[:2], "Fail"); lode.KindOf(err) != lode.Conflict {
		return nil, fmt.Errorf("failing members: %w", err)
	}
	return lode.Call[[]int](ctx, "counter/caller", "All", members)
}

func alone(ctx context.Context, m Member) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	_, err := lode.JoinGroup(ctx, m.Group, m.Rank, m.Size)
	var e *lode.Error
	if !errors.As(err, &e) {
		return nil, fmt.Errorf("joined alone: %w", err)
	}
	return e.Missing, nil
}
`

// ask posts to a node and reads the answer's JSON.
func ask(url string, in, out any) error {
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	resp, err := http.Post(url, "application/json", strings.NewReader(string(b)))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if b, err = io.ReadAll(resp.Body); err != nil || resp.StatusCode != 200 {
		return fmt.Errorf("%d %s: %w", resp.StatusCode, b, err)
	}
	return json.Unmarshal(b, out)
}

// openSecond starts a node that joins first, whose client is c.
func openSecond(t *testing.T, first *Node, c *api.Client) *Node {
	t.Helper()
	k, err := c.CreateJoinToken(t.Context(), api.JoinSpec{})
	if err != nil {
		t.Fatal(err)
	}
	n, err := Open(t.Context(), Config{Dir: t.TempDir(), Listen: "127.0.0.1:0", Name: "there", Join: func(context.Context) (string, string, error) { return first.cfg.Peers, k.Token, nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return n
}

// partyApp is the app of the party's functions.
func partyApp(a build.Artifact) lode.App {
	app := lode.App{Name: "party", Functions: map[lode.Name]lode.Function{}}
	for _, name := range []lode.Name{"reduce", "gather", "alone"} {
		f := spec(a)
		f.Export = string(name)
		app.Functions[name] = f
	}
	return app
}

// TestGroupsOfGuests has a Go program form groups, and gather agents.
func TestGroupsOfGuests(t *testing.T) {
	a := built(t, party)
	n, c := open(t, t.TempDir())
	app, kind := partyApp(a), spec(a)
	kind.Agent = &lode.AgentSpec{Class: "counter", Partitions: 8}
	app.Agents = map[lode.Name]lode.Function{"counter": kind}
	deploy(t, c, a, app)
	playParty(t, true, n)
	var counts []int
	if err := ask(n.URL()+"/fn/gather", 5, &counts); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(counts, []int{111, 111, 111, 111, 111}) {
		t.Errorf("counts %v", counts)
	}
	var missing []string
	if err := ask(n.URL()+"/fn/alone", guestOf{Group: "alone", Rank: 1, Size: 3}, &missing); err != nil || !slices.Equal(missing, []string{"0", "2"}) {
		t.Errorf("missing %q, %v", missing, err)
	}
}

// TestGroupsOfGuestsOnTwoNodes has members on two nodes.
func TestGroupsOfGuestsOnTwoNodes(t *testing.T) {
	if os.Getenv("LODE_LONG") == "" {
		t.Skip("set LODE_LONG=1: a node has to join")
	}
	a := built(t, party)
	n, c := open(t, t.TempDir())
	second := openSecond(t, n, c)
	deploy(t, c, a, partyApp(a))
	for name, at := range map[string]*Node{"here": n, "there": second} { // until each has the code
		for i := 0; ; i++ {
			var r result
			if err := ask(at.URL()+"/fn/reduce", guestOf{Group: fmt.Sprint(name, i), Size: 1}, &r); err != nil {
				t.Fatal(err)
			}
			if r.Node == name {
				break
			}
		}
	}
	playParty(t, false, n, second)
}

// guestOf and result are as the guest has them.
type guestOf struct {
	Group      string
	Rank, Size int
	Agents     bool
}

type result struct {
	Sum   []float64
	Max   []float32
	Node  string
	Heard []string
}

// playParty has six members reduce, at some nodes.
func playParty(t *testing.T, agents bool, nodes ...*Node) {
	const size = 6
	var wg sync.WaitGroup
	results := make([]result, size)
	for rank := range size {
		wg.Go(func() {
			if err := ask(nodes[rank%len(nodes)].URL()+"/fn/reduce", guestOf{"party", rank, size, agents}, &results[rank]); err != nil {
				t.Errorf("rank %d: %v", rank, err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	on := map[string]bool{}
	for rank, r := range results {
		if !slices.Equal(r.Sum, results[0].Sum) || !slices.Equal(r.Max, []float32{size - 1}) {
			t.Errorf("rank %d: %+v", rank, r)
		}
		on[r.Node] = true
	}
	// 1+...+6 thirds, and 19 of each of six members.
	if s := results[0].Sum; len(s) != 2 || s[0] < 120.999 || s[0] > 121.001 || s[1] < 13.999 || s[1] > 14.001 {
		t.Errorf("sums %v", s)
	}
	slices.Sort(results[0].Heard)
	want := []string{"rank 1", "rank 2", "rank 3", "rank 4", "rank 5"}
	if agents {
		want = append([]string{"agent"}, want...)
	}
	if !slices.Equal(results[0].Heard, want) {
		t.Errorf("rank 0 heard %q", results[0].Heard)
	}
	if len(on) != len(nodes) {
		t.Errorf("the members were on %v", on)
	}
}
