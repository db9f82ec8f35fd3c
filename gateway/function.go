package gateway

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"

	"lode"
)

// serveFunction is /fn/{name}[/{path...}].
func (g *Gateway) serveFunction(w http.ResponseWriter, r *http.Request, local bool) {
	name := r.URL.Path[len("/fn/"):]
	if i := strings.IndexByte(name, '/'); i >= 0 {
		name = name[:i]
	}
	c, err := g.identify(r, local, false)
	if err != nil {
		g.refuse(w, r, err)
		return
	}
	access, fn, ok := g.function(c.ns, lode.Name(name))
	if !ok {
		g.refuse(w, r, g.missing(r, &c, name))
		return
	}
	allow, done := g.cors(w, r, fn)
	if done {
		return
	}
	if allow == "" {
		if err := g.checkOrigin(r); err != nil {
			g.refuse(w, r, err)
			return
		}
	}
	if err := g.admit(&c, access, aFunction, lode.Name(name)); err != nil {
		g.refuse(w, r, err)
		return
	}
	x := g.newExchange(w, r)
	x.ans.allow = allow
	x.req.Path = pathBelow(r, len("/fn/")+len(name))
	x.req.Alias = alias(r)
	g.run(x, w, r, &c, lode.Name(name), fn)
}

// function finds the live revision of a function; kinds of agents are none.
func (g *Gateway) function(ns lode.Namespace, name lode.Name) (lode.Access, *lode.Function, bool) {
	access, fn, ok := g.cfg.Directory.Lookup(ns, name)
	return access, fn, ok && fn.Agent == nil
}

// missing is the refusal of a function that is not there. Strangers do not
// learn which names there are.
func (g *Gateway) missing(r *http.Request, c *caller, name string) error {
	switch {
	case !sameOrigin(r):
		return g.checkOrigin(r)
	case g.cfg.Public && !c.checked:
		return g.admit(c, lode.AccessToken, aFunction, lode.Name(name)) // as for one that is there
	}
	return g.unknownFunction(c.ns, name)
}

func alias(r *http.Request) string {
	if !strings.Contains(r.URL.RawQuery, "alias=") {
		return ""
	}
	q, _ := url.ParseQuery(r.URL.RawQuery) // what can be read of it
	return q.Get("alias")
}

// run takes an admitted call to its end and releases x.
func (g *Gateway) run(x *exchange, w http.ResponseWriter, r *http.Request, c *caller, name lode.Name, fn *lode.Function) {
	err := x.fill(r, c, name, lode.TriggerHTTP)
	if err == nil {
		if v := r.Header["Prefer"]; len(v) > 0 && r.Method == http.MethodPost && listed(v, "respond-async") {
			g.submit(x, w, r, fn)
			return
		}
		err = x.readBody(w, r, fn.Limits.Body)
	}
	if err != nil {
		x.ans.fail(err)
		x.release()
		return
	}
	if !g.answer(x, r) {
		panic(http.ErrAbortHandler) // net/http's way to cut a connection; nothing else tells the client
	}
}

// answer invokes, and releases x unless Invoke panics. false: the answer has
// begun and must be cut.
func (g *Gateway) answer(x *exchange, r *http.Request) (whole bool) {
	returned := false
	defer func() {
		if !returned { // nobody may touch w any more; x is left to the collector
			x.ans.abandon()
		}
	}()
	out, err := g.cfg.Invoker.Invoke(r.Context(), &x.req, &x.ans)
	returned = true
	if x.up != nil {
		x.up.finish()
	}
	whole = x.ans.finish(&out, err)
	x.release()
	return whole
}

// submit is Prefer: respond-async (RFC 7240).
func (g *Gateway) submit(x *exchange, w http.ResponseWriter, r *http.Request, fn *lode.Function) {
	defer x.release()
	x.req.Trigger = lode.TriggerAsync
	err := x.readAll(w, r, bodyLimit(fn.Limits.Body))
	var id lode.InvocationID
	if err == nil {
		id, err = g.cfg.Invoker.Submit(r.Context(), &x.req)
	}
	if err != nil {
		x.ans.fail(err)
		return
	}
	h := w.Header()
	h.Set("Location", "/v1/calls/"+string(id))
	h.Set("Preference-Applied", "respond-async")
	h.Set("Lode-Invocation", string(id))
	if x.ans.allow != "" {
		setCORS(h, x.ans.allow)
	}
	g.accepted(w, string(id))
}

// accepted answers 202 with the id of what was taken.
func (g *Gateway) accepted(w http.ResponseWriter, id string) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	if g.cfg.Node != "" {
		h.Set("Lode-Node", g.cfg.Node)
	}
	w.WriteHeader(http.StatusAccepted)
	b, _ := json.Marshal(map[string]string{"id": id}) // strings always marshal
	_, _ = w.Write(append(b, '\n'))
}
