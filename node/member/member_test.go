package member

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"lode"
	"lode/bus"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// seal is a Sealer whose key is in the test.
type seal byte

func (s seal) Seal(b []byte) ([]byte, error) { return append([]byte{byte(s)}, s.mask(b)...), nil }

func (s seal) Open(b []byte) ([]byte, error) {
	if len(b) == 0 || b[0] != byte(s) {
		return nil, lode.Errorf(lode.Damaged, "sealed by another")
	}
	return s.mask(b[1:]), nil
}

func (s seal) mask(b []byte) []byte {
	out := bytes.Clone(b)
	for i := range out {
		out[i] ^= byte(s)
	}
	return out
}

var _ Sealer = seal(0)

// fakeClock is a Clock that a test moves.
type fakeClock struct {
	mu    sync.Mutex
	now   time.Time
	moved chan struct{} // closed at the next move
	naps  int           // sleepers
}

func newClock() *fakeClock {
	return &fakeClock{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), moved: make(chan struct{})}
}

func (c *fakeClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *fakeClock) Sleep(ctx context.Context, d time.Duration) error {
	c.mu.Lock()
	until := c.now.Add(d)
	c.naps++
	defer func() { c.mu.Lock(); c.naps--; c.mu.Unlock() }()
	for c.now.Before(until) {
		moved := c.moved
		c.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-moved:
		}
		c.mu.Lock()
	}
	c.mu.Unlock()
	return nil
}

func (c *fakeClock) add(d time.Duration) {
	c.mu.Lock()
	c.now = c.now.Add(d)
	close(c.moved)
	c.moved = make(chan struct{})
	c.mu.Unlock()
}

// eventually waits for what another goroutine does.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func wantError(t testing.TB, err error, k lode.Kind, parts ...string) *lode.Error {
	t.Helper()
	if lode.KindOf(err) != k {
		t.Fatalf("kind %q, want %q (error: %v)", lode.KindOf(err), k, err)
	}
	e := lode.AsError(err)
	for _, p := range parts {
		if !strings.Contains(e.Error()+" | "+e.Hint, p) {
			t.Fatalf("%q is not in %q | %q", p, e.Error(), e.Hint)
		}
	}
	if e.Hint == "" {
		t.Fatalf("no hint of the next step: %v", e)
	}
	return e
}

// logs keeps what was logged.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logs) has(s string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.b.String(), s)
}

// cluster is one bus that all nodes of a test share.
type cluster struct {
	t     testing.TB
	bus   *bus.Bus
	clock *fakeClock
	seal  seal
}

func newCluster(t testing.TB) *cluster {
	t.Helper()
	b, err := bus.Open(t.Context(), bus.Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return &cluster{t: t, bus: b, clock: newClock(), seal: 0x5a}
}

func (c *cluster) authority() *Authority { return NewAuthority(c.bus, c.seal, c.clock) }

// peer is a node of a test, as far as this package makes one.
type peer struct {
	c       *cluster
	dir     string
	id      *Identity
	members *Members
	joins   *Joins
	ln      *Listener
	logs    *logs
	addr    string
	changed chan struct{}
	alive   func(lode.NodeID) bool
}

func (p *peer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(p.logs, nil)) }

// first starts the first node.
func (c *cluster) first(name lode.NodeID) *peer {
	c.t.Helper()
	dir := c.t.TempDir()
	id, err := Found(c.t.Context(), dir, name, c.authority())
	if err != nil {
		c.t.Fatal(err)
	}
	return c.start(dir, id)
}

// start opens a node's doors and announces it.
func (c *cluster) start(dir string, id *Identity) *peer {
	c.t.Helper()
	p := c.open(dir, id)
	p.members.Follow(c.bus)
	if err := p.members.Announce(c.t.Context(), p.record()); err != nil {
		c.t.Fatal(err)
	}
	eventually(c.t, "a node sees itself", func() bool { r, ok := p.members.Get(id.Node()); return ok && r.State != Joining })
	return p
}

func (p *peer) record() Record {
	return Record{Gateway: "127.0.0.1:1", Peers: p.addr, Bus: "127.0.0.1:2", Version: "0.2.0", CPU: 2}
}

// open opens a node's doors.
func (c *cluster) open(dir string, id *Identity) *peer {
	c.t.Helper()
	p := &peer{c: c, dir: dir, id: id, logs: &logs{}, changed: make(chan struct{}, 1)}
	var err error
	p.members, err = OpenMembers(MembersConfig{Identity: id, Clock: c.clock, Logger: p.logger(),
		Alive: func(n lode.NodeID) bool { return p.alive != nil && p.alive(n) },
		Changed: func() {
			select {
			case p.changed <- struct{}{}:
			default:
			}
		}})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { p.members.Close() })
	p.joins = NewJoins(JoinsConfig{Identity: id, Authority: c.authority(), Members: p.members, Tables: c.bus, Version: "0.2.0", Clock: c.clock, Logger: p.logger(), Tries: 1000,
		Share: func(context.Context) (Shared, error) {
			return Shared{[]byte("secrets"), []byte("code"), []byte("layout")}, nil
		}})
	p.listen(ListenConfig{})
	return p
}

func (p *peer) listen(cfg ListenConfig) {
	p.c.t.Helper()
	echo := func(conn net.Conn, from lode.NodeID) {
		io.WriteString(conn, string(p.id.Node())+" to "+string(from)+"\n")
		io.Copy(conn, conn)
	}
	cfg.Addr, cfg.Identity, cfg.Members, cfg.Handlers, cfg.Logger = "127.0.0.1:0", p.id, p.members, Handlers{Link: echo, Bus: echo, Join: p.joins}, p.logger()
	var err error
	if p.ln, err = Listen(p.c.t.Context(), cfg); err != nil {
		p.c.t.Fatal(err)
	}
	ln := p.ln
	p.c.t.Cleanup(func() { ln.Close() })
	p.addr = ln.Addr().String()
}

func (p *peer) token(uses int, life time.Duration) string {
	p.c.t.Helper()
	s, err := p.joins.CreateToken(p.c.t.Context(), uses, life)
	if err != nil {
		p.c.t.Fatal(err)
	}
	return s
}

// options are those of a joiner that fits.
func (p *peer) options(name, token string) JoinOptions {
	return JoinOptions{Dir: filepath.Join(p.c.t.TempDir(), "identity"), Addr: p.addr, Token: token, Name: name, Clock: p.c.clock,
		Node: Record{Gateway: "127.0.0.1:3", Peers: "127.0.0.1:4", Bus: "127.0.0.1:5", Version: "0.2.0"}}
}

// join makes a new node through p and starts it.
func (p *peer) join(name string) *peer {
	p.c.t.Helper()
	o := p.options(name, p.token(1, time.Hour))
	j, err := Join(p.c.t.Context(), o)
	if err != nil {
		p.c.t.Fatal(err)
	}
	n := p.c.start(o.Dir, j.Identity)
	eventually(p.c.t, "the others see the new node's address", func() bool { r, _ := p.members.Get(j.Node); return r.Peers == n.addr })
	return n
}

// talk dials a node and reads what its handler says.
func (p *peer) talk(alpn string, to lode.NodeID) (string, error) {
	conn, err := p.members.Dialer(alpn)(p.c.t.Context(), to)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	b := make([]byte, 64)
	n, err := conn.Read(b)
	return string(b[:n]), err
}

func TestJoin(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.first("a")
	o := a.options("b", a.token(1, time.Hour))
	kept := false
	o.Keep = func(j *Joined) error {
		if _, err := os.Stat(filepath.Join(o.Dir, fileCert)); !errors.Is(err, os.ErrNotExist) || j.Node != "b" || string(j.Shared.Secrets) != "secrets" {
			t.Errorf("Keep was called with %+v, and node.pem: %v", j, err)
		}
		kept = true
		return nil
	}
	j, err := Join(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if !kept || j.Node != "b" || j.Cluster != a.id.Cluster() || string(j.Shared.Code) != "code" || string(j.Shared.Layout) != "layout" || len(j.Nodes) != 2 {
		t.Fatalf("joined: %+v", j)
	}
	if j.Nodes[1].Name != "b" || j.Nodes[1].State != Joining || j.Nodes[1].CertSerial != j.Identity.Serial() {
		t.Fatalf("the joiner's record: %+v", j.Nodes[1])
	}
	b := c.start(o.Dir, j.Identity)
	eventually(t, "a sees b ready", func() bool {
		r, ok := a.members.Get("b")
		return ok && r.State == Ready && r.Peers == b.addr && len(r.Incarnation) == 32
	})
	for _, alpn := range []string{Link, Bus} {
		if got, err := a.talk(alpn, "b"); err != nil || got != "b to a\n" {
			t.Fatalf("%s: %q, %v", alpn, got, err)
		}
		if got, err := b.talk(alpn, "a"); err != nil || got != "a to b\n" {
			t.Fatalf("%s: %q, %v", alpn, got, err)
		}
	}
}

func TestVerified(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := c.first("a")
	b := a.join("b")
	conn, err := b.members.Dialer(Link)(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if node, alpn, ok := Verified(conn); !ok || node != "a" || alpn != Link {
		t.Fatal(node, alpn, ok)
	}
	if cs := conn.(*tls.Conn).ConnectionState(); cs.Version != tls.VersionTLS13 {
		t.Fatalf("version %x", cs.Version)
	}
	if _, _, ok := Verified(&net.TCPConn{}); ok {
		t.Fatal("a plain connection is verified")
	}
}
