package agent

import (
	"context"
	"errors"
	"slices"
	"time"

	"lode"
	"lode/agent/journal"
)

// channel is what a partition sends to another one. Messages are numbered
// without gaps as the turns that send them are written down, and stay in the
// outbox until the receiver has consumed them. One goroutine delivers, as long
// as there is something.
type channel struct {
	p  *partition
	to peer

	// guarded by partition.mu
	loaded  bool
	next    uint64 // number of the last message written down
	mark    uint64 // everything up to here was consumed
	running bool   // the deliverer is at work
	again   bool   // there is something new for it
	rouse   func() // ends its waiting for the receiver; nil: it does not wait
}

// channel finds the channel to a partition; p.mu is held.
func (p *partition) channel(to peer) *channel {
	c := p.out[to]
	if c == nil {
		c = &channel{p: p, to: to}
		p.out[to] = c
	}
	return c
}

// load reads where the channel stands; p.mu is held.
func (c *channel) load() error {
	if c.loaded {
		return nil
	}
	b, ok, err := c.p.part.Get(peerKey(spaceChannel, c.to))
	if err != nil {
		return err
	}
	c.next = 0
	if ok {
		d := newDec(b)
		if c.next = d.u(); !d.end() {
			return damaged("a channel")
		}
	}
	c.mark = c.next
	base := peerKey(spaceOutbox, c.to)
	err = c.p.part.List(base, after(base), false, func(k, _ []byte) bool {
		if n, ok := lastNumber(k); ok {
			c.mark = n - 1
		}
		return false
	})
	c.loaded = err == nil
	return err
}

// push has the deliverer look for something new; p.mu is held.
func (c *channel) push() {
	c.again = true
	if c.rouse != nil {
		c.rouse()
	}
	if !c.running && c.p.open {
		c.running = true
		go c.deliver()
	}
}

// deliver brings messages to the receiver until there are none.
func (c *channel) deliver() {
	var session, sent uint64 // of the receiver; the last number it was given
	pause, moved := 10*time.Millisecond, time.Now()
	for {
		c.p.mu.Lock()
		err := c.load()
		if c.p.ctx.Err() != nil || !c.p.open || err == nil && !c.again && c.mark == c.next {
			c.running = false
			c.p.mu.Unlock()
			return
		}
		c.again = false
		mark := c.mark
		c.p.mu.Unlock()
		sent = max(sent, mark)
		var ls []letter
		if err == nil {
			ls, err = c.unsent(sent)
		}
		var r receipt
		if err == nil {
			err = c.p.s.reached(pointDelivery)
		}
		if err == nil {
			r, err = c.bring(mark, ls)
		}
		if err == errRoused {
			continue
		}
		if k := lode.KindOf(err); k == lode.NotFound || k == lode.Gone {
			err = c.bury(ls, err)
		}
		if err != nil {
			sleep(c.p.ctx, pause)
			pause, sent = min(2*pause, time.Second), mark
			continue
		}
		pause = 10 * time.Millisecond
		if len(ls) > 0 {
			sent = ls[len(ls)-1].N
		}
		if r.session != session {
			if session != 0 {
				sent = r.mark // a new owner: what it has not recorded it has not got
			}
			session = r.session
		}
		if r.mark > mark || len(ls) > 0 {
			moved = time.Now()
		} else if time.Since(moved) > resendAfter {
			moved, sent = time.Now(), mark // the receiver may have put some aside
		}
		c.consumed(r.mark)
	}
}

// resendAfter is how long the receiver may consume nothing before it is given
// everything again; it knows what it has already.
const resendAfter = 3 * time.Second

// errRoused says that there is something to send: waiting for the receiver was
// given up.
var errRoused = errors.New("there is more to send")

// bring gives messages to the receiver; where there are none it waits until that
// has consumed more.
func (c *channel) bring(mark uint64, ls []letter) (receipt, error) {
	ctx := c.p.ctx
	if len(ls) == 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
		c.p.mu.Lock()
		if c.again {
			c.p.mu.Unlock()
			return receipt{}, errRoused
		}
		c.rouse = cancel
		c.p.mu.Unlock()
		defer func() {
			c.p.mu.Lock()
			c.rouse = nil
			c.p.mu.Unlock()
		}()
	}
	r, err := c.p.s.deliver(ctx, c.p.id, c.to, mark, ls)
	if err != nil && ctx.Err() != nil && c.p.ctx.Err() == nil {
		return receipt{}, errRoused
	}
	return r, err
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// maxDelivery bounds one delivery.
const (
	maxDelivery      = 512
	maxDeliveryBytes = 512 << 10
)

// unsent reads messages of the outbox behind a number.
func (c *channel) unsent(behind uint64) (out []letter, err error) {
	size := 0
	base := peerKey(spaceOutbox, c.to)
	lerr := c.p.part.List(outKey(c.to, behind+1), after(base), false, func(k, v []byte) bool {
		l, derr := decodeLetter(slices.Clone(v))
		if derr != nil {
			err = derr
			return false
		}
		l.N, _ = lastNumber(k)
		out = append(out, l)
		size += len(v)
		return len(out) < maxDelivery && size < maxDeliveryBytes
	})
	return out, cmpErr(err, lerr)
}

// consumed notes that everything up to mark was consumed, and takes it out of
// the outbox.
func (c *channel) consumed(mark uint64) {
	p := c.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if mark <= c.mark || !p.open || !c.loaded {
		return
	}
	b := &builder{}
	b.cut(outKey(c.to, c.mark+1), outKey(c.to, mark+1))
	c.mark = mark
	p.note(b, c.pushLater)
}

// pushLater has the deliverer look again after a while: what was noted of the
// channel is lost, and the receiver knows it still; p.mu is held.
func (c *channel) pushLater() {
	p := c.p
	time.AfterFunc(p.s.backoff(1), func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		c.push()
	})
}

// note writes changes down that belong to no turn; p.mu is held. If the
// journal refuses them lost is called, with p.mu held.
func (p *partition) note(b *builder, lost func()) {
	p.pending++
	p.w.Append(&journal.Entry{Op: journal.Note, Epoch: p.epoch, Partition: p.id, Changes: b.changes}, func(_ uint64, err error) {
		p.mu.Lock()
		p.pending--
		if err != nil {
			lost()
		}
		p.settled()
		p.mu.Unlock()
	})
}

// bury makes messages dead whose receiver's kind is gone: their sender keeps
// them.
func (c *channel) bury(ls []letter, why error) error {
	if len(ls) == 0 {
		return why
	}
	p := c.p
	b := &builder{}
	for i := range ls {
		from, err := lode.ParseAddress(ls[i].From)
		if err != nil {
			continue
		}
		ls[i].kind = c.to.kind
		p.s.counts.dead.Add(1)
		x := dead{At: p.s.now(), Letter: ls[i], Why: why.Error(), Kind: lode.KindOf(why)}
		b.set(inN(agentPrefix(from.Key), partDead, p.s.frameNumber()), x.encode())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.open {
		return &moved{}
	}
	last := ls[len(ls)-1].N
	b.cut(outKey(c.to, c.mark+1), outKey(c.to, last+1))
	c.mark = last
	p.note(b, c.pushLater)
	return nil
}

// lastNumber is the number at the end of a key.
func lastNumber(k []byte) (uint64, bool) {
	if len(k) < 8 {
		return 0, false
	}
	n := uint64(0)
	for _, b := range k[len(k)-8:] {
		n = n<<8 | uint64(b)
	}
	return n, true
}

// receipt is what a receiver says of a channel.
type receipt struct {
	session uint64 // another one: what was delivered and not consumed is forgotten
	mark    uint64 // everything up to here is consumed, durably
}

// inbox is the receiving end of a channel. Messages of one sender to one agent
// are taken one after another; others side by side.
type inbox struct {
	p    *partition
	from peer

	// guarded by partition.mu
	loaded  bool
	wrote   window            // consumed, as written down
	done    window            // consumed, as acknowledged
	session uint64            // changes when what is here and not written down is forgotten
	queued  map[uint64]bool   // here, and not yet written down
	lanes   map[lane][]letter // by sender and receiver; the first one is at the agent
	changed chan struct{}     // closed when done grows
}

type lane struct{ from, to string }

// arrival is a message that came on a channel.
type arrival struct {
	box   *inbox
	from  peer
	n     uint64
	l     letter
	tries int
}

func (p *partition) inbox(from peer) (*inbox, error) {
	i := p.in[from]
	if i == nil {
		i = &inbox{p: p, from: from}
		p.in[from] = i
	}
	if i.loaded {
		return i, nil
	}
	b, ok, err := p.part.Get(peerKey(spaceInbox, from))
	if err != nil {
		return nil, err
	}
	if ok {
		if i.done, err = decodeWindow(b); err != nil {
			return nil, err
		}
	}
	i.wrote = i.done.clone()
	i.session = p.s.frameNumber()
	i.queued, i.lanes, i.changed, i.loaded = map[uint64]bool{}, map[lane][]letter{}, make(chan struct{}), true
	return i, nil
}

func (w *window) clone() window { return window{w.Mark, slices.Clone(w.Bits)} }

// receive takes messages of a channel, and answers how far it was consumed.
// Where there are none it waits until that is further than known, or for a
// while.
func (p *partition) receive(ctx context.Context, from peer, known uint64, ls []letter) (receipt, error) {
	if rev, err := p.s.cfg.Catalog.Kind(p.id.Namespace, p.id.Kind); err == nil {
		if err := p.s.suits(ctx, p, rev); err != nil {
			return receipt{}, err
		}
	}
	p.mu.Lock()
	if !p.open {
		p.mu.Unlock()
		return receipt{}, &moved{}
	}
	i, err := p.inbox(from)
	if err != nil {
		p.mu.Unlock()
		return receipt{}, err
	}
	session := i.session
	for _, l := range ls {
		if i.wrote.has(l.N) || i.queued[l.N] || l.N > i.wrote.Mark+windowMax {
			continue
		}
		i.queued[l.N] = true
		at := lane{l.From, l.To}
		if i.lanes[at] = append(i.lanes[at], l); len(i.lanes[at]) == 1 {
			i.start(&arrival{box: i, from: from, n: l.N, l: l})
		}
	}
	mark, changed := i.done.Mark, i.changed
	p.mu.Unlock()
	if mark <= known && len(ls) == 0 {
		t := time.NewTimer(200 * time.Millisecond)
		defer t.Stop()
		select {
		case <-changed:
		case <-t.C:
		case <-ctx.Done():
		case <-p.ctx.Done():
		}
		p.mu.Lock()
		mark = i.done.Mark
		p.mu.Unlock()
	}
	return receipt{session, mark}, nil
}

// start gives a message to its agent; p.mu is held.
func (i *inbox) start(x *arrival) {
	p := i.p
	rev, err := p.s.cfg.Catalog.Kind(p.id.Namespace, p.id.Kind)
	if err != nil {
		i.stall(x) // the kind is being removed: the next delivery says so
		return
	}
	c := &lode.AgentCall{Namespace: p.id.Namespace, Kind: p.id.Kind, Key: x.l.To, Method: x.l.Method, Caller: x.l.From, Trace: x.l.Trace, Body: x.l.Body, ID: x.l.ID}
	if x.l.Type != "" {
		c.Head = []lode.Pair{{Key: "content-type", Value: x.l.Type}}
	}
	m := &message{c: c, turn: lode.TurnCall, id: x.l.ID, rev: rev, letter: x, hash: hashOf(c)}
	if x.l.Due > 0 && x.l.Due > p.s.now()*1000 {
		m.later(x.l.Due)
	}
	if !p.postLocked(m) {
		i.stall(x)
	}
}

// stall forgets a message that could not be begun: it is delivered again, since
// the sender sees that the session is another one.
func (i *inbox) stall(x *arrival) {
	i.session = i.p.s.frameNumber()
	at := lane{x.l.From, x.l.To}
	for _, l := range i.lanes[at] {
		delete(i.queued, l.N)
	}
	delete(i.lanes, at)
}

// stillWanted reports whether a message was not consumed by another delivery.
func (p *partition) stillWanted(x *arrival) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !x.box.wrote.has(x.n) {
		return true
	}
	x.box.nextOf(x)
	return false
}

// consume is the channel's record once n is consumed; p.mu is held.
func (i *inbox) consume(n uint64) []byte {
	i.wrote.add(n)
	return i.wrote.encode()
}

// acked notes that a message was consumed for good, and begins the next of its
// lane; p.mu is held.
func (i *inbox) acked(x *arrival) {
	delete(i.queued, x.n)
	i.done.add(x.n)
	close(i.changed)
	i.changed = make(chan struct{})
	i.nextOf(x)
}

func (i *inbox) nextOf(x *arrival) {
	at := lane{x.l.From, x.l.To}
	q := i.lanes[at]
	if len(q) == 0 || q[0].N != x.n {
		return
	}
	if q = q[1:]; len(q) == 0 {
		delete(i.lanes, at)
		return
	}
	i.lanes[at] = q
	i.start(&arrival{box: i, from: i.from, n: q[0].N, l: q[0]})
}

// lost notes that a message that was written down is not acknowledged; p.mu is
// held.
func (i *inbox) lost(x *arrival) { i.stall(x) }

// rewind forgets what is not acknowledged; p.mu is held.
func (i *inbox) rewind() {
	if !i.loaded {
		return
	}
	i.wrote = i.done.clone()
	i.queued, i.lanes = map[uint64]bool{}, map[lane][]letter{}
	i.session = i.p.s.frameNumber()
}

// mostTries is how often the turn of a message or a timer may fail before it
// is dead.
const mostTries = 10

// backoff is how long the turn of a message waits after so many failures.
func backoff(fails int) time.Duration {
	return min(time.Second<<min(fails-1, 20), 5*time.Minute)
}
