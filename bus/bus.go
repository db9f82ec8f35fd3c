package bus

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
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
	// Replicas is the number of copies of everything: 1 on one node. 0: 1.
	Replicas int
	// Logger gets what the server has to say. Nil: slog.Default.
	Logger *slog.Logger

	unsynced bool // no fsync: tests fill large stores with it
}

func (c Config) withDefaults() (Config, error) {
	if c.Dir == "" {
		return c, lode.Errorf(lode.Invalid, "the bus needs a folder")
	}
	if c.MaxStore < 0 || c.Reserve < 0 || c.Replicas < 0 {
		return c, lode.Errorf(lode.Invalid, "limits of the bus must not be negative")
	}
	if c.Replicas > 1 {
		return c, lode.Errorf(lode.Unavailable, "%d copies need a cluster; this bus runs on one node", c.Replicas)
	}
	c.Replicas = cmp.Or(c.Replicas, 1)
	c.Reserve = cmp.Or(c.Reserve, 64<<20)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c, nil
}

// Bus is an open bus. All methods may be called at the same time.
type Bus struct {
	cfg     Config
	options *server.Options
	srv     *server.Server
	mender  mender
	nc      *nats.Conn
	js      jetstream.JetStream
	lock    *os.File
	space   space
	closed  chan struct{}
	once    sync.Once

	mu      sync.Mutex
	opened  uint64
	closers map[uint64]func() // what was opened on the bus, by order: to be closed before it
}

// Open starts the bus in cfg.Dir. A folder in use by another process is
// Conflict.
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
	b := &Bus{cfg: cfg, lock: lock, closed: make(chan struct{})}
	b.mender.b = b
	b.space = space{broken: b.mender.check, dir: cfg.Dir, reserve: cfg.Reserve, limit: cfg.MaxStore, used: b.used}
	if err := b.start(ctx); err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

func (b *Bus) start(ctx context.Context) error {
	opts := &server.Options{
		ServerName: "lode",
		DontListen: true, // no port at all: connections are in process
		JetStream:  true,
		StoreDir:   filepath.Join(b.cfg.Dir, "store"),
		SyncAlways: !b.cfg.unsynced, // an acknowledgement comes after fsync
		NoSigs:     true,
		MaxPayload: maxPayload,

		DisableJetStreamBanner: true,
		// In memory nothing is kept. The limit on disk is kept by space.go:
		// the server's own would refuse what frees space too.
		JetStreamMaxMemory: 16 << 20,
		JetStreamMaxStore:  1 << 60,
		// An answer that is late must not look like a lost connection.
		WriteDeadline: 30 * time.Second,
	}
	srv, err := server.NewServer(opts)
	if err != nil {
		return lode.Errorf(lode.Internal, "open bus: %w", err)
	}
	srv.SetLoggerV2(&logger{b.cfg.Logger, b.mender.failed}, false, false, false)
	b.srv, b.options = srv, opts
	srv.Start()
	wait := startWait
	if d, ok := ctx.Deadline(); ok {
		wait = min(wait, time.Until(d))
	}
	if !srv.ReadyForConnections(wait) {
		return lode.Errorf(lode.Unavailable, "the bus in %s did not start within %s", b.cfg.Dir, wait.Round(time.Millisecond))
	}
	b.nc, err = nats.Connect("", nats.InProcessServer(srv), nats.Name("lode"),
		nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond), nats.NoCallbacksAfterClientClose())
	if err != nil {
		return lode.Errorf(lode.Unavailable, "connect to the bus: %w", err)
	}
	b.js, err = jetstream.New(b.nc, jetstream.WithDefaultTimeout(callWait))
	if err != nil {
		return lode.Errorf(lode.Internal, "open bus: %w", err)
	}
	return nil
}

// Close ends everything that was opened on the bus, then the bus. It may be
// called again.
func (b *Bus) Close() error {
	b.once.Do(func() {
		close(b.closed)
		b.mender.close()
		b.mu.Lock()
		closers := b.closers
		b.closers = nil
		b.mu.Unlock()
		for _, n := range slices.Backward(slices.Sorted(maps.Keys(closers))) {
			closers[n]()
		}
		if b.nc != nil {
			b.nc.Close()
		}
		if b.srv != nil {
			b.srv.Shutdown()
			b.srv.WaitForShutdown()
		}
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
	info, err := b.srv.Jsz(nil)
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

func errClosed() *lode.Error { return lode.Errorf(lode.Unavailable, "the bus is closed") }

// wrap turns what NATS says into an Error.
func wrap(err error, doing string, args ...any) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*lode.Error](err); ok {
		return e
	}
	kind := classify(err)
	e := lode.Errorf(kind, doing+": %w", append(args, err)...)
	switch kind {
	case lode.Full:
		e.Hint = "free some disk space, or raise the store limit"
		e.RetryAfter = 5 * time.Second
	case lode.Unavailable:
		e.RetryAfter = time.Second
	}
	return e
}

func classify(err error) lode.Kind {
	if api, ok := errors.AsType[*jetstream.APIError](err); ok {
		return classifyAPI(api)
	}
	if api, ok := errors.AsType[*nats.APIError](err); ok {
		return classifyAPI(&jetstream.APIError{ErrorCode: jetstream.ErrorCode(api.ErrorCode), Description: api.Description})
	}
	switch {
	case errors.Is(err, context.Canceled):
		return lode.Cancelled
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout), errors.Is(err, nats.ErrNoResponders),
		errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, jetstream.ErrNoStreamResponse),
		errors.Is(err, nats.ErrConnectionReconnecting), errors.Is(err, nats.ErrNoServers):
		return lode.Unavailable
	case errors.Is(err, nats.ErrMaxPayload):
		return lode.TooLarge
	}
	return lode.Internal
}

// The server's error codes that mean something to us. That they keep their
// meaning is held by contract_test.go.
const (
	codeInsufficient   = 10023 // store limit
	codeNoStore        = 10047
	codeTooLarge       = 10054
	codeWrongLast      = 10071 // with the true last sequence
	codeStoreFailed    = 10077 // any error of the disk
	codeDuplicate      = 10158 // same id in flight
	codeWrongLastBlind = 10164 // a neighbour is in flight
)

func classifyAPI(e *jetstream.APIError) lode.Kind {
	if strings.Contains(e.Description, "no space left") {
		return lode.Full // whatever it was that had no space
	}
	switch e.ErrorCode {
	case codeInsufficient, codeNoStore:
		return lode.Full
	case codeTooLarge:
		return lode.TooLarge
	case codeWrongLast:
		return lode.Precondition
	case codeDuplicate, codeWrongLastBlind:
		return lode.Unavailable
	case codeStoreFailed:
		if strings.Contains(e.Description, "maximum") || strings.Contains(e.Description, "resource") {
			return lode.Full
		}
		return lode.Unavailable
	}
	if e.Code >= 500 {
		return lode.Unavailable
	}
	return lode.Internal
}
