package build

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"lode"
	"lode/sdk"
	"lode/sdk/abi"
	"lode/sdk/abi/abitest"
)

func TestScriptVectors(t *testing.T) {
	skipUnderRace(t)
	a := build(t, Source{Path: "testdata/vectors.js"})
	abitest.Conformance(t, a.Wasm)
}

// TestWebAPI runs the assertions of testdata/webapi.js in the engine: each
// named export is one, and answers "ok" or what differs.
func TestWebAPI(t *testing.T) {
	skipUnderRace(t)
	ctx := context.Background()
	a := build(t, Source{Path: "testdata/webapi.ts"})
	var names []string
	g, err := abitest.Load(ctx, a.Wasm)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close(ctx)
	for _, part := range strings.Split(string(g.Describe), `"name":"`)[1:] {
		name, _, _ := strings.Cut(part, `"`)
		names = append(names, name)
	}
	if len(names) < 15 {
		t.Fatalf("describe: %s", g.Describe)
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			r, err := g.Invoke(ctx, abitest.Call{Head: map[string]string{":kind": "http", ":handler": name}, Ops: scriptOps})
			if err != nil || r.Code != 0 || string(r.Body) != `"ok"` {
				t.Errorf("%v %s %+v", err, r.Body, r.Fail)
			}
		})
	}
}

// skipUnderRace leaves out what runs a guest: the plain run tests it.
func skipUnderRace(t *testing.T) {
	if abitest.Race {
		t.Skip("a guest under the race detector takes minutes, and has one thread")
	}
}

// scriptOps is a host with one function, one secret, one variable.
func scriptOps(ctx context.Context, op abi.Op, m abitest.Message) (abi.Status, abitest.Message) {
	json := map[string]string{":status": "200", "content-type": "application/json"}
	switch {
	case op == abi.OpConfig && m.Head[":key"] == "":
		return 0, abitest.Message{Body: []byte(`{"MODE":"fast"}`)}
	case op == abi.OpSecret && m.Head[":key"] == "TOKEN":
		return 0, abitest.Message{Body: []byte("s3cret")}
	case op == abi.OpSecret:
		return abi.StatusOf("denied"), abitest.Message{}
	case op == abi.OpCall && m.Head[":address"] == "up-case":
		return 0, abitest.Message{Head: json, Body: []byte(strings.ToUpper(string(m.Body)))}
	case op == abi.OpCall:
		return abi.StatusOf("not_found"), abitest.Message{Head: map[string]string{":error": "not_found", ":detail": "nobody"}}
	case op == abi.OpData && m.Head[":verb"] == "index":
		return 0, abitest.Message{Body: []byte(`{"names":["a.txt","b.txt"],"ends":[2,5]}`)}
	case op == abi.OpQueue:
		return 0, abitest.Message{Head: map[string]string{":id": m.Head[":queue"] + string(m.Body)}}
	case op == abi.OpFetch && strings.Contains(m.Head[":url"], "slow"):
		<-ctx.Done()
		return abi.StatusOf("cancelled"), abitest.Message{}
	case op == abi.OpFetch:
		time.Sleep(time.Millisecond)
		return 0, abitest.Message{Head: map[string]string{":status": "201", "x-url": m.Head[":url"], "x-method": m.Head[":method"], ":stream": "3"}, Body: m.Body}
	case op == abi.OpStreamRead:
		return 0, abitest.Message{}
	}
	return abi.StatusOf("unavailable"), abitest.Message{}
}

func TestScriptWorker(t *testing.T) {
	skipUnderRace(t)
	ctx := context.Background()
	dir := folder(t, "shop", map[string]string{
		"package.json": `{"main": "src/worker.ts"}`,
		"src/worker.ts": `import { greet } from "./greet";
import pad from "pad";
interface Env { MODE: string }
export default {
  async fetch(request: Request, env: Env, ctx: any): Promise<Response> {
    const url = new URL(request.url);
    if (url.pathname === "/stream") return new Response(request.body!.pipeThrough(new TransformStream()), { status: 203 });
    if (url.pathname === "/boom") return explode(null);
    if (url.pathname === "/node") return process.exit(1);
    if (url.pathname === "/never") return new Promise(() => {});
    ctx.waitUntil(new Promise((r) => setTimeout(() => { console.log("later", { a: 1 }); r(0); }, 1)));
    return Response.json({ greeting: greet(await request.text()), mode: env.MODE, pad: pad("x"), method: request.method, color: request.headers.get("X-Color") });
  },
  async scheduled(event: any) { console.log("tick", event.scheduledTime); },
  async queue(batch: any) { for (const m of batch.messages) if (m.body.n === 2) m.retry(); },
};
function explode(x: any): any {
  return x.field;
}
export const names = { map: (s: any) => [...[...s.files()].map(([n, b]: any) => n + "=" + new TextDecoder().decode(b)), ...s.records()] };
export const job = { map: (s: any) => [...s.records()].length, merge: (a: number, b: number) => a + b };
`,
		"src/greet.ts":              "export const greet = (name: string) => `hello ${name}`;\n",
		"node_modules/pad/index.js": "module.exports = (s) => '<' + s + '>';\n",
	})
	a := build(t, Source{Path: dir})
	if a.Language != "ts" || a.Contract != lode.ContractHandler || len(a.Watch) != 3 {
		t.Errorf("%s %s %v", a.Language, a.Contract, a.Watch)
	}
	g, err := abitest.Load(ctx, a.Wasm)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close(ctx)
	head := func(kv ...string) map[string]string {
		m := map[string]string{":kind": "http", ":method": "POST", ":path": "/", "host": "h", "x-color": "red"}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = kv[i+1]
		}
		return m
	}
	tests := []struct {
		name string
		call abitest.Call
		want string
		fail string
		log  string
	}{
		{"fetch", abitest.Call{Head: head(), Body: []byte("you")}, `{"greeting":"hello you","mode":"fast","pad":"<x>","method":"POST","color":"red"}`, "", "later {a: 1}"},
		{"stream", abitest.Call{Head: head(":path", "/stream"), Chunks: [][]byte{[]byte("ab"), []byte("cd"), []byte("ef")}, Credit: 1}, "abcdef", "", ""},
		{"mapped stack", abitest.Call{Head: head(":path", "/boom")}, "", "TypeError: cannot read property 'field' of null explode (src/worker.ts:18:10)", ""},
		{"missing global", abitest.Call{Head: head(":path", "/node")}, "", `ReferenceError: process is not defined: the JavaScript here has no process; Node itself comes in a later version`, ""},
		{"never settles", abitest.Call{Head: head(":path", "/never")}, "", "NeverSettled: ", ""},
		{"schedule", abitest.Call{Head: head(":kind", "schedule", ":schedule", "2026-01-02T03:04:05Z")}, "", "", "tick 1767323045000"},
		{"queue", abitest.Call{Head: head(":kind", "queue"), Body: []byte(`{"queue":"q","messages":[{"id":"a","attempt":1,"time":"2026-01-02T03:04:05Z","type":"application/json","body":"eyJuIjoxfQ=="},{"id":"b","attempt":1,"time":"2026-01-02T03:04:05Z","type":"application/json","body":"eyJuIjoyfQ=="}]}`)}, `{"retry":["b"]}`, "", ""},
		{"job", abitest.Call{Head: head(":kind", "job", ":shard-bytes", "8", ":records", "lines"), Shard: []byte("a\nb\r\nccc")}, "3", "", ""},
		{"job over files", abitest.Call{Head: head(":kind", "job", ":handler", "names", ":shard-bytes", "5", ":records", "files", ":dataset", "d", ":shard", "1"), Shard: []byte("aabbb")}, `["a.txt=aa","b.txt=bbb","aa","bbb"]`, "", ""},
		{"merge", abitest.Call{Head: head(":kind", "merge"), Body: []byte("\x01\x00\x00\x0034")}, "7", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.call.Ops = scriptOps
			r, err := g.Invoke(ctx, tt.call)
			if err != nil {
				t.Fatal(err)
			}
			if tt.fail != "" {
				if r.Fail == nil || !strings.HasPrefix(r.Fail.Type+": "+r.Fail.Message+" "+strings.Join(r.Fail.Stack, " "), tt.fail) {
					t.Errorf("%+v", r.Fail)
				}
				return
			}
			if r.Code != 0 || string(r.Body) != tt.want {
				t.Errorf("%d %q %+v", r.Code, r.Body, r.Fail)
			}
			if tt.log != "" && (len(r.Logs) != 1 || r.Logs[0].Text != tt.log) {
				t.Errorf("%v", r.Logs)
			}
		})
	}
}

func TestScriptRefusals(t *testing.T) {
	tests := []struct{ name, text, want, hint string }{
		{"syntax", "export default {\n  fetch( {\n};", "index.js:3:2: Expected \")\" but found \";\"", ""},
		{"package", "import x from 'left-pad'; export default x", "index.js:1:15: Could not resolve \"left-pad\"", "npm install left-pad"},
		{"node", "import fs from 'node:fs'; export default () => fs", "Could not resolve \"node:fs\"", "later version"},
		{"agent of workers", "import { Agent } from 'cloudflare:workers'; export class Cart extends Agent {}", "Agent", `from "lode"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Build(context.Background(), Source{Path: folder(t, "f", map[string]string{"index.js": tt.text})})
			e := lode.AsError(err)
			if e == nil || e.Kind != lode.Invalid || !strings.Contains(e.Detail, tt.want) || !strings.Contains(e.Hint, tt.hint) {
				t.Errorf("%v hint %q", err, e.Hint)
			}
		})
	}
	skipUnderRace(t)
	for _, text := range []string{"throw new Error('at the top')", "await new Promise(() => {}); export default 1", "export default 1",
		"import { Agent } from 'lode'; export class Cart extends Agent { static read = ['add']; }", "import { Agent } from 'lode'; export class _1 extends Agent {}"} {
		a := build(t, Source{Path: folder(t, "f", map[string]string{"index.js": text})})
		if g, err := abitest.Load(context.Background(), a.Wasm); err == nil {
			g.Close(context.Background())
			t.Errorf("%q loads", text)
		} else {
			t.Log(err)
		}
	}
}

// TestScriptTypes holds the declarations for editors against what there is.
func TestScriptTypes(t *testing.T) {
	_, workers, _ := strings.Cut(sdk.Types(), `declare module "cloudflare:workers"`)
	text := map[string]string{"lode": strings.TrimSuffix(sdk.Types(), workers), "cloudflare:workers": workers}
	for module, names := range exported {
		for _, name := range append(strings.Split(names, ", "), "env") {
			declared := regexp.MustCompile(`\b` + name + `\b.*from "lode"|export (class|const|function) ` + name + `\b`)
			if name != "recode" && !declared.MatchString(text[module]) {
				t.Errorf("lode.d.ts does not declare %s of %s", name, module)
			}
		}
	}
}

func TestEntry(t *testing.T) {
	dir := folder(t, "x", map[string]string{"package.json": `{"main": "missing.js"}`, "index.mjs": "export default () => 1"})
	if a := build(t, Source{Path: dir}); a.Language != "js" {
		t.Errorf("%s", a.Language)
	}
	if err := os.WriteFile(filepath.Join(dir, "package.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Build(context.Background(), Source{Path: dir}); lode.KindOf(err) != lode.Invalid {
		t.Errorf("%v", err)
	}
}
