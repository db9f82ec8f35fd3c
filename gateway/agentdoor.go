package gateway

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"lode"
)

// maxKey bounds the key of an agent, in bytes.
const maxKey = 512

// target is what the path of a request to an agent says.
type target struct {
	kind lode.Name
	key  string
	rest string // behind the key, as the client wrote it: "", or from the next slash on
}

// parseTarget reads /agents/KIND/KEY[/REST]. The slashes that count are those
// that the client did not escape: a key may hold others.
func parseTarget(u *url.URL) (target, error) {
	path := u.EscapedPath()
	door, path, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	kind, path, _ := strings.Cut(path, "/")
	key, _, _ := strings.Cut(path, "/")
	t := target{rest: path[len(key):]}
	door, err := url.PathUnescape(door)
	if err != nil || door != "agents" || kind == "" || key == "" {
		return t, lode.Errorf(lode.NotFound, "%s is not the address of an agent", u.Path).WithHint("an agent is at /agents/KIND/KEY, its methods below")
	}
	kind, err = url.PathUnescape(kind)
	if err == nil {
		t.key, err = url.PathUnescape(key)
	}
	switch {
	case err != nil || !utf8.ValidString(t.key):
		return t, lode.Errorf(lode.Invalid, "the key in %q is not UTF-8", u.Path)
	case len(t.key) > maxKey:
		return t, lode.Errorf(lode.Invalid, "the key has %d bytes; at most %d", len(t.key), maxKey)
	}
	t.kind = lode.Name(kind)
	return t, nil
}

// method is the first segment behind the key, and whether it is the only one.
func (t *target) method() (name string, only bool) {
	if t.rest == "" {
		return "", false
	}
	name, _, more := strings.Cut(t.rest[1:], "/")
	name, err := url.PathUnescape(name)
	return name, err == nil && name != "" && !more
}

// abilities is what the code of a kind can do.
type abilities struct {
	methods []string // empty: not known
	read    []string
	fetch   bool
}

func abilitiesOf(fn *lode.Function) (a abilities) {
	class := ""
	if fn.Agent != nil {
		a.methods, a.read, class = fn.Agent.Methods, fn.Agent.Read, fn.Agent.Class
	}
	if fn.Exports == nil {
		return a
	}
	kinds := fn.Exports.Kinds
	for i := range kinds {
		if kinds[i].Name == class || class == "" && len(kinds) == 1 {
			a.fetch = kinds[i].Fetch || kinds[i].Socket
			if len(a.methods) == 0 {
				a.methods = kinds[i].Methods
				a.read = append(slices.Clip(a.read), kinds[i].Read...)
			}
		}
	}
	return a
}

func (a *abilities) has(method string) bool { return slices.Contains(a.methods, method) }

// reads reports whether a method only reads.
func (a *abilities) reads(method string) bool { return slices.Contains(a.read, method) }

// list is the methods, for people.
func (a *abilities) list() string {
	var b strings.Builder
	for i, m := range a.methods {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(m)
		if a.reads(m) {
			b.WriteString(" (read)")
		}
	}
	return b.String()
}

// visit is an admitted request to an agent.
type visit struct {
	target
	abilities
	c     *caller
	fn    *lode.Function
	allow string // Access-Control-Allow-Origin, or empty
}

// serveAgent is /agents/{kind}/{key}[/...].
func (g *Gateway) serveAgent(w http.ResponseWriter, r *http.Request, local bool) {
	if g.cfg.Agents == nil {
		g.refuse(w, r, lode.Errorf(lode.Unavailable, "this node has no agents"))
		return
	}
	t, err := parseTarget(r.URL)
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	c, err := g.identify(r, local, false)
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	access, fn, ok := g.cfg.Agents.Kind(c.ns, t.kind)
	if !ok {
		g.refuse(w, r, g.missingKind(r, &c, t.kind))
		return
	}
	allow, done := g.cors(w, r, fn)
	if done {
		return
	}
	if allow == "" {
		err = g.checkOrigin(r)
	}
	if err == nil {
		err = g.admit(&c, access, aKind, t.kind)
	}
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	g.visit(w, r, &visit{target: t, abilities: abilitiesOf(fn), c: &c, fn: fn, allow: allow})
}

// visit finds out what an admitted request wants: a method, the agent's events,
// or its fetch handler.
func (g *Gateway) visit(w http.ResponseWriter, r *http.Request, v *visit) {
	method, only := v.method()
	switch {
	case only && v.has(method):
		g.callAgent(w, r, v, method)
	case v.rest == "" && r.Method == http.MethodGet && accepts(r, "text/event-stream"):
		g.listen(w, r, v)
	case v.fetch && !v.has(method):
		g.fetchAgent(w, r, v)
	case only && len(v.methods) == 0:
		g.callAgent(w, r, v, method) // its code did not say what it has: the agent will
	default:
		g.turnAway(w, r, v, v.noMethod(method, only))
	}
}

// accepts reports whether the Accept header names a media type.
func accepts(r *http.Request, media string) bool {
	for _, v := range r.Header["Accept"] {
		for item := range strings.SplitSeq(v, ",") {
			item, _, _ = strings.Cut(item, ";")
			if strings.EqualFold(strings.TrimSpace(item), media) {
				return true
			}
		}
	}
	return false
}

// noMethod says that a kind has nothing at a path.
func (v *visit) noMethod(method string, only bool) error {
	var e *lode.Error
	switch {
	case method == "":
		e = lode.Errorf(lode.NotFound, "kind %s has no fetch handler", v.kind)
	case v.has(method):
		e = lode.Errorf(lode.NotFound, "nothing is below the method %s of kind %s", method, v.kind)
	case only:
		e = lode.Errorf(lode.NotFound, "kind %s has no method %q", v.kind, method)
		e.Title = "no such method"
	default:
		e = lode.Errorf(lode.NotFound, "kind %s has no fetch handler and no method %q", v.kind, method)
	}
	hint := ""
	if s := lode.Suggest(method, v.methods); s != "" && !v.has(method) {
		hint = "did you mean \"" + s + "\"? "
	}
	if len(v.methods) == 0 {
		return e.WithHint("its methods are at POST /agents/%s/KEY/METHOD", v.kind)
	}
	return e.WithHint("%smethods: %s", hint, v.list())
}

// turnAway refuses a request that was admitted.
func (g *Gateway) turnAway(w http.ResponseWriter, r *http.Request, v *visit, err error) {
	if v.allow != "" {
		setCORS(w.Header(), v.allow)
	}
	g.refuse(w, r, err)
}

// missingKind is the refusal of a kind that is not there. Strangers do not
// learn which names there are.
func (g *Gateway) missingKind(r *http.Request, c *caller, name lode.Name) error {
	switch {
	case !sameOrigin(r):
		return g.checkOrigin(r)
	case g.cfg.Public && !c.checked:
		return g.admit(c, lode.AccessToken, aKind, name) // as for one that is there
	}
	return g.unknownKind(c.ns, name)
}

func (g *Gateway) unknownKind(ns lode.Namespace, name lode.Name) error {
	if _, _, ok := g.function(ns, name); ok {
		return lode.Errorf(lode.NotFound, "%s is a function, not a kind of agents", name).WithHint("it is called at /fn/%s", name)
	}
	if d, ok := g.cfg.Directory.(explainer); ok {
		if err := d.Absent(ns, name); err != nil {
			return err
		}
	}
	e := lode.Errorf(lode.NotFound, "no kind %q of agents in namespace %s", name, ns)
	kinds := slices.DeleteFunc(slices.Clone(g.cfg.Directory.Names(ns)), func(n string) bool {
		_, _, ok := g.cfg.Agents.Kind(ns, lode.Name(n))
		return !ok
	})
	if s := lode.Suggest(string(name), kinds); s != "" {
		return e.WithHint("did you mean %q?", s)
	}
	return e.WithHint("lode ls shows what is deployed")
}
