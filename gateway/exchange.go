package gateway

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"lode"
)

// exchange is one request and its answer, with everything that they need in
// one piece, so that a call costs few allocations. It comes from Gateway.pool
// and goes back there when its door is done; nobody keeps a part of it.
type exchange struct {
	g      *Gateway
	req    lode.Request
	call   lode.AgentCall
	ans    answer
	pairs  []lode.Pair // backs req.Head
	inline []byte      // backs req.Body
	up     *upload     // behind req.Stream, or nil
}

// Pooled parts that grew beyond these go to the collector instead.
const (
	keepPairs  = 128
	keepInline = Inline
)

func newExchange(g *Gateway) *exchange {
	return &exchange{g: g, pairs: make([]lode.Pair, 0, 24)}
}

func (g *Gateway) newExchange(w http.ResponseWriter, r *http.Request) *exchange {
	x := g.pool.Get().(*exchange)
	x.ans.begin(g, w, r)
	return x
}

func (x *exchange) release() {
	if cap(x.pairs) > keepPairs {
		x.pairs = make([]lode.Pair, 0, 24)
	}
	clear(x.pairs[:cap(x.pairs)])
	x.pairs = x.pairs[:0]
	if cap(x.inline) > keepInline {
		x.inline = nil
	}
	x.req, x.call, x.up = lode.Request{}, lode.AgentCall{}, nil
	x.ans.end()
	x.g.pool.Put(x)
}

// fill makes the lode.Request out of an HTTP request, all but the body.
func (x *exchange) fill(r *http.Request, c *caller, name lode.Name, trigger lode.Trigger) error {
	q := &x.req
	q.Namespace, q.Function, q.Trigger = c.ns, name, trigger
	q.Method = r.Method
	err := x.terms(r)
	if err != nil {
		return err
	}
	if x.pairs, err = appendHead(x.pairs, r, c.checked); err != nil {
		return err
	}
	q.Head = x.pairs
	return nil
}

// terms gives the request its id and reads what its sender asks of Lode.
func (x *exchange) terms(r *http.Request) error {
	now := time.Now()
	q := &x.req
	q.ID = lode.NewInvocationID(now)
	x.ans.id = q.ID
	if v := r.Header["Traceparent"]; len(v) == 1 {
		q.Trace = v[0]
	}
	if v := r.Header["Idempotency-Key"]; len(v) > 0 {
		if len(v[0]) > 255 {
			return lode.Errorf(lode.Invalid, "the idempotency key has %d bytes; at most 255", len(v[0]))
		}
		q.IdempotencyKey = v[0]
	}
	if v := r.Header["Lode-Deadline"]; len(v) > 0 {
		ms, err := strconv.ParseInt(v[0], 10, 64)
		if err != nil || ms <= 0 || ms > int64(7*24*time.Hour/time.Millisecond) {
			return lode.Errorf(lode.Invalid, "Lode-Deadline is %q: want milliseconds from now, 1 to 604800000", v[0])
		}
		q.Deadline = now.Add(time.Duration(ms) * time.Millisecond)
	}
	return nil
}

// pathBelow is the path and query of r below a prefix of n bytes of its
// decoded path, which holds nothing that needs an escape: "/fn/name".
func pathBelow(r *http.Request, n int) string {
	uri := requestURI(r)
	if len(uri) < n || uri[:n] != r.URL.Path[:n] {
		// somebody escaped what needs none; the decoded form says the same
		rest := *r.URL
		rest.Path, rest.RawPath = r.URL.Path[n:], ""
		uri, n = rest.RequestURI(), 0
	}
	rest := uri[n:]
	switch {
	case rest == "":
		return "/"
	case rest[0] != '/':
		return "/" + rest
	}
	return rest
}

// requestURI is path and query as the client wrote them.
func requestURI(r *http.Request) string {
	if strings.HasPrefix(r.RequestURI, "/") {
		return r.RequestURI
	}
	return r.URL.RequestURI() // absolute form, or "*"
}
