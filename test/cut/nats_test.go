//go:build linux

package cut

import (
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"lode"
	"lode/test/child"
)

// TestOwnNATS runs three nodes on a NATS cluster of the user's own: the story
// is the same, a node is killed, the NATS cluster goes away and comes back.
func TestOwnNATS(t *testing.T) {
	t.Parallel() // they wait more than they work
	c := newCluster(t, "a", "b", "c")
	bin := filepath.Join(lab.dir, "nats-server")
	if out, err := exec.Command("go", "build", "-o", bin, "github.com/nats-io/nats-server/v2").CombinedOutput(); err != nil {
		t.Fatalf("build the server: %v\n%s", err, out)
	}
	stop := c.startNATS(bin)
	c.args = []string{"--nats", "nats://10.77.0.254:4222,nats://10.77.0.254:4223,nats://10.77.0.254:4224"}
	c.grow("a", "b", "c")
	c.furnish()
	c.story()

	keeper := c.keeper("a")
	c.nodes[keeper].kill()
	delete(c.nodes, keeper)
	began := time.Now()
	c.allGo("after the keeper's death")
	t.Logf("every kind of write at the others %s after the kill of the keeper", time.Since(began).Round(time.Millisecond))
	c.up(keeper)
	c.healed()
	c.warm(int(c.version.Load()))

	h := c.record()
	time.Sleep(2 * time.Second)
	stop()
	known := fmt.Sprint(c.version.Load())
	for name, p := range c.nodes {
		if a := p.get("/fn/web/version"); a.status != http.StatusOK || a.body != known {
			t.Errorf("a known function at %s without the NATS cluster: %s", name, a)
		}
		if _, err := p.api.GetName(t.Context(), "web"); err != nil {
			t.Errorf("a function's description at %s without the NATS cluster: %v", name, err)
		}
		c.refuses(p, lode.Unavailable)
		if !long() {
			break
		}
	}
	c.startNATS(bin)
	began = time.Now()
	c.healed()
	t.Logf("all is well %s after the NATS cluster is back", time.Since(began).Round(time.Millisecond))
	c.allGo("after the return")
	h.end()
}

// startNATS runs three servers on the switch, with the data that they had.
func (c *cluster) startNATS(bin string) (stop func()) {
	c.t.Helper()
	var all []*exec.Cmd
	for i := range 3 {
		cmd := exec.Command(bin, "-a", "10.77.0.254", "-p", fmt.Sprint(4222+i), "-n", fmt.Sprint("s", i), "-js", "-sd", filepath.Join(c.dir, fmt.Sprint("nats", i)),
			"-cluster_name", "own", "-cluster", fmt.Sprint("nats://10.77.0.254:", 6222+i), "-routes", "nats://10.77.0.254:6222,nats://10.77.0.254:6223,nats://10.77.0.254:6224")
		cmd.Env = child.Environment("HOME=" + c.dir)
		if err := startIn(c.net.prefix+"switch", cmd); err != nil {
			c.t.Fatal(err)
		}
		all = append(all, cmd)
	}
	stop = func() {
		for _, cmd := range all {
			if cmd.ProcessState == nil {
				cmd.Process.Kill()
				cmd.Wait()
			}
		}
	}
	c.t.Cleanup(stop)
	return stop
}
