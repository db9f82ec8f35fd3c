package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/zeebo/blake3"

	"lode"
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
	// free one. Only loopback addresses are taken.
	Listen string
	// Name of the node; "" = the host's name.
	Name string
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
}

// Bucket is an S3-compatible bucket. Its keys come from the environment
// (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), the shared credentials file or
// the machine's role.
type Bucket struct {
	Place    string // s3://BUCKET[/PREFIX]
	Endpoint string // "" = AWS
	Region   string
}

// DefaultListen is the address of a node that was told none.
const DefaultListen = "127.0.0.1:5633"

// Node is a running node. Close it.
type Node struct {
	cfg     Config
	started time.Time
	token   string

	dir       *dir
	telemetry *telemetry.Telemetry
	bus       *bus.Bus
	artifacts *store.Store
	shards    *store.Store
	catalog   *catalog.Catalog
	engine    *engine.Engine
	jobEngine *engine.Engine // runs jobs in processes of their own; engine, if there is no Worker
	pools     *pools
	invoke    *invoke.Service
	data      *data.Datasets
	jobs      *job.Jobs
	runner    *jobRunner
	scratch   string // folder that programs pass through on their way to workers
	tokens    *tokens
	audit     *audit
	gateway   *gateway.Gateway
	listener  net.Listener

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
	n := &Node{cfg: cfg, started: time.Now(), failed: make(chan error, 2)}
	n.ctx, n.stop = context.WithCancel(context.WithoutCancel(ctx))
	n.runner = &jobRunner{invoke: func() *invoke.Service { return n.invoke }, revs: map[lode.Name]*jobRev{}}
	for _, step := range []func(context.Context) error{n.openDir, n.openTelemetry, n.openBus, n.openStores, n.openCatalog, n.openEngine,
		n.openData, n.openInvoke, n.openJobs, n.openGateway, n.openMetrics, n.listen} {
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
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return lode.Errorf(lode.Unavailable, "this version listens on loopback only, not on %s", host).
			WithHint("leave the address out; a reverse proxy on this machine must set Host to localhost")
	}
	if c.Name == "" {
		c.Name, _ = os.Hostname()
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

func (n *Node) openTelemetry(ctx context.Context) (err error) {
	n.telemetry, err = telemetry.Open(ctx, telemetry.Config{Dir: n.dir.file("logs"), Endpoint: n.cfg.OTLP, Node: n.cfg.Name, Version: n.cfg.Version,
		Sandboxes: func(ns, name string) (int, int) { return n.pools.count(lode.Namespace(ns), lode.Name(name)) }, Log: n.cfg.Logger})
	if err != nil {
		return err
	}
	n.opened("telemetry", plain(n.telemetry.Close))
	return nil
}

func (n *Node) openBus(ctx context.Context) (err error) {
	if n.bus, err = bus.Open(ctx, bus.Config{Dir: n.dir.file("bus"), Logger: n.cfg.Logger}); err != nil {
		return err
	}
	n.opened("bus", plain(n.bus.Close))
	if n.tokens, err = openTokens(ctx, n.bus, time.Now); err != nil {
		return err
	}
	if n.audit, err = openAudit(ctx, n.bus); err != nil {
		return err
	}
	n.token, err = n.dir.adminToken(ctx, n.tokens)
	return err
}

func (n *Node) openStores(ctx context.Context) error {
	home, err := store.OpenDir(n.dir.file("blobs"))
	if err != nil {
		return err
	}
	if n.artifacts, err = store.Open(store.Config{Home: home, Log: n.cfg.Logger}); err != nil {
		return err
	}
	n.opened("artifacts", plain(n.artifacts.Close))
	shards, err := openHome(ctx, n.cfg.Bucket, n.dir.file("data"))
	if err != nil {
		return err
	}
	if n.shards, err = store.Open(store.Config{Home: shards, Cache: n.dir.file("cache"), Log: n.cfg.Logger}); err != nil {
		return err
	}
	n.opened("shards", plain(n.shards.Close))
	return nil
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
	key, err := n.dir.key(func(b []byte) { rand.Read(b) })
	if err != nil {
		return err
	}
	if n.scratch, err = openScratch(n.dir.path); err != nil {
		return err
	}
	n.opened("scratch", func(context.Context) error { return os.RemoveAll(n.scratch) })
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

// openScratch makes the folder that programs pass through on their way to workers: in memory where
// there is such a folder, private, of one data folder, and empty, whatever a
// killed node left in it.
func openScratch(data string) (string, error) {
	sum := blake3.Sum256([]byte(data))
	base := "/dev/shm"
	if s, err := os.Stat(base); err != nil || !s.IsDir() {
		base = os.TempDir()
	}
	path := filepath.Join(base, fmt.Sprintf("lode-%d-%x", os.Getuid(), sum[:8]))
	if err := os.RemoveAll(path); err != nil {
		return "", lode.Errorf(lode.Unavailable, "empty the scratch folder: %w", err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return "", lode.Errorf(lode.Unavailable, "make the scratch folder: %w", err)
	}
	return path, nil
}

func (n *Node) openInvoke(ctx context.Context) error {
	queues, err := n.bus.OpenQueues(ctx, "queues", bus.QueuesConfig{})
	if err != nil {
		return err
	}
	n.invoke, err = invoke.Open(ctx, invoke.Config{Catalog: resolver{n.catalog, n.runner}, Pools: n.pools, Datasets: datasetOps{n.data}, Observer: n.pools,
		Tables: invoke.BusTables(n.bus), Queues: invoke.BusQueues(queues), Node: n.cfg.Name, Logger: n.cfg.Logger})
	if err != nil {
		return err
	}
	n.opened("invoke", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, shutdownWait)
		defer cancel()
		n.invoke.Drain(ctx) // what is cut is run again at the next start
		return n.invoke.Close()
	})
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
	n.gateway, err = gateway.New(gateway.Config{Node: n.cfg.Name, Invoker: n.invoke, Directory: directory{n.catalog}, Tokens: checkTokens{n.tokens},
		Logs: tails{n.telemetry}, Manage: n.manage(), Metrics: n.telemetry.Metrics(), Refused: func(k lode.Kind) { n.telemetry.Refused(string(k)) }, Log: n.cfg.Logger})
	if err != nil {
		return err
	}
	n.opened("gateway", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, shutdownWait)
		defer cancel()
		err := n.gateway.Shutdown(ctx)
		n.serving.Wait()
		return errors.Join(err, n.gateway.Close())
	})
	return nil
}

func (n *Node) openMetrics(context.Context) error {
	n.background.Go(func() { n.sweep(n.ctx) })
	return n.gauges()
}

// shutdownWait is how long invocations under way may go on while the node
// closes.
const shutdownWait = 10 * time.Second

// manage mounts the management API behind the gateway's checks.
func (n *Node) manage() func(http.ResponseWriter, *http.Request, gateway.Grant) {
	server := api.NewServer(n.backend(), api.WithLogger(n.cfg.Logger))
	return func(w http.ResponseWriter, r *http.Request, g gateway.Grant) {
		if _, ok := api.GrantOf(r.Context()); !ok && r.Header.Get("Authorization") == "" {
			r = r.WithContext(api.WithGrant(r.Context(), api.Grant{Token: "socket", Role: api.Role(g.Role), Namespace: g.Namespace}))
		}
		server.ServeHTTP(w, r)
	}
}

func (n *Node) listen(context.Context) error {
	ln, err := net.Listen("tcp", n.cfg.Listen)
	if err != nil {
		return lode.Errorf(lode.Conflict, "listen on %s: %w", n.cfg.Listen, err).WithHint("is another node running? choose another port with --port")
	}
	n.listener = ln
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

// URL is the base of the node's doors.
func (n *Node) URL() string { return "http://" + n.listener.Addr().String() }

// Addr is the gateway's address.
func (n *Node) Addr() string { return n.listener.Addr().String() }

// Name is the node's name.
func (n *Node) Name() string { return n.cfg.Name }

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
		n.stop()
		n.background.Wait()
		for i := len(n.closers) - 1; i >= 0; i-- {
			if err := n.closers[i].close(ctx); err != nil {
				n.err = errors.Join(n.err, fmt.Errorf("close %s: %w", n.closers[i].name, err))
			}
		}
	})
	return n.err
}
