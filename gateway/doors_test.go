package gateway

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"lode"
)

func routeWorld() *world {
	w := newWorld()
	w.domains["shop.example"] = lode.DefaultNamespace
	for name, pattern := range map[lode.Name]string{"item": "GET /items/{id}", "rest": "/files/{rest...}", "host": "api.example/", "exact": "POST /exact/{$}"} {
		w.deploy(name, lode.Function{Routes: []string{pattern}, Access: lode.AccessPublic}, echo)
	}
	w.deploy("cors", lode.Function{Routes: []string{"POST /cors"}, Access: lode.AccessPublic, CORS: &lode.CORS{Origins: []string{"https://a.example"}, MaxAge: time.Minute}}, echo)
	w.deploy("any", lode.Function{Routes: []string{"/any"}, Access: lode.AccessPublic, CORS: &lode.CORS{Origins: []string{"*"}, Headers: []string{"X-A"}}}, echo)
	w.deploy("plain", lode.Function{}, echo)
	w.deploy("internal", lode.Function{Access: lode.AccessInternal}, echo)
	w.domains["api.example"] = lode.DefaultNamespace
	return w
}

func TestRoutes(t *testing.T) {
	w := routeWorld()
	_, url := w.start(t, nil)
	for _, c := range []struct {
		name, method, path string
		head               []string
		status             int
		want               string // NAME=VALUE of a reply header
	}{
		{"wildcard", "GET", "/items/a%2Fb?x=1", nil, 200, "X-Got-Route.id=a/b"},
		{"path", "GET", "/items/7?x=1", nil, 200, "X-Path=/items/7?x=1"},
		{"rest", "PUT", "/files/a/b/c", nil, 200, "X-Got-Route.rest=a/b/c"},
		{"method", "DELETE", "/items/7", nil, 405, "Allow=GET, HEAD"},
		{"none", "GET", "/itemz", nil, 404, "Lode-Error=not_found"},
		{"exact", "POST", "/exact/", nil, 200, "X-Path=/exact/"},
		{"host", "GET", "/v1/anything", []string{"Host", "api.example"}, 200, "X-Path=/v1/anything"},
		{"host and door", "GET", "/fn/plain", []string{"Host", "shop.example:5633"}, 200, "X-Path=/"},
		{"foreign host", "GET", "/items/7", []string{"Host", "evil.example"}, 421, "Lode-Error=misdirected"},
		{"rebound", "GET", "/fn/plain", []string{"Host", "rebind.example:5633"}, 421, "Lode-Error=misdirected"},
		{"ip", "GET", "/items/7", []string{"Host", "192.168.1.1"}, 421, "Lode-Error=misdirected"},
		{"localhost", "GET", "/items/7", []string{"Host", "LOCALHOST:1"}, 200, "X-Path=/items/7"},
		{"ipv6", "GET", "/items/7", []string{"Host", "[::1]:5633"}, 200, "X-Path=/items/7"},
		{"route, cross origin", "GET", "/items/7", []string{"Origin", "http://evil.example"}, 200, "Access-Control-Allow-Origin="},
		{"fn, cross origin", "GET", "/fn/plain", []string{"Origin", "http://evil.example"}, 403, "Lode-Error=denied"},
		{"fn, null origin", "GET", "/fn/plain", []string{"Origin", "null"}, 403, "Lode-Error=denied"},
		{"fn, cross site", "GET", "/fn/plain", []string{"Sec-Fetch-Site", "cross-site"}, 403, "Lode-Error=denied"},
		{"fn, other port", "GET", "/fn/plain", []string{"Sec-Fetch-Site", "same-site"}, 403, "Lode-Error=denied"},
		{"fn, own page", "GET", "/fn/plain", []string{"Host", "localhost:80", "Origin", "http://localhost:80", "Sec-Fetch-Site", "same-origin"}, 200, "X-Path=/"},
		{"fn, with cors", "POST", "/fn/cors", []string{"Origin", "https://a.example", "Sec-Fetch-Site", "cross-site"}, 200, "Access-Control-Allow-Origin=https://a.example"},
		{"fn, cors for others", "POST", "/fn/cors", []string{"Origin", "https://b.example", "Sec-Fetch-Site", "cross-site"}, 403, "Lode-Error=denied"},
		{"preflight", "OPTIONS", "/cors", []string{"Origin", "https://a.example", "Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "x-b"}, 204, "Access-Control-Allow-Headers=x-b"},
		{"preflight, age", "OPTIONS", "/cors", []string{"Origin", "https://a.example", "Access-Control-Request-Method", "POST"}, 204, "Access-Control-Max-Age=60"},
		{"preflight, refused", "OPTIONS", "/cors", []string{"Origin", "https://b.example", "Access-Control-Request-Method", "POST"}, 204, "Access-Control-Allow-Origin="},
		{"preflight, method", "OPTIONS", "/cors", []string{"Origin", "https://a.example", "Access-Control-Request-Method", "GET"}, 405, "Allow=POST"},
		{"preflight, star", "OPTIONS", "/any", []string{"Origin", "https://b.example", "Access-Control-Request-Method", "PUT"}, 204, "Access-Control-Allow-Headers=X-A"},
		{"star", "PUT", "/any", []string{"Origin", "https://b.example"}, 200, "Access-Control-Allow-Origin=*"},
		{"internal", "POST", "/fn/internal", nil, 403, "Lode-Error=denied"},
		{"namespace", "POST", "/fn/plain", []string{"Lode-Namespace", "other"}, 404, "Lode-Error=not_found"},
		{"bad namespace", "POST", "/fn/plain", []string{"Lode-Namespace", "Other!"}, 400, "Lode-Error=invalid"},
		{"deadline", "POST", "/fn/plain", []string{"Lode-Deadline", "soon"}, 400, "Lode-Error=invalid"},
		{"agents", "POST", "/agents/cart/a/add", nil, 503, "Lode-Error=unavailable"},
		{"v1 without token", "GET", "/v1/functions", nil, 401, "Www-Authenticate=Bearer realm=\"lode\""},
		{"v1 with token", "GET", "/v1/functions", []string{"Authorization", "Bearer lt_admin"}, 503, "Lode-Error=unavailable"},
		{"v1, bad token", "GET", "/v1/functions", []string{"Authorization", "Bearer lt_none"}, 401, "Lode-Error=unauthenticated"},
		{"v1, cross origin", "GET", "/v1/functions", []string{"Authorization", "Bearer lt_admin", "Origin", "http://evil.example"}, 403, "Lode-Error=denied"},
		{"health", "GET", "/healthz", nil, 200, "Lode-Error="},
		{"ready", "GET", "/readyz", nil, 200, "Lode-Error="},
		{"health, post", "POST", "/healthz", nil, 405, "Lode-Error=bad_method"},
		{"metrics", "GET", "/metrics", nil, 404, "Lode-Error=not_found"},
	} {
		t.Run(c.name, func(t *testing.T) {
			res, body := do(t, c.method, url+c.path, "", c.head...)
			k, v, _ := strings.Cut(c.want, "=")
			if res.StatusCode != c.status || res.Header.Get(k) != v {
				t.Errorf("%d %v %s", res.StatusCode, res.Header, body)
			}
		})
	}
	w.mu.Lock()
	w.routes = nil
	w.mu.Unlock()
	w.generation.Add(1)
	if res, _ := do(t, "GET", url+"/items/7", ""); res.StatusCode != 404 {
		t.Errorf("a removed route answers %d", res.StatusCode)
	}
}

func TestConflictingRoutes(t *testing.T) {
	w := newWorld()
	w.deploy("a", lode.Function{Routes: []string{"/x/{a}/y", "/good"}, Access: lode.AccessPublic}, echo)
	w.deploy("b", lode.Function{Routes: []string{"/x/y/{b}", "{bad"}, Access: lode.AccessPublic}, echo)
	_, url := w.start(t, nil)
	for path, want := range map[string]int{"/good": 200, "/x/1/y": 200, "/x/y/1": 404} {
		if res, _ := do(t, "GET", url+path, ""); res.StatusCode != want {
			t.Errorf("%s: %d", path, res.StatusCode)
		}
	}
}

func TestPublicNode(t *testing.T) {
	w := routeWorld()
	ready := errors.New("no quorum")
	var refused atomic.Int64
	g, url := w.start(t, func(c *Config) {
		c.Public = true
		c.Metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { writePlain(w, 200, "x 1\n") })
		c.Ready = func(context.Context) error { return ready }
		c.Refused = func(lode.Kind) { refused.Add(1) }
		c.Manage = func(w http.ResponseWriter, _ *http.Request, grant Grant) { writePlain(w, 200, string(grant.Role)) }
	})
	for _, c := range []struct {
		name, method, path, token string
		status                    int
		want                      string
	}{
		{"function", "POST", "/fn/plain", "", 401, ""},
		{"function, token", "POST", "/fn/plain", "lt_admin", 200, ""},
		{"function, role", "POST", "/fn/plain", "lt_read", 403, ""},
		{"function, namespace", "POST", "/fn/plain", "lt_other", 404, ""}, // its own namespace has no such function
		{"public function", "POST", "/fn/item", "", 200, ""},
		{"public function, a token of its own", "POST", "/fn/item", "something", 200, ""},
		{"internal, stranger", "POST", "/fn/internal", "", 401, ""},
		{"internal, token", "POST", "/fn/internal", "lt_admin", 403, ""},
		{"unknown, stranger", "POST", "/fn/plai", "", 401, `"detail":"function plai needs a token"`},
		{"queue", "POST", "/queues/q", "", 401, ""},
		{"queue, role", "POST", "/queues/q", "lt_read", 403, ""},
		{"queue, token", "POST", "/queues/q", "lt_admin", 202, ""},
		{"metrics", "GET", "/metrics", "", 401, ""},
		{"metrics, token", "GET", "/metrics", "lt_read", 200, "x 1\n"},
		{"not ready", "GET", "/readyz", "", 503, "no quorum"},
		{"alive", "GET", "/healthz", "", 200, "ok\n"},
		{"manage", "GET", "/v1/x", "lt_admin", 200, "admin"},
		{"lambda", "POST", invocations("plain"), "", 403, "UnrecognizedClientException"},
		{"lambda, bearer", "POST", invocations("plain"), "lt_admin", 200, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var head []string
			if c.token != "" {
				head = []string{"Authorization", "Bearer " + c.token}
			}
			res, body := do(t, c.method, url+c.path, "", head...)
			if res.StatusCode != c.status || !strings.Contains(body+res.Header.Get("X-Amzn-Errortype"), c.want) {
				t.Errorf("%d %v %s", res.StatusCode, res.Header, body)
			}
			if got := res.Header.Get("X-Got-Authorization"); res.StatusCode == 200 && (c.token == "something") != (got != "") {
				t.Errorf("the function got Authorization %q", got)
			}
		})
	}
	if refused.Load() == 0 {
		t.Error("nobody was told of refusals")
	}
	ready = nil
	if res, _ := do(t, "GET", url+"/readyz", ""); res.StatusCode != 200 {
		t.Errorf("ready: %d", res.StatusCode)
	}
	g.Drain()
	if res, _ := do(t, "GET", url+"/readyz", ""); res.StatusCode != 503 {
		t.Errorf("draining: %d", res.StatusCode)
	}
}

func TestSocket(t *testing.T) {
	w := routeWorld()
	cfg := Config{Invoker: w, Directory: w, Tokens: w, Public: true, Manage: func(w http.ResponseWriter, _ *http.Request, grant Grant) { writePlain(w, 200, string(grant.Role)) }}
	g, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "lode.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- g.ServeSocket(ln) }()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	for p, want := range map[string]string{"http://lode/v1/x": "admin", "http://lode/fn/plain": ""} {
		res, err := (&http.Client{Transport: tr}).Get(p)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != 200 || string(b) != want {
			t.Errorf("%s: %d %s", p, res.StatusCode, b)
		}
	}
	tr.CloseIdleConnections()
	if err := errors.Join(g.Shutdown(context.Background()), <-done, g.Close()); err != nil {
		t.Error(err)
	}
	if err := g.Serve(ln); err != nil {
		t.Errorf("Serve after Shutdown: %v", err)
	}
}

func TestAsyncAndQueue(t *testing.T) {
	w := newWorld()
	w.deploy("f", lode.Function{Limits: lode.Limits{Body: 10}}, echo)
	_, url := w.start(t, nil)
	res, body := do(t, "POST", url+"/fn/f?alias=blue", "0123456789", "Prefer", "wait=1, Respond-Async", "Idempotency-Key", "k1")
	id := res.Header.Get("Lode-Invocation")
	if res.StatusCode != 202 || id == "" || res.Header.Get("Location") != "/v1/calls/"+id || !strings.Contains(body, id) || res.Header.Get("Preference-Applied") != "respond-async" {
		t.Fatal(res.StatusCode, res.Header, body)
	}
	if s := w.submitted[0]; s.IdempotencyKey != "k1" || s.Alias != "blue" || s.Trigger != lode.TriggerAsync || string(s.Body) != "0123456789" {
		t.Errorf("submitted %+v", s)
	}
	res, body = do(t, "POST", url+"/fn/f", "0123456789X", "Prefer", "respond-async")
	wantProblem(t, res, body, lode.TooLarge)
	res, body = do(t, "POST", url+"/fn/f", "0123456789X")
	wantProblem(t, res, body, lode.TooLarge)

	res, body = do(t, "POST", url+"/queues/orders", `{"a":1}`, "Lode-Delay", "1500", "Idempotency-Key", "k", "Content-Type", "application/json")
	if res.StatusCode != 202 || body != "{\"id\":\"1\"}\n" || w.messages[0] != `default/orders "k" 1.5s application/json {"a":1}` {
		t.Errorf("%d %s %q", res.StatusCode, body, w.messages)
	}
	for _, c := range []struct {
		method, path, delay string
		size                int
		kind                lode.Kind
	}{
		{"GET", "/queues/q", "", 0, lode.BadMethod}, {"POST", "/queues/Q", "", 0, lode.Invalid}, {"POST", "/queues/", "", 0, lode.Invalid}, {"POST", "/queues/a/b", "", 0, lode.Invalid},
		{"POST", "/queues/q", "-1s", 0, lode.Invalid}, {"POST", "/queues/q", "later", 0, lode.Invalid}, {"POST", "/queues/q", "99999999999999999999", 0, lode.Invalid},
		{"POST", "/queues/q", "", maxMessage + 1, lode.TooLarge},
	} {
		res, body := do(t, c.method, url+c.path, strings.Repeat("x", c.size), "Lode-Delay", c.delay)
		wantProblem(t, res, body, c.kind)
	}
}

// step is a function that answers one piece for each token it gets, and fails
// at an error.
func step(pieces <-chan error, head ...lode.Pair) handler {
	return func(ctx context.Context, _ *lode.Request, a lode.Answer) (lode.Usage, error) {
		if err := a.Head(201, head); err != nil {
			return lode.Usage{}, err
		}
		for n := 0; ; n++ {
			select {
			case <-ctx.Done():
				return lode.Usage{}, lode.Errorf(lode.Cancelled, "gone")
			case err, more := <-pieces:
				if err != nil || !more {
					return lode.Usage{}, err
				}
			}
			if _, err := fmt.Fprintf(a, "piece %d\n", n); err != nil {
				return lode.Usage{}, err
			}
		}
	}
}

func TestStreaming(t *testing.T) {
	for _, c := range []struct {
		name string
		head []lode.Pair
	}{{"plain", nil}, {"events", []lode.Pair{{Key: "content-type", Value: "text/event-stream"}}}} {
		t.Run(c.name, func(t *testing.T) {
			pieces := make(chan error)
			w := newWorld()
			w.deploy("f", lode.Function{}, step(pieces, c.head...))
			_, url := w.start(t, nil)
			res, err := http.Get(url + "/fn/f") // the head comes although nothing was written
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if res.StatusCode != 201 || res.Header.Get("Lode-Invocation") == "" || res.ContentLength != -1 {
				t.Fatal(res.StatusCode, res.Header)
			}
			r := bufio.NewReader(res.Body)
			for n := range 3 {
				pieces <- nil
				if line, err := r.ReadString('\n'); err != nil || line != fmt.Sprintf("piece %d\n", n) {
					t.Fatalf("%q %v", line, err)
				}
			}
			pieces <- errors.New("broken")
			if b, err := io.ReadAll(r); err == nil {
				t.Errorf("a broken answer ended well after %q", b)
			}
		})
	}
}

func TestLateFailure(t *testing.T) {
	pieces := make(chan error, 2)
	pieces <- nil
	pieces <- lode.Errorf(lode.Deadline, "too late")
	w := newWorld()
	w.deploy("f", lode.Function{}, step(pieces, lode.Pair{Key: "x-mine", Value: "1"}))
	w.deploy("odd", lode.Function{}, func(_ context.Context, _ *lode.Request, a lode.Answer) (lode.Usage, error) {
		return lode.Usage{}, a.Head(99, nil)
	})
	w.deploy("silent", lode.Function{}, func(context.Context, *lode.Request, lode.Answer) (lode.Usage, error) { return lode.Usage{}, nil })
	_, url := w.start(t, nil)
	res, body := do(t, "GET", url+"/fn/f", "")
	wantProblem(t, res, body, lode.Deadline)
	if res.Header.Get("X-Mine") != "" || strings.Contains(body, "piece") || res.Header.Get("Lode-Invocation") == "" {
		t.Errorf("%v %s", res.Header, body)
	}
	res, body = do(t, "GET", url+"/fn/odd", "")
	wantProblem(t, res, body, lode.Crashed)
	if res, body = do(t, "GET", url+"/fn/silent", ""); res.StatusCode != 200 || body != "" {
		t.Error(res.StatusCode, body)
	}
}

// TestForgery: a function cannot speak with Lode's voice, nor split an answer.
func TestForgery(t *testing.T) {
	w := newWorld()
	w.deploy("f", lode.Function{}, func(_ context.Context, _ *lode.Request, a lode.Answer) (lode.Usage, error) {
		return lode.Usage{}, a.Head(404, []lode.Pair{{Key: "Lode-Error", Value: "x"}, {Key: "lOdE-Node", Value: "x"}, {Key: "trailer:lode-error", Value: "x"}, {Key: "Transfer-Encoding", Value: "x"},
			{Key: "x-a\r\nlode-error", Value: "x"}, {Key: "x-b", Value: "y\r\nLode-Error: x"}, {Key: "", Value: "x"}, {Key: "set-cookie", Value: "a=1"}, {Key: "Set-Cookie", Value: "b=2"}})
	})
	w.deploy("panics", lode.Function{}, func(_ context.Context, _ *lode.Request, a lode.Answer) (lode.Usage, error) {
		_ = a.Head(200, nil)
		panic(http.ErrAbortHandler)
	})
	_, url := w.start(t, nil)
	res, _ := do(t, "GET", url+"/fn/f", "")
	if _, forged := res.Header["Lode-Error"]; forged || res.StatusCode != 404 || res.Header.Get("Lode-Node") != "n1" || len(res.Trailer) > 0 ||
		res.Header.Get("X-B") != "y  Lode-Error: x" || fmt.Sprint(res.Header["Set-Cookie"]) != "[a=1 b=2]" {
		t.Errorf("%v %v", res.Header, res.Trailer)
	}
	if res, err := http.Get(url + "/fn/panics"); err == nil {
		t.Errorf("answered %d", res.StatusCode)
	}
	if res, _ := do(t, "GET", url+"/fn/f", ""); res.StatusCode != 404 {
		t.Errorf("after a panic: %d", res.StatusCode)
	}
}

func TestDisconnect(t *testing.T) {
	ended := make(chan error, 1)
	w := newWorld()
	started := make(chan bool)
	w.deploy("f", lode.Function{}, func(ctx context.Context, _ *lode.Request, _ lode.Answer) (lode.Usage, error) {
		close(started)
		<-ctx.Done()
		ended <- ctx.Err()
		return lode.Usage{}, lode.Errorf(lode.Cancelled, "the caller went away")
	})
	_, url := w.start(t, nil)
	c, _ := rawClient(t, url, "POST /fn/f HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi")
	<-started
	c.Close()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestBothWays: the client sends a piece only after it has seen the answer to
// the one before.
func TestBothWays(t *testing.T) {
	w := newWorld()
	w.deploy("f", lode.Function{}, func(_ context.Context, req *lode.Request, a lode.Answer) (lode.Usage, error) {
		if req.Stream == nil || len(req.Body) != 0 {
			return lode.Usage{}, lode.Errorf(lode.Internal, "no stream")
		}
		buf := make([]byte, 100)
		for {
			n, err := req.Stream.Read(buf)
			if n > 0 {
				if _, err := a.Write(buf[:n]); err != nil {
					return lode.Usage{}, err
				}
				a.(interface{ Flush() }).Flush()
			}
			if err == io.EOF {
				return lode.Usage{}, nil
			}
			if err != nil {
				return lode.Usage{}, err
			}
		}
	})
	w.deploy("early", lode.Function{}, func(_ context.Context, req *lode.Request, a lode.Answer) (lode.Usage, error) {
		go req.Stream.Read(make([]byte, 1)) // a bad guest: still reads when it has answered
		return lode.Usage{}, a.Head(200, nil)
	})
	_, url := w.start(t, nil)
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("h2=%v", h2), func(t *testing.T) {
			var p http.Protocols
			p.SetHTTP1(!h2)
			p.SetUnencryptedHTTP2(h2)
			tr := &http.Transport{Protocols: &p}
			defer tr.CloseIdleConnections()
			pr, pw := io.Pipe()
			req, _ := http.NewRequest("POST", url+"/fn/f", pr)
			first := make(chan struct{})
			go func() { defer close(first); time.Sleep(2 * inlineWait); io.WriteString(pw, "0") }()
			res, err := tr.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			<-first
			if res.StatusCode != 200 {
				b, _ := io.ReadAll(res.Body)
				t.Fatal(res.StatusCode, string(b))
			}
			b := make([]byte, 1)
			for n := range 3 {
				if n > 0 {
					fmt.Fprint(pw, n)
				}
				if _, err := io.ReadFull(res.Body, b); err != nil || string(b) != fmt.Sprint(n) {
					t.Fatalf("%q %v", b, err)
				}
			}
			pw.Close()
			if rest, err := io.ReadAll(res.Body); err != nil || len(rest) > 0 {
				t.Errorf("%q %v", rest, err)
			}
			res.Body.Close()
		})
	}
	c, r := rawClient(t, url, "POST /fn/early HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
	if line, err := r.ReadString('\n'); err != nil || !strings.HasPrefix(line, "HTTP/1.1 200") {
		t.Errorf("%q %v", line, err)
	}
	c.Close()
}

func TestChunkedBodies(t *testing.T) {
	w := newWorld()
	w.deploy("echo", lode.Function{}, echo)
	_, url := w.start(t, nil)
	for _, n := range []int{0, 1, 5000, Inline - 1, Inline, Inline + 1, 7 << 20} {
		body := strings.Repeat("abcdefg", n/7+1)[:n]
		req, _ := http.NewRequest("POST", url+"/fn/echo", struct{ io.Reader }{strings.NewReader(body)})
		for range 2 { // twice, on one connection
			req.Body = io.NopCloser(strings.NewReader(body))
			res, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				t.Fatal(n, err)
			}
			b, err := io.ReadAll(res.Body)
			res.Body.Close()
			if err != nil || res.StatusCode != 200 || string(b) != body {
				t.Errorf("%d bytes: %d, %d bytes, %v", n, res.StatusCode, len(b), err)
			}
		}
	}
}

func TestKeepAliveAfterUpload(t *testing.T) {
	w := newWorld()
	w.deploy("echo", lode.Function{Limits: lode.Limits{Body: 1 << 20}}, echo)
	_, url := w.start(t, nil)
	body := strings.Repeat("x", 100_000)
	one := fmt.Sprintf("POST /fn/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	c, r := rawClient(t, url, one)
	for n := range 3 {
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(n, err)
		}
		if b, err := io.ReadAll(res.Body); err != nil || len(b) != len(body) {
			t.Fatal(n, len(b), err)
		}
		if _, err := io.WriteString(c, one); err != nil {
			t.Fatal(err)
		}
	}
}

// TestHostile sends what is no proper HTTP, or tries to smuggle a request.
func TestHostile(t *testing.T) {
	w := newWorld()
	var calls atomic.Int64
	w.deploy("f", lode.Function{}, func(_ context.Context, req *lode.Request, a lode.Answer) (lode.Usage, error) {
		calls.Add(1)
		return lode.Usage{}, a.Head(200, nil)
	})
	_, url := w.start(t, func(c *Config) { c.HeaderTimeout, c.FirstTimeout = 200*time.Millisecond, 200*time.Millisecond })
	for name, raw := range map[string]string{
		"two lengths":       "POST /fn/f HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
		"odd encoding":      "POST /fn/f HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
		"no host":           "GET /fn/f HTTP/1.1\r\n\r\n",
		"two hosts":         "GET /fn/f HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
		"space in field":    "GET /fn/f HTTP/1.1\r\nHost: localhost\r\nX : y\r\n\r\n",
		"large head":        "GET /fn/f HTTP/1.1\r\nHost: localhost\r\nX: " + strings.Repeat("y", 2*maxHeader) + "\r\n\r\n",
		"slow head":         "GET /fn/f HTTP/1.1\r\nHost: localhost\r\n",
		"no body":           "POST /fn/f HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n",
		"slow body":         "POST /fn/f HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\na",
		"slow queue":        "POST /queues/q HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n",
		"many fields":       "GET /fn/f HTTP/1.1\r\nHost: localhost\r\n" + strings.Repeat("X: y\r\n", 2000) + "\r\n",
		"absolute, foreign": "GET http://evil.example/fn/f HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"short body":        "POST /fn/f HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nConnection: close\r\n\r\nab",
	} {
		t.Run(name, func(t *testing.T) {
			c, r := rawClient(t, url, raw)
			if name == "short body" {
				c.(*net.TCPConn).CloseWrite()
			}
			res, err := http.ReadResponse(r, nil)
			if err == nil {
				res.Body.Close()
				if res.StatusCode < 400 {
					t.Errorf("answered %d", res.StatusCode)
				}
			}
		})
	}
	if calls.Load() != 0 {
		t.Errorf("%d calls", calls.Load())
	}
}

func FuzzHead(f *testing.F) {
	f.Add("X-A", "1", "x-b", "close")
	f.Add("Connection", "x-a", "Lode-Namespace", "n")
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2 string) {
		r := &http.Request{Host: "localhost", Header: http.Header{}}
		r.Header.Add(k1, v1)
		r.Header.Add(k2, v2)
		head, err := appendHead(nil, r, true)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range head[1:] {
			if p.Key != strings.ToLower(p.Key) || hopByHop(p.Key) || p.Key == "authorization" || p.Key == "lode-namespace" || p.Key == "host" {
				t.Fatalf("%v of %v", p, r.Header)
			}
		}
	})
}

func FuzzPath(f *testing.F) {
	for _, s := range []string{"/fn/hello/a", "/fn/hello?x", "/fn/%68ello/%2F", "/fn/", "/fn/a//b?c=d/e", "http://localhost/fn/x/y?z"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, uri string) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader("GET " + uri + " HTTP/1.1\r\nHost: localhost\r\n\r\n")))
		if err != nil || !strings.HasPrefix(r.URL.Path, "/fn/") {
			return
		}
		name, _, _ := strings.Cut(r.URL.Path[4:], "/")
		if _, err := lode.ParseName(name); err != nil {
			return
		}
		if p := pathBelow(r, 4+len(name)); p == "" || p[0] != '/' || strings.ContainsAny(p, " \r\n") {
			t.Fatalf("%q is %q", uri, p)
		}
	})
}
