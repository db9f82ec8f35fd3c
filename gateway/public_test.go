package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lode"
)

func TestPublicHosts(t *testing.T) {
	w := routeWorld()
	_, url := w.start(t, func(c *Config) { c.Public, c.Hosts = true, []string{"Lode.example.com", "a"} })
	for _, c := range []struct {
		host, path string
		status     int
	}{
		{"127.0.0.1:5633", "/fn/item", 200}, {"localhost", "/fn/item", 200}, {"10.1.2.3", "/fn/item", 200}, {"[2001:db8::1]:5633", "/fn/item", 200},
		{"lode.example.com", "/fn/item", 200}, {"LODE.example.com.:80", "/fn/item", 200}, {"a:5633", "/fn/item", 200},
		{"shop.example", "/fn/item", 200}, // declared
		{"evil.example", "/fn/item", 421}, {"b", "/v1/x", 421}, {"lode.example.com.evil.example", "/fn/item", 421},
		{"evil.example", "/healthz", 200}, {"evil.example", "/readyz", 200}, {"evil.example", "/metrics", 421},
	} {
		res, body := do(t, "POST", url+c.path, "", "Host", c.host)
		if strings.HasSuffix(c.path, "z") {
			res, body = do(t, "GET", url+c.path, "", "Host", c.host)
		}
		if res.StatusCode != c.status {
			t.Errorf("%s%s: %d %s", c.host, c.path, res.StatusCode, body)
		}
	}
}

// TestTooManyBadTokens: an address that guesses is refused unread, those behind
// it whose tokens are good are not.
func TestTooManyBadTokens(t *testing.T) {
	w := routeWorld()
	g, url := w.start(t, func(c *Config) {
		c.Public, c.Manage = true, func(w http.ResponseWriter, _ *http.Request, _ Grant) { writePlain(w, 200, "in") }
	})
	now := time.Now()
	g.failures.now = func() time.Time { return now }
	ask := func(path, token string) int {
		res, _ := do(t, "GET", url+path, "", "Authorization", "Bearer "+token)
		return res.StatusCode
	}
	if s := ask("/v1/x", "lt_admin"); s != 200 {
		t.Fatal(s)
	}
	for n := range maxBad {
		if s := ask("/v1/x", fmt.Sprint("lt_guess", n)); s != 401 {
			t.Fatalf("guess %d: %d", n, s)
		}
	}
	res, body := do(t, "GET", url+"/v1/x", "", "Authorization", "Bearer lt_guess")
	wantProblem(t, res, body, lode.Overloaded)
	if res.Header.Get("Retry-After") != "10" {
		t.Errorf("Retry-After %q", res.Header.Get("Retry-After"))
	}
	for _, c := range []struct {
		path, token string
		status      int
	}{
		{"/v1/x", "lt_admin", 200},     // was good before
		{"/v1/x", "lt_read", 429},      // would be, and is not looked at now
		{"/fn/plain", "lt_guess", 429}, // not "needs a token"
		{"/fn/item", "lt_guess", 200},  // public
		{"/fn/item", "a token of its own", 200},
	} {
		if s := ask(c.path, c.token); s != c.status {
			t.Errorf("%s with %s: %d", c.path, c.token, s)
		}
	}
	now = now.Add(badWindow)
	if s := ask("/v1/x", "lt_read"); s != 200 {
		t.Errorf("after the window: %d", s)
	}
	// A public function's own tokens are no guesses.
	for range 2 * maxBad {
		ask("/fn/item", "own")
	}
	if s := ask("/v1/x", "lt_guess"); s != 401 {
		t.Errorf("after tokens of a function's own: %d", s)
	}
}

func TestFailuresAreBounded(t *testing.T) {
	f := newFailures()
	now := time.Now()
	f.now = func() time.Time { return now }
	for i := range 3 * maxAddrs {
		f.bad(fmt.Sprintf("10.%d.%d.%d:1", i>>16, i>>8&255, i&255))
	}
	if n := len(f.addrs); n > maxAddrs {
		t.Errorf("%d addresses are remembered", n)
	}
	for n := range maxBad {
		if last := f.bad(fmt.Sprintf("[2001:db8::%x]:9", n)); last != (n == maxBad-1) {
			t.Errorf("bad %d tells %v", n, last)
		}
	}
	if f.wait("[2001:db8::ffff]:1", "x") == 0 || f.wait("[2001:db8:0:1::1]:1", "x") != 0 || f.wait("nonsense", "x") != 0 {
		t.Error("a /64 is one source, and another is another")
	}
}

// signed makes a request of AWS's SDKs.
func signed(t *testing.T, url, access, secret string) *http.Request {
	body := `{"a":1}`
	r, err := http.NewRequest("POST", url+invocations("plain"), strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	date := time.Now().UTC().Format(amzTime)
	r.Header.Set("X-Amz-Date", date)
	s := &signature{access: access, scope: [4]string{date[:8], "r", "lambda", "aws4_request"}, headers: []string{"host", "x-amz-date"}}
	sum := sha256.Sum256([]byte(s.canonical(r, []byte(body))))
	text := strings.Join([]string{sigv4, date, strings.Join(s.scope[:], "/"), hex.EncodeToString(sum[:])}, "\n")
	key := []byte("AWS4" + secret)
	for _, p := range s.scope {
		key = mac(key, p)
	}
	r.Header.Set("Authorization", fmt.Sprintf("%s Credential=%s/%s, SignedHeaders=host;x-amz-date, Signature=%x", sigv4, access, strings.Join(s.scope[:], "/"), mac(key, text)))
	return r
}

func TestPublicSignatures(t *testing.T) {
	w := routeWorld()
	_, url := w.start(t, func(c *Config) { c.Public = true })
	ask := func(access, secret string) int {
		res, err := http.DefaultTransport.RoundTrip(signed(t, url, access, secret))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		io.Copy(io.Discard, res.Body)
		return res.StatusCode
	}
	if s := ask("AKLODE", "the/secret+key"); s != 200 {
		t.Errorf("a good signature: %d", s)
	}
	for n := range maxBad {
		if s := ask([]string{"AKOTHER", "AKLODE"}[n%2], "wrong"); s != 403 {
			t.Fatalf("a bad signature: %d", s)
		}
	}
	if s := ask("AKOTHER", "wrong"); s != 429 {
		t.Errorf("after many bad ones: %d", s)
	}
	if s := ask("AKLODE", "the/secret+key"); s != 200 {
		t.Errorf("the good one after them: %d", s)
	}
}

func TestDrain(t *testing.T) {
	w := routeWorld()
	w.deploy("fails", lode.Function{}, func(context.Context, *lode.Request, lode.Answer) (lode.Usage, error) {
		return lode.Usage{}, lode.Errorf(lode.Unavailable, "no node can take it")
	})
	g, url := w.start(t, nil)
	closes := func(path string) bool {
		res, _ := do(t, "GET", url+path, "")
		return res.Close || res.Header.Get("Connection") == "close"
	}
	paths := []string{"/fn/plain", "/fn/fails", "/fn/nobody", "/nothing", "/healthz", "/readyz", "/items/7", "/v1/x"}
	for _, p := range paths {
		if closes(p) {
			t.Errorf("%s closes", p)
		}
	}
	g.Drain()
	for _, p := range paths {
		if !closes(p) {
			t.Errorf("draining, %s does not close", p)
		}
	}
	if res, body := do(t, "POST", url+"/fn/plain", "x"); res.StatusCode != 200 || body != "x" {
		t.Errorf("a draining node answers: %d %s", res.StatusCode, body)
	}
	g.Undrain()
	if closes("/fn/plain") {
		t.Error("closes after the drain was taken back")
	}
	if res, _ := do(t, "GET", url+"/readyz", ""); res.StatusCode != 200 {
		t.Errorf("ready again: %d", res.StatusCode)
	}
}

// TestDrainHTTP2: GOAWAY makes clients take another connection, and no request
// fails by it.
func TestDrainHTTP2(t *testing.T) {
	w := newWorld()
	w.deploy("echo", lode.Function{}, echo)
	g, url := w.start(t, nil)
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: &p}
	defer tr.CloseIdleConnections()
	for n := range 20 {
		if n == 5 {
			g.Drain()
		}
		res, err := tr.RoundTrip(mustRequest(t, "POST", url+"/fn/echo", "x"))
		if err != nil {
			t.Fatal(n, err)
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
	}
	if n := g.servers.opened.Load(); n < 2 {
		t.Errorf("%d connections: the client was not sent away", n)
	}
}

func mustRequest(t *testing.T, method, url, body string) *http.Request {
	t.Helper()
	r, err := http.NewRequest(method, url, struct{ io.Reader }{strings.NewReader(body)}) // a body that nobody can send again
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestRollingRestart stops one of two nodes under load. A client goes to the
// other where no connection could be made; nothing else may fail.
func TestRollingRestart(t *testing.T) {
	w := newWorld()
	w.deploy("echo", lode.Function{}, func(ctx context.Context, req *lode.Request, a lode.Answer) (lode.Usage, error) {
		time.Sleep(2 * time.Millisecond)
		return echo(ctx, req, a)
	})
	first, one := w.start(t, func(c *Config) { c.Linger = func() time.Duration { return 500 * time.Millisecond } })
	_, two := w.start(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	var calls, elsewhere atomic.Int64
	var running sync.WaitGroup
	for range 8 {
		running.Go(func() {
			tr := &http.Transport{MaxIdleConnsPerHost: 4}
			defer tr.CloseIdleConnections()
			for ctx.Err() == nil {
				res, err := tr.RoundTrip(mustRequest(t, "POST", one+"/fn/echo", "x"))
				var op *net.OpError
				if errors.As(err, &op) && op.Op == "dial" { // refused, or reset before it was accepted
					elsewhere.Add(1)
					res, err = tr.RoundTrip(mustRequest(t, "POST", two+"/fn/echo", "x"))
				}
				if err != nil {
					t.Errorf("a request failed: %v", err)
					return
				}
				if b, err := io.ReadAll(res.Body); err != nil || string(b) != "x" {
					t.Errorf("%q %v", b, err)
				}
				res.Body.Close()
				calls.Add(1)
			}
		})
	}
	for calls.Load() < 100 {
		time.Sleep(time.Millisecond)
	}
	if err := first.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	for was := elsewhere.Load(); elsewhere.Load() < was+10; {
		time.Sleep(time.Millisecond)
	}
	cancel()
	running.Wait()
}

// TestShutdownEndsStreams: what has no end of its own does not hold a node up.
func TestShutdownEndsStreams(t *testing.T) {
	w := newWorld()
	g, url := w.start(t, func(c *Config) {
		c.Manage = func(w http.ResponseWriter, r *http.Request, _ Grant) {
			w.WriteHeader(200)
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}
	})
	for _, path := range []string{"/v1/logs?follow=1", "/v1/jobs/j-1/watch"} {
		r, _ := http.NewRequest("GET", url+path, nil)
		r.Header.Set("Authorization", "Bearer lt_admin")
		res, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
	}
	if err := g.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestLingerForNobody: without clients a node stops at once, or nearly.
func TestLingerForNobody(t *testing.T) {
	w := newWorld()
	g, _ := w.start(t, func(c *Config) { c.Linger = func() time.Duration { return time.Hour } })
	if err := g.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestRanElsewhere: the answer names the node that ran it.
func TestRanElsewhere(t *testing.T) {
	w := newWorld()
	w.deploy("f", lode.Function{}, func(ctx context.Context, req *lode.Request, a lode.Answer) (lode.Usage, error) {
		a.(interface{ Ran(lode.NodeID) }).Ran("n2")
		return echo(ctx, req, a)
	})
	w.deploy("g", lode.Function{}, echo)
	_, url := w.start(t, nil)
	defer func() {
		w.ranOn = "n3"
		for _, path := range []string{"/fn/g", invocations("g")} {
			if res, body := do(t, "POST", url+path, "1"); res.Header.Get("Lode-Node") != "n3" {
				t.Errorf("%s: Lode-Node %q %s", path, res.Header.Get("Lode-Node"), body)
			}
		}
	}()
	for path, want := range map[string]string{"/fn/f": "n2", "/fn/g": "n1"} {
		if res, _ := do(t, "POST", url+path, strings.Repeat("x", 40_000)); res.Header.Get("Lode-Node") != want {
			t.Errorf("%s: Lode-Node %q", path, res.Header.Get("Lode-Node"))
		}
	}
}
