package gateway

import (
	"net"
	"net/http"
	"net/netip"
	"strings"

	"lode"
)

// checkHost refuses a Host that this node does not answer for: a web page can
// point a name of its own at the node's address and would otherwise speak to it
// with the browser of whoever visits it. It cannot do so with an address: a
// public node answers for all of them, since it may be reached through one that
// it does not have itself. Load balancers ask /healthz and /readyz by whatever
// name they like.
func (g *Gateway) checkHost(r *http.Request) error {
	host := hostOf(r.Host)
	own := isLoopback(host) || g.cfg.Public && isAddress(host)
	if !own {
		_, declared := g.currentTable().domains[host]
		if declared || g.cfg.Public && (g.hosts[host] || probe(r)) {
			return nil // not remembered: a domain may come and go
		}
		return g.misdirected(r)
	}
	remembered := r.Host
	g.okHost.Store(&remembered)
	return nil
}

func (g *Gateway) misdirected(r *http.Request) error {
	if g.cfg.Public {
		return lode.Errorf(lode.Misdirected, "this node does not answer for the host %q", r.Host).
			WithHint("use its address, or tell it the name: lode up --host %s", hostOf(r.Host))
	}
	return lode.Errorf(lode.Misdirected, "this node listens on loopback and does not answer for the host %q", r.Host).
		WithHint("use http://127.0.0.1, or let the proxy before the node set Host to localhost")
}

// probe reports whether r only asks how the node is.
func probe(r *http.Request) bool { return r.URL.Path == "/healthz" || r.URL.Path == "/readyz" }

func isAddress(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil
}

// hostOf is the Host header without its port, in lower case.
func hostOf(hostport string) string {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.TrimSuffix(strings.TrimPrefix(hostport, "["), "]")
	}
	return strings.TrimSuffix(strings.ToLower(host), ".")
}

func isLoopback(host string) bool {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true // RFC 6761: browsers resolve these themselves
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

// checkOrigin refuses what a browser sends on behalf of a page of another
// origin. Programs send neither header.
func (g *Gateway) checkOrigin(r *http.Request) error {
	if sameOrigin(r) {
		return nil
	}
	return lode.Errorf(lode.Denied, "a page of another origin may not use this door").
		WithHint("give the function a route and cors, and call the route")
}

func sameOrigin(r *http.Request) bool {
	if v := r.Header["Sec-Fetch-Site"]; len(v) > 0 && v[0] != "same-origin" && v[0] != "none" {
		return false
	}
	v := r.Header["Origin"]
	if len(v) == 0 {
		return true
	}
	scheme, host, ok := strings.Cut(v[0], "://")
	return ok && (scheme == "http" || scheme == "https") && strings.EqualFold(host, r.Host)
}

// grant checks the bearer token of r.
func (g *Gateway) grant(r *http.Request, local bool) (Grant, error) {
	if local {
		return Grant{Role: RoleAdmin}, nil
	}
	token, ok := bearer(r)
	if !ok {
		return Grant{}, lode.Errorf(lode.Unauthenticated, "this door needs a token").
			WithHint("send Authorization: Bearer TOKEN; lode up wrote one to admin.token in its data folder")
	}
	if err := g.mayTry(r, token); err != nil {
		return Grant{}, err
	}
	grant, err := g.cfg.Tokens.Check(r.Context(), token)
	if ours(token) {
		g.tried(r, token, err)
	}
	return grant, err
}

// ours reports whether a token looks like one of Lode's: others, which the
// callers of public functions use for themselves, are not guesses at one.
func ours(token string) bool { return strings.HasPrefix(token, "lt_") }

// mayTry refuses an address of a public node that has shown too many bad
// tokens or signatures lately, unless this one was good before.
func (g *Gateway) mayTry(r *http.Request, secret string) error {
	if !g.cfg.Public {
		return nil
	}
	wait := g.failures.wait(r.RemoteAddr, secret)
	if wait <= 0 {
		return nil
	}
	e := lode.Errorf(lode.Overloaded, "too many bad tokens came from this address").WithHint("wait, then use a token that lode token create made")
	e.RetryAfter = wait
	return e
}

// tried notes how a token or signature did.
func (g *Gateway) tried(r *http.Request, secret string, err error) {
	switch {
	case !g.cfg.Public:
	case err == nil:
		g.failures.good(secret)
	case lode.KindOf(err) == lode.Unauthenticated:
		if g.failures.bad(r.RemoteAddr) {
			g.cfg.Log.Warn("too many bad tokens from one address; its guesses are refused for a while", "from", r.RemoteAddr)
		}
	}
}

func bearer(r *http.Request) (string, bool) {
	v := r.Header["Authorization"]
	if len(v) != 1 || len(v[0]) < 8 || !strings.EqualFold(v[0][:7], "bearer ") {
		return "", false
	}
	token := strings.TrimSpace(v[0][7:])
	return token, token != ""
}

// mayCall says whether the role lets its holder call functions.
func (r Role) mayCall() bool { return r == RoleAdmin || r == RoleDeploy || r == RoleCall }

// caller is who calls, as far as the door found out.
type caller struct {
	ns      lode.Namespace
	grant   Grant
	checked bool  // a token was shown and is good: it is not for the function
	waits   error // a token was shown and not looked at; see mayTry
}

// identify finds the namespace of a request, and checks the token if there
// must be one or, on a public node, if one is shown. need: without a token the
// request is refused at once.
func (g *Gateway) identify(r *http.Request, local, need bool) (caller, error) {
	var c caller
	if local {
		c.grant, c.checked = Grant{Role: RoleAdmin}, true
	} else if g.cfg.Public {
		var err error
		if c, err = g.identifyToken(r, need); err != nil {
			return c, err
		}
	}
	ns, err := g.namespace(r, c.grant)
	if err != nil {
		return c, err
	}
	c.ns = ns
	if c.checked && c.grant.Namespace != "" && c.grant.Namespace != ns {
		return c, lode.Errorf(lode.Denied, "the token is for namespace %s, not %s", c.grant.Namespace, ns)
	}
	return c, nil
}

func (g *Gateway) identifyToken(r *http.Request, need bool) (c caller, err error) {
	grant, err := g.grant(r, false)
	if err == nil {
		return caller{grant: grant, checked: true}, nil
	}
	if need {
		return c, err
	}
	if lode.KindOf(err) == lode.Overloaded {
		c.waits = err
	}
	return c, nil // a public function's callers may use Authorization for themselves
}

// namespace is that of the header, else the domain's, else the token's, else
// the default one.
func (g *Gateway) namespace(r *http.Request, grant Grant) (lode.Namespace, error) {
	if v := r.Header["Lode-Namespace"]; len(v) > 0 {
		n, err := lode.ParseName(v[0])
		return lode.Namespace(n), err
	}
	if prev := g.okHost.Load(); prev == nil || *prev != r.Host {
		if ns, ok := g.currentTable().domains[hostOf(r.Host)]; ok {
			return ns, nil
		}
	}
	if grant.Namespace != "" {
		return grant.Namespace, nil
	}
	return lode.DefaultNamespace, nil
}

// What may have an access.
const (
	aFunction = "function"
	aKind     = "kind"
)

// admit applies the access of a function or kind to the caller.
func (g *Gateway) admit(c *caller, access lode.Access, what string, name lode.Name) error {
	known := !g.cfg.Public || c.checked
	switch {
	case access == lode.AccessInternal && known:
		return lode.Errorf(lode.Denied, "%s %s is internal: only other functions and triggers may call it", what, name).
			WithHint("change its access in lode.yaml, or call it from another function")
	case access == lode.AccessPublic:
		return nil
	case !known && c.waits != nil:
		return c.waits
	case !known:
		return lode.Errorf(lode.Unauthenticated, "%s %s needs a token", what, name).
			WithHint("send Authorization: Bearer TOKEN, or give it access: public")
	case c.checked && !c.grant.Role.mayCall():
		return lode.Errorf(lode.Denied, "a token of role %s may not call functions", c.grant.Role).
			WithHint("make one with lode token create --role call")
	}
	return nil
}
