package api_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"lode"
	"lode/api"
)

// TestFailover: a client of several nodes goes to the next where that is safe,
// and nowhere else.
func TestFailover(t *testing.T) {
	var broke, served, refused atomic.Int64
	breaks := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		broke.Add(1)
		panic(http.ErrAbortHandler)
	}))
	defer breaks.Close()
	draining := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		refused.Add(1)
		api.WriteError(w, lode.Errorf(lode.Unavailable, "draining"))
	}))
	defer draining.Close()
	good := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		served.Add(1)
		w.Header().Set("Content-Type", "application/json")
		if r.Method == "POST" && string(b) != "body" && !strings.HasPrefix(r.URL.Path, "/v1/") {
			t.Errorf("the body is %q", b)
		}
		w.Write([]byte("{}"))
	}))
	defer good.Close()
	const dead = "http://127.0.0.1:1"
	get := func(c *api.Client) error { _, err := c.Top(t.Context()); return err }
	post := func(c *api.Client) error { _, err := c.CancelCall(t.Context(), "X"); return err }
	call := func(key string, body io.Reader) func(*api.Client) error {
		return func(c *api.Client) error {
			a, err := c.Invoke(t.Context(), api.Invocation{Function: "f", Key: key, Body: body})
			if err == nil {
				a.Body.Close()
			}
			return err
		}
	}
	for _, tt := range []struct {
		name  string
		first string
		do    func(*api.Client) error
		kind  lode.Kind
	}{
		{"dead, read", dead, get, ""},
		{"dead, write: it was not sent", dead, post, ""},
		{"dead, call", dead, call("", strings.NewReader("body")), ""},
		{"dead, call with a body that is read once", dead, call("", struct{ io.Reader }{strings.NewReader("body")}), lode.Unavailable},
		{"broken, read", breaks.URL, get, ""},
		{"broken, write: it may have been done", breaks.URL, post, lode.Unavailable},
		{"broken, call", breaks.URL, call("", strings.NewReader("body")), lode.Unavailable},
		{"broken, call with a key", breaks.URL, call("k", bytes.NewReader([]byte("body"))), ""},
		{"draining, read", draining.URL, get, ""},
		{"draining, write", draining.URL, post, lode.Unavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := api.New(api.Config{URL: tt.first + ", " + good.URL + ","})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			before := served.Load()
			want(t, tt.do(c), tt.kind)
			if n := served.Load() - before; (n == 1) != (tt.kind == "") {
				t.Errorf("served %d times", n)
			}
			if tt.kind == "" {
				if c.URL() != good.URL {
					t.Errorf("stays at %s", c.URL())
				}
				want(t, get(c.In("prod")), "") // and begins there next time
			}
		})
	}
	c, err := api.New(api.Config{URL: dead + "," + dead})
	if err != nil {
		t.Fatal(err)
	}
	if err := get(c); !api.Unreachable(err) {
		t.Errorf("%v", err)
	}
	_, err = api.New(api.Config{URL: ","})
	want(t, err, lode.Invalid)
}
