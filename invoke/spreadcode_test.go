package invoke

import (
	"context"
	"sync/atomic"
	"testing"

	"lode"
	"lode/link"
	"lode/placement"
)

// elsewhere are peers of which b has everything and answers everything at
// once.
type elsewhere struct {
	load   *NodeLoad
	calls  atomic.Int64
	refuse atomic.Int64 // so many of them are refused
}

func (*elsewhere) Self() lode.NodeID { return "a" }

func (p *elsewhere) Nodes() []NodeView {
	return []NodeView{{Node: "a"}, {Node: "b", RTT: testRTT, Load: p.load}}
}

func (p *elsewhere) Call(_ context.Context, _ lode.NodeID, _ *link.Request, a link.Answer) error {
	if p.calls.Add(1) <= p.refuse.Load() {
		return a.Head([]byte{wireVersion, wireRefused, refusedFull, 5})
	}
	head, _ := splitHead(append(appendUsage([]byte{wireVersion, wireWhole, 200, 1}, &lode.Usage{Wall: 1}), 0), 2)
	if err := a.Head(head); err != nil {
		return err
	}
	_, err := a.Write([]byte("from b"))
	return err
}

// depot is Pools that know how near code is, and can bring it.
type depot struct {
	*world
	code   atomic.Int32
	warmed chan struct{}
}

func (p *depot) Code(*lode.Revision) placement.Code { return placement.Code(p.code.Load()) }

func (p *depot) Pool(rev *lode.Revision) (Runner, error) {
	r, err := p.world.Pool(rev)
	return warmRunner{r, p}, err
}

type warmRunner struct {
	Runner
	p *depot
}

func (r warmRunner) Warm(context.Context, int) error {
	r.p.code.Store(int32(placement.Warm))
	close(r.p.warmed) // a second time would panic: it is brought once
	return nil
}

var (
	_ Peers  = (*elsewhere)(nil)
	_ Codes  = (*depot)(nil)
	_ warmer = warmRunner{}
)

// The code of a function that is called here again and again is brought in the
// background, and until it is there the calls go where it is.
func TestCodeIsBroughtBehind(t *testing.T) {
	w := newWorld()
	rev := w.deploy("hot", lode.Function{Size: 1000}, echo)
	p := &elsewhere{load: &NodeLoad{Load: placement.Load{Epoch: 1, Slots: 4, Mean: 1e-4}, revs: []revLoad{{revHash(rev), 1e-4, placement.Warm}}}}
	pools := &depot{world: w, warmed: make(chan struct{})}
	pools.code.Store(int32(placement.Compiled))
	s, err := Open(context.Background(), Config{Catalog: w, Pools: pools, Observer: w, Peers: p})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	there := 0
	for range 1000 {
		ans := &lode.Buffered{}
		out, err := s.Invoke(context.Background(), request("hot"), ans)
		if err != nil {
			t.Fatal(err)
		}
		if out.Node == "" {
			break
		}
		if there++; string(ans.Msg.Body) != "from b" {
			t.Fatalf("%q", ans.Msg.Body)
		}
	}
	<-pools.warmed
	// A hop is 2 ms and loading 5: two are not enough.
	if there < 3 || there == 1000 {
		t.Errorf("%d calls went to b", there)
	}
	if st := s.SpreadStats(); st.Brought != 1 || st.Forwarded != int64(there) {
		t.Errorf("%+v after %d calls", st, there)
	}
	if len(w.records) != 1 {
		t.Errorf("%d records: those of b are b's", len(w.records))
	}
	if l, err := ParseLoad(s.LoadReport()); err != nil || len(l.revs) != 1 || l.revs[0].code != placement.Warm {
		t.Errorf("%+v, %v", l, err)
	}
}

// A node that drains does not take work because the others are full.
func TestDrainingNodeWaitsForTheOthers(t *testing.T) {
	w := newWorld()
	p := &elsewhere{load: &NodeLoad{Load: placement.Load{Epoch: 1, Slots: 4, Mean: 1e-4}}}
	p.refuse.Store(4)
	s := w.service(t, Config{Peers: p})
	w.deploy("f", lode.Function{}, echo)
	s.SetDraining(true)
	ans := &lode.Buffered{}
	out, err := s.Invoke(context.Background(), request("f"), ans)
	if err != nil || out.Node != "b" || string(ans.Msg.Body) != "from b" {
		t.Errorf("%q on %q, %v", ans.Msg.Body, out.Node, err)
	}
	if st := s.SpreadStats(); st.Refused != 4 || st.Parked != 4 || st.Forwarded != 1 {
		t.Errorf("%+v", st)
	}
}

// A catalog that makes its revisions anew does not make them strangers.
func TestRevisionsMadeAnew(t *testing.T) {
	w := newWorld()
	p := &elsewhere{load: &NodeLoad{Load: placement.Load{Epoch: 1, Slots: 4, Mean: 1e-4}}}
	s := w.service(t, Config{Peers: p})
	rev := w.deploy("f", lode.Function{}, echo)
	for range 3 {
		if out, err := s.Invoke(context.Background(), request("f"), &lode.Buffered{}); err != nil || out.Node != "" {
			t.Fatalf("on %q, %v", out.Node, err)
		}
		again := *rev
		w.mu.Lock()
		w.fns["default/f"] = &again
		w.mu.Unlock()
		w.tell()
	}
	if n := p.calls.Load(); n != 0 {
		t.Errorf("%d calls", n)
	}
	if got := s.used.recent(); len(got) != 1 {
		t.Errorf("%d revisions were used", len(got))
	}
}
