package telemetry

import (
	"compress/gzip"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// receiver is an OTLP collector.
type receiver struct {
	mu    sync.Mutex
	spans []*tracepb.Span
	path  string
}

func (c *receiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var body io.Reader = r.Body
	if r.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			http.Error(w, err.Error(), 400)
			return
		}
		body = z
	}
	b, err := io.ReadAll(body)
	var req collector.ExportTraceServiceRequest
	if err == nil {
		err = proto.Unmarshal(b, &req)
	}
	if err != nil {
		http.Error(w, err.Error(), 400)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.path = r.URL.Path
	for _, rs := range req.ResourceSpans {
		for _, ss := range rs.ScopeSpans {
			c.spans = append(c.spans, ss.Spans...)
		}
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
}

func TestTraces(t *testing.T) {
	c := &receiver{}
	server := httptest.NewServer(c)
	defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	defer server.Close()
	tel := open(t, Config{Endpoint: server.URL, Node: "n1", Version: "0.1"})
	f := tel.Function("default/f@3", "default", "f")
	const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	child := record("CHILD")
	child.Trace = f.Begin(parent)
	child.Kind, child.Detail = "crashed", "it broke"
	child.Ops = []Op{{Name: "fetch", Target: "example.com", Began: time.Millisecond, Took: time.Millisecond}}
	f.Done(child)
	root := record("ROOT")
	root.Trace = f.Begin("")
	f.Done(root)
	unsampled := record("NOT")
	unsampled.Trace = f.Begin(strings.TrimSuffix(parent, "01") + "00")
	f.Done(unsampled)
	if err := tel.Close(); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.spans) != 2 || c.path != "/v1/traces" {
		t.Fatalf("%d spans at %q", len(c.spans), c.path)
	}
	got := map[string]*tracepb.Span{}
	for _, s := range c.spans {
		for _, a := range s.Attributes {
			if a.Key == "faas.invocation_id" {
				got[a.Value.GetStringValue()] = s
			}
		}
	}
	s := got["CHILD"]
	if s == nil || hex.EncodeToString(s.TraceId) != "4bf92f3577b34da6a3ce929d0e0e4736" || hex.EncodeToString(s.ParentSpanId) != "00f067aa0ba902b7" ||
		hex.EncodeToString(s.SpanId) != child.Trace.Traceparent()[36:52] || s.Status.Code != tracepb.Status_STATUS_CODE_ERROR || len(s.Events) != 1 ||
		s.EndTimeUnixNano-s.StartTimeUnixNano != uint64(5*time.Millisecond) || s.Name != "f" {
		t.Errorf("child: %v", s)
	}
	s = got["ROOT"]
	if s == nil || hex.EncodeToString(s.TraceId) != root.Trace.ID() || len(s.ParentSpanId) != 0 {
		t.Errorf("root: %v", s)
	}
	for _, a := range s.GetAttributes() {
		if strings.Contains(a.Value.GetStringValue(), "secret") {
			t.Errorf("the query left in %s", a.Key)
		}
	}
}

func TestTracesFromEnvironment(t *testing.T) {
	c := &receiver{}
	server := httptest.NewServer(c)
	defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	defer server.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.URL)
	tel := open(t, Config{})
	f := tel.Function("default/f@3", "default", "f")
	r := record("A")
	r.Trace = f.Begin("")
	f.Done(r)
	if err := tel.Close(); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.spans) != 1 {
		t.Errorf("%d spans", len(c.spans))
	}
}

func TestDeadCollector(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	server.Close() // nobody listens there any more
	tel := open(t, Config{Endpoint: server.URL, Dir: t.TempDir()})
	f := tel.Function("default/f@3", "default", "f")
	r := record("A")
	r.Trace = f.Begin("")
	f.Done(r)
	if got := texts(t, tel, Filter{Calls: true}); got != "call:200" {
		t.Errorf("log: %q", got)
	}
}

func FuzzTraceparent(f *testing.F) {
	for _, s := range []string{"", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
		"cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what", "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
		"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tr := newTrace(s)
		out := tr.Traceparent()
		again := newTrace(out)
		if again.trace != tr.trace || again.parent != tr.span || again.flags != tr.flags || len(tr.ID()) != 32 {
			t.Fatalf("%q became %q", s, out)
		}
		if tr.parent != [8]byte{} && (s[3:35] != tr.ID() || s[:2] == "00" && len(s) != 55) {
			t.Fatalf("%q was taken as %q", s, out)
		}
	})
}
