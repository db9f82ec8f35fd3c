package link

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Bounds on what one connection holds.
const (
	maxOpen    = 16 << 10  // calls of a peer that are open at once
	maxHeld    = 256 << 20 // bytes of their heads, bodies and first windows
	maxWindows = 64 << 20  // bytes by which streams' windows may have grown, together
	highWater  = 1 << 20   // bytes waiting to be written at which callers wait
	floodWater = 8 << 20   // and at which the peer is taken for one that does not read
	readBuffer = 64 << 10
)

// conn is one connection. It lives from the hellos to die, which its reader,
// its writer or its pulse may cause; the reader tidies up.
//
//	open --retire--> retired (no new calls here) --both byes, nothing open--> dead
//	open, retired --die--> dead
type conn struct {
	l       *Link
	p       *peer
	nc      net.Conn
	dialled bool // by this node
	remote  hello
	done    chan struct{} // closed by die
	kick    chan struct{} // the flusher has something to do
	heard   atomic.Int64  // since(l's start) of the last byte

	mu       sync.Mutex
	writer   writer
	calls    map[uint64]*outCall
	nextID   uint64
	incoming map[uint64]*Incoming
	lastIn   uint64 // greatest id of the peer's calls
	held     int64
	windows  int64
	noteHeld int    // bytes of notes that their callers did not take yet
	taken    uint64 // chunk bytes taken off this connection
	ackDue   int    // of these, not yet acknowledged
	retired  bool   // this node starts no more calls here
	byeHeard bool   // nor does the peer
	closing  error  // not nil: dies of it when all is written
	err      error  // why it died
	sent     [16]pulse
}

func newConn(p *peer, nc net.Conn, dialled bool, remote hello) *conn {
	c := &conn{l: p.l, p: p, nc: nc, dialled: dialled, remote: remote, done: make(chan struct{}), kick: make(chan struct{}, 1),
		calls: map[uint64]*outCall{}, incoming: map[uint64]*Incoming{}}
	c.writer.window = firstBulk
	c.heard.Store(now())
	return c
}

// epoch makes now a small number; its monotonic clock is what counts.
var epoch = time.Now()

// now is a monotonic time in nanoseconds.
func now() int64 { return int64(time.Since(epoch)) }

// run reads until the connection ends and returns when it is tidied up.
func (c *conn) run() {
	var wg sync.WaitGroup
	wg.Go(c.flushes)
	wg.Go(c.pulses)
	err := c.read()
	c.mu.Lock()
	c.die(err)
	err = c.err
	incoming := c.incoming
	c.incoming = map[uint64]*Incoming{}
	for _, in := range incoming {
		in.wakeAll()
	}
	c.mu.Unlock()
	for _, in := range incoming {
		in.ctx.cancel()
	}
	c.p.ended(c, err) // before the wait, so that the peer is dialled at once
	wg.Wait()
}

// dead reports that die was called; the reader may still tidy up.
func (c *conn) dead() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// die ends the connection, once; c.mu is held. Everybody who waits on it wakes
// up and finds c.err.
func (c *conn) die(err error) {
	if c.err != nil {
		return
	}
	c.err = err
	close(c.done)
	for _, o := range c.calls {
		o.signal()
	}
}

// kill is die for those who do not hold c.mu.
func (c *conn) kill(err error) {
	c.mu.Lock()
	c.die(err)
	c.mu.Unlock()
}

// retire stops this side from starting calls here: another connection has
// taken over, or the node stops.
func (c *conn) retire(why uint8, text string) {
	c.mu.Lock()
	if c.retired || c.err != nil {
		c.mu.Unlock()
		return
	}
	c.retired = true
	c.post(appendFrame(nil, kindBye, why, 0, []byte(cut(text, maxBye))))
	c.settle()
	c.push(false)
}

// shut says bye and ends the connection when that is written, or soon.
func (c *conn) shut(why error) {
	c.retire(byeClosing, why.Error())
	c.mu.Lock()
	c.closing = why
	stop := time.AfterFunc(100*time.Millisecond, func() { c.kill(why) })
	c.push(false)
	<-c.done
	stop.Stop()
}

// settle lets a connection that both sides have left end; c.mu is held.
func (c *conn) settle() {
	if c.closing == nil && c.retired && c.byeHeard && len(c.calls) == 0 && len(c.incoming) == 0 {
		c.closing = errCrossed
		c.pushLater()
	}
}

// reader cuts a connection into frames.
type reader struct {
	c    *conn
	buf  [readBuffer]byte
	r, w int
}

// fill reads until n bytes are in the buffer; n is at most its size.
func (r *reader) fill(n int) error {
	if r.r == r.w {
		r.r, r.w = 0, 0
	}
	if r.r+n > len(r.buf) {
		r.w = copy(r.buf[:], r.buf[r.r:r.w])
		r.r = 0
	}
	for r.w-r.r < n {
		m, err := r.c.nc.Read(r.buf[r.w:])
		r.w += m
		r.c.hear(m)
		if err != nil && r.w-r.r < n {
			return err
		}
	}
	return nil
}

// into fills p: from the buffer, and the rest from the connection.
func (r *reader) into(p []byte) error {
	n := copy(p, r.buf[r.r:r.w])
	r.r += n
	for n < len(p) {
		m, err := r.c.nc.Read(p[n:])
		n += m
		r.c.hear(m)
		if err != nil && n < len(p) {
			return err
		}
	}
	return nil
}

// peek returns the next n bytes, which stay valid until the next read.
func (r *reader) peek(n int) ([]byte, error) {
	if err := r.fill(n); err != nil {
		return nil, err
	}
	b := r.buf[r.r : r.r+n]
	r.r += n
	return b, nil
}

// hear counts bytes that came in.
func (c *conn) hear(n int) {
	if n > 0 {
		c.heard.Store(now())
		c.p.bytesIn.Add(int64(n))
	}
}

// read takes frame by frame until the connection ends; never nil.
func (c *conn) read() error {
	r := &reader{c: c}
	for {
		b, err := r.peek(headerSize)
		if err == nil {
			var h header
			if h, err = parseHeader(b); err != nil {
				return &protocolError{err}
			}
			err = c.take(h, r)
			if err == nil && r.r == r.w && (h.kind == kindCall || h.kind == kindReply) {
				runtime.Gosched() // to who was just woken, before a read that finds nothing
			}
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return errHung
		}
		if err != nil {
			return err
		}
	}
}

// take handles one frame. It does not block but on the connection's own bytes.
func (c *conn) take(h header, r *reader) error {
	switch h.kind {
	case kindCall:
		p := make([]byte, h.size) // the handler may keep it
		if err := r.into(p); err != nil {
			return err
		}
		return c.takeCall(h, p)
	case kindBody, kindAnswer, kindReply, kindAnswerHead, kindAnswerEnd, kindNote:
		b := c.l.bufs.get(h.size)
		if err := r.into(b.b); err != nil {
			return err
		}
		if h.kind == kindBody {
			return c.takeBody(h, b)
		}
		return c.takeAnswer(h, b)
	}
	p, err := r.peek(h.size) // no other kind is larger than the buffer
	if err != nil {
		return err
	}
	switch h.kind {
	case kindBeat:
		return c.takeBeat(h, p)
	case kindEcho:
		return c.takeEcho(h, p)
	case kindAck:
		return c.takeAck(h.id)
	case kindBye:
		return c.takeBye(h, p)
	case kindBodyEnd, kindNoteReply, kindCancel, kindAnswerCredit:
		return c.takeOfCaller(h, p)
	case kindBodyCredit:
		return c.takeBodyCredit(h, p)
	}
	return &protocolError{fmt.Errorf("a second hello")}
}

// takeBye: the peer starts no more calls here.
func (c *conn) takeBye(h header, p []byte) error {
	if h.flags == byeClosing {
		c.p.leaves(c) // before anything else, so that no call begins here
		c.retire(byeCrossed, "")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.byeHeard = true
	c.settle()
	return nil
}

// takeAck: the peer has taken that many bytes of chunks off the connection.
func (c *conn) takeAck(total uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.writer.acked(total, c.p.leastRTT()) {
		return &protocolError{fmt.Errorf("an acknowledgement of %d bytes that were not sent", total)}
	}
	c.grantIdle()
	return nil
}

// took counts a chunk that came off the connection and acknowledges it, now or
// with the next ones; c.mu is held.
func (c *conn) took(n int) {
	c.taken += uint64(n)
	c.ackDue += n
	if c.ackDue >= ackEvery {
		c.ackDue = 0
		c.post(appendHeader(nil, 0, kindAck, 0, c.taken))
		c.pushLater()
	}
}
