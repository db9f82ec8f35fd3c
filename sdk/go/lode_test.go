package lode

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestAdaptRefuses(t *testing.T) {
	for _, fn := range []any{nil, 1, "x", (func())(nil), func(a, b int) {}, func(context.Context, int, int) {}, func(...int) {}, func() (int, int) { return 0, 0 },
		func() (int, error, error) { return 0, nil, nil }, swapped} {
		if _, err := adapt(fn); err == nil {
			t.Errorf("%T was taken", fn)
		}
	}
}

//lint:ignore ST1008 the wrong order is what is refused
func swapped() (error, int) { return nil, 0 }

func TestRegistry(t *testing.T) {
	var r registry
	if _, err := r.describe(); err == nil {
		t.Error("an empty program describes itself")
	}
	r.add(&r.handlers, export{name: "a"})
	r.add(&r.handlers, export{name: "a"})
	if _, err := r.describe(); err == nil || !strings.Contains(err.Error(), "registered twice") {
		t.Errorf("%v", err)
	}
}

func TestErrors(t *testing.T) {
	err := fmt.Errorf("calling: %w", &Error{Kind: NotFound, Detail: "nobody"})
	if !errors.Is(err, NotFound) || errors.Is(err, Denied) || KindOf(err) != NotFound || KindOf(errors.New("x")) != "" {
		t.Errorf("%v", err)
	}
}

func TestRecords(t *testing.T) {
	tests := []struct {
		form, text string
		want       []string
	}{
		{"lines", "a\nb\r\n\nc", []string{"a", "b", "", "c"}},
		{"lines", "\n", []string{""}},
		{"ndjson", "{}\n[]\n", []string{"{}", "[]"}},
		{"csv", "a,\"b\nc\"\r\nd,\"\"\"\n\"\ne", []string{"a,\"b\nc\"", "d,\"\"\"\n\"", "e"}},
		{"fixed:3", "abcdefgh", []string{"abc", "def", "gh"}},
		{"other", "a\nb", []string{"a\nb"}},
		{"lines", "", nil},
	}
	for _, tt := range tests {
		s := Shard{Bytes: []byte(tt.text), records: tt.form}
		var got []string
		for r := range s.Records() {
			got = append(got, string(r))
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s %q: %q, want %q", tt.form, tt.text, got, tt.want)
		}
	}
	s := Shard{Bytes: []byte("a\nb")}
	for range s.Records() {
		break // an early end must not go on
	}
}

func TestCounts(t *testing.T) {
	a, b := Counts{}, Counts{}
	a.AddWords([]byte("the cat\tthe\r\n\"hat\" \xff\xfe x\xffy"))
	b.AddWords([]byte("cat \\ \x01"))
	want := Counts{"the": 2, "cat": 2, "\"hat\"": 1, "\ufffd\ufffd": 1, "x\ufffdy": 1, "\\": 1, "\x01": 1}
	if got := a.Merge(b); !maps.Equal(got, want) {
		t.Errorf("%v", got)
	}
}

// FuzzCounts holds the fast JSON of Counts against encoding/json's.
func FuzzCounts(f *testing.F) {
	f.Add([]byte(`{"a":1,"b":22}`), "word \x00 \"q\" \xff")
	f.Add([]byte(`{"a":01}`), "")
	f.Add([]byte(`{"a":1,}`), "é ☃")
	f.Add([]byte(`{"\u0061":1, "b" : -2}`), "\\")
	f.Fuzz(func(t *testing.T, raw []byte, words string) {
		var got Counts
		var want map[string]int
		err, err2 := got.UnmarshalJSON(raw), json.Unmarshal(raw, &want)
		if (err == nil) != (err2 == nil) {
			t.Fatalf("%q: %v, encoding/json %v", raw, err, err2)
		}
		if err == nil && !maps.Equal(got, Counts(want)) {
			t.Fatalf("%q: %v, encoding/json %v", raw, got, want)
		}
		c := Counts{}
		c.AddWords([]byte(words))
		var back Counts
		if err := json.Unmarshal(c.appendJSON(nil), &back); err != nil || !maps.Equal(back, c) {
			t.Fatalf("%q: %v became %v, %v", words, c, back, err)
		}
	})
}

// TestNative serves registrations as go run does, with a node beside it.
func TestNative(t *testing.T) {
	node := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/fn/double" && r.Header.Get("Authorization") == "Bearer t":
			w.Write([]byte("42"))
		case strings.HasPrefix(r.URL.Path, "/queues/"):
			fmt.Fprintf(w, `{"id":"%s"}`, r.Header.Get("Idempotency-Key"))
		default:
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(404)
			w.Write([]byte(`{"kind":"not_found","detail":"no such function","hint":"deploy it"}`))
		}
	}))
	defer node.Close()
	t.Setenv("LODE_URL", node.URL)
	t.Setenv("LODE_TOKEN", "t")
	t.Setenv("MODE", "fast")
	old := exports
	defer func() { exports = old }()
	exports = registry{}
	HandleNamed("call", func(ctx context.Context, n int) (int, error) { return Call[int](ctx, "double", "", n) })
	HandleNamed("nobody", func(ctx context.Context) (string, error) {
		_, err := Call[int](ctx, "nobody", "")
		return fmt.Sprint(errors.Is(err, NotFound), err), nil
	})
	HandleNamed("env", func(ctx context.Context) (string, error) {
		id, err := Put(ctx, "q", 1, Key("k"), After(time.Second))
		return Env(ctx, "MODE", "") + id + Self(ctx).Trigger + Header(ctx, "x-a"), err
	})
	HandleNamed("panic", func() { panic("boom") })
	HandleNamed("web", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Method) })
	Job(func(ctx context.Context, s *Shard) (int, error) { return len(slices.Collect(s.Records())), nil }, func(a, b int) int { return a + b })
	s := httptest.NewServer(http.HandlerFunc(answerHTTP))
	defer s.Close()
	tests := []struct {
		name, kind, body string
		status           int
		want             string
	}{
		{"call", "", "21", 200, "42"},
		{"nobody", "", "", 200, "true nobody: no such function"},
		{"env", "", "", 200, "fastkhttp7"},
		{"panic", "", "", 502, `"message":"boom"`},
		{"web", "", "", 200, "POST"},
		{"missing", "", "", 502, "no handler"},
		{"", "job", "a\nb\n", 200, "2"},
	}
	for _, tt := range tests {
		r, _ := http.NewRequest("POST", s.URL+"/", strings.NewReader(tt.body))
		r.Header.Set("Lode-Handler", tt.name)
		r.Header.Set("Lode-Kind", tt.kind)
		r.Header.Set("X-A", "7")
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != tt.status || !strings.Contains(string(b), tt.want) {
			t.Errorf("%s: %d %q, want %d %q", tt.name, resp.StatusCode, b, tt.status, tt.want)
		}
	}
}

func TestAligned(t *testing.T) {
	for _, n := range []int64{0, 1, page, page + 1, 5 * page} {
		b := aligned(n)
		if at := reflect.ValueOf(b).Pointer(); len(b) > 0 && at%page != 0 || int64(len(b)) < n || len(b)%page != 0 {
			t.Errorf("%d: %d bytes at %x", n, len(b), at)
		}
	}
}
