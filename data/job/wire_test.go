package job_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"lode"
	"lode/data/job"
	"lode/link"
	"lode/store/storetest"
)

func group() *job.Group {
	return &job.Group{Job: "j-1", Namespace: "default", Dataset: "d", Version: 3, Records: lode.RecordsLines, What: job.What{Label: "x", Function: &lode.Function{}}, Reduce: "sum",
		Retries: 2, Attempt: time.Second, Total: 7, Level: 1, Index: 3, Shards: []lode.Shard{{Bytes: 9, Count: 2}}, Parallel: 1, Tried: 3}
}

func TestGroupRefuses(t *testing.T) {
	for name, change := range map[string]func(*job.Group){
		"no shards":     func(g *job.Group) { g.Shards = nil },
		"too many":      func(g *job.Group) { g.Shards = make([]lode.Shard, 2) },
		"beyond":        func(g *job.Group) { g.Index = 4 },
		"negative":      func(g *job.Group) { g.Index = -1 },
		"level":         func(g *job.Group) { g.Level, g.Index = 63, 0 },
		"total":         func(g *job.Group) { g.Total = 1 << 40 },
		"attempt":       func(g *job.Group) { g.Attempt = 0 },
		"parallel":      func(g *job.Group) { g.Parallel = -1 },
		"shard's bytes": func(g *job.Group) { g.Shards[0].Bytes = -1 },
	} {
		g := group()
		change(g)
		b, err := g.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := job.DecodeGroup(b); lode.KindOf(err) != lode.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzGroup: a group that is read is a block of its tree and is written the
// same; other bytes are Invalid.
func FuzzGroup(f *testing.F) {
	b, err := group().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"total":1,"attempt":1,"shards":[{"digest":"","bytes":0,"count":0}]}`))
	f.Add([]byte(`{"total":3,"level":30,"attempt":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		g, err := job.DecodeGroup(b)
		if err != nil {
			storetest.Kind(t, err, lode.Invalid)
			return
		}
		if g.First() < 0 || g.First()+len(g.Shards) > g.Total || len(g.Shards) == 0 {
			t.Fatalf("%+v", g)
		}
		again, err := g.Encode()
		if err != nil {
			t.Fatal(err)
		}
		g2, err := job.DecodeGroup(bytes.Clone(again))
		if err != nil {
			t.Fatalf("%s was written as %s: %v", b, again, err)
		}
		if twice, _ := g2.Encode(); !bytes.Equal(again, twice) {
			t.Fatalf("%s, then %s", again, twice)
		}
	})
}

// FuzzDone: an answer that is read is written the same; other bytes are
// Invalid.
func FuzzDone(f *testing.F) {
	d := &job.Done{Progress: job.Progress{Shards: 3, Bytes: 70, Read: 7, Retried: 1, CPU: 5, Wall: 6}, ContentType: "text/csv", State: []byte("state")}
	head, state, err := d.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(bytes.Clone(head), state...))
	d.Error = lode.Errorf(lode.Crashed, "bad luck").WithHint("again")
	if head, _, err = d.Encode(); err != nil {
		f.Fatal(err)
	}
	f.Add(head)
	f.Add([]byte("\x02\x00\x00\x00{}"))
	f.Add([]byte("\xff\xff\xff\xff{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := job.DecodeDone(bytes.Clone(b))
		if err != nil {
			storetest.Kind(t, err, lode.Invalid)
			return
		}
		head, state, err := d.Encode()
		if err != nil {
			t.Fatal(err)
		}
		back, err := job.DecodeDone(append(bytes.Clone(head), state...))
		if err != nil || !bytes.Equal(back.State, d.State) || back.Progress != d.Progress || back.ContentType != d.ContentType || (back.Error == nil) != (d.Error == nil) {
			t.Fatalf("%+v, then %+v, %v", d, back, err)
		}
	})
}

// pair is two links over loopback; the first line of a connection is the
// dialler's name, which TLS says elsewhere.
func pair(t *testing.T, handle map[string]link.Handler) (a, b *link.Link) {
	t.Helper()
	ids := []lode.NodeID{"a", "b"}
	at := map[lode.NodeID]net.Listener{}
	for _, id := range ids {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		at[id] = ln
	}
	links := map[lode.NodeID]*link.Link{}
	for _, id := range ids {
		cfg := link.Config{Self: id, Logger: slog.New(slog.DiscardHandler), Dial: func(ctx context.Context, to lode.NodeID) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, "tcp", at[to].Addr().String())
			if err == nil {
				_, err = c.Write([]byte(string(id) + "\n"))
			}
			return c, err
		}}
		if id == "b" {
			cfg.Handle = handle
		}
		links[id] = link.New(cfg)
	}
	var wg sync.WaitGroup
	for _, id := range ids {
		wg.Go(func() {
			for {
				c, err := at[id].Accept()
				if err != nil {
					return
				}
				wg.Go(func() {
					var name []byte
					for one := make([]byte, 1); ; {
						if _, err := c.Read(one); err != nil {
							c.Close()
							return
						}
						if one[0] == '\n' {
							break
						}
						name = append(name, one[0])
					}
					links[id].Serve(c, lode.NodeID(name))
				})
			}
		})
		links[id].SetPeers(ids)
	}
	t.Cleanup(func() {
		for _, id := range ids {
			at[id].Close()
			links[id].Close()
		}
		wg.Wait()
	})
	if err := links["a"].Wait(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	return links["a"], links["b"]
}

// linked is a cluster whose second node is at the other end of a link.
type linked struct {
	view
	l *link.Link
}

func (c linked) Work(ctx context.Context, node lode.NodeID, g *job.Group) (*job.Done, error) {
	if node == c.self {
		return c.view.Work(ctx, node, g)
	}
	return job.CallWork(ctx, c.l, node, g)
}

// Over a real link: results larger than a frame, progress, failures with the
// guest's own words, and cancelling.
func TestOverALink(t *testing.T) {
	hangs := make(chan struct{}, 100)
	n := newNodes(t, 2, 12, func(_ lode.NodeID, ctx context.Context, task job.Task, shard []byte) ([]byte, error) {
		switch task.What.Handler {
		case "crash":
			e := lode.Errorf(lode.Crashed, "crashed")
			e.Guest = &lode.GuestError{Type: "TypeError", Message: strings.Repeat("x", 200_000)}
			return nil, e
		case "hang":
			hangs <- struct{}{}
			<-ctx.Done()
			return nil, lode.Errorf(lode.Cancelled, "cancelled")
		}
		time.Sleep(5 * time.Millisecond)
		return shard, nil
	})
	n.do("b", func(m *member) { m.labels = map[string]string{"far": "yes"} })
	a, b := pair(t, map[string]link.Handler{job.MethodWork: job.ServeWork(n.all["b"].exec)})
	cfg := n.config("a")
	cfg.Cluster = linked{view{n, "a"}, a}
	s := n.open(cfg)
	sp := spec("concat")
	sp.Where = map[string]string{"far": "yes"}
	j := finish(t, s, sp)
	whole(t, j)
	if got := body(t, s, j.ID); got != n.text {
		t.Errorf("%d bytes, want %d", len(got), len(n.text))
	}
	if j.Partial != int64(len(n.text)) || j.Sent == 0 || share(j, "b").Partial != j.Partial {
		t.Errorf("partial %d, sent %d, %+v", j.Partial, j.Sent, j.Nodes)
	}
	sp.What.Handler, sp.Retries = "crash", -1
	j = finish(t, s, sp)
	if j.State != lode.StateFailed || j.Error.Kind != lode.Crashed || j.Error.Guest == nil || len(j.Error.Guest.Message) != 200_000 {
		t.Errorf("%s: %.300v", j.State, j.Error)
	}
	sp.What.Handler = "hang"
	j, err := s.Start(t.Context(), sp)
	if err != nil {
		t.Fatal(err)
	}
	<-hangs
	running := false
	err = s.Watch(t.Context(), "default", j.ID, func(j job.Job) error {
		if running = running || j.Running > 0; running && !j.Over() {
			go s.Cancel(context.Background(), "default", j.ID)
		}
		return nil
	})
	if err != nil || !running {
		t.Errorf("progress was heard: %v, %v", running, err)
	}
	for n.all["b"].exec.Groups() > 0 {
		time.Sleep(time.Millisecond)
	}
	for len(hangs) > 0 {
		<-hangs
	}
	// The other node goes in the middle.
	cfg.Patience = 200 * time.Millisecond
	s.Close()
	s = n.open(cfg)
	if j, err = s.Start(t.Context(), sp); err != nil {
		t.Fatal(err)
	}
	<-hangs
	b.Close()
	if j, err = s.Wait(t.Context(), "default", j.ID); err != nil || j.State != lode.StateFailed || j.Error.Kind != lode.Unavailable {
		t.Errorf("%s, %v: %v", j.State, err, j.Error)
	}
}

// A peer that asks for no group is told so.
func TestServeWorkRefuses(t *testing.T) {
	n := newNodes(t, 2, 3, countOn)
	a, _ := pair(t, map[string]link.Handler{job.MethodWork: job.ServeWork(n.all["b"].exec)})
	for _, b := range []string{"", "{}", strings.Repeat("x", 100_000)} {
		err := a.Call(t.Context(), "b", &link.Request{Method: job.MethodWork, Body: []byte(b)}, new(link.Bytes))
		storetest.Kind(t, err, lode.Invalid)
	}
	g := group()
	g.Reduce = "average"
	_, err := job.CallWork(t.Context(), a, "b", g)
	storetest.Kind(t, err, lode.Invalid)
	if b, _ := json.Marshal(err); !strings.Contains(string(b), "average") {
		t.Errorf("%s", b)
	}
}
