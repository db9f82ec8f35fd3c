//go:build linux

package node

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zeebo/blake3"

	"lode"
	"lode/cmd/build"
)

// labSpec declares one program under several names.
const labSpec = `app: lab
secrets: [SINK]
defaults: {egress: [127.0.0.1], retry: {attempts: 5, first: 200ms, max: 1s}}
queues: {work: {visible: 3s, deliver: 20}}
functions:
  web: {source: ./index.js}
  slow: {source: ./index.js, timeout: 2s, scale: {max: 1}, queue_max: 2}
  turn: {source: ./index.js, timeout: 30s, scale: {max: 1}, queue_max: 10}
  safe: {source: ./index.js, egress: public}
  none: {source: ./index.js, egress: none}
  tick: {source: ./index.js, schedule: "@every 1s"}
  drain: {source: ./index.js, queue: work}
`

// labDir is a data folder in which the lab was deployed: tests start from a
// copy, since compiling it takes seconds.
var labDir = sync.OnceValue(func() string {
	home := filepath.Join(lab.dir, "lab")
	return filepath.Join(home, "data")
})

var labReady sync.Once

// startLab starts a node with the lab deployed, whose sink is a server of the
// test.
func startLab(t *testing.T, args ...string) (*process, *sink) {
	t.Helper()
	labReady.Do(func() { makeLab(t) })
	s := newSink(t)
	home := t.TempDir()
	copyDir(t, labDir(), filepath.Join(home, "data"))
	p := start(t, filepath.Join(home, "data"), args...)
	p.must(s.URL, "secret", "set", "SINK")
	return p, s
}

func makeLab(t *testing.T) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(labDir()), 0o755); err != nil {
		t.Fatal(err)
	}
	src := filepath.Join(filepath.Dir(labDir()), "src")
	copyDir(t, "testdata/lab", src)
	write(t, filepath.Join(src, "lode.yaml"), labSpec)
	p := start(t, labDir())
	p.must("", "deploy", src)
	p.stop()
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// sink counts what functions tell it, by path.
type sink struct {
	*httptest.Server
	mu   sync.Mutex
	seen map[string]int
	down bool
}

func newSink(t *testing.T) *sink {
	s := &sink{seen: map[string]int{}}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.down {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		s.seen[r.URL.Path]++
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *sink) count(path string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen[path]
}

// set makes the sink refuse or take.
func (s *sink) set(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
}

// guestC builds a source in C; the test is skipped without clang.
func guestC(t *testing.T, source string) build.Artifact {
	t.Helper()
	if _, err := exec.LookPath("clang"); err != nil {
		t.Skip("no clang")
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "main.c"), source)
	as, err := build.Build(context.Background(), build.Source{Path: dir, Name: "guest"})
	if err != nil {
		t.Fatal(err)
	}
	return as[0]
}

// function declares an artifact with the usual limits.
func function(a build.Artifact) lode.Function {
	return lode.Function{Artifact: a.Digest, Size: int64(len(a.Wasm)), Language: a.Language, Contract: a.Contract, Access: lode.AccessToken,
		Retry: lode.Retry{Attempts: 3, First: 100 * time.Millisecond, Max: time.Second}, Egress: lode.Egress{Mode: "public"},
		Limits: lode.Limits{Memory: 64 << 20, Start: 30 * time.Second, Total: 20 * time.Second, Idle: time.Minute, Each: 1, QueueMax: 1000,
			Body: 6 << 20, Tmp: 64 << 20, Log: 256 << 10, OutputMax: 6 << 20}}
}

// upload stores an artifact.
func (p *process) upload(wasm []byte) error {
	d := digestOf(wasm)
	return p.c.PutBlob(p.t.Context(), d, int64(len(wasm)), strings.NewReader(string(wasm)))
}

// echo answers with a digit of its own and the body.
const echo = `#include "lode.h"
static int run(void) {
	lode_bytes body = lode_body();
	return lode_answer(200, "text/plain", body.ptr, body.len);
}
LODE_EXPORTS(LODE_FUNCTION("", run))
`

// digestOf is the name of bytes in the store.
func digestOf(b []byte) lode.Digest { return blake3.Sum256(b) }
