package rewrite

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
)

// built guests, each made once in a run.
var cGuest = sync.OnceValues(func() ([]byte, error) {
	return build("clang", "--target=wasm32", "-nostdlib", "-Xclang", "-O2", "-mbulk-memory", "-Wl,--no-entry", "-o", "OUT", "testdata/kernels.c")
})

var goGuest = sync.OnceValues(func() ([]byte, error) {
	return build("go", "build", "-buildmode=c-shared", "-o", "OUT", "./testdata/goguest")
})

func build(command string, args ...string) ([]byte, error) {
	path, err := exec.LookPath(command)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "rewrite")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "guest.wasm")
	for i := range args {
		if args[i] == "OUT" {
			args[i] = out
		}
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return nil, &buildError{string(msg), err}
	}
	return os.ReadFile(out)
}

type buildError struct {
	output string
	err    error
}

func (e *buildError) Error() string { return e.err.Error() + ": " + e.output }

// theC is the C guest, or the test is skipped where clang is missing.
func theC(t testing.TB) []byte {
	b, err := cGuest()
	if err != nil {
		if _, ok := err.(*buildError); ok {
			t.Fatal(err)
		}
		t.Skipf("no clang: %v", err)
	}
	return b
}

func theGo(t testing.TB) []byte {
	b, err := goGuest()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// host is a runtime with the yield function and WASI.
type host struct {
	rt     wazero.Runtime
	yields int
	// onYield is called at each yield; it may panic to stop the guest.
	onYield func(reason uint32)
}

type stopped struct{}

func (stopped) Error() string { return "stopped" }

func newHost(t testing.TB) *host {
	ctx := context.Background()
	h := &host{rt: wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfig())}
	t.Cleanup(func() { h.rt.Close(ctx) })
	wasi_snapshot_preview1.MustInstantiate(ctx, h.rt)
	_, err := h.rt.NewHostModuleBuilder(HostModule).NewFunctionBuilder().
		WithGoModuleFunction(api.GoModuleFunc(func(_ context.Context, _ api.Module, stack []uint64) {
			h.yields++
			if h.onYield != nil {
				h.onYield(uint32(stack[0]))
			} else if stack[0] == YieldStack {
				panic(stopped{})
			}
		}), []api.ValueType{api.ValueTypeI32}, nil).Export(YieldFunc).Instantiate(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// instance instantiates a module, writes its data and runs its start function
// and _initialize, as a driver does.
func (h *host) instance(t testing.TB, m *Module) api.Module {
	ctx := context.Background()
	mod, err := h.rt.InstantiateWithConfig(ctx, m.Wasm, wazero.NewModuleConfig().WithName("").WithStartFunctions())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range m.Data {
		if !mod.ExportedMemory(ExportMemory).Write(d.Offset, d.Bytes) {
			t.Fatalf("segment at %#x does not fit", d.Offset)
		}
	}
	for _, name := range []string{ExportStart, "_initialize"} {
		if f := mod.ExportedFunction(name); f != nil {
			if _, err := f.Call(ctx); err != nil {
				t.Fatal(name, err)
			}
		}
	}
	return mod
}

// original instantiates the bytes as they are.
func (h *host) original(t testing.TB, wasm []byte) api.Module {
	mod, err := h.rt.InstantiateWithConfig(context.Background(), wasm, wazero.NewModuleConfig().WithName("").WithStartFunctions("_initialize"))
	if err != nil {
		t.Fatal(err)
	}
	return mod
}

func rewritten(t testing.TB, wasm []byte, o Options) *Module {
	m, err := Rewrite(wasm, o)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func call1(t testing.TB, mod api.Module, name string, args ...uint64) uint64 {
	res, err := mod.ExportedFunction(name).Call(context.Background(), args...)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return res[0]
}

// The real guests answer the same with and without the pass.
func TestGuests(t *testing.T) {
	tests := []struct {
		name  string
		guest func(testing.TB) []byte
		calls map[string]uint64
	}{
		{"C", theC, map[string]uint64{"hash": 3, "floats": 2, "sort": 2, "fib": 15, "pointers": 1000, "bytes": 2, "copies": 100, "vectors": 3}},
		{"Go", theGo, map[string]uint64{"jsonwork": 3, "textwork": 2, "sieve": 1, "recurse": 1000}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if raced && tt.name == "Go" {
				t.Skip("the engine takes a minute to compile 3 MB under the race detector, and the pass has no goroutines")
			}
			wasm := tt.guest(t)
			m := rewritten(t, wasm, Options{})
			t.Logf("%d -> %d bytes, %+v, %+v, slots %d, dirty %d", len(wasm), len(m.Wasm), m.Stats, m.Features, m.Slots, m.MayDirty)
			if m.FreshOnly || m.MayDirty != 0 || m.Slots == 0 {
				t.Errorf("fresh only %q, may dirty %d, slots %d", m.Fresh, m.MayDirty, m.Slots)
			}
			h := newHost(t)
			a, b := h.original(t, wasm), h.instance(t, m)
			for name, arg := range tt.calls {
				if want, got := call1(t, a, name, arg), call1(t, b, name, arg); got != want {
					t.Errorf("%s(%d) = %d, want %d", name, arg, got, want)
				}
			}
		})
	}
}
