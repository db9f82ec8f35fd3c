package member

import (
	"crypto/tls"
	"crypto/x509"
	"net"

	"lode"
)

// The protocols of the peer port.
const (
	Link = "lode-link/1"
	Bus  = "lode-bus/1"
	join = "lode-join/1"
)

// Gate says whether a node may speak to this one: nil, or why not.
// Members.Check is one.
type Gate func(node lode.NodeID, serial string) error

// ServerTLS is for what other nodes connect to, on Link and Bus: the client
// must have a certificate of the cluster. Whether it is still a member is not
// looked at.
func (i *Identity) ServerTLS() *tls.Config {
	c := i.base(nil)
	c.NextProtos = []string{Link, Bus}
	c.ClientAuth = tls.RequireAndVerifyClientCert
	return c
}

// ClientTLS is for a connection to one node on Link or Bus: the server's
// certificate must be that node's, and the gate, if there is one, open.
func (i *Identity) ClientTLS(to lode.NodeID, alpn string, gate Gate) *tls.Config {
	c := i.base(func(node lode.NodeID, serial string) error {
		if node != to {
			return lode.Errorf(lode.Denied, "meant to reach node %s, and %s answered", to, node)
		}
		if gate == nil {
			return nil
		}
		return gate(node, serial)
	})
	c.NextProtos = []string{alpn}
	c.ServerName = string(to)
	return c
}

// RouteTLS is for both ends of the connections between members of the bus,
// whoever of the cluster is at the other end, if the gate is open for it. gate
// is called in each handshake and may be nil.
func (i *Identity) RouteTLS(gate Gate) *tls.Config {
	c := i.base(gate)
	c.ClientAuth = tls.RequireAndVerifyClientCert
	c.ServerName = anyPeer(i.Cluster())
	return c
}

// joinTLS is for a joiner, who has no certificate yet.
func (i *Identity) joinTLS() *tls.Config {
	c := i.base(nil)
	c.VerifyConnection = nil
	c.NextProtos = []string{join}
	return c
}

// base has what all configurations share. The certificate is read anew at each
// handshake, the time is the identity's clock, and no session is resumed, so
// that each connection shows certificates.
func (i *Identity) base(gate Gate) *tls.Config {
	roots := i.now().roots
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Time: i.clock.Now, SessionTicketsDisabled: true, RootCAs: roots, ClientCAs: roots,
		DynamicRecordSizingDisabled: true, // link sends whole frames: short records only cost
		GetCertificate:              func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &i.now().chain, nil },
		GetClientCertificate:        func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &i.now().chain, nil },
		VerifyConnection: func(cs tls.ConnectionState) error {
			node, serial, err := i.peer(cs)
			if err != nil || gate == nil {
				return err
			}
			return gate(node, serial)
		},
	}
}

// peer reads who is at the other end of a verified connection.
func (i *Identity) peer(cs tls.ConnectionState) (lode.NodeID, string, error) {
	if len(cs.VerifiedChains) == 0 {
		return "", "", lode.Errorf(lode.Unauthenticated, "the other side has no certificate")
	}
	leaf := cs.PeerCertificates[0]
	node, err := nameIn(leaf, i.Cluster())
	return node, serialOf(leaf), err
}

// Verified says who is at the other end of a connection of this package, and
// over which protocol. False: it is no verified TLS connection.
func Verified(conn net.Conn) (node lode.NodeID, alpn string, ok bool) {
	c, is := conn.(*tls.Conn)
	if !is {
		return "", "", false
	}
	cs := c.ConnectionState()
	if !cs.HandshakeComplete || len(cs.VerifiedChains) == 0 {
		return "", "", false
	}
	chain := cs.VerifiedChains[0]
	node, err := nameIn(chain[0], clusterOf(chain[len(chain)-1]))
	return node, cs.NegotiatedProtocol, err == nil
}

// clusterOf is the cluster that a CA's certificate names, or "".
func clusterOf(ca *x509.Certificate) string {
	if len(ca.URIs) != 1 || ca.URIs[0].Scheme != "lode" {
		return ""
	}
	return ca.URIs[0].Host
}
