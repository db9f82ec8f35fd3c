package invoke

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"lode"
	"lode/engine"
)

// roles is a function whose invocations do what a test gives them, by name.
type roles struct {
	mu sync.Mutex
	by map[string]code
}

func (r *roles) set(name string, c code) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.by == nil {
		r.by = map[string]code{}
	}
	r.by[name] = c
}

func (r *roles) run(g *guest) error {
	r.mu.Lock()
	c := r.by[string(g.inv.Body)]
	r.mu.Unlock()
	return c(g)
}

// talkers are nodes whose function f plays roles. An invocation runs where it
// comes in.
func talkers(t *testing.T, ids ...lode.NodeID) (*fleet, *roles) {
	c, r := newFleet(t, Config{Slots: 512}, ids...), &roles{}
	c.deploy("f", lode.Function{}, func(*tnode) code { return r.run })
	return c, r
}

// play runs a role on a node; the channel gives how it ended.
func (n *tnode) play(ctx context.Context, role string) <-chan error {
	done := make(chan error, 1)
	go func() {
		_, err := n.s.Invoke(ctx, &lode.Request{Namespace: "default", Function: "f", Trigger: lode.TriggerHTTP, Body: []byte(role)}, &lode.Buffered{})
		done <- err
	}()
	return done
}

func runOf(g *guest) string {
	m, err := g.op(engine.OpSelf, lode.Message{})
	if err != nil {
		return err.Error()
	}
	return m.Get(":run")
}

func (g *guest) next() (lode.Message, error) {
	return g.op(engine.OpReceive, lode.Message{Head: pairs(":verb", "next")})
}

func (g *guest) reply(to lode.Message, status, body string) error {
	_, err := g.op(engine.OpReceive, lode.Message{Head: pairs(":verb", "reply", ":reply", to.Get(":reply"), ":status", status, "content-type", "text/plain"), Body: []byte(body)})
	return err
}

// An invocation that runs is called and sent to, from its node, from another
// one, and from a turn of an agent.
func TestReceive(t *testing.T) {
	c, r := talkers(t, "a", "b")
	addr := make(chan string, 1)
	var heard []string
	r.set("server", func(g *guest) error {
		addr <- runOf(g)
		for {
			m, err := g.next()
			if err != nil {
				return err
			}
			heard = append(heard, fmt.Sprintf("%s %s %s %s %t", m.Get(":verb"), m.Get(":caller"), m.Get("content-type"), m.Body, m.Get(":reply") != ""))
			switch m.Get(":verb") {
			case "stop":
				return g.answer(200, "")
			case "fail":
				err = g.reply(m, "404", "no such thing")
			case "add":
				err = g.reply(m, "200", string(m.Body)+"!")
			}
			if err != nil {
				return err
			}
		}
	})
	served := c.nodes["a"].play(t.Context(), "server")
	to := <-addr
	if !strings.HasPrefix(to, "f/~a~") {
		t.Fatalf("address %q", to)
	}
	talk := func(g *guest) error {
		op := func(op engine.Op, verb, body string) (lode.Message, error) {
			return g.op(op, lode.Message{Head: pairs(":address", to, ":verb", verb, "content-type", "text/x"), Body: []byte(body)})
		}
		if m, err := op(engine.OpCall, "add", "1"); err != nil || m.Get(":status") != "200" || string(m.Body) != "1!" || m.Get("content-type") != "text/plain" {
			return fmt.Errorf("add: %v, %v", m, err)
		}
		if m, err := op(engine.OpCall, "fail", ""); err != nil || m.Get(":status") != "404" || string(m.Body) != "no such thing" {
			return fmt.Errorf("fail: %v, %v", m, err)
		}
		if m, err := op(engine.OpSend, "tell", "2"); err != nil || m.Get(":id") == "" {
			return fmt.Errorf("send: %v, %v", m, err)
		}
		_, err := g.op(engine.OpSend, lode.Message{Head: pairs(":address", to, ":verb", "x", ":delay", "5")})
		if lode.KindOf(err) != lode.Invalid {
			return fmt.Errorf("delayed: %w", err)
		}
		return g.answer(200, "")
	}
	r.set("talk", talk)
	for _, id := range []lode.NodeID{"a", "b"} {
		if err := <-c.nodes[id].play(t.Context(), "talk"); err != nil {
			t.Errorf("from %s: %v", id, err)
		}
	}
	b := c.nodes["b"]
	turn := &Turn{Revision: b.w.deploy("cart", lode.Function{}, talk), Head: pairs(":address", "cart/alice"), Deadline: time.Now().Add(time.Minute), Ops: noTurnOps{}}
	if err := b.s.RunTurn(t.Context(), turn); err != nil {
		t.Error(err)
	}
	r.set("stop", func(g *guest) error {
		_, err := g.op(engine.OpSend, lode.Message{Head: pairs(":address", to, ":verb", "stop")})
		return err
	})
	if err := <-b.play(t.Context(), "stop"); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	var want []string
	for _, caller := range []string{"f", "f", "cart/alice"} {
		want = append(want, "add "+caller+" text/x 1 true", "fail "+caller+" text/x  true", "tell "+caller+" text/x 2 false")
	}
	want = append(want, "stop f   false")
	if !slices.Equal(heard, want) {
		t.Errorf("heard\n%s\nwant\n%s", strings.Join(heard, "\n"), strings.Join(want, "\n"))
	}
	if n := len(c.nodes["a"].s.boxes.of); n != 0 {
		t.Errorf("%d mailboxes are left", n)
	}
}

// noTurnOps is an agent whose turn has no operations of its own.
type noTurnOps struct{}

func (noTurnOps) Operate(context.Context, engine.Op, lode.Message, func(lode.Message, error)) bool {
	return false
}

var _ TurnOps = noTurnOps{}

// A turn of an agent has an address too, beside its own.
func TestReceiveInTurn(t *testing.T) {
	w := newWorld()
	s := w.service(t, Config{Node: "n"})
	var got lode.Message
	rev := w.deploy("cart", lode.Function{}, func(g *guest) (err error) {
		if _, err = g.op(engine.OpSend, lode.Message{Head: pairs(":address", runOf(g), ":verb", "hi"), Body: []byte("x")}); err == nil {
			got, err = g.next()
		}
		return err
	})
	if err := s.RunTurn(t.Context(), &Turn{Revision: rev, Head: pairs(":address", "cart/alice"), Deadline: time.Now().Add(time.Minute), Ops: noTurnOps{}}); err != nil {
		t.Fatal(err)
	}
	if got.Get(":verb") != "hi" || got.Get(":caller") != "cart/alice" || got.Get(":reply") != "" || string(got.Body) != "x" {
		t.Errorf("%+v", got)
	}
}

// What goes wrong between an invocation and those who call it.
func TestReceiveRefusals(t *testing.T) {
	for _, from := range []lode.NodeID{"a", "b"} {
		t.Run(string(from), func(t *testing.T) {
			c, r := talkers(t, "a", "b")
			addr, release := make(chan string, 1), make(chan struct{})
			r.set("deaf", func(g *guest) error {
				addr <- runOf(g)
				return g.block(release)
			})
			deaf := c.nodes["a"].play(t.Context(), "deaf")
			to := <-addr
			s := c.nodes[from].s
			call := func(ctx context.Context, ns lode.Namespace, to string, wait bool) error {
				a, err := lode.ParseAddress(to)
				if err != nil {
					return err
				}
				run, ok, err := parseRun(a)
				if !ok || err != nil {
					return err
				}
				_, err = s.callRunning(ctx, run, &wireMail{Namespace: ns, To: to, Verb: "v", Wait: wait}, []byte("x"))
				return err
			}
			for _, bad := range []struct {
				ns   lode.Namespace
				to   string
				kind lode.Kind
			}{
				{"other", to, lode.Gone}, {"default", "g" + to[1:], lode.Gone}, {"default", to + "0", lode.Gone}, {"default", "f/~a~", lode.Invalid},
				{"default", "f/~~x", lode.Invalid}, {"default", "f/~a~x~y", lode.Invalid},
			} {
				if err := call(t.Context(), bad.ns, bad.to, true); lode.KindOf(err) != bad.kind {
					t.Errorf("%s %s: %v", bad.ns, bad.to, err)
				}
			}
			late, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			wantKind(t, call(late, "default", to, true), lode.Deadline)
			eventually(t, "the message of who gave up is dropped", func() bool { return waiting(c.nodes["a"].s) == 0 })
			for range maxMail {
				if err := call(t.Context(), "default", to, false); err != nil {
					t.Fatal(err)
				}
			}
			wantKind(t, call(t.Context(), "default", to, false), lode.Overloaded)
			wantKind(t, call(t.Context(), "default", to, true), lode.Overloaded)
			close(release)
			if err := <-deaf; err != nil {
				t.Error(err)
			}
			wantKind(t, call(t.Context(), "default", to, true), lode.Gone)
		})
	}
}

// waiting is how many messages wait at a node's invocations.
func waiting(s *Service) (n int) {
	s.boxes.mu.Lock()
	defer s.boxes.mu.Unlock()
	for _, b := range s.boxes.of {
		b.mu.Lock()
		n += len(b.waits)
		b.mu.Unlock()
	}
	return n
}

// Who waits for an answer learns that the invocation has ended; an answer to
// who has gone is refused.
func TestReceiveEnds(t *testing.T) {
	for _, from := range []lode.NodeID{"a", "b"} {
		t.Run(string(from), func(t *testing.T) {
			c, r := talkers(t, "a", "b")
			addr, gone := make(chan string, 1), make(chan struct{})
			var late, twice error
			r.set("server", func(g *guest) error {
				addr <- runOf(g)
				m, err := g.next()
				if err != nil {
					return err
				}
				if err := g.block(gone); err != nil {
					return err
				}
				for late == nil { // the caller's end travels
					late = g.reply(m, "200", "late")
				}
				if m, err = g.next(); err == nil {
					if err = g.reply(m, "200", ""); err == nil {
						twice = g.reply(m, "200", "")
					}
				}
				if err == nil {
					_, err = g.next() // and ends without an answer
				}
				return err
			})
			served := c.nodes["a"].play(t.Context(), "server")
			to := <-addr
			begun := make(chan struct{})
			var kinds []lode.Kind
			r.set("client", func(g *guest) error {
				ctx, cancel := context.WithCancel(g.ctx)
				for i := range 3 {
					ch := make(chan error, 1)
					g.inv.Host.Submit(ctx, engine.OpCall, lode.Message{Head: pairs(":address", to, ":verb", "v")}, func(_ lode.Message, err error) { ch <- err })
					if i == 0 {
						close(begun)
						eventually(t, "the call is taken", func() bool { return opened(c.nodes["a"].s) == 1 })
						cancel()
						ctx = g.ctx
					}
					kinds = append(kinds, lode.KindOf(<-ch))
					if i == 0 {
						eventually(t, "the call is forgotten", func() bool { return opened(c.nodes["a"].s) == 0 })
						close(gone)
					}
				}
				cancel()
				return g.answer(200, "")
			})
			client := c.nodes[from].play(t.Context(), "client")
			<-begun
			for _, ch := range []<-chan error{client, served} {
				if err := <-ch; err != nil {
					t.Error(err)
				}
			}
			if lode.KindOf(late) != lode.Gone || lode.KindOf(twice) != lode.Gone {
				t.Errorf("late: %v; twice: %v", late, twice)
			}
			if want := []lode.Kind{lode.Cancelled, "", lode.Gone}; !slices.Equal(kinds, want) {
				t.Errorf("got %q, want %q", kinds, want)
			}
		})
	}
}

// opened is how many answers a node's invocations owe.
func opened(s *Service) (n int) {
	s.boxes.mu.Lock()
	defer s.boxes.mu.Unlock()
	for _, b := range s.boxes.of {
		b.mu.Lock()
		n += len(b.open)
		b.mu.Unlock()
	}
	return n
}

// FuzzTalk feeds a node what another one says.
func FuzzTalk(f *testing.F) {
	w := newWorld()
	s := w.service(f, Config{Node: "a"})
	for what, v := range map[byte]any{
		talkMail: wireMail{Namespace: "default", To: "f/~a~x", Verb: "v"}, talkMany: wireMany{Members: []string{"f/~a~x"}, At: []int{0}, Method: "m"},
		talkJoin: wireJoin{Group: "g", Size: 1, Timeout: time.Millisecond}, talkRound: wireRound{Session: "s"}, talkEnd: wireEnd{Session: "s"}, talkDone: wireDone{Session: "s"},
	} {
		b, err := pack(v, []byte("rest"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(what, b)
	}
	f.Fuzz(func(t *testing.T, what byte, b []byte) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		answer, body, err := s.talk(ctx, "b", what, strings.NewReader(string(b)))
		if err == nil {
			_, err = pack(answer, body)
		}
		if lode.KindOf(err) == lode.Internal {
			t.Error(err)
		}
	})
}
