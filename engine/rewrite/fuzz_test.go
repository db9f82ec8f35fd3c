package rewrite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"lode"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/sys"
)

// small are options under which yields come often.
var small = Options{Period: minPeriod, MaxMemory: 4 * PageSize, MaxTable: 200}

// pair is a runtime that can stop originals and one for rewritten modules.
type pair struct {
	before wazero.Runtime
	after  *host
}

func newPair(t testing.TB) *pair {
	c := wazero.NewRuntimeConfig().WithMemoryLimitPages(4).WithCloseOnContextDone(true)
	p := &pair{before: wazero.NewRuntimeWithConfig(context.Background(), c), after: newHost(t)}
	t.Cleanup(func() { p.before.Close(context.Background()) })
	return p
}

// outcome is what can be seen of a run.
type outcome struct {
	result  uint64
	trap    string
	stopped bool // by the test, not by itself
	memory  []byte
	steps   uint64
}

func observe(mod api.Module, f api.Function, arg uint64) (o outcome) {
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	res, err := f.Call(ctx, arg)
	var exit *sys.ExitError
	switch {
	case errors.As(err, &exit), errors.Is(err, stopped{}):
		o.stopped = true
	case err != nil:
		o.trap = trapName(err)
	case len(res) > 0:
		o.result = res[0]
	}
	if m := mod.Memory(); m != nil {
		b, _ := m.Read(0, m.Size())
		o.memory = bytes.Clone(b)
	}
	if g := mod.ExportedGlobal("steps"); g != nil {
		o.steps = g.Get()
	}
	return o
}

// trapName is the first line of a trap's message, which names its kind.
func trapName(err error) string {
	line, _, _ := bytes.Cut([]byte(err.Error()), []byte("\n"))
	return string(line)
}

// compare runs a program before and after and says what is different. It also
// holds the guest to its word: between two yields no more steps than the
// period pays for, each step being four units.
func (p *pair) compare(t testing.TB, wasm []byte, arg uint64) error {
	ctx := context.Background()
	m, err := Rewrite(wasm, small)
	if err != nil {
		return err
	}
	a, err := p.before.InstantiateWithConfig(ctx, wasm, wazero.NewModuleConfig().WithName(""))
	if err != nil {
		return err
	}
	defer a.Close(ctx)
	b := p.after.instance(t, m)
	defer b.Close(ctx)
	var last, worst uint64
	p.after.yields = 0
	p.after.onYield = func(reason uint32) {
		now := b.ExportedGlobal("steps").Get()
		worst, last = max(worst, now-last), now
		if p.after.yields > 1000 || reason == YieldStack {
			panic(stopped{})
		}
	}
	want, got := observe(a, a.ExportedFunction("run"), arg), observe(b, b.ExportedFunction("run"), arg)
	worst = max(worst, got.steps-last)
	if limit := uint64(minPeriod+2*chunk+nextLease)/4 + 1; worst > limit {
		return fmt.Errorf("%d steps without a yield; at most %d", worst, limit)
	}
	if want.stopped || got.stopped {
		return nil
	}
	if want.result != got.result || want.trap != got.trap || want.steps != got.steps || !bytes.Equal(want.memory, got.memory) {
		return fmt.Errorf("result %d, trap %q, %d steps; want %d, %q, %d; memories equal: %v",
			got.result, got.trap, got.steps, want.result, want.trap, want.steps, bytes.Equal(got.memory, want.memory))
	}
	return nil
}

// Programs made at random behave the same, and never run long unasked.
func TestRandomPrograms(t *testing.T) {
	p := newPair(t)
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 1))
		choice := make([]byte, 400)
		for i := range choice {
			choice[i] = byte(r.Uint32())
		}
		wasm := generate(choice)
		if err := p.compare(t, wasm, seed); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
	}
}

func FuzzProgram(f *testing.F) {
	f.Add([]byte("0123456789abcdefghijklmnopqrstuvwxyz"), uint32(3))
	p := newPair(f)
	f.Fuzz(func(t *testing.T, choice []byte, arg uint32) {
		if err := p.compare(t, generate(choice), uint64(arg)); err != nil {
			t.Error(err)
		}
	})
}

// Whatever the bytes, the pass gives an error of kind Invalid or a module; and
// what the engine accepts before, it accepts after.
func FuzzRewrite(f *testing.F) {
	f.Add(theC(f))
	f.Add(generate([]byte("abcdefghijklmnopqrstuvwxyz0123456789")))
	for seed := range byte(20) {
		f.Add(generate(bytes.Repeat([]byte{seed, 3 * seed, seed ^ 77, 16, 2}, 60)))
	}
	f.Add([]byte("\x00asm\x01\x00\x00\x00"))
	p := newPair(f)
	f.Fuzz(func(t *testing.T, wasm []byte) {
		ctx := context.Background()
		m, err := Rewrite(wasm, small)
		if err != nil {
			if lode.KindOf(err) != lode.Invalid {
				t.Fatalf("kind %q: %v", lode.KindOf(err), err)
			}
			return
		}
		c, err := p.before.CompileModule(ctx, wasm)
		if err != nil {
			return
		}
		c.Close(ctx)
		c, err = p.after.rt.CompileModule(ctx, m.Wasm)
		if err != nil {
			t.Fatalf("accepted before, not after: %v", err)
		}
		c.Close(ctx)
	})
}
