package invoke

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"lode"
	"lode/engine"
)

// shelf is a Datasets with one shard.
type shelf struct{}

func (shelf) Show(_ context.Context, ns lode.Namespace, name lode.Name, version int) ([]byte, error) {
	if name != "mails" {
		return nil, lode.Errorf(lode.NotFound, "there is no dataset %s", name)
	}
	return []byte(`{"version":3}`), nil
}

func (shelf) Read(_ context.Context, ns lode.Namespace, name lode.Name, version, shard int, offset, length int64) ([]byte, error) {
	b := []byte("0123456789")
	return b[min(offset, 10):min(offset+length, 10)], nil
}

func (shelf) Index(context.Context, lode.Namespace, lode.Name, int, int) ([]byte, error) {
	return []byte(`{"names":["a"],"ends":[10]}`), nil
}

var _ Datasets = shelf{}

func pairs(kv ...string) (out []lode.Pair) {
	for i := 0; i < len(kv); i += 2 {
		out = append(out, lode.Pair{Key: kv[i], Value: kv[i+1]})
	}
	return out
}

func TestOperations(t *testing.T) {
	w := newWorld()
	w.secrets["KEY"], w.secrets["OTHER"] = "s3cret", "hidden"
	w.deploy("b", lode.Function{}, echo)
	var op engine.Op
	var req, got lode.Message
	var opErr error
	w.deploy("f", lode.Function{Env: map[string]string{"A": "1"}, Secrets: []string{"KEY", "UNSET"}}, func(g *guest) error {
		got, opErr = g.op(op, req)
		return g.answer(200, "")
	})
	s := w.service(t, Config{Datasets: shelf{}, Node: "n1"})
	for name, c := range map[string]struct {
		op   engine.Op
		head []lode.Pair
		kind lode.Kind
		body string
	}{
		"config":           {engine.OpConfig, pairs(":key", "A"), "", "1"},
		"config all":       {engine.OpConfig, nil, "", `{"A":"1"}`},
		"config unknown":   {engine.OpConfig, pairs(":key", "B"), lode.NotFound, ""},
		"secret":           {engine.OpSecret, pairs(":key", "KEY"), "", "s3cret"},
		"secret of others": {engine.OpSecret, pairs(":key", "OTHER"), lode.Denied, ""},
		"secret not set":   {engine.OpSecret, pairs(":key", "UNSET"), lode.NotFound, ""},
		"self":             {engine.OpSelf, nil, "", ""},
		"data show":        {engine.OpData, pairs(":dataset", "mails", ":verb", "show"), "", `{"version":3}`},
		"data read":        {engine.OpData, pairs(":dataset", "mails", ":verb", "read", ":shard", "0", ":offset", "2", ":length", "3"), "", "234"},
		"data index":       {engine.OpData, pairs(":dataset", "mails", ":verb", "index", ":shard", "0"), "", `{"names":["a"],"ends":[10]}`},
		"data number":      {engine.OpData, pairs(":dataset", "mails", ":verb", "read", ":shard", "-1"), lode.Invalid, ""},
		"data verb":        {engine.OpData, pairs(":dataset", "mails", ":verb", "write"), lode.Invalid, ""},
		"data unknown":     {engine.OpData, pairs(":dataset", "nope"), lode.NotFound, ""},
		"data name":        {engine.OpData, pairs(":dataset", "No!"), lode.Invalid, ""},
		"call":             {engine.OpCall, pairs(":address", "b"), "", "x"},
		"call unknown":     {engine.OpCall, pairs(":address", "nope"), lode.NotFound, ""},
		"call nonsense":    {engine.OpCall, pairs(":address", "/"), lode.Invalid, ""},
		"call agent":       {engine.OpCall, pairs(":address", "cart/alice"), lode.Unavailable, ""},
		"queue":            {engine.OpQueue, pairs(":queue", "orders"), lode.Unavailable, ""},
		"stream":           {engine.OpStreamRead, pairs(":stream", "1"), lode.NotFound, ""},
		"stream close":     {engine.OpStreamClose, pairs(":stream", "1"), lode.NotFound, ""},
		"send":             {engine.OpSend, nil, lode.Invalid, ""},
		"state":            {engine.OpState, nil, lode.Unavailable, ""},
		"group":            {engine.OpGroup, nil, lode.Invalid, ""},
		"unknown":          {99, nil, lode.Unavailable, ""},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			op, req = c.op, lode.Message{Head: c.head, Body: []byte("x")}
			if _, _, err := call(s, "f", ""); err != nil {
				t.Fatal(err)
			}
			if lode.KindOf(opErr) != c.kind || c.body != "" && string(got.Body) != c.body {
				t.Errorf("%v, %q; want %q, %q", opErr, got.Body, c.kind, c.body)
			}
			if name == "self" && (got.Get(":address") != "f" || got.Get(":namespace") != "default" || got.Get(":revision") != "1" || got.Get(":node") != "n1" || got.Get(":id") == "") {
				t.Errorf("%+v", got)
			}
		})
	}
}

// slowly is an answer whose client reads slowly.
type slowly struct {
	began, read chan struct{}
	once        sync.Once
	cold        bool
	flushed     int
	bytes.Buffer
}

func (a *slowly) Head(int, []lode.Pair) error             { return nil }
func (a *slowly) Started(cold bool, queued time.Duration) { a.cold = cold }
func (a *slowly) Flush()                                  { a.flushed++ }
func (a *slowly) Write(p []byte) (int, error) {
	a.once.Do(func() { close(a.began) })
	<-a.read
	return a.Buffer.Write(p)
}

// Who is slow to take an answer holds no slot.
func TestSlowClientHoldsNoSlot(t *testing.T) {
	w := newWorld()
	w.deploy("echo", lode.Function{}, func(g *guest) error { g.inv.Usage.Cold = true; return echo(g) })
	s := w.service(t, Config{Slots: 1})
	a := &slowly{began: make(chan struct{}), read: make(chan struct{})}
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := s.Invoke(context.Background(), &lode.Request{Namespace: "default", Function: "echo", Body: []byte("slow")}, a); err != nil {
			t.Error(err)
		}
	})
	<-a.began
	for range 10 {
		if _, _, err := call(s, "echo", "x"); err != nil {
			t.Fatal(err)
		}
	}
	close(a.read)
	wg.Wait()
	if a.String() != "slow" || !a.cold {
		t.Errorf("%q, cold %t", a.String(), a.cold)
	}
	if s.gate.free != 1 {
		t.Errorf("%d slots are free", s.gate.free)
	}
}

// What a guest has answered is handed on when it waits, not when it ends.
func TestAnswerIsFlushedWhenTheGuestWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		next := make(chan struct{})
		w.deploy("tell", lode.Function{}, func(g *guest) error {
			if err := g.answer(200, "one"); err != nil {
				return err
			}
			if err := g.block(next); err != nil {
				return err
			}
			if err := g.block(next); err != nil { // nothing new was written
				return err
			}
			_, err := g.inv.Out.Write([]byte("two"))
			return err
		})
		s := w.service(t, Config{})
		a := &slowly{began: make(chan struct{}), read: make(chan struct{})}
		close(a.read)
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := s.Invoke(context.Background(), &lode.Request{Namespace: "default", Function: "tell"}, a); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		if a.String() != "one" || a.flushed != 1 {
			t.Errorf("while the guest waits: %q, flushed %d times", a.String(), a.flushed)
		}
		next <- struct{}{}
		next <- struct{}{}
		wg.Wait()
		if a.String() != "onetwo" || a.flushed != 1 {
			t.Errorf("%q, flushed %d times", a.String(), a.flushed)
		}
	})
}

// A function that floods the node does not keep another from its turns. What
// is counted are turns, not time.
func TestFloodThroughInvoke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		var mu sync.Mutex
		var order []string
		work := func(name string) code {
			return func(g *guest) error {
				mu.Lock()
				order = append(order, name)
				mu.Unlock()
				time.Sleep(time.Millisecond) // computes: the slot is kept
				g.inv.Usage.CPU = time.Millisecond
				return g.answer(200, "")
			}
		}
		w.deploy("flood", lode.Function{}, work("flood"))
		w.deploy("modest", lode.Function{}, work("modest"))
		s := w.service(t, Config{Slots: 2})
		var wg sync.WaitGroup
		for range 500 {
			wg.Go(func() { call(s, "flood", "") })
		}
		synctest.Wait()
		before := len(order)
		for range 10 {
			wg.Go(func() { call(s, "modest", "") })
		}
		wg.Wait()
		if n := count(order[before:before+40], "modest"); n != 10 {
			t.Errorf("modest had %d of its 10 turns among the next 40", n)
		}
		loads := s.Loads()
		for _, l := range loads {
			if l.Running != 0 || l.Queued != 0 {
				t.Errorf("left: %+v", l)
			}
		}
	})
}

// Shards of jobs leave slots to others, wait without being refused, and are
// not held to the time of a request.
func TestJobsLeaveSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.deploy("echo", lode.Function{}, echo)
		var mu sync.Mutex
		under, most := 0, 0
		w.deploy("map", lode.Function{Limits: lode.Limits{Total: time.Second, QueueMax: 1}}, func(g *guest) error {
			mu.Lock()
			under++
			most = max(most, under)
			mu.Unlock()
			time.Sleep(time.Minute)
			mu.Lock()
			under--
			mu.Unlock()
			if !time.Now().Before(g.inv.Deadline) {
				return lode.Errorf(lode.Deadline, "too late")
			}
			return g.answer(200, "")
		})
		s := w.service(t, Config{Slots: 4})
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if _, err := s.Invoke(context.Background(), &lode.Request{Namespace: "default", Function: "map", Trigger: lode.TriggerJob}, &lode.Buffered{}); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		start := time.Now()
		if _, _, err := call(s, "echo", ""); err != nil || time.Since(start) != 0 {
			t.Errorf("waited %s for a job, %v", time.Since(start), err)
		}
		wg.Wait()
		if most != 2 {
			t.Errorf("%d shards at once", most)
		}
	})
}
