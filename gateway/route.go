package gateway

import (
	"net/http"
	"strconv"
	"strings"

	"lode"
)

// table is the declared routes at one generation of the directory. It does
// not change.
type table struct {
	g          *Gateway
	generation uint64
	mux        *http.ServeMux
	hosts      map[string]bool // hosts that patterns name
	domains    map[string]lode.Namespace
}

// currentTable is the table of the directory's generation; it is built by the
// first request that sees a new one.
func (g *Gateway) currentTable() *table {
	want := g.cfg.Directory.Generation()
	if t := g.table.Load(); t != nil && t.generation == want {
		return t
	}
	g.building.Lock()
	defer g.building.Unlock()
	if t := g.table.Load(); t != nil && t.generation == want {
		return t
	}
	t := g.newTable(want)
	g.table.Store(t)
	return t
}

func (g *Gateway) newTable(generation uint64) *table {
	routes, domains := g.cfg.Directory.Routes()
	t := &table{g: g, generation: generation, mux: http.NewServeMux(), hosts: map[string]bool{}, domains: make(map[string]lode.Namespace, len(domains))}
	for host, ns := range domains {
		t.domains[hostOf(host)] = ns
	}
	all := false
	for _, route := range routes {
		if err := t.add(route); err != nil {
			// The catalog refuses these at deploy. One that got through must
			// not take the other routes with it.
			g.cfg.Log.Error("route left out", "pattern", route.Pattern, "function", route.Function, "err", err)
			continue
		}
		_, host, path := splitPattern(route.Pattern)
		if host != "" {
			t.hosts[hostOf(host)] = true
		}
		all = all || host == "" && path == "/"
	}
	if !all {
		t.mux.Handle("/", noRoute{t})
	}
	return t
}

// add registers a route; ServeMux panics at a pattern that is malformed or in
// conflict, which becomes an error here.
func (t *table) add(route Route) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = lode.Errorf(lode.Conflict, "%v", p)
		}
	}()
	_, _, path := splitPattern(route.Pattern)
	t.mux.Handle(route.Pattern, &routed{t.g, route, wildcards(path)})
	return nil
}

// serve answers by the declared routes.
func (t *table) serve(w http.ResponseWriter, r *http.Request) { t.mux.ServeHTTP(w, r) }

// hostRoutes returns the table if a route that names the host of r matches:
// such a host belongs to its routes before it belongs to Lode's own doors.
// Else it returns nil.
func (g *Gateway) hostRoutes(r *http.Request) *table {
	if prev := g.okHost.Load(); prev != nil && *prev == r.Host {
		return nil // a loopback name is Lode's own
	}
	t := g.currentTable()
	if len(t.hosts) == 0 {
		return nil
	}
	host := hostOf(r.Host)
	if !t.hosts[host] || isLoopback(host) {
		return nil
	}
	if _, pattern := t.mux.Handler(r); pattern != "" {
		if _, named, _ := splitPattern(pattern); named != "" {
			return t
		}
	}
	return nil
}

// routed is the handler of one declared route.
type routed struct {
	g     *Gateway
	route Route
	names []string // of its wildcards
}

func (h *routed) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g := h.g
	c, err := g.identify(r, false, false)
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	c.ns = h.route.Namespace
	if c.checked && c.grant.Namespace != "" && c.grant.Namespace != c.ns {
		c.checked = false // a token for elsewhere is no token here
	}
	name := h.route.Function
	access, fn, ok := g.function(c.ns, name)
	if !ok {
		g.refuse(w, r, lode.Errorf(lode.Gone, "the function behind this route was removed"))
		return
	}
	allow, done := g.cors(w, r, fn)
	if done {
		return
	}
	if err := g.admit(&c, access, aFunction, name); err != nil {
		g.refuse(w, r, err)
		return
	}
	x := g.newExchange(w, r)
	x.ans.allow = allow
	x.req.Path = requestURI(r)
	for _, n := range h.names {
		x.pairs = append(x.pairs, lode.Pair{Key: ":route." + n, Value: r.PathValue(n)})
	}
	g.run(x, w, r, &c, name, fn)
}

// noRoute answers what no declared route matches: 405 where another method
// would, the preflight of a route that names its method, else 404.
type noRoute struct{ t *table }

func (n noRoute) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g := n.t.g
	if h := n.preflighted(r); h != nil {
		if _, fn, ok := g.function(h.route.Namespace, h.route.Function); ok {
			if _, done := g.cors(w, r, fn); done {
				return
			}
		}
	}
	if allow := n.methods(r); len(allow) > 0 {
		list := strings.Join(allow, ", ")
		w.Header().Set("Allow", list)
		g.refuse(w, r, badMethod(r, list))
		return
	}
	g.refuse(w, r, lode.Errorf(lode.NotFound, "no route for %s", r.URL.Path).
		WithHint("functions are at /fn/NAME; lode ls shows what is deployed"))
}

// preflighted is the route that a CORS preflight asks about.
func (n noRoute) preflighted(r *http.Request) *routed {
	v := r.Header["Access-Control-Request-Method"]
	if r.Method != http.MethodOptions || len(v) == 0 {
		return nil
	}
	return n.as(r, v[0])
}

func (n noRoute) as(r *http.Request, method string) *routed {
	other := *r
	other.Method = method
	h, _ := n.t.mux.Handler(&other)
	route, _ := h.(*routed)
	return route
}

func (n noRoute) methods(r *http.Request) []string {
	var allow []string
	for _, m := range []string{"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"} {
		if n.as(r, m) != nil {
			allow = append(allow, m)
		}
	}
	return allow
}

// splitPattern takes a ServeMux pattern apart.
func splitPattern(p string) (method, host, path string) {
	if m, rest, ok := strings.Cut(p, " "); ok {
		method, p = m, strings.TrimLeft(rest, " \t")
	}
	if i := strings.IndexByte(p, '/'); i >= 0 {
		return method, p[:i], p[i:]
	}
	return method, p, ""
}

// wildcards are the names in a pattern's path.
func wildcards(path string) []string {
	var names []string
	for segment := range strings.SplitSeq(path, "/") {
		if n, ok := strings.CutPrefix(segment, "{"); ok {
			n = strings.TrimSuffix(strings.TrimSuffix(n, "}"), "...")
			if n != "$" {
				names = append(names, n)
			}
		}
	}
	return names
}

// cors answers a preflight (then done) and tells which origin may read the
// answer. Both are empty where the function has no cors or the origin is not
// allowed.
func (g *Gateway) cors(w http.ResponseWriter, r *http.Request, fn *lode.Function) (allow string, done bool) {
	origin := r.Header["Origin"]
	if fn.CORS == nil || len(origin) == 0 {
		return "", false
	}
	allow = allowOrigin(fn.CORS, origin[0])
	method := r.Header["Access-Control-Request-Method"]
	if r.Method != http.MethodOptions || len(method) == 0 {
		return allow, false
	}
	h := w.Header()
	h.Set("Vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers")
	if allow != "" {
		h.Set("Access-Control-Allow-Origin", allow)
		h.Set("Access-Control-Allow-Methods", method[0])
		if headers := allowHeaders(fn.CORS, r.Header.Get("Access-Control-Request-Headers")); headers != "" {
			h.Set("Access-Control-Allow-Headers", headers)
		}
		if s := int(fn.CORS.MaxAge.Seconds()); s > 0 {
			h.Set("Access-Control-Max-Age", strconv.Itoa(s))
		}
	}
	w.WriteHeader(http.StatusNoContent)
	return allow, true
}

func allowOrigin(c *lode.CORS, origin string) string {
	if len(c.Origins) == 0 {
		return "*"
	}
	for _, o := range c.Origins {
		if o == "*" {
			return "*"
		}
		if strings.EqualFold(strings.TrimSuffix(o, "/"), origin) {
			return origin
		}
	}
	return ""
}

// allowHeaders is the declared list, or what was asked for where none is.
func allowHeaders(c *lode.CORS, asked string) string {
	if len(c.Headers) == 0 {
		return asked
	}
	return strings.Join(c.Headers, ", ")
}

// setCORS lets a page of the allowed origin read the answer.
func setCORS(h http.Header, allow string) {
	h.Set("Access-Control-Allow-Origin", allow)
	if allow != "*" {
		h.Add("Vary", "Origin")
	}
	if _, ok := h["Access-Control-Expose-Headers"]; !ok {
		h.Set("Access-Control-Expose-Headers", "Lode-Invocation, Lode-Error, Lode-Node, Lode-Cold, Lode-Repeated, Server-Timing, Location, Retry-After")
	}
}
