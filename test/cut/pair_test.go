//go:build linux

package cut

import (
	"testing"
	"time"

	"lode"
)

// TestPairwise cuts two nodes from each other that the third one still
// reaches: all three go on, whoever of them the keeper is. Packets are lost
// without a word, first those of both directions, then those of one.
func TestPairwise(t *testing.T) {
	t.Parallel() // they wait more than they work
	c := three(t)
	h := c.record()
	keeper := c.keeper("a")
	others := c.others(keeper)
	type pair struct{ from, to, what string }
	pairs := []pair{{others[0].name, others[1].name, "two that are not the keeper"}}
	if long() {
		pairs = append(pairs, pair{keeper, others[0].name, "the keeper and another"})
	}
	for _, p := range pairs {
		for _, both := range []bool{true, false} {
			if !both && !long() {
				continue
			}
			t.Logf("--- %s, %s and %s, do not reach each other; both directions: %v", p.what, p.from, p.to, both)
			c.net.lose(p.from, p.to)
			if both {
				c.net.lose(p.to, p.from)
			}
			time.Sleep(3 * time.Second) // they find out
			c.allGo("apart")
			c.net.found(p.from, p.to)
			if both {
				c.net.found(p.to, p.from)
			}
			began := time.Now()
			c.healed()
			t.Logf("all is well %s after the heal", time.Since(began).Round(time.Millisecond))
		}
	}
	h.end()
	c.story()
}

// allGo waits until each node does each kind of write, and does the story.
func (c *cluster) allGo(when string) {
	t := c.t
	t.Helper()
	for name, p := range c.nodes {
		for what, write := range p.writes() {
			var err error
			took := waitForElse(t, func() bool { err = write(t.Context()); return err == nil || lode.KindOf(err) == lode.Conflict },
				func() string { return what + " at " + name + " " + when + ": " + err.Error() })
			if took > 2*time.Second {
				t.Logf("%s at %s %s: after %s", what, name, when, took.Round(time.Millisecond))
			}
		}
	}
	c.story()
}
