package gateway

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"lode"
)

// Invoker runs invocations. Implementations are safe for concurrent use.
type Invoker interface {
	// Invoke runs req and hands its answer to a. It keeps neither req nor what
	// it points to, nor a, after it has returned, and returns soon after ctx is
	// done. req.Stream, if any, is an io.Closer: Close makes a Read that waits
	// for the client return.
	//
	// If a has the method Started(cold bool, queued time.Duration), it may be
	// called once before Head, to tell the client of a streamed answer; so may
	// Ran(node lode.NodeID), if another node runs it; if it has Flush(), calling
	// that hands on what was written so far (the guest is about to wait). All
	// are optional.
	Invoke(ctx context.Context, req *lode.Request, a lode.Answer) (lode.Outcome, error)
	// Submit stores req durably and returns its id; it copies what it keeps.
	// The same IdempotencyKey with the same body gives the same id.
	Submit(ctx context.Context, req *lode.Request) (lode.InvocationID, error)
	// PutQueue appends a message durably and returns its id; key, if not
	// empty, deduplicates. It does not keep body.
	PutQueue(ctx context.Context, ns lode.Namespace, queue lode.Name, key string, delay time.Duration, contentType string, body []byte) (id string, err error)
}

// Directory says what is deployed. Implementations are safe for concurrent
// use, answer from memory, and never change what they returned.
type Directory interface {
	// Lookup finds the live revision of a function.
	Lookup(ns lode.Namespace, name lode.Name) (access lode.Access, fn *lode.Function, ok bool)
	// Names lists the functions of a namespace, for "did you mean".
	Names(ns lode.Namespace) []string
	// Generation changes whenever Routes would answer something else.
	Generation() uint64
	// Routes lists the declared routes and the declared domains of all
	// namespaces. Patterns do not conflict: the catalog refuses such deploys.
	Routes() ([]Route, map[string]lode.Namespace)
}

// Route is one declared route.
type Route struct {
	Pattern   string // http.ServeMux: [METHOD ][HOST]/path/{id}/{rest...}
	Namespace lode.Namespace
	Function  lode.Name
}

// Role is what a token may do: admin > deploy > call, and read.
type Role string

// The roles.
const (
	RoleAdmin  Role = "admin"
	RoleDeploy Role = "deploy"
	RoleCall   Role = "call"
	RoleRead   Role = "read"
)

// Grant is what a token stands for.
type Grant struct {
	Role      Role
	Namespace lode.Namespace // "": all
}

// Tokens checks bearer tokens.
type Tokens interface {
	// Check returns the grant of token, or an error of kind Unauthenticated.
	Check(ctx context.Context, token string) (Grant, error)
}

// Keys is an optional ability of Tokens: the secret behind an AWS access key
// made by `lode token create --aws`, or an error of kind Unauthenticated for
// one that is unknown, revoked or expired. Without it, requests signed for AWS
// are refused on a node that is not loopback-only.
type Keys interface {
	Secret(ctx context.Context, accessKey string) (secret string, g Grant, err error)
}

// Logs finds what an invocation logged; for X-Amz-Log-Result.
type Logs interface {
	// Tail returns the last lines that the invocation logged, at most max
	// bytes, each line ended by \n.
	Tail(ctx context.Context, ns lode.Namespace, id lode.InvocationID, max int) []byte
}

// Config is what a Gateway is made of. Invoker, Directory and Tokens must be
// set; the zero value of everything else works.
type Config struct {
	Node      string // reply header Lode-Node
	Invoker   Invoker
	Directory Directory
	Tokens    Tokens
	Logs      Logs   // nil: no X-Amz-Log-Result
	Agents    Agents // nil: the door /agents answers 503

	// Public says that the node listens on more than loopback: tokens are
	// asked for at every door but public functions, /healthz and /readyz; Host
	// must be an address, one of Hosts, or a declared domain. False: Host must
	// be a loopback name or a declared domain, and functions are open. Both
	// ways cross-origin browser requests reach declared routes only.
	Public bool
	// Hosts are the names that a public node is reached by: its own, and that
	// of a load balancer before it.
	Hosts []string

	// Manage answers /v1; the gateway has checked the token and passes its
	// grant. nil: 503.
	Manage func(w http.ResponseWriter, r *http.Request, g Grant)
	// Metrics answers /metrics. nil: 404.
	Metrics http.Handler
	// Ready answers /readyz; an error is 503. nil: always ready.
	Ready func(context.Context) error
	// Refused is told of every answer that the gateway makes itself, by kind;
	// it must not block. nil: nobody is told.
	Refused func(kind lode.Kind)
	Log     *slog.Logger // nil: slog.Default

	HeaderTimeout time.Duration // to send a request's head, 10 s
	IdleTimeout   time.Duration // of a kept-alive connection, 2 min
	FirstTimeout  time.Duration // to send the first 64 KiB of a body, 30 s
	BodyTimeout   time.Duration // between two reads or writes of a body, 5 min
	PingEvery     time.Duration // a WebSocket that says nothing for so long is pinged, and given up after twice that, 30 s
	BeatEvery     time.Duration // a comment on a stream of events, 15 s

	// Linger is how long Shutdown goes on answering, with Connection: close and
	// /readyz at 503, so that clients and load balancers have gone elsewhere
	// before the listener closes. It ends early once nobody is connected. It is
	// asked then; nil or 0: not at all, which is right where nobody could go
	// elsewhere.
	Linger func() time.Duration
}

// Gateway is the doors. It is an http.Handler; Serve runs it on a listener.
type Gateway struct {
	cfg      Config
	table    atomic.Pointer[table]
	building sync.Mutex // one rebuild of table at a time
	okHost   atomic.Pointer[string]
	pool     sync.Pool // *exchange
	sweeper  *sweeper
	hosts    map[string]bool
	failures *failures
	draining atomic.Bool
	servers  serverSet
	sockets  *socketSet
	ending   context.Context // over when Shutdown has lingered: ends streams that have no end of their own
	end      context.CancelFunc
}

// New makes a Gateway. Close it.
func New(cfg Config) (*Gateway, error) {
	if cfg.Invoker == nil || cfg.Directory == nil || cfg.Tokens == nil {
		return nil, lode.Errorf(lode.Internal, "gateway: Invoker, Directory and Tokens must be set")
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	orDefault(&cfg.HeaderTimeout, 10*time.Second)
	orDefault(&cfg.IdleTimeout, 2*time.Minute)
	orDefault(&cfg.FirstTimeout, 30*time.Second)
	orDefault(&cfg.BodyTimeout, 5*time.Minute)
	orDefault(&cfg.PingEvery, 30*time.Second)
	orDefault(&cfg.BeatEvery, 15*time.Second)
	g := &Gateway{cfg: cfg, sweeper: newSweeper(), failures: newFailures(), sockets: newSocketSet(), hosts: map[string]bool{}}
	for _, h := range cfg.Hosts {
		g.hosts[hostOf(h)] = true
	}
	g.ending, g.end = context.WithCancel(context.Background())
	g.pool.New = func() any { return newExchange(g) }
	return g, nil
}

func orDefault(d *time.Duration, v time.Duration) {
	if *d <= 0 {
		*d = v
	}
}

var _ http.Handler = (*Gateway)(nil)

// ServeHTTP answers a request that came over TCP.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if g.draining.Load() {
		goElsewhere(w.Header())
	}
	if prev := g.okHost.Load(); prev == nil || *prev != r.Host {
		if err := g.checkHost(r); err != nil {
			g.refuse(w, r, err)
			return
		}
	}
	if t := g.hostRoutes(r); t != nil {
		t.serve(w, r)
		return
	}
	g.door(w, r, false)
}

// Socket answers requests that came over the node's own unix socket, whose
// file mode is the check: they act as admin, and their Host is not looked at.
func (g *Gateway) Socket() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { g.door(w, r, true) })
}

// door finds the door by the path. local: the caller came over the socket.
func (g *Gateway) door(w http.ResponseWriter, r *http.Request, local bool) {
	p := r.URL.Path
	if strings.HasPrefix(p, "/fn/") {
		g.serveFunction(w, r, local)
		return
	}
	first, _, _ := strings.Cut(strings.TrimPrefix(p, "/"), "/")
	switch first {
	case "v1":
		g.serveManage(w, r, local)
	case "queues":
		g.serveQueue(w, r, local)
	case "2015-03-31", "2021-11-15":
		g.serveLambda(w, r, local)
	case "healthz", "readyz", "metrics":
		g.serveStatus(w, r, local)
	case "agents":
		g.serveAgent(w, r, local)
	case "events":
		g.refuse(w, r, lode.Errorf(lode.Unavailable, "the door /%s is not open in this version", first))
	default:
		g.currentTable().serve(w, r)
	}
}

func (g *Gateway) serveManage(w http.ResponseWriter, r *http.Request, local bool) {
	if err := g.checkOrigin(r); err != nil {
		g.refuse(w, r, err)
		return
	}
	grant, err := g.grant(r, local)
	switch {
	case err != nil:
		g.refuse(w, r, err)
	case g.cfg.Manage == nil:
		g.refuse(w, r, lode.Errorf(lode.Unavailable, "the management door is not open"))
	default:
		if endless(r) {
			ctx, cancel := context.WithCancel(r.Context())
			defer cancel()
			defer context.AfterFunc(g.ending, cancel)()
			r = r.WithContext(ctx)
		}
		g.cfg.Manage(w, r, grant)
	}
}

// endless reports whether the answer may go on for as long as the client
// listens: a log that is followed, a job that is watched. A node that stops
// ends it; the client asks again, elsewhere.
func endless(r *http.Request) bool {
	return strings.HasSuffix(r.URL.Path, "/watch") || r.URL.Path == "/v1/logs" && strings.Contains(r.URL.RawQuery, "follow=")
}

func (g *Gateway) serveStatus(w http.ResponseWriter, r *http.Request, local bool) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		g.refuse(w, r, badMethod(r, "GET, HEAD"))
		return
	}
	switch r.URL.Path {
	case "/healthz":
		writePlain(w, http.StatusOK, "ok\n")
	case "/readyz":
		if err := g.ready(r.Context()); err != nil {
			g.refuse(w, r, err)
			return
		}
		writePlain(w, http.StatusOK, "ready\n")
	case "/metrics":
		g.serveMetrics(w, r, local)
	default:
		g.currentTable().serve(w, r)
	}
}

func (g *Gateway) ready(ctx context.Context) error {
	if g.draining.Load() {
		return lode.Errorf(lode.Unavailable, "this node is draining").WithHint("go to another node")
	}
	if g.cfg.Ready == nil {
		return nil
	}
	err := g.cfg.Ready(ctx)
	if err != nil && lode.KindOf(err) == lode.Internal {
		return &lode.Error{Kind: lode.Unavailable, Detail: err.Error(), Err: err}
	}
	return err
}

func (g *Gateway) serveMetrics(w http.ResponseWriter, r *http.Request, local bool) {
	err := g.checkOrigin(r)
	if err == nil && g.cfg.Public {
		_, err = g.grant(r, local)
	}
	if err == nil && g.cfg.Metrics == nil {
		err = lode.Errorf(lode.NotFound, "this node keeps no metrics")
	}
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	g.cfg.Metrics.ServeHTTP(w, r)
}

func writePlain(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text))
}
