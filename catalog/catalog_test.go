package catalog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lode"
	"lode/bus"
)

const ns = lode.DefaultNamespace

// world is a catalog on a bus in a folder, with a clock that the test sets.
type world struct {
	*Catalog
	t     testing.TB
	dir   string
	bus   *bus.Bus
	clock atomic.Int64 // seconds added to the time
	blobs sync.Map     // lode.Digest
	cfg   Config
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, dir: t.TempDir()}
	w.cfg = Config{Artifacts: w, Logger: slog.New(slog.DiscardHandler), Now: func() time.Time { return time.Now().Add(time.Duration(w.clock.Load()) * time.Second) }}
	key, err := OpenKeyFile(filepath.Join(w.dir, "secrets.key"))
	if err != nil {
		t.Fatal(err)
	}
	w.cfg.Sealer = key
	w.open()
	t.Cleanup(w.close)
	return w
}

func (w *world) Has(_ context.Context, d lode.Digest) (bool, error) {
	_, missing := w.blobs.Load(d)
	return !missing, nil
}

func (w *world) open() {
	w.t.Helper()
	var err error
	if w.bus, err = bus.Open(context.Background(), bus.Config{Dir: filepath.Join(w.dir, "bus"), Logger: w.cfg.Logger}); err != nil {
		w.t.Fatal(err)
	}
	if w.Catalog, err = Open(context.Background(), w.bus, w.cfg); err != nil {
		w.bus.Close()
		w.t.Fatal(err)
	}
}

func (w *world) close() {
	w.Catalog.Close()
	w.bus.Close()
}

func (w *world) restart() {
	w.t.Helper()
	w.close()
	w.open()
}

func (w *world) deploy(app lode.App, o DeployOptions) Plan {
	w.t.Helper()
	p, err := w.Deploy(context.Background(), ns, app, o)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// fn is a function whose code is told apart by one byte.
func fn(code byte, edits ...func(*lode.Function)) lode.Function {
	f := lode.Function{Artifact: lode.Digest{code, 1}, Size: 100, Language: "go", Contract: lode.ContractHandler, Access: lode.AccessPublic}
	for _, e := range edits {
		e(&f)
	}
	return f
}

func routes(r ...string) func(*lode.Function) { return func(f *lode.Function) { f.Routes = r } }

type functions = map[lode.Name]lode.Function

func wantKind(t testing.TB, err error, k lode.Kind, parts ...string) {
	t.Helper()
	if lode.KindOf(err) != k {
		t.Fatalf("kind %q, want %q (error: %v)", lode.KindOf(err), k, err)
	}
	text := fmt.Sprint(err)
	if e, ok := errors.AsType[*lode.Error](err); ok {
		text += " " + e.Hint
	}
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Fatalf("error %q does not say %q", text, p)
		}
	}
}

func lines(p Plan) string {
	var out []string
	for _, c := range p.Changes {
		out = append(out, fmt.Sprintf("%s%s@%d", c.Op, c.Name, c.Rev))
	}
	return strings.Join(out, " ")
}

func (w *world) wantLive(name lode.Name, rev int, code byte) {
	w.t.Helper()
	r, err := w.Resolve(ns, name, "", 0)
	if err != nil {
		w.t.Fatal(err)
	}
	if r.Number != rev || r.Function.Artifact != (lode.Digest{code, 1}) || r.Name != name || r.Namespace != ns {
		w.t.Fatalf("%s is %s with code %d, want rev %d with code %d", name, r.ID(), r.Function.Artifact[0], rev, code)
	}
}

func TestDeploy(t *testing.T) {
	w := newWorld(t)
	app := lode.App{Name: "shop", Functions: functions{"a": fn(1), "b": fn(2)}, Queues: map[lode.Name]lode.Queue{"orders": DefaultQueue()},
		Datasets: map[lode.Name]lode.Dataset{"mails": {Records: lode.RecordsLines}}}
	plan := w.deploy(app, DeployOptions{Plan: true})
	if _, ok := w.Lookup(ns, "a"); ok || plan.Applied || lines(plan) != "+a@1 +b@1 +mails@0 +orders@0" {
		t.Fatalf("plan %s, applied %v", lines(plan), ok)
	}
	first := w.deploy(app, DeployOptions{})
	w.wantLive("a", 1, 1)
	if p := w.deploy(app, DeployOptions{}); lines(p) != "=a@1 =b@1 =mails@0 =orders@0" || p.Generation != first.Generation {
		t.Fatalf("the same again: %s, generation %d after %d", lines(p), p.Generation, first.Generation)
	}
	app.Functions["a"] = fn(3, routes("POST /a"))
	delete(app.Functions, "b")
	p := w.deploy(app, DeployOptions{Expect: first.Generation})
	if lines(p) != "~a@2 =b@1 =mails@0 =orders@0" || p.Changes[0].Detail != "code, routes" || p.Changes[1].Hint == "" {
		t.Fatalf("%s %+v", lines(p), p.Changes)
	}
	_, err := w.Deploy(t.Context(), ns, app, DeployOptions{Expect: first.Generation})
	wantKind(t, err, lode.Precondition)
	w.restart()
	w.wantLive("a", 2, 3)
	w.wantLive("b", 1, 2)
	if p := w.deploy(app, DeployOptions{Prune: true}); lines(p) != "-b@1 =a@2 =mails@0 =orders@0" {
		t.Fatal(lines(p))
	}
	_, err = w.Resolve(ns, "b", "", 0)
	wantKind(t, err, lode.Gone, "--undo")
	_, err = w.Resolve(ns, "aa", "", 0)
	wantKind(t, err, lode.NotFound, `did you mean "a"`)
	app.Functions["a"] = fn(1)
	if p := w.deploy(app, DeployOptions{}); lines(p) != "~a@1 =mails@0 =orders@0" {
		t.Fatalf("content of revision 1 again: %s", lines(p))
	}
	w.restart()
	w.wantLive("a", 1, 1)
	if got := w.Routes(); len(got) != 0 {
		t.Fatalf("routes %v", got)
	}
}

func TestDeployRefused(t *testing.T) {
	w := newWorld(t)
	w.deploy(lode.App{Name: "one", Functions: functions{"a": fn(1, routes("/x/{id}"))}}, DeployOptions{})
	w.blobs.Store(lode.Digest{9, 1}, true)
	for name, c := range map[string]struct {
		app  lode.App
		kind lode.Kind
		says string
	}{
		"name of another app":       {lode.App{Name: "two", Functions: functions{"b": fn(2), "a": fn(1)}}, lode.Conflict, "app one"},
		"same route":                {lode.App{Name: "two", Functions: functions{"b": fn(2, routes("/x/{other}"))}}, lode.Conflict, "default/a"},
		"overlapping route":         {lode.App{Name: "two", Functions: functions{"b": fn(2, routes("/{any}/y"))}}, lode.Conflict, "default/b"},
		"two of its own routes":     {lode.App{Name: "two", Functions: functions{"b": fn(2, routes("/q")), "c": fn(3, routes("/q"))}}, lode.Conflict, `"/q"`},
		"no pattern":                {lode.App{Name: "two", Functions: functions{"b": fn(2, routes("/{x"))}}, lode.Invalid, "/{x"},
		"Lode's own path":           {lode.App{Name: "two", Functions: functions{"b": fn(2, routes("GET /v1/apps"))}}, lode.Invalid, "own paths"},
		"artifact not there":        {lode.App{Name: "two", Functions: functions{"b": fn(9)}}, lode.Precondition, "0901"},
		"no artifact":               {lode.App{Name: "two", Functions: functions{"b": {}}}, lode.Invalid, "artifact"},
		"two kinds under one name":  {lode.App{Name: "two", Functions: functions{"b": fn(2)}, Queues: map[lode.Name]lode.Queue{"b": {}}}, lode.Invalid, "twice"},
		"another kind than before":  {lode.App{Name: "one", Queues: map[lode.Name]lode.Queue{"a": {}}}, lode.Conflict, "function"},
		"bad name":                  {lode.App{Name: "two", Functions: functions{"B b": fn(2)}}, lode.Invalid, "name"},
		"bad app":                   {lode.App{Name: "Two"}, lode.Invalid, "app"},
		"weight":                    {lode.App{Name: "two", Weight: 101}, lode.Invalid, "weight"},
		"configuration beyond size": {lode.App{Name: "two", Functions: functions{"b": fn(2, func(f *lode.Function) { f.Env = map[string]string{"X": strings.Repeat("x", 1<<20)} })}}, lode.TooLarge, "configuration"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := w.Deploy(t.Context(), ns, c.app, DeployOptions{})
			wantKind(t, err, c.kind, c.says)
			if got := w.Names(ns); !slices.Equal(got, []string{"a"}) {
				t.Fatalf("there is %v", got)
			}
		})
	}
	if p := w.deploy(lode.App{Name: "two", Functions: functions{"b": fn(9)}}, DeployOptions{Plan: true}); !slices.Equal(p.Missing, []lode.Digest{{9, 1}}) {
		t.Fatalf("missing %v", p.Missing)
	}
	w.deploy(lode.App{Name: "two", Functions: functions{"b": fn(2, routes("GET /x/{id}", "/z"))}}, DeployOptions{}) // more specific
	if got := w.Routes(); len(got) != 3 {
		t.Fatalf("routes %v", got)
	}
}

func TestImplicitQueue(t *testing.T) {
	w := newWorld(t)
	consume := func(f *lode.Function) { f.Queue, f.Retry.Dead = &lode.Consume{Queue: "orders"}, "dead" }
	app := lode.App{Name: "shop", Functions: functions{"a": fn(1, consume, func(f *lode.Function) { f.Needs = []lode.Name{"b", "orders"} })}}
	p := w.deploy(app, DeployOptions{})
	if lines(p) != "+a@1 +dead@0 +orders@0" || len(p.Warnings) != 1 || !strings.Contains(p.Warnings[0], "needs b") {
		t.Fatalf("%s, %v", lines(p), p.Warnings)
	}
	if p := w.deploy(app, DeployOptions{Prune: true}); lines(p) != "=a@1 =dead@0 =orders@0" {
		t.Fatal(lines(p))
	}
	// Another app may consume it, and may not declare it.
	w.deploy(lode.App{Name: "other", Functions: functions{"b": fn(2, consume)}}, DeployOptions{})
	_, err := w.Deploy(t.Context(), ns, lode.App{Name: "other", Queues: map[lode.Name]lode.Queue{"orders": {}}}, DeployOptions{})
	wantKind(t, err, lode.Conflict, "shop")
	app.Queues = map[lode.Name]lode.Queue{"orders": {Max: 5}}
	if p := w.deploy(app, DeployOptions{}); lines(p) != "~orders@0 =a@1 =dead@0" {
		t.Fatal(lines(p))
	}
	if q, err := w.Queue(ns, "orders"); err != nil || q.Max != 5 {
		t.Fatal(q, err)
	}
	_, err = w.Queue(ns, "order")
	wantKind(t, err, lode.NotFound, `"orders"`)
}

func TestAliases(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	deploy := func(code byte, alias string, weight int) {
		w.deploy(lode.App{Name: "shop", Alias: alias, Weight: weight, Functions: functions{"a": fn(code)}}, DeployOptions{})
	}
	deploy(1, "canary", 0) // the first one is live too
	w.wantLive("a", 1, 1)
	deploy(2, "", 10)
	count := 0
	for i := range 100 {
		r, err := w.Resolve(ns, "a", "", uint32(uint64(i)<<32/100+1))
		if err != nil {
			t.Fatal(err)
		}
		count += r.Number - 1
	}
	if count != 10 {
		t.Fatalf("revision 2 got %d of 100", count)
	}
	deploy(3, "", 10) // another canary beside revision 1
	w.wantLive("a", 1, 1)
	w.restart()
	e, _ := w.Lookup(ns, "a")
	if live := e.Aliases[0]; live.Name != "live" || !slices.Equal(live.Targets, []lode.Target{{Rev: 1, Weight: 90}, {Rev: 3, Weight: 10}}) {
		t.Fatalf("%+v", e.Aliases)
	}
	for alias, rev := range map[string]int{"canary": 1, "2": 2, "3": 3} {
		if r, err := w.Resolve(ns, "a", alias, 7); err != nil || r.Number != rev {
			t.Fatal(alias, r, err)
		}
	}
	_, err := w.Resolve(ns, "a", "canari", 0)
	wantKind(t, err, lode.NotFound, `"canary"`)
	_, err = w.Resolve(ns, "a", "17", 0)
	wantKind(t, err, lode.NotFound, "revision 17")
	for _, bad := range []lode.Alias{{Name: "x", Targets: []lode.Target{{Rev: 1, Weight: 99}}}, {Name: "live"}, {Name: "7", Targets: []lode.Target{{Rev: 1, Weight: 100}}},
		{Name: "x", Targets: []lode.Target{{Rev: 1, Weight: 50}, {Rev: 1, Weight: 50}}}} {
		_, err := w.SetAlias(ctx, ns, "a", bad, 0, "")
		wantKind(t, err, lode.Invalid)
	}
	_, err = w.SetAlias(ctx, ns, "a", lode.Alias{Name: "x", Targets: []lode.Target{{Rev: 9, Weight: 100}}}, 0, "")
	wantKind(t, err, lode.NotFound, "9")
	if _, err := w.Rollback(ctx, ns, "a", 3, 0, ""); err != nil {
		t.Fatal(err)
	}
	if e, err := w.Rollback(ctx, ns, "a", 0, 0, ""); err != nil || e.Live.Number != 2 {
		t.Fatal(e, err)
	}
	_, err = w.Rollback(ctx, ns, "a", 0, 1, "")
	wantKind(t, err, lode.Precondition)
	if _, err := w.SetAlias(ctx, ns, "a", lode.Alias{Name: "canary"}, 0, ""); err != nil {
		t.Fatal(err)
	}
	w.restart()
	w.wantLive("a", 2, 2)
	if e, _ := w.Lookup(ns, "a"); len(e.Aliases) != 1 {
		t.Fatalf("%+v", e.Aliases)
	}
	hist, err := w.History(ctx, ns, "a", 0, 0)
	if err != nil || len(hist) != 3 || hist[0].Number != 3 || hist[2].Function.Artifact[0] != 1 {
		t.Fatal(hist, err)
	}
	if page, err := w.History(ctx, ns, "a", 3, 1); err != nil || len(page) != 1 || page[0].Number != 2 {
		t.Fatal(page, err)
	}
}

func TestRemoveAndUndo(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.deploy(lode.App{Name: "shop", Functions: functions{"a": fn(1, routes("/a")), "b": fn(2)}}, DeployOptions{})
	w.deploy(lode.App{Name: "shop", Functions: functions{"a": fn(3, routes("/a"))}}, DeployOptions{})
	removed, err := w.Remove(ctx, ns, []lode.Name{"a"}, RemoveOptions{})
	if err != nil || len(removed) != 1 || removed[0].Until.IsZero() || len(w.Routes()) != 0 {
		t.Fatal(removed, err, w.Routes())
	}
	w.restart()
	_, err = w.Remove(ctx, ns, []lode.Name{"a"}, RemoveOptions{})
	wantKind(t, err, lode.Gone)
	// Another app takes the route: undo has to wait for it, then works.
	w.deploy(lode.App{Name: "thief", Functions: functions{"c": fn(4, routes("/a"))}}, DeployOptions{})
	_, err = w.Undo(ctx, ns, "a", "")
	wantKind(t, err, lode.Conflict, "default/c")
	if _, err := w.RemoveApp(ctx, ns, "thief", RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if es, err := w.Undo(ctx, ns, "a", ""); err != nil || len(es) != 1 {
		t.Fatal(es, err)
	}
	w.wantLive("a", 2, 3)
	_, err = w.Undo(ctx, ns, "a", "")
	wantKind(t, err, lode.Conflict, "not removed")

	// All of an app, and back.
	if rs, err := w.RemoveApp(ctx, ns, "shop", RemoveOptions{}); err != nil || len(rs) != 2 {
		t.Fatal(rs, err)
	}
	if es, err := w.Undo(ctx, ns, "shop", ""); err != nil || len(es) != 2 {
		t.Fatal(es, err)
	}
	// The name goes to another app: numbers go on.
	if _, err := w.Remove(ctx, ns, []lode.Name{"a"}, RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	w.deploy(lode.App{Name: "heir", Functions: functions{"a": fn(5)}}, DeployOptions{})
	w.wantLive("a", 3, 5)

	// For ever.
	if rs, err := w.Remove(ctx, ns, []lode.Name{"b"}, RemoveOptions{Data: true}); err != nil || !rs[0].Until.IsZero() {
		t.Fatal(rs, err)
	}
	_, err = w.Undo(ctx, ns, "b", "")
	wantKind(t, err, lode.Gone)
	if left, err := w.revisions.List(ctx, "default/b/"); err != nil || len(left) != 0 {
		t.Fatal("content of an erased function is kept", err)
	}

	// After seven days.
	if _, err := w.Remove(ctx, ns, []lode.Name{"a"}, RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	w.clock.Add(int64((7*24*time.Hour + time.Minute) / time.Second))
	_, err = w.Undo(ctx, ns, "a", "")
	wantKind(t, err, lode.Gone)
	w.deploy(lode.App{Name: "heir", Functions: functions{"z": fn(6)}}, DeployOptions{})
	w.deploy(lode.App{Name: "shop", Functions: functions{"y": fn(6)}}, DeployOptions{})
	_, err = w.Get(ns, "a")
	wantKind(t, err, lode.NotFound)
}

func TestAppsAndSpec(t *testing.T) {
	w := newWorld(t)
	app := lode.App{Name: "shop", Functions: functions{"a": fn(1, func(f *lode.Function) { f.Queue = &lode.Consume{Queue: "q"} })},
		Datasets: map[lode.Name]lode.Dataset{"mails": {Records: lode.RecordsLines}}}
	w.deploy(app, DeployOptions{By: "token-1"})
	a, err := w.App(ns, "shop")
	if err != nil || a.By != "token-1" || len(a.Entries) != 3 {
		t.Fatalf("%+v %v", a, err)
	}
	spec := a.Spec()
	if !sameJSON(spec.Functions, app.Functions) || !sameJSON(spec.Datasets, app.Datasets) || len(spec.Queues) != 0 {
		t.Fatalf("%+v", spec)
	}
	_, err = w.App(ns, "shob")
	wantKind(t, err, lode.NotFound, `"shop"`)
	if got := w.List(ns, KindQueue); len(got) != 1 || got[0].Name != "q" {
		t.Fatal(got)
	}
	n := 0
	for r := range w.Functions() {
		n++
		if r.ID() != "default/a@1" {
			t.Fatal(r.ID())
		}
	}
	ds, err := w.Digests(t.Context())
	if n != 1 || err != nil || !ds[lode.Digest{1, 1}] {
		t.Fatal(n, ds, err)
	}
}

func TestWatch(t *testing.T) {
	w := newWorld(t)
	news := make(chan uint64, 100)
	stop := w.Watch(func(gen uint64) { news <- gen })
	w.deploy(lode.App{Name: "shop", Functions: functions{"a": fn(1)}}, DeployOptions{})
	for want := w.Generation(); <-news != want; {
	}
	stop()
	w.deploy(lode.App{Name: "shop", Functions: functions{"a": fn(2)}}, DeployOptions{})
	select {
	case g := <-news:
		t.Fatal("told of", g, "after stop")
	default:
	}
	stop() // again
	w.Watch(func(uint64) {})
	w.Catalog.Close() // ends those that were not stopped
	w.Watch(func(uint64) {})()
}

func TestSecrets(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	const value = "s3cret-value-that-must-not-be-seen"
	if err := w.SetSecret(ctx, ns, "STRIPE_KEY", []byte(value)); err != nil {
		t.Fatal(err)
	}
	wantKind(t, w.SetSecret(ctx, ns, "a-b", nil), lode.Invalid)
	check := func() {
		t.Helper()
		if m, err := w.Secrets(ns, []string{"STRIPE_KEY"}); err != nil || m["STRIPE_KEY"] != value {
			t.Fatal(m, err)
		}
	}
	check()
	w.restart()
	check()
	_, err := w.Secrets(ns, []string{"STRIPE_KEI"})
	wantKind(t, err, lode.NotFound, `"STRIPE_KEY"`)
	if _, err := w.Secrets("other", []string{"STRIPE_KEY"}); lode.KindOf(err) != lode.NotFound {
		t.Fatal("a secret is seen from another namespace", err)
	}
	// What was sealed under one name does not open under another.
	e, _, err := w.sealed.Get(ctx, "default/STRIPE_KEY")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.sealed.Put(ctx, "default/OTHER", e.Value); err != nil {
		t.Fatal(err)
	}
	w.restart()
	_, err = w.Secrets(ns, []string{"OTHER"})
	wantKind(t, err, lode.Damaged, "another name")
	if got := w.ListSecrets(ns); !slices.Equal(got, []string{"OTHER", "STRIPE_KEY"}) {
		t.Fatal(got)
	}
	if err := w.RemoveSecret(ctx, ns, "STRIPE_KEY"); err != nil {
		t.Fatal(err)
	}
	wantKind(t, w.RemoveSecret(ctx, ns, "STRIPE_KEY"), lode.NotFound)
	w.close()
	defer w.open()
	filepath.WalkDir(w.dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if b, err := os.ReadFile(path); err != nil || strings.Contains(string(b), value) {
				t.Errorf("%s holds the value in the clear (%v)", path, err)
			}
		}
		return nil
	})
	other, err := OpenKeyFile(filepath.Join(t.TempDir(), "k"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = other.Open(e.Value)
	wantKind(t, err, lode.Damaged)
}

func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	if _, err := OpenKeyFile(path); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatal(st.Mode(), err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := OpenKeyFile(path)
	wantKind(t, err, lode.Denied, "chmod")
	if err := os.WriteFile(path+"2", []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = OpenKeyFile(path + "2")
	wantKind(t, err, lode.Damaged)
}
