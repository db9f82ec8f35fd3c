package rewrite

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/tetratelabs/wazero/api"
)

// work is a call of a guest for the overhead figures: a few milliseconds.
type work struct {
	name string
	arg  uint64
}

// TestOverhead prints what the pass costs, original and rewritten in turn. It
// judges nothing and runs only when REWRITE_OVERHEAD is set.
func TestOverhead(t *testing.T) {
	if os.Getenv("REWRITE_OVERHEAD") == "" {
		t.Skip("REWRITE_OVERHEAD is not set")
	}
	for _, g := range []struct {
		name  string
		wasm  []byte
		calls []work
	}{
		{"C", theC(t), []work{{"hash", 30}, {"floats", 6}, {"sort", 2}, {"fib", 25}, {"pointers", 600000}, {"bytes", 30}, {"copies", 10000}, {"vectors", 200}}},
		{"Go", theGo(t), []work{{"jsonwork", 50}, {"textwork", 10}, {"sieve", 2}}},
	} {
		h := newHost(t)
		a, b := h.original(t, g.wasm), h.instance(t, rewritten(t, g.wasm, Options{}))
		for _, c := range g.calls {
			overhead(t, h, g.name, c, a, b)
		}
	}
}

func overhead(t *testing.T, h *host, guest string, c work, a, b api.Module) {
	const rounds = 101
	var before, after, ratios []float64
	yields := h.yields
	for range rounds {
		x, y := timed(t, a, c), timed(t, b, c)
		before, after, ratios = append(before, x), append(after, y), append(ratios, y/x)
	}
	slices.Sort(before)
	slices.Sort(after)
	slices.Sort(ratios)
	q, m := rounds/10, rounds/2
	fmt.Printf("%-3s %-9s %7.2f ms  median %+6.1f %%  (middle half %+.1f .. %+.1f)  tenth %+6.1f %%  a yield each %.1f us\n", guest, c.name, before[m],
		100*(ratios[m]-1), 100*(ratios[rounds/4]-1), 100*(ratios[3*rounds/4]-1), 100*(after[q]/before[q]-1),
		1000*after[m]*rounds/float64(max(h.yields-yields, 1)))
}

// timed is how long a call takes, in milliseconds.
func timed(t testing.TB, mod api.Module, c work) float64 {
	start := time.Now()
	call1(t, mod, c.name, c.arg)
	return float64(time.Since(start).Nanoseconds()) / 1e6
}
