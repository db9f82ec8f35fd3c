//go:build linux

package node

import (
	"bytes"
	"context"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"lode"
	"lode/api"
	"lode/cmd/build"
)

// exits is a command that ends with an exit code.
func exits(code byte) []byte {
	section := func(id byte, parts ...[]byte) []byte {
		b := bytes.Join(parts, nil)
		return append([]byte{id, byte(len(b))}, b...)
	}
	text := func(s string) []byte { return append([]byte{byte(len(s))}, s...) }
	return bytes.Join([][]byte{
		[]byte("\x00asm\x01\x00\x00\x00"),
		section(1, []byte{2, 0x60, 1, 0x7f, 0, 0x60, 0, 0}),
		section(2, []byte{1}, text("wasi_snapshot_preview1"), text("proc_exit"), []byte{0, 0}),
		section(3, []byte{1, 1}),
		section(5, []byte{1, 0, 1}),
		section(7, []byte{2}, text("memory"), []byte{2, 0}, text("_start"), []byte{0, 1}),
		section(10, []byte{1, 6, 0, 0x41, code, 0x10, 0, 0x0b}),
	}, nil)
}

// TestExitCodes: a command's exit code that is not among the good ones is a
// crash that names it.
func TestExitCodes(t *testing.T) {
	p := start(t, filepath.Join(t.TempDir(), "data"))
	a := lode.App{Name: "exits", Functions: map[lode.Name]lode.Function{}}
	for name, code := range map[lode.Name]byte{"zero": 0, "one": 1, "three": 3} {
		wasm := exits(code)
		if err := p.upload(wasm); err != nil {
			t.Fatal(err)
		}
		f := function(build.Artifact{Digest: digestOf(wasm), Wasm: wasm, Language: "wasm", Contract: lode.ContractCommand})
		f.OKExit = []int{0, 1}
		a.Functions[name] = f
	}
	if _, err := p.c.Deploy(t.Context(), a, api.DeployOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"zero", "one"} {
		if status, body, _ := p.post("/fn/"+name, ""); status != 200 || body != "" {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
	status, body, head := p.post("/fn/three", "")
	problemOf(t, status, body, head, lode.Crashed)
	if !strings.Contains(body, "exit") || !strings.Contains(body, "3") {
		t.Errorf("the exit code is not told: %s", body)
	}
	t.Log(body)
}

// TestGoPanics: a Go function's panic and error are told with their type,
// message and place.
func TestGoPanics(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("no go toolchain")
	}
	p := start(t, filepath.Join(t.TempDir(), "data"))
	src := filepath.Join(t.TempDir(), "fails")
	write(t, filepath.Join(src, "main.go"), `package main

import (
	"errors"

	"lode/sdk/go"
)

type broken struct{ part string }

func (b *broken) Error() string { return b.part + " is broken" }

func main() {
	lode.Handle(func(how string) (string, error) {
		switch how {
		case "panic":
			panic("as asked")
		case "nil":
			var m map[string]int
			m["x"] = 1
		case "index":
			return string(how[len(how)+1]), nil
		case "error":
			return "", &broken{"it"}
		case "plain":
			return "", errors.New("plainly")
		case "stack":
			return deep(0), nil
		}
		return how, nil
	})
}

func deep(n int) string { return deep(n+1) + "x" }
`)
	p.must("", "deploy", src)
	for how, want := range map[string][3]string{
		"panic": {"", "as asked", "main.go:17"},
		"nil":   {"", "assignment to entry in nil map", "main.go:20"},
		"index": {"", "index out of range", "main.go:22"},
		"error": {"broken", "it is broken", ""},
		"plain": {"errorString", "plainly", ""},
		"stack": {"", "", ""},
	} {
		status, body, head := p.post("/fn/fails", `"`+how+`"`, "Content-Type", "application/json")
		e := problemOf(t, status, body, head, lode.Crashed)
		if e.Guest == nil || !strings.Contains(e.Guest.Type, want[0]) || !strings.Contains(e.Guest.Message, want[1]) || !strings.Contains(strings.Join(e.Guest.Stack, "\n"), want[2]) {
			t.Errorf("%s: %.600s", how, body)
		}
		if status, body, _ := p.post("/fn/fails", `"fine"`, "Content-Type", "application/json"); status != 200 || body != `"fine"` {
			t.Errorf("the call after %s: %d %s", how, status, body)
		}
	}
}

// TestLeft: a caller that leaves is 499 in what the node keeps, and its
// function was told to stop.
func TestLeft(t *testing.T) {
	p, s := startLab(t)
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, "POST", p.url+"/fn/web/sleep?ms=30000&k=left", nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		waitFor(t, "the call to begin", func() bool { return s.count("/begun/left") == 1 })
		cancel()
	}()
	if resp, err := plain.Do(req); err == nil {
		resp.Body.Close()
		t.Errorf("an answer: %s", resp.Status)
	}
	waitFor(t, "the metrics to count it", func() bool {
		_, body, _ := p.get("/metrics")
		for line := range strings.Lines(body) {
			if strings.Contains(line, `"cancelled"`) && strings.Contains(line, `"web"`) && !strings.HasSuffix(strings.TrimSpace(line), " 0") {
				return true
			}
		}
		return false
	})
	if s.count("/ended/left") != 0 {
		t.Error("the function ran on")
	}
}
