package link

import (
	"runtime"
	"slices"
	"time"
)

// The window over a connection's chunks: bytes that were sent and not yet
// taken off the connection by the peer. It bounds what lies before a small
// frame in the sockets' buffers, whatever their sizes.
const (
	firstBulk = 128 << 10
	leastBulk = 128 << 10
	mostBulk  = 8 << 20
	ackEvery  = 32 << 10
)

// slowWrite is how long a write may take before callers leave writing to the
// flusher: one of them would be stuck in the next.
const slowWrite = 5 * time.Millisecond

// directOpen is up to how many open calls who sends a frame writes it himself;
// with more, frames are gathered for the flusher, which needs fewer writes.
const directOpen = 3

// writer is what a conn has to write, guarded by its mu. One goroutine at a
// time is active: it alone writes to the socket, without mu. Small frames
// gather in pend meanwhile; chunks wait for their turn in bulk.
type writer struct {
	pend    []byte // frames that were not handed to the socket
	spare   []byte // to take pend's place
	queued  int64  // bytes of small frames so far
	handed  int64  // of these, handed to the socket: they may have reached the peer
	written int64  // of these, taken by the socket
	active  bool
	slow    bool
	waiting []flushed
	bulk    []*turn

	bulkSent, bulkAcked uint64
	window              uint64
	sampleAt            int64 // when the running measure of bandwidth began, and at how many bytes
	sampleFrom          uint64
}

// flushed waits until the socket has taken what was queued before off.
type flushed struct {
	off int64
	ch  chan struct{}
}

// turn is a stream's place in the queue of chunks.
type turn struct {
	ch     chan struct{} // capacity 1: the stream is active
	size   int
	queued bool
}

func newTurn() *turn { return &turn{ch: make(chan struct{}, 1)} }

// post adds whole small frames to what is pending; c.mu is held. A push has to follow.
func (c *conn) post(frames []byte) {
	c.writer.pend = append(c.writer.pend, frames...)
	c.writer.queued += int64(len(frames))
	if len(c.writer.pend) > floodWater {
		c.die(errClogged)
	}
}

// posted accounts for frames that were appended to pend in place since it had
// n bytes; c.mu is held.
func (c *conn) posted(n int) { c.writer.queued += int64(len(c.writer.pend) - n) }

// push has what is pending written: by the active writer, by the caller
// (direct) or by the flusher. c.mu is held and is released.
func (c *conn) push(direct bool) {
	w := &c.writer
	if w.active || c.err != nil {
		c.mu.Unlock()
		return
	}
	w.active = true
	if !direct || w.slow || len(c.calls)+len(c.incoming) > directOpen {
		c.mu.Unlock()
		c.wakeFlusher()
		return
	}
	c.flush()
	c.pass()
	c.mu.Unlock()
}

// pushLater has the flusher write what is pending; c.mu stays held.
func (c *conn) pushLater() {
	if !c.writer.active && c.err == nil {
		c.writer.active = true
		c.wakeFlusher()
	}
}

func (c *conn) wakeFlusher() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// flush writes what is pending. c.mu is held on entry and on return, not in
// between; the caller is the active writer.
func (c *conn) flush() {
	w := &c.writer
	if len(w.pend) == 0 || c.err != nil {
		return
	}
	b := w.pend
	w.pend, w.spare = w.spare[:0], nil
	w.handed += int64(len(b))
	c.mu.Unlock()
	took, err := c.write(b)
	c.mu.Lock()
	w.slow = took > slowWrite
	if err != nil {
		c.die(err)
		return
	}
	w.written += int64(len(b))
	if cap(b) <= highWater {
		w.spare = b[:0]
	}
	if len(w.waiting) > 0 {
		w.waiting = slices.DeleteFunc(w.waiting, func(f flushed) bool {
			if f.off > w.written {
				return false
			}
			close(f.ch)
			return true
		})
	}
}

// write is one write to the socket by the active writer.
func (c *conn) write(b []byte) (took time.Duration, err error) {
	start := now()
	_, err = c.nc.Write(b)
	c.p.bytesOut.Add(int64(len(b)))
	return time.Duration(now() - start), err
}

// pass gives up being the active writer: what gathered meanwhile goes to the
// next chunk's stream or to the flusher. c.mu is held.
func (c *conn) pass() {
	w := &c.writer
	switch {
	case c.err != nil:
	case c.grant():
	case len(w.pend) > 0 || c.closing != nil:
		c.wakeFlusher() // active goes over to it
	default:
		w.active = false
	}
}

// grant makes the stream of the next chunk the active writer, if one waits and
// the window has room; c.mu is held.
func (c *conn) grant() bool {
	w := &c.writer
	if len(w.bulk) == 0 || !w.room(w.bulk[0].size) {
		return false
	}
	t := w.bulk[0]
	w.bulk = slices.Delete(w.bulk, 0, 1)
	t.queued = false
	t.ch <- struct{}{}
	return true
}

// grantIdle is grant for when nobody is active; c.mu is held.
func (c *conn) grantIdle() {
	if !c.writer.active && c.err == nil {
		c.writer.active = c.grant()
	}
}

// flushes is the flusher. Who wakes it makes it the active writer. It writes what gathered while somebody else wrote,
// what the reader has to say, and bursts.
func (c *conn) flushes() {
	for {
		select {
		case <-c.kick:
		case <-c.done:
			return
		}
		c.mu.Lock()
		busy := len(c.calls)+len(c.incoming) > directOpen
		c.mu.Unlock()
		if busy {
			runtime.Gosched() // let those who are about to send something add to it
		}
		c.mu.Lock()
		for c.err == nil {
			c.flush()
			if c.grant() {
				break
			}
			if len(c.writer.pend) == 0 {
				c.writer.active = false
				if c.closing != nil {
					c.die(c.closing)
				}
				break
			}
		}
		c.mu.Unlock()
	}
}

func (w *writer) room(n int) bool {
	return w.bulkSent == w.bulkAcked || w.bulkSent-w.bulkAcked+uint64(n) <= w.window
}

// acked takes the peer's count of chunk bytes, and every few milliseconds sets
// the window to what keeps the line full: twice what it delivers in the
// shortest round trip. It reports false for a count that cannot be.
func (w *writer) acked(total uint64, rtt time.Duration) bool {
	if total-w.bulkAcked > w.bulkSent-w.bulkAcked {
		return false
	}
	w.bulkAcked = total
	const every = int64(5 * time.Millisecond)
	t := now()
	passed := t - w.sampleAt
	if passed < max(every, int64(rtt)) {
		return true
	}
	if w.sampleAt != 0 && rtt > 0 && passed < 4*max(every, int64(rtt)) {
		rate := float64(total-w.sampleFrom) / float64(passed) // bytes a nanosecond
		w.window = min(max(uint64(2*rate*float64(rtt)), leastBulk), mostBulk)
	}
	w.sampleAt, w.sampleFrom = t, total
	return true
}

// wait lets a caller wait while too much is pending. c.mu is held on entry and
// on return. stop may be nil.
func (c *conn) wait(stop <-chan struct{}) error {
	for len(c.writer.pend) > highWater && c.err == nil {
		if err := c.waitFor(c.writer.queued-highWater/2, stop); err != nil {
			return err
		}
	}
	return c.err
}

// waitFor waits until the socket has taken what was queued before off. c.mu is
// held on entry and on return.
func (c *conn) waitFor(off int64, stop <-chan struct{}) error {
	if c.writer.written >= off || c.err != nil {
		return c.err
	}
	ch := make(chan struct{})
	c.writer.waiting = append(c.writer.waiting, flushed{off, ch})
	c.mu.Unlock()
	defer c.mu.Lock()
	select {
	case <-ch:
		return nil
	case <-c.done:
		return c.err // set before done was closed
	case <-stop:
		return errStopped
	}
}

// chunk writes one frame of a body when its turn comes: streams take turns
// chunk by chunk, and small frames go before. frame is not kept.
func (c *conn) chunk(stop <-chan struct{}, t *turn, frame []byte) error {
	w := &c.writer
	size := len(frame) - headerSize
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	if w.active || len(w.bulk) > 0 || !w.room(size) {
		t.size, t.queued = size, true
		w.bulk = append(w.bulk, t)
		if err := c.awaitTurn(stop, t); err != nil {
			return err
		}
	}
	w.active = true
	c.flush() // an answer's head goes before its first chunk
	if c.err != nil {
		return c.err
	}
	w.bulkSent += uint64(size)
	c.mu.Unlock()
	_, err := c.write(frame)
	c.mu.Lock()
	if err != nil {
		c.die(err)
		return err
	}
	c.flush() // what gathered meanwhile does not wait for a goroutine to wake up
	c.pass()
	return c.err
}

// awaitTurn waits for t. c.mu is held on entry and on return.
func (c *conn) awaitTurn(stop <-chan struct{}, t *turn) error {
	c.mu.Unlock()
	var err error
	select {
	case <-t.ch:
	case <-stop:
		err = errStopped
	case <-c.done:
	}
	c.mu.Lock()
	if c.err != nil {
		return c.err
	}
	if err == nil {
		return nil
	}
	if t.queued {
		t.queued = false
		c.writer.bulk = slices.DeleteFunc(c.writer.bulk, func(x *turn) bool { return x == t })
		c.grantIdle()
	} else { // the turn came as well: give it on
		<-t.ch
		c.pass()
	}
	return err
}

// small reports whether a chunk goes out with the small frames: it would cost
// more to wait for its turn than to write it.
func small(n int) bool { return n <= 4<<10 }
