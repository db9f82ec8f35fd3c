package build

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"lode"
	"lode/sdk/abi/abitest"
)

// folder writes files into a new folder of that name.
func folder(t *testing.T, name string, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	for f, text := range files {
		at := filepath.Join(dir, filepath.FromSlash(f))
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// build builds one artifact.
func build(t *testing.T, s Source) Artifact {
	t.Helper()
	if s.Cache == "" {
		s.Cache = filepath.Join(t.TempDir(), "cache")
	}
	a, err := Build(context.Background(), s)
	if err != nil {
		t.Fatal(err)
	}
	if len(a) != 1 {
		t.Fatalf("%d artifacts", len(a))
	}
	return a[0]
}

// answer runs a handler module once.
func answer(t *testing.T, wasm []byte, call abitest.Call) *abitest.Result {
	t.Helper()
	skipUnderRace(t)
	ctx := context.Background()
	g, err := abitest.Load(ctx, wasm)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close(ctx)
	if call.Head == nil {
		call.Head = map[string]string{":kind": "http", ":method": "POST", ":path": "/"}
	}
	r, err := g.Invoke(ctx, call)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

const helloGo = `package main

import (
	"context"
	"lode/sdk/go"
)

func hello(ctx context.Context, name string) (string, error) { return "hello " + name, nil }

func main() { lode.Handle(hello) }
`

func TestGoWithoutModule(t *testing.T) {
	dir := folder(t, "My_App", map[string]string{"main.go": helloGo})
	s := Source{Path: dir, Cache: filepath.Join(t.TempDir(), "cache")}
	a := build(t, s)
	if a.Name != "my-app" || a.Language != "go" || a.Contract != lode.ContractHandler || a.Cached {
		t.Fatalf("%s %s %s %v", a.Name, a.Language, a.Contract, a.Cached)
	}
	if r := answer(t, a.Wasm, abitest.Call{Body: []byte(`"you"`)}); string(r.Body) != `"hello you"` {
		t.Fatalf("%+v", r)
	}
	if again := build(t, s); !again.Cached || again.Digest != a.Digest {
		t.Error("an unchanged folder was built again")
	}
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(strings.Replace(helloGo, "hello ", "bye ", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	if changed := build(t, s); changed.Cached || changed.Digest == a.Digest {
		t.Error("a changed folder was not built")
	}
	list, err := os.ReadDir(dir)
	if err != nil || len(list) != 1 {
		t.Errorf("the source folder holds %d files, %v", len(list), err)
	}
}

func TestGoShapes(t *testing.T) {
	cache := filepath.Join(t.TempDir(), "cache")
	sub := "package words\n\nfunc Say() string { return \"from a package\" }\n"
	web := `package main

import (
	"net/http"

	"lode/sdk/go"
	"example.com/app/words"
)

func main() {
	lode.Handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write([]byte(words.Say())) }))
}
`
	dir := folder(t, "app", map[string]string{"go.mod": "module example.com/app\n\ngo 1.26\n", "words/words.go": sub, "web/main.go": web})
	a := build(t, Source{Path: filepath.Join(dir, "web"), Cache: cache})
	if r := answer(t, a.Wasm, abitest.Call{}); string(r.Body) != "from a package" || r.Head["content-type"] == "" {
		t.Errorf("%+v", r)
	}
	command := folder(t, "upper", map[string]string{"main.go": "package main\n\nimport \"fmt\"\n\nfunc main() { fmt.Println(\"hi\") }\n"})
	if a := build(t, Source{Path: command, Cache: cache}); a.Contract != lode.ContractCommand {
		t.Errorf("contract %s", a.Contract)
	}
	file := filepath.Join(command, "main.go")
	if a := build(t, Source{Path: file, Cache: cache, Name: "other"}); a.Name != "other" {
		t.Errorf("name %s", a.Name)
	}
}

const helloC = `#include "lode.h"
static int hello(void) { lode_bytes b = lode_body(); return lode_answer(200, "text/plain", b.ptr, b.len); }
LODE_EXPORTS(LODE_FUNCTION("", hello))
`

func TestC(t *testing.T) {
	if _, err := findClang(); err != nil {
		t.Skip(err)
	}
	s := Source{Path: folder(t, "echo", map[string]string{"echo.c": helloC}), Cache: filepath.Join(t.TempDir(), "cache")}
	a := build(t, s)
	if a.Contract != lode.ContractHandler || a.Language != "c" {
		t.Fatalf("%s %s", a.Contract, a.Language)
	}
	if r := answer(t, a.Wasm, abitest.Call{Body: []byte("x")}); string(r.Body) != "x" {
		t.Errorf("%+v", r)
	}
	if !build(t, s).Cached {
		t.Error("an unchanged folder was built again")
	}
	if _, err := findSysroot(); err != nil {
		t.Skip(err)
	}
	with := folder(t, "libc", map[string]string{"a.c": "#include <string.h>\n" + strings.Replace(helloC, "b.len)", "(uint32_t)strlen(\"a\"))", 1)})
	if r := answer(t, build(t, Source{Path: with}).Wasm, abitest.Call{Body: []byte("xyz")}); string(r.Body) != "x" {
		t.Errorf("%+v", r)
	}
	command := folder(t, "cmd", map[string]string{"a.c": "#include <stdio.h>\nint main(void) { puts(\"hi\"); return 0; }\n"})
	if a := build(t, Source{Path: command}); a.Contract != lode.ContractCommand {
		t.Errorf("contract %s", a.Contract)
	}
}

func TestRefusals(t *testing.T) {
	cache := filepath.Join(t.TempDir(), "cache")
	tests := []struct {
		name  string
		files map[string]string
		kind  lode.Kind
		want  string
		hint  string
	}{
		{"empty", map[string]string{"README": ""}, lode.Invalid, "holds no source", "lode new"},
		{"go", map[string]string{"main.go": "package main\n\nfunc main() { x := 1 }\n"}, lode.Invalid, "main.go:3:15: declared and not used: x", ""},
		{"library", map[string]string{"a.go": "package a\n"}, lode.Invalid, "not a main package", "lode deploy"},
		{"agent", map[string]string{"main.go": "package main\n\nimport \"lode/sdk/go\"\n\nfunc main() { lode.Agent(\"cart\", 1) }\n"}, lode.Invalid, "in call to lode.Agent, cannot infer T", "lode.Agent takes a name"},
		{"needs-module", map[string]string{"main.go": "package main\n\nimport _ \"example.com/x\"\n\nfunc main() {}\n"}, lode.Invalid, "example.com/x", "go mod init"},
		{"c", map[string]string{"a.c": "#include \"lode.h\"\nint f(void) { return y; }\n"}, lode.Invalid, "a.c:2:22: error: use of undeclared identifier 'y'", ""},
		{"c-none", map[string]string{"a.c": "int f(void) { return 1; }\n"}, lode.Invalid, "neither lode.h nor a main", "LODE_EXPORTS"},
		{"cut", map[string]string{"a.wasm": "\x00asm\x01\x00\x00\x00\x07\x99"}, lode.Invalid, "cut short", ""},
		{"exports", map[string]string{"a.wasm": "\x00asm\x01\x00\x00\x00"}, lode.Invalid, "neither lode_invoke nor _start", "handler"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Build(context.Background(), Source{Path: folder(t, tt.name, tt.files), Cache: cache})
			var e *lode.Error
			if !errors.As(err, &e) {
				t.Fatalf("%v", err)
			}
			if e.Kind == lode.Unavailable {
				t.Skip(err)
			}
			if e.Kind != tt.kind || !strings.Contains(e.Detail, tt.want) || !strings.Contains(e.Hint, tt.hint) {
				t.Errorf("%s %q hint %q; want %s %q hint %q", e.Kind, e.Detail, e.Hint, tt.kind, tt.want, tt.hint)
			}
		})
	}
}

// TestGoNative builds a function for this machine, as go run does, in a folder
// with the go.mod that GoModule gives.
func TestGoNative(t *testing.T) {
	cache := filepath.Join(t.TempDir(), "cache")
	mod, err := GoModule("hello", cache)
	if err != nil {
		t.Fatal(err)
	}
	dir := folder(t, "hello", map[string]string{"main.go": helloGo, "go.mod": mod})
	cmd := exec.Command("go", "build", "-o", filepath.Join(t.TempDir(), "hello"), ".")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if a := build(t, Source{Path: dir, Cache: cache}); a.Contract != lode.ContractHandler {
		t.Errorf("contract %s", a.Contract)
	}
}

func TestChildren(t *testing.T) {
	dir := folder(t, "both", map[string]string{"one/main.go": helloGo, "two/main.go": helloGo, "docs/a.md": "", "node_modules/x/index.js": ""})
	a, err := Build(context.Background(), Source{Path: dir, Cache: filepath.Join(t.TempDir(), "cache")})
	if err != nil || len(a) != 2 || a[0].Name != "one" || a[1].Name != "two" {
		t.Errorf("%v %v", a, err)
	}
}

func FuzzExports(f *testing.F) {
	f.Add([]byte("\x00asm\x01\x00\x00\x00"))
	f.Add(addSection([]byte("\x00asm\x01\x00\x00\x00\x07\x0f\x01\x0blode_invoke\x00\x00"), "lode.init", []byte("x")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if names, err := exports(b); err == nil {
			again, err := exports(addSection(b, "x", []byte("data")))
			if err != nil || len(again) != len(names) {
				t.Errorf("a custom section changed the exports: %v", err)
			}
		}
	})
}
