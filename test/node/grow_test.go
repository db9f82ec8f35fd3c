//go:build linux

package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lode"
	"lode/api"
)

// orchard is a cluster that grows and shrinks: nodes by name, each with its
// folder and its ports.
type orchard struct {
	t     *testing.T
	home  string
	nodes map[string]*process
	ports map[string]int
}

func newOrchard(t *testing.T) *orchard {
	return &orchard{t: t, home: t.TempDir(), nodes: map[string]*process{}, ports: map[string]int{}}
}

func (o *orchard) dir(name string) string { return filepath.Join(o.home, name, "data") }

// launch starts a node, and does not wait for it.
func (o *orchard) launch(name string, args ...string) *process {
	o.t.Helper()
	if o.ports[name] == 0 {
		o.ports[name] = freePorts(o.t)
	}
	if err := os.MkdirAll(filepath.Dir(o.dir(name)), 0o755); err != nil {
		o.t.Fatal(err)
	}
	o.nodes[name] = begin(o.t, lab.lode, o.dir(name), nil, append([]string{"--port", fmt.Sprint(o.ports[name]), "--name", name}, args...))
	return o.nodes[name]
}

func (o *orchard) up(name string, args ...string) *process {
	o.t.Helper()
	p := o.launch(name, args...)
	p.ready()
	return p
}

// ticket is what a node needs to join through another.
func (o *orchard) ticket(via string) []string {
	o.t.Helper()
	var k api.JoinToken
	waitFor(o.t, "a join token", func() bool {
		var err error
		k, err = o.nodes[via].c.CreateJoinToken(o.t.Context(), api.JoinSpec{})
		return err == nil
	})
	return []string{"--join", k.Address, "--token", k.Token}
}

func (o *orchard) join(name, via string) *process {
	o.t.Helper()
	return o.up(name, o.ticket(via)...)
}

// gone forgets a node and its folder.
func (o *orchard) gone(name string) {
	o.t.Helper()
	delete(o.nodes, name)
	if err := os.RemoveAll(filepath.Join(o.home, name)); err != nil {
		o.t.Fatal(err)
	}
}

// settled waits until every node that runs sees the same members of the bus,
// so many, all of them answering, all nodes ready, and a keeper.
func (o *orchard) settled(members int) {
	o.t.Helper()
	began := time.Now()
	var last api.NodeList
	var err error
	ok := func() bool {
		for _, p := range o.nodes {
			if last, err = p.c.Nodes(o.t.Context()); err != nil {
				return false
			}
			c := last.Cluster
			if len(c.Members) != members || c.Answering != members || !c.Quorum || c.Moving != "" || o.nodes[c.Keeper] == nil || len(last.Items) != len(o.nodes) {
				return false
			}
			for _, n := range last.Items {
				if n.State != api.NodeReady {
					return false
				}
			}
		}
		return true
	}
	for end := began.Add(patience); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			o.t.Fatalf("the cluster does not settle on %d members: %v %+v", members, err, last)
		}
	}
	o.t.Logf("%d members after %v", members, since(began))
}

// keeper is the name of the node that keeps.
func (o *orchard) keeper() (name string) {
	o.t.Helper()
	waitFor(o.t, "a keeper", func() bool {
		for _, p := range o.nodes {
			if l, err := p.c.Nodes(o.t.Context()); err == nil && o.nodes[l.Cluster.Keeper] != nil {
				name = l.Cluster.Keeper
				return true
			}
		}
		return false
	})
	return name
}

// marking tells the sink that it ran.
const marking = `#include "lode.h"
static char url[512];
static uint32_t at;
static void add(lode_bytes b) { for (uint32_t i = 0; i < b.len && at < sizeof url - 1; i++) url[at++] = b.ptr[i]; url[at] = 0; }
static int run(void) {
	lode_bytes body = lode_body();
	at = 0;
	add(lode_config("MARK").m.body);
	add(lode_text("/mark/"));
	add(body);
	if (lode_fetch("POST", url, "", 0).status) return lode_error("Sink", "the sink does not answer");
	return lode_answer(200, "text/plain", body.ptr, body.len);
}
LODE_EXPORTS(LODE_FUNCTION("", run))
`

// belongings is what a cluster must still have after it has grown.
type belongings struct {
	token   string
	dataset string
}

const growApp = "grow"

// furnish deploys the marking function, with a schedule, an alias, a secret, a
// token and a dataset.
func (o *orchard) furnish(via string, s *sink) belongings {
	o.t.Helper()
	t, p, ctx := o.t, o.nodes[via], o.t.Context()
	a := guestC(t, marking)
	if err := p.upload(a.Wasm); err != nil {
		t.Fatal(err)
	}
	f := function(a)
	f.Env = map[string]string{"MARK": s.URL}
	f.Egress = lode.Egress{Mode: "list", Allow: []string{"127.0.0.1"}}
	f.Retry.Attempts = 10
	f.Limits.ScaleMax, f.Limits.QueueMax = 2, 100_000
	tick := f
	tick.Env = map[string]string{"MARK": s.URL + "/tick"}
	tick.Schedules = []lode.Schedule{{Cron: "@every 1s"}}
	app := lode.App{Name: growApp, Functions: map[lode.Name]lode.Function{"mark": f, "ticks": tick}}
	if _, err := p.c.Deploy(ctx, app, api.DeployOptions{}); err != nil {
		t.Fatal(err)
	}
	p.must("", "alias", "mark", "steady=1")
	p.must("kept", "secret", "set", "KEPT")
	tok, err := p.c.CreateToken(ctx, api.TokenSpec{Role: api.RoleCall})
	if err != nil {
		t.Fatal(err)
	}
	b := belongings{token: tok.Secret, dataset: strings.Repeat("a line\n", 50_000)}
	if _, err := p.c.PutStream(ctx, "kept", api.PutOptions{Records: lode.RecordsLines, Shard: 64 << 10}, "kept", strings.NewReader(b.dataset)); err != nil {
		t.Fatal(err)
	}
	return b
}

// has checks that a node has everything.
func (o *orchard) has(name string, b belongings, s *sink) {
	o.t.Helper()
	t, p, ctx := o.t, o.nodes[name], o.t.Context()
	d, err := p.c.GetName(ctx, "mark")
	if err != nil || d.Function == nil || !strings.Contains(fmt.Sprintf("%+v", *d.Function), "steady") {
		t.Errorf("%s: function mark: %+v %v", name, d, err)
	}
	if l, err := p.c.ListSecrets(ctx, api.Page{}); err != nil || !slices.ContainsFunc(l.Items, func(x api.Secret) bool { return string(x.Name) == "KEPT" }) {
		t.Errorf("%s: secrets %+v %v", name, l, err)
	}
	r, err := p.c.ReadDataset(ctx, "kept", api.ReadOptions{})
	if err == nil {
		var got []byte
		got, err = io.ReadAll(r.Body)
		r.Body.Close()
		if err == nil && string(got) != b.dataset {
			err = fmt.Errorf("%d bytes", len(got))
		}
	}
	if err != nil {
		t.Errorf("%s: dataset kept: %v", name, err)
	}
	c, err := api.New(api.Config{URL: p.url, Token: b.token})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.WhoAmI(ctx); err != nil {
		t.Errorf("%s: the token: %v", name, err)
	}
	if status, body, _ := p.do(http.MethodPost, "/fn/mark", bearer(p), "at-"+name); status != 200 {
		t.Errorf("%s: mark answers %d %s", name, status, body)
	}
	n := s.ticks()
	p.wait("the schedule", func() bool { return s.ticks() > n })
}

// ticks is how often the schedule ran.
func (s *sink) ticks() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for path, times := range s.seen {
		if strings.HasPrefix(path, "/tick") {
			n += times
		}
	}
	return n
}

// tasks are asynchronous calls, by what they tell the sink.
type tasks struct {
	mu   sync.Mutex
	ids  map[string]lode.InvocationID
	next atomic.Int64
}

// submit queues n of them over a few connections, each again until it is
// acknowledged, under one idempotency key.
func (k *tasks) submit(ctx context.Context, n int, via func() *process) error {
	k.mu.Lock()
	if k.ids == nil {
		k.ids = map[string]lode.InvocationID{}
	}
	k.mu.Unlock()
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for w := range errs {
		wg.Go(func() {
			c := &http.Client{Transport: &http.Transport{}, Timeout: 15 * time.Second}
			defer c.CloseIdleConnections()
			for range n / len(errs) {
				name := fmt.Sprint("t", k.next.Add(1))
				for {
					id, err := enqueue(ctx, c, via(), name)
					if err == nil {
						k.mu.Lock()
						k.ids[name] = id
						k.mu.Unlock()
						break
					}
					if ctx.Err() != nil {
						errs[w] = errors.Join(ctx.Err(), err)
						return
					}
					time.Sleep(50 * time.Millisecond)
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// bearer is the header of a request that a node's own token allows.
func bearer(p *process) http.Header { return http.Header{"Authorization": {"Bearer " + p.token}} }

func enqueue(ctx context.Context, c *http.Client, p *process, name string) (lode.InvocationID, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url+"/fn/mark", strings.NewReader(name))
	if err != nil {
		return "", err
	}
	req.Header = bearer(p)
	req.Header.Set("Prefer", "respond-async")
	req.Header.Set("Idempotency-Key", name)
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusAccepted {
		return "", fmt.Errorf("%s: %s", resp.Status, b)
	}
	return lode.InvocationID(resp.Header.Get("Lode-Invocation")), nil
}

// done waits until all have run, and says how many ran more than once.
func (k *tasks) done(t *testing.T, s *sink) (doubled int) {
	t.Helper()
	began := time.Now()
	ran := 0
	for end := began.Add(2 * patience); ; time.Sleep(100 * time.Millisecond) {
		ran, doubled = 0, 0
		for name := range k.ids {
			if n := s.count("/mark/" + name); n > 0 {
				ran++
				if n > 1 {
					doubled++
				}
			}
		}
		if ran == len(k.ids) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d of %d tasks are lost", len(k.ids)-ran, len(k.ids))
		}
	}
	t.Logf("%d tasks ran, %d more than once; the last %v after all was settled", ran, doubled, since(began))
	return doubled
}

// writing sets a secret again and again; the longest time between two that
// came through is what growing costs.
func writing(t *testing.T, via func() *process) (stop func() (longest time.Duration, refused int)) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	var longest time.Duration
	refused := 0
	go func() {
		defer close(done)
		last := time.Now()
		for i := 0; ctx.Err() == nil; i++ {
			if err := via().c.SetSecret(ctx, "OFTEN", fmt.Append(nil, i)); ctx.Err() != nil {
				return
			} else if err != nil {
				refused++
				time.Sleep(10 * time.Millisecond)
				continue
			}
			longest = max(longest, time.Since(last))
			last = time.Now()
		}
	}()
	return func() (time.Duration, int) {
		cancel()
		<-done
		return longest, refused
	}
}

// TestGrowLoaded grows from one node to three and to five under load, with
// 10,000 queued tasks: none is lost or doubled, writes do not fail, and each
// node has everything afterwards.
func TestGrowLoaded(t *testing.T) {
	o, s := newOrchard(t), newSink(t)
	a := o.up("a")
	b := o.furnish("a", s)
	var k tasks
	const queued = 10_000
	began := time.Now()
	if err := k.submit(t.Context(), queued, func() *process { return a }); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d tasks queued in %v", queued, since(began))
	stop := writing(t, func() *process { return a })
	o.join("b", "a")
	o.join("c", "a")
	o.settled(3)
	longest, refused := stop()
	t.Logf("the longest time without a write: %v; refused: %d", longest.Round(time.Millisecond), refused)
	if refused > 0 || longest > 10*time.Second {
		t.Errorf("writes failed (%d) or waited too long (%v)", refused, longest)
	}
	if d := k.done(t, s); d > 0 {
		t.Errorf("%d tasks ran more than once though nothing was killed", d)
	}
	for name := range o.nodes {
		o.has(name, b, s)
	}
	o.join("d", "b")
	o.join("e", "c")
	o.settled(5)
	for name := range o.nodes {
		o.has(name, b, s)
	}
}

// TestGrowKilled kills the first node, a joiner and the keeper at random moments
// while the cluster grows, and starts them again: what was acknowledged is
// kept, and all tasks run.
func TestGrowKilled(t *testing.T) {
	for round := range rounds(2) {
		t.Run(fmt.Sprint(round), func(t *testing.T) { growKilled(t, round) })
	}
}

func growKilled(t *testing.T, round int) {
	o, s := newOrchard(t), newSink(t)
	o.up("a")
	b := o.furnish("a", s)
	var current atomic.Pointer[process]
	current.Store(o.nodes["a"])
	var k tasks
	var load sync.WaitGroup
	load.Go(func() {
		if err := k.submit(t.Context(), 400, current.Load); err != nil {
			t.Error(err)
		}
	})
	victims := []string{"a", "b", "c", "keeper"}
	victim := victims[(round+rand.IntN(2)*2)%len(victims)]
	pause := time.Duration(rand.IntN(5000)) * time.Millisecond
	t.Logf("kill %s after %v", victim, pause)
	for _, name := range []string{"b", "c"} {
		if victim == name {
			p := o.launch(name, o.ticket("a")...)
			time.Sleep(pause / 5)
			o.rejoin(p, name)
			continue
		}
		o.join(name, "a")
	}
	if victim == "a" || victim == "keeper" {
		time.Sleep(pause)
		if victim == "keeper" {
			victim = o.keeper()
		}
		o.nodes[victim].kill()
		o.up(victim)
		if victim == "a" {
			current.Store(o.nodes["a"])
		}
	}
	o.settled(3)
	load.Wait()
	k.done(t, s)
	for name := range o.nodes {
		o.has(name, b, s)
	}
}

// rejoin kills a node while it joins, and starts it again: with the same
// folder if it has joined, else as a new one.
func (o *orchard) rejoin(p *process, name string) {
	o.t.Helper()
	p.kill()
	if _, err := os.Stat(filepath.Join(p.dir, "admin.token")); err == nil {
		again := o.launch(name)
		waitFor(o.t, "it to serve, or to end", func() bool { return again.ended() || readyLine.MatchString(again.out.String()) })
		if l, err := o.nodes["a"].c.Nodes(o.t.Context()); err == nil && !again.ended() && slices.ContainsFunc(l.Items, func(n api.Node) bool { return n.Name == name }) {
			again.ready()
			return
		}
		again.kill()
	}
	time.Sleep(time.Second) // what it asked for when it was killed may still come
	waitFor(o.t, "it to be removed, if it came so far", func() bool {
		l, err := o.nodes["a"].c.Nodes(o.t.Context())
		if err == nil && !slices.ContainsFunc(l.Items, func(n api.Node) bool { return n.Name == name }) {
			return true
		}
		o.nodes["a"].lode("", "nodes", "rm", name, "--force")
		return false
	})
	if err := os.RemoveAll(filepath.Join(o.home, name)); err != nil {
		o.t.Fatal(err)
	}
	o.join(name, "a")
}

// TestShrink drains, removes and replaces nodes, dead and alive.
func TestShrink(t *testing.T) {
	o, s := newOrchard(t), newSink(t)
	o.up("a")
	b := o.furnish("a", s)
	o.join("b", "a")
	o.join("c", "b")
	o.settled(3)

	// The keeper is drained until it is empty, stopped, removed, and a fresh
	// node takes its place under its name.
	old := o.keeper()
	var other string
	for name := range o.nodes {
		if name != old {
			other = name
		}
	}
	o.nodes[other].must("", "drain", old, "--timeout", "1m")
	o.nodes[old].stop()
	o.gone(old)
	o.nodes[other].must("", "nodes", "rm", old)
	o.settled(1)
	o.join(old, other)
	o.settled(3)
	o.has(old, b, s)

	// A fourth node takes the seat of one that dies.
	o.join("d", other)
	o.settled(3)
	l, err := o.nodes[other].c.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var victim string
	for _, m := range l.Cluster.Members {
		if m != other && m != l.Cluster.Keeper {
			victim = m
		}
	}
	o.bury(victim, other)
	o.settled(3)

	// Of three, one dies: two are left, and one member.
	for name := range o.nodes {
		if name != other && name != o.keeper() {
			victim = name
		}
	}
	o.bury(victim, other)
	o.settled(1)
	for name := range o.nodes {
		o.has(name, b, s)
	}

	// A member whose folder is wiped comes back as a new node.
	o.join(victim, other)
	o.settled(3)
	o.nodes[victim].kill()
	o.lost(victim, other)
	o.nodes[other].must("", "nodes", "rm", victim)
	o.gone(victim)
	o.join(victim, other)
	o.settled(3)
	for name := range o.nodes {
		o.has(name, b, s)
	}
}

// bury kills a node for good and removes it.
func (o *orchard) bury(name, via string) {
	o.t.Helper()
	o.nodes[name].kill()
	o.gone(name)
	o.lost(name, via)
	o.nodes[via].wait(name+" to be removed", func() bool { // that takes a majority, which another move may keep busy
		out, errs, code := o.nodes[via].lode("", "nodes", "rm", name)
		if code != 0 && code != lode.Unavailable.ExitCode() {
			o.t.Fatalf("lode nodes rm %s: code %d\n%s%s", name, code, out, errs)
		}
		return code == 0
	})
}

// lost waits until a node is seen to be gone.
func (o *orchard) lost(name, via string) {
	o.t.Helper()
	o.nodes[via].wait(name+" to be lost", func() bool {
		n, err := o.nodes[via].c.GetNode(o.t.Context(), name)
		return err == nil && n.State == api.NodeLost
	})
}
