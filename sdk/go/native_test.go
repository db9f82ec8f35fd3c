package lode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

type tally struct {
	N     int
	Notes []string
}

func (c *tally) Add(ctx context.Context, n int) (int, error) { c.N += n; return c.N, nil }
func (c *tally) Get() int                                    { return c.N }
func (c *tally) Fail() error                                 { c.N = -1; return Conflict }
func (c *tally) Ask(ctx context.Context, addr string) (int, error) {
	return Call[int](ctx, addr, "add", 1)
}
func (c *tally) Later(ctx context.Context) error {
	return errors.Join(Timer(ctx, "t", time.Millisecond, "note", "rang"), Send(ctx, "tally/other", "note", "sent"))
}
func (c *tally) Note(s string) { c.Notes = append(c.Notes, s) }
func (c *tally) Noted() int    { return len(c.Notes) }
func (c *tally) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	fmt.Fprint(w, r.URL.Path, r.URL.RawQuery, c.N)
}

// TestNativeAgents serves agents as go run does.
func TestNativeAgents(t *testing.T) {
	old, oldHome := exports, home
	defer func() { exports, home = old, oldHome }()
	exports, home = registry{}, &household{}
	defer home.close()
	Agent("tally", func(string) *tally { return &tally{} }, "Get", "Noted")
	HandleNamed("fn", func(ctx context.Context) (int, error) { return Call[int](ctx, "tally/a", "add", 1) })
	s := httptest.NewServer(http.HandlerFunc(answerHTTP))
	defer s.Close()
	do := func(method, path, body string, head ...string) (int, string) {
		r, _ := http.NewRequest(method, s.URL+path, strings.NewReader(body))
		for i := 0; i < len(head); i += 2 {
			r.Header.Set(head[i], head[i+1])
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	for _, tt := range []struct {
		path, body string
		status     int
		want       string
	}{
		{"/agents/tally/a/add", "2", 200, "2"},
		{"/agents/tally/a%2Fb/add", "5", 200, "5"},
		{"/agents/tally/a/get", "", 200, "2"},
		{"/agents/tally/a/fail", "", 409, `"kind":"conflict"`},
		{"/agents/tally/a/get", "", 200, "2"},
		{"/agents/tally/a/ask", `"tally/b"`, 200, "1"},
		{"/agents/tally/a/ask", `"tally/a"`, 409, "waits for this very call"},
		{"/agents/tally/a/add", `"x"`, 400, "not JSON for int"},
		{"/agents/tally/a/web/x?y", "", 200, "/web/xy2"},
		{"/agents/nix/a/add", "", 404, "no kind of agents"},
		{"/agents/tally//add", "", 400, "want /agents"},
		{"/agents/tally/a/later", "", 204, ""},
	} {
		if status, got := do("POST", tt.path, tt.body); status != tt.status || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %d %q, want %d %q", tt.path, status, got, tt.status, tt.want)
		}
	}
	if status, got := do("POST", "/", "", "Lode-Handler", "fn"); status != 200 || got != "3" {
		t.Errorf("a function calls an agent: %d %s", status, got)
	}
	for _, key := range []string{"a", "other"} {
		for i := 0; ; i++ {
			if _, got := do("POST", "/agents/tally/"+key+"/noted", ""); got == "1" {
				break
			}
			if i == 5000 {
				t.Fatalf("nothing came to %s", key)
			}
			time.Sleep(time.Millisecond)
		}
	}
}

// TestAgentRefuses has the structs that are no agents.
func TestAgentRefuses(t *testing.T) {
	old := exports
	defer func() { exports = old }()
	tests := []struct {
		name, want string
		register   func()
	}{
		{"no struct", "is not a struct", func() { Agent[int]("a", nil) }},
		{"no name", "needs a name", func() { Agent[tally]("", nil) }},
		{"unknown read", `no method "nix"`, func() { Agent[tally]("a", nil, "nix") }},
		{"twice", "registered twice", func() { Agent[tally]("a", nil); Agent[tally]("a", nil) }},
		{"results", "Two: want func(", func() { Agent[twoResults]("a", nil) }},
		{"argument", "func() cannot come from outside", func() { Agent[funcArgument]("a", nil) }},
		{"field", "the field C of the type chan int cannot be stored", func() { Agent[chanField]("a", nil) }},
		{"two fields", `both stored as "B"`, func() { Agent[twoFields]("a", nil) }},
		{"special", "OnMessage: this name is for func(", func() { Agent[wrongSpecial]("a", nil) }},
	}
	for _, tt := range tests {
		exports = registry{}
		tt.register()
		if _, err := exports.describe(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %s", tt.name, err, tt.want)
		}
	}
}

type twoResults struct{}

func (*twoResults) Two() (int, int) { return 0, 0 }

type funcArgument struct{}

func (*funcArgument) Each(f func()) {}

type chanField struct{ C chan int }

type twoFields struct {
	A int `json:"B"`
	B int
}

type wrongSpecial struct{}

func (*wrongSpecial) OnMessage(s string) {}

func TestStatusOfKinds(t *testing.T) {
	want := map[Kind]int{Invalid: 400, Unauthenticated: 401, Denied: 403, NotFound: 404, BadMethod: 405, Conflict: 409, Gone: 410, Precondition: 412, TooLarge: 413,
		Misdirected: 421, KeyReused: 422, Overloaded: 429, Cancelled: 499, Internal: 500, Crashed: 502, Unavailable: 503, Deadline: 504, Full: 507, Damaged: 500, "other": 500}
	for k, status := range want {
		if got := k.status(); got != status {
			t.Errorf("%s: %d, want %d", k, got, status)
		}
	}
}
