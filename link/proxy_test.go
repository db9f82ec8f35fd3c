package link

import (
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lode"
)

// proxy is a network between two nodes that a test can cut, stop and slow.
type proxy struct {
	ln      net.Listener
	to      string
	stalled atomic.Bool  // takes bytes and passes nothing on
	rate    atomic.Int64 // bytes/s in each direction; 0: no limit
	limit   atomic.Int64 // bytes of one direction after which a connection is cut; 0: none
	mu      sync.Mutex
	conns   map[net.Conn]struct{}
	closed  bool
	wg      sync.WaitGroup
}

func newProxy(t testing.TB, to string) *proxy {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{ln: ln, to: to, conns: map[net.Conn]struct{}{}}
	p.wg.Go(p.run)
	t.Cleanup(p.close)
	return p
}

func (p *proxy) run() {
	for {
		in, err := p.ln.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", p.to)
		if err != nil || !p.keep(in, out) {
			in.Close()
			continue
		}
		p.wg.Go(func() { p.pass(in, out) })
		p.wg.Go(func() { p.pass(out, in) })
	}
}

func (p *proxy) keep(cs ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range cs {
		if p.closed {
			c.Close()
			continue
		}
		p.conns[c] = struct{}{}
	}
	return !p.closed
}

func (p *proxy) pass(from, to net.Conn) {
	defer from.Close()
	defer to.Close()
	b := make([]byte, 16<<10)
	var total int64
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		if lim := p.limit.Load(); lim > 0 && total+int64(n) > lim {
			to.Write(b[:max(lim-total, 0)])
			return
		}
		total += int64(n)
		if p.stalled.Load() {
			continue
		}
		if rate := p.rate.Load(); rate > 0 {
			time.Sleep(time.Duration(int64(n) * int64(time.Second) / rate))
		}
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
	}
}

// cut ends every connection that goes through now.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
	clear(p.conns)
}

func (p *proxy) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.ln.Close()
	p.cut()
	p.wg.Wait()
}

// through makes from reach to by a proxy, and never the other way round.
func (w *town) through(from, to lode.NodeID) *proxy {
	w.mu.Lock()
	addr := w.listen[to].Addr().String()
	w.mu.Unlock()
	p := newProxy(w.t, addr)
	w.mu.Lock()
	w.via[[2]lode.NodeID{from, to}] = p.ln.Addr().String()
	w.mu.Unlock()
	return p
}
