package member

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"math/big"
	"net/url"
	"time"

	"lode"
	"lode/bus"
)

// The lives of certificates.
const (
	caLife    = 10 * 365 * 24 * time.Hour
	nodeLife  = 90 * 24 * time.Hour
	backdated = 24 * time.Hour // a clock may be set wrong, or right, after the certificate was made
)

// Sealer turns bytes into what only the nodes of the cluster can turn back.
type Sealer interface {
	Seal(plain []byte) ([]byte, error)
	Open(sealed []byte) ([]byte, error)
}

// Tables opens tables of the bus by name.
type Tables interface {
	Table(ctx context.Context, name string) (*bus.Table, error)
}

var _ Tables = (*bus.Bus)(nil)

const (
	tableCluster = "cluster"
	tableNodes   = "nodes"
	keyCA        = "ca"
)

// Authority signs certificates with the cluster's CA, whose key it takes out
// of the bus each time and does not keep. Every node has one. All methods may
// be called at the same time.
type Authority struct {
	tables Tables
	sealer Sealer
	clock  Clock
}

// NewAuthority makes an Authority over the tables of a bus. clock may be nil.
func NewAuthority(tables Tables, sealer Sealer, clock Clock) *Authority {
	return &Authority{tables: tables, sealer: sealer, clock: orWall(clock)}
}

// caRecord is the CA as table "cluster" holds it under "ca".
type caRecord struct {
	Cluster string    `json:"cluster"`
	Cert    []byte    `json:"cert"` // DER
	Key     []byte    `json:"key"`  // PKCS #8 DER, sealed
	Made    time.Time `json:"made"`
}

// ca is an opened CA.
type ca struct {
	cluster string
	cert    *x509.Certificate
	key     crypto.Signer
}

// create makes the CA if there is none, and returns the one that there is: of
// two who begin at the same time both get the same.
func (a *Authority) create(ctx context.Context) (*ca, error) {
	t, err := a.tables.Table(ctx, tableCluster)
	if err != nil {
		return nil, err
	}
	if _, ok, err := t.Get(ctx, keyCA); err != nil {
		return nil, err
	} else if !ok {
		r, err := a.newCA()
		if err != nil {
			return nil, err
		}
		b, err := json.Marshal(r)
		if err != nil {
			return nil, err
		}
		if _, err = t.Create(ctx, keyCA, b); err != nil && lode.KindOf(err) != lode.Conflict {
			return nil, err
		}
	}
	return a.open(ctx)
}

func (a *Authority) newCA() (*caRecord, error) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, lode.Errorf(lode.Internal, "make the cluster's key: %w", err)
	}
	cluster, now := randomHex(16), a.clock.Now()
	tmpl := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(randomBytes(16)), Subject: pkix.Name{CommonName: "Lode cluster " + cluster},
		NotBefore: now.Add(-backdated), NotAfter: now.Add(caLife), URIs: []*url.URL{{Scheme: "lode", Host: cluster}},
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, pub, key)
	if err != nil {
		return nil, lode.Errorf(lode.Internal, "make the cluster's certificate: %w", err)
	}
	plain, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, lode.Errorf(lode.Internal, "write the cluster's key: %w", err)
	}
	sealed, err := a.sealer.Seal(plain)
	return &caRecord{Cluster: cluster, Cert: der, Key: sealed, Made: now.UTC()}, err
}

// open takes the CA out of the bus. NotFound: there is none.
func (a *Authority) open(ctx context.Context) (*ca, error) {
	r, cert, err := a.read(ctx)
	if err != nil {
		return nil, err
	}
	plain, err := a.sealer.Open(r.Key)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(plain)
	if err != nil {
		return nil, lode.Errorf(lode.Damaged, "the cluster's key cannot be read: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, lode.Errorf(lode.Damaged, "the cluster's key is of a kind that cannot sign: %T", key)
	}
	return &ca{cluster: r.Cluster, cert: cert, key: signer}, nil
}

func (a *Authority) read(ctx context.Context) (*caRecord, *x509.Certificate, error) {
	t, err := a.tables.Table(ctx, tableCluster)
	if err != nil {
		return nil, nil, err
	}
	e, ok, err := t.Get(ctx, keyCA)
	if err != nil {
		return nil, nil, err
	}
	if !ok {
		return nil, nil, lode.Errorf(lode.NotFound, "the bus holds no CA for this cluster").WithHint("restore the bus from a backup, or begin a new cluster in a fresh folder")
	}
	var r caRecord
	if err := json.Unmarshal(e.Value, &r); err != nil {
		return nil, nil, lode.Errorf(lode.Damaged, "the record of the cluster's CA: %w", err)
	}
	cert, err := x509.ParseCertificate(r.Cert)
	if err != nil {
		return nil, nil, lode.Errorf(lode.Damaged, "the cluster's CA certificate: %w", err)
	}
	return &r, cert, nil
}

// Check says whether the CA in the bus is the one of this node's folder.
// NotFound: the bus has none. Conflict: it has another.
func (a *Authority) Check(ctx context.Context, id *Identity) error {
	_, cert, err := a.read(ctx)
	if err != nil {
		return err
	}
	if !bytes.Equal(cert.Raw, id.now().ca.Raw) {
		return lode.Errorf(lode.Conflict, "this folder is of cluster %s, and the bus is of another", id.Cluster()).
			WithHint("a folder's parts belong together: restore all of them, or join with a fresh folder")
	}
	return nil
}

// sign makes a node's certificate for a public key (Ed25519).
func (c *ca) sign(pub crypto.PublicKey, node lode.NodeID, now time.Time) ([]byte, error) {
	mark, err := markOf(pub)
	if err != nil {
		return nil, err
	}
	if !now.Before(c.cert.NotAfter) {
		return nil, lode.Errorf(lode.Precondition, "the CA of cluster %s expired on %s", c.cluster, stamp(c.cert.NotAfter)).WithHint("begin a new cluster and restore a backup into it")
	}
	end := now.Add(nodeLife)
	if end.After(c.cert.NotAfter) {
		end = c.cert.NotAfter
	}
	tmpl := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(append(mark, randomBytes(8)...)), Subject: pkix.Name{CommonName: string(node)},
		NotBefore: now.Add(-backdated), NotAfter: end,
		URIs: []*url.URL{nodeURI(c.cluster, node)}, DNSNames: []string{string(node), anyPeer(c.cluster)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.cert, pub, c.key)
	if err != nil {
		return nil, lode.Errorf(lode.Internal, "sign a certificate for %s: %w", node, err)
	}
	return der, nil
}

func nodeURI(cluster string, node lode.NodeID) *url.URL {
	return &url.URL{Scheme: "lode", Host: cluster, Path: "/" + string(node)}
}

// anyPeer is the DNS name that every node of a cluster answers to.
func anyPeer(cluster string) string { return "peer." + cluster + ".lode" }

// markOf is a node's mark: 8 bytes that stand for its key.
func markOf(pub crypto.PublicKey) ([]byte, error) {
	if _, ok := pub.(ed25519.PublicKey); !ok {
		return nil, lode.Errorf(lode.Invalid, "a node's key must be Ed25519, not %T", pub)
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, lode.Errorf(lode.Invalid, "a node's key: %w", err)
	}
	sum := sha256.Sum256(der)
	return sum[:8], nil
}

// serialOf is a certificate's serial, 32 hexadecimal digits.
func serialOf(c *x509.Certificate) string {
	n := c.SerialNumber
	if n.Sign() < 0 || n.BitLen() > 128 {
		return ""
	}
	return hex.EncodeToString(n.FillBytes(make([]byte, 16)))
}

// markIn is the mark in a serial, 16 hexadecimal digits.
func markIn(serial string) string { return serial[:min(16, len(serial))] }

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails
	return b
}

func randomHex(n int) string { return hex.EncodeToString(randomBytes(n)) }

// stamp is a time as people are told it.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }
