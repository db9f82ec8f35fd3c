package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"lode"
	"lode/api"
)

// some yields files and then, if err is set, fails.
type some struct {
	files []file
	err   error
}

func (s *some) Next() (string, int64, io.Reader, error) {
	if len(s.files) == 0 {
		if s.err != nil {
			return "", 0, nil, s.err
		}
		return "", 0, nil, io.EOF
	}
	f := s.files[0]
	s.files = s.files[1:]
	return f.name, int64(len(f.body)), bytes.NewReader(f.body), nil
}

func TestDatasets(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	files := []file{{"a/1.txt", []byte("one\n")}, {"b.txt", nil}, {"ü" + strings.Repeat("x", 300), bytes.Repeat([]byte("y"), 100_000)}}
	d, err := w.Client.PutDataset(ctx, "mails", api.PutOptions{Records: lode.RecordsFiles}, &some{files: files})
	if err != nil || d.Count != 3 || d.Records != lode.RecordsFiles {
		t.Fatalf("%+v %v", d, err)
	}
	var got []file
	err = w.Client.ReadFiles(ctx, "mails", 0, func(name string, _ int64, r io.Reader) error {
		b, err := io.ReadAll(r)
		if len(b) == 0 {
			b = nil
		}
		got = append(got, file{name, b})
		return err
	})
	if err != nil || !reflect.DeepEqual(got, files) {
		t.Fatalf("%d files, %v", len(got), err)
	}
	if d, err = w.Client.PutStream(ctx, "mails", api.PutOptions{Append: true}, "c.txt", strings.NewReader("three")); err != nil || d.Count != 4 {
		t.Fatalf("%+v %v", d, err)
	}
	c, err := w.Client.ReadDataset(ctx, "mails", api.ReadOptions{Shard: 4})
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c.Body)
	c.Body.Close()
	if string(b) != "three" || err != nil {
		t.Fatalf("%q %v", b, err)
	}
	if n, err := w.Client.CollectDatasets(ctx); err != nil || n.Bytes != 3 {
		t.Fatal(n, err)
	}
}

func TestUploadCutShort(t *testing.T) {
	w := newWorld(t)
	gone := lode.Errorf(lode.NotFound, "b.txt is gone")
	_, err := w.Client.PutDataset(t.Context(), "mails", api.PutOptions{}, &some{files: []file{{"a", []byte("x")}}, err: gone})
	if !errors.Is(err, gone) {
		t.Errorf("got %v", err)
	}
	// A tar archive whose end is missing, from a client that knows no better.
	k, _ := w.memory.CreateToken(t.Context(), api.TokenSpec{Role: api.RoleDeploy})
	req, _ := http.NewRequest("PUT", w.url+"/v1/datasets/mails", strings.NewReader("half a header"))
	req.Header.Set("Authorization", "Bearer "+k.Secret)
	req.Header.Set("Content-Type", "application/x-tar")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	defer resp.Body.Close()
	var e lode.Error
	if json.NewDecoder(resp.Body).Decode(&e) != nil || resp.StatusCode != 400 || !strings.Contains(e.Detail, "cut short") {
		t.Errorf("%s %+v", resp.Status, e)
	}
	if len(w.files) != 0 {
		t.Errorf("something was kept: %v", w.files)
	}
}

// TestLateErrors breaks answers after their head was sent.
func TestLateErrors(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.files["d"] = []file{{"1", []byte("good")}, {"2", []byte("bad")}}
	w.lines = []api.LogLine{{Text: "a line"}}
	w.jobs["j-1"] = &api.Job{ID: "j-1", State: lode.StateRunning}
	w.breakAt = 1

	c, err := w.Client.ReadDataset(ctx, "d", api.ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c.Body)
	c.Body.Close()
	if string(b) != "good" {
		t.Errorf("%q", b)
	}
	want(t, err, lode.Damaged)
	if !strings.Contains(fmt.Sprint(err), "shard 2") {
		t.Errorf("the shard is not named: %v", err)
	}
	want(t, w.Client.ReadFiles(ctx, "d", 0, func(_ string, _ int64, r io.Reader) error { return nil }), lode.Damaged)
	seen := 0
	want(t, w.Client.ReadLogs(ctx, api.LogFilter{}, func(api.LogLine) error { seen++; return nil }), lode.Damaged)
	want(t, w.Client.WatchJob(ctx, "j-1", func(api.Job) error { seen++; return nil }), lode.Unavailable)
	if seen != 2 {
		t.Errorf("%d of 2 things came before the errors", seen)
	}

	// A client that reads no trailers sees the connection break.
	k, _ := w.memory.CreateToken(ctx, api.TokenSpec{Role: api.RoleCall})
	req, _ := http.NewRequest("GET", w.url+"/v1/datasets/d/content", nil)
	req.Header.Set("Authorization", "Bearer "+k.Secret)
	resp, err := http.DefaultClient.Do(req)
	if err == nil {
		defer resp.Body.Close()
		_, err = io.ReadAll(resp.Body)
	}
	if err == nil {
		t.Error("half a dataset looked like a whole one")
	}
	http.DefaultClient.CloseIdleConnections()

	// An error before the first byte has a status of its own.
	_, err = w.Client.ReadDataset(ctx, "none", api.ReadOptions{})
	want(t, err, lode.NotFound)
}

func TestJobs(t *testing.T) {
	w := newWorld(t)
	w.answer = `{"free": 3}`
	ctx := t.Context()
	j, err := w.Client.CreateJob(ctx, api.JobSpec{Function: "count", Dataset: "mails", Reduce: "merge"})
	if err != nil || j.ID != "j-7Q2" {
		t.Fatalf("%+v %v", j, err)
	}
	var done []int
	var last lode.State
	if err := w.Client.WatchJob(ctx, j.ID, func(j api.Job) error { done, last = append(done, j.Done), j.State; return nil }); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(done, []int{0, 1, 2, 3}) || last != lode.StateDone {
		t.Errorf("%v %s", done, last)
	}
	c, err := w.Client.JobResult(ctx, j.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Body.Close()
	if b, _ := io.ReadAll(c.Body); string(b) != w.answer {
		t.Errorf("%q", b)
	}
	for _, s := range []api.JobSpec{{Dataset: "d"}, {Function: "f"}, {Function: "f", Dataset: "D"}, {Function: "f", Dataset: "d", Into: "X"}, {Function: "f", Dataset: "d", Limit: -1}, {Function: "f", Inline: &lode.Function{}, Dataset: "d"}} {
		_, err := w.Client.CreateJob(ctx, s)
		want(t, err, lode.Invalid)
	}
	_, err = w.Client.GetJob(ctx, "j 1", 0)
	want(t, err, lode.NotFound)
	want(t, w.Client.WatchJob(ctx, "j-none", nil), lode.NotFound)
}

func TestLogsFollow(t *testing.T) {
	w := newWorld(t)
	w.lines = []api.LogLine{{Name: "a", Text: "1"}, {Name: "b", Text: "2"}}
	ctx, cancel := context.WithCancel(t.Context())
	var got []string
	err := w.Client.ReadLogs(ctx, api.LogFilter{Name: "b", Follow: true}, func(l api.LogLine) error {
		got = append(got, l.Text)
		cancel() // as Ctrl-C does
		return nil
	})
	if err != nil || !reflect.DeepEqual(got, []string{"2"}) {
		t.Errorf("%v %v", got, err)
	}
	want(t, w.Client.ReadLogs(t.Context(), api.LogFilter{Grep: "("}, nil), lode.Invalid)
	// A log that ends although it is followed belongs to a node that stops.
	ended := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200) }))
	defer ended.Close()
	c, err := api.New(api.Config{URL: ended.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	want(t, c.ReadLogs(t.Context(), api.LogFilter{Follow: true}, nil), lode.Unavailable)
}

func TestInvoke(t *testing.T) {
	var got *http.Request
	c, err := api.New(api.Config{Token: "t", Namespace: "prod", Transport: door(func(r *http.Request) *http.Response {
		got = r
		h := http.Header{"Lode-Invocation": {"01X"}}
		if r.URL.Path == "/fn/missing" {
			h.Set("Lode-Error", "not_found")
			h.Set("Content-Type", "application/problem+json")
			return &http.Response{StatusCode: 404, Header: h, Body: io.NopCloser(strings.NewReader(`{"kind":"not_found","detail":"no function"}`)), Request: r}
		}
		return &http.Response{StatusCode: 404, Header: h, Body: io.NopCloser(strings.NewReader("own 404")), Request: r}
	})})
	if err != nil {
		t.Fatal(err)
	}
	a, err := c.Invoke(t.Context(), api.Invocation{Function: "web", Path: "/a?b=1", Alias: "canary", Key: "k", Deadline: 1500e6, Async: true, Type: "text/plain", Body: strings.NewReader("x")})
	if err != nil || a.Status != 404 || a.ID != "01X" {
		t.Fatalf("a function's own 404 is an answer: %+v %v", a, err)
	}
	for k, v := range map[string]string{"Idempotency-Key": "k", "Lode-Deadline": "1500", "Prefer": "respond-async", "Authorization": "Bearer t", "Lode-Namespace": "prod", "Content-Type": "text/plain"} {
		if got.Header.Get(k) != v {
			t.Errorf("%s: %q", k, got.Header.Get(k))
		}
	}
	if got.Method != "POST" || got.URL.RequestURI() != "/fn/web/a?alias=canary&b=1" {
		t.Errorf("%s %s", got.Method, got.URL.RequestURI())
	}
	_, err = c.Invoke(t.Context(), api.Invocation{Function: "missing"})
	want(t, err, lode.NotFound)
}

type door func(*http.Request) *http.Response

func (d door) RoundTrip(r *http.Request) (*http.Response, error) { return d(r), nil }
