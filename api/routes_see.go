package api

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"

	"lode"
)

func seeRoutes() []route {
	lines := []param{{"name", "string", "of this function"}, {"invocation", "string", "of this invocation"}, {"job", "string", "of this job"},
		{"since", "string", "RFC 3339"}, {"tail", "integer", "the last lines"}, {"grep", "string", "RE2"}, {"follow", "boolean", "go on as lines come"}}
	return []route{
		{id: "logs.read", method: "GET", path: "/v1/logs", role: RoleRead, summary: "Log lines, oldest first, one JSON object a line", query: lines, rawType: "application/x-ndjson", serve: readLogs},
		{id: "top", method: "GET", path: "/v1/top", role: RoleRead, summary: "What runs now", reply: Top{}, serve: top},
		{id: "explain", method: "GET", path: "/v1/explain/{ref}", role: RoleRead, summary: "Why: a name, an agent, an invocation, a job, or a trace", reply: Explanation{}, serve: explain},
		{id: "doctor", method: "GET", path: "/v1/doctor", role: RoleRead, summary: "What the node finds out about its machine, or all nodes about theirs",
			query: []param{{"cluster", "boolean", "all nodes, and the cluster as a whole"}}, reply: List[Check]{}, serve: doctor},
		{id: "version", method: "GET", path: "/v1/version", role: RoleRead, summary: "What runs here", reply: Version{}, serve: getVersion},
		{id: "openapi", method: "GET", path: "/v1/openapi.json", role: RoleRead, summary: "This document", rawType: "application/json", serve: openAPI},
	}
}

// logEnd is the last object of a log stream that failed.
type logEnd struct {
	Error *lode.Error `json:"error"`
}

func (c *call) logFilter() (f LogFilter, err error) {
	q := c.r.URL.Query()
	f = LogFilter{Name: lode.Name(q.Get("name")), Invocation: lode.InvocationID(q.Get("invocation")), Job: q.Get("job"), Grep: q.Get("grep")}
	if f.Name != "" {
		if _, err := lode.ParseName(string(f.Name)); err != nil {
			return f, err
		}
	}
	if _, err := regexp.Compile(f.Grep); err != nil {
		return f, lode.Errorf(lode.Invalid, "grep: %w", err).WithHint("it is an RE2 expression; quote special characters with a backslash")
	}
	if f.Since, err = c.time("since"); err != nil {
		return f, err
	}
	if f.Tail, err = c.int("tail", 0); err != nil {
		return f, err
	}
	f.Follow, err = c.bool("follow")
	return f, err
}

func readLogs(c *call) error {
	if c.b.Logs == nil {
		return missing("logs")
	}
	f, err := c.logFilter()
	if err != nil {
		return err
	}
	w := &flushWriter{c: c, ctype: "application/x-ndjson", flush: f.Follow}
	if f.Follow { // the head tells the client that it is connected
		w.end()
		if _, err := w.Write(nil); err != nil {
			return c.gone(err)
		}
	}
	enc := json.NewEncoder(w)
	err = c.b.Logs.ReadLogs(c.r.Context(), c.ns, f, func(l LogLine) error { return enc.Encode(l) })
	if err != nil && c.sent {
		return c.gone(enc.Encode(logEnd{lode.AsError(err)}))
	}
	if err == nil {
		w.end()
	}
	return err
}

// withCluster sends what get returns.
func withCluster[T any](c *call, get func(Cluster) (T, error)) error {
	if c.b.Cluster == nil {
		return missing("cluster")
	}
	v, err := get(c.b.Cluster)
	if err != nil {
		return err
	}
	return c.json(v, "")
}

func top(c *call) error {
	return withCluster(c, func(b Cluster) (Top, error) { return b.Top(c.r.Context(), c.ns) })
}

func explain(c *call) error {
	ref := c.r.PathValue("ref")
	if strings.Contains(ref, "/") {
		return c.explainAgent(ref)
	}
	return withCluster(c, func(b Cluster) (Explanation, error) { return b.Explain(c.r.Context(), c.ns, ref) })
}

func doctor(c *call) error {
	all, err := c.bool("cluster")
	if err != nil {
		return err
	}
	if all && c.b.Nodes != nil {
		return c.clusterChecks()
	}
	return withCluster(c, func(b Cluster) (List[Check], error) { return b.Doctor(c.r.Context()) })
}

// clusterChecks is doctor?cluster=1: every node's own checks, which a Cluster
// that asks all of them answers (see Everywhere), then what the list of nodes
// shows, then what is known of the cluster as a whole.
func (c *call) clusterChecks() error {
	ctx := WithAllNodes(c.r.Context())
	return withCluster(c, func(b Cluster) (List[Check], error) {
		l, err := b.Doctor(ctx)
		if err != nil {
			return l, err
		}
		nodes, err := c.b.Nodes.ListNodes(ctx)
		if err != nil {
			return l, err
		}
		whole, err := c.b.Nodes.CheckCluster(ctx)
		l.Items = slices.Concat(l.Items, CheckNodes(nodes, c.now()), whole)
		return l, err
	})
}

func getVersion(c *call) error {
	return withCluster(c, func(b Cluster) (Version, error) { return b.Version(c.r.Context()) })
}
