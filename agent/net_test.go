package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	mrand "math/rand/v2"
	stdnet "net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"lode"
	"lode/bus"
	"lode/link"
)

// net is what is between the nodes of a world: a bus of three members with
// mutual TLS, and links.
type net struct {
	t     testing.TB
	ca    *x509.Certificate
	key   *ecdsa.PrivateKey
	certs map[lode.NodeID]tls.Certificate
	route map[lode.NodeID]string

	mu    sync.Mutex
	quiet map[lode.NodeID]bool
	buses map[lode.NodeID]*bus.Bus
	links map[lode.NodeID]*link.Link
}

func (x *net) silent(n lode.NodeID) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.quiet[n]
}

// silence has nobody hear of a node, or again: heartbeats, not the links.
func (x *net) silence(n lode.NodeID, off bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.quiet[n] = off
}

var three = []lode.NodeID{"a", "b", "c"}

// trio is a world of three nodes, with the kind k.
func trio(t testing.TB, set ...func(*Config)) (*world, []*node) {
	w := newWorld(t, set...)
	w.kind("k", func(*lode.Function) {})
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key))(t)
	x := &net{t: t, ca: must(x509.ParseCertificate(der))(t), key: key, certs: map[lode.NodeID]tls.Certificate{}, route: map[lode.NodeID]string{},
		quiet: map[lode.NodeID]bool{}, buses: map[lode.NodeID]*bus.Bus{}, links: map[lode.NodeID]*link.Link{}}
	w.net = x
	var members []bus.Member
	for i, n := range three {
		x.certify(n, int64(i+2))
		members = append(members, bus.Member{Node: n, Route: x.route[n]})
		w.nodes[n] = &node{w: w, id: n}
	}
	w.nodes["a"].openBus(nil)
	l := x.buses["a"].Layout()
	w.nodes["b"].openBus(&l)
	w.nodes["c"].openBus(&l)
	if err := x.buses["a"].Move(t.Context(), members); err != nil {
		t.Fatal(err)
	}
	var out []*node
	for _, n := range three {
		w.nodes[n].openLink()
		w.nodes[n].up()
		out = append(out, w.nodes[n])
	}
	return w, out
}

// certify gives a node a certificate, and a port below those that the system
// gives to connections.
func (x *net) certify(n lode.NodeID, serial int64) {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(x.t)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: string(n)}, NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{string(n)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, x.ca, &key.PublicKey, x.key))(x.t)
	x.certs[n] = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	for x.route[n] == "" {
		addr := fmt.Sprintf("127.0.0.1:%d", 12000+mrand.IntN(9000))
		if ln, err := stdnet.Listen("tcp", addr); err == nil {
			ln.Close()
			x.route[n] = addr
		}
	}
}

func (x *net) tls(n lode.NodeID) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(x.ca)
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{x.certs[n]}, RootCAs: pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
}

func (x *net) busOf(n lode.NodeID) (*bus.Bus, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if b := x.buses[n]; b != nil {
		return b, nil
	}
	return nil, lode.Errorf(lode.Unavailable, "%s is down", n)
}

// pipe is a connection within this process.
func pipe() (near, far stdnet.Conn, err error) {
	ln, err := stdnet.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer ln.Close()
	if near, err = stdnet.Dial("tcp", ln.Addr().String()); err == nil {
		far, err = ln.Accept()
	}
	return near, far, err
}

func (n *node) openBus(join *bus.Layout) {
	x := n.w.net
	b, err := bus.Open(context.Background(), bus.Config{Dir: filepath.Join(n.w.dir, "bus-"+string(n.id)), Node: n.id, Logger: n.w.log.With("bus", n.id), Cluster: &bus.ClusterConfig{
		Listen: x.route[n.id],
		Server: func() *tls.Config { return x.tls(n.id) },
		Client: func() *tls.Config { return x.tls(n.id) },
		Dial: func(_ context.Context, to lode.NodeID) (stdnet.Conn, error) {
			b, err := x.busOf(to)
			if err != nil {
				return nil, err
			}
			near, far, err := pipe()
			if err == nil {
				go b.ServeClient(far)
			}
			return near, err
		},
		Ask: func(ctx context.Context, to lode.NodeID, msg []byte) ([]byte, error) {
			b, err := x.busOf(to)
			if err != nil {
				return nil, err
			}
			return b.Handle(ctx, n.id, msg)
		},
		Known: func() []lode.NodeID { return slices.Clone(three) },
		Join:  join,
	}})
	if err != nil {
		n.w.t.Fatal(err)
	}
	n.bus = b
	x.mu.Lock()
	x.buses[n.id] = b
	x.mu.Unlock()
	n.w.t.Cleanup(func() { b.Close() })
}

// openLink connects n with the others.
func (n *node) openLink() {
	x := n.w.net
	l := link.New(link.Config{Self: n.id, Logger: n.w.log.With("link", n.id),
		Dial: func(_ context.Context, to lode.NodeID) (stdnet.Conn, error) {
			x.mu.Lock()
			other := x.links[to]
			x.mu.Unlock()
			if other == nil {
				return nil, lode.Errorf(lode.Unavailable, "%s is down", to)
			}
			near, far, err := pipe()
			if err == nil {
				go other.Serve(far, n.id)
			}
			return near, err
		},
		Handle: map[string]link.Handler{LinkMethod: func(ctx context.Context, in *link.Incoming) error {
			s := n.svc.Load()
			if s == nil {
				return lode.Errorf(lode.Unavailable, "%s is down", n.id)
			}
			return s.HandleRemote(ctx, in)
		}}})
	x.mu.Lock()
	x.links[n.id] = l
	x.mu.Unlock()
	l.SetPeers(three)
	n.w.t.Cleanup(func() { l.Close() })
}

// kill ends n as kill -9 does: its agents, its links, and its bus.
func (n *node) kill() {
	x := n.w.net
	x.mu.Lock()
	l, b := x.links[n.id], x.buses[n.id]
	delete(x.links, n.id)
	delete(x.buses, n.id)
	x.mu.Unlock()
	if l != nil {
		l.Close()
	}
	n.crash()
	n.ending.Wait()
	if b != nil {
		b.Close()
	}
}

// revive starts n again.
func (n *node) revive() {
	n.hooks.clear()
	n.openBus(nil)
	n.openLink()
	n.up()
}

// Ask implements Peers.
func (n *node) Ask(ctx context.Context, to lode.NodeID, head, body []byte) (ahead, abody []byte, err error) {
	if n.w.net == nil {
		return nil, nil, &lode.Error{Kind: lode.Unavailable, Err: link.ErrNotSent}
	}
	n.w.net.mu.Lock()
	l := n.w.net.links[n.id]
	n.w.net.mu.Unlock()
	if l == nil {
		return nil, nil, &lode.Error{Kind: lode.Unavailable, Err: link.ErrNotSent}
	}
	var ans link.Bytes
	if err := l.Call(ctx, to, &link.Request{Method: LinkMethod, Head: head, Body: body}, &ans); err != nil {
		return nil, nil, err
	}
	return ans.HeadBytes, ans.Body, nil
}

var _ Peers = (*node)(nil)
