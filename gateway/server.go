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
	mu     sync.Mutex
	list   []*http.Server
	closed bool

	open   atomic.Int64 // connections over TCP
	opened atomic.Int64 // ever
}

// Serve answers on ln, in HTTP/1.1 and in HTTP/2 without TLS, until Shutdown
// or Close; then it returns nil. It closes ln.
func (g *Gateway) Serve(ln net.Listener) error { return g.serve(ln, g, g.servers.count) }

// ServeSocket is Serve for the node's own unix socket; see Socket.
func (g *Gateway) ServeSocket(ln net.Listener) error { return g.serve(ln, g.Socket(), nil) }

func (g *Gateway) serve(ln net.Listener, h http.Handler, state func(net.Conn, http.ConnState)) error {
	s := g.newServer(h)
	s.ConnState = state
	g.servers.mu.Lock()
	if g.servers.closed {
		g.servers.mu.Unlock()
		_ = ln.Close() // it may be closed already
		return nil
	}
	g.servers.list = append(g.servers.list, s)
	g.servers.mu.Unlock()
	if err := s.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
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

// count keeps how many connections there are.
func (s *serverSet) count(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.open.Add(1)
		s.opened.Add(1)
	case http.StateHijacked, http.StateClosed:
		s.open.Add(-1)
	}
}

// Shutdown sends clients elsewhere for as long as Linger says, stops listening,
// and waits for the requests under way; when ctx is done first it cuts them.
//
// A kept-alive connection is closed behind the answer to its next request: a
// client that uses it all the time loses nothing. One that was idle all through
// Linger is closed as any idle one is.
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
	wg.Wait()
	g.sweeper.close()
	return first
}

// lingerLook is how often a lingering gateway looks for clients; nobody has
// come for so many looks, and nobody is there: it lingers for nobody.
const (
	lingerLook  = 50 * time.Millisecond
	lingerQuiet = 20
)

// linger waits while clients find out that the node is about to go.
func (g *Gateway) linger(ctx context.Context) {
	if g.cfg.Linger <= 0 {
		return
	}
	over := time.NewTimer(g.cfg.Linger)
	defer over.Stop()
	look := time.NewTicker(lingerLook)
	defer look.Stop()
	came, quiet := g.servers.opened.Load(), 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-over.C:
			return
		case <-look.C:
		}
		now := g.servers.opened.Load()
		if now != came || g.servers.open.Load() > 0 {
			came, quiet = now, 0
			continue
		}
		if quiet++; quiet >= lingerQuiet {
			return
		}
	}
}

// Close cuts everything at once. It may be called more than once.
func (g *Gateway) Close() error {
	g.draining.Store(true)
	g.end()
	for _, s := range g.servers.end() {
		_ = s.Close()
	}
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
