//go:build linux

package node

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"lode"
	"lode/api"
)

// promises is what a node acknowledged, over all its lives.
type promises struct {
	mu       sync.Mutex
	deployed int                          // the highest version of app trio
	calls    map[lode.InvocationID]string // asynchronous calls, and what each tells the sink
	keys     map[string]bool              // idempotency keys that were answered
	messages map[string]bool
	lines    []string // of dataset log, in order
	put      int      // the newest content of dataset whole
	secrets  map[string]bool
	tokens   map[string]string // secret by id
	revoked  map[string]string
	jobs     map[string]bool
}

func newPromises() *promises {
	return &promises{calls: map[lode.InvocationID]string{}, keys: map[string]bool{}, messages: map[string]bool{}, secrets: map[string]bool{},
		tokens: map[string]string{}, revoked: map[string]string{}, jobs: map[string]bool{}}
}

func (m *promises) note(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

// trio is an app of three names that always change together.
func trio(echo lode.Function, version int) lode.App {
	app := lode.App{Name: "trio", Functions: map[lode.Name]lode.Function{}, Queues: map[lode.Name]lode.Queue{}}
	for _, n := range []lode.Name{"one", "two", "three"} {
		f := echo
		f.Env = map[string]string{"V": strconv.Itoa(version)}
		app.Functions[n] = f
	}
	return app
}

// files yields a list of files.
type files struct{ list [][2]string }

func (f *files) Next() (string, int64, io.Reader, error) {
	if len(f.list) == 0 {
		return "", 0, nil, io.EOF
	}
	n := f.list[0]
	f.list = f.list[1:]
	return n[0], int64(len(n[1])), strings.NewReader(n[1]), nil
}

// whole is the content of dataset whole: three files that belong together.
func whole(version int) string { return strings.Repeat(fmt.Sprintf("version %d\n", version), 20000) }

// TestKill kills a busy node at random moments. What it acknowledged is there
// in its next life, and nothing is there by half.
func TestKill(t *testing.T) {
	e := guestC(t, echo)
	p, s := startLab(t)
	if err := p.upload(e.Wasm); err != nil {
		t.Fatal(err)
	}
	var base strings.Builder
	for i := range 100000 {
		fmt.Fprintf(&base, "%07d\n", i)
	}
	if _, err := p.c.PutStream(t.Context(), "base", api.PutOptions{Records: lode.RecordsLines, Shard: 64 << 10}, "base", strings.NewReader(base.String())); err != nil {
		t.Fatal(err)
	}
	if _, err := p.c.PutStream(t.Context(), "log", api.PutOptions{Records: lode.RecordsLines}, "log", strings.NewReader("first\n")); err != nil {
		t.Fatal(err)
	}
	m := newPromises()
	for round := range rounds(4) {
		var work sync.WaitGroup
		stop := make(chan struct{})
		for name, do := range acts(p, m, function(e)) {
			work.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
						do(fmt.Sprintf("%s%d-%d", name, round, i), round*1000+i+1)
					}
				}
			})
		}
		time.Sleep(time.Duration(300+rand.IntN(1200)) * time.Millisecond)
		p.kill()
		close(stop)
		work.Wait()
		p = start(t, p.dir)
		p.keeps(m, s)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	t.Logf("kept: %d deploys, %d calls, %d keys, %d messages, %d lines, %d datasets, %d secrets, %d tokens, %d jobs", m.deployed, len(m.calls), len(m.keys), len(m.messages), len(m.lines), m.put, len(m.secrets), len(m.tokens), len(m.jobs))
	for what, n := range map[string]int{"deploy": m.deployed, "call": len(m.calls), "key": len(m.keys), "message": len(m.messages), "line": len(m.lines), "dataset": m.put, "secret": len(m.secrets), "token": len(m.tokens), "job": len(m.jobs)} {
		if n == 0 {
			t.Errorf("no %s was ever acknowledged: nothing was tested", what)
		}
	}
}

// acts are what keeps the node busy. Each notes what was acknowledged.
func acts(p *process, m *promises, echo lode.Function) map[string]func(id string, n int) {
	return map[string]func(id string, n int){
		"deploy": func(_ string, n int) {
			ctx, cancel := p.within()
			defer cancel()
			if _, err := p.c.Deploy(ctx, trio(echo, n), api.DeployOptions{}); err == nil {
				m.note(func() { m.deployed = n })
			}
		},
		"async": func(id string, _ int) {
			if status, _, head := p.post("/fn/web/hit?k="+id, "", "Prefer", "respond-async"); status == http.StatusAccepted {
				m.note(func() { m.calls[lode.InvocationID(head.Get("Lode-Invocation"))] = "/hit/" + id })
			}
		},
		"key": func(id string, _ int) {
			if status, body, _ := p.post("/fn/web/hit?k="+id, "", "Idempotency-Key", id); status == http.StatusOK && body == "hit "+id {
				m.note(func() { m.keys[id] = true })
			}
		},
		"queue": func(id string, _ int) {
			if status, _, _ := p.post("/queues/work", id, "Content-Type", "text/plain"); status == http.StatusAccepted {
				m.note(func() { m.messages[id] = true })
			}
		},
		"append": func(id string, _ int) {
			ctx, cancel := p.within()
			defer cancel()
			if _, err := p.c.PutStream(ctx, "log", api.PutOptions{Records: lode.RecordsLines, Append: true}, "log", strings.NewReader(id+"\n")); err == nil {
				m.note(func() { m.lines = append(m.lines, id) })
			}
		},
		"put": func(_ string, n int) {
			ctx, cancel := p.within()
			defer cancel()
			text := whole(n)
			line := strings.Index(text, "\n") + 1
			one, two := line*6000, line*13000
			f := &files{[][2]string{{"a", text[:one]}, {"b", text[one:two]}, {"c", text[two:]}}}
			if _, err := p.c.PutDataset(ctx, "whole", api.PutOptions{Records: lode.RecordsLines, Shard: 64 << 10}, f); err == nil {
				m.note(func() { m.put = n })
			}
		},
		"secret": func(_ string, n int) {
			ctx, cancel := p.within()
			defer cancel()
			name := fmt.Sprintf("S%d", n)
			if p.c.SetSecret(ctx, name, []byte(name)) == nil {
				m.note(func() { m.secrets[name] = true })
			}
		},
		"token": func(_ string, n int) {
			ctx, cancel := p.within()
			defer cancel()
			tok, err := p.c.CreateToken(ctx, api.TokenSpec{Role: api.RoleRead})
			if err != nil {
				return
			}
			if n%2 == 0 && p.c.RevokeToken(ctx, tok.ID) == nil {
				m.note(func() { m.revoked[tok.ID] = tok.Secret })
			} else if n%2 == 1 {
				m.note(func() { m.tokens[tok.ID] = tok.Secret })
			}
		},
		"job": func(_ string, n int) {
			ctx, cancel := p.within()
			defer cancel()
			if j, err := p.c.CreateJob(ctx, api.JobSpec{Function: "web", Dataset: "base"}); err == nil {
				m.note(func() { m.jobs[j.ID] = true })
				time.Sleep(300 * time.Millisecond)
			}
		},
	}
}

// keeps checks every promise.
func (p *process) keeps(m *promises, s *sink) {
	p.t.Helper()
	ctx := p.t.Context()
	p.keepsApp(m)
	p.keepsData(m)
	for id, path := range m.calls {
		c, err := p.c.GetCall(ctx, id, 30*time.Second)
		if err != nil || c.State != lode.StateDone {
			p.t.Errorf("call %s: %+v, %v", id, c, err)
		} else if s.count(path) == 0 {
			p.t.Errorf("call %s is done, and never ran", id)
		}
	}
	for id := range m.keys {
		if status, body, _ := p.post("/fn/web/hit?k="+id, "", "Idempotency-Key", id); status != 200 || body != "hit "+id {
			p.t.Errorf("key %s again: %d %s", id, status, body)
		}
		if n := s.count("/hit/" + id); n != 1 {
			p.t.Errorf("key %s ran %d times", id, n)
		}
	}
	for id := range m.messages {
		p.wait("message "+id, func() bool { return s.count("/message/"+id) > 0 })
	}
	for id := range m.jobs {
		j, err := p.c.GetJob(ctx, id, 30*time.Second)
		if err != nil || j.State != lode.StateDone {
			p.t.Errorf("job %s: %+v, %v", id, j, err)
			continue
		}
		if got := p.result(id); got != "100000" {
			p.t.Errorf("job %s counts %s records", id, got)
		}
	}
	ticks := s.count("/tick")
	p.wait("the schedule", func() bool { return s.count("/tick") > ticks })
}

func (p *process) result(job string) string {
	p.t.Helper()
	r, err := p.c.JobResult(p.t.Context(), job)
	if err != nil {
		p.t.Errorf("result of %s: %v", job, err)
		return ""
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		p.t.Errorf("result of %s: %v", job, err)
	}
	return strings.TrimSpace(string(b))
}

// keepsApp checks that the trio is as acknowledged or newer, and of one piece.
func (p *process) keepsApp(m *promises) {
	p.t.Helper()
	ctx := p.t.Context()
	var seen []string
	for _, n := range []lode.Name{"one", "two", "three"} {
		d, err := p.c.GetName(ctx, n)
		if err != nil {
			if m.deployed > 0 {
				p.t.Errorf("function %s: %v", n, err)
			}
			continue
		}
		seen = append(seen, d.Function.Live.Function.Env["V"])
		if status, body, _ := p.post("/fn/"+string(n), "hello"); status != 200 || body != "hello" {
			p.t.Errorf("function %s: %d %s", n, status, body)
		}
	}
	if len(slices.Compact(slices.Clone(seen))) > 1 || len(seen) != 0 && len(seen) != 3 {
		p.t.Errorf("a deploy is visible by half: %v", seen)
	}
	if len(seen) > 0 {
		if v, _ := strconv.Atoi(seen[0]); v < m.deployed {
			p.t.Errorf("version %d was acknowledged, and %d is there", m.deployed, v)
		}
	}
	names, err := api.All(func(pg api.Page) (api.List[api.Secret], error) { return p.c.ListSecrets(ctx, pg) })
	if err != nil {
		p.t.Error(err)
	}
	for want := range m.secrets {
		if !slices.ContainsFunc(names, func(s api.Secret) bool { return s.Name == want }) {
			p.t.Errorf("secret %s is gone", want)
		}
	}
	for _, secret := range m.tokens {
		if err := p.whoami(secret); err != nil {
			p.t.Errorf("a token is gone: %v", err)
		}
	}
	for id, secret := range m.revoked {
		if err := p.whoami(secret); kindOf(err) != lode.Unauthenticated {
			p.t.Errorf("token %s was revoked: %v", id, err)
		}
	}
}

func (p *process) whoami(token string) error {
	c, err := api.New(api.Config{URL: p.url, Token: token})
	if err != nil {
		p.t.Fatal(err)
	}
	defer c.Close()
	_, err = c.WhoAmI(p.t.Context())
	return err
}

// keepsData checks that the datasets hold what was acknowledged, in order and
// whole.
func (p *process) keepsData(m *promises) {
	p.t.Helper()
	rest := strings.Fields(p.content("log"))
	for _, want := range m.lines {
		i := slices.Index(rest, want)
		if i < 0 {
			p.t.Errorf("line %s is gone, or not in order", want)
			continue
		}
		rest = rest[i+1:]
	}
	text := p.content("whole")
	if text == "" {
		if m.put > 0 {
			p.t.Errorf("dataset whole is gone")
		}
		return
	}
	first, _, _ := strings.Cut(text, "\n")
	n, err := strconv.Atoi(strings.TrimPrefix(first, "version "))
	if err != nil || text != whole(n) {
		p.t.Errorf("dataset whole is a mix: %d bytes that begin with %q", len(text), first)
	}
	if n < m.put {
		p.t.Errorf("version %d of dataset whole was acknowledged, and %d is there", m.put, n)
	}
}

// content is a dataset's newest bytes, "" if it is not there.
func (p *process) content(name lode.Name) string {
	p.t.Helper()
	r, err := p.c.ReadDataset(p.t.Context(), name, api.ReadOptions{})
	if kindOf(err) == lode.NotFound {
		return ""
	}
	if err != nil {
		p.t.Errorf("dataset %s: %v", name, err)
		return ""
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		p.t.Errorf("dataset %s: %v", name, err)
	}
	return string(b)
}
