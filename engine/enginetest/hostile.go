package enginetest

import (
	"context"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"lode"
	"lode/engine"
)

// hostile guests: each of these has killed or frozen a process once.
func (s *suite) hostile(t *testing.T) {
	limits := Limits()
	limits.Memory = 1 << 30
	big := PoolOf(t, s.e, C(t, "probe"), engine.Config{Limits: limits})
	p := s.probe(t)
	want(t, p, "count", "1")
	for name, call := range map[string]func(deadline time.Time) error{
		"endless loop":    invoke(p, "spin"),
		"fill":            invoke(big, "fill 900000000"),
		"endless loop go": invoke(PoolOf(t, s.e, Go(t, "probe"), engine.Config{}), "spin"),
		"straight line":   invoke(PoolOf(t, s.e, straight(), engine.Config{}), ""),
		"ref.func":        invoke(PoolOf(t, s.e, handModule(1, 0x03, 0x40, 0xd2, 0, 0x1a, 0x0c, 0, 0x0b, 0x41, 0), engine.Config{}), ""),
	} {
		t.Run(name, func(t *testing.T) { s.neighbours(t, p, call) })
	}
	t.Run("table.grow", s.tableGrow)
	t.Run("tables", s.tables)
	t.Run("after oom", func(t *testing.T) {
		g := PoolOf(t, s.e, Go(t, "probe"), engine.Config{})
		for range 3 {
			if _, _, err := Call(g, "oom"); lode.KindOf(err) != lode.Crashed {
				t.Error(show(err))
			}
			want(t, g, "count", "4")
		}
	})
	t.Run("dead sandbox", func(t *testing.T) {
		sb := sandbox(t, s.load(t, C(t, "probe")))
		if err := sb.Invoke(context.Background(), &engine.Invocation{Body: []byte("exit 1"), Out: &Answer{}}); lode.KindOf(err) != lode.Crashed {
			t.Fatal(show(err))
		}
		if sb.Reset() {
			t.Error("a sandbox was reset after its exit")
		}
		if err := sb.Invoke(context.Background(), &engine.Invocation{Body: []byte("count"), Out: &Answer{}}); lode.KindOf(err) != lode.Internal {
			t.Error(show(err))
		}
	})
	t.Run("memory limit", func(t *testing.T) {
		small := Limits()
		small.Memory = 1 << 20
		if _, err := s.e.Compile(context.Background(), &Source{Wasm: C(t, "probe")}, small); lode.KindOf(err) != lode.Invalid {
			t.Errorf("a module larger than its limit: %s", show(err))
		}
		want(t, p, "grow 100000000", "full")
	})
	t.Run("many", func(t *testing.T) { s.many(t, p) })
}

func invoke(p *engine.Pool, body string) func(time.Time) error {
	return func(deadline time.Time) error {
		return p.Invoke(context.Background(), &engine.Invocation{Body: []byte(body), Out: &Answer{}, Host: &Host{}, Deadline: deadline})
	}
}

// neighbours runs hostile while others call p and the collector runs. That the
// others come to an end at all before the hostile one is the test: a guest
// that cannot be stopped freezes them.
func (s *suite) neighbours(t *testing.T, p *engine.Pool, hostile func(time.Time) error) {
	deadline := time.Now().Add(400 * time.Millisecond)
	var wg sync.WaitGroup
	var err error
	wg.Go(func() { err = hostile(deadline) })
	calls := 0
	for time.Now().Before(deadline) {
		want(t, p, "work 1000", "ok")
		runtime.GC()
		calls++
	}
	wg.Wait()
	if k := lode.KindOf(err); k != lode.Deadline && k != lode.Crashed && k != lode.Invalid {
		t.Errorf("the hostile guest ended with %s", show(err))
	}
	if calls == 0 {
		t.Error("nobody else got through")
	}
}

// straight is a module whose body is a megabyte without a branch, in a loop.
func straight() []byte {
	code := []byte{0x03, 0x40}
	for range 150_000 {
		code = append(code, 0x20, 0, 0x41, 3, 0x6c, 0x21, 0) // l0 = l0 * 3
	}
	return handModule(1, append(code, 0x0c, 0, 0x0b, 0x41, 0)...)
}

// tableGrow: a table cannot be grown to gigabytes. The module answers 1 when a
// growth by 100 million fails, 0 when it works.
func (s *suite) tableGrow(t *testing.T) {
	// ref.null func; i32.const 100,000,000; table.grow 0; i32.const -1; i32.ne;
	// the result, non-zero, would be a failed invocation
	p := PoolOf(t, s.e, handModule(0, 0xd0, 0x70, 0x41, 0x80, 0xc2, 0xd7, 0x2f, 0xfc, 15, 0, 0x41, 0x7f, 0x47), engine.Config{})
	if _, _, err := Call(p, ""); err != nil {
		t.Errorf("the table was grown, or the module failed: %s", show(err))
	}
}

// tables: what changes a table is noticed, and the sandbox not used again.
func (s *suite) tables(t *testing.T) {
	// The answer is ref.is_null(table[1]) ^ 1; then table[1] = ref.func 0.
	p := PoolOf(t, s.e, handModule(0, 0x41, 1, 0x25, 0, 0xd1, 0x41, 1, 0x73, 0x41, 1, 0xd2, 0, 0x26, 0), engine.Config{})
	for range 3 {
		_, _, err := Call(p, "")
		if e := lode.AsError(err); e != nil && !strings.Contains(e.Error(), "ref.func") && e.Kind != lode.Invalid {
			t.Fatalf("the table was not as it was: %s", show(err))
		}
	}
}

// many: sandboxes on many goroutines, with growth, traps and kills among them.
func (s *suite) many(t *testing.T, p *engine.Pool) {
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for k := range 40 {
				switch (i + k) % 8 {
				case 0:
					Call(p, "trap")
				case 1:
					Call(p, "exit 1")
				case 2:
					want(t, p, "grow 3000000", "ok")
				case 3:
					want(t, p, "sleep 100000", "status 0 length 4 4")
				default:
					want(t, p, "write 50", "ok")
				}
				want(t, p, "peek", "0")
			}
		})
	}
	wg.Wait()
	if st := p.Stats(); st.Busy != 0 {
		t.Errorf("%+v", st)
	}
}
