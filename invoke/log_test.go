package invoke

import (
	"strings"
	"testing"

	"lode"
)

// TestLogLimit: a function that says too much is cut short, told so once, and
// has its words again in the next invocation.
func TestLogLimit(t *testing.T) {
	w := newWorld()
	w.deploy("f", lode.Function{Limits: lode.Limits{Log: 100}}, func(g *guest) error {
		for range 30 {
			g.inv.Host.Log(0, []byte("ten bytes."))
		}
		return g.answer(200, "")
	})
	s := w.service(t, Config{})
	for round := range 2 {
		w.lines = nil
		out, err := s.Invoke(t.Context(), &lode.Request{Namespace: "default", Function: "f"}, &lode.Buffered{})
		if err != nil {
			t.Fatal(err)
		}
		if len(w.lines) != 11 || !strings.Contains(w.lines[10], "left out: it is over 100 bytes") || out.Usage.LogDropped != 200 {
			t.Errorf("round %d: %d dropped, %q", round, out.Usage.LogDropped, w.lines)
		}
	}
}
