package invoke

import (
	"context"
	"errors"
	"io"
	"iter"
	"maps"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"lode"
	"lode/engine"
)

// guest is a function written in Go, as the in-process runner runs it.
type guest struct {
	ctx  context.Context
	inv  *engine.Invocation
	head lode.Message // the request's head
}

// op submits an operation and waits for it, its slot given back.
func (g *guest) op(op engine.Op, m lode.Message) (lode.Message, error) {
	type result struct {
		m   lode.Message
		err error
	}
	ch := make(chan result, 1)
	g.inv.Host.Submit(g.ctx, op, m, func(m lode.Message, err error) { ch <- result{m, err} })
	g.inv.Slot.Leave()
	r := <-ch
	if err := g.inv.Slot.Enter(g.ctx); err != nil {
		return lode.Message{}, err
	}
	return r.m, r.err
}

func (g *guest) answer(status int, body string) error {
	if err := g.inv.Out.Head(engine.EncodeHead(nil, []lode.Pair{{Key: ":status", Value: strconv.Itoa(status)}})); err != nil {
		return err
	}
	_, err := io.WriteString(writer{g.inv.Out}, body)
	return err
}

type writer struct{ a engine.Answer }

func (w writer) Write(p []byte) (int, error) { return w.a.Write(p) }

// block waits until ch is closed, the invocation is cancelled or late.
func (g *guest) block(ch <-chan struct{}) error {
	g.inv.Slot.Leave()
	t := time.NewTimer(time.Until(g.inv.Deadline))
	defer t.Stop()
	select {
	case <-ch:
	case <-g.ctx.Done():
		return lode.Errorf(lode.Cancelled, "the invocation was cancelled")
	case <-t.C:
		return lode.Errorf(lode.Deadline, "did not end in time")
	}
	return g.inv.Slot.Enter(g.ctx)
}

type code func(g *guest) error

// goRunner runs a Go function as an engine runs a sandbox.
type goRunner struct{ code code }

func (r goRunner) Invoke(ctx context.Context, inv *engine.Invocation) error {
	g := &guest{ctx: ctx, inv: inv}
	var err error
	if g.head.Head, err = engine.DecodeHead(nil, inv.Head); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return lode.Errorf(lode.Cancelled, "the invocation was cancelled")
	}
	return r.code(g)
}

// world is a catalog with its pools, in memory.
type world struct {
	mu      sync.Mutex
	fns     map[string]*lode.Revision // by "ns/name"
	code    map[string]code
	queues  map[string]lode.Queue
	secrets map[string]string
	gen     uint64
	watch   map[int]func(uint64)
	lines   []string
	records []Record
}

func newWorld() *world {
	return &world{fns: map[string]*lode.Revision{}, code: map[string]code{}, queues: map[string]lode.Queue{}, secrets: map[string]string{}, watch: map[int]func(uint64){}}
}

// deploy makes the next revision of a function of the default namespace.
func (w *world) deploy(name string, f lode.Function, c code) *lode.Revision {
	w.mu.Lock()
	key := "default/" + name
	n := 1
	if old := w.fns[key]; old != nil {
		n = old.Number + 1
	}
	rev := &lode.Revision{Namespace: "default", Name: lode.Name(name), Number: n, Function: f}
	w.fns[key], w.code[rev.ID()] = rev, c
	w.mu.Unlock()
	w.tell()
	return rev
}

func (w *world) remove(name string) {
	w.mu.Lock()
	delete(w.fns, "default/"+name)
	w.mu.Unlock()
	w.tell()
}

func (w *world) tell() {
	w.mu.Lock()
	w.gen++
	gen, fs := w.gen, slices.Collect(maps.Values(w.watch))
	w.mu.Unlock()
	for _, f := range fs {
		f(gen)
	}
}

func (w *world) Resolve(ns lode.Namespace, name lode.Name, alias string, rnd uint32) (*lode.Revision, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r := w.fns[string(ns)+"/"+string(name)]; r != nil {
		return r, nil
	}
	return nil, lode.Errorf(lode.NotFound, "there is no function %s", name)
}

func (w *world) Secrets(ns lode.Namespace, names []string) (map[string]string, error) {
	out := map[string]string{}
	for _, n := range names {
		v, ok := w.secrets[n]
		if !ok {
			return nil, lode.Errorf(lode.NotFound, "secret %s is not set", n)
		}
		out[n] = v
	}
	return out, nil
}

func (w *world) Queue(ns lode.Namespace, name lode.Name) (lode.Queue, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	q, ok := w.queues[string(name)]
	if !ok {
		return q, lode.Errorf(lode.NotFound, "there is no queue %s", name)
	}
	return q, nil
}

func (w *world) Functions() iter.Seq[*lode.Revision] {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Values(slices.Collect(maps.Values(w.fns)))
}

func (w *world) Watch(f func(uint64)) func() {
	w.mu.Lock()
	defer w.mu.Unlock()
	id := len(w.watch)
	w.watch[id] = f
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.watch, id)
	}
}

func (w *world) Pool(rev *lode.Revision) (Runner, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.code[rev.ID()]
	if c == nil {
		return nil, lode.Errorf(lode.Unavailable, "no pool of %s", rev.ID())
	}
	return goRunner{c}, nil
}

func (w *world) Done(r *Record) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.records = append(w.records, *r)
}

func (w *world) Line(l *Line) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines = append(w.lines, string(l.Text))
}

var (
	_ Catalog  = (*world)(nil)
	_ Pools    = (*world)(nil)
	_ Observer = (*world)(nil)
)

// service opens a Service over w, closed when the test ends.
func (w *world) service(t testing.TB, cfg Config) *Service {
	t.Helper()
	cfg.Catalog, cfg.Pools, cfg.Observer = w, w, w
	s, err := Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func call(s *Service, name, body string) (*lode.Buffered, lode.Outcome, error) {
	ans := &lode.Buffered{}
	out, err := s.Invoke(context.Background(), &lode.Request{Namespace: "default", Function: lode.Name(name), Trigger: lode.TriggerHTTP, Body: []byte(body)}, ans)
	return ans, out, err
}

func wantKind(t *testing.T, err error, k lode.Kind) {
	t.Helper()
	if lode.KindOf(err) != k {
		t.Fatalf("got %v (%s), want kind %q", err, lode.KindOf(err), k)
	}
}

var errBoom = errors.New("boom")

func echo(g *guest) error { return g.answer(200, string(g.inv.Body)) }

func crash(g *guest) error {
	return &lode.Error{Kind: lode.Crashed, Detail: "the function crashed", Guest: &lode.GuestError{Type: "boom", Message: errBoom.Error()}}
}
