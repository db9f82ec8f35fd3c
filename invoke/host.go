package invoke

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"lode"
	"lode/engine"
)

const (
	maxStreams = 64
	maxChunk   = 1 << 20
	dataChunk  = 8 << 20
)

// Submit starts an operation of the guest. What answers from memory is done
// before Submit returns.
func (a *attempt) Submit(ctx context.Context, op engine.Op, req lode.Message, done func(lode.Message, error)) {
	if op == engine.OpSelf {
		own := done
		done = func(m lode.Message, err error) { own(a.selfOp(m), err) }
	}
	if a.turn != nil && a.turn.Ops.Operate(ctx, op, req, done) {
		return
	}
	var slow func(context.Context, *lode.Message) (lode.Message, error)
	switch op {
	case engine.OpConfig:
		done(a.config(&req))
		return
	case engine.OpSecret:
		done(a.secret(&req))
		return
	case engine.OpSelf:
		done(a.self(), nil)
		return
	case engine.OpReceive:
		a.receive(ctx, &req, done)
		return
	case engine.OpGroup:
		a.group(ctx, &req, done)
		return
	case engine.OpStreamClose:
		done(lode.Message{}, a.closeStream(req.Get(":stream")))
		return
	case engine.OpCall:
		slow = a.call
	case engine.OpSend:
		slow = a.send
	case engine.OpData:
		slow = a.data
	case engine.OpFetch:
		slow = a.doFetch
	case engine.OpQueue:
		slow = a.putQueue
	case engine.OpStreamRead:
		slow = a.readStream
	default:
		done(lode.Message{}, reserved(op))
		return
	}
	a.slowly(ctx, &req, slow, done)
}

// Log passes a line of the guest on, until there are more than its limit.
func (a *attempt) Log(level int, text []byte) {
	limit := orDefault(a.rev.Function.Limits.Log, defaultLog)
	if a.dropped > 0 || a.logged+int64(len(text)) > limit {
		if a.dropped == 0 {
			level, said := logWarn, fmt.Appendf(nil, "the rest of the log is left out: it is over %d bytes in this invocation", limit)
			a.line = Line{ID: a.id, Revision: a.rev, Trace: a.trace, Time: time.Now(), Level: level, Text: said}
			a.s.cfg.Observer.Line(&a.line)
		}
		a.dropped += int64(len(text))
		return
	}
	a.logged += int64(len(text))
	a.line = Line{ID: a.id, Revision: a.rev, Trace: a.trace, Time: time.Now(), Level: level, Text: text}
	a.s.cfg.Observer.Line(&a.line)
}

var ofTurns = map[engine.Op]string{engine.OpState: "state", engine.OpTimer: "timer", engine.OpSocket: "socket"}

func reserved(op engine.Op) error {
	if name, ok := ofTurns[op]; ok {
		return lode.Errorf(lode.Unavailable, "the operation %s belongs to turns of agents", name).WithHint("make the function a kind of agents")
	}
	return lode.Errorf(lode.Unavailable, "this node does not know the operation %d", op)
}

func (a *attempt) config(req *lode.Message) (lode.Message, error) {
	key := req.Get(":key")
	if key == "" {
		b, err := json.Marshal(orEmpty(a.rev.Function.Env))
		return lode.Message{Body: b}, err
	}
	v, ok := a.rev.Function.Env[key]
	if !ok {
		e := lode.Errorf(lode.NotFound, "%s has no config %q", a.rev.ID(), key)
		return lode.Message{}, e.WithHint("set it in env of lode.yaml")
	}
	return lode.Message{Body: []byte(v)}, nil
}

func orEmpty(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

func (a *attempt) secret(req *lode.Message) (lode.Message, error) {
	key := req.Get(":key")
	if !slices.Contains(a.rev.Function.Secrets, key) {
		return lode.Message{}, lode.Errorf(lode.Denied, "%s has no right to the secret %q", a.rev.ID(), key).WithHint("name it in secrets of lode.yaml")
	}
	m, err := a.s.cfg.Catalog.Secrets(a.rev.Namespace, []string{key})
	return lode.Message{Body: []byte(m[key])}, err
}

func (a *attempt) self() lode.Message {
	return lode.Message{Head: []lode.Pair{{Key: ":address", Value: string(a.rev.Name)}, {Key: ":namespace", Value: string(a.rev.Namespace)},
		{Key: ":revision", Value: strconv.Itoa(a.rev.Number)}, {Key: ":id", Value: string(a.id)}, {Key: ":node", Value: a.s.cfg.Node}}}
}

// call invokes another function of the namespace in this process. The chain
// shares the deadline and the trace.
func (a *attempt) call(ctx context.Context, m *lode.Message) (lode.Message, error) {
	to, err := lode.ParseAddress(m.Get(":address"))
	if err != nil {
		return lode.Message{}, err
	}
	if run, ok, err := parseRun(to); err != nil {
		return lode.Message{}, err
	} else if ok {
		return a.toRunning(ctx, run, m, true)
	}
	if to.Key != "" {
		return a.callAgent(ctx, to, m)
	}
	req := &lode.Request{Namespace: a.rev.Namespace, Function: to.Name, Trigger: lode.TriggerCall, Method: m.Get(":method"), Path: m.Get(":path"), Handler: m.Get(":handler"),
		Body: m.Body, Deadline: a.inv.Deadline, Trace: a.trace.Traceparent(), Caller: a.rev.ID(), Depth: a.depth + 1}
	for _, p := range m.Head {
		switch {
		case strings.HasPrefix(p.Key, ":"):
		case p.Key == "idempotency-key":
			req.IdempotencyKey = p.Value
		default:
			req.Head = append(req.Head, p)
		}
	}
	ans := &lode.Buffered{}
	if _, err := a.s.Invoke(ctx, req, ans); err != nil {
		return lode.Message{}, err
	}
	if len(ans.Msg.Body) > engine.MaxMessage-maxAnswerHead {
		return lode.Message{}, lode.Errorf(lode.TooLarge, "the answer of %s has %d bytes, too many for a message", to, len(ans.Msg.Body))
	}
	ans.Msg.Head = append(ans.Msg.Head, lode.Pair{Key: ":status", Value: strconv.Itoa(ans.Status)})
	return ans.Msg, nil
}

func (a *attempt) data(ctx context.Context, m *lode.Message) (lode.Message, error) {
	if a.s.cfg.Datasets == nil {
		return lode.Message{}, lode.Errorf(lode.Unavailable, "this node serves no datasets")
	}
	name, err := lode.ParseName(m.Get(":dataset"))
	if err != nil {
		return lode.Message{}, err
	}
	version, err := number(m, ":version", 0, math.MaxInt32)
	if err != nil {
		return lode.Message{}, err
	}
	switch verb := m.Get(":verb"); verb {
	case "", "show":
		b, err := a.s.cfg.Datasets.Show(ctx, a.rev.Namespace, name, int(version))
		return lode.Message{Body: b}, err
	case "read":
		shard, err1 := number(m, ":shard", 0, math.MaxInt32)
		offset, err2 := number(m, ":offset", 0, math.MaxInt64)
		length, err3 := number(m, ":length", dataChunk, math.MaxInt64)
		if err := errors.Join(err1, err2, err3); err != nil {
			return lode.Message{}, err
		}
		b, err := a.s.cfg.Datasets.Read(ctx, a.rev.Namespace, name, int(version), int(shard), offset, min(length, dataChunk))
		return lode.Message{Body: b}, err
	case "index":
		shard, err := number(m, ":shard", 0, math.MaxInt32)
		if err != nil {
			return lode.Message{}, err
		}
		b, err := a.s.cfg.Datasets.Index(ctx, a.rev.Namespace, name, int(version), int(shard))
		return lode.Message{Body: b}, err
	default:
		return lode.Message{}, lode.Errorf(lode.Invalid, "data has no verb %q", verb).WithHint("verbs: show, read, index")
	}
}

// number reads a pair that is a number from 0 to most.
func number(m *lode.Message, key string, def, most int64) (int64, error) {
	s := m.Get(key)
	if s == "" {
		return def, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > most {
		return 0, lode.Errorf(lode.Invalid, "%s is %q, not a number from 0 to %d", key, s, most)
	}
	return n, nil
}

// doFetch performs an HTTP request that the function's egress allows.
func (a *attempt) doFetch(op context.Context, m *lode.Message) (lode.Message, error) {
	// What is streamed lives longer than the operation that began it, and no
	// longer than the invocation.
	ctx, cancel := context.WithDeadline(a.ctx, a.inv.Deadline)
	unlink := context.AfterFunc(op, cancel)
	streamed := false
	defer func() {
		unlink()
		if !streamed {
			cancel()
		}
	}()
	req, err := outgoing(ctx, m, a.trace.Traceparent())
	if err != nil {
		return lode.Message{}, err
	}
	res, err := a.s.fetch.client(a.rev.Namespace, a.rev.Function.Egress).Do(req)
	if err != nil {
		return lode.Message{}, fetchError(orEnded(op, ctx), err)
	}
	out := lode.Message{Head: incoming(res)}
	if m.Get(":stream") == "1" {
		handle, err := a.openStream(&stream{body: res.Body, cancel: cancel})
		if err != nil {
			res.Body.Close()
			return lode.Message{}, err
		}
		streamed = true
		out.Head = append(out.Head, lode.Pair{Key: ":stream", Value: handle})
		return out, nil
	}
	defer res.Body.Close()
	most := int64(engine.MaxMessage - maxAnswerHead)
	out.Body, err = io.ReadAll(io.LimitReader(res.Body, most+1))
	if err != nil {
		return lode.Message{}, fetchError(orEnded(op, ctx), err)
	}
	if int64(len(out.Body)) > most {
		return lode.Message{}, lode.Errorf(lode.TooLarge, "the answer of %s is over %d bytes", req.URL.Host, most).WithHint("ask for it as a stream")
	}
	return out, nil
}

// orEnded is op where it has ended, for it says why, else ctx.
func orEnded(op, ctx context.Context) context.Context {
	if op.Err() != nil {
		return op
	}
	return ctx
}

func (a *attempt) openStream(s *stream) (string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.opened < 0 {
		return "", lode.Errorf(lode.Cancelled, "the invocation has ended")
	}
	if len(a.streams) >= maxStreams {
		return "", lode.Errorf(lode.Overloaded, "%d streams are open in this invocation", maxStreams).WithHint("close those that are read")
	}
	if a.streams == nil {
		a.streams = make(map[string]*stream)
	}
	a.opened++
	handle := strconv.Itoa(a.opened)
	a.streams[handle] = s
	return handle, nil
}

func (a *attempt) readStream(ctx context.Context, m *lode.Message) (lode.Message, error) {
	handle := m.Get(":stream")
	a.mu.Lock()
	s := a.streams[handle]
	a.mu.Unlock()
	if s == nil {
		return lode.Message{}, lode.Errorf(lode.NotFound, "there is no open stream %.20q", handle)
	}
	n, err := number(m, ":max", engine.MaxField, math.MaxInt32)
	if err != nil {
		return lode.Message{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	defer context.AfterFunc(ctx, s.cancel)() // a read that is given up ends the stream
	b := make([]byte, min(max(n, 1), maxChunk))
	for {
		got, err := s.body.Read(b)
		if got > 0 || err == io.EOF {
			return lode.Message{Body: b[:got]}, nil
		}
		if err != nil {
			return lode.Message{}, fetchError(ctx, err)
		}
	}
}

func (a *attempt) closeStream(handle string) error {
	a.mu.Lock()
	s := a.streams[handle]
	delete(a.streams, handle)
	a.mu.Unlock()
	if s == nil {
		return lode.Errorf(lode.NotFound, "there is no open stream %.20q", handle)
	}
	s.end()
	return nil
}

// end frees the stream; a read under way fails.
func (s *stream) end() {
	s.cancel()
	s.body.Close()
}

// closeStreams ends the streams that the guest left open, and lets no more
// begin.
func (a *attempt) closeStreams() {
	if a.began.Load() == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.opened = -1
	for _, s := range a.streams {
		s.end()
	}
	a.streams = nil
}

func (a *attempt) putQueue(ctx context.Context, m *lode.Message) (lode.Message, error) {
	name, err := lode.ParseName(m.Get(":queue"))
	if err != nil {
		return lode.Message{}, err
	}
	delay, err := number(m, ":delay", 0, int64(maxDelay/time.Millisecond))
	if err != nil {
		return lode.Message{}, err
	}
	id, err := a.s.PutQueue(ctx, a.rev.Namespace, name, m.Get(":key"), time.Duration(delay)*time.Millisecond, m.Get("content-type"), m.Body)
	if err != nil {
		return lode.Message{}, err
	}
	return lode.Message{Head: []lode.Pair{{Key: ":id", Value: id}}}, nil
}
