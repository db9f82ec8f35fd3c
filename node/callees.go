package node

import (
	"lode"
	"lode/agent/journal"
	"lode/invoke"
)

// Home is the node that has an agent, as far as this one knows.
func (c callees) Home(ns lode.Namespace, kind lode.Name, key string) (lode.NodeID, bool) {
	select {
	case <-c.n.agentsOpen:
	default:
		return "", false
	}
	rev, err := c.n.catalog.ResolveAgent(ns, kind)
	if err != nil {
		return "", false
	}
	partitions := rev.Function.Agent.Partitions
	if partitions <= 0 {
		partitions = lode.DefaultPartitions
	}
	o, ok := c.n.agents.Owners().Lookup(journal.Partition{Namespace: ns, Kind: kind, N: lode.PartitionOf(key, partitions)})
	return o.Node, ok
}

var _ invoke.Homes = callees{}
