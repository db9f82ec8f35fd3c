package wasm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/zeebo/blake3"

	"lode"
	"lode/engine"
	"lode/engine/rewrite"
)

// Config says how the Driver works. The zero value works.
type Config struct {
	// Workers is the number of goroutines of one compilation. 0: all cores.
	Workers int
	// Period is the number of weighted instructions between two looks at the
	// clock. 0: rewrite's own.
	Period uint32
}

// Driver runs WebAssembly. It is safe for concurrent use.
type Driver struct {
	c     Config
	codes natives
	cache wazero.CompilationCache
	rt    wazero.Runtime
	base  time.Time // of all monotonic clocks
	print string    // fingerprint

	mu     sync.Mutex
	shared map[string]*shared // by key
	closed bool
}

// shared is loaded code, for all programs that are made of it.
type shared struct {
	key    string
	refs   int  // programs
	loaded bool // once has ended well
	once   sync.Once
	err    error
	code   *code // without native
	mod    wazero.CompiledModule
	bytes  int64

	first  sync.Once // the first instance
	tables *tables   // nil: the engine fills the tables
}

// New makes a Driver. Close it.
func New(c Config) (*Driver, error) {
	if c.Workers == 0 {
		c.Workers = runtime.GOMAXPROCS(0)
	}
	d := &Driver{c: c, base: time.Now().Add(-time.Second), shared: map[string]*shared{}}
	var err error
	if d.cache, err = newCache(&d.codes); err != nil {
		return nil, err
	}
	d.rt = wazero.NewRuntimeWithConfig(context.Background(), runtimeConfig().WithCompilationCache(d.cache))
	d.print = d.fingerprint()
	if err := d.hostModules(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func runtimeConfig() wazero.RuntimeConfig {
	c := wazero.NewRuntimeConfigInterpreter()
	if compilerHere {
		c = wazero.NewRuntimeConfigCompiler()
	}
	return c.WithCoreFeatures(api.CoreFeaturesV2).WithDebugInfoEnabled(false).WithCloseOnContextDone(false)
}

const compilerHere = runtime.GOARCH == "amd64" || runtime.GOARCH == "arm64"

// hostModules makes what guests import.
func (d *Driver) hostModules() error {
	for name, funcs := range map[string][]hostFunc{rewrite.HostModule: sysFuncs(), "lode_v1": lodeFuncs(), wasiModule: wasiFuncs()} {
		b := d.rt.NewHostModuleBuilder(name)
		for _, f := range funcs {
			b.NewFunctionBuilder().WithGoModuleFunction(f.run(), f.params, f.results).Export(f.name)
		}
		if _, err := b.Instantiate(context.Background()); err != nil {
			return fmt.Errorf("host module %s: %w", name, err)
		}
	}
	return nil
}

// Fingerprint implements engine.Driver.
func (d *Driver) Fingerprint() string { return d.print }

func (d *Driver) fingerprint() string {
	return strings.Join([]string{"wasm", strconv.Itoa(codeFormat), strconv.Itoa(rewrite.Version), wazeroVersion(), runtime.GOOS, runtime.GOARCH, cpuFeatures(), strconv.Itoa(int(d.c.Period))}, "-")
}

func wazeroVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == "github.com/tetratelabs/wazero" {
				return m.Version
			}
		}
	}
	return "dev"
}

// Key implements engine.Keyer: custom sections of ours do not count.
func (d *Driver) Key(module []byte) string {
	h := blake3.New()
	ok := sections(module, func(id byte, whole, body []byte) bool {
		if id != 0 || !strings.HasPrefix(customName(body), rewrite.CustomPrefix) {
			h.Write(whole)
		}
		return true
	})
	if !ok {
		h.Write(module)
	}
	if isScript(module) { // of another stack
		binary.Write(h, binary.LittleEndian, uint64(scriptStack))
	}
	var sum lode.Digest
	h.Sum(sum[:0])
	return d.Fingerprint() + "-" + sum.String()
}

// Compile implements engine.Driver.
func (d *Driver) Compile(ctx context.Context, module []byte, l lode.Limits) ([]byte, *engine.Info, error) {
	if err := validate(ctx, module); err != nil {
		return nil, nil, err
	}
	c, err := d.compile(ctx, module)
	if err != nil {
		return nil, nil, err
	}
	b, err := c.encode()
	if err != nil {
		return nil, nil, err
	}
	info, err := d.Describe(ctx, module, b, l)
	return b, info, err
}

// compile rewrites and compiles in an engine of its own, which hands over the
// native code.
func (d *Driver) compile(ctx context.Context, module []byte) (*code, error) {
	m, err := rewriteModule(module, d.c.Period)
	if err != nil {
		return nil, lode.AsError(err)
	}
	c := newCode(m)
	if c.shell, err = shellOf(m.Wasm, d.Key(module)); err != nil {
		return nil, err
	}
	var got capture
	cache, err := newCache(&got)
	if err != nil {
		return nil, err
	}
	defer cache.Close(ctx)
	rt := wazero.NewRuntimeWithConfig(ctx, runtimeConfig().WithCompilationCache(cache))
	defer rt.Close(ctx)
	if _, err := rt.CompileModule(experimental.WithCompilationWorkers(ctx, d.c.Workers), m.Wasm); err != nil {
		if ctx.Err() != nil {
			return nil, lode.Errorf(lode.Cancelled, "compiling: %w", ctx.Err())
		}
		return nil, lode.Errorf(lode.Invalid, "the module cannot be compiled: %w", err)
	}
	got.asking = true
	if _, err := rt.CompileModule(ctx, c.shell); !errors.Is(err, errNative) || got.code == nil {
		return nil, lode.Errorf(lode.Internal, "the engine does not hand over its native code: %w", err)
	}
	c.native, c.head.Native = got.code, lode.Digest(got.asked)
	return c, nil
}

// Describe implements engine.Describer: it runs the module's initialisation,
// so that what is wrong there is found at deploy.
func (d *Driver) Describe(ctx context.Context, module, code []byte, l lode.Limits) (*engine.Info, error) {
	contract, err := contractOf(code)
	if err != nil {
		return nil, err
	}
	prog, err := d.load(ctx, module, code, engine.Config{Revision: "(describe)", Contract: contract, Limits: l})
	if err != nil {
		return nil, err
	}
	defer prog.Close()
	return prog.describe(ctx)
}

// Load implements engine.Driver.
func (d *Driver) Load(ctx context.Context, module, code []byte, c engine.Config) (engine.Program, error) {
	return d.load(ctx, module, code, c)
}

// Share implements engine.Sharer.
func (d *Driver) Share(module []byte, c engine.Config) engine.Program {
	key := d.Key(module)
	d.mu.Lock()
	s := d.shared[key]
	if s == nil || d.closed || !s.loaded {
		d.mu.Unlock()
		return nil
	}
	s.refs++
	d.mu.Unlock()
	p, err := newProgram(d, s, customSection(module, "lode.init"), c)
	if err != nil {
		d.release(s)
		return nil
	}
	return p
}

func (d *Driver) load(ctx context.Context, module, code []byte, c engine.Config) (*program, error) {
	s, err := d.hold(ctx, d.Key(module), code)
	if err != nil {
		return nil, err
	}
	p, err := newProgram(d, s, customSection(module, "lode.init"), c)
	if err != nil {
		d.release(s)
		return nil, err
	}
	return p, nil
}

// hold returns the shared code under key, loading it if it is not there.
func (d *Driver) hold(ctx context.Context, key string, code []byte) (*shared, error) {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil, lode.Errorf(lode.Unavailable, "the engine is closed")
	}
	s := d.shared[key]
	if s == nil {
		s = &shared{key: key}
		d.shared[key] = s
	}
	s.refs++
	d.mu.Unlock()
	s.once.Do(func() { s.err = d.loadNative(ctx, s, code) })
	if s.err != nil {
		d.release(s)
		return nil, s.err
	}
	d.mu.Lock()
	s.loaded = true
	d.mu.Unlock()
	return s, nil
}

// loadNative reads code into the engine. Nothing of b is kept.
func (d *Driver) loadNative(ctx context.Context, s *shared, b []byte) error {
	c, err := decodeCode(b)
	if err != nil {
		return err
	}
	d.codes.put(nativeKey(c.head.Native), c.native)
	defer d.codes.remove(nativeKey(c.head.Native))
	c.shell = bytes.Clone(c.shell) // the engine keeps it
	mod, err := d.rt.CompileModule(ctx, c.shell)
	if err != nil {
		return lode.Errorf(lode.Damaged, "compiled code cannot be loaded: %w", err)
	}
	s.bytes = int64(len(c.native)) + 2*int64(len(c.shell)) // the engine's own view of a module is about its size
	c.compact()
	for _, d := range c.data {
		s.bytes += int64(len(d.Bytes))
	}
	c.native, c.shell = nil, nil
	s.code, s.mod = c, mod
	return nil
}

func (d *Driver) release(s *shared) {
	d.mu.Lock()
	s.refs--
	last := s.refs == 0
	if last && d.shared[s.key] == s {
		delete(d.shared, s.key)
	}
	d.mu.Unlock()
	if last && s.mod != nil {
		s.mod.Close(context.Background())
	}
}

// Close implements engine.Driver. Programs must be closed before.
func (d *Driver) Close() error {
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	d.closed = true
	d.mu.Unlock()
	ctx := context.Background()
	return errors.Join(d.rt.Close(ctx), d.cache.Close(ctx))
}

// nanos is the monotonic clock: positive, in nanoseconds.
func (d *Driver) nanos() int64 { return int64(time.Since(d.base)) }

var (
	_ engine.Driver    = (*Driver)(nil)
	_ engine.Keyer     = (*Driver)(nil)
	_ engine.Sharer    = (*Driver)(nil)
	_ engine.Describer = (*Driver)(nil)
)
