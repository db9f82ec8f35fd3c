package node

import (
	"context"
	"fmt"
	"maps"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"lode"
	"lode/api"
	"lode/engine"
	"lode/internal/telemetry"
)

// logs is what functions, jobs and the node said.
type logs struct{ *Node }

func (l logs) ReadLogs(ctx context.Context, ns lode.Namespace, f api.LogFilter, see func(api.LogLine) error) error {
	filter := telemetry.Filter{Namespace: string(ns), Function: string(f.Name), Invocation: string(f.Invocation), Since: f.Since, Grep: f.Grep, Tail: f.Tail, Follow: f.Follow}
	if f.Job != "" {
		filter.Function = f.Job
	}
	for line, err := range l.telemetry.Logs(ctx, filter) {
		if err != nil {
			return err
		}
		if err := see(l.wire(line)); err != nil {
			return err
		}
	}
	return nil
}

func (l logs) wire(t telemetry.Line) api.LogLine {
	out := api.LogLine{At: t.Time, Node: l.Name(), Name: lode.Name(t.Function), Invocation: lode.InvocationID(t.Invocation), Level: strings.ToLower(t.Level.String()), Text: t.Text}
	if _, rev, ok := strings.Cut(t.Revision, "@"); ok {
		out.Rev, _ = strconv.Atoi(rev)
	}
	return out
}

// cluster is what can be seen of the machine and of the work on it.
type cluster struct{ *Node }

func (c cluster) Top(_ context.Context, ns lode.Namespace) (api.Top, error) {
	s := c.engine.Stats()
	out := api.Top{At: time.Now().UTC(), Node: c.Name(), Uptime: time.Since(c.started).Seconds(), Memory: residentBytes(), Sandboxes: s.Memory, Cache: s.Bytes, Rows: []api.TopRow{}}
	queued := map[lode.Name]int{}
	for _, l := range c.invoke.Loads() {
		if l.Namespace == ns {
			queued[l.Function] = l.Queued
		}
	}
	for _, t := range c.telemetry.Top(string(ns)) {
		name := lode.Name(t.Function)
		row := api.TopRow{Name: name, Rate: t.Rate, P50: t.P50, P99: t.P99, Busy: t.Busy, Warm: t.Warm, Queued: queued[name], CPU: t.CPU, Memory: t.Memory}
		if t.Calls > 0 {
			row.Errors = t.Rate * float64(t.Errors) / float64(t.Calls)
		}
		if e, ok := c.catalog.Lookup(ns, name); ok && e.Live != nil {
			row.Rev = e.Live.Number
		}
		out.CPU += t.CPU
		out.Rows = append(out.Rows, row)
	}
	return out, nil
}

// residentBytes is this process's memory.
func residentBytes() int64 {
	if b, err := os.ReadFile("/proc/self/statm"); err == nil {
		if f := strings.Fields(string(b)); len(f) > 1 {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			return n * int64(os.Getpagesize())
		}
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.Sys)
}

// Nodes lists the nodes for who knows no more of them.
func (c cluster) Nodes(ctx context.Context) (api.List[api.Node], error) {
	l, err := nodes(c).ListNodes(ctx)
	return api.List[api.Node]{Items: l.Items}, err
}

func (c cluster) Version(context.Context) (api.Version, error) {
	return api.Version{Version: c.cfg.Version, Commit: orWord(c.cfg.Commit, vcsRevision()), Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH,
		ABI: engine.ABI, Node: c.Name(), Data: c.dir.path}, nil
}

func vcsRevision() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return ""
}

// Explain tells how an invocation or a job went, or why a name is as it is.
func (c cluster) Explain(ctx context.Context, ns lode.Namespace, ref string) (api.Explanation, error) {
	if rs := c.telemetry.Find(string(ns), ref); len(rs) > 0 {
		return c.explainCalls(ctx, ns, ref, rs), nil
	}
	if e, ok := c.explainSent(lode.InvocationID(ref)); ok {
		return e, nil
	}
	if local(ctx) { // what is not of one node is asked of the one that was asked
		return api.Explanation{}, lode.Errorf(lode.NotFound, "node %s knows nothing of %s", c.Name(), ref)
	}
	if call, err := c.invoke.GetCall(ctx, ns, lode.InvocationID(ref), 0); err == nil {
		w := wireCall(call)
		return api.Explanation{Ref: ref, Kind: "call", Summary: fmt.Sprintf("%s of %s: %s after %d attempts", w.Trigger, w.Function, w.State, w.Attempts), Call: &w, Steps: []api.Step{}}, nil
	}
	if strings.HasPrefix(ref, "j-") {
		return c.explainJob(ctx, ns, ref)
	}
	name, err := lode.ParseName(ref)
	if err != nil {
		return api.Explanation{}, lode.Errorf(lode.NotFound, "nothing here is called %s", ref).
			WithHint("give a name, an invocation id, a job id, or eight digits of a trace; only the last 4,096 invocations are kept in memory")
	}
	return c.explainName(ctx, ns, name)
}

func (c cluster) explainCalls(ctx context.Context, ns lode.Namespace, ref string, rs []telemetry.Record) api.Explanation {
	last := rs[0]
	out := api.Explanation{Ref: ref, Kind: "call", Facts: map[string]string{}, Steps: []api.Step{}}
	out.Summary = fmt.Sprintf("%s ran %s in %s", last.Function, last.Revision, last.End.Sub(last.Arrived).Round(time.Microsecond))
	if last.Kind != "" {
		out.Summary = fmt.Sprintf("%s failed: %s (%s)", last.Function, last.Detail, last.Kind)
	}
	for i := len(rs) - 1; i >= 0; i-- { // oldest first
		r := rs[i]
		for _, p := range r.Timeline() {
			st := api.Step{At: r.Arrived.Add(p.Began), Took: p.Took, What: r.Function + " " + p.Name}
			if p.Kind != "" {
				st.Why = p.Kind
			}
			out.Steps = append(out.Steps, st)
		}
	}
	u := last.Usage
	out.Facts["invocation"], out.Facts["trace"], out.Facts["revision"] = last.ID, last.Trace.ID(), last.Revision
	out.Facts["node"] = c.Name()
	out.Facts["cpu"] = u.CPU.String()
	out.Facts["memory"] = bytesText(u.Memory)
	out.Facts["effects"] = "none before the answer: it could have been repeated elsewhere"
	if !u.Clean {
		out.Facts["effects"] = "something left the sandbox before the answer"
	}
	c.explainPlace(lode.InvocationID(last.ID), &out)
	logs(c).ReadLogs(ctx, ns, api.LogFilter{Invocation: lode.InvocationID(last.ID), Tail: 50}, func(l api.LogLine) error {
		out.Logs = append(out.Logs, l)
		return nil
	})
	return out
}

// explainPlace adds how an invocation that came in here was placed.
func (c cluster) explainPlace(id lode.InvocationID, out *api.Explanation) {
	d, ok := c.invoke.Decision(id)
	if !ok {
		return
	}
	for _, t := range d.Tries {
		st := api.Step{At: d.At, What: t.What}
		if t.Node != "" {
			st.What = "node " + string(t.Node) + ": " + t.What
		}
		if t.Wait > 0 {
			st.Why = "its wait was " + t.Wait.Round(time.Microsecond).String()
		}
		out.Steps = append(out.Steps, st)
	}
	span := func(s float64) time.Duration { return time.Duration(min(s, 1e6) * 1e9) }
	for _, k := range d.Why {
		out.Candidates = append(out.Candidates, api.Candidate{Node: string(k.Node), Hop: span(k.Cost.Hop), Wait: span(k.Cost.Queue), Data: span(k.Cost.Data), Code: span(k.Cost.Code),
			Run: span(k.Cost.Run), Chosen: k.Chosen})
	}
	if out.Facts == nil {
		out.Facts = map[string]string{}
	}
	if d.Node != "" && d.Node != c.fleet.id {
		out.Facts["came in at"] = c.Name() + ", and ran on " + string(d.Node)
	}
}

// explainSent is what is known here of an invocation that ran elsewhere.
func (c cluster) explainSent(id lode.InvocationID) (api.Explanation, bool) {
	d, ok := c.invoke.Decision(id)
	if !ok {
		return api.Explanation{}, false
	}
	out := api.Explanation{Ref: string(id), Kind: "call", Steps: []api.Step{}, Facts: map[string]string{}, Summary: d.Revision + " came in at " + c.Name() + " and went to " + orWord(string(d.Node), "no node")}
	if d.Err != "" {
		out.Summary += ": " + d.Err
	}
	c.explainPlace(id, &out)
	return out, true
}

// whereShards says which nodes hold how many of a dataset's shards.
func (c cluster) whereShards(ctx context.Context, ns lode.Namespace, v *api.Dataset) string {
	m, _, err := c.data.Manifest(ctx, ns, v.Name, v.Version)
	if err != nil {
		return "not known: " + err.Error()
	}
	ds := make([]lode.Digest, len(m.Shards))
	for i, s := range m.Shards {
		ds[i] = s.Digest
	}
	held, err := workers{c.Node}.Holders(ctx, ds)
	if err != nil {
		return "not known: " + err.Error()
	}
	var parts []string
	for _, node := range slices.Sorted(maps.Keys(held)) {
		n := 0
		for _, has := range held[node] {
			if has {
				n++
			}
		}
		parts = append(parts, fmt.Sprintf("%s has %d of %d", node, n, len(ds)))
	}
	return strings.Join(parts, ", ") + ": jobs run there"
}

func (c cluster) explainName(ctx context.Context, ns lode.Namespace, name lode.Name) (api.Explanation, error) {
	d, err := apps(c).GetName(ctx, ns, name)
	if err != nil {
		return api.Explanation{}, err
	}
	out := api.Explanation{Ref: string(name), Kind: string(d.Kind), Summary: d.Detail, Facts: map[string]string{}, Steps: []api.Step{}}
	switch {
	case d.Dataset != nil:
		v := d.Dataset
		out.Summary = fmt.Sprintf("version %d, %s; shards: %d, records: %d (%s)", v.Version, bytesText(v.Bytes), v.Shards, v.Count, v.Records)
		out.Facts["placement"] = c.whereShards(ctx, ns, v)
		return out, nil
	case d.Queue != nil:
		q := d.Queue
		out.Summary = fmt.Sprintf("%d messages wait, %d are handed out, %d are dead", q.Depth, q.InFlight, q.Dead)
		for _, f := range q.Consumers {
			out.Steps = append(out.Steps, api.Step{What: "consumed by " + string(f)})
		}
		return out, nil
	}
	f := &d.Function.Live.Function
	out.Summary = fmt.Sprintf("revision %d on node %s, %s", d.Function.Live.Number, c.Name(), d.Detail)
	out.Facts["needs"] = "a CPU: no device is asked for"
	if ex := f.Exports; ex != nil {
		out.Facts["sdk"] = ex.SDK
	}
	out.Facts["egress"] = orWord(f.Egress.Mode, "public") + " " + strings.Join(f.Egress.Allow, " ")
	out.Facts["memory"] = bytesText(f.Limits.Memory) + " a sandbox at most"
	warm, busy := c.pools.count(ns, name)
	out.Facts["sandboxes"] = fmt.Sprintf("%d warm, %d busy", warm, busy)
	for _, a := range d.Function.Aliases {
		for _, t := range a.Targets {
			out.Steps = append(out.Steps, api.Step{What: fmt.Sprintf("alias %s: %d%% to revision %d", a.Name, t.Weight, t.Rev)})
		}
	}
	for _, r := range c.telemetry.Recent(string(ns), string(name), 5) {
		out.Steps = append(out.Steps, api.Step{At: r.Arrived, Took: r.End.Sub(r.Arrived), What: "invocation " + r.ID, Why: r.Kind})
	}
	return out, nil
}

var (
	_ api.Logs    = logs{}
	_ api.Cluster = cluster{}
)
