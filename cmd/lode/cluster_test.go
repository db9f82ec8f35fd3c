package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"lode"
	"lode/api"
)

// threeNodes is a cluster as the management API shows it: a is asked, b serves,
// c is lost. Draining b ends one invocation each time it is asked.
type threeNodes struct {
	mu      sync.Mutex
	b       api.Node
	removed string
	stuck   bool // b never gets empty
	joins   int
	gateway string // of a
	peers   string // of a
}

func (c *threeNodes) ListNodes(context.Context) (api.NodeList, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := api.Node{Name: "a", State: api.NodeReady, Bus: api.BusMember, Keeper: true, CPU: 8, Memory: 32 << 30, GPU: []string{}, Version: "0.2.0", Peers: c.peers, Gateway: c.gateway}
	lost := api.Node{Name: "c", State: api.NodeLost, Bus: api.BusMember, CPU: 64, Memory: 256 << 30, GPU: []string{"H100"}, Zone: "west", Version: "0.2.0",
		Link: &api.Link{LostSince: time.Now().Add(-12*time.Second - 500*time.Millisecond), Why: "no heartbeat"}}
	return api.NodeList{Items: []api.Node{a, c.b, lost}, Cluster: api.ClusterState{Members: []string{"a", "b", "c"}, Answering: 2, Quorum: true, Keeper: "a", Generation: 2}}, nil
}

func (c *threeNodes) GetNode(_ context.Context, name lode.NodeID) (api.Node, error) {
	return c.b, nil
}

func (c *threeNodes) DrainNode(_ context.Context, name lode.NodeID, wait time.Duration) (api.Node, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if name != "b" {
		return api.Node{}, lode.Errorf(lode.NotFound, "no node %s", name).WithHint("did you mean %q?", "b")
	}
	c.b.State = api.NodeDraining
	if c.b.Running > 0 {
		c.b.Running--
	} else if c.b.Left = nil; !c.stuck {
		c.b.State = api.NodeDrained
	}
	return c.b, nil
}

func (c *threeNodes) UndrainNode(context.Context, lode.NodeID) (api.Node, error) {
	c.b.State = api.NodeReady
	return c.b, nil
}

func (c *threeNodes) RemoveNode(_ context.Context, name lode.NodeID, force bool) error {
	if !force && name == "b" {
		return lode.Errorf(lode.Precondition, "b is ready: it still serves").WithHint("drain it first: lode drain b")
	}
	c.removed = string(name)
	return nil
}

func (c *threeNodes) CreateJoinToken(_ context.Context, s api.JoinSpec) (api.JoinToken, error) {
	c.joins++
	token := "lj1." + strings.Repeat("0", 64) + ".secret"
	return api.JoinToken{ID: "join-1", Token: token, Uses: s.Uses, Expires: time.Now().Add(s.For), Address: "10.0.0.1:5633", Command: api.JoinCommand("10.0.0.1:5633", token, false)}, nil
}

func (c *threeNodes) ListJoinTokens(context.Context) ([]api.Token, error) {
	return []api.Token{{ID: "join-1", Join: true, Uses: 2, Expires: time.Now().Add(30 * time.Minute)}}, nil
}

func (c *threeNodes) RevokeJoinToken(context.Context, string) error { return nil }

func (c *threeNodes) CheckCluster(context.Context) ([]api.Check, error) {
	return []api.Check{{Name: "copies", State: api.CheckWarn, Detail: "3 shards of mails have one copy", Advice: "they are copied again now"}}, nil
}

func (c *threeNodes) Top(context.Context, lode.Namespace) (api.Top, error) {
	return api.MergeTop([]api.Top{
		{Node: "a", CPU: 0.5, Uptime: 100, Rows: []api.TopRow{{Name: "hello", Rev: 3, Rate: 10, P50: time.Millisecond, Busy: 1}}},
		{Node: "b", CPU: 1, Uptime: 60, Rows: []api.TopRow{{Name: "hello", Rev: 3, Rate: 30, P50: time.Millisecond, Warm: 2}}, Missing: []string{"c"}},
	}), nil
}

func (c *threeNodes) Explain(_ context.Context, _ lode.Namespace, ref string) (api.Explanation, error) {
	return api.Explanation{Ref: ref, Summary: "ran on b", Candidates: []api.Candidate{
		{Node: "b", Hop: time.Millisecond, Code: 4 * time.Millisecond, Run: 20 * time.Millisecond, Chosen: true},
		{Node: "a", Wait: 90 * time.Millisecond, Run: 20 * time.Millisecond},
		{Node: "c", Refused: "lost"}}}, nil
}

func (c *threeNodes) Nodes(context.Context) (api.List[api.Node], error) {
	return api.List[api.Node]{}, nil
}

func (c *threeNodes) Doctor(context.Context) (api.List[api.Check], error) {
	return api.List[api.Check]{Items: []api.Check{{Node: "a", Name: "disk", State: api.CheckOK, Detail: "fine"}}}, nil
}
func (c *threeNodes) Version(context.Context) (api.Version, error) { return api.Version{}, nil }

func (c *threeNodes) ReadLogs(_ context.Context, _ lode.Namespace, _ api.LogFilter, see func(api.LogLine) error) error {
	return see(api.LogLine{At: time.Now(), Node: "b", Name: "hello", Rev: 3, Level: "info", Text: "hi"})
}

var (
	_ api.Nodes   = (*threeNodes)(nil)
	_ api.Cluster = (*threeNodes)(nil)
	_ api.Logs    = (*threeNodes)(nil)
)

// command runs the program against url, in a home of its own.
type command struct {
	t        *testing.T
	out, err bytes.Buffer
	home     string
}

func (c *threeNodes) start(t *testing.T) (*command, string) {
	s := api.NewServer(api.Backend{Nodes: c, Cluster: c, Logs: c, Tokens: noTokens{}})
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" {
			w.Write([]byte("ok\n"))
			return
		}
		s.ServeHTTP(w, r.WithContext(api.WithGrant(r.Context(), api.Grant{Role: api.RoleAdmin})))
	}))
	t.Cleanup(ts.Close)
	home := t.TempDir()
	t.Setenv("HOME", home)
	for _, k := range []string{"XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "LODE_CONTEXT", "LODE_TOKEN", "LODE_OUTPUT", "LODE_DIR", "LODE_JOIN_TOKEN"} {
		t.Setenv(k, "")
	}
	t.Setenv("LODE_URL", "http://127.0.0.1:1,"+ts.URL) // the first of the nodes is out
	return &command{t: t, home: home}, ts.URL
}

// noTokens is a store of tokens in which there are none.
type noTokens struct{ api.Tokens }

func (noTokens) ListTokens(context.Context, api.Page) (api.List[api.Token], error) {
	return api.List[api.Token]{}, nil
}

// run returns what the program printed and its exit code.
func (c *command) run(args ...string) (out, err string, code int) {
	c.out.Reset()
	c.err.Reset()
	code = run(args, strings.NewReader(""), &c.out, &c.err)
	return c.out.String(), c.err.String(), code
}

func TestClusterCommands(t *testing.T) {
	for _, tt := range []struct {
		args string
		code int
		out  []string // regular expressions
		err  []string
	}{
		{"nodes", 0, []string{
			`(?m)^NAME  STATE  BUS     CPU  MEM      GPU   ZONE  LINK       VERSION +cluster: 2 of 3 bus members$`,
			`(?m)^a     ready  member  8    32 GiB   -     -     -          0.2.0 +an acknowledged write survives: a crash, not the loss of a disk$`,
			`(?m)^b     ready  client  4    8.0 GiB  -     east  250 us     0.2.0 +keeper: a$`,
			`(?m)^c     lost   member  64   256 GiB  H100  west  lost 12 s  0.2.0$`}, nil},
		{"nodes -o json", 0, []string{`"answering": 2`, `"lost_since"`}, nil},
		{"nodes -o name", 0, []string{`^a\nb\nc\n$`}, nil},
		{"nodes rm c", 0, nil, []string{"c is out of the cluster"}},
		{"nodes rm b", 5, nil, []string{"it still serves", "lode drain b"}},
		{"nodes rm b --force -y", 0, nil, []string{"b is out"}},
		{"drain b", 0, nil, []string{"b carries 1 running, the keeper's lease", "b is empty after"}},
		{"drain b -o json", 0, []string{`"state": "drained"`}, nil},
		{"drain d", 3, nil, []string{`did you mean "b"`}},
		{"undrain b", 0, []string{"^b  ready"}, nil},
		{"token create --join --uses 2", 0, []string{`^lj1\.0{64}\.secret\n$`}, []string{"for 2 nodes", "lode up --bind ADDRESS --join 10.0.0.1 --token lj1"}},
		{"token create --join -o json", 0, []string{`"address": "10.0.0.1:5633"`}, nil},
		{"token ls", 0, []string{`join-1  join, 2 nodes`}, nil},
		{"doctor --cluster", 1, []string{`(?m)^ok    a        disk    fine$`, `(?m)^fail  c        link    lost for 1[23]s$`, `(?m)^warn  cluster  copies  3 shards`, `-> they are copied again now`}, nil},
		{"top", 0, []string{`(?m)^NODE  UP`, `(?m)^b     1 min`, `(?m)^c     does not answer`, `hello  3    40.0 .*a b\n`}, nil},
		{"explain 4bf92f35", 0, []string{`NODE  START +=`, `(?m)^  b     5 ms   1 ms   0 us    0 us    4 ms    20 ms  chosen$`, `refused: lost`}, nil},
		{"logs", 0, []string{` b hello@3 hi\n$`}, nil},
	} {
		t.Run(tt.args, func(t *testing.T) {
			c := &threeNodes{b: api.Node{Name: "b", State: api.NodeReady, Bus: api.BusClient, CPU: 4, Memory: 8 << 30, GPU: []string{}, Zone: "east", Version: "0.2.0", Running: 2,
				Left: []string{"the keeper's lease"}, Link: &api.Link{Up: true, RTT: 250 * time.Microsecond}}}
			cmd, _ := c.start(t)
			out, errs, code := cmd.run(strings.Fields(tt.args)...)
			if code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			for _, re := range tt.out {
				if !regexp.MustCompile(re).MatchString(out) {
					t.Errorf("stdout has no %s:\n%s", re, out)
				}
			}
			for _, re := range tt.err {
				if !regexp.MustCompile(re).MatchString(errs) {
					t.Errorf("stderr has no %s:\n%s", re, errs)
				}
			}
		})
	}
}

// TestDrainGivesUp: what is not empty in time is no success, and says what to do.
func TestDrainGivesUp(t *testing.T) {
	c := &threeNodes{stuck: true, b: api.Node{Name: "b", Running: 1, Left: []string{"2 shards without another copy"}}}
	cmd, _ := c.start(t)
	_, errs, code := cmd.run("drain", "b", "--timeout", "300ms")
	if code != lode.Deadline.ExitCode() || !strings.Contains(errs, "b still carries ") || !strings.Contains(errs, "lode undrain b") {
		t.Errorf("%d %s", code, errs)
	}
}

// TestJoinAsks: the command gets a token from the node that it is to join,
// where this user may ask it.
func TestJoinAsks(t *testing.T) {
	c := &threeNodes{}
	_, url := c.start(t)
	hostport := strings.TrimPrefix(url, "http://")
	app := &cli{in: strings.NewReader(""), out: &bytes.Buffer{}, err: &bytes.Buffer{}, getenv: os.Getenv, release: func() {}}
	j, err := app.parseJoin(hostport, "")
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = j.resolve(t.Context())
	if lode.KindOf(err) != lode.Unauthenticated || !strings.Contains(lode.AsError(err).Hint, "lode token create --join") {
		t.Errorf("nobody to ask: %v", err)
	}
	// Two nodes run here; the older one is meant.
	keep := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(keep, []byte("lt_x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	defer app.setCurrent(current{URL: url, TokenFile: keep, PID: os.Getpid()})()
	stop := app.setCurrent(current{URL: "http://127.0.0.1:2", PID: os.Getpid()})
	peer, token, err := j.resolve(t.Context())
	if err != nil || !strings.HasPrefix(token, "lj1.") || c.joins != 1 {
		t.Fatalf("%q %q %v", peer, token, err)
	}
	if want := (&joinTo{host: j.host, port: j.port + 1}).address(); peer != want { // a gateway answers at the port
		t.Errorf("the peer port is %s, want %s", peer, want)
	}
	c.gateway, c.peers = url, "127.0.0.1:7777" // of a node whose ports the system chose
	if peer, _, err = j.resolve(t.Context()); err != nil || peer != c.peers {
		t.Errorf("the peer port is %s: %v", peer, err)
	}
	if got, _ := app.readCurrent(); got.URL != "http://127.0.0.1:2" {
		t.Errorf("the newest is %s", got.URL)
	}
	stop()
	if got, _ := app.readCurrent(); got.URL != url {
		t.Errorf("after it stopped the newest is %s", got.URL)
	}
	// A token of the environment is used, and nobody is asked.
	t.Setenv("LODE_JOIN_TOKEN", "lj1.env")
	if j, err = app.parseJoin(hostport, ""); err != nil {
		t.Fatal(err)
	}
	if _, token, err = j.resolve(t.Context()); err != nil || token != "lj1.env" || c.joins != 2 {
		t.Errorf("%q %v", token, err)
	}
}

func TestBind(t *testing.T) {
	for _, tt := range []struct {
		bind        string
		port        int
		listen, bus string
		public      bool
	}{
		{"127.0.0.1", 5633, "127.0.0.1:5633", "127.0.0.1:5635", false},
		{"127.0.0.1", 0, "127.0.0.1:0", "127.0.0.1:0", false},
		{"localhost", 5733, "localhost:5733", "localhost:5735", false},
		{"10.0.0.1", 5633, "10.0.0.1:5633", "10.0.0.1:5635", true},
		{"10.0.0.1:7000", 5633, "10.0.0.1:7000", "10.0.0.1:7002", true},
		{"::1", 5633, "[::1]:5633", "[::1]:5635", false},
		{"[2001:db8::1]:80", 5633, "[2001:db8::1]:80", "[2001:db8::1]:82", true},
		{"[2001:db8::1]", 5633, "[2001:db8::1]:5633", "[2001:db8::1]:5635", true},
	} {
		b, err := parseBind(tt.bind, tt.port, false)
		if err != nil || b.address(0) != tt.listen || b.address(2) != tt.bus || b.public != tt.public {
			t.Errorf("%s: %+v %v", tt.bind, b, err)
		}
	}
	for _, bad := range []string{"0.0.0.0", "::", "[::]:5633", "10.0.0.1:x", "10.0.0.1:65535", "no.such.host.invalid"} {
		if _, err := parseBind(bad, 5633, false); lode.KindOf(err) != lode.Invalid || lode.AsError(err).Hint == "" && !strings.Contains(bad, ":") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// TestJoinNamesGateways: which node a --join means.
func TestJoinNamesGateways(t *testing.T) {
	j := &joinTo{host: "localhost", port: 5733}
	for url, want := range map[string]bool{"http://127.0.0.1:5733": true, "http://[::1]:5733/": true, "127.0.0.1:5733": true, "http://127.0.0.1:5732": true, // its peer port
		"http://127.0.0.1:5633": false, "http://10.0.0.1:5733": false, "unix:///x": false} {
		if got := j.names(url); got != want {
			t.Errorf("%s: %v", url, got)
		}
	}
}

func TestNodeTableOfOne(t *testing.T) {
	l := api.NodeList{Items: []api.Node{{Name: "a", State: api.NodeReady}}, Cluster: api.ClusterState{Members: []string{"a"}, Answering: 1, Quorum: true, Keeper: "a"}}
	if got := clusterLines(l); len(got) != 2 || got[0] != "cluster: 1 of 1 bus member" {
		t.Errorf("%q", got)
	}
	l.Cluster.Quorum = false
	if got := clusterLines(l); len(got) != 3 {
		t.Errorf("%q", got)
	}
	b, err := json.Marshal(l)
	if err != nil || !strings.Contains(string(b), `"members":["a"]`) {
		t.Errorf("%s %v", b, err)
	}
}
