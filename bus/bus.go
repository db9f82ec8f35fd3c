package bus

import (
	"cmp"
	"context"
	"crypto/tls"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"lode"
)

const (
	maxPayload = 8 << 20 // of the wire; a packed message stays below half of it

	// MaxValue is the most bytes that a Table's value may have.
	MaxValue = 1 << 20

	startWait = 30 * time.Second
	callWait  = 5 * time.Second // for one answer, where the caller set no deadline
)

// Config says where and how a bus keeps its state. Only Dir is needed.
type Config struct {
	// Dir is the folder of the bus: created if missing (0700), locked while
	// open, owned by the bus alone.
	Dir string
	// MaxStore is the most bytes on disk; a write beyond it is refused with
	// Full. 0: as much as the disk has.
	MaxStore int64
	// Reserve is the free space that the disk must keep: writes are refused
	// with Full before it is used up, so that what is there can still be
	// trimmed, read and closed in order. 0: 64 MiB.
	Reserve int64
	// Logger gets what the server has to say. Nil: slog.Default.
	Logger *slog.Logger

	// Node is the name of this node in its cluster. "": a node that is alone
	// and stays so.
	Node lode.NodeID
	// Cluster says how the node reaches others. Nil: it is alone.
	Cluster *ClusterConfig
	// Remote is a cluster of the user's own that keeps everything; no server
	// is started here. Nil: there is none.
	Remote *Remote

	unsynced bool // no fsync: tests fill large stores with it
	// reached is told of each step of a move, on every node that takes part.
	// Tests stop the node there.
	reached func(step string)
}

// ClusterConfig is how a node's bus reaches the other nodes. All functions may
// be called at the same time, and must not call the bus.
type ClusterConfig struct {
	// Listen is the host:port where other members of the bus reach this one.
	// It is opened when the node becomes a member beside others.
	Listen string
	// Server and Client make the mutual TLS of the connections between
	// members; they are called for each connection. A certificate names its
	// node (common name, or a DNS name).
	Server, Client func() *tls.Config
	// Dial connects to another node's bus as a client: that node passes the
	// connection to its ServeClient. The connection is authenticated.
	Dial func(ctx context.Context, to lode.NodeID) (net.Conn, error)
	// Ask passes msg to another node's Bus.Handle and returns its answer.
	Ask func(ctx context.Context, to lode.NodeID, msg []byte) ([]byte, error)
	// Known lists every node of the cluster, this one among them or not.
	Known func() []lode.NodeID
	// Join is what a node that joins was told. It is used when Dir has no
	// layout yet.
	Join *Layout
	// Changed is told of each new layout. It must not block. Nil: nobody is.
	Changed func(Layout)
}

func (c Config) withDefaults() (Config, error) {
	if c.Dir == "" {
		return c, lode.Errorf(lode.Invalid, "the bus needs a folder")
	}
	if c.MaxStore < 0 || c.Reserve < 0 {
		return c, lode.Errorf(lode.Invalid, "limits of the bus must not be negative")
	}
	if c.Cluster != nil && (c.Node == "" || c.Cluster.Dial == nil || c.Cluster.Ask == nil || c.Cluster.Known == nil) {
		return c, lode.Errorf(lode.Invalid, "a bus in a cluster needs the node's name and ways to the others")
	}
	if c.Cluster != nil && c.Remote != nil {
		return c, lode.Errorf(lode.Invalid, "a bus is kept by the nodes or by a cluster outside, not by both")
	}
	c.Reserve = cmp.Or(c.Reserve, 64<<20)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c, nil
}

// Bus is an open bus. All methods may be called at the same time.
type Bus struct {
	cfg    Config
	mender mender
	plug   *plug
	nc     *nats.Conn
	js     jetstream.JetStream
	lock   *os.File
	space  space
	gate   *gate
	closed chan struct{}
	once   sync.Once
	ctx    context.Context // ends with the bus
	stop   context.CancelFunc
	work   sync.WaitGroup
	wonder chan struct{} // one token: the layout may have changed
	copies int           // with Remote: of everything

	probing  atomic.Bool
	timeouts atomic.Int64 // since the last answer

	busy      sync.Mutex // a Move is under way here
	switching sync.Mutex // held while the layout or the instances change

	mu        sync.Mutex
	layout    Layout
	instances map[uint64]*instance // by generation
	moving    uint64               // the generation that a Move here is making
	listener  net.Listener         // for routes
	again     chan struct{}        // closed when the connection was made anew
	opened    uint64
	leases    map[leaseID]int   // how many are held here: 1, or 2 while one goes
	closers   map[uint64]func() // what was opened on the bus, by order: to be closed before it
}

// Open starts the bus in cfg.Dir. A folder in use by another process is
// Conflict. The bus of a node in a cluster is open before the others can be
// reached: until then its calls wait, and fail with Unavailable.
func Open(ctx context.Context, cfg Config) (*Bus, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, lode.Errorf(lode.Unavailable, "open bus: %w", err)
	}
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	b := &Bus{cfg: cfg, lock: lock, closed: make(chan struct{}), gate: newGate(), wonder: make(chan struct{}, 1),
		leases:    make(map[leaseID]int),
		instances: make(map[uint64]*instance), again: make(chan struct{})}
	b.ctx, b.stop = context.WithCancel(context.WithoutCancel(ctx))
	b.mender.b = b
	b.space = space{broken: b.mender.check, dir: cfg.Dir, reserve: cfg.Reserve, limit: cfg.MaxStore, used: b.used}
	if err := b.start(ctx); err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

func (b *Bus) start(ctx context.Context) error {
	l, err := b.firstLayout()
	if err != nil {
		return err
	}
	b.layout = l
	if b.cfg.Remote != nil {
		return b.startRemote(ctx)
	}
	if l.Has(b.cfg.Node) && formed(b.cfg.Dir, l) {
		i, err := b.launch(ctx, l)
		if err != nil {
			return err
		}
		b.mu.Lock()
		b.instances[l.Generation] = i // other members reach in already
		b.mu.Unlock()
	}
	b.plug = &plug{b: b, layout: b.Layout}
	b.nc, b.js, err = connect(b.plug, nats.ReconnectHandler(b.connected), nats.ConnectHandler(b.connected))
	if err != nil {
		return err
	}
	return b.startCluster(ctx)
}

// firstLayout reads the layout, or makes the first one.
func (b *Bus) firstLayout() (Layout, error) {
	l, found, err := readLayout(b.cfg.Dir)
	if err != nil {
		return l, err
	}
	c := b.cfg.Cluster
	self := Member{Node: b.cfg.Node}
	if c != nil {
		self.Route = c.Listen
	}
	switch r := b.cfg.Remote; {
	case found && l.External != (r != nil):
		return l, lode.Errorf(lode.Precondition, "this node's cluster keeps its bus %s", l.where()).
			WithHint("start the node as it was started before: all nodes of a cluster with --nats, or none")
	case found && len(l.Members) == 1 && (l.Members[0].Node == "" || l.Members[0].Node == self.Node) && l.Members[0] != self:
		l.Members[0] = self // it was alone, without a name or at another address
	case found:
		return l, nil
	case r != nil && r.Join != nil:
		if !r.Join.External {
			return l, lode.Errorf(lode.Precondition, "the cluster that this node joined keeps its bus %s", r.Join.where()).WithHint("start without --nats")
		}
		l = *r.Join
	case c != nil && c.Join != nil && c.Join.External:
		return l, lode.Errorf(lode.Precondition, "the cluster that this node joined keeps its bus %s", c.Join.where()).WithHint("start with the same --nats as its other nodes")
	case c != nil && c.Join != nil:
		if _, err := os.Stat(storeDir(b.cfg.Dir, 1)); err == nil {
			return l, lode.Errorf(lode.Conflict, "%s holds the data of another cluster", b.cfg.Dir).WithHint("join with an empty folder")
		}
		if l = *c.Join; l.Generation == 0 || len(l.Members) == 0 {
			return l, lode.Errorf(lode.Invalid, "a node that joins must be told who keeps the bus")
		}
	default:
		l = Layout{Cluster: newID(), Generation: 1, Members: []Member{self}, External: r != nil}
	}
	return l, writeLayout(b.cfg.Dir, l)
}

// reached tells tests how far a move has come here.
func (b *Bus) reached(step string) {
	if b.cfg.reached != nil {
		b.cfg.reached(step)
	}
}

// open reports an error when the bus was closed.
func (b *Bus) open() error {
	select {
	case <-b.closed:
		return errClosed()
	default:
		return nil
	}
}

// Layout says who keeps the bus, as far as this node knows.
func (b *Bus) Layout() Layout {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.layout
	l.Members = slices.Clone(l.Members)
	return l
}

// instance is the server of a generation in this process, or nil.
func (b *Bus) instance(generation uint64) *instance {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.instances[generation]
}

// replicas is how many copies a new table or log gets.
func (b *Bus) replicas() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.copies > 0 {
		return b.copies
	}
	return len(b.layout.Members)
}

// connected notes that the connection was made anew: who waits for something
// on the old one begins again.
func (b *Bus) connected(*nats.Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.again)
	b.again = make(chan struct{})
}

// reconnected is closed when the connection is made anew.
func (b *Bus) reconnected() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.again
}

// Close ends everything that was opened on the bus, then the bus. It may be
// called again.
func (b *Bus) Close() error {
	b.once.Do(func() {
		close(b.closed)
		b.mender.close()
		b.mu.Lock()
		closers, ln := b.closers, b.listener
		b.closers = nil
		b.mu.Unlock()
		for _, n := range slices.Backward(slices.Sorted(maps.Keys(closers))) {
			closers[n]()
		}
		b.gate.thaw()
		b.stop()
		if b.nc != nil {
			b.nc.Close()
		}
		if b.plug != nil {
			b.plug.close()
		}
		b.switching.Lock()
		b.mu.Lock()
		instances := b.instances
		b.instances = make(map[uint64]*instance)
		b.mu.Unlock()
		b.switching.Unlock()
		for _, i := range instances {
			i.stop()
		}
		if ln != nil {
			ln.Close()
		}
		b.work.Wait()
		b.lock.Close()
	})
	return nil
}

// onClose keeps f to be called by Close, unless forget was called before.
func (b *Bus) onClose(f func()) (forget func(), err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-b.closed:
		return nil, errClosed()
	default:
	}
	if b.closers == nil {
		b.closers = make(map[uint64]func())
	}
	n := b.opened
	b.opened++
	b.closers[n] = f
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.closers, n)
	}, nil
}

// used is how many bytes the server keeps.
func (b *Bus) used() int64 {
	b.mu.Lock()
	i := b.instances[b.layout.Generation]
	b.mu.Unlock()
	if i == nil {
		return 0
	}
	info, err := i.srv.Jsz(nil)
	if err != nil {
		return 0
	}
	return int64(info.Store)
}

// Stats is how much the bus holds.
type Stats struct {
	Bytes int64 // on disk
	Limit int64 // Config.MaxStore; 0 = none
	Free  int64 // bytes that the disk has above Reserve
}

// Stats reads how much the bus holds.
func (b *Bus) Stats() Stats {
	free, _ := freeBytes(b.cfg.Dir)
	return Stats{Bytes: b.used(), Limit: b.cfg.MaxStore, Free: max(0, free-b.cfg.Reserve)}
}

// bounded gives ctx a deadline if it has none: without one an answer that was
// lost would be waited for for ever.
func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, callWait)
}
