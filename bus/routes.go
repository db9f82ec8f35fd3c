package bus

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"slices"
	"sync"
	"time"

	"lode"
)

// Members reach each other through this package and not by the server's own
// means: one port carries the routes of two generations at once while the bus
// moves from one to the other, certificates are read anew for each connection,
// and a node that is not a member is refused before the server hears of it.
//
// A server's route goes to a port on loopback of its own process, from there
// over mutual TLS to the other's listening port, and from there to that
// server's route port, which is on loopback too and asks for the generation's
// secret. A connection begins with this, integers big endian:
//
//	"LBR1", 8 bytes generation, 1 byte length, name of the node that connects
const (
	routeMagic = "LBR1"
	routeProto = "lode-route/1"
	deadAfter  = 3 * time.Second // without an acknowledgement of what was sent
)

// routes are the ways of one instance to the other members, and theirs to it.
type routes struct {
	b      *Bus
	layout Layout
	ways   []net.Listener // on loopback: one for each other member
	peers  peers
	ctx    context.Context
	stop   context.CancelFunc
	work   sync.WaitGroup

	mu    sync.Mutex
	local string // where the instance takes routes
}

func (b *Bus) newRoutes(l Layout) (*routes, error) {
	if err := b.listen(); err != nil {
		return nil, err
	}
	r := &routes{b: b, layout: l}
	r.ctx, r.stop = context.WithCancel(b.ctx)
	for _, m := range l.Members {
		if m.Node == b.cfg.Node {
			continue
		}
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			r.close()
			return nil, lode.Errorf(lode.Unavailable, "open bus: %w", err)
		}
		r.ways = append(r.ways, ln)
		r.work.Go(func() { r.lead(ln, m) })
	}
	return r, nil
}

// lead takes connections of the own server and carries them to a member.
func (r *routes) lead(ln net.Listener, to Member) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		r.work.Go(func() {
			defer c.Close()
			far, err := r.dial(to)
			if err != nil {
				return // the server tries again by itself
			}
			r.carry(c, far, to.Node)
		})
	}
}

func (r *routes) carry(near, far net.Conn, peer lode.NodeID) {
	defer far.Close()
	if !r.peers.add(far, peer) {
		return
	}
	defer r.peers.remove(far)
	bridge(near, far)
}

func (r *routes) dial(to Member) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(r.ctx, dialWait)
	defer cancel()
	cfg := r.b.cfg.Cluster.Client().Clone()
	cfg.NextProtos = []string{routeProto}
	if cfg.ServerName == "" {
		cfg.ServerName = string(to.Node)
	}
	c, err := (&tls.Dialer{NetDialer: &net.Dialer{KeepAlive: 5 * time.Second}, Config: cfg}).DialContext(ctx, "tcp", to.Route)
	if err != nil {
		return nil, err
	}
	giveUp(c.(*tls.Conn).NetConn())
	if !names(c.(*tls.Conn).ConnectionState().PeerCertificates[0], to.Node) {
		c.Close()
		return nil, lode.Errorf(lode.Denied, "meant to reach node %s at %s, and another one answered", to.Node, to.Route)
	}
	c.SetDeadline(time.Now().Add(dialWait))
	if _, err := c.Write(preamble(routeMagic, r.layout.Generation, r.b.cfg.Node)); err != nil {
		c.Close()
		return nil, err
	}
	c.SetDeadline(time.Time{})
	return c, nil
}

// arrive says where the instance takes routes.
func (r *routes) arrive(a net.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.local = tcp(a)
}

// accept carries a connection of another member to the own server.
func (r *routes) accept(c net.Conn, from lode.NodeID) {
	r.mu.Lock()
	local := r.local
	r.mu.Unlock()
	if local == "" || !r.layout.Has(from) {
		return
	}
	near, err := (&net.Dialer{Timeout: dialWait}).DialContext(r.ctx, "tcp", local)
	if err != nil {
		return
	}
	r.carry(near, c, from)
	near.Close()
}

func (r *routes) close() {
	r.stop()
	for _, ln := range r.ways {
		ln.Close()
	}
	r.peers.close()
	r.work.Wait()
}

// listen opens the port for routes, once.
func (b *Bus) listen() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.listener != nil {
		return nil
	}
	c := b.cfg.Cluster
	if c == nil || c.Listen == "" || c.Server == nil || c.Client == nil {
		return lode.Errorf(lode.Invalid, "a member of the bus needs an address for the other members, and certificates")
	}
	ln, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return lode.Errorf(lode.Unavailable, "the bus cannot listen for its other members: %w", err)
	}
	b.listener = ln
	b.work.Go(func() { b.serveRoutes(ln) })
	return nil
}

func (b *Bus) serveRoutes(ln net.Listener) {
	cfg := &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		cfg := b.cfg.Cluster.Server().Clone()
		cfg.NextProtos = []string{routeProto}
		cfg.ClientAuth = max(cfg.ClientAuth, tls.RequireAnyClientCert)
		if cfg.ClientCAs != nil {
			cfg.ClientAuth = tls.RequireAndVerifyClientCert
		}
		return cfg, nil
	}}
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		b.work.Go(func() {
			defer c.Close()
			stop := context.AfterFunc(b.ctx, func() { c.Close() })
			defer stop()
			giveUp(c)
			b.takeRoute(tls.Server(c, cfg))
		})
	}
}

func (b *Bus) takeRoute(c *tls.Conn) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(dialWait))
	if err := c.HandshakeContext(b.ctx); err != nil {
		b.cfg.Logger.Warn("bus: a connection for the bus was refused", "from", c.RemoteAddr(), "err", err)
		return
	}
	generation, from, err := readPreamble(c, routeMagic)
	if err != nil {
		return
	}
	if !names(c.ConnectionState().PeerCertificates[0], from) {
		b.cfg.Logger.Warn("bus: a node came under another's name", "from", c.RemoteAddr(), "name", from)
		return
	}
	i := b.instance(generation)
	if i == nil || i.routes == nil {
		return
	}
	c.SetDeadline(time.Time{})
	i.routes.accept(c, from)
}

// names reports whether a certificate is that of a node.
func names(c *x509.Certificate, n lode.NodeID) bool {
	return c.Subject.CommonName == string(n) || slices.Contains(c.DNSNames, string(n))
}
