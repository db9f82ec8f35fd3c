package lode

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// Namespace is the unit of isolation between users. Every name lives in one.
// Its law is that of Name. The empty namespace is never valid: doors resolve
// it to DefaultNamespace.
type Namespace string

// DefaultNamespace is used where a request names none.
const DefaultNamespace Namespace = "default"

// Name names a function, an agent kind, a service, a queue, a dataset or a
// flow. Law: [a-z][a-z0-9-]{0,47}; one name space for all of them in a
// Namespace.
type Name string

// ParseName checks s against the law of names. The error is of kind Invalid
// and hints at a name that would do.
func ParseName(s string) (Name, error) {
	if validName(s) {
		return Name(s), nil
	}
	e := Errorf(Invalid, "%q is not a name: want a lower-case letter, then up to 47 letters, digits or hyphens", s)
	if fix := fixName(s); fix != "" {
		e.Hint = fmt.Sprintf("%q would do", fix)
	}
	return "", e
}

func validName(s string) bool {
	if len(s) == 0 || len(s) > 48 || s[0] < 'a' || s[0] > 'z' {
		return false
	}
	for i := 1; i < len(s); i++ {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-') {
			return false
		}
	}
	return true
}

// fixName bends s into a valid name, or returns "".
func fixName(s string) string {
	var b strings.Builder
	for _, c := range strings.ToLower(s) {
		switch {
		case c >= 'a' && c <= 'z', b.Len() > 0 && (c >= '0' && c <= '9' || c == '-'):
			b.WriteRune(c)
		case b.Len() > 0 && (c == '_' || c == '.' || c == ' ' || c == '/'):
			b.WriteByte('-')
		}
		if b.Len() == 48 {
			break
		}
	}
	return strings.TrimRight(b.String(), "-")
}

// Address is where a call goes: a function ("censor") or an agent
// ("cart/alice"). A key is at most 512 bytes.
type Address struct {
	Name Name
	Key  string // empty for a function
}

// ParseAddress reads "name" or "name/key".
func ParseAddress(s string) (Address, error) {
	name, key, has := strings.Cut(s, "/")
	n, err := ParseName(name)
	if err != nil {
		return Address{}, err
	}
	if has && key == "" {
		return Address{}, Errorf(Invalid, "address %q has an empty key", s)
	}
	if len(key) > 512 {
		return Address{}, Errorf(Invalid, "the key of address %s/... has %d bytes; at most 512", n, len(key))
	}
	return Address{n, key}, nil
}

func (a Address) String() string {
	if a.Key == "" {
		return string(a.Name)
	}
	return string(a.Name) + "/" + a.Key
}

// Digest is the BLAKE3-256 of some bytes: the name of a blob, an artifact, a
// shard. The zero Digest names nothing.
type Digest [32]byte

func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// Short is the first 12 hexadecimal digits, for people.
func (d Digest) Short() string { return hex.EncodeToString(d[:6]) }

// IsZero reports whether d names nothing.
func (d Digest) IsZero() bool { return d == Digest{} }

// MarshalText writes 64 hexadecimal digits; the zero Digest is "".
func (d Digest) MarshalText() ([]byte, error) {
	if d.IsZero() {
		return nil, nil
	}
	return []byte(d.String()), nil
}

// UnmarshalText reads what MarshalText wrote.
func (d *Digest) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*d = Digest{}
		return nil
	}
	if len(b) != 64 {
		return Errorf(Invalid, "a digest has 64 hexadecimal digits, not %d", len(b))
	}
	if _, err := hex.Decode(d[:], b); err != nil {
		return Errorf(Invalid, "digest %q: %v", b, err)
	}
	return nil
}
