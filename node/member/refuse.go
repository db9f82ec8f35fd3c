package member

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"lode"
)

// Why the peer port refused a connection, as Listener.Refused counts it.
const (
	WhyGarbage       = "garbage"        // did not speak TLS
	WhyTimeout       = "timeout"        // took too long to prove itself
	WhyLeft          = "left"           // went away before it had proved itself
	WhyProtocol      = "protocol"       // asked for none of the protocols of this port
	WhyNoCertificate = "no_certificate" // showed none
	WhyExpired       = "expired"        // showed one that has expired or not begun
	WhyWrongCA       = "wrong_ca"       // showed one that another CA signed
	WhyWrongName     = "wrong_name"     // showed one that names no node of this cluster
	WhyRemoved       = "removed"        // the node was removed
	WhyUnknown       = "unknown"        // no such node, or another one has its name
	WhyTooMany       = "too_many"       // too many strangers at once
	WhyJoin          = "join"           // a joiner was refused
	WhyTLS           = "tls"            // the handshake failed otherwise
)

// words say a refusal to whoever reads the log.
func words(why string) string {
	switch why {
	case WhyGarbage:
		return "it does not speak TLS, so it is no Lode node"
	case WhyTimeout:
		return "it took too long to say who it is"
	case WhyLeft:
		return "it went away before it had said who it is"
	case WhyProtocol:
		return "it asks for a protocol that this node does not speak"
	case WhyNoCertificate:
		return "it has no certificate"
	case WhyExpired:
		return "its certificate has expired or has not begun; compare the clocks of both machines"
	case WhyWrongCA:
		return "its certificate is of another cluster"
	case WhyWrongName:
		return "its certificate is of no node of this cluster"
	case WhyRemoved:
		return "it was removed from the cluster"
	case WhyUnknown:
		return "the cluster has no such node"
	case WhyTooMany:
		return "too many connections have not said yet who they are"
	case WhyJoin:
		return "it may not join"
	}
	return "the TLS handshake failed"
}

// claimed is the name in a certificate that was not believed, or "".
func claimed(err error) string {
	if bad, ok := errors.AsType[*tls.CertificateVerificationError](err); ok && len(bad.UnverifiedCertificates) > 0 {
		name := bad.UnverifiedCertificates[0].Subject.CommonName
		return name[:min(len(name), maxText)]
	}
	return ""
}

// sayAgain is how long the same refusal of the same address is only counted.
const (
	sayAgain = 10 * time.Second
	maxSaid  = 1024
)

// refuse counts a refusal, and logs it unless it was logged a moment ago.
func (l *Listener) refuse(c net.Conn, why string, err error) {
	if l.ctx.Err() != nil {
		return // the port is closing
	}
	host, now := hostOf(c), time.Now()
	l.mu.Lock()
	l.refused[why]++
	key := why + " " + host
	say := now.Sub(l.said[key]) >= sayAgain
	if say {
		if len(l.said) >= maxSaid {
			clear(l.said)
		}
		l.said[key] = now
	}
	l.mu.Unlock()
	if say {
		l.cfg.Logger.Warn("refused a connection to the peer port: "+words(why), "why", why, "from", c.RemoteAddr().String(), "claims", claimed(err), "error", err)
	}
}

// whyHandshake classes a failed handshake of the server's side.
func whyHandshake(err error, offered []string) string {
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return WhyGarbage
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return WhyTimeout
	case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed), errors.Is(err, io.ErrUnexpectedEOF), isReset(err):
		return WhyLeft
	}
	if why := whyCertificate(err); why != "" {
		return why
	}
	if !slices.ContainsFunc(offered, func(p string) bool { return p == Link || p == Bus || p == join }) {
		return WhyProtocol
	}
	if strings.Contains(err.Error(), "didn't provide a certificate") {
		return WhyNoCertificate
	}
	return whyOf(err)
}

// whyCertificate classes what verification says of a certificate; "" for
// anything else.
func whyCertificate(err error) string {
	if bad, ok := errors.AsType[x509.CertificateInvalidError](err); ok && bad.Reason == x509.Expired {
		return WhyExpired
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return WhyWrongCA
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return WhyWrongName
	}
	return ""
}

// whyOf classes the errors of this package.
func whyOf(err error) string {
	e, ok := errors.AsType[*lode.Error](err)
	switch {
	case !ok:
		return WhyTLS
	case e.Kind == lode.Gone:
		return WhyRemoved
	case errors.Is(e, errUnknown):
		return WhyUnknown
	case e.Kind == lode.Denied:
		return WhyWrongName
	case e.Kind == lode.Unauthenticated:
		return WhyNoCertificate
	case e.Kind == lode.Unavailable:
		return WhyProtocol
	}
	return WhyTLS
}

func isReset(err error) bool {
	s := err.Error()
	return strings.Contains(s, "connection reset by peer") || strings.Contains(s, "broken pipe")
}
