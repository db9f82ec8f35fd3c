package invoke

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"lode"
)

// town is several nodes that know who of them is alive.
type town struct {
	mu   sync.Mutex
	dead map[string]bool // by node and incarnation
}

func (h *town) alive(node lode.NodeID, incarnation string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.dead[string(node)+"/"+incarnation]
}

func (h *town) kill(s *Service) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.dead == nil {
		h.dead = map[string]bool{}
	}
	h.dead[s.cfg.Node+"/"+s.cfg.Incarnation] = true
}

func (h *town) node(t *testing.T, w *world, m *memory, name string) *Service {
	return node(t, w, m, name, Config{Alive: h.alive})
}

// back lets a node that was cut off be seen again.
func (h *town) back(s *Service) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.dead, s.cfg.Node+"/"+s.cfg.Incarnation)
}

func once(ctx context.Context, s *Service, key, body string) (string, lode.Outcome, error) {
	ans := &lode.Buffered{}
	out, err := s.Invoke(ctx, &lode.Request{Namespace: "default", Function: "once", Trigger: lode.TriggerHTTP, IdempotencyKey: key, Body: []byte(body)}, ans)
	return string(ans.Msg.Body), out, err
}

// Of several nodes that get the same key at once one runs the request; all tell
// the same answer, also later, and none takes another body.
func TestKeyAcrossNodes(t *testing.T) {
	for _, size := range []int{1, 2 * chunkBytes} {
		synctest.Test(t, func(t *testing.T) {
			w, m, h := newWorld(), newMemory(), &town{}
			var runs atomic.Int32
			w.deploy("once", lode.Function{}, func(g *guest) error {
				n := runs.Add(1)
				g.inv.Slot.Leave()
				time.Sleep(time.Second)
				if err := g.inv.Slot.Enter(g.ctx); err != nil {
					return err
				}
				return g.answer(200, strings.Repeat(fmt.Sprint(n), size))
			})
			var nodes []*Service
			for _, name := range []string{"a", "b", "c"} {
				s := h.node(t, w, m, name)
				defer s.Close()
				nodes = append(nodes, s)
			}
			ctx := context.Background()
			var wg sync.WaitGroup
			ids := make([]lode.InvocationID, 30)
			for i := range ids {
				wg.Go(func() {
					body, out, err := once(ctx, nodes[i%3], "k", "x")
					if ids[i] = out.ID; err != nil || body != strings.Repeat("1", size) {
						t.Errorf("%d: %d bytes, %v", i, len(body), err)
					}
				})
			}
			time.Sleep(100 * time.Millisecond)
			for _, s := range nodes {
				_, _, err := once(ctx, s, "k", "another body")
				wantKind(t, err, lode.KeyReused)
			}
			wg.Wait()
			for _, id := range ids {
				if id != ids[0] {
					t.Errorf("ids %s and %s", id, ids[0])
				}
			}
			time.Sleep(23 * time.Hour)
			if body, _, err := once(ctx, nodes[1], "k", "x"); err != nil || len(body) != size || runs.Load() != 1 {
				t.Errorf("a day later: %v, %d runs", err, runs.Load())
			}
			_, _, err := once(ctx, nodes[2], "k", "another body")
			wantKind(t, err, lode.KeyReused)
		})
	}
}

// The node that ran a request is gone: another one takes the key over. The
// first, which was only cut off, does not tell its own answer when it is back.
func TestKeyIsTakenOver(t *testing.T) {
	for _, size := range []int{1, 2 * chunkBytes} {
		synctest.Test(t, func(t *testing.T) {
			w, m, h := newWorld(), newMemory(), &town{}
			gates := []chan struct{}{make(chan struct{}), make(chan struct{})}
			var runs atomic.Int32
			w.deploy("once", lode.Function{Limits: lode.Limits{Total: time.Hour}}, func(g *guest) error {
				n := runs.Add(1)
				if err := g.block(gates[n-1]); err != nil {
					return err
				}
				return g.answer(200, strings.Repeat(fmt.Sprint(n), size))
			})
			a, b := h.node(t, w, m, "a"), h.node(t, w, m, "b")
			defer a.Close()
			defer b.Close()
			ctx := context.Background()
			answers := make(chan string, 2)
			tell := func(s *Service) {
				body, _, err := once(ctx, s, "k", "x")
				if err != nil {
					t.Error(err)
				}
				answers <- body
			}
			go tell(a)
			synctest.Wait()
			go tell(b)
			for range 20 { // cut off for moments
				time.Sleep(goneFor)
				h.kill(a)
				time.Sleep(goneFor / 2)
				h.back(a)
			}
			if runs.Load() != 1 {
				t.Fatalf("%d runs while the first node is alive", runs.Load())
			}
			h.kill(a)
			time.Sleep(goneFor / 2)
			if runs.Load() != 1 {
				t.Fatalf("%d runs when it has just gone", runs.Load())
			}
			time.Sleep(goneFor)
			if runs.Load() != 2 {
				t.Fatalf("%d runs after it is gone", runs.Load())
			}
			close(gates[0]) // too late: it must wait for the other's answer
			time.Sleep(time.Minute)
			if len(answers) != 0 {
				t.Error("an answer was told while the key was another's")
			}
			close(gates[1])
			for range 2 {
				if body := <-answers; body != strings.Repeat("2", size) {
					t.Errorf("told %.1q", body)
				}
			}
			if n := m.count("bodies"); size == 1 && n != 0 || n > 2 {
				t.Errorf("%d chunks", n)
			}
		})
	}
}

// A run that fails leaves no claim, whoever went away.
func TestKeyOfARunThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m, h := newWorld(), newMemory(), &town{}
		var runs atomic.Int32
		w.deploy("once", lode.Function{Limits: lode.Limits{Total: time.Hour}}, func(g *guest) error {
			switch runs.Add(1) {
			case 1:
				return crash(g)
			case 2:
				return g.block(nil)
			}
			return g.answer(200, "ok")
		})
		a, b := h.node(t, w, m, "a"), h.node(t, w, m, "b")
		defer a.Close()
		defer b.Close()
		_, _, err := once(context.Background(), a, "k", "x")
		wantKind(t, err, lode.Crashed)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, _, err = once(ctx, a, "k", "x")
		wantKind(t, err, lode.Deadline)
		if n := m.count("keys"); n != 0 {
			t.Errorf("%d claims are left", n)
		}
		if body, _, err := once(context.Background(), b, "k", "x"); body != "ok" || err != nil {
			t.Errorf("%q %v", body, err)
		}
	})
}

// The storage does not answer when the claim is to be made, taken away or
// answered: nothing is told that is not kept, and when it answers again nobody
// is held up, and nobody runs it again who need not.
func TestKeyWhileTheStorageIsOut(t *testing.T) {
	for _, c := range []struct {
		op   string // that fails
		take bool   // the write is done all the same
		runs int32
	}{
		{"keys create", false, 1}, {"keys create", true, 1}, {"keys update", false, 1}, {"keys update", true, 1},
	} {
		t.Run(fmt.Sprintf("%s,done=%v", c.op, c.take), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, m, h := newWorld(), newMemory(), &town{}
				var runs atomic.Int32
				w.deploy("once", lode.Function{}, func(g *guest) error { runs.Add(1); return g.answer(200, "ok") })
				a, b := h.node(t, w, m, "a"), h.node(t, w, m, "b")
				defer a.Close()
				defer b.Close()
				out := lode.Errorf(lode.Unavailable, "there is no quorum")
				m.setFail(c.take, func(op, key string) error {
					if op == c.op {
						return out
					}
					return nil
				})
				_, _, err := once(context.Background(), a, "k", "x")
				wantKind(t, err, lode.Unavailable)
				m.setFail(false, nil)
				begin := time.Now()
				body, _, err := once(context.Background(), b, "k", "x")
				if body != "ok" || err != nil || runs.Load() != c.runs {
					t.Errorf("%q %v after %d runs", body, err, runs.Load())
				}
				if d := time.Since(begin); d > time.Minute {
					t.Errorf("held up for %s", d)
				}
			})
		})
	}
}

// A process that died leaves the claim that covers a long answer: the next one
// of the node runs the request, and the pieces are gone.
func TestKeyAfterACrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newWorld(), newMemory()
		var runs atomic.Int32
		w.deploy("once", lode.Function{}, func(g *guest) error {
			return g.answer(200, strings.Repeat(fmt.Sprint(runs.Add(1)), 2*chunkBytes))
		})
		s := durable(t, w, m, Config{Node: "a"})
		m.setFail(false, func(op, key string) error {
			if strings.HasPrefix(op, "keys update") {
				return lode.Errorf(lode.Unavailable, "the node is dying")
			}
			return nil
		})
		_, _, err := once(context.Background(), s, "k", "x")
		wantKind(t, err, lode.Unavailable)
		s.Close()
		m.setFail(false, nil)
		if keys, chunks := m.count("keys"), m.count("bodies"); keys != 1 || chunks != 2 {
			t.Fatalf("%d keys, %d chunks", keys, chunks)
		}
		s = durable(t, w, m, Config{Node: "a"})
		defer s.Close()
		if body, _, err := once(context.Background(), s, "k", "x"); err != nil || body != strings.Repeat("2", 2*chunkBytes) {
			t.Errorf("%.1q %v", body, err)
		}
		if n := m.count("bodies"); n != 2 {
			t.Errorf("%d chunks", n)
		}
	})
}

// The tables are copied, with new revisions, while a request runs: it runs
// once all the same. A node that is alone makes no claim.
func TestKeyWhileTheTablesMove(t *testing.T) {
	for _, size := range []int{1, 2 * chunkBytes} {
		for _, alone := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				w, m, h := newWorld(), newMemory(), &town{}
				var runs atomic.Int32
				var s *Service
				w.deploy("once", lode.Function{}, func(g *guest) error {
					runs.Add(1)
					if n := m.count("keys"); alone != (n == 0) {
						t.Errorf("alone: %v, with %d claims", alone, n)
					}
					m.renumber()
					return g.answer(200, strings.Repeat("x", size))
				})
				s = node(t, w, m, "a", Config{Alive: h.alive, Alone: func() bool { return alone }})
				defer s.Close()
				for range 2 {
					if body, _, err := once(context.Background(), s, "k", "x"); err != nil || len(body) != size || runs.Load() != 1 {
						t.Errorf("%d bytes, %v, %d runs", len(body), err, runs.Load())
					}
				}
			})
		}
	}
}
