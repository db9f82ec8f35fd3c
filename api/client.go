package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"

	"lode"
)

// Client speaks to one node. Its methods may be called from many goroutines;
// each takes the context of one request. Every error is a *lode.Error: the
// node's own, or Unavailable around ErrUnreachable.
type Client struct {
	base  string // scheme and host, no slash at the end
	token string
	ns    lode.Namespace
	http  *http.Client
}

// Config says where a node is. The zero value is the default node without a
// token.
type Config struct {
	// URL of the node, or unix:///path/of/lode.sock. "": DefaultURL.
	URL string
	// Token goes with every request; a unix socket needs none.
	Token string
	// Namespace of every request; "": the token's, else default.
	Namespace lode.Namespace
	// Transport replaces the HTTP transport, for tests.
	Transport http.RoundTripper
}

// DefaultURL is where lode up listens when nothing else is said.
const DefaultURL = "http://127.0.0.1:5633"

// ErrUnreachable is inside the error of a request that found no node.
var ErrUnreachable = errors.New("cannot reach the node")

// New makes a client; it opens no connection.
func New(c Config) (*Client, error) {
	raw := c.URL
	if raw == "" {
		raw = DefaultURL
	}
	if !strings.Contains(raw, "://") {
		raw = "http://" + raw
	}
	u, err := url.Parse(raw)
	if err != nil {
		return nil, lode.Errorf(lode.Invalid, "%q is not a URL: %w", c.URL, err).WithHint("want http://HOST:PORT, https://HOST or unix:///PATH")
	}
	out := &Client{token: c.Token, ns: c.Namespace, http: &http.Client{Transport: c.Transport, CheckRedirect: keepRedirect}}
	switch u.Scheme {
	case "http", "https":
		if u.Host == "" {
			return nil, lode.Errorf(lode.Invalid, "%q names no host", c.URL)
		}
		out.base = u.Scheme + "://" + u.Host
		if c.Transport == nil {
			out.http.Transport = transport(nil)
		}
	case "unix":
		out.base = "http://localhost"
		path := u.Path
		if c.Transport == nil {
			out.http.Transport = transport(func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", path)
			})
		}
	default:
		return nil, lode.Errorf(lode.Invalid, "%q has the scheme %s", c.URL, u.Scheme).WithHint("want http://HOST:PORT, https://HOST or unix:///PATH")
	}
	return out, nil
}

// keepRedirect hands redirects of functions to the caller.
func keepRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

func transport(dial func(context.Context, string, string) (net.Conn, error)) *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost = 64
	t.DisableCompression = true // bodies are counted and compared
	if dial != nil {
		t.DialContext, t.Proxy = dial, nil
	}
	return t
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// URL is the base of the node's doors.
func (c *Client) URL() string { return c.base }

// In returns a client for another namespace.
func (c *Client) In(ns lode.Namespace) *Client {
	d := *c
	d.ns = ns
	return &d
}

// request is one exchange.
type request struct {
	method, path string
	query        url.Values
	body         io.Reader
	size         int64 // of body; 0 with a body: not known
	ctype        string
	header       http.Header
	raw          bool // errors of the function's own are answers
}

func (c *Client) send(ctx context.Context, q request) (*http.Response, error) {
	u := c.base + q.path
	if len(q.query) > 0 {
		u += "?" + q.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, q.method, u, q.body)
	if err != nil {
		return nil, lode.Errorf(lode.Invalid, "%w", err)
	}
	if q.size > 0 {
		req.ContentLength = q.size
	}
	for k, v := range q.header {
		req.Header[k] = v
	}
	c.identify(req.Header, q.ctype)
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if resp.StatusCode >= 400 && (!q.raw || resp.Header.Get("Lode-Error") != "") {
		defer resp.Body.Close()
		return nil, readError(resp)
	}
	return resp, nil
}

func (c *Client) identify(h http.Header, ctype string) {
	if c.token != "" {
		h.Set("Authorization", "Bearer "+c.token)
	}
	if c.ns != "" {
		h.Set("Lode-Namespace", string(c.ns))
	}
	if ctype != "" {
		h.Set("Content-Type", ctype)
	}
	h.Set("Te", "trailers")
}

// unreachable classes a failed exchange.
func (c *Client) unreachable(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		if errors.Is(cause, context.DeadlineExceeded) {
			return lode.Errorf(lode.Deadline, "no answer from %s in time", c.base)
		}
		return lode.Errorf(lode.Cancelled, "cancelled: %w", cause)
	}
	if e, ok := errors.AsType[*lode.Error](err); ok { // from a body that was being sent
		return e
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	why := err
	if no, ok := errors.AsType[syscall.Errno](err); ok {
		why = no
	}
	e := lode.Errorf(lode.Unavailable, "cannot reach the node at %s: %w", c.base, why).
		WithHint("start one with lode dev or lode up, or name another with --url or lode context use")
	e.Err = errors.Join(ErrUnreachable, err)
	return e
}

// readError reads the problem in an answer; anything else that answers with an
// error is not a node.
func readError(resp *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	var e lode.Error
	if strings.Contains(resp.Header.Get("Content-Type"), "problem+json") && json.Unmarshal(b, &e) == nil && e.Kind != "" {
		return &e
	}
	if k := resp.Header.Get("Lode-Error"); k != "" { // an answer to HEAD has no body
		e := &lode.Error{Kind: lode.Kind(k)}
		if e.Kind == lode.Unauthenticated {
			e.Hint = "set LODE_TOKEN, or save a token with lode login"
		}
		return e
	}
	return lode.Errorf(lode.Internal, "%s answered %s without a problem: %.120q", resp.Request.URL.Host, resp.Status, b).
		WithHint("is it a Lode node?")
}

// do exchanges JSON. body and out may be nil.
func (c *Client) do(ctx context.Context, method, path string, query url.Values, body, out any, tag string) error {
	q := request{method: method, path: path, query: query}
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return lode.Errorf(lode.Invalid, "%w", err)
		}
		q.body, q.ctype = bytes.NewReader(b), "application/json"
	}
	if tag != "" {
		q.header = http.Header{"If-Match": {quoted(tag)}}
	}
	resp, err := c.send(ctx, q)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return decode(resp, out)
}

func decode(resp *http.Response, out any) error {
	if out == nil || resp.StatusCode == http.StatusNoContent {
		io.Copy(io.Discard, resp.Body)
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return lode.Errorf(lode.Internal, "the answer of %s cannot be read: %w", resp.Request.URL.Path, err)
	}
	return nil
}

// stream is a body that reports what the node said behind it.
type stream struct {
	resp *http.Response
}

func (s stream) Close() error { return s.resp.Body.Close() }

func (s stream) Read(p []byte) (int, error) {
	n, err := s.resp.Body.Read(p)
	if err == io.EOF {
		if t := s.resp.Trailer.Get(errorTrailer); t != "" {
			var e lode.Error
			if json.Unmarshal([]byte(t), &e) == nil {
				return n, &e
			}
		}
	} else if err != nil {
		err = lode.Errorf(lode.Unavailable, "the answer was cut short: %w", err)
	}
	return n, err
}

// open begins a streamed answer.
func (c *Client) open(ctx context.Context, path string, query url.Values) (Content, error) {
	resp, err := c.send(ctx, request{method: http.MethodGet, path: path, query: query})
	if err != nil {
		return Content{}, err
	}
	v := Content{Status: resp.StatusCode, Type: resp.Header.Get("Content-Type"), Size: resp.ContentLength, Body: stream{resp}}
	if s, err := strconv.Atoi(resp.Header.Get("Lode-Status")); err == nil {
		v.Status = s
	}
	return v, nil
}

// paged fills a query for a page.
func paged(p Page, q url.Values) url.Values {
	if q == nil {
		q = url.Values{}
	}
	if p.Limit > 0 {
		q.Set("limit", strconv.Itoa(p.Limit))
	}
	if p.After != "" {
		q.Set("after", p.After)
	}
	return q
}

// All walks a list to its end: All(func(p) { return c.Apps(ctx, p) }).
func All[T any](get func(Page) (List[T], error)) ([]T, error) {
	var out []T
	for p := (Page{Limit: maxLimit}); ; {
		l, err := get(p)
		if err != nil {
			return out, err
		}
		out = append(out, l.Items...)
		if l.Next == "" {
			return out, nil
		}
		if l.Next == p.After {
			return out, lode.Errorf(lode.Internal, "the list does not move on from %q", l.Next)
		}
		p.After = l.Next
	}
}

func path(format string, args ...string) string {
	esc := make([]any, len(args))
	for i, a := range args {
		esc[i] = url.PathEscape(a)
	}
	return fmt.Sprintf("/v1/"+format, esc...)
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

// quoted is an ETag as a header has it.
func quoted(tag string) string {
	if tag == "*" {
		return tag
	}
	return strconv.Quote(strings.Trim(tag, `"`))
}
