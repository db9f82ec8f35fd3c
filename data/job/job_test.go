package job_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"lode"
	"lode/data"
	"lode/data/job"
	"lode/store"
	"lode/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// funcs is a Runner of Go functions.
type funcs struct {
	mapper func(ctx context.Context, t job.Task, shard []byte) ([]byte, error)
	merge  func(a, b []byte) ([]byte, error)
	keep   func(word string) bool

	keepErr func() error // nil: none
	mu      sync.Mutex
	calls   map[int]int // attempts by shard
}

var _ job.Runner = (*funcs)(nil)

func (f *funcs) Map(ctx context.Context, t job.Task) (job.Partial, lode.Usage, error) {
	f.mu.Lock()
	if f.calls == nil {
		f.calls = map[int]int{}
	}
	f.calls[t.Index]++
	f.mu.Unlock()
	shard, err := os.ReadFile(t.Path)
	if err != nil || int64(len(shard)) != t.Size {
		return job.Partial{}, lode.Usage{}, lode.Errorf(lode.Internal, "%d of %d bytes, %v", len(shard), t.Size, err)
	}
	body, err := f.mapper(ctx, t, shard)
	return job.Partial{Body: body, ContentType: "text/plain"}, lode.Usage{CPU: time.Millisecond}, err
}

func (f *funcs) Merge(_ context.Context, _ lode.Namespace, _ job.What, a, b []byte) ([]byte, error) {
	return f.merge(a, b)
}

func (f *funcs) Keep(_ context.Context, _ lode.Namespace, _ job.What, words [][]byte) ([]bool, error) {
	out := make([]bool, len(words))
	for i, w := range words {
		out[i] = f.keep(string(w))
	}
	if f.keepErr != nil {
		return out, f.keepErr()
	}
	return out, nil
}

func (f *funcs) attempts() map[int]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.calls)
}

type file struct {
	content string
	done    bool
}

func (f *file) Next() (string, int64, io.Reader, error) {
	if f.done {
		return "", 0, nil, io.EOF
	}
	f.done = true
	return "f", int64(len(f.content)), strings.NewReader(f.content), nil
}

// world is a node's data half, with one dataset "d".
type world struct {
	t    *testing.T
	cfg  job.Config
	dir  string
	text string
}

const shards = 7

// numbers are lines that fill seven shards.
func numbers() string {
	var b strings.Builder
	for i := 0; b.Len() < data.MinShard*shards-data.MinShard/2; i++ {
		fmt.Fprintf(&b, "line %d of many\n", i)
	}
	return b.String()
}

func newWorld(t *testing.T, r job.Runner) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), text: numbers()}
	h, err := store.OpenDir(w.dir)
	if err != nil {
		t.Fatal(err)
	}
	st, err := store.Open(store.Config{Home: h})
	if err != nil {
		t.Fatal(err)
	}
	ds, err := data.New(data.Config{Store: st, Registers: new(data.MemRegisters)})
	if err != nil {
		t.Fatal(err)
	}
	w.cfg = job.Config{Store: st, Datasets: ds, Registers: new(data.MemRegisters), Runner: r, Cores: 3, Checkpoint: time.Hour, Log: slog.New(slog.DiscardHandler)}
	w.put(w.text)
	return w
}

func (w *world) put(text string) *lode.Manifest {
	w.t.Helper()
	m, err := w.cfg.Datasets.Put(w.t.Context(), "default", "d", data.PutOptions{Spec: lode.Dataset{Shard: data.MinShard, Records: "lines"}}, &file{content: text})
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

func (w *world) open() *job.Jobs {
	w.t.Helper()
	s, err := job.Open(w.t.Context(), w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { s.Close() })
	return s
}

func spec(reduce string) job.Spec {
	return job.Spec{Namespace: "default", Dataset: "d", Reduce: reduce, What: job.What{Label: "test@1", Function: &lode.Function{}}}
}

// finish starts a job and waits for its end.
func finish(t *testing.T, s *job.Jobs, sp job.Spec) job.Job {
	t.Helper()
	j, err := s.Start(t.Context(), sp)
	if err != nil {
		t.Fatal(err)
	}
	j, err = s.Wait(t.Context(), "default", j.ID)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func body(t *testing.T, s *job.Jobs, id string) string {
	t.Helper()
	b, _, err := s.Body(t.Context(), "default", id)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func countLines(_ context.Context, _ job.Task, shard []byte) ([]byte, error) {
	return []byte(strconv.Itoa(bytes.Count(shard, []byte("\n")))), nil
}

func TestReducers(t *testing.T) {
	w := newWorld(t, &funcs{mapper: func(ctx context.Context, task job.Task, shard []byte) ([]byte, error) {
		if task.What.Handler == "echo" {
			return shard, nil
		}
		return countLines(ctx, task, shard)
	}, merge: func(a, b []byte) ([]byte, error) { return []byte(string(a) + "," + string(b)), nil }})
	s := w.open()
	lines := strings.Count(w.text, "\n")

	j := finish(t, s, spec("sum"))
	if got := body(t, s, j.ID); got != strconv.Itoa(lines) {
		t.Errorf("sum = %s, want %d", got, lines)
	}
	if j.State != lode.StateDone || j.Shards != shards || j.Done != shards || j.Running != 0 || j.Read != int64(len(w.text)) || j.Fetched != 0 ||
		j.Moved() != 0 || j.Wasted != 0 || j.CPU != shards*time.Millisecond || j.Version != 1 || j.Throughput(time.Now()) <= 0 {
		t.Errorf("%+v", j)
	}
	sp := spec("concat")
	sp.What.Handler = "echo"
	j = finish(t, s, sp)
	if got := body(t, s, j.ID); got != w.text {
		t.Errorf("concat: %d bytes, want %d", len(got), len(w.text))
	}
	j = finish(t, s, spec(job.ReduceGuest))
	if got := strings.Split(body(t, s, j.ID), ","); len(got) != shards {
		t.Errorf("guest merge: %q", got)
	}
	if all, err := s.List(t.Context(), "default"); err != nil || len(all) != 3 || all[0].ID != j.ID {
		t.Errorf("List: %d jobs, %v", len(all), err)
	}
}

func TestBuiltinWords(t *testing.T) {
	w := newWorld(t, &funcs{keep: func(word string) bool { return strings.HasPrefix(word, "l") }})
	s := w.open()
	want := map[string]int{}
	for _, f := range strings.Fields(w.text) {
		want[f]++
	}
	check := func(filter *lode.Function) {
		t.Helper()
		j := finish(t, s, job.Spec{Namespace: "default", Dataset: "d", What: job.What{Label: "builtin:words", Builtin: job.BuiltinWords, Function: filter}})
		var got map[string]int
		if err := json.Unmarshal([]byte(body(t, s, j.ID)), &got); err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(got, want) {
			t.Errorf("%d words, want %d", len(got), len(want))
		}
		if j.Moved() != 0 || j.Read != int64(len(w.text)) {
			t.Errorf("moved %d, read %d", j.Moved(), j.Read)
		}
	}
	check(nil)
	maps.DeleteFunc(want, func(w string, _ int) bool { return w[0] != 'l' })
	check(&lode.Function{})
}

func TestParseBuiltin(t *testing.T) {
	for in, want := range map[string]string{"builtin:words": "words||true", "builtin:words:./filter": "words|./filter|true", "count": "||false"} {
		b, f, ok, err := job.ParseBuiltin(in)
		if got := fmt.Sprintf("%s|%s|%v", b, f, ok); got != want || err != nil {
			t.Errorf("%s: %s, %v", in, got, err)
		}
	}
	_, _, _, err := job.ParseBuiltin("builtin:wrods")
	storetest.Kind(t, err, lode.Invalid)
}

// Whoever is ready first, sums of floats have the same bits.
func TestSameBits(t *testing.T) {
	w := newWorld(t, &funcs{mapper: func(_ context.Context, task job.Task, _ []byte) ([]byte, error) {
		time.Sleep(rand.N(3 * time.Millisecond))
		return []byte([]string{"0.1", "1e17", "0.7", "-1e17", "3.3", "1e-9", "7e5"}[task.Index]), nil
	}})
	s := w.open()
	first := body(t, s, finish(t, s, spec("sum")).ID)
	for range 10 {
		if got := body(t, s, finish(t, s, spec("sum")).ID); got != first {
			t.Fatalf("%s, then %s", first, got)
		}
	}
}

func TestRetries(t *testing.T) {
	f := &funcs{}
	f.mapper = func(ctx context.Context, task job.Task, shard []byte) ([]byte, error) {
		if task.Index == 2 && task.Attempt < 2 {
			return []byte("999"), lode.Errorf(lode.Crashed, "bad luck")
		}
		return countLines(ctx, task, shard)
	}
	w := newWorld(t, f)
	s := w.open()
	j := finish(t, s, spec("sum"))
	if got := body(t, s, j.ID); got != strconv.Itoa(strings.Count(w.text, "\n")) {
		t.Errorf("sum = %s", got)
	}
	if j.Retried != 2 || f.attempts()[2] != 3 || f.attempts()[1] != 1 {
		t.Errorf("retried %d, attempts %v", j.Retried, f.attempts())
	}
}

// A merge and a filter that fail are tried again.
func TestMergeAndFilterRetries(t *testing.T) {
	var mu sync.Mutex
	failures := 3
	unlucky := func() error {
		mu.Lock()
		defer mu.Unlock()
		if failures--; failures >= 0 {
			return lode.Errorf(lode.Unavailable, "bad luck")
		}
		return nil
	}
	f := &funcs{mapper: countLines}
	f.merge = func(a, b []byte) ([]byte, error) { return []byte(string(a) + "," + string(b)), unlucky() }
	f.keepErr = unlucky
	f.keep = func(string) bool { return true }
	s := newWorld(t, f).open()
	sp := spec(job.ReduceGuest)
	sp.Retries = 3
	if j := finish(t, s, sp); j.State != lode.StateDone || strings.Count(body(t, s, j.ID), ",") != shards-1 {
		t.Errorf("%s, %v", j.State, j.Error)
	}
	failures = 2
	sp.What.Builtin, sp.Reduce = job.BuiltinWords, ""
	if j := finish(t, s, sp); j.State != lode.StateDone {
		t.Errorf("%s, %v", j.State, j.Error)
	}
}

func TestTooManyJobs(t *testing.T) {
	hangs := make(chan int, 100)
	w := newWorld(t, &funcs{mapper: stuck(0, hangs)})
	w.cfg.MaxQueued, w.cfg.MaxRunning = 2, 1
	s := w.open()
	var ids []string
	for range 2 {
		j, err := s.Start(t.Context(), spec("sum"))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, j.ID)
	}
	_, err := s.Start(t.Context(), spec("sum"))
	storetest.Kind(t, err, lode.Overloaded)
	<-hangs
	states := map[lode.State]int{}
	for _, id := range ids {
		j, err := s.Get(t.Context(), "default", id)
		if err != nil {
			t.Fatal(err)
		}
		states[j.State]++
	}
	if states[lode.StateRunning] != 1 || states[lode.StateQueued] != 1 {
		t.Errorf("%v", states)
	}
	for _, id := range ids { // one of them has never run
		if j, err := s.Cancel(t.Context(), "default", id); err != nil || j.State != lode.StateCancelled {
			t.Errorf("%s, %v", j.State, err)
		}
	}
}

func TestFailures(t *testing.T) {
	guest := &lode.GuestError{Type: "TypeError", Message: "x is not a function"}
	for name, c := range map[string]struct {
		mapper  func(context.Context, job.Task, []byte) ([]byte, error)
		reduce  string
		retries int
		want    lode.Kind
		tries   int
	}{
		"crash": {func(context.Context, job.Task, []byte) ([]byte, error) {
			e := lode.Errorf(lode.Crashed, "crashed")
			e.Guest = guest
			return nil, e
		}, "sum", 1, lode.Crashed, 2},
		"no retries": {func(context.Context, job.Task, []byte) ([]byte, error) {
			return nil, lode.Errorf(lode.Crashed, "crashed")
		}, "sum", -1, lode.Crashed, 1},
		"denied":    {func(context.Context, job.Task, []byte) ([]byte, error) { return nil, lode.Errorf(lode.Denied, "no") }, "sum", 2, lode.Denied, 1},
		"no number": {func(context.Context, job.Task, []byte) ([]byte, error) { return []byte("many"), nil }, "sum", 2, lode.Invalid, 1},
	} {
		t.Run(name, func(t *testing.T) {
			f := &funcs{mapper: c.mapper}
			w := newWorld(t, f)
			w.cfg.Cores = 1
			s := w.open()
			sp := spec(c.reduce)
			sp.Retries, sp.Limit = c.retries, 1
			j := finish(t, s, sp)
			if j.State != lode.StateFailed || j.Error == nil || j.Error.Kind != c.want || !strings.Contains(j.Error.Error(), "shard 0") {
				t.Errorf("%s: %v", j.State, j.Error)
			}
			if f.attempts()[0] != c.tries {
				t.Errorf("%d attempts, want %d", f.attempts()[0], c.tries)
			}
			_, _, err := s.Body(t.Context(), "default", j.ID)
			storetest.Kind(t, err, c.want)
			if name == "crash" && (j.Error.Guest == nil || j.Error.Guest.Type != guest.Type) {
				t.Error("the guest's own words are lost")
			}
		})
	}
}

func TestDamagedShard(t *testing.T) {
	w := newWorld(t, &funcs{mapper: countLines})
	m, _, err := w.cfg.Datasets.Manifest(t.Context(), "default", "d", 0)
	if err != nil {
		t.Fatal(err)
	}
	d := m.Shards[3].Digest.String()
	path := w.dir + "/blobs/" + d[:2] + "/" + d
	os.Chmod(path, 0o644)
	if err := os.Truncate(path, 100); err != nil {
		t.Fatal(err)
	}
	j := finish(t, w.open(), spec("sum"))
	if j.State != lode.StateFailed || j.Error.Kind != lode.Damaged || !strings.Contains(j.Error.Error(), "shard 3") || !strings.Contains(j.Error.Error(), d) {
		t.Errorf("%s: %v", j.State, j.Error)
	}
}

func TestStartRefuses(t *testing.T) {
	w := newWorld(t, nil)
	s := w.open()
	for name, c := range map[string]struct {
		change func(*job.Spec)
		want   lode.Kind
	}{
		"dataset": {func(s *job.Spec) { s.Dataset = "dd" }, lode.NotFound},
		"version": {func(s *job.Spec) { s.Version = 9 }, lode.NotFound},
		"reducer": {func(s *job.Spec) { s.Reduce = "average" }, lode.Invalid},
		"no code": {func(s *job.Spec) { s.What.Function = nil }, lode.Invalid},
		"builtin": {func(s *job.Spec) { s.What.Builtin = "grep" }, lode.Invalid},
		"words":   {func(s *job.Spec) { s.What.Builtin, s.Reduce = job.BuiltinWords, "sum" }, lode.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			sp := spec("sum")
			c.change(&sp)
			_, err := s.Start(t.Context(), sp)
			storetest.Kind(t, err, c.want)
		})
	}
	_, err := s.Get(t.Context(), "default", "j-nobody")
	storetest.Kind(t, err, lode.NotFound)
	if j := finish(t, s, spec("sum")); j.State != lode.StateFailed || j.Error.Kind != lode.Denied {
		t.Errorf("without a runner: %s, %v", j.State, j.Error)
	}
}

func TestEmptyDataset(t *testing.T) {
	w := newWorld(t, &funcs{})
	w.put("")
	s := w.open()
	for reduce, want := range map[string]string{"sum": "0", "merge": "{}", "concat": "", "max": "null", job.ReduceGuest: ""} {
		if got := body(t, s, finish(t, s, spec(reduce)).ID); got != want {
			t.Errorf("%s of nothing: %q, want %q", reduce, got, want)
		}
	}
}

func TestWatch(t *testing.T) {
	next := make(chan struct{})
	w := newWorld(t, &funcs{mapper: func(ctx context.Context, task job.Task, shard []byte) ([]byte, error) {
		<-next
		return countLines(ctx, task, shard)
	}})
	s := w.open()
	j, err := s.Start(t.Context(), spec("sum"))
	if err != nil {
		t.Fatal(err)
	}
	var last job.Job
	if err := s.Watch(t.Context(), "default", j.ID, func(j job.Job) error {
		if j.Done < last.Done {
			t.Errorf("%d shards done, then %d", last.Done, j.Done)
		}
		if last.ID == "" {
			close(next)
		}
		last = j
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if last.State != lode.StateDone || last.Done != shards {
		t.Errorf("%+v", last)
	}
}

// Shards that are not on this machine are fetched once and counted as moved.
func TestFetched(t *testing.T) {
	w := newWorld(t, &funcs{mapper: countLines})
	home := new(store.Mem)
	remote := func() *store.Store {
		st, err := store.Open(store.Config{Home: home, Cache: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	regs := new(data.MemRegisters)
	at := func(st *store.Store) {
		ds, err := data.New(data.Config{Store: st, Registers: regs})
		if err != nil {
			t.Fatal(err)
		}
		w.cfg.Store, w.cfg.Datasets = st, ds
	}
	at(remote())
	w.put(w.text)
	at(remote()) // another node, with an empty cache
	s := w.open()
	for round, want := range []int64{int64(len(w.text)), 0} {
		j := finish(t, s, spec("sum"))
		if j.State != lode.StateDone || j.Fetched != want || j.Read != int64(len(w.text))-want {
			t.Errorf("round %d: fetched %d, read in place %d of %d", round, j.Fetched, j.Read, len(w.text))
		}
	}
}
