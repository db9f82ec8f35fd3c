package invoke

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"lode"
	"lode/engine"
)

// inbox is a consumer that notes what it gets.
type inbox struct {
	mu      sync.Mutex
	batches [][]message
	answer  func(ms []message) string
}

func (b *inbox) code(g *guest) error {
	var in struct {
		Queue    string
		Messages []message
	}
	if err := json.Unmarshal(g.inv.Body, &in); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.batches = append(b.batches, in.Messages)
	if b.answer == nil {
		return g.answer(200, "")
	}
	ans := b.answer(in.Messages)
	if ans == "crash" {
		return crash(g)
	}
	return g.answer(200, ans)
}

func (b *inbox) sizes() (out []int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, ms := range b.batches {
		out = append(out, len(ms))
	}
	return out
}

func (b *inbox) bodies() (out []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, ms := range b.batches {
		for _, m := range ms {
			out = append(out, string(m.Body))
		}
	}
	return out
}

func put(t *testing.T, s *Service, queue, key, body string) string {
	t.Helper()
	id, err := s.PutQueue(context.Background(), "default", lode.Name(queue), key, 0, "text/plain", []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestQueueBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m, in := newWorld(), newMemory(), &inbox{}
		w.queues["orders"] = lode.Queue{}
		s := durable(t, w, m, Config{Slots: 1})
		defer s.Close()
		for i := range 25 { // they wait, durably, for a consumer to come
			put(t, s, "orders", "", fmt.Sprint(i))
		}
		if q := s.QueueState("default", "orders"); q.Depth != 25 || q.InFlight != 0 || len(q.Consumers) != 0 {
			t.Errorf("%+v", q)
		}
		w.deploy("ship", lode.Function{Queue: &lode.Consume{Queue: "orders"}}, in.code)
		synctest.Wait()
		if got := in.sizes(); !slices.Equal(got, []int{10, 10, 5}) {
			t.Errorf("batches of %v", got)
		}
		if m := in.batches[0][0]; m.Type != "text/plain" || m.Attempt != 1 || m.ID == "" || m.Time.IsZero() {
			t.Errorf("%+v", m)
		}
		q := s.QueueState("default", "orders")
		if q.Depth != 0 || q.InFlight != 0 || len(q.Consumers) != 1 {
			t.Errorf("%+v", q)
		}
	})
}

func TestQueueWaitsForFullerBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m, in := newWorld(), newMemory(), &inbox{}
		w.queues["orders"] = lode.Queue{}
		w.deploy("ship", lode.Function{Queue: &lode.Consume{Queue: "orders", Size: 3, Wait: time.Second}}, in.code)
		s := durable(t, w, m, Config{Slots: 1})
		defer s.Close()
		for range 4 {
			put(t, s, "orders", "", "x")
			time.Sleep(300 * time.Millisecond)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if got := in.sizes(); !slices.Equal(got, []int{3, 1}) {
			t.Errorf("batches of %v", got)
		}
	})
}

// Only the messages that failed come again, and those that fail too often
// become dead letters.
func TestQueuePartialFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newWorld(), newMemory()
		w.queues["orders"] = lode.Queue{Deliver: 3}
		in := &inbox{answer: func(ms []message) string {
			var retry []string
			for _, m := range ms {
				if strings.HasPrefix(string(m.Body), "bad") || string(m.Body) == "late" && m.Attempt < 2 {
					retry = append(retry, m.ID)
				}
			}
			b, _ := json.Marshal(map[string]any{"retry": retry})
			return string(b)
		}}
		w.deploy("ship", lode.Function{Queue: &lode.Consume{Queue: "orders"}, Retry: lode.Retry{First: time.Second, Max: time.Second}}, in.code)
		s := durable(t, w, m, Config{})
		defer s.Close()
		for _, b := range []string{"good", "late", "bad"} {
			put(t, s, "orders", "", b)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		count := map[string]int{}
		for _, b := range in.bodies() {
			count[b]++
		}
		if count["good"] != 1 || count["late"] != 2 || count["bad"] != 3 {
			t.Errorf("deliveries %v", count)
		}
		if q := s.QueueState("default", "orders"); q.Depth != 0 || q.InFlight != 0 || q.Dead != 1 {
			t.Errorf("%+v", q)
		}
		// The dead letter says where it comes from, and can be consumed.
		graves := &inbox{}
		w.deploy("bury", lode.Function{Queue: &lode.Consume{Queue: "orders-dead"}}, graves.code)
		synctest.Wait()
		if len(graves.batches) != 1 || string(graves.batches[0][0].Body) != "bad" || graves.batches[0][0].From != "orders" || graves.batches[0][0].Attempt != 1 {
			t.Errorf("%+v", graves.batches)
		}
	})
}

// A crash fails the batch; what can never succeed is a dead letter at once.
func TestQueueFailures(t *testing.T) {
	for name, c := range map[string]struct {
		fail code
		runs int
	}{
		"crash":         {crash, 2},
		"status":        {func(g *guest) error { return g.answer(500, "") }, 2},
		"client_status": {func(g *guest) error { return g.answer(404, "") }, 2},
		"invalid":       {func(g *guest) error { return lode.Errorf(lode.Invalid, "no") }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, m := newWorld(), newMemory()
				w.queues["orders"], w.queues["graves"] = lode.Queue{Deliver: 2}, lode.Queue{}
				runs := 0
				w.deploy("ship", lode.Function{Queue: &lode.Consume{Queue: "orders"}, Retry: lode.Retry{Dead: "graves"}}, func(g *guest) error { runs++; return c.fail(g) })
				s := durable(t, w, m, Config{})
				defer s.Close()
				put(t, s, "orders", "", "x")
				time.Sleep(time.Minute)
				synctest.Wait()
				if q := s.QueueState("default", "orders"); runs != c.runs || q.Depth != 0 || q.Dead != 1 || s.QueueState("default", "graves").Depth != 1 {
					t.Errorf("%d runs, %+v", runs, q)
				}
			})
		})
	}
}

// A batch that runs longer than the queue's visible time stays the consumer's.
func TestQueueStaysVisible(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newWorld(), newMemory()
		w.queues["orders"] = lode.Queue{Visible: 2 * time.Second}
		runs := 0
		w.deploy("ship", lode.Function{Queue: &lode.Consume{Queue: "orders"}}, func(g *guest) error {
			runs++
			done := make(chan struct{})
			time.AfterFunc(20*time.Second, func() { close(done) })
			if err := g.block(done); err != nil {
				return err
			}
			return g.answer(200, "")
		})
		s := durable(t, w, m, Config{})
		defer s.Close()
		put(t, s, "orders", "", "x")
		time.Sleep(time.Minute)
		synctest.Wait()
		if q := s.QueueState("default", "orders"); runs != 1 || q.Depth+q.InFlight+q.Dead != 0 {
			t.Errorf("%d runs, %+v", runs, q)
		}
	})
}

// While revisions change under load, each message is done once, and the new
// revision takes over.
func TestQueueRollingChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newWorld(), newMemory()
		w.queues["orders"] = lode.Queue{}
		boxes := []*inbox{{}, {}, {}}
		deploy := func(i int) {
			w.deploy("ship", lode.Function{Queue: &lode.Consume{Queue: "orders", Size: 1 + i}}, func(g *guest) error {
				done := make(chan struct{})
				time.AfterFunc(time.Second, func() { close(done) })
				if err := g.block(done); err != nil {
					return err
				}
				return boxes[i].code(g)
			})
		}
		deploy(0)
		s := durable(t, w, m, Config{Slots: 2})
		defer s.Close()
		for i := range 60 {
			put(t, s, "orders", "", fmt.Sprint(i))
			if i == 20 || i == 40 {
				deploy(i / 20)
			}
			time.Sleep(300 * time.Millisecond)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		var all []string
		for i, b := range boxes {
			if len(b.sizes()) == 0 {
				t.Errorf("revision %d did nothing", i+1)
			}
			all = append(all, b.bodies()...)
		}
		slices.Sort(all)
		if n := len(slices.Compact(all)); n != 60 || len(all) != 60 {
			t.Errorf("%d messages, %d different", len(all), n)
		}
		w.remove("ship")
		synctest.Wait()
		put(t, s, "orders", "", "x")
		time.Sleep(time.Minute)
		synctest.Wait()
		if q := s.QueueState("default", "orders"); q.Depth != 1 {
			t.Errorf("without a consumer: %+v", q)
		}
	})
}

func TestPutQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m, in := newWorld(), newMemory(), &inbox{}
		w.queues["orders"] = lode.Queue{}
		s := durable(t, w, m, Config{})
		defer s.Close()
		ctx := context.Background()
		_, err := s.PutQueue(ctx, "default", "nope", "", 0, "", nil)
		wantKind(t, err, lode.NotFound)
		_, err = s.PutQueue(ctx, "default", "nope-dead", "", 0, "", nil)
		wantKind(t, err, lode.NotFound)
		_, err = s.PutQueue(ctx, "default", "orders", strings.Repeat("k", maxKey+1), 0, "", nil)
		wantKind(t, err, lode.Invalid)
		_, err = s.PutQueue(ctx, "default", "orders", "", -1, "", nil)
		wantKind(t, err, lode.Invalid)
		w.deploy("ship", lode.Function{Queue: &lode.Consume{Queue: "orders"}}, in.code)
		for range 3 {
			if id := put(t, s, "orders", "same", "once"); id != "same" {
				t.Errorf("id %q", id)
			}
			time.Sleep(time.Second)
		}
		// A guest puts with a delay, which is kept.
		w.deploy("send", lode.Function{}, func(g *guest) error {
			m, err := g.op(engine.OpQueue, lode.Message{Head: []lode.Pair{{Key: ":queue", Value: "orders"}, {Key: ":delay", Value: "5000"}, {Key: "content-type", Value: "a/b"}}, Body: []byte("later")})
			if err != nil {
				return err
			}
			return g.answer(200, m.Get(":id"))
		})
		if _, _, err := call(s, "send", ""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5*time.Second - time.Nanosecond)
		synctest.Wait()
		if got := in.bodies(); !slices.Equal(got, []string{"once"}) {
			t.Errorf("before the delay: %q", got)
		}
		time.Sleep(time.Second)
		if got := in.bodies(); !slices.Equal(got, []string{"once", "later"}) {
			t.Errorf("after the delay: %q", got)
		}
	})
}

// Messages whose batch would be over the function's body limit come in
// several; one that is over it alone is a dead letter.
func TestQueueLargeMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m, in := newWorld(), newMemory(), &inbox{}
		w.queues["orders"] = lode.Queue{}
		s := durable(t, w, m, Config{Slots: 1})
		defer s.Close()
		for range 4 {
			put(t, s, "orders", "", strings.Repeat("x", 10<<10))
		}
		put(t, s, "orders", "", strings.Repeat("x", 64<<10))
		w.deploy("ship", lode.Function{Queue: &lode.Consume{Queue: "orders"}, Limits: lode.Limits{Body: 32 << 10}}, in.code)
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := in.sizes(); !slices.Equal(got, []int{2, 2}) {
			t.Errorf("batches of %v", got)
		}
		if q := s.QueueState("default", "orders"); q.Depth != 0 || q.Dead != 1 {
			t.Errorf("%+v", q)
		}
	})
}

func FuzzKept(f *testing.F) {
	w, _ := encodeWork(&work{ID: "1", Namespace: "n", Function: "f"}, []byte("body"))
	f.Add(w)
	f.Add(encodeMessage(envelope{Type: "t"}, []byte("body")))
	f.Add([]byte{255, 255, 255, 255, '{'})
	r, _ := encodeRecord(&record{Work: work{ID: "1"}, State: lode.StateDone})
	f.Add(r)
	f.Fuzz(func(t *testing.T, b []byte) {
		if w, body, err := decodeWork(b); err == nil {
			again, err := encodeWork(w, body)
			if err != nil {
				t.Fatal(err)
			}
			if w2, body2, err := decodeWork(again); err != nil || w2.ID != w.ID || string(body2) != string(body) {
				t.Fatalf("%v", err)
			}
		}
		if e, body, err := decodeMessage(b); err == nil {
			if e2, body2, err := decodeMessage(encodeMessage(e, body)); err != nil || e2.Type != e.Type || string(body2) != string(body) {
				t.Fatalf("%v", err)
			}
		}
		_, _ = decodeRecord(b)
	})
}
