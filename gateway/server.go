package gateway

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
)

// maxHeader bounds the bytes of a request's head; more is 431.
const maxHeader = 64 << 10

// serverSet is the servers that run, so that Close ends them all.
type serverSet struct {
	mu     sync.Mutex
	list   []*http.Server
	closed bool
}

// Serve answers on ln, in HTTP/1.1 and in HTTP/2 without TLS, until Shutdown
// or Close; then it returns nil. It closes ln.
func (g *Gateway) Serve(ln net.Listener) error { return g.serve(ln, g) }

// ServeSocket is Serve for the node's own unix socket; see Socket.
func (g *Gateway) ServeSocket(ln net.Listener) error { return g.serve(ln, g.Socket()) }

func (g *Gateway) serve(ln net.Listener, h http.Handler) error {
	s := g.newServer(h)
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

// Shutdown stops listening and waits for the requests under way; when ctx is
// done first it cuts them.
func (g *Gateway) Shutdown(ctx context.Context) error {
	g.draining.Store(true)
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

// Close cuts everything at once. It may be called more than once.
func (g *Gateway) Close() error {
	g.draining.Store(true)
	for _, s := range g.servers.end() {
		_ = s.Close()
	}
	g.sweeper.close()
	return nil
}

// Drain makes /readyz answer 503 while everything else goes on.
func (g *Gateway) Drain() { g.draining.Store(true) }

func (s *serverSet) end() []*http.Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return s.list
}
