package link

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"lode"
)

// peer is one other node: its connections, of which at most one takes new
// calls, and what is known of it.
type peer struct {
	l    *Link
	node lode.NodeID

	// guarded by Link.mu
	wanted bool
	quit   context.CancelFunc // of the goroutine that keeps it connected

	bytesIn, bytesOut, calls, served, refused atomic.Int64
	rtt, least, skew                          atomic.Int64 // nanoseconds
	lastHeard                                 atomic.Int64 // wall clock, when the last connection ended
	bandwidth                                 atomic.Uint64
	clock                                     sync.Mutex // guards the two below
	trips                                     [16]trip
	tripAt                                    int

	mu      sync.Mutex
	cur     *conn              // takes new calls; nil: none
	all     map[*conn]struct{} // cur, and those that end
	why     error              // why cur is nil
	removed bool               // refused until it is wanted again
	changed chan struct{}      // closed and replaced when cur changes
}

func newPeer(l *Link, node lode.NodeID) *peer {
	return &peer{l: l, node: node, all: map[*conn]struct{}{}, changed: make(chan struct{})}
}

// conn is where calls go, or why they cannot.
func (p *peer) conn() (*conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cur, p.why
}

func (p *peer) state() (changed <-chan struct{}, cur *conn, why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed, p.cur, p.why
}

func (p *peer) stopped() bool {
	select {
	case <-p.l.done:
		return true
	default:
		return false
	}
}

// want keeps the peer connected; Link.mu is held.
func (p *peer) want() {
	ctx, cancel := context.WithCancel(context.Background())
	p.wanted, p.quit = true, cancel
	p.mu.Lock()
	p.removed = false
	p.mu.Unlock()
	if p.l.cfg.Dial != nil {
		p.l.wg.Go(func() { p.keep(ctx) })
	}
}

// unwant stops that; Link.mu is held.
func (p *peer) unwant() {
	if p.wanted {
		p.wanted = false
		p.quit()
	}
}

// drop ends every connection with the peer and lets no other come.
func (p *peer) drop(why error) {
	p.mu.Lock()
	p.removed = true
	p.setCur(nil, why)
	var all []*conn
	for c := range p.all {
		all = append(all, c)
	}
	p.mu.Unlock()
	for _, c := range all {
		c.shut(why)
	}
}

// setCur makes c the connection for new calls; p.mu is held.
func (p *peer) setCur(c *conn, why error) {
	was := p.cur
	p.cur, p.why = c, why
	if was == c {
		return
	}
	close(p.changed)
	p.changed = make(chan struct{})
	switch {
	case c == nil:
		p.l.news.add(change{p.node, false, why})
	case was == nil:
		p.l.news.add(change{p.node, true, nil})
	}
}

// verdict is what becomes of a new connection.
type verdict int

const (
	takes   verdict = iota // new calls go over it
	drains                 // it serves what the peer begins before it knows
	refused                // it ends at once
)

// judge compares a new connection with the one that is there. Both ends come
// to the same answer:
//   - an old one of another run of the peer is dead;
//   - of two that the same side dialled the later one stays;
//   - a peer that dials though it has answered the old one before has lost it;
//   - else the two crossed, and that of the node with the lesser name stays.
func judge(self, peer lode.NodeID, old, c *conn) verdict {
	mine := func(x *conn) bool { return x.dialled == (self < peer) } // dialled by the lesser name
	switch {
	case old == nil || old.remote.instance != c.remote.instance:
		return takes
	case old.dialled == c.dialled:
		if c.remote.seq > old.remote.seq {
			return takes
		}
		return refused
	case !c.dialled && c.remote.seq > old.remote.seq:
		return takes
	case mine(c):
		return takes
	case c.dialled:
		return drains
	}
	return refused
}

// adopt decides on a connection whose hellos are exchanged, but for the answer
// of an accepting side, which first posts. It returns false when c must end.
func (p *peer) adopt(c *conn, first func()) bool {
	p.mu.Lock()
	if p.removed || p.stopped() {
		p.mu.Unlock()
		return false
	}
	old := p.cur
	v := judge(p.l.cfg.Self, p.node, old, c)
	if v == refused {
		p.mu.Unlock()
		return false
	}
	first()
	p.all[c] = struct{}{}
	crossed := false
	if v == takes {
		crossed = old != nil && old.remote.instance == c.remote.instance && old.dialled != c.dialled && (c.dialled || c.remote.seq < old.remote.seq)
		if old != nil && old.remote.instance != c.remote.instance {
			p.setCur(nil, errors.New("the peer was restarted"))
		}
		p.setCur(c, nil)
	}
	p.mu.Unlock()
	switch {
	case v == drains:
		c.retire(byeCrossed, "")
	case old != nil && crossed:
		old.retire(byeCrossed, "")
	case old != nil:
		old.kill(errReplaced)
	}
	return true
}

// leaves: the peer stops, and takes no more calls over c.
func (p *peer) leaves(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cur == c {
		p.setCur(nil, errPeerStop)
	}
}

// ended is told of each connection's end, by its reader.
func (p *peer) ended(c *conn, why error) {
	p.mu.Lock()
	delete(p.all, c)
	was := p.cur == c
	if was {
		p.setCur(nil, why)
	}
	p.lastHeard.Store(time.Now().UnixNano() - (now() - c.heard.Load()))
	p.mu.Unlock()
	if _, bad := errors.AsType[*protocolError](why); bad {
		p.refused.Add(1)
		p.l.log.Warn("a peer was disconnected", "node", p.node, "why", why)
	} else if was && !p.stopped() {
		p.l.log.Info("a peer was lost", "node", p.node, "why", why)
	}
}

// keep keeps the peer connected until ctx ends.
func (p *peer) keep(ctx context.Context) {
	failed, since := 0, time.Now()
	for ctx.Err() == nil {
		changed, c, _ := p.state()
		if c != nil {
			up := time.Now()
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
			if time.Since(up) > time.Second { // it was no flutter
				failed, since = 0, time.Now()
			}
			continue
		}
		if !p.pause(ctx, changed, failed, since) {
			continue
		}
		err := p.dial(ctx)
		failed++
		if err != nil && failed == 3 && ctx.Err() == nil {
			p.l.log.Warn("a peer cannot be reached", "node", p.node, "err", err)
		}
	}
}

// pause waits before a dial, and reports false when there is no need for one
// any more. The node with the greater name leaves the first try to the other.
func (p *peer) pause(ctx context.Context, changed <-chan struct{}, failed int, since time.Time) bool {
	wait := time.Duration(0)
	if p.l.cfg.Self > p.node {
		wait = 20 * time.Millisecond
	}
	if failed > 0 {
		wait = min(10*time.Millisecond<<min(failed, 10), 250*time.Millisecond)
		if time.Since(since) > 30*time.Second {
			wait = time.Second // one that comes back dials us itself
		}
		wait = wait/2 + rand.N(wait/2)
	}
	if wait == 0 {
		return true
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-changed:
	case <-ctx.Done():
	}
	return false
}

// view is the peer as others see it.
func (p *peer) view() Peer {
	p.mu.Lock()
	v := Peer{Node: p.node, Up: p.cur != nil, Why: p.why}
	heard := p.lastHeard.Load()
	for c := range p.all {
		heard = max(heard, time.Now().UnixNano()-(now()-c.heard.Load()))
	}
	p.mu.Unlock()
	if heard != 0 {
		v.LastHeard = time.Unix(0, heard)
	}
	v.RTT, v.Skew = time.Duration(p.rtt.Load()), time.Duration(p.skew.Load())
	v.BytesIn, v.BytesOut = p.bytesIn.Load(), p.bytesOut.Load()
	v.Bandwidth = math.Float64frombits(p.bandwidth.Load())
	v.Calls, v.Served, v.Refused = p.calls.Load(), p.served.Load(), p.refused.Load()
	return v
}
