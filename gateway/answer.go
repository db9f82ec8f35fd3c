package gateway

import (
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"lode"
)

// hold is how many bytes of an answer's body wait for its end.
const hold = 32 << 10

// answer is the lode.Answer that writes to an HTTP client.
//
//	open -Head-> held -(hold full, Flush, sweeper, event stream)-> sent
//	  \            \------------------ finish ------------------> done
type answer struct {
	g     *Gateway
	r     *http.Request
	id    lode.InvocationID
	allow string // Access-Control-Allow-Origin, or empty

	// The sweeper's, guarded by its mu.
	next, prev *answer
	mark       uint64
	listed     bool

	dirty   atomic.Bool    // something waits for a flush
	flushes sync.WaitGroup // flushes that the sweeper started

	mu      sync.Mutex
	w       http.ResponseWriter
	status  int // 0: open
	sent    bool
	eager   bool // hand on each write at once
	bounded bool // a write deadline is set
	started bool
	node    string // another node that runs it, or ""
	cold    bool
	queued  time.Duration
	bad     *lode.Error // the guest's head cannot be sent
	held    []byte
	vals    []string // backs the values of the head
}

func (a *answer) begin(g *Gateway, w http.ResponseWriter, r *http.Request) {
	a.g, a.w, a.r = g, w, r
	if a.vals == nil {
		a.vals = make([]string, 0, 24)
	}
}

// end makes a ready for the next request.
func (a *answer) end() {
	clear(a.vals[:cap(a.vals)])
	a.vals = a.vals[:0]
	if cap(a.held) > 2*hold {
		a.held = nil
	}
	a.held = a.held[:0]
	a.g, a.w, a.r, a.id, a.allow, a.node = nil, nil, nil, "", "", ""
	a.status, a.sent, a.eager, a.bounded, a.started, a.cold, a.queued, a.bad = 0, false, false, false, false, false, 0, nil
	a.dirty.Store(false)
}

// Started tells what is known before the function has answered.
func (a *answer) Started(cold bool, queued time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.started, a.cold, a.queued = true, cold, queued
}

// Ran tells that another node runs it.
func (a *answer) Ran(node lode.NodeID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.node = string(node)
}

// Head takes the function's head.
func (a *answer) Head(status int, head []lode.Pair) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.headLocked(status, head)
}

func (a *answer) headLocked(status int, head []lode.Pair) error {
	if a.status != 0 {
		return lode.Errorf(lode.Invalid, "the answer has begun")
	}
	if status < 200 || status > 599 {
		a.bad = badStatus("the function", status)
		return a.bad
	}
	a.status = status
	h := a.w.Header()
	a.fields(h, head)
	if v := h["Content-Type"]; len(v) > 0 && strings.HasPrefix(v[0], "text/event-stream") {
		a.eager = true
	}
	if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil // net/http would guess one from the bytes
	}
	a.dirty.Store(true)
	a.g.sweeper.add(a)
	if a.eager {
		a.send()
	}
	return nil
}

// badStatus says that code answered with what is no final status of HTTP.
func badStatus(who string, status int) *lode.Error {
	s := strconv.Itoa(status)
	return &lode.Error{Kind: lode.Crashed, Detail: who + " answered with status " + s, Hint: "a status is between 200 and 599",
		Guest: &lode.GuestError{Type: "BadStatus", Message: "status " + s}}
}

// fields adds the fields of a guest's head that a guest may set.
func (a *answer) fields(h http.Header, head []lode.Pair) {
	for i := range head {
		if key := guestName(head[i].Key); key != "" {
			a.set(h, key, head[i].Value)
		}
	}
}

// set appends a value without an allocation of its own for the first.
func (a *answer) set(h http.Header, key, value string) {
	if old := h[key]; len(old) > 0 {
		h[key] = append(old, value)
		return
	}
	n := len(a.vals)
	a.vals = append(a.vals, value)
	h[key] = a.vals[n : n+1 : n+1]
}

// Write takes bytes of the body.
func (a *answer) Write(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.bad != nil {
		return 0, a.bad
	}
	if a.status == 0 {
		if err := a.headLocked(http.StatusOK, nil); err != nil {
			return 0, err
		}
	}
	if !bodyAllowed(a.r.Method, a.status) {
		return len(p), nil
	}
	if !a.sent && !a.eager && len(a.held)+len(p) <= hold {
		a.held = append(a.held, p...)
		a.dirty.Store(true)
		return len(p), nil
	}
	if !a.sent {
		a.send()
	}
	a.deadline()
	n, err := a.w.Write(p)
	if err != nil {
		return n, lode.Errorf(lode.Cancelled, "the client went away: %w", err)
	}
	if a.eager {
		a.flushLocked()
	} else {
		a.dirty.Store(true)
	}
	return n, nil
}

// Flush hands on what was written so far.
func (a *answer) Flush() {
	if a.dirty.CompareAndSwap(true, false) {
		a.flush()
	}
}

func (a *answer) flush() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.status == 0 {
		return
	}
	if !a.sent {
		a.send()
	}
	a.flushLocked()
}

func (a *answer) flushLocked() {
	a.deadline()
	_ = http.NewResponseController(a.w).Flush() // a broken connection shows at the next Write
}

// deadline bounds the next write, which may wait for a client that does not
// read.
func (a *answer) deadline() {
	a.bounded = true
	_ = http.NewResponseController(a.w).SetWriteDeadline(time.Now().Add(a.g.cfg.BodyTimeout))
}

// send writes the head and what is held, before the end is known.
func (a *answer) send() {
	h := a.w.Header()
	a.common(h)
	if a.started {
		a.set(h, "Lode-Cold", coldValue(a.cold))
		a.set(h, "Server-Timing", timing(a.queued, 0, 0))
	}
	if te := h["Content-Length"]; len(te) > 1 {
		delete(h, "Content-Length")
	}
	a.sent = true
	a.w.WriteHeader(a.status)
	if len(a.held) > 0 {
		_, _ = a.w.Write(a.held) // a broken connection shows at the next Write
	}
	a.held = a.held[:0]
}

func (a *answer) common(h http.Header) {
	a.set(h, "Lode-Invocation", string(a.id))
	if a.node == "" {
		a.node = a.g.cfg.Node
	}
	if a.node != "" {
		a.set(h, "Lode-Node", a.node)
	}
	if a.allow != "" {
		setCORS(h, a.allow)
	}
}

// finish ends the answer after Invoke. false: the client must see it cut.
func (a *answer) finish(out *lode.Outcome, err error) bool {
	a.g.sweeper.remove(a)
	a.flushes.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.bounded { // it must not hit the connection's next request
		_ = http.NewResponseController(a.w).SetWriteDeadline(time.Time{})
	}
	switch {
	case a.bad != nil && err == nil:
		err = a.bad
	case err == nil && a.status == 0:
		a.status = http.StatusOK
	}
	switch {
	case err != nil && a.sent:
		return false
	case err != nil:
		a.fail(err)
	case !a.sent:
		a.whole(out)
	}
	return true
}

// abandon takes a out of the sweeper's hands when its door is left by a panic.
func (a *answer) abandon() {
	a.g.sweeper.remove(a)
	a.flushes.Wait()
}

// whole writes an answer all of which was held.
func (a *answer) whole(out *lode.Outcome) {
	h := a.w.Header()
	if out.Node != "" {
		a.node = string(out.Node)
	}
	a.common(h)
	a.set(h, "Lode-Cold", coldValue(out.Usage.Cold))
	a.set(h, "Server-Timing", timing(out.Usage.Queued, out.Usage.Wall, out.Usage.CPU))
	if bodyAllowed(a.r.Method, a.status) {
		delete(h, "Content-Length")
		a.set(h, "Content-Length", strconv.Itoa(len(a.held)))
	}
	a.sent = true
	a.w.WriteHeader(a.status)
	if len(a.held) > 0 {
		_, _ = a.w.Write(a.held) // nobody is left to tell
	}
}

// fail answers with an error, in place of whatever the function had begun.
func (a *answer) fail(err error) {
	clear(a.w.Header())
	if a.g.draining.Load() {
		goElsewhere(a.w.Header())
	}
	if a.allow != "" {
		setCORS(a.w.Header(), a.allow)
	}
	e := *lode.AsError(err)
	if e.Invocation == "" {
		e.Invocation = a.id
	}
	a.g.refuse(a.w, a.r, &e)
}

func coldValue(cold bool) string {
	if cold {
		return "1"
	}
	return "0"
}

// timing is the value of Server-Timing: milliseconds with three digits.
func timing(queued, wall, cpu time.Duration) string {
	var buf [64]byte
	b := appendMillis(append(buf[:0], "queue;dur="...), queued)
	if wall > 0 {
		b = appendMillis(append(b, ", run;dur="...), wall)
	}
	if cpu > 0 {
		b = appendMillis(append(b, ", cpu;dur="...), cpu)
	}
	return string(b)
}

func appendMillis(b []byte, d time.Duration) []byte {
	us := max(0, d.Microseconds())
	b = strconv.AppendInt(b, us/1000, 10)
	us %= 1000
	return append(b, '.', byte('0'+us/100), byte('0'+us/10%10), byte('0'+us%10))
}

var _ lode.Answer = (*answer)(nil)
