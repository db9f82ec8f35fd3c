package api_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"lode"
	"lode/api"
)

// part is what one node of the tests knows by itself.
type part struct {
	*memory
	node  string
	rate  float64
	knows string // a trace
	mu    sync.Mutex
	said  []api.LogLine
	more  chan struct{} // closed and replaced when something was said
	asked []string      // namespaces of the requests that came
}

func newPart(node string, rate float64, lines ...api.LogLine) *part {
	return &part{memory: newMemory(), node: node, rate: rate, said: lines, more: make(chan struct{})}
}

func (p *part) say(l api.LogLine) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.said = append(p.said, l)
	close(p.more)
	p.more = make(chan struct{})
}

func (p *part) ReadLogs(ctx context.Context, _ lode.Namespace, f api.LogFilter, see func(api.LogLine) error) error {
	for at := 0; ; {
		p.mu.Lock()
		all, more := slices.Clone(p.said), p.more
		p.mu.Unlock()
		if f.Tail > 0 && len(all)-at > f.Tail {
			at = len(all) - f.Tail
		}
		for ; at < len(all); at++ {
			if all[at].At.Before(f.Since) {
				continue
			}
			if err := see(all[at]); err != nil {
				return err
			}
		}
		if !f.Follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-more:
		}
	}
}

func (p *part) Top(_ context.Context, ns lode.Namespace) (api.Top, error) {
	p.mu.Lock()
	p.asked = append(p.asked, string(ns))
	p.mu.Unlock()
	return api.Top{Node: p.node, CPU: 1, Rows: []api.TopRow{{Name: "f", Rate: p.rate, P50: time.Duration(p.rate) * time.Millisecond, P99: time.Second, Busy: 1}}}, nil
}

func (p *part) Explain(_ context.Context, _ lode.Namespace, ref string) (api.Explanation, error) {
	if ref != p.knows {
		return api.Explanation{}, lode.Errorf(lode.NotFound, "nothing here is called %s", ref)
	}
	return api.Explanation{Ref: ref, Summary: "seen by " + p.node, Steps: []api.Step{{What: p.node}}, Facts: map[string]string{"node": p.node}}, nil
}

func (p *part) Doctor(context.Context) (api.List[api.Check], error) {
	return api.List[api.Check]{Items: []api.Check{{Name: "disk", State: api.CheckOK, Detail: "fine"}}}, nil
}

func (p *part) ListNames(context.Context, lode.Namespace, api.ItemKind, api.Page) (api.List[api.Item], error) {
	return api.List[api.Item]{Items: []api.Item{{Name: "f", Where: []string{p.node}, Calls: p.rate}}}, nil
}

func (p *part) GetName(context.Context, lode.Namespace, lode.Name) (api.Detail, error) {
	return api.Detail{Item: api.Item{Name: "f", Where: []string{p.node}}, Function: &api.Function{Name: "f", Sandbox: api.SandboxCount{Warm: 2, Busy: 1}}}, nil
}

// peer serves p as the nodes of a cluster do among themselves.
func (p *part) peer(t *testing.T) api.Peer {
	b := p.memory.backend()
	b.Cluster, b.Logs, b.Apps = p, p, p
	// It would go round for ever if it asked others in its turn.
	everywhere := &api.Everywhere{Node: p.node, Own: b, Peers: func() []api.Peer { t.Error("a node that was asked for itself asks others"); return nil }}
	s := api.NewServer(everywhere.Backend())
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := api.WithGrant(api.WithPeer(r.Context(), "a"), api.Grant{Token: "node:a", Role: api.RoleRead})
		s.ServeHTTP(w, r.WithContext(ctx))
	}))
	t.Cleanup(ts.Close)
	c, err := api.New(api.Config{URL: ts.URL, Local: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return api.Peer{Node: p.node, Client: c}
}

// together is the backend of the first part, with the others as peers.
func together(t *testing.T, own *part, others ...*part) (api.Backend, *[]api.Peer) {
	b := own.memory.backend()
	b.Cluster, b.Logs, b.Apps = own, own, own
	var peers []api.Peer
	for _, p := range others {
		peers = append(peers, p.peer(t))
	}
	e := &api.Everywhere{Node: own.node, Own: b, Peers: func() []api.Peer { return peers }}
	return e.Backend(), &peers
}

// gone is a peer that does not answer.
func gone(t *testing.T, node string) api.Peer {
	c, err := api.New(api.Config{URL: "http://127.0.0.1:1", Local: true})
	if err != nil {
		t.Fatal(err)
	}
	return api.Peer{Node: node, Client: c}
}

func at(s int) time.Time { return time.Date(2026, 1, 2, 3, 4, s, 0, time.UTC) }

func line(node string, s int) api.LogLine {
	return api.LogLine{At: at(s), Node: node, Text: fmt.Sprint(node, s)}
}

func TestTopEverywhere(t *testing.T) {
	a, b := newPart("a", 1), newPart("b", 3)
	all, peers := together(t, a, b)
	*peers = append(*peers, gone(t, "c"))
	v, err := all.Cluster.Top(t.Context(), "prod")
	if err != nil || len(v.Rows) != 1 || len(v.Nodes) != 2 || !slices.Equal(v.Missing, []string{"c"}) {
		t.Fatalf("%+v %v", v, err)
	}
	r := v.Rows[0]
	if r.Rate != 4 || r.Busy != 2 || v.CPU != 2 || !slices.Equal(r.Nodes, []string{"a", "b"}) || r.P99 != time.Second {
		t.Errorf("%+v", r)
	}
	if r.P50 != 2500*time.Microsecond { // (1*1 + 3*3) / 4
		t.Errorf("P50 %s", r.P50)
	}
	if !slices.Equal(b.asked, []string{"prod"}) {
		t.Errorf("asked for %v", b.asked)
	}
	// Alone, or asked by another node, it is what it was.
	*peers = nil
	if v, _ := all.Cluster.Top(t.Context(), "prod"); v.Node != "a" || v.Nodes != nil {
		t.Errorf("%+v", v)
	}
}

func TestExplainEverywhere(t *testing.T) {
	a, b, c := newPart("a", 1), newPart("b", 1), newPart("c", 1)
	b.knows, c.knows = "4bf92f35", "4bf92f35"
	all, _ := together(t, a, b, c)
	v, err := all.Cluster.Explain(t.Context(), "default", "4bf92f35")
	if err != nil || len(v.Steps) != 2 || v.Facts["node"] != "b" || v.Summary != "seen by b" {
		t.Errorf("%+v %v", v, err)
	}
	_, err = all.Cluster.Explain(t.Context(), "default", "00000000")
	want(t, err, lode.NotFound)
}

func TestDoctorEverywhere(t *testing.T) {
	all, peers := together(t, newPart("b", 1), newPart("a", 1))
	*peers = append(*peers, gone(t, "c"))
	own, err := all.Cluster.Doctor(t.Context())
	if err != nil || len(own.Items) != 1 || own.Items[0].Node != "" {
		t.Fatalf("%+v %v", own, err)
	}
	l, err := all.Cluster.Doctor(api.WithAllNodes(t.Context()))
	var got []string
	for _, k := range l.Items {
		got = append(got, k.Node+" "+k.Name+" "+k.State)
	}
	if err != nil || !slices.Equal(got, []string{"a disk ok", "b disk ok", "c node fail"}) {
		t.Errorf("%v %v", got, err)
	}
}

func TestNamesEverywhere(t *testing.T) {
	all, _ := together(t, newPart("a", 1), newPart("b", 2))
	l, err := all.Apps.ListNames(t.Context(), "default", "", api.Page{})
	if err != nil || len(l.Items) != 1 || !slices.Equal(l.Items[0].Where, []string{"a", "b"}) || l.Items[0].Calls != 3 {
		t.Errorf("%+v %v", l, err)
	}
	d, err := all.Apps.GetName(t.Context(), "default", "f")
	if err != nil || d.Function.Sandbox.Warm != 4 || d.Function.Sandbox.Busy != 2 || len(d.Where) != 2 {
		t.Errorf("%+v %v", d, err)
	}
}

func TestLogsEverywhere(t *testing.T) {
	a, b := newPart("a", 1, line("a", 1), line("a", 4), line("a", 5)), newPart("b", 1, line("b", 2), line("b", 3), line("b", 6))
	all, peers := together(t, a, b)
	read := func(f api.LogFilter) (texts []string, err error) {
		err = all.Logs.ReadLogs(t.Context(), "default", f, func(l api.LogLine) error { texts = append(texts, l.Text); return nil })
		return texts, err
	}
	if got, err := read(api.LogFilter{}); err != nil || fmt.Sprint(got) != "[a1 b2 b3 a4 a5 b6]" {
		t.Errorf("%v %v", got, err)
	}
	if got, err := read(api.LogFilter{Tail: 2}); err != nil || fmt.Sprint(got) != "[a5 b6]" {
		t.Errorf("%v %v", got, err)
	}
	*peers = []api.Peer{gone(t, "c")}
	got, err := read(api.LogFilter{})
	if err != nil || len(got) != 4 || !strings.HasPrefix(got[3], "lines of this node are missing: cannot reach") {
		t.Errorf("%v %v", got, err)
	}
}

// TestFollowEverywhere: the past in order, then what comes, and what another
// node says after it was away.
func TestFollowEverywhere(t *testing.T) {
	a, b := newPart("a", 1, line("a", 1), line("a", 3)), newPart("b", 1, line("b", 2))
	all, _ := together(t, a, b)
	ctx, cancel := context.WithCancel(t.Context())
	var got []string
	err := all.Logs.ReadLogs(ctx, "default", api.LogFilter{Follow: true, Tail: 2}, func(l api.LogLine) error {
		got = append(got, l.Text)
		switch len(got) {
		case 2: // the past is over
			a.say(line("a", 7))
			b.say(line("b", 6))
		case 4:
			cancel()
		}
		return nil
	})
	if len(got) == 4 && got[2] == "a7" { // a machine may be slow: TestFollowInOrder looks at the order
		got[2], got[3] = got[3], got[2]
	}
	if err != nil || fmt.Sprint(got) != "[b2 a3 b6 a7]" {
		t.Errorf("%v %v", got, err)
	}
}

// TestFollowInOrder: what was said within the hold is put in order, what was
// said later is not waited for.
func TestFollowInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newPart("a", 1), newPart("b", 1)
		ctx, cancel := context.WithCancel(t.Context())
		var got []string
		done := make(chan error)
		go func() {
			done <- api.MergeLogs(ctx, []api.LogSource{{Node: "a", Read: a.read}, {Node: "b", Read: b.read}}, api.LogFilter{Follow: true}, func(l api.LogLine) error {
				got = append(got, l.Text)
				return nil
			})
		}()
		time.Sleep(time.Second)
		a.say(line("a", 7))
		time.Sleep(100 * time.Millisecond)
		b.say(line("b", 6))
		time.Sleep(time.Second)
		b.say(line("b", 5))
		time.Sleep(time.Second)
		a.say(line("a", 8))
		synctest.Wait()
		cancel() // what is held is shown
		if err := <-done; err != nil || fmt.Sprint(got) != "[b6 a7 b5 a8]" {
			t.Errorf("%v %v", got, err)
		}
	})
}

// TestFollowGoesOn: a source that broke is told of once, and read on from where
// it stopped.
func TestFollowGoesOn(t *testing.T) {
	tries := 0
	broken := api.LogSource{Node: "b", Read: func(ctx context.Context, f api.LogFilter, see func(api.LogLine) error) error {
		if !f.Follow {
			return see(line("b", 1))
		}
		if tries++; tries < 2 {
			return lode.Errorf(lode.Unavailable, "gone")
		}
		if !f.Since.Equal(at(1).Add(1)) {
			t.Errorf("since %s", f.Since)
		}
		if err := see(line("b", 9)); err != nil {
			return err
		}
		<-ctx.Done()
		return nil
	}}
	ctx, cancel := context.WithCancel(t.Context())
	var got []string
	err := api.MergeLogs(ctx, []api.LogSource{{Node: "a", Read: newPart("a", 1).read}, broken}, api.LogFilter{Follow: true}, func(l api.LogLine) error {
		got = append(got, l.Text)
		if l.Text == "b9" {
			cancel()
		}
		return nil
	})
	if err != nil || fmt.Sprint(got) != "[b1 lines of this node are missing: gone b9]" {
		t.Errorf("%v %v", got, err)
	}
}

func (p *part) read(ctx context.Context, f api.LogFilter, see func(api.LogLine) error) error {
	return p.ReadLogs(ctx, "default", f, see)
}

func TestCheckNodes(t *testing.T) {
	now := at(50)
	for _, tt := range []struct {
		name string
		list api.NodeList
		want string
	}{
		{"three", api.NodeList{Items: []api.Node{{Name: "a"}, {Name: "b"}, {Name: "c"}}, Cluster: api.ClusterState{Members: []string{"a", "b", "c"}, Answering: 3, Quorum: true, Survives: 1, Keeper: "a"}},
			"[ bus ok: 3 of 3 bus members; an acknowledged write survives 1 node]"},
		{"two", api.NodeList{Items: []api.Node{{Name: "a"}, {Name: "b"}}, Cluster: api.ClusterState{Members: []string{"a"}, Answering: 1, Quorum: true, Keeper: "a"}},
			"[ bus warn: 1 of 1 bus member; an acknowledged write survives a crash, not the loss of a disk]"},
		{"one lost", api.NodeList{Items: []api.Node{{Name: "a"}, {Name: "b", State: api.NodeLost, Link: &api.Link{LostSince: at(40)}}, {Name: "c"}}, Cluster: api.ClusterState{Members: []string{"a", "b", "c"}, Answering: 2, Quorum: true, Keeper: "a"}},
			"[b link fail: lost for 10s  bus warn: 2 of 3 bus members; an acknowledged write survives a crash, not the loss of a disk]"},
		{"no quorum", api.NodeList{Cluster: api.ClusterState{Members: []string{"a", "b", "c"}, Answering: 1}},
			"[ bus fail: 1 of 3 bus members; an acknowledged write survives a crash, not the loss of a disk  keeper fail: there is none: asynchronous calls, queues, schedules and jobs stand still]"},
		{"clock and version", api.NodeList{Items: []api.Node{{Name: "a", Version: "1"}, {Name: "b", Version: "2", Link: &api.Link{Up: true, Skew: -3 * time.Second}}}, Cluster: api.ClusterState{External: "nats://x", Quorum: true, Keeper: "a"}},
			"[b clock warn: is -3s from the answering node's  versions warn: 1 on a; 2 on b  bus ok: the bus is nats://x; an acknowledged write survives what your NATS cluster does]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, k := range api.CheckNodes(tt.list, now) {
				got = append(got, k.Node+" "+k.Name+" "+k.State+": "+k.Detail)
				if (k.State == api.CheckOK) != (k.Advice == "") {
					t.Errorf("%s: advice %q", k.Name, k.Advice)
				}
			}
			if text := "[" + strings.Join(got, " ") + "]"; text != tt.want {
				t.Errorf("got  %s\nwant %s", text, tt.want)
			}
		})
	}
}
