package member

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"lode"
	"lode/bus"
)

// world is a cluster whose nodes have a bus of their own each: members reach
// each other with RouteTLS, clients over Bus.
type world struct {
	t     testing.TB
	seal  seal
	mu    sync.Mutex
	nodes map[lode.NodeID]*citizen
}

type citizen struct {
	id      *Identity
	members *Members
	bus     *bus.Bus
	joins   *Joins
	ln      *Listener
	route   string
}

func (w *world) get(n lode.NodeID) *citizen {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.nodes[n]
}

// openBus opens a node's bus. Its identity may come later, but before it
// reaches others.
func (w *world) openBus(name lode.NodeID, c *citizen, join *bus.Layout) {
	w.t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	c.route = free.Addr().String()
	free.Close()
	secured := func() *tls.Config { return c.id.RouteTLS(c.members.Check) }
	c.bus, err = bus.Open(w.t.Context(), bus.Config{Dir: w.t.TempDir(), Node: name, Logger: slog.New(slog.DiscardHandler), Cluster: &bus.ClusterConfig{
		Listen: c.route, Server: secured, Client: secured, Join: join,
		Dial: func(ctx context.Context, to lode.NodeID) (net.Conn, error) { return c.members.Dialer(Bus)(ctx, to) },
		Ask: func(ctx context.Context, to lode.NodeID, msg []byte) ([]byte, error) {
			if other := w.get(to); other != nil {
				return other.bus.Handle(ctx, name, msg)
			}
			return nil, lode.Errorf(lode.Unavailable, "node %s is not up", to)
		},
		Known: func() (out []lode.NodeID) {
			if c.members != nil {
				for _, r := range c.members.List() {
					out = append(out, r.Name)
				}
			}
			return out
		},
	}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.bus.Close() })
}

// openMembers needs an identity, and no bus.
func (w *world) openMembers(c *citizen) {
	w.t.Helper()
	var err error
	if c.members, err = OpenMembers(MembersConfig{Identity: c.id, Logger: slog.New(slog.DiscardHandler)}); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.members.Close() })
}

// up opens the doors of a node that has an identity and a bus, and says so.
func (w *world) up(c *citizen) {
	w.t.Helper()
	c.joins = NewJoins(JoinsConfig{Identity: c.id, Authority: NewAuthority(c.bus, w.seal, nil), Members: c.members, Tables: c.bus,
		Share: func(context.Context) (Shared, error) {
			layout, err := json.Marshal(c.bus.Layout())
			return Shared{Layout: layout}, err
		}})
	var err error
	c.ln, err = Listen(w.t.Context(), ListenConfig{Addr: "127.0.0.1:0", Identity: c.id, Members: c.members, Logger: slog.New(slog.DiscardHandler),
		Handlers: Handlers{Bus: func(conn net.Conn, _ lode.NodeID) { c.bus.ServeClient(conn) }, Join: c.joins}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.ln.Close() })
	w.mu.Lock()
	w.nodes[c.id.Node()] = c
	w.mu.Unlock()
	c.members.Follow(c.bus)
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	if err := c.members.Announce(ctx, Record{Gateway: "127.0.0.1:1", Peers: c.ln.Addr().String(), Bus: c.route}); err != nil {
		w.t.Fatal(err)
	}
	eventually(w.t, "a node sees itself", func() bool { r, _ := c.members.Get(c.id.Node()); return r.State == Ready })
}

func (w *world) join(name string, through *citizen) *citizen {
	w.t.Helper()
	token, err := through.joins.CreateToken(w.t.Context(), 1, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	j, err := Join(w.t.Context(), JoinOptions{Dir: w.t.TempDir(), Addr: through.ln.Addr().String(), Token: token, Name: name,
		Node: Record{Gateway: "127.0.0.1:1", Peers: "127.0.0.1:1", Bus: "127.0.0.1:1"}})
	if err != nil {
		w.t.Fatal(err)
	}
	var layout bus.Layout
	if err := json.Unmarshal(j.Shared.Layout, &layout); err != nil {
		w.t.Fatal(err)
	}
	c := &citizen{id: j.Identity}
	w.openMembers(c)
	w.openBus(j.Node, c, &layout)
	w.up(c)
	return c
}

// TestClusterOfThree grows a cluster from one node to three members of the
// bus, all by this package's certificates: joiners come in through a client of
// the bus as through a member, and what one node changes the others see.
func TestClusterOfThree(t *testing.T) {
	t.Parallel()
	w := &world{t: t, seal: 0x33, nodes: map[lode.NodeID]*citizen{}}
	a := &citizen{}
	w.openBus("a", a, nil)
	var err error
	if a.id, err = Found(t.Context(), t.TempDir(), "a", NewAuthority(a.bus, w.seal, nil)); err != nil {
		t.Fatal(err)
	}
	w.openMembers(a)
	w.up(a)
	b := w.join("b", a)
	c := w.join("c", b)
	if err := c.members.SetState(t.Context(), "b", Draining); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a sees what c changed", func() bool { r, _ := a.members.Get("b"); return r.State == Draining })
	var members []bus.Member
	for _, r := range a.members.List() {
		members = append(members, bus.Member{Node: r.Name, Route: r.Bus})
	}
	if err := a.bus.Move(t.Context(), members); err != nil {
		t.Fatal(err)
	}
	for _, x := range []*citizen{a, b, c} {
		eventually(t, "the layout of three", func() bool { return len(x.bus.Layout().Members) == 3 })
	}
	if err := b.members.SetState(t.Context(), "b", Ready); err != nil {
		t.Fatal(err)
	}
	for _, x := range []*citizen{a, b, c} {
		eventually(t, "all see what b changed", func() bool { r, _ := x.members.Get("b"); return r.State == Ready })
	}
	d := w.join("d", c)
	eventually(t, "a sees d", func() bool { r, _ := a.members.Get("d"); return r.State == Ready })
	if len(d.members.List()) != 4 {
		t.Fatal(d.members.List())
	}
}
