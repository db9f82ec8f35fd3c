package gateway

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// maxHeader bounds the bytes of a request's head; more is 431.
const maxHeader = 64 << 10

// serverSet is the servers that run, so that Close ends them all.
type serverSet struct {
	mu        sync.Mutex
	list      []*http.Server
	listeners []*counting // over TCP
	leaving   bool        // the listeners are closed: no more connections
	closed    bool

	open   atomic.Int64 // connections over TCP
	opened atomic.Int64 // ever
	fresh  atomic.Int64 // of the open ones: nothing was read from them yet
}

// Listen opens a listener for Serve. It is one of plain TCP: those of multipath
// TCP, which package net makes by default, cannot be closed without a loss; see
// refuseNew.
func Listen(ctx context.Context, addr string) (net.Listener, error) {
	var c net.ListenConfig
	c.SetMultipathTCP(false)
	return c.Listen(ctx, "tcp", addr)
}

// Serve answers on ln, in HTTP/1.1 and in HTTP/2 without TLS, until Shutdown
// or Close; then it returns nil. It closes ln.
func (g *Gateway) Serve(ln net.Listener) error {
	counted := &counting{ln, &g.servers}
	return g.serve(counted, g, counted)
}

// ServeSocket is Serve for the node's own unix socket; see Socket.
func (g *Gateway) ServeSocket(ln net.Listener) error { return g.serve(ln, g.Socket(), nil) }

func (g *Gateway) serve(ln net.Listener, h http.Handler, counted *counting) error {
	s := g.newServer(h)
	if counted != nil {
		s.ConnState = counted.state
	}
	g.servers.mu.Lock()
	if g.servers.closed || g.servers.leaving {
		g.servers.mu.Unlock()
		_ = ln.Close() // it may be closed already
		return nil
	}
	g.servers.list = append(g.servers.list, s)
	if counted != nil {
		g.servers.listeners = append(g.servers.listeners, counted)
	}
	g.servers.mu.Unlock()
	err := s.Serve(ln)
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) && g.servers.left() {
		return nil
	}
	return err
}

// counting is a listener whose connections are counted.
type counting struct {
	net.Listener
	set *serverSet
}

// countedConn is one of its connections. net/http finds all of TCP's methods.
type countedConn struct {
	*net.TCPConn
	used atomic.Bool // something was read from it, or it is closed
}

func (l *counting) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if tcp, ok := c.(*net.TCPConn); ok && err == nil {
		l.set.open.Add(1)
		l.set.opened.Add(1)
		l.set.fresh.Add(1)
		return &countedConn{TCPConn: tcp}, nil
	}
	return c, err
}

// Close may be called again.
func (l *counting) Close() error {
	if err := l.Listener.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// state keeps the counts; net/http calls it at each change.
func (l *counting) state(conn net.Conn, state http.ConnState) {
	c, ok := conn.(*countedConn)
	if !ok || state == http.StateNew {
		return
	}
	if !c.used.Load() && !c.used.Swap(true) {
		l.set.fresh.Add(-1)
	}
	if state == http.StateClosed || state == http.StateHijacked {
		l.set.open.Add(-1)
	}
}

// leave closes the listeners, with settle between the last connection that they
// take and the end, and leaves the connections as they are.
func (s *serverSet) leave(settle func()) {
	s.mu.Lock()
	s.leaving = true
	list := s.listeners
	s.mu.Unlock()
	for _, ln := range list {
		refuseNew(ln.Listener)
	}
	settle()
	for _, ln := range list {
		_ = ln.Close() // what it says of that changes nothing
	}
}

func (s *serverSet) left() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leaving
}

func (g *Gateway) newServer(h http.Handler) *http.Server {
	var p http.Protocols
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	// No ReadTimeout and no WriteTimeout: they would end every long stream.
	// Bodies are bounded read by read and write by write instead.
	return &http.Server{
		Handler:           h,
		Protocols:         &p,
		ReadHeaderTimeout: g.cfg.HeaderTimeout,
		IdleTimeout:       g.cfg.IdleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(g.cfg.Log.Handler(), slog.LevelDebug),
	}
}

// Shutdown sends clients elsewhere for as long as Linger says, stops listening,
// closes the WebSockets, which clients open again elsewhere, and waits for the
// requests under way; when ctx is done first it cuts them.
//
// A kept-alive connection is closed behind the answer to its next request: a
// client that uses it all the time loses nothing. One that was idle all through
// Linger is closed as any idle one is. net/http drops a request that it reads
// after its own Shutdown has begun; that one is therefore left until the
// listener is closed and what was accepted before has been read.
func (g *Gateway) Shutdown(ctx context.Context) error {
	g.draining.Store(true)
	g.linger(ctx)
	g.end()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var first error
	for _, s := range g.servers.end() {
		wg.Go(func() {
			err := s.Shutdown(ctx)
			if err != nil {
				_ = s.Close()
			}
			mu.Lock()
			defer mu.Unlock()
			if first == nil {
				first = err
			}
		})
	}
	wg.Go(func() { g.sockets.end(ctx) })
	wg.Wait()
	g.sweeper.close()
	return first
}

// How a lingering gateway looks for clients: after lingerQuiet looks in a row at
// which nobody was there, it lingers for nobody. freshLooks bounds the wait for
// the first request of a connection that was accepted last: a browser makes
// some that it never uses. settleLooks is how long connections that are being
// made have to get through.
const (
	lingerLook  = 50 * time.Millisecond
	lingerQuiet = 20
	freshLooks  = 20
	settleLooks = 4
)

// linger waits while clients find out that the node is about to go, and closes
// the listeners.
func (g *Gateway) linger(ctx context.Context) {
	if g.cfg.Linger == nil {
		return
	}
	most := g.cfg.Linger()
	if most <= 0 {
		return
	}
	over := time.Now().Add(most)
	look := time.NewTicker(lingerLook)
	defer look.Stop()
	came, quiet := g.servers.opened.Load(), 0
	for quiet < lingerQuiet && time.Now().Before(over) && next(ctx, look) {
		if now := g.servers.opened.Load(); now != came || g.servers.open.Load() > 0 {
			came, quiet = now, 0
			continue
		}
		quiet++
	}
	g.servers.leave(func() {
		for n := 0; n < settleLooks && next(ctx, look); n++ {
		}
	})
	for n := 0; n < freshLooks && g.servers.fresh.Load() > 0 && next(ctx, look); n++ {
	}
}

// next waits for the next look; false: ctx is over.
func next(ctx context.Context, look *time.Ticker) bool {
	select {
	case <-ctx.Done():
		return false
	case <-look.C:
		return true
	}
}

// Close cuts everything at once. It may be called more than once.
func (g *Gateway) Close() error {
	g.draining.Store(true)
	g.end()
	for _, s := range g.servers.end() {
		_ = s.Close()
	}
	g.sockets.cut()
	g.sweeper.close()
	return nil
}

// Drain makes /readyz answer 503 and closes every connection behind its next
// answer (in HTTP/2: GOAWAY), so that clients go to another node. Everything
// else goes on: what comes nevertheless is handed to the Invoker, who knows
// whether another node can take it.
func (g *Gateway) Drain() { g.draining.Store(true) }

// Undrain takes Drain back; not Shutdown.
func (g *Gateway) Undrain() { g.draining.Store(false) }

// goElsewhere is the head of every answer of a draining node.
func goElsewhere(h http.Header) { h["Connection"] = []string{"close"} }

func (s *serverSet) end() []*http.Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return s.list
}
