package catalog

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"lode"
)

// Route is one declared route of a live revision.
type Route struct {
	Pattern   string // http.ServeMux: [METHOD ][HOST]/path/{id}/{rest...}
	Namespace lode.Namespace
	Function  lode.Name
}

func (r Route) String() string { return string(r.Namespace) + "/" + string(r.Function) }

// reserved are the paths of Lode's own doors: a route there would never be
// reached.
var reserved = [...]string{"/fn/", "/v1/", "/agents/", "/queues/", "/events", "/2015-03-31/", "/2021-11-15/", "/healthz", "/readyz", "/metrics"}

// checkRoute reports what is wrong with a pattern by itself.
func checkRoute(name lode.Name, pattern string) error {
	if msg := register(new(http.ServeMux), pattern); msg != "" {
		return lode.Errorf(lode.Invalid, "function %s: route %q: %s", name, pattern, msg).
			WithHint("a route is [METHOD ][HOST]/path/{id}/{rest...}")
	}
	_, path, _ := strings.Cut(pattern, "/")
	for _, r := range reserved {
		if p := "/" + path; p == strings.TrimSuffix(r, "/") || p == r || strings.HasSuffix(r, "/") && strings.HasPrefix(p, r) {
			return lode.Errorf(lode.Invalid, "function %s: route %q is one of Lode's own paths", name, pattern).
				WithHint("choose another path; /fn/%s is always there", name)
		}
	}
	return nil
}

// register adds a pattern to mux and returns what the mux has against it.
// ServeMux can only be asked by panicking; the panic ends here.
func register(mux *http.ServeMux, pattern string) (msg string) {
	defer func() {
		if p := recover(); p != nil {
			msg = strings.TrimPrefix(fmt.Sprint(p), "http: ")
		}
	}()
	mux.Handle(pattern, http.NotFoundHandler())
	return ""
}

// checkRoutes finds two routes that no request could decide between.
func checkRoutes(routes []Route) error {
	mux := new(http.ServeMux)
	for i, r := range routes {
		if register(mux, r.Pattern) == "" {
			continue
		}
		// One of those before is the other half: find it.
		for _, before := range routes[:i] {
			pair := new(http.ServeMux)
			register(pair, before.Pattern)
			if register(pair, r.Pattern) == "" {
				continue
			}
			if before.Pattern == r.Pattern {
				return lode.Errorf(lode.Conflict, "functions %s and %s have the same route %q", before, r, r.Pattern).
					WithHint("change the route of one of them")
			}
			return lode.Errorf(lode.Conflict, "route %q of function %s and route %q of function %s match the same requests, and neither is more specific",
				before.Pattern, before, r.Pattern, r).WithHint("make one of the two more specific")
		}
		return lode.Errorf(lode.Conflict, "route %q of function %s conflicts with another one", r.Pattern, r)
	}
	return nil
}

// routesOf lists the routes of live revisions, ordered, so that every node
// sees the same.
func routesOf(spaces map[lode.Namespace]*space) []Route {
	var out []Route
	for ns, s := range spaces {
		for name, e := range s.names {
			if e.Live == nil {
				continue
			}
			for _, p := range e.Live.Function.Routes {
				out = append(out, Route{p, ns, name})
			}
		}
	}
	slices.SortFunc(out, func(a, b Route) int {
		return strings.Compare(a.String()+" "+a.Pattern, b.String()+" "+b.Pattern)
	})
	return out
}
