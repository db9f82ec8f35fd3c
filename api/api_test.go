package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"lode"
	"lode/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type world struct {
	*memory
	*api.Client // admin of all namespaces
	t           *testing.T
	url         string
}

func newWorld(t *testing.T) *world { return newWorldOf(t, nil) }

// newWorldOf is a world whose node belongs to a cluster.
func newWorldOf(t *testing.T, nodes api.Nodes) *world {
	m := newMemory()
	b := m.backend()
	b.Nodes = nodes
	ts := httptest.NewServer(api.NewServer(b))
	t.Cleanup(ts.Close)
	w := &world{memory: m, t: t, url: ts.URL}
	w.Client = w.as(api.TokenSpec{Role: api.RoleAdmin}, "")
	return w
}

// as makes a client with a token of its own.
func (w *world) as(s api.TokenSpec, ns lode.Namespace) *api.Client {
	k, err := w.memory.CreateToken(w.t.Context(), s)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.client(k.Secret, ns)
}

func (w *world) client(token string, ns lode.Namespace) *api.Client {
	c, err := api.New(api.Config{URL: w.url, Token: token, Namespace: ns})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(c.Close)
	return c
}

func want(t *testing.T, err error, kind lode.Kind) {
	t.Helper()
	if got := lode.KindOf(err); got != kind {
		t.Errorf("got %q (%v), want %q", got, err, kind)
	}
}

func TestDeploy(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	app := lode.App{Name: "shop", Functions: map[lode.Name]lode.Function{"web": {Artifact: lode.Digest{7}}}}
	p, err := w.Client.Deploy(ctx, app, api.DeployOptions{Plan: true})
	if err != nil || p.Applied || len(p.Missing) != 1 || p.Missing[0] != (lode.Digest{7}) {
		t.Fatalf("%+v %v", p, err)
	}
	if has, err := w.Client.HasBlob(ctx, lode.Digest{7}); has || err != nil {
		t.Fatal(has, err)
	}
	want(t, w.Client.PutBlob(ctx, lode.Digest{7}, 3, strings.NewReader("bad")), lode.Damaged)
	if err := w.Client.PutBlob(ctx, lode.Digest{7}, 3, strings.NewReader("\x07ok")); err != nil {
		t.Fatal(err)
	}
	if has, err := w.Client.HasBlob(ctx, lode.Digest{7}); !has || err != nil {
		t.Fatal(has, err)
	}
	if mod, err := w.Client.DescribeBlob(ctx, lode.Digest{7}); err != nil || mod.Description == nil {
		t.Fatalf("%+v %v", mod, err)
	}
	p, err = w.Client.Deploy(ctx, app, api.DeployOptions{})
	if err != nil || !p.Applied || p.ETag != "1" {
		t.Fatalf("%+v %v", p, err)
	}
	if p, err = w.Client.Deploy(ctx, app, api.DeployOptions{IfMatch: p.ETag}); err != nil || p.ETag != "2" {
		t.Fatalf("%+v %v", p, err)
	}
	_, err = w.Client.Deploy(ctx, app, api.DeployOptions{IfMatch: "1"})
	want(t, err, lode.Precondition)
	a, err := w.Client.GetApp(ctx, "shop")
	if err != nil || a.Spec == nil || a.ETag != "2" {
		t.Fatalf("%+v %v", a, err)
	}
	_, err = w.Client.GetApp(ctx, "shpo")
	want(t, err, lode.NotFound)
	if lode.AsError(err).Hint != `did you mean "shop"?` {
		t.Errorf("the hint was lost: %+v", err)
	}
	for _, n := range w.namesFor {
		if n != lode.DefaultNamespace {
			t.Errorf("namespace %q", n)
		}
	}
}

func TestETagOverHTTP(t *testing.T) {
	w := newWorld(t)
	if _, err := w.Client.Deploy(t.Context(), lode.App{Name: "shop"}, api.DeployOptions{}); err != nil {
		t.Fatal(err)
	}
	k, _ := w.memory.CreateToken(t.Context(), api.TokenSpec{Role: api.RoleRead})
	for tag, status := range map[string]int{`"1"`: 304, `W/"1"`: 304, `"2", "1"`: 304, `"2"`: 200, "": 200} {
		req, _ := http.NewRequest("GET", w.url+"/v1/apps/shop", nil)
		req.Header.Set("Authorization", "Bearer "+k.Secret)
		req.Header.Set("If-None-Match", tag)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != status || resp.Header.Get("ETag") != `"1"` {
			t.Errorf("%s: %s, ETag %s", tag, resp.Status, resp.Header.Get("ETag"))
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestLists(t *testing.T) {
	w := newWorld(t)
	for i := range 25 {
		if _, err := w.Client.Deploy(t.Context(), lode.App{Name: lode.Name("a" + string(rune('a'+i)))}, api.DeployOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	l, err := w.Client.ListApps(t.Context(), api.Page{Limit: 10})
	if err != nil || len(l.Items) != 10 || l.Next != "aj" {
		t.Fatalf("%d items, next %q, %v", len(l.Items), l.Next, err)
	}
	all, err := api.All(func(p api.Page) (api.List[api.App], error) {
		p.Limit = 7
		return w.Client.ListApps(t.Context(), p)
	})
	if err != nil || len(all) != 25 {
		t.Fatalf("%d, %v", len(all), err)
	}
	_, err = w.Client.ListApps(t.Context(), api.Page{Limit: 1001})
	want(t, err, lode.Invalid)
}

func TestWhoMayWhat(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	read, call := w.as(api.TokenSpec{Role: api.RoleRead}, ""), w.as(api.TokenSpec{Role: api.RoleCall}, "")
	deploy, admin := w.as(api.TokenSpec{Role: api.RoleDeploy}, ""), w.as(api.TokenSpec{Role: api.RoleAdmin, Namespace: "prod"}, "")
	do := map[string]func(*api.Client) error{
		"list":   func(c *api.Client) error { _, err := c.ListApps(ctx, api.Page{}); return err },
		"cancel": func(c *api.Client) error { _, err := c.CancelCall(ctx, "X"); return err },
		"job": func(c *api.Client) error {
			_, err := c.CreateJob(ctx, api.JobSpec{Function: "f", Dataset: "d"})
			return err
		},
		"inline": func(c *api.Client) error {
			_, err := c.CreateJob(ctx, api.JobSpec{Inline: &lode.Function{}, Dataset: "d"})
			return err
		},
		"deploy": func(c *api.Client) error {
			_, err := c.Deploy(ctx, lode.App{Name: "a"}, api.DeployOptions{})
			return err
		},
		"secret": func(c *api.Client) error { return c.SetSecret(ctx, "K", []byte("v")) },
		"tokens": func(c *api.Client) error { _, err := c.ListTokens(ctx, api.Page{}); return err },
		"audit":  func(c *api.Client) error { _, err := c.ListAudit(ctx, api.Page{}); return err },
	}
	for _, tt := range []struct {
		name   string
		client *api.Client
		may    string
	}{
		{"read", read, "list"}, {"call", call, "list cancel job"}, {"deploy", deploy, "list cancel job inline deploy secret"},
		{"admin of one namespace", admin, "list cancel job inline deploy secret tokens"}, {"admin", w.Client, "list cancel job inline deploy secret tokens audit"},
	} {
		for what, f := range do {
			wanted := lode.Kind("")
			if !strings.Contains(" "+tt.may+" ", " "+what+" ") {
				wanted = lode.Denied
			}
			if got := lode.KindOf(f(tt.client)); got != wanted {
				t.Errorf("%s, %s: %q, want %q", tt.name, what, got, wanted)
			}
		}
	}
	want(t, do["list"](w.client("", "")), lode.Unauthenticated)
	want(t, do["list"](w.client("lt_0000000000000000_"+strings.Repeat("0", 48), "")), lode.Unauthenticated)
}

func TestNamespaces(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	deploy := func(c *api.Client) error {
		_, err := c.Deploy(ctx, lode.App{Name: "a"}, api.DeployOptions{})
		return err
	}
	prod := w.as(api.TokenSpec{Role: api.RoleAdmin, Namespace: "prod"}, "")
	if err := errors.Join(deploy(w.Client.In("staging")), deploy(prod), deploy(prod.In("prod"))); err != nil {
		t.Fatal(err)
	}
	if got := w.namesFor; len(got) != 3 || got[0] != "staging" || got[1] != "prod" || got[2] != "prod" {
		t.Errorf("namespaces %v", got)
	}
	want(t, deploy(prod.In("staging")), lode.Denied)
	want(t, deploy(w.Client.In("Bad Name")), lode.Invalid)

	// An admin of one namespace sees, makes and revokes its tokens alone.
	l, err := prod.ListTokens(ctx, api.Page{})
	if err != nil || len(l.Items) != 1 {
		t.Fatalf("%+v %v", l, err)
	}
	_, err = prod.CreateToken(ctx, api.TokenSpec{Role: api.RoleRead, Namespace: "staging"})
	want(t, err, lode.Denied)
	k, err := prod.CreateToken(ctx, api.TokenSpec{Role: api.RoleRead, For: time.Hour})
	if err != nil || k.Namespace != "prod" || k.Expires.IsZero() {
		t.Fatalf("%+v %v", k, err)
	}
	who, err := w.client(k.Secret, "").WhoAmI(ctx)
	if err != nil || who.Role != api.RoleRead || who.Namespace != "prod" {
		t.Fatalf("%+v %v", who, err)
	}
	admin, _ := w.Client.WhoAmI(ctx)
	want(t, prod.RevokeToken(ctx, admin.Token), lode.NotFound)
	if err := prod.RevokeToken(ctx, k.ID); err != nil {
		t.Fatal(err)
	}
	want(t, deploy(w.client(k.Secret, "")), lode.Unauthenticated)
}

func TestAudit(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.Client.SetSecret(ctx, "K", []byte("the value"))
	w.Client.Deploy(ctx, lode.App{Name: "a"}, api.DeployOptions{Plan: true}) // changes nothing
	w.Client.Deploy(ctx, lode.App{Name: "a"}, api.DeployOptions{IfMatch: "9"})
	w.as(api.TokenSpec{Role: api.RoleRead}, "").SetSecret(ctx, "K", []byte("x"))
	l, err := w.Client.ListAudit(ctx, api.Page{})
	if err != nil || len(l.Items) != 3 {
		t.Fatalf("%+v %v", l.Items, err)
	}
	for i, wanted := range []struct {
		action string
		status int
	}{{"secrets.set", 204}, {"apps.deploy", 412}, {"secrets.set", 403}} {
		if e := l.Items[i]; e.Action != wanted.action || e.Status != wanted.status || e.Token == "" {
			t.Errorf("entry %d: %+v", i, e)
		}
	}
	if b, _ := json.Marshal(l); bytes.Contains(b, []byte("the value")) {
		t.Error("the audit log holds a secret")
	}
}

func TestFunctions(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	h, err := w.Client.History(ctx, "fn", api.Page{})
	if err != nil || len(h.Items) != 2 {
		t.Fatalf("%+v %v", h, err)
	}
	f, err := w.Client.Rollback(ctx, "fn", 4, "tag")
	if err != nil || f.Live.Number != 4 || f.ETag != "tag" {
		t.Fatalf("%+v %v", f, err)
	}
	_, err = w.Client.Rollback(ctx, "fn", -1, "")
	want(t, err, lode.Invalid)
	f, err = w.Client.SetAlias(ctx, "fn", lode.Alias{Name: "canary", Targets: []lode.Target{{Rev: 1, Weight: 90}, {Rev: 2, Weight: 10}}}, "")
	if err != nil || len(f.Aliases) != 1 {
		t.Fatalf("%+v %v", f, err)
	}
	for _, bad := range [][]lode.Target{{{Rev: 1, Weight: 50}}, {{Rev: 1, Weight: 50}, {Rev: 1, Weight: 50}}, {{Rev: 0, Weight: 100}}} {
		_, err = w.Client.SetAlias(ctx, "fn", lode.Alias{Name: "canary", Targets: bad}, "")
		want(t, err, lode.Invalid)
	}
	_, err = w.Client.SetAlias(ctx, "fn", lode.Alias{Name: "live"}, "")
	want(t, err, lode.Invalid)
	if r, err := w.Client.RemoveName(ctx, "fn", api.RemoveOptions{Data: true}); err != nil || r.Items[0].Detail != "true" {
		t.Fatalf("%+v %v", r, err)
	}
	_, err = w.Client.ListNames(ctx, "funktion", api.Page{})
	want(t, err, lode.Invalid)
	if hint := lode.AsError(err).Hint; hint != `did you mean "function"?` {
		t.Errorf("hint %q", hint)
	}
}

func TestCalls(t *testing.T) {
	w := newWorld(t)
	w.answer = "I am a teapot"
	ctx := t.Context()
	l, err := w.Client.ListCalls(ctx, api.CallFilter{Function: "f", State: lode.StateFailed, Dead: true}, api.Page{})
	if err != nil || l.Items[0].Function != "f" || !l.Items[0].Dead || l.Items[0].State != lode.StateFailed {
		t.Fatalf("%+v %v", l, err)
	}
	v, err := w.Client.GetCall(ctx, "X", 5*time.Second)
	if err != nil || v.Attempts != 5 || v.Error == nil || v.Error.Kind != lode.Crashed {
		t.Fatalf("%+v %v", v, err)
	}
	c, err := w.Client.CallResult(ctx, "X")
	if err != nil || c.Status != 418 || c.Type != "text/plain" || c.Size != int64(len(w.answer)) {
		t.Fatalf("%+v %v", c, err)
	}
	defer c.Body.Close()
	if b, _ := io.ReadAll(c.Body); string(b) != w.answer {
		t.Errorf("%q", b)
	}
	_, err = w.Client.ListQueues(ctx, api.Page{}) // this backend has none
	want(t, err, lode.Unavailable)
}

func TestLongerThanAMinuteIsCut(t *testing.T) {
	w := newWorld(t)
	v, err := w.Client.GetCall(t.Context(), "X", time.Hour)
	if err != nil || v.Attempts != 60 {
		t.Fatalf("%+v %v", v, err)
	}
}

func TestUnixSocket(t *testing.T) {
	m := newMemory()
	sock := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: api.NewServer(m.backend()), ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
		return api.WithGrant(ctx, api.Grant{Token: "socket", Role: api.RoleAdmin})
	}}
	go srv.Serve(l)
	defer srv.Close()
	c, err := api.New(api.Config{URL: "unix://" + sock})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if g, err := c.WhoAmI(t.Context()); err != nil || g.Token != "socket" {
		t.Fatalf("%+v %v", g, err)
	}
}

func TestUnreachable(t *testing.T) {
	c, err := api.New(api.Config{URL: "http://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Top(t.Context())
	want(t, err, lode.Unavailable)
	if !api.Unreachable(err) || lode.AsError(err).Hint == "" {
		t.Errorf("%v", err)
	}
	for _, bad := range []string{"ftp://x", "http://", "http://[::1"} {
		_, err := api.New(api.Config{URL: bad})
		want(t, err, lode.Invalid)
	}
	// Something that is no node.
	ts := httptest.NewServer(http.NotFoundHandler())
	defer ts.Close()
	c, _ = api.New(api.Config{URL: ts.URL})
	defer c.Close()
	_, err = c.Top(t.Context())
	if lode.AsError(err).Hint != "is it a Lode node?" {
		t.Errorf("%+v", err)
	}
}
