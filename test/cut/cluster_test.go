//go:build linux

package cut

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"lode"
	"lode/api"
	"lode/test/child"
)

// cluster is nodes on the machines of a network, and what they were made to do.
type cluster struct {
	t     *testing.T
	net   *network
	dir   string
	bin   string            // the command
	args  []string          // of every lode up
	disks map[string]string // data folder of a node, where it is not below dir
	nodes map[string]*process
	sink  *sink

	version atomic.Int64 // of the lab, of the last deploy that was tried
	serial  atomic.Int64 // of what must be new each time
}

// process is a running lode up.
type process struct {
	c    *cluster
	name string
	dir  string
	cmd  *exec.Cmd
	out  *child.Transcript
	done chan struct{}
	api  *api.Client
	http *http.Client
}

// newCluster has a network and no nodes yet.
func newCluster(t *testing.T, machines ...string) *cluster {
	t.Helper()
	c := &cluster{t: t, net: newNetwork(t, machines...), bin: lab.lode, disks: map[string]string{}, nodes: map[string]*process{}}
	var err error
	if c.dir, err = os.MkdirTemp(lab.dir, "c-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeFolder(c.dir) })
	c.sink = newSink(t, c.net.listen("switch", "10.77.0.254:8080"))
	return c
}

// three is a cluster of a, b and c, with the lab deployed and three members of
// the bus.
func three(t *testing.T) *cluster {
	t.Helper()
	c := newCluster(t, "a", "b", "c")
	began := time.Now()
	c.grow("a", "b", "c")
	c.furnish()
	t.Logf("three nodes are ready after %s", time.Since(began).Round(time.Millisecond))
	return c
}

// furnish deploys the lab, has every node serve it, and puts dataset base.
func (c *cluster) furnish() {
	c.t.Helper()
	c.deploy("a", 1)
	c.warm(1)
	if _, err := c.nodes["a"].api.PutStream(c.t.Context(), "base", api.PutOptions{Records: lode.RecordsLines, Shard: 64 << 10}, "base", strings.NewReader(base)); err != nil {
		c.t.Fatal(err)
	}
}

// base is a dataset of some shards.
var base = strings.Repeat("some line of text\n", baseLines)

const baseLines = 20000

// grow starts the first node, and joins the others.
func (c *cluster) grow(names ...string) {
	c.t.Helper()
	c.up(names[0])
	for _, n := range names[1:] {
		c.join(n, c.token(names[0]))
	}
	waitFor(c.t, "the members of the bus", func() bool {
		for _, n := range names {
			l, err := c.nodes[n].api.Nodes(c.t.Context())
			if err != nil || l.Cluster.Keeper == "" || !l.Cluster.Quorum || len(l.Items) != len(names) {
				return false
			}
			if l.Cluster.External == "" && (l.Cluster.Answering != len(names) || l.Cluster.Moving != "") {
				return false
			}
		}
		return true
	})
}

// token makes a join token.
func (c *cluster) token(at string) string {
	c.t.Helper()
	k, err := c.nodes[at].api.CreateJoinToken(c.t.Context(), api.JoinSpec{})
	if err != nil {
		c.t.Fatal(err)
	}
	return k.Token
}

func (c *cluster) join(name, token string) *process {
	c.t.Helper()
	file := filepath.Join(c.dir, name+".token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		c.t.Fatal(err)
	}
	return c.up(name, "--join", c.net.addr["a"], "--token", "@"+file)
}

// data is the data folder of a node.
func (c *cluster) data(name string) string {
	if d := c.disks[name]; d != "" {
		return filepath.Join(d, "data")
	}
	return filepath.Join(c.dir, name, "data")
}

// begin starts a node, and does not wait for it.
func (c *cluster) begin(name string, args ...string) *process {
	c.t.Helper()
	p := &process{c: c, name: name, dir: c.data(name), out: &child.Transcript{}, done: make(chan struct{})}
	home := filepath.Dir(p.dir)
	if err := os.MkdirAll(home, 0o755); err != nil {
		c.t.Fatal(err)
	}
	p.cmd = exec.Command(c.bin, append(append([]string{"up", "-d", p.dir, "--bind", c.net.addr[name], "--name", name}, c.args...), args...)...)
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	p.cmd.Env = child.Environment("HOME="+home, "XDG_STATE_HOME="+filepath.Join(home, "state"))
	if err := startIn(c.net.prefix+name, p.cmd); err != nil {
		c.t.Fatal(err)
	}
	go func() { p.cmd.Wait(); close(p.done) }()
	c.nodes[name] = p
	c.t.Cleanup(func() {
		p.kill()
		removeScratch(p.dir)
		if c.t.Failed() {
			c.t.Logf("node %s said:\n%s", name, tail(p.out.String(), 4000))
		}
	})
	return p
}

var readyLine = regexp.MustCompile(`ready: (http://\S+)`)

// up starts a node and waits until it is ready.
func (c *cluster) up(name string, args ...string) *process {
	c.t.Helper()
	p := c.begin(name, args...)
	waitFor(c.t, "node "+name+" to be ready", func() bool {
		select {
		case <-p.done:
			c.t.Fatalf("node %s ended at its start:\n%s", name, p.out)
		default:
		}
		return readyLine.MatchString(p.out.String())
	})
	p.connect()
	return p
}

// connect makes the clients of a node that is up: they are on its machine, so
// that they reach it when others do not.
func (p *process) connect() {
	p.c.t.Helper()
	token, err := os.ReadFile(filepath.Join(p.dir, "admin.token"))
	if err != nil {
		p.c.t.Fatal(err)
	}
	tr := &http.Transport{MaxIdleConnsPerHost: 8, DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) { return p.c.net.dial(ctx, p.name, addr) }}
	p.c.t.Cleanup(tr.CloseIdleConnections)
	p.http = &http.Client{Transport: &bearer{tr, strings.TrimSpace(string(token))}}
	if p.api, err = api.New(api.Config{URL: p.url(""), Token: strings.TrimSpace(string(token)), Transport: tr}); err != nil {
		p.c.t.Fatal(err)
	}
}

// bearer adds a token where there is none.
type bearer struct {
	inner http.RoundTripper
	token string
}

func (b *bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Header.Get("Authorization") == "" {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+b.token)
	}
	return b.inner.RoundTrip(r)
}

func (p *process) url(path string) string { return "http://" + p.c.net.addr[p.name] + ":5633" + path }

// kill ends the process as a power cut does.
func (p *process) kill() {
	p.cmd.Process.Kill()
	<-p.done
}

// stop ends the process as Ctrl-C does.
func (p *process) stop() {
	p.c.t.Helper()
	p.cmd.Process.Signal(syscall.SIGINT)
	select {
	case <-p.done:
	case <-time.After(patience):
		child.Dump(p.cmd, p.done)
		p.c.t.Fatalf("node %s does not stop:\n%s", p.name, p.out)
	}
}

// answer is what a door said.
type answer struct {
	status int // 0: nothing
	body   string
	head   http.Header
	took   time.Duration
}

func (a answer) String() string {
	return fmt.Sprintf("%d in %s: %s", a.status, a.took.Round(time.Millisecond), tail(a.body, 300))
}

// problem is the error that an answer tells, nil for a 2xx.
func (a answer) problem() error {
	switch {
	case a.status == 0:
		return errors.New(a.body)
	case a.status < 300:
		return nil
	}
	e := &lode.Error{}
	if json.Unmarshal([]byte(a.body), e) != nil {
		return fmt.Errorf("%d %s", a.status, a.body)
	}
	return e
}

func (p *process) get(path string) answer { return p.do(http.MethodGet, path, "") }

// post sends a body, with headers as pairs.
func (p *process) post(path, body string, head ...string) answer {
	return p.do(http.MethodPost, path, body, head...)
}

func (p *process) do(method, path, body string, head ...string) (a answer) {
	return p.within(patience, method, path, body, head...)
}

func (p *process) within(most time.Duration, method, path, body string, head ...string) (a answer) {
	began := time.Now()
	defer func() { a.took = time.Since(began) }()
	ctx, cancel := context.WithTimeout(p.c.t.Context(), most)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, p.url(path), strings.NewReader(body))
	if err != nil {
		return answer{body: err.Error()}
	}
	for i := 0; i < len(head); i += 2 {
		req.Header.Set(head[i], head[i+1])
	}
	resp, err := p.http.Do(req)
	if err != nil {
		return answer{body: err.Error()}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{body: err.Error()}
	}
	return answer{status: resp.StatusCode, body: string(b), head: resp.Header}
}

// metric is the sum of a metric.
func (p *process) metric(name string) (sum float64) {
	for line := range strings.Lines(p.get("/metrics").body) {
		if rest, ok := strings.CutPrefix(line, name); ok && rest != "" && strings.ContainsAny(rest[:1], " {") {
			f := strings.Fields(line)
			v, _ := strconv.ParseFloat(f[len(f)-1], 64)
			sum += v
		}
	}
	return sum
}

// lode runs the command on a node's machine.
func (p *process) lode(args ...string) (out string, code int) {
	p.c.t.Helper()
	cmd := exec.Command(p.c.bin, args...)
	var b bytes.Buffer
	cmd.Stdout, cmd.Stderr = &b, &b
	token, _ := os.ReadFile(filepath.Join(p.dir, "admin.token"))
	cmd.Env = child.Environment("HOME="+filepath.Dir(p.dir), "LODE_URL="+p.url(""), "LODE_TOKEN="+strings.TrimSpace(string(token)))
	if err := startIn(p.c.net.prefix+p.name, cmd); err != nil {
		p.c.t.Fatal(err)
	}
	cmd.Wait()
	return b.String(), cmd.ProcessState.ExitCode()
}

// keeper is the name of the keeper as a node sees it.
func (c *cluster) keeper(at string) string {
	l, err := c.nodes[at].api.Nodes(c.t.Context())
	if err != nil {
		return ""
	}
	return l.Cluster.Keeper
}

// others are the nodes but one, in order.
func (c *cluster) others(but string) (out []*process) {
	for _, n := range []string{"a", "b", "c"} {
		if n != but && c.nodes[n] != nil {
			out = append(out, c.nodes[n])
		}
	}
	return out
}

// app is the lab in some version.
func (c *cluster) app(version int) lode.App {
	c.t.Helper()
	a, err := lab.guest()
	if err != nil {
		c.t.Fatal(err)
	}
	f := lode.Function{Artifact: a.Digest, Size: int64(len(a.Wasm)), Language: a.Language, Contract: a.Contract, Access: lode.AccessToken,
		Env:   map[string]string{"V": strconv.Itoa(version), "SINK": "http://10.77.0.254:8080"},
		Retry: lode.Retry{Attempts: 50, First: 100 * time.Millisecond, Max: time.Second}, Egress: lode.Egress{Mode: "list", Allow: []string{"10.77.0.254"}},
		Limits: lode.Limits{Memory: 64 << 20, Start: 30 * time.Second, Total: 20 * time.Second, Idle: time.Minute, Each: 1, QueueMax: 1000,
			Body: 6 << 20, Tmp: 64 << 20, Log: 256 << 10, OutputMax: 6 << 20}}
	drain := f
	f.Limits.ScaleMin = 1 // else a node whose peers ran it first has them run it on
	drain.Queue = &lode.Consume{Queue: "work", Size: 10}
	return lode.App{Name: "cut", Functions: map[lode.Name]lode.Function{"web": f, "drain": drain},
		Queues: map[lode.Name]lode.Queue{"work": {Visible: 5 * time.Second, Deliver: 50, Keep: time.Hour, Max: 1 << 20}}}
}

// deploy deploys the lab through a node.
func (c *cluster) deploy(at string, version int) {
	c.t.Helper()
	a, err := lab.guest()
	if err != nil {
		c.t.Fatal(err)
	}
	p := c.nodes[at]
	if err := p.api.PutBlob(c.t.Context(), a.Digest, int64(len(a.Wasm)), bytes.NewReader(a.Wasm)); err != nil {
		c.t.Fatal(err)
	}
	if err := p.redeploy(version); err != nil {
		c.t.Fatal(err)
	}
}

// story has every node do a bit of everything, and checks that it is right.
func (c *cluster) story() {
	t := c.t
	t.Helper()
	for name, p := range c.nodes {
		if a := p.post("/fn/web", "x"); a.status != http.StatusOK || a.body != "x" {
			t.Errorf("a call at %s: %s", name, a)
		}
		key := fmt.Sprintf("%s-%d", name, time.Now().UnixNano())
		a := p.post("/fn/web/hit?k="+key, "", "Prefer", "respond-async")
		if a.status != http.StatusAccepted {
			t.Errorf("an asynchronous call at %s: %s", name, a)
			continue
		}
		if a := p.post("/queues/work", key, "Content-Type", "text/plain"); a.status != http.StatusAccepted {
			t.Errorf("a message at %s: %s", name, a)
			continue
		}
		waitFor(t, "the asynchronous call", func() bool { return c.sink.count("/hit/"+key) > 0 })
		waitFor(t, "the message", func() bool { return c.sink.count("/message/"+key) > 0 })
		j, err := p.api.CreateJob(t.Context(), api.JobSpec{Function: "web", Dataset: "base"})
		if err != nil {
			t.Errorf("a job at %s: %v", name, err)
			continue
		}
		if n, err := p.result(j.ID); n != strconv.Itoa(baseLines) {
			t.Errorf("the job at %s counted %s %v", name, n, err)
		}
	}
}

// result waits for a job's result.
func (p *process) result(job string) (string, error) {
	waitFor(p.c.t, "job "+job, func() bool {
		j, err := p.api.GetJob(p.c.t.Context(), job, 10*time.Second)
		return err == nil && j.State != lode.StateQueued && j.State != lode.StateRunning
	})
	r, err := p.api.JobResult(p.c.t.Context(), job)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return strings.TrimSpace(string(b)), err
}

// redeploy deploys another version of what is uploaded.
func (p *process) redeploy(version int) error {
	p.c.version.Store(max(p.c.version.Load(), int64(version)))
	_, err := p.api.Deploy(p.c.t.Context(), p.c.app(version), api.DeployOptions{})
	return err
}

// warm waits until every node serves that version by itself.
func (c *cluster) warm(version int) {
	c.t.Helper()
	for name, p := range c.nodes {
		var a answer
		waitForElse(c.t, func() bool {
			a = p.get("/fn/web/version")
			return a.status == 200 && a.body == strconv.Itoa(version) && a.head.Get("Lode-Node") == name
		}, func() string {
			return "node " + name + " to serve; last: " + a.String() + " from " + a.head.Get("Lode-Node")
		})
	}
}

func tail(s string, n int) string {
	if len(s) > n {
		return "..." + s[len(s)-n:]
	}
	return s
}

// sink counts what functions tell it, by path. It stands on the switch.
type sink struct {
	mu   sync.Mutex
	seen map[string]int
}

func newSink(t *testing.T, ln net.Listener) *sink {
	s := &sink{seen: map[string]int{}}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.seen[r.URL.Path]++
	})}
	ended := make(chan struct{})
	go func() { srv.Serve(ln); close(ended) }()
	t.Cleanup(func() { srv.Close(); <-ended })
	return s
}

func (s *sink) count(path string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen[path]
}
