//go:build !lode_nohttp

package lode

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"lode/sdk/abi"
)

func init() { http.DefaultTransport = transport{} }

// transport makes outgoing requests by the host's fetch operation.
type transport struct{}

var _ http.RoundTripper = transport{}

// RoundTrip sends the request's whole body, at most 16 MiB, and streams the
// response's.
func (transport) RoundTrip(r *http.Request) (*http.Response, error) {
	m := message{head: []pair{{":method", r.Method}, {":url", r.URL.String()}, {":stream", "1"}}}
	if r.Method == "" {
		m.head[0].value = http.MethodGet
	}
	if r.Host != "" && r.Host != r.URL.Host {
		m.head = append(m.head, pair{"host", r.Host})
	}
	m.head = fields(m.head, r.Header)
	if r.Body != nil {
		b, err := io.ReadAll(io.LimitReader(r.Body, abi.MaxMessage))
		r.Body.Close()
		if err != nil {
			return nil, err
		}
		m.body = b
	}
	out, err := operate(r.Context(), abi.OpFetch, m)
	if err != nil {
		return nil, err
	}
	return response(r, out)
}

func response(r *http.Request, m message) (*http.Response, error) {
	status, err := strconv.Atoi(m.get(":status"))
	if err != nil {
		return nil, &Error{Kind: Internal, Detail: "fetch answered no status"}
	}
	out := &http.Response{Status: fmt.Sprintf("%d %s", status, http.StatusText(status)), StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: make(http.Header, len(m.head)), Request: r, ContentLength: -1}
	for _, p := range m.head {
		if !strings.HasPrefix(p.key, ":") {
			out.Header.Add(p.key, p.value)
		}
	}
	if n, err := strconv.ParseInt(out.Header.Get("Content-Length"), 10, 64); err == nil {
		out.ContentLength = n
	}
	out.Body = io.NopCloser(bytes.NewReader(m.body))
	if h := m.get(":stream"); h != "" {
		out.Body = &inflow{ctx: r.Context(), handle: h, rest: m.body}
	}
	return out, nil
}

// inflow is the body of a response as it arrives.
type inflow struct {
	ctx    context.Context
	handle string
	rest   []byte
	ended  bool
}

func (s *inflow) Read(p []byte) (int, error) {
	if len(s.rest) == 0 && !s.ended && len(p) > 0 {
		m, err := operate(s.ctx, abi.OpStreamRead, message{head: []pair{{":stream", s.handle}, {":max", strconv.Itoa(max(len(p), 32<<10))}}})
		if err != nil {
			return 0, err
		}
		s.rest, s.ended = m.body, len(m.body) == 0
	}
	if len(s.rest) == 0 && s.ended {
		return 0, io.EOF
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

func (s *inflow) Close() error {
	if s.ended {
		return nil
	}
	s.ended, s.rest = true, nil
	_, err := operate(context.WithoutCancel(s.ctx), abi.OpStreamClose, message{head: []pair{{":stream", s.handle}}})
	return err
}
