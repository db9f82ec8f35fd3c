package invoke

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"lode"
	"lode/engine"
)

const (
	maxRedirects  = 10
	maxClients    = 256
	maxAnswerHead = 256 << 10
	eachDial      = 5 * time.Second // for one of several addresses
)

// resolver is net.Resolver's half that is used.
type resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// fetcher holds one HTTP client for each namespace and egress policy, so that
// a connection which one policy allowed is never used under another.
type fetcher struct {
	resolve resolver
	mu      sync.Mutex
	clients map[string]*http.Client
}

func newFetcher(r resolver) *fetcher {
	if r == nil {
		r = net.DefaultResolver
	}
	return &fetcher{resolve: r, clients: make(map[string]*http.Client)}
}

func (f *fetcher) client(ns lode.Namespace, e lode.Egress) *http.Client {
	key := string(ns) + "\n" + e.Mode + "\n" + strings.Join(e.Allow, "\n")
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.clients[key]
	if c != nil {
		return c
	}
	if len(f.clients) >= maxClients {
		for k, old := range f.clients { // any one: the next use makes it again
			old.CloseIdleConnections()
			delete(f.clients, k)
			break
		}
	}
	c = f.newClient(newEgress(e))
	f.clients[key] = c
	return c
}

func (f *fetcher) newClient(p *egress) *http.Client {
	d := &dialer{policy: p, resolve: f.resolve}
	return &http.Client{
		Transport: &http.Transport{
			Proxy:                  nil, // a proxy would dial for us, unchecked
			DialContext:            d.dial,
			ForceAttemptHTTP2:      true,
			DisableCompression:     true, // the guest sees what was sent
			MaxIdleConns:           256,
			MaxIdleConnsPerHost:    16,
			IdleConnTimeout:        30 * time.Second,
			TLSHandshakeTimeout:    15 * time.Second,
			MaxResponseHeaderBytes: maxAnswerHead,
		},
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if redirect, ok := req.Context().Value(manualRedirect{}).(bool); ok && redirect {
				return http.ErrUseLastResponse
			}
			if len(via) >= maxRedirects {
				return lode.Errorf(lode.Unavailable, "%s redirected %d times", via[0].URL.Host, maxRedirects)
			}
			return nil
		},
	}
}

func (f *fetcher) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.clients {
		c.CloseIdleConnections()
	}
	clear(f.clients)
}

type manualRedirect struct{}

// dialer opens connections that its policy allows. It resolves the host
// itself and dials the addresses that it has checked, so that a second answer
// of DNS cannot lead elsewhere. Redirects come through here too.
type dialer struct {
	policy  *egress
	resolve resolver
	net     net.Dialer
}

func (d *dialer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, lode.Errorf(lode.Invalid, "fetch %s: %w", address, err)
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil || port == 0 {
		return nil, lode.Errorf(lode.Invalid, "fetch %s: %q is not a port", address, service)
	}
	addrs, err := d.addresses(ctx, host, uint16(port))
	if err != nil {
		return nil, err
	}
	for i, a := range addrs {
		one, cancel := ctx, context.CancelFunc(func() {})
		if i < len(addrs)-1 {
			one, cancel = context.WithTimeout(ctx, eachDial)
		}
		var c net.Conn
		c, err = d.net.DialContext(one, "tcp", netip.AddrPortFrom(a, uint16(port)).String())
		cancel()
		if err == nil {
			return c, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, err
}

// addresses are those of host that may be dialled; at least one, or an error.
func (d *dialer) addresses(ctx context.Context, host string, port uint16) ([]netip.Addr, error) {
	v := d.policy.host(host, port)
	if v == forbidden {
		return nil, refused(host, port, "its egress does not name it")
	}
	var all []netip.Addr
	if a, err := netip.ParseAddr(host); err == nil {
		all = []netip.Addr{a}
	} else if all, err = d.resolve.LookupNetIP(ctx, "ip", host); err != nil {
		return nil, err
	}
	var may []netip.Addr
	for _, a := range all {
		if a = a.Unmap(); v == anywhere || public(a) {
			may = append(may, a)
		}
	}
	if len(may) == 0 {
		return nil, refused(host, port, "it has no public address")
	}
	return may, nil
}

func refused(host string, port uint16, why string) error {
	return lode.Errorf(lode.Denied, "fetch of %s: %s", net.JoinHostPort(host, strconv.Itoa(int(port))), why).
		WithHint("name %q in the function's egress to allow it", host)
}

// hop are the fields that belong to one connection, and those that only the
// client itself may set.
var hop = map[string]bool{"connection": true, "keep-alive": true, "proxy-authenticate": true, "proxy-authorization": true, "proxy-connection": true,
	"te": true, "trailer": true, "transfer-encoding": true, "upgrade": true, "host": true, "content-length": true}

// outgoing makes the HTTP request of an operation.
func outgoing(ctx context.Context, m *lode.Message, traceparent string) (*http.Request, error) {
	u, err := url.Parse(m.Get(":url"))
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, lode.Errorf(lode.Invalid, "fetch: %.200q is not an absolute http or https URL", m.Get(":url"))
	}
	ctx = context.WithValue(ctx, manualRedirect{}, m.Get(":redirect") == "manual")
	req, err := http.NewRequestWithContext(ctx, orWord(m.Get(":method"), "GET"), u.String(), bytes.NewReader(m.Body))
	if err != nil {
		return nil, lode.Errorf(lode.Invalid, "fetch: %w", err)
	}
	if len(m.Body) == 0 {
		req.Body, req.GetBody = http.NoBody, nil
	}
	named := make(map[string]bool) // fields that Connection makes hop-by-hop
	for _, p := range m.Head {
		if strings.EqualFold(p.Key, "connection") {
			for f := range strings.SplitSeq(p.Value, ",") {
				named[strings.ToLower(textproto.TrimString(f))] = true
			}
		}
	}
	for _, p := range m.Head {
		if k := strings.ToLower(p.Key); !strings.HasPrefix(k, ":") && !hop[k] && !named[k] {
			req.Header.Add(k, p.Value)
		}
	}
	if req.Header.Get("traceparent") == "" {
		req.Header.Set("traceparent", traceparent)
	}
	if req.Header.Get("user-agent") == "" {
		req.Header.Set("user-agent", "lode")
	}
	return req, nil
}

// incoming is the head of the answer as the guest sees it.
func incoming(res *http.Response) []lode.Pair {
	head := append(make([]lode.Pair, 0, len(res.Header)+2), lode.Pair{Key: ":status", Value: strconv.Itoa(res.StatusCode)})
	for k, vs := range res.Header {
		if k = strings.ToLower(k); hop[k] && k != "content-length" {
			continue
		}
		for _, v := range vs {
			if len(head) < engine.MaxPairs-2 && len(v) <= engine.MaxField {
				head = append(head, lode.Pair{Key: k, Value: v})
			}
		}
	}
	return head
}

// fetchError turns an error of net/http into one that a guest understands.
func fetchError(ctx context.Context, err error) error {
	if e, ok := errors.AsType[*lode.Error](err); ok {
		return e
	}
	if ctx.Err() != nil {
		return ended(ctx, "fetching")
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	return lode.Errorf(lode.Unavailable, "fetch: %w", err)
}

// stream is a body that a guest reads piece by piece.
type stream struct {
	mu     sync.Mutex // one read at a time
	body   io.ReadCloser
	cancel context.CancelFunc
}
