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
	"sync/atomic"
	"syscall"
	"time"

	"lode"
)

// Client speaks to one node, or to a cluster through whichever of several nodes
// answers. Its methods may be called from many goroutines; each takes the
// context of one request. Every error is a *lode.Error: the node's own, or
// Unavailable around ErrUnreachable.
//
// With several nodes a request that could not be sent goes to the next one; a
// read (GET, HEAD) or a call with an Idempotency-Key does so too when the
// connection broke, and a read when the node was not available. Nothing else
// is sent twice. The node that answered is asked first from then on.
type Client struct {
	nodes *nodes
	token string
	ns    lode.Namespace
	local bool
}

// nodes is where a client can go; it is shared by all that In made.
type nodes struct {
	list []endpoint
	at   atomic.Int32 // index of the one that answered last
}

// endpoint is one node.
type endpoint struct {
	base string // scheme and host, no slash at the end
	http *http.Client
}

// Config says where a node is. The zero value is the default node without a
// token.
type Config struct {
	// URL of the node, or unix:///path/of/lode.sock. Several nodes of one
	// cluster are separated by commas. "": DefaultURL.
	URL string
	// Token goes with every request; a unix socket needs none.
	Token string
	// Namespace of every request; "": the token's, else default.
	Namespace lode.Namespace
	// Transport replaces the HTTP transport.
	Transport http.RoundTripper
	// Local asks each node for what it knows by itself: for nodes among
	// themselves; see WithPeer.
	Local bool
}

// DefaultURL is where lode up listens when nothing else is said.
const DefaultURL = "http://127.0.0.1:5633"

// dialWait bounds how long one of several nodes may take to accept a
// connection before the next is tried.
const dialWait = 3 * time.Second

// ErrUnreachable is inside the error of a request that found no node.
var ErrUnreachable = errors.New("cannot reach the node")

// New makes a client; it opens no connection.
func New(c Config) (*Client, error) {
	out := &Client{token: c.Token, ns: c.Namespace, local: c.Local, nodes: &nodes{}}
	for raw := range strings.SplitSeq(c.URL, ",") {
		raw = strings.TrimSpace(raw)
		if raw == "" && c.URL != "" {
			continue // a comma too many
		}
		e, err := newEndpoint(raw, c.Transport, strings.Contains(c.URL, ","))
		if err != nil {
			return nil, err
		}
		out.nodes.list = append(out.nodes.list, e)
	}
	if len(out.nodes.list) == 0 {
		return nil, lode.Errorf(lode.Invalid, "%q names no node", c.URL).WithHint("want http://HOST:PORT[,http://HOST:PORT...]")
	}
	return out, nil
}

func newEndpoint(raw string, over http.RoundTripper, several bool) (endpoint, error) {
	given := raw
	if raw == "" {
		raw = DefaultURL
	}
	if !strings.Contains(raw, "://") {
		raw = "http://" + raw
	}
	u, err := url.Parse(raw)
	if err != nil {
		return endpoint{}, lode.Errorf(lode.Invalid, "%q is not a URL: %w", given, err).WithHint("want http://HOST:PORT, https://HOST or unix:///PATH")
	}
	e := endpoint{http: &http.Client{Transport: over, CheckRedirect: keepRedirect}}
	dialer := &net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}
	if several {
		dialer.Timeout = dialWait
	}
	dial := dialer.DialContext
	switch u.Scheme {
	case "http", "https":
		if u.Host == "" {
			return endpoint{}, lode.Errorf(lode.Invalid, "%q names no host", given)
		}
		e.base = u.Scheme + "://" + u.Host
	case "unix":
		e.base = "http://localhost"
		dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", u.Path)
		}
	default:
		return endpoint{}, lode.Errorf(lode.Invalid, "%q has the scheme %s", given, u.Scheme).WithHint("want http://HOST:PORT, https://HOST or unix:///PATH")
	}
	if over == nil {
		e.http.Transport = lively{next: transport(dial, u.Scheme == "unix")}
	}
	return e, nil
}

// keepRedirect hands redirects of functions to the caller.
func keepRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

func transport(dial func(context.Context, string, string) (net.Conn, error), direct bool) *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost = 64
	t.DisableCompression = true // bodies are counted and compared
	t.DialContext = dial
	if direct {
		t.Proxy = nil
	}
	return t
}

// Close drops idle connections.
func (c *Client) Close() {
	for _, e := range c.nodes.list {
		e.http.CloseIdleConnections()
	}
}

// URL is the base of the doors of the node that answered last.
func (c *Client) URL() string { return c.nodes.list[c.nodes.at.Load()].base }

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
	req, err := c.request(ctx, q)
	if err != nil {
		return nil, err
	}
	list, at := c.nodes.list, int(c.nodes.at.Load())
	for i := range list {
		n := (at + i) % len(list)
		resp, again, err := sendTo(req, list[n], q.raw)
		if !again || i+1 == len(list) {
			if !again {
				c.nodes.at.Store(int32(n))
			}
			return resp, err
		}
		if req = anew(req); req == nil {
			return nil, err
		}
	}
	return nil, lode.Errorf(lode.Internal, "a client without a node") // New makes none
}

// request is the HTTP request for q, without the node.
func (c *Client) request(ctx context.Context, q request) (*http.Request, error) {
	u := q.path
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
	return req, nil
}

// anew is req once more; nil if its body can be read only once.
func anew(req *http.Request) *http.Request {
	out := req.Clone(req.Context())
	if req.Body == nil || req.Body == http.NoBody {
		return out
	}
	if req.GetBody == nil {
		return nil
	}
	body, err := req.GetBody()
	if err != nil {
		return nil
	}
	out.Body = body
	return out
}

// sendTo sends req to one node. again: another one may be asked instead.
func sendTo(req *http.Request, e endpoint, raw bool) (resp *http.Response, again bool, err error) {
	u, err := url.Parse(e.base + req.URL.RequestURI())
	if err != nil {
		return nil, false, lode.Errorf(lode.Invalid, "%w", err)
	}
	req.URL, req.Host = u, u.Host
	read := req.Method == http.MethodGet || req.Method == http.MethodHead
	resp, err = e.http.Do(req)
	if err != nil {
		ctx := req.Context()
		again := ctx.Err() == nil && (read || req.Header.Get("Idempotency-Key") != "" || notSent(err))
		return nil, again, unreachable(ctx, e.base, err)
	}
	if resp.StatusCode >= 400 && (!raw || resp.Header.Get("Lode-Error") != "") {
		defer resp.Body.Close()
		return nil, read && resp.StatusCode == http.StatusServiceUnavailable, readError(resp)
	}
	return resp, false, nil
}

// notSent reports whether no connection was made: nothing of the request can
// have arrived.
func notSent(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
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
	if c.local {
		h.Set(localHeader, "1")
	}
	h.Set("Te", "trailers")
}

// unreachable classes a failed exchange.
func unreachable(ctx context.Context, base string, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		if errors.Is(cause, context.DeadlineExceeded) {
			return lode.Errorf(lode.Deadline, "no answer from %s in time", base)
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
	e := lode.Errorf(lode.Unavailable, "cannot reach the node at %s: %w", base, why).
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
		esc[i] = segment(a)
	}
	return fmt.Sprintf("/v1/"+format, esc...)
}

// segment is s as one element of a path, whatever is in it.
func segment(s string) string {
	if s == "." || s == ".." { // would be taken for steps
		return strings.ReplaceAll(s, ".", "%2E")
	}
	return url.PathEscape(s)
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

// quoted is an ETag as a header has it.
func quoted(tag string) string {
	if tag == "*" {
		return tag
	}
	return strconv.Quote(strings.Trim(tag, `"`))
}
