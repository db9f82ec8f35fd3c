//go:build linux

package cut

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lode/test/shift"
)

// TestClocks has three nodes whose clocks are an hour apart: a node does not
// join so, but a cluster whose clocks went wrong later goes on, and its doctor
// says so.
func TestClocks(t *testing.T) {
	if !long() {
		t.Skip("builds the standard library anew: LODE_LONG=1 runs it")
	}
	t.Parallel() // they wait more than they work
	c := newCluster(t, "a", "b", "c", "d")
	dir := filepath.Join(lab.dir, "shifted")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	bin, err := shift.Build(dir)
	if errors.Is(err, shift.ErrCannot) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	c.bin = bin
	c.grow("a", "b", "c")
	c.furnish()
	c.story()

	for shifted, says := range map[string]string{"3600": "ahead", "-3600": "behind"} {
		c.setClock("d", shifted)
		file := filepath.Join(c.dir, "d.token")
		if err := os.WriteFile(file, []byte(c.token("a")), 0o600); err != nil {
			t.Fatal(err)
		}
		d := c.begin("d", "--join", c.net.addr["a"], "--token", "@"+file)
		waitFor(t, "the node with a wrong clock to end", func() bool {
			select {
			case <-d.done:
				return true
			default:
				return readyLine.MatchString(d.out.String())
			}
		})
		if out := d.out.String(); readyLine.MatchString(out) || !strings.Contains(out, "clocks differ by") {
			t.Errorf("a join with the clock an hour %s: %s", says, out)
		} else {
			t.Log(says + ": " + lastLines(out, 3))
		}
		d.kill()
		delete(c.nodes, "d")
	}

	h := c.record()
	for name, shifted := range map[string]string{"b": "3600", "c": "-3600"} {
		time.Sleep(time.Second)
		c.nodes[name].stop()
		c.setClock(name, shifted)
		c.up(name)
		c.healed()
	}
	c.story()
	c.allGo("with clocks an hour apart")
	out, code := c.nodes["a"].lode("doctor", "--cluster")
	if !strings.Contains(out, "clock") || !strings.Contains(out, "apart") && !strings.Contains(out, "differ") && !strings.Contains(out, "ahead") {
		t.Errorf("doctor --cluster says nothing of the clocks: %d\n%s", code, out)
	}
	t.Logf("doctor --cluster: %d\n%s", code, out)
	h.end()

	keeper := c.keeper("a")
	c.nodes[keeper].kill()
	delete(c.nodes, keeper)
	began := time.Now()
	c.allGo("after the death of the keeper")
	t.Logf("every kind of write %s after the death of the keeper", time.Since(began).Round(time.Millisecond))
	c.setClock(keeper, "0")
	c.up(keeper)
	c.healed()
	c.story()
}

// setClock sets a node's clock wrong by some seconds from its next start on.
func (c *cluster) setClock(name, seconds string) {
	c.t.Helper()
	home := filepath.Dir(c.data(name))
	if err := os.MkdirAll(home, 0o755); err != nil {
		c.t.Fatal(err)
	}
	if err := shift.Keep(home, seconds); err != nil {
		c.t.Fatal(err)
	}
}
