package replica_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"lode"
	"lode/data/replica"
	"lode/link"
	"lode/store"
	"lode/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// town is the nodes of a cluster with real links between them.
type town struct {
	*storetest.Cluster
	mu     sync.Mutex
	links  map[lode.NodeID]*link.Link
	listen map[lode.NodeID]net.Listener
	wg     sync.WaitGroup
}

func newTown(t testing.TB, nodes int) *town {
	t.Helper()
	w := &town{links: map[lode.NodeID]*link.Link{}, listen: map[lode.NodeID]net.Listener{}}
	w.Cluster = storetest.NewCluster(t, nodes, func(cfg *store.ReplicasConfig) {
		self := cfg.Self
		cfg.Remote = func(to lode.NodeID) store.Remote { return replica.Remote(w.link(self), "shards", to) }
	})
	t.Cleanup(w.close)
	var all []lode.NodeID
	for _, n := range w.Nodes() {
		w.open(t, n)
		all = append(all, n.ID)
	}
	for _, a := range w.Nodes() {
		w.link(a.ID).SetPeers(all)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, a := range all {
		for _, b := range all {
			if a != b {
				if err := w.link(a).Wait(ctx, b); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return w
}

func (w *town) link(n lode.NodeID) *link.Link {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.links[n]
}

func (w *town) open(t testing.TB, n *storetest.Node) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := link.New(link.Config{Self: n.ID, Logger: slog.New(slog.DiscardHandler),
		Handle: replica.Serve(map[string]*store.Shelf{"shards": n.Store.Shelf()}),
		Dial: func(ctx context.Context, to lode.NodeID) (net.Conn, error) {
			w.mu.Lock()
			addr := w.listen[to].Addr().String()
			w.mu.Unlock()
			nc, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
			if err != nil {
				return nil, err
			}
			_, err = nc.Write([]byte(n.ID)) // two bytes: n1 to n9
			return nc, err
		}})
	w.mu.Lock()
	w.links[n.ID], w.listen[n.ID] = l, ln
	w.mu.Unlock()
	w.wg.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			w.wg.Go(func() {
				var from [2]byte
				if _, err := io.ReadFull(nc, from[:]); err != nil {
					nc.Close()
					return
				}
				l.Serve(nc, lode.NodeID(from[:]))
			})
		}
	})
}

func (w *town) close() {
	for _, ln := range w.listen {
		ln.Close()
	}
	for _, l := range w.links {
		l.Close()
	}
	w.wg.Wait()
}

func section(b []byte) *io.SectionReader {
	return io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b)))
}

// The same suite as every other home, over real connections.
func TestConform(t *testing.T) {
	storetest.Home(t, func(t *testing.T) store.Home { return newTown(t, 3).Nodes()[0].Replicas })
	storetest.Store(t, func(t *testing.T) *store.Store { return newTown(t, 3).Nodes()[0].Store })
}

func TestRemote(t *testing.T) {
	w := newTown(t, 2)
	n := w.Nodes()[1]
	r := replica.Remote(w.link("n1"), "shards", "n2")
	ctx := t.Context()
	var all []lode.Digest
	for _, size := range []int{0, 1, link.MaxBody, link.MaxBody + 1, 3 << 20} {
		content := storetest.Bytes(size, uint64(size))
		d := storetest.Digest(content)
		all = append(all, d)
		at := time.Now().Add(-30 * time.Minute)
		info, err := r.Put(ctx, d, section(content), store.PutAs{Modified: at})
		if err != nil || info.Digest != d || info.Size != int64(size) || !info.Modified.Equal(at) {
			t.Errorf("%d bytes: Put = %+v, %v", size, info, err)
		}
		var got bytes.Buffer
		if err := r.Get(ctx, d, &got); err != nil || !bytes.Equal(got.Bytes(), content) {
			t.Errorf("%d bytes: got %d, %v", size, got.Len(), err)
		}
		if info, err := r.Stat(ctx, d); err != nil || info.Size != int64(size) || !info.Modified.Equal(at) {
			t.Errorf("%d bytes: Stat = %+v, %v", size, info, err)
		}
		// Again: no bytes, and young.
		info, err = r.Put(ctx, d, io.NewSectionReader(noBytes{size <= link.MaxBody, content}, 0, int64(size)), store.PutAs{Modified: at.Add(time.Minute)})
		if err != nil || !info.Modified.Equal(at.Add(time.Minute)) {
			t.Errorf("%d bytes again: Put = %+v, %v", size, info, err)
		}
	}
	var listed []lode.Digest
	for info, err := range r.List(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		listed = append(listed, info.Digest)
	}
	if len(listed) != len(all) {
		t.Errorf("listed %d, want %d", len(listed), len(all))
	}
	for range r.List(ctx) {
		break // ending early ends the call
	}
	qs := make([]store.Query, 3000) // more than one call
	for i := range qs {
		qs[i].Digest[0] = byte(i)
		qs[i].Digest[1] = byte(i >> 8)
	}
	qs[2999].Digest = all[0]
	held, err := r.Have(ctx, qs, true)
	if err != nil || len(held) != len(qs) || held[2999] != store.HeldReplica || slices.Contains(held[:2999], store.HeldReplica) {
		t.Errorf("Have: %d answers, the last %v, %v", len(held), held[len(held)-1], err)
	}
	if gone, err := r.Delete(ctx, all[0], time.Time{}); !gone || err != nil {
		t.Errorf("Delete = %v, %v", gone, err)
	}
	if gone, err := r.Delete(ctx, all[1], time.Now().Add(-2*time.Hour)); gone || err != nil {
		t.Errorf("Delete of a young one = %v, %v", gone, err)
	}
	_, err = r.Stat(ctx, all[0])
	storetest.Kind(t, err, lode.NotFound)
	storetest.Kind(t, r.Get(ctx, all[0], io.Discard), lode.NotFound)
	if held, err := r.Have(ctx, []store.Query{{Digest: all[0], Modified: time.Now().Add(-time.Hour)}}, false); err != nil || held[0] != store.HeldDeleted {
		t.Errorf("Have of a deleted one = %v, %v", held, err)
	}
	_, err = r.Put(ctx, all[0], section(nil), store.PutAs{Modified: time.Now().Add(-time.Hour), Repair: true})
	storetest.Kind(t, err, lode.Gone)
	os.Chmod(n.Path(all[4]), 0o644)
	if err := os.WriteFile(n.Path(all[4]), []byte("decayed"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := r.Bad(ctx, all[4]); err != nil {
		t.Fatal(err)
	}
	if n.Holds(all[4]) {
		t.Error("the bad copy is still there")
	}
}

// noBytes is a source that must not be read, but for a short one.
type noBytes struct {
	short   bool
	content []byte
}

func (n noBytes) ReadAt(p []byte, off int64) (int, error) {
	if !n.short {
		return 0, errors.New("it was read")
	}
	return bytes.NewReader(n.content).ReadAt(p, off)
}

// What does not match its name is refused, short or long, and leaves nothing.
func TestWrongContent(t *testing.T) {
	w := newTown(t, 2)
	r := replica.Remote(w.link("n1"), "shards", "n2")
	for _, size := range []int{10, 1 << 20} {
		d := storetest.Digest([]byte("something else"))
		_, err := r.Put(t.Context(), d, section(storetest.Bytes(size, 1)), store.PutAs{Modified: time.Now()})
		storetest.Kind(t, err, lode.Damaged)
		_, err = r.Stat(t.Context(), d)
		storetest.Kind(t, err, lode.NotFound)
	}
	_, err := replica.Remote(w.link("n1"), "nowhere", "n2").Stat(t.Context(), lode.Digest{1})
	storetest.Kind(t, err, lode.NotFound)
	_, err = replica.Remote(w.link("n1"), "shards", "n9").Stat(t.Context(), lode.Digest{1})
	storetest.Kind(t, err, lode.Unavailable)
}

// A node whose connections die in the middle of a put and of a get: the put is
// made elsewhere, the get ends well from another.
func TestLostInTheMiddle(t *testing.T) {
	w := newTown(t, 4)
	for i := range 3 {
		content := storetest.Bytes(8<<20, uint64(i))
		d := storetest.Digest(content)
		order := lode.Rendezvous(d[:], []lode.NodeID{"n1", "n2", "n3", "n4"})
		from := w.Node(order[3])
		cut := time.AfterFunc(time.Duration(i)*3*time.Millisecond, func() { w.link(order[0]).SetPeers(nil) })
		if err := from.Replicas.Put(t.Context(), d, section(content)); err != nil {
			t.Errorf("put: %v", err)
		}
		got, err := w.Node(order[2]).Store.ReadAll(t.Context(), d, 1<<30)
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("read %d bytes, %v", len(got), err)
		}
		cut.Stop()
		if n := len(w.Holders(d)); n < 2 {
			t.Errorf("acknowledged with %d copies", n)
		}
		w.link(order[0]).SetPeers([]lode.NodeID{"n1", "n2", "n3", "n4"})
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		for _, n := range order[1:] {
			if err := w.link(n).Wait(ctx, order[0]); err != nil {
				t.Error(err)
			}
		}
		cancel()
	}
}
