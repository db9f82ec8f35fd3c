package node

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lode"
	"lode/api"
	"lode/cmd/build"
)

// flock is three nodes in this process, with a kind of counters.
type flock struct {
	t     *testing.T
	parts int // of the kind counter
	dirs  map[string]string

	mu    sync.Mutex
	nodes map[string]*Node
}

// node is the last life of a node; nil: it has had none.
func (f *flock) node(name string) *Node {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.nodes[name]
}

func newFlock(t *testing.T) *flock {
	t.Helper()
	if _, err := exec.LookPath("clang"); err != nil {
		t.Skip("no clang")
	}
	as, err := build.Build(t.Context(), build.Source{Path: "../bench/guests/counter-c", Name: "counter"})
	if err != nil {
		t.Fatal(err)
	}
	f := &flock{t: t, parts: 15, nodes: map[string]*Node{}, dirs: map[string]string{}}
	if os.Getenv("LODE_LONG") != "" {
		f.parts = 64
	}
	f.open("a")
	c, err := api.New(api.Config{URL: f.node("a").URL(), Token: f.node("a").Token()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fn := spec(as[0])
	fn.Agent = &lode.AgentSpec{Class: "counter", Partitions: f.parts, Methods: []string{"add", "get"}, Read: []string{"get"}}
	fn.Reuse = true
	near := fn
	near.Agent = &lode.AgentSpec{Class: "counter", Partitions: 8, Methods: fn.Agent.Methods, Read: fn.Agent.Read, Near: "disk=fast"}
	deploy(t, c, as[0], lode.App{Name: "shop", Agents: map[lode.Name]lode.Function{"counter": fn, "pinned": near}})
	return f
}

// open starts a node: the first one, one that joins, or one again.
func (f *flock) open(name string) {
	f.t.Helper()
	cfg := Config{Dir: f.dirs[name], Listen: "127.0.0.1:0", Name: name}
	if name == "c" {
		cfg.Labels = map[string]string{"disk": "fast"}
	}
	if first := f.node("a"); cfg.Dir == "" && first != nil {
		k, err := nodes{first}.CreateJoinToken(f.t.Context(), api.JoinSpec{})
		if err != nil {
			f.t.Fatal(err)
		}
		cfg.Join = func(context.Context) (string, string, error) { return first.cfg.Peers, k.Token, nil }
	} else if was := f.node(name); was != nil {
		cfg.Listen, cfg.Peers, cfg.Routes = was.cfg.Listen, was.cfg.Peers, was.cfg.Routes
	}
	if cfg.Dir == "" {
		cfg.Dir = f.t.TempDir()
	}
	n, err := Open(f.t.Context(), cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	f.mu.Lock()
	f.nodes[name], f.dirs[name] = n, cfg.Dir
	f.mu.Unlock()
	f.t.Cleanup(func() { f.close(n) })
}

func (f *flock) close(n *Node) {
	if err := n.Close(context.Background()); err != nil {
		f.t.Error(err)
	}
}

// counts is how many partitions each node has.
func (f *flock) counts() string {
	var out []string
	for _, name := range []string{"a", "b", "c"} {
		if n := f.node(name); n != nil {
			out = append(out, fmt.Sprintf("%s %d", name, n.agents.Stats().Partitions))
		}
	}
	return strings.Join(out, ", ")
}

// until waits until each node has a number of partitions between two bounds,
// and all of them together have all.
func (f *flock) until(what string, most time.Duration, bounds map[string][2]int) {
	f.t.Helper()
	began := time.Now()
	for {
		ok, sum := true, 0
		for name, b := range bounds {
			n := f.node(name).agents.Stats().Partitions
			ok, sum = ok && n >= b[0] && n <= b[1], sum+n
		}
		if ok && sum == f.parts {
			f.t.Logf("%s after %v: %s", what, time.Since(began).Round(10*time.Millisecond), f.counts())
			return
		}
		if time.Since(began) > most {
			why := ""
			for _, name := range []string{"a", "b", "c"} {
				n := f.node(name)
				if n == nil {
					continue
				}
				if r := n.balance.Load(); r != nil {
					r.mu.Lock()
					why = r.why
					r.mu.Unlock()
				}
			}
			f.t.Fatalf("%s: not after %v: %s; %s", what, most, f.counts(), why)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// adders call counters of all nodes until they are stopped.
type adders struct {
	f      *flock
	mu     sync.Mutex
	doors  []string // nodes that are called
	told   [512]atomic.Int64
	calls  atomic.Int64
	failed atomic.Int64
	stop   context.CancelFunc
	work   sync.WaitGroup
}

func (f *flock) add(doors ...string) *adders {
	ctx, cancel := context.WithCancel(f.t.Context())
	a := &adders{f: f, stop: cancel, doors: doors}
	f.t.Cleanup(func() {
		cancel()
		a.work.Wait()
	})
	for w := range 4 {
		a.work.Go(func() {
			for i := w; ctx.Err() == nil; i++ {
				a.one(i)
				time.Sleep(2 * time.Millisecond)
			}
		})
	}
	return a
}

func (a *adders) call(i int, method, body string) (*lode.AgentReply, error) {
	a.mu.Lock()
	n := a.f.node(a.doors[i%len(a.doors)])
	a.mu.Unlock()
	return n.Agents().Call(a.f.t.Context(), &lode.AgentCall{Namespace: lode.DefaultNamespace, Kind: "counter", Key: fmt.Sprint(i % len(a.told)), Method: method, Body: []byte(body)})
}

func (a *adders) one(i int) {
	a.calls.Add(1)
	r, err := a.call(i, "add", "1")
	if a.f.t.Context().Err() != nil {
		return // the test has failed
	}
	if err != nil || r.Status != 200 {
		if a.failed.Add(1) <= 5 {
			a.f.t.Errorf("call %d: %+v, %v", i, r, err)
		}
		return
	}
	a.told[i%len(a.told)].Add(1)
}

// through has the nodes of these names be called from now on.
func (a *adders) through(doors ...string) {
	a.mu.Lock()
	a.doors = doors
	a.mu.Unlock()
}

// check stops, and compares all counters with what was told.
func (a *adders) check() {
	a.f.t.Helper()
	a.stop()
	a.work.Wait()
	for i := range a.told {
		r, err := a.call(i, "get", "[]")
		if err != nil {
			a.f.t.Fatal(err)
		}
		if n, _ := strconv.ParseInt(string(r.Body), 10, 64); n != a.told[i].Load() {
			a.f.t.Errorf("counter %d is at %s; %d calls were acknowledged", i, r.Body, a.told[i].Load())
		}
	}
	a.f.t.Logf("%d calls, %d failed", a.calls.Load(), a.failed.Load())
}

// TestRebalance: partitions come to nodes that join, leave one that drains, and
// come back to it, while they are called: no call fails, none counts twice.
func TestRebalance(t *testing.T) {
	f := newFlock(t)
	a := f.add("a")
	f.until("one node has all", 2*time.Minute, map[string][2]int{"a": {f.parts, f.parts}})
	f.open("b")
	f.open("c")
	a.through("a", "b", "c")
	share := [2]int{f.parts/3 - 1, f.parts/3 + 2}
	even := map[string][2]int{"a": share, "b": share, "c": share}
	f.until("three nodes", 2*time.Minute, even)

	ctx := t.Context()
	if _, err := (nodes{f.node("a")}).DrainNode(ctx, "b", 0); err != nil {
		t.Fatal(err)
	}
	f.until("b drains", 2*time.Minute, map[string][2]int{"a": {1, f.parts}, "b": {0, 0}, "c": {1, f.parts}})
	if _, err := (nodes{f.node("a")}).UndrainNode(ctx, "b"); err != nil {
		t.Fatal(err)
	}
	f.until("b is back", 2*time.Minute, even)
	if os.Getenv("LODE_LONG") != "" {
		f.stopped(a, "b", even)
		f.stopped(a, "c", even)
		f.stopped(a, "a", even)
	}
	a.check()
	f.near()
	f.explained()
}

// near: partitions of a kind come to the node that it wants to be near.
func (f *flock) near() {
	f.t.Helper()
	on := map[lode.NodeID]int{}
	for end := time.Now().Add(2 * time.Minute); on["c"] < 8; {
		if time.Now().After(end) {
			f.t.Fatalf("near c are %v", on)
		}
		clear(on)
		for i := range 64 {
			key := fmt.Sprint(i)
			if _, err := f.node("b").Agents().Call(f.t.Context(), &lode.AgentCall{Namespace: lode.DefaultNamespace, Kind: "pinned", Key: key, Method: "get"}); err != nil {
				f.t.Fatal(err)
			}
		}
		parts, err := f.node("b").agents.Parts(f.t.Context(), lode.DefaultNamespace, "pinned")
		if err != nil {
			f.t.Fatal(err)
		}
		for _, p := range parts {
			on[p.Node]++
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// explained: some node says what would move an agent.
func (f *flock) explained() {
	f.t.Helper()
	x, err := f.node("b").everywhere().Agents.ExplainAgent(f.t.Context(), lode.DefaultNamespace, "counter", "7")
	if err != nil {
		f.t.Fatal(err)
	}
	for _, st := range x.Steps {
		if st.What == "it stays where it is" || st.What == "partitions are being spread" || st.What == "no partition is moved for now" || strings.Contains(st.What, "would save") {
			return
		}
	}
	f.t.Errorf("nobody says what would move an agent: %+v", x.Steps)
}

// stopped stops a node, and starts it again when the others have its
// partitions.
func (f *flock) stopped(a *adders, name string, even map[string][2]int) {
	f.t.Helper()
	var rest []string
	bounds := map[string][2]int{}
	for _, other := range []string{"a", "b", "c"} {
		if other != name {
			rest = append(rest, other)
			bounds[other] = [2]int{1, f.parts}
		}
	}
	a.through(rest...)
	f.close(f.node(name))
	f.until(name+" is stopped", 2*time.Minute, bounds)
	f.open(name)
	f.until(name+" returns", 2*time.Minute, even)
	a.through("a", "b", "c")
}
