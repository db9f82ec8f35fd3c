package examples_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"lode"
	"lode/api"
	"lode/cmd/build"
	"lode/cmd/spec"
	"lode/node"
)

// TestExamples does what the examples' pages say, on one node.
func TestExamples(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and compiles every example")
	}
	h := open(t)
	for name, run := range map[string]func(t *testing.T, h *house){
		"hello-go": helloGo, "hello-js": helloJS, "c-simd-sum": simdSum, "wordcount": wordCount, "spam": spam,
		"webhook-queue": webhookQueue, "cron": cron, "proxy": proxy, "lambda-client": lambdaClient, "grep": grep,
	} {
		t.Run(name, func(t *testing.T) { run(t, h) })
	}
}

// TestPages holds every example to a page, and every page to an example.
func TestPages(t *testing.T) {
	pages, err := filepath.Glob("*/README.md")
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	folders := 0
	for _, e := range entries {
		if e.IsDir() {
			folders++
		}
	}
	if len(pages) != folders || folders < 10 {
		t.Errorf("%d folders, %d pages: each example has a README.md", folders, len(pages))
	}
	for _, p := range pages {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(filepath.Dir(p))
		if !strings.HasPrefix(string(b), "# "+name+"\n") || !bytes.Contains(b, []byte("lode ")) {
			t.Errorf("%s does not begin with its name, or says no command", p)
		}
	}
}

// house is a node and a way to it.
type house struct {
	url    string
	client *api.Client
}

// open starts a node: in this process, but under the race detector in one of
// its own, since a compiler that is watched by it takes ten times as long.
func open(t *testing.T) *house {
	t.Helper()
	var url, token string
	if raced {
		url, token = start(t)
	} else {
		n, err := node.Open(t.Context(), node.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0", Name: "here", Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := n.Close(context.Background()); err != nil {
				t.Error(err)
			}
		})
		url, token = n.URL(), n.Token()
	}
	c, err := api.New(api.Config{URL: url, Token: token})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return &house{url, c}
}

// start builds the command without the race detector and runs lode up.
func start(t *testing.T) (url, token string) {
	t.Helper()
	dir := t.TempDir()
	binary, data := filepath.Join(dir, "lode"), filepath.Join(dir, "data")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "lode/cmd/lode").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.Command(binary, "up", "--port", "0", "-d", data)
	cmd.Env = append(os.Environ(), "XDG_STATE_HOME="+dir) // the user's own node stays the one that commands find
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var read sync.WaitGroup
	t.Cleanup(func() {
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Error(err)
		}
		read.Wait()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the node ended badly: %v", err)
		}
	})
	lines := bufio.NewScanner(out)
	for url == "" && lines.Scan() {
		if _, rest, ok := strings.Cut(lines.Text(), "is ready: "); ok {
			url = strings.Fields(rest)[0]
		}
	}
	read.Go(func() {
		for lines.Scan() {
		}
	})
	b, err := os.ReadFile(filepath.Join(data, "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	return url, strings.TrimSpace(string(b))
}

// copied is a copy of an example outside of this module, as a user has it.
// edits are pairs of old and new text for its lode.yaml.
func copied(t *testing.T, name string, edits ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	if err := os.CopyFS(dir, os.DirFS(name)); err != nil {
		t.Fatal(err)
	}
	if len(edits) > 0 {
		file := filepath.Join(dir, spec.FileName)
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(strings.NewReplacer(edits...).Replace(string(b))), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// deploy does what lode deploy does. An example whose compiler is missing is
// skipped.
func (h *house) deploy(t *testing.T, dir string) lode.App {
	t.Helper()
	ctx := t.Context()
	d, err := spec.Load(spec.Options{Path: dir})
	if err != nil {
		t.Fatal(err)
	}
	built := map[string][]spec.Artifact{}
	for _, s := range d.Sources() {
		src := build.Source{Path: s.Path, Build: s.Build}
		if s.Path == d.Source {
			src.Name = string(d.Name)
		}
		arts, err := build.Build(ctx, src)
		if lode.KindOf(err) == lode.Unavailable {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range arts {
			if err := h.client.PutBlob(ctx, a.Digest, int64(len(a.Wasm)), bytes.NewReader(a.Wasm)); err != nil {
				t.Fatal(err)
			}
			m, err := h.client.DescribeBlob(ctx, a.Digest)
			if err != nil {
				t.Fatal(err)
			}
			built[s.Key()] = append(built[s.Key()], spec.Artifact{Name: a.Name, Digest: a.Digest, Size: int64(len(a.Wasm)),
				Language: a.Language, Contract: m.Contract, Exports: m.Description})
		}
	}
	app, err := d.Complete(built)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.client.Deploy(ctx, app, api.DeployOptions{}); err != nil {
		t.Fatal(err)
	}
	return app
}

// call sends body and wants the answer's status; it returns the answer's body.
func (h *house) call(t *testing.T, method, path, body string, want int) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, h.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != want {
		t.Fatalf("%s %s: %s, want %d: %s", method, path, resp.Status, want, b)
	}
	return string(b)
}

// put makes a dataset of one stream.
func (h *house) put(t *testing.T, name lode.Name, o api.PutOptions, content []byte) {
	t.Helper()
	if _, err := h.client.PutStream(t.Context(), name, o, string(name), bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
}

// run runs a job to its end and returns its result.
func (h *house) run(t *testing.T, s api.JobSpec) []byte {
	t.Helper()
	j, err := h.client.CreateJob(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	for !api.Ended(j.State) {
		if j, err = h.client.GetJob(t.Context(), j.ID, 10*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	if j.State != lode.StateDone {
		t.Fatalf("job %s: %s: %v", j.ID, j.State, j.Error)
	}
	c, err := h.client.JobResult(t.Context(), j.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Body.Close()
	b, err := io.ReadAll(c.Body)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// logged waits until a function has said a line that holds text.
func (h *house) logged(t *testing.T, name lode.Name, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	found := false
	err := h.client.ReadLogs(ctx, api.LogFilter{Name: name, Follow: true, Tail: 1000}, func(l api.LogLine) error {
		if found = found || strings.Contains(l.Text, text); found {
			cancel()
		}
		return nil
	})
	if !found {
		t.Fatalf("%s did not say %q: %v", name, text, err)
	}
}

func want(t *testing.T, got, want string) {
	t.Helper()
	if strings.TrimSpace(got) != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func helloGo(t *testing.T, h *house) {
	h.deploy(t, copied(t, "hello-go"))
	want(t, h.call(t, "POST", "/fn/hello-go", `"ada"`, 200), `{"text":"hello, ada","revision":"1"}`)
	h.logged(t, "hello-go", "greeting ada")
	if got := h.call(t, "POST", "/fn/hello-go", `""`, 502); !strings.Contains(got, "a greeting needs a name") {
		t.Errorf("the failure does not say why: %s", got)
	}
}

func helloJS(t *testing.T, h *house) {
	h.deploy(t, copied(t, "hello-js"))
	want(t, h.call(t, "POST", "/fn/hello-js", `"ada"`, 200), `{"text":"hello, ada"}`)
	want(t, h.call(t, "GET", "/fn/hello-js/count?to=3", "", 200), "1\n2\n3")
	h.call(t, "GET", "/fn/hello-js", "", 405)
}

func simdSum(t *testing.T, h *house) {
	h.deploy(t, copied(t, "c-simd-sum"))
	const n = 100_001 // not a multiple of what is added at a time
	var b []byte
	for i := range uint64(n) {
		b = binary.LittleEndian.AppendUint64(b, i+1)
	}
	h.put(t, "numbers", api.PutOptions{Records: "fixed:8", Shard: 256 << 10}, b)
	want(t, string(h.run(t, api.JobSpec{Function: "c-simd-sum", Dataset: "numbers", Reduce: "sum"})), "5000150001")
}

func wordCount(t *testing.T, h *house) {
	app := h.deploy(t, copied(t, "wordcount"))
	if r := app.Functions["wordcount"].Reduce; r != "guest" {
		t.Errorf("reduce is %q: the example is about a merge of its own", r)
	}
	var text bytes.Buffer
	for range 5_000 { // 190 KiB, several shards
		text.WriteString("Free offer\nsee you at lunch\nfree lunch\n")
	}
	h.put(t, "texts", api.PutOptions{Records: lode.RecordsLines, Shard: 64 << 10}, text.Bytes())
	var got struct {
		Lines   int
		Longest string
		Words   map[string]int
	}
	if err := json.Unmarshal(h.run(t, api.JobSpec{Function: "wordcount", Dataset: "texts"}), &got); err != nil {
		t.Fatal(err)
	}
	if got.Lines != 15_000 || got.Longest != "lunch" || got.Words["free"] != 10_000 || got.Words["at"] != 5_000 || len(got.Words) != 6 {
		t.Errorf("got %+v", got)
	}
}

// files are what lode data put NAME FOLDER --records files sends.
type files struct{ names, contents []string }

// Next implements api.Files.
func (f *files) Next() (string, int64, io.Reader, error) {
	if len(f.names) == 0 {
		return "", 0, nil, io.EOF
	}
	name, content := f.names[0], f.contents[0]
	f.names, f.contents = f.names[1:], f.contents[1:]
	return name, int64(len(content)), strings.NewReader(content), nil
}

func spam(t *testing.T, h *house) {
	h.deploy(t, copied(t, "spam"))
	mails := &files{[]string{"ham-1", "ham-2", "spam-1", "spam-2"}, []string{"see you at lunch", "the report is done", "free money now", "free offer click now"}}
	if _, err := h.client.PutDataset(t.Context(), "mails", api.PutOptions{Records: lode.RecordsFiles}, mails); err != nil {
		t.Fatal(err)
	}
	h.run(t, api.JobSpec{Function: "train", Dataset: "mails", Into: "spam-model"})
	for { // the result becomes a dataset a moment after the job's end
		if _, err := h.client.GetDataset(t.Context(), "spam-model", 0); err == nil {
			break
		} else if lode.KindOf(err) != lode.NotFound {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if got := h.call(t, "POST", "/fn/classify", `"free money now"`, 200); !strings.Contains(got, `"spam":true`) {
		t.Error(got)
	}
	if got := h.call(t, "POST", "/fn/classify", `"lunch report"`, 200); !strings.Contains(got, `"spam":false`) {
		t.Error(got)
	}
}

func webhookQueue(t *testing.T, h *house) {
	h.deploy(t, copied(t, "webhook-queue"))
	h.call(t, "POST", "/hooks/shop", `{"n":1}`, 202)
	h.call(t, "POST", "/hooks/broken", `{"n":2}`, 202)
	h.call(t, "POST", "/hooks/shop", `not JSON`, 400)
	h.call(t, "GET", "/hooks/shop", "", 405)
	h.logged(t, "worker", `done: shop {"n":1}`)
	h.logged(t, "worker", "attempt 3 failed")
	h.logged(t, "undertaker", `given up: {"source":"broken","event":{"n":2}}`)
}

func cron(t *testing.T, h *house) {
	h.deploy(t, copied(t, "cron"))
	h.logged(t, "tick", "trigger schedule")
	if _, err := h.client.RemoveName(t.Context(), "tick", api.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
}

func proxy(t *testing.T, h *house) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer s3cret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = io.WriteString(w, "upstream "+r.URL.Path)
	}))
	defer up.Close()
	if err := h.client.SetSecret(t.Context(), "UPSTREAM_TOKEN", []byte("s3cret")); err != nil {
		t.Fatal(err)
	}
	h.deploy(t, copied(t, "proxy", "https://example.com", up.URL, "[example.com]", `["`+strings.TrimPrefix(up.URL, "http://")+`"]`))
	want(t, h.call(t, "GET", "/proxy/a/b", "", 200), "upstream /a/b")
	if got := h.call(t, "GET", "/proxy/a?elsewhere=1", "", 502); !strings.Contains(got, "169.254.169.254") {
		t.Errorf("the refusal does not name the address: %s", got)
	}
}

func lambdaClient(t *testing.T, h *house) {
	h.deploy(t, copied(t, "lambda-client"))
	const door = "/2015-03-31/functions/lambda-client/invocations"
	want(t, h.call(t, "POST", door, `{"id":"7","items":[{"price":250,"count":2}]}`, 200), `{"id":"7","total":500}`)
	if got := h.call(t, "POST", door, `{"id":"8"}`, 200); !strings.Contains(got, `"errorMessage":"the order is empty"`) {
		t.Errorf("a failure in Lambda's shape is missing: %s", got)
	}
}

func grep(t *testing.T, h *house) {
	dir := copied(t, "grep")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "grep.wasm"), "./grep/src")
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	h.deploy(t, dir)
	want(t, h.call(t, "POST", "/fn/grep-free", "free offer\nsee you\nfree lunch\n", 200), "2")
	want(t, h.call(t, "POST", "/fn/grep-free", "see you\n", 200), "0")
	h.put(t, "lines", api.PutOptions{Records: lode.RecordsLines, Shard: 64 << 10}, bytes.Repeat([]byte("free offer\nsee you\n"), 10_000))
	want(t, string(h.run(t, api.JobSpec{Function: "grep-free", Dataset: "lines"})), "10000")
}
