package agent

import (
	"context"
	"crypto/tls"
	stdnet "net"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"lode"
	"lode/bus"
	"lode/bus/bustest"
	"lode/link"
)

// net is what is between the nodes of a world: a bus of three members with
// mutual TLS, and links.
type net struct {
	ca    *bustest.Authority
	route map[lode.NodeID]string

	mu    sync.Mutex
	quiet map[lode.NodeID]bool
	buses map[lode.NodeID]*bus.Bus
	links map[lode.NodeID]*link.Link
}

func (x *net) silent(n lode.NodeID) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.quiet[n]
}

// silence has nobody hear of a node, or again: heartbeats, not the links.
func (x *net) silence(n lode.NodeID, off bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.quiet[n] = off
}

var three = []lode.NodeID{"a", "b", "c"}

// trio is a world of three nodes, with the kind k.
func trio(t testing.TB, set ...func(*Config)) (*world, []*node) {
	w := newWorld(t, set...)
	w.kind("k", func(*lode.Function) {})
	x := &net{ca: bustest.NewAuthority(t), route: map[lode.NodeID]string{},
		quiet: map[lode.NodeID]bool{}, buses: map[lode.NodeID]*bus.Bus{}, links: map[lode.NodeID]*link.Link{}}
	w.net = x
	var members []bus.Member
	for _, n := range three {
		x.route[n] = bustest.Address(12000)
		members = append(members, bus.Member{Node: n, Route: x.route[n]})
		w.nodes[n] = &node{w: w, id: n}
	}
	w.nodes["a"].openBus(nil)
	l := x.buses["a"].Layout()
	w.nodes["b"].openBus(&l)
	w.nodes["c"].openBus(&l)
	if err := x.buses["a"].Move(t.Context(), members); err != nil {
		t.Fatal(err)
	}
	var out []*node
	for _, n := range three {
		w.nodes[n].openLink()
		w.nodes[n].up()
		out = append(out, w.nodes[n])
	}
	return w, out
}

func (x *net) busOf(n lode.NodeID) (*bus.Bus, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if b := x.buses[n]; b != nil {
		return b, nil
	}
	return nil, lode.Errorf(lode.Unavailable, "%s is down", n)
}

func (n *node) openBus(join *bus.Layout) {
	x := n.w.net
	b, err := bus.Open(context.Background(), bus.Config{Dir: filepath.Join(n.w.dir, "bus-"+string(n.id)), Node: n.id, Logger: n.w.log.With("bus", n.id), Cluster: &bus.ClusterConfig{
		Listen: x.route[n.id],
		Server: func() *tls.Config { return x.ca.TLS(n.id) },
		Client: func() *tls.Config { return x.ca.TLS(n.id) },
		Dial: func(_ context.Context, to lode.NodeID) (stdnet.Conn, error) {
			b, err := x.busOf(to)
			if err != nil {
				return nil, err
			}
			near, far, err := bustest.Pipe()
			if err == nil {
				go b.ServeClient(far)
			}
			return near, err
		},
		Ask: func(ctx context.Context, to lode.NodeID, msg []byte) ([]byte, error) {
			b, err := x.busOf(to)
			if err != nil {
				return nil, err
			}
			return b.Handle(ctx, n.id, msg)
		},
		Known: func() []lode.NodeID { return slices.Clone(three) },
		Join:  join,
	}})
	if err != nil {
		n.w.t.Fatal(err)
	}
	n.bus = b
	x.mu.Lock()
	x.buses[n.id] = b
	x.mu.Unlock()
	n.w.t.Cleanup(func() { b.Close() })
}

// openLink connects n with the others.
func (n *node) openLink() {
	x := n.w.net
	l := link.New(link.Config{Self: n.id, Logger: n.w.log.With("link", n.id),
		Dial: func(_ context.Context, to lode.NodeID) (stdnet.Conn, error) {
			x.mu.Lock()
			other := x.links[to]
			x.mu.Unlock()
			if other == nil {
				return nil, lode.Errorf(lode.Unavailable, "%s is down", to)
			}
			near, far, err := bustest.Pipe()
			if err == nil {
				go other.Serve(far, n.id)
			}
			return near, err
		},
		Handle: map[string]link.Handler{LinkMethod: func(ctx context.Context, in *link.Incoming) error {
			s := n.svc.Load()
			if s == nil {
				return lode.Errorf(lode.Unavailable, "%s is down", n.id)
			}
			return s.HandleRemote(ctx, in)
		}}})
	x.mu.Lock()
	x.links[n.id] = l
	x.mu.Unlock()
	l.SetPeers(three)
	n.w.t.Cleanup(func() { l.Close() })
}

// kill ends n as kill -9 does: its agents, its links, and its bus.
func (n *node) kill() {
	x := n.w.net
	x.mu.Lock()
	l, b := x.links[n.id], x.buses[n.id]
	delete(x.links, n.id)
	delete(x.buses, n.id)
	x.mu.Unlock()
	if l != nil {
		l.Close()
	}
	n.crash()
	n.ending.Wait()
	if b != nil {
		b.Close()
	}
}

// revive starts n again.
func (n *node) revive() {
	n.hooks.clear()
	n.openBus(nil)
	n.openLink()
	n.up()
}

// Ask implements Peers.
func (n *node) Ask(ctx context.Context, to lode.NodeID, head, body []byte) (ahead, abody []byte, err error) {
	if n.w.net == nil {
		return nil, nil, &lode.Error{Kind: lode.Unavailable, Err: link.ErrNotSent}
	}
	n.w.net.mu.Lock()
	l := n.w.net.links[n.id]
	n.w.net.mu.Unlock()
	if l == nil {
		return nil, nil, &lode.Error{Kind: lode.Unavailable, Err: link.ErrNotSent}
	}
	var ans link.Bytes
	if err := l.Call(ctx, to, &link.Request{Method: LinkMethod, Head: head, Body: body}, &ans); err != nil {
		return nil, nil, err
	}
	return ans.HeadBytes, ans.Body, nil
}

var _ Peers = (*node)(nil)
