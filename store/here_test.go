package store_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"sync"
	"testing"

	"lode"
	"lode/store"
	"lode/store/storetest"
)

func TestWarmAndLocal(t *testing.T) {
	t.Parallel()
	c := storetest.NewCluster(t, 5, nil)
	var ds []lode.Digest
	for i := range 10 {
		d, _ := put(t, c.Nodes()[0], 1000+i, uint64(i))
		ds = append(ds, d)
	}
	n := c.Nodes()[4]
	here := n.Store.Local(ds)
	for i, d := range ds {
		if here[i] != n.Holds(d) {
			t.Errorf("blob %d: Local = %v, a replica is here: %v", i, here[i], n.Holds(d))
		}
	}
	for i, on := range c.Nodes()[1].Store.Where(t.Context(), ds) {
		var want []lode.NodeID
		for _, n := range order(c, ds[i]) {
			if n.Holds(ds[i]) || n == c.Nodes()[0] { // it put them: cached, where not at home
				want = append(want, n.ID)
			}
		}
		if !slices.Equal(on, want) {
			t.Errorf("blob %d is on %v, want %v", i, on, want)
		}
	}
	if err := n.Store.Warm(t.Context(), ds); err != nil {
		t.Fatal(err)
	}
	if here := n.Store.Local(ds); slices.Contains(here, false) {
		t.Errorf("warmed, Local = %v", here)
	}
	st := n.Store.Stats()
	if err := n.Store.Warm(t.Context(), ds); err != nil || n.Store.Stats() != st {
		t.Errorf("warmed again: %v", err)
	}
	storetest.Kind(t, n.Store.Warm(t.Context(), []lode.Digest{{1}}), lode.NotFound)
}

// A blob of this node's own is used in place: no copy in the cache.
func TestOwnInPlace(t *testing.T) {
	t.Parallel()
	c := storetest.NewCluster(t, 1, nil)
	n := c.Nodes()[0]
	d, _ := put(t, n, 1000, 1)
	b, err := n.Store.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if b.Path() != n.Path(d) || b.Fetched() != 0 || n.Store.Stats().Cached != 0 {
		t.Errorf("path %s, fetched %d, stats %+v", b.Path(), b.Fetched(), n.Store.Stats())
	}
}

// bucket is a home that is far away and counts what is asked of it.
type bucket struct {
	*store.Mem
	mu   sync.Mutex
	gets int
	down bool
}

func (b *bucket) Get(ctx context.Context, d lode.Digest) (io.ReadCloser, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gets++
	if b.down {
		return nil, errors.New("the bucket is out of reach")
	}
	return b.Mem.Get(ctx, d)
}

// Peers before the durable home.
func TestPeersBeforeTheBucket(t *testing.T) {
	t.Parallel()
	home := &bucket{Mem: new(store.Mem)}
	names := []lode.NodeID{"a", "b", "c"}
	stores := map[lode.NodeID]*store.Store{}
	for _, n := range names {
		stores[n] = open(t, store.Config{Home: home, Cache: t.TempDir(), Peers: &store.Peers{Self: n,
			Nodes: func() (out []store.NodeState) {
				for _, n := range names {
					out = append(out, store.NodeState{Node: n, Alive: true})
				}
				return out
			},
			Remote: func(n lode.NodeID) store.Remote { return stores[n].Shelf() }}})
	}
	d, err := stores["a"].PutBytes(t.Context(), storetest.Bytes(10_000, 1)) // and cached there
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []lode.NodeID{"b", "c"} {
		b, err := stores[n].Open(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		b.Close()
		if st := stores[n].Stats(); st.FromPeers != 10_000 || home.gets != 0 {
			t.Errorf("%s: %+v; the bucket was asked %d times", n, st, home.gets)
		}
	}
	// Many at once: each peer is asked once for all.
	var ds []lode.Digest
	for i := range 10 {
		d, err := stores["a"].PutBytes(t.Context(), storetest.Bytes(500, uint64(50+i)))
		if err != nil {
			t.Fatal(err)
		}
		ds = append(ds, d)
	}
	if err := stores["c"].Warm(t.Context(), ds); err != nil || home.gets != 0 || slices.Contains(stores["c"].Local(ds), false) {
		t.Errorf("warmed: %v; the bucket was asked %d times", err, home.gets)
	}
	// A spoilt copy of a peer: the bucket serves, and the peer hears of it.
	other := storetest.Bytes(10_000, 2)
	if d, err = stores["a"].PutBytes(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	path := pathOf(t, stores["a"], d)
	spoil(t, path, false)
	if got, err := stores["b"].ReadAll(t.Context(), d, 1<<20); err != nil || !bytes.Equal(got, other) || home.gets != 1 {
		t.Errorf("%d bytes, %v; the bucket was asked %d times", len(got), err, home.gets)
	}
	if !eventually(func() bool { _, err := os.Stat(path); return os.IsNotExist(err) }) {
		t.Error("the bad copy is still there")
	}
}
