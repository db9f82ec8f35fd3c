//go:build linux

package node

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"lode"
	"lode/api"
)

// app declares one function under a name, perhaps with a route.
func app(name, fn lode.Name, f lode.Function, routes ...string) lode.App {
	f.Routes = routes
	return lode.App{Name: name, Functions: map[lode.Name]lode.Function{fn: f}}
}

// TestTwoDeploys: of two deploys at once that cannot both be, one wins and the
// other is told why; of two that can, the result is one of them, whole.
func TestTwoDeploys(t *testing.T) {
	p := start(t, filepath.Join(t.TempDir(), "data"))
	e := guestC(t, echo)
	if err := p.upload(e.Wasm); err != nil {
		t.Fatal(err)
	}
	f := function(e)
	race := func(what string, n int, deploy func(i int) error) (won int) {
		t.Helper()
		var wg sync.WaitGroup
		errs := make([]error, n)
		for i := range n {
			wg.Go(func() { errs[i] = deploy(i) })
		}
		wg.Wait()
		for _, err := range errs {
			if err == nil {
				won++
			} else if k := kindOf(err); k != lode.Conflict && k != lode.Precondition || lode.AsError(err).Hint == "" {
				t.Errorf("%s: %s: %v (hint %q)", what, k, err, lode.AsError(err).Hint)
			} else {
				t.Logf("%s: %v | %s", what, err, lode.AsError(err).Hint)
			}
		}
		return won
	}
	ctx := t.Context()
	for round := range 5 {
		fn := lode.Name(fmt.Sprintf("same%d", round))
		if won := race("same name", 4, func(i int) error {
			_, err := p.c.Deploy(ctx, app(lode.Name(fmt.Sprintf("n%d-%d", round, i)), fn, f), api.DeployOptions{})
			return err
		}); won != 1 {
			t.Errorf("%d apps own the name %s", won, fn)
		}
		if won := race("same route", 4, func(i int) error {
			_, err := p.c.Deploy(ctx, app(lode.Name(fmt.Sprintf("r%d-%d", round, i)), lode.Name(fmt.Sprintf("f%d-%d", round, i)), f, fmt.Sprintf("/shop%d", round)), api.DeployOptions{})
			return err
		}); won != 1 {
			t.Errorf("%d apps own the route", won)
		}
		if status, body, _ := p.post(fmt.Sprintf("/shop%d", round), "x"); status != 200 || body != "x" {
			t.Errorf("the route of the winner: %d %s", status, body)
		}
		won := race("same app", 4, func(i int) error {
			_, err := p.c.Deploy(ctx, trio(f, round*10+i), api.DeployOptions{})
			return err
		})
		if won == 0 {
			t.Error("nobody could deploy")
		}
		p.keepsApp(newPromises())
		a, err := p.c.GetApp(ctx, "trio")
		if err != nil {
			t.Fatal(err)
		}
		if won := race("seen before", 4, func(i int) error {
			_, err := p.c.Deploy(ctx, trio(f, 100+round*10+i), api.DeployOptions{IfMatch: a.ETag})
			return err
		}); won != 1 {
			t.Errorf("%d deploys changed what they had seen", won)
		}
	}
}

// TestBrokenUploads: bytes that do not come whole, or are not what they are
// said to be, are not there.
func TestBrokenUploads(t *testing.T) {
	p := start(t, filepath.Join(t.TempDir(), "data"))
	e := guestC(t, echo)
	ctx := t.Context()
	if err := p.c.PutBlob(ctx, e.Digest, int64(len(e.Wasm)), bytes.NewReader(append([]byte("x"), e.Wasm[1:]...))); kindOf(err) != lode.Damaged {
		t.Errorf("other bytes: %v", err)
	}
	for name, request := range map[string]string{
		"blob":    fmt.Sprintf("PUT /v1/blobs/%s HTTP/1.1\r\nContent-Type: application/octet-stream\r\nContent-Length: %d", e.Digest, len(e.Wasm)),
		"chunked": fmt.Sprintf("PUT /v1/blobs/%s HTTP/1.1\r\nContent-Type: application/octet-stream\r\nTransfer-Encoding: chunked", e.Digest),
		"dataset": "PUT /v1/datasets/cut?records=lines&file=x HTTP/1.1\r\nContent-Type: application/octet-stream\r\nContent-Length: 100000",
		"tar":     "PUT /v1/datasets/cut?records=lines HTTP/1.1\r\nContent-Type: application/x-tar\r\nContent-Length: 100000",
		"app":     "PUT /v1/apps/cut HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 1000",
		"secret":  "PUT /v1/secrets/CUT HTTP/1.1\r\nContent-Type: application/octet-stream\r\nContent-Length: 1000",
		"message": "POST /queues/cut HTTP/1.1\r\nContent-Length: 1000",
	} {
		c, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "%s\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n\r\n", request, p.token)
		if name == "chunked" {
			fmt.Fprintf(c, "%x\r\n", len(e.Wasm)/2)
		}
		c.Write(e.Wasm[:min(len(e.Wasm)/2, 900)])
		if name == "chunked" { // the end of the stream instead of its last chunk
			c.(*net.TCPConn).CloseWrite()
		}
		time.Sleep(20 * time.Millisecond)
		c.Close()
	}
	if ok, err := p.c.HasBlob(ctx, e.Digest); ok || err != nil {
		t.Errorf("half a blob is there: %v, %v", ok, err)
	}
	if _, err := p.c.GetDataset(ctx, "cut", 0); kindOf(err) != lode.NotFound {
		t.Errorf("half a dataset is there: %v", err)
	}
	if _, err := p.c.GetApp(ctx, "cut"); kindOf(err) != lode.NotFound {
		t.Errorf("half an app is there: %v", err)
	}
	if l, err := p.c.ListSecrets(ctx, api.Page{}); err != nil || len(l.Items) != 0 {
		t.Errorf("half a secret is there: %v %v", l, err)
	}
	p.wait("temporary files to go", func() bool { return len(regular(t, p.dir, "blobs/tmp"))+len(regular(t, p.dir, "data/tmp")) == 0 })
	if _, err := p.c.Deploy(ctx, app("early", "early", function(e)), api.DeployOptions{}); kindOf(err) != lode.Precondition {
		t.Errorf("a deploy without its artifact: %v", err)
	}
	if err := p.upload(e.Wasm); err != nil {
		t.Fatal(err)
	}
	if _, err := p.c.Deploy(ctx, app("early", "early", function(e)), api.DeployOptions{}); err != nil {
		t.Error(err)
	}
}

// regular lists the regular files below a folder.
func regular(t *testing.T, dir string, below string) (out []string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(dir, below), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			out = append(out, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// flip changes one byte in the middle of a file.
func flip(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 0x40
	rewrite(t, path, b)
}

func rewrite(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestDamagedArtifact: a flipped byte in compiled code is repaired in silence,
// one in the artifact is found, and a new upload heals it.
func TestDamagedArtifact(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	p := start(t, dir)
	e := guestC(t, echo)
	if err := p.upload(e.Wasm); err != nil {
		t.Fatal(err)
	}
	if _, err := p.c.Deploy(t.Context(), app("echo", "echo", function(e)), api.DeployOptions{}); err != nil {
		t.Fatal(err)
	}
	works := func(when string) {
		t.Helper()
		if status, body, _ := p.post("/fn/echo", "hello"); status != 200 || body != "hello" {
			t.Errorf("%s: %d %s", when, status, body)
		}
	}
	works("at first")
	var artifact string
	code := 0
	p.stop()
	for _, path := range regular(t, dir, "blobs/blobs") {
		if filepath.Base(path) == e.Digest.String() {
			artifact = path
			continue
		}
		flip(t, path)
		code++
	}
	if artifact == "" || code == 0 {
		t.Fatalf("artifact %q and %d others in %s", artifact, code, dir)
	}
	p = start(t, dir)
	works("with damaged code")
	p.stop()
	for _, path := range regular(t, dir, "blobs/blobs") {
		if path != artifact {
			os.Chmod(path, 0o600)
			os.Truncate(path, 100)
		}
	}
	p = start(t, dir)
	works("with truncated code")
	p.stop()

	flip(t, artifact)
	for _, path := range regular(t, dir, "blobs/blobs") {
		if path != artifact {
			os.Remove(path)
		}
	}
	p = start(t, dir)
	status, body, head := p.post("/fn/echo", "hello")
	if e := problemOf(t, status, body, head, lode.Damaged); e.Hint == "" {
		t.Errorf("no hint: %s", body)
	}
	if !strings.Contains(body, e.Digest.String()[:12]) {
		t.Errorf("the damaged artifact is not named: %s", body)
	}
	t.Log(body)
	if err := p.upload(e.Wasm); err != nil {
		t.Fatal(err)
	}
	works("after another upload")
}

// TestDamagedShard: a flipped byte, and a shard cut short, are found by the
// checksum and named; what is whole can still be read.
func TestDamagedShard(t *testing.T) {
	labReady.Do(func() { makeLab(t) })
	for name, damage := range map[string]func(string){
		"flipped":   func(path string) { flip(t, path) },
		"truncated": func(path string) { os.Chmod(path, 0o600); os.Truncate(path, 1000) },
		"removed":   func(path string) { os.Remove(path) },
		"grown":     func(path string) { b, _ := os.ReadFile(path); rewrite(t, path, append(b, b...)) },
	} {
		t.Run(name, func(t *testing.T) {
			p, _ := startLab(t)
			var text strings.Builder
			for i := range 40000 {
				fmt.Fprintf(&text, "%07d\n", i)
			}
			if _, err := p.c.PutStream(t.Context(), "base", api.PutOptions{Records: lode.RecordsLines, Shard: 64 << 10}, "base", strings.NewReader(text.String())); err != nil {
				t.Fatal(err)
			}
			man, err := p.c.GetManifest(t.Context(), "base", 0)
			if err != nil {
				t.Fatal(err)
			}
			digest := man.Shards[2].Digest.String()
			path := filepath.Join(p.dir, "data", "blobs", digest[:2], digest)
			p.stop()
			damage(path)
			p = start(t, p.dir)

			r, err := p.c.ReadDataset(t.Context(), "base", api.ReadOptions{})
			if err == nil {
				_, err = io.Copy(io.Discard, r.Body)
				r.Body.Close()
			}
			if err == nil {
				t.Error("a damaged dataset was read to its end")
			}
			t.Logf("read: %v", err)
			if r, err := p.c.ReadDataset(t.Context(), "base", api.ReadOptions{Shard: 1}); err != nil {
				t.Errorf("a whole shard: %v", err)
			} else {
				r.Body.Close()
			}
			j, err := p.c.CreateJob(t.Context(), api.JobSpec{Function: "web", Dataset: "base"})
			if err != nil {
				t.Fatal(err)
			}
			if j, err = p.c.GetJob(t.Context(), j.ID, 30*time.Second); err != nil || j.State != lode.StateFailed || j.Error == nil {
				t.Fatalf("%+v %v", j, err)
			}
			if k := j.Error.Kind; k != lode.Damaged && !(k == lode.NotFound && name == "removed") || !strings.Contains(j.Error.Detail, "shard 3") && !strings.Contains(j.Error.Detail, digest[:12]) {
				t.Errorf("the job's error: %s: %v", k, j.Error)
			}
			t.Logf("job: %v | %s", j.Error, j.Error.Hint)
			p.alive()
		})
	}
}

// TestTruncatedInMidJob cuts a shard while jobs read it: the node lives, and
// the next job names the shard.
func TestTruncatedInMidJob(t *testing.T) {
	p, _ := startLab(t)
	text := strings.Repeat("a line of some length that makes a shard large\n", 200000)
	if _, err := p.c.PutStream(t.Context(), "base", api.PutOptions{Records: lode.RecordsLines, Shard: 16 << 20}, "base", strings.NewReader(text)); err != nil {
		t.Fatal(err)
	}
	man, err := p.c.GetManifest(t.Context(), "base", 0)
	if err != nil {
		t.Fatal(err)
	}
	digest := man.Shards[0].Digest.String()
	path := filepath.Join(p.dir, "data", "blobs", digest[:2], digest)
	j, err := p.c.CreateJob(t.Context(), api.JobSpec{Function: "web", Dataset: "base"})
	if err != nil {
		t.Fatal(err)
	}
	p.wait("the job to run", func() bool {
		j, err := p.c.GetJob(t.Context(), j.ID, 0)
		return err != nil || j.Running > 0 || api.Ended(j.State)
	})
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 4096); err != nil {
		t.Fatal(err)
	}
	if j, err = p.c.GetJob(t.Context(), j.ID, 50*time.Second); err != nil || !api.Ended(j.State) {
		t.Fatalf("%+v %v", j, err)
	}
	if j.State == lode.StateFailed {
		t.Logf("job: %v | %s", j.Error, j.Error.Hint)
		if j.Error.Kind == lode.Internal {
			t.Errorf("the job's error: %+v", j.Error)
		}
	} else if got := p.result(j.ID); got != "200000" { // it was faster than the damage
		t.Errorf("the job is done with %s records", got)
	}
	p.alive()
	if status, body, _ := p.post("/fn/web", "x"); status != http.StatusOK || body != "x" {
		t.Errorf("a call afterwards: %d %s", status, body)
	}
	j, err = p.c.CreateJob(t.Context(), api.JobSpec{Function: "web", Dataset: "base"})
	if err != nil {
		t.Fatal(err)
	}
	if j, err = p.c.GetJob(t.Context(), j.ID, 30*time.Second); err != nil || j.State != lode.StateFailed || j.Error.Kind != lode.Damaged {
		t.Errorf("a job over a truncated shard: %+v %v", j, err)
	}
}
