package api

import (
	"time"

	"lode"
)

// joinRequest is the body of tokens.join; For is in seconds on the wire.
type joinRequest struct {
	Uses    int   `json:"uses,omitempty"`
	Seconds int64 `json:"for_seconds,omitempty"`
}

func nodeRoutes() []route {
	draining := []param{{"wait", "string", "answer when the node is empty, or after this long (30s); at most a minute"}}
	force := []param{{"force", "boolean", "although it is neither drained nor lost"}}
	return []route{
		{id: "nodes.list", method: "GET", path: "/v1/nodes", role: RoleRead, summary: "List nodes, and what they are together", reply: NodeList{}, serve: listNodes},
		{id: "nodes.get", method: "GET", path: "/v1/nodes/{name}", role: RoleRead, summary: "One node", reply: Node{}, serve: getNode},
		{id: "nodes.drain", method: "POST", path: "/v1/nodes/{name}/drain", role: RoleAdmin, write: true, summary: "Let a node take nothing new and finish what it has", query: draining, reply: Node{}, serve: drainNode},
		{id: "nodes.undrain", method: "POST", path: "/v1/nodes/{name}/undrain", role: RoleAdmin, write: true, summary: "Let a drained node serve again", reply: Node{}, serve: undrainNode},
		{id: "nodes.remove", method: "DELETE", path: "/v1/nodes/{name}", role: RoleAdmin, write: true, summary: "Take a node out of the cluster, for ever", query: force, serve: removeNode},
		{id: "tokens.join", method: "POST", path: "/v1/tokens/join", role: RoleAdmin, write: true, summary: "Make a token that lets nodes join; it is told once", body: joinRequest{}, reply: JoinToken{}, serve: createJoin},
	}
}

// ofCluster checks that what is about all namespaces is asked by somebody who
// may do so, and that there is a cluster to ask about.
func (c *call) ofCluster(write bool) error {
	if c.b.Nodes == nil {
		return lode.Errorf(lode.Unavailable, "this node belongs to no cluster")
	}
	if write && c.grant.Namespace != "" {
		return lode.Errorf(lode.Denied, "nodes are for admins of all namespaces; this token is for namespace %s", c.grant.Namespace).
			WithHint("use a token that was made without --ns")
	}
	return nil
}

// listNodes falls back on Cluster, which knows no more than names.
func listNodes(c *call) error {
	if c.b.Nodes == nil {
		return withCluster(c, func(b Cluster) (NodeList, error) {
			l, err := b.Nodes(c.r.Context())
			return alone(l.Items), err
		})
	}
	l, err := c.b.Nodes.ListNodes(c.r.Context())
	if err != nil {
		return err
	}
	if l.Items == nil {
		l.Items = []Node{}
	}
	return c.json(l, "")
}

// alone is the cluster of nodes that know of no other.
func alone(nodes []Node) NodeList {
	l := NodeList{Items: nodes, Cluster: ClusterState{Members: []string{}, Quorum: true}}
	if nodes == nil {
		l.Items = []Node{}
	}
	for _, n := range nodes {
		if n.Bus == BusMember {
			l.Cluster.Members = append(l.Cluster.Members, n.Name)
		}
	}
	l.Cluster.Answering = len(l.Cluster.Members)
	return l
}

// aNode runs do with the name in the path and answers with what it returns.
func (c *call) aNode(write bool, do func(lode.NodeID) (Node, error)) error {
	if err := c.ofCluster(write); err != nil {
		return err
	}
	name, err := lode.ParseNodeID(c.r.PathValue("name"))
	if err != nil {
		return err
	}
	n, err := do(name)
	if err != nil {
		return err
	}
	return c.json(n, "")
}

func getNode(c *call) error {
	return c.aNode(false, func(name lode.NodeID) (Node, error) { return c.b.Nodes.GetNode(c.r.Context(), name) })
}

func drainNode(c *call) error {
	return c.aNode(true, func(name lode.NodeID) (Node, error) {
		d, err := c.wait()
		if err != nil {
			return Node{}, err
		}
		return c.b.Nodes.DrainNode(c.r.Context(), name, d)
	})
}

func undrainNode(c *call) error {
	return c.aNode(true, func(name lode.NodeID) (Node, error) { return c.b.Nodes.UndrainNode(c.r.Context(), name) })
}

func removeNode(c *call) error {
	if err := c.ofCluster(true); err != nil {
		return err
	}
	name, err := lode.ParseNodeID(c.r.PathValue("name"))
	if err != nil {
		return err
	}
	force, err := c.bool("force")
	if err != nil {
		return err
	}
	if err := c.b.Nodes.RemoveNode(c.r.Context(), name, force); err != nil {
		return err
	}
	return c.noContent()
}

func createJoin(c *call) error {
	if err := c.ofCluster(true); err != nil {
		return err
	}
	var q joinRequest
	if err := c.read(&q); err != nil {
		return err
	}
	s := JoinSpec{Uses: q.Uses, For: time.Duration(max(-1, min(q.Seconds, int64(MaxJoinFor/time.Second)+1))) * time.Second}
	if err := s.Check(); err != nil {
		return err
	}
	s.Uses = max(s.Uses, 1)
	if s.For == 0 {
		s.For = StdJoinFor
	}
	v, err := c.b.Nodes.CreateJoinToken(c.r.Context(), s)
	if err != nil {
		return err
	}
	c.w.Header().Set("Cache-Control", "no-store")
	return c.json(v, "")
}

// Check holds s against its bounds.
func (s JoinSpec) Check() error {
	switch {
	case s.Uses < 0 || s.Uses > MaxJoinUses:
		return lode.Errorf(lode.Invalid, "a join token lets in 1 to %d nodes, not %d", MaxJoinUses, s.Uses)
	case s.For < 0 || s.For > MaxJoinFor || s.For > 0 && s.For < time.Second:
		return lode.Errorf(lode.Invalid, "a join token holds for a second to seven days, not %s", s.For).
			WithHint("whoever has it gets the keys of the cluster: make it when it is needed")
	}
	return nil
}

func (c *call) revokeJoin(id string) error {
	if err := c.ofCluster(true); err != nil {
		return err
	}
	if err := c.b.Nodes.RevokeJoinToken(c.r.Context(), id); err != nil {
		return err
	}
	return c.noContent()
}
