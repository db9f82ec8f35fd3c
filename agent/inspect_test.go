package agent

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zeebo/blake3"

	"lode"
	"lode/bus"
)

// shelf is kinds as the tests deploy and remove them.
type shelf struct {
	mu    sync.Mutex
	kinds map[lode.Name]*lode.Revision
	born  map[lode.Name]uint64
	gen   uint64
}

func (s *shelf) Kind(_ lode.Namespace, kind lode.Name) (*lode.Revision, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if rev := s.kinds[kind]; rev != nil {
		return rev, nil
	}
	return nil, lode.Errorf(lode.NotFound, "there is no kind %s", kind)
}

func (s *shelf) kept(_ lode.Namespace, kind lode.Name) (uint64, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	born, ok := s.born[kind]
	return born, ok
}

// deploy makes a kind live; one whose state is kept goes on with it.
func (s *shelf) deploy(kind lode.Name) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gen++
	if s.born[kind] == 0 {
		s.born[kind] = s.gen
	}
	s.kinds[kind] = &lode.Revision{Namespace: "ns", Name: kind, Number: int(s.gen), Function: lode.Function{Agent: &lode.AgentSpec{Partitions: 4, Read: []string{"get"}}}}
}

// remove removes a kind, and its state for ever if data is set.
func (s *shelf) remove(kind lode.Name, data bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.kinds, kind)
	if data {
		delete(s.born, kind)
	}
}

// heap is blobs in memory.
type heap struct {
	mu sync.Mutex
	m  map[lode.Digest][]byte
}

func (h *heap) Put(_ context.Context, b []byte) (lode.Digest, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := lode.Digest(blake3.Sum256(b))
	h.m[d] = slices.Clone(b)
	return d, nil
}

func (h *heap) Get(_ context.Context, d lode.Digest) ([]byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if b, ok := h.m[d]; ok {
		return b, nil
	}
	return nil, lode.Errorf(lode.NotFound, "no blob %s", d)
}

// nobody is the other nodes of a cluster that has none.
type nobody struct{}

func (nobody) Ask(context.Context, lode.NodeID, []byte, []byte) (head, body []byte, err error) {
	return nil, nil, lode.Errorf(lode.Unavailable, "there is no other node")
}

func (nobody) Deliver(context.Context, lode.NodeID, []lode.SocketFrame) ([]string, error) {
	return nil, nil
}

// script is the code of kinds: the method says what a turn does, and the body
// has its words.
type script struct{ gate chan struct{} }

func (r *script) Run(ctx context.Context, t *Turn) error {
	words := strings.Split(string(t.Body), " ")
	op := func(op Op, body string, head ...string) (lode.Message, error) {
		m := lode.Message{Body: []byte(body)}
		for i := 0; i < len(head); i += 2 {
			m.Head = append(m.Head, lode.Pair{Key: head[i], Value: head[i+1]})
		}
		got := make(chan lode.Message, 1)
		failed := make(chan error, 1)
		if !t.Ops.Operate(ctx, op, m, func(m lode.Message, err error) { got <- m; failed <- err }) {
			return m, lode.Errorf(lode.Internal, "operation %d was not taken", op)
		}
		return <-got, <-failed
	}
	var m lode.Message
	var err error
	switch t.Method {
	case "put":
		_, err = op(OpState, words[1], ":verb", "put", ":key", words[0])
	case "fill":
		_, err = op(OpState, strings.Repeat(words[0], 100_000), ":verb", "put", ":key", "large")
	case "get":
		m, err = op(OpState, "", ":verb", "get", ":key", words[0])
	case "timer":
		_, err = op(OpTimer, "later", ":verb", "set", ":name", words[0], ":after", words[1], ":call", "put", "content-type", "text/plain")
	case "send":
		_, err = op(OpSend, "k sent", ":verb", "put", ":address", words[0])
	case "call":
		m, err = op(OpCall, "", ":verb", "wait", ":address", words[0])
	case "wait":
		select {
		case <-r.gate:
		case <-ctx.Done():
			err = ctx.Err()
		}
	default:
		err = lode.Errorf(lode.Crashed, "no method %s", t.Method)
	}
	t.Answer.Body = m.Body
	return err
}

var (
	_ Catalog = (*shelf)(nil)
	_ Runner  = (*script)(nil)
	_ Blobs   = (*heap)(nil)
	_ Peers   = nobody{}
	_ Sockets = nobody{}
)

// lone is one node with the kinds cart and cup.
type lone struct {
	*Service
	t     *testing.T
	shelf *shelf
	code  *script
	heap  *heap
	bus   *bus.Bus
}

func openLone(t *testing.T) *lone {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	b, err := bus.Open(t.Context(), bus.Config{Dir: t.TempDir(), Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	l := &lone{t: t, shelf: &shelf{kinds: map[lode.Name]*lode.Revision{}, born: map[lode.Name]uint64{}}, code: &script{gate: make(chan struct{})}, heap: &heap{m: map[lode.Digest][]byte{}}, bus: b}
	l.shelf.deploy("cart")
	l.shelf.deploy("cup")
	yes := func(lode.NodeID) bool { return true }
	l.Service, err = Open(t.Context(), Config{Self: "a", Dir: t.TempDir(), Bus: b, Catalog: l.shelf, Runner: l.code, Blobs: l.heap, Peers: nobody{}, Sockets: nobody{}, Alive: yes,
		Nodes: func() []lode.NodeID { return []lode.NodeID{"a"} }, Eligible: yes, Alone: func() bool { return true }, Logger: quiet, Kept: l.shelf.kept,
		Stored: func(context.Context) (func(lode.Namespace, lode.Name) bool, error) {
			return func(ns lode.Namespace, k lode.Name) bool { _, ok := l.shelf.kept(ns, k); return ok }, nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return l
}

// do calls a method of kind/key.
func (l *lone) do(addr, method, body string) string {
	l.t.Helper()
	a, err := lode.ParseAddress(addr)
	if err != nil {
		l.t.Fatal(err)
	}
	r, err := l.Call(l.t.Context(), &lode.AgentCall{Namespace: "ns", Kind: a.Name, Key: a.Key, Method: method, Body: []byte(body)})
	if err != nil {
		l.t.Fatalf("%s %s: %v", addr, method, err)
	}
	return string(r.Body)
}

// show is an agent with its state as key=value.
func (l *lone) show(kind lode.Name, key string) (*Detail, string, error) {
	var kv []string
	d, err := l.Show(l.t.Context(), "ns", kind, key, func(k, v []byte) bool {
		kv = append(kv, fmt.Sprintf("%s=%.9s", k, v))
		return true
	})
	return d, strings.Join(kv, " "), err
}

// names are the addresses of a listing, in pages of two.
func (l *lone) names(kind lode.Name, partition int) (out []string) {
	l.t.Helper()
	for behind, more := "", true; more; {
		var page []Info
		var err error
		if page, more, err = l.List(l.t.Context(), "ns", kind, partition, behind, 2); err != nil {
			l.t.Fatal(err)
		}
		for i := range page {
			behind = page[i].Address()
			out = append(out, behind)
		}
		if len(page) > 2 || more && len(page) != 2 {
			l.t.Fatalf("a page of %d", len(page))
		}
	}
	return out
}

// soon waits for something that comes by itself.
func soon(t *testing.T, what string, is func() bool) {
	t.Helper()
	for range 2000 {
		if is() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("it never came: %s", what)
}

func isKind(t *testing.T, err error, want lode.Kind) {
	t.Helper()
	if lode.KindOf(err) != want {
		t.Fatalf("kind %q, want %q: %v", lode.KindOf(err), want, err)
	}
}

func TestList(t *testing.T) {
	l := openLone(t)
	if got := l.names("", -1); len(got) != 0 {
		t.Fatalf("agents of nobody: %v", got)
	}
	want := []string{}
	for _, key := range []string{"a", "a\x00", "a\x00b", "b/c", "z", "ä", "\xff\xff"} {
		for _, kind := range []string{"cart/", "cup/"} {
			l.do(kind+key, "put", "k v")
			want = append(want, kind+key)
		}
	}
	l.do("cart/only-read", "get", "k")
	slices.Sort(want)
	if got := l.names("", -1); !slices.Equal(got, want) {
		t.Errorf("all: %q, want %q", got, want)
	}
	if got := l.names("cup", -1); !slices.Equal(got, want[len(want)/2:]) {
		t.Errorf("of cup: %q", got)
	}
	if got := l.Unserved("ns", ""); len(got) != 0 {
		t.Errorf("a node that is here is missing: %v", got)
	}
	sum := 0
	for n := range 4 {
		part := l.names("cart", n)
		for _, a := range part {
			if lode.PartitionOf(strings.TrimPrefix(a, "cart/"), 4) != n {
				t.Errorf("%q is not in partition %d", a, n)
			}
		}
		sum += len(part)
	}
	parts, err := l.Parts(t.Context(), "ns", "cart")
	if err != nil || len(parts) != 4 {
		t.Fatalf("%v %v", parts, err)
	}
	agents, bytes := int64(0), int64(0)
	for _, p := range parts {
		agents, bytes = agents+p.Agents, bytes+p.Bytes
		if p.State == PartFree != !p.Here || p.Here && p.Epoch != 1 {
			t.Errorf("%+v", p)
		}
	}
	if sum != 7 || agents != 7 {
		t.Errorf("%d in partitions, %d counted, want 7", sum, agents)
	}
	_, _, err = l.List(t.Context(), "ns", "none", -1, "", 2)
	isKind(t, err, lode.NotFound)
	_, err = l.Parts(t.Context(), "ns", "none")
	isKind(t, err, lode.NotFound)
}

func TestShow(t *testing.T) {
	l := openLone(t)
	_, _, err := l.show("cart", "x")
	isKind(t, err, lode.NotFound)
	l.do("cart/x", "get", "k")
	_, _, err = l.show("cart", "x")
	isKind(t, err, lode.NotFound)
	l.do("cart/x", "put", "k v")
	l.do("cart/x", "fill", "y")
	l.do("cart/x", "timer", "tea 3600000")
	l.do("cart/x", "timer", "cake 60000")
	l.do("cart/x", "send", "cup/y")
	if _, err := l.Post(t.Context(), &lode.AgentCall{Namespace: "ns", Kind: "cart", Key: "x", Method: "put", Body: []byte("k w"), Delay: time.Hour / 2}); err != nil {
		t.Fatal(err)
	}
	d, kv, err := l.show("cart", "x")
	if err != nil || kv != "k=v large=yyyyyyyyy" || d.Keys != 2 || d.Bytes != 100_007 || d.More || d.Epoch != 1 || d.Revision != 1 {
		t.Fatalf("%q %+v %v", kv, d, err)
	}
	var set []string
	for _, x := range d.Set {
		set = append(set, x.Name+" "+x.Method)
	}
	if fmt.Sprint(set) != "[cake put (message) put tea put]" {
		t.Errorf("timers %q", set)
	}
	var turns []string
	for _, x := range d.Journal {
		turns = append(turns, fmt.Sprintf("%s %d/%d/%d", x.Method, x.Puts, x.Deletes, x.Sends))
	}
	if fmt.Sprint(turns) != "[put 1/0/0 fill 1/0/0 timer 0/0/0 timer 0/0/0 send 0/0/1 put 0/0/0]" {
		t.Errorf("turns %q", turns)
	}
	soon(t, "the message", func() bool { _, kv, err := l.show("cup", "y"); return err == nil && kv == "k=sent" })
	if s := l.Stats(); s.Turns < 7 || s.Partitions < 1 || s.Messages == 0 || s.Entries < s.Messages {
		t.Errorf("%+v", s)
	}
}

func TestRemove(t *testing.T) {
	l := openLone(t)
	ctx := t.Context()
	if err := l.Remove(ctx, "ns", "cart", "x"); err != nil {
		t.Fatalf("one that nobody has: %v", err)
	}
	isKind(t, l.Remove(ctx, "ns", "none", "x"), lode.NotFound)
	l.do("cart/x", "put", "k v")
	l.do("cart/x", "timer", "tea 3600000")
	for range 2 {
		if err := l.Remove(ctx, "ns", "cart", "x"); err != nil {
			t.Fatal(err)
		}
		_, _, err := l.show("cart", "x")
		isKind(t, err, lode.NotFound)
	}
	if got := l.names("", -1); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
	if got := l.do("cart/x", "get", "k"); got != "" {
		t.Errorf("it has %q still", got)
	}
}

// bury gives an agent a dead message, as failed does after the last try.
func (l *lone) bury(key string, x letter) {
	l.t.Helper()
	err := l.changing(l.t.Context(), "ns", "cart", key, true, "bury", func(t *turn) error {
		if err := t.bury(x, lode.Errorf(lode.Crashed, "it broke")); err != nil {
			return err
		}
		return nil
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

func TestReplay(t *testing.T) {
	l := openLone(t)
	l.bury("x", letter{To: "x", From: "cup/y", ID: "one", Method: "put", Body: []byte("k again")})
	l.bury("x", letter{To: "x", ID: "two", Method: "put", Body: []byte("t again"), timer: "tea"})
	l.bury("x", letter{To: "x", ID: "three", Method: "bad"})
	d, _, err := l.show("cart", "x")
	if err != nil || len(d.Letters) != 3 || d.Dead != 3 {
		t.Fatalf("%+v %v", d, err)
	}
	first, tea := d.Letters[0], d.Letters[1]
	if first.Caller != "cup/y" || first.Error.Kind != lode.Crashed || first.Tries != mostTries || first.Turn != lode.TurnCall || tea.Turn != lode.TurnTimer || tea.Timer != "tea" {
		t.Errorf("%+v %+v", first, tea)
	}
	_, err = l.Replay(t.Context(), "ns", "cart", "x", 7)
	isKind(t, err, lode.NotFound)
	for _, x := range d.Letters[:2] {
		got, err := l.Replay(t.Context(), "ns", "cart", "x", x.N)
		if err != nil || got.ID != x.ID {
			t.Fatalf("%+v %v", got, err)
		}
		_, err = l.Replay(t.Context(), "ns", "cart", "x", x.N)
		isKind(t, err, lode.NotFound)
	}
	soon(t, "what was dead", func() bool {
		d, kv, err := l.show("cart", "x")
		return err == nil && kv == "k=again t=again" && len(d.Letters) == 1 && d.Letters[0].Method == "bad" && len(d.Set) == 0
	})
	if got := l.Stats().Dead; got != 3 {
		t.Errorf("%d were given up, want 3", got)
	}
}

func TestExplain(t *testing.T) {
	l := openLone(t)
	x, err := l.Explain("ns", "cart", "x")
	if err != nil || x.Here || !strings.Contains(x.Summary, "nobody has asked") {
		t.Fatalf("%+v %v", x, err)
	}
	var all sync.WaitGroup
	for _, c := range [][3]string{{"cart/x", "call", "cup/y"}, {"cart/x", "put", "k v"}} {
		all.Go(func() { l.do(c[0], c[1], c[2]) })
		soon(t, c[1], func() bool { return len(l.Waits("ns")) >= map[string]int{"call": 2, "put": 3}[c[1]] })
	}
	soon(t, "the wait of x for y", func() bool {
		var got []string
		for _, w := range l.Waits("ns") {
			got = append(got, fmt.Sprint(w.From, ">", w.To, " ", w.Method, " ", w.Queued))
		}
		slices.Sort(got)
		return fmt.Sprint(got) == "[>cart/x call false >cart/x put true cart/x>cup/y wait false]"
	})
	if x, err = l.Explain("ns", "cart", "x"); err != nil || !x.Here {
		t.Fatalf("%+v %v", x, err)
	}
	last := x.Reasons[len(x.Reasons)-1]
	if last.What != "runs call on revision 1; messages that wait: 1" || last.Why != "it waits for cup/y" {
		t.Errorf("%+v", last)
	}
	soon(t, "both with work", func() bool { return fmt.Sprint(l.names("", -1)) == "[cart/x cup/y]" })
	close(l.code.gate)
	all.Wait()
	if w := l.Waits("ns"); len(w) != 0 {
		t.Errorf("waits for nothing: %+v", w)
	}
}

func TestMove(t *testing.T) {
	l := openLone(t)
	l.do("cart/x", "put", "k v")
	at, err := l.Where("ns", "cart", "x")
	if err != nil || at.Node != "a" || at.Partitions != 4 {
		t.Fatalf("%+v %v", at, err)
	}
	p, err := l.Move(t.Context(), "ns", "cart", at.Partition, "a")
	if err != nil || p.Node != "a" || p.Epoch != 1 {
		t.Errorf("to where it is: %+v %v", p, err)
	}
	for _, to := range []lode.NodeID{"", "b"} {
		_, err := l.Move(t.Context(), "ns", "cart", at.Partition, to)
		isKind(t, err, lode.Conflict)
	}
	if got := l.do("cart/x", "get", "k"); got != "v" {
		t.Errorf("after moves that were not: %q", got)
	}
}

func TestRate(t *testing.T) {
	var r rate
	now := int64(1_800_000_000_000)
	for range 60 {
		r.add(now)
		now += 1000
	}
	if got := r.perSecond(now); got < 0.9 || got > 1.1 {
		t.Errorf("%g a second, want 1", got)
	}
	if got := r.perSecond(now + 40_000); got <= 0 || got > 0.5 {
		t.Errorf("%g a second 40 s later", got)
	}
	if got := r.perSecond(now + 61_000); got != 0 {
		t.Errorf("%g a second a minute later", got)
	}
}

func TestDeadCodec(t *testing.T) {
	x := dead{At: 5, Why: "w", Kind: lode.Full, Tries: 3, Letter: letter{To: "t", From: "f", ID: "i", Method: "m", Type: "y", Body: []byte("b"), Due: 7, Trace: "r", kind: "k", timer: "n"}}
	got, err := decodeDead(x.encode())
	if err != nil || fmt.Sprint(got) != fmt.Sprint(x) {
		t.Errorf("%+v %v", got, err)
	}
}
