package invoke

import (
	"context"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"lode"
	"lode/engine"
)

func TestPublic(t *testing.T) {
	for _, s := range []string{"1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0", "169.253.255.255",
		"169.255.0.0", "172.15.255.255", "172.32.0.0", "192.0.1.0", "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "223.255.255.255",
		"168.63.129.15", "168.63.129.17", "2606:4700:4700::1111", "2a00:1450:4001::1", "2400::1", "::ffff:8.8.8.8"} {
		if !public(netip.MustParseAddr(s)) {
			t.Errorf("%s is public", s)
		}
	}
	for _, s := range []string{
		"0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "100.127.255.255", "127.0.0.1", "127.255.255.255",
		"169.254.0.1", "169.254.169.254", "169.254.170.2", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.0.1",
		"192.168.255.255", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "168.63.129.16",
		"::", "::1", "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:0:10.0.0.1",
		"64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b::808:808", "64:ff9b:1::1", "100::1", "fc00::1", "fd00:ec2::254", "fd20:ce::254", "fdff::1",
		"fe80::1", "fe80::1%eth0", "febf::1", "fec0::1", "ff02::1", "ff0e::1", "2001::1", "2001:0:7f00:1::", "2001:db8::1", "2002:7f00:1::1", "2002:a00:1::1", "3fff::1",
		"5f00::1", "2a00:1450:4001::5efe:10.0.0.1", "2a00:1450:4001::200:5efe:10.0.0.1", "4000::1"} {
		if public(netip.MustParseAddr(s)) {
			t.Errorf("%s is not public", s)
		}
	}
	if public(netip.Addr{}) {
		t.Error("no address is not public")
	}
}

func TestEgressHost(t *testing.T) {
	list := func(allow ...string) lode.Egress { return lode.Egress{Mode: "list", Allow: allow} }
	for _, c := range []struct {
		e    lode.Egress
		host string
		port uint16
		want verdict
	}{
		{lode.Egress{}, "example.com", 80, ifPublic},
		{lode.Egress{Mode: "public"}, "127.0.0.1", 80, ifPublic},
		{lode.Egress{Mode: "public", Allow: []string{"localhost:5633"}}, "localhost", 5633, anywhere},
		{lode.Egress{Mode: "public", Allow: []string{"localhost:5633"}}, "localhost", 5634, ifPublic},
		{lode.Egress{Mode: "none"}, "example.com", 80, forbidden},
		{lode.Egress{Mode: "none", Allow: []string{"example.com"}}, "example.com", 80, forbidden},
		{lode.Egress{Mode: "nonsense"}, "example.com", 80, forbidden},
		{list(), "example.com", 80, forbidden},
		{list("example.com"), "example.com", 80, anywhere},
		{list("Example.COM."), "eXample.com.", 80, anywhere},
		{list("example.com"), "www.example.com", 80, forbidden},
		{list("example.com"), "example.com.evil.org", 80, forbidden},
		{list("example.com"), "notexample.com", 80, forbidden},
		{list("example.com:443"), "example.com", 443, anywhere},
		{list("example.com:443"), "example.com", 80, forbidden},
		{list("*.example.com"), "a.example.com", 80, ifPublic},
		{list("*.example.com"), "a.b.example.com", 80, ifPublic},
		{list("*.example.com"), "example.com", 80, forbidden},
		{list("*.example.com"), "aexample.com", 80, forbidden},
		{list("*.example.com"), "example.com.evil.org", 80, forbidden},
		{list("*.example.com:8443"), "a.example.com", 8443, ifPublic},
		{list("*.example.com:8443"), "a.example.com", 443, forbidden},
		{list("*.example.com", "a.example.com"), "a.example.com", 80, anywhere},
		{list("10.0.0.5"), "10.0.0.5", 80, anywhere},
		{list("10.0.0.5"), "::ffff:10.0.0.5", 80, anywhere},
		{list("10.0.0.5:90"), "10.0.0.5", 80, forbidden},
		{list("10.0.0.5"), "10.0.0.6", 80, forbidden},
		{list("[::1]:90", "fd00::1"), "::1", 90, anywhere},
		{list("[::1]:90", "fd00::1"), "::1", 91, forbidden},
		{list("[::1]:90", "fd00::1"), "fd00::1", 91, anywhere},
		{list("*", "", "*.", "a:b", "x:0", "x:99999", "a/b", "*.*.com", "http://x"), "x", 80, forbidden},
	} {
		if got := newEgress(c.e).host(c.host, c.port); got != c.want {
			t.Errorf("%+v, %s:%d: %d, want %d", c.e, c.host, c.port, got, c.want)
		}
	}
}

// hosts answers for names, each time with the next of its answers.
type hosts struct {
	mu    sync.Mutex
	names map[string][][]string
	asked int
}

func (h *hosts) LookupNetIP(_ context.Context, _, host string) (out []netip.Addr, _ error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.asked++
	answers := h.names[host]
	if len(answers) == 0 {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	for _, s := range answers[0] {
		out = append(out, netip.MustParseAddr(s))
	}
	if len(answers) > 1 {
		h.names[host] = answers[1:]
	}
	return out, nil
}

func TestDialAddresses(t *testing.T) {
	h := &hosts{names: map[string][][]string{
		"public.test": {{"1.1.1.1", "2606:4700::1"}}, "private.test": {{"10.0.0.1"}}, "mixed.test": {{"10.0.0.1", "1.1.1.1", "::1"}},
		"metadata.test": {{"169.254.169.254"}}, "mapped.test": {{"::ffff:127.0.0.1"}}, "a.wild.test": {{"192.168.1.1"}}, "2130706433": {{"127.0.0.1"}}, "127.1": {{"127.0.0.1"}},
		"localhost": {{"127.0.0.1", "::1"}},
	}}
	public, list := lode.Egress{}, func(allow ...string) lode.Egress { return lode.Egress{Mode: "list", Allow: allow} }
	for _, c := range []struct {
		e    lode.Egress
		host string
		want string // addresses; "" = Denied
	}{
		{public, "public.test", "1.1.1.1 2606:4700::1"}, {public, "private.test", ""}, {public, "mixed.test", "1.1.1.1"}, {public, "metadata.test", ""},
		{public, "mapped.test", ""}, {public, "127.0.0.1", ""}, {public, "::1", ""}, {public, "2130706433", ""}, {public, "127.1", ""}, {public, "localhost", ""}, {public, "8.8.8.8", "8.8.8.8"},
		{public, "fe80::1%lo", ""}, {public, "::ffff:10.0.0.1", ""},
		{list("*.wild.test"), "a.wild.test", ""}, {list("a.wild.test"), "a.wild.test", "192.168.1.1"}, {list("localhost:80"), "localhost", "127.0.0.1 ::1"},
		{list("public.test"), "private.test", ""}, {lode.Egress{Mode: "none"}, "public.test", ""},
	} {
		d := &dialer{policy: newEgress(c.e), resolve: h}
		got, err := d.addresses(context.Background(), c.host, 80)
		var ss []string
		for _, a := range got {
			ss = append(ss, a.String())
		}
		if strings.Join(ss, " ") != c.want || (c.want == "") != (lode.KindOf(err) == lode.Denied) {
			t.Errorf("%+v %s: %v, %v; want %q", c.e, c.host, ss, err, c.want)
		}
	}
}

// fetchWorld is a function that fetches what its body says.
func fetchWorld(t *testing.T, e lode.Egress, h resolver) *Service {
	w := newWorld()
	w.deploy("get", lode.Function{Egress: e}, func(g *guest) error {
		m, err := g.op(engine.OpFetch, lode.Message{Head: []lode.Pair{{Key: ":url", Value: string(g.inv.Body)}, {Key: "x-a", Value: "1"},
			{Key: "connection", Value: "x-hop"}, {Key: "x-hop", Value: "1"}, {Key: "host", Value: "forged"}, {Key: "transfer-encoding", Value: "chunked"}}})
		if err != nil {
			return err
		}
		return g.answer(200, m.Get(":status")+" "+m.Get("x-seen")+" "+string(m.Body))
	})
	s := w.service(t, Config{})
	s.fetch = newFetcher(h)
	return s
}

func origin(t *testing.T) (*httptest.Server, string, string) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/to":
			http.Redirect(w, r, r.URL.Query().Get("u"), http.StatusFound)
		case "/loop":
			http.Redirect(w, r, "/loop", http.StatusFound)
		case "/big":
			io.CopyN(w, zeros{}, engine.MaxMessage+1)
		case "/slow":
			<-r.Context().Done()
		default:
			w.Header().Set("X-Seen", strings.Join([]string{r.Header.Get("X-A"), r.Header.Get("X-Hop"), r.Host, strconv.Itoa(len(r.TransferEncoding)), r.Header.Get("User-Agent")}, ","))
			io.WriteString(w, "hello")
		}
	}))
	t.Cleanup(srv.Close)
	u, _ := url.Parse(srv.URL)
	return srv, u.Hostname(), u.Port()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestFetch(t *testing.T) {
	_, ip, port := origin(t)
	h := &hosts{names: map[string][][]string{"named.test": {{ip}}, "a.wild.test": {{ip}}, "rebind.test": {{"1.1.1.1"}, {ip}}}}
	allow := lode.Egress{Mode: "list", Allow: []string{"named.test:" + port, "*.wild.test"}}
	s := fetchWorld(t, allow, h)
	at := "http://named.test:" + port
	for _, c := range []struct {
		url, body string
		kind      lode.Kind
	}{
		{at + "/x", "200 1,,named.test:" + port + ",0,lode hello", ""},
		{at + "/to?u=" + url.QueryEscape(at+"/x"), "200 1,,named.test:" + port + ",0,lode hello", ""},
		{at + "/loop", "", lode.Unavailable},
		{at + "/big", "", lode.TooLarge},
		// A redirect is checked like the first address.
		{at + "/to?u=" + url.QueryEscape("http://"+ip+":"+port+"/x"), "", lode.Denied},
		{at + "/to?u=" + url.QueryEscape("http://169.254.169.254/latest/meta-data"), "", lode.Denied},
		{at + "/to?u=" + url.QueryEscape("http://a.wild.test:"+port+"/x"), "", lode.Denied},
		{at + "/to?u=" + url.QueryEscape("file:///etc/passwd"), "", lode.Unavailable},
		{at + "/to?u=" + url.QueryEscape("gopher://named.test/"), "", lode.Unavailable},
		{"http://" + ip + ":" + port + "/x", "", lode.Denied},
		{"http://a.wild.test:" + port, "", lode.Denied},
		{"http://unknown.test/", "", lode.Denied},
		{"ftp://named.test/", "", lode.Invalid},
		{"named.test", "", lode.Invalid},
		{"http:///x", "", lode.Invalid},
		{"http://named.test:1/", "", lode.Denied},
	} {
		ans, _, err := call(s, "get", c.url)
		if lode.KindOf(err) != c.kind || c.kind == "" && string(ans.Msg.Body) != c.body {
			t.Errorf("%s: %v, %q; want %q %q", c.url, err, ans.Msg.Body, c.kind, c.body)
		}
	}
}

// A name that turns private between a look and the dial leads nowhere: what is
// dialled is what was looked at, in each connection anew.
func TestFetchRebinding(t *testing.T) {
	_, ip, port := origin(t)
	h := &hosts{names: map[string][][]string{"rebind.test": {{ip}}}}
	s := fetchWorld(t, lode.Egress{}, h)
	for range 3 {
		_, _, err := call(s, "get", "http://rebind.test:"+port+"/x")
		wantKind(t, err, lode.Denied)
	}
	if h.asked != 3 {
		t.Errorf("asked %d times", h.asked)
	}
}

// A connection that one policy opened is not used under another.
func TestFetchPoliciesShareNothing(t *testing.T) {
	_, ip, port := origin(t)
	f := newFetcher(&hosts{names: map[string][][]string{"named.test": {{ip}}}})
	defer f.close()
	get := func(e lode.Egress) error {
		res, err := f.client("ns", e).Get("http://named.test:" + port)
		if err == nil {
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
		}
		return err
	}
	if err := get(lode.Egress{Mode: "list", Allow: []string{"named.test"}}); err != nil {
		t.Fatal(err)
	}
	if err := get(lode.Egress{}); lode.KindOf(err) != lode.Denied {
		t.Errorf("%v", err)
	}
	for i := range maxClients + 10 {
		f.client("ns", lode.Egress{Mode: "list", Allow: []string{strconv.Itoa(i)}})
	}
	if len(f.clients) > maxClients {
		t.Errorf("%d clients", len(f.clients))
	}
}

func TestFetchDeadline(t *testing.T) {
	_, ip, port := origin(t)
	s := fetchWorld(t, lode.Egress{Allow: []string{ip}}, nil)
	_, err := s.Invoke(context.Background(), &lode.Request{Namespace: "default", Function: "get", Body: []byte("http://" + ip + ":" + port + "/slow"),
		Deadline: time.Now().Add(50 * time.Millisecond)}, &lode.Buffered{})
	wantKind(t, err, lode.Deadline)
}

func TestFetchStream(t *testing.T) {
	more := make(chan struct{})
	gone := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "one")
		w.(http.Flusher).Flush()
		<-more
		io.WriteString(w, "two")
		if r.URL.Path == "/open" {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			close(gone)
		}
	}))
	defer srv.Close()
	u, _ := url.Parse(srv.URL)
	w := newWorld()
	w.deploy("get", lode.Function{Egress: lode.Egress{Allow: []string{u.Host}}}, func(g *guest) error {
		m, err := g.op(engine.OpFetch, lode.Message{Head: []lode.Pair{{Key: ":url", Value: srv.URL + string(g.inv.Body)}, {Key: ":stream", Value: "1"}}})
		if err != nil {
			return err
		}
		read := lode.Message{Head: []lode.Pair{{Key: ":stream", Value: m.Get(":stream")}, {Key: ":max", Value: "3"}}}
		var all []string
		for len(all) == 0 || all[len(all)-1] != "" {
			r, err := g.op(engine.OpStreamRead, read)
			if err != nil {
				return err
			}
			if all = append(all, string(r.Body)); len(all) == 1 {
				more <- struct{}{}
			}
			if string(g.inv.Body) == "/open" && len(all) == 2 {
				return g.answer(200, "left open")
			}
		}
		if _, err := g.op(engine.OpStreamClose, read); err != nil {
			return err
		}
		if _, err := g.op(engine.OpStreamRead, read); lode.KindOf(err) != lode.NotFound {
			t.Errorf("read of a closed stream: %v", err)
		}
		return g.answer(200, strings.Join(all, ","))
	})
	s := w.service(t, Config{})
	ans, _, err := call(s, "get", "/")
	if err != nil || string(ans.Msg.Body) != "one,two," {
		t.Errorf("%v %q", err, ans.Msg.Body)
	}
	// A stream that the guest leaves open ends with the invocation.
	if _, _, err := call(s, "get", "/open"); err != nil {
		t.Fatal(err)
	}
	<-gone
}

func TestFetchChecksTLS(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	srv.TLS = &tls.Config{}
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	u, _ := url.Parse(srv.URL)
	s := fetchWorld(t, lode.Egress{Allow: []string{u.Host}}, nil)
	_, _, err := call(s, "get", srv.URL)
	wantKind(t, err, lode.Unavailable)
}

func FuzzEgress(f *testing.F) {
	for _, s := range []string{"example.com", "*.x.com:443", "[::1]:80", "10.0.0.1", "a:b:c", "*", "[", "fe80::1%eth0"} {
		f.Add(s, "example.com", uint16(443))
	}
	f.Fuzz(func(t *testing.T, rule, host string, port uint16) {
		p := newEgress(lode.Egress{Mode: "list", Allow: []string{rule}})
		v := p.host(host, port)
		if v == forbidden {
			return
		}
		r := p.rules[0]
		if r.wildcard && v == anywhere {
			t.Fatalf("%q lets %q go anywhere", rule, host)
		}
		if !r.wildcard && !r.addr.IsValid() && foldHost(host) != r.host || r.port != 0 && r.port != port {
			t.Fatalf("%q takes %q:%d", rule, host, port)
		}
	})
}
