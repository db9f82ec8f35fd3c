package api_test

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"lode"
	"lode/api"
)

// machines is a cluster in memory: what stands behind api.Nodes in the tests.
type machines struct {
	mu    sync.Mutex
	nodes map[lode.NodeID]*api.Node
	joins map[string]api.Token
}

func newMachines(names ...string) *machines {
	m := &machines{nodes: map[lode.NodeID]*api.Node{}, joins: map[string]api.Token{}}
	for i, n := range names {
		node := &api.Node{Name: n, State: api.NodeReady, Bus: api.BusMember, Running: 2, GPU: []string{}, Version: "1"}
		if i > 0 {
			node.Link = &api.Link{Up: true, RTT: time.Millisecond}
		}
		m.nodes[lode.NodeID(n)] = node
	}
	return m
}

func (m *machines) ListNodes(context.Context) (api.NodeList, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var l api.NodeList
	for _, n := range m.nodes {
		l.Items = append(l.Items, *n)
		l.Cluster.Members = append(l.Cluster.Members, n.Name)
	}
	slices.SortFunc(l.Items, func(a, b api.Node) int { return strings.Compare(a.Name, b.Name) })
	slices.Sort(l.Cluster.Members)
	l.Cluster.Answering, l.Cluster.Quorum = len(l.Items), true
	l.Cluster.Survives, l.Cluster.Keeper, l.Cluster.Generation = (len(l.Items)-1)/2, "a", 3
	return l, nil
}

// with finds a node.
func (m *machines) with(name lode.NodeID, do func(*api.Node) error) (api.Node, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.nodes[name]
	if n == nil {
		return api.Node{}, lode.Errorf(lode.NotFound, "no node %s", name)
	}
	err := do(n)
	return *n, err
}

func (m *machines) GetNode(_ context.Context, name lode.NodeID) (api.Node, error) {
	return m.with(name, func(*api.Node) error { return nil })
}

// DrainNode ends one invocation each time it is asked.
func (m *machines) DrainNode(_ context.Context, name lode.NodeID, wait time.Duration) (api.Node, error) {
	return m.with(name, func(n *api.Node) error {
		if n.State = api.NodeDraining; n.Running > 0 && wait > 0 {
			n.Running--
		}
		if n.Running == 0 {
			n.State = api.NodeDrained
		}
		return nil
	})
}

func (m *machines) UndrainNode(_ context.Context, name lode.NodeID) (api.Node, error) {
	return m.with(name, func(n *api.Node) error { n.State = api.NodeReady; return nil })
}

func (m *machines) RemoveNode(_ context.Context, name lode.NodeID, force bool) error {
	n, err := m.with(name, func(n *api.Node) error {
		if n.State == api.NodeReady && !force {
			return lode.Errorf(lode.Precondition, "%s is ready", name).WithHint("drain it first: lode drain %s", name)
		}
		return nil
	})
	if err == nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.nodes, lode.NodeID(n.Name))
	}
	return err
}

func (m *machines) CreateJoinToken(_ context.Context, s api.JoinSpec) (api.JoinToken, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := api.Token{ID: api.JoinPrefix + "01", Join: true, Uses: s.Uses, Expires: time.Now().Add(s.For)}
	m.joins[t.ID] = t
	token := "lj1." + strings.Repeat("0", 64) + ".secret"
	return api.JoinToken{ID: t.ID, Token: token, Uses: s.Uses, Expires: t.Expires, Address: "10.0.0.1:5633", Command: api.JoinCommand("10.0.0.1:5633", token, false)}, nil
}

func (m *machines) ListJoinTokens(context.Context) ([]api.Token, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []api.Token
	for _, t := range m.joins {
		out = append(out, t)
	}
	return out, nil
}

func (m *machines) RevokeJoinToken(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.joins, id)
	return nil
}

func (m *machines) CheckCluster(context.Context) ([]api.Check, error) {
	return []api.Check{{Name: "copies", State: api.CheckOK, Detail: "every shard has two"}}, nil
}

var _ api.Nodes = (*machines)(nil)

func TestNodes(t *testing.T) {
	w := newWorldOf(t, newMachines("a", "b", "c"))
	ctx := t.Context()
	l, err := w.Client.Nodes(ctx)
	if err != nil || len(l.Items) != 3 || l.Cluster.Survives != 1 || l.Cluster.Keeper != "a" || l.Items[0].Link != nil || !l.Items[1].Link.Up {
		t.Fatalf("%+v %v", l, err)
	}
	if n, err := w.Client.GetNode(ctx, "b"); err != nil || n.Running != 2 {
		t.Fatalf("%+v %v", n, err)
	}
	_, err = w.Client.GetNode(ctx, "d")
	want(t, err, lode.NotFound)
	_, err = w.Client.GetNode(ctx, "No Name")
	want(t, err, lode.Invalid)
	want(t, w.Client.RemoveNode(ctx, "b", false), lode.Precondition)
	if n, err := w.Client.DrainNode(ctx, "b", 0); err != nil || n.State != api.NodeDraining || n.Empty() {
		t.Fatalf("%+v %v", n, err)
	}
	for range 2 {
		if _, err := w.Client.DrainNode(ctx, "b", time.Second); err != nil {
			t.Fatal(err)
		}
	}
	if n, _ := w.Client.GetNode(ctx, "b"); !n.Empty() {
		t.Fatalf("not empty: %+v", n)
	}
	if n, err := w.Client.UndrainNode(ctx, "b"); err != nil || n.State != api.NodeReady {
		t.Fatalf("%+v %v", n, err)
	}
	if err := w.Client.RemoveNode(ctx, "b", true); err != nil {
		t.Fatal(err)
	}
	if l, _ := w.Client.Nodes(ctx); len(l.Items) != 2 {
		t.Errorf("%+v", l)
	}
	checks, err := w.Client.DoctorCluster(ctx)
	want(t, err, lode.Internal) // the memory's own doctor fails
	if len(checks.Items) != 0 {
		t.Errorf("%+v", checks)
	}
}

func TestJoinTokens(t *testing.T) {
	w := newWorldOf(t, newMachines("a"))
	ctx := t.Context()
	k, err := w.Client.CreateJoinToken(ctx, api.JoinSpec{})
	if err != nil || k.Uses != 1 || time.Until(k.Expires) > api.StdJoinFor || !strings.Contains(k.Command, "--join 10.0.0.1 --token lj1.") {
		t.Fatalf("%+v %v", k, err)
	}
	for _, s := range []api.JoinSpec{{Uses: -1}, {Uses: 101}, {For: -1 * time.Second}, {For: 8 * 24 * time.Hour}, {For: 100 * 365 * 24 * time.Hour}} {
		_, err := w.Client.CreateJoinToken(ctx, s)
		want(t, err, lode.Invalid)
	}
	if k, err = w.Client.CreateJoinToken(ctx, api.JoinSpec{Uses: 3, For: time.Minute}); err != nil || k.Uses != 3 {
		t.Fatalf("%+v %v", k, err)
	}
	l, err := w.Client.ListTokens(ctx, api.Page{})
	if err != nil || !slices.ContainsFunc(l.Items, func(k api.Token) bool { return k.Join && k.Uses == 3 }) {
		t.Fatalf("%+v %v", l, err)
	}
	// Who is of one namespace, or no admin, neither sees nor makes them.
	one := w.as(api.TokenSpec{Role: api.RoleAdmin, Namespace: "prod"}, "")
	l, _ = one.ListTokens(ctx, api.Page{})
	if slices.ContainsFunc(l.Items, func(k api.Token) bool { return k.Join }) {
		t.Error("an admin of one namespace sees join tokens")
	}
	_, err = one.CreateJoinToken(ctx, api.JoinSpec{})
	want(t, err, lode.Denied)
	want(t, one.RevokeToken(ctx, k.ID), lode.Denied)
	_, err = one.DrainNode(ctx, "a", 0)
	want(t, err, lode.Denied)
	_, err = w.as(api.TokenSpec{Role: api.RoleDeploy}, "").CreateJoinToken(ctx, api.JoinSpec{})
	want(t, err, lode.Denied)
	if err := w.Client.RevokeToken(ctx, k.ID); err != nil {
		t.Fatal(err)
	}
	l, _ = w.Client.ListTokens(ctx, api.Page{})
	if slices.ContainsFunc(l.Items, func(k api.Token) bool { return k.Join }) {
		t.Error("a revoked join token is listed")
	}
}

// TestNodesOfOne: without the noun the list is there and nothing else.
func TestNodesOfOne(t *testing.T) {
	w := newWorld(t)
	l, err := w.Client.Nodes(t.Context())
	if err != nil || len(l.Items) != 1 || l.Items[0].Name != "n" {
		t.Fatalf("%+v %v", l, err)
	}
	_, err = w.Client.DrainNode(t.Context(), "n", 0)
	want(t, err, lode.Unavailable)
}

func TestAWSKeys(t *testing.T) {
	id, _ := api.MintToken()
	access := api.AWSAccessKey(id)
	if got, ok := api.AWSTokenID(access); !ok || got != id || len(access) != 20 || len(api.MintAWSSecret()) != 40 {
		t.Errorf("%s of %s is %s %v", access, id, got, ok)
	}
	for _, bad := range []string{"", "LODE", "AKIAIOSFODNN7EXAMPLE", strings.ToLower(access), access + "0", "LODE" + strings.Repeat("G", 16)} {
		if id, ok := api.AWSTokenID(bad); ok {
			t.Errorf("%q is the key of %s", bad, id)
		}
	}
}

func TestLocalIsForNodes(t *testing.T) {
	var local []bool
	b := api.Backend{Cluster: seen{func(ctx context.Context) { local = append(local, api.IsLocal(ctx)) }}}
	s := api.NewServer(b)
	ask := func(ctx context.Context, header string) {
		r, _ := http.NewRequestWithContext(api.WithGrant(ctx, api.Grant{Role: api.RoleRead}), "GET", "/v1/top", nil)
		r.Header.Set("Lode-Local", header)
		s.ServeHTTP(discard{http.Header{}}, r)
	}
	peer := api.WithPeer(t.Context(), "b")
	ask(t.Context(), "1")
	ask(peer, "1")
	ask(peer, "")
	if !slices.Equal(local, []bool{false, true, false}) {
		t.Errorf("%v", local)
	}
}

type discard struct{ h http.Header }

func (d discard) Header() http.Header         { return d.h }
func (d discard) Write(p []byte) (int, error) { return len(p), nil }
func (d discard) WriteHeader(int)             {}

// seen is a Cluster whose Top tells of its context.
type seen struct{ tell func(context.Context) }

func (s seen) Top(ctx context.Context, _ lode.Namespace) (api.Top, error) {
	s.tell(ctx)
	return api.Top{}, nil
}
func (s seen) Explain(context.Context, lode.Namespace, string) (api.Explanation, error) {
	return api.Explanation{}, nil
}
func (s seen) Nodes(context.Context) (api.List[api.Node], error)   { return api.List[api.Node]{}, nil }
func (s seen) Doctor(context.Context) (api.List[api.Check], error) { return api.List[api.Check]{}, nil }
func (s seen) Version(context.Context) (api.Version, error)        { return api.Version{}, nil }
