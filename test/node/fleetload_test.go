//go:build linux

package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"

	"lode"
)

// rolling is load on a fleet from clients as load balancers are: each keeps
// its connections, and asks the next node where one refuses to connect.
type rolling struct {
	f    *fleet
	over chan struct{}
	work sync.WaitGroup

	mu       sync.Mutex
	sent     map[string]int
	longest  map[string]time.Duration
	failed   []string
	calls    []lode.InvocationID
	messages []string
}

func startRolling(f *fleet) *rolling {
	r := &rolling{f: f, over: make(chan struct{}), sent: map[string]int{}, longest: map[string]time.Duration{}}
	for n := range 2 * len(f.nodes) {
		for _, kind := range []string{"get", "post", "sleep", "key", "async", "queue"} {
			r.work.Go(func() { r.client(kind, n) })
		}
	}
	return r
}

func (r *rolling) stop() {
	close(r.over)
	r.work.Wait()
}

// client sends one kind of request, one after the other, to its own node first.
func (r *rolling) client(kind string, n int) {
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	c := &http.Client{Transport: tr}
	at := n
	for i := 0; ; i++ {
		select {
		case <-r.over:
			return
		case <-time.After(10 * time.Millisecond):
		}
		id := fmt.Sprintf("%s-%d-%d", kind, n, i)
		began := time.Now()
		for tries := 0; ; tries++ {
			why, refused := r.send(c, kind, id, r.f.ports[at%len(r.f.ports)])
			if refused && tries < 200 {
				at++
				time.Sleep(5 * time.Millisecond)
				continue
			}
			r.mu.Lock()
			if why != "" {
				r.failed = append(r.failed, fmt.Sprintf("%s at %s after %v: %s", id, fleetNames[at%len(r.f.ports)], since(began), why))
			} else {
				r.sent[kind]++
				r.longest[kind] = max(r.longest[kind], time.Since(began))
			}
			r.mu.Unlock()
			break
		}
	}
}

// send sends one request. why says what was wrong with its answer.
func (r *rolling) send(c *http.Client, kind, id string, port int) (why string, refused bool) {
	method, path, body, want, text := http.MethodPost, "/fn/web", id, 200, id
	head := map[string]string{"Content-Type": "text/plain"}
	switch kind {
	case "get":
		method, path, body, text = http.MethodGet, "/fn/web/"+id, "", "/"+id
	case "sleep":
		path, body, text = "/fn/web/sleep?ms=100", "", "slept"
	case "key":
		path, body, text = "/fn/web/hit?k="+id, "", "hit "+id
		head["Idempotency-Key"] = id
	case "async":
		path, want, text = "/fn/web/hit?k="+id, http.StatusAccepted, ""
		head["Prefer"] = "respond-async"
	case "queue":
		path, want, text = "/queues/work", http.StatusAccepted, ""
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, fmt.Sprintf("http://127.0.0.1:%d%s", port, path), strings.NewReader(body))
	if err != nil {
		return err.Error(), false
	}
	for k, v := range head {
		req.Header.Set(k, v)
	}
	resp, err := c.Do(req)
	if err != nil {
		return err.Error(), errors.Is(err, syscall.ECONNREFUSED)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return err.Error(), false
	case resp.StatusCode != want || text != "" && string(b) != text:
		return fmt.Sprintf("%d %.300s", resp.StatusCode, b), false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch kind {
	case "async":
		r.calls = append(r.calls, lode.InvocationID(resp.Header.Get("Lode-Invocation")))
	case "queue":
		r.messages = append(r.messages, id)
	}
	return "", false
}
