package bus

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"lode"
	"lode/bus/bustest"
)

// world is a cluster in one process: nodes on loopback, with mutual TLS from a
// CA of its own, and a switch to cut each of them off.
type world struct {
	t   testing.TB
	dir string
	ca  *bustest.Authority
	log *slog.Logger

	reserve int64 // of the nodes' disks
	trap    func(n lode.NodeID) func(step string)

	mu    sync.Mutex
	nodes map[lode.NodeID]*Bus
	addrs map[lode.NodeID]string
	known []lode.NodeID
	cut   map[lode.NodeID]bool
	conns map[lode.NodeID][]net.Conn
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, dir: t.TempDir(), ca: bustest.NewAuthority(t), nodes: make(map[lode.NodeID]*Bus),
		log: slog.New(slog.DiscardHandler), addrs: make(map[lode.NodeID]string), cut: make(map[lode.NodeID]bool),
		conns: make(map[lode.NodeID][]net.Conn)}
	if testing.Verbose() {
		w.log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return w
}

// member is how a node is named in a layout; its port stays the same.
func (w *world) member(n lode.NodeID) Member {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.addrs[n] == "" {
		w.addrs[n] = bustest.Address(22000)
	}
	return Member{Node: n, Route: w.addrs[n]}
}

func (w *world) members(names ...lode.NodeID) (out []Member) {
	for _, n := range names {
		out = append(out, w.member(n))
	}
	return out
}

var errCut = lode.Errorf(lode.Unavailable, "cut off")

func (w *world) reach(from, to lode.NodeID) (*Bus, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	b := w.nodes[to]
	if b == nil || w.cut[from] || w.cut[to] {
		return nil, errCut
	}
	return b, nil
}

func (w *world) config(n lode.NodeID, join *Layout) Config {
	m := w.member(n)
	var reached func(string)
	if w.trap != nil {
		reached = w.trap(n)
	}
	return Config{reached: reached, Reserve: w.reserve, Dir: filepath.Join(w.dir, string(n)), Node: n, Logger: w.log.With("node", n), Cluster: &ClusterConfig{
		Listen: m.Route,
		Server: func() *tls.Config { return w.ca.TLS(n) },
		Client: func() *tls.Config {
			cfg := w.ca.TLS(n)
			cfg.VerifyConnection = func(cs tls.ConnectionState) error {
				w.mu.Lock()
				defer w.mu.Unlock()
				if w.cut[n] || w.cut[lode.NodeID(cs.PeerCertificates[0].Subject.CommonName)] {
					return errCut
				}
				return nil
			}
			return cfg
		},
		Dial: func(ctx context.Context, to lode.NodeID) (net.Conn, error) {
			b, err := w.reach(n, to)
			if err != nil {
				return nil, err
			}
			near, far, err := bustest.Pipe()
			if err != nil {
				return nil, err
			}
			w.mu.Lock()
			w.conns[n] = append(w.conns[n], near)
			w.conns[to] = append(w.conns[to], far)
			w.mu.Unlock()
			go b.ServeClient(far)
			return near, nil
		},
		Ask: func(ctx context.Context, to lode.NodeID, msg []byte) ([]byte, error) {
			b, err := w.reach(n, to)
			if err != nil {
				return nil, err
			}
			return b.Handle(ctx, n, msg)
		},
		Known: func() []lode.NodeID {
			w.mu.Lock()
			defer w.mu.Unlock()
			return slices.Clone(w.known)
		},
		Join: join,
	}}
}

// up starts a node; join is nil for the first one.
func (w *world) up(n lode.NodeID, join *Layout) *Bus {
	w.t.Helper()
	b, err := Open(context.Background(), w.config(n, join))
	if err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	w.nodes[n] = b
	if !slices.Contains(w.known, n) {
		w.known = append(w.known, n)
	}
	w.mu.Unlock()
	w.t.Cleanup(func() { b.Close() })
	return b
}

// down stops a node.
func (w *world) down(n lode.NodeID) {
	w.mu.Lock()
	b := w.nodes[n]
	delete(w.nodes, n)
	w.mu.Unlock()
	b.Close()
}

// pair is a node and a second one that uses its bus.
func pair(t testing.TB) (w *world, a, c *Bus) {
	w = newWorld(t)
	a = w.up("a", nil)
	l := a.Layout()
	return w, a, w.up("c", &l)
}

// TestClient has a node that uses the bus of another.
func TestClient(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	w, a, c := pair(t)
	there := must(a.Table(ctx, "things"))(t)
	here := must(c.Table(ctx, "things"))(t)
	watch := must(here.Watch(ctx, ""))(t)
	defer watch.Close()
	rev := must(there.Create(ctx, "k", []byte("1")))(t)
	if ch := must(watch.Next(ctx))(t); ch.Op != Synced {
		t.Fatalf("%+v", ch)
	}
	if ch := must(watch.Next(ctx))(t); ch.Rev != rev || string(ch.Value) != "1" {
		t.Fatalf("%+v", ch)
	}
	must(here.Update(ctx, "k", []byte("2"), rev))(t)
	_, err := there.Update(ctx, "k", []byte("3"), rev)
	wantKind(t, err, lode.Precondition)
	q := openQueues(t, c, QueuesConfig{})
	must(q.Put(ctx, Item{Queue: "q", ID: "1", Body: []byte("x")}))(t)
	if ds := pull(t, q, "q", 1); len(ds) != 1 || ds[0].Ack(ctx) != nil {
		t.Fatal("the item did not come")
	}
	// The first node goes away and comes back: everything goes on.
	if ch := must(watch.Next(ctx))(t); string(ch.Value) != "2" {
		t.Fatalf("%+v", ch)
	}
	w.down("a")
	began := time.Now()
	_, err = here.Put(ctx, "k", []byte("nobody is there"))
	wantKind(t, err, lode.Unavailable)
	if d := time.Since(began); d > 6*time.Second {
		t.Fatalf("it took %s to say so", d)
	}
	w.up("a", nil)
	for i := range 10 {
		must(here.Put(ctx, "k", fmt.Append(nil, "later ", i)))(t)
	}
	for last := uint64(0); ; {
		ch := must(watch.Next(ctx))(t)
		if ch.Op != Set || ch.Rev <= last {
			t.Fatalf("%+v after %d", ch, last)
		}
		if last = ch.Rev; string(ch.Value) == "later 9" {
			break
		}
	}
	must(q.Put(ctx, Item{Queue: "q", ID: "2", Body: []byte("y")}))(t)
}

// isolate cuts a node off from all others, or lets it come back.
func (w *world) isolate(n lode.NodeID, off bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut[n] = off
	if !off {
		return
	}
	for _, c := range w.conns[n] {
		c.Close()
	}
	for _, b := range w.nodes {
		if i := b.instance(b.Layout().Generation); i != nil && i.routes != nil {
			var keep []lode.NodeID
			for _, other := range w.known {
				if other != n && b.cfg.Node != n {
					keep = append(keep, other)
				}
			}
			i.routes.peers.only(keep)
			i.routes.peers.only(nil)
		}
	}
}

// everywhere runs a test on a node alone, on a client of another node, and on
// a member of three.
func everywhere(t *testing.T, test func(t *testing.T, b *Bus)) {
	t.Parallel()
	t.Run("one", func(t *testing.T) { test(t, open(t, t.TempDir())) })
	t.Run("client", func(t *testing.T) {
		t.Parallel()
		_, _, c := pair(t)
		test(t, c)
	})
	t.Run("three", func(t *testing.T) {
		t.Parallel()
		_, _, b, _ := three(t)
		test(t, b)
	})
}
