package member

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"time"

	"lode"
)

// joinVersion is the version of Request and Answer.
const joinVersion = 1

// The messages of the join protocol.
const (
	msgRequest = 'J'
	msgAnswer  = 'A'
	msgProblem = 'E'

	maxRequest = 64 << 10
	maxAnswer  = 8 << 20
)

// Request is what a joiner asks.
type Request struct {
	Version int       `json:"version"` // 1
	Secret  string    `json:"secret"`  // of the token
	Name    string    `json:"name"`    // wanted at all costs; "": Host, with a number behind it if it is taken
	Host    string    `json:"host"`    // wanted where Name is ""
	CSR     []byte    `json:"csr"`     // PKCS #10 DER, for an Ed25519 key, signed with it
	Node    Record    `json:"node"`    // addresses, zone, labels, version, what it has; the rest is the server's to fill in
	Clock   time.Time `json:"clock"`   // of the joiner
}

// Answer is what makes the joiner a node of the cluster.
type Answer struct {
	Version int         `json:"version"` // 1
	Cluster string      `json:"cluster"`
	Node    lode.NodeID `json:"node"` // the joiner's name from now on
	Cert    []byte      `json:"cert"` // DER
	CA      []byte      `json:"ca"`   // DER
	Shared  Shared      `json:"shared"`
	Nodes   []Record    `json:"nodes"` // all of them, the joiner too
}

// Shared is what all nodes of a cluster have in common besides the CA. The
// bytes mean nothing here.
type Shared struct {
	Secrets []byte `json:"secrets"` // secrets.key
	Code    []byte `json:"code"`    // code.key
	Layout  []byte `json:"layout"`  // of the bus: generation and members
}

func writeMessage(w io.Writer, kind byte, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return lode.Errorf(lode.Internal, "write a message of the join protocol: %w", err)
	}
	if limit := limitOf(kind); len(b) > limit {
		return lode.Errorf(lode.TooLarge, "a message of the join protocol has %d bytes; at most %d", len(b), limit)
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(b))), b...))
	return err
}

func limitOf(kind byte) int {
	switch kind {
	case msgRequest:
		return maxRequest
	case msgAnswer:
		return maxAnswer
	case msgProblem:
		return maxProblem
	}
	return -1
}

// readMessage reads one message. Its length is believed only as far as bytes
// come.
func readMessage(r io.Reader) (byte, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n, limit := binary.BigEndian.Uint32(head[1:]), limitOf(head[0])
	if limit < 0 || int64(n) > int64(limit) {
		return 0, nil, lode.Errorf(lode.Invalid, "the other side does not speak the join protocol")
	}
	var b bytes.Buffer
	if _, err := io.CopyN(&b, r, int64(n)); errors.Is(err, io.EOF) {
		return 0, nil, io.ErrUnexpectedEOF
	} else if err != nil {
		return 0, nil, err
	}
	return head[0], b.Bytes(), nil
}

// readRequest reads and checks what a joiner sends. The returned CSR is signed
// with the key that it is for.
func readRequest(r io.Reader) (*Request, *x509.CertificateRequest, error) {
	kind, b, err := readMessage(r)
	if err != nil {
		return nil, nil, err
	}
	var q Request
	if kind != msgRequest || json.Unmarshal(b, &q) != nil {
		return nil, nil, lode.Errorf(lode.Invalid, "the request to join cannot be read")
	}
	if q.Version != joinVersion {
		return nil, nil, lode.Errorf(lode.Precondition, "the request to join has version %d, and this node understands %d", q.Version, joinVersion).
			WithHint("lode version on both machines; upgrade the older one")
	}
	if len(q.Secret) > maxText || len(q.Host) > maxText {
		return nil, nil, lode.Errorf(lode.Invalid, "the request to join has texts that are too long")
	}
	if q.Name != "" {
		if _, err := lode.ParseNodeID(q.Name); err != nil {
			return nil, nil, err
		}
	}
	csr, err := x509.ParseCertificateRequest(q.CSR)
	if err == nil {
		if _, ok := csr.PublicKey.(ed25519.PublicKey); ok && csr.CheckSignature() == nil { // other kinds of keys can be made to take long
			return &q, csr, nil
		}
	}
	return nil, nil, lode.Errorf(lode.Invalid, "the request to join has no valid certificate request for an Ed25519 key")
}

// readAnswer reads what a server answers: the Answer, or its error.
func readAnswer(r io.Reader) (*Answer, error) {
	kind, b, err := readMessage(r)
	if err != nil {
		return nil, err
	}
	var a Answer
	switch {
	case kind == msgProblem:
		return nil, readProblem(b)
	case kind != msgAnswer || json.Unmarshal(b, &a) != nil:
		return nil, lode.Errorf(lode.Invalid, "the answer to the request to join cannot be read")
	case a.Version != joinVersion:
		return nil, lode.Errorf(lode.Precondition, "the answer to the request to join has version %d, and this node understands %d", a.Version, joinVersion).
			WithHint("lode version on both machines; upgrade the older one")
	}
	return &a, nil
}
