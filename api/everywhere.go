package api

import (
	"context"
	"slices"
	"sync"
	"time"

	"lode"
)

// Everywhere answers for the whole cluster: it asks the node's own backend and,
// over their clients, all the others, and makes one answer of what they say.
// A request that comes from another node with Lode-Local is answered by the
// node's own alone.
//
// A node that does not answer in time is left out, and said to be: it is in
// Top.Missing, a failed Check, a line of the log.
type Everywhere struct {
	// Node is this node's name.
	Node string
	// Own is what this node knows by itself.
	Own Backend
	// Peers lists the other nodes that can be reached now. Their Clients were
	// made with Config.Local, over a Transport on which they are known to come
	// from a node: the other side serves them with WithPeer and a grant to read
	// in every namespace, since what the one who asks may see was checked here.
	Peers func() []Peer
	// Wait bounds how long a peer may take; 0 = 2 s. Logs that are followed are
	// not bound by it.
	Wait time.Duration
}

// Peer is another node, and how to ask it.
type Peer struct {
	Node   string
	Client *Client
}

// Backend is Own with those nouns replaced that are of all nodes: Cluster, Logs,
// the lists of Apps, and Agents.
func (e *Everywhere) Backend() Backend {
	b := e.Own
	if b.Cluster != nil {
		b.Cluster = allCluster{b.Cluster, e}
	}
	if b.Logs != nil {
		b.Logs = allLogs{b.Logs, e}
	}
	if b.Apps != nil {
		b.Apps = allApps{b.Apps, e}
	}
	if b.Agents != nil {
		b.Agents = allAgents{b.Agents, e}
	}
	return b
}

// from is what one node answered.
type from[T any] struct {
	node string
	v    T
	err  error
}

// ask asks own and every peer at the same time; the first answer is own's. ns
// is empty for what is of no namespace.
func ask[T any](ctx context.Context, e *Everywhere, ns lode.Namespace, own func(context.Context) (T, error), other func(context.Context, *Client) (T, error)) []from[T] {
	var peers []Peer
	if !IsLocal(ctx) {
		peers = e.Peers()
	}
	out := make([]from[T], 1+len(peers))
	wait := e.Wait
	if wait <= 0 {
		wait = 2 * time.Second
	}
	short, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	var running sync.WaitGroup
	for i, p := range peers {
		running.Go(func() {
			v, err := other(short, p.Client.In(ns))
			out[1+i] = from[T]{p.Node, v, err}
		})
	}
	v, err := own(ctx)
	out[0] = from[T]{e.Node, v, err}
	running.Wait()
	return out
}

// allCluster is Cluster of all nodes.
type allCluster struct {
	Cluster
	e *Everywhere
}

func (a allCluster) Top(ctx context.Context, ns lode.Namespace) (Top, error) {
	all := ask(ctx, a.e, ns, func(ctx context.Context) (Top, error) { return a.Cluster.Top(ctx, ns) },
		func(ctx context.Context, c *Client) (Top, error) { return c.Top(ctx) })
	if all[0].err != nil {
		return Top{}, all[0].err
	}
	var parts []Top
	var missing []string
	for _, f := range all {
		if f.err != nil {
			missing = append(missing, f.node)
			continue
		}
		f.v.Node = f.node
		parts = append(parts, f.v)
	}
	out := MergeTop(parts)
	out.Missing = append(out.Missing, missing...)
	slices.Sort(out.Missing)
	return out, nil
}

func (a allCluster) Explain(ctx context.Context, ns lode.Namespace, ref string) (Explanation, error) {
	all := ask(ctx, a.e, ns, func(ctx context.Context) (Explanation, error) { return a.Cluster.Explain(ctx, ns, ref) },
		func(ctx context.Context, c *Client) (Explanation, error) { return c.Explain(ctx, ref) })
	var parts []Explanation
	for _, f := range all {
		if f.err == nil {
			parts = append(parts, f.v)
		}
	}
	if len(parts) == 0 {
		return Explanation{}, all[0].err
	}
	if len(parts) == 1 {
		return parts[0], nil
	}
	return MergeExplanations(parts), nil
}

func (a allCluster) Doctor(ctx context.Context) (List[Check], error) {
	own := a.Cluster.Doctor
	if !OfAllNodes(ctx) {
		return own(ctx)
	}
	all := ask(ctx, a.e, "", own, func(ctx context.Context, c *Client) (List[Check], error) { return c.Doctor(ctx) })
	parts := make([]NodeChecks, len(all))
	for i, f := range all {
		parts[i] = NodeChecks{Node: f.node, Checks: f.v.Items, Err: f.err}
	}
	return List[Check]{Items: MergeChecks(parts)}, nil
}

// allLogs is Logs of all nodes.
type allLogs struct {
	Logs
	e *Everywhere
}

func (a allLogs) ReadLogs(ctx context.Context, ns lode.Namespace, f LogFilter, see func(LogLine) error) error {
	if IsLocal(ctx) {
		return a.Logs.ReadLogs(ctx, ns, f, see)
	}
	sources := []LogSource{{Node: a.e.Node, Read: func(ctx context.Context, f LogFilter, see func(LogLine) error) error {
		return a.Logs.ReadLogs(ctx, ns, f, see)
	}}}
	for _, p := range a.e.Peers() {
		c := p.Client.In(ns)
		sources = append(sources, LogSource{Node: p.Node, Read: c.ReadLogs})
	}
	return MergeLogs(ctx, sources, f, see)
}

// allApps is Apps with what all nodes know of where names are and how often
// they are called. What is deployed is the same everywhere; a node that does
// not answer is left out.
type allApps struct {
	Apps
	e *Everywhere
}

func (a allApps) ListNames(ctx context.Context, ns lode.Namespace, kind ItemKind, p Page) (List[Item], error) {
	all := ask(ctx, a.e, ns, func(ctx context.Context) (List[Item], error) { return a.Apps.ListNames(ctx, ns, kind, p) },
		func(ctx context.Context, c *Client) (List[Item], error) { return c.ListNames(ctx, kind, p) })
	if all[0].err != nil {
		return List[Item]{}, all[0].err
	}
	known := map[lode.Name]int{}
	out := all[0].v
	for i, it := range out.Items {
		known[it.Name] = i
	}
	for _, f := range all[1:] {
		for _, it := range f.v.Items {
			if i, ok := known[it.Name]; ok && f.err == nil { // this node's catalog decides what there is
				out.Items[i] = MergeItems(out.Items[i], it)
			}
		}
	}
	return out, nil
}

func (a allApps) GetName(ctx context.Context, ns lode.Namespace, name lode.Name) (Detail, error) {
	all := ask(ctx, a.e, ns, func(ctx context.Context) (Detail, error) { return a.Apps.GetName(ctx, ns, name) },
		func(ctx context.Context, c *Client) (Detail, error) { return c.GetName(ctx, name) })
	out, err := all[0].v, all[0].err
	if err != nil {
		return out, err
	}
	for _, f := range all[1:] {
		if f.err != nil {
			continue
		}
		out.Item = MergeItems(out.Item, f.v.Item)
		if out.Function != nil && f.v.Function != nil {
			fn := *out.Function
			fn.Sandbox.Warm += f.v.Function.Sandbox.Warm
			fn.Sandbox.Busy += f.v.Function.Sandbox.Busy
			out.Function = &fn
		}
	}
	return out, nil
}

var (
	_ Cluster = allCluster{}
	_ Logs    = allLogs{}
	_ Apps    = allApps{}
)
