package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/zeebo/blake3"
	"go.uber.org/goleak"

	"lode"
	"lode/agent/journal"
	"lode/bus"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server.(*fileStore).flushStreamStateLoop"),
		goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server/ats.Register.func1"))
}

// long says whether there is time for long rounds.
func long() bool { return os.Getenv("LODE_LONG") != "" }

// scale is short, or many where there is time.
func scale(short, many int) int {
	if long() {
		return many
	}
	return short
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wantKind(t testing.TB, err error, k lode.Kind) {
	t.Helper()
	if lode.KindOf(err) != k {
		t.Errorf("kind %q, want %q (error: %v)", lode.KindOf(err), k, err)
	}
}

// until waits for something that comes by itself.
func until(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Duration(scale(60, 600)) * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if is() {
			return
		}
	}
	t.Fatalf("it never came: %s", what)
}

// method is a method of the kinds of these tests.
type method func(g *guest) error

// world is what the nodes of a test share.
type world struct {
	t     testing.TB
	dir   string
	log   *slog.Logger
	blobs *blobs
	net   *net // nil: there is one node

	mu    sync.Mutex
	kinds map[lode.Name]*lode.Revision
	code  map[string]method
	nodes map[lode.NodeID]*node
	set   []func(*Config)
}

// node is one node: its bus stays open while its Service comes and goes.
type node struct {
	w     *world
	id    lode.NodeID
	bus   *bus.Bus
	svc   atomic.Pointer[Service]
	shift atomic.Int64 // of its clock, ns
	dead  atomic.Pointer[context.CancelFunc]
	hooks hooksOf
	sent  frames

	ending sync.WaitGroup // crashes that are under way
}

// hooksOf are what a test has put into a node.
type hooksOf struct {
	mu    sync.Mutex
	fault func(point string) error
	kept  []func(point string) error // all there were: the race detector is confused by memory that is used again
	log   func(next journal.Log, ctx context.Context, entries [][]byte) (uint64, error)
}

// clear takes all of them out.
func (h *hooksOf) clear() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fault, h.log = nil, nil
}

type frames struct {
	mu   sync.Mutex
	list []lode.SocketFrame
}

func newWorld(t testing.TB, set ...func(*Config)) *world {
	w := &world{t: t, dir: t.TempDir(), log: slog.New(slog.DiscardHandler), blobs: &blobs{m: map[lode.Digest][]byte{}}, kinds: map[lode.Name]*lode.Revision{},
		code: map[string]method{}, nodes: map[lode.NodeID]*node{}, set: set}
	if testing.Verbose() {
		w.log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
	}
	w.basics()
	return w
}

// one is a world of one node, with the kind k.
func one(t testing.TB, set ...func(*Config)) (*world, *node) {
	w := newWorld(t, set...)
	w.kind("k", func(*lode.Function) {})
	n := &node{w: w, id: "a"}
	w.nodes["a"] = n
	n.bus = must(bus.Open(t.Context(), bus.Config{Dir: filepath.Join(w.dir, "bus"), Node: "a", Logger: w.log.With("of", "bus")}))(t)
	t.Cleanup(func() { n.bus.Close() })
	n.up()
	return w, n
}

// up opens the Service of n.
func (n *node) up() *Service {
	n.w.t.Helper()
	w := n.w
	cfg := Config{Self: n.id, Dir: filepath.Join(w.dir, "agents-"+string(n.id)), Bus: n.bus, Catalog: w, Runner: runner{n}, Blobs: w.blobs, Peers: n, Sockets: n,
		Alive: w.alive, Nodes: w.ids, Eligible: w.alive, Alone: func() bool { return w.net == nil },
		Now: func() time.Time { return time.Now().Add(time.Duration(n.shift.Load())) }, Logger: w.log.With("node", n.id)}
	cfg.probe = probe{fault: n.reached, wrap: func(l journal.Log) journal.Log { return &slowLog{n, l} },
		lease: 400 * time.Millisecond, detect: 200 * time.Millisecond}
	for _, f := range w.set {
		f(&cfg)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.dead.Store(&cancel)
	s, err := Open(ctx, cfg)
	for try := 0; lode.KindOf(err) == lode.Unavailable && try < 5; try++ { // the bus elects somebody
		s, err = Open(ctx, cfg)
	}
	if err != nil {
		cancel()
		w.t.Fatal(err)
	}
	n.svc.Store(s)
	w.t.Cleanup(func() { n.down(); n.ending.Wait(); cancel() })
	return s
}

// down closes the Service in order.
func (n *node) down() {
	if s := n.svc.Swap(nil); s != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		s.Close(ctx)
	}
}

// crash ends the Service without mercy: what is under way is cut off where it
// is, nobody is told.
func (n *node) crash() {
	s := n.svc.Swap(nil)
	if s == nil {
		return
	}
	s.mu.Lock()
	t := s.term
	s.mu.Unlock()
	if t != nil {
		t.w.Close()
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	s.Close(ctx)
}

// restart crashes n and opens it again.
func (n *node) restart() *Service {
	n.w.t.Helper()
	n.crash()
	n.ending.Wait()
	n.hooks.clear()
	return n.up()
}

func (n *node) reached(point string) error {
	n.hooks.mu.Lock()
	f := n.hooks.fault
	n.hooks.mu.Unlock()
	if f != nil {
		return f(point)
	}
	return nil
}

// slowLog is a journal's log that tests can make fail.
type slowLog struct {
	n    *node
	next journal.Log
}

func (l *slowLog) Commit(ctx context.Context, entries ...[]byte) (uint64, error) {
	l.n.hooks.mu.Lock()
	f := l.n.hooks.log
	l.n.hooks.mu.Unlock()
	if f != nil {
		return f(l.next, ctx, entries)
	}
	return l.next.Commit(ctx, entries...)
}

var _ journal.Log = (*slowLog)(nil)

// onCommit puts f before the log of n.
func (n *node) onCommit(f func(next journal.Log, ctx context.Context, entries [][]byte) (uint64, error)) {
	n.hooks.mu.Lock()
	defer n.hooks.mu.Unlock()
	n.hooks.log = f
}

// kind deploys a kind, or a new revision of it.
func (w *world) kind(name lode.Name, set func(*lode.Function)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	rev := &lode.Revision{Namespace: "ns", Name: name, Number: 1}
	if old := w.kinds[name]; old != nil {
		rev.Number = old.Number + 1
	}
	rev.Function.Limits.Total = 20 * time.Second
	rev.Function.Agent = &lode.AgentSpec{Partitions: 4, Read: []string{"get", "peek", "all"}}
	set(&rev.Function)
	w.kinds[name] = rev
}

// Kind implements Catalog.
func (w *world) Kind(ns lode.Namespace, kind lode.Name) (*lode.Revision, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if rev := w.kinds[kind]; rev != nil && ns == "ns" {
		return rev, nil
	}
	return nil, lode.Errorf(lode.NotFound, "there is no kind %s", kind)
}

func (w *world) remove(kind lode.Name) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.kinds, kind)
}

func (w *world) alive(n lode.NodeID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	node := w.nodes[n]
	return node != nil && node.svc.Load() != nil && (w.net == nil || !w.net.silent(n))
}

func (w *world) ids() (out []lode.NodeID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id := range w.nodes {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

// blobs keeps blobs in memory.
type blobs struct {
	mu   sync.Mutex
	m    map[lode.Digest][]byte
	fail error
}

func (b *blobs) Put(_ context.Context, p []byte) (lode.Digest, error) {
	d := lode.Digest(blake3.Sum256(p))
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fail != nil {
		return lode.Digest{}, b.fail
	}
	b.m[d] = bytes.Clone(p)
	return d, nil
}

func (b *blobs) Get(_ context.Context, d lode.Digest) ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p, ok := b.m[d]
	if !ok {
		return nil, lode.Errorf(lode.NotFound, "no blob %s", d)
	}
	return bytes.Clone(p), nil
}

// change changes every blob.
func (b *blobs) change(f func([]byte) []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for d, p := range b.m {
		b.m[d] = f(bytes.Clone(p))
	}
}

var _ Blobs = (*blobs)(nil)

// Deliver implements Sockets.
func (n *node) Deliver(_ context.Context, _ lode.NodeID, fs []lode.SocketFrame) (gone []string, err error) {
	n.sent.mu.Lock()
	defer n.sent.mu.Unlock()
	n.sent.list = append(n.sent.list, fs...)
	return nil, nil
}

// framesOf are the texts that a socket got.
func (n *node) framesOf(socket string) (out []string) {
	n.sent.mu.Lock()
	defer n.sent.mu.Unlock()
	for _, f := range n.sent.list {
		if f.Socket == socket {
			out = append(out, string(f.Data))
		}
	}
	return out
}

// runner runs methods that are written in Go.
type runner struct{ n *node }

func (r runner) Run(ctx context.Context, t *Turn) error {
	ctx, cancel := context.WithDeadline(ctx, t.Run.Deadline)
	defer cancel()
	m := &lode.Message{Head: t.Head}
	g := &guest{ctx: ctx, t: t, m: m, key: m.Get(":agent"), verb: m.Get(":verb"), body: t.Body}
	if t.Turn != lode.TurnCall && t.Turn != lode.TurnRead && t.Turn != lode.TurnTimer {
		g.verb = string(t.Turn)
	}
	r.n.w.mu.Lock()
	f := r.n.w.code[g.verb]
	r.n.w.mu.Unlock()
	if f == nil {
		return lode.Errorf(lode.NotFound, "no method %q", g.verb)
	}
	t.Sandbox = 1
	err := f(g)
	t.Answer.Body, t.Answer.Status = g.reply, g.status
	if ctx.Err() != nil {
		return lode.Errorf(lode.Deadline, "the turn %s was ended: %w", g.verb, ctx.Err())
	}
	if err != nil {
		return &lode.Error{Kind: lode.Crashed, Detail: err.Error(), Err: err}
	}
	return nil
}

var _ Runner = runner{}

// guest is what a method sees.
type guest struct {
	ctx    context.Context
	t      *Turn
	m      *lode.Message
	key    string
	verb   string
	body   []byte
	reply  []byte
	status int
	mu     sync.Mutex
}

// op performs an operation of the ABI.
func (g *guest) op(op Op, body []byte, pairs ...string) (lode.Message, error) {
	req := lode.Message{Body: body}
	for i := 0; i < len(pairs); i += 2 {
		req.Head = append(req.Head, lode.Pair{Key: pairs[i], Value: pairs[i+1]})
	}
	type result struct {
		m   lode.Message
		err error
	}
	done := make(chan result, 1)
	g.mu.Lock() // code runs on one goroutine
	ok := g.t.Ops.Operate(g.ctx, op, req, func(m lode.Message, err error) { done <- result{m, err} })
	g.mu.Unlock()
	if !ok {
		return lode.Message{}, lode.Errorf(lode.Unavailable, "no operation of turns: %d", op)
	}
	select {
	case r := <-done:
		return r.m, r.err
	case <-g.ctx.Done():
		return lode.Message{}, g.ctx.Err()
	}
}

func (g *guest) get(key string) (string, error) {
	m, err := g.op(OpState, nil, ":verb", "get", ":key", key)
	return string(m.Body), err
}

func (g *guest) put(key, value string) error {
	_, err := g.op(OpState, []byte(value), ":verb", "put", ":key", key)
	return err
}

func (g *guest) del(key string) error {
	_, err := g.op(OpState, nil, ":verb", "delete", ":key", key)
	return err
}

// list lists keys and values, one after another.
func (g *guest) list(pairs ...string) (out []string, err error) {
	m, err := g.op(OpState, nil, append([]string{":verb", "list"}, pairs...)...)
	if err != nil {
		return nil, err
	}
	b := m.Body[4:]
	for range binary.LittleEndian.Uint32(m.Body) {
		k, v := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
		out = append(out, string(b[8:8+k]), string(b[8+k:8+k+v]))
		b = b[8+k+v:]
	}
	return out, nil
}

func (g *guest) num(key string) (int, error) {
	s, err := g.get(key)
	if err != nil || s == "" {
		return 0, err
	}
	return strconv.Atoi(s)
}

func (g *guest) add(key string, by int) (int, error) {
	n, err := g.num(key)
	if err == nil {
		err = g.put(key, strconv.Itoa(n+by))
	}
	return n + by, err
}

func (g *guest) arg() int {
	n, _ := strconv.Atoi(string(g.body))
	return n
}

func (g *guest) say(v any) { g.reply = []byte(fmt.Sprint(v)) }

func (g *guest) call(addr, verb, body string, pairs ...string) (string, int, error) {
	m, err := g.op(OpCall, []byte(body), append([]string{":address", addr, ":verb", verb}, pairs...)...)
	status, _ := strconv.Atoi(m.Get(":status"))
	return string(m.Body), status, err
}

func (g *guest) send(addr, verb, body string, pairs ...string) error {
	_, err := g.op(OpSend, []byte(body), append([]string{":address", addr, ":verb", verb}, pairs...)...)
	return err
}

func (g *guest) timer(name string, after time.Duration, verb, body string) error {
	_, err := g.op(OpTimer, []byte(body), ":verb", "set", ":name", name, ":after", strconv.FormatInt(after.Milliseconds(), 10), ":call", verb)
	return err
}

// on adds a method.
func (w *world) on(verb string, f method) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.code[verb] = f
}

// basics are the methods that many tests use: a counter, a register, a log.
func (w *world) basics() {
	w.code["add"] = func(g *guest) error {
		n, err := g.add("n", g.arg())
		g.say(n)
		return err
	}
	get := func(g *guest) error {
		n, err := g.num("n")
		g.say(n)
		return err
	}
	w.code["get"] = get // only reads
	w.code["look"] = get
	w.code["put"] = func(g *guest) error { return g.put("v", string(g.body)) }
	w.code["peek"] = func(g *guest) error {
		v, err := g.get("v")
		g.say(v)
		return err
	}
	w.code["note"] = func(g *guest) error {
		v, err := g.get("v")
		if err != nil {
			return err
		}
		return g.put("v", v+string(g.body)+" ")
	}
	w.code["all"] = func(g *guest) error {
		kv, err := g.list()
		g.say(kv)
		return err
	}
	w.code["remove"] = func(g *guest) error {
		_, err := g.op(OpState, nil, ":verb", "remove")
		return err
	}
	w.code["fail"] = func(g *guest) error {
		if err := g.put("v", "never"); err != nil {
			return err
		}
		return fmt.Errorf("it fails")
	}
}

// try calls an agent at n.
func (n *node) try(addr, verb string, body any, set ...func(*lode.AgentCall)) (*lode.AgentReply, error) {
	a, err := lode.ParseAddress(addr)
	if err != nil {
		return nil, err
	}
	c := &lode.AgentCall{Namespace: "ns", Kind: a.Name, Key: a.Key, Method: verb, Body: []byte(fmt.Sprint(body))}
	for _, f := range set {
		f(c)
	}
	s := n.svc.Load()
	if s == nil {
		return nil, lode.Errorf(lode.Unavailable, "the node is down")
	}
	return s.Call(context.Background(), c)
}

// call is try that must succeed.
func (n *node) call(addr, verb string, body any, set ...func(*lode.AgentCall)) string {
	n.w.t.Helper()
	r, err := n.try(addr, verb, body, set...)
	if err != nil {
		n.w.t.Fatalf("%s %s: %v", addr, verb, err)
	}
	if r.Status >= 400 {
		n.w.t.Fatalf("%s %s: status %d: %s", addr, verb, r.Status, r.Body)
	}
	return string(r.Body)
}

// wants checks an answer.
func (n *node) wants(addr, verb string, body any, want string) {
	n.w.t.Helper()
	if got := n.call(addr, verb, body); got != want {
		n.w.t.Errorf("%s %s answered %q, want %q", addr, verb, got, want)
	}
}

// id gives a call an idempotency key.
func id(key string) func(*lode.AgentCall) {
	return func(c *lode.AgentCall) { c.ID, c.Given = key, true }
}

// within gives a call a deadline.
func within(d time.Duration) func(*lode.AgentCall) {
	return func(c *lode.AgentCall) { c.Deadline = time.Now().Add(d) }
}
