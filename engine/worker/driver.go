package worker

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"lode"
	"lode/engine"
)

// Config says how the driver works.
type Config struct {
	// Inner compiles, in this process. Required; closed by Close.
	Inner engine.Driver
	// Command starts a worker: a program that calls Main with a driver like
	// Inner on its standard input and output. Required.
	Command []string
	// Env is the workers' environment. nil: PATH, HOME and TMPDIR of ours.
	Env []string
	// Dir is where programs are written for workers to read. Empty: a folder
	// in os.TempDir.
	Dir string
	// Grace is how long a worker may take to end an invocation that is over
	// before it is killed. 0: 5 s.
	Grace time.Duration
	// Logger gets what workers write to standard error. nil: slog.Default.
	Logger *slog.Logger
}

// Driver runs guests in worker processes. It is safe for concurrent use.
type Driver struct {
	c    Config
	dir  string
	next atomic.Uint64 // numbers of programs, sandboxes, requests, invocations

	mu      sync.Mutex
	workers map[lode.Namespace]*worker
	closed  bool
}

// worker is the place of a namespace's process, which may not run right now.
type worker struct {
	ns       lode.Namespace
	programs int // guarded by Driver.mu

	mu   sync.Mutex
	proc *process
}

// New makes a Driver. Close it.
func New(c Config) (*Driver, error) {
	if c.Inner == nil || len(c.Command) == 0 {
		return nil, lode.Errorf(lode.Invalid, "a worker driver needs an inner driver and a command")
	}
	if c.Grace == 0 {
		c.Grace = 5 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Env == nil {
		for _, k := range []string{"PATH", "HOME", "TMPDIR"} {
			if v, ok := os.LookupEnv(k); ok {
				c.Env = append(c.Env, k+"="+v)
			}
		}
	}
	dir, err := os.MkdirTemp(c.Dir, "lode-worker-")
	if err != nil {
		return nil, lode.Errorf(lode.Unavailable, "a folder for workers: %w", err)
	}
	return &Driver{c: c, dir: dir, workers: map[lode.Namespace]*worker{}}, nil
}

// Compile implements engine.Driver, in this process.
func (d *Driver) Compile(ctx context.Context, module []byte, l lode.Limits) ([]byte, *engine.Info, error) {
	return d.c.Inner.Compile(ctx, module, l)
}

// Fingerprint implements engine.Driver.
func (d *Driver) Fingerprint() string { return d.c.Inner.Fingerprint() }

// Key implements engine.Keyer.
func (d *Driver) Key(module []byte) string {
	if k, ok := d.c.Inner.(engine.Keyer); ok {
		return k.Key(module)
	}
	return d.Fingerprint()
}

// Load implements engine.Driver. The program is loaded in a worker now, and
// again whenever the worker was started anew.
func (d *Driver) Load(ctx context.Context, module, code []byte, c engine.Config) (engine.Program, error) {
	p := &program{d: d, id: d.next.Add(1), bytes: int64(len(module) + len(code))}
	p.files = filepath.Join(d.dir, strconv.FormatUint(p.id, 10))
	p.load = load{Module: p.files + ".wasm", Code: p.files + ".code", Config: c}
	err := errors.Join(os.WriteFile(p.load.Module, module, 0o600), os.WriteFile(p.load.Code, code, 0o600))
	if err != nil {
		p.remove()
		return nil, lode.Errorf(lode.Full, "a program cannot be written for its worker: %w", err)
	}
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		p.remove()
		return nil, lode.Errorf(lode.Unavailable, "the engine is closed")
	}
	p.w = d.workers[c.Namespace]
	if p.w == nil {
		p.w = &worker{ns: c.Namespace}
		d.workers[c.Namespace] = p.w
	}
	p.w.programs++
	p.refs = 1
	d.mu.Unlock()
	if _, err := p.in(ctx); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// process is the namespace's running process, started if there is none.
func (d *Driver) process(w *worker) (*process, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.proc != nil && !w.proc.over() {
		return w.proc, nil
	}
	p, err := d.start(w.ns)
	if err != nil {
		return nil, lode.Errorf(lode.Unavailable, "the worker of namespace %s cannot be started: %w", w.ns, err)
	}
	w.proc = p
	return p, nil
}

// drop gives a program's place back; the last one of a namespace ends its
// process.
func (d *Driver) drop(w *worker) {
	d.mu.Lock()
	w.programs--
	last := w.programs == 0
	if last {
		delete(d.workers, w.ns)
	}
	d.mu.Unlock()
	if !last {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.proc != nil {
		w.proc.stop()
	}
}

// Close implements engine.Driver. It ends all workers.
func (d *Driver) Close() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	d.closed = true
	workers := d.workers
	d.workers = nil
	d.mu.Unlock()
	for _, w := range workers {
		w.mu.Lock()
		if w.proc != nil {
			w.proc.stop()
		}
		w.mu.Unlock()
	}
	return errors.Join(os.RemoveAll(d.dir), d.c.Inner.Close())
}

// program is one program in whatever process its namespace has.
type program struct {
	d     *Driver
	w     *worker
	id    uint64
	files string
	load  load
	bytes int64

	mu     sync.Mutex // held while it is loaded
	loaded *process   // where it was loaded last
	refs   int        // sandboxes, and one until Close
	closed bool
}

// in loads the program into its namespace's process unless it is there.
func (p *program) in(ctx context.Context) (*process, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	proc, err := p.d.process(p.w)
	if err != nil || proc == p.loaded {
		return proc, err
	}
	if _, err := proc.ask(ctx, &frame{Kind: kLoad, Program: p.id, Load: &p.load}); err != nil {
		return nil, err
	}
	p.loaded = proc
	return proc, nil
}

// Sandbox implements engine.Program.
func (p *program) Sandbox(ctx context.Context) (engine.Sandbox, error) {
	proc, err := p.in(ctx)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, lode.Errorf(lode.Unavailable, "%s is unloaded", p.load.Config.Revision)
	}
	p.refs++
	p.mu.Unlock()
	s := &sandbox{p: p, proc: proc, id: p.d.next.Add(1)}
	r, err := proc.ask(ctx, &frame{Kind: kSandbox, Program: p.id, Sandbox: s.id})
	if err != nil {
		proc.tell(&frame{Kind: kClose, Sandbox: s.id}) // it may come into being yet
		p.release()
		return nil, err
	}
	s.memory = r.Num
	return s, nil
}

// Bytes implements engine.Program. It counts what the worker holds.
func (p *program) Bytes() int64 { return p.bytes }

// Close implements engine.Program.
func (p *program) Close() error {
	p.mu.Lock()
	was := p.closed
	p.closed = true
	p.mu.Unlock()
	if !was {
		p.release()
	}
	return nil
}

func (p *program) release() {
	p.mu.Lock()
	p.refs--
	last, proc := p.refs == 0, p.loaded
	p.mu.Unlock()
	if !last {
		return
	}
	if proc != nil {
		proc.tell(&frame{Kind: kUnload, Program: p.id})
	}
	p.remove()
	p.d.drop(p.w)
}

func (p *program) remove() {
	os.Remove(p.load.Module)
	os.Remove(p.load.Code)
}

// sandbox is one in a process.
type sandbox struct {
	p      *program
	proc   *process
	id     uint64
	memory int64
	closed bool
}

// Reset implements engine.Sandbox.
func (s *sandbox) Reset() bool {
	r, err := s.proc.ask(context.Background(), &frame{Kind: kReset, Sandbox: s.id})
	if err != nil {
		return false
	}
	s.memory = cmp.Or(r.Num, s.memory)
	return r.OK
}

// Memory implements engine.Sandbox.
func (s *sandbox) Memory() int64 { return s.memory }

// Close implements engine.Sandbox.
func (s *sandbox) Close() error {
	if !s.closed {
		s.closed = true
		s.proc.tell(&frame{Kind: kClose, Sandbox: s.id})
		s.p.release()
	}
	return nil
}

var (
	_ engine.Driver  = (*Driver)(nil)
	_ engine.Keyer   = (*Driver)(nil)
	_ engine.Program = (*program)(nil)
	_ engine.Sandbox = (*sandbox)(nil)
)
