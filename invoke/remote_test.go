package invoke

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"lode"
	"lode/engine"
)

func TestForwardSmall(t *testing.T) {
	c := newFleet(t, Config{}, "a", "b")
	a, b := c.nodes["a"], c.nodes["b"]
	var ran runs
	c.deploy("hello", lode.Function{}, func(n *tnode) code {
		return func(g *guest) error {
			ran.add(n)
			head := []lode.Pair{{Key: ":status", Value: "201"}, {Key: "x-saw", Value: g.head.Get(":method") + " " + g.head.Get(":path") + " " + g.head.Get("x-in") + " " + g.head.Get(":route.id")}}
			if err := g.inv.Out.Head(engine.EncodeHead(nil, head)); err != nil {
				return err
			}
			_, err := g.inv.Out.Write(append([]byte("hello "), g.inv.Body...))
			return err
		}
	})
	a.s.SetDraining(true)
	req := request("hello")
	req.Method, req.Path, req.Body = "PUT", "/x?y=1", []byte("you")
	req.Head = []lode.Pair{{Key: "x-in", Value: "in"}, {Key: ":route.id", Value: "7"}}
	ans := newTaker()
	out, err := a.s.Invoke(context.Background(), req, ans)
	if err != nil {
		t.Fatal(err)
	}
	if ans.Status != 201 || string(ans.Msg.Body) != "hello you" || ans.Msg.Get("x-saw") != "PUT /x?y=1 in 7" || ans.started != 1 {
		t.Errorf("got %d %q %v, started %d times", ans.Status, ans.Msg.Body, ans.Msg.Head, ans.started)
	}
	if out.Node != "b" || out.Revision != "default/hello@1" || out.ID == "" || out.Usage.Wall <= 0 || out.Usage.BodyOut != 9 || out.Usage.BodyIn != 3 {
		t.Errorf("outcome %+v", out)
	}
	if got := c.records(out.ID); len(got) != 1 || got[0] != "b 201 <nil>" || ran.String() != "map[b:1]" {
		t.Errorf("records %v, ran %s", got, &ran)
	}
	if r := b.w.records[0]; r.Trace.TraceID() != out.Trace || string(r.Request.Body) != "you" {
		t.Errorf("the record is of trace %s, the outcome of %s", r.Trace.TraceID(), out.Trace)
	}
	d, ok := a.s.Decision(out.ID)
	if !ok || d.Node != "b" || len(d.Why) == 0 || d.Revision != out.Revision {
		t.Errorf("decision %+v %v", d, ok)
	}
	if st, sb := a.s.SpreadStats(), b.s.SpreadStats(); st.Forwarded != 1 || sb.Served != 1 {
		t.Errorf("counted %+v and %+v", st, sb)
	}
}

func TestForwardLarge(t *testing.T) {
	c := newFleet(t, Config{}, "a", "b")
	a := c.nodes["a"]
	c.deploy("echo", lode.Function{Limits: lode.Limits{Body: 64 << 20}}, func(*tnode) code {
		return func(g *guest) error {
			all := append([]byte(nil), g.inv.Body...)
			if g.inv.Stream != nil {
				rest, err := io.ReadAll(g.inv.Stream)
				if err != nil {
					return err
				}
				all = append(all, rest...)
			}
			return g.answer(200, string(all))
		}
	})
	a.s.SetDraining(true)
	rnd := rand.NewChaCha8([32]byte{1})
	for _, tt := range []struct {
		name           string
		inline, stream int
	}{{"inline over a frame", 300 << 10, 0}, {"streamed", 1000, 5 << 20}, {"stream of less than is kept", 0, 1000}, {"empty stream", 10, -1}} {
		t.Run(tt.name, func(t *testing.T) {
			req := request("echo")
			req.Body = make([]byte, tt.inline)
			rnd.Read(req.Body)
			want := append([]byte(nil), req.Body...)
			if tt.stream != 0 {
				rest := make([]byte, max(tt.stream, 0))
				rnd.Read(rest)
				want = append(want, rest...)
				req.Stream = bytes.NewReader(rest)
			}
			ans := newTaker()
			out, err := a.s.Invoke(context.Background(), req, ans)
			if err != nil || out.Node != "b" {
				t.Fatalf("on %q: %v", out.Node, err)
			}
			if !bytes.Equal(ans.Msg.Body, want) {
				t.Errorf("%d bytes came back of %d, or others", len(ans.Msg.Body), len(want))
			}
			if out.Usage.BodyOut != int64(len(want)) {
				t.Errorf("usage %+v", out.Usage)
			}
		})
	}
}

// What the guest answers bit by bit comes bit by bit.
func TestForwardFlushes(t *testing.T) {
	c := newFleet(t, Config{}, "a", "b")
	a := c.nodes["a"]
	more := make(chan struct{})
	c.deploy("drip", lode.Function{}, func(*tnode) code {
		return func(g *guest) error {
			if err := g.answer(200, "one"); err != nil {
				return err
			}
			if err := g.block(more); err != nil { // Leave hands on what there is
				return err
			}
			_, err := g.inv.Out.Write([]byte(" two"))
			return err
		}
	})
	a.s.SetDraining(true)
	ans := newTaker()
	done := make(chan error, 1)
	go func() {
		_, err := a.s.Invoke(context.Background(), request("drip"), ans)
		done <- err
	}()
	<-ans.first
	close(more)
	if err := <-done; err != nil || string(ans.Msg.Body) != "one two" || ans.flushed == 0 {
		t.Errorf("%q, flushed %d times, %v", ans.Msg.Body, ans.flushed, err)
	}
}

func TestForwardLongHeads(t *testing.T) {
	c := newFleet(t, Config{}, "a", "b")
	a := c.nodes["a"]
	long := strings.Repeat("h", 30<<10)
	c.deploy("heads", lode.Function{}, func(*tnode) code {
		return func(g *guest) error {
			var head []lode.Pair
			for _, k := range []string{"x-1", "x-2", "x-3", "x-4"} {
				head = append(head, lode.Pair{Key: k, Value: g.head.Get(k)})
			}
			if err := g.inv.Out.Head(engine.EncodeHead(nil, head)); err != nil {
				return err
			}
			body := g.inv.Body
			if g.inv.Stream != nil {
				rest, _ := io.ReadAll(g.inv.Stream)
				body = append(body, rest...)
			}
			_, err := g.inv.Out.Write(body)
			return err
		}
	})
	a.s.SetDraining(true)
	for _, stream := range []bool{false, true} {
		req := request("heads")
		req.Body = []byte("body")
		for _, k := range []string{"x-1", "x-2", "x-3", "x-4"} {
			req.Head = append(req.Head, lode.Pair{Key: k, Value: k + long})
		}
		if stream {
			req.Stream = strings.NewReader("")
		}
		ans := newTaker()
		if out, err := a.s.Invoke(context.Background(), req, ans); err != nil || out.Node != "b" {
			t.Fatalf("on %q: %v", out.Node, err)
		}
		if string(ans.Msg.Body) != "body" || ans.Msg.Get("x-4") != "x-4"+long || ans.Msg.Get("x-1") != "x-1"+long {
			t.Errorf("stream %v: body %q, %d fields", stream, ans.Msg.Body, len(ans.Msg.Head))
		}
	}
}

func TestErrorsCrossUnchanged(t *testing.T) {
	c := newFleet(t, Config{}, "a", "b")
	a := c.nodes["a"]
	c.deploy("bad", lode.Function{}, func(*tnode) code {
		return func(*guest) error {
			return &lode.Error{Kind: lode.Crashed, Detail: "it crashed", Hint: "mend it", RetryAfter: 3 * time.Second, Guest: &lode.GuestError{Type: "E", Message: "m", Stack: []string{"f", "g"}}}
		}
	})
	c.deploy("late", lode.Function{}, func(*tnode) code {
		return func(g *guest) error {
			g.answer(200, strings.Repeat("x", 100<<10))
			return &lode.Error{Kind: lode.Crashed, Detail: "it crashed late", Guest: &lode.GuestError{Type: "L"}}
		}
	})
	c.deploy("much", lode.Function{Limits: lode.Limits{OutputMax: 10}}, func(*tnode) code {
		return func(g *guest) error { return g.answer(200, "more than ten bytes") }
	})
	here, herr := a.s.Invoke(context.Background(), request("bad"), newTaker())
	a.s.SetDraining(true)
	there, terr := a.s.Invoke(context.Background(), request("bad"), newTaker())
	h, r := *lode.AsError(herr), *lode.AsError(terr)
	if r.Invocation != there.ID || r.Trace != there.Trace || there.Node != "b" || here.Node != "" {
		t.Errorf("%+v of %+v", r, there)
	}
	h.Invocation, r.Invocation, h.Trace, r.Trace = "", "", "", ""
	hb, _ := h.MarshalJSON()
	rb, _ := r.MarshalJSON()
	if !bytes.Equal(hb, rb) || len(r.Guest.Stack) != 2 {
		t.Errorf("here  %s\nthere %s", hb, rb)
	}
	if got := c.records(there.ID); len(got) != 1 || !strings.HasPrefix(got[0], "b 0 it crashed") {
		t.Errorf("records %q", got)
	}
	ans := newTaker()
	out, err := a.s.Invoke(context.Background(), request("late"), ans)
	if e := lode.AsError(err); e == nil || e.Kind != lode.Crashed || e.Guest == nil || e.Guest.Type != "L" || len(ans.Msg.Body) != 100<<10 || out.Node != "b" {
		t.Errorf("%v after %d bytes on %q", err, len(ans.Msg.Body), out.Node)
	}
	if got := c.records(out.ID); len(got) != 1 {
		t.Errorf("records %q", got)
	}
	_, err = a.s.Invoke(context.Background(), request("much"), &lode.Buffered{})
	wantKind(t, err, lode.TooLarge)
	_, err = a.s.Invoke(context.Background(), request("none"), &lode.Buffered{})
	wantKind(t, err, lode.NotFound)
}

func TestRemoteDeadlineAndCancel(t *testing.T) {
	c := newFleet(t, Config{}, "a", "b")
	a := c.nodes["a"]
	began := make(chan struct{}, 1)
	ended := make(chan error, 1)
	c.deploy("sleep", lode.Function{}, func(*tnode) code {
		return func(g *guest) error {
			began <- struct{}{}
			err := g.block(nil)
			ended <- err
			return err
		}
	})
	a.s.SetDraining(true)
	req := request("sleep")
	req.Deadline = time.Now().Add(30 * time.Millisecond)
	_, err := a.s.Invoke(context.Background(), req, newTaker())
	wantKind(t, err, lode.Deadline)
	<-began
	wantKind(t, <-ended, lode.Deadline)

	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	var out lode.Outcome
	go func() {
		o, err := a.s.Invoke(ctx, request("sleep"), newTaker())
		out = o
		done <- err
	}()
	<-began
	cancel()
	wantKind(t, <-done, lode.Cancelled)
	wantKind(t, <-ended, lode.Cancelled)
	eventually(t, "one record", func() bool { return len(c.records(out.ID)) == 1 })
}

// The catalog of the other node is a moment behind.
func TestLaggingCatalog(t *testing.T) {
	c := newFleet(t, Config{}, "a", "b")
	a, b := c.nodes["a"], c.nodes["b"]
	a.w.deploy("new", lode.Function{}, echo)
	a.s.SetDraining(true)
	done := make(chan lode.Outcome, 1)
	go func() {
		out, err := a.s.Invoke(context.Background(), request("new"), newTaker())
		if err != nil {
			t.Error(err)
		}
		done <- out
	}()
	eventually(t, "it waits at b", func() bool { return b.s.under.Load() == 1 })
	b.w.deploy("new", lode.Function{}, echo)
	if out := <-done; out.Node != "b" {
		t.Errorf("ran on %q", out.Node)
	}
	// Another content under the same number is not the revision.
	a.w.deploy("other", lode.Function{}, echo).Digest[0] = 1
	b.w.deploy("other", lode.Function{}, echo)
	req := request("other")
	req.Deadline = time.Now().Add(50 * time.Millisecond)
	_, err := a.s.Invoke(context.Background(), req, newTaker())
	if k := lode.KindOf(err); k != lode.Deadline && k != "" {
		t.Errorf("got %v", err)
	}
	if s := b.s.SpreadStats(); s.Served != 1 {
		t.Errorf("b ran what is not the revision: %+v", s)
	}
}

// A guest's call of another function goes the same way.
func TestGuestCallsSpread(t *testing.T) {
	c := newFleet(t, Config{}, "a", "b")
	a := c.nodes["a"]
	c.deploy("outer", lode.Function{}, func(*tnode) code {
		return func(g *guest) error {
			m, err := g.op(engine.OpCall, lode.Message{Head: []lode.Pair{{Key: ":address", Value: "inner"}}, Body: []byte("x")})
			if err != nil {
				return err
			}
			return g.answer(200, string(m.Body))
		}
	})
	c.deploy("inner", lode.Function{Access: lode.AccessInternal}, func(n *tnode) code {
		return func(g *guest) error { return g.answer(200, string(n.id)+" runs it for "+g.head.Get(":kind")) }
	})
	a.s.SetDraining(true)
	b := c.nodes["b"]
	ans := newTaker()
	if out, err := a.s.Invoke(context.Background(), request("outer"), ans); err != nil || out.Node != "b" || string(ans.Msg.Body) != "b runs it for call" {
		t.Errorf("%q on %q, %v", ans.Msg.Body, out.Node, err)
	}
	b.s.SetDraining(true)
	a.s.SetDraining(false)
	c.settle()
	ans = newTaker()
	if _, err := b.s.Invoke(context.Background(), request("outer"), ans); err != nil || string(ans.Msg.Body) != "a runs it for call" {
		t.Errorf("%q, %v", ans.Msg.Body, err)
	}
}
