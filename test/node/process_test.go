//go:build linux

package node

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"lode"
	"lode/api"
	"lode/test/child"
)

// patience bounds every wait for something that must come.
const patience = 60 * time.Second

// process is a running lode up.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	dir   string // data folder
	url   string
	token string
	out   *child.Transcript
	done  chan struct{} // closed when the process has ended
	c     *api.Client
	limit time.Duration // of one request; 0: patience
}

var readyLine = regexp.MustCompile(`ready: (http://\S+)`)

// start runs a node in dir until the test ends, and waits until it is ready.
func start(t *testing.T, dir string, args ...string) *process {
	t.Helper()
	return startNode(t, lab.lode, dir, nil, args)
}

// startWith is start of another build, with variables added.
func startWith(t *testing.T, bin, dir string, env ...string) *process {
	t.Helper()
	return startNode(t, bin, dir, env, nil)
}

func startNode(t *testing.T, bin, dir string, env, args []string) *process {
	t.Helper()
	p := begin(t, bin, dir, env, append([]string{"--port", "0", "--name", "here"}, args...))
	p.ready()
	return p
}

// begin starts lode up in dir and does not wait for it.
func begin(t *testing.T, bin, dir string, env, args []string) *process {
	t.Helper()
	p := &process{t: t, dir: dir, out: &child.Transcript{}, done: make(chan struct{})}
	p.cmd = exec.Command(bin, append([]string{"up", "-d", dir}, args...)...)
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	home := filepath.Dir(dir)
	p.cmd.Env = clean(append(env, "HOME="+home, "XDG_STATE_HOME="+filepath.Join(home, "state"))...)
	if logs := os.Getenv("LODE_TEST_LOGS"); logs != "" { // a folder for all that nodes say, as they say it
		path := filepath.Join(logs, t.Name(), filepath.Base(home)+"-"+time.Now().Format("150405")+".log")
		write(t, path, "")
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		both := io.MultiWriter(p.out, f)
		p.cmd.Stdout, p.cmd.Stderr = both, both
	}
	if err := child.Start(p.cmd); err != nil {
		t.Fatal(err)
	}
	go func() { p.cmd.Wait(); close(p.done) }()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("the node in %s said:\n%s", filepath.Base(home), tail(p.out.String(), 4000))
		}
	})
	return p
}

// ready waits until the node serves.
func (p *process) ready() {
	t := p.t
	t.Helper()
	p.wait("a ready line", func() bool {
		select {
		case <-p.done:
			t.Fatalf("the node ended at its start:\n%s", p.out)
		default:
		}
		m := readyLine.FindStringSubmatch(p.out.String())
		if m == nil {
			return false
		}
		p.url = m[1]
		return true
	})
	token, err := os.ReadFile(filepath.Join(p.dir, "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	p.token = strings.TrimSpace(string(token))
	if p.c, err = api.New(api.Config{URL: p.url, Token: p.token}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.c.Close)
}

func tail(s string, n int) string {
	if len(s) > n {
		return "..." + s[len(s)-n:]
	}
	return s
}

// kill ends the process as a power cut does.
func (p *process) kill() {
	p.cmd.Process.Signal(syscall.SIGCONT)
	p.cmd.Process.Kill()
	<-p.done
}

// stop ends the process as Ctrl-C does.
func (p *process) stop() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		p.t.Fatal(err)
	}
	select {
	case <-p.done:
	case <-time.After(patience):
		child.Dump(p.cmd, p.done)
		p.t.Fatalf("the node does not stop:\n%s", p.out)
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		p.t.Errorf("the node ended with code %d:\n%s", code, tail(p.out.String(), 4000))
	}
}

// alive fails the test if the node has ended.
func (p *process) alive() {
	p.t.Helper()
	select {
	case <-p.done:
		p.t.Fatalf("the node has ended: %v", p.cmd.ProcessState)
	default:
	}
	if status, _, _ := p.get("/healthz"); status != 200 {
		p.t.Fatalf("healthz is %d", status)
	}
}

// wait polls until cond holds.
func (p *process) wait(what string, cond func() bool) {
	p.t.Helper()
	waitFor(p.t, what, cond)
}

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("waited in vain for %s", what)
}

// lode runs the command against the node and returns stdout, stderr and the
// exit code.
func (p *process) lode(stdin string, args ...string) (stdout, stderr string, code int) {
	p.t.Helper()
	cmd := exec.Command(lab.lode, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	cmd.Env = clean("HOME="+filepath.Dir(p.dir), "LODE_URL="+p.url, "LODE_TOKEN="+p.token)
	err := child.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if cmd.ProcessState == nil {
		p.t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// must runs a command that has to succeed.
func (p *process) must(stdin string, args ...string) string {
	p.t.Helper()
	out, errs, code := p.lode(stdin, args...)
	if code != 0 {
		p.t.Fatalf("lode %s: code %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

// get asks for a path; status 0 is no answer.
func (p *process) get(path string) (int, string, http.Header) {
	return p.do(http.MethodGet, path, nil, "")
}

// post sends a body.
func (p *process) post(path, body string, head ...string) (int, string, http.Header) {
	h := http.Header{}
	for i := 0; i < len(head); i += 2 {
		h.Add(head[i], head[i+1])
	}
	return p.do(http.MethodPost, path, h, body)
}

func (p *process) do(method, path string, head http.Header, body string) (int, string, http.Header) {
	req, err := http.NewRequest(method, p.url+path, strings.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	for k, vs := range head {
		req.Header[k] = vs
	}
	if h := head.Get("Host"); h != "" {
		req.Host = h
	}
	ctx, cancel := p.within()
	defer cancel()
	resp, err := plain.Do(req.WithContext(ctx))
	if err != nil {
		return 0, err.Error(), nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error(), resp.Header
	}
	return resp.StatusCode, string(b), resp.Header
}

// within bounds one request.
func (p *process) within() (context.Context, context.CancelFunc) {
	limit := p.limit
	if limit == 0 {
		limit = patience
	}
	return context.WithTimeout(p.t.Context(), limit)
}

// plain follows nothing and keeps nothing open: nodes come and go.
var plain = &http.Client{Transport: &http.Transport{DisableKeepAlives: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

// kindOf is the kind of an error of the API, "" for none.
func kindOf(err error) lode.Kind { return lode.KindOf(err) }

// copyDir copies a data folder of a node that does not run. Files are linked
// where nothing writes into them.
func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("copy %s: %v\n%s", from, err, out)
	}
}

// tryStart runs a node until it is ready, which is code 0, or has ended.
func (p *process) tryStart(dir string) (out string, code int) {
	p.t.Helper()
	said := &child.Transcript{}
	cmd := exec.Command(lab.lode, "up", "-d", dir, "--port", "0")
	cmd.Stdout, cmd.Stderr, cmd.Env = said, said, clean("HOME="+p.t.TempDir())
	if err := child.Start(cmd); err != nil {
		p.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	ready := false
	waitFor(p.t, "a node to be ready or to end", func() bool {
		select {
		case <-done:
			return true
		default:
			ready = readyLine.MatchString(said.String())
			return ready
		}
	})
	if ready {
		cmd.Process.Kill()
		<-done
		return said.String(), 0
	}
	return said.String(), cmd.ProcessState.ExitCode()
}
