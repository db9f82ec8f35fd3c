//go:build linux

package agents

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"lode/api"
	"lode/test/child"
	"lode/test/history"
)

// patience bounds every wait for something that must come.
const patience = 90 * time.Second

// waitFor polls until cond holds.
func waitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("waited in vain for %s", what)
}

// cluster is nodes on this machine. One that is started again has the folder
// and the ports of its former life.
type cluster struct {
	t     testing.TB
	home  string
	nodes []*process
}

// process is a node.
type process struct {
	c      *cluster
	name   string
	port   int
	cmd    *exec.Cmd
	out    *child.Transcript
	done   chan struct{}
	token  string
	api    *api.Client
	client *http.Client
}

// newCluster starts one node, with the lab deployed.
func newCluster(t testing.TB) *cluster {
	t.Helper()
	home, err := os.MkdirTemp(lab.dir, "c-")
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, home: home}
	p := c.add("a")
	p.must("deploy", history.Lab)
	return c
}

// three is a cluster of three, all of them members of the bus.
func three(t testing.TB) *cluster {
	t.Helper()
	c := newCluster(t)
	c.grow("b", "c")
	return c
}

// grow adds nodes.
func (c *cluster) grow(names ...string) {
	c.t.Helper()
	for _, n := range names {
		k, err := c.nodes[0].api.CreateJoinToken(c.t.Context(), api.JoinSpec{})
		if err != nil {
			c.t.Fatal(err)
		}
		c.add(n, "--join", k.Address, "--token", k.Token)
	}
	c.settled()
}

// settled waits until all nodes are members of the bus that answer.
func (c *cluster) settled() {
	c.t.Helper()
	waitFor(c.t, "the members of the bus", func() bool {
		for _, p := range c.nodes {
			ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
			l, err := p.api.Nodes(ctx)
			cancel()
			if err != nil || !l.Cluster.Quorum || l.Cluster.Answering != len(c.nodes) || l.Cluster.Moving != "" {
				return false
			}
		}
		return true
	})
}

func (c *cluster) add(name string, args ...string) *process {
	c.t.Helper()
	p := &process{c: c, name: name, port: freePorts(c.t)}
	c.nodes = append(c.nodes, p)
	c.t.Cleanup(func() {
		p.kill()
		if c.t.Failed() {
			s := p.out.String()
			c.t.Logf("node %s said:\n%s", name, s[max(0, len(s)-4000):])
		}
	})
	p.start(args...)
	return p
}

// freePorts finds three ports in a row, below those that the system gives to
// connections.
func freePorts(t testing.TB) int {
	for range 1000 {
		p := 20000 + 3*rand.IntN(3000)
		free := true
		for i := range 3 {
			ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p+i))
			if free = free && err == nil; err == nil {
				ln.Close()
			}
		}
		if free {
			return p
		}
	}
	t.Fatal("no three ports in a row are free")
	return 0
}

var readyLine = regexp.MustCompile(`ready: (http://\S+)`)

// start starts the process, and waits until it is ready.
func (p *process) start(args ...string) {
	t := p.c.t
	t.Helper()
	dir := filepath.Join(p.c.home, p.name, "data")
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	p.out, p.done = &child.Transcript{}, make(chan struct{})
	p.cmd = exec.Command(lab.lode, append([]string{"up", "-d", dir, "--port", fmt.Sprint(p.port), "--name", p.name}, args...)...)
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	p.cmd.Env = child.Environment("HOME="+filepath.Dir(dir), "XDG_STATE_HOME="+filepath.Join(filepath.Dir(dir), "state"))
	if err := child.Start(p.cmd); err != nil {
		t.Fatal(err)
	}
	cmd, done := p.cmd, p.done
	go func() { cmd.Wait(); close(done) }()
	waitFor(t, "node "+p.name+" to be ready", func() bool {
		select {
		case <-done:
			t.Fatalf("node %s ended at its start:\n%s", p.name, p.out)
		default:
		}
		return readyLine.MatchString(p.out.String())
	})
	if p.client != nil {
		return // again: callers are at it, and both are as they were
	}
	token, err := os.ReadFile(filepath.Join(dir, "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	p.token = strings.TrimSpace(string(token))
	if p.api, err = api.New(api.Config{URL: p.url(""), Token: p.token}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.api.Close)
	p.client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}}
	t.Cleanup(p.client.CloseIdleConnections)
}

func (p *process) url(path string) string { return fmt.Sprintf("http://127.0.0.1:%d%s", p.port, path) }

// kill ends the process as a power cut does.
func (p *process) kill() {
	if p.cmd.Process == nil {
		return
	}
	p.cmd.Process.Signal(syscall.SIGCONT)
	p.cmd.Process.Kill()
	<-p.done
}

// stop ends the process as Ctrl-C does.
func (p *process) stop() {
	p.c.t.Helper()
	p.cmd.Process.Signal(os.Interrupt)
	select {
	case <-p.done:
	case <-time.After(patience):
		child.Dump(p.cmd, p.done)
		p.c.t.Fatalf("node %s does not stop:\n%s", p.name, p.out)
	}
}

// must runs a command that has to succeed.
func (p *process) must(args ...string) string {
	p.c.t.Helper()
	cmd := exec.Command(lab.lode, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Env = child.Environment("HOME="+p.c.home, "LODE_URL="+p.url(""), "LODE_TOKEN="+p.token, "PATH="+os.Getenv("PATH"))
	err := child.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		p.c.t.Fatalf("lode %s: %v\n%s", strings.Join(args, " "), err, out.String())
	}
	return out.String()
}

// doors are the nodes.
func (c *cluster) doors() (out []history.Door) {
	for _, p := range c.nodes {
		out = append(out, p)
	}
	return out
}

// Call calls a method of an agent with one argument, in JSON.
func (p *process) Call(key, method, arg, id string, most time.Duration) history.Answer {
	ctx, cancel := context.WithTimeout(p.c.t.Context(), most)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url("/agents/thing/"+key+"/"+method), strings.NewReader(arg))
	if err != nil {
		return history.Answer{Body: err.Error()}
	}
	req.GetBody = nil // else the client sends a call with a key again by itself, and a refusal would not tell that it took no effect
	req.Header.Set("Authorization", "Bearer "+p.token)
	if arg != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if id != "" {
		req.Header.Set("Idempotency-Key", id)
	}
	resp, err := p.client.Do(req)
	if errors.Is(err, syscall.ECONNREFUSED) {
		time.Sleep(10 * time.Millisecond)
		return history.Answer{Status: 503, Kind: "unavailable", Body: err.Error()} // as good as
	}
	if err != nil {
		return history.Answer{Body: err.Error()}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return history.Answer{Body: err.Error()}
	}
	return history.Answer{Status: resp.StatusCode, Body: strings.TrimSpace(string(b)), Kind: resp.Header.Get("Lode-Error")}
}

// ask is Call that must succeed.
func (p *process) ask(key, method, arg string) string {
	p.c.t.Helper()
	a := p.Call(key, method, arg, "", patience)
	if !a.OK() {
		p.c.t.Fatalf("%s %s at %s: %d %s", key, method, p.name, a.Status, a.Body)
	}
	return a.Body
}
