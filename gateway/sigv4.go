package gateway

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"
	"time"

	"lode"
)

const (
	sigv4 = "AWS4-HMAC-SHA256"
	// clockSkew is how far the time of a signature may be from ours.
	clockSkew = 5 * time.Minute
	amzTime   = "20060102T150405Z"
)

// isSigned reports whether r carries an AWS signature, version 4.
func isSigned(r *http.Request) bool {
	return strings.HasPrefix(r.Header.Get("Authorization"), sigv4+" ")
}

// identifySigned checks the signature of r against the access keys of the
// node, and that the body is the one that was signed.
func (g *Gateway) identifySigned(r *http.Request, body []byte) (caller, error) {
	keys, ok := g.cfg.Tokens.(Keys)
	if !ok {
		return caller{}, lode.Errorf(lode.Unauthenticated, "this node has no AWS access keys").WithHint("send Authorization: Bearer TOKEN")
	}
	s, err := parseSignature(r.Header.Get("Authorization"))
	if err != nil {
		return caller{}, err
	}
	if err := g.mayTry(r, s.access); err != nil {
		return caller{}, err
	}
	secret, grant, err := keys.Secret(r.Context(), s.access)
	if err == nil {
		err = s.check(r, secret, body, time.Now())
	}
	g.tried(r, s.access, err)
	if err != nil {
		return caller{}, err
	}
	c := caller{grant: grant, checked: true}
	if c.ns, err = g.namespace(r, grant); err != nil {
		return c, err
	}
	if grant.Namespace != "" && grant.Namespace != c.ns {
		return c, lode.Errorf(lode.Denied, "the access key is for namespace %s, not %s", grant.Namespace, c.ns)
	}
	return c, nil
}

// signature is the header Authorization of a signed request:
//
//	AWS4-HMAC-SHA256 Credential=ACCESS/DATE/REGION/SERVICE/aws4_request, SignedHeaders=a;b, Signature=HEX
type signature struct {
	access  string
	scope   [4]string // date, region, service, aws4_request
	headers []string
	sum     []byte
}

func parseSignature(header string) (*signature, error) {
	malformed := lode.Errorf(lode.Unauthenticated, "the header Authorization is not an AWS signature of version 4")
	var s signature
	rest, ok := strings.CutPrefix(header, sigv4+" ")
	if !ok {
		return nil, malformed
	}
	for field := range strings.SplitSeq(rest, ",") {
		k, v, _ := strings.Cut(strings.TrimSpace(field), "=")
		switch k {
		case "Credential":
			parts := strings.Split(v, "/")
			if len(parts) != 5 {
				return nil, malformed
			}
			s.access = parts[0]
			copy(s.scope[:], parts[1:])
		case "SignedHeaders":
			s.headers = strings.Split(v, ";")
		case "Signature":
			sum, err := hex.DecodeString(v)
			if err != nil {
				return nil, malformed
			}
			s.sum = sum
		}
	}
	if s.access == "" || len(s.sum) != sha256.Size || !slices.Contains(s.headers, "host") || s.scope[3] != "aws4_request" {
		return nil, malformed
	}
	return &s, nil
}

// check computes the signature again.
func (s *signature) check(r *http.Request, secret string, body []byte, now time.Time) error {
	date := r.Header.Get("X-Amz-Date")
	at, err := time.Parse(amzTime, date)
	if err != nil || !strings.HasPrefix(date, s.scope[0]) || !slices.Contains(s.headers, "x-amz-date") {
		return lode.Errorf(lode.Unauthenticated, "the signature has no valid X-Amz-Date")
	}
	if d := now.Sub(at); d > clockSkew || d < -clockSkew {
		return lode.Errorf(lode.Unauthenticated, "the signature is of %s, too far from this node's %s", date, now.UTC().Format(amzTime)).WithHint("set the clock")
	}
	request := sha256.Sum256([]byte(s.canonical(r, body)))
	text := strings.Join([]string{sigv4, date, strings.Join(s.scope[:], "/"), hex.EncodeToString(request[:])}, "\n")
	key := []byte("AWS4" + secret)
	for _, part := range s.scope {
		key = mac(key, part)
	}
	if !hmac.Equal(mac(key, text), s.sum) {
		return lode.Errorf(lode.Unauthenticated, "the request signature we calculated does not match the signature you provided")
	}
	return nil
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text)) // never fails
	return h.Sum(nil)
}

// canonical is the canonical request of AWS's description: method, path,
// query, signed headers, their names, digest of the body.
func (s *signature) canonical(r *http.Request, body []byte) string {
	var b strings.Builder
	path, query, _ := strings.Cut(requestURI(r), "?")
	b.WriteString(r.Method + "\n" + uriEncode(path, true) + "\n" + canonicalQuery(query) + "\n")
	for _, name := range s.headers {
		value := strings.Join(r.Header.Values(name), ",")
		if name == "host" {
			value = r.Host
		}
		b.WriteString(name + ":" + strings.Join(strings.Fields(value), " ") + "\n")
	}
	digest := sha256.Sum256(body)
	b.WriteString("\n" + strings.Join(s.headers, ";") + "\n" + hex.EncodeToString(digest[:]))
	return b.String()
}

// canonicalQuery sorts the parameters, each encoded anew.
func canonicalQuery(raw string) string {
	if raw == "" {
		return ""
	}
	var list []string
	for pair := range strings.SplitSeq(raw, "&") {
		k, v, _ := strings.Cut(pair, "=")
		list = append(list, uriEncode(unescape(k), false)+"="+uriEncode(unescape(v), false))
	}
	slices.Sort(list)
	return strings.Join(list, "&")
}

// unescape undoes percent-encoding; a plus stands for itself.
func unescape(s string) string {
	var b []byte
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if c, err := hex.DecodeString(s[i+1 : i+3]); err == nil {
				b = append(b, c[0])
				i += 2
				continue
			}
		}
		b = append(b, s[i])
	}
	return string(b)
}

// uriEncode percent-encodes all bytes but the unreserved ones of RFC 3986.
func uriEncode(s string, keepSlash bool) string {
	const digits = "0123456789ABCDEF"
	var b []byte
	for i := range len(s) {
		c := s[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~", c) >= 0 || keepSlash && c == '/' {
			b = append(b, c)
			continue
		}
		b = append(b, '%', digits[c>>4], digits[c&15])
	}
	return string(b)
}
