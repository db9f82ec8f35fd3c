// Package c_test runs the C header against the ABI's vectors, freestanding and
// with wasi-libc. It is skipped where there is no clang for wasm.
package c_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lode/sdk/abi/abitest"
	"lode/sdk/abi/solo"
)

func compile(t *testing.T, source string, flags ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath("clang"); err != nil {
		t.Skip("no clang")
	}
	out := filepath.Join(t.TempDir(), "guest.wasm")
	args := append(flags, "-Xclang", "-O2", "-Wall", "-Wextra", "-Werror", "-msimd128", "-mbulk-memory", "-I.", "-o", out, "testdata/"+source)
	if b, err := exec.Command("clang", args...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	wasm, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return wasm
}

func TestFreestanding(t *testing.T) {
	wasm := compile(t, "vectors.c", "--target=wasm32", "-nostdlib", "-Wl,--no-entry")
	abitest.Conformance(t, wasm)
	abitest.AgentConformance(t, wasm)
	ctx := context.Background()
	g, err := abitest.Load(ctx, wasm)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close(ctx)
	r, err := g.Invoke(ctx, abitest.Call{Head: map[string]string{":kind": "job", ":shard-bytes": "3"}, Shard: []byte{1, 2, 200}})
	if err != nil || string(r.Body) != "203" {
		t.Errorf("job: %v %+v", err, r)
	}
	r, err = g.Invoke(ctx, abitest.Call{Head: map[string]string{":kind": "merge"}, Body: []byte("\x02\x00\x00\x00" + "20" + "3")})
	if err != nil || string(r.Body) != "23" {
		t.Errorf("merge: %v %+v", err, r)
	}
}

func TestWithLibc(t *testing.T) {
	if _, err := os.Stat("/usr/include/wasm32-wasi"); err != nil {
		t.Skip("no wasi-libc")
	}
	wasm := compile(t, "vectors.c", "--target=wasm32-wasi", "-mexec-model=reactor")
	abitest.Conformance(t, wasm)
	abitest.AgentConformance(t, wasm)
}

func TestAgents(t *testing.T) {
	t.Run("freestanding", func(t *testing.T) {
		agents(t, compile(t, "counter.c", "--target=wasm32", "-nostdlib", "-Wl,--no-entry"))
	})
	t.Run("libc", func(t *testing.T) {
		if _, err := os.Stat("/usr/include/wasm32-wasi"); err != nil {
			t.Skip("no wasi-libc")
		}
		agents(t, compile(t, "counter.c", "--target=wasm32-wasi", "-mexec-model=reactor"))
	})
}

func agents(t *testing.T, wasm []byte) {
	g, err := abitest.Load(t.Context(), wasm)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close(context.Background())
	var d struct {
		Kinds []struct {
			Name          string
			Methods, Read []string
		}
	}
	if err := json.Unmarshal(g.Describe, &d); err != nil || len(d.Kinds) != 1 || d.Kinds[0].Name != "counter" || len(d.Kinds[0].Methods) != 8 || len(d.Kinds[0].Read) != 1 {
		t.Fatalf("describe: %v %s", err, g.Describe)
	}
	a := &abitest.Agents{Guest: g, World: &solo.World{Call: func(_ context.Context, d solo.Delivery) solo.Message {
		return solo.Message{Head: map[string]string{":status": "200"}, Body: append(d.Args, d.Verb...)}
	}}}
	const list = "application/vnd.lode.args+json"
	for _, tt := range []struct {
		agent, kind, verb, form, body string
		want, fail                    string
	}{
		{agent: "a", verb: "add", body: "5", want: "5"},
		{agent: "a", verb: "add", form: list, body: "[ 6 ]", want: "11"},
		{agent: "b", verb: "add", body: "1", want: "1"},
		{agent: "a", kind: "read", verb: "get", want: "11"},
		{agent: "a", verb: "add", body: "-1", want: `"kind":"conflict","detail":"it only \"goes\" up","status":409}`},
		{agent: "a", verb: "add", body: "x", want: `"status":400`},
		{agent: "a", verb: "add", body: "99999999999999999999", want: `"status":400`},
		{agent: "a", verb: "nix", want: `"status":404`},
		{agent: "a", kind: "read", verb: "get", want: "11"},
		{agent: "a", kind: "read", verb: "add", body: "1", fail: "cannot be stored"},
		{agent: "w", verb: "adds", want: "1"},
		{agent: "w", verb: "adds", want: "2"},
		{agent: "a", verb: "many", want: "ade"},
		{agent: "a", verb: "pick", form: list, body: `["a,]\"", {"b": [1, "}"]}, 3]`, want: `{"b": [1, "}"]}`},
		{agent: "a", verb: "pick", form: list, body: `[1]`},
		{agent: "a", verb: "pick", form: list, body: `[`},
		{agent: "a", verb: "ask", want: "5add"},
	} {
		if tt.form == "" && tt.body != "" {
			tt.form = "application/json"
		}
		r, _, err := a.Do(t.Context(), abitest.Turn{Agent: "counter/" + tt.agent, Kind: tt.kind, Verb: tt.verb, Type: tt.form, Body: tt.body})
		if err != nil {
			t.Fatal(err)
		}
		failed := r.Fail
		if failed == nil {
			failed = &abitest.Failure{}
		}
		if !strings.Contains(string(r.Body), tt.want) || (tt.fail != "") != (r.Code != 0) || !strings.Contains(failed.Message, tt.fail) {
			t.Errorf("%+v: code %d %+v %s", tt, r.Code, r.Fail, r.Body)
		}
	}
	if _, sent, err := a.Do(t.Context(), abitest.Turn{Agent: "counter/t", Verb: "remind"}); err != nil || len(sent) != 1 || sent[0].To != "counter/other" || string(sent[0].Args) != "[1]" {
		t.Errorf("%v %+v", err, sent)
	}
	if r, _, err := a.Timer(t.Context(), time.Now().Add(time.Minute)); err != nil || r == nil || string(r.Body) != "7" {
		t.Errorf("timer: %v %+v", err, r)
	}
	for range 600 { // far more than the memory a guest may have
		if r, _, err := a.Do(t.Context(), abitest.Turn{Agent: "counter/m", Verb: "waste"}); err != nil || r.Code != 0 {
			t.Fatalf("%v %+v", err, r)
		}
	}
	if n := g.Memory(); n > 8<<20 {
		t.Errorf("the guest has grown to %d MiB", n>>20)
	}
}
