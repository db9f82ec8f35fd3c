package bus

import (
	"fmt"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"lode"
)

// outside starts servers of the user's own: n of them, as one cluster.
func outside(t testing.TB, n int) (urls string, srvs []*server.Server, restart func(i int)) {
	ports := make([]int, n)
	var routes []*url.URL
	for i := range ports {
		ln := must(net.Listen("tcp", "127.0.0.1:0"))(t)
		ports[i] = ln.Addr().(*net.TCPAddr).Port
		ln.Close()
		routes = append(routes, &url.URL{Scheme: "nats-route", Host: fmt.Sprintf("127.0.0.1:%d", ports[i])})
	}
	clients := make([]int, n)
	srvs = make([]*server.Server, n)
	dirs := make([]string, n)
	start := func(i int) {
		o := &server.Options{ServerName: fmt.Sprint("s", i), Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: dirs[i], NoSigs: true, NoLog: true,
			MaxPayload: maxPayload}
		if clients[i] != 0 {
			o.Port = clients[i]
		}
		if n > 1 {
			o.Cluster = server.ClusterOpts{Name: "own", Host: "127.0.0.1", Port: ports[i]}
			o.Routes = routes
		}
		srv := must(server.NewServer(o))(t)
		srv.Start()
		if !srv.ReadyForConnections(10 * time.Second) {
			t.Fatal("the server does not start")
		}
		clients[i] = srv.Addr().(*net.TCPAddr).Port
		srvs[i] = srv
		t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	}
	for i := range n {
		dirs[i] = t.TempDir()
		start(i)
		if i > 0 {
			urls += ","
		}
		urls += fmt.Sprintf("nats://127.0.0.1:%d", clients[i])
	}
	return urls, srvs, start
}

// TestRemote uses a cluster outside, which goes away and comes back.
func TestRemote(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	urls, srvs, restart := outside(t, 3)
	b := must(Open(ctx, Config{Dir: t.TempDir(), Node: "n", Remote: &Remote{URL: urls}}))(t)
	t.Cleanup(func() { b.Close() })
	eventually(t, "three copies", func() bool { h := b.Health(); return h.Quorum && h.Copies == 3 && h.Survives == 1 })
	tab := must(b.Table(ctx, "t"))(t)
	watch := must(tab.Watch(ctx, ""))(t)
	defer watch.Close()
	q := openQueues(t, b, QueuesConfig{})
	must(q.Put(ctx, Item{Queue: "q", ID: "1", Body: []byte("x")}))(t)
	rev := must(tab.Put(ctx, "k", []byte("1")))(t)
	// Another cluster of Lode must not mix with this one.
	_, err := Open(ctx, Config{Dir: t.TempDir(), Node: "other", Remote: &Remote{URL: urls}})
	wantKind(t, err, lode.Conflict)
	// A node that joined this one's does.
	told := b.Layout()
	joined := must(Open(ctx, Config{Dir: t.TempDir(), Node: "joined", Remote: &Remote{URL: urls, Join: &told}}))(t)
	if e, _, err := must(joined.Table(ctx, "t"))(t).Get(ctx, "k"); err != nil || string(e.Value) != "1" {
		t.Fatal(string(e.Value), err)
	}
	joined.Close()
	// All nodes of a cluster have their bus outside, or none.
	inside := Layout{Cluster: told.Cluster, Generation: 1, Members: []Member{{Node: "x"}}}
	_, err = Open(ctx, Config{Dir: t.TempDir(), Node: "mixed", Remote: &Remote{URL: urls, Join: &inside}})
	wantKind(t, err, lode.Precondition)
	for i := range srvs {
		srvs[i].Shutdown()
		srvs[i].WaitForShutdown()
	}
	began := time.Now()
	_, err = tab.Put(ctx, "k", []byte("2"))
	wantKind(t, err, lode.Unavailable)
	if took := time.Since(began); took > 6*time.Second {
		t.Fatalf("it took %s to say so", took)
	}
	if h := b.Health(); h.Quorum || h.Detail == "" {
		t.Fatalf("%+v", h)
	}
	for i := range srvs {
		restart(i)
	}
	eventually(t, "a write comes through", func() bool { _, err := tab.Update(ctx, "k", []byte("3"), rev); return err == nil })
	for c := must(watch.Next(ctx))(t); string(c.Value) != "3"; {
		c = must(watch.Next(ctx))(t)
	}
	if ds := must(q.Pull(ctx, "q", 1, time.Second))(t); len(ds) != 1 || ds[0].Ack(ctx) != nil {
		t.Fatal("the item is lost")
	}
}

// TestRemoteAlone: a single server gives one copy.
func TestRemoteAlone(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	urls, _, _ := outside(t, 1)
	dir := t.TempDir()
	b := must(Open(ctx, Config{Dir: dir, Remote: &Remote{URL: urls}}))(t)
	must(must(b.Table(ctx, "t"))(t).Put(ctx, "k", nil))(t)
	if h := b.Health(); h.Copies != 1 || h.Survives != 0 || !h.Quorum {
		t.Fatalf("%+v", h)
	}
	b.Close()
	b = must(Open(ctx, Config{Dir: dir, Remote: &Remote{URL: urls}}))(t)
	defer b.Close()
	if _, ok, err := must(b.Table(ctx, "t"))(t).Get(ctx, "k"); !ok || err != nil {
		t.Fatal(ok, err)
	}
}
