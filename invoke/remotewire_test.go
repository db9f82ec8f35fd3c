package invoke

import (
	"bytes"
	"context"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"

	"lode"
	"lode/placement"
)

func someOrder(long int) *wireOrder {
	o := &wireOrder{what: wireRun, ns: "default", function: "f", rev: 300, patient: true, streamed: true, promised: 5, rtt: 6, left: time.Hour, attempt: 2, depth: 3}
	o.digest[31], o.trace.ID[0], o.trace.Span[7], o.trace.Sampled, o.trace.Parent[1] = 9, 1, 2, true, 3
	o.req = lode.Request{ID: "01ID", Handler: "h", Trigger: lode.TriggerCall, Method: "GET", Path: "/p", Caller: "default/c@1", IdempotencyKey: "k",
		Head: []lode.Pair{{Key: "a", Value: "b"}, {Key: "long", Value: strings.Repeat("x", long)}}}
	return o
}

func TestWireOrder(t *testing.T) {
	for _, long := range []int{0, 10, wireHead - 300, wireHead, 300 << 10} {
		o := someOrder(long)
		head, more := o.append(nil)
		if len(head) > wireHead {
			t.Errorf("a head of %d bytes", len(head))
		}
		body := append(append([]byte(nil), more...), "body"...)
		if got := missing(head); got != int64(len(more)) {
			t.Errorf("%d are missing, want %d", got, len(more))
		}
		got, rest, err := parseOrder(head, body)
		if err != nil || string(rest) != "body" || !reflect.DeepEqual(got, o) {
			t.Errorf("long %d: %v, rest %.10q\ngot  %+.200v\nwant %+.200v", long, err, rest, got, o)
		}
		for _, n := range []int{0, 1, 2, 10, len(head) - 1} {
			if _, _, err := parseOrder(head[:n], body); lode.KindOf(err) != lode.Invalid {
				t.Errorf("%d bytes of a head: %v", n, err)
			}
		}
	}
}

func TestWireUsage(t *testing.T) {
	u := lode.Usage{Queued: 1, Wall: 2, CPU: 3, Memory: 4, BodyIn: 5, BodyOut: 6, Cold: true, Clean: true, Operations: 7, LogDropped: 8}
	r := wireReader{b: appendUsage(nil, &u)}
	if got := r.usage(); got != u || r.err != nil || len(r.b) != 0 {
		t.Errorf("%+v, %v", got, r.err)
	}
}

func TestWireFailure(t *testing.T) {
	e := &lode.Error{Kind: lode.Full, Title: "own title", Detail: "d", Hint: "h", Invocation: "i", Trace: "t", RetryAfter: time.Second, Guest: &lode.GuestError{Type: "T"}}
	if got := parseFailure(appendFailure(e)); !reflect.DeepEqual(got, e) {
		t.Errorf("%+v", got)
	}
	if got := parseFailure(appendFailure(errors.New("plain"))); got.Kind != lode.Internal || got.Title != "" || got.Detail != "plain" {
		t.Errorf("%+v", got)
	}
	if got := parseFailure([]byte("garbage")); got.Kind != lode.Internal {
		t.Errorf("%+v", got)
	}
}

func FuzzParseLoad(f *testing.F) {
	s := &Service{cfg: Config{}, gate: newGate(2), long: newGate(1)}
	s.used.begin()
	s.used.ended(&lode.Revision{Namespace: "default", Name: "f", Number: 1}, time.Now(), time.Millisecond, false)
	f.Add(s.LoadReport())
	f.Add([]byte{loadVersion})
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := ParseLoad(b)
		if err != nil {
			return
		}
		if l.Slots < 0 || l.Queue < 0 || l.Mean < 0 || l.Memory < 0 || len(l.revs) > loadRevsMost {
			t.Errorf("%+v", l)
		}
		for _, r := range l.revs {
			if code, _ := l.rev(r.hash); code > placement.Warm {
				t.Errorf("code %d", code)
			}
		}
	})
}

func FuzzParseOrder(f *testing.F) {
	for _, long := range []int{0, 100 << 10} {
		head, more := someOrder(long).append(nil)
		f.Add(head, more)
	}
	head, _ := (&wireOrder{what: wireAsk, ns: "n", function: "f", rev: 1}).append(nil)
	f.Add(head, []byte("body"))
	f.Fuzz(func(t *testing.T, head, body []byte) {
		o, rest, err := parseOrder(head, body)
		if err != nil {
			return
		}
		again, more := o.append(nil)
		o2, rest2, err := parseOrder(again, append(more, rest...))
		if err != nil || !bytes.Equal(rest, rest2) || !reflect.DeepEqual(o, o2) {
			t.Errorf("%v: %+v, then %+v", err, o, o2)
		}
	})
}

func FuzzParseReply(f *testing.F) {
	u := lode.Usage{Wall: 5}
	f.Add(appendPairs(appendUsage([]byte{wireVersion, wireWhole, 0, 200, 1}, &u), []lode.Pair{{Key: "a", Value: "b"}}), []byte("body"))
	f.Add([]byte{wireVersion, wireBegun, 3, 200, 1, 0, 9}, []byte("\x00xxbody"))
	f.Add([]byte{wireVersion, wireRefused, 1, 5}, []byte{})
	f.Add(appendUsage([]byte{wireVersion, wireFailed}, &u), appendFailure(errBoom))
	f.Add([]byte{wireVersion, wireAsked, 5, 4, 1}, []byte{})
	f.Fuzz(func(t *testing.T, head, body []byte) {
		ans := &lode.Buffered{}
		fw := &forward{j: &journey{a: &attempt{ans: ans}}}
		if fw.Head(head) != nil {
			return
		}
		for len(body) > 0 { // in pieces
			n := min(len(body), 3)
			if _, err := fw.Write(body[:n]); err != nil {
				return
			}
			body = body[n:]
		}
		if fw.reply != nil && hasMore(fw.what) && (ans.Status < 100 || ans.Status > 999) {
			t.Errorf("status %d", ans.Status)
		}
		fw.note(head)
	})
}

// source is a body whose Read can be interrupted.
type source struct {
	*io.PipeReader
	w *io.PipeWriter
}

func newSource() source {
	r, w := io.Pipe()
	return source{r, w}
}

func TestReplay(t *testing.T) {
	text := strings.Repeat("0123456789", replayMost/10) + strings.Repeat("x", replayMost)
	r := &replay{src: strings.NewReader(text)}
	first := r.view()
	head, err := io.ReadAll(io.LimitReader(first, replayMost))
	if err != nil || string(head) != text[:replayMost] || !r.whole() {
		t.Fatalf("%d bytes, %v", len(head), err)
	}
	// More waits for the node to admit it; here it is lost first.
	got := make(chan error, 1)
	go func() {
		_, err := first.Read(make([]byte, 10))
		got <- err
	}()
	first.end()
	if err := <-got; err != io.ErrClosedPipe {
		t.Errorf("a view that is gone reads: %v", err)
	}
	second := r.view()
	second.admit()
	all, err := io.ReadAll(second)
	if err != nil || string(all) != text || r.whole() {
		t.Errorf("%d bytes of %d, %v", len(all), len(text), err)
	}
}

// What a view that is gone has read meanwhile is not lost for the next, and
// nothing is read when the invocation has ended.
func TestReplayReadUnderWay(t *testing.T) {
	src := newSource()
	r := &replay{src: src}
	first := r.view()
	read := make(chan string, 1)
	go func() {
		b := make([]byte, 10)
		n, _ := first.Read(b)
		read <- string(b[:n])
	}()
	eventually(t, "it reads", r.reading.Load)
	first.end()
	second := r.view()
	go src.w.Write([]byte("late"))
	b := make([]byte, 10)
	n, err := second.Read(b)
	if string(b[:n]) != "late" || err != nil || <-read != "late" {
		t.Errorf("%q, %v", b[:n], err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := second.Read(b)
		done <- err
	}()
	eventually(t, "it reads", r.reading.Load)
	r.close()
	if err := <-done; err == nil {
		t.Error("a Read was not interrupted")
	}
	if _, err := io.ReadAll(r.view()); err == nil {
		t.Error("a body is read after the end of its invocation")
	}
}

// A stream that the node does not take in is not taken from the client.
func TestRefusedStreamIsSentAgain(t *testing.T) {
	f, a, b, c := threeNodes(t, 1)
	began, free := make(chan struct{}, 1), make(chan struct{})
	f.deploy("hold", lode.Function{}, func(*tnode) code { return hold(began, free) })
	f.deploy("take", lode.Function{}, func(*tnode) code {
		return func(g *guest) error {
			n, err := io.Copy(io.Discard, g.inv.Stream)
			if err != nil || n != 1<<20 {
				return lode.Errorf(lode.Crashed, "%d bytes, %v", n, err)
			}
			return g.answer(200, "taken")
		}
	})
	c.s.SetDraining(false)
	f.settle()
	a.deaf.Store(true) // it takes b to be free, and c to have a long line
	a.mu.Lock()
	long := *a.loads["c"].load
	long.Queue, long.Mean = 5, 10
	a.loads["c"] = heard{&long, time.Now()}
	a.mu.Unlock()
	_, held := invoke(b, request("hold"), newTaker())
	<-began
	b.s.gate.mu.Lock()
	l := b.s.gate.laneOf(target{"default", "take"})
	l.cost, l.hold = int64(time.Hour), int64(time.Hour)
	b.s.gate.mu.Unlock()
	req := request("take")
	req.Stream = io.LimitReader(endless{}, 1<<20)
	out, err := a.s.Invoke(context.Background(), req, newTaker())
	if err != nil || out.Node != "c" {
		d, _ := a.s.Decision(out.ID)
		t.Fatalf("on %q: %v %+v", out.Node, err, d)
	}
	if st := a.s.SpreadStats(); st.Refused == 0 {
		t.Errorf("nothing was refused: %+v", st)
	}
	close(free)
	if err := <-held; err != nil {
		t.Error(err)
	}
}

// A guest that answers while its caller has yet to send is not held up.
func TestEarlyAnswerToStream(t *testing.T) {
	f := newFleet(t, Config{}, "a", "b")
	a := f.nodes["a"]
	f.deploy("early", lode.Function{}, func(*tnode) code {
		return func(g *guest) error {
			b := make([]byte, 3)
			if _, err := io.ReadFull(g.inv.Stream, b); err != nil {
				return err
			}
			read := make(chan struct{})
			go func() { // as an engine reads ahead
				g.inv.Stream.Read(make([]byte, 1))
				close(read)
			}()
			err := g.answer(200, "enough: "+string(b))
			g.inv.Stream.(io.Closer).Close()
			<-read
			return err
		}
	})
	a.s.SetDraining(true)
	src := newSource()
	req, ans := request("early"), newTaker()
	req.Stream = src
	go src.w.Write([]byte("abc"))
	out, err := a.s.Invoke(context.Background(), req, ans)
	if err != nil || out.Node != "b" || string(ans.Msg.Body) != "enough: abc" {
		t.Errorf("%q on %q, %v", ans.Msg.Body, out.Node, err)
	}
}
