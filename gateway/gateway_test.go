package gateway

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"lode"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// handler is a function of the test, in Go.
type handler func(ctx context.Context, req *lode.Request, a lode.Answer) (lode.Usage, error)

// world is a small node: it deploys and runs functions written in Go.
type world struct {
	mu         sync.Mutex
	fns        map[lode.Name]*lode.Function
	code       map[lode.Name]handler
	routes     []Route
	domains    map[string]lode.Namespace
	generation atomic.Uint64
	ranOn      lode.NodeID // that outcomes name
	submitted  []lode.Request
	messages   []string
	logs       string
}

func newWorld() *world {
	return &world{fns: map[lode.Name]*lode.Function{}, code: map[lode.Name]handler{}, domains: map[string]lode.Namespace{}}
}

func (w *world) deploy(name lode.Name, fn lode.Function, h handler) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if fn.Access == "" {
		fn.Access = lode.AccessToken
	}
	w.fns[name], w.code[name] = &fn, h
	for _, p := range fn.Routes {
		w.routes = append(w.routes, Route{p, lode.DefaultNamespace, name})
	}
	w.generation.Add(1)
}

func (w *world) Lookup(ns lode.Namespace, name lode.Name) (lode.Access, *lode.Function, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fn := w.fns[name]
	if fn == nil || ns != lode.DefaultNamespace {
		return "", nil, false
	}
	return fn.Access, fn, true
}

func (w *world) Names(lode.Namespace) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var names []string
	for n := range w.fns {
		names = append(names, string(n))
	}
	slices.Sort(names)
	return names
}

func (w *world) Generation() uint64 { return w.generation.Load() }

func (w *world) Routes() ([]Route, map[string]lode.Namespace) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.routes), maps.Clone(w.domains)
}

func (w *world) Invoke(ctx context.Context, req *lode.Request, a lode.Answer) (lode.Outcome, error) {
	w.mu.Lock()
	h := w.code[req.Function]
	w.mu.Unlock()
	u, err := h(ctx, req, a)
	return lode.Outcome{ID: req.ID, Revision: "default/" + string(req.Function) + "@7", Usage: u, Node: w.ranOn}, err
}

func (w *world) Submit(_ context.Context, req *lode.Request) (lode.InvocationID, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	kept := *req
	kept.Body, kept.Head = bytes.Clone(req.Body), slices.Clone(req.Head)
	w.submitted = append(w.submitted, kept)
	return req.ID, nil
}

func (w *world) PutQueue(_ context.Context, ns lode.Namespace, queue lode.Name, key string, delay time.Duration, contentType string, body []byte) (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.messages = append(w.messages, fmt.Sprintf("%s/%s %q %s %s %s", ns, queue, key, delay, contentType, body))
	return fmt.Sprint(len(w.messages)), nil
}

func (w *world) Check(_ context.Context, token string) (Grant, error) {
	switch token {
	case "lt_admin":
		return Grant{Role: RoleAdmin}, nil
	case "lt_read":
		return Grant{Role: RoleRead, Namespace: lode.DefaultNamespace}, nil
	case "lt_other":
		return Grant{Role: RoleCall, Namespace: "other"}, nil
	}
	return Grant{}, lode.Errorf(lode.Unauthenticated, "unknown token")
}

func (w *world) Tail(_ context.Context, _ lode.Namespace, _ lode.InvocationID, max int) []byte {
	if len(w.logs) > max {
		return []byte(w.logs[len(w.logs)-max:])
	}
	return []byte(w.logs)
}

var (
	_ Invoker   = (*world)(nil)
	_ Directory = (*world)(nil)
	_ Tokens    = (*world)(nil)
	_ Logs      = (*world)(nil)
)

// start serves the world on loopback.
func (w *world) start(t testing.TB, change func(*Config)) (*Gateway, string) {
	t.Helper()
	cfg := Config{Node: "n1", Invoker: w, Directory: w, Tokens: w, Logs: w, Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&cfg)
	}
	g, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- g.Serve(ln) }()
	t.Cleanup(func() {
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		if err := g.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return g, "http://" + ln.Addr().String()
}

func echo(_ context.Context, req *lode.Request, a lode.Answer) (lode.Usage, error) {
	body := req.Body
	if req.Stream != nil {
		rest, err := io.ReadAll(req.Stream)
		if err != nil {
			return lode.Usage{}, err
		}
		body = append(slices.Clone(body), rest...)
	}
	head := []lode.Pair{{Key: "content-type", Value: "text/x-echo"}, {Key: "x-path", Value: req.Path}, {Key: "x-method", Value: req.Method},
		{Key: "lode-error", Value: "forged"}, {Key: "connection", Value: "close"}, {Key: ":status", Value: "1"}}
	for _, p := range req.Head {
		head = append(head, lode.Pair{Key: "x-got-" + strings.TrimPrefix(p.Key, ":"), Value: p.Value})
	}
	if err := a.Head(200, head); err != nil {
		return lode.Usage{}, err
	}
	_, err := a.Write(body)
	return lode.Usage{Cold: true, Queued: 1500 * time.Microsecond, Wall: 2 * time.Millisecond}, err
}

// do sends a request; head is name, value, name, value.
func do(t testing.TB, method, url, body string, head ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(head); i += 2 {
		if head[i] == "Host" {
			req.Host = head[i+1]
			continue
		}
		req.Header.Add(head[i], head[i+1])
	}
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}

func wantProblem(t *testing.T, res *http.Response, body string, kind lode.Kind) {
	t.Helper()
	var e lode.Error
	if err := json.Unmarshal([]byte(body), &e); err != nil {
		t.Fatalf("status %d, body %q: %v", res.StatusCode, body, err)
	}
	if res.StatusCode != kind.Status() || res.Header.Get("Lode-Error") != string(kind) || e.Kind != kind || res.Header.Get("Content-Type") != "application/problem+json" {
		t.Fatalf("got %d %v %s, want %s", res.StatusCode, res.Header, body, kind)
	}
}

func TestFunctionDoor(t *testing.T) {
	w := newWorld()
	w.deploy("echo", lode.Function{}, echo)
	_, url := w.start(t, nil)
	big := strings.Repeat("0123456789abcdef", 20_000)
	for _, c := range []struct {
		name, method, path, body string
		wantPath                 string
	}{
		{"empty", "GET", "/fn/echo", "", "/"},
		{"body", "POST", "/fn/echo", "hello", "/"},
		{"path", "PUT", "/fn/echo/a%2Fb/c?q=1&r=%20", "x", "/a%2Fb/c?q=1&r=%20"},
		{"query", "POST", "/fn/echo?q=1", "x", "/?q=1"},
		{"escaped", "POST", "/fn/%65cho/x%20y", "x", "/x%20y"},
		{"big", "POST", "/fn/echo", big, "/"},
	} {
		t.Run(c.name, func(t *testing.T) {
			res, body := do(t, c.method, url+c.path, c.body, "X-Thing", "a", "X-Thing", "b", "Authorization", "Bearer mine", "Connection", "x-hop", "X-Hop", "1", "Te", "trailers")
			h := res.Header
			if res.StatusCode != 200 || body != c.body {
				t.Fatalf("got %d, %d bytes: %.200s", res.StatusCode, len(body), body)
			}
			for k, want := range map[string]string{"X-Path": c.wantPath, "X-Method": c.method, "Content-Type": "text/x-echo", "Lode-Error": "", "Lode-Node": "n1", "Lode-Cold": "1",
				"X-Got-Authorization": "Bearer mine", "X-Got-X-Hop": "", "X-Got-Te": "", "Connection": "", "Server-Timing": "queue;dur=1.500, run;dur=2.000"} {
				if c.name == "big" && (k == "Lode-Cold" || k == "Server-Timing") {
					continue // streamed: not known when the head left
				}
				if got := h.Get(k); got != want {
					t.Errorf("%s is %q, want %q", k, got, want)
				}
			}
			if !slices.Equal(h["X-Got-X-Thing"], []string{"a", "b"}) || len(h.Get("Lode-Invocation")) != 26 {
				t.Errorf("head %v", h)
			}
		})
	}
}

func TestUnknownFunction(t *testing.T) {
	w := newWorld()
	w.deploy("censor", lode.Function{}, echo)
	_, url := w.start(t, nil)
	res, body := do(t, "POST", url+"/fn/cencor", "")
	wantProblem(t, res, body, lode.NotFound)
	if !strings.Contains(body, `did you mean \"censor\"?`) {
		t.Error(body)
	}
	res, body = do(t, "GET", url+"/nothing/here", "")
	wantProblem(t, res, body, lode.NotFound)
}

// rawClient speaks HTTP/1.1 by hand.
func rawClient(t *testing.T, url, request string) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	return c, bufio.NewReader(c)
}
