package wasm

import (
	"io"
	"strconv"
	"sync"
	"time"

	"lode/engine"
)

// pump reads the rest of a request's body, a piece whenever the guest asks for
// one. Its goroutine runs from the first want to close, which waits for it.
type pump struct {
	r     io.Reader
	taken int64 // bytes the guest took; only the invocation's goroutine

	mu      sync.Mutex
	wake    *sync.Cond
	buf     []byte // of 64 KiB, made when needed
	have    []byte // read and not taken
	end     bool   // nothing will come any more
	broken  error  // why, if that is not the body's end
	closed  bool
	asked   []func()
	running bool
	done    chan struct{}
}

func newPump(r io.Reader) *pump {
	p := &pump{r: r}
	p.wake = sync.NewCond(&p.mu)
	return p
}

// want calls f as soon as take gives something or the body has ended: at once,
// or from the pump's goroutine.
func (p *pump) want(f func()) {
	p.mu.Lock()
	if len(p.have) > 0 || p.end {
		p.mu.Unlock()
		f()
		return
	}
	p.asked = append(p.asked, f)
	if !p.running {
		p.running, p.done = true, make(chan struct{})
		p.buf = make([]byte, engine.ReplyMax)
		go p.run()
	}
	p.wake.Signal()
	p.mu.Unlock()
}

func (p *pump) run() {
	defer close(p.done)
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		for !p.closed && (len(p.asked) == 0 || len(p.have) > 0) {
			p.wake.Wait()
		}
		if p.closed {
			return
		}
		p.mu.Unlock()
		n, err := p.r.Read(p.buf)
		p.mu.Lock()
		p.have = p.buf[:n]
		p.end = err != nil
		if err != io.EOF {
			p.broken = err
		}
		if n == 0 && !p.end {
			continue
		}
		asked := p.asked
		p.asked = nil
		p.mu.Unlock()
		for _, f := range asked {
			f()
		}
		p.mu.Lock()
		if p.end {
			return
		}
	}
}

// take moves bytes into b. end: there are no more.
func (p *pump) take(b []byte) (n int, end bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n = copy(b, p.have)
	p.have = p.have[n:]
	p.taken += int64(n)
	return n, n == 0 && p.end
}

// err is why the body broke off, or nil.
func (p *pump) err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.broken
}

// fromStream is take, and stops the guest when the body has broken off: it
// must not take a part for the whole.
func (c *call) fromStream(b []byte) (n int, end bool) {
	n, end = c.stream.take(b)
	if end && c.stream.err() != nil {
		panic(stopBody)
	}
	return n, end
}

func (p *pump) close() {
	p.mu.Lock()
	p.closed = true
	running := p.running
	p.wake.Broadcast()
	p.mu.Unlock()
	if !running {
		return
	}
	switch r := p.r.(type) {
	case engine.Interrupter:
		r.Interrupt()
	case io.Closer:
		r.Close()
	}
	<-p.done
}

// readBody is a read that blocks: standard input. 0 is the end.
func (c *call) readBody(b []byte) int {
	if len(c.body) > 0 || len(b) == 0 {
		n := copy(b, c.body)
		c.body = c.body[n:]
		return n
	}
	for c.stream != nil {
		if n, end := c.fromStream(b); n > 0 || end {
			return n
		}
		ready := make(chan struct{})
		c.stream.want(func() { close(ready) })
		c.await(ready)
	}
	return 0
}

// await blocks until ready is closed, outside of the computing time, or stops
// the guest at its end.
func (c *call) await(ready <-chan struct{}) {
	began := c.pause()
	var clock <-chan time.Time
	if c.until != 0 {
		t := time.NewTimer(time.Duration(c.until - began))
		defer t.Stop()
		clock = t.C
	}
	select {
	case <-ready:
	case <-clock:
	case <-c.done:
	}
	c.resume(began)
	c.check()
}

// nanoseconds reads a decimal count; 0 for anything else.
func nanoseconds(s string) time.Duration {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return 0
	}
	return time.Duration(n)
}
