package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"lode"
	"lode/api"
)

const parts = 4 // of each kind of the tests

// register is who owns what, as all nodes see it.
type register struct {
	mu    sync.Mutex
	owner map[int]string // of partitions; none: nobody
}

func (r *register) of(n int) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.owner[n]
}

// keeper is the agents of one node, in memory.
type keeper struct {
	node  string
	reg   *register
	mu    sync.Mutex
	state map[string]map[string][]byte // by key of the agent
	waits []api.Wait
	asked []string // methods
	moved int      // times that it says that it is the owner no more
}

func newKeeper(node string, reg *register) *keeper {
	return &keeper{node: node, reg: reg, state: map[string]map[string][]byte{}}
}

// mine refuses what is of a partition of another node, and takes what is of
// nobody's.
func (k *keeper) mine(what, key string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked = append(k.asked, what)
	k.reg.mu.Lock()
	defer k.reg.mu.Unlock()
	n := lode.PartitionOf(key, parts)
	if k.reg.owner[n] == "" {
		k.reg.owner[n] = k.node
	}
	if k.reg.owner[n] == k.node && k.moved == 0 {
		return nil
	}
	k.moved = max(k.moved-1, 0)
	e := lode.Errorf(lode.Unavailable, "partition %d is not of node %s", n, k.node)
	e.RetryAfter = time.Millisecond
	return e
}

func (k *keeper) Where(_ context.Context, _ lode.Namespace, kind lode.Name, key string) (api.AgentPlace, error) {
	if kind != "cart" {
		return api.AgentPlace{}, lode.Errorf(lode.NotFound, "no kind of agents is named %s", kind)
	}
	n := lode.PartitionOf(key, parts)
	return api.AgentPlace{Partition: n, Partitions: parts, Node: lode.NodeID(k.reg.of(n))}, nil
}

func (k *keeper) ListPartitions(context.Context, lode.Namespace, lode.Name) ([]api.Partition, error) {
	var out []api.Partition
	for n := range parts {
		p := api.Partition{Kind: "cart", N: n, Owner: k.reg.of(n), State: api.PartitionFree}
		if p.Owner != "" {
			p.State = api.PartitionOwned
		}
		if p.Owner == k.node {
			p.Answered = true
			p.Agents = int64(len(k.keys(n)))
		}
		out = append(out, p)
	}
	return out, nil
}

func (k *keeper) keys(partition int) (out []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(k.state)) {
		if partition < 0 || lode.PartitionOf(key, parts) == partition {
			out = append(out, key)
		}
	}
	return out
}

func (k *keeper) ListAgents(_ context.Context, _ lode.Namespace, f api.AgentFilter, p api.Page) (l api.List[api.Agent], _ error) {
	for _, key := range k.keys(f.Partition - 1) {
		a := api.Agent{Address: "cart/" + key, Kind: "cart", Key: key, Node: k.node, Partition: lode.PartitionOf(key, parts)}
		if a.Address <= p.After {
			continue
		}
		if len(l.Items) == p.Limit {
			l.Next = l.Items[len(l.Items)-1].Address
			break
		}
		l.Items = append(l.Items, a)
	}
	return l, nil
}

func (k *keeper) GetAgent(_ context.Context, _ lode.Namespace, kind lode.Name, key string) (api.AgentDetail, error) {
	if err := k.mine("get", key); err != nil {
		return api.AgentDetail{}, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	s, ok := k.state[key]
	if !ok {
		return api.AgentDetail{}, lode.Errorf(lode.NotFound, "there is no agent %s/%s", kind, key)
	}
	d := api.AgentDetail{Agent: api.Agent{Address: string(kind) + "/" + key, Key: key, Node: k.node}}
	for _, name := range slices.Sorted(maps.Keys(s)) {
		d.State = append(d.State, api.ShowState([]byte(name), s[name]))
	}
	return d, nil
}

func (k *keeper) RemoveAgent(_ context.Context, _ lode.Namespace, _ lode.Name, key string) error {
	if err := k.mine("remove", key); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.state, key)
	return nil
}

func (k *keeper) ReplayAgent(_ context.Context, _ lode.Namespace, _ lode.Name, key string, n uint64) (api.DeadMessage, error) {
	return api.DeadMessage{N: n, Method: "add"}, k.mine("replay", key)
}

func (k *keeper) MovePartition(_ context.Context, _ lode.Namespace, kind lode.Name, n int, to lode.NodeID) (api.Partition, error) {
	k.reg.mu.Lock()
	defer k.reg.mu.Unlock()
	if k.reg.owner[n] != k.node {
		return api.Partition{}, lode.Errorf(lode.Internal, "node %s was asked to move partition %d of %q", k.node, n, k.reg.owner[n])
	}
	k.reg.owner[n] = string(to)
	return api.Partition{Kind: kind, N: n, Owner: string(to), State: api.PartitionOwned}, nil
}

func (k *keeper) ExportAgents(_ context.Context, _ lode.Namespace, _ lode.Name, see func(api.AgentDump) error) (covered []int, err error) {
	for n := range parts {
		if k.reg.of(n) != k.node {
			continue
		}
		covered = append(covered, n)
		for _, key := range k.keys(n) {
			d := api.AgentDump{Key: key}
			for name, v := range k.state[key] {
				d.State = append(d.State, api.DumpValue{Key: []byte(name), Value: v})
			}
			if err := see(d); err != nil {
				return covered, err
			}
		}
	}
	return covered, nil
}

func (k *keeper) ImportAgents(_ context.Context, _ lode.Namespace, _ lode.Name, dumps []api.AgentDump, o api.ImportOptions) (n api.Imported, err error) {
	for _, d := range dumps {
		if err := k.mine("import", d.Key); err != nil {
			return n, err
		}
		k.mu.Lock()
		if k.state[d.Key] != nil && !o.Replace {
			k.mu.Unlock()
			return n, lode.Errorf(lode.Conflict, "there is an agent cart/%s", d.Key)
		}
		k.state[d.Key] = map[string][]byte{}
		for _, v := range d.State {
			k.state[d.Key][string(v.Key)] = v.Value
			n.Keys++
		}
		n.Agents++
		k.mu.Unlock()
	}
	return n, nil
}

func (k *keeper) ExplainAgent(_ context.Context, _ lode.Namespace, kind lode.Name, key string) (api.Explanation, error) {
	v := api.Explanation{Ref: string(kind) + "/" + key, Waits: k.waits}
	if k.reg.of(lode.PartitionOf(key, parts)) == k.node {
		v.Kind, v.Summary = "agent", "on node "+k.node
	}
	return v, nil
}

var _ api.Agents = (*keeper)(nil)

// serve is one node of the tests, as other nodes see it, or as people do.
func (k *keeper) serve(t *testing.T, local bool, peers ...api.Peer) *api.Client {
	b := newMemory().backend()
	b.Agents = k
	e := &api.Everywhere{Node: k.node, Own: b, Peers: func() []api.Peer { return peers }}
	s := api.NewServer(e.Backend())
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := api.WithGrant(r.Context(), api.Grant{Token: "t", Role: api.RoleAdmin})
		if local {
			ctx = api.WithPeer(ctx, "a")
		}
		s.ServeHTTP(w, r.WithContext(ctx))
	}))
	t.Cleanup(ts.Close)
	c, err := api.New(api.Config{URL: ts.URL, Local: local})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// cluster is nodes a, b and c, and a client of a. Partition 0 is of a, 1 of b,
// 2 of c and 3 of nobody.
func cluster(t *testing.T) (*api.Client, map[string]*keeper) {
	reg := &register{owner: map[int]string{0: "a", 1: "b", 2: "c"}}
	all := map[string]*keeper{}
	var peers []api.Peer
	for _, n := range []string{"a", "b", "c"} {
		all[n] = newKeeper(n, reg)
		if n != "a" {
			peers = append(peers, api.Peer{Node: n, Client: all[n].serve(t, true)})
		}
	}
	return all["a"].serve(t, false, peers...), all
}

// keyIn is the i-th key of the tests in a partition.
func keyIn(partition, i int) string {
	for n := 0; ; n++ {
		if key := fmt.Sprintf("k%d", n); lode.PartitionOf(key, parts) == partition {
			if i--; i < 0 {
				return key
			}
		}
	}
}

// fill imports n agents into the cluster.
func fill(t *testing.T, c *api.Client, n int) {
	t.Helper()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	for i := range n {
		enc.Encode(api.AgentDump{Key: fmt.Sprintf("k%03d", i), State: []api.DumpValue{{Key: []byte("n"), Value: fmt.Appendf(nil, "%d", i)}}})
	}
	got, err := c.ImportAgents(t.Context(), "cart", &b, api.ImportOptions{})
	if err != nil || got.Agents != int64(n) || got.Keys != int64(n) {
		t.Fatalf("%+v %v", got, err)
	}
}

func TestAgentsGoToTheirOwners(t *testing.T) {
	c, all := cluster(t)
	fill(t, c, 300)
	total := 0
	for name, k := range all {
		mine := len(k.keys(-1))
		if total += mine; mine == 0 || mine == 300 {
			t.Errorf("node %s has %d", name, mine)
		}
	}
	if total != 300 {
		t.Errorf("%d agents are on the nodes", total)
	}
	for i, partition := range []int{0, 1, 2, 3} {
		key := keyIn(partition, i)
		if partition < 3 {
			_, err := c.GetAgent(t.Context(), "cart", key)
			want(t, err, lode.NotFound)
		}
		if _, err := c.ReplayAgent(t.Context(), "cart", key, 7); err != nil {
			t.Error(err)
		}
	}
	v, err := c.GetAgent(t.Context(), "cart", "k007")
	if err != nil || v.Address != "cart/k007" || len(v.State) != 1 || string(v.State[0].JSON) != "7" || v.State[0].Key != "n" {
		t.Errorf("%+v %v", v, err)
	}
	if err := c.RemoveAgent(t.Context(), "cart", "k007"); err != nil {
		t.Error(err)
	}
	_, err = c.GetAgent(t.Context(), "cart", "k007")
	want(t, err, lode.NotFound)
	_, err = c.GetAgent(t.Context(), "crat", "k")
	want(t, err, lode.NotFound)
}

// TestAgentsMovedMeanwhile: who owned a partition when it was looked up may own
// it no more when it is asked.
func TestAgentsMovedMeanwhile(t *testing.T) {
	c, all := cluster(t)
	all["b"].moved = 2
	if _, err := c.ReplayAgent(t.Context(), "cart", keyIn(1, 0), 1); err != nil || len(all["b"].asked) != 3 {
		t.Errorf("%v after %v", err, all["b"].asked)
	}
	all["b"].moved = 1 << 20
	_, err := c.ReplayAgent(t.Context(), "cart", keyIn(1, 0), 1)
	want(t, err, lode.Unavailable)
}

func TestListAgents(t *testing.T) {
	c, all := cluster(t)
	fill(t, c, 250)
	l, err := api.All(func(p api.Page) (api.List[api.Agent], error) {
		p.Limit = 17
		return c.ListAgents(t.Context(), api.AgentFilter{Kind: "cart"}, p)
	})
	if err != nil || len(l) != 250 || !slices.IsSortedFunc(l, func(a, b api.Agent) int { return strings.Compare(a.Address, b.Address) }) {
		t.Errorf("%d agents, %v", len(l), err)
	}
	part, err := c.ListAgents(t.Context(), api.AgentFilter{Kind: "cart", Partition: 1 + 1}, api.Page{Limit: 1000})
	if err != nil || len(part.Items) != len(all["b"].keys(1)) || len(part.Items) == 0 || part.Items[0].Node != "b" {
		t.Errorf("%d of %d, %v", len(part.Items), len(all["b"].keys(1)), err)
	}
	ps, err := c.ListPartitions(t.Context(), "cart")
	if err != nil || len(ps) != parts || ps[1].Owner != "b" || !ps[1].Answered || ps[1].Agents != int64(len(part.Items)) {
		t.Errorf("%+v %v", ps, err)
	}
	alone := all["a"].serve(t, false, gone(t, "b"), gone(t, "c"))
	some, err := alone.ListAgents(t.Context(), api.AgentFilter{}, api.Page{})
	if err != nil || !slices.Equal(some.Missing, []string{"b", "c"}) || len(some.Items) == 0 {
		t.Errorf("%+v %v", some.Missing, err)
	}
	ps, err = alone.ListPartitions(t.Context(), "cart")
	if err != nil || len(ps) != parts || ps[1].Answered || ps[1].Owner != "b" {
		t.Errorf("%+v %v", ps, err)
	}
}

func TestExportImport(t *testing.T) {
	c, all := cluster(t)
	fill(t, c, 200)
	var out bytes.Buffer
	n := 0
	end, err := c.ExportAgents(t.Context(), "cart", func(d api.AgentDump) error {
		n++
		return json.NewEncoder(&out).Encode(d)
	})
	if err != nil || n != 200 || end.Lines != 200 || !slices.Equal(end.Partitions, []int{0, 1, 2, 3}) {
		t.Fatalf("%d agents, %+v, %v", n, end, err)
	}
	lines := out.String()
	_, err = c.ImportAgents(t.Context(), "cart", strings.NewReader(lines), api.ImportOptions{})
	want(t, err, lode.Conflict)
	if got, err := c.ImportAgents(t.Context(), "cart", strings.NewReader(lines), api.ImportOptions{Replace: true}); err != nil || got.Agents != 200 {
		t.Errorf("%+v %v", got, err)
	}
	fresh, _ := cluster(t)
	if got, err := fresh.ImportAgents(t.Context(), "cart", strings.NewReader(lines+`{"end":{"lines":200}}`), api.ImportOptions{}); err != nil || got.Agents != 200 {
		t.Errorf("%+v %v", got, err)
	}
	v, err := fresh.GetAgent(t.Context(), "cart", "k042")
	if err != nil || string(v.State[0].JSON) != "42" {
		t.Errorf("%+v %v", v, err)
	}

	// An export that lacks a partition fails, whatever it has.
	alone := all["a"].serve(t, false, gone(t, "b"), gone(t, "c"))
	_, err = alone.ExportAgents(t.Context(), "cart", func(api.AgentDump) error { return nil })
	want(t, err, lode.Unavailable)
	if !strings.Contains(err.Error(), "partitions 1, 2 of cart are not in the export") {
		t.Error(err)
	}
}

func TestImportRefused(t *testing.T) {
	c, _ := cluster(t)
	for body, says := range map[string]string{
		"{}\nno json":                   "line 1 is no agent",
		`{"key":"a"}` + "\n{":           "line 2 is no agent",
		`{"key":""}`:                    "the key of an agent of kind cart is empty",
		`{"error":{"kind":"internal"}}`: "the export failed here",
	} {
		_, err := c.ImportAgents(t.Context(), "cart", strings.NewReader(body), api.ImportOptions{})
		want(t, err, lode.Invalid)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", body, err)
		}
	}
}

func TestMoveAgents(t *testing.T) {
	c, all := cluster(t)
	two, four := 2, 4
	if p, err := c.MoveAgents(t.Context(), "cart", api.AgentMove{Partition: &two, To: "b"}); err != nil || p.Owner != "b" {
		t.Errorf("%+v %v", p, err)
	}
	if p, err := c.MoveAgents(t.Context(), "cart", api.AgentMove{Key: keyIn(2, 0), To: "a"}); err != nil || p.Owner != "a" || all["a"].reg.of(2) != "a" {
		t.Errorf("%+v %v", p, err)
	}
	_, err := c.MoveAgents(t.Context(), "cart", api.AgentMove{Partition: &four})
	want(t, err, lode.NotFound)
	_, err = c.MoveAgents(t.Context(), "cart", api.AgentMove{})
	want(t, err, lode.Invalid)
}

// TestOddKeys: a key is any text (but "/" alone, which http.ServeMux takes for
// an empty element).
func TestOddKeys(t *testing.T) {
	c, _ := cluster(t)
	for _, key := range []string{"a/b", "..", ".", "a//b", "export", "import", "a b?c#d%2F", "grün", "\x00\n", strings.Repeat("k", 512)} {
		_, err := c.GetAgent(t.Context(), "cart", key)
		want(t, err, lode.NotFound)
		if err == nil || !strings.Contains(err.Error(), "there is no agent cart/"+key) {
			t.Errorf("%q: %v", key, err)
		}
		if v, err := c.Explain(t.Context(), "cart/"+key); err != nil || v.Ref != "cart/"+key {
			t.Errorf("%q: %+v %v", key, v, err)
		}
	}
	_, err := c.GetAgent(t.Context(), "cart", strings.Repeat("k", 513))
	want(t, err, lode.Invalid)
}

func TestExplainAgent(t *testing.T) {
	c, all := cluster(t)
	key := keyIn(1, 0)
	me := "cart/" + key
	at := time.Unix(1000, 0).UTC()
	wait := func(from, to string, s int) api.Wait {
		return api.Wait{From: from, To: to, Since: at.Add(time.Duration(s) * time.Second)}
	}
	all["a"].waits = []api.Wait{wait("", me, 0), wait("cart/x", "cart/y", 1)}
	all["b"].waits = []api.Wait{wait(me, "cart/p", 2)}
	all["c"].waits = []api.Wait{wait("cart/p", "cart/q", 3), wait("cart/q", me, 4), wait("", "cart/q", 5)}
	v, err := c.Explain(t.Context(), me)
	if err != nil || v.Kind != "agent" || v.Summary != "on node b" {
		t.Fatalf("%+v %v", v, err)
	}
	var got []string
	for _, w := range v.Waits {
		got = append(got, w.From+">"+w.To)
	}
	if fmt.Sprint(got) != fmt.Sprintf("[>%s %s>cart/p cart/p>cart/q cart/q>%s >cart/q]", me, me, me) {
		t.Errorf("waits %v", got)
	}
	if len(v.Steps) != 1 || v.Steps[0].What != "waits in a circle: "+me+" -> cart/p -> cart/q -> "+me {
		t.Errorf("steps %+v", v.Steps)
	}
	if ring := api.WaitRing("cart/x", all["a"].waits); ring != nil {
		t.Errorf("a circle where there is none: %v", ring)
	}
	if ring := api.WaitRing("cart/x", []api.Wait{wait("cart/x", "cart/x", 0)}); len(ring) != 2 {
		t.Errorf("an agent that waits for itself: %v", ring)
	}
}

func TestShowState(t *testing.T) {
	long := bytes.Repeat([]byte("7"), api.ValueShown+1)
	for _, tt := range []struct {
		key, value string
		want       string
	}{
		{"n", "7", `{"key":"n","json":7,"size":1}`},
		{"a\x01", "{", `{"key64":"YQE=","base64":"ew==","size":1}`},
		{"e", "", `{"key":"e","size":0}`},
	} {
		if b, err := json.Marshal(api.ShowState([]byte(tt.key), []byte(tt.value))); err != nil || string(b) != tt.want {
			t.Errorf("%q: %s %v", tt.key, b, err)
		}
	}
	if v := api.ShowState([]byte("k"), long); !v.Cut || len(v.Base64) != api.ValueShown || v.Size != api.ValueShown+1 {
		t.Errorf("%v %d", v.Cut, len(v.Base64))
	}
}

func TestCallAgent(t *testing.T) {
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Lode-Invocation", "id")
		fmt.Fprint(w, r.Method, r.URL.EscapedPath(), r.Header.Get("Idempotency-Key"), r.Header.Get("Lode-Deadline"), r.Header.Get("Prefer"))
	}))
	t.Cleanup(ts.Close)
	c, err := api.New(api.Config{URL: ts.URL})
	if err != nil {
		t.Fatal(err)
	}
	a, err := c.CallAgent(t.Context(), api.AgentInvocation{Address: lode.Address{Name: "cart", Key: "a/.."}, Method: "add", Key: "k", Deadline: time.Second, Async: true})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	var b bytes.Buffer
	b.ReadFrom(a.Body)
	if b.String() != "POST/agents/cart/a%2F../addk1000respond-async" || a.ID != "id" {
		t.Errorf("%s %s", b.String(), a.ID)
	}
}
