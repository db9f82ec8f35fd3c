package engine_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"lode"
	"lode/engine"
	"lode/engine/enginetest"
	"lode/engine/wasm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newEngine(t *testing.T, c engine.EngineConfig) *engine.Engine {
	t.Helper()
	d, err := wasm.New(wasm.Config{})
	if err != nil {
		t.Fatal(err)
	}
	c.Driver = d
	e := engine.New(c)
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		if err := e.Close(); err != nil {
			t.Error("closed twice:", err)
		}
	})
	return e
}

func newPool(t *testing.T, e *engine.Engine, src engine.Source, l lode.Limits) *engine.Pool {
	t.Helper()
	p, err := e.Pool(engine.Config{Revision: "test/echo@1", Namespace: "test", Contract: lode.ContractHandler, Limits: l}, src)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func call(t *testing.T, p *engine.Pool) *engine.Invocation {
	t.Helper()
	got, inv, err := enginetest.Call(p, "abc")
	if err != nil || got != "ABC" {
		t.Fatalf("%q, %v", got, err)
	}
	return inv
}

// TestCode: code is compiled once, used again where the key is the same, and
// not used when it was changed or comes from somebody else.
func TestCode(t *testing.T) {
	src := &enginetest.Source{Wasm: enginetest.C(t, "echo")}
	first := newEngine(t, engine.EngineConfig{Key: []byte("ours")})
	if _, err := first.Compile(context.Background(), src, enginetest.Limits()); err != nil {
		t.Fatal(err)
	}
	if len(src.Kept) != 1 {
		t.Fatalf("%d codes kept", len(src.Kept))
	}
	var key string
	var code []byte
	for key, code = range src.Kept {
	}
	same := func() bool { return &src.Kept[key][0] == &code[0] }
	call(t, newPool(t, newEngine(t, engine.EngineConfig{Key: []byte("ours")}), src, enginetest.Limits()))
	if !same() {
		t.Error("it was compiled again")
	}
	if _, err := first.Compile(context.Background(), src, enginetest.Limits()); err != nil || !same() {
		t.Error("a second deploy compiled again", err)
	}
	code[len(code)/2] ^= 1
	call(t, newPool(t, first, src, enginetest.Limits()))
	if same() {
		t.Error("changed code was used")
	}
	code = src.Kept[key]
	call(t, newPool(t, newEngine(t, engine.EngineConfig{Key: []byte("theirs")}), src, enginetest.Limits()))
	if same() {
		t.Error("code of another key was used")
	}
	src.Kept[key] = []byte("short")
	call(t, newPool(t, first, src, enginetest.Limits()))
}

// TestBudget: what is over the budget is dropped and comes back when called.
func TestBudget(t *testing.T) {
	e := newEngine(t, engine.EngineConfig{CodeBudget: 1, Key: enginetest.Key()})
	var pools []*engine.Pool
	for range 4 {
		pools = append(pools, newPool(t, e, &enginetest.Source{Wasm: enginetest.C(t, "echo"), Cache: true}, enginetest.Limits()))
	}
	for round := range 3 {
		for _, p := range pools {
			if inv := call(t, p); inv.Usage.Cold != true {
				t.Error("not loaded again")
			}
			if inv := call(t, p); inv.Usage.Cold {
				t.Error("dropped while in use")
			}
			if s := e.Stats(); s.Loaded != 1 || s.Loads < int64(round) {
				t.Errorf("%+v", s)
			}
		}
	}
	if s := pools[0].Stats(); s.Loads != 3 {
		t.Errorf("%+v", s)
	}
}

// TestOneLoad: of many callers at once, one loads.
func TestOneLoad(t *testing.T) {
	e := newEngine(t, engine.EngineConfig{Key: enginetest.Key()})
	src := &enginetest.Source{Wasm: enginetest.C(t, "echo"), Cache: true}
	p := newPool(t, e, src, enginetest.Limits())
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() { call(t, p) })
	}
	wg.Wait()
	if s := p.Stats(); s.Loads != 1 || src.Loads != 1 || s.Calls != 50 || s.Busy != 0 {
		t.Errorf("%+v, %d reads", s, src.Loads)
	}
}

// TestIdle: sandboxes that nobody uses are closed, but for scale_min.
func TestIdle(t *testing.T) {
	wasm := enginetest.C(t, "echo")
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t, engine.EngineConfig{Key: enginetest.Key()})
		p := newPool(t, e, &enginetest.Source{Wasm: wasm, Cache: true}, enginetest.Limits())
		l := enginetest.Limits()
		l.ScaleMin = 2
		kept := newPool(t, e, &enginetest.Source{Wasm: wasm, Cache: true}, l)
		if err := p.Warm(context.Background(), 5); err != nil {
			t.Fatal(err)
		}
		if s := p.Stats(); s.Warm != 5 {
			t.Errorf("%+v", s)
		}
		for range 8 {
			time.Sleep(10 * time.Second)
			call(t, p) // one stays in use
		}
		if s := p.Stats(); s.Warm != 1 {
			t.Errorf("after a while: %+v", s)
		}
		time.Sleep(2 * time.Minute)
		if s := p.Stats(); s.Warm != 0 || s.Loaded != 1 {
			t.Errorf("idle: %+v", s)
		}
		if s := kept.Stats(); s.Warm != 2 {
			t.Errorf("scale_min: %+v", s)
		}
	})
}

// TestClose: a closed pool takes nothing, and waits for what runs.
func TestClose(t *testing.T) {
	e := newEngine(t, engine.EngineConfig{Key: enginetest.Key()})
	p := enginetest.PoolOf(t, e, enginetest.C(t, "probe"), engine.Config{})
	if err := p.Warm(context.Background(), 1); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- p.Invoke(ctx, &engine.Invocation{Body: []byte("spin"), Out: &enginetest.Answer{}})
	}()
	for p.Stats().Busy == 0 {
		time.Sleep(time.Millisecond)
	}
	closed := make(chan struct{})
	go func() { p.Close(); close(closed) }()
	select {
	case <-closed:
		t.Error("it did not wait")
	case <-time.After(20 * time.Millisecond):
	}
	cancel()
	if err := <-ended; lode.KindOf(err) != lode.Cancelled {
		t.Error(err)
	}
	<-closed
	if _, _, err := enginetest.Call(p, "count"); lode.KindOf(err) != lode.Unavailable {
		t.Error(err)
	}
	if s := e.Stats(); s.Pools != 0 {
		t.Errorf("%+v", s)
	}
}

// slow is a Source that gives its module when it is told to.
type slow struct {
	enginetest.Source
	gate chan struct{}
}

// Module implements engine.Source.
func (s *slow) Module(ctx context.Context) ([]byte, error) {
	<-s.gate
	return s.Source.Module(ctx)
}

// TestGiveUp: a caller who gives up while the program is loaded gets its
// error, and the load serves the next one.
func TestGiveUp(t *testing.T) {
	src := &slow{Source: enginetest.Source{Wasm: enginetest.C(t, "echo"), Cache: true}, gate: make(chan struct{})}
	p := newPool(t, newEngine(t, engine.EngineConfig{Key: enginetest.Key()}), src, enginetest.Limits())
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(5*time.Millisecond, cancel)
	if err := p.Invoke(ctx, &engine.Invocation{Out: &enginetest.Answer{}}); lode.KindOf(err) != lode.Cancelled {
		t.Error(err)
	}
	err := p.Invoke(context.Background(), &engine.Invocation{Out: &enginetest.Answer{}, Deadline: time.Now().Add(5 * time.Millisecond)})
	if lode.KindOf(err) != lode.Deadline {
		t.Error(err)
	}
	close(src.gate)
	call(t, p)
	if s := p.Stats(); s.Loads != 1 || src.Loads != 1 {
		t.Errorf("%+v, %d reads", s, src.Loads)
	}
}
