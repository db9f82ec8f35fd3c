package node

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"lode"
	"lode/agent"
	"lode/api"
	"lode/bus"
	"lode/catalog"
	"lode/data"
	"lode/data/job"
	"lode/engine"
	"lode/engine/wasm"
	"lode/engine/worker"
	"lode/gateway"
	"lode/internal/telemetry"
	"lode/invoke"
	"lode/store"
)

// Config says where a node keeps things and what it listens on. Only Dir is
// needed.
type Config struct {
	// Dir is the data folder: made if missing, locked while the node runs.
	Dir string
	// Listen is the gateway's address; "" = 127.0.0.1:5633. Port 0 takes a
	// free one. Off loopback every door but public routes asks for a token.
	Listen string
	// Peers is where other nodes reach this one; "" = Listen with its port
	// plus 1. Routes is where members of the bus do; "" = plus 2.
	Peers, Routes string
	// Hosts are names by which a node off loopback is reached, beside its
	// addresses.
	Hosts []string
	// Name of the node in its cluster; "" = the host's, with a number behind
	// it where that is taken.
	Name string
	// Join says which cluster to join: HOST[:PORT] of a node's peer port, and
	// the token that lets this node in. It is only asked while the folder
	// belongs to no cluster. Nil: this is the first node of one.
	Join func(context.Context) (addr, token string, err error)
	// Zone and Labels are told to the others: copies go to several zones, and
	// jobs to nodes with a label.
	Zone   string
	Labels map[string]string
	// GatewayOnly makes a node that passes every call on and runs nothing
	// itself, as long as another node can.
	GatewayOnly bool
	// NATS is a cluster of the user's own that keeps the bus; nil = the nodes
	// keep it.
	NATS *NATS
	// RepairAfter is how long a node may be lost before copies are made of
	// what it held, and its seat on the bus is given to another; 0 = 1 min.
	RepairAfter time.Duration
	// Bucket is where datasets are durable; nil = a folder in Dir.
	Bucket *Bucket
	// CodeBudget bounds loaded programs, in bytes; 0 = 512 MiB.
	CodeBudget int64
	// Idle is how long a sandbox stays warm without work; 0 = 60 s.
	Idle time.Duration
	// OTLP is where traces go (http://HOST:4318); "" = from the environment.
	OTLP string
	// Worker is the argv of a process that runs jobs; nil = they run in the
	// node's own process. The command passes its own `lode worker`.
	Worker []string
	// Version and Commit are told by `lode version`.
	Version, Commit string
	// Logger gets what the node says; nil = slog.Default.
	Logger *slog.Logger

	public bool // it listens off loopback
}

// Bucket is an S3-compatible bucket. Its keys come from the environment
// (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), the shared credentials file or
// the machine's role.
type Bucket struct {
	Place    string // s3://BUCKET[/PREFIX]
	Endpoint string // "" = AWS
	Region   string
}

// NATS is a NATS cluster of the user's own.
type NATS struct {
	URL   string
	Creds string // file with credentials, or ""
}

// DefaultListen is the address of a node that was told none.
const DefaultListen = "127.0.0.1:5633"

// Node is a running node. Close it.
type Node struct {
	cfg     Config
	started time.Time
	token   string
	manager http.Handler // of /v1
	codeKey []byte       // authenticates compiled code; of the whole cluster

	dir        *dir
	fleet      *fleet
	busOpen    chan struct{} // closed when bus is set
	open       chan struct{} // closed when every room is open
	agentsOpen chan struct{} // closed when agents is set
	seat       *seat
	drain      drain
	ill        illness
	moves      sync.Mutex // one change of the bus's members at a time
	moving     atomic.Pointer[moveText]
	replicas   map[string]*store.Replicas // by store; none where the home is a bucket
	executor   *job.Executor
	telemetry  *telemetry.Telemetry
	bus        *bus.Bus
	artifacts  *store.Store
	shards     *store.Store
	catalog    *catalog.Catalog
	engine     *engine.Engine
	jobEngine  *engine.Engine // runs jobs in processes of their own; engine, if there is no Worker
	pools      *pools
	invoke     *invoke.Service
	agents     *agent.Service
	balance    atomic.Pointer[rebalancer] // nil: this node is not the keeper
	snapshots  *store.Store               // blobs of agents
	data       *data.Datasets
	runner     *jobRunner
	scratch    string // folder that programs pass through on their way to workers
	tokens     *tokens
	audit      *audit
	gateway    *gateway.Gateway
	listener   net.Listener

	closers []closer // in the order of opening
	serving sync.WaitGroup
	// ctx ends, and background is waited for, before the rooms are closed.
	ctx        context.Context
	stop       context.CancelFunc
	background sync.WaitGroup
	failed     chan error // a door that ended by itself
	once       sync.Once
	err        error
}

type closer struct {
	name  string
	close func(context.Context) error
}

// Open starts a node. When it returns without an error every door is open.
func Open(ctx context.Context, cfg Config) (*Node, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, started: time.Now(), failed: make(chan error, 2), busOpen: make(chan struct{}), open: make(chan struct{}), agentsOpen: make(chan struct{}), replicas: map[string]*store.Replicas{}}
	n.ctx, n.stop = context.WithCancel(context.WithoutCancel(ctx))
	n.runner = &jobRunner{invoke: func() *invoke.Service { return n.invoke }, revs: map[lode.Name]*jobRev{}}
	for _, step := range []func(context.Context) error{n.openDir, n.bind, n.openFleet, n.openTelemetry, n.openBus, n.openStores, n.openCatalog, n.openEngine,
		n.openData, n.openInvoke, n.openSeat, n.openAgents, n.openGateway, n.openMetrics, n.listen} {
		if err := step(ctx); err != nil {
			return nil, errors.Join(err, n.Close(context.WithoutCancel(ctx)))
		}
	}
	return n, nil
}

func (c *Config) setDefaults() error {
	if c.Dir == "" {
		return lode.Errorf(lode.Invalid, "a node needs a data folder").WithHint("give one with -d DIR")
	}
	if c.Listen == "" {
		c.Listen = DefaultListen
	}
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return lode.Errorf(lode.Invalid, "listen address %q: %w", c.Listen, err).WithHint("127.0.0.1:5633, for example")
	}
	c.public = !loopback(host)
	if c.Peers == "" {
		c.Peers = plusPort(c.Listen, 1)
	}
	if c.Routes == "" {
		c.Routes = plusPort(c.Listen, 2)
	}
	if c.Routes, err = somePort(c.Routes); err != nil {
		return err
	}
	if c.Peers, err = somePort(c.Peers); err != nil {
		return err
	}
	if c.RepairAfter <= 0 {
		c.RepairAfter = time.Minute
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return nil
}

// opened notes what must be closed, in reverse.
func (n *Node) opened(name string, close func(context.Context) error) {
	n.closers = append(n.closers, closer{name, close})
}

func plain(f func() error) func(context.Context) error {
	return func(context.Context) error { return f() }
}

func (n *Node) openDir(context.Context) (err error) {
	if n.dir, err = openDir(n.cfg.Dir); err != nil {
		return err
	}
	n.opened("data folder", func(context.Context) error { n.dir.close(); return nil })
	return nil
}

// bind takes the gateway's port where any will do: the others must be told
// which it is. Where it is known nobody is let in before the node is ready.
func (n *Node) bind(ctx context.Context) (err error) {
	if _, port, _ := net.SplitHostPort(n.cfg.Listen); port != "0" {
		return nil
	}
	n.listener, err = n.take(ctx)
	return err
}

func (n *Node) take(ctx context.Context) (net.Listener, error) {
	ln, err := gateway.Listen(ctx, n.cfg.Listen)
	if err != nil {
		return nil, lode.Errorf(lode.Conflict, "listen on %s: %w", n.cfg.Listen, err).WithHint("is another node running? choose another port with --port")
	}
	return ln, nil
}

func (n *Node) openTelemetry(ctx context.Context) (err error) {
	n.telemetry, err = telemetry.Open(ctx, telemetry.Config{Dir: n.dir.file("logs"), Endpoint: n.cfg.OTLP, Node: n.Name(), Version: n.cfg.Version,
		Sandboxes: func(ns, name string) (int, int) { return n.pools.count(lode.Namespace(ns), lode.Name(name)) }, Log: n.cfg.Logger})
	if err != nil {
		return err
	}
	n.opened("telemetry", plain(n.telemetry.Close))
	return nil
}

// openBus opens the bus, and tells the others that this node is up.
func (n *Node) openBus(ctx context.Context) (err error) {
	cfg := bus.Config{Dir: n.dir.file("bus"), Logger: n.cfg.Logger, Node: n.fleet.id}
	if r := n.cfg.NATS; r != nil {
		cfg.Remote = &bus.Remote{URL: r.URL, Creds: r.Creds}
		if cfg.Remote.Join, err = n.joinedLayout(); err != nil {
			return err
		}
	} else {
		if cfg.Cluster, err = n.busCluster(); err != nil {
			return err
		}
	}
	if n.bus, err = bus.Open(ctx, cfg); err != nil {
		return err
	}
	close(n.busOpen)
	n.opened("bus", plain(n.bus.Close))
	if err := n.awaitBus(ctx); err != nil {
		return err
	}
	if err := n.fleet.announce(ctx); err != nil {
		return err
	}
	if n.tokens, err = openTokens(ctx, n.bus, n.fleet.sealer, time.Now); err != nil {
		return err
	}
	n.opened("tokens", plain(n.tokens.close))
	if n.audit, err = openAudit(ctx, n.bus, n.fleet.id); err != nil {
		return err
	}
	if n.codeKey, err = n.dir.key(func(b []byte) { rand.Read(b) }); err != nil {
		return err
	}
	n.token, err = n.dir.adminToken(ctx, n.tokens, n.fleet.id)
	return err
}

// busCluster is how the bus reaches the other nodes.
func (n *Node) busCluster() (*bus.ClusterConfig, error) {
	f := n.fleet
	c := &bus.ClusterConfig{Listen: advertisedHost(n.cfg.Routes), Dial: f.dialBus, Ask: f.ask, Known: f.known,
		Server: func() *tls.Config { return f.identity.RouteTLS(f.members.Check) }, Client: func() *tls.Config { return f.identity.RouteTLS(f.members.Check) }}
	var err error
	c.Join, err = n.joinedLayout()
	return c, err
}

// joinedLayout is what this node was told of the bus at its join; nil: it is
// the first of its cluster.
func (n *Node) joinedLayout() (*bus.Layout, error) {
	b, err := os.ReadFile(n.dir.file("join.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, lode.Errorf(lode.Internal, "read what this node was told at its join: %w", err)
	}
	l := new(bus.Layout)
	if err := json.Unmarshal(b, l); err != nil {
		return nil, lode.Errorf(lode.Damaged, "%s: %w", n.dir.file("join.json"), err)
	}
	return l, nil
}

// awaitBus waits until the bus answers. A member that starts alone has to wait
// for others.
func (n *Node) awaitBus(ctx context.Context) error {
	for told := time.Now(); ; {
		_, err := n.bus.Table(ctx, "cluster")
		if err == nil {
			return nil
		}
		if k := lode.KindOf(err); k != lode.Unavailable && k != lode.Deadline || ctx.Err() != nil {
			return err
		}
		if time.Since(told) > 4*time.Second {
			told = time.Now()
			var names []lode.NodeID
			for _, m := range n.bus.Layout().Members {
				names = append(names, m.Node)
			}
			n.cfg.Logger.Warn("waiting for the bus: a majority of its members must be up", "members", names, "err", err)
		}
		wait(ctx, 100*time.Millisecond)
	}
}

func (n *Node) openCatalog(ctx context.Context) error {
	var err error
	if n.catalog, err = openCatalog(ctx, n); err != nil {
		return err
	}
	n.opened("catalog", plain(n.catalog.Close))
	return nil
}

func (n *Node) openEngine(ctx context.Context) error {
	key := n.codeKey
	scratch, err := openScratch(n.dir.path)
	if err != nil {
		return err
	}
	n.scratch = scratch.path
	n.opened("scratch", plain(scratch.close))
	driver, err := wasm.New(wasm.Config{})
	if err != nil {
		return err
	}
	n.engine = engine.New(engine.EngineConfig{Driver: driver, Key: key, CodeBudget: n.cfg.CodeBudget, Idle: n.cfg.Idle, Logger: n.cfg.Logger})
	n.opened("engine", plain(n.engine.Close))
	if err := n.openJobEngine(key); err != nil {
		return err
	}
	n.pools, err = openPools(ctx, n)
	return err
}

// openJobEngine makes the engine of jobs. A page of a mapped shard that cannot
// be read ends the process that reads it: that must not be the node.
func (n *Node) openJobEngine(key []byte) error {
	n.jobEngine = n.engine
	if len(n.cfg.Worker) == 0 {
		return nil
	}
	inner, err := wasm.New(wasm.Config{})
	if err != nil {
		return err
	}
	driver, err := worker.New(worker.Config{Inner: inner, Command: n.cfg.Worker, Dir: n.scratch, Logger: n.cfg.Logger})
	if err != nil {
		return errors.Join(err, inner.Close())
	}
	n.jobEngine = engine.New(engine.EngineConfig{Driver: driver, Key: key, CodeBudget: n.cfg.CodeBudget, Idle: n.cfg.Idle, Logger: n.cfg.Logger})
	n.opened("job engine", plain(n.jobEngine.Close))
	return nil
}

// Work is the other side of Config.Worker: it runs jobs for the node that
// started this process, until in ends.
func Work(ctx context.Context, in io.Reader, out io.Writer) error {
	d, err := wasm.New(wasm.Config{})
	if err != nil {
		return err
	}
	return errors.Join(worker.Main(ctx, in, out, d), d.Close())
}

func (n *Node) openInvoke(ctx context.Context) (err error) {
	own, _ := n.fleet.members.Get(n.fleet.id)
	n.invoke, err = invoke.Open(ctx, invoke.Config{Catalog: resolver{n.catalog, n.runner}, Pools: n.pools, Datasets: datasetOps{n.data}, Observer: n.pools,
		Tables: invoke.BusTables(n.bus), Node: string(n.fleet.id), Incarnation: own.Incarnation, Alive: n.fleet.runs, Alone: n.fleet.alone, Hopeless: n.hopeless, Agents: callees{n}, Peers: &peers{f: n.fleet}, FreeMemory: freeMemory, Logger: n.cfg.Logger})
	if err != nil {
		return err
	}
	n.opened("invoke", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, shutdownWait)
		defer cancel()
		n.invoke.Drain(ctx)
		return n.invoke.Close()
	})
	n.executor = job.NewExecutor(job.ExecutorConfig{Store: n.shards, Datasets: n.data, Runner: n.runner, Cores: runtime.NumCPU(), Log: n.cfg.Logger})
	stop := n.catalog.Watch(n.pools.changed)
	n.opened("watch", func(context.Context) error { stop(); return nil })
	n.pools.changed(n.catalog.Generation())
	return nil
}

func (n *Node) openData(ctx context.Context) error {
	regs, err := n.bus.Table(ctx, "datasets")
	if err != nil {
		return err
	}
	n.data, err = data.New(data.Config{Store: n.shards, Registers: registers{regs}, Log: n.cfg.Logger})
	return err
}

func (n *Node) openGateway(context.Context) (err error) {
	n.gateway, err = gateway.New(gateway.Config{Node: n.Name(), Public: n.cfg.public, Hosts: n.hosts(), Ready: n.ready, Linger: n.linger, Invoker: n.invoke, Agents: agentDoors{n.agents, n}, Directory: directory{n.catalog}, Tokens: checkTokens{n.tokens},
		Logs: tails{n.telemetry}, Manage: n.manage(), Metrics: n.telemetry.Metrics(), Refused: func(k lode.Kind) { n.telemetry.Refused(string(k)) }, Log: n.cfg.Logger})
	if err != nil {
		return err
	}
	n.opened("gateway", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, shutdownWait)
		defer cancel()
		n.invoke.SetDraining(true) // the others hear of it while the gateway lingers
		n.seat.retire()            // and one of them keeps what still comes in here
		err := n.gateway.Shutdown(ctx)
		n.serving.Wait()
		return errors.Join(err, n.gateway.Close())
	})
	close(n.open)
	return nil
}

func (n *Node) openMetrics(context.Context) error {
	n.opened("background", func(context.Context) error {
		n.stop()
		n.background.Wait()
		return nil
	})
	for name, r := range n.replicas {
		n.background.Go(func() { n.tendBlobs(n.ctx, name, r) })
	}
	n.background.Go(func() { n.drains(n.ctx) })
	return n.gauges()
}

// shutdownWait is how long invocations under way may go on while the node
// closes.
const shutdownWait = 10 * time.Second

// manage mounts the management API behind the gateway's checks.
func (n *Node) manage() func(http.ResponseWriter, *http.Request, gateway.Grant) {
	server := api.NewServer(n.everywhere(), api.WithLogger(n.cfg.Logger))
	n.manager = server
	return func(w http.ResponseWriter, r *http.Request, g gateway.Grant) {
		if _, ok := api.GrantOf(r.Context()); !ok && r.Header.Get("Authorization") == "" {
			r = r.WithContext(api.WithGrant(r.Context(), api.Grant{Token: "socket", Role: api.Role(g.Role), Namespace: g.Namespace}))
		}
		server.ServeHTTP(w, r)
	}
}

func (n *Node) listen(ctx context.Context) error {
	if n.listener == nil {
		ln, err := n.take(ctx)
		if err != nil {
			return err
		}
		n.listener = ln
	}
	ln := n.listener
	n.serve("gateway", func() error { return n.gateway.Serve(ln) })
	os.Remove(n.SocketPath()) // of a node that was killed; the lock says it is gone
	sock, err := net.Listen("unix", n.SocketPath())
	if err != nil {
		n.cfg.Logger.Warn("no management socket", "err", err)
		return nil
	}
	if err := os.Chmod(n.SocketPath(), 0o600); err != nil {
		return errors.Join(err, sock.Close())
	}
	n.serve("socket", func() error { return n.gateway.ServeSocket(sock) })
	return nil
}

func (n *Node) serve(name string, f func() error) {
	n.serving.Go(func() {
		if err := f(); err != nil && !errors.Is(err, http.ErrServerClosed) {
			select {
			case n.failed <- lode.Errorf(lode.Internal, "the %s ended: %w", name, err):
			default:
			}
		}
	})
}

// fail ends the node: whoever runs it closes it.
func (n *Node) fail(err error) {
	select {
	case n.failed <- err:
	default:
	}
}

// URL is the base of the node's doors.
func (n *Node) URL() string { return "http://" + n.gatewayAddr() }

// gatewayAddr is where clients reach the node.
func (n *Node) gatewayAddr() string {
	if n.listener == nil {
		return advertisedHost(n.cfg.Listen)
	}
	return advertised(n.cfg.Listen, n.listener.Addr())
}

// Addr is the gateway's address.
func (n *Node) Addr() string { return n.listener.Addr().String() }

// Name is the node's name in its cluster.
func (n *Node) Name() string { return string(n.fleet.id) }

// Dir is the data folder.
func (n *Node) Dir() string { return n.dir.path }

// TokenPath is the file with the admin token.
func (n *Node) TokenPath() string { return n.dir.file("admin.token") }

// Token is the admin token.
func (n *Node) Token() string { return n.token }

// SocketPath is the management socket.
func (n *Node) SocketPath() string { return n.dir.file("lode.sock") }

// Failed tells of a door that ended by itself; the node should be closed then.
func (n *Node) Failed() <-chan error { return n.failed }

// Close takes nothing new, lets what runs end for up to ten seconds, and
// closes everything in reverse. It may be called again.
func (n *Node) Close(ctx context.Context) error {
	n.once.Do(func() {
		if n.gateway != nil {
			n.gateway.Drain()
		}
		if n.invoke != nil {
			n.invoke.SetDraining(true)
		}
		for i := len(n.closers) - 1; i >= 0; i-- {
			if err := n.closers[i].close(ctx); err != nil {
				n.err = errors.Join(n.err, fmt.Errorf("close %s: %w", n.closers[i].name, err))
			}
		}
	})
	return n.err
}
