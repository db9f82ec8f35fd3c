package link

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"lode"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// town is a set of links that can dial each other by name.
type town struct {
	t      testing.TB
	tls    *tls.Config
	mu     sync.Mutex
	listen map[lode.NodeID]net.Listener
	via    map[[2]lode.NodeID]string // from, to: an address instead of the listener's
	wg     sync.WaitGroup
}

func newTown(t testing.TB, secure bool) *town {
	w := &town{t: t, listen: map[lode.NodeID]net.Listener{}, via: map[[2]lode.NodeID]string{}}
	if secure {
		w.tls = selfSigned(t)
	}
	t.Cleanup(func() {
		for _, l := range w.listen {
			l.Close()
		}
		w.wg.Wait()
	})
	return w
}

// selfSigned is a certificate that stands for every node.
func selfSigned(t testing.TB) *tls.Config {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "node"}, DNSNames: []string{"node"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := x509.ParseCertificate(der)
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, RootCAs: pool, ClientCAs: pool,
		ClientAuth: tls.RequireAndVerifyClientCert, ServerName: "node", MinVersion: tls.VersionTLS13, DynamicRecordSizingDisabled: true}
}

// add starts a link called name. cfg may leave out Self, Dial and Logger. The
// dialler tells its name in the connection's first bytes, as a certificate
// would.
func (w *town) add(name lode.NodeID, cfg Config) *Link {
	w.t.Helper()
	cfg.Self = name
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Dial == nil {
		cfg.Dial = func(ctx context.Context, to lode.NodeID) (net.Conn, error) { return w.dial(ctx, name, to) }
	}
	l := New(cfg)
	w.open(name, l)
	w.t.Cleanup(func() { l.Close() })
	return l
}

// open listens for l.
func (w *town) open(name lode.NodeID, l *Link) net.Listener {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	w.listen[name] = ln
	w.mu.Unlock()
	w.wg.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			w.wg.Go(func() { w.accept(l, nc) })
		}
	})
	return ln
}

func (w *town) accept(l *Link, nc net.Conn) {
	nc.SetDeadline(time.Now().Add(5 * time.Second))
	var n [1]byte
	if _, err := io.ReadFull(nc, n[:]); err != nil {
		nc.Close()
		return
	}
	from := make([]byte, n[0])
	if _, err := io.ReadFull(nc, from); err != nil {
		nc.Close()
		return
	}
	if w.tls != nil {
		t := tls.Server(nc, w.tls)
		if t.Handshake() != nil {
			nc.Close()
			return
		}
		nc.SetDeadline(time.Time{})
		l.Serve(t, lode.NodeID(from))
		return
	}
	nc.SetDeadline(time.Time{})
	l.Serve(nc, lode.NodeID(from))
}

func (w *town) dial(ctx context.Context, from, to lode.NodeID) (net.Conn, error) {
	w.mu.Lock()
	ln, addr := w.listen[to], w.via[[2]lode.NodeID{from, to}]
	w.mu.Unlock()
	if addr == "" {
		if ln == nil {
			return nil, errors.New("nobody listens")
		}
		addr = ln.Addr().String()
	}
	nc, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	nc.Write(append([]byte{byte(len(from))}, from...))
	if w.tls == nil {
		return nc, nil
	}
	t := tls.Client(nc, w.tls)
	if err := t.HandshakeContext(ctx); err != nil {
		nc.Close()
		return nil, err
	}
	return t, nil
}

// connect makes a and b peers and waits until both know.
func connect(t testing.TB, a, b *Link) {
	t.Helper()
	a.SetPeers([]lode.NodeID{b.cfg.Self})
	b.SetPeers([]lode.NodeID{a.cfg.Self})
	waitUp(t, a, b.cfg.Self)
	waitUp(t, b, a.cfg.Self)
}

func waitUp(t testing.TB, l *Link, to lode.NodeID) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := l.Wait(ctx, to); err != nil {
		t.Fatal(err)
	}
}

// echo answers with what it was asked.
func echo(_ context.Context, in *Incoming) error { return in.Reply(in.Head, in.Body) }
