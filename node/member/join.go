package member

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"lode"
)

// DefaultPeerPort is the peer port of a node that was not told another.
const DefaultPeerPort = "5634"

// JoinOptions says which cluster to join and as what. Dir, Addr, Token and
// Node.Peers are needed.
type JoinOptions struct {
	Dir   string // of the identity to be
	Addr  string // HOST or HOST:PORT of a node's peer port (one above its gateway's); no port: DefaultPeerPort
	Token string // as CreateToken gave it
	// Name is the node's name, and the join fails where it is taken. "": the
	// host's name, with a number behind it where that is taken.
	Name string
	// Node has this node's addresses, zone, labels, version and what it has.
	// An address may have an unspecified host (0.0.0.0): then the node that
	// answers fills in the one that it sees. The rest is not read.
	Node Record
	// Keep is called with the answer before the folder becomes this node's
	// identity. What it fails to keep can be asked for again with the same
	// token, as long as that has not expired. Nil keeps nothing.
	Keep  func(*Joined) error
	Clock Clock // nil: the machine's
}

// Joined is what a join gave.
type Joined struct {
	Node     lode.NodeID
	Cluster  string
	Shared   Shared
	Nodes    []Record  // all of them, this one too
	Identity *Identity // nil while Keep is called
}

// joinDialFor bounds how long a host may be silent.
const joinDialFor = 10 * time.Second

// Join makes this folder's node one of a cluster. When it returns without an
// error the identity and what was known of the other nodes are on the disk. An
// error leaves no identity behind; only the node's key stays, by which another
// try is known to come from the same node.
func Join(ctx context.Context, o JoinOptions) (*Joined, error) {
	o.Clock = orWall(o.Clock)
	token, err := ParseToken(o.Token)
	if err != nil {
		return nil, err
	}
	addr, err := peerAddr(o.Addr)
	if err != nil {
		return nil, err
	}
	if err := free(o.Dir, token, o.Clock); err != nil {
		return nil, err
	}
	key, err := pendingKey(o.Dir)
	if err != nil {
		return nil, err
	}
	q, err := o.request(token, key)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, joinFor)
	defer cancel()
	a, err := ask(ctx, addr, token, q)
	if err != nil {
		return nil, err
	}
	return o.keep(a, token, key)
}

// free says whether a folder may join: it has no identity, or one of the same
// cluster that has expired.
func free(dir string, token Token, clock Clock) error {
	id, ok, err := Load(dir, clock)
	if err != nil || !ok {
		return err
	}
	if id.CAHash() != token.CAHash {
		return lode.Errorf(lode.Conflict, "this data folder is node %s of another cluster (%s) than the token's", id.Node(), id.Cluster()).
			WithHint("join with a fresh folder (-d DIR); what this one holds belongs to its own cluster")
	}
	if !id.Expired() {
		return lode.Errorf(lode.Conflict, "this data folder is node %s of that cluster already", id.Node()).
			WithHint("start it without --join and --token; or join as another node with a fresh folder (-d DIR)")
	}
	return nil
}

// peerAddr completes HOST to HOST:PORT.
func peerAddr(s string) (string, error) {
	s = strings.TrimSpace(s)
	if s == "" || strings.ContainsAny(s, "/@ ") {
		return "", lode.Errorf(lode.Invalid, "%q is no address of a node", s).WithHint("want HOST or HOST:PORT, without http://")
	}
	if ip := net.ParseIP(strings.Trim(s, "[]")); ip != nil {
		return net.JoinHostPort(ip.String(), DefaultPeerPort), nil
	}
	if !strings.Contains(s, ":") {
		return net.JoinHostPort(s, DefaultPeerPort), nil
	}
	if err := checkAddr("--join", s); err != nil {
		return "", lode.AsError(err).WithHint("want HOST or HOST:PORT, without http://")
	}
	return s, nil
}

func (o *JoinOptions) request(token Token, key crypto.Signer) (*Request, error) {
	host, err := os.Hostname()
	if err != nil {
		host = "node"
	}
	if o.Name != "" {
		if _, err := lode.ParseNodeID(o.Name); err != nil {
			return nil, err
		}
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, lode.Errorf(lode.Internal, "make a certificate request: %w", err)
	}
	node := o.Node.clone()
	node.Name = lode.NodeID(cmp.Or(o.Name, string(lode.NodeIDFromHost(host))))
	return &Request{Version: joinVersion, Secret: token.Secret, Name: o.Name, Host: host, CSR: csr, Node: node, Clock: o.Clock.Now()}, nil
}

// ask has the conversation with the other side.
func ask(ctx context.Context, addr string, token Token, q *Request) (*Answer, error) {
	dctx, cancel := context.WithTimeout(ctx, joinDialFor)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(dctx, "tcp", addr)
	if err != nil {
		return nil, unreachable(ctx, addr, err)
	}
	defer raw.Close()
	defer context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })()
	conn := tls.Client(raw, &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{join},
		InsecureSkipVerify: true, // the name is not known yet, and the clocks may differ: VerifyConnection checks what counts
		VerifyConnection:   func(cs tls.ConnectionState) error { return isOfCluster(cs, token.CAHash, addr, q.Clock) },
	})
	if err := conn.HandshakeContext(dctx); err != nil {
		return nil, notLode(ctx, addr, err)
	}
	if err := writeMessage(conn, msgRequest, q); err != nil {
		return nil, lostAnswer(addr, err)
	}
	a, err := readAnswer(conn)
	if err != nil {
		return nil, lostAnswer(addr, err)
	}
	return a, nil
}

// isOfCluster checks, before anything secret is sent, that the server's
// certificate was signed by the CA that the token names, and is not one of
// old. That it has not begun yet is let pass: the server compares the clocks,
// and says so with both times.
func isOfCluster(cs tls.ConnectionState, hash, addr string, now time.Time) error {
	leaf := cs.PeerCertificates[0]
	for _, c := range cs.PeerCertificates[1:] {
		if hashOf(c.Raw) != hash || leaf.CheckSignatureFrom(c) != nil {
			continue
		}
		node, err := nameIn(leaf, clusterOf(c))
		if err == nil && now.After(leaf.NotAfter) {
			return lode.Errorf(lode.Precondition, "the certificate of node %s at %s ended at %s, and this machine's clock says %s", node, addr, stamp(leaf.NotAfter), stamp(now)).
				WithHint("set this machine's clock; if it is right, node %s cannot renew its certificate: join through another. The token was not sent", node)
		}
		return err
	}
	return lode.Errorf(lode.Denied, "the node at %s is not of the cluster that the token is for: its CA is another", addr).
		WithHint("the token was not sent; make one on the cluster that you mean (lode token create --join), or correct --join")
}

// unreachable says why no connection came about.
func unreachable(ctx context.Context, addr string, err error) error {
	host := hostPart(addr)
	var dns *net.DNSError
	switch {
	case ctx.Err() != nil:
		return lode.Errorf(lode.Cancelled, "join through %s: %w", addr, context.Cause(ctx))
	case errors.As(err, &dns):
		return lode.Errorf(lode.Unavailable, "the name %s cannot be resolved: %w", host, err).WithHint("give the node's address: --join 10.0.0.1")
	case errors.Is(err, syscall.ECONNREFUSED) && loopback(addr):
		return lode.Errorf(lode.Unavailable, "nothing answers on %s: %w", addr, err).WithHint("is the node running there? if it was started with --port P: --join %s:P", host)
	case errors.Is(err, syscall.ECONNREFUSED):
		return lode.Errorf(lode.Unavailable, "nothing answers on %s; a node without --bind listens on 127.0.0.1 only: %w", addr, err).
			WithHint("restart the node there with --bind %s; if it was started with --port P: --join %s:P", host, host)
	}
	return lode.Errorf(lode.Unavailable, "%s cannot be reached: %w", addr, err).WithHint("is the machine up, and does a firewall between let TCP to that port through?")
}

// notLode says why a handshake failed.
func notLode(ctx context.Context, addr string, err error) error {
	if e, ok := errors.AsType[*lode.Error](err); ok {
		return e
	}
	if ctx.Err() != nil {
		return lode.Errorf(lode.Cancelled, "join through %s: %w", addr, context.Cause(ctx))
	}
	e := lode.Errorf(lode.Misdirected, "what answers on %s is not a Lode node's peer port: %w", addr, err).
		WithHint("it is one above the gateway's port; if the node was started with --port P: --join %s:P", hostPart(addr))
	if alertOf(err) == "no application protocol" {
		e.Detail = fmt.Sprintf("what answers on %s speaks TLS and not the join protocol of this version of Lode: it is no Lode node, or its version is too different", addr)
		e.Hint = "lode version on both machines; if the node was started with --port P: --join " + hostPart(addr) + ":P"
	}
	return e
}

// lostAnswer says what became of a request that was sent.
func lostAnswer(addr string, err error) error {
	if e, ok := errors.AsType[*lode.Error](err); ok {
		return e
	}
	what := "the node at %s did not answer the request to join in time: %w"
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || isReset(err) {
		what = "the node at %s went away before it answered the request to join: %w"
	}
	return lode.Errorf(lode.Unavailable, what, addr, err).
		WithHint("run the same command again: from this folder the same token still works until it expires")
}

// keep checks an answer and writes what it gave.
func (o *JoinOptions) keep(a *Answer, token Token, key crypto.Signer) (*Joined, error) {
	p, err := newPapers(a.CA, a.Cert, key)
	if err == nil && (hashOf(a.CA) != token.CAHash || p.node != a.Node || p.cluster != a.Cluster) {
		err = lode.Errorf(lode.Damaged, "its parts do not belong together")
	}
	if err != nil {
		return nil, lode.Errorf(lode.Damaged, "the answer to the request to join is not usable: %w", err).WithHint("join again; if it stays so, see the other node's log")
	}
	j := &Joined{Node: a.Node, Cluster: a.Cluster, Shared: a.Shared, Nodes: a.Nodes}
	if o.Keep != nil {
		if err := o.Keep(j); err != nil {
			return nil, err
		}
	}
	if err := writePeers(o.Dir, peersFile{Format: 1, Nodes: a.Nodes}); err != nil {
		return nil, err
	}
	if old, ok, err := Load(o.Dir, o.Clock); err == nil && ok && !bytes.Equal(old.now().ca.Raw, a.CA) {
		return nil, lode.Errorf(lode.Conflict, "the folder became node %s of another cluster meanwhile", old.Node())
	}
	j.Identity, err = keepIdentity(o.Dir, a.CA, a.Cert, key, o.Clock)
	return j, err
}
