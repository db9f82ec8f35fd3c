package lode_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"lode/sdk/abi"
	"lode/sdk/abi/abitest"
	"lode/sdk/abi/solo"
)

const listOf = "application/vnd.lode.args+json"

// load makes an instance of the guest.
func load(t *testing.T, wasm []byte) *abitest.Guest {
	t.Helper()
	g, err := abitest.Load(t.Context(), wasm)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close(context.Background()) })
	return g
}

func TestAgents(t *testing.T) {
	wasm := build(t, "testdata/agents", "")
	g := load(t, wasm)
	for _, tt := range []struct {
		name string
		run  func(t *testing.T, a *abitest.Agents)
		slow bool // thousands of turns take minutes in an interpreter
	}{
		{"describe", describeAgents, false}, {"turns", agentTurns, false}, {"state", agentState, false}, {"timers", agentTimers, false}, {"sockets", agentSockets, false},
		{"memory", agentMemory, true}, {"many", manyAgents, true},
	} {
		if tt.slow && abitest.Race {
			continue
		}
		t.Run(tt.name, func(t *testing.T) { tt.run(t, &abitest.Agents{Guest: g, World: &solo.World{}}) })
	}
	t.Run("outside", func(t *testing.T) { agentsFromOutside(t, g, load(t, wasm)) })
}

func describeAgents(t *testing.T, a *abitest.Agents) {
	var d struct {
		Kinds []struct {
			Name                   string
			Methods, Read          []string
			Fetch, Socket, Migrate bool
		}
	}
	if err := json.Unmarshal(a.Guest.Describe, &d); err != nil || len(d.Kinds) != 2 {
		t.Fatalf("%v %s", err, a.Guest.Describe)
	}
	c, k := d.Kinds[0], d.Kinds[1]
	if c.Name != "counter" || !slices.Equal(c.Methods, []string{"add", "adds", "fail", "get", "nobody", "nothing", "panic", "waste"}) || !slices.Equal(c.Read, []string{"adds", "get"}) ||
		c.Fetch || c.Socket || c.Migrate {
		t.Errorf("%+v", c)
	}
	if k.Name != "cart" || !k.Fetch || !k.Socket || !k.Migrate || slices.Contains(k.Methods, "serveHTTP") || slices.Contains(k.Methods, "onMessage") || slices.Contains(k.Methods, "migrate") {
		t.Errorf("%+v", k)
	}
}

// step is one turn and what must come of it.
type step struct {
	turn  abitest.Turn
	want  string // answer; status 204: nothing
	fail  string // of fail
	kind  string // of the error that is answered, with want in it
	state string // .N and the like after it; "" is not looked at
}

func (s step) run(t *testing.T, a *abitest.Agents) []solo.Delivery {
	t.Helper()
	r, sent, err := a.Do(t.Context(), s.turn)
	if err != nil {
		t.Fatalf("%+v: %v", s.turn, err)
	}
	if s.kind != "" {
		if r.Code != 0 || !strings.Contains(string(r.Body), `"kind":"`+s.kind+`"`) || !strings.Contains(string(r.Body), s.want) || r.Head["content-type"] != "application/problem+json" {
			t.Errorf("%+v: code %d, %+v, status %s, %q; want the kind %s, %s", s.turn, r.Code, r.Fail, r.Status, r.Body, s.kind, s.want)
		}
	} else if s.fail != "" {
		if r.Code == 0 || r.Fail == nil || !strings.Contains(r.Fail.Type+": "+r.Fail.Message, s.fail) || !strings.Contains(string(r.Body), s.want) {
			t.Errorf("%+v: code %d, %+v, %q; want %s", s.turn, r.Code, r.Fail, r.Body, s.fail)
		}
	} else if r.Code != 0 || string(r.Body) != s.want || (s.want == "" && s.turn.Kind != "socket") != (r.Status == "204") {
		t.Errorf("%+v: code %d, %+v, status %s, %q; want %q", s.turn, r.Code, r.Fail, r.Status, r.Body, s.want)
	}
	if got := stateOf(a, s.turn.Agent); s.state != "" && got != s.state {
		t.Errorf("%+v: state is %s, want %s", s.turn, got, s.state)
	}
	return sent
}

func stateOf(a *abitest.Agents, address string) string {
	var out []string
	state := a.World.State(address)
	for _, k := range slices.Sorted(maps.Keys(state)) {
		out = append(out, k+"="+string(state[k]))
	}
	return strings.Join(out, " ")
}

func call(agent, verb, body string) abitest.Turn {
	return abitest.Turn{Agent: agent, Verb: verb, Body: body}
}

func list(agent, verb, body string) abitest.Turn {
	return abitest.Turn{Agent: agent, Verb: verb, Body: body, Type: listOf}
}

func read(agent, verb string) abitest.Turn {
	return abitest.Turn{Agent: agent, Verb: verb, Kind: "read"}
}

func agentTurns(t *testing.T, a *abitest.Agents) {
	for _, s := range []step{
		{turn: read("counter/a", "get"), want: "0"},
		{turn: call("counter/a", "nothing", ""), want: ""},
		{turn: call("counter/a", "add", "2"), want: "2", state: ".N=2"},
		{turn: call("counter/a", "Add", "3"), want: "5", state: ".N=5"},
		{turn: list("counter/a", "add", "[4]"), want: "9", state: ".N=9"},
		{turn: read("counter/a", "adds"), want: "3"},
		{turn: call("counter/b", "add", "1"), want: "1", state: ".N=1"},
		{turn: call("counter/a", "fail", ""), fail: "*errors.errorString: no luck", state: ".N=9"},
		{turn: read("counter/a", "adds"), want: "0"}, // made again
		{turn: read("counter/a", "get"), want: "9"},
		{turn: call("counter/a", "add", "-1"), kind: "conflict", want: `"hint":"add something"`, state: ".N=9"},
		{turn: call("counter/a", "panic", ""), fail: "panic: boom", state: ".N=9"},
		{turn: call("counter/a", "nobody", ""), kind: "not_found", want: `"status":404`},
		{turn: call("counter/a", "ad", ""), kind: "not_found", want: "methods: add, adds (read), "},
		{turn: call("counter/a", "add", `"x"`), kind: "invalid", want: "it takes (int)"},
		{turn: call("counter/a", "add", ""), kind: "invalid", want: "there are 0 arguments, not 1"},
		{turn: call("counter/a", "get", "1"), kind: "invalid", want: "there is 1 argument, not 0"},
		{turn: list("counter/a", "add", "[1,2]"), kind: "invalid", want: "there are 2 arguments, not 1"},
		{turn: list("counter/a", "add", "{}"), kind: "invalid", want: "are not a list"},
		{turn: call("counter/a", "add", "1"), want: "10", state: ".N=10"},
		{turn: list("cart/x", "add", `["book",2]`), want: `{"book":2}`, state: `.items={"book":2}`}, // defaults are not stored
		{turn: read("cart/x", "total"), want: "2"},
		{turn: list("cart/x", "tags", `["a"]`), want: `"a"`},
		{turn: list("cart/x", "tags", `["a","b","c"]`), want: `"ab,c"`},
		{turn: call("cart/x", "maybe", ""), want: "false"},
		{turn: call("cart/x", "maybe", "1"), want: "true"},
		{turn: abitest.Turn{Agent: "cart/x", Verb: "bytes", Type: "application/octet-stream", Body: "raw"}, want: "raw!"},
		{turn: abitest.Turn{Agent: "cart/x", Verb: "setNote", Type: "text/plain", Body: "a <b>"}, state: `.Note="a \u003cb\u003e" .items={"book":2}`},
		{turn: call("cart/x", "big", "1048600"), kind: "too_large", want: "at most 1 MiB"},
		{turn: call("cart/x", "who", ""), want: `{"Function":"cart","Namespace":"default","Revision":"default/cart@3","ID":"01TURN","Attempt":1,"Trigger":"agent","Due":"","Address":"cart/x",` +
			`"Key":"x","TurnID":"t30","Timer":"","Caller":""}`},
		{turn: abitest.Turn{Agent: "cart/x", Kind: "fetch", Head: map[string]string{":method": "GET", ":path": "/a?b"}}, want: "GET /a 1"},
		{turn: abitest.Turn{Agent: "cart/x", Kind: "migrate", Head: map[string]string{":from": "default/cart@2", ":to": "default/cart@3"}},
			state: `.Hits=1 .Note="migrated 2 3" .items={"book":2}`},
		{turn: abitest.Turn{Agent: "counter/a", Kind: "fetch", Head: map[string]string{":method": "GET", ":path": "/"}}, fail: "answers no HTTP"},
	} {
		if s.turn.Kind == "migrate" {
			r, _, err := a.Do(t.Context(), s.turn)
			if err != nil || r.Code != 0 || stateOf(a, "cart/x") != s.state {
				t.Errorf("migrate: %v %+v %s", err, r, stateOf(a, "cart/x"))
			}
			continue
		}
		s.run(t, a)
	}
}

func agentState(t *testing.T, a *abitest.Agents) {
	for _, s := range []step{
		{turn: call("cart/s", "store", ""), want: `"[a/1=1 a/2=two] 1 true true"`, state: "a/1=1 a/2=two"},
		{turn: call("cart/s", "keep", ""), fail: "later", state: `.Note="kept" a/1=1 a/2=two`},
		{turn: list("cart/s", "add", `["pen",1]`), want: `{"pen":1}`, state: `.Note="kept" .items={"pen":1} a/1=1 a/2=two`},
		{turn: call("cart/s", "wipe", ""), state: `.Hits=0 .Key="s" .Note="kept" .items={"pen":1}`},
		{turn: call("cart/s", "many", "1050"), want: "1050"},
		{turn: call("cart/s", "go", ""), state: ""},
		{turn: read("cart/s", "total"), want: "0"},
	} {
		s.run(t, a)
	}
	if got := stateOf(a, "cart/s"); got != "" {
		t.Errorf("removed, and there is %s", got)
	}
	// A read writes nothing, whatever it does.
	r, _, err := a.Do(t.Context(), abitest.Turn{Agent: "cart/s", Kind: "read", Verb: "store"})
	if err != nil || r.Status != "403" || !strings.Contains(string(r.Body), `"kind":"denied"`) {
		t.Errorf("%v %+v", err, r)
	}
	// Fields of an older form are what Migrate is for.
	w, _ := a.World.Begin(t.Context(), "cart/old", "call", "", "", nil)
	w.Operate(t.Context(), abi.OpState, solo.Message{Head: map[string]string{":verb": "put", ":key": ".items"}, Body: []byte("7")})
	w.End(true)
	step{turn: read("cart/old", "total"), kind: "damaged", want: "not JSON for its field Items"}.run(t, a)
	if r, _, err := a.Do(t.Context(), abitest.Turn{Agent: "cart/old", Kind: "migrate", Head: map[string]string{":from": "1", ":to": "2"}}); err != nil || r.Code != 0 {
		t.Fatalf("%v %+v", err, r)
	}
	step{turn: read("cart/old", "total"), want: "7", state: `.Note="migrated 1 2" .items={"old":7}`}.run(t, a)
}

func agentTimers(t *testing.T, a *abitest.Agents) {
	step{turn: call("cart/t", "remind", "5")}.run(t, a)
	if r, _, _ := a.Timer(t.Context(), time.Now().Add(-time.Second)); r != nil {
		t.Error("it rang too early")
	}
	r, sent, err := a.Timer(t.Context(), time.Now().Add(time.Second))
	if err != nil || r == nil || r.Code != 0 || stateOf(a, "cart/t") != `.Note="rding2"` {
		t.Fatalf("%v %+v %s", err, r, stateOf(a, "cart/t"))
	}
	if len(sent) != 1 || sent[0].To != "counter/rung" || string(sent[0].Args) != "1" || sent[0].From != "cart/t" {
		t.Errorf("sent %+v", sent)
	}
	if due, next := a.World.Due(time.UnixMilli(1 << 51)); len(due) != 0 || !next.IsZero() {
		t.Errorf("%v are still there", due)
	}
	a.World.Call = func(_ context.Context, d solo.Delivery) solo.Message {
		return solo.Message{Head: map[string]string{":status": "200"}, Body: []byte(d.To[len("counter/"):][:0] + string(d.Args) + "0")}
	}
	sent = step{turn: call("cart/t", "order", "7"), want: "70"}.run(t, a)
	if len(sent) != 1 || sent[0].To != "counter/sent" || sent[0].After != time.Second {
		t.Errorf("sent %+v", sent)
	}
	if sent = (step{turn: call("cart/t", "order", "700"), kind: "too_large", want: `"status":413`}).run(t, a); len(sent) != 0 {
		t.Errorf("a turn that failed sent %+v", sent)
	}
}

func agentSockets(t *testing.T, a *abitest.Agents) {
	ask := map[string]string{":method": "GET", ":path": "/", "upgrade": "websocket"}
	for _, id := range []string{"n~1", "n~2"} {
		r, _, err := a.Do(t.Context(), abitest.Turn{Agent: "cart/w", Kind: "fetch", Socket: id, Head: ask})
		if err != nil || r.Code != 0 || r.Status != "101" {
			t.Fatalf("%v %+v", err, r)
		}
	}
	r, _, err := a.Do(t.Context(), abitest.Turn{Agent: "cart/w", Kind: "fetch", Head: ask})
	if err != nil || r.Status != "400" || !strings.Contains(string(r.Body), "nobody asks") {
		t.Errorf("%v %+v", err, r)
	}
	for _, text := range []string{"hi", "bye"} {
		turn := abitest.Turn{Agent: "cart/w", Kind: "socket", Socket: "n~2", Body: text, Head: map[string]string{":event": "message", ":type": "text"}}
		if r, _, err := a.Do(t.Context(), turn); err != nil || r.Code != 0 {
			t.Fatalf("%v %+v", err, r)
		}
	}
	if r, _, err := a.Do(t.Context(), abitest.Turn{Agent: "cart/w", Kind: "socket", Socket: "n~1", Head: map[string]string{":event": "close", ":code": "1001", ":reason": "away"}}); err != nil || r.Code != 0 {
		t.Fatalf("%v %+v", err, r)
	}
	if got, want := stateOf(a, "cart/w"), `.Hits=3 .Note="n~11001away"`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	var got []string
	for _, f := range a.World.Frames() {
		got = append(got, f.Socket+" "+f.Type+" "+string(f.Body))
	}
	want := []string{"n~1 text text hi2 [chat room]", "n~2 text text hi2 [chat room]", ` said "hi"`, "n~1 text text bye2 [chat room]", "n~2 text text bye2 [chat room]", "n~2 close 1000 bye"}
	if !slices.Equal(got, want) {
		t.Errorf("%q\nwant %q", got, want)
	}
}

// manyAgents goes over the bound of instances: what was dropped is read again.
func manyAgents(t *testing.T, a *abitest.Agents) {
	for round := 1; round <= 2; round++ {
		for i := range 1500 {
			step{turn: call(fmt.Sprint("counter/", i), "add", "1"), want: fmt.Sprint(round)}.run(t, a)
		}
	}
}

// agentMemory is about garbage: turns of 1 MiB and of 24 MiB, and many small
// ones, 100,000 with LODE_LONG, leave a guest that is no larger.
func agentMemory(t *testing.T, a *abitest.Agents) {
	for range 64 {
		step{turn: call("counter/m", "waste", "1048576")}.run(t, a)
	}
	before := a.Guest.Memory()
	for range 300 {
		step{turn: call("counter/m", "waste", "1048576")}.run(t, a)
	}
	turns := 3000
	if os.Getenv("LODE_LONG") != "" {
		turns = 100_000
	}
	for i := range turns {
		step{turn: call("counter/m", "add", "1"), want: fmt.Sprint(i + 1)}.run(t, a)
	}
	if after := a.Guest.Memory(); after > before+16<<20 || after > 96<<20 {
		t.Errorf("%d MiB became %d", before>>20, after>>20)
	}
	for range 50 { // all of a sudden
		step{turn: call("counter/m", "waste", "25165824")}.run(t, a)
	}
	if after := a.Guest.Memory(); after > 160<<20 {
		t.Errorf("it has grown to %d MiB", after>>20)
	}
}

// agentsFromOutside is what functions do with agents.
func agentsFromOutside(t *testing.T, g, other *abitest.Guest) {
	w := &solo.World{Call: func(_ context.Context, d solo.Delivery) solo.Message {
		return solo.Message{Head: map[string]string{":status": "200"}, Body: []byte(`1` + d.To[len("counter/"):][:0] + fmt.Sprint(len(d.Args)))}
	}}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // what waits for ever here fails the test
	defer cancel()
	invoke := func(g *abitest.Guest, handler, body string) string {
		s := w.Open()
		defer s.Close()
		r, err := g.Invoke(ctx, abitest.Call{Head: head(":handler", handler), Body: []byte(body), Ops: func(ctx context.Context, op abi.Op, m abitest.Message) (abi.Status, abitest.Message) {
			status, out := s.Operate(ctx, op, solo.Message(m))
			return status, abitest.Message(out)
		}})
		if err != nil || r.Code != 0 {
			t.Errorf("%s: %v %+v", handler, err, r)
			return ""
		}
		return string(r.Body)
	}
	if got := invoke(g, "gather", ""); got != "[13,13]" {
		t.Errorf("gather: %s", got)
	}
	if got := invoke(g, "outside", ""); got != `"unavailable"` {
		t.Errorf("outside: %s", got)
	}
	guests := []*abitest.Guest{g, other}
	got := make([]string, 2)
	var wg sync.WaitGroup
	for rank := range got {
		wg.Go(func() { got[rank] = invoke(guests[rank], "train", fmt.Sprint(rank)) })
	}
	wg.Wait()
	if want := `"[2 1] [1] ab"`; got[0] != want || got[1] != want {
		t.Errorf("train: %q, want %q", got, want)
	}
	wg.Go(func() {
		for _, d := range []solo.Delivery{{Verb: "sum", Type: listOf, Args: []byte("[1,2]")}, {Verb: "fail"}, {Verb: "stop"}} {
			d.To = "run/1"
			var status abi.Status
			var m solo.Message
			for range 1000 {
				if status, m = w.Deliver(t.Context(), d, d.Verb != "stop"); status != abi.StatusOf("not_found") {
					break
				}
				time.Sleep(time.Millisecond)
			}
			if d.Verb == "sum" && string(m.Body) != "3" || d.Verb == "fail" && m.Head[":status"] != "404" || status != 0 {
				t.Errorf("%s: %d %v %s", d.Verb, status, m.Head, m.Body)
			}
		}
	})
	if got := invoke(g, "serve", ""); got != `"run/1true"` {
		t.Errorf("serve: %s", got)
	}
	wg.Wait()
}
