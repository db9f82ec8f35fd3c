package job

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"lode"
)

// Node is a node that may work.
type Node struct {
	Node   lode.NodeID
	Slots  int // shards at once
	Zone   string
	Labels map[string]string
}

// Cluster is what jobs know of other nodes. Implementations are safe for
// concurrent use.
type Cluster interface {
	// Self is this node.
	Self() lode.NodeID
	// Nodes are those that are alive and do not drain, with this one if it does
	// not. It does not block, and is asked often.
	Nodes() []Node
	// Holders says which of the shards each node has, at home there or as a
	// copy. Nodes that do not answer in time are left out.
	Holders(ctx context.Context, shards []lode.Digest) (map[lode.NodeID][]bool, error)
	// Work has a node work on a group: by Executor.Work with g.Heard here, by
	// CallWork elsewhere. An error without a Done says that the node did not
	// take the group or was lost with it, and the group goes to another node;
	// one with a Done is the group's own.
	Work(ctx context.Context, node lode.NodeID, g *Group) (*Done, error)
	// Link is how fast bytes go from one node to another; 0 for what is not
	// known.
	Link(from, to lode.NodeID) (bytesPerSecond float64, rtt time.Duration)
}

// alone is a node without others.
type alone struct{ e *Executor }

var _ Cluster = alone{}

// Self implements Cluster.
func (alone) Self() lode.NodeID { return "" }

// Nodes implements Cluster.
func (a alone) Nodes() []Node { return []Node{{Slots: a.e.Slots()}} }

// Holders implements Cluster.
func (alone) Holders(context.Context, []lode.Digest) (map[lode.NodeID][]bool, error) { return nil, nil }

// Work implements Cluster.
func (a alone) Work(ctx context.Context, _ lode.NodeID, g *Group) (*Done, error) {
	return a.e.Work(ctx, g, g.Heard)
}

// Link implements Cluster.
func (alone) Link(_, _ lode.NodeID) (float64, time.Duration) { return 0, 0 }

// has reports whether a node is what a job's Where asks for.
func (n *Node) has(where map[string]string) bool {
	for k, v := range where {
		if got, ok := n.label(k); !ok || got != v {
			return false
		}
	}
	return true
}

func (n *Node) label(key string) (string, bool) {
	switch key {
	case "node":
		return string(n.Node), true
	case "zone":
		return n.Zone, n.Zone != ""
	}
	v, ok := n.Labels[key]
	return v, ok
}

// matching keeps the nodes that a job may use.
func matching(nodes []Node, where map[string]string) []Node {
	out := make([]Node, 0, len(nodes))
	for _, n := range nodes {
		if n.has(where) {
			out = append(out, n)
		}
	}
	return out
}

// errNowhere says that no node is what Where asks for, and what there is.
func errNowhere(nodes []Node, where map[string]string) error {
	var asked []string
	for _, k := range slices.Sorted(maps.Keys(where)) {
		asked = append(asked, k+"="+where[k])
	}
	there := map[string]map[string]bool{}
	see := func(k, v string) {
		if v == "" {
			return
		}
		if there[k] == nil {
			there[k] = map[string]bool{}
		}
		there[k][v] = true
	}
	for _, n := range nodes {
		see("node", string(n.Node))
		see("zone", n.Zone)
		for k, v := range n.Labels {
			see(k, v)
		}
	}
	var labels []string
	for _, k := range slices.Sorted(maps.Keys(there)) {
		labels = append(labels, fmt.Sprintf("%s=%s", k, strings.Join(slices.Sorted(maps.Keys(there[k])), "|")))
	}
	e := lode.Errorf(lode.NotFound, "no node that is up and does not drain has %s", strings.Join(asked, " and "))
	if len(labels) == 0 {
		return e.WithHint("no node has a label; leave --where out")
	}
	return e.WithHint("there are %s", strings.Join(labels, ", "))
}
