//go:build !wasip1

package lode

import (
	"bytes"
	"cmp"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"lode/sdk/abi"
	"lode/sdk/abi/solo"
)

// household are the agents of a program that is run natively, so that a
// debugger can stop in them: in memory, one turn of each at a time, gone with
// the process.
type household struct {
	mu     sync.Mutex
	w      *solo.World
	firing map[string]int // timers whose turn is under way or failed: how often
	alarm  *time.Timer
	wg     sync.WaitGroup
	ctx    context.Context
	stop   context.CancelFunc
}

// home is this program's; see the package comment.
var home = &household{}

// host performs the operations of one invocation.
type host interface {
	Operate(ctx context.Context, op abi.Op, m solo.Message) (abi.Status, solo.Message)
}

// hostKey finds it in a context.
type hostKey struct{}

var (
	_ host = (*solo.Turn)(nil)
	_ host = (*solo.Session)(nil)
)

func (h *household) world() *solo.World {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.w == nil {
		h.w = &solo.World{Call: func(ctx context.Context, d solo.Delivery) solo.Message { return h.deliver(ctx, d, nil) }}
		h.ctx, h.stop = context.WithCancel(context.Background())
		h.firing = map[string]int{}
	}
	return h.w
}

// close ends what runs by itself, and waits for it.
func (h *household) close() {
	h.world()
	h.stop()
	h.mu.Lock()
	if h.alarm != nil {
		h.alarm.Stop()
	}
	h.mu.Unlock()
	h.wg.Wait()
}

// ownOperation tells what happens in memory from what needs a node.
func ownOperation(op abi.Op, address string) bool {
	switch op {
	case abi.OpState, abi.OpTimer, abi.OpSocket, abi.OpReceive, abi.OpGroup, abi.OpSelf:
		return true
	case abi.OpCall, abi.OpSend:
		kind, _, ok := strings.Cut(address, "/")
		return ok && (kind == "run" || ownKind(kind))
	}
	return false
}

func ownKind(name string) bool {
	return slices.ContainsFunc(exports.kinds, func(k kindExport) bool { return k.Name == name })
}

func toSolo(m message) solo.Message {
	out := solo.Message{Head: make(map[string]string, len(m.head)), Body: m.body}
	for _, p := range m.head {
		out.Head[p.key] = p.value
	}
	return out
}

func fromSolo(status abi.Status, m solo.Message) (message, error) {
	out := message{body: m.Body}
	for k, v := range m.Head {
		out.head = append(out.head, pair{k, v})
	}
	if status != 0 {
		return out, &Error{Kind: Kind(cmp.Or(m.Head[":error"], status.Kind())), Detail: m.Head[":detail"], Hint: m.Head[":hint"]}
	}
	return out, nil
}

// deliver runs a turn, and what follows from it.
func (h *household) deliver(ctx context.Context, d solo.Delivery, fields []pair) solo.Message {
	kind, key, _ := strings.Cut(d.To, "/")
	t, err := h.world().Begin(ctx, d.To, h.turnOf(kind, d), d.Timer, "", d.Chain)
	if err != nil {
		return answerOf(Deadline, d.To+": "+err.Error())
	}
	v := &invocation{native: context.WithValue(ctx, hostKey{}, host(t))}
	p := &memoryPort{in: bytes.NewReader(d.Args)}
	v.port = p
	v.request.head = append([]pair{{":kind", "agent"}, {":turn", h.turnOf(kind, d)}, {":address", d.To}, {":agent", key}, {":verb", d.Verb}, {":warm", "1"},
		{":caller", d.From}, {":timer", d.Timer}, {":function", kind}, {":namespace", "default"}, {":attempt", "1"}}, fields...)
	if fields == nil {
		v.request.head = append(v.request.head, pair{"content-type", d.Type}, pair{"content-length", strconv.Itoa(len(d.Args))})
	}
	failed := runNative(v, "agent", kind)
	v.end()
	sent := t.End(failed == nil && (p.status < 400 || d.Turn == "fetch"))
	for _, s := range sent {
		h.later(s)
	}
	h.arm()
	if failed != nil {
		slog.Error("turn failed", "agent", d.To, "method", d.Verb, "type", failed.Type, "error", failed.Message)
		if p.status < 400 {
			return answerOf(Crashed, failed.Message)
		}
	}
	out := solo.Message{Head: map[string]string{":status": strconv.Itoa(cmp.Or(p.status, 200))}, Body: p.out.Bytes()}
	for _, f := range p.head {
		out.Head[f.key] = f.value
	}
	return out
}

func answerOf(kind Kind, detail string) solo.Message {
	return solo.Message{Head: map[string]string{":status": strconv.Itoa(kind.status()), "content-type": problemHead[0].value}, Body: problem(kind, detail, "")}
}

// turnOf is the kind of a turn: a call of a method that only reads is a read.
func (h *household) turnOf(kind string, d solo.Delivery) string {
	for _, k := range exports.kinds {
		if k.Name == kind && d.Turn == "call" && slices.Contains(k.Read, lowerFirst(d.Verb)) {
			return "read"
		}
	}
	return d.Turn
}

// later delivers a message that nobody waits for.
func (h *household) later(d solo.Delivery) {
	if !ownKind(strings.Split(d.To, "/")[0]) {
		h.wg.Go(func() {
			m := message{head: []pair{{":address", d.To}, {":verb", d.Verb}, {"content-type", d.Type}}, body: d.Args}
			if _, err := operate(h.ctx, abi.OpSend, m); err != nil {
				slog.Error("message lost", "to", d.To, "error", err)
			}
		})
		return
	}
	h.wg.Go(func() {
		select {
		case <-time.After(d.After):
			h.deliver(h.ctx, d, nil)
		case <-h.ctx.Done():
		}
	})
}

// arm runs the timers that are due, and sleeps until the next.
func (h *household) arm() {
	w := h.world()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ctx.Err() != nil {
		return
	}
	due, next := w.Due(time.Now())
	for _, d := range due {
		id := d.To + " " + d.Timer + " " + strconv.FormatInt(d.Due.UnixNano(), 10)
		if _, under := h.firing[id]; under {
			continue
		}
		h.firing[id]++
		h.wg.Go(func() { h.fire(d, id) })
	}
	if !next.IsZero() {
		if h.alarm != nil {
			h.alarm.Stop()
		}
		h.alarm = time.AfterFunc(time.Until(next), h.arm)
	}
}

// fire runs the turn of a timer; one that failed comes again a second later.
func (h *household) fire(d solo.Delivery, id string) {
	r := h.deliver(h.ctx, d, nil)
	if status, _ := strconv.Atoi(r.Head[":status"]); status >= 400 {
		h.world().Postpone(d, time.Now().Add(time.Second))
	}
	h.mu.Lock()
	delete(h.firing, id)
	h.mu.Unlock()
	h.arm()
}

// serve answers /agents/kind/key/method, and what else goes to an agent's
// ServeHTTP.
func (h *household) serve(w http.ResponseWriter, r *http.Request) {
	parts := strings.SplitN(strings.TrimPrefix(r.URL.EscapedPath(), "/agents/"), "/", 3)
	for len(parts) < 3 {
		parts = append(parts, "")
	}
	kind := parts[0]
	key, err := url.PathUnescape(parts[1])
	body, err2 := io.ReadAll(r.Body)
	if err != nil || err2 != nil || key == "" {
		http.Error(w, "want /agents/kind/key/method", http.StatusBadRequest)
		return
	}
	i := slices.IndexFunc(exports.kinds, func(k kindExport) bool { return k.Name == kind })
	if i < 0 {
		writeAnswer(w, answerOf(NotFound, "this program has no kind of agents "+strconv.Quote(kind)))
		return
	}
	d := solo.Delivery{To: kind + "/" + key, Turn: "call", Verb: parts[2], Type: r.Header.Get("Content-Type"), Args: body}
	var head []pair
	k := &exports.kinds[i]
	if k.Fetch && !slices.Contains(k.Methods, lowerFirst(parts[2])) {
		d.Turn, d.Verb = "fetch", ""
		u := *r.URL
		u.Path, u.RawPath = "/"+strings.TrimPrefix(parts[2], "/"), ""
		head = fields([]pair{{":method", r.Method}, {":path", u.RequestURI()}, {"host", r.Host}}, r.Header)
	}
	writeAnswer(w, h.deliver(r.Context(), d, head))
}

func writeAnswer(w http.ResponseWriter, m solo.Message) {
	for k, v := range m.Head {
		if !strings.HasPrefix(k, ":") {
			w.Header().Set(k, v)
		}
	}
	status, _ := strconv.Atoi(m.Head[":status"])
	if status < 200 {
		status = http.StatusNotImplemented // a WebSocket needs a node
	}
	w.WriteHeader(status)
	w.Write(m.Body)
}

// memoryPort holds the answer of a turn until it has ended.
type memoryPort struct {
	in     *bytes.Reader
	status int
	head   []pair
	out    bytes.Buffer
}

var _ port = (*memoryPort)(nil)

func (p *memoryPort) read(_ context.Context, b []byte) (int, error) { return p.in.Read(b) }

func (p *memoryPort) respond(_ context.Context, status int, head []pair, body []byte) error {
	if p.status != 0 {
		return &Error{Kind: Conflict, Detail: "the answer has begun"}
	}
	p.status, p.head = status, head
	p.out.Write(body)
	return nil
}

func (p *memoryPort) write(_ context.Context, b []byte) error {
	p.out.Write(b)
	return nil
}

func (p *memoryPort) flush(context.Context) error         { return nil }
func (p *memoryPort) window(int64, []byte) (int64, error) { return 0, nil }
