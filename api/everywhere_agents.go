package api

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"lode"
)

// allAgents is Agents of all nodes: what is about one partition goes to its
// owner, and of the rest each node knows its part.
type allAgents struct {
	Agents
	e *Everywhere
}

// How often an owner is looked for anew, while partitions move, and how long to
// wait before.
const (
	ownerTries = 4
	ownerPause = 250 * time.Millisecond
)

// byOwner asks the node that owns a partition; owner tells which it is. It asks
// again where the one that it asked was not the owner any more.
func byOwner[T any](ctx context.Context, a allAgents, ns lode.Namespace, owner func() (lode.NodeID, error), own func(context.Context) (T, error), other func(context.Context, *Client) (T, error)) (T, error) {
	if IsLocal(ctx) {
		return own(ctx)
	}
	for try := 1; ; try++ {
		v, err := askOwner(ctx, a, ns, owner, own, other)
		e := lode.AsError(err)
		if err == nil || e.Kind != lode.Unavailable || e.RetryAfter <= 0 || try == ownerTries {
			return v, err
		}
		select {
		case <-ctx.Done():
			return v, err
		case <-time.After(min(e.RetryAfter, ownerPause)):
		}
	}
}

func askOwner[T any](ctx context.Context, a allAgents, ns lode.Namespace, owner func() (lode.NodeID, error), own func(context.Context) (T, error), other func(context.Context, *Client) (T, error)) (T, error) {
	node, err := owner()
	if err != nil {
		return *new(T), err
	}
	if node == "" || string(node) == a.e.Node {
		return own(ctx)
	}
	for _, p := range a.e.Peers() {
		if p.Node == string(node) {
			return other(ctx, p.Client.In(ns))
		}
	}
	e := lode.Errorf(lode.Unavailable, "node %s, which owns the partition, cannot be reached", node).WithHint("another node takes it over within seconds; lode nodes")
	e.RetryAfter = time.Second
	return *new(T), e
}

// ownerOfKey is where a key is.
func (a allAgents) ownerOfKey(ctx context.Context, ns lode.Namespace, kind lode.Name, key string) func() (lode.NodeID, error) {
	return func() (lode.NodeID, error) {
		p, err := a.Where(ctx, ns, kind, key)
		return p.Node, err
	}
}

func (a allAgents) GetAgent(ctx context.Context, ns lode.Namespace, kind lode.Name, key string) (AgentDetail, error) {
	return byOwner(ctx, a, ns, a.ownerOfKey(ctx, ns, kind, key),
		func(ctx context.Context) (AgentDetail, error) { return a.Agents.GetAgent(ctx, ns, kind, key) },
		func(ctx context.Context, c *Client) (AgentDetail, error) { return c.GetAgent(ctx, kind, key) })
}

func (a allAgents) RemoveAgent(ctx context.Context, ns lode.Namespace, kind lode.Name, key string) error {
	_, err := byOwner(ctx, a, ns, a.ownerOfKey(ctx, ns, kind, key),
		func(ctx context.Context) (bool, error) { return true, a.Agents.RemoveAgent(ctx, ns, kind, key) },
		func(ctx context.Context, c *Client) (bool, error) { return true, c.RemoveAgent(ctx, kind, key) })
	return err
}

func (a allAgents) ReplayAgent(ctx context.Context, ns lode.Namespace, kind lode.Name, key string, n uint64) (DeadMessage, error) {
	return byOwner(ctx, a, ns, a.ownerOfKey(ctx, ns, kind, key),
		func(ctx context.Context) (DeadMessage, error) { return a.Agents.ReplayAgent(ctx, ns, kind, key, n) },
		func(ctx context.Context, c *Client) (DeadMessage, error) { return c.ReplayAgent(ctx, kind, key, n) })
}

func (a allAgents) MovePartition(ctx context.Context, ns lode.Namespace, kind lode.Name, n int, to lode.NodeID) (Partition, error) {
	owner := func() (lode.NodeID, error) {
		all, err := a.Agents.ListPartitions(ctx, ns, kind)
		for _, p := range all {
			if p.N == n {
				return lode.NodeID(p.Owner), err
			}
		}
		return "", err
	}
	return byOwner(ctx, a, ns, owner,
		func(ctx context.Context) (Partition, error) { return a.Agents.MovePartition(ctx, ns, kind, n, to) },
		func(ctx context.Context, c *Client) (Partition, error) {
			return c.MoveAgents(ctx, kind, AgentMove{Partition: &n, To: to})
		})
}

func (a allAgents) ListPartitions(ctx context.Context, ns lode.Namespace, kind lode.Name) ([]Partition, error) {
	all := ask(ctx, a.e, ns, func(ctx context.Context) ([]Partition, error) { return a.Agents.ListPartitions(ctx, ns, kind) },
		func(ctx context.Context, c *Client) ([]Partition, error) { return c.ListPartitions(ctx, kind) })
	if all[0].err != nil {
		return nil, all[0].err
	}
	parts := make([][]Partition, 0, len(all))
	for _, f := range all {
		parts = append(parts, f.v)
	}
	return MergePartitions(parts), nil
}

func (a allAgents) ListAgents(ctx context.Context, ns lode.Namespace, f AgentFilter, p Page) (List[Agent], error) {
	all := ask(ctx, a.e, ns, func(ctx context.Context) (List[Agent], error) { return a.Agents.ListAgents(ctx, ns, f, p) },
		func(ctx context.Context, c *Client) (List[Agent], error) { return c.ListAgents(ctx, f, p) })
	if all[0].err != nil {
		return List[Agent]{}, all[0].err
	}
	var parts []List[Agent]
	var gone []string
	for _, f := range all {
		if f.err != nil {
			gone = append(gone, f.node)
			continue
		}
		parts = append(parts, f.v)
	}
	out := MergeAgents(parts, p.Limit)
	out.Missing = append(out.Missing, gone...)
	slices.Sort(out.Missing)
	out.Missing = slices.Compact(out.Missing)
	return out, nil
}

// ExportAgents is one node after the other. What no node had is an error: an
// export that looks whole and is not would be a backup that is none.
func (a allAgents) ExportAgents(ctx context.Context, ns lode.Namespace, kind lode.Name, see func(AgentDump) error) ([]int, error) {
	covered, err := a.Agents.ExportAgents(ctx, ns, kind, see)
	if err != nil || IsLocal(ctx) {
		return covered, err
	}
	var failed error
	for _, p := range a.e.Peers() {
		end, err := p.Client.In(ns).ExportAgents(ctx, kind, see)
		if err != nil && failed == nil {
			failed = err
		}
		covered = append(covered, end.Partitions...)
	}
	all, err := a.Agents.ListPartitions(ctx, ns, kind)
	if err != nil {
		return covered, err
	}
	var left []string
	for _, p := range all {
		if p.State == PartitionFree {
			covered = append(covered, p.N)
		} else if !slices.Contains(covered, p.N) {
			left = append(left, fmt.Sprint(p.N))
		}
	}
	slices.Sort(covered)
	if len(left) == 0 {
		return slices.Compact(covered), nil
	}
	e := lode.Errorf(lode.Unavailable, "partitions %s of %s are not in the export: nobody owned them, or their node did not answer", strings.Join(left, ", "), kind).
		WithHint("export again when lode agents ls --partitions shows an owner of each")
	e.Err = failed
	return covered, e
}

// ImportAgents hands each owner the dumps that are its own.
func (a allAgents) ImportAgents(ctx context.Context, ns lode.Namespace, kind lode.Name, dumps []AgentDump, o ImportOptions) (sum Imported, err error) {
	if IsLocal(ctx) {
		return a.Agents.ImportAgents(ctx, ns, kind, dumps, o)
	}
	for len(dumps) > 0 {
		first, err := a.Where(ctx, ns, kind, dumps[0].Key)
		if err != nil {
			return sum, err
		}
		n := 1 // a run of dumps of one owner, so that their order stays
		for ; n < len(dumps); n++ {
			if p, err := a.Where(ctx, ns, kind, dumps[n].Key); err != nil || p.Node != first.Node || p.Node == "" {
				break
			}
		}
		run := dumps[:n]
		got, err := byOwner(ctx, a, ns, a.ownerOfKey(ctx, ns, kind, run[0].Key),
			func(ctx context.Context) (Imported, error) { return a.Agents.ImportAgents(ctx, ns, kind, run, o) },
			func(ctx context.Context, c *Client) (Imported, error) { return c.importDumps(ctx, kind, run, o) })
		sum.add(got)
		if err != nil {
			return sum, err
		}
		dumps = dumps[n:]
	}
	return sum, nil
}

func (a allAgents) ExplainAgent(ctx context.Context, ns lode.Namespace, kind lode.Name, key string) (Explanation, error) {
	address := lode.Address{Name: kind, Key: key}.String()
	all := ask(ctx, a.e, ns, func(ctx context.Context) (Explanation, error) { return a.Agents.ExplainAgent(ctx, ns, kind, key) },
		func(ctx context.Context, c *Client) (Explanation, error) { return c.Explain(ctx, address) })
	if all[0].err != nil {
		return Explanation{}, all[0].err
	}
	var parts []Explanation
	for _, f := range all {
		if f.err == nil {
			parts = append(parts, f.v)
		}
	}
	slices.SortStableFunc(parts, func(x, y Explanation) int { return strings.Compare(y.Kind, x.Kind) }) // its owner first
	out := parts[0]
	if len(parts) > 1 {
		out = MergeExplanations(parts)
	}
	if !IsLocal(ctx) {
		out.Kind = string(KindAgent)
		out.Waits = WaitsAround(address, out.Waits)
		if ring := WaitRing(address, out.Waits); len(ring) > 0 {
			out.Steps = append(out.Steps, Step{What: "waits in a circle: " + strings.Join(ring, " -> "), Why: "each ends at its deadline"})
		}
	}
	return out, nil
}

var _ Agents = allAgents{}
