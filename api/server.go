package api

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"lode"
)

const (
	maxJSON   = 32 << 20 // bytes of a JSON body; an app with 1,000 functions has some 4 MiB
	maxSecret = 64 << 10
	maxWait   = 60 * time.Second
	maxLimit  = 1000
	stdLimit  = 100
)

// Server serves /v1. It has no state of its own and nothing to close.
type Server struct {
	b   Backend
	mux *http.ServeMux
	log *slog.Logger
	now func() time.Time
}

// ServerOption changes a Server.
type ServerOption func(*Server)

// WithLogger makes the server log what went wrong behind an internal error.
// Without it such causes are dropped: they never leave through the door.
func WithLogger(l *slog.Logger) ServerOption { return func(s *Server) { s.log = l } }

// NewServer makes the handler of /v1. It is to be mounted at "/v1/", with the
// prefix left in place.
func NewServer(b Backend, opts ...ServerOption) *Server {
	s := &Server{b: b, mux: http.NewServeMux(), log: slog.New(slog.DiscardHandler), now: time.Now}
	for _, o := range opts {
		o(s)
	}
	for _, rt := range routes() {
		s.mux.Handle(rt.method+" "+rt.path, s.handler(rt))
	}
	s.mux.HandleFunc("/", s.noRoute)
	return s
}

var _ http.Handler = (*Server)(nil)

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// call is one request on its way through a route.
type call struct {
	*Server
	w      http.ResponseWriter
	r      *http.Request
	ns     lode.Namespace
	grant  Grant
	status int  // what was sent, for the audit
	sent   bool // the head has left
}

func (s *Server) handler(rt route) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c := &call{Server: s, w: w, r: r, status: http.StatusOK}
		err := c.admit(rt)
		if err == nil {
			err = rt.serve(c)
		}
		if err != nil {
			c.fail(err)
		}
		if rt.write && !(r.URL.Query().Get("plan") == "1") {
			c.audit(rt, err)
		}
	}
}

// admit finds the grant and the namespace, and checks both against the route.
func (c *call) admit(rt route) error {
	g, ok := GrantOf(c.r.Context())
	if !ok {
		var err error
		if g, err = c.authenticate(); err != nil {
			return err
		}
		c.r = c.r.WithContext(WithGrant(c.r.Context(), g))
	}
	c.grant = g
	if c.r.Header.Get(localHeader) == "1" {
		if _, ok := PeerOf(c.r.Context()); ok { // of anybody else the field means nothing
			c.r = c.r.WithContext(withLocal(c.r.Context()))
		}
	}
	if !g.Role.May(rt.role) {
		return lode.Errorf(lode.Denied, "%s needs the role %s; this token has %s", rt.id, rt.role, g.Role).
			WithHint("ask an admin for: lode token create --role %s", rt.role)
	}
	ns, err := namespaceOf(c.r.Header.Get("Lode-Namespace"), g)
	c.ns = ns
	return err
}

func (c *call) authenticate() (Grant, error) {
	const hint = "pass the token in DIR/admin.token, or one of lode token create, as Authorization: Bearer"
	scheme, token, ok := strings.Cut(c.r.Header.Get("Authorization"), " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") || token == "" {
		return Grant{}, lode.Errorf(lode.Unauthenticated, "the management API needs a token").WithHint(hint)
	}
	if c.b.Tokens == nil {
		return Grant{}, lode.Errorf(lode.Unauthenticated, "this node takes no tokens").WithHint("use the node's unix socket")
	}
	return c.b.Tokens.Authenticate(c.r.Context(), strings.TrimSpace(token))
}

// namespaceOf resolves the namespace of a request: the header's, else the
// token's, else the default.
func namespaceOf(header string, g Grant) (lode.Namespace, error) {
	ns := lode.Namespace(header)
	if ns == "" {
		ns = g.Namespace
	}
	if ns == "" {
		ns = lode.DefaultNamespace
	}
	if _, err := lode.ParseName(string(ns)); err != nil {
		return "", lode.Errorf(lode.Invalid, "namespace: %w", err).WithHint("%s", lode.AsError(err).Hint)
	}
	if g.Namespace != "" && g.Namespace != ns {
		return "", lode.Errorf(lode.Denied, "this token is for namespace %s, not for %s", g.Namespace, ns).
			WithHint("leave out -n, or use a token of %s", ns)
	}
	return ns, nil
}

func (c *call) audit(rt route, err error) {
	if c.b.Audit == nil {
		return
	}
	e := AuditEntry{At: c.now().UTC(), Token: c.grant.Token, Role: c.grant.Role, Namespace: c.ns, Action: rt.id,
		Target: c.r.URL.Path, Status: c.status, Kind: lode.KindOf(err), From: c.r.RemoteAddr}
	if err := c.b.Audit.RecordAudit(c.r.Context(), e); err != nil {
		c.log.Error("the audit log took no entry", "action", rt.id, "target", e.Target, "err", err)
	}
}

// fail sends err as a problem, or cuts the answer short if it has begun.
func (c *call) fail(err error) {
	e := lode.AsError(err)
	if e.Kind == lode.Internal || e.Kind == lode.Damaged {
		c.log.Error("management request failed", "method", c.r.Method, "path", c.r.URL.Path, "err", err)
	}
	c.status = e.Kind.Status()
	if !c.sent {
		c.sent = true
		WriteError(c.w, e)
		return
	}
	if c.w.Header().Get("Trailer") != "" { // the client reads trailers
		b, _ := json.Marshal(e)
		c.w.Header().Set(errorTrailer, string(b))
		return
	}
	// The one way that net/http has to tell a client that a body of unknown
	// length is not whole.
	panic(http.ErrAbortHandler)
}

// errorTrailer carries the problem of an answer that was cut short, for
// clients that sent "TE: trailers".
const errorTrailer = "Lode-Problem"

// WriteError sends err as problem+json.
func WriteError(w http.ResponseWriter, err error) {
	e := lode.AsError(err)
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Lode-Error", string(e.Kind))
	h.Del("Trailer")
	if e.Kind == lode.Unauthenticated {
		h.Set("WWW-Authenticate", `Bearer realm="lode"`)
	}
	if e.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int((e.RetryAfter+time.Second-1)/time.Second)))
	}
	w.WriteHeader(e.Kind.Status())
	json.NewEncoder(w).Encode(e)
}

// json sends v, with an ETag if there is one.
func (c *call) json(v any, etag string) error {
	if etag = strings.Trim(etag, `"`); etag != "" {
		c.w.Header().Set("ETag", strconv.Quote(etag))
		if c.r.Method == http.MethodGet && slices.Contains(etags(c.r.Header.Get("If-None-Match")), etag) {
			c.begin("", http.StatusNotModified)
			return nil
		}
	}
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	c.begin("application/json", http.StatusOK)
	_, err = c.w.Write(append(b, '\n'))
	return c.gone(err)
}

// begin sends the head.
func (c *call) begin(contentType string, status int) {
	if contentType != "" {
		c.w.Header().Set("Content-Type", contentType)
	}
	c.status, c.sent = status, true
	c.w.WriteHeader(status)
}

func (c *call) noContent() error {
	c.begin("", http.StatusNoContent)
	return nil
}

// gone turns the error of a write to a client that left into nil: there is
// nobody to tell.
func (c *call) gone(err error) error {
	if err != nil && c.r.Context().Err() != nil {
		return nil
	}
	return err
}

// read decodes the JSON body into v.
func (c *call) read(v any) error {
	if ct := c.r.Header.Get("Content-Type"); ct != "" && !strings.Contains(ct, "json") && !strings.HasPrefix(ct, "application/x-www-form-urlencoded") {
		return lode.Errorf(lode.Invalid, "the body is %s; this route takes application/json", ct)
	}
	d := json.NewDecoder(http.MaxBytesReader(c.w, c.r.Body, maxJSON))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return bodyError(err)
	}
	if _, err := d.Token(); err != io.EOF {
		return lode.Errorf(lode.Invalid, "there is more than one JSON value in the body")
	}
	return nil
}

// bodyError classes what reading a request body ended with.
func bodyError(err error) error {
	var tooBig *http.MaxBytesError
	switch {
	case errors.As(err, &tooBig):
		return lode.Errorf(lode.TooLarge, "the body is over %d bytes", tooBig.Limit)
	case errors.Is(err, io.EOF):
		return lode.Errorf(lode.Invalid, "the body is empty; this route takes JSON")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return lode.Errorf(lode.Invalid, "the body was cut short: %w", err)
	}
	e, ok := errors.AsType[*lode.Error](err)
	if ok {
		return e
	}
	return lode.Errorf(lode.Invalid, "the body cannot be read as JSON: %s", strings.TrimPrefix(err.Error(), "json: "))
}

// etags splits an If-Match or If-None-Match header; weak marks are dropped.
func etags(header string) []string {
	var out []string
	for part := range strings.SplitSeq(header, ",") {
		part = strings.TrimPrefix(strings.TrimSpace(part), "W/")
		if part != "" {
			out = append(out, strings.Trim(part, `"`))
		}
	}
	return out
}

func (c *call) ifMatch() (string, error) {
	tags := etags(c.r.Header.Get("If-Match"))
	if len(tags) > 1 {
		return "", lode.Errorf(lode.Invalid, "If-Match takes one ETag here")
	}
	if len(tags) == 0 {
		return "", nil
	}
	return tags[0], nil
}

// noRoute answers what no route takes: 405 with the methods that would do, or
// 404 with the nearest path.
func (s *Server) noRoute(w http.ResponseWriter, r *http.Request) {
	var allow []string
	for _, m := range []string{"GET", "PUT", "POST", "DELETE", "HEAD"} {
		probe := &http.Request{Method: m, URL: &url.URL{Path: r.URL.Path}, Host: r.Host}
		if _, pattern := s.mux.Handler(probe); pattern != "/" && pattern != "" {
			allow = append(allow, m)
		}
	}
	if len(allow) > 0 {
		w.Header().Set("Allow", strings.Join(allow, ", "))
		WriteError(w, lode.Errorf(lode.BadMethod, "%s does not take %s", r.URL.Path, r.Method).WithHint("it takes %s", strings.Join(allow, ", ")))
		return
	}
	e := lode.Errorf(lode.NotFound, "the management API has no %s", r.URL.Path).WithHint("GET /v1/openapi.json lists what there is")
	parts := strings.Split(r.URL.Path, "/")
	if len(parts) > 2 {
		if near := lode.Suggest(parts[2], nouns()); near != "" && near != parts[2] {
			parts[2] = near
			e.WithHint("did you mean %s?", strings.Join(parts, "/"))
		}
	}
	WriteError(w, e)
}
