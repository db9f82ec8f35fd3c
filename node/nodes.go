package node

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"lode"
	"lode/api"
	"lode/bus"
	"lode/link"
	"lode/node/member"
)

// nodes is api.Nodes over the fleet.
type nodes struct{ *Node }

// ListNodes tells everything of every node.
func (v nodes) ListNodes(context.Context) (api.NodeList, error) {
	out := api.NodeList{Items: []api.Node{}, Cluster: v.clusterState()}
	links := map[lode.NodeID]link.Peer{}
	for _, p := range v.fleet.link.Peers() {
		links[p.Node] = p
	}
	for _, r := range v.fleet.members.List() {
		out.Items = append(out.Items, v.node(r, links, out.Cluster))
	}
	return out, nil
}

// GetNode tells of one node.
func (v nodes) GetNode(ctx context.Context, name lode.NodeID) (api.Node, error) {
	l, err := v.ListNodes(ctx)
	if err != nil {
		return api.Node{}, err
	}
	var names []string
	for _, n := range l.Items {
		if n.Name == string(name) {
			return n, nil
		}
		names = append(names, n.Name)
	}
	e := lode.Errorf(lode.NotFound, "no node of this cluster is called %s", name)
	if s := lode.Suggest(string(name), names); s != "" {
		return api.Node{}, e.WithHint("did you mean %q?", s)
	}
	return api.Node{}, e.WithHint("nodes: %s", strings.Join(names, ", "))
}

func (v nodes) node(r member.Record, links map[lode.NodeID]link.Peer, c api.ClusterState) api.Node {
	n := api.Node{Name: string(r.Name), State: api.NodeState(r.State), Bus: api.BusClient, Keeper: c.Keeper == string(r.Name), CPU: r.CPU, Memory: r.Memory, GPU: r.GPU,
		Zone: r.Zone, Labels: r.Labels, Version: r.Version, Started: r.Started, Joined: r.Joined, Gateway: "http://" + r.Gateway, Peers: r.Peers}
	if n.GPU == nil {
		n.GPU = []string{}
	}
	if slices.Contains(c.Members, n.Name) {
		n.Bus = api.BusMember
	}
	if r.Name == v.fleet.id {
		n.Running, n.Queued = v.carries()
		n.Left = v.drain.left()
		return n
	}
	p, ok := links[r.Name]
	n.Link = &api.Link{Up: ok && p.Up, RTT: p.RTT, Skew: p.Skew, BytesIn: p.BytesIn, BytesOut: p.BytesOut}
	if p.Why != nil && !p.Up {
		n.Link.Why = p.Why.Error()
	}
	v.fleet.mu.Lock()
	defer v.fleet.mu.Unlock()
	if h := v.fleet.heard[r.Name]; h != nil {
		n.Link.LostSince = h.lost
		if h.load != nil {
			n.Queued = int(h.load.Queue)
			n.Running = min(n.Queued, h.load.Slots)
			n.Queued -= n.Running
		}
	}
	if !n.Link.Up && n.State != api.NodeJoining {
		n.State, n.Running, n.Queued = api.NodeLost, 0, 0
	}
	return n
}

// health is how well the bus is kept, as of a moment ago: to ask all members
// may take long.
func (n *Node) health() bus.Health {
	n.ill.mu.Lock()
	defer n.ill.mu.Unlock()
	if time.Since(n.ill.at) > healthFor {
		n.ill.last = n.bus.Health()
		n.ill.at = time.Now()
	}
	return n.ill.last
}

const healthFor = 300 * time.Millisecond

// illness is the last Health of the bus.
type illness struct {
	mu   sync.Mutex
	at   time.Time
	last bus.Health
}

// clusterState is what the nodes are together, as this one sees it.
func (n *Node) clusterState() api.ClusterState {
	h, l := n.health(), n.bus.Layout()
	out := api.ClusterState{Members: []string{}, Quorum: h.Quorum, Survives: h.Survives, Generation: l.Generation}
	for _, m := range l.Members {
		out.Members = append(out.Members, string(m.Node))
	}
	for _, m := range h.Members {
		if m.Up {
			out.Answering++
		}
	}
	slices.Sort(out.Members)
	keeper, _ := n.seat.who()
	out.Keeper = string(keeper)
	out.Moving = n.moving.Load().text()
	if r := n.cfg.NATS; r != nil {
		out.External, out.Members = r.URL, []string{}
	}
	return out
}

// carries is what runs and waits on this node.
func (n *Node) carries() (running, queued int) {
	for _, l := range n.invoke.Loads() {
		running += l.Running
		queued += l.Queued
	}
	return running + n.executor.Groups(), queued
}

// DrainNode marks a node, and waits a while for it to be empty.
func (v nodes) DrainNode(ctx context.Context, name lode.NodeID, wait time.Duration) (api.Node, error) {
	if _, err := v.GetNode(ctx, name); err != nil {
		return api.Node{}, err
	}
	stays := false
	for _, r := range v.fleet.members.List() {
		stays = stays || r.Name != name && !v.fleet.leaves(r.Name) && v.fleet.alive(r.Name)
	}
	if !stays {
		return api.Node{}, lode.Errorf(lode.Precondition, "no other node could take what %s carries", name).
			WithHint("let another node join first, or undrain one; to stop a node alone, stop its process")
	}
	if !v.fleet.leaves(name) {
		if err := v.fleet.members.SetState(ctx, name, member.Draining); err != nil {
			return api.Node{}, err
		}
	}
	return v.awaitNode(ctx, name, wait, func(n api.Node) bool { return n.Empty() })
}

// awaitNode polls a node as it tells of itself until it is as asked for.
func (v nodes) awaitNode(ctx context.Context, name lode.NodeID, wait time.Duration, ok func(api.Node) bool) (api.Node, error) {
	end := time.Now().Add(wait)
	for {
		n, err := v.GetNode(ctx, name)
		if err != nil {
			return n, err
		}
		if name != v.fleet.id && v.fleet.alive(name) && !local(ctx) {
			if own, err := v.client(name, "").GetNode(ctx, string(name)); err == nil {
				n.Left, n.Running, n.Queued = own.Left, own.Running, own.Queued
			}
		}
		if ok(n) || !time.Now().Before(end) {
			return n, nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return n, nil
		}
	}
}

// UndrainNode takes a drain back.
func (v nodes) UndrainNode(ctx context.Context, name lode.NodeID) (api.Node, error) {
	if _, err := v.GetNode(ctx, name); err != nil {
		return api.Node{}, err
	}
	if v.fleet.leaves(name) {
		if err := v.fleet.members.SetState(ctx, name, member.Ready); err != nil {
			return api.Node{}, err
		}
	}
	return v.awaitNode(ctx, name, time.Second, func(n api.Node) bool { return n.State == api.NodeReady })
}

// RemoveNode takes a node out of the cluster: first off the bus, so that what
// stays has its quorum, then off the list.
func (v nodes) RemoveNode(ctx context.Context, name lode.NodeID, force bool) error {
	r, ok := v.fleet.members.Get(name)
	if !ok {
		_, err := v.GetNode(ctx, name)
		return err
	}
	if len(v.fleet.known()) == 1 {
		return lode.Errorf(lode.Precondition, "node %s is the last of its cluster", name).
			WithHint("to end the cluster stop the node and remove its data folder")
	}
	if r.State == member.Ready && v.fleet.alive(name) && !force {
		return lode.Errorf(lode.Precondition, "node %s is ready and carries work", name).
			WithHint("drain it first: lode drain %s; or remove it at once, with what it alone has, with --force", name)
	}
	if keeper, jobs := v.seat.who(); jobs == nil {
		if keeper == "" || keeper == name {
			return noKeeper()
		}
		return v.client(keeper, "").RemoveNode(ctx, string(name), force)
	}
	if name == v.fleet.id {
		return lode.Errorf(lode.Precondition, "node %s is the keeper and cannot remove itself", name).
			WithHint("drain it first: lode drain %s; another node is the keeper then", name)
	}
	if err := v.moveOff(ctx, name); err != nil {
		return named(err, "take %s off the bus", name)
	}
	return v.fleet.members.Remove(ctx, name, force)
}

// moveOff changes the members of the bus to some without that node.
func (n *Node) moveOff(ctx context.Context, name lode.NodeID) error {
	if n.cfg.NATS != nil || !n.bus.Layout().Has(name) {
		return nil
	}
	cs := slices.DeleteFunc(n.candidates(), func(c candidate) bool { return c.id == name })
	return n.move(ctx, chooseMembers(cs), false)
}

// candidates are the nodes as the choice of members sees them.
func (n *Node) candidates() []candidate {
	var out []candidate
	l := n.bus.Layout()
	for _, r := range n.fleet.members.List() {
		if r.State == member.Joining {
			continue
		}
		lost := n.fleet.lostFor(r.Name)
		out = append(out, candidate{id: r.Name, zone: r.Zone, member: l.Has(r.Name), alive: lost == 0, gone: lost > n.cfg.RepairAfter, leaves: n.fleet.leaves(r.Name)})
	}
	return out
}

// move changes the members of the bus, if they are others, or again is set.
func (n *Node) move(ctx context.Context, to []lode.NodeID, again bool) error {
	n.moves.Lock()
	defer n.moves.Unlock()
	var members []bus.Member
	l, same := n.bus.Layout(), true
	for _, id := range to {
		r, ok := n.fleet.members.Get(id)
		if !ok {
			return lode.Errorf(lode.NotFound, "node %s has left", id)
		}
		members = append(members, bus.Member{Node: id, Route: r.Bus})
		same = same && slices.Contains(l.Members, bus.Member{Node: id, Route: r.Bus})
	}
	if same && !again && len(l.Members) == len(members) {
		return nil
	}
	n.moving.Store(&moveText{to: to})
	defer n.moving.Store(nil)
	began := time.Now()
	if err := n.bus.Move(ctx, members); err != nil {
		return err
	}
	n.cfg.Logger.Info("the bus has new members", "members", to, "took", time.Since(began).Round(time.Millisecond))
	return nil
}

// moveText is a change of the members under way.
type moveText struct{ to []lode.NodeID }

func (m *moveText) text() string {
	if m == nil {
		return ""
	}
	return fmt.Sprintf("to %d members: %v", len(m.to), m.to)
}

// CreateJoinToken makes a token, and the command for the new node.
func (v nodes) CreateJoinToken(ctx context.Context, s api.JoinSpec) (api.JoinToken, error) {
	tok, err := v.fleet.joins.CreateToken(ctx, s.Uses, s.For)
	if err != nil {
		return api.JoinToken{}, err
	}
	all, err := v.fleet.joins.ListTokens(ctx)
	if err != nil {
		return api.JoinToken{}, err
	}
	out := api.JoinToken{Token: tok, Uses: max(1, s.Uses), Address: v.gatewayAddr()}
	parsed, err := member.ParseToken(tok)
	if err != nil {
		return api.JoinToken{}, err
	}
	out.ID = parsed.ID()
	for _, t := range all {
		if t.ID == parsed.ID() {
			out.Expires = t.Expires
		}
	}
	host, _, err := net.SplitHostPort(out.Address)
	ip := net.ParseIP(host)
	out.Command = api.JoinCommand(out.Address, tok, err == nil && ip != nil && ip.IsLoopback())
	return out, nil
}

// ListJoinTokens lists those that still let somebody in.
func (v nodes) ListJoinTokens(ctx context.Context) ([]api.Token, error) {
	all, err := v.fleet.joins.ListTokens(ctx)
	if err != nil {
		return nil, err
	}
	var out []api.Token
	for _, t := range all {
		if left := t.Left(time.Now()); left > 0 {
			out = append(out, api.Token{ID: t.ID, Join: true, Uses: left, Created: t.Created, Expires: t.Expires})
		}
	}
	return out, nil
}

// RevokeJoinToken ends a token.
func (v nodes) RevokeJoinToken(ctx context.Context, id string) error {
	err := v.fleet.joins.RevokeToken(ctx, id)
	if lode.KindOf(err) == lode.NotFound {
		return nil
	}
	return err
}

// CheckCluster is what is found out about the cluster as a whole.
func (v nodes) CheckCluster(context.Context) ([]api.Check, error) {
	return []api.Check{v.certificateCheck()}, nil
}

func (v nodes) certificateCheck() api.Check {
	id := v.fleet.identity
	c := api.Check{Name: "certificate", State: api.CheckOK, Detail: "valid until " + id.Expires().UTC().Format(time.RFC3339)}
	if err := id.Valid(); err != nil {
		c.State, c.Detail, c.Advice = api.CheckFail, err.Error(), lode.AsError(err).Hint
	} else if time.Until(id.Expires()) < 10*24*time.Hour {
		c.State, c.Advice = api.CheckWarn, "it should have been renewed by now: look at the node's log"
	}
	return c
}

var _ api.Nodes = nodes{}
