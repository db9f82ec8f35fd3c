package wasm

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"

	"lode"
	"lode/engine"
)

// program is loaded code and the snapshot that its sandboxes begin with.
//
// State: without snapshot -> with image | fresh (no image can be used, each
// sandbox is initialised for itself). The first sandbox makes the step.
type program struct {
	d     *Driver
	s     *shared
	c     engine.Config
	init  []byte // for lode_init
	limit int

	making chan struct{} // holds a token while the snapshot is made
	mu     sync.Mutex
	ready  bool
	fresh  bool
	img    *image
	slots  []uint64
	refs   int // sandboxes, and one for the program itself until Close
	closed bool
}

func newProgram(d *Driver, s *shared, init []byte, c engine.Config) (*program, error) {
	if err := checkShape(&s.code.head, c.Contract, c.Limits); err != nil {
		return nil, err
	}
	return &program{making: make(chan struct{}, 1), d: d, s: s, c: c, init: slices.Clone(init), limit: int(memoryLimit(c.Limits)), refs: 1}, nil
}

// Bytes implements engine.Program. Shared code counts in parts.
func (p *program) Bytes() int64 {
	p.d.mu.Lock()
	n := p.s.bytes / int64(max(p.s.refs, 1))
	p.d.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.img != nil {
		n += int64(len(p.img.b))
	}
	return n + int64(len(p.init))
}

// Sandbox implements engine.Program.
func (p *program) Sandbox(ctx context.Context) (engine.Sandbox, error) {
	if err := p.snapshot(ctx); err != nil {
		return nil, err
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, lode.Errorf(lode.Unavailable, "%s is unloaded", p.c.Revision)
	}
	p.refs++
	p.mu.Unlock()
	sb, err := p.newSandbox(ctx)
	if err != nil {
		p.release()
		return nil, err
	}
	return sb, nil
}

func (p *program) newSandbox(ctx context.Context) (*sandbox, error) {
	if p.fresh {
		sb, err := p.instance(nil)
		if err != nil {
			return nil, err
		}
		if err := sb.initialise(ctx); err != nil {
			sb.free()
			return nil, err
		}
		return sb, nil
	}
	sb, err := p.instance(p.img)
	if err != nil {
		return nil, err
	}
	if !sb.resetGlobals() {
		sb.free()
		return nil, lode.Errorf(lode.Internal, "%s: a new sandbox is not clean", p.c.Revision)
	}
	return sb, nil
}

// snapshot initialises one instance and keeps what it has become.
func (p *program) snapshot(ctx context.Context) error {
	select {
	case p.making <- struct{}{}:
		defer func() { <-p.making }()
	case <-ctx.Done():
		return lode.Errorf(lode.Cancelled, "waiting for %s: %w", p.c.Revision, ctx.Err())
	}
	if p.ready {
		return nil
	}
	sb, err := p.instance(nil)
	if err != nil {
		return err
	}
	defer sb.free()
	if err := sb.initialise(ctx); err != nil {
		return err
	}
	img, slots, err := sb.image(ctx)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.img, p.slots, p.fresh, p.ready = img, slots, img == nil, true
	return nil
}

// instance makes an instance over img, or over empty memory.
func (p *program) instance(img *image) (_ *sandbox, err error) {
	mem := newMemory(p.limit)
	sb := &sandbox{p: p, mem: mem}
	defer func() {
		if err != nil {
			sb.free()
		}
	}()
	if img != nil {
		if err := mem.lay(img); err != nil {
			return nil, lode.Errorf(lode.Overloaded, "no address space for a sandbox: %w", err)
		}
	}
	ctx := experimental.WithMemoryAllocator(context.Background(), allocator{mem})
	if sb.mod, sb.refs, err = p.s.instantiate(ctx, p.d.rt); err != nil {
		return nil, p.unlinked(err)
	}
	if err := sb.prepare(img); err != nil {
		return nil, err
	}
	return sb, nil
}

// instantiate makes an instance. refs must be kept as long as it.
//
// The first instance's tables are those of all; after it the engine has nothing
// to put into tables any more.
func (s *shared) instantiate(ctx context.Context, rt wazero.Runtime) (mod api.Module, refs []funcRef, err error) {
	s.first.Do(func() {
		if mod, err = rt.InstantiateModule(ctx, s.mod, instanceConfig()); err != nil {
			return
		}
		if t := learnTables(&s.code.head, mod); t != nil && dropElements(s.mod) {
			s.tables = t
		}
	})
	if mod != nil || err != nil {
		return mod, nil, err
	}
	if mod, err = rt.InstantiateModule(ctx, s.mod, instanceConfig()); err != nil || s.tables == nil {
		return mod, nil, err
	}
	refs, ok := s.tables.fill(mod)
	if !ok {
		return nil, nil, errors.Join(errTables, mod.Close(ctx))
	}
	return mod, refs, nil
}

var errTables = errors.New("the tables of an instance are not those of another")

// instanceConfig is that of all instances. Guests never read the engine's source
// of randomness, but the engine would seed one for each.
func instanceConfig() wazero.ModuleConfig {
	return wazero.NewModuleConfig().WithName("").WithStartFunctions().WithRandSource(rand.Reader)
}

// describe reads what the module says of itself.
func (p *program) describe(ctx context.Context) (*engine.Info, error) {
	h := &p.s.code.head
	info := &engine.Info{Contract: p.c.Contract, Imports: h.Imports, SIMD: h.SIMD, CodeBytes: p.s.bytes}
	sb, err := p.instance(nil)
	if err != nil {
		return nil, err
	}
	defer sb.free()
	if err := sb.initialise(ctx); err != nil {
		return nil, invalid(err)
	}
	if !h.has(exportDescribe) || p.c.Contract == lode.ContractCommand {
		return info, nil
	}
	text, err := sb.describe(ctx)
	if err != nil {
		return nil, invalid(err)
	}
	info.Description = &lode.Description{}
	if err := json.Unmarshal(text, info.Description); err != nil {
		return nil, lode.Errorf(lode.Invalid, "what the module says of itself cannot be read: %w", err)
	}
	return info, nil
}

// invalid turns a crash before the snapshot into a fault of the artifact.
func invalid(err error) error {
	var e *lode.Error
	if !errors.As(err, &e) || e.Kind != lode.Crashed && e.Kind != lode.Deadline {
		return err
	}
	bad := lode.Errorf(lode.Invalid, "the module fails in its initialisation: %s", e.Error())
	bad.Guest, bad.Err = e.Guest, err
	return bad.WithHint("nothing outside can be reached before the first invocation: no environment, clock or files")
}

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

// release gives back one reference; the last frees image and code.
func (p *program) release() {
	p.mu.Lock()
	p.refs--
	last := p.refs == 0
	p.mu.Unlock()
	if !last {
		return
	}
	if p.img != nil {
		p.img.close()
	}
	p.d.release(p.s)
}

// startLimit bounds initialisation.
func startLimit(l lode.Limits) time.Duration {
	if l.Start > 0 {
		return l.Start
	}
	return 30 * time.Second
}

var _ engine.Program = (*program)(nil)

// unlinked says why a module cannot be instantiated, and names what it imports
// and no node has.
func (p *program) unlinked(err error) error {
	for _, f := range p.s.mod.ImportedFunctions() {
		module, name, _ := f.Import()
		if m := p.d.rt.Module(module); m == nil || m.ExportedFunctionDefinitions()[name] == nil {
			return lode.Errorf(lode.Invalid, "the module imports %s.%s, which is not there", module, name).
				WithHint("build for WASI preview 1, for example with --target wasm32-wasip1, or with one of the SDKs (abi version 1)")
		}
	}
	return lode.Errorf(lode.Invalid, "the module cannot be instantiated: %w", err)
}
