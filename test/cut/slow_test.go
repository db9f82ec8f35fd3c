//go:build linux

package cut

import (
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"lode"
	"lode/api"
)

// TestThinCable gives one node a thin cable. While megabytes go over it, small
// calls go on beside them and the node is not taken for lost; calls with large
// bodies go elsewhere.
func TestThinCable(t *testing.T) {
	t.Parallel() // they wait more than they work
	c := three(t)
	keeper := c.keeper("a")
	slow := c.others(keeper)[0]
	if !c.net.narrow(slow.name, "16mbit") {
		t.Skip("this kernel cannot slow a link down")
	}
	big := strings.Repeat(strings.Repeat("x", 63)+"\n", 8<<20/64)
	moved := make(chan error, 1)
	began := time.Now()
	go func() {
		_, err := slow.api.PutStream(t.Context(), "big", api.PutOptions{Records: lode.RecordsLines, Shard: 8 << 20, Copies: 3}, "big", strings.NewReader(big))
		moved <- err
	}()
	var slowest time.Duration
	n := 0
	for moving := true; moving; {
		select {
		case err := <-moved:
			if err != nil {
				t.Error(err)
			}
			moving = false
		default:
			// It goes to the keeper over the link that the copies go over.
			a := slow.post("/fn/web/once", "", "Prefer", "respond-async")
			if a.status != http.StatusAccepted {
				t.Errorf("an asynchronous call beside a transfer: %s", a)
			}
			slowest = max(slowest, a.took)
			n++
		}
	}
	t.Logf("8 MiB went out twice at 16 Mbit/s in %s; %d asynchronous calls beside it, the slowest took %s", time.Since(began).Round(time.Millisecond), n, slowest.Round(time.Millisecond))
	for name, p := range c.nodes {
		if strings.Contains(p.out.String(), "a peer was lost") {
			t.Errorf("node %s took another for lost:\n%s", name, p.out)
		}
	}
	// Work with large bodies stays away.
	where := map[string]int{}
	var mu sync.Mutex
	var all sync.WaitGroup
	body := strings.Repeat("x", 1<<20)
	for range 8 {
		all.Go(func() {
			for range 10 {
				a := c.nodes[keeper].post("/fn/web", body)
				if a.status != http.StatusOK || len(a.body) != len(body) {
					t.Errorf("a large call: %s", a)
				}
				mu.Lock()
				where[a.head.Get("Lode-Node")]++
				mu.Unlock()
			}
		})
	}
	all.Wait()
	t.Logf("80 calls with 1 MiB each at %s ran on %v; the thin cable is %s's", keeper, where, slow.name)
	c.net.narrow(slow.name, "")
	c.healed()
	c.story()
}
