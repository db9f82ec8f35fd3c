//go:build !wasip1

package lode

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	_ "unsafe" // for linkname
)

// main_main is the program's main.
//
//go:linkname main_main main.main
func main_main()

// first tells the first registration from all later ones.
var first sync.Once

// begin is called by every registration. The first one, on main's own
// goroutine, never returns: main runs again beside it, to its end, so that all
// registrations are known, and then they are served.
func begin() {
	outer := false
	first.Do(func() { outer = true })
	if !outer || underTest() {
		return
	}
	collected := make(chan struct{})
	go func() { defer close(collected); main_main() }()
	<-collected
	if err := listen(); err != nil {
		fmt.Fprintln(os.Stderr, "lode:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// underTest reports whether this is a test binary, which has a main of its own.
func underTest() bool { return strings.HasSuffix(strings.TrimSuffix(os.Args[0], ".exe"), ".test") }

// listen serves the registrations on $PORT until a signal.
func listen() error {
	if _, err := exports.describe(); err != nil {
		return err
	}
	port := os.Getenv("PORT")
	if port == "" {
		port = "8080"
	}
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s := &http.Server{Handler: http.HandlerFunc(answerHTTP)}
	slog.Info("serving natively", "url", "http://"+l.Addr().String())
	failed := make(chan error, 1)
	go func() { failed <- s.Serve(l) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		return s.Shutdown(ctx)
	}
}

// answerHTTP runs one request through the handlers. The header Lode-Handler
// names one of several; Lode-Kind: job makes the body a shard.
func answerHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, "/agents/") {
		home.serve(w, r)
		return
	}
	kind := r.Header.Get("Lode-Kind")
	if kind == "" {
		kind = "http"
	}
	name := r.Header.Get("Lode-Handler")
	if kind == "http" && name == "" && len(exports.handlers) == 0 {
		kind = "job" // a program that only has a job takes a shard
	}
	session := home.world().Open()
	defer session.Close()
	v := &invocation{native: context.WithValue(r.Context(), hostKey{}, host(session)), port: &httpPort{w: w, r: r}}
	v.request.head = []pair{{":kind", kind}, {":method", r.Method}, {":path", r.URL.RequestURI()}, {":function", "native"}, {":namespace", "default"},
		{":attempt", "1"}, {"host", r.Host}}
	if r.ContentLength >= 0 {
		v.request.head = append(v.request.head, pair{"content-length", strconv.FormatInt(r.ContentLength, 10)})
	}
	v.request.head = fields(v.request.head, r.Header)
	if kind == "job" {
		if err := nativeShard(v, r); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	defer v.end()
	if err := runNative(v, kind, name); err != nil {
		slog.Error("handler failed", "type", err.Type, "error", err.Message)
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusBadGateway)
		json.NewEncoder(w).Encode(map[string]any{"type": "urn:lode:error:crashed", "title": "the function crashed", "status": 502, "kind": Crashed,
			"detail": err.Message, "guest": err})
	}
}

// failure is what the user's code said of its own failure.
type failure struct {
	Type    string   `json:"type"`
	Message string   `json:"message"`
	Stack   []string `json:"stack,omitempty"`
}

func runNative(v *invocation, kind, name string) (failed *failure) {
	defer func() {
		if p := recover(); p != nil {
			failed = &failure{Type: "panic", Message: fmt.Sprint(p), Stack: strings.Split(string(debug.Stack()), "\n")}
		}
	}()
	var h handler
	var err error
	if kind == "agent" {
		h, err = exports.kindOf(name)
	} else {
		h, err = exports.find(kind, name)
	}
	if err == nil {
		err = h(v)
	}
	if err != nil {
		return &failure{Type: fmt.Sprintf("%T", err), Message: err.Error()}
	}
	return nil
}

// nativeShard makes the request's body the shard of a job.
func nativeShard(v *invocation, r *http.Request) error {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	v.port.(*httpPort).shard = b
	v.request.head = append(v.request.head, pair{":shard", "0"}, pair{":shard-bytes", strconv.Itoa(len(b))}, pair{":records", r.Header.Get("Lode-Records")})
	return nil
}

// httpPort answers a native request.
type httpPort struct {
	w     http.ResponseWriter
	r     *http.Request
	begun bool
	shard []byte
}

var _ port = (*httpPort)(nil)

func (p *httpPort) read(_ context.Context, b []byte) (int, error) {
	n, err := p.r.Body.Read(b)
	if n > 0 && errors.Is(err, io.EOF) {
		err = nil // it comes again
	}
	return n, err
}

func (p *httpPort) respond(_ context.Context, status int, head []pair, body []byte) error {
	if p.begun {
		return &Error{Kind: Conflict, Detail: "the answer has begun"}
	}
	p.begun = true
	for _, f := range head {
		p.w.Header().Add(f.key, f.value)
	}
	p.w.WriteHeader(status)
	if len(body) == 0 {
		return nil
	}
	_, err := p.w.Write(body)
	return err
}

func (p *httpPort) write(_ context.Context, b []byte) error {
	_, err := p.w.Write(b)
	return err
}

func (p *httpPort) flush(context.Context) error {
	return http.NewResponseController(p.w).Flush()
}

func (p *httpPort) window(offset int64, b []byte) (int64, error) {
	return int64(copy(b, p.shard[min(offset, int64(len(p.shard))):])), nil
}
