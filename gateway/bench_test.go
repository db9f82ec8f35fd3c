package gateway

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"lode"
)

// trivial runs every function by answering 1 KiB at once.
type trivial struct {
	*world
	fn   lode.Function
	body []byte
	head []lode.Pair
}

func (v *trivial) Lookup(lode.Namespace, lode.Name) (lode.Access, *lode.Function, bool) {
	return lode.AccessToken, &v.fn, true
}

func (v *trivial) Invoke(_ context.Context, req *lode.Request, a lode.Answer) (lode.Outcome, error) {
	if err := a.Head(200, v.head); err != nil {
		return lode.Outcome{}, err
	}
	_, err := a.Write(v.body)
	return lode.Outcome{ID: req.ID, Usage: lode.Usage{Queued: 10 * time.Microsecond, Wall: 100 * time.Microsecond, CPU: 50 * time.Microsecond}}, err
}

var _ Invoker = (*trivial)(nil)

func newTrivial() *trivial {
	return &trivial{world: newWorld(), body: make([]byte, 1024), head: []lode.Pair{{Key: "content-type", Value: "application/octet-stream"}}}
}

// bare is what the doors are measured against.
func bare(body []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b := make([]byte, r.ContentLength)
		if _, err := io.ReadFull(r.Body, b); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		_, _ = w.Write(body)
	})
}

// BenchmarkFunction posts 1 KiB over loopback, 64 callers, to the door and to
// bare net/http.
func BenchmarkFunction(b *testing.B) {
	v := newTrivial()
	g, err := New(Config{Node: "n1", Invoker: v, Directory: v, Tokens: v})
	if err != nil {
		b.Fatal(err)
	}
	defer g.Close()
	for _, side := range []struct {
		name string
		h    http.Handler
	}{{"bare", bare(v.body)}, {"door", g}} {
		b.Run(side.name, func(b *testing.B) {
			s := httptest.NewServer(side.h)
			defer s.Close()
			addr := strings.TrimPrefix(s.URL, "http://")
			request := []byte(fmt.Sprintf("POST /fn/f HTTP/1.1\r\nHost: %s\r\nUser-Agent: bench\r\nContent-Length: 1024\r\n\r\n%s", addr, make([]byte, 1024)))
			b.SetParallelism(32)
			b.RunParallel(func(pb *testing.PB) {
				c, err := net.Dial("tcp", addr)
				if err != nil {
					b.Error(err)
					return
				}
				defer c.Close()
				r := bufio.NewReader(c)
				for pb.Next() {
					if _, err := c.Write(request); err != nil {
						b.Error(err)
						return
					}
					if err := skipAnswer(r); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// skipAnswer reads an answer of 1 KiB at little cost.
func skipAnswer(r *bufio.Reader) error {
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) == 2 {
			_, err = r.Discard(1024)
			return err
		}
	}
}

// BenchmarkHandler is the door alone, without a connection.
func BenchmarkHandler(b *testing.B) {
	v := newTrivial()
	g, err := New(Config{Node: "n1", Invoker: v, Directory: v, Tokens: v})
	if err != nil {
		b.Fatal(err)
	}
	defer g.Close()
	for _, side := range []struct {
		name string
		h    http.Handler
	}{{"bare", bare(v.body)}, {"door", g}} {
		b.Run(side.name, func(b *testing.B) {
			r, w := handRequest("/fn/f")
			body := strings.NewReader(strings.Repeat("x", 1024))
			b.ReportAllocs()
			for b.Loop() {
				body.Seek(0, 0)
				r.Body = io.NopCloser(body)
				clear(w.h)
				side.h.ServeHTTP(w, r)
			}
		})
	}
}

// handRequest is a POST of 1 KiB and where its answer goes.
func handRequest(path string) (*http.Request, *discard) {
	r := httptest.NewRequest("POST", path, nil)
	r.Host, r.ContentLength = "127.0.0.1:5633", 1024
	r.Header = http.Header{"User-Agent": {"bench"}, "Content-Length": {"1024"}}
	return r, &discard{h: http.Header{}}
}

// discard is a ResponseWriter that keeps nothing.
type discard struct{ h http.Header }

func (d *discard) Header() http.Header         { return d.h }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(int)             {}
