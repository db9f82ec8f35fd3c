//go:build linux

package node

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"

	"lode"
	"lode/api"
)

// problemOf reads an error answer, and fails the test unless it is one of
// Lode's own with the kind.
func problemOf(t *testing.T, status int, body string, head http.Header, kind lode.Kind) *lode.Error {
	t.Helper()
	var e lode.Error
	if err := json.Unmarshal([]byte(body), &e); err != nil || e.Kind != kind || status != kind.Status() || head.Get("Lode-Error") != string(kind) {
		t.Errorf("want %s, got %d %s %.300s", kind, status, head.Get("Lode-Error"), body)
	}
	return &e
}

// TestCrashes makes functions fail in each way they can. The answer says how,
// and the next call finds a clean sandbox.
func TestCrashes(t *testing.T) {
	p, _ := startLab(t)
	trap := guestC(t, `#include "lode.h"
static int run(void) {
	lode_bytes b = lode_body();
	if (b.len == 1) __builtin_trap();
	if (b.len == 2) return *(volatile int *)0xfffffff0;
	return lode_answer(200, "text/plain", b.ptr, b.len);
}
LODE_EXPORTS(LODE_FUNCTION("", run))
`)
	if err := p.upload(trap.Wasm); err != nil {
		t.Fatal(err)
	}
	if _, err := p.c.Deploy(t.Context(), lode.App{Name: "traps", Functions: map[lode.Name]lode.Function{"trap": function(trap)}}, api.DeployOptions{}); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, path, body string
		kind             lode.Kind
		guest            string // the guest's own type, or a part of what is said
		message, stack   string
	}{
		{"throw", "/fn/web/throw?m=me", "", lode.Crashed, "TypeError", "thrown me", "index.js:"},
		{"recursion", "/fn/web/recurse", "", lode.Crashed, "stack overflow", "", ""},
		{"memory", "/fn/web/bomb", "", lode.Crashed, "", "out of memory", ""},
		{"trap", "/fn/trap", "x", lode.Crashed, "", "unreachable", ""},
		{"out of bounds", "/fn/trap", "xx", lode.Crashed, "", "out of bounds", ""},
		{"endless loop", "/fn/slow/loop", "", lode.Deadline, "", "", ""},
		{"asleep", "/fn/slow/sleep?ms=60000", "", lode.Deadline, "", "", ""},
		{"answer over its limit", "/fn/web/big?n=100000000", "", "", "", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			status, body, head := p.post(tt.path, tt.body)
			if tt.kind == "" {
				if status != 200 || len(body) != 100000000 { // streamed: no limit
					t.Errorf("%d, %d bytes: %.300s", status, len(body), body)
				}
				return
			}
			e := problemOf(t, status, body, head, tt.kind)
			g := e.Guest
			if g == nil {
				g = &lode.GuestError{}
			}
			if !strings.Contains(g.Type, tt.guest) || !strings.Contains(g.Message, tt.message) || !strings.Contains(strings.Join(g.Stack, "\n"), tt.stack) {
				t.Errorf("the guest's own words: %.500s", body)
			}
			if e.Detail == "" || e.Trace == "" || e.Invocation == "" {
				t.Errorf("the answer does not say what happened, or to whom: %s", body)
			}
			if status, body, _ := p.post("/fn/trap", "fine"); status != 200 || body != "fine" {
				t.Errorf("the next call: %d %s", status, body)
			}
		})
	}
	for _, s := range []string{"204", "304", "404", "418", "500", "502", "504"} {
		status, _, head := p.post("/fn/web/status?s="+s, "")
		if fmt.Sprint(status) != s || head.Get("Lode-Error") != "" {
			t.Errorf("a function's own %s: %d, Lode-Error %q", s, status, head.Get("Lode-Error"))
		}
	}
	p.alive()
}

// TestLoopNeighbours: while guests loop, others answer.
func TestLoopNeighbours(t *testing.T) {
	p, _ := startLab(t)
	if status, _, _ := p.post("/fn/web", "warm"); status != 200 {
		t.Fatal(status)
	}
	var loops sync.WaitGroup
	over := make(chan struct{})
	loops.Go(func() {
		defer close(over)
		status, body, head := p.post("/fn/slow/loop", "")
		problemOf(t, status, body, head, lode.Deadline)
	})
	answered := 0
	for {
		select {
		case <-over:
			if answered == 0 {
				t.Error("nobody was answered while a function looped")
			}
			loops.Wait()
			return
		default:
			if status, body, _ := p.post("/fn/web", "x"); status != 200 || body != "x" {
				t.Fatalf("a neighbour of a loop: %d %s", status, body)
			}
			answered++
		}
	}
}

// TestOverload: one sandbox, two places in the queue: the rest is refused with
// a time to come back.
func TestOverload(t *testing.T) {
	p, _ := startLab(t)
	var mu sync.Mutex
	got := map[int]int{}
	var wg sync.WaitGroup
	for range 12 {
		wg.Go(func() {
			status, body, head := p.post("/fn/slow/sleep?ms=400", "")
			if status == 429 {
				e := problemOf(t, status, body, head, lode.Overloaded)
				if head.Get("Retry-After") == "" || e.Hint == "" {
					t.Errorf("429 without a time to come back: %v", head)
				}
			}
			mu.Lock()
			got[status]++
			mu.Unlock()
		})
	}
	wg.Wait()
	if got[200] < 1 || got[429] < 1 || got[200]+got[429]+got[504] != 12 {
		t.Errorf("answers by status: %v", got)
	}
	if status, _, _ := p.post("/fn/slow/sleep?ms=1", ""); status != 200 {
		t.Errorf("after the storm: %d", status)
	}
}

// TestFloods: answers and logs without end, requests that are too large, too
// slow, or cut short.
func TestFloods(t *testing.T) {
	p, s := startLab(t)
	t.Run("log", func(t *testing.T) {
		status, body, head := p.post("/fn/web/logs?n=3000", "")
		if status != 200 || body != "logged" {
			t.Fatalf("%d %s", status, body)
		}
		id := head.Get("Lode-Invocation")
		var size int
		waitFor(t, "a line that says what was left out", func() bool {
			size = 0
			told := false
			err := p.c.ReadLogs(t.Context(), api.LogFilter{Invocation: lode.InvocationID(id)}, func(l api.LogLine) error {
				size += len(l.Text)
				told = told || strings.Contains(l.Text, "left out")
				return nil
			})
			return err == nil && told
		})
		if size > 1<<20 {
			t.Errorf("%d bytes of log were kept of one invocation", size)
		}
	})
	t.Run("reader that leaves", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		req, _ := http.NewRequestWithContext(ctx, "POST", p.url+"/fn/web/flood", nil)
		resp, err := plain.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(resp.Body, make([]byte, 1<<20)); err != nil {
			t.Error(err)
		}
		cancel()
		resp.Body.Close()
		p.idle(t)
	})
	t.Run("caller that leaves", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		req, _ := http.NewRequestWithContext(ctx, "POST", p.url+"/fn/web/sleep?ms=30000&k=left", nil)
		go func() {
			waitFor(t, "the call to begin", func() bool { return s.count("/begun/left") == 1 })
			cancel()
		}()
		if resp, err := plain.Do(req); err == nil {
			t.Errorf("an answer: %s", resp.Status)
			resp.Body.Close()
		}
		p.idle(t)
		if s.count("/ended/left") != 0 {
			t.Error("the function ran on after its caller had left")
		}
	})
	t.Run("headers", func(t *testing.T) {
		h := http.Header{}
		for i := range 5000 {
			h.Set(fmt.Sprintf("X-H%d", i), "v")
		}
		status, body, head := p.do("POST", "/fn/web", h, "")
		if status != http.StatusRequestHeaderFieldsTooLarge {
			problemOf(t, status, body, head, lode.Invalid)
		}
	})
	t.Run("body", func(t *testing.T) {
		d := trap(t, p)
		c, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "POST /fn/%s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\nxxx", d, 7<<20)
		early, err := http.ReadResponse(bufio.NewReader(c), nil) // the answer does not wait for the body
		if err != nil {
			t.Fatal(err)
		}
		said, _ := io.ReadAll(early.Body)
		problemOf(t, early.StatusCode, string(said), early.Header, lode.TooLarge)
		req, _ := http.NewRequest("POST", p.url+"/fn/"+d, struct{ io.Reader }{bytes.NewReader(make([]byte, 64<<20))})
		resp, err := plain.Do(req)
		if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
			return // the answer came while the client wrote, and was lost with the connection
		}
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if len(b) != 0 && resp.StatusCode == 200 { // in chunks a body may have any length: what it cannot hold, the function has to refuse
			t.Errorf("%d bytes of 64 MiB came back", len(b))
		}
	})
	t.Run("slow clients", func(t *testing.T) {
		var conns []net.Conn
		defer func() {
			for _, c := range conns {
				c.Close()
			}
		}()
		for range 50 {
			c, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, c)
			fmt.Fprintf(c, "POST /fn/slow HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nabc")
		}
		if status, body, _ := p.post("/fn/web", "x"); status != 200 || body != "x" {
			t.Errorf("beside slow clients: %d %s", status, body)
		}
		if status, body, _ := p.post("/fn/slow", "x"); status != 200 {
			t.Errorf("the function of slow clients: %d %s", status, body)
		}
	})
	p.alive()
}

// trap deploys a function with a body limit of 6 MiB.
func trap(t *testing.T, p *process) string {
	t.Helper()
	e := guestC(t, echo)
	if err := p.upload(e.Wasm); err != nil {
		t.Fatal(err)
	}
	if _, err := p.c.Deploy(t.Context(), lode.App{Name: "echo", Functions: map[lode.Name]lode.Function{"echo": function(e)}}, api.DeployOptions{}); err != nil {
		t.Fatal(err)
	}
	return "echo"
}

// idle waits until no sandbox of web works: a call that was left has ended.
func (p *process) idle(t *testing.T) {
	t.Helper()
	waitFor(t, "web to be idle", func() bool {
		d, err := p.c.GetName(t.Context(), "web")
		return err == nil && d.Function.Sandbox.Busy == 0
	})
}

// TestBrokenModules: what is no module, or asks for what no node has, is
// refused at deploy by name; nothing of it is visible.
func TestBrokenModules(t *testing.T) {
	p := start(t, t.TempDir()+"/data")
	e := guestC(t, echo)
	header := []byte("\x00asm\x01\x00\x00\x00")
	section := func(id byte, body ...byte) []byte { return append([]byte{id, byte(len(body))}, body...) }
	cat := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	tests := []struct {
		name string
		wasm []byte
	}{
		{"empty", []byte{}},
		{"text", []byte("#!/bin/sh\necho hello\n")},
		{"elf", []byte("\x7fELF\x02\x01\x01")},
		{"header alone", header},
		{"truncated", e.Wasm[:len(e.Wasm)/2]},
		{"truncated by one", e.Wasm[:len(e.Wasm)-1]},
		{"version 2", append([]byte("\x00asm\x02\x00\x00\x00"), e.Wasm[8:]...)},
		{"component", append([]byte("\x00asm\x0d\x00\x01\x00"), e.Wasm[8:]...)},
		{"unknown import", cat(header, section(1, 1, 0x60, 0, 0), section(2, append(append([]byte{1, 3}, "env"...), append(append([]byte{4}, "boom"...), 0, 0)...)...))},
		{"unknown import of a handler", guestC(t, missing).Wasm},
		{"huge memory", cat(header, section(5, 1, 1, 0xff, 0xff, 0x03, 0xff, 0xff, 0x03))},
		{"huge table", cat(header, section(4, 1, 0x70, 0, 0xff, 0xff, 0xff, 0x7f))},
		{"section beyond the end", cat(header, []byte{1, 0xff, 0xff, 0xff, 0xff, 0x0f})},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := p.upload(tt.wasm)
			if err == nil {
				f := function(e)
				f.Artifact, f.Size = digestOf(tt.wasm), int64(len(tt.wasm))
				_, err = p.c.Deploy(t.Context(), lode.App{Name: "bad", Functions: map[lode.Name]lode.Function{"bad": f}}, api.DeployOptions{})
			}
			if kindOf(err) != lode.Invalid {
				t.Errorf("%s: %v", kindOf(err), err)
			}
			t.Logf("%v | %s", err, lode.AsError(err).Hint)
			if status, body, head := p.post("/fn/bad", ""); status != 404 {
				t.Errorf("%d %s %v", status, body, head)
			}
		})
	}
	p.alive()
}

// missing calls a host function that no node has.
const missing = `#include "lode.h"
__attribute__((import_module("env"), import_name("boom"))) extern void boom(void);
static int run(void) {
	boom();
	return lode_answer(200, "text/plain", "", 0);
}
LODE_EXPORTS(LODE_FUNCTION("", run))
`

// TestDoors: who is not let in, and what he is told.
func TestDoors(t *testing.T) {
	p, _ := startLab(t)
	p.must("", "rm", "none", "-y")
	tests := []struct {
		name, method, path string
		head               http.Header
		kind               lode.Kind
		says               string
	}{
		{"unknown function", "POST", "/fn/wbe", nil, lode.NotFound, `did you mean \"web\"?`},
		{"removed function", "POST", "/fn/none", nil, lode.Gone, "lode rm --undo none"},
		{"unknown alias", "POST", "/fn/web?alias=canry", nil, lode.NotFound, "canry"},
		{"unknown revision", "POST", "/fn/web?alias=99", nil, lode.NotFound, "99"},
		{"unknown queue", "POST", "/queues/wrk", nil, lode.NotFound, "work"},
		{"unknown path", "GET", "/nothing", nil, lode.NotFound, ""},
		{"unknown management", "GET", "/v1/aps", http.Header{"Authorization": {"Bearer " + p.token}}, lode.NotFound, "/v1/apps"},
		{"wrong method", "GET", "/queues/work", nil, lode.BadMethod, "POST"},
		{"wrong method of management", "PATCH", "/v1/apps", http.Header{"Authorization": {"Bearer " + p.token}}, lode.BadMethod, ""},
		{"host", "POST", "/fn/web", http.Header{"Host": {"evil.example"}}, lode.Misdirected, "evil.example"},
		{"host of management", "GET", "/v1/apps", http.Header{"Host": {"evil.example:5633"}, "Authorization": {"Bearer " + p.token}}, lode.Misdirected, ""},
		{"host like localhost", "POST", "/fn/web", http.Header{"Host": {"localhost.evil.example"}}, lode.Misdirected, ""},
		{"origin", "POST", "/fn/web", http.Header{"Origin": {"http://evil.example"}}, lode.Denied, "route"},
		{"null origin", "POST", "/fn/web", http.Header{"Origin": {"null"}}, lode.Denied, ""},
		{"cross-site", "POST", "/queues/work", http.Header{"Sec-Fetch-Site": {"cross-site"}}, lode.Denied, ""},
		{"origin of management", "GET", "/v1/apps", http.Header{"Origin": {"http://evil.example"}, "Authorization": {"Bearer " + p.token}}, lode.Denied, ""},
		{"no token", "GET", "/v1/apps", nil, lode.Unauthenticated, "admin.token"},
		{"another token", "GET", "/v1/apps", http.Header{"Authorization": {"Bearer lt_0123456789abcdef_000000000000000000000000000000000000000000000000"}}, lode.Unauthenticated, ""},
		{"no bearer", "GET", "/v1/apps", http.Header{"Authorization": {"Basic YTpi"}}, lode.Unauthenticated, ""},
		{"a name that is none", "POST", "/fn/..%2fadmin", nil, lode.NotFound, ""},
		{"deadline that is none", "POST", "/fn/web", http.Header{"Lode-Deadline": {"soon"}}, lode.Invalid, "Lode-Deadline"},
		{"namespace that is none", "POST", "/fn/web", http.Header{"Lode-Namespace": {"UP"}}, lode.Invalid, ""},
		{"unknown namespace", "POST", "/fn/web", http.Header{"Lode-Namespace": {"other"}}, lode.NotFound, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			status, body, head := p.do(tt.method, tt.path, tt.head, "")
			problemOf(t, status, body, head, tt.kind)
			if !strings.Contains(body, tt.says) {
				t.Errorf("%s does not say %q", body, tt.says)
			}
			t.Log(body)
		})
	}
	t.Run("key with another body", func(t *testing.T) {
		if status, _, _ := p.post("/fn/web", "one", "Idempotency-Key", "k"); status != 200 {
			t.Fatal(status)
		}
		status, body, head := p.post("/fn/web", "two", "Idempotency-Key", "k")
		problemOf(t, status, body, head, lode.KeyReused)
	})
	t.Run("deadline", func(t *testing.T) {
		status, body, head := p.post("/fn/web/sleep?ms=60000", "", "Lode-Deadline", "100")
		problemOf(t, status, body, head, lode.Deadline)
	})
	t.Run("read token", func(t *testing.T) {
		tok, err := p.c.CreateToken(t.Context(), api.TokenSpec{Role: api.RoleRead})
		if err != nil {
			t.Fatal(err)
		}
		status, body, head := p.do("DELETE", "/v1/apps/lab", http.Header{"Authorization": {"Bearer " + tok.Secret}}, "")
		problemOf(t, status, body, head, lode.Denied)
	})
	p.alive()
}
