package gateway

import (
	"bytes"
	"context"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"lode"
)

// listen is GET on an agent by whoever accepts text/event-stream: its events.
func (g *Gateway) listen(w http.ResponseWriter, r *http.Request, v *visit) {
	after, err := lastEvent(r)
	if err != nil {
		g.turnAway(w, r, v, err)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(g.ending, cancel)()
	l := &listener{g: g, w: w, rc: http.NewResponseController(w), allow: v.allow}
	var beat sync.WaitGroup
	beat.Go(func() { l.beat(ctx) })
	err = g.cfg.Agents.Events(ctx, v.c.ns, v.kind, v.key, after, l.event)
	over := ctx.Err() != nil // the client left, or the node stops: no failure
	cancel()
	beat.Wait()
	switch {
	case !l.begun && err != nil && !over:
		g.turnAway(w, r, v, err)
	case !l.begun:
		l.begin()
	case err != nil && !over:
		panic(http.ErrAbortHandler) // the client sees it cut, and comes back
	}
	_ = l.rc.SetWriteDeadline(time.Time{})
}

// lastEvent is the number of the last event that the client has seen.
func lastEvent(r *http.Request) (uint64, error) {
	v := r.Header["Last-Event-Id"]
	if len(v) == 0 || v[0] == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(v[0], 10, 64)
	if err != nil {
		return 0, lode.Errorf(lode.Invalid, "Last-Event-ID is %q: want the id of an event", v[0])
	}
	return n, nil
}

// listener writes events to one client. Its two goroutines are that of the
// events and that of the heart.
type listener struct {
	g     *Gateway
	rc    *http.ResponseController
	allow string

	mu    sync.Mutex
	w     http.ResponseWriter
	begun bool
	buf   []byte
}

// firstBeat is when the head leaves at the latest, for want of events. Until
// then a failure still has a status.
const firstBeat = 50 * time.Millisecond

// beat sends the head and, from time to time, a comment, so that the client and
// whoever is between see that the stream is alive.
func (l *listener) beat(ctx context.Context) {
	if !pause(ctx, firstBeat) {
		return
	}
	l.send(nil)
	for pause(ctx, l.g.cfg.BeatEvery) {
		l.send([]byte(":\n\n"))
	}
}

func (l *listener) event(e lode.AgentEvent) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf = appendSSE(l.buf[:0], e)
	err := l.sendLocked(l.buf)
	if cap(l.buf) > hold {
		l.buf = nil
	}
	return err
}

func (l *listener) send(p []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.sendLocked(p) // a broken connection ends the request's context
}

func (l *listener) sendLocked(p []byte) error {
	_ = l.rc.SetWriteDeadline(time.Now().Add(l.g.cfg.BodyTimeout))
	if !l.begun {
		l.begin()
	}
	_, err := l.w.Write(p)
	if err == nil {
		err = l.rc.Flush()
	}
	if err != nil {
		return lode.Errorf(lode.Cancelled, "the client went away: %w", err)
	}
	return nil
}

func (l *listener) begin() {
	l.begun = true
	h := l.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // nginx would hold events back
	if l.g.cfg.Node != "" {
		h.Set("Lode-Node", l.g.cfg.Node)
	}
	if l.allow != "" {
		setCORS(h, l.allow)
	}
	l.w.WriteHeader(http.StatusOK)
}

// appendSSE appends an event in the form of an event stream (HTML, section
// 9.2): a line break in the data begins another data field; one in the type,
// which cannot be said, is a space.
func appendSSE(b []byte, e lode.AgentEvent) []byte {
	b = append(strconv.AppendUint(append(b, "id: "...), e.N, 10), '\n')
	if e.Type != "" && e.Type != "message" {
		b = append(append(append(b, "event: "...), strings.NewReplacer("\r", " ", "\n", " ").Replace(e.Type)...), '\n')
	}
	data := e.Data
	for {
		i := bytes.IndexAny(data, "\r\n")
		if i < 0 {
			break
		}
		b = append(append(append(b, "data: "...), data[:i]...), '\n')
		if data[i] == '\r' && i+1 < len(data) && data[i+1] == '\n' {
			i++
		}
		data = data[i+1:]
	}
	return append(append(append(b, "data: "...), data...), "\n\n"...)
}
