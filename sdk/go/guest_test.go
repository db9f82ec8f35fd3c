package lode_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"lode/sdk/abi"
	"lode/sdk/abi/abitest"
	"lode/sdk/go"
)

// build compiles the test guest for wasip1.
func build(t *testing.T, dir string, tags string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "guest.wasm")
	cmd := exec.Command("go", "build", "-buildmode=c-shared", "-trimpath", "-ldflags=-s -w", "-tags="+tags, "-o", out, "./"+dir)
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	wasm, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return wasm
}

func head(kv ...string) map[string]string {
	m := map[string]string{":kind": "http", ":method": "POST", ":path": "/", ":id": "01TEST", ":function": "f", ":attempt": "2"}
	for i := 0; i < len(kv); i += 2 {
		m[kv[i]] = kv[i+1]
	}
	return m
}

// script answers like a host with one function, one secret, one dataset.
func script(ctx context.Context, op abi.Op, m abitest.Message) (abi.Status, abitest.Message) {
	h := func(kv ...string) map[string]string {
		out := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			out[kv[i]] = kv[i+1]
		}
		return out
	}
	switch {
	case op == abi.OpCall && m.Head[":address"] == "echo":
		return 0, abitest.Message{Head: h(":status", "200"), Body: m.Body}
	case op == abi.OpCall && m.Head[":address"] == "slow":
		<-ctx.Done()
		return abi.StatusOf("cancelled"), abitest.Message{}
	case op == abi.OpCall:
		return abi.StatusOf("not_found"), abitest.Message{Head: h(":error", "not_found", ":detail", "there is no function nobody")}
	case op == abi.OpSecret:
		return 0, abitest.Message{Body: []byte("s3cret")}
	case op == abi.OpConfig:
		return abi.StatusOf("not_found"), abitest.Message{}
	case op == abi.OpQueue:
		return 0, abitest.Message{Head: h(":id", m.Head[":queue"]+m.Head[":key"]+m.Head[":delay"]+string(m.Body))}
	case op == abi.OpSelf:
		return 0, abitest.Message{Head: h(":node", "a")}
	case op == abi.OpData && m.Head[":verb"] == "show":
		return 0, abitest.Message{Body: []byte(`{"name":"mails","version":3,"records":"lines","shards":[{"bytes":4,"count":1},{"bytes":6,"count":1}],"bytes":10}`)}
	case op == abi.OpData:
		return 0, abitest.Message{Body: []byte("tail")}
	case op == abi.OpFetch:
		return 0, abitest.Message{Head: h(":status", "200", ":stream", "5", "x-test", "yes"), Body: []byte("first ")}
	case op == abi.OpStreamRead:
		if streamed.Add(1) == 1 {
			return 0, abitest.Message{Body: []byte("second")}
		}
		return 0, abitest.Message{}
	}
	return abi.StatusOf("unavailable"), abitest.Message{}
}

var streamed atomic.Int32

func TestGuest(t *testing.T) {
	ctx := context.Background()
	g, err := abitest.Load(ctx, build(t, "testdata/guest", ""))
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close(ctx)
	var d struct {
		ABI       int
		Functions []struct{ Name string }
		Jobs      []struct{ Name, Reduce string }
	}
	if err := json.Unmarshal(g.Describe, &d); err != nil || d.ABI != 1 || len(d.Functions) < 10 || len(d.Jobs) != 1 {
		t.Fatalf("describe: %v %s", err, g.Describe)
	}
	past := fmt.Sprint(time.Now().Add(20 * time.Millisecond).UnixMilli())
	tests := []struct {
		name, body string
		head       map[string]string
		chunks     [][]byte
		credit     int
		shard      string
		want       string
		status     string
		fail       string
	}{
		{name: "string", body: `"free offer"`, want: `"**** offer"`},
		{name: "not json", body: `free`, status: "400", want: `"status":400`},
		{name: "struct", head: head(":handler", "order"), body: `{"item":"book","n":1}`, want: `{"item":"book","n":2}`},
		{name: "bytes", head: head(":handler", "bytes"), body: "raw", want: "raw!"},
		{name: "nothing", head: head(":handler", "nothing"), status: "204"},
		{name: "warmed before the first call", head: head(":handler", "warmed"), want: "3"},
		{name: "error", head: head(":handler", "error"), fail: "*fmt.wrapError: no luck: unexpected EOF"},
		{name: "panic", head: head(":handler", "panic"), body: "7", fail: "runtime.boundsError: runtime error: index out of range [7] with length 1"},
		{name: "unknown handler", head: head(":handler", "nix"), fail: "lode.NoHandler: this module has no handler \"nix\""},
		{name: "ten overlapping calls", head: head(":handler", "ten"), want: `["n0","n1","n2","n3","n4","n5","n6","n7","n8","n9"]`},
		{name: "error kinds", head: head(":handler", "notfound"), want: "true"},
		{name: "self", head: head(":handler", "self"), want: `"ID":"01TEST","Attempt":2`},
		{name: "deadline", head: head(":handler", "late", ":deadline", past), want: `"true"`},
		{name: "timers run without operations", head: head(":handler", "sleepy"), want: `"awake"`},
		{name: "bindings", head: head(":handler", "bindings"), want: `{"data":"tail","env":"fallback","id":"ordersk11000{\"item\":\"book\",\"n\":1}","node":"a","secret":"s3cret"}`},
		{name: "streamed in", head: head(":handler", "count"), chunks: [][]byte{[]byte("abc"), []byte("defg")}, want: "7"},
		{name: "http handler", head: head(":handler", "web", ":method", "PUT", ":path", "/a?b=1", "x-color", "red", ":route.id", "7"), body: "body", status: "418",
			want: "PUT /a?b=1 red 7\nbody"},
		{name: "http streamed both ways", head: head(":handler", "web"), chunks: [][]byte{[]byte("one"), []byte("two")}, credit: 2, status: "418", want: "onetwo"},
		{name: "outgoing", head: head(":handler", "web", ":path", "/out"), want: "first second"},
		{name: "job", head: head(":kind", "job", ":shard-bytes", "12", ":records", "lines"), shard: "a b a\nc \"a\"\n", want: `{"\"a\"":1,"a":2,"b":1,"c":1}`},
		{name: "merge", head: head(":kind", "merge"), body: "\x07\x00\x00\x00" + `{"a":1}` + `{"a":2,"b":1}`, want: `{"a":3,"b":1}`},
		{name: "merge cut short", head: head(":kind", "merge"), body: "\x07\x00\x00\x00", fail: "*errors.errorString: a merge request of 4 bytes is cut short"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.head == nil {
				tt.head = head()
			}
			r, err := g.Invoke(ctx, abitest.Call{Head: tt.head, Body: []byte(tt.body), Chunks: tt.chunks, Credit: tt.credit, Shard: []byte(tt.shard), Ops: script})
			if err != nil {
				t.Fatal(err)
			}
			if tt.fail != "" {
				if r.Code == 0 || r.Fail == nil || r.Fail.Type+": "+r.Fail.Message != tt.fail {
					t.Fatalf("failed with %+v, want %s", r.Fail, tt.fail)
				}
				if tt.name == "panic" && (len(r.Fail.Stack) == 0 || !strings.Contains(r.Fail.Stack[0], "main.main.func")) {
					t.Errorf("stack %q", r.Fail.Stack)
				}
				return
			}
			if r.Code != 0 || r.Fail != nil {
				t.Fatalf("code %d, %+v", r.Code, r.Fail)
			}
			if tt.name == "job" { // its keys come in no order
				var c lode.Counts
				if err := json.Unmarshal(r.Body, &c); err != nil {
					t.Fatal(err)
				}
				r.Body, _ = c.MarshalJSON()
			}
			if r.Status != tt.status || !strings.Contains(string(r.Body), tt.want) {
				t.Errorf("status %q, body %q; want %q, %q", r.Status, r.Body, tt.status, tt.want)
			}
		})
	}
	r, err := g.Invoke(ctx, abitest.Call{Head: head(":handler", "log")})
	if err != nil || len(r.Logs) != 1 || r.Logs[0] != (abitest.Line{Level: 4, Text: "msg=careful n=1"}) {
		t.Errorf("logs %v, %v", r.Logs, err)
	}
}

func TestVectors(t *testing.T) {
	wasm := build(t, "testdata/vectors", "")
	abitest.Conformance(t, wasm)
	abitest.AgentConformance(t, wasm)
}
