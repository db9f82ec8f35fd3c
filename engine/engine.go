package engine

import (
	"context"
	"crypto/subtle"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zeebo/blake3"

	"lode"
)

// EngineConfig says how an Engine works. The zero value works but for Driver.
type EngineConfig struct {
	// Driver runs the artifacts. Required; closed by Close.
	Driver Driver
	// Key authenticates compiled code, which is native code that the store
	// holds. Empty: a key of this Engine, so that no code outlives it.
	Key []byte
	// CodeBudget bounds the bytes of loaded programs, code and images. 0: 512
	// MiB. What is over it is dropped, least recently used first, and loaded
	// again from its Source when it is called.
	CodeBudget int64
	// Idle is how long a sandbox stays warm without work. 0: 60 s.
	Idle time.Duration
	// Logger gets what nobody can be told of. nil: slog.Default.
	Logger *slog.Logger
}

// Source gives an artifact's bytes. It is called by one goroutine at a time
// for one Pool. Code and Keep speak of code already authenticated: they keep
// bytes, nothing more.
type Source interface {
	// Module reads the artifact.
	Module(ctx context.Context) ([]byte, error)
	// Code reads compiled code kept under key, which holds ASCII without
	// spaces and is the same for equal artifacts; ok is false when there is
	// none.
	Code(ctx context.Context, key string) (code []byte, ok bool, err error)
	// Keep keeps compiled code under key.
	Keep(ctx context.Context, key string, code []byte) error
}

// Engine runs artifacts of one driver. It is safe for concurrent use.
//
// Lock order: Engine.mu before Pool.mu.
type Engine struct {
	c    EngineConfig
	key  [32]byte
	ctx  context.Context // until Close
	stop context.CancelFunc
	done chan struct{} // closed by the janitor

	numbers atomic.Uint64 // of the sandboxes of all pools: none has that of another

	mu     sync.Mutex
	pools  map[*Pool]struct{}
	loaded map[*Pool]struct{} // those with a program, or about to lose it
	closed bool
}

// New makes an Engine. Close it.
func New(c EngineConfig) *Engine {
	if c.CodeBudget == 0 {
		c.CodeBudget = 512 << 20
	}
	if c.Idle == 0 {
		c.Idle = time.Minute
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	e := &Engine{c: c, key: macKey(c.Key), pools: map[*Pool]struct{}{}, loaded: map[*Pool]struct{}{}, done: make(chan struct{})}
	e.ctx, e.stop = context.WithCancel(context.Background())
	go e.janitor()
	return e
}

// Compile checks the artifact of src, compiles it unless that was done before,
// keeps the code and says what is in the artifact. It is called at deploy. The
// error is of kind Invalid when the artifact is at fault.
func (e *Engine) Compile(ctx context.Context, src Source, l lode.Limits) (*Info, error) {
	module, err := src.Module(ctx)
	if err != nil {
		return nil, err
	}
	key := e.codeKey(module)
	if d, ok := e.c.Driver.(Describer); ok {
		if code, ok := e.code(ctx, src, key); ok {
			info, err := d.Describe(ctx, module, code, l)
			if err == nil || lode.KindOf(err) != lode.Damaged {
				return info, err
			}
		}
	}
	code, info, err := e.c.Driver.Compile(ctx, module, l)
	if err != nil {
		return nil, err
	}
	return info, src.Keep(ctx, key, e.seal(key, code))
}

// Sharer is implemented by drivers whose programs of one module share code.
type Sharer interface {
	// Share makes a program of code that others of module hold. It returns nil
	// when none does, or when it cannot: Load tells why.
	Share(module []byte, c Config) Program
}

// load makes the program of a revision ready, by its code if there is some.
func (e *Engine) load(ctx context.Context, src Source, c Config) (Program, error) {
	module, err := src.Module(ctx)
	if err != nil {
		return nil, err
	}
	if d, ok := e.c.Driver.(Sharer); ok {
		if p := d.Share(module, c); p != nil {
			return p, nil
		}
	}
	key := e.codeKey(module)
	if code, ok := e.code(ctx, src, key); ok {
		p, err := e.c.Driver.Load(ctx, module, code, c)
		if err == nil || lode.KindOf(err) != lode.Damaged {
			return p, err
		}
		e.c.Logger.Warn("compiled code cannot be used, compiling again", "revision", c.Revision, "err", err)
	}
	code, _, err := e.c.Driver.Compile(ctx, module, c.Limits)
	if err != nil {
		return nil, err
	}
	if err := src.Keep(ctx, key, e.seal(key, code)); err != nil {
		e.c.Logger.Warn("compiled code is not kept", "revision", c.Revision, "err", err)
	}
	return e.c.Driver.Load(ctx, module, code, c)
}

// codeKey is the name of module's code in a Source.
func (e *Engine) codeKey(module []byte) string {
	if k, ok := e.c.Driver.(Keyer); ok {
		return k.Key(module)
	}
	sum := blake3.Sum256(module)
	return e.c.Driver.Fingerprint() + "-" + lode.Digest(sum).String()
}

// code reads code that was sealed under key.
func (e *Engine) code(ctx context.Context, src Source, key string) ([]byte, bool) {
	sealed, ok, err := src.Code(ctx, key)
	if err != nil {
		e.c.Logger.Warn("compiled code cannot be read", "key", key, "err", err)
	}
	if err != nil || !ok {
		return nil, false
	}
	code, ok := e.open(key, sealed)
	if !ok {
		e.c.Logger.Warn("compiled code is not authentic", "key", key)
	}
	return code, ok
}

// Compiled code at rest is 32 bytes of keyed BLAKE3 over the key's length (one
// byte, modulo 256), the key and the code; then the code.

func (e *Engine) mac(key string, code []byte) (sum [32]byte) {
	h, err := blake3.NewKeyed(e.key[:])
	if err != nil {
		panic(err) // only for keys that are not 32 bytes long
	}
	h.Write([]byte{byte(len(key))})
	h.WriteString(key)
	h.Write(code)
	h.Sum(sum[:0])
	return sum
}

func (e *Engine) seal(key string, code []byte) []byte {
	sum := e.mac(key, code)
	return append(append(make([]byte, 0, 32+len(code)), sum[:]...), code...)
}

func (e *Engine) open(key string, sealed []byte) ([]byte, bool) {
	if len(sealed) < 32 {
		return nil, false
	}
	sum := e.mac(key, sealed[32:])
	return sealed[32:], subtle.ConstantTimeCompare(sum[:], sealed[:32]) == 1
}

// janitor closes what was idle for too long, until Close.
func (e *Engine) janitor() {
	defer close(e.done)
	t := time.NewTicker(e.c.Idle / 4)
	defer t.Stop()
	for {
		select {
		case <-e.ctx.Done():
			return
		case now := <-t.C:
			for _, p := range e.all() {
				p.shrink(now.Add(-e.c.Idle))
				if p.c.Limits.ScaleMin > 0 {
					e.refill(p)
				}
			}
			e.fit(nil)
		}
	}
}

// refill makes the sandboxes that are to be kept warm, until Close.
func (e *Engine) refill(p *Pool) {
	if err := p.Warm(e.ctx, 0); err != nil && e.ctx.Err() == nil {
		e.c.Logger.Warn("no sandbox can be kept warm", "revision", p.c.Revision, "err", err)
	}
}

func (e *Engine) all() []*Pool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Collect(maps.Keys(e.pools))
}

// withProgram are the pools whose program may be loaded: of thousands of
// revisions only those that were called lately.
func (e *Engine) withProgram() []*Pool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Collect(maps.Keys(e.loaded))
}

// noteProgram says that p has a program.
func (e *Engine) noteProgram(p *Pool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.loaded[p] = struct{}{}
}

// Stats are the sums over all pools.
func (e *Engine) Stats() Stats {
	var s Stats
	for _, p := range e.all() {
		s.add(p.Stats())
	}
	return s
}

// Close closes all pools, then the driver. It waits for invocations under way:
// cancel them first.
func (e *Engine) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		<-e.done
		return nil
	}
	e.closed = true
	e.mu.Unlock()
	e.stop()
	<-e.done
	var errs []error
	for _, p := range e.all() {
		errs = append(errs, p.Close())
	}
	return errors.Join(append(errs, e.c.Driver.Close())...)
}
