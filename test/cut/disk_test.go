//go:build linux

package cut

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"lode"
)

// smallDisk gives a node a disk of some bytes, in memory.
func (c *cluster) smallDisk(name string, size int) {
	c.t.Helper()
	dir := filepath.Join(c.dir, "disk-"+name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		c.t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		c.t.Skipf("no small disk: %v", err)
	}
	c.disks[name] = dir
}

// fill leaves nothing free on a node's disk; the returned function gives it
// back.
func (c *cluster) fill(name string) (empty func()) {
	c.t.Helper()
	f, err := os.CreateTemp(c.disks[name], "ballast-*")
	if err != nil {
		c.t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 64<<10)
	for err == nil {
		_, err = f.Write(block)
	}
	for err = nil; err == nil; {
		_, err = f.Write(block[:512])
	}
	if !errors.Is(err, syscall.ENOSPC) {
		c.t.Fatal(err)
	}
	return func() { os.Remove(f.Name()) }
}

// TestFullDisks fills the disk of one node, then of most: with one the others
// go on; with two nothing is acknowledged that cannot be kept, and reads go on.
// All heals when there is room.
func TestFullDisks(t *testing.T) {
	t.Parallel() // they wait more than they work
	c := newCluster(t, "a", "b", "c")
	for _, n := range []string{"a", "b", "c"} {
		c.smallDisk(n, 320<<20)
	}
	c.grow("a", "b", "c")
	c.furnish()
	h := c.record()
	time.Sleep(time.Second)
	for _, who := range []string{"a member", "the keeper"} {
		keeper := c.keeper("a")
		full := keeper
		if who == "a member" {
			full = c.others(keeper)[0].name
		} else if !long() {
			continue
		}
		t.Logf("--- the disk of %s, %s, is full", who, full)
		empty := c.fill(full)
		began := time.Now()
		for _, p := range c.others(full) {
			for what, write := range p.writes() {
				var err error
				waitForElse(t, func() bool { err = write(t.Context()); return err == nil }, func() string { return what + " at " + p.name + ": " + err.Error() })
			}
		}
		t.Logf("every kind of write at the others: %s after", time.Since(began).Round(time.Millisecond))
		c.serves()
		for what, write := range c.nodes[full].writes() {
			err := write(t.Context())
			if err != nil && !has([]lode.Kind{lode.Full, lode.Unavailable}, lode.KindOf(err)) {
				t.Errorf("%s at %s: %v", what, full, err)
			}
			t.Logf("%s at %s, whose disk is full: %v", what, full, err)
		}
		out, code := c.nodes[c.others(full)[0].name].lode("doctor", "--cluster")
		t.Logf("doctor --cluster: %d\n%s", code, out)
		empty()
		began = time.Now()
		c.healed()
		t.Logf("whole %s after there is room", time.Since(began).Round(time.Millisecond))
	}
	t.Log("--- two disks are full")
	keeper := c.keeper("a")
	first, second := c.fill(keeper), c.fill(c.others(keeper)[0].name)
	for _, p := range c.others("") {
		c.refusesAfter(p)
	}
	c.serves()
	first()
	second()
	began := time.Now()
	c.allGo("after there is room")
	c.healed()
	t.Logf("whole %s after there is room", time.Since(began).Round(time.Millisecond))
	h.end()
}

// refusesAfter checks that writes are refused; what was prepared ahead may take
// some first, and a deploy of two small records may find room.
func (c *cluster) refusesAfter(p *process) {
	t := c.t
	t.Helper()
	var all sync.WaitGroup
	for what, write := range p.writes() {
		all.Go(func() {
			var err error
			for range 100 {
				began := time.Now()
				if err = write(t.Context()); err != nil {
					t.Logf("%s at %s: %s after %s: %v", what, p.name, lode.KindOf(err), time.Since(began).Round(time.Millisecond), err)
					break
				}
			}
			if !has([]lode.Kind{lode.Full, lode.Unavailable}, lode.KindOf(err)) {
				t.Errorf("%s at %s with two disks full: %v", what, p.name, err)
			}
		})
	}
	all.Wait()
}

// serves checks that every node answers for a known function.
func (c *cluster) serves() {
	c.t.Helper()
	for name, p := range c.nodes {
		if a := p.post("/fn/web", "x"); a.status != http.StatusOK || a.body != "x" {
			c.t.Errorf("a call at %s: %s", name, a)
		}
	}
}
