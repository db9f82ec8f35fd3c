package member

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"lode"
)

// Identity is who this node is: its key, its certificate and the cluster's CA,
// kept in a folder. All methods may be called at the same time.
type Identity struct {
	dir   string
	clock Clock
	cur   atomic.Pointer[papers]
}

// papers are one certificate with what belongs to it. They do not change.
type papers struct {
	cluster string
	node    lode.NodeID
	ca      *x509.Certificate
	roots   *x509.CertPool
	leaf    *x509.Certificate
	key     crypto.Signer
	chain   tls.Certificate // leaf and CA
}

// Load reads the identity in a folder; false if the folder has none yet.
// Damaged: what is there does not belong together. clock may be nil.
func Load(dir string, clock Clock) (*Identity, bool, error) {
	leaf, err := os.ReadFile(filepath.Join(dir, fileCert))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, lode.Errorf(lode.Internal, "read this node's certificate: %w", err)
	}
	root, err := os.ReadFile(filepath.Join(dir, fileCA))
	if err != nil {
		return nil, false, lode.Errorf(lode.Damaged, "read the cluster's CA certificate: %w", err).WithHint("restore %s from a backup", filepath.Join(dir, fileCA))
	}
	key, ok, err := readKey(dir)
	if err != nil {
		return nil, false, err
	}
	if !ok {
		return nil, false, lode.Errorf(lode.Damaged, "%s is missing: without its key this node cannot prove who it is", filepath.Join(dir, fileKey)).
			WithHint("restore it from a backup; or remove the node from its cluster and join again with a fresh folder")
	}
	p, err := newPapers(decodePEM(root), decodePEM(leaf), key)
	if err != nil {
		return nil, false, lode.Errorf(lode.Damaged, "the certificates in %s: %w", dir, err).WithHint("restore the folder from a backup; or remove the node from its cluster and join again with a fresh folder")
	}
	id := &Identity{dir: dir, clock: orWall(clock)}
	id.cur.Store(p)
	return id, true, nil
}

// Found makes the identity of a cluster's first node: the CA in the bus if it
// is not there, and a certificate for node. A folder that has an identity
// keeps it.
func Found(ctx context.Context, dir string, node lode.NodeID, a *Authority) (*Identity, error) {
	if _, err := lode.ParseNodeID(string(node)); err != nil {
		return nil, err
	}
	id, ok, err := Load(dir, a.clock)
	if err != nil || ok {
		return id, err
	}
	key, err := pendingKey(dir)
	if err != nil {
		return nil, err
	}
	c, err := a.create(ctx)
	if err != nil {
		return nil, err
	}
	der, err := c.sign(key.Public(), node, a.clock.Now())
	if err != nil {
		return nil, err
	}
	return keepIdentity(dir, c.cert.Raw, der, key, a.clock)
}

// keepIdentity writes a new identity; node.pem, which makes it one, last.
func keepIdentity(dir string, ca, leaf []byte, key crypto.Signer, clock Clock) (*Identity, error) {
	p, err := newPapers(ca, leaf, key)
	if err != nil {
		return nil, lode.Errorf(lode.Invalid, "the new certificate: %w", err)
	}
	if err := writeFile(dir, fileCA, encodePEM("CERTIFICATE", ca), 0o644); err != nil {
		return nil, err
	}
	if err := writeFile(dir, fileCert, encodePEM("CERTIFICATE", leaf), 0o644); err != nil {
		return nil, err
	}
	id := &Identity{dir: dir, clock: orWall(clock)}
	id.cur.Store(p)
	return id, nil
}

// newPapers checks that a CA, a certificate and a key belong together. It does
// not look at the time.
func newPapers(caDER, leafDER []byte, key crypto.Signer) (*papers, error) {
	root, err := x509.ParseCertificate(caDER)
	if err != nil {
		return nil, lode.Errorf(lode.Damaged, "the CA: %w", err)
	}
	leaf, err := x509.ParseCertificate(leafDER)
	if err != nil {
		return nil, lode.Errorf(lode.Damaged, "the node's: %w", err)
	}
	if !root.IsCA || len(root.URIs) != 1 || root.URIs[0].Scheme != "lode" || root.URIs[0].Host == "" {
		return nil, lode.Errorf(lode.Damaged, "the CA is none of a Lode cluster")
	}
	p := &papers{cluster: root.URIs[0].Host, ca: root, leaf: leaf, key: key, roots: x509.NewCertPool()}
	p.roots.AddCert(root)
	if err := leaf.CheckSignatureFrom(root); err != nil {
		return nil, lode.Errorf(lode.Damaged, "the node's was not signed by the CA: %w", err)
	}
	if pub, ok := leaf.PublicKey.(ed25519.PublicKey); !ok || !pub.Equal(key.Public()) {
		return nil, lode.Errorf(lode.Damaged, "the node's is not for the node's key")
	}
	if p.node, err = nameIn(leaf, p.cluster); err != nil {
		return nil, err
	}
	p.chain = tls.Certificate{Certificate: [][]byte{leaf.Raw, root.Raw}, PrivateKey: key, Leaf: leaf}
	return p, nil
}

// nameIn reads a node's name out of its certificate.
func nameIn(leaf *x509.Certificate, cluster string) (lode.NodeID, error) {
	if len(leaf.URIs) == 1 && leaf.URIs[0].Scheme == "lode" {
		if leaf.URIs[0].Host != cluster {
			return "", lode.Errorf(lode.Denied, "the certificate is of cluster %s, not of %s", leaf.URIs[0].Host, cluster)
		}
		if node, err := lode.ParseNodeID(strings.TrimPrefix(leaf.URIs[0].Path, "/")); err == nil && leaf.URIs[0].String() == nodeURI(cluster, node).String() {
			return node, nil
		}
	}
	return "", lode.Errorf(lode.Denied, "the certificate does not name a node")
}

// pendingKey returns the key of the folder, made if there is none. It is
// written before it is used, so that a node which lost the answer to its
// request can be told to be the same.
func pendingKey(dir string) (crypto.Signer, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, lode.Errorf(lode.Full, "make the folder of this node's identity: %w", err)
	}
	if key, ok, err := readKey(dir); err != nil || ok {
		return key, err
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, lode.Errorf(lode.Internal, "make this node's key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, lode.Errorf(lode.Internal, "write this node's key: %w", err)
	}
	return key, writeFile(dir, fileKey, encodePEM("PRIVATE KEY", der), 0o600)
}

func readKey(dir string) (crypto.Signer, bool, error) {
	path := filepath.Join(dir, fileKey)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, lode.Errorf(lode.Internal, "read this node's key: %w", err)
	}
	if st, err := os.Stat(path); err == nil && st.Mode().Perm()&0o077 != 0 {
		return nil, false, lode.Errorf(lode.Denied, "%s has mode %o: others can read this node's key", path, st.Mode().Perm()).WithHint("chmod 600 %s", path)
	}
	key, err := x509.ParsePKCS8PrivateKey(decodePEM(b))
	if k, ok := key.(ed25519.PrivateKey); ok && err == nil {
		return k, true, nil
	}
	return nil, false, lode.Errorf(lode.Damaged, "%s is not a node's key", path).WithHint("restore it from a backup; or remove the node from its cluster and join again with a fresh folder")
}

func encodePEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// decodePEM returns the first block's bytes, or nil.
func decodePEM(b []byte) []byte {
	if block, _ := pem.Decode(b); block != nil {
		return block.Bytes
	}
	return nil
}

func (i *Identity) now() *papers { return i.cur.Load() }

// Node is this node's name.
func (i *Identity) Node() lode.NodeID { return i.now().node }

// Cluster is the cluster's id, 32 hexadecimal digits.
func (i *Identity) Cluster() string { return i.now().cluster }

// CAHash is the SHA-256 of the CA's certificate, 64 hexadecimal digits, as in
// join tokens.
func (i *Identity) CAHash() string { return hashOf(i.now().ca.Raw) }

// Serial is the serial of the present certificate, for Record.CertSerial.
func (i *Identity) Serial() string { return serialOf(i.now().leaf) }

// Expires is when the present certificate ends.
func (i *Identity) Expires() time.Time { return i.now().leaf.NotAfter }

// Expired reports whether the present certificate has ended. Join takes a
// folder whose identity has, and gives it a new certificate and its old name.
func (i *Identity) Expired() bool { return i.clock.Now().After(i.Expires()) }

// Valid is nil while the certificate can be used; else an error of kind
// Precondition that says what to do.
func (i *Identity) Valid() error {
	p, now := i.now(), i.clock.Now()
	if now.Before(p.leaf.NotBefore) {
		return lode.Errorf(lode.Precondition, "the certificate of node %s begins at %s, and this machine's clock says %s", p.node, stamp(p.leaf.NotBefore), stamp(now)).
			WithHint("set this machine's clock")
	}
	if i.Expired() {
		return lode.Errorf(lode.Precondition, "the certificate of node %s expired on %s, and could not be renewed in time", p.node, stamp(p.leaf.NotAfter)).
			WithHint("if the clock is right, join again with a fresh token and the same folder: lode up --join HOST --token ...")
	}
	return nil
}

func hashOf(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// renew takes a new certificate for the same key from the authority.
func (i *Identity) renew(ctx context.Context, a *Authority) error {
	c, err := a.open(ctx)
	if err != nil {
		return err
	}
	p := i.now()
	if !c.cert.Equal(p.ca) {
		return lode.Errorf(lode.Conflict, "the bus holds the CA of another cluster than %s", p.cluster)
	}
	der, err := c.sign(p.key.Public(), p.node, i.clock.Now())
	if err != nil {
		return err
	}
	fresh, err := newPapers(p.ca.Raw, der, p.key)
	if err != nil {
		return err
	}
	if err := writeFile(i.dir, fileCert, encodePEM("CERTIFICATE", der), 0o644); err != nil {
		return err
	}
	i.cur.Store(fresh)
	return nil
}
