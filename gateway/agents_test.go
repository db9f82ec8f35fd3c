package gateway

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"lode"
)

func TestAgentCalls(t *testing.T) {
	o := newTown()
	o.fn.Limits.Body = 100
	o.fn.CORS = &lode.CORS{Origins: []string{"https://a.example"}}
	_, base := o.start(t, nil)
	form := []string{"Content-Type", "application/x-www-form-urlencoded"}
	args := []string{"Content-Type", typeArgs}
	for _, c := range []struct {
		name, method, path, body string
		head                     []string
		status                   int
		want                     string // in the body, or NAME=VALUE of a field, or in the agent's log
	}{
		{"call", "POST", "/agents/cart/c1/add", "2", nil, 200, "2"},
		{"call, curl", "POST", "/agents/cart/c2/add", "2", form, 200, "call add application/json [2]"},
		{"call, charset", "POST", "/agents/cart/c3/add", "2", []string{"Content-Type", "Application/JSON; charset=utf-8"}, 200, "call add application/json [2]"},
		{"call, list", "POST", "/agents/cart/c4/add", "[2,3]", args, 200, "5"},
		{"call, bytes", "POST", "/agents/cart/c5/add", "7", []string{"Content-Type", "image/png"}, 200, "call add image/png [7]"},
		{"call, nothing", "POST", "/agents/cart/c6/add", "", nil, 200, "call add  []"},
		{"no content", "POST", "/agents/cart/c7/emit", "2", nil, 204, "Content-Length="},
		{"key", "POST", "/agents/cart/a%2Fb%20%C3%A4/add", "2", nil, 200, "2"},
		{"where", "POST", "/agents/cart/c8/add", "2", nil, 200, "Lode-Node=n2"},
		{"no cold", "POST", "/agents/cart/c8/add", "2", nil, 200, "Lode-Cold="},
		{"read", "GET", "/agents/cart/r1/total", "", nil, 200, "read total  []"},
		{"read, args", "GET", "/agents/cart/r2/total?args=[1,%22a%22]", "", nil, 200, `read total application/vnd.lode.args+json [1 "a"]`},
		{"read, arg", "GET", "/agents/cart/r3/total?arg=1&arg=a+b&arg={}", "", nil, 200, `[1 "a b" {}]`},
		{"read, post", "POST", "/agents/cart/r4/total", "", nil, 200, "read total"},
		{"read, head", "HEAD", "/agents/cart/r5/total", "", nil, 200, "read total"},
		{"read, bad args", "GET", "/agents/cart/r6/total?args=1", "", nil, 400, "not a JSON list"},
		{"read, null args", "GET", "/agents/cart/r6/total?args=null", "", nil, 400, "not a JSON list"},
		{"read, both", "GET", "/agents/cart/r6/total?args=[]&arg=1", "", nil, 400, "args and arg"},
		{"read, bad query", "GET", "/agents/cart/r6/total?arg=%zz", "", nil, 400, "query"},
		{"get of a write", "GET", "/agents/cart/k/add", "", nil, 405, "Allow=POST"},
		{"get of a write, hint", "GET", "/agents/cart/k/add", "", nil, 405, "marked as read"},
		{"put of a read", "PUT", "/agents/cart/k/total", "", nil, 405, "Allow=GET, HEAD, POST"},
		{"below a method", "POST", "/agents/cart/k/add/more", "", nil, 404, "nothing is below"},
		{"too large", "POST", "/agents/cart/k/add", strings.Repeat("1", 101), nil, 413, "Lode-Error=too_large"},
		{"crash", "POST", "/agents/cart/k/fail", "", nil, 502, `"guest":{"type":"Error"`},
		{"fetch", "PUT", "/agents/cart/f/items/a%2Fb?x=1", "b", nil, 418, "X-Path=/items/a%2Fb?x=1"},
		{"fetch, root", "GET", "/agents/cart/f?x=1", "", nil, 418, "X-Path=/?x=1"},
		{"fetch, slash", "GET", "/agents/cart/f/", "", nil, 418, "X-Path=/"},
		{"fetch, no forgery", "GET", "/agents/cart/f/", "", nil, 418, "Lode-Error="},
		{"fetch, near a method", "POST", "/agents/cart/f/addd", "", nil, 418, "X-Path=/addd"},
		{"fetch, large", "POST", "/agents/cart/f/", strings.Repeat("1", 101), nil, 413, ""},
		{"no kind", "POST", "/agents/carts/k/add", "", nil, 404, `did you mean \"cart\"?`},
		{"a function", "POST", "/agents/censor/k/add", "", nil, 404, "/fn/censor"},
		{"no key", "POST", "/agents/cart/", "", nil, 404, "/agents/KIND/KEY"},
		{"no key, method", "POST", "/agents/cart//add", "", nil, 404, "/agents/KIND/KEY"},
		{"nothing", "GET", "/agents", "", nil, 404, "/agents/KIND/KEY"},
		{"long key", "POST", "/agents/cart/" + strings.Repeat("k", 513) + "/add", "", nil, 400, "513 bytes"},
		{"longest key", "POST", "/agents/cart/" + strings.Repeat("k", 512) + "/add", "1", nil, 200, "1"},
		{"odd key", "POST", "/agents/cart/%ff/add", "", nil, 400, "UTF-8"},
		{"escaped door", "POST", "/agents%2Fcart/k/add", "", nil, 404, "not the address"},
		{"other namespace", "POST", "/agents/cart/k/add", "", []string{"Lode-Namespace", "other"}, 404, "Lode-Error=not_found"},
		{"bad deadline", "POST", "/agents/cart/k/add", "", []string{"Lode-Deadline", "soon"}, 400, "Lode-Error=invalid"},
		{"long idempotency key", "POST", "/agents/cart/k/add", "", []string{"Idempotency-Key", strings.Repeat("k", 256)}, 400, "at most 255"},
		{"cross origin", "POST", "/agents/cart/k/add", "", []string{"Origin", "http://evil.example"}, 403, "Lode-Error=denied"},
		{"cross origin, cors", "POST", "/agents/cart/x1/add", "1", []string{"Origin", "https://a.example"}, 200, "Access-Control-Allow-Origin=https://a.example"},
		{"cross origin, error", "POST", "/agents/cart/k/fail", "1", []string{"Origin", "https://a.example"}, 502, "Access-Control-Allow-Origin=https://a.example"},
		{"cross origin, 405", "PUT", "/agents/cart/k/add", "1", []string{"Origin", "https://a.example"}, 405, "Access-Control-Allow-Origin=https://a.example"},
		{"preflight", "OPTIONS", "/agents/cart/k/add", "", []string{"Origin", "https://a.example", "Access-Control-Request-Method", "POST"}, 204, "Access-Control-Allow-Methods=POST"},
		{"kind as function", "POST", "/fn/cart", "", nil, 404, "a kind of agents"},
		{"kind as lambda", "POST", invocations("cart"), "{}", nil, 404, "ResourceNotFoundException"},
	} {
		t.Run(c.name, func(t *testing.T) {
			res, body := do(t, c.method, base+c.path, c.body, c.head...)
			key := strings.Split(strings.TrimPrefix(c.path, "/agents/cart/"), "/")[0]
			field, value, _ := strings.Cut(c.want, "=")
			if res.StatusCode != c.status || !strings.Contains(body, c.want) && res.Header.Get(field) != value && !strings.Contains(o.logged(key)+res.Header.Get("X-Amzn-Errortype"), c.want) {
				t.Errorf("%d %v %s\n%s", res.StatusCode, res.Header, body, o.logged(key))
			}
			if res.Header.Get("Lode-Invocation") == "" && (res.StatusCode < 300 && c.method != "OPTIONS" || res.StatusCode == 502) {
				t.Errorf("no invocation in %v", res.Header)
			}
		})
	}
	if o.resident("a/b ä").total != 2 {
		t.Error("the key is not decoded")
	}
}

// TestAgentWithoutFetch: what there is, is said.
func TestAgentWithoutFetch(t *testing.T) {
	o := newTown()
	o.fn.Exports = nil
	_, base := o.start(t, nil)
	for _, c := range []struct{ method, path, want string }{
		{"POST", "/agents/cart/a/ad", `did you mean \"add\"? methods: add, total (read), emit, fail, say, wait`},
		{"GET", "/agents/cart/a", `kind cart has no fetch handler`},
		{"GET", "/agents/cart/a/x/y", `no fetch handler and no method \"x\"`},
	} {
		res, body := do(t, c.method, base+c.path, "")
		wantProblem(t, res, body, lode.NotFound)
		if !strings.Contains(body, c.want) {
			t.Error(body)
		}
	}
	o.fn.Agent = &lode.AgentSpec{} // its code did not say what it has
	for _, c := range []struct{ method, path, log string }{{"POST", "/agents/cart/b/add", "call add"}, {"GET", "/agents/cart/c/total", "read total"}} {
		if res, body := do(t, c.method, base+c.path, ""); res.StatusCode != 200 || !strings.Contains(o.logged(c.path[13:14]), c.log) {
			t.Error(res.StatusCode, body)
		}
	}
}

func TestAgentIdempotency(t *testing.T) {
	o := newTown()
	_, base := o.start(t, nil)
	for n, want := range []string{"", "1"} {
		res, body := do(t, "POST", base+"/agents/cart/a/add", "5", "Idempotency-Key", "k1")
		if res.StatusCode != 200 || body != "5" || res.Header.Get("Lode-Repeated") != want || res.Header.Get("Lode-Invocation") != "k1" {
			t.Error(n, res.StatusCode, res.Header, body)
		}
	}
	res, body := do(t, "POST", base+"/agents/cart/b/add", "5", "Prefer", "respond-async", "Idempotency-Key", "k2")
	if res.StatusCode != 202 || body != "{\"id\":\"k2\"}\n" || res.Header.Get("Preference-Applied") != "respond-async" || res.Header.Get("Lode-Invocation") != "k2" {
		t.Error(res.StatusCode, res.Header, body)
	}
	o.queued.Wait()
	if _, body := do(t, "GET", base+"/agents/cart/b/total", "", "Prefer", "respond-async"); body != "5" {
		t.Error(body)
	}
	o.refuse = []error{lode.Errorf(lode.Full, "no room"), lode.Errorf(lode.Overloaded, "the mailbox is full")}
	res, body = do(t, "POST", base+"/agents/cart/b/add", "5", "Prefer", "respond-async")
	wantProblem(t, res, body, lode.Full)
	res, body = do(t, "POST", base+"/agents/cart/b/add", "5")
	wantProblem(t, res, body, lode.Overloaded)
	if res.Header.Get("Retry-After") != "1" || len(res.Header.Get("Lode-Invocation")) != 26 {
		t.Error(res.Header)
	}
}

func TestAgentAccess(t *testing.T) {
	o := newTown()
	_, base := o.start(t, func(c *Config) { c.Public = true })
	for _, c := range []struct {
		name   string
		access lode.Access
		path   string
		token  string
		status int
		want   string
	}{
		{"stranger", lode.AccessToken, "/agents/cart/a/add", "", 401, `"detail":"kind cart needs a token"`},
		{"stranger, unknown", lode.AccessToken, "/agents/car/a/add", "", 401, `"detail":"kind car needs a token"`},
		{"stranger, no method", lode.AccessToken, "/agents/cart/a/x", "", 401, `"detail":"kind cart needs a token"`},
		{"stranger, internal", lode.AccessInternal, "/agents/cart/a/add", "", 401, ""},
		{"stranger, function", lode.AccessToken, "/agents/censor/a/add", "", 401, `"detail":"kind censor needs a token"`},
		{"stranger, kind as function", lode.AccessToken, "/fn/cart", "", 401, `"detail":"function cart needs a token"`},
		{"stranger, public", lode.AccessPublic, "/agents/cart/a/add", "", 200, ""},
		{"token", lode.AccessToken, "/agents/cart/a/add", "lt_admin", 200, ""},
		{"role", lode.AccessToken, "/agents/cart/a/add", "lt_read", 403, ""},
		{"namespace", lode.AccessToken, "/agents/cart/a/add", "lt_other", 404, ""},
		{"internal", lode.AccessInternal, "/agents/cart/a/add", "lt_admin", 403, "kind cart is internal"},
		{"token is used up", lode.AccessToken, "/agents/cart/a/x", "lt_admin", 418, ""},
		{"token of its own", lode.AccessPublic, "/agents/cart/a/x", "mine", 418, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			o.access = c.access
			var head []string
			if c.token != "" {
				head = []string{"Authorization", "Bearer " + c.token}
			}
			res, body := do(t, "POST", base+c.path, "", head...)
			if res.StatusCode != c.status || !strings.Contains(body, c.want) {
				t.Errorf("%d %v %s", res.StatusCode, res.Header, body)
			}
			if got := res.Header.Get("X-Auth"); res.StatusCode == 418 && (got != "") != (c.token == "mine") {
				t.Errorf("the agent got Authorization %q", got)
			}
		})
	}
}

// TestAgentCallerLeaves: the caller's leaving reaches the call.
func TestAgentCallerLeaves(t *testing.T) {
	o := newTown()
	o.begun, o.blocked = make(chan bool), make(chan bool)
	_, base := o.start(t, nil)
	ctx, cancel := context.WithCancel(context.Background())
	req, _ := http.NewRequestWithContext(ctx, "POST", base+"/agents/cart/a/wait", strings.NewReader("1"))
	done := make(chan error)
	go func() { _, err := http.DefaultTransport.RoundTrip(req); done <- err }()
	<-o.begun
	cancel()
	if err := <-done; err == nil {
		t.Error("it answered")
	}
	if got := o.logged("a"); got != "call wait application/json [1]" { // it is free when the turn has given up
		t.Error(got)
	}
}

func TestAgentAllocations(t *testing.T) {
	v := newTrivial()
	o := &instant{town: newTown(), rep: lode.AgentReply{Status: 200, Head: []lode.Pair{{Key: "content-type", Value: "application/json"}}, Body: []byte("12"), ID: "x", Node: "n1"}}
	g, err := New(Config{Node: "n1", Invoker: v, Directory: v, Tokens: v, Agents: o})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	per := func(path string) float64 {
		r, w := handRequest(path)
		body := strings.NewReader(strings.Repeat("1", 1024))
		return testing.AllocsPerRun(500, func() {
			body.Seek(0, 0)
			r.Body = io.NopCloser(body)
			clear(w.h)
			g.ServeHTTP(w, r)
		})
	}
	if fn, agent := per("/fn/f"), per("/agents/cart/alice/add"); agent > fn {
		t.Errorf("a call to an agent allocates %v times, one to a function %v", agent, fn)
	}
}

// instant answers every call at once.
type instant struct {
	*town
	rep lode.AgentReply
}

func (i *instant) Call(context.Context, *lode.AgentCall) (*lode.AgentReply, error) {
	return &i.rep, nil
}

func TestEvents(t *testing.T) {
	o := newTown()
	g, base := o.start(t, func(c *Config) { c.BeatEvery = 5 * time.Millisecond })
	emit := func(data string) { do(t, "POST", base+"/agents/cart/chat/emit", data) }
	emit("one")
	emit("two\nlines\r\nof\rtext")
	res, r := listenTo(t, base, "")
	if h := res.Header; res.StatusCode != 200 || h.Get("Content-Type") != "text/event-stream" || h.Get("Lode-Node") != "n1" {
		t.Fatal(res.StatusCode, h)
	}
	want := []string{"id: 1\nevent: chat\ndata: one\n", "id: 2\nevent: chat\ndata: two\ndata: lines\ndata: of\ndata: text\n"}
	for _, e := range want {
		if got := nextEvent(t, r); got != e {
			t.Errorf("%q, want %q", got, e)
		}
	}
	for got := ""; got != ":\n"; got = nextComment(t, r) {
	}
	emit("three")
	if got := nextEvent(t, r); got != "id: 3\nevent: chat\ndata: three\n" {
		t.Errorf("%q", got)
	}
	_, back := listenTo(t, base, "2")
	if got := nextEvent(t, back); got != "id: 3\nevent: chat\ndata: three\n" {
		t.Errorf("after 2 comes %q", got)
	}
	res, body := do(t, "GET", base+"/agents/cart/chat", "", "Accept", "text/event-stream", "Last-Event-ID", "x")
	wantProblem(t, res, body, lode.Invalid)
	o.mu.Lock()
	o.refuse = []error{lode.Errorf(lode.Unavailable, "no majority")}
	o.mu.Unlock()
	res, body = do(t, "GET", base+"/agents/cart/chat", "", "Accept", "text/html, text/event-stream;q=0.5")
	wantProblem(t, res, body, lode.Unavailable)

	// one that fails later is cut; one that the node's stopping ends is whole
	if err := g.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	for _, r := range []*bufio.Reader{r, back} {
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Errorf("the stream did not end well: %v", err)
		}
	}
}

func TestEventsCut(t *testing.T) {
	o := newTown()
	_, base := o.start(t, nil)
	_, r := listenTo(t, base, "") // the head comes without an event
	o.mu.Lock()
	o.refuse = []error{nil, lode.Errorf(lode.Unavailable, "no majority")}
	o.mu.Unlock()
	a := o.resident("chat")
	a.mu.Lock()
	a.emit(lode.AgentEvent{Data: []byte("x")})
	a.mu.Unlock()
	if got := nextEvent(t, r); got != "id: 1\ndata: x\n" {
		t.Errorf("%q", got)
	}
	a.mu.Lock()
	a.emit(lode.AgentEvent{Data: []byte("y")})
	a.mu.Unlock()
	if _, err := io.Copy(io.Discard, r); err == nil {
		t.Error("a broken stream ended well")
	}
}

func listenTo(t *testing.T, base, last string) (*http.Response, *bufio.Reader) {
	t.Helper()
	req, _ := http.NewRequest("GET", base+"/agents/cart/chat", nil)
	req.Header.Set("Accept", "text/event-stream")
	if last != "" {
		req.Header.Set("Last-Event-ID", last)
	}
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { res.Body.Close() })
	return res, bufio.NewReader(res.Body)
}

// nextEvent reads the next event that is not a comment.
func nextEvent(t *testing.T, r *bufio.Reader) string {
	t.Helper()
	for {
		if e := nextComment(t, r); !strings.HasPrefix(e, ":") {
			return e
		}
	}
}

func nextComment(t *testing.T, r *bufio.Reader) string {
	t.Helper()
	var b strings.Builder
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if line == "\n" {
			return b.String()
		}
		b.WriteString(line)
	}
}

func FuzzAgentPath(f *testing.F) {
	for _, s := range []string{"/agents/cart/alice/add", "/agents/cart/a%2Fb/c%2Fd?x", "/agents/cart/", "/%61gents/c/k", "/agents//k", "/agents/c/%ff/m", "http://h/agents/c/k/..", "/agents%2fc/k/m/n", "/agents/c/k//"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, uri string) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader("GET " + uri + " HTTP/1.1\r\nHost: localhost\r\n\r\n")))
		if err != nil {
			return
		}
		got, err := parseTarget(r.URL)
		if err != nil {
			if kind := lode.KindOf(err); kind != lode.NotFound && kind != lode.Invalid {
				t.Fatal(err)
			}
			return
		}
		if got.key == "" || len(got.key) > maxKey || !utf8.ValidString(got.key) || got.kind == "" || got.rest != "" && got.rest[0] != '/' {
			t.Fatalf("%q is %+v", uri, got)
		}
		v := visit{target: got}
		if p := v.path(r); p[0] != '/' || strings.ContainsAny(p, " \r\n") {
			t.Fatalf("%q has the path %q", uri, p)
		}
		// what a client would write for it is read back
		u, err := url.Parse("/agents/" + url.PathEscape(string(got.kind)) + "/" + url.PathEscape(got.key) + got.rest)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := parseTarget(u); err != nil || again.kind != got.kind || again.key != got.key {
			t.Fatalf("%q is %+v, then %+v, %v", uri, got, again, err)
		}
	})
}

func FuzzSSE(f *testing.F) {
	f.Add(uint64(1), "type", []byte("a\nb\r\nc\r"))
	f.Fuzz(func(t *testing.T, n uint64, kind string, data []byte) {
		b := string(appendSSE(nil, lode.AgentEvent{N: n, Type: kind, Data: data}))
		if !strings.HasPrefix(b, fmt.Sprintf("id: %d\n", n)) || !strings.HasSuffix(b, "\n\n") || strings.Count(b, "\n\n") != 1 || strings.Contains(b, "\r") {
			t.Fatalf("%q", b)
		}
		for _, line := range strings.Split(strings.TrimSuffix(b, "\n\n"), "\n") {
			if !slices.ContainsFunc([]string{"id: ", "event: ", "data: "}, func(p string) bool { return strings.HasPrefix(line, p) }) {
				t.Fatalf("a line is %q", line)
			}
		}
	})
}
