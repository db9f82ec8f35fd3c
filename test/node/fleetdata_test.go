//go:build linux

package node

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zeebo/blake3"

	"lode"
	"lode/api"
)

// replica is where node i keeps its copy of a shard.
func (f *fleet) replica(i int, d lode.Digest) string {
	return filepath.Join(f.nodes[i].dir, "data", "blobs", d.String()[:2], d.String())
}

// holders are the nodes with a good copy of a shard.
func (f *fleet) holders(d lode.Digest) (on []int) {
	for i := range f.nodes {
		if b, err := os.ReadFile(f.replica(i, d)); err == nil && lode.Digest(blake3.Sum256(b)) == d {
			on = append(on, i)
		}
	}
	return on
}

// TestFleetCopies takes a node away for good, with its folder, and lets an
// empty one join in its place: each shard has its copies again each time. A
// copy with a bad byte is found, not read, and made good.
func TestFleetCopies(t *testing.T) {
	t.Parallel()
	f, _ := startFleet(t, "--repair-after", "2s")
	ctx := t.Context()
	var text strings.Builder
	for i := range 120_000 {
		fmt.Fprintf(&text, "%09d\n", i)
	}
	if _, err := f.nodes[0].c.PutStream(ctx, "base", api.PutOptions{Records: lode.RecordsLines, Shard: 64 << 10}, "base", strings.NewReader(text.String())); err != nil {
		t.Fatal(err)
	}
	m, err := f.nodes[0].c.GetManifest(ctx, "base", 0)
	if err != nil {
		t.Fatal(err)
	}
	copied := func(what string, gone int) {
		t.Helper()
		began := time.Now()
		short := func() (n int) {
			for _, sh := range m.Shards {
				if on := f.holders(sh.Digest); len(slices.DeleteFunc(on, func(i int) bool { return i == gone })) < 2 {
					n++
				}
			}
			return n
		}
		at := short()
		waitFor(t, "two copies of each shard "+what, func() bool { return short() == 0 })
		t.Logf("%s: %d of %d shards had one copy, all two again after %v", what, at, len(m.Shards), since(began))
		for i, p := range f.nodes {
			if i != gone {
				if got := p.content("base"); got != text.String() {
					t.Errorf("%s: dataset base has %d bytes %s", fleetNames[i], len(got), what)
				}
			}
		}
	}
	copied("at first", -1)

	f.kill(1)
	copied("after b was lost", 1)
	p := f.other(1)
	waitFor(t, "b to be removed", func() bool {
		if err = p.c.RemoveNode(ctx, "b", false); err != nil && kindOf(err) != lode.NotFound {
			t.Logf("nodes rm b: %v", err)
			time.Sleep(time.Second)
			return false
		}
		return true
	})
	if err := os.RemoveAll(f.nodes[1].dir); err != nil {
		t.Fatal(err)
	}
	f.join(1, f.nodes[1].dir)
	f.nodes[1].ready()
	f.settled(0, 1, 2)
	copied("after b came back empty", -1)
	waitFor(t, "the new node to have its part", func() bool {
		return slices.ContainsFunc(m.Shards, func(sh lode.Shard) bool { return slices.Contains(f.holders(sh.Digest), 1) })
	})

	bad := 0
	for _, sh := range m.Shards { // a bad byte in one copy of every other shard
		on := f.holders(sh.Digest)
		if bad++; bad%2 == 0 && len(on) > 1 {
			path := f.replica(on[bad/2%len(on)], sh.Digest)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			b[len(b)/2] ^= 1
			rewrite(t, path, b)
		}
	}
	j, err := p.c.CreateJob(ctx, api.JobSpec{Function: "web", Dataset: "base"})
	if err == nil {
		j, err = p.c.GetJob(ctx, j.ID, 50*time.Second)
	}
	if err != nil || j.State != lode.StateDone || p.result(j.ID) != "120000" {
		t.Fatalf("a job over bad copies: %+v %v", j, err)
	}
	for i, p := range f.nodes { // each reads its own copies
		if got := p.content("base"); got != text.String() {
			t.Errorf("%s: dataset base has %d bytes beside bad copies", fleetNames[i], len(got))
		}
	}
	copied("after bytes were flipped", -1)
}
