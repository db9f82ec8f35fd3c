package link

import (
	"errors"
	"time"
)

// Windows of one stream: how much the sender may send beyond what was read.
const (
	baseWindow  = 64 << 10  // known to both sides from the start
	readyWindow = 256 << 10 // after the first read
	maxWindow   = 4 << 20
)

// errStopped: whoever waited does not want to any longer.
var errStopped = errors.New("stopped")

// inflow counts what a stream's sender may send to us; guarded by conn.mu.
type inflow struct {
	room   int // bytes that the sender may still send
	window int
	eaten  int // bytes that were read and not given back to the sender
	last   int64
	total  int64 // bytes received
	began  int64
}

func newInflow() inflow { return inflow{room: baseWindow, window: baseWindow} }

// take counts n bytes that arrived; false: the sender had no right to them.
func (f *inflow) take(n int) bool {
	if f.began == 0 {
		f.began = now()
	}
	f.room -= n
	f.total += int64(n)
	return f.room >= 0
}

// eat counts n bytes that were read and returns what to grant the sender, if
// anything. A stream that is read as fast as its window comes gets a larger
// one, as far as spare reaches.
func (f *inflow) eat(n int, rtt time.Duration, spare int) (grant, grown int) {
	f.eaten += n
	if f.eaten*2 < f.window {
		return 0, 0
	}
	t := now()
	switch {
	case f.window < readyWindow:
		grown = readyWindow - f.window
	case f.window < maxWindow && f.last != 0 && t-f.last < 2*int64(rtt)+int64(200*time.Microsecond):
		grown = f.window
	}
	if grown > spare {
		grown = 0
	}
	f.last = t
	f.window += grown
	grant, f.eaten = f.eaten+grown, 0
	f.room += grant
	return grant, grown
}

// eat gives credit back for n bytes of the stream with the given id, by frames
// of kind k.
func (c *conn) eat(f *inflow, k kind, id uint64, n int) {
	rtt := c.p.leastRTT()
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	grant, grown := f.eat(n, rtt, int(maxWindows-c.windows))
	c.windows += int64(grown)
	if grant == 0 {
		c.mu.Unlock()
		return
	}
	c.post(appendCredit(nil, k, id, grant))
	c.push(true)
}

// release ends a stream's account; c.mu is held.
func (c *conn) release(f *inflow) {
	if f.window > baseWindow {
		c.windows -= int64(f.window - baseWindow)
		f.window = baseWindow
	}
	c.p.sample(f.total, f.began)
}

// outflow is what a stream of ours may send; guarded by conn.mu.
type outflow struct {
	credit int
	wake   chan struct{} // capacity 1: credit came, or the stream is over
	turn   *turn
	total  int64
	began  int64
}

func newOutflow() outflow {
	return outflow{credit: baseWindow, wake: make(chan struct{}, 1), turn: newTurn()}
}

func (f *outflow) signal() { wake(f.wake) }

func wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// add takes a credit; false: more than any window.
func (f *outflow) add(n int) bool {
	f.credit += n
	f.signal()
	return f.credit <= 2*maxWindow
}

// stream sends frame, whose payload begins at headerSize, as frames of kind k
// as the other side's credit allows. frame is overwritten.
func (c *conn) stream(stop <-chan struct{}, f *outflow, k kind, id uint64, frame []byte) error {
	for len(frame) > headerSize {
		n, err := c.credit(stop, f, len(frame)-headerSize)
		if err != nil {
			return err
		}
		putHeader(frame, n, k, 0, id)
		if small(n) {
			err = c.smallChunk(stop, frame[:headerSize+n])
		} else {
			err = c.chunk(stop, f.turn, frame[:headerSize+n])
		}
		if err != nil {
			return err
		}
		frame = frame[n:]
	}
	return nil
}

// credit takes up to want bytes of credit, and waits while there is none.
func (c *conn) credit(stop <-chan struct{}, f *outflow, want int) (int, error) {
	for {
		c.mu.Lock()
		if c.err != nil {
			c.mu.Unlock()
			return 0, c.err
		}
		if n := min(want, f.credit, maxChunk); n > 0 {
			f.credit -= n
			if f.began == 0 {
				f.began = now()
			}
			f.total += int64(n)
			c.mu.Unlock()
			return n, nil
		}
		c.mu.Unlock()
		select {
		case <-f.wake:
		case <-stop:
			return 0, errStopped
		case <-c.done:
		}
	}
}

// smallChunk sends a chunk among the small frames.
func (c *conn) smallChunk(stop <-chan struct{}, frame []byte) error {
	c.mu.Lock()
	if err := c.wait(stop); err != nil {
		c.mu.Unlock()
		return err
	}
	c.writer.bulkSent += uint64(len(frame) - headerSize)
	c.post(frame)
	c.push(true)
	return nil
}
