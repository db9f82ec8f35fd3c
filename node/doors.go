package node

import (
	"context"
	"strings"
	"time"

	"lode"
	"lode/bus"
	"lode/catalog"
	"lode/data"
	"lode/gateway"
	"lode/internal/telemetry"
)

// directory lets the gateway look things up in the catalog.
type directory struct{ c *catalog.Catalog }

func (d directory) Lookup(ns lode.Namespace, name lode.Name) (lode.Access, *lode.Function, bool) {
	e, ok := d.c.Lookup(ns, name)
	if !ok || e.Kind != catalog.KindFunction || e.Live == nil {
		return "", nil, false
	}
	return e.Live.Function.Access, &e.Live.Function, true
}

// Absent is Gone for what was removed and could still be brought back, Damaged
// for a function whose live revision cannot be read, and says of a kind of
// agents how it is called.
func (d directory) Absent(ns lode.Namespace, name lode.Name) error {
	e, err := d.c.Get(ns, name)
	switch {
	case lode.KindOf(err) == lode.Gone:
		return err
	case err == nil && e.Kind == catalog.KindFunction && e.Live == nil:
		return lode.Errorf(lode.Damaged, "the live revision of function %s cannot be read", name).
			WithHint("deploy it again, or go back: lode rollback %s REV", name)
	case err == nil && e.Kind == catalog.KindAgent:
		_, err = d.c.Resolve(ns, name, "", 0)
		return err
	}
	return nil
}

func (d directory) Names(ns lode.Namespace) []string { return d.c.Names(ns) }
func (d directory) Generation() uint64               { return d.c.Generation() }

func (d directory) Routes() ([]gateway.Route, map[string]lode.Namespace) {
	routes := d.c.Routes()
	out := make([]gateway.Route, len(routes))
	hosts := map[string]lode.Namespace{}
	for i, r := range routes {
		out[i] = gateway.Route{Pattern: r.Pattern, Namespace: r.Namespace, Function: r.Function}
		if h := hostOf(r.Pattern); h != "" {
			hosts[h] = r.Namespace
		}
	}
	return out, hosts
}

// hostOf is the host of a route's pattern, [METHOD ][HOST]/PATH, or "": whoever
// deploys a route for a host declares that the node answers for it.
func hostOf(pattern string) string {
	if _, rest, ok := strings.Cut(pattern, " "); ok {
		pattern = strings.TrimSpace(rest)
	}
	host, _, _ := strings.Cut(pattern, "/")
	return host
}

// checkTokens lets the gateway check bearer tokens.
type checkTokens struct{ t *tokens }

func (c checkTokens) Check(ctx context.Context, token string) (gateway.Grant, error) {
	g, err := c.t.Authenticate(ctx, token)
	return gateway.Grant{Role: gateway.Role(g.Role), Namespace: g.Namespace}, err
}

// Secret finds the secret key behind an AWS access key.
func (c checkTokens) Secret(ctx context.Context, accessKey string) (string, gateway.Grant, error) {
	secret, g, err := c.t.Secret(ctx, accessKey)
	return secret, gateway.Grant{Role: gateway.Role(g.Role), Namespace: g.Namespace}, err
}

// tails lets the gateway find what an invocation logged.
type tails struct{ t *telemetry.Telemetry }

func (t tails) Tail(ctx context.Context, ns lode.Namespace, id lode.InvocationID, max int) []byte {
	return t.t.Tail(ctx, string(ns), string(id), max)
}

// registers are data's pointers in a table of the bus.
type registers struct{ t *bus.Table }

func (r registers) Get(ctx context.Context, key string) ([]byte, uint64, bool, error) {
	e, ok, err := r.t.Get(ctx, key)
	return e.Value, e.Rev, ok, err
}

func (r registers) Swap(ctx context.Context, key string, value []byte, expect uint64) (uint64, error) {
	if expect == 0 {
		return r.t.Create(ctx, key, value)
	}
	return r.t.Update(ctx, key, value, expect)
}

// Delete removes key, whatever its revision.
func (r registers) Delete(ctx context.Context, key string) error {
	for {
		e, ok, err := r.t.Get(ctx, key)
		if err != nil || !ok {
			return err
		}
		if err = r.t.Delete(ctx, key, e.Rev); lode.KindOf(err) != lode.Precondition {
			return err
		}
	}
}

func (r registers) List(ctx context.Context, prefix string) ([]data.Register, error) {
	es, err := r.t.List(ctx, prefix)
	out := make([]data.Register, len(es))
	for i, e := range es {
		out[i] = data.Register{Key: e.Key, Value: e.Value, Rev: e.Rev}
	}
	return out, err
}

func openCatalog(ctx context.Context, n *Node) (*catalog.Catalog, error) {
	return catalog.Open(ctx, n.bus, catalog.Config{Artifacts: n.artifacts, Sealer: n.fleet.sealer, Now: time.Now, Logger: n.cfg.Logger})
}

var (
	_ gateway.Directory = directory{}
	_ gateway.Tokens    = checkTokens{}
	_ gateway.Keys      = checkTokens{}
	_ gateway.Logs      = tails{}
	_ data.Registers    = registers{}
)
