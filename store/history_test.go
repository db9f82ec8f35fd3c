package store_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"lode"
	"lode/store"
	"lode/store/storetest"
)

// history is a random life of a cluster.
type history struct {
	t     *testing.T
	c     *storetest.Cluster
	rnd   *rand.Rand
	kept  map[lode.Digest][]byte // acknowledged, not deleted
	dead  map[lode.Digest]bool   // deleted, not put again
	lost  int                    // nodes whose disk was lost since the last repair, or that are down
	seeds uint64
}

// TestHistory: an acknowledged blob can be read as long as fewer than copies
// of the nodes were lost since the last repair; what was deleted stays deleted.
func TestHistory(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				nodes, copies := 3+int(seed%3), 2+int(seed%2)
				h := &history{t: t, rnd: rand.New(rand.NewPCG(seed, 1)), kept: map[lode.Digest][]byte{}, dead: map[lode.Digest]bool{},
					c: storetest.NewCluster(t, nodes, func(cfg *store.ReplicasConfig) { cfg.Copies, cfg.RepairRate = copies, 1<<30 })}
				for range 100 {
					h.step(copies)
					time.Sleep(time.Duration(h.rnd.IntN(20)) * time.Minute)
				}
				h.check()
				h.mend()
				for d := range h.kept {
					belongs(t, h.c, d, copies)
				}
				for d := range h.dead {
					if got := h.c.Holders(d); got != nil {
						t.Errorf("deleted blob %s is on %v", d.Short(), ids(got))
					}
				}
			})
		})
	}
}

// up is a running node.
func (h *history) up() *storetest.Node {
	for {
		if n := h.c.Nodes()[h.rnd.IntN(len(h.c.Nodes()))]; !n.Down() {
			return n
		}
	}
}

func (h *history) step(copies int) {
	t := h.t
	switch h.rnd.IntN(12) {
	case 0, 1, 2:
		h.seeds++
		d, content := put(t, h.up(), 100+h.rnd.IntN(20_000), h.seeds)
		h.kept[d] = content
		delete(h.dead, d)
	case 3: // delete one, or put a deleted one again
		for d := range h.kept {
			if err := h.up().Store.Delete(t.Context(), d); err != nil {
				t.Errorf("delete: %v", err)
			}
			delete(h.kept, d)
			h.dead[d] = true
			break
		}
	case 4, 5: // a node dies, perhaps with its disk
		if h.lost >= copies-1 {
			return
		}
		n := h.up()
		n.Kill()
		h.lost++
		if h.rnd.IntN(3) == 0 {
			n.Wipe()
		}
		if h.rnd.IntN(2) == 0 {
			gone(n)
		}
	case 6:
		for _, n := range h.c.Nodes() {
			n.Start() // its disk may be empty: it counts as lost until a repair
		}
	case 7: // a byte flips; with every other copy of that blob alive
		if h.lost > 0 {
			return
		}
		for d := range h.kept {
			holders := h.c.Holders(d)
			if len(holders) < 2 {
				t.Errorf("blob %s is on %v", d.Short(), ids(holders))
				return
			}
			spoil(t, holders[h.rnd.IntN(len(holders))].Path(d), h.rnd.IntN(2) == 0)
			reads(t, h.up(), d, h.kept[d])
			break
		}
		h.mend()
	case 8:
		h.mend()
	case 9:
		h.c.Repair(1)
	default:
		h.check()
	}
}

// mend brings all nodes back and repairs until nothing is to do.
func (h *history) mend() {
	for _, n := range h.c.Nodes() {
		n.Start()
	}
	for _, n := range h.c.Nodes() {
		if _, err := n.Replicas.Scrub(h.t.Context(), 0); err != nil {
			h.t.Error(err)
		}
	}
	h.c.Repair(1)
	time.Sleep(2 * time.Hour)
	h.c.Repair(2)
	h.lost = 0
}

// check reads everything, through a node that has nothing cached.
func (h *history) check() {
	n := h.up()
	os.RemoveAll(n.Dir + "/cache/blobs")
	if err := os.Mkdir(n.Dir+"/cache/blobs", 0o755); err != nil {
		h.t.Fatal(err)
	}
	for _, d := range slices.SortedFunc(keys(h.kept), func(a, b lode.Digest) int { return bytes.Compare(a[:], b[:]) }) {
		reads(h.t, n, d, h.kept[d])
	}
}

func keys(m map[lode.Digest][]byte) func(func(lode.Digest) bool) {
	return func(yield func(lode.Digest) bool) {
		for d := range m {
			if !yield(d) {
				return
			}
		}
	}
}
