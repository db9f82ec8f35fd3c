package bus

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"lode"
)

// A connection of a client to another node's bus begins with this, integers
// big endian; then the bytes are the server's own:
//
//	client: "LBC1", 8 bytes generation, 1 byte length, name of the client's node
//	server: 1 byte: 0 go on; 1 this node does not serve that generation
const clientMagic = "LBC1"

const (
	dialWait = 3 * time.Second
	redial   = 20 * time.Millisecond
)

var errNotYet = errors.New("no connection to a member of the bus yet")

// plug gives the client library its connections: to the server in this
// process if it is of the generation, else to any member's. The library holds
// a lock while it asks, so a dial goes on beside it and the library asks again.
type plug struct {
	b      *Bus
	layout func() Layout

	mu      sync.Mutex
	ready   net.Conn // dialled, not taken yet
	gen     uint64   // of ready
	dialing bool
	closed  bool
	avoid   lode.NodeID // the member that failed last
	at      lode.NodeID // the member connected to
	nc      *nats.Conn
	work    sync.WaitGroup
}

var _ nats.InProcessConnProvider = (*plug)(nil)

// InProcessConn is what the client library calls.
func (p *plug) InProcessConn() (net.Conn, error) {
	l := p.layout()
	if i := p.b.instance(l.Generation); i != nil {
		p.mu.Lock()
		p.at = p.b.cfg.Node
		p.mu.Unlock()
		return i.srv.InProcessConn()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.ready; c != nil {
		p.ready = nil
		if p.gen == l.Generation {
			return c, nil
		}
		c.Close()
	}
	if !p.dialing && !p.closed && len(l.Members) > 0 {
		p.dialing = true
		p.work.Go(func() { p.dial(l) })
	}
	return nil, errNotYet
}

// dial tries the members once, the one that failed last at the end.
func (p *plug) dial(l Layout) {
	p.mu.Lock()
	avoid := p.avoid
	p.mu.Unlock()
	var c net.Conn
	var at lode.NodeID
	err := errNotYet
	for _, m := range shuffled(l.Members, avoid) {
		if m.Node == p.b.cfg.Node {
			continue
		}
		if c, err = p.b.dialMember(m.Node, l.Generation); err == nil {
			at = m.Node
			break
		}
	}
	if err != nil {
		p.b.doubt()
		select {
		case <-time.After(100 * time.Millisecond):
		case <-p.b.closed:
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dialing = false
	if err != nil {
		return
	}
	if p.closed {
		c.Close()
		return
	}
	p.ready, p.gen, p.at = c, l.Generation, at
}

func shuffled(ms []Member, last lode.NodeID) []Member {
	out := make([]Member, 0, len(ms))
	for _, i := range rand.Perm(len(ms)) {
		if ms[i].Node != last {
			out = append(out, ms[i])
		}
	}
	for _, m := range ms {
		if m.Node == last {
			out = append(out, m)
		}
	}
	return out
}

func (p *plug) close() {
	p.mu.Lock()
	p.closed = true
	if p.ready != nil {
		p.ready.Close()
	}
	p.mu.Unlock()
	p.work.Wait()
}

// dialMember connects to another node's bus as a client.
func (b *Bus) dialMember(to lode.NodeID, generation uint64) (net.Conn, error) {
	if b.cfg.Cluster == nil || b.cfg.Cluster.Dial == nil {
		return nil, errNotYet
	}
	ctx, cancel := context.WithTimeout(b.ctx, dialWait)
	defer cancel()
	c, err := b.cfg.Cluster.Dial(ctx, to)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(dialWait))
	answer := []byte{1}
	if _, err = c.Write(preamble(clientMagic, generation, b.cfg.Node)); err == nil {
		_, err = io.ReadFull(c, answer)
	}
	if err == nil && answer[0] != 0 {
		err = lode.Errorf(lode.Unavailable, "node %s does not serve generation %d of the bus", to, generation)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	c.SetDeadline(time.Time{})
	return c, nil
}

// preamble is what a connection begins with: four letters, 8 bytes generation,
// 1 byte length, the name of the node that connects.
func preamble(magic string, generation uint64, from lode.NodeID) []byte {
	b := binary.BigEndian.AppendUint64([]byte(magic), generation)
	return append(append(b, byte(len(from))), from...)
}

func readPreamble(r io.Reader, magic string) (generation uint64, from lode.NodeID, err error) {
	head := make([]byte, len(magic)+9)
	if _, err := io.ReadFull(r, head); err != nil {
		return 0, "", err
	}
	if string(head[:len(magic)]) != magic {
		return 0, "", lode.Errorf(lode.Invalid, "a connection for the bus begins with %q", head[:len(magic)])
	}
	name := make([]byte, head[len(magic)+8])
	if _, err := io.ReadFull(r, name); err != nil {
		return 0, "", err
	}
	return binary.BigEndian.Uint64(head[len(magic):]), lode.NodeID(name), nil
}

// ServeClient serves the bus to another node over an authenticated connection,
// made by that node's ClusterConfig.Dial. It returns when it has ended, and
// has closed it.
func (b *Bus) ServeClient(conn net.Conn) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(dialWait))
	generation, from, err := readPreamble(conn, clientMagic)
	if err != nil {
		return
	}
	inst := b.instance(generation)
	if inst == nil {
		conn.Write([]byte{1})
		return
	}
	in, err := inst.srv.InProcessConn()
	if err != nil {
		conn.Write([]byte{1})
		return
	}
	defer in.Close()
	if !inst.clients.add(conn, from) {
		conn.Write([]byte{1})
		return
	}
	defer inst.clients.remove(conn)
	if _, err := conn.Write([]byte{0}); err != nil {
		return
	}
	conn.SetDeadline(time.Time{})
	bridge(conn, in)
}

// bridge copies between two connections until one of them ends, and closes
// both.
func bridge(a, b net.Conn) {
	var both sync.WaitGroup
	for _, p := range [][2]net.Conn{{a, b}, {b, a}} {
		both.Go(func() {
			io.Copy(p[0], p[1])
			a.Close()
			b.Close()
		})
	}
	both.Wait()
}

// peers are the connections of other nodes, so that some can be cut.
type peers struct {
	mu      sync.Mutex
	conns   map[net.Conn]lode.NodeID
	allowed map[lode.NodeID]bool // nil: all
	closed  bool
}

func (p *peers) add(c net.Conn, from lode.NodeID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.allowed != nil && !p.allowed[from] {
		return false
	}
	if p.conns == nil {
		p.conns = make(map[net.Conn]lode.NodeID)
	}
	p.conns[c] = from
	return true
}

func (p *peers) remove(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// only cuts off everybody but some; nil lets all in again.
func (p *peers) only(nodes []lode.NodeID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.allowed = nil; nodes == nil {
		return
	}
	p.allowed = make(map[lode.NodeID]bool)
	for _, n := range nodes {
		p.allowed[n] = true
	}
	for c, from := range p.conns {
		if !p.allowed[from] {
			c.Close()
		}
	}
}

func (p *peers) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for c := range p.conns {
		c.Close()
	}
}

// connect makes the library's connection, which lasts as long as the bus and
// finds its way to whoever serves it.
func connect(p *plug, opts ...nats.Option) (*nats.Conn, jetstream.JetStream, error) {
	opts = append([]nats.Option{nats.Name(string(p.b.cfg.Node)), nats.InProcessServer(p)}, append(commonOptions(), opts...)...)
	nc, err := nats.Connect("", opts...)
	if err != nil {
		return nil, nil, lode.Errorf(lode.Unavailable, "connect to the bus: %w", err)
	}
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(callWait))
	if err != nil {
		nc.Close()
		return nil, nil, lode.Errorf(lode.Internal, "open bus: %w", err)
	}
	p.mu.Lock()
	p.nc = nc
	p.mu.Unlock()
	return nc, js, nil
}

// commonOptions: what is written while there is no connection fails at once,
// for it would come out later and elsewhere than its writer thinks.
func commonOptions() []nats.Option {
	return []nats.Option{
		nats.MaxReconnects(-1), nats.ReconnectWait(redial), nats.ReconnectJitter(redial/2, redial/2), nats.RetryOnFailedConnect(true),
		nats.ReconnectBufSize(-1), nats.IgnoreDiscoveredServers(), nats.NoCallbacksAfterClientClose(),
		nats.PingInterval(5 * time.Second), nats.MaxPingsOutstanding(2), nats.Timeout(dialWait),
	}
}

// instance is a server in this process: that of one generation.
type instance struct {
	layout  Layout
	srv     *server.Server
	options *server.Options
	clients peers
	routes  *routes // nil: the only member
}
