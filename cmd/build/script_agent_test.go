package build

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"lode"
	"lode/sdk/abi"
	"lode/sdk/abi/abitest"
)

func TestAgentDescription(t *testing.T) {
	h := newAgentHost(t, "testdata/agents.js")
	var d lode.Description
	if err := json.Unmarshal(h.guest.Describe, &d); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, k := range d.Kinds {
		b, _ := json.Marshal(k)
		got = append(got, string(b))
	}
	want := []string{
		`{"name":"cart","methods":["add","fill","total","count","cheat","boom","missing","bytes","nothing","never","late","floating","clock","who","gone","others"],"read":["total","cheat"]}`,
		`{"name":"old","methods":[],"fetch":true}`,
		`{"name":"order-flow","methods":["step","inherited"],"migrate":true}`,
		`{"name":"room","methods":["stream"],"fetch":true,"socket":true}`,
		`{"name":"store","methods":["values","copies","lists","foreign","transactions","clear","order","many","keep","steal","bad"]}`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("kinds:\n%s", strings.Join(got, "\n"))
	}
}

// like compares; a star at the end of want stands for anything.
func like(got, want string) bool {
	begin, open := strings.CutSuffix(want, "*")
	return got == want || open && strings.HasPrefix(got, begin)
}

// TestAgentTurns runs methods, one after the other on each agent.
func TestAgentTurns(t *testing.T) {
	h := newAgentHost(t, "testdata/agents.js")
	for _, s := range []struct{ at, verb, args, want string }{
		{"cart/alice", "add", `["book", 2]`, "2"},
		{"cart/alice", "add", `["book", 2]`, "4"},
		{"cart/bob", "add", `["book", 1]`, "1"},
		{"cart/alice", "add", `["pen", 1]`, "1"},
		{"cart/alice", "total", "", "5"},
		{"cart/alice", "count", "", "1"},
		{"cart/alice", "count", "[]", "2"},
		{"cart/alice", "nothing", "", "nothing"},
		{"cart/alice", "fill", "", "6"},
		{"cart/alice", "boom", `["book"]`, "Error: no book"},
		{"cart/alice", "count", "", "1"},
		{"cart/alice", "add", `["book", 1]`, "5"},
		{"cart/alice", "never", "", "NeverSettled: the handler's promise is still pending and nothing is under way that could settle it"},
		{"cart/alice", "count", "", "1"},
		{"cart/alice", "_hidden", "", `404 {"type":"urn:lode:error:not_found"*`},
		{"cart/alice", "constructor", "", `404 {"type":"urn:lode:error:not_found"*`},
		{"cart/alice", "accessor", "", `404 {"type":"urn:lode:error:not_found"*`},
		{"cart/alice", "alarm", "", `404 {"type":"urn:lode:error:not_found"*`},
		{"cart/alice", "add", `["book"`, `400 {"type":"urn:lode:error:invalid","title":"the arguments of add are not JSON*`},
		{"cart/alice", "who", "", `["alice","alice",null,"cart/alice","fast"]`},
		{"cart/alice", "clock", "", `[[["alarm","alarm"],["later","add"]],1000,null,true,false]`},
		{"cart/alice", "others", "", `["cart/bob add [\"book\",2]","cart/eve count ","cart/carl total ","order-flow/7 step ","cart/bob add[\"pen\",1]5","cart/bob add\"ink\"k","\"cart/bob POST/y?z=1 hi\"","bob","undefined"]`},
		{"order-flow/1", "step", "", "1"},
		{"order-flow/1", "step", "", "2"},
		{"order-flow/1", "inherited", "", `"base"`},
		{"store/values", "values", "", "[]"},
		{"store/copies", "copies", "", `{"n":1}`},
		{"store/lists", "lists", "", `[".,.x,a,b1,b2,b3,c,ä","b1,b2,b3","b2,b3","b3,c,ä",".,.x,a","ä,c",".,.x",".x,a","[[\"c\",1],[\".x\",2]]",2,false,true,".x,b1,b2"]`},
		{"store/transactions", "transactions", "", `[2,"no","[[\"a\",1],[\"b\",1]]",5000,3,3,"sync",3,"[[\"a\",3],[\"b\",1]]"]`},
		{"store/clear", "clear", "", `["c",null]`},
		{"store/many", "many", "", `"too_large"`},
		{"store/keep", "keep", "", "nothing"},
		{"store/steal", "steal", "", `["gone","gone","gone","gone"]`},
		{"store/bad", "bad", `["key"]`, "TypeError: a key is not empty"},
		{"store/bad", "bad", `["long"]`, `LodeError: the key kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk... is over 2,048 bytes*`},
		{"store/bad", "bad", `["number"]`, "TypeError: *"},
		{"store/bad", "bad", `["half"]`, "TypeError: a key has no half*"},
		{"store/bad", "bad", `["undef"]`, "TypeError: put() of undefined*"},
		{"store/bad", "bad", `["sql"]`, "LodeError: this.ctx.storage.sql: agents have keys and values*"},
		{"store/bad", "bad", `["alarm"]`, "TypeError: timer.set*"},
		{"store/bad", "bad", `["accept"]`, "LodeError: acceptWebSocket: this request does not ask*"},
		{"store/bad", "bad", `["socket"]`, "LodeError: new WebSocket(url)*"},
		{"store/bad", "bad", `["abort"]`, "LodeError: enough"},
	} {
		if got := h.call(s.at, s.verb, s.args); !like(got, s.want) {
			t.Errorf("%s %s%s = %s, want %s; %q", s.at, s.verb, s.args, got, s.want, h.log)
		}
	}
}

// TestAgentOperations says what each turn asks of the host.
func TestAgentOperations(t *testing.T) {
	h := newAgentHost(t, "testdata/agents.js")
	for _, s := range []struct{ name, at, verb, args, want string }{
		{"one key", "cart/a", "add", `["book", 1]`, "state get,state put"},
		{"known", "cart/a", "add", `["book", 1]`, "state put"},
		{"several keys", "cart/a", "fill", "", "state write,state list,state list,state list"},
		{"none", "cart/a", "count", "", ""},
		{"waitUntil", "cart/a", "late", "", "state put"},
		{"seen outside", "store/a", "order", "", `state write,socket emit  tick"{\"n\":1}",state put,state sync,state put`},
		{"much", "store/a", "many", "", "state write,state write"},
		{"removed", "cart/a", "gone", "", "state remove"},
		{"removed before", "cart/a", "add", `["book", 1]`, "state get,state put"},
	} {
		h.call(s.at, s.verb, s.args)
		if got := strings.Join(h.log, ","); got != s.want {
			t.Errorf("%s: %s, want %s", s.name, got, s.want)
		}
	}
	if got := string(h.agents["cart/a"].keys["book"]); got != "1" {
		t.Errorf("book is %s", got)
	}
}

// TestAgentMemory says when an activation is used again.
func TestAgentMemory(t *testing.T) {
	h := newAgentHost(t, "testdata/agents.js")
	count := func() string { return h.call("cart/a", "count", "") }
	if count() != "1" || count() != "2" {
		t.Error("the activation was not kept")
	}
	h.agents["cart/a"].warm = false // another sandbox ran a turn
	if count() != "1" {
		t.Error("a stale activation was used")
	}
	h.call("cart/a", "add", `["book", 1]`)
	h.agents["cart/a"].keys["book"], h.agents["cart/a"].warm = []byte("7"), false
	if got := h.call("cart/a", "add", `["book", 1]`); got != "8" {
		t.Errorf("a stale value was used: %s", got)
	}
	h.call("cart/a", "missing", "")
	if _, ok := h.agents["cart/a"].keys["m"]; ok {
		t.Error("a failed turn has written")
	}
	h.agents["cart/a"].warm = true // even if the host said so
	if count() != "1" {
		t.Error("the activation of a failed turn was used")
	}
	for i := range 300 {
		h.call("cart/x"+string(rune('a'+i)), "count", "")
	}
	if count() != "1" || count() != "2" {
		t.Error("the oldest activation was not let go")
	}
}

func TestAgentKindsOfTurns(t *testing.T) {
	h := newAgentHost(t, "testdata/agents.js")
	check := func(name, want string, r *abitest.Result) {
		t.Helper()
		if got := h.said(r); got != want {
			t.Errorf("%s: %s, want %s; %q", name, got, want, h.log)
		}
	}
	check("read", "0", h.turn("cart/a", "read", "", ":verb", "total"))
	check("a read that writes", "LodeError: this method only reads", h.turn("cart/a", "read", "", ":verb", "cheat"))
	check("one argument", "Error: no book", h.turn("cart/a", "call", `"book"`, ":verb", "boom", "content-type", "application/json"))
	check("bytes", "\x02\x01\x00", h.turn("cart/a", "call", "\x00\x01\x02", ":verb", "bytes", "content-type", "image/png"))
	check("alarm", "2", h.turn("cart/a", "timer", "", ":verb", "alarm", ":timer", "alarm", ":attempt", "3", ":due", "99"))
	if got := string(h.agents["cart/a"].keys["rang"]); got != `{"retryCount":2,"isRetry":true,"scheduledTime":99}` {
		t.Errorf("alarm: %s", got)
	}
	check("timer", "1", h.turn("cart/a", "timer", `["ink",1]`, ":verb", "add", ":timer", "later", "content-type", "application/vnd.lode.args+json"))
	check("migrate", "nothing", h.turn("order-flow/a", "migrate", "", ":from", "3", ":to", "default/order-flow@4"))
	if got := string(h.agents["order-flow/a"].keys["moved"]); got != "[3,4]" {
		t.Errorf("migrate: %s", got)
	}
	check("fetch without fetch", `404 {"type":"urn:lode:error:not_found","title":"kind cart answers no HTTP requests: its class has no fetch","status":404,"detail":"kind cart answers no HTTP requests: its class has no fetch","kind":"not_found"}`,
		h.turn("cart/a", "fetch", "", ":method", "GET", ":path", "/"))
	check("an old class", "undefined", h.turn("old/a", "fetch", "", ":method", "GET", ":path", "/"))
	check("a class that is not there", `NoHandler: this module has no kind "car"`, h.turn("car/a", "call", "", ":verb", "x"))
	check("a stream", "ab", h.turn("room/a", "call", "", ":verb", "stream"))
	if got := string(h.agents["room/a"].keys["streamed"]); got != "1" || !slices.Equal(h.log, []string{"state put"}) {
		t.Errorf("stream: %q %q", got, h.log)
	}
	r := h.turn("cart/a", "call", "", ":verb", "missing")
	if r.Code == 0 || r.Status != "404" || !strings.Contains(string(r.Body), `"kind":"not_found","hint":"look elsewhere"`) {
		t.Errorf("a failure with a kind: %+v", r)
	}
	r = h.turn("cart/a", "call", "", ":verb", "floating")
	if r.Code != 0 || len(r.Logs) != 1 || r.Logs[0].Text != "gone" || len(h.log) != 0 {
		t.Errorf("a write behind the end: %+v %q", r, h.log)
	}
}

func TestAgentForeignValues(t *testing.T) {
	h := newAgentHost(t, "testdata/agents.js")
	h.agent("store/a").keys = map[string][]byte{"json": []byte(`{"a": 1}`), "text": []byte("hello"), "raw": {0xff, 0}, "empty": {}, ".Items": []byte("1"), "..x": []byte("2")}
	if got := h.call("store/a", "foreign", ""); got != `"[{\"a\":1},\"bytes:104,101,108,108,111\",\"bytes:255,0\",\"bytes:\",[\".x\",\"empty\",\"json\",\"raw\",\"text\"]]"` {
		t.Error(got)
	}
	h.call("cart/a", "fill", "")
	got, _ := json.Marshal(h.agents["cart/a"].keys)
	if want := `{"..dot":"dHJ1ZQ==","b":"IsOkIg==","bytes":"AgD/","c":"WzEseyJkIjpudWxsfV0="}`; string(got) != want {
		t.Errorf("%s", got)
	}
}

func TestAgentSockets(t *testing.T) {
	h := newAgentHost(t, "testdata/agents.js")
	get := func(path string, head ...string) *abitest.Result {
		return h.turn("room/a", "fetch", "", append([]string{":method", "GET", ":path", path}, head...)...)
	}
	if got := h.said(get("/x?y=1")); got != `{"url":"http://h/x?y=1","body":"","n":0}` {
		t.Error(got)
	}
	if got := h.said(get("/early", ":socket", "s2")); !strings.HasPrefix(got, "TypeError: the response's WebSocket was not accepted") {
		t.Error(got)
	}
	if r := get("/", ":socket", "s1"); r.Code != 0 || r.Status != "101" || !slices.Equal(h.log, []string{"socket accept", "socket attach", "state put"}) {
		t.Errorf("%+v %q", r, h.log)
	}
	get("/", ":socket", "s2")
	frame := func(socket, body string, head ...string) string {
		r := h.turn("room/a", "socket", body, append([]string{":event", "message", ":type", "text", ":socket", socket}, head...)...)
		return h.said(r) + " " + strings.Join(h.log, ",")
	}
	for _, s := range []struct {
		name  string
		stale bool
		body  string
		head  []string
		want  string
	}{
		{"text", false, "hi", nil, `nothing socket list,socket send s1 text"7 all,red: hi",socket send s2 text"7 all,red: hi"`},
		{"out of memory", true, "hi", nil, `nothing socket list,socket list,socket send s1 text"7 all,red: hi",socket send s2 text"7 all,red: hi"`},
		{"binary", false, "\x00\xff", []string{":type", "binary"}, `nothing socket list,socket send s1 binary"\x00\xff",socket send s2 binary"\x00\xff"`},
		{"answered by itself", false, "ping", nil, `nothing socket send s1 text"pong"`},
		{"closed by us", false, "bye", nil, `nothing socket close s1 4000"as you like"`},
		{"close", false, "", []string{":event", "close", ":code", "4001", ":reason", "done", ":clean", "1"}, "nothing state put"},
	} {
		if s.stale {
			h.agents["room/a"].warm = false
		}
		if got := frame("s1", s.body, s.head...); got != s.want {
			t.Errorf("%s: %s, want %s", s.name, got, s.want)
		}
	}
	if got := string(h.agents["room/a"].keys["closed"]); got != `[4001,"done",true,3]` {
		t.Error(got)
	}
}

// TestAgentCallers are functions that call agents, are called while they run,
// and are members of groups.
func TestAgentCallers(t *testing.T) {
	h := newAgentHost(t, "testdata/agents.js")
	rounds := map[string]int{}
	ops := func(ctx context.Context, op abi.Op, m abitest.Message) (abi.Status, abitest.Message) {
		verb := m.Head[":verb"]
		switch {
		case op == abi.OpSelf:
			return 0, abitest.Message{Head: map[string]string{":run": "run/n1~7"}}
		case op == abi.OpReceive && verb == "next":
			return 0, abitest.Message{Head: map[string]string{":verb": "stop", ":caller": "cart/a", ":reply": "4", "content-type": "application/vnd.lode.args+json"}, Body: []byte(`[1,{"a":2}]`)}
		case op == abi.OpReceive:
			if m.Head[":reply"] != "4" || m.Head[":status"] != "200" || string(m.Body) != `{"ok":1}` {
				return failed("invalid", "not this reply")
			}
			return 0, abitest.Message{}
		case op == abi.OpGroup && verb == "gather":
			return 0, abitest.Message{Body: []byte(`[{"member":"x","status":200,"value":` + string(m.Body) + `}]`)}
		case op == abi.OpGroup && verb == "reduce" && m.Head[":form"] == "f32" && m.Head[":op"] == "sum":
			return 0, abitest.Message{Body: m.Body}
		case op == abi.OpGroup && verb == "exchange":
			return 0, abitest.Message{Body: []byte("\x02\x00\x00\x00\x04\x00\x00\x00" + string(m.Body) + "\x00\x00\x00\x00")}
		case op == abi.OpGroup && verb == "barrier":
			if rounds[verb]++; rounds[verb] == 2 {
				return abi.StatusOf("unavailable"), abitest.Message{Head: map[string]string{":error": "unavailable", ":missing": "[1]"}}
			}
			return 0, abitest.Message{}
		case op == abi.OpGroup:
			return 0, abitest.Message{}
		}
		return h.operate(ctx, op, m)
	}
	for _, s := range []struct{ handler, want string }{
		{"", `{"total":"cart/alice add [\"book\",2]","kinds":["function","function"]}`},
		{"talk", `["run/n1~7","stop",[1,{"a":2}],true,true]`},
		{"grouped", `[[1,2],["part",""],[{"member":"x","status":200,"value":{"members":["cart/a","cart/b"],"method":"total","args":[]}}],["unavailable",[1]]]`},
	} {
		r, err := h.guest.Invoke(context.Background(), abitest.Call{Ops: ops, Head: map[string]string{":kind": "http", ":method": "GET", ":path": "/", "host": "h", ":handler": s.handler}})
		if err != nil {
			t.Fatal(err)
		}
		if got := h.said(r); got != s.want {
			t.Errorf("%q: %s, want %s", s.handler, got, s.want)
		}
	}
}

// TestAgentValues holds the bytes that sdk/js/README.md promises.
func TestAgentValues(t *testing.T) {
	h := newAgentHost(t, folder(t, "x", map[string]string{"index.js": `import { Agent } from "lode";
export class Box extends Agent {
  async fill() {
    const all = { undefined: [undefined], nan: NaN, zero: -0, bigint: 7n, date: new Date(5), never: new Date(NaN), regexp: /a/g, bytes: new Uint8Array([1, 2]), inside: [new Uint8Array([1, 2])],
      buffer: new Uint8Array([1]).buffer, view: new Uint16Array([1]), map: new Map([["a", 1]]), set: new Set([1]), object: [{ $: 1n }, { $: 1 }], plain: { $: 1, b: [null, true, "x"] } };
    for (const k of Object.keys(all)) await this.ctx.storage.put(k, all[k]);
  }
}`}))
	if got := h.call("box/a", "fill", ""); got != "nothing" {
		t.Fatal(got)
	}
	for key, want := range map[string]string{
		"undefined": "\x01" + `[{"$":["undefined"]}]`, "nan": "\x01" + `{"$":["number","NaN"]}`, "zero": "\x01" + `{"$":["number","-0"]}`, "bigint": "\x01" + `{"$":["bigint","7"]}`,
		"date": "\x01" + `{"$":["date",5]}`, "never": "\x01" + `{"$":["date",null]}`, "regexp": "\x01" + `{"$":["regexp","a","g"]}`, "bytes": "\x02\x01\x02", "inside": "\x01" + `[{"$":["bytes","AQI="]}]`,
		"buffer": "\x01" + `{"$":["buffer","AQ=="]}`, "view": "\x01" + `{"$":["view","Uint16Array","AQA="]}`, "map": "\x01" + `{"$":["map",[["a",1]]]}`, "set": "\x01" + `{"$":["set",[1]]}`,
		"object": "\x01" + `[{"$":["object",{"$":{"$":["bigint","1"]}}]},{"$":["object",{"$":1}]}]`, "plain": `{"$":1,"b":[null,true,"x"]}`,
	} {
		if got := string(h.agents["box/a"].keys[key]); got != want {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
}

// TestAgentFailures are turns that fail in other ways than by their method.
func TestAgentFailures(t *testing.T) {
	h := newAgentHost(t, folder(t, "x", map[string]string{"index.js": `import { Agent } from "lode";
export class Room extends Agent {
  constructor(ctx, env) {
    super(ctx, env);
    if (ctx.id.name === "broken") throw new Error("made of glass");
    if (ctx.id.name === "blocked") ctx.blockConcurrencyWhile(() => Promise.reject(new Error("not yet")));
  }
  ok() { return 1; }
  length(x) { return x.length; }
  async put() { await this.ctx.storage.put("a", 1); }
  async caught() {
    try {
      this.ctx.abort("caught");
    } catch {}
    return 1;
  }
  background() { this.ctx.waitUntil(Promise.reject(new Error("late"))); }
  later() { this.ctx.blockConcurrencyWhile(async () => { throw new Error("blocked"); }); }
  nojson() { return () => 1; }
  timer() { setTimeout(() => this.ctx.storage.put("tick", 1), 1e6); }
  async order() { // a timer's function does not run inside of what waits for the host
    const list = [];
    setTimeout(() => list.push("timer"), 0);
    for (let i = 0; i < 50; i++) {
      list.push("(");
      this.ctx.storage.kv.get("k" + i);
      list.push(")");
    }
    await new Promise((r) => setTimeout(r, 5));
    return list.join("").replace("timer", "") === "()".repeat(50) && !list.join("").includes("(timer)");
  }
}`}))
	for _, s := range []struct{ at, verb, args, want string }{
		{"room/broken", "ok", "", "Error: made of glass"},
		{"room/blocked", "ok", "", "Error: not yet"},
		{"room/a", "ok", "", "1"},
		{"room/a", "length", `["` + strings.Repeat("x", 100_000) + `"]`, "100000"},
		{"room/a", "caught", "", "LodeError: caught"},
		{"room/a", "background", "", "nothing"},
		{"room/a", "later", "", "Error: blocked"},
		{"room/a", "nojson", "", "TypeError: the handler's value is not JSON"},
		{"room/a", "timer", "", "nothing"},
		{"room/a", "order", "", "true"},
	} {
		if got := h.call(s.at, s.verb, s.args); got != s.want {
			t.Errorf("%s %s = %s, want %s", s.at, s.verb, got, s.want)
		}
	}
	h.full = true
	if r := h.turn("room/a", "call", "", ":verb", "put"); r.Code == 0 || r.Status != "507" || !strings.Contains(string(r.Body), `"kind":"full"`) {
		t.Errorf("a write that the host refuses: %+v", r)
	}
	if got := h.call("room/a", "ok", ""); got != "1" || len(h.log) != 0 {
		t.Errorf("after it: %s %q", got, h.log)
	}
}

// FuzzAgentValues reads what other programs may have left in the store.
func FuzzAgentValues(f *testing.F) {
	for _, s := range []string{"", "1", "\x01", "\x02ab", "\x01{}", "\x01{\"$\":5}", `{"$":["map",[1]]}`, `["view","__proto__","AQ=="]`, "\xff"} {
		f.Add([]byte(s))
		f.Add([]byte("\x01" + s))
		f.Add([]byte("\x01{\"$\":" + s + "}"))
	}
	if abitest.Race {
		f.Skip("a guest under the race detector takes minutes, and has one thread")
	}
	a, err := Build(context.Background(), Source{Path: "testdata/agents.js", Cache: f.TempDir()})
	if err != nil {
		f.Fatal(err)
	}
	g, err := abitest.Load(context.Background(), a[0].Wasm)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { g.Close(context.Background()) })
	f.Fuzz(func(t *testing.T, value []byte) {
		h := &agentHost{t: t, guest: g, agents: map[string]*agentState{}}
		h.agent("cart/a").keys = map[string][]byte{"x": value}
		got := h.call("cart/a", "total", "")
		if strings.Contains(got, "Error: ") && !strings.HasPrefix(got, "LodeError: a stored value has a tag") {
			t.Errorf("%q: %s", value, got)
		}
	})
}
