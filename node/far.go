package node

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"

	"lode"
	"lode/api"
	"lode/link"
)

// A node asks another one through the same /v1 that people use, over link:
// the method "http", whose head is JSON of farRequest and of farAnswer.

// maxFar bounds what is read of a body to send it with the head.
const maxFar = 48 << 10

type farRequest struct {
	Method string      `json:"method"`
	Path   string      `json:"path"` // with its query
	Header http.Header `json:"header,omitempty"`
	Grant  api.Grant   `json:"grant"` // whom the asking node asks for; it has checked that
}

type farAnswer struct {
	Status int         `json:"status"`
	Header http.Header `json:"header,omitempty"`
}

// far is an http.RoundTripper to another node. What comes of it is of that
// node alone: it asks nobody else.
type far struct {
	link *link.Link
	to   lode.NodeID
}

// RoundTrip sends r and returns when the head of the answer is here.
func (f far) RoundTrip(r *http.Request) (*http.Response, error) {
	g, ok := api.GrantOf(r.Context())
	if !ok {
		g = api.Grant{Token: "node", Role: api.RoleAdmin}
	}
	h := r.Header.Clone()
	h.Del("Authorization")
	head, err := json.Marshal(farRequest{Method: r.Method, Path: r.URL.RequestURI(), Header: h, Grant: g})
	if err != nil {
		return nil, err
	}
	q := &link.Request{Method: "http", Head: head}
	if r.Body != nil {
		defer r.Body.Close()
		if q.Body, err = io.ReadAll(io.LimitReader(r.Body, maxFar)); err != nil {
			return nil, err
		}
		if len(q.Body) == maxFar {
			q.Stream = r.Body
		}
	}
	return f.send(r, q)
}

func (f far) send(r *http.Request, q *link.Request) (*http.Response, error) {
	pr, pw := io.Pipe()
	ctx, cancel := context.WithCancel(r.Context())
	a := &farReader{to: pw, head: make(chan farAnswer, 1)}
	ended := make(chan error, 1)
	go func() {
		err := f.link.Call(ctx, f.to, q, a)
		pw.CloseWithError(err)
		ended <- err
	}()
	answer := func(h farAnswer) (*http.Response, error) {
		return &http.Response{StatusCode: h.Status, Header: h.Header, Body: farBody{pr, cancel}, ContentLength: -1, Request: r,
			Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}, nil
	}
	select {
	case h := <-a.head:
		return answer(h)
	case err := <-ended:
		defer cancel()
		select {
		case h := <-a.head: // both were ready
			return answer(h)
		default:
		}
		if err == nil {
			err = lode.Errorf(lode.Internal, "node %s gave no answer", f.to)
		}
		return nil, err
	}
}

// farBody ends the call when the answer is closed.
type farBody struct {
	*io.PipeReader
	cancel context.CancelFunc
}

// Close ends the call.
func (b farBody) Close() error {
	b.cancel()
	return b.PipeReader.Close()
}

// farReader takes the answer of the call.
type farReader struct {
	to   *io.PipeWriter
	head chan farAnswer
}

// Head takes the status and the header.
func (a *farReader) Head(b []byte) error {
	var h farAnswer
	if err := json.Unmarshal(b, &h); err != nil {
		return lode.Errorf(lode.Internal, "the answer of a node is not readable: %w", err)
	}
	if h.Header == nil {
		h.Header = http.Header{}
	}
	a.head <- h
	return nil
}

// Write takes bytes of the body.
func (a *farReader) Write(p []byte) (int, error) { return a.to.Write(p) }

var (
	_ http.RoundTripper = far{}
	_ link.Answer       = (*farReader)(nil)
)

// client speaks to another node's /v1.
func (n *Node) client(to lode.NodeID, ns lode.Namespace) *api.Client {
	c, err := api.New(api.Config{URL: "http://" + string(to), Namespace: ns, Local: true, Transport: far{n.fleet.link, to}})
	if err != nil {
		panic(err) // the URL is ours
	}
	return c
}

// serveFar answers a request of another node.
func (n *Node) serveFar(ctx context.Context, in *link.Incoming) error {
	var q farRequest
	if err := json.Unmarshal(in.Head, &q); err != nil {
		return lode.Errorf(lode.Invalid, "the head of a request is not readable: %w", err)
	}
	if !strings.HasPrefix(q.Path, "/v1/") {
		return lode.Errorf(lode.Invalid, "%q is no path of the API", q.Path)
	}
	ctx = api.WithPeer(api.WithGrant(ctx, q.Grant), in.From)
	r, err := http.NewRequestWithContext(ctx, q.Method, q.Path, in.Whole())
	if err != nil {
		return lode.Errorf(lode.Invalid, "%w", err)
	}
	if r.Header = q.Header; r.Header == nil {
		r.Header = http.Header{}
	}
	w := &farWriter{in: in, header: http.Header{}}
	n.manager.ServeHTTP(w, r)
	w.WriteHeader(http.StatusOK)
	return w.err
}

// local reports whether another node asks, which wants no third one asked.
func local(ctx context.Context) bool { return api.IsLocal(ctx) }

// farWriter is the http.ResponseWriter over an incoming call.
type farWriter struct {
	in     *link.Incoming
	header http.Header
	begun  bool
	err    error
}

// Header is what WriteHeader sends.
func (w *farWriter) Header() http.Header { return w.header }

// WriteHeader begins the answer.
func (w *farWriter) WriteHeader(status int) {
	if w.begun {
		return
	}
	w.begun = true
	head, err := json.Marshal(farAnswer{Status: status, Header: w.header})
	if err == nil {
		err = w.in.Begin(head)
	}
	w.err = err
}

// Write sends a part of the body.
func (w *farWriter) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if w.err != nil {
		return 0, w.err
	}
	return w.in.Write(p)
}

// Flush hands on what was written.
func (w *farWriter) Flush() {
	w.WriteHeader(http.StatusOK)
	if w.err == nil {
		w.err = w.in.Flush()
	}
}

var (
	_ http.ResponseWriter = (*farWriter)(nil)
	_ http.Flusher        = (*farWriter)(nil)
)
