package store_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"lode"
	"lode/store"
	"lode/store/storetest"
)

func gone(n *storetest.Node)   { n.Set(func(s *storetest.NodeSettings) { s.Gone = true }) }
func leaves(n *storetest.Node) { n.Set(func(s *storetest.NodeSettings) { s.Leaving = true }) }

// sum adds up what nodes reported.
func sum(reports []store.Report) (r store.Report) {
	for _, x := range reports {
		r.Blobs, r.Copied, r.Sent, r.Dropped, r.Freed = r.Blobs+x.Blobs, r.Copied+x.Copied, r.Sent+x.Sent, r.Dropped+x.Dropped, r.Freed+x.Freed
		r.Deleted, r.Surplus, r.Short, r.Waiting, r.Needed = r.Deleted+x.Deleted, r.Surplus+x.Surplus, r.Short+x.Short, r.Waiting+x.Waiting, r.Needed+x.Needed
		if r.Trouble == "" {
			r.Trouble = x.Trouble
		}
	}
	return r
}

// blobs puts some through all nodes in turn.
func blobs(t *testing.T, c *storetest.Cluster, n int) map[lode.Digest][]byte {
	t.Helper()
	out := map[lode.Digest][]byte{}
	for i := range n {
		d, content := put(t, c.Nodes()[i%len(c.Nodes())], 2000+i, uint64(i))
		out[d] = content
	}
	return out
}

// A lost node's copies are made again once it is gone; when it comes back,
// what is more than wanted goes, after the grace.
func TestNodeLostAndBack(t *testing.T) {
	t.Parallel()
	for _, nodes := range []int{3, 5, 9} {
		t.Run(fmt.Sprint(nodes), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := storetest.NewCluster(t, nodes, nil)
				all := blobs(t, c, 20)
				lost := c.Nodes()[1]
				held := 0
				for d := range all {
					if lost.Holds(d) {
						held++
					}
				}
				lost.Kill()
				if r := sum(c.Repair(1)); r.Copied != 0 || r.Short != held || r.Waiting != held {
					t.Errorf("while the node is waited for: %+v; it holds %d", r, held)
				}
				gone(lost)
				if r := sum(c.Repair(1)); r.Copied > held || r.Short != 0 || r.Trouble != "" {
					t.Errorf("once it is gone: %+v; it held %d", r, held)
				}
				for d := range all {
					if alive := slices.DeleteFunc(c.Holders(d), (*storetest.Node).Down); len(alive) != 2 {
						t.Errorf("blob %s is on %v", d.Short(), ids(alive))
					}
				}
				if r := sum(c.Repair(1)); r.Copied != 0 || r.Short != 0 {
					t.Errorf("again: %+v", r)
				}
				lost.Start()
				if r := sum(c.Repair(1)); r.Copied != 0 || r.Dropped != 0 || r.Surplus != held {
					t.Errorf("when it is back: %+v; it holds %d", r, held)
				}
				time.Sleep(61 * time.Minute)
				if r := sum(c.Repair(1)); r.Dropped != held || r.Surplus != 0 {
					t.Errorf("after the grace: %+v; it holds %d", r, held)
				}
				for d, content := range all {
					belongs(t, c, d, 2)
					reads(t, c.Nodes()[0], d, content)
				}
			})
		})
	}
}

// A node that lost its disk gets back what belongs there.
func TestDiskLost(t *testing.T) {
	t.Parallel()
	c := storetest.NewCluster(t, 3, nil)
	all := blobs(t, c, 20)
	n := c.Nodes()[2]
	n.Kill()
	n.Wipe()
	n.Start()
	c.Repair(1)
	for d, content := range all {
		belongs(t, c, d, 2)
		reads(t, n, d, content)
	}
}

// A blob deleted while a node was away does not come back with the node.
func TestNoResurrection(t *testing.T) {
	t.Parallel()
	for name, delete := range map[string]func(t *testing.T, s *store.Store, d lode.Digest){
		"deleted": func(t *testing.T, s *store.Store, d lode.Digest) {
			if err := s.Delete(t.Context(), d); err != nil {
				t.Error(err)
			}
		},
		"collected": func(t *testing.T, s *store.Store, d lode.Digest) {
			if done, err := s.Collect(t.Context(), d, time.Now()); !done || err != nil {
				t.Errorf("Collect = %v, %v", done, err)
			}
		},
	} {
		for _, copies := range []int{1, 2} {
			t.Run(fmt.Sprint(name, copies), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c := storetest.NewCluster(t, 3, func(cfg *store.ReplicasConfig) { cfg.Copies = copies })
					content := storetest.Bytes(1000, 1)
					d := storetest.Digest(content)
					o := order(c, d)
					if err := o[0].Replicas.Put(t.Context(), d, section(content)); err != nil {
						t.Fatal(err)
					}
					o[0].Kill()
					time.Sleep(time.Second)
					if copies == 1 { // nobody else has it: only the deletion is known
						if err := o[1].Store.Delete(t.Context(), d); err != nil {
							t.Fatal(err)
						}
					} else {
						delete(t, o[1].Store, d)
					}
					o[1].Kill() // the deletion survives a restart
					o[1].Start()
					o[0].Start()
					if r := sum(c.Repair(1)); r.Deleted != 1 || r.Copied != 0 {
						t.Errorf("%+v", r)
					}
					if got := c.Holders(d); got != nil {
						t.Errorf("it is back on %v", ids(got))
					}
					time.Sleep(time.Second)
					if err := o[2].Replicas.Put(t.Context(), d, section(content)); err != nil { // a put ends the deletion
						t.Fatal(err)
					}
					c.Repair(2)
					belongs(t, c, d, copies)
				})
			})
		}
	}
}

// A put made after a deletion by a node whose clock is ahead is kept, wherever
// the deletion is known.
func TestPutAfterADeletionOfTheFuture(t *testing.T) {
	t.Parallel()
	c := storetest.NewCluster(t, 3, nil)
	content := storetest.Bytes(1000, 1)
	d := storetest.Digest(content)
	o := order(c, d)
	for _, n := range o[1:] {
		if _, err := n.Replicas.Shelf().Delete(t.Context(), d, time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	if err := o[0].Replicas.Put(t.Context(), d, section(content)); err != nil {
		t.Fatal(err)
	}
	c.Repair(2)
	belongs(t, c, d, 2)
	var at []time.Time
	for _, n := range o[:2] {
		info, err := n.Replicas.Shelf().Stat(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		at = append(at, info.Modified)
	}
	if !at[0].Equal(at[1]) {
		t.Errorf("the copies are from %v and %v", at[0], at[1])
	}
}

// A deleted blob that is open here goes when it is closed.
func TestDeletedWhileOpen(t *testing.T) {
	t.Parallel()
	c := storetest.NewCluster(t, 3, nil)
	content := storetest.Bytes(1000, 1)
	d := storetest.Digest(content)
	o := order(c, d)
	if err := o[0].Replicas.Put(t.Context(), d, section(content)); err != nil {
		t.Fatal(err)
	}
	b, err := o[0].Store.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	storetest.Kind(t, o[1].Store.Delete(t.Context(), d), lode.Conflict)
	if _, err := os.Stat(b.Path()); err != nil {
		t.Errorf("an open blob went away: %v", err)
	}
	c.Repair(1)
	if _, err := os.Stat(b.Path()); err != nil {
		t.Errorf("repair took an open blob: %v", err)
	}
	b.Close()
	if got := c.Holders(d); got != nil {
		t.Errorf("closed, it is still on %v", ids(got))
	}
}

// Both halves of a cut cluster go on, and agree when it is whole again.
func TestCutInHalf(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 5, nil)
		all := blobs(t, c, 20)
		c.Cut(true, "n1", "n2")
		for i := range 20 {
			d, content := put(t, c.Nodes()[i%5], 3000+i, uint64(100+i))
			all[d] = content
		}
		same, content := put(t, c.Nodes()[0], 500, 1000)
		if again, _ := put(t, c.Nodes()[4], 500, 1000); again != same {
			t.Fatal("not the same blob")
		}
		all[same] = content
		r := sum(c.Repair(1))
		if r.Dropped != 0 || r.Deleted != 0 {
			t.Errorf("in the cut something went: %+v", r)
		}
		c.Cut(false, "n1", "n2")
		c.Repair(1)
		time.Sleep(61 * time.Minute)
		c.Repair(2)
		for d, content := range all {
			belongs(t, c, d, 2)
			for _, n := range c.Nodes() {
				reads(t, n, d, content)
			}
		}
	})
}

// A node that leaves gives all away and says when it can go.
func TestLeaving(t *testing.T) {
	t.Parallel()
	c := storetest.NewCluster(t, 3, nil)
	all := blobs(t, c, 20)
	n := c.Nodes()[0]
	leaves(n)
	r, err := n.Replicas.Repair(t.Context(), nil)
	if err != nil || r.Needed != 0 || r.Copied == 0 || r.Short != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	d, content := put(t, n, 1000, 999)
	all[d] = content
	if n.Holds(d) {
		t.Error("a leaving node took a new blob")
	}
	n.Kill()
	n.Wipe()
	for d, content := range all {
		reads(t, c.Nodes()[1], d, content)
		reads(t, c.Nodes()[2], d, content)
	}
	// The last that could take anything is away: needed.
	leaves(c.Nodes()[1])
	c.Nodes()[2].Kill()
	if r, err := c.Nodes()[1].Replicas.Repair(t.Context(), nil); err != nil || r.Needed != len(all) {
		t.Errorf("%+v, %v; want all %d needed", r, err, len(all))
	}
}

// Two nodes with other views of the cluster each take the blob for more than
// wanted here, and the other for where it belongs: one of them stays.
func TestTwoDropAtOnce(t *testing.T) {
	t.Parallel()
	for range 3 {
		var c *storetest.Cluster
		var lie sync.Map // node: what it leaves out
		c = storetest.NewCluster(t, 2, func(cfg *store.ReplicasConfig) {
			cfg.Copies, cfg.DropAfter = 1, time.Nanosecond
			nodes := cfg.Nodes
			cfg.Nodes = func() (out []store.NodeState) {
				for _, n := range nodes() {
					_, lies := lie.Load(cfg.Self)
					n.Leaving = lies && n.Node == cfg.Self // each thinks that the other keeps it
					out = append(out, n)
				}
				return out
			}
		})
		content := storetest.Bytes(100, 1)
		d := storetest.Digest(content)
		if err := c.Nodes()[0].Replicas.Put(store.WithCopies(t.Context(), 2), d, section(content)); err != nil {
			t.Fatal(err)
		}
		both := make(chan bool) // each has its answer before the other goes on
		c.Meddle(func(_ context.Context, _, _ lode.NodeID, method string) error {
			if method == "have answered" {
				select {
				case both <- true:
				case <-both:
				case <-time.After(100 * time.Millisecond):
				}
			}
			return nil
		})
		lie.Store(lode.NodeID("n1"), true)
		lie.Store(lode.NodeID("n2"), true)
		for range 3 {
			var wg sync.WaitGroup
			for _, n := range c.Nodes() {
				wg.Go(func() {
					if _, err := n.Replicas.Repair(t.Context(), nil); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
		}
		if len(c.Holders(d)) == 0 {
			t.Fatal("both dropped it")
		}
	}
}

// The number of copies can change with time, both ways.
func TestWanted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 5, nil)
		d, _ := put(t, c.Nodes()[0], 1000, 1)
		for _, want := range []int{4, 1, 3, 99} {
			for range 2 {
				for _, n := range c.Nodes() {
					if _, err := n.Replicas.Repair(t.Context(), func(lode.Digest) int { return want }); err != nil {
						t.Error(err)
					}
				}
				time.Sleep(61 * time.Minute)
			}
			belongs(t, c, d, min(want, 5))
		}
	})
}

// A spoilt copy where the blob belongs does not count when another is dropped.
func TestSpoiltCopyKeepsTheSurplus(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3, nil)
		content := storetest.Bytes(5000, 1)
		d := storetest.Digest(content)
		o := order(c, d)
		if err := o[0].Replicas.Put(store.WithCopies(t.Context(), 3), d, section(content)); err != nil {
			t.Fatal(err)
		}
		c.Repair(1)
		time.Sleep(2 * time.Hour)
		spoil(t, o[0].Path(d), false)
		r, err := o[2].Replicas.Repair(t.Context(), nil)
		if err != nil || r.Dropped != 0 {
			t.Errorf("%+v, %v", r, err)
		}
		synctest.Wait()
		if b, err := os.ReadFile(o[0].Path(d)); err != nil || !bytes.Equal(b, content) {
			t.Errorf("the spoilt copy was not made again: %v", err)
		}
		if r, err = o[2].Replicas.Repair(t.Context(), nil); err != nil || r.Dropped != 1 {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

// A directory that was a node's own becomes one of a cluster's.
func TestGrow(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	alone := open(t, store.Config{Home: openDir(t, dir)})
	var ds []lode.Digest
	for i := range 10 {
		d, err := alone.PutBytes(t.Context(), storetest.Bytes(1000+i, uint64(i)))
		if err != nil {
			t.Fatal(err)
		}
		ds = append(ds, d)
	}
	c := storetest.NewCluster(t, 3, func(cfg *store.ReplicasConfig) {
		if cfg.Self == "n1" {
			cfg.Local = openDir(t, dir)
		}
	})
	c.Nodes()[0].Dir = dir
	c.Repair(1)
	for i, d := range ds {
		reads(t, c.Nodes()[2], d, storetest.Bytes(1000+i, uint64(i)))
		if n := len(c.Holders(d)); n < 2 {
			t.Errorf("blob %d is on %d nodes", i, n)
		}
	}
}

// Repair sends no faster than it may.
func TestRepairRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 2, func(cfg *store.ReplicasConfig) { cfg.RepairRate = 1 << 20 })
		c.Nodes()[1].Kill()
		for i := range 4 {
			put(t, c.Nodes()[0], 1<<20, uint64(i))
		}
		c.Nodes()[1].Start()
		begin := time.Now()
		if r := sum(c.Repair(1)); r.Copied != 4 || r.Sent != 4<<20 {
			t.Errorf("%+v", r)
		}
		if took := time.Since(begin); took < 3*time.Second || took > 5*time.Second {
			t.Errorf("4 MiB at 1 MiB/s took %v", took)
		}
	})
}

func TestScrubRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 1, nil)
		put(t, c.Nodes()[0], 4<<20, 1)
		begin := time.Now()
		did, err := c.Nodes()[0].Replicas.Scrub(t.Context(), 1<<20)
		if err != nil || did.Blobs != 1 || did.Bytes != 4<<20 || did.Bad != 0 {
			t.Errorf("%+v, %v", did, err)
		}
		if took := time.Since(begin); took < 3*time.Second || took > 5*time.Second {
			t.Errorf("4 MiB at 1 MiB/s took %v", took)
		}
	})
}

// Put, delete, read, repair and scrub at once, on all nodes: no put that was
// not followed by a deletion is lost, and in the end all agree.
func TestAllAtOnce(t *testing.T) {
	t.Parallel()
	c := storetest.NewCluster(t, 3, func(cfg *store.ReplicasConfig) { cfg.DropAfter = time.Nanosecond })
	stay := blobs(t, c, 6)
	ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	for i, n := range c.Nodes() {
		wg.Go(func() { // repair
			for ctx.Err() == nil {
				n.Replicas.Repair(ctx, nil)
				n.Replicas.Scrub(ctx, 0)
			}
		})
		wg.Go(func() { // come and go
			for k := uint64(0); ctx.Err() == nil; k++ {
				d, err := n.Store.PutBytes(ctx, storetest.Bytes(1000, 500+k%3))
				if err == nil && k%2 == 0 {
					n.Store.Delete(ctx, d)
				}
			}
		})
		wg.Go(func() { // read what stays
			for ctx.Err() == nil {
				for d, want := range stay {
					got, err := n.Store.ReadAll(ctx, d, 1<<20)
					if ctx.Err() == nil && (err != nil || !bytes.Equal(got, want)) {
						t.Errorf("node %d: %d bytes, %v", i, len(got), err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	c.Repair(3)
	for d := range stay {
		belongs(t, c, d, 2)
	}
	for _, n := range c.Nodes() {
		for info, err := range n.Replicas.Shelf().List(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			belongs(t, c, info.Digest, 2)
		}
	}
}

// Tend repairs by itself: now and then, and soon after nodes changed.
func TestTend(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3, nil)
		all := blobs(t, c, 12)
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		repairs, scrubs := 0, 0
		var ready atomic.Bool
		var wg sync.WaitGroup
		n := c.Nodes()[0]
		for _, other := range c.Nodes()[:2] {
			wg.Go(func() {
				other.Replicas.Tend(ctx, store.Tending{ScrubEvery: time.Hour, Ready: func(context.Context) bool { return other != n || ready.Load() },
					Repaired: func(did store.Report, err error) {
						mu.Lock()
						defer mu.Unlock()
						if err != nil && ctx.Err() == nil {
							t.Error(err)
						}
						if other == n {
							repairs++
						}
					},
					Scrubbed: func(store.Scrubbed, error) {
						mu.Lock()
						defer mu.Unlock()
						scrubs++
					}})
			})
		}
		time.Sleep(10 * time.Minute)
		count := func(of *int) int {
			mu.Lock()
			defer mu.Unlock()
			return *of
		}
		if got := count(&repairs); got != 0 {
			t.Errorf("%d repairs before it was ready", got)
		}
		ready.Store(true)
		time.Sleep(time.Hour)
		if got := count(&repairs); got < 8 || got > 16 {
			t.Errorf("%d repairs in an hour", got)
		}
		c.Nodes()[2].Kill()
		gone(c.Nodes()[2])
		time.Sleep(10 * time.Second)
		for d := range all {
			if !n.Holds(d) || !c.Nodes()[1].Holds(d) {
				t.Errorf("10 s after a node was given up, blob %s is not on both others", d.Short())
			}
		}
		time.Sleep(50 * time.Minute)
		if got := count(&scrubs); got < 2 || got > 4 {
			t.Errorf("%d scrubs of two nodes in two hours", got)
		}
		cancel()
		wg.Wait()
	})
}
