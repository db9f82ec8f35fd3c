package invoke

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lode"
	"lode/bus"
	"lode/link"
)

// cluster is several nodes over one bus, linked with each other. One of them
// is the keeper.
type cluster struct {
	t     *testing.T
	w     *world
	b     *bus.Bus
	ts    *countedTables
	nodes []*clusterNode
	flaky atomic.Int32 // of a hundred calls of the keeper, how many answers are lost
}

type clusterNode struct {
	name lode.NodeID
	s    *Service
	l    *link.Link
	k    atomic.Pointer[Keeper]
}

func newCluster(t *testing.T, names ...string) *cluster {
	t.Helper()
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	b, err := bus.Open(context.Background(), bus.Config{Dir: filepath.Join(t.TempDir(), "bus"), Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	c := &cluster{t: t, w: newWorld(), b: b, ts: &countedTables{Tables: BusTables(b), ends: map[string]int{}}}
	for _, name := range names {
		n := &clusterNode{name: lode.NodeID(name)}
		c.nodes = append(c.nodes, n)
		n.l = link.New(link.Config{Self: n.name, Dial: c.dial(n.name), Logger: quiet, Handle: map[string]link.Handler{
			KeeperMethod: func(ctx context.Context, in *link.Incoming) error { return n.k.Load().HandleRemote(ctx, in) }}})
		t.Cleanup(func() { n.l.Close() })
	}
	for _, n := range c.nodes {
		var peers []lode.NodeID
		for _, p := range c.nodes {
			if p != n {
				peers = append(peers, p.name)
			}
		}
		n.l.SetPeers(peers)
		n.s, err = Open(context.Background(), Config{Catalog: c.w, Pools: c.w, Observer: c.w, Tables: c.ts, Node: string(n.name), Logger: quiet,
			Alive: func(lode.NodeID, string) bool { return true }})
		if err != nil {
			t.Fatal(err)
		}
		n.s.SetKeeper(nil)
		t.Cleanup(func() { n.s.Close() })
	}
	return c
}

func (c *cluster) dial(self lode.NodeID) func(context.Context, lode.NodeID) (net.Conn, error) {
	return func(_ context.Context, to lode.NodeID) (net.Conn, error) {
		for _, n := range c.nodes {
			if n.name == to {
				here, there := net.Pipe()
				go n.l.Serve(there, self) // ends with the link
				return here, nil
			}
		}
		return nil, errors.New("no such node")
	}
}

// keep makes a node the keeper, without a word to the one before.
func (c *cluster) keep(i int) *Keeper {
	c.t.Helper()
	q, err := c.b.OpenQueues(context.Background(), "work", bus.QueuesConfig{})
	if err != nil {
		c.t.Fatal(err)
	}
	k, err := OpenKeeper(context.Background(), c.nodes[i].s, KeeperConfig{Tables: c.ts, Queues: BusQueues(q)})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { k.Close() })
	c.nodes[i].k.Store(k)
	return k
}

// tell tells every node who is the keeper.
func (c *cluster) tell(i int) {
	for j, n := range c.nodes {
		if i == j {
			n.s.SetKeeper(n.k.Load())
			continue
		}
		n.s.SetKeeper(RemoteKeeper(func(ctx context.Context, r *link.Request, a link.Answer) error {
			err := n.l.Call(ctx, c.nodes[i].name, r, a)
			if rand.Int32N(100) < c.flaky.Load() {
				return &lode.Error{Kind: lode.Unavailable, Detail: "the connection was lost", Err: link.ErrLost}
			}
			return err
		}))
	}
}

// countedTables count how often the end of each call is written.
type countedTables struct {
	Tables
	mu   sync.Mutex
	ends map[string]int
}

func (c *countedTables) Table(ctx context.Context, name string) (Table, error) {
	t, err := c.Tables.Table(ctx, name)
	if name != "calls" || err != nil {
		return t, err
	}
	return countedTable{t, c}, nil
}

type countedTable struct {
	Table
	c *countedTables
}

func (t countedTable) note(key string, err error) {
	if err == nil {
		t.c.mu.Lock()
		defer t.c.mu.Unlock()
		t.c.ends[key]++
	}
}

func (t countedTable) Create(ctx context.Context, key string, value []byte) (uint64, error) {
	rev, err := t.Table.Create(ctx, key, value)
	t.note(key, err)
	return rev, err
}

func (t countedTable) Update(ctx context.Context, key string, value []byte, rev uint64) (uint64, error) {
	rev, err := t.Table.Update(ctx, key, value, rev)
	t.note(key, err)
	return rev, err
}

// Ten thousand tasks are submitted on every node and worked off while the
// keeper changes twice, the old one abandoned, and answers of the keeper are
// lost: none is lost, none is there twice, none has two ends.
func TestTasksAcrossKeepers(t *testing.T) {
	if testing.Short() {
		t.Skip("many writes")
	}
	tasks, lanes := 10_000, 48
	if raceOn {
		tasks = 2500
	}
	c := newCluster(t, "a", "b", "c")
	c.flaky.Store(2)
	var mu sync.Mutex
	runs := map[string]int{}
	c.w.deploy("task", lode.Function{}, func(g *guest) error {
		mu.Lock()
		runs[string(g.inv.Body)]++
		mu.Unlock()
		return g.answer(200, "r"+string(g.inv.Body))
	})
	first := c.keep(0)
	c.tell(0)
	var next, refused atomic.Int64
	ids := make([]lode.InvocationID, tasks)
	var wg sync.WaitGroup
	for lane := range lanes {
		s := c.nodes[lane%len(c.nodes)].s
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= tasks {
					return
				}
				id, err := s.Submit(context.Background(), &lode.Request{Namespace: "default", Function: "task", Body: []byte(fmt.Sprint(i))})
				if ids[i] = id; err != nil {
					refused.Add(1)
					t.Errorf("task %d: %v", i, err)
				}
			}
		})
	}
	for i, at := range []int64{int64(tasks) / 3, 2 * int64(tasks) / 3} {
		for next.Load() < at && refused.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		c.keep(1 + i)
		c.tell(1 + i)
	}
	wg.Wait()
	if !lostNow(first) {
		t.Error("the first keeper does not know that it is none")
	}
	last := c.nodes[2].k.Load()
	for i, id := range ids {
		got, err := c.nodes[i%3].s.GetCall(context.Background(), "default", id, time.Minute)
		if err != nil || got.State != lode.StateDone {
			t.Fatalf("task %d (%s): %+v %v", i, id, got, err)
		}
	}
	last.calls.mu.Lock()
	known := len(last.calls.entries)
	last.calls.mu.Unlock()
	ends, err := last.calls.table.List(context.Background(), "")
	if known != tasks || len(runs) != tasks || len(ends) != tasks || err != nil {
		t.Errorf("%d calls known, %d run, %d ended, of %d: %v", known, len(runs), len(ends), tasks, err)
	}
	for key, n := range c.ts.ends {
		if n > 1 { // 0: the keeper was lost before it was told
			t.Errorf("%s was recorded %d times", key, n)
		}
	}
	ans, err := c.nodes[0].s.CallResult(context.Background(), "default", ids[7])
	if err != nil || string(ans.Msg.Body) != "r7" {
		t.Errorf("%v %v", ans, err)
	}
}

// Messages that are put while keepers change and answers are lost are there
// once, and reach their consumer.
func TestMessagesAcrossKeepers(t *testing.T) {
	const messages, lanes = 1500, 12
	c := newCluster(t, "a", "b")
	c.flaky.Store(10)
	c.w.queues["orders"] = lode.Queue{Deliver: 100}
	var mu sync.Mutex
	seen := map[string]map[string]bool{} // ids by body
	all := make(chan struct{})
	c.w.deploy("ship", lode.Function{Queue: &lode.Consume{Queue: "orders", Size: 20}}, func(g *guest) error {
		var in struct{ Messages []message }
		if err := json.Unmarshal(g.inv.Body, &in); err != nil {
			return err
		}
		mu.Lock()
		for _, m := range in.Messages {
			if seen[string(m.Body)] == nil {
				if seen[string(m.Body)] = map[string]bool{}; len(seen) == messages {
					close(all)
				}
			}
			seen[string(m.Body)][m.ID] = true
		}
		mu.Unlock()
		return g.answer(200, "")
	})
	c.keep(0)
	c.tell(0)
	var next atomic.Int64
	var wg sync.WaitGroup
	for lane := range lanes {
		s := c.nodes[lane%2].s
		wg.Go(func() {
			for i := next.Add(1); i <= messages; i = next.Add(1) {
				if _, err := s.PutQueue(context.Background(), "default", "orders", "", 0, "text/plain", []byte(fmt.Sprint(i))); err != nil {
					t.Errorf("message %d: %v", i, err)
				}
			}
		})
	}
	for next.Load() < messages/2 {
		time.Sleep(time.Millisecond)
	}
	c.keep(1)
	c.tell(1)
	wg.Wait()
	select {
	case <-all:
	case <-time.After(time.Minute):
		t.Fatalf("%d of %d messages came", len(seen), messages)
	}
	mu.Lock()
	defer mu.Unlock()
	for body, ids := range seen {
		if len(ids) != 1 {
			t.Errorf("message %s was put %d times", body, len(ids))
		}
	}
}

// Everything that a keeper is asked for is answered over the link as it is on
// the node itself: bodies of any size, states, errors whole.
func TestRemoteKeeper(t *testing.T) {
	c := newCluster(t, "a", "b")
	c.w.queues["orders"] = lode.Queue{}
	c.w.queues["graves"] = lode.Queue{}
	open := make(chan struct{})
	c.w.deploy("echo", lode.Function{}, echo)
	c.w.deploy("bad", lode.Function{Retry: lode.Retry{Attempts: 1, Dead: "graves"}}, crash)
	c.w.deploy("slow", lode.Function{Limits: lode.Limits{Total: time.Hour}}, func(g *guest) error { return g.block(open) })
	c.w.deploy("small", lode.Function{Limits: lode.Limits{Body: 10}}, echo)
	k := c.keep(0)
	c.tell(0)
	ctx, s := context.Background(), c.nodes[1].s
	for _, size := range []int{0, 10, 100 << 10, 3 << 20} {
		body := bytes.Repeat([]byte("x"), size)
		id, err := s.Submit(ctx, &lode.Request{Namespace: "default", Function: "echo", Body: body[:size/2], Stream: bytes.NewReader(body[size/2:])})
		if err != nil {
			t.Fatal(err)
		}
		if got := get(t, s, id, time.Minute); got.State != lode.StateDone || got.ResultLen != int64(size) {
			t.Errorf("%d bytes: %+v", size, got)
		}
		ans, err := s.CallResult(ctx, "default", id)
		if err != nil || !bytes.Equal(ans.Msg.Body, body) || ans.Status != 200 {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	id := submit(t, s, "bad", "key", "x")
	if again := submit(t, c.nodes[0].s, "bad", "key", "x"); again != id {
		t.Errorf("the key gave %s and %s", id, again)
	}
	_, err := s.Submit(ctx, &lode.Request{Namespace: "default", Function: "bad", IdempotencyKey: "key", Body: []byte("y")})
	wantKind(t, err, lode.KeyReused)
	if e := lode.AsError(err); e.Hint == "" {
		t.Error("the hint did not come along")
	}
	got := get(t, s, id, time.Minute)
	if got.State != lode.StateFailed || got.Error == nil || got.Error.Guest == nil || got.Error.Guest.Message != errBoom.Error() {
		t.Errorf("%+v", got)
	}
	_, err = s.CallResult(ctx, "default", id)
	if e := lode.AsError(err); e == nil || e.Kind != lode.Crashed || e.Guest == nil {
		t.Errorf("%v", err)
	}
	list, next, err := s.ListCalls(ctx, "default", CallFilter{Function: "echo"}, 3, "")
	if err != nil || len(list) != 3 || next != list[2].ID {
		t.Errorf("%d calls, next %s: %v", len(list), next, err)
	}
	slow := submit(t, s, "slow", "", "")
	if got, err := s.CancelCall(ctx, "default", slow); err != nil || got.State != lode.StateCancelled {
		t.Errorf("%+v %v", got, err)
	}
	if _, err := s.ReplayCall(ctx, "default", slow); err != nil {
		t.Error(err)
	}
	close(open)
	if got := get(t, s, slow, time.Minute); got.State != lode.StateDone {
		t.Errorf("%+v", got)
	}
	if _, err := s.PutQueue(ctx, "default", "orders", "k", 0, "text/plain", []byte("x")); err != nil {
		t.Error(err)
	}
	_, err = s.PutQueue(ctx, "default", "nowhere", "", 0, "", nil)
	wantKind(t, err, lode.NotFound)
	if q, err := s.Queue(ctx, "default", "orders"); err != nil || q.Depth != 1 {
		t.Errorf("%+v %v", q, err)
	}
	if d, err := s.Queue(ctx, "default", "graves"); err != nil || d.Depth != 1 {
		t.Errorf("%+v %v", d, err)
	}
	_, err = s.GetCall(ctx, "default", "nothing", 0)
	wantKind(t, err, lode.NotFound)
	big := strings.Repeat("h", 2*maxAsk)
	_, err = s.Submit(ctx, &lode.Request{Namespace: "default", Function: "echo", Head: []lode.Pair{{Key: "x", Value: big}}})
	wantKind(t, err, lode.TooLarge)
	// A node that is not the keeper says so.
	c.nodes[0].k.Store(nil)
	if _, err := RemoteKeeper(func(ctx context.Context, r *link.Request, a link.Answer) error {
		return c.nodes[1].l.Call(ctx, "a", r, a)
	}).GetCall(ctx, "default", id, 0); !errors.Is(err, ErrNotKeeper) {
		t.Errorf("%v", err)
	}
	c.nodes[0].k.Store(k)
}

// Each key comes in on three nodes at once: it runs once, and everybody is told
// the same.
func TestKeysOnABus(t *testing.T) {
	const keys, each = 60, 6
	c := newCluster(t, "a", "b", "c")
	var mu sync.Mutex
	runs := map[string]int{}
	c.w.deploy("once", lode.Function{}, func(g *guest) error {
		mu.Lock()
		runs[string(g.inv.Body)]++
		mu.Unlock()
		time.Sleep(time.Millisecond)
		return g.answer(200, fmt.Sprint(g.head.Get(":id"), strings.Repeat("x", rand.IntN(2)*2*inlineBytes)))
	})
	var wg sync.WaitGroup
	told := make([][]string, keys)
	for key := range keys {
		told[key] = make([]string, each)
		for i := range each {
			wg.Go(func() {
				body, _, err := once(context.Background(), c.nodes[i%3].s, fmt.Sprint("k", key), fmt.Sprint(key))
				if told[key][i] = body; err != nil {
					t.Errorf("key %d: %v", key, err)
				}
			})
		}
	}
	wg.Wait()
	for key, bodies := range told {
		for _, b := range bodies {
			if b == "" || b != bodies[0] || runs[fmt.Sprint(key)] != 1 {
				t.Fatalf("key %d ran %d times, and was told %d and %d bytes", key, runs[fmt.Sprint(key)], len(b), len(bodies[0]))
			}
		}
	}
}
