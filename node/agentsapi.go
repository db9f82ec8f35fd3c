package node

import (
	"context"

	"lode"
	"lode/agent"
	"lode/api"
)

// manage is this node's agents as /v1 shows them.
type manage struct{ *Node }

var _ api.Agents = manage{}

// ready waits until the agents of this node are open.
func (m manage) ready(ctx context.Context) (*agent.Service, error) {
	if err := m.awaitAgents(ctx); err != nil {
		return nil, err
	}
	return m.agents, nil
}

func (m manage) Where(ctx context.Context, ns lode.Namespace, kind lode.Name, key string) (api.AgentPlace, error) {
	s, err := m.ready(ctx)
	if err != nil {
		return api.AgentPlace{}, err
	}
	at, err := s.Where(ns, kind, key)
	return api.AgentPlace{Partition: at.Partition, Partitions: at.Partitions, Node: at.Node}, err
}

func (m manage) ListPartitions(ctx context.Context, ns lode.Namespace, kind lode.Name) ([]api.Partition, error) {
	s, err := m.ready(ctx)
	if err != nil {
		return nil, err
	}
	kinds := []lode.Name{kind}
	if kind == "" {
		kinds = nil
		for rev := range m.catalog.Kinds() {
			if rev.Namespace == ns {
				kinds = append(kinds, rev.Name)
			}
		}
	}
	var out []api.Partition
	for _, k := range kinds {
		parts, err := s.Parts(ctx, ns, k)
		if lode.KindOf(err) == lode.NotFound && kind == "" {
			continue // removed just now
		}
		if err != nil {
			return nil, err
		}
		for i := range parts {
			out = append(out, partitionOf(k, &parts[i]))
		}
	}
	return api.MergePartitions([][]api.Partition{out}), nil
}

func partitionOf(kind lode.Name, p *agent.Part) api.Partition {
	return api.Partition{Kind: kind, N: p.N, Owner: string(p.Node), Epoch: p.Epoch, State: api.PartitionState(p.State), Agents: p.Agents, Bytes: p.Bytes,
		Turns: p.Turns, CPU: p.CPU, Waiting: p.Waiting, Answered: p.Here}
}

func (m manage) ListAgents(ctx context.Context, ns lode.Namespace, f api.AgentFilter, p api.Page) (api.List[api.Agent], error) {
	out := api.List[api.Agent]{Items: []api.Agent{}}
	s, err := m.ready(ctx)
	if err != nil {
		return out, err
	}
	all, more, err := s.List(ctx, ns, f.Kind, f.Partition-1, p.After, p.Limit)
	if err != nil {
		return out, err
	}
	for i := range all {
		out.Items = append(out.Items, m.agent(&all[i]))
	}
	for _, node := range s.Unserved(ns, f.Kind) {
		out.Missing = append(out.Missing, string(node))
	}
	if more {
		out.Next = out.Items[len(out.Items)-1].Address
	}
	return out, nil
}

func (m manage) agent(v *agent.Info) api.Agent {
	return api.Agent{Address: v.Address(), Kind: v.Kind, Key: v.Key, Partition: v.Partition, Node: m.Name(), Bytes: v.Bytes, Keys: v.Keys, Timers: v.Timers, Dead: v.Dead,
		Waiting: v.Waiting, Active: v.Active, Last: v.Last, Method: v.Method, Revision: v.Revision}
}

func (m manage) GetAgent(ctx context.Context, ns lode.Namespace, kind lode.Name, key string) (api.AgentDetail, error) {
	out := api.AgentDetail{State: []api.StateValue{}}
	s, err := m.ready(ctx)
	if err != nil {
		return out, err
	}
	d, err := s.Show(ctx, ns, kind, key, func(k, v []byte) bool {
		if len(out.State) == api.StateShown {
			return false
		}
		out.State = append(out.State, api.ShowState(k, v))
		return true
	})
	if err != nil {
		return out, err
	}
	out.Agent, out.Epoch, out.More = m.agent(&d.Info), d.Epoch, d.More
	for _, t := range d.Set {
		out.Set = append(out.Set, api.AgentTimer{Name: t.Name, At: t.At, Method: t.Method, Tries: t.Tries})
	}
	for _, x := range d.Sockets {
		out.Sockets = append(out.Sockets, api.AgentSocket{Socket: x.Socket, Node: string(x.Node), Tags: x.Tags})
	}
	for i := range d.Letters {
		out.Letters = append(out.Letters, deadMessage(&d.Letters[i]))
	}
	for _, t := range d.Journal {
		out.Journal = append(out.Journal, api.AgentEntry{Position: t.Position, Node: string(t.Node), Epoch: t.Epoch, ID: t.ID, Method: t.Method, Revision: t.Revision,
			Puts: t.Puts, Deletes: t.Deletes, Sends: t.Sends, Bytes: t.Bytes})
	}
	return out, nil
}

func deadMessage(d *agent.DeadInfo) api.DeadMessage {
	return api.DeadMessage{N: d.N, At: d.At, ID: d.ID, Turn: string(d.Turn), Method: d.Method, Timer: d.Timer, Caller: d.Caller, Tries: d.Tries, Bytes: d.Bytes, Error: d.Error}
}

func (m manage) RemoveAgent(ctx context.Context, ns lode.Namespace, kind lode.Name, key string) error {
	s, err := m.ready(ctx)
	if err != nil {
		return err
	}
	return s.Remove(ctx, ns, kind, key)
}

func (m manage) ReplayAgent(ctx context.Context, ns lode.Namespace, kind lode.Name, key string, n uint64) (api.DeadMessage, error) {
	s, err := m.ready(ctx)
	if err != nil {
		return api.DeadMessage{}, err
	}
	d, err := s.Replay(ctx, ns, kind, key, n)
	return deadMessage(&d), err
}

func (m manage) MovePartition(ctx context.Context, ns lode.Namespace, kind lode.Name, n int, to lode.NodeID) (api.Partition, error) {
	s, err := m.ready(ctx)
	if err != nil {
		return api.Partition{}, err
	}
	p, err := s.Move(ctx, ns, kind, n, to)
	return partitionOf(kind, &p), err
}

func (m manage) ExportAgents(ctx context.Context, ns lode.Namespace, kind lode.Name, see func(api.AgentDump) error) ([]int, error) {
	s, err := m.ready(ctx)
	if err != nil {
		return nil, err
	}
	return s.Export(ctx, ns, kind, api.ExportPart, func(d *agent.Dump) error {
		out := api.AgentDump{Key: d.Key, Part: d.Part}
		for _, kv := range d.State {
			out.State = append(out.State, api.DumpValue(kv))
		}
		for _, t := range d.Timers {
			out.Timers = append(out.Timers, api.DumpTimer(t))
		}
		return see(out)
	})
}

func (m manage) ImportAgents(ctx context.Context, ns lode.Namespace, kind lode.Name, dumps []api.AgentDump, o api.ImportOptions) (api.Imported, error) {
	s, err := m.ready(ctx)
	if err != nil {
		return api.Imported{}, err
	}
	in := make([]agent.Dump, 0, len(dumps))
	for _, d := range dumps {
		x := agent.Dump{Key: d.Key, Part: d.Part}
		for _, kv := range d.State {
			x.State = append(x.State, agent.DumpValue(kv))
		}
		for _, t := range d.Timers {
			x.Timers = append(x.Timers, agent.DumpTimer(t))
		}
		in = append(in, x)
	}
	n, err := s.Import(ctx, ns, kind, in, o.Replace)
	return api.Imported(n), err
}

func (m manage) ExplainAgent(ctx context.Context, ns lode.Namespace, kind lode.Name, key string) (api.Explanation, error) {
	s, err := m.ready(ctx)
	if err != nil {
		return api.Explanation{}, err
	}
	x, err := s.Explain(ns, kind, key)
	if err != nil {
		return api.Explanation{}, err
	}
	out := api.Explanation{Ref: string(kind) + "/" + key, Summary: x.Summary, Steps: []api.Step{}, Facts: x.Facts}
	if x.Here {
		out.Kind = string(api.KindAgent)
	}
	for _, r := range x.Reasons {
		out.Steps = append(out.Steps, api.Step{At: r.At, What: r.What, Why: r.Why})
	}
	out.Steps = append(out.Steps, m.explainPlacing(ns, kind, key, x.Here)...)
	for _, w := range x.Waits {
		out.Waits = append(out.Waits, api.Wait{From: w.From, To: w.To, Method: w.Method, Turn: w.Turn, Since: w.Since, Node: m.Name(), Queued: w.Queued})
	}
	return out, nil
}

// kept is the state of a kind that is to be kept.
func (n *Node) keptState(ns lode.Namespace, kind lode.Name) (born uint64, kept bool) {
	s, ok := n.catalog.KindState(ns, kind)
	return s.Born, ok
}

// storedStates tells which kinds' state is to be kept, as the bus has it.
func (n *Node) storedStates(ctx context.Context) (func(lode.Namespace, lode.Name) bool, error) {
	all, err := n.catalog.StoredKindStates(ctx)
	if err != nil {
		return nil, err
	}
	type id struct {
		ns   lode.Namespace
		kind lode.Name
	}
	has := make(map[id]bool, len(all))
	for _, s := range all {
		has[id{s.Namespace, s.Name}] = true
	}
	return func(ns lode.Namespace, kind lode.Name) bool { return has[id{ns, kind}] }, nil
}

// agentGauges are this node's agents in /metrics.
func (n *Node) agentGauges() []error {
	g, c := n.telemetry.Gauge, n.telemetry.Counter
	of := func(f func(agent.Stats) float64) func() float64 {
		return func() float64 { return f(n.agents.Stats()) }
	}
	return []error{
		g("lode_agent_partitions", "Partitions of agents that this node owns.", of(func(s agent.Stats) float64 { return float64(s.Partitions) })),
		g("lode_agents_active", "Agents in memory.", of(func(s agent.Stats) float64 { return float64(s.Agents) })),
		g("lode_agents_waiting", "Messages that wait in mailboxes.", of(func(s agent.Stats) float64 { return float64(s.Waiting) })),
		c("lode_agent_turns_total", "Turns of agents that were written down.", of(func(s agent.Stats) float64 { return float64(s.Turns) })),
		c("lode_agent_journal_messages_total", "Messages that this node's journal of agents took.", of(func(s agent.Stats) float64 { return float64(s.Messages) })),
		c("lode_agent_journal_entries_total", "Entries in these messages.", of(func(s agent.Stats) float64 { return float64(s.Entries) })),
		c("lode_agent_timers_fired_total", "Turns of timers that began.", of(func(s agent.Stats) float64 { return float64(s.Fired) })),
		c("lode_agent_timers_failed_total", "Turns of timers that failed.", of(func(s agent.Stats) float64 { return float64(s.Failed) })),
		c("lode_agent_dead_total", "Messages and timers of agents that were given up.", of(func(s agent.Stats) float64 { return float64(s.Dead) })),
	}
}
