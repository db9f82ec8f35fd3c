package abitest

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"testing"

	"lode/sdk/abi"
	"lode/sdk/abi/vectors"
)

// conversation is one entry of conversations.json.
type conversation struct {
	Name       string
	Calls      []string // bodies of calls that must overlap
	Operations []struct {
		Op     abi.Op
		Head   map[string]string
		Status abi.Status
		Result map[string]string
		Body   string
	}
	Chunks []string
	Credit int
	Log    string
	Level  int32
	Answer string
	Fail   string
}

// Conformance runs every vector against a module that has a handler for each
// conversation, under its name.
func Conformance(t *testing.T, wasm []byte) {
	ctx := context.Background()
	g, err := Load(ctx, wasm)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close(ctx) })
	var list []conversation
	if err := json.Unmarshal(vectors.Conversations, &list); err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		t.Run(c.Name, func(t *testing.T) {
			if c.Name == "recode" {
				recode(t, g)
				return
			}
			c.run(t, g)
		})
	}
}

// recode sends each message through the guest's codec and back.
func recode(t *testing.T, g *Guest) {
	var list []struct {
		Name, Bytes string
		Malformed   bool
	}
	if err := json.Unmarshal(vectors.Messages, &list); err != nil {
		t.Fatal(err)
	}
	for _, m := range list {
		raw, _ := hex.DecodeString(m.Bytes)
		want := raw
		if m.Malformed {
			want = []byte("malformed")
		}
		r, err := g.Invoke(context.Background(), Call{Head: request("recode"), Body: raw})
		if err != nil || r.Code != 0 {
			t.Fatalf("%s: %v %+v", m.Name, err, r)
		}
		if !bytes.Equal(r.Body, want) {
			t.Errorf("%s: %x became %x", m.Name, raw, r.Body)
		}
	}
}

func request(handler string) map[string]string {
	return map[string]string{":kind": "http", ":method": "POST", ":path": "/", ":handler": handler, ":id": "01VECTOR", ":attempt": "1"}
}

func (c *conversation) run(t *testing.T, g *Guest) {
	call := Call{Head: request(c.Name), Credit: c.Credit}
	for _, p := range c.Chunks {
		call.Chunks = append(call.Chunks, []byte(p))
	}
	turn := c.turns()
	call.Ops = func(ctx context.Context, op abi.Op, m Message) (abi.Status, Message) {
		if c.Calls != nil {
			return turn(ctx, op, m)
		}
		for _, o := range c.Operations {
			if o.Op == op && contains(m.Head, o.Head) {
				return o.Status, Message{Head: o.Result, Body: []byte(o.Body)}
			}
		}
		t.Errorf("operation %d %v is not in the script", op, m.Head)
		return abi.StatusOf("internal"), Message{}
	}
	r, err := g.Invoke(context.Background(), call)
	if err != nil {
		t.Fatal(err)
	}
	if c.Fail != "" {
		if r.Code == 0 || r.Fail == nil || r.Fail.Message != c.Fail || r.Fail.Type == "" {
			t.Fatalf("code %d, failure %+v; want %q", r.Code, r.Fail, c.Fail)
		}
		return
	}
	if r.Code != 0 || string(r.Body) != c.Answer {
		t.Errorf("code %d, failure %+v, answer %q; want %q", r.Code, r.Fail, r.Body, c.Answer)
	}
	if c.Log != "" && (len(r.Logs) != 1 || !bytes.Contains([]byte(r.Logs[0].Text), []byte(c.Log)) || r.Logs[0].Level != c.Level) {
		t.Errorf("log %+v", r.Logs)
	}
}

func contains(m, want map[string]string) bool {
	for k, v := range want {
		if m[k] != v {
			return false
		}
	}
	return true
}

// turns makes the operations that overlap: each waits for its successor, so
// they end last first, and the last waits for all to have begun. A guest that
// awaits one before it starts the next never ends; the test's time limit says
// so.
func (c *conversation) turns() Operations {
	n := len(c.Calls)
	begun := make(chan struct{}, n)
	ended := make([]chan struct{}, n+1)
	for i := range ended {
		ended[i] = make(chan struct{})
	}
	if n > 0 {
		close(ended[n])
	}
	return func(ctx context.Context, op abi.Op, m Message) (abi.Status, Message) {
		i := -1
		for j, body := range c.Calls {
			if op == abi.OpCall && m.Head[":address"] == "echo" && string(m.Body) == body {
				i = j
			}
		}
		if i < 0 {
			return abi.StatusOf("invalid"), Message{}
		}
		begun <- struct{}{}
		defer close(ended[i])
		select {
		case <-ended[i+1]:
		case <-ctx.Done():
			return abi.StatusOf("cancelled"), Message{}
		}
		if i+1 == n {
			for range n { // the last one counts all that began
				select {
				case <-begun:
				case <-ctx.Done():
					return abi.StatusOf("cancelled"), Message{}
				}
			}
		}
		return 0, Message{Head: map[string]string{":status": "200"}, Body: m.Body}
	}
}
