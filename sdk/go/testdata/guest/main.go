// The guest of the SDK's tests.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"lode/sdk/go"
)

type order struct {
	Item string `json:"item"`
	N    int    `json:"n"`
}

var warmed int

func main() {
	lode.Warm(func() { warmed++ })
	lode.Handle(func(ctx context.Context, doc string) (string, error) {
		return strings.ReplaceAll(doc, "free", "****"), nil
	})
	lode.HandleNamed("order", func(o order) (order, error) { o.N++; return o, nil })
	lode.HandleNamed("bytes", func(b []byte) []byte { return append(b, '!') })
	lode.HandleNamed("nothing", func() {})
	lode.HandleNamed("warmed", func() int { return warmed })
	lode.HandleNamed("error", func() error { return fmt.Errorf("no luck: %w", io.ErrUnexpectedEOF) })
	lode.HandleNamed("panic", func(n int) int { return []int{1}[n] })
	lode.HandleNamed("ten", ten)
	lode.HandleNamed("notfound", func(ctx context.Context) (bool, error) {
		_, err := lode.Call[string](ctx, "nobody", "")
		return errors.Is(err, lode.NotFound), nil
	})
	lode.HandleNamed("self", func(ctx context.Context) lode.Identity { return lode.Self(ctx) })
	lode.HandleNamed("log", func(ctx context.Context) { slog.Warn("careful", "n", 1) })
	lode.HandleNamed("late", func(ctx context.Context) (string, error) {
		_, err := lode.Call[string](ctx, "slow", "")
		return fmt.Sprint(errors.Is(err, context.DeadlineExceeded)), nil
	})
	lode.HandleNamed("sleepy", func(ctx context.Context) string { time.Sleep(5 * time.Millisecond); return "awake" })
	lode.HandleNamed("bindings", bindings)
	lode.HandleNamed("count", func(r io.Reader) (int64, error) { return io.Copy(io.Discard, r) })
	lode.HandleNamed("web", http.HandlerFunc(web))
	lode.Job(func(ctx context.Context, s *lode.Shard) (lode.Counts, error) {
		c := lode.Counts{}
		for r := range s.Records() {
			c.AddWords(r)
		}
		return c, nil
	}, lode.Counts.Merge)
}

func ten(ctx context.Context) ([]string, error) {
	out := make([]string, 10)
	errs := make([]error, 10)
	var wg sync.WaitGroup
	for i := range out {
		wg.Go(func() { out[i], errs[i] = lode.Call[string](ctx, "echo", "", fmt.Sprint("n", i)) })
	}
	wg.Wait()
	return out, errors.Join(errs...)
}

func bindings(ctx context.Context) (map[string]string, error) {
	secret, err1 := lode.Secret(ctx, "KEY")
	id, err2 := lode.Put(ctx, "orders", order{"book", 1}, lode.Key("k1"), lode.After(time.Second))
	node, err3 := lode.Node(ctx)
	d, err4 := lode.Open(ctx, "mails")
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return nil, err
	}
	b := make([]byte, 5)
	n, err := d.ReadAt(ctx, 1, b, 3)
	return map[string]string{"secret": secret, "id": id, "node": node, "env": lode.Env(ctx, "MISSING", "fallback"), "data": string(b[:n])}, err
}

func web(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/out" {
		resp, err := http.Get("http://example.com/x")
		if err != nil {
			http.Error(w, err.Error(), 502)
			return
		}
		defer resp.Body.Close()
		w.Header().Set("X-Got", resp.Header.Get("X-Test"))
		io.Copy(w, resp.Body)
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	w.WriteHeader(http.StatusTeapot)
	fmt.Fprintf(w, "%s %s %s %s\n", r.Method, r.URL, r.Header.Get("X-Color"), r.PathValue("id"))
	w.(http.Flusher).Flush()
	io.Copy(w, r.Body)
}
