package api

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"strings"
	"time"

	"lode"
)

// Role is what a token may do. Each role may do what the ones after it may:
// admin, deploy, call, read.
type Role string

// The roles.
const (
	RoleAdmin  Role = "admin"  // everything, tokens too
	RoleDeploy Role = "deploy" // apps, data, jobs, secrets of its namespace
	RoleCall   Role = "call"   // invoke, run jobs, look
	RoleRead   Role = "read"   // look
)

var rank = map[Role]int{RoleRead: 1, RoleCall: 2, RoleDeploy: 3, RoleAdmin: 4}

// May reports whether r includes need.
func (r Role) May(need Role) bool { return rank[r] >= rank[need] && rank[need] > 0 }

// Roles lists the roles, mightiest first.
func Roles() []Role { return []Role{RoleAdmin, RoleDeploy, RoleCall, RoleRead} }

// Grant is who asks, and what they may.
type Grant struct {
	Token     string         `json:"token"` // id; "socket" for the node's own unix socket
	Role      Role           `json:"role"`
	Namespace lode.Namespace `json:"namespace,omitempty"` // "": any
	Expires   time.Time      `json:"expires,omitzero"`
}

type grantKey struct{}

// WithGrant puts a grant into a context. A listener that knows its callers
// (the unix socket, which only its owner can open) does so in ConnContext; the
// server then asks for no token.
func WithGrant(ctx context.Context, g Grant) context.Context {
	return context.WithValue(ctx, grantKey{}, g)
}

// GrantOf returns the grant that the server, or a listener, put into ctx.
func GrantOf(ctx context.Context) (Grant, bool) {
	g, ok := ctx.Value(grantKey{}).(Grant)
	return g, ok
}

// TokenSpec asks for a token.
type TokenSpec struct {
	Role      Role           `json:"role"`
	Namespace lode.Namespace `json:"namespace,omitempty"` // "": any; only an admin of any may ask for that
	For       time.Duration  `json:"for,omitempty"`       // 0: until revoked
	Note      string         `json:"note,omitempty"`
	AWS       bool           `json:"aws,omitempty"` // also a key pair for the Lambda API
}

// Token is the outside of a token.
type Token struct {
	ID        string         `json:"id"`
	Role      Role           `json:"role"`
	Namespace lode.Namespace `json:"namespace,omitempty"`
	Note      string         `json:"note,omitempty"`
	Created   time.Time      `json:"created"`
	Expires   time.Time      `json:"expires,omitzero"`
	Last      time.Time      `json:"last,omitzero"`
	AWS       string         `json:"aws_access_key,omitempty"` // it has a key pair too
	Join      bool           `json:"join,omitempty"`           // lets nodes in, and does nothing else
	Uses      int            `json:"uses,omitempty"`           // with Join: nodes that it still lets in
}

// NewToken is a token with its secret, told once.
type NewToken struct {
	Token
	Secret       string `json:"secret"`                   // lt_<id>_<secret>
	AWSAccessKey string `json:"aws_access_key,omitempty"` // AWS_ACCESS_KEY_ID
	AWSSecretKey string `json:"aws_secret_key,omitempty"` // AWS_SECRET_ACCESS_KEY
}

// A token is "lt_" id "_" secret: id 16 and secret 48 lower-case hexadecimal
// digits. What is kept of it is the SHA-256 of the whole; the secret has 192
// random bits, so a slow hash would buy nothing.
const (
	tokenPrefix  = "lt_"
	tokenIDLen   = 16
	tokenHashLen = 2 * sha256.Size
)

// An AWS key pair belongs to a token and ends with it. The access key is
// "LODE" and the token's id in upper case, 20 characters as AWS's have, so that
// it is found by the id; the secret key is 40 characters of base64, 240 random
// bits. A signature can be checked only by who knows the secret key: what is
// kept of it must be sealed, not hashed.
const awsPrefix = "LODE"

// AWSAccessKey is the access key of the token with that id.
func AWSAccessKey(id string) string { return awsPrefix + strings.ToUpper(id) }

// AWSTokenID is the id of the token that an access key belongs to; false if it
// cannot be one of ours.
func AWSTokenID(access string) (string, bool) {
	id, ok := strings.CutPrefix(access, awsPrefix)
	if !ok || len(id) != tokenIDLen || strings.ToUpper(id) != id {
		return "", false
	}
	if _, err := hex.DecodeString(id); err != nil {
		return "", false
	}
	return strings.ToLower(id), true
}

// MintAWSSecret makes a secret key.
func MintAWSSecret() string {
	var b [30]byte
	rand.Read(b[:]) // never fails
	return base64.StdEncoding.EncodeToString(b[:])
}

// MintToken makes a token.
func MintToken() (id, token string) {
	var b [8 + 24]byte
	rand.Read(b[:]) // never fails
	id = hex.EncodeToString(b[:8])
	return id, tokenPrefix + id + "_" + hex.EncodeToString(b[8:])
}

// HashToken is what to keep of a token: 64 hexadecimal digits.
func HashToken(token string) string {
	h := sha256.Sum256([]byte(token))
	return hex.EncodeToString(h[:])
}

// TokenID is the id inside a token; false if it cannot be one.
func TokenID(token string) (string, bool) {
	rest, ok := strings.CutPrefix(token, tokenPrefix)
	if !ok {
		return "", false
	}
	id, secret, ok := strings.Cut(rest, "_")
	if !ok || len(id) != tokenIDLen || len(secret) != 48 {
		return "", false
	}
	if _, err := hex.DecodeString(id + secret); err != nil {
		return "", false
	}
	return id, true
}

// TokenMatches compares a token with a kept hash, in constant time.
func TokenMatches(token, hash string) bool {
	got := HashToken(token)
	return len(hash) == tokenHashLen && subtle.ConstantTimeCompare([]byte(got), []byte(hash)) == 1
}
