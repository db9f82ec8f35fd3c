package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"lode"
	"lode/api"
)

// carts is a kind of agents as the management API, and its door, show it.
type carts struct {
	imported []api.AgentDump
	short    bool // the export fails at its end
}

func (c *carts) Where(_ context.Context, _ lode.Namespace, kind lode.Name, key string) (api.AgentPlace, error) {
	return api.AgentPlace{Partition: lode.PartitionOf(key, 2), Partitions: 2, Node: "a"}, nil
}

func (c *carts) ListPartitions(context.Context, lode.Namespace, lode.Name) ([]api.Partition, error) {
	return []api.Partition{{Kind: "cart", Owner: "a", Epoch: 3, State: api.PartitionOwned, Agents: 2, Bytes: 2048, Turns: 1.5, Answered: true},
		{Kind: "cart", N: 1, Owner: "b", Epoch: 1, State: api.PartitionLost}}, nil
}

func (c *carts) ListAgents(_ context.Context, _ lode.Namespace, f api.AgentFilter, _ api.Page) (api.List[api.Agent], error) {
	a := api.Agent{Address: "cart/alice", Kind: "cart", Key: "alice", Node: "a", Partition: 1, Bytes: 34, Keys: 2, Timers: 1, Last: time.Now().Add(-3*time.Second - 500*time.Millisecond)}
	return api.List[api.Agent]{Items: []api.Agent{a}, Missing: []string{"b"}}, nil
}

func (c *carts) GetAgent(_ context.Context, _ lode.Namespace, kind lode.Name, key string) (api.AgentDetail, error) {
	if key != "alice" {
		return api.AgentDetail{}, lode.Errorf(lode.NotFound, "there is no agent %s/%s", kind, key)
	}
	return api.AgentDetail{Agent: api.Agent{Address: "cart/alice", Node: "a", Partition: 1, Keys: 2, Bytes: 34, Revision: 3, Waiting: 1, Active: true}, Epoch: 7,
		State:   []api.StateValue{api.ShowState([]byte("book"), []byte("2")), api.ShowState([]byte{1}, []byte("{"))},
		Set:     []api.AgentTimer{{Name: "remind", Method: "alarm", At: time.Now().Add(time.Hour)}},
		Letters: []api.DeadMessage{{N: 4, Method: "pay", Caller: "cart/bob", Tries: 10, Error: lode.Errorf(lode.Crashed, "no money")}},
		Journal: []api.AgentEntry{{At: time.Now(), Method: "add", ID: "t1", Puts: 1}}}, nil
}

func (c *carts) RemoveAgent(context.Context, lode.Namespace, lode.Name, string) error { return nil }

func (c *carts) ReplayAgent(_ context.Context, _ lode.Namespace, _ lode.Name, _ string, n uint64) (api.DeadMessage, error) {
	if n != 4 {
		return api.DeadMessage{}, lode.Errorf(lode.NotFound, "there is no dead message %d", n)
	}
	return api.DeadMessage{N: n, Method: "pay"}, nil
}

func (c *carts) MovePartition(_ context.Context, _ lode.Namespace, kind lode.Name, n int, to lode.NodeID) (api.Partition, error) {
	return api.Partition{Kind: kind, N: n, Owner: string(to), Epoch: 8}, nil
}

func (c *carts) ExportAgents(_ context.Context, _ lode.Namespace, _ lode.Name, see func(api.AgentDump) error) ([]int, error) {
	for _, key := range []string{"alice", "bob"} {
		if err := see(api.AgentDump{Key: key, State: []api.DumpValue{{Key: []byte("k"), Value: []byte("v")}}}); err != nil {
			return nil, err
		}
	}
	if c.short {
		return nil, lode.Errorf(lode.Unavailable, "partition 1 is missing")
	}
	return []int{0, 1}, nil
}

func (c *carts) ImportAgents(_ context.Context, _ lode.Namespace, _ lode.Name, dumps []api.AgentDump, _ api.ImportOptions) (api.Imported, error) {
	c.imported = append(c.imported, dumps...)
	return api.Imported{Agents: int64(len(dumps)), Keys: int64(len(dumps))}, nil
}

func (c *carts) ExplainAgent(_ context.Context, _ lode.Namespace, kind lode.Name, key string) (api.Explanation, error) {
	return api.Explanation{Ref: string(kind) + "/" + key, Kind: "agent", Summary: "on node a, partition 1", Waits: []api.Wait{
		{From: "", To: "cart/alice", Method: "add", Since: time.Now(), Queued: true},
		{From: "cart/alice", To: "cart/bob", Method: "pay", Since: time.Now()}}}, nil
}

var _ api.Agents = (*carts)(nil)

// kindOnly is Apps that have the kind cart, and nothing else.
type kindOnly struct{ api.Apps }

func (kindOnly) GetName(_ context.Context, _ lode.Namespace, n lode.Name) (api.Detail, error) {
	if n != "cart" {
		return api.Detail{}, lode.Errorf(lode.NotFound, "nothing is named %s", n)
	}
	f := lode.Function{Language: "go", Contract: lode.ContractHandler, Agent: &lode.AgentSpec{Partitions: 2, Idle: time.Minute, StateMax: 1 << 30, Mailbox: 1000, Methods: []string{"add", "total"}, Read: []string{"total"}}}
	return api.Detail{Item: api.Item{Name: n, Kind: api.KindAgent, App: "shop"}, Function: &api.Function{Name: n, Live: lode.Revision{Number: 3, Function: f}}}, nil
}

// door is POST /agents/KIND/KEY/METHOD: it answers with what it got.
func (c *carts) door(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	switch r.PathValue("method") {
	case "ad":
		api.WriteError(w, lode.Errorf(lode.NotFound, "kind cart has no method %q", "ad").WithHint("did you mean %q? methods: add, total (read)", "add"))
	case "clear":
		w.WriteHeader(http.StatusNoContent)
	default:
		if r.Header.Get("Prefer") != "" {
			w.Header().Set("Lode-Invocation", "01K")
			w.WriteHeader(http.StatusAccepted)
			return
		}
		fmt.Fprintf(w, "%s %s %s %s %s", r.PathValue("key"), r.PathValue("method"), r.Header.Get("Content-Type"), body, r.Header.Get("Idempotency-Key"))
	}
}

func (c *carts) start(t *testing.T) *command {
	mux := http.NewServeMux()
	mux.Handle("/v1/", api.NewServer(api.Backend{Agents: c, Apps: kindOnly{}}))
	mux.HandleFunc("POST /agents/cart/{key}/{method}", c.door)
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mux.ServeHTTP(w, r.WithContext(api.WithGrant(r.Context(), api.Grant{Role: api.RoleAdmin})))
	}))
	t.Cleanup(ts.Close)
	home := t.TempDir()
	t.Setenv("HOME", home)
	for _, k := range []string{"XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "LODE_CONTEXT", "LODE_TOKEN", "LODE_OUTPUT", "LODE_DIR"} {
		t.Setenv(k, "")
	}
	t.Setenv("LODE_URL", ts.URL)
	return &command{t: t, home: home}
}

func TestAgentCommands(t *testing.T) {
	for _, tt := range []struct {
		args string
		code int
		out  []string // regular expressions
		err  []string
	}{
		{"agents ls", 0, []string{`(?m)^ADDRESS     NODE  PARTITION  STATE  LAST  TIMERS  WAITING$`, `(?m)^cart/alice  a     1          34 B   3 s   1       0$`}, []string{"as they do not answer or only just take them over: b"}},
		{"agents ls cart -o name", 0, []string{`^cart/alice\n$`}, nil},
		{"agents ls cart --partitions", 0, []string{`(?m)^cart 0     a      3      owned  2       2.0 KiB  1.5      0 us      0$`, `(?m)^cart 1     b      1      lost   \?`}, nil},
		{"show cart/alice", 0, []string{`(?m)^node +a, partition 1, epoch 7$`, `(?m)^revision +3$`, `(?m)^now +in memory, 1 message waiting$`, `(?m)^  book +2$`, `(?m)^  base64:AQ== +base64:ew==$`,
			`(?m)^timers +remind  alarm at `, `(?m)^dead +4  pay  .*no money \(crashed\)$`, `(?m)^turns .*add`}, nil},
		{"agents show cart/alice -o json", 0, []string{`"json": 2`, `"key64": "AQ=="`}, nil},
		{"show cart/nobody", 3, nil, []string{"there is no agent cart/nobody"}},
		{"show cart", 0, []string{`(?m)^methods +add, total \(read\)$`, `(?m)^now +2 agents, 2.0 KiB, 1.5 turns/s; partitions: a 1, b 1$`}, nil},
		{"agents dead cart/alice", 0, []string{`(?m)^4  pay     cart/bob  .* 10     no money$`}, nil},
		{"agents replay cart/alice 4", 0, []string{`^4  pay  is a message again\n$`}, nil},
		{"agents replay cart/alice 5", 3, nil, []string{"no dead message 5"}},
		{"agents move cart --partition 1 --to b", 0, []string{`^cart 1  is on node b, epoch 8\n$`}, nil},
		{"agents move cart --partition 2 --to b", 3, nil, []string{"kind cart has no partition 2", "it has 0 to 1"}},
		{"agents move cart/alice --to b", 0, []string{`is on node b`}, nil},
		{"agents rm cart/alice cart/bob -y", 0, nil, []string{"removed cart/alice", "removed cart/bob"}},
		{"explain cart/alice", 0, []string{`cart/alice: on node a, partition 1`, `(?m)^  outside +cart/alice +add +0 s +queued$`, `(?m)^  cart/alice +cart/bob +pay +0 s +runs$`}, nil},

		{"call cart/alice add book 2", 0, []string{`^alice add application/vnd.lode.args\+json \["book",2\] $`}, nil},
		{"call cart/a/b add 2 --key k", 0, []string{`^a/b add application/json 2 k$`}, nil},
		{"call cart/alice total", 0, []string{`^alice total   $`}, nil},
		{"call cart/alice add hello --raw", 0, []string{`^alice add application/octet-stream hello $`}, nil},
		{"call cart/alice clear", 0, []string{`^$`}, nil},
		{"call cart/alice add 2 --async", 0, []string{`^01K\n$`}, []string{"lode show cart/alice"}},
		{"call cart/alice ad book 2", 3, nil, []string{`error: kind cart has no method "ad" \(not_found\)`, `hint:  did you mean "add"\? methods: add, total \(read\)`}},
		{"call cart/alice", 2, nil, []string{"call which method of cart/alice", `methods: add, total \(read\)`}},
		{"call cart/alice add -X GET", 2, nil, []string{"--method is for functions"}},
	} {
		t.Run(tt.args, func(t *testing.T) {
			out, err, code := (&carts{}).start(t).run(strings.Fields(tt.args)...)
			if code != tt.code {
				t.Errorf("code %d, want %d", code, tt.code)
			}
			for _, re := range tt.out {
				if !regexp.MustCompile(re).MatchString(out) {
					t.Errorf("stdout has no %s:\n%s", re, out)
				}
			}
			for _, re := range tt.err {
				if !regexp.MustCompile(re).MatchString(err) {
					t.Errorf("stderr has no %s:\n%s", re, err)
				}
			}
		})
	}
}

func TestAgentsExportImport(t *testing.T) {
	k := &carts{}
	c := k.start(t)
	file := filepath.Join(c.home, "carts.ndjson")
	if out, err, code := c.run("agents", "export", "cart", file); code != 0 || out != "" || !strings.Contains(err, "2 agents") {
		t.Fatalf("%d %s %s", code, out, err)
	}
	if out, err, code := c.run("agents", "import", "cart", file); code != 0 || !strings.Contains(out, "2 agents, 2 keys") || len(k.imported) != 2 || k.imported[1].Key != "bob" {
		t.Errorf("%d %s %s %v", code, out, err, k.imported)
	}
	if out, _, code := c.run("agents", "export", "cart"); code != 0 || strings.Count(out, "\n") != 3 || !strings.HasSuffix(out, `{"end":{"partitions":[0,1],"lines":2}}`+"\n") {
		t.Errorf("%d %s", code, out)
	}

	// One that fails leaves the file before it as it was, and nothing else.
	before, _ := os.ReadFile(file)
	k.short = true
	if _, err, code := c.run("agents", "export", "cart", file); code != 6 || !strings.Contains(err, "partition 1 is missing") {
		t.Errorf("%d %s", code, err)
	}
	after, _ := os.ReadFile(file)
	left, _ := filepath.Glob(filepath.Join(c.home, ".carts*"))
	if string(before) != string(after) || len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
