//go:build linux

package cut

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"lode"
	"lode/api"
)

// TestWhole: a cluster on three machines does everything at every node.
func TestWhole(t *testing.T) {
	t.Parallel() // they wait more than they work
	c := newCluster(t, "a", "b", "c")
	began := time.Now()
	lap := func(what string) { t.Logf("%s after %s", what, time.Since(began).Round(time.Millisecond)) }
	c.grow("a", "b", "c")
	lap("three members")
	c.deploy("a", 1)
	lap("deployed")
	c.warm(1)
	lap("warm")
	for name, p := range c.nodes {
		for range 3 {
			if a := p.post("/fn/web/hit?k="+name, ""); a.status != http.StatusOK {
				t.Errorf("a call at %s: %s", name, a)
			}
		}
	}
	lap("called")
	if _, err := c.nodes["a"].api.PutStream(t.Context(), "base", api.PutOptions{Records: lode.RecordsLines, Shard: 64 << 10}, "base", strings.NewReader(base)); err != nil {
		t.Fatal(err)
	}
	lap("put")
	c.story()
	lap("the story")
}
