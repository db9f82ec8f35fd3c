package store

import (
	"context"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"lode"
)

// settleFor is how long a put that lost a node waits for the cluster to see
// that the node is gone, or for another to come.
const settleFor = 2 * time.Second

// Put implements Home: durable on min(copies, living nodes) nodes when it
// returns. A full node is passed over; Full if every node is.
func (r *Replicas) Put(ctx context.Context, d lode.Digest, src *io.SectionReader) error {
	return r.put(ctx, d, src, nil)
}

// put is Put of what sp holds, if there is one: where this node is one of
// those that keep the blob, its file is taken without a copy.
func (r *Replicas) put(ctx context.Context, d lode.Digest, src *io.SectionReader, sp *spool) error {
	if err := cancelled(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	p := &placing{r: r, d: d, size: src.Size(), sp: sp, copies: copiesOf(ctx, r.cfg.Copies), results: make(chan placed),
		tries: map[lode.NodeID]int{}, held: map[lode.NodeID]bool{}, as: PutAs{Modified: time.Now()}, ctx: ctx}
	p.src = io.NewSectionReader(&watched{ReaderAt: src, p: p}, 0, p.size)
	if cut := r.shelf.cutoff(d); !cut.Before(p.as.Modified) {
		p.as.Modified = cut.Add(1)
	}
	err := p.run()
	cancel()
	p.drain()
	if err != nil {
		return err
	}
	return p.agree(context.WithoutCancel(ctx))
}

// placing is one put under way. All but the puts themselves is done by one
// goroutine.
type placing struct {
	r       *Replicas
	d       lode.Digest
	src     *io.SectionReader
	size    int64
	sp      *spool
	copies  int
	as      PutAs
	ctx     context.Context
	results chan placed
	broken  atomic.Pointer[error] // what the source failed with

	tries   map[lode.NodeID]int
	held    map[lode.NodeID]bool // puts that run, or that were done
	pending int
	made    []placed
	failed  []placed
}

type placed struct {
	node lode.NodeID
	info Info
	err  error
}

// watched notices when the source itself cannot be read.
type watched struct {
	io.ReaderAt
	p *placing
}

func (w *watched) ReadAt(b []byte, off int64) (int, error) {
	n, err := w.ReaderAt.ReadAt(b, off)
	if err != nil && err != io.EOF {
		w.p.broken.CompareAndSwap(nil, &err)
	}
	return n, err
}

// run starts as many puts as copies are missing, the next node in order for
// each that failed, until there are enough.
func (p *placing) run() error {
	var wait, late <-chan time.Time // while there is nobody left to ask
	for again := 1; ; {
		nodes := p.r.peers.nodes()
		want := min(p.copies, living(nodes, p.r.cfg.Self))
		if len(p.made) >= want && len(p.made) > 0 {
			return nil
		}
		for len(p.made)+p.pending < want {
			n, ok := p.next(nodes, again)
			if !ok {
				break
			}
			p.start(n)
		}
		if p.pending == 0 {
			if late == nil {
				late = time.After(settleFor)
			}
			if !p.transient() {
				return p.refuse(want)
			}
			wait = time.After(100 * time.Millisecond)
		}
		select {
		case res := <-p.results:
			if err := p.take(res); err != nil {
				return err
			}
		case <-wait:
			again = 2
		case <-late:
			if p.pending == 0 {
				return p.refuse(want)
			}
		case <-p.ctx.Done():
			return cancelled(p.ctx)
		}
	}
}

// living counts the nodes that take blobs; this one is, even if the cluster
// has not heard of it yet.
func living(nodes []NodeState, self lode.NodeID) int {
	n := 0
	for _, s := range nodes {
		if (s.Alive || s.Node == self) && !s.Leaving {
			n++
		}
	}
	return max(n, 1)
}

// next is the node to try next: in the blob's order, those without room last.
func (p *placing) next(nodes []NodeState, tries int) (lode.NodeID, bool) {
	var up []NodeState
	tight := map[lode.NodeID]bool{}
	for _, s := range nodes {
		if (s.Alive || s.Node == p.r.cfg.Self) && !s.Leaving {
			up = append(up, s)
			tight[s.Node] = s.tight(p.size)
		}
	}
	if len(up) == 0 {
		up = []NodeState{{Node: p.r.cfg.Self}} // all are leaving: better here than nowhere
	}
	order := Arrange(p.d, up)
	slices.SortStableFunc(order, func(a, b lode.NodeID) int { return rank(tight[a]) - rank(tight[b]) })
	for try := range tries {
		for _, n := range order {
			if p.tries[n] == try && !p.held[n] {
				return n, true
			}
		}
	}
	return "", false
}

func rank(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (p *placing) start(n lode.NodeID) {
	p.tries[n]++
	p.held[n] = true
	p.pending++
	go func() {
		info, err := p.putTo(n)
		p.results <- placed{n, info, err}
	}()
}

// putTo gives the blob to one node. One that takes nothing for stallAfter is
// given up.
func (p *placing) putTo(n lode.NodeID) (Info, error) {
	if n == p.r.cfg.Self {
		if p.sp == nil {
			return p.r.shelf.Put(p.ctx, p.d, p.src, p.as)
		}
		if info, ok, err := p.r.shelf.Offer(p.ctx, p.d, p.as); ok || err != nil {
			return info, err
		}
		return p.r.shelf.place(p.d, p.sp, p.as)
	}
	return p.r.send(p.ctx, n, p.d, p.src, p.as)
}

// take counts a result. What is the fault of the caller ends the put.
func (p *placing) take(res placed) error {
	p.pending--
	if res.err == nil {
		p.made = append(p.made, res)
		return nil
	}
	delete(p.held, res.node)
	if broken := p.broken.Load(); broken != nil {
		return ioError("put blob "+p.d.String(), *broken)
	}
	if err := cancelled(p.ctx); err != nil {
		return err
	}
	if k := lode.KindOf(res.err); k == lode.Full || k == lode.Damaged {
		p.tries[res.node] = 2 // that does not pass
	}
	p.r.log.Debug("a node did not take a blob", "node", res.node, "digest", p.d, "err", res.err)
	p.failed = append(p.failed, res)
	return nil
}

// transient reports whether a failure may pass.
func (p *placing) transient() bool {
	return slices.ContainsFunc(p.failed, func(f placed) bool {
		k := lode.KindOf(f.err)
		return k != lode.Full && k != lode.Damaged
	})
}

// all reports whether no copy was made, and every node gave that reason.
func (p *placing) all(k lode.Kind) bool {
	return len(p.made) == 0 && len(p.failed) > 0 && !slices.ContainsFunc(p.failed, func(f placed) bool { return lode.KindOf(f.err) != k })
}

// refuse says why there are too few copies.
func (p *placing) refuse(want int) error {
	if p.all(lode.Damaged) {
		return p.failed[0].err // what was to be put is not what its name says
	}
	var errs []error
	for _, f := range p.failed {
		errs = append(errs, f.err)
	}
	if p.all(lode.Full) {
		return lode.Errorf(lode.Full, "no node has room for the %d bytes of blob %s: %s", p.size, p.d, oneLine(errs)).
			WithHint("free space on the nodes' disks, add a node, or lower what is kept (lode data gc)")
	}
	e := lode.Errorf(lode.Unavailable, "blob %s could be written to %d of %d nodes: %s", p.d, len(p.made), want, oneLine(errs)).
		WithHint("try again; lode nodes shows which nodes answer and have room")
	e.RetryAfter = time.Second
	return e
}

// drain waits for the puts that are still running, which were cancelled.
func (p *placing) drain() {
	for ; p.pending > 0; p.pending-- {
		<-p.results
	}
}

// agree makes all copies as young as the youngest: a node that knew of a later
// deletion moved the put behind it.
func (p *placing) agree(ctx context.Context) error {
	at := p.as.Modified
	for _, m := range p.made {
		if m.info.Modified.After(at) {
			at = m.info.Modified
		}
	}
	for _, m := range p.made {
		if m.info.Modified.Equal(at) {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, askFor)
		_, err := p.r.remote(m.node).Put(ctx, p.d, p.src, PutAs{Modified: at})
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

// send puts a blob to another node, and gives up when that takes nothing for
// stallAfter.
func (r *Replicas) send(ctx context.Context, n lode.NodeID, d lode.Digest, src *io.SectionReader, as PutAs) (Info, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	idle := time.AfterFunc(stallAfter, cancel)
	defer idle.Stop()
	moved := &pulse{ReaderAt: src, beat: func() { idle.Reset(stallAfter) }}
	info, err := r.cfg.Remote(n).Put(ctx, d, io.NewSectionReader(moved, 0, src.Size()), as)
	r.shelf.count.toPeers.Add(min(moved.bytes.Load(), src.Size()))
	if err != nil && ctx.Err() != nil {
		return info, lode.Errorf(lode.Unavailable, "node %s takes nothing any more", n)
	}
	return info, err
}

// pulse tells of each read of a source.
type pulse struct {
	io.ReaderAt
	beat  func()
	bytes atomic.Int64
}

func (p *pulse) ReadAt(b []byte, off int64) (int, error) {
	n, err := p.ReaderAt.ReadAt(b, off)
	p.bytes.Add(int64(n))
	p.beat()
	return n, err
}
