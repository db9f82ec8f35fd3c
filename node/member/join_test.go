package member

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"lode"
	"lode/bus"
)

// TestJoinFailures tells every way in which a join fails apart, each by its
// own sentence.
func TestJoinFailures(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.first("a")
	other := newCluster(t).first("z")
	used := a.token(1, time.Hour)
	if _, err := Join(t.Context(), a.options("b", used)); err != nil {
		t.Fatal(err)
	}
	revoked := a.token(1, time.Hour)
	if err := a.joins.RevokeToken(t.Context(), tokenID(strings.Split(revoked, ".")[2])); err != nil {
		t.Fatal(err)
	}
	good := a.token(2, time.Hour)
	unknown := Token{a.id.CAHash(), strings.Repeat("a", 32)}.String()
	plain := serve(t, func(c net.Conn) { io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n") })
	quiet := serve(t, func(c net.Conn) {})
	foreign := serveTLS(t, "h2")
	ahead, late := newClock(), newClock()
	ahead.add(3 * time.Minute)
	late.add(nodeLife + time.Minute)
	for _, tt := range []struct {
		name  string
		opt   func(*JoinOptions)
		kind  lode.Kind
		parts []string
	}{
		{"wrong cluster", func(o *JoinOptions) { o.Token = other.token(1, time.Hour) }, lode.Denied, []string{"is not of the cluster that the token is for", "was not sent"}},
		{"used", func(o *JoinOptions) { o.Token = used }, lode.Unauthenticated, []string{"was used on 2026-03-01 12:00:00 UTC by node b from 127.0.0.1", "lode token create --join", "lode nodes rm b"}},
		{"revoked", func(o *JoinOptions) { o.Token = revoked }, lode.Unauthenticated, []string{"was revoked on"}},
		{"unknown", func(o *JoinOptions) { o.Token = unknown }, lode.Unauthenticated, []string{"does not know this join token"}},
		{"malformed", func(o *JoinOptions) { o.Token = good[:len(good)-1] }, lode.Invalid, []string{"cut off"}},
		{"token for the API", func(o *JoinOptions) { o.Token = "lt_abc_def" }, lode.Invalid, []string{"for the API"}},
		{"clock ahead", func(o *JoinOptions) { o.Clock = ahead }, lode.Precondition, []string{"clocks differ by 3m0s", "2026-03-01 12:00:00 UTC on node a", "2026-03-01 12:03:00 UTC on the machine", "has not been used"}},
		{"clock far ahead", func(o *JoinOptions) { o.Clock = late }, lode.Precondition, []string{"ended at 2026-05-30", "was not sent"}},
		{"name taken", func(o *JoinOptions) { o.Name = "a" }, lode.Conflict, []string{"has a node a already", "lode nodes rm a"}},
		{"bad name", func(o *JoinOptions) { o.Name = "A b" }, lode.Invalid, []string{"no name for a node"}},
		{"version", func(o *JoinOptions) { o.Node.Version = "0.4.1" }, lode.Precondition, []string{"node a runs lode 0.2.0", "runs 0.4.1"}},
		{"other side on loopback", func(o *JoinOptions) { o.Node.Peers = "10.0.0.2:5634" }, lode.Precondition, []string{"node a listens on 127.0.0.1 only", "restart node a with --bind"}},
		{"folder of this cluster", func(o *JoinOptions) { o.Dir = a.dir }, lode.Conflict, []string{"is node a of that cluster already", "without --join"}},
		{"folder of another cluster", func(o *JoinOptions) { o.Dir = other.dir }, lode.Conflict, []string{"is node z of another cluster", "fresh folder"}},
		{"nothing there", func(o *JoinOptions) { o.Addr = closedPort(t) }, lode.Unavailable, []string{"nothing answers on 127.0.0.1:", "is the node running"}},
		{"bad address", func(o *JoinOptions) { o.Addr = "http://10.0.0.1" }, lode.Invalid, []string{"no address of a node"}},
		{"plain HTTP", func(o *JoinOptions) { o.Addr = plain }, lode.Misdirected, []string{"not a Lode node's peer port", "one above the gateway's port"}},
		{"hangs up", func(o *JoinOptions) { o.Addr = quiet }, lode.Misdirected, []string{"not a Lode node's peer port"}},
		{"other TLS", func(o *JoinOptions) { o.Addr = foreign }, lode.Misdirected, []string{"its version is too different"}},
		{"no peer address", func(o *JoinOptions) { o.Node.Peers = "" }, lode.Invalid, []string{"where it listens"}},
		{"bad label", func(o *JoinOptions) { o.Node.Zone = strings.Repeat("z", 300) }, lode.Invalid, []string{"text of 300 bytes"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := a.options("n", good)
			tt.opt(&o)
			_, err := Join(t.Context(), o)
			if lode.KindOf(err) != tt.kind {
				t.Fatalf("kind %q, want %q: %v", lode.KindOf(err), tt.kind, err)
			}
			e := lode.AsError(err)
			for _, p := range tt.parts {
				if !strings.Contains(e.Detail+" | "+e.Hint, p) {
					t.Errorf("%q is not in %q | %q", p, e.Detail, e.Hint)
				}
			}
		})
	}
	c.clock.add(2 * time.Hour)
	_, err := Join(t.Context(), a.options("n", good))
	wantError(t, err, lode.Unauthenticated, "expired on 2026-03-01 13:00:00 UTC", "lode token create --join")
	if r, ok := a.members.Get("n"); ok {
		t.Fatalf("a refused node has a record: %+v", r)
	}
}

// TestJoinRefusedAddress says what to do where a node without --bind is joined
// from another machine, as far as that can be had on one machine.
func TestJoinRefusedAddress(t *testing.T) {
	err := unreachable(t.Context(), "10.0.0.1:5634", dialRefused(t))
	wantError(t, err, lode.Unavailable, "nothing answers on 10.0.0.1:5634; a node without --bind listens on 127.0.0.1 only", "--bind 10.0.0.1")
	err = unreachable(t.Context(), "n:5634", &net.OpError{Op: "dial", Err: &net.DNSError{Name: "n", Err: "no such host"}})
	wantError(t, err, lode.Unavailable, "the name n cannot be resolved")
}

func dialRefused(t *testing.T) error {
	t.Helper()
	c, err := net.Dial("tcp", closedPort(t))
	if err == nil {
		c.Close()
		t.Fatal("a closed port answers")
	}
	return err
}

func closedPort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// serve accepts connections, reads what comes first, and lets f answer.
func serve(t *testing.T, f func(net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				c.Read(make([]byte, 4096))
				f(c)
			})
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

func serveTLS(t *testing.T, alpn string) string {
	t.Helper()
	c := newCluster(t)
	id, err := Found(t.Context(), t.TempDir(), "x", c.authority())
	if err != nil {
		t.Fatal(err)
	}
	cfg := id.joinTLS()
	cfg.NextProtos = []string{alpn}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.(*tls.Conn).Handshake()
			c.Close()
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

// TestSecretStaysHome joins through a server whose CA is another: it must not
// get one byte inside TLS, whatever it says its name is, and whatever else it
// puts into its chain.
func TestSecretStaysHome(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.first("a")
	evil, err := Found(t.Context(), t.TempDir(), "a", newCluster(t).authority())
	if err != nil {
		t.Fatal(err)
	}
	for name, chain := range map[string][][]byte{
		"own CA":           {evil.now().leaf.Raw, evil.now().ca.Raw},
		"true CA's bytes":  {evil.now().leaf.Raw, a.id.now().ca.Raw},
		"both":             {evil.now().leaf.Raw, evil.now().ca.Raw, a.id.now().ca.Raw},
		"leaf alone":       {evil.now().leaf.Raw},
		"true leaf behind": {evil.now().leaf.Raw, a.id.now().leaf.Raw, a.id.now().ca.Raw},
	} {
		t.Run(name, func(t *testing.T) {
			cert := tls.Certificate{Certificate: chain, PrivateKey: evil.now().key}
			ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{join}, Certificates: []tls.Certificate{cert}})
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			got := make(chan int, 1)
			go func() {
				conn, err := ln.Accept()
				if err != nil {
					got <- -1
					return
				}
				defer conn.Close()
				b, _ := io.ReadAll(conn)
				got <- len(b)
			}()
			o := a.options("b", a.token(1, time.Hour))
			o.Addr = ln.Addr().String()
			_, err = Join(t.Context(), o)
			wantError(t, err, lode.Denied, "is not of the cluster that the token is for")
			if n := <-got; n != 0 {
				t.Fatalf("the server got %d bytes", n)
			}
		})
	}
}

func TestJoinTwoAtOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.first("a")
	t.Run("names", func(t *testing.T) {
		token := a.token(6, time.Hour)
		var mu sync.Mutex
		var wg sync.WaitGroup
		names, want := map[lode.NodeID]bool{}, map[lode.NodeID]bool{}
		base := lode.NodeIDFromHost(hostname(t))
		for i := range 6 {
			want[numbered(base, i+1)] = true
			wg.Go(func() {
				j, err := Join(t.Context(), a.options("", token))
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					t.Error(err)
					return
				}
				names[j.Node] = true
			})
		}
		wg.Wait()
		for n := range want {
			if !names[n] {
				t.Errorf("nobody is %s: %v", n, names)
			}
		}
	})
	t.Run("last use", func(t *testing.T) {
		token := a.token(1, time.Hour)
		errs := make(chan error, 4)
		for _, name := range []string{"p", "q", "r", "s"} {
			o := a.options(name, token)
			go func() {
				_, err := Join(t.Context(), o)
				errs <- err
			}()
		}
		joined := 0
		for range 4 {
			if err := <-errs; err == nil {
				joined++
			} else {
				wantError(t, err, lode.Unauthenticated, "was used on")
			}
		}
		if joined != 1 {
			t.Fatalf("%d joined by one use", joined)
		}
		tab, err := c.bus.Table(t.Context(), tableNodes)
		if err != nil {
			t.Fatal(err)
		}
		left := 0
		for _, name := range []string{"p", "q", "r", "s"} {
			if _, ok, err := tab.Get(t.Context(), name); err != nil {
				t.Fatal(err)
			} else if ok {
				left++
			}
		}
		if left != 1 {
			t.Fatalf("%d records of 1 node", left)
		}
	})
	t.Run("one name asked for", func(t *testing.T) {
		token := a.token(2, time.Hour)
		errs := make(chan error, 2)
		for range 2 {
			o := a.options("only", token)
			go func() {
				_, err := Join(t.Context(), o)
				errs <- err
			}()
		}
		e1, e2 := <-errs, <-errs
		if e1 == nil {
			e1, e2 = e2, e1
		}
		if e2 != nil {
			t.Fatal(e2)
		}
		wantError(t, e1, lode.Conflict, "has a node only already", "has not been used")
	})
}

func hostname(t *testing.T) string {
	t.Helper()
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	return host
}

// TestJoinAgain loses the answer of a join at each step of the joiner: from
// the same folder the same token and the same name do, also by a fresh token.
func TestJoinAgain(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.first("a")
	for _, explicit := range []string{"", "b"} {
		o := a.options(explicit, a.token(1, time.Hour))
		lost := lode.Errorf(lode.Full, "the disk is full")
		o.Keep = func(*Joined) error { return lost }
		if _, err := Join(t.Context(), o); err != lost {
			t.Fatalf("error %v", err)
		}
		if _, ok, err := Load(o.Dir, c.clock); ok || err != nil {
			t.Fatalf("an identity that was not kept: %v, %v", ok, err)
		}
		o.Keep = nil
		j, err := Join(t.Context(), o)
		if err != nil {
			t.Fatalf("the same token from the same folder: %v", err)
		}
		_, err = Join(t.Context(), a.options("thief", o.Token))
		wantError(t, err, lode.Unauthenticated, "was used on", "by node "+string(j.Node))
	}
	// The joiner dies just before it writes node.pem.
	before := a.options("", a.token(1, time.Hour))
	j, err := Join(t.Context(), before)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(before.Dir, fileCert)); err != nil {
		t.Fatal(err)
	}
	if again, err := Join(t.Context(), before); err != nil || again.Node != j.Node {
		t.Fatal(again, err)
	}
	// The answer is lost on the way, and the token has expired meanwhile.
	o := a.options("c", a.token(1, time.Hour))
	o.Keep = func(*Joined) error { return context.Canceled }
	Join(t.Context(), o)
	c.clock.add(2 * time.Hour)
	o.Keep = nil
	_, err = Join(t.Context(), o)
	wantError(t, err, lode.Unauthenticated, "expired")
	o.Token = a.token(1, time.Hour)
	if j, err := Join(t.Context(), o); err != nil || j.Node != "c" {
		t.Fatal(j, err)
	}
}

// TestJoinNameOfTheMissing takes the name of a node that never came up, after
// ten minutes and not before.
func TestJoinNameOfTheMissing(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.first("a")
	gone := a.options("b", a.token(1, time.Hour))
	first, err := Join(t.Context(), gone)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Join(t.Context(), a.options("b", a.token(1, time.Hour)))
	wantError(t, err, lode.Conflict, "has a node b already")
	c.clock.add(joiningFor)
	o := a.options("b", a.token(1, time.Hour))
	j, err := Join(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	b := c.start(o.Dir, j.Identity)
	// The one that was away comes back: its name is another's now.
	old := c.open(gone.Dir, first.Identity)
	old.members.Follow(c.bus)
	wantError(t, old.members.Announce(t.Context(), old.record()), lode.Denied, "the name b belongs to another node now")
	_, err = old.talk(Link, "a")
	wantError(t, err, lode.Denied, "the name b belongs to another node now")
	if got, err := b.talk(Link, "a"); err != nil || got != "a to b\n" {
		t.Fatal(got, err)
	}
	c.clock.add(24 * time.Hour)
	_, err = Join(t.Context(), a.options("b", a.token(1, time.Hour)))
	wantError(t, err, lode.Conflict, "has a node b already")
}

func TestTokens(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.first("a")
	ctx := t.Context()
	for _, bad := range []struct {
		uses int
		life time.Duration
	}{{-1, 0}, {101, 0}, {1, -time.Second}, {1, 31 * 24 * time.Hour}} {
		if _, err := a.joins.CreateToken(ctx, bad.uses, bad.life); lode.KindOf(err) != lode.Invalid {
			t.Errorf("%v: %v", bad, err)
		}
	}
	text := a.token(0, 0)
	tok, err := ParseToken(" " + text + "\n")
	if err != nil || tok.String() != text || tok.CAHash != a.id.CAHash() {
		t.Fatal(tok, err)
	}
	list, err := a.joins.ListTokens(ctx)
	if err != nil || len(list) != 1 || list[0].Uses != 1 || list[0].Expires.Sub(list[0].Created) != time.Hour || list[0].ID != tokenID(tok.Secret) {
		t.Fatal(list, err)
	}
	tab, err := c.bus.Table(ctx, tableCluster)
	if err != nil {
		t.Fatal(err)
	}
	if e, ok, err := tab.Get(ctx, prefixJoin+list[0].ID); err != nil || !ok || strings.Contains(string(e.Value), tok.Secret) {
		t.Fatalf("the record of a token: %s, %v, %v", e.Value, ok, err)
	}
	if n := list[0].Left(c.clock.Now()); n != 1 {
		t.Fatalf("%d joins left", n)
	}
	if err := a.joins.RevokeToken(ctx, "nothing"); lode.KindOf(err) != lode.NotFound {
		t.Fatal(err)
	}
	// Used and expired can be told apart for a day; then nobody knows it.
	if _, err := Join(ctx, a.options("b", text)); err != nil {
		t.Fatal(err)
	}
	if list, err := a.joins.ListTokens(ctx); err != nil || len(list) != 1 || list[0].Left(c.clock.Now()) != 0 || list[0].Used[0].Node != "b" {
		t.Fatal(list, err)
	}
	c.clock.add(23 * time.Hour)
	_, err = Join(ctx, a.options("d", text))
	wantError(t, err, lode.Unauthenticated, "was used on")
	c.clock.add(2 * time.Hour)
	if list, err := a.joins.ListTokens(ctx); err != nil || len(list) != 0 {
		t.Fatal(list, err)
	}
	_, err = Join(ctx, a.options("d", text))
	wantError(t, err, lode.Unauthenticated, "does not know this join token")
}

// TestJoinTooOften holds the bound of one address, and gives way with time.
func TestJoinTooOften(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.first("a")
	a.joins.rate = newRate(3, 2*time.Second)
	bad := Token{a.id.CAHash(), strings.Repeat("b", 32)}.String()
	for range 3 {
		_, err := Join(t.Context(), a.options("n", bad))
		wantError(t, err, lode.Unauthenticated, "does not know")
	}
	good := a.token(1, time.Hour)
	_, err := Join(t.Context(), a.options("n", good))
	if e := wantError(t, err, lode.Overloaded, "too many requests to join from 127.0.0.1"); e.RetryAfter <= 0 {
		t.Fatal("no time to wait")
	}
	c.clock.add(2 * time.Second)
	if _, err := Join(t.Context(), a.options("n", good)); err != nil {
		t.Fatal(err)
	}
}

func TestRate(t *testing.T) {
	now := time.Unix(1000, 0)
	r := newRate(2, time.Second)
	step := func(addr string, after time.Duration, ok bool) {
		t.Helper()
		now = now.Add(after)
		if got := r.take(addr, now) == 0; got != ok {
			t.Fatalf("%s at %v: %v", addr, now.Sub(time.Unix(1000, 0)), got)
		}
	}
	step("a", 0, true)
	step("a", 0, true)
	step("a", 0, false)
	step("b", 0, true)
	step("a", time.Second, true)
	step("a", 0, false)
	step("a", time.Hour, true)
	step("a", 0, true)
	step("a", 0, false)
	step("a", -2*time.Hour, true)
	for i := range maxRated {
		r.take(string(rune(i))+"x", now)
	}
	if len(r.since) > maxRated {
		t.Fatal(len(r.since))
	}
	step("new", 0, false)
	step("new", time.Hour, true)
}

// TestJoinWithoutBus says so, and uses nothing up.
func TestJoinWithoutBus(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.first("a")
	token := a.token(1, time.Hour)
	a.joins.cfg.Tables = noBus{}
	_, err := Join(t.Context(), a.options("b", token))
	wantError(t, err, lode.Unavailable, "no quorum")
	a.joins.cfg.Tables = c.bus
	if _, err := Join(t.Context(), a.options("b", token)); err != nil {
		t.Fatal(err)
	}
}

// TestJoinServerFails loses the bus at each step of the server: the same
// command again joins, and leaves one node and one use.
func TestJoinServerFails(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.first("a")
	failures := 0
	for step := 1; ; step++ {
		o := a.options("", a.token(1, time.Hour))
		o.Name = string(numbered("n", step))
		a.joins.cfg.Tables = &failing{Tables: c.bus, at: step}
		_, err := Join(t.Context(), o)
		a.joins.cfg.Tables = c.bus
		if err == nil {
			break
		}
		failures++
		wantError(t, err, lode.Unavailable, "no quorum")
		j, err := Join(t.Context(), o)
		if err != nil || string(j.Node) != o.Name {
			t.Fatalf("step %d: %v, %v", step, j, err)
		}
	}
	if failures < 3 {
		t.Fatalf("%d steps", failures)
	}
	list, err := a.joins.ListTokens(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, tok := range list {
		if len(tok.Used) != 1 {
			t.Errorf("%d uses of %s", len(tok.Used), tok.ID)
		}
	}
	if r, _, _, err := a.members.fetch(t.Context(), "n-2"); err != nil || r.State != Joining {
		t.Fatal(r, err)
	}
}

// failing is a bus that is out at one call.
type failing struct {
	Tables
	at, calls int
}

func (f *failing) Table(ctx context.Context, name string) (*bus.Table, error) {
	if f.calls++; f.calls == f.at {
		return noBus{}.Table(ctx, name)
	}
	return f.Tables.Table(ctx, name)
}

type noBus struct{}

func (noBus) Table(context.Context, string) (*bus.Table, error) {
	return nil, lode.Errorf(lode.Unavailable, "the bus has no quorum").WithHint("start the other nodes")
}

func TestPeerAddr(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.1": "10.0.0.1:5634", "10.0.0.1:7000": "10.0.0.1:7000", "::1": "[::1]:5634", "[::1]": "[::1]:5634", "[::1]:7": "[::1]:7",
		"node-a": "node-a:5634", " a.b.c:1 ": "a.b.c:1", "": "", "a:b": "", "a:0": "", "a:70000": "", "http://a": "", "u@h": "", ":5634": "",
	} {
		got, err := peerAddr(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", in, got, err)
		}
		if err != nil {
			wantError(t, err, lode.Invalid)
		}
	}
}

func TestFillHost(t *testing.T) {
	for in, want := range map[string]string{"0.0.0.0:1": "10.1.1.1:1", "[::]:1": "10.1.1.1:1", ":1": "10.1.1.1:1", "10.2.2.2:1": "10.2.2.2:1", "h:1": "h:1", "": ""} {
		if got := fillHost(in, "10.1.1.1"); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}

// TestAddressesFit refuses joins after which some nodes could not reach others.
func TestAddressesFit(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.first("a")
	for _, tt := range []struct {
		self, other, joiner string
		kind                lode.Kind
		say                 string
	}{
		{"127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", "", ""},
		{"10.0.0.1:1", "10.0.0.2:2", "10.0.0.3:3", "", ""},
		{"10.0.0.1:1", "10.0.0.2:2", "[::1]:3", lode.Precondition, "the node that wants to join listens on ::1 only, where node a at 10.0.0.1 cannot reach it"},
		{"127.0.0.1:1", "127.0.0.1:2", "10.0.0.3:3", lode.Precondition, "node a listens on 127.0.0.1 only, which other machines cannot reach"},
		{"localhost:1", "127.0.0.1:2", "n:3", lode.Precondition, "node a listens on localhost only"},
	} {
		m := &Members{cfg: MembersConfig{Identity: a.id}, nodes: map[lode.NodeID]Record{"a": {Name: "a", Peers: tt.self, State: Ready}, "b": {Name: "b", Peers: tt.other}}}
		err := NewJoins(JoinsConfig{Identity: a.id, Members: m}).addressesFit(&Record{Name: "n", Peers: tt.joiner})
		if lode.KindOf(err) != tt.kind {
			t.Errorf("%+v: %v", tt, err)
		} else if err != nil {
			wantError(t, err, tt.kind, tt.say, "--bind ADDR", "has not been used")
		}
	}
	m := &Members{cfg: MembersConfig{Identity: a.id}, nodes: map[lode.NodeID]Record{"a": {Name: "a", State: Joining}}}
	err := NewJoins(JoinsConfig{Identity: a.id, Members: m}).addressesFit(&Record{Name: "n"})
	wantError(t, err, lode.Unavailable, "node a is only starting")
}

func TestVersionsFit(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		ok   bool
	}{{"0.1.0", "0.1.9", true}, {"0.1.0", "0.2.0", true}, {"0.3.0", "0.1.0", false}, {"1.0.0", "0.9.0", false}, {"dev", "0.1.0", true}, {"", "9.9.9", true}, {"v1.2.3", "1.3.0-rc1", true}} {
		if err := versionsFit(tt.a, tt.b, "a"); (err == nil) != tt.ok {
			t.Errorf("%s, %s: %v", tt.a, tt.b, err)
		}
	}
}

func TestNumbered(t *testing.T) {
	long := lode.NodeID(strings.Repeat("a", 60) + "-bc")
	for n, want := range map[int]lode.NodeID{1: long, 2: lode.NodeID(strings.Repeat("a", 60) + "-2"), 100: lode.NodeID(strings.Repeat("a", 59) + "-100")} {
		got := numbered(long, n)
		if _, err := lode.ParseNodeID(string(got)); got != want || err != nil {
			t.Errorf("%d: %s, %v", n, got, err)
		}
	}
}
