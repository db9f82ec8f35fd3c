package api

import (
	"slices"
	"strings"

	"lode"
)

// route is one line of the table from which both the handler and the OpenAPI
// document are made.
type route struct {
	id      string // noun.verb; OpenAPI's operationId and the audit's action
	method  string
	path    string
	role    Role
	write   bool // audited
	summary string
	query   []param
	body    any    // zero value of the JSON body, or nil
	bodyRaw string // media type of a body that is not JSON
	reply   any    // zero value of the JSON answer, or nil
	rawType string // media type of an answer that is not JSON
	serve   func(*call) error
}

// param is a query parameter.
type param struct {
	name, kind, about string // kind: string, integer, boolean
}

var (
	paging  = []param{{"limit", "integer", "items at most, 1 to 1000, default 100"}, {"after", "string", "next of the page before"}}
	waiting = []param{{"wait", "string", "answer when it has ended, or after this long (30s); at most a minute"}}
	version = []param{{"version", "integer", "0 or none: the newest"}}
)

// routes is the table. It is made anew for each server: nothing is shared.
func routes() []route {
	return slices.Concat(appRoutes(), agentRoutes(), callRoutes(), dataRoutes(), jobRoutes(), safeRoutes(), nodeRoutes(), seeRoutes())
}

// nouns lists the first path elements, for suggestions.
func nouns() []string {
	var out []string
	for _, rt := range routes() {
		out = append(out, strings.Split(rt.path, "/")[2])
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// missing is the answer of a noun that this node does not have.
func missing(noun string) error {
	return lode.Errorf(lode.Unavailable, "this node has no %s", noun)
}

// listing serves one page of a list.
func listing[T any](c *call, get func(Page) (List[T], error)) error {
	p, err := c.page()
	if err != nil {
		return err
	}
	l, err := get(p)
	if err != nil {
		return err
	}
	if l.Items == nil {
		l.Items = []T{}
	}
	return c.json(l, "")
}

// named serves what is about the path value key.
func named(c *call, key string, do func(lode.Name) error) error {
	n, err := c.name(key)
	if err != nil {
		return err
	}
	return do(n)
}
