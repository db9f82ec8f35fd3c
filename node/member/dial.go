package member

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"time"

	"lode"
)

// dialFor bounds how long it takes to reach a node and be let in.
const dialFor = 5 * time.Second

// silentFor is how long the other end of a connection may not acknowledge what
// was sent before the connection is given up.
const silentFor = 4 * time.Second

// Dialer returns what connects to nodes by name over Link or Bus. The
// connection is authenticated, and the other side has let this node in.
// NotFound: no such node. Unavailable: it does not answer. Gone: it says that
// this node was removed. Precondition: this node's certificate has expired.
func (m *Members) Dialer(alpn string) func(ctx context.Context, to lode.NodeID) (net.Conn, error) {
	return func(ctx context.Context, to lode.NodeID) (net.Conn, error) {
		r, ok := m.Get(to)
		if !ok {
			return nil, m.noSuch(to)
		}
		return m.DialAddr(ctx, alpn, to, r.Peers)
	}
}

// DialAddr is Dialer's function for an address that the caller knows.
func (m *Members) DialAddr(ctx context.Context, alpn string, to lode.NodeID, addr string) (net.Conn, error) {
	id := m.cfg.Identity
	if err := id.Valid(); err != nil {
		return nil, err
	}
	if addr == "" {
		return nil, lode.Errorf(lode.Unavailable, "node %s has not said where it listens for other nodes", to).WithHint("start it")
	}
	ctx, cancel := context.WithTimeout(ctx, dialFor)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, lode.Errorf(lode.Unavailable, "node %s does not answer at %s: %w", to, addr, err).WithHint("is it running, and can this machine reach it? lode nodes")
	}
	noticeSilence(raw)
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	conn := tls.Client(raw, id.ClientTLS(to, alpn, m.Check))
	if err = conn.HandshakeContext(ctx); err == nil {
		if err = readGreeting(conn); lode.KindOf(err) == lode.Gone {
			m.expel(err)
		}
	}
	if err == nil && !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		stop()
		raw.Close()
		return nil, dialError(err, to, addr)
	}
	return conn, nil
}

// dialError says in words why a node was reached and no connection came of it.
func dialError(err error, to lode.NodeID, addr string) error {
	if e, ok := errors.AsType[*lode.Error](err); ok {
		return e
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return lode.Errorf(lode.Misdirected, "what answers at %s is not node %s: it does not speak TLS", addr, to).WithHint("another program has the port? lode nodes shows the addresses")
	}
	switch whyCertificate(err) {
	case WhyExpired:
		return lode.Errorf(lode.Precondition, "the certificate of node %s is not valid at this machine's time: %w", to, err).WithHint("compare the clocks of both machines; lode doctor")
	case WhyWrongCA:
		return lode.Errorf(lode.Denied, "what answers at %s is of another cluster: %w", addr, err).WithHint("lode nodes shows the addresses; has another node taken over the address of %s?", to)
	case WhyWrongName:
		return lode.Errorf(lode.Denied, "what answers at %s is not node %s: %w", addr, to, err).WithHint("lode nodes shows the addresses; has another node taken over the address of %s?", to)
	}
	if alert := alertOf(err); alert != "" {
		return alertError(alert, to, err)
	}
	return lode.Errorf(lode.Unavailable, "node %s at %s does not let this node in: %w", to, addr, err).WithHint("see its log")
}

// alertOf is the TLS alert that the other side sent, in Go's words, or "".
func alertOf(err error) string {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		return strings.TrimPrefix(op.Err.Error(), "tls: ")
	}
	return ""
}

func alertError(alert string, to lode.NodeID, err error) error {
	switch alert {
	case "expired certificate":
		return lode.Errorf(lode.Precondition, "node %s says that this node's certificate has expired: %w", to, err).WithHint("compare the clocks of both machines; lode doctor")
	case "unknown certificate authority":
		return lode.Errorf(lode.Denied, "node %s is of another cluster than this node: %w", to, err).WithHint("lode nodes shows the addresses")
	case "no application protocol":
		return lode.Errorf(lode.Precondition, "node %s does not speak this node's protocol: its version is too different", to).WithHint("lode version on both; upgrade the older one")
	}
	return lode.Errorf(lode.Denied, "node %s refuses this node: %w", to, err).WithHint("see its log")
}
