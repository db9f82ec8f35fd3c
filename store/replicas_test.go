package store_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"lode"
	"lode/store"
	"lode/store/storetest"
)

func TestReplicasConform(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 3, 5} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			storetest.Home(t, func(t *testing.T) store.Home { return storetest.NewCluster(t, n, nil).Nodes()[0].Replicas })
			storetest.Store(t, func(t *testing.T) *store.Store { return storetest.NewCluster(t, n, nil).Nodes()[0].Store })
		})
	}
}

func section(b []byte) *io.SectionReader {
	return io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b)))
}

// put puts n bytes that depend on seed through a node.
func put(t *testing.T, n *storetest.Node, size int, seed uint64) (lode.Digest, []byte) {
	t.Helper()
	content := storetest.Bytes(size, seed)
	d, err := n.Store.PutBytes(t.Context(), content)
	if err != nil {
		t.Fatalf("put at %s: %v", n.ID, err)
	}
	return d, content
}

// reads fails unless the node reads the blob as it was put.
func reads(t *testing.T, n *storetest.Node, d lode.Digest, want []byte) {
	t.Helper()
	got, err := n.Store.ReadAll(t.Context(), d, 1<<30)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s reads %d bytes, want %d: %v", n.ID, len(got), len(want), err)
	}
}

func ids(nodes []*storetest.Node) (out []lode.NodeID) {
	for _, n := range nodes {
		out = append(out, n.ID)
	}
	return out
}

// order is where a blob belongs among all nodes of c.
func order(c *storetest.Cluster, d lode.Digest) (out []*storetest.Node) {
	for _, id := range lode.Rendezvous(d[:], ids(c.Nodes())) {
		out = append(out, c.Node(id))
	}
	return out
}

// belongs fails unless exactly the first nodes in order have a replica.
func belongs(t *testing.T, c *storetest.Cluster, d lode.Digest, copies int) {
	t.Helper()
	got, want := ids(c.Holders(d)), ids(order(c, d)[:copies])
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("blob %s is on %v, want %v", d.Short(), got, want)
	}
}

func TestPutWhereItBelongs(t *testing.T) {
	t.Parallel()
	c := storetest.NewCluster(t, 5, nil)
	for i := range 20 {
		n := c.Nodes()[i%5]
		d, content := put(t, n, 10_000+i, uint64(i))
		belongs(t, c, d, 2)
		for _, n := range c.Nodes() {
			reads(t, n, d, content)
		}
	}
	content := storetest.Bytes(1000, 99)
	for copies, d := range map[int]lode.Digest{3: storetest.Digest(content)} {
		ctx := store.WithCopies(t.Context(), copies)
		if _, err := c.Nodes()[0].Store.PutBytes(ctx, content); err != nil {
			t.Fatal(err)
		}
		belongs(t, c, d, copies)
	}
}

// A blob that is on every node where it belongs moves no bytes when it is put
// again, and gets young.
func TestPutAgainMovesNothing(t *testing.T) {
	t.Parallel()
	c := storetest.NewCluster(t, 3, nil)
	content := storetest.Bytes(100_000, 1)
	d := storetest.Digest(content)
	r := c.Nodes()[0].Replicas
	if err := r.Put(t.Context(), d, section(content)); err != nil {
		t.Fatal(err)
	}
	before, err := r.Stat(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	received := func() (sum int64) {
		for _, n := range c.Nodes() {
			sum += n.Received()
		}
		return sum
	}
	was := received()
	if err := c.Nodes()[1].Replicas.Put(t.Context(), d, section(content)); err != nil {
		t.Fatal(err)
	}
	after, err := r.Stat(t.Context(), d)
	if err != nil || !after.Modified.After(before.Modified) {
		t.Errorf("put again, the blob is from %v, before it was from %v (%v)", after.Modified, before.Modified, err)
	}
	if got := received(); got != was {
		t.Errorf("%d bytes moved for a blob that was there", got-was)
	}
}

func TestZones(t *testing.T) {
	t.Parallel()
	var nodes []store.NodeState
	for i := range 6 {
		nodes = append(nodes, store.NodeState{Node: lode.NodeID(fmt.Sprint("n", i)), Zone: "ab"[i%2 : i%2+1]})
	}
	for i := range 50 {
		d := storetest.Digest([]byte{byte(i)})
		order := store.Arrange(d, nodes)
		if order[0][1]%2 == order[1][1]%2 {
			t.Errorf("blob %d has both copies in one zone: %v", i, order)
		}
		if len(order) != 6 || len(slices.Compact(slices.Sorted(slices.Values(order)))) != 6 {
			t.Errorf("order %v", order)
		}
	}
}

// A node that breaks in the middle of a put is replaced by the next in order.
func TestNodeBreaksInPut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 4, nil)
		content := storetest.Bytes(300_000, 1)
		d := storetest.Digest(content)
		o := order(c, d)
		from, broken := o[3], o[1]
		c.Meddle(func(_ context.Context, _, to lode.NodeID, method string) error {
			if to == broken.ID && method == "put piece" {
				return lode.Errorf(lode.Unavailable, "connection lost")
			}
			return nil
		})
		if err := from.Replicas.Put(t.Context(), d, section(content)); err != nil {
			t.Fatal(err)
		}
		if got := ids(c.Holders(d)); len(got) != 2 || slices.Contains(got, broken.ID) {
			t.Errorf("on %v", got)
		}
	})
}

// A put of two nodes, of which one dies unseen, waits until that is seen.
func TestPutWaitsForTheView(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 2, nil)
		a, b := c.Nodes()[0], c.Nodes()[1]
		c.Meddle(func(_ context.Context, _, to lode.NodeID, _ string) error {
			return lode.Errorf(lode.Unavailable, "%s does not answer", to)
		})
		time.AfterFunc(time.Second, b.Kill)
		begin := time.Now()
		d, _ := put(t, a, 1000, 1)
		if took := time.Since(begin); took < time.Second || took > 1500*time.Millisecond {
			t.Errorf("it took %v", took)
		}
		if got := ids(c.Holders(d)); !slices.Equal(got, []lode.NodeID{a.ID}) {
			t.Errorf("on %v", got)
		}
		b.Start()
		begin = time.Now()
		_, err := a.Store.PutBytes(t.Context(), []byte("refused"))
		storetest.Kind(t, err, lode.Unavailable)
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("the refusal took %v", took)
		}
	})
}

func TestFullNodes(t *testing.T) {
	t.Parallel()
	c := storetest.NewCluster(t, 4, nil)
	content := storetest.Bytes(1000, 1)
	d := storetest.Digest(content)
	o := order(c, d)
	full := func(n *storetest.Node) { n.Set(func(s *storetest.NodeSettings) { s.Full = true }) }
	full(o[0])
	if err := o[3].Replicas.Put(t.Context(), d, section(content)); err != nil {
		t.Fatal(err)
	}
	if got := c.Holders(d); len(got) != 2 || slices.Contains(got, o[0]) {
		t.Errorf("on %v", ids(got))
	}
	// Repair leaves it where there is room, and ends that when there is.
	c.Repair(2)
	if got := c.Holders(d); len(got) != 2 || slices.Contains(got, o[0]) {
		t.Errorf("after repair on %v", ids(got))
	}
	o[0].Set(func(s *storetest.NodeSettings) { s.Full = false })
	c.Repair(1)
	if !o[0].Holds(d) {
		t.Error("with room again, the blob did not come to where it belongs")
	}
	// Two of four have room: refused, for three copies are wanted.
	full(o[1])
	full(o[2])
	_, err := o[3].Store.PutBytes(store.WithCopies(t.Context(), 3), []byte("three times"))
	storetest.Kind(t, err, lode.Unavailable)
}

// A blob in nobody's reach is not missing: it can be read when they are back.
func TestUnreachableIsNotMissing(t *testing.T) {
	t.Parallel()
	c := storetest.NewCluster(t, 4, nil)
	content := storetest.Bytes(1000, 1)
	d := storetest.Digest(content)
	o := order(c, d)
	if err := o[0].Replicas.Put(t.Context(), d, section(content)); err != nil {
		t.Fatal(err)
	}
	o[0].Kill()
	reads(t, o[3], d, content)
	o[3].Kill() // with the copy in its cache
	o[1].Kill()
	_, err := o[2].Store.Open(t.Context(), d)
	storetest.Kind(t, err, lode.Unavailable)
	if !strings.Contains(err.Error(), string(o[0].ID)) || !strings.Contains(err.Error(), string(o[1].ID)) {
		t.Errorf("the error does not name the nodes: %v", err)
	}
	o[0].Start()
	reads(t, o[2], d, content)
}

func TestHedge(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3, nil)
		content := storetest.Bytes(300_000, 1)
		d := storetest.Digest(content)
		o := order(c, d)
		if err := o[0].Replicas.Put(t.Context(), d, section(content)); err != nil {
			t.Fatal(err)
		}
		o[0].Set(func(s *storetest.NodeSettings) { s.Slow = time.Minute })
		begin := time.Now()
		reads(t, o[2], d, content)
		if took := time.Since(begin); took > time.Second {
			t.Errorf("it took %v", took)
		}
		if st := o[2].Store.Stats(); st.FromPeers < int64(len(content)) || st.Fetched != st.FromPeers {
			t.Errorf("stats %+v", st)
		}
	})
}

// Both copies' nodes hang: the read ends with an error, in time.
func TestEverySourceHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3, nil)
		content := storetest.Bytes(300_000, 1)
		d := storetest.Digest(content)
		o := order(c, d)
		if err := o[0].Replicas.Put(t.Context(), d, section(content)); err != nil {
			t.Fatal(err)
		}
		for _, n := range o[:2] {
			n.Set(func(s *storetest.NodeSettings) { s.Slow = time.Hour })
		}
		begin := time.Now()
		_, err := o[2].Store.Open(t.Context(), d)
		storetest.Kind(t, err, lode.Unavailable)
		if took := time.Since(begin); took > 15*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// Each kind of spoilt replica is found whoever meets it, never handed out, and
// made again.
func TestSpoiltReplica(t *testing.T) {
	t.Parallel()
	for name, meet := range map[string]func(t *testing.T, o []*storetest.Node, d lode.Digest, content []byte){
		"read by another node": func(t *testing.T, o []*storetest.Node, d lode.Digest, content []byte) {
			reads(t, o[2], d, content)
		},
		"read here": func(t *testing.T, o []*storetest.Node, d lode.Digest, content []byte) {
			reads(t, o[0], d, content)
		},
		"read at home": func(t *testing.T, o []*storetest.Node, d lode.Digest, content []byte) {
			r, err := o[0].Replicas.Get(t.Context(), d)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		},
		"scrubbed": func(t *testing.T, o []*storetest.Node, d lode.Digest, _ []byte) {
			did, err := o[0].Replicas.Scrub(t.Context(), 0)
			if err != nil || did.Blobs != 1 || did.Bad != 1 || did.Repaired != 1 || did.Trouble != "" {
				t.Errorf("Scrub = %+v, %v", did, err)
			}
		},
		"put again": func(t *testing.T, o []*storetest.Node, d lode.Digest, content []byte) {
			if err := o[2].Replicas.Put(t.Context(), d, section(content)); err != nil {
				t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, cut := range []bool{false, true} {
				c := storetest.NewCluster(t, 3, nil)
				content := storetest.Bytes(200_000, 1)
				d := storetest.Digest(content)
				o := order(c, d)
				if err := o[1].Replicas.Put(t.Context(), d, section(content)); err != nil {
					t.Fatal(err)
				}
				spoil(t, o[0].Path(d), cut)
				meet(t, o, d, content)
				if !eventually(func() bool { b, err := os.ReadFile(o[0].Path(d)); return err == nil && bytes.Equal(b, content) }) {
					t.Error("the bad replica was not made again")
				}
				if got := o[0].Store.Stats().Quarantined; got != 1 {
					t.Errorf("%d in quarantine, want 1", got)
				}
			}
		})
	}
}

// eventually polls for what a goroutine of a node does.
func eventually(done func() bool) bool {
	for range 500 {
		if done() {
			return true
		}
		time.Sleep(10 * time.Millisecond)
	}
	return false
}

// With no good copy left the damage is said, every time, and a put repairs it.
func TestLastCopySpoilt(t *testing.T) {
	t.Parallel()
	for _, nodes := range []int{1, 3} {
		c := storetest.NewCluster(t, nodes, func(cfg *store.ReplicasConfig) { cfg.Copies = 1 })
		content := storetest.Bytes(1000, 1)
		d := storetest.Digest(content)
		n := order(c, d)[0]
		if err := n.Replicas.Put(t.Context(), d, section(content)); err != nil {
			t.Fatal(err)
		}
		spoil(t, n.Path(d), false)
		for range 2 {
			_, err := n.Store.Open(t.Context(), d)
			storetest.Kind(t, err, lode.Damaged)
		}
		if _, err := n.Store.PutBytes(t.Context(), content); err != nil {
			t.Fatal(err)
		}
		reads(t, n, d, content)
	}
}

func TestListNamesTheSilent(t *testing.T) {
	t.Parallel()
	c := storetest.NewCluster(t, 3, nil)
	var want []lode.Digest
	for i := range 10 {
		d, _ := put(t, c.Nodes()[0], 100+i, uint64(i))
		want = append(want, d)
	}
	c.Meddle(func(_ context.Context, _, to lode.NodeID, method string) error {
		if to == "n2" {
			return lode.Errorf(lode.Unavailable, "no answer")
		}
		return nil
	})
	var got []lode.Digest
	var last error
	for info, err := range c.Nodes()[0].Store.List(t.Context()) {
		if last = err; err == nil {
			got = append(got, info.Digest)
		}
	}
	storetest.Kind(t, last, lode.Unavailable)
	if !strings.Contains(last.Error(), "n2") {
		t.Errorf("the error does not name the node: %v", last)
	}
	if len(got) != len(want) { // two copies on three nodes: one node's silence hides nothing
		t.Errorf("%d blobs listed, want %d", len(got), len(want))
	}
}

// Deleting while others put: what was put last stays, whichever node heard of
// what first.
func TestCollectAndPutAtOnce(t *testing.T) {
	t.Parallel()
	c := storetest.NewCluster(t, 3, nil)
	content := storetest.Bytes(5000, 1)
	d := storetest.Digest(content)
	for i := range 30 {
		var wg sync.WaitGroup
		cut := time.Now()
		wg.Go(func() {
			if _, err := c.Nodes()[i%3].Store.PutBytes(t.Context(), content); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if _, err := c.Nodes()[(i+1)%3].Store.Collect(t.Context(), d, cut); err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
		if got := len(c.Holders(d)); got < 2 {
			t.Fatalf("round %d: an acknowledged blob is on %d nodes", i, got)
		}
	}
}

// A node that is known to have no room is asked last, by puts and by repair.
func TestFree(t *testing.T) {
	t.Parallel()
	c := storetest.NewCluster(t, 4, nil)
	content := storetest.Bytes(1000, 1)
	d := storetest.Digest(content)
	o := order(c, d)
	o[0].Set(func(s *storetest.NodeSettings) { s.Free = 1001 })
	if err := o[3].Replicas.Put(t.Context(), d, section(content)); err != nil {
		t.Fatal(err)
	}
	c.Repair(2)
	if got := c.Holders(d); len(got) != 2 || slices.Contains(got, o[0]) {
		t.Errorf("on %v", ids(got))
	}
	o[0].Set(func(s *storetest.NodeSettings) { s.Free = 1 << 30 })
	c.Repair(1)
	if !o[0].Holds(d) {
		t.Error("with room, it did not come to where it belongs")
	}
}

// A node that takes a connection and then nothing: a put goes elsewhere, in
// time, and a question is answered by others at once.
func TestNodeHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 4, nil)
		content := storetest.Bytes(300_000, 1)
		d := storetest.Digest(content)
		o := order(c, d)
		c.Meddle(func(ctx context.Context, _, to lode.NodeID, _ string) error {
			if to == o[0].ID {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		})
		begin := time.Now()
		if err := o[3].Replicas.Put(t.Context(), d, section(content)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took > 11*time.Second {
			t.Errorf("the put took %v", took)
		}
		begin = time.Now()
		if _, err := o[3].Replicas.Stat(t.Context(), d); err != nil || time.Since(begin) > 0 {
			t.Errorf("a question took %v: %v", time.Since(begin), err)
		}
		begin = time.Now()
		reads(t, o[3], d, content)
		if took := time.Since(begin); took > time.Second {
			t.Errorf("a read took %v", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := o[3].Replicas.Put(store.WithCopies(ctx, 4), d, section(content))
		storetest.Kind(t, err, lode.Deadline)
	})
}

// What a mapping found to be bad is looked at again at the next opening.
func TestViewDoubts(t *testing.T) {
	t.Parallel()
	c := storetest.NewCluster(t, 2, nil)
	n := c.Nodes()[0]
	d, content := put(t, n, 1<<20, 1)
	b, err := n.Store.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	sum := 0
	storetest.Kind(t, b.View(func(p []byte) error {
		os.Chmod(b.Path(), 0o644)
		if err := os.Truncate(b.Path(), 0); err != nil {
			return err
		}
		for _, x := range p {
			sum += int(x)
		}
		return nil
	}), lode.Damaged)
	b.Close()
	reads(t, n, d, content)
}
