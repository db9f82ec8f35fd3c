package node

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lode"
	"lode/api"
	"lode/cmd/build"
)

// open starts a node on a free port in a folder that outlives it.
func open(t *testing.T, dir string) (*Node, *api.Client) {
	t.Helper()
	n, err := Open(t.Context(), Config{Dir: dir, Listen: "127.0.0.1:0", Name: "here"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	c, err := api.New(api.Config{URL: n.URL(), Token: n.Token()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return n, c
}

const hello = `package main

import "lode/sdk/go"

func main() { lode.Handle(func(name string) (string, error) { return "hello " + name, nil }) }
`

// built builds a Go source.
func built(t *testing.T, source string) build.Artifact {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("no go toolchain")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	as, err := build.Build(t.Context(), build.Source{Path: dir, Name: "hello"})
	if err != nil {
		t.Fatal(err)
	}
	return as[0]
}

func spec(a build.Artifact) lode.Function {
	return lode.Function{Artifact: a.Digest, Size: int64(len(a.Wasm)), Language: a.Language, Contract: a.Contract, Access: lode.AccessToken,
		Retry: lode.Retry{Attempts: 3, First: 10 * time.Millisecond, Max: time.Second}, Egress: lode.Egress{Mode: "public"},
		Limits: lode.Limits{Memory: 256 << 20, Start: 30 * time.Second, Total: time.Minute, Idle: 5 * time.Minute, Each: 1, QueueMax: 1000, Body: 6 << 20, Tmp: 64 << 20, Log: 256 << 10, OutputMax: 6 << 20}}
}

func deploy(t *testing.T, c *api.Client, a build.Artifact, app lode.App) api.Plan {
	t.Helper()
	if err := c.PutBlob(t.Context(), a.Digest, int64(len(a.Wasm)), bytes.NewReader(a.Wasm)); err != nil {
		t.Fatal(err)
	}
	plan, err := c.Deploy(t.Context(), app, api.DeployOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

func post(t *testing.T, url, body string) (int, string) {
	t.Helper()
	resp, err := http.Post(url, "application/json", bytes.NewReader([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// TestDeployCallRestart is the thinnest whole path: a Go function is built,
// deployed, called over HTTP, and still there after a restart.
func TestDeployCallRestart(t *testing.T) {
	a := built(t, hello)
	dir := t.TempDir()
	n, c := open(t, dir)
	app := lode.App{Name: "greet", Functions: map[lode.Name]lode.Function{"hello": spec(a)}}
	if plan := deploy(t, c, a, app); !plan.Applied || len(plan.Changes) != 1 || plan.Changes[0].Op != api.OpAdd {
		t.Fatalf("plan %+v", plan)
	}
	if status, body := post(t, n.URL()+"/fn/hello", `"you"`); status != 200 || body != `"hello you"` {
		t.Fatalf("%d %s", status, body)
	}
	if err := n.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	n, _ = open(t, dir)
	if status, body := post(t, n.URL()+"/fn/hello", `"again"`); status != 200 || body != `"hello again"` {
		t.Fatalf("after a restart: %d %s", status, body)
	}
}

// TestDamagedArtifact: a module that went bad on the disk is found, named, and
// mended by putting it again.
func TestDamagedArtifact(t *testing.T) {
	a := built(t, hello)
	dir := t.TempDir()
	n, c := open(t, dir)
	app := lode.App{Name: "greet", Functions: map[lode.Name]lode.Function{"hello": spec(a)}}
	deploy(t, c, a, app)
	if err := n.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	path := find(t, filepath.Join(dir, "blobs"), a.Digest.String())
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := errors.Join(os.Chmod(path, 0o644), os.WriteFile(path, b, 0o644)); err != nil {
		t.Fatal(err)
	}
	n, c = open(t, dir)
	if status, body := post(t, n.URL()+"/fn/hello", `"you"`); status != 500 || !strings.Contains(body, `"damaged"`) || !strings.Contains(body, a.Digest.Short()) {
		t.Errorf("damaged: %d %s", status, body)
	}
	if has, err := c.HasBlob(t.Context(), a.Digest); has || err != nil {
		t.Fatalf("the damaged module counts as there: %v %v", has, err)
	}
	deploy(t, c, a, app)
	if status, body := post(t, n.URL()+"/fn/hello", `"you"`); status != 200 || body != `"hello you"` {
		t.Errorf("mended: %d %s", status, body)
	}
}

// TestCollectArtifacts: what no revision names goes, with its native code; what
// is deployed stays.
func TestCollectArtifacts(t *testing.T) {
	n, c := open(t, t.TempDir())
	kept, gone := built(t, hello), built(t, strings.ReplaceAll(hello, "hello ", "goodbye "))
	deploy(t, c, kept, lode.App{Name: "greet", Functions: map[lode.Name]lode.Function{"hello": spec(kept)}})
	if err := c.PutBlob(t.Context(), gone.Digest, int64(len(gone.Wasm)), bytes.NewReader(gone.Wasm)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.DescribeBlob(t.Context(), gone.Digest); err != nil {
		t.Fatal(err)
	}
	if blobs, err := n.collectArtifacts(t.Context(), time.Now().Add(-time.Hour)); blobs != 0 || err != nil {
		t.Fatalf("young: %d %v", blobs, err)
	}
	if blobs, err := n.collectArtifacts(t.Context(), time.Now().Add(time.Hour)); blobs != 2 || err != nil {
		t.Fatalf("old: %d %v; want the module and its code", blobs, err)
	}
	if has, err := c.HasBlob(t.Context(), kept.Digest); !has || err != nil {
		t.Errorf("the deployed module is gone: %v", err)
	}
	if status, body := post(t, n.URL()+"/fn/hello", `"you"`); status != 200 {
		t.Errorf("%d %s", status, body)
	}
}

// find returns the path of the file of that name.
func find(t *testing.T, root, name string) (path string) {
	t.Helper()
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if filepath.Base(p) == name {
			path = p
		}
		return err
	})
	if err != nil || path == "" {
		t.Fatalf("no %s below %s: %v", name, root, err)
	}
	return path
}

// TestHostRoute: a declared route with a host makes the node answer for that
// host, and for no other.
func TestHostRoute(t *testing.T) {
	a := built(t, hello)
	n, c := open(t, t.TempDir())
	f := spec(a)
	f.Routes, f.Access = []string{"POST shop.example.com/greet"}, lode.AccessPublic
	deploy(t, c, a, lode.App{Name: "greet", Functions: map[lode.Name]lode.Function{"hello": f}})
	for host, want := range map[string]int{"shop.example.com": 200, "other.example.com": 421} {
		req, err := http.NewRequestWithContext(t.Context(), "POST", n.URL()+"/greet", strings.NewReader(`"you"`))
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("host %s: %d, want %d", host, resp.StatusCode, want)
		}
	}
}
