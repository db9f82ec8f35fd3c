package gateway

import (
	"net/http"
	"net/textproto"
	"strings"

	"lode"
)

// maxPairs is how many pairs the guest ABI takes in a head; some are left for
// those that Lode adds itself.
const maxPairs = 1024 - 64

// names are header fields in net/http's spelling whose lower-case form is
// looked up instead of made.
var names = [...]string{
	"Accept", "Accept-Charset", "Accept-Encoding", "Accept-Language", "Accept-Ranges", "Access-Control-Request-Headers",
	"Access-Control-Request-Method", "Age", "Allow", "Authorization", "Cache-Control", "Content-Disposition", "Content-Encoding",
	"Content-Language", "Content-Length", "Content-Location", "Content-Range", "Content-Security-Policy", "Content-Type", "Cookie",
	"Date", "Dnt", "Etag", "Expect", "Expires", "Forwarded", "From", "Host", "Idempotency-Key", "If-Match", "If-Modified-Since",
	"If-None-Match", "If-Range", "If-Unmodified-Since", "Last-Event-Id", "Last-Modified", "Link", "Location", "Origin", "Pragma",
	"Prefer", "Priority", "Range", "Referer", "Retry-After", "Sec-Ch-Ua", "Sec-Ch-Ua-Mobile", "Sec-Ch-Ua-Platform", "Sec-Fetch-Dest",
	"Sec-Fetch-Mode", "Sec-Fetch-Site", "Sec-Fetch-User", "Server", "Set-Cookie", "Strict-Transport-Security", "Traceparent",
	"Tracestate", "Upgrade-Insecure-Requests", "User-Agent", "Vary", "Via", "Www-Authenticate", "X-Amz-Client-Context",
	"X-Content-Type-Options", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Frame-Options", "X-Real-Ip",
	"X-Request-Id", "X-Requested-With",
}

// Both directions; never written after they are made.
var lowerNames, canonicalNames = nameTables()

func nameTables() (lower, canonical map[string]string) {
	lower, canonical = make(map[string]string, len(names)), make(map[string]string, len(names))
	for _, n := range names {
		lower[n], canonical[strings.ToLower(n)] = strings.ToLower(n), n
	}
	return lower, canonical
}

func lowerName(canonical string) string {
	if l, ok := lowerNames[canonical]; ok {
		return l
	}
	return strings.ToLower(canonical)
}

// guestName is a function's answer field in net/http's spelling; "" for those
// that a function cannot set: Lode's own words, those of the connection, and
// what net/http would take for something else than a field (its "Trailer:").
func guestName(key string) string {
	if c, ok := canonicalNames[key]; ok {
		return c // none of these is refused
	}
	c := textproto.CanonicalMIMEHeaderKey(key)
	if strings.HasPrefix(c, "Lode-") || strings.IndexByte(c, ':') >= 0 || hopByHop(strings.ToLower(c)) {
		return ""
	}
	return c
}

// appendHead appends the fields of a request, keys in lower case, without
// those that speak of the connection (RFC 9110 section 7.6.1), those that are
// for Lode alone, and, if strip, the token that the door has used up.
func appendHead(head []lode.Pair, r *http.Request, strip bool) ([]lode.Pair, error) {
	head = append(head, lode.Pair{Key: "host", Value: r.Host})
	connection := r.Header["Connection"]
	for k, vs := range r.Header {
		key := lowerName(k)
		if hopByHop(key) || key == "lode-namespace" || key == "lode-deadline" || key == "host" || strip && key == "authorization" ||
			len(connection) > 0 && listed(connection, key) {
			continue
		}
		for _, v := range vs {
			head = append(head, lode.Pair{Key: key, Value: v})
		}
	}
	if len(head) > maxPairs {
		return head, lode.Errorf(lode.Invalid, "the request has %d header fields; at most %d", len(head), maxPairs)
	}
	return head, nil
}

// hopByHop tells the fields that end at this node.
func hopByHop(lower string) bool {
	switch lower {
	case "connection", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade", "http2-settings":
		return true
	}
	return false
}

// listed reports whether a comma-separated list holds the word, in any case.
func listed(values []string, word string) bool {
	for _, v := range values {
		for item := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(item), word) {
				return true
			}
		}
	}
	return false
}

// bodyAllowed says whether an answer may have a body.
func bodyAllowed(method string, status int) bool {
	return method != http.MethodHead && status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}
