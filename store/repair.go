package store

import (
	"context"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"lode"
)

// Report is what one Repair did and found. All counts are of this node's own
// replicas at the time.
type Report struct {
	Blobs   int   `json:"blobs"` // replicas that were looked at
	Bytes   int64 `json:"bytes"`
	Copied  int   `json:"copied"` // copies that were made on other nodes
	Sent    int64 `json:"sent"`   // their bytes
	Dropped int   `json:"dropped"`
	Freed   int64 `json:"freed"`   // bytes of what was dropped or deleted
	Deleted int   `json:"deleted"` // that were deleted while this node did not hear of it
	// Surplus are replicas that are more than wanted and are dropped when they
	// have been for DropAfter.
	Surplus int `json:"surplus"`
	// Short are blobs that have fewer copies than wanted, and Waiting those of
	// them that only wait for a node that is neither alive nor gone.
	Short   int `json:"short"`
	Waiting int `json:"waiting"`
	// Needed are blobs that do not belong here, but are not yet where they
	// belong: a node that is leaving can be removed when none is left.
	Needed int `json:"needed"`
	// Trouble is the first reason why a blob stayed short, or "".
	Trouble string `json:"trouble,omitempty"`
}

const (
	repairBatch  = 256 // blobs in one question to a node
	repairAtOnce = 2   // transfers side by side
	verifyFor    = 2 * time.Minute
)

// limiter allows so many bytes a second, and a second's worth at once.
func limiter(perSecond int64) *rate.Limiter {
	return rate.NewLimiter(rate.Limit(perSecond), int(max(perSecond, 1<<20)))
}

// Repair is one pass of this node over its own replicas: what is missing where
// it belongs is copied there, what was deleted is deleted, what is more than
// wanted is dropped after a while. want says on how many nodes a blob should
// be; nil, and 0, mean the default. It may run on several nodes at once, and as
// often as one likes; a second call on this node waits for the first.
//
// The error is of this node (its directory, its context); what other nodes
// fail with is in the report.
func (r *Replicas) Repair(ctx context.Context, want func(lode.Digest) int) (Report, error) {
	select {
	case r.pass <- struct{}{}:
	case <-ctx.Done():
		return Report{}, cancelled(ctx)
	}
	defer func() { <-r.pass }()
	r.shelf.dead.expire(time.Now())
	r.shelf.expire(time.Now())
	p := &pass{r: r, want: want, nodes: r.peers.nodes()}
	var batch []Info
	for info, err := range r.shelf.List(ctx) {
		if err != nil {
			return p.report, err
		}
		if batch = append(batch, info); len(batch) == repairBatch {
			if err := p.take(ctx, batch); err != nil {
				return p.report, err
			}
			batch = batch[:0]
		}
	}
	err := p.take(ctx, batch)
	return p.report, err
}

// pass is one Repair.
type pass struct {
	r     *Replicas
	want  func(lode.Digest) int
	nodes []NodeState

	mu     sync.Mutex // guards report and what transfers find
	report Report
}

// subject is a blob that a pass looks at.
type subject struct {
	Info
	order   []lode.NodeID // nodes that may keep it
	copies  int           // wanted
	held    map[lode.NodeID]Held
	witness lode.NodeID // asked for deletions where no other node keeps the blob
	deleted bool
}

func (s *subject) targets() []lode.NodeID { return s.order[:s.copies] }

// take repairs a batch.
func (p *pass) take(ctx context.Context, infos []Info) error {
	var subjects []*subject
	for _, info := range infos {
		if size, gone := p.r.shelf.settle(info.Digest); gone {
			p.report.Deleted++
			p.report.Freed += size
			continue
		}
		p.report.Blobs++
		p.report.Bytes += info.Size
		subjects = append(subjects, p.subject(info))
	}
	p.ask(ctx, subjects)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(repairAtOnce)
	for _, s := range subjects {
		g.Go(func() error {
			p.repair(gctx, s)
			return cancelled(gctx)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return cancelled(ctx)
}

// subject works out where a blob belongs: among the nodes that are not gone
// and not leaving, the dead that are waited for included.
func (p *pass) subject(info Info) *subject {
	var keep []NodeState
	for _, n := range p.nodes {
		if !n.Leaving && (!n.Gone || n.Node == p.r.cfg.Self) {
			keep = append(keep, n)
		}
	}
	s := &subject{Info: info, order: Arrange(info.Digest, keep), held: map[lode.NodeID]Held{}}
	if p.want != nil {
		s.copies = p.want(info.Digest)
	}
	if s.copies <= 0 {
		s.copies = p.r.cfg.Copies
	}
	s.copies = min(s.copies, len(s.order))
	if !slices.ContainsFunc(s.targets(), p.answers) {
		alive, _ := p.r.peers.others(info.Digest)
		if len(alive) > 0 {
			s.witness = alive[0]
		}
	}
	return s
}

// answers reports whether n is another node, and alive.
func (p *pass) answers(n lode.NodeID) bool {
	return n != p.r.cfg.Self && slices.ContainsFunc(p.nodes, func(s NodeState) bool { return s.Node == n && s.Alive })
}

// ask asks every node, once, for all the blobs of the batch that belong there.
func (p *pass) ask(ctx context.Context, subjects []*subject) {
	about := map[lode.NodeID][]*subject{}
	for _, s := range subjects {
		for _, n := range s.targets() {
			if p.answers(n) {
				about[n] = append(about[n], s)
			}
		}
		if s.witness != "" {
			about[s.witness] = append(about[s.witness], s)
		}
	}
	var nodes []lode.NodeID
	for n := range about {
		nodes = append(nodes, n)
	}
	answers := each(ctx, askFor, nodes, func(ctx context.Context, n lode.NodeID) ([]Held, error) {
		var qs []Query
		for _, s := range about[n] {
			qs = append(qs, Query{s.Digest, s.Modified})
		}
		return p.r.peers.have(ctx, n, qs, false)
	})
	for i, a := range answers {
		for k, h := range a.value {
			s := about[nodes[i]][k]
			s.held[nodes[i]] = h
			s.deleted = s.deleted || h == HeldDeleted
		}
		if a.err != nil {
			p.trouble(a.err)
		}
	}
}

func (p *pass) trouble(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.report.Trouble == "" {
		p.report.Trouble = err.Error()
	}
}

// repair brings one blob where it belongs.
func (p *pass) repair(ctx context.Context, s *subject) {
	if s.deleted {
		p.forget(ctx, s)
		return
	}
	have, full, complete := 1, 0, true // this node has it
	waiting := 0
	for _, n := range s.targets() {
		if n == p.r.cfg.Self {
			continue
		}
		held, asked := s.held[n]
		if asked && held != HeldReplica {
			switch err := p.copyTo(ctx, s, n); lode.KindOf(err) {
			case "":
				held = HeldReplica
			case lode.Gone:
				p.forget(ctx, s)
				return
			case lode.Conflict:
				have++ // another node is sending it
			case lode.Full:
				full++
				p.trouble(err)
			default:
				p.trouble(err)
			}
		} else if !asked && !p.answers(n) {
			waiting++
		}
		if held == HeldReplica {
			have++
		} else {
			complete = false
		}
	}
	made := p.standIn(ctx, s, full)
	p.count(have+made < s.copies, have+made+waiting >= s.copies)
	p.surplus(ctx, s, complete || waiting == 0 && have+made > s.copies)
}

func (p *pass) count(short, waiting bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if short {
		p.report.Short++
		if waiting {
			p.report.Waiting++
		}
	}
}

// standIn copies the blob to the next nodes in order for those where it
// belongs whose disks are full, and returns how many have it now. This node's
// own replica is one, where it is next in order.
func (p *pass) standIn(ctx context.Context, s *subject, full int) int {
	made := 0
	for _, n := range s.order[s.copies:] {
		if n == p.r.cfg.Self {
			full--
			continue
		}
		if made >= full {
			break
		}
		if !p.answers(n) {
			continue
		}
		if err := p.copyTo(ctx, s, n); err == nil {
			made++
		} else {
			p.trouble(err)
		}
	}
	return made
}

// copyTo sends the blob to a node, at the pace of repair.
func (p *pass) copyTo(ctx context.Context, s *subject, n lode.NodeID) error {
	if slices.ContainsFunc(p.nodes, func(st NodeState) bool { return st.Node == n && st.tight(s.Size) }) {
		return lode.Errorf(lode.Full, "node %s has no room for the %d bytes of blob %s", n, s.Size, s.Digest)
	}
	f, err := p.r.files().open(ctx, s.Digest)
	if err != nil {
		if lode.KindOf(err) == lode.Damaged {
			p.r.shelf.quarantine(s.Digest, err)
		}
		return err
	}
	defer f.Close()
	sent := &paced{ReaderAt: f, ctx: ctx, budget: p.r.budget}
	_, err = p.r.send(ctx, n, s.Digest, io.NewSectionReader(sent, 0, s.Size), PutAs{Modified: s.Modified, Repair: true})
	if lode.KindOf(err) == lode.Damaged { // the file here has changed since it was verified, or the way did it
		if berr := p.r.shelf.Bad(ctx, s.Digest); berr != nil {
			return berr
		}
	}
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if sent.bytes.Load() > 0 || s.Size == 0 {
		p.report.Copied++
		p.report.Sent += s.Size
		p.r.shelf.count.repaired.Add(1)
	}
	return nil
}

// paced reads no faster than its budget.
type paced struct {
	io.ReaderAt
	ctx    context.Context
	budget *rate.Limiter
	bytes  atomic.Int64 // a transfer that broke off may still read
}

func (p *paced) ReadAt(b []byte, off int64) (int, error) {
	if most := p.budget.Burst(); len(b) > most {
		b = b[:most] // a SectionReader asks again for the rest
	}
	if err := p.budget.WaitN(p.ctx, len(b)); err != nil {
		return 0, err
	}
	p.bytes.Add(int64(len(b)))
	return p.ReaderAt.ReadAt(b, off)
}

// forget deletes a replica of a blob that was deleted while this node did not
// hear of it.
func (p *pass) forget(ctx context.Context, s *subject) {
	gone, err := p.r.shelf.Delete(ctx, s.Digest, s.Modified)
	if err != nil && lode.KindOf(err) != lode.Conflict {
		p.trouble(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if gone {
		p.report.Deleted++
		p.report.Freed += s.Size
	}
}

// surplus drops a replica that does not belong here, once it has been where it
// belongs for long enough, and those nodes have said that it is whole.
func (p *pass) surplus(ctx context.Context, s *subject, complete bool) {
	if slices.Contains(s.targets(), p.r.cfg.Self) {
		p.r.noSurplus(s.Digest)
		return
	}
	if !complete {
		p.r.noSurplus(s.Digest)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.report.Needed++
		return
	}
	due := p.r.surplusSince(s.Digest) >= p.r.cfg.DropAfter
	dropped := due && p.drop(ctx, s)
	p.mu.Lock()
	defer p.mu.Unlock()
	if dropped {
		p.report.Dropped++
		p.report.Freed += s.Size
	} else {
		p.report.Surplus++
	}
}

// drop removes a replica after every node where it belongs verified its own
// and promised to keep it. No node gives that promise while it drops.
func (p *pass) drop(ctx context.Context, s *subject) bool {
	d := s.Digest
	if !p.r.shelf.leave(d) {
		return false
	}
	defer p.r.shelf.stay(d)
	answers := each(ctx, verifyFor, s.targets(), func(ctx context.Context, n lode.NodeID) (bool, error) {
		h, err := p.r.peers.have(ctx, n, []Query{{d, s.Modified}}, true)
		return err == nil && h[0] == HeldReplica, err
	})
	for _, a := range answers {
		if !a.value {
			return false
		}
	}
	if len(answers) == 0 || !p.r.shelf.drop(d) {
		return false
	}
	p.r.noSurplus(d)
	return true
}

// surplusSince is for how long d has been more than wanted here.
func (r *Replicas) surplusSince(d lode.Digest) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.surplus[d]; !ok {
		r.surplus[d] = time.Now()
	}
	return time.Since(r.surplus[d])
}

func (r *Replicas) noSurplus(d lode.Digest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.surplus, d)
}
