package node

import (
	"context"
	"slices"
	"strings"
	"time"

	"lode"
)

// nearWish is where a kind wants to be: near a dataset, another kind, a node,
// a zone, or what has a label. "": anywhere.
type nearWish struct {
	ns   lode.Namespace
	kind lode.Name
	near string
}

// nearness finds nodes for wishes. Where data is, it asks once in a while.
type nearness struct {
	data map[string]dataSight
}

type dataSight struct {
	at    time.Time
	nodes []lode.NodeID
}

// nearFor is how long it is taken to be known where a dataset is.
const nearFor = time.Minute

// find names the nodes of a wish; none: nothing is of that name, or all nodes
// will do. owned are the nodes that have partitions of each kind.
func (s *nearness) find(ctx context.Context, n *Node, w nearWish, owned map[string]map[lode.NodeID]bool) []lode.NodeID {
	if w.near == "" {
		return nil
	}
	name, err := lode.ParseName(w.near)
	if err == nil && name != w.kind {
		if _, err := n.catalog.ResolveAgent(w.ns, name); err == nil {
			var out []lode.NodeID
			for node := range owned[string(w.ns)+"/"+w.near] {
				out = append(out, node)
			}
			slices.Sort(out)
			return out
		}
		if nodes, ok := s.dataset(ctx, n, w.ns, name); ok {
			return nodes
		}
	}
	return n.nodesLike(w.near)
}

// nodesLike are the nodes of a name, a zone, or a label (KEY=VALUE).
func (n *Node) nodesLike(word string) (out []lode.NodeID) {
	key, value, label := strings.Cut(word, "=")
	for _, r := range n.fleet.members.List() {
		if string(r.Name) == word {
			return []lode.NodeID{r.Name}
		}
		if r.Zone == word || label && r.Labels[key] == value {
			out = append(out, r.Name)
		}
	}
	return out
}

// dataset are the nodes that have the most of a dataset's shards: at least half
// as many as the one with the most. False: there is no such dataset.
func (s *nearness) dataset(ctx context.Context, n *Node, ns lode.Namespace, name lode.Name) ([]lode.NodeID, bool) {
	id := string(ns) + "/" + string(name)
	if d, ok := s.data[id]; ok && time.Since(d.at) < nearFor {
		return d.nodes, d.nodes != nil
	}
	d := dataSight{at: time.Now()}
	if m, _, err := n.data.Manifest(ctx, ns, name, 0); err == nil {
		ds := make([]lode.Digest, len(m.Shards))
		for i := range m.Shards {
			ds[i] = m.Shards[i].Digest
		}
		if held, err := (workers{n}).Holders(ctx, ds); err == nil {
			d.nodes = holders(held)
		}
	}
	s.data[id] = d
	return d.nodes, d.nodes != nil
}

func holders(held map[lode.NodeID][]bool) []lode.NodeID {
	most, counts := 0, map[lode.NodeID]int{}
	for node, has := range held {
		for _, h := range has {
			if h {
				counts[node]++
			}
		}
		most = max(most, counts[node])
	}
	out := []lode.NodeID{}
	for node, c := range counts {
		if 2*c >= most && c > 0 {
			out = append(out, node)
		}
	}
	slices.Sort(out)
	return out
}
