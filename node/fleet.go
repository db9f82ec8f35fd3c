package node

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync"
	"time"

	"lode"
	"lode/bus"
	"lode/catalog"
	"lode/invoke"
	"lode/link"
	"lode/node/member"
)

// fleet is this node among the others: who it is, who else there is, and the
// connections between them. A node that nobody has joined is a fleet of one.
type fleet struct {
	n         *Node
	id        lode.NodeID // known before the identity is
	sealer    *catalog.KeyFile
	identity  *member.Identity
	members   *member.Members
	authority *member.Authority
	joins     *member.Joins
	port      *member.Listener
	link      *link.Link
	skew      medianSkew

	mu    sync.Mutex
	heard map[lode.NodeID]*heard
}

// heard is what a node said of itself last.
type heard struct {
	load *invoke.NodeLoad
	at   time.Time
	lost time.Time // since when it is not heard of; zero: it is
}

// openFleet finds out who this node is: by its folder, or by joining a
// cluster. A first node is nobody until its bus is open; see found.
func (n *Node) openFleet(ctx context.Context) (err error) {
	f := &fleet{n: n, heard: map[lode.NodeID]*heard{}}
	n.fleet = f
	known := false
	if f.identity, known, err = member.Load(n.dir.file("node"), nil); err != nil {
		return err
	}
	if n.cfg.Join != nil && (!known || f.identity.Expired()) {
		if err := f.join(ctx, known); err != nil {
			return err
		}
		known = true
	} else if n.cfg.Join != nil {
		n.cfg.Logger.Info("this node belongs to a cluster already; --join has no effect", "node", f.identity.Node(), "cluster", f.identity.Cluster())
	}
	if f.sealer, err = catalog.OpenKeyFile(n.dir.file("secrets.key")); err != nil {
		return err
	}
	f.authority = member.NewAuthority(lateTables{n}, f.sealer, nil)
	if !known {
		f.id, err = n.firstName()
		return err
	}
	f.id = f.identity.Node()
	if n.cfg.Name != "" && n.cfg.Name != string(f.id) {
		return lode.Errorf(lode.Precondition, "this node's name is %s; it cannot become %s", f.id, n.cfg.Name).
			WithHint("leave --name out, or join with an empty folder")
	}
	return f.connect(ctx)
}

// firstName is the name of a node that is the first of its cluster.
func (n *Node) firstName() (lode.NodeID, error) {
	if n.cfg.Name != "" {
		return lode.ParseNodeID(n.cfg.Name)
	}
	host, err := os.Hostname()
	if err != nil {
		host = ""
	}
	return lode.NodeIDFromHost(host), nil
}

// join makes this folder's node one of a cluster; again where it was one, and
// its certificate expired while it was away.
func (f *fleet) join(ctx context.Context, again bool) error {
	n := f.n
	if n.dir.has("bus") && !again {
		return lode.Errorf(lode.Precondition, "data folder %s has the data of a node that was alone", n.dir.path).
			WithHint("join with an empty folder: -d DIR; the data of that one stays where it is")
	}
	addr, token, err := n.cfg.Join(ctx)
	if err != nil {
		return err
	}
	j, err := member.Join(ctx, member.JoinOptions{Dir: n.dir.file("node"), Addr: addr, Token: token, Name: n.cfg.Name, Node: f.record(), Keep: f.keepShared})
	if err != nil {
		return err
	}
	f.identity = j.Identity
	n.cfg.Logger.Info("joined", "cluster", j.Cluster, "as", j.Node, "nodes", len(j.Nodes))
	return nil
}

// keepShared writes what all nodes of a cluster have in common.
func (f *fleet) keepShared(j *member.Joined) error {
	var l bus.Layout
	if err := json.Unmarshal(j.Shared.Layout, &l); err != nil {
		return lode.Errorf(lode.Internal, "the layout of the bus is not readable: %w", err)
	}
	d := f.n.dir
	return errors.Join(d.write("secrets.key", j.Shared.Secrets, 0o600), d.write("code.key", j.Shared.Code, 0o600), d.write("join.json", j.Shared.Layout, 0o600))
}

// shared is what a node that joins here gets.
func (f *fleet) shared(context.Context) (s member.Shared, err error) {
	if s.Secrets, err = os.ReadFile(f.n.dir.file("secrets.key")); err != nil {
		return s, lode.Errorf(lode.Internal, "read the folder's key: %w", err)
	}
	s.Code = []byte(hex.EncodeToString(f.n.codeKey) + "\n")
	s.Layout, err = json.Marshal(f.n.bus.Layout())
	return s, err
}

// record is this node as others see it. Its ports are what is listened on, or
// will be.
func (f *fleet) record() member.Record {
	n := f.n
	return member.Record{Gateway: n.gatewayAddr(), Peers: advertisedHost(n.cfg.Peers), Bus: advertisedHost(n.cfg.Routes), Zone: n.cfg.Zone, Labels: n.cfg.Labels,
		Version: n.cfg.Version, CPU: runtime.NumCPU(), Memory: totalMemory()}
}

// advertised is the address that others use: the host that was asked for, with
// the port that was got.
func advertised(asked string, got net.Addr) string {
	host, _, err := net.SplitHostPort(asked)
	if err != nil {
		return got.String()
	}
	_, port, err := net.SplitHostPort(got.String())
	if err != nil {
		return got.String()
	}
	return net.JoinHostPort(reachable(host), port)
}

// advertisedHost is the address that others use for one that is listened on.
func advertisedHost(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	return net.JoinHostPort(reachable(host), port)
}

// loopback reports whether a host is this machine alone.
func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// somePort is addr with a free port where it has the port 0: others remember
// the address.
func somePort(addr string) (string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || port != "0" {
		return addr, err
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return "", lode.Errorf(lode.Unavailable, "find a free port: %w", err)
	}
	defer ln.Close()
	_, port, err = net.SplitHostPort(ln.Addr().String())
	return net.JoinHostPort(host, port), err
}

// reachable is host, or an address of this machine where host is none that
// others can use.
func reachable(host string) string {
	if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
		return host
	}
	addrs, err := net.InterfaceAddrs()
	if err == nil {
		for _, a := range addrs {
			if ipn, ok := a.(*net.IPNet); ok && ipn.IP.IsGlobalUnicast() && !ipn.IP.IsLinkLocalUnicast() {
				return ipn.IP.String()
			}
		}
	}
	return "127.0.0.1"
}

// plusPort is addr with its port so many higher; port 0 stays.
func plusPort(addr string, by int) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	p, err := strconv.Atoi(port)
	if err != nil || p == 0 {
		return net.JoinHostPort(host, "0")
	}
	return net.JoinHostPort(host, strconv.Itoa(p+by))
}

// connect opens the peer port and the connections to the others. The bus need
// not be there yet: it is reached through them.
func (f *fleet) connect(ctx context.Context) (err error) {
	n := f.n
	if err := f.identity.Valid(); err != nil {
		n.cfg.Logger.Error("the certificate of this node cannot be used", "err", err)
	}
	f.members, err = member.OpenMembers(member.MembersConfig{Identity: f.identity, Changed: f.changed, Alive: f.alive, Logger: n.cfg.Logger})
	if err != nil {
		return err
	}
	n.opened("members", plain(f.members.Close))
	f.joins = member.NewJoins(member.JoinsConfig{Identity: f.identity, Authority: f.authority, Members: f.members, Tables: lateTables{n},
		Share: f.shared, Version: n.cfg.Version, Logger: n.cfg.Logger})
	f.link = link.New(link.Config{Self: f.id, Dial: f.members.Dialer(member.Link), Handle: n.handlers(), Beat: n.beat, Heard: f.hear, Changed: f.upDown, Logger: n.cfg.Logger})
	n.opened("link", plain(f.link.Close))
	f.port, err = member.Listen(ctx, member.ListenConfig{Addr: n.cfg.Peers, Identity: f.identity, Members: f.members, Logger: n.cfg.Logger,
		Handlers: member.Handlers{Link: f.link.Serve, Bus: n.serveBus, Join: f.joins}})
	if err != nil {
		return lode.Errorf(lode.Conflict, "listen for other nodes on %s: %w", n.cfg.Peers, err).WithHint("is another node running? choose other ports with --port")
	}
	n.opened("peer port", plain(f.port.Close))
	f.changed()
	return nil
}

// lateTables are the tables of a bus that may not be open yet.
type lateTables struct{ n *Node }

func (t lateTables) Table(ctx context.Context, name string) (*bus.Table, error) {
	select {
	case <-t.n.busOpen:
		return t.n.bus.Table(ctx, name)
	case <-ctx.Done():
		return nil, lode.Errorf(lode.Unavailable, "the bus of this node is not open yet")
	}
}

// serveBus takes a connection of another node's bus.
func (n *Node) serveBus(conn net.Conn, _ lode.NodeID) {
	select {
	case <-n.busOpen:
		n.bus.ServeClient(conn)
	case <-n.ctx.Done():
	}
}

// announce says that this node is up, and follows who else is.
func (f *fleet) announce(ctx context.Context) error {
	if f.identity == nil { // the first node of a cluster: its bus holds the CA
		id, err := member.Found(ctx, f.n.dir.file("node"), f.id, f.authority)
		if err != nil {
			return err
		}
		f.identity = id
		if err := f.connect(ctx); err != nil {
			return err
		}
	}
	f.members.Follow(lateTables{f.n})
	f.n.opened("mirror of the nodes", plain(f.members.Close)) // before the bus; what it knows stays
	if err := f.authority.Check(ctx, f.identity); err != nil && lode.KindOf(err) != lode.Unavailable {
		return err
	}
	if err := f.members.Announce(ctx, f.record()); err != nil {
		return err
	}
	renewal := member.Renew(member.RenewalConfig{Identity: f.identity, Authority: f.authority, Renewed: f.members.Renewed, Logger: f.n.cfg.Logger})
	f.n.opened("renewal", plain(renewal.Close))
	select {
	case <-f.members.Synced():
	case <-time.After(syncWait):
	case <-ctx.Done():
	}
	return nil
}

// syncWait is how long a start waits to see the other nodes.
const syncWait = 5 * time.Second

// changed follows the table of nodes.
func (f *fleet) changed() {
	if f.link == nil || f.port == nil {
		return
	}
	var peers []lode.NodeID
	for _, r := range f.members.List() {
		if r.Name != f.id && r.State != member.Joining {
			peers = append(peers, r.Name)
		}
	}
	f.link.SetPeers(peers)
	if err := f.members.Expelled(); err != nil {
		f.n.fail(err)
	}
}

// hear takes a heartbeat.
func (f *fleet) hear(from lode.NodeID, b link.Beat) {
	l, err := invoke.ParseLoad(b.Payload)
	if err != nil {
		l = nil // an older or newer node: it is up, and that is all
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.of(from)
	if l != nil {
		h.load = l
	}
	h.at, h.lost = time.Now(), time.Time{}
}

// of is what is known of a node; f.mu is held.
func (f *fleet) of(node lode.NodeID) *heard {
	h := f.heard[node]
	if h == nil {
		h = &heard{}
		f.heard[node] = h
	}
	return h
}

// upDown follows the connections.
func (f *fleet) upDown(node lode.NodeID, up bool, _ error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch h := f.of(node); {
	case up:
		h.lost = time.Time{}
	case h.lost.IsZero():
		h.lost = time.Now()
	}
}

// alive reports whether a node answers.
func (f *fleet) alive(node lode.NodeID) bool {
	if node == f.id {
		return true
	}
	for _, p := range f.link.Peers() {
		if p.Node == node {
			return p.Up
		}
	}
	return false
}

// lostFor is how long a node has been out of reach; 0: it is not.
func (f *fleet) lostFor(node lode.NodeID) time.Duration {
	if f.alive(node) {
		return 0
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if h := f.heard[node]; h != nil && !h.lost.IsZero() {
		return time.Since(h.lost)
	}
	return time.Since(f.n.started) // it was never heard of
}

// known lists every node of the cluster.
func (f *fleet) known() []lode.NodeID {
	if f.members == nil {
		return []lode.NodeID{f.id}
	}
	var out []lode.NodeID
	for _, r := range f.members.List() {
		out = append(out, r.Name)
	}
	return out
}

// ask puts a question to another node's bus.
func (f *fleet) ask(ctx context.Context, to lode.NodeID, msg []byte) ([]byte, error) {
	if f.link == nil {
		return nil, lode.Errorf(lode.Unavailable, "this node has no connection to others yet")
	}
	var a link.Bytes
	if err := f.link.Call(ctx, to, &link.Request{Method: "bus", Body: msg}, &a); err != nil {
		return nil, err
	}
	return a.Body, nil
}

// dialBus connects to another node's bus.
func (f *fleet) dialBus(ctx context.Context, to lode.NodeID) (net.Conn, error) {
	if f.members == nil {
		return nil, lode.Errorf(lode.Unavailable, "this node has no connection to others yet")
	}
	return f.members.Dialer(member.Bus)(ctx, to)
}
