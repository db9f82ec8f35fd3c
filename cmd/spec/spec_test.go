package spec

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"lode"
)

var update = flag.Bool("update", false, "write lode.schema.json and the golden errors")

func TestSchemaIsCurrent(t *testing.T) {
	const file = "lode.schema.json"
	if *update {
		if err := os.WriteFile(file, Schema(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, Schema()) {
		t.Errorf("%s is not what the table says: go test ./cmd/spec -run Schema -update", file)
	}
}

// TestErrors holds every message against a golden file, so that each can be
// read aloud. testdata/errors/*.yaml, with the messages in *.txt beside.
func TestErrors(t *testing.T) {
	files, _ := filepath.Glob("testdata/errors/*.yaml")
	if len(files) < 10 {
		t.Fatalf("only %d cases", len(files))
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		t.Run(name, func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			_, err = Parse(b, t.TempDir(), nil)
			got := "no error\n"
			if err != nil {
				ps, ok := errors.AsType[*Problems](err)
				if !ok || lode.KindOf(err) != lode.Invalid {
					t.Fatalf("not problems of kind invalid: %#v", err)
				}
				got = report(ps)
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".txt"
			if *update {
				os.WriteFile(golden, []byte(got), 0o644)
			}
			want, _ := os.ReadFile(golden)
			if got != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
			if got == "no error\n" {
				t.Error("the case has no mistake in it")
			}
		})
	}
}

func report(ps *Problems) string {
	var b strings.Builder
	for _, p := range ps.List {
		b.WriteString(p.String() + "\n")
		if p.Hint != "" {
			b.WriteString("    hint: " + p.Hint + "\n")
		}
	}
	if ps.More > 0 {
		b.WriteString("and more\n")
	}
	return b.String()
}

const large = `
app: reviews
env: {STAGE: "${STAGE}", N: 3, LITERAL: "$${x}"}
secrets: [A_KEY]
defaults: {memory: 512MiB, timeout: 30s, env: {D: d}}
datasets: {mails: {from: "./corpus/**/*.txt", records: files}, labels: {from: [a.csv, b.csv]}}
queues: {orders: , small: {keep: 1d, deliver: 2, visible: 10s, max: 10k}}
functions:
  censor: {source: ./censor, route: "POST /censor", cors: true, scale: {min: 1, max: 200}}
  web:
    source: ./src/index.ts
    routes: ["/api/", "shop.example.com/"]
    schedule: ["0 3 * * *", "@every 10s", {cron: "5 4 * * 1", zone: Europe/Vienna}]
    queue: orders
    batch: {size: 5, wait: 1s}
    egress: [api.stripe.com, "10.0.0.5:5432", "[2001:db8::1]:443"]
    secrets: [STRIPE_KEY]
    env: {D: own}
    timeout: {start: 1m, total: 2m, idle: 1d}
    gpu: [H100, none]
    memory: 1GiB
    cpu: 1
    retry: {attempts: 5, first: 2s, max: 1m, dead: small}
  grep: {run: [./grep.wasm, -c, free], ok_exit: [0, 1], reduce: sum}
  bare:
`

func TestLarge(t *testing.T) {
	d, err := Parse([]byte(large), "/x", func(n string) (string, bool) { return "prod", n == "STAGE" })
	if err != nil {
		t.Fatal(err)
	}
	web, bare, grep := d.Functions["web"], d.Functions["bare"], d.Functions["grep"]
	if got := web.Env; !reflect.DeepEqual(got, map[string]string{"STAGE": "prod", "N": "3", "LITERAL": "${x}", "D": "own"}) {
		t.Errorf("env %v", got)
	}
	if got := bare.Env["D"]; got != "d" {
		t.Errorf("the default D was changed by another function: %q", got)
	}
	if !slices.Equal(web.Secrets, []string{"A_KEY", "STRIPE_KEY"}) || !slices.Equal(bare.Secrets, []string{"A_KEY"}) {
		t.Errorf("secrets %v %v", web.Secrets, bare.Secrets)
	}
	if web.Limits.Memory != gib || bare.Limits.Memory != 512*mib || bare.Limits.Total != 30*time.Second || web.Limits.Total != 2*time.Minute || web.Limits.Idle != day {
		t.Errorf("limits %+v %+v", web.Limits, bare.Limits)
	}
	if web.Access != lode.AccessPublic || bare.Access != lode.AccessToken || bare.Egress.Mode != "public" || web.Egress.Mode != "list" || len(web.Egress.Allow) != 3 {
		t.Errorf("access %s %s, egress %v %v", web.Access, bare.Access, web.Egress, bare.Egress)
	}
	if len(web.Schedules) != 3 || web.Schedules[2].Zone != "Europe/Vienna" || *web.Queue != (lode.Consume{Queue: "orders", Size: 5, Wait: time.Second}) {
		t.Errorf("schedules %v queue %v", web.Schedules, web.Queue)
	}
	if grep.Source != "/x/grep.wasm" || !slices.Equal(grep.Args, []string{"-c", "free"}) || grep.Contract != lode.ContractCommand || bare.Source != "/x" {
		t.Errorf("grep %q %v %s; bare %q", grep.Source, grep.Args, grep.Contract, bare.Source)
	}
	if d.Queues["orders"] != (lode.Queue{Keep: 7 * day, Deliver: 5, Visible: 30 * time.Second, Max: 1e6}) || d.Queues["small"].Max != 10_000 {
		t.Errorf("queues %+v", d.Queues)
	}
	if d.Datasets["labels"].Records != lode.RecordsCSV || d.Datasets["mails"].Records != lode.RecordsFiles || d.Datasets["mails"].Copies != 2 {
		t.Errorf("datasets %+v", d.Datasets)
	}
}

func TestMergeKeysAndAnchors(t *testing.T) {
	d, err := Parse([]byte("functions:\n  a: &base {memory: 64MiB, cpu: 1}\n  b: {<<: *base, cpu: 1}\n"), "/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	if b := d.Functions["b"].Limits; b.Memory != 64*mib || b.CPU != 1 {
		t.Errorf("b: %+v", b)
	}
}

func TestBillionLaughs(t *testing.T) {
	var b strings.Builder
	b.WriteString("functions:\n  f:\n    needs: &a0 [a, b, c, d, e, f, g, h, i, j]\n")
	b.WriteString("    env:\n      x0: &m0 {a: b}\n")
	for i := 1; i < 30; i++ {
		prev := strings.Repeat("*m"+itoa(i-1)+",", 9)
		b.WriteString("      x" + itoa(i) + ": &m" + itoa(i) + " {<<: [" + prev + "*m" + itoa(i-1) + "]}\n")
	}
	b.WriteString("    schedule: {<<: *m29}\n")
	start := time.Now()
	if _, err := Parse([]byte(b.String()), "/x", nil); lode.KindOf(err) != lode.Invalid || !strings.Contains(err.Error(), "expands to too much") {
		t.Fatalf("got %v after %v", err, time.Since(start))
	}
	// An anchor inside itself.
	if _, err := Parse([]byte("functions: {a: &a {env: {<<: *a}}}\n"), "/x", nil); lode.KindOf(err) != lode.Invalid {
		t.Fatalf("got %v", err)
	}
}

func TestTooManyMistakes(t *testing.T) {
	_, err := Parse([]byte("functions:\n"+strings.Repeat("  F: {}\n", 50)), "/x", nil)
	ps, ok := errors.AsType[*Problems](err)
	if !ok || len(ps.List) != maxProblems || ps.More == 0 {
		t.Fatalf("got %v", err)
	}
}

func TestWithoutFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "My Shop_2")
	os.Mkdir(dir, 0o755)
	d, err := Load(Options{Path: dir})
	if err != nil || d.Name != "my-shop-2" || !d.Implicit || len(d.Sources()) != 1 {
		t.Fatalf("%+v, %v", d, err)
	}
	file := filepath.Join(dir, "count.go")
	os.WriteFile(file, []byte("package main"), 0o644)
	if d, err = Load(Options{Path: file}); err != nil || d.Name != "count" || d.Sources()[0].Path != file {
		t.Fatalf("%+v, %v", d, err)
	}
	if _, err := Load(Options{Path: filepath.Join(dir, "no")}); lode.KindOf(err) != lode.NotFound {
		t.Fatal(err)
	}
}

func TestComplete(t *testing.T) {
	both := &lode.Description{ABI: 1, Functions: []lode.Export{{Name: "a"}, {Name: "b"}}, Jobs: []lode.Export{{Name: "b", Reduce: "guest"}}}
	d, err := Parse([]byte("app: x\nfunctions: {b: {memory: 8MiB}}\n"), "/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	art := func(e *lode.Description) map[string][]Artifact {
		return map[string][]Artifact{"/x": {{Name: "n", Size: 3, Language: "go", Contract: lode.ContractHandler, Exports: e}}}
	}
	app, err := d.Complete(art(both))
	if f := app.Functions["b"]; err != nil || f.Export != "b" || f.Reduce != "guest" || f.Limits.Memory != 8*mib || f.Size != 3 {
		t.Fatalf("%+v %v", f, err)
	}
	if _, err := d.Complete(art(&lode.Description{Functions: []lode.Export{{Name: "bb"}, {Name: "c"}}})); lode.KindOf(err) != lode.Invalid || !strings.Contains(lode.AsError(err).Hint, `"bb"`) {
		t.Fatalf("got %v", err)
	}
	if _, err := d.Complete(art(&lode.Description{Kinds: []lode.KindExp{{Name: "cart"}}})); lode.KindOf(err) != lode.Invalid || !strings.Contains(err.Error(), "cart") {
		t.Fatalf("got %v", err)
	}

	d, _ = Parse([]byte("app: x\ndefaults: {memory: 9MiB}\nqueues: {q: {}}\n"), "/x", nil)
	app, err = d.Complete(art(both))
	if err != nil || len(app.Functions) != 2 || app.Functions["a"].Limits.Memory != 9*mib {
		t.Fatalf("%+v %v", app, err)
	}
	app, err = d.Complete(art(nil)) // a command that says nothing of itself
	if err != nil || app.Functions["x"].Artifact != (lode.Digest{}) || len(app.Functions) != 1 {
		t.Fatalf("%+v %v", app, err)
	}
	two := map[string][]Artifact{"/x": {{Name: "one"}, {Name: "two"}}}
	if app, err = d.Complete(two); err != nil || len(app.Functions) != 2 {
		t.Fatalf("two folders: %+v %v", app, err)
	}
	if _, err = d.Complete(art(&lode.Description{Functions: []lode.Export{{Name: "q"}}})); lode.KindOf(err) != lode.Invalid {
		t.Fatalf("a function took the name of a queue: %v", err)
	}
}

func TestGlobs(t *testing.T) {
	dir := t.TempDir()
	for _, f := range []string{"c/a.txt", "c/d/b.txt", "c/d/.hidden.txt", "c/.git/x.txt", "c/e.csv"} {
		os.MkdirAll(filepath.Dir(filepath.Join(dir, f)), 0o755)
		os.WriteFile(filepath.Join(dir, f), nil, 0o644)
	}
	for _, tt := range []struct {
		from []string
		want string
	}{
		{[]string{"./c/**/*.txt"}, "c/a.txt c/d/b.txt"},
		{[]string{"c/*.txt"}, "c/a.txt"},
		{[]string{"c"}, "c/a.txt c/d/b.txt c/e.csv"},
		{[]string{"c/e.csv", "c/*"}, "c/e.csv c/a.txt"},
		{[]string{"c/d/.hidden.txt"}, "c/d/.hidden.txt"},
	} {
		got, err := Globs(dir, tt.from)
		for i := range got {
			got[i], _ = filepath.Rel(dir, got[i])
		}
		if s := strings.Join(got, " "); err != nil || s != tt.want {
			t.Errorf("%v: %q, %v; want %q", tt.from, s, err, tt.want)
		}
	}
	if _, err := Globs(dir, []string{"*.none"}); lode.KindOf(err) != lode.NotFound {
		t.Error(err)
	}
}

func TestParseEnv(t *testing.T) {
	got, err := ParseEnv(".env", []byte("# c\nA=1\nexport B = two words # note\nC='si#ng \\n'\nD=\"x\\ny\\\"\"\n\nE=\n"))
	want := map[string]string{"A": "1", "B": "two words", "C": "si#ng \\n", "D": "x\ny\"", "E": ""}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v %v", got, err)
	}
	_, err = ParseEnv(".env", []byte("A=1\nnonsense\nB=\"open\n"))
	if err == nil || !strings.Contains(err.Error(), ".env:2:1") || !strings.Contains(err.Error(), ".env:3:3: B: the closing quote is missing") {
		t.Error(err)
	}
}

func TestQuantities(t *testing.T) {
	for s, want := range map[string]int64{"64MiB": 64 << 20, "0": 0, "1.5GiB": 3 << 29, "2KB": 2000, "7": 7, "64Mi": -1, "-1": -1, "1e3": -1, "": -1, "99999999TiB": -1} {
		if got, err := ParseSize(s); (err != nil) != (want < 0) || err == nil && got != want {
			t.Errorf("size %q: %d, %v", s, got, err)
		}
	}
	for s, want := range map[string]time.Duration{"250ms": 250 * time.Millisecond, "7d": 7 * day, "1d12h": 36 * time.Hour, "0": 0, "-1s": -1, "5": -1, "d": -1, "1dd": -1} {
		if got, err := ParseDuration(s); (err != nil) != (want < 0) || err == nil && got != want {
			t.Errorf("duration %q: %v, %v", s, got, err)
		}
	}
}
