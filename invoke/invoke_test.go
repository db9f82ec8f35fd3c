package invoke

import (
	"context"
	"io"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"lode"
	"lode/engine"
)

func TestInvokeAnswers(t *testing.T) {
	w := newWorld()
	var head lode.Message
	w.deploy("echo", lode.Function{Export: "main"}, func(g *guest) error {
		head = g.head
		g.inv.Host.Log(0, []byte("hello"))
		return g.answer(201, string(g.inv.Body))
	})
	s := w.service(t, Config{})
	ans := &lode.Buffered{}
	const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	req := &lode.Request{Namespace: "default", Function: "echo", Trigger: lode.TriggerHTTP, Path: "/a?b=1", Body: []byte("hi"), Trace: parent,
		Head: []lode.Pair{{Key: "x-a", Value: "1"}, {Key: ":route.id", Value: "7"}, {Key: ":id", Value: "forged"}, {Key: "traceparent", Value: parent}}}
	out, err := s.Invoke(context.Background(), req, ans)
	if err != nil || ans.Status != 201 || string(ans.Msg.Body) != "hi" {
		t.Fatalf("%v, status %d, body %q", err, ans.Status, ans.Msg.Body)
	}
	for k, want := range map[string]string{":kind": "http", ":method": "POST", ":path": "/a?b=1", ":handler": "main", ":id": string(out.ID), ":attempt": "1",
		":function": "echo", ":namespace": "default", ":revision": "1", ":route.id": "7", "x-a": "1"} {
		if got := head.Get(k); got != want {
			t.Errorf("pair %s is %q, want %q", k, got, want)
		}
	}
	if tp := head.Get("traceparent"); !strings.HasPrefix(tp, parent[:36]) || tp == parent {
		t.Errorf("traceparent %q is not a child of %q", tp, parent)
	}
	if out.Revision != "default/echo@1" || out.Trace != parent[3:35] {
		t.Errorf("outcome %+v", out)
	}
	if len(w.records) != 1 || w.records[0].Status != 201 || w.records[0].Err != nil || w.records[0].Usage.BodyOut != 2 {
		t.Errorf("records %+v", w.records)
	}
	if len(w.lines) != 1 || w.lines[0] != "hello" {
		t.Errorf("lines %q", w.lines)
	}
}

func TestInvokeErrors(t *testing.T) {
	w := newWorld()
	w.deploy("echo", lode.Function{Limits: lode.Limits{Body: 8, OutputMax: 4}}, echo)
	w.deploy("crash", lode.Function{}, crash)
	w.deploy("inner", lode.Function{Access: lode.AccessInternal}, echo)
	w.deploy("odd", lode.Function{}, func(g *guest) error { return g.answer(99, "") })
	s := w.service(t, Config{})
	long := []lode.Pair{{Key: "x", Value: strings.Repeat("a", engine.MaxField+1)}}
	for name, c := range map[string]struct {
		req  lode.Request
		kind lode.Kind
	}{
		"unknown":         {lode.Request{Function: "nope"}, lode.NotFound},
		"crash":           {lode.Request{Function: "crash"}, lode.Crashed},
		"body":            {lode.Request{Function: "echo", Body: []byte("123456789")}, lode.TooLarge},
		"declared body":   {lode.Request{Function: "echo", Stream: strings.NewReader(""), Head: []lode.Pair{{Key: "content-length", Value: "9"}}}, lode.TooLarge},
		"answer":          {lode.Request{Function: "echo", Body: []byte("12345")}, lode.TooLarge},
		"field":           {lode.Request{Function: "echo", Head: long}, lode.TooLarge},
		"fields":          {lode.Request{Function: "echo", Head: make([]lode.Pair, 0)}, ""},
		"depth":           {lode.Request{Function: "echo", Depth: MaxDepth}, lode.Conflict},
		"internal":        {lode.Request{Function: "inner", Trigger: lode.TriggerHTTP}, lode.Denied},
		"internal lambda": {lode.Request{Function: "inner", Trigger: lode.TriggerLambda}, lode.Denied},
		"internal call":   {lode.Request{Function: "inner", Trigger: lode.TriggerCall}, ""},
		"late":            {lode.Request{Function: "echo", Deadline: time.Now().Add(-time.Second)}, lode.Deadline},
		"status":          {lode.Request{Function: "odd"}, lode.Crashed},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			c.req.Namespace = "default"
			out, err := s.Invoke(context.Background(), &c.req, &lode.Buffered{})
			if lode.KindOf(err) != c.kind {
				t.Fatalf("got %v, want kind %q", err, c.kind)
			}
			if e := lode.AsError(err); e != nil && (e.Invocation != out.ID || e.Trace != out.Trace || e.Trace == "") {
				t.Errorf("error %+v does not name invocation %s and trace %s", e, out.ID, out.Trace)
			}
		})
	}
}

func TestInvokeDeadlineWhileRunning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.deploy("slow", lode.Function{Limits: lode.Limits{Total: time.Second}}, func(g *guest) error { return g.block(nil) })
		s := w.service(t, Config{})
		start := time.Now()
		_, _, err := call(s, "slow", "")
		wantKind(t, err, lode.Deadline)
		if d := time.Since(start); d != time.Second {
			t.Errorf("ended after %s", d)
		}
	})
}

func TestInvokeCancel(t *testing.T) {
	w := newWorld()
	began := make(chan struct{})
	w.deploy("slow", lode.Function{}, func(g *guest) error { close(began); return g.block(nil) })
	s := w.service(t, Config{})
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-began; cancel() }()
	_, err := s.Invoke(ctx, &lode.Request{Namespace: "default", Function: "slow"}, &lode.Buffered{})
	wantKind(t, err, lode.Cancelled)
}

func TestStreamStandsStill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.deploy("read", lode.Function{Limits: lode.Limits{Idle: 2 * time.Second, Total: time.Hour}}, func(g *guest) error {
			if _, err := io.ReadAll(g.inv.Stream); err != nil {
				return lode.Errorf(lode.Cancelled, "read the body: %w", err)
			}
			return g.answer(200, "")
		})
		s := w.service(t, Config{})
		r, wr := io.Pipe()
		defer wr.Close()
		_, err := s.Invoke(context.Background(), &lode.Request{Namespace: "default", Function: "read", Stream: r}, &lode.Buffered{})
		wantKind(t, err, lode.Deadline)
	})
}

// A chain of calls shares trace and deadline, and ends where it turns in a
// circle.
func TestCallChain(t *testing.T) {
	w := newWorld()
	var mu sync.Mutex
	var deadlines, traces []string
	note := func(g *guest) {
		mu.Lock()
		defer mu.Unlock()
		deadlines = append(deadlines, g.head.Get(":deadline"))
		traces = append(traces, g.head.Get("traceparent")[:36])
	}
	w.deploy("a", lode.Function{Limits: lode.Limits{Total: time.Second}}, func(g *guest) error {
		note(g)
		m, err := g.op(engine.OpCall, lode.Message{Head: []lode.Pair{{Key: ":address", Value: "b"}}, Body: g.inv.Body})
		if err != nil {
			return err
		}
		st, _ := strconv.Atoi(m.Get(":status"))
		return g.answer(st, string(m.Body)+"!")
	})
	w.deploy("b", lode.Function{Access: lode.AccessInternal, Limits: lode.Limits{Total: time.Hour}}, func(g *guest) error {
		note(g)
		return g.answer(202, string(g.inv.Body)+"?")
	})
	w.deploy("loop", lode.Function{}, func(g *guest) error {
		if _, err := g.op(engine.OpCall, lode.Message{Head: []lode.Pair{{Key: ":address", Value: "loop"}}}); err != nil {
			return err
		}
		return g.answer(200, "")
	})
	s := w.service(t, Config{Slots: 1})
	ans, _, err := call(s, "a", "x")
	if err != nil || ans.Status != 202 || string(ans.Msg.Body) != "x?!" {
		t.Fatalf("%v %+v", err, ans)
	}
	if deadlines[0] != deadlines[1] || traces[0] != traces[1] {
		t.Errorf("deadlines %v, traces %v", deadlines, traces)
	}
	_, _, err = call(s, "loop", "")
	wantKind(t, err, lode.Conflict)
}

func TestTraceparent(t *testing.T) {
	const id, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	for _, good := range []string{"00-" + id + "-" + parent + "-01", "00-" + id + "-" + parent + "-00", "cc-" + id + "-" + parent + "-01-more", "01-" + id + "-" + parent + "-03"} {
		tr := continueTrace(good)
		if tr.TraceID() != id || tr.ParentID() != parent || tr.SpanID() == parent || tr.Sampled != (good[54]&1 == 1) {
			t.Errorf("%s: %+v", good, tr)
		}
		if again := continueTrace(tr.Traceparent()); again.TraceID() != id || again.ParentID() != tr.SpanID() || again.Sampled != tr.Sampled {
			t.Errorf("%s is not continued by %s", good, tr.Traceparent())
		}
	}
	for _, bad := range []string{"", "x", "00-" + id + "-" + parent, "ff-" + id + "-" + parent + "-01", "00-" + id + "-" + parent + "-01-more", "00-" + id + "-" + parent + "-0g",
		"00-" + strings.ToUpper(id) + "-" + parent + "-01", "00-" + strings.Repeat("0", 32) + "-" + parent + "-01", "00-" + id + "-" + strings.Repeat("0", 16) + "-01",
		"00_" + id + "-" + parent + "-01", "cc-" + id + "-" + parent + "-01more"} {
		if tr := continueTrace(bad); tr.TraceID() == id || tr.ParentID() != "" || tr.ID == ([16]byte{}) {
			t.Errorf("%q was continued: %+v", bad, tr)
		}
	}
}

func FuzzTraceparent(f *testing.F) {
	f.Add("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	f.Add("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x")
	f.Fuzz(func(t *testing.T, s string) {
		var tr, again Trace
		if !tr.parse(s) {
			return
		}
		tr.Span = tr.Parent
		if !again.parse(tr.Traceparent()) || again.ID != tr.ID || again.Parent != tr.Parent || again.Sampled != tr.Sampled {
			t.Fatalf("%q is read as %+v and written as %q", s, tr, tr.Traceparent())
		}
	})
}

func TestDrain(t *testing.T) {
	w := newWorld()
	began, release := make(chan struct{}), make(chan struct{})
	w.deploy("b", lode.Function{}, echo)
	w.deploy("slow", lode.Function{}, func(g *guest) error {
		close(began)
		if err := g.block(release); err != nil {
			return err
		}
		_, err := g.op(engine.OpCall, lode.Message{Head: []lode.Pair{{Key: ":address", Value: "b"}}})
		return err
	})
	s := w.service(t, Config{})
	var ended atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, _, err := call(s, "slow", ""); err != nil {
			t.Errorf("under way while draining: %v", err)
		}
		ended.Store(true)
	})
	<-began
	short, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	wantKind(t, s.Drain(short), lode.Deadline)
	_, _, err := call(s, "b", "")
	wantKind(t, err, lode.Unavailable)
	close(release)
	if err := s.Drain(context.Background()); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if !ended.Load() {
		t.Error("drained while an invocation was under way")
	}
}

func BenchmarkInvoke(b *testing.B) {
	w := newWorld()
	w.deploy("echo", lode.Function{}, echo)
	s, err := Open(context.Background(), Config{Catalog: w, Pools: nothing{}})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	head := []lode.Pair{{Key: "content-type", Value: "text/plain"}, {Key: "user-agent", Value: "bench"}, {Key: "accept", Value: "*/*"}}
	b.ReportAllocs()
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		ans := &discard{}
		for pb.Next() {
			if _, err := s.Invoke(context.Background(), &lode.Request{Namespace: "default", Function: "echo", Body: []byte("x"), Head: head}, ans); err != nil {
				b.Fatal(err)
			}
		}
	})
}

type nothing struct{}

func (nothing) Pool(*lode.Revision) (Runner, error) { return nothing{}, nil }

var okHead = engine.EncodeHead(nil, []lode.Pair{{Key: ":status", Value: "200"}})

func (nothing) Invoke(_ context.Context, inv *engine.Invocation) error {
	if err := inv.Out.Head(okHead); err != nil {
		return err
	}
	_, err := inv.Out.Write(inv.Body)
	return err
}

type discard struct{}

func (*discard) Head(int, []lode.Pair) error { return nil }
func (*discard) Write(p []byte) (int, error) { return len(p), nil }
