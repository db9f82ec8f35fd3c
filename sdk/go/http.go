//go:build !wasip1 || !lode_nohttp

package lode

import (
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

func init() {
	adaptHTTP = func(fn any) (handler, bool) {
		switch h := fn.(type) {
		case http.Handler:
			return serve(h), true
		case func(http.ResponseWriter, *http.Request):
			return serve(http.HandlerFunc(h)), true
		}
		return nil, false
	}
}

// serve makes a handler of h.
func serve(h http.Handler) handler {
	return func(v *invocation) error {
		r, err := request(v)
		if err != nil {
			return answerInvalid(v, err)
		}
		w := &writer{v: v, header: make(http.Header)}
		h.ServeHTTP(w, r)
		return w.finish()
	}
}

// request is the invocation as an *http.Request. Its body streams.
func request(v *invocation) (*http.Request, error) {
	m := &v.request
	u, err := url.ParseRequestURI(m.get(":path"))
	if err != nil {
		return nil, err
	}
	r := &http.Request{Method: m.get(":method"), URL: u, RequestURI: m.get(":path"), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: make(http.Header, len(m.head)), Body: http.NoBody, RemoteAddr: m.get("x-forwarded-for")}
	if r.Method == "" {
		r.Method = http.MethodPost
	}
	for _, p := range m.head {
		switch {
		case strings.HasPrefix(p.key, ":route."):
			r.SetPathValue(p.key[len(":route."):], p.value)
		case strings.HasPrefix(p.key, ":"):
		case p.key == "host":
			r.Host = p.value
		default:
			r.Header.Add(p.key, p.value)
		}
	}
	r.ContentLength = -1
	if n, err := strconv.ParseInt(r.Header.Get("Content-Length"), 10, 64); err == nil && n >= 0 {
		r.ContentLength = n
	}
	if r.ContentLength != 0 {
		r.Body = io.NopCloser(bodyReader{v})
	}
	return r.WithContext(v), nil
}

// hold is how much of an answer is kept back, so that a short one is one call
// of the host.
const hold = 4 << 10

// writer is the http.ResponseWriter of one invocation.
type writer struct {
	v      *invocation
	header http.Header
	status int  // 0: WriteHeader was not called
	begun  bool // the head is out
	buf    []byte
	err    error
}

var (
	_ http.ResponseWriter = (*writer)(nil)
	_ http.Flusher        = (*writer)(nil)
)

func (w *writer) Header() http.Header { return w.header }

func (w *writer) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
	}
}

func (w *writer) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	w.WriteHeader(http.StatusOK)
	w.buf = append(w.buf, p...)
	if len(w.buf) > hold {
		w.send()
	}
	if w.err != nil {
		return 0, w.err
	}
	return len(p), nil
}

// send hands the head and what was kept back to the host.
func (w *writer) send() {
	if w.err != nil {
		return
	}
	if w.begun {
		w.err = w.v.port.write(w.v, w.buf)
		w.buf = w.buf[:0]
		return
	}
	w.begun = true
	w.WriteHeader(http.StatusOK)
	if _, set := w.header["Content-Type"]; !set && len(w.buf) > 0 {
		w.header.Set("Content-Type", http.DetectContentType(w.buf))
	}
	w.err = w.v.port.respond(w.v, w.status, fields(nil, w.header), w.buf)
	w.buf = w.buf[:0]
}

// Flush sends everything written so far on its way.
func (w *writer) Flush() {
	w.send()
	if w.err == nil {
		w.err = w.v.port.flush(w.v)
	}
}

func (w *writer) finish() error {
	if w.v.upgrade && !w.begun { // what was written is nothing to a WebSocket
		w.begun, w.buf = true, nil
		w.err = w.v.port.respond(w.v, http.StatusSwitchingProtocols, fields(nil, w.header), nil)
		return w.err
	}
	if !w.begun || len(w.buf) > 0 {
		w.send()
	}
	return w.err
}

// fields appends h to a head, names in lower case.
func fields(head []pair, h http.Header) []pair {
	for k, vs := range h {
		k = strings.ToLower(k)
		for _, x := range vs {
			head = append(head, pair{k, x})
		}
	}
	return head
}

// Fetch is a client for the outside world, within the function's egress. It
// is http.DefaultClient: libraries that use that work unchanged.
func Fetch() *http.Client { return http.DefaultClient }
