package agent

import (
	"fmt"
	"testing"
	"time"

	"lode"
	"lode/agent/journal"
)

// TestCallers: the sketch finds who calls much among many that call little,
// never says too much, and forgets.
func TestCallers(t *testing.T) {
	var c callers
	part := func(n int) journal.Partition { return journal.Partition{Namespace: "d", Kind: "k", N: n} }
	began := time.Unix(1000, 0)
	now := began
	noise, real := 0, 0
	for i := range 60_000 { // two minutes, 500 a second: a fifth of them of one pair
		now = began.Add(time.Duration(i) * 2 * time.Millisecond)
		if i%5 == 0 {
			c.count("a", part(7), now)
			real++
			continue
		}
		noise++
		c.count(lode.NodeID(fmt.Sprint("n", noise%3)), part(noise%331), now)
	}
	rates := c.rates(now)
	got := rates[part(7)]
	want := 100.0 * callerEvery
	if len(got) == 0 || got[0].Node != "a" || got[0].Rate < want*0.85 || got[0].Rate > want*1.01 {
		t.Errorf("%d calls; rates %v, want about %g", real, got, want)
	}
	for p, rs := range rates {
		for _, r := range rs {
			if r.Node != "a" && r.Rate > 20*callerEvery {
				t.Errorf("%v of %v is too much", r, p)
			}
		}
	}
	if left := c.rates(now.Add(time.Hour)); len(left) > 0 || len(c.cells) > 0 {
		t.Errorf("an hour later %v", left)
	}
}
