package invoke

import (
	"context"
	"io"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"lode"
	"lode/engine"
)

const (
	defaultTotal  = 60 * time.Second
	defaultBody   = 6 << 20
	defaultOutput = 6 << 20
	defaultLog    = 256 << 10
	maxTurnAnswer = 8 << 20 // of an agent; larger state than that is not one value

	logWarn = 4 // the level of the ABI and of slog
)

// jobs is the lane that all jobs share. They hold a slot for as long as a shard
// takes, so two slots are kept from them; they wait patiently, and their time
// begins when they are admitted.
var jobs = target{name: "jobs"}

const (
	jobTotal  = 24 * time.Hour
	jobSpared = 2 // slots that jobs leave to others, where there are more
)

// attempt is one try of an invocation, from admission to the answer. It is
// what the engine sees as Answer, Host and Slot. Attempts are used again.
type attempt struct {
	s     *Service
	w     waiter
	long  waiter // its place among the long ones
	inv   engine.Invocation
	req   *lode.Request
	rev   *lode.Revision
	ans   lode.Answer
	ctx   context.Context // of the run
	id    lode.InvocationID
	depth int // of req, which is not ours any more when operations end late
	trace Trace
	start time.Time
	end   time.Time // zero: it was not admitted
	rec   Record
	line  Line

	flusher flusher // ans, if it is one
	left    bool    // its slot was given back before its end
	unsent  bool    // something was written since the last Flush
	status  int     // answered; 0 = not yet
	out     int64   // bytes answered
	most    int64   // bytes that may be; 0 = no limit
	logged  int64   // bytes of log
	dropped int64   // bytes of log over the limit
	head    []byte
	pairs   []lode.Pair

	turn    *Turn         // of an agent; nil: an invocation
	lender  *attempt      // the turn within which it runs, whose slot it uses; nil: its own
	lent    time.Duration // that turns took which ran within it
	turnReq lode.Request  // the turn's, as records tell it

	came *arrival    // it was placed here by another node's gateway; nil: it came in here
	body *replay     // of req.Stream, once that may have to be sent twice
	away bool        // another node gives its record, or goes on with it
	node lode.NodeID // that ran it; "": this one

	began   atomic.Int32 // operations that went to another goroutine
	mu      sync.Mutex   // guards what follows
	streams map[string]*stream
	opened  int
	reached *reach // what others reach of it while it runs; nil: nothing
	gone    bool   // nobody reaches it any more
}

func (a *attempt) prepare(req *lode.Request, ans lode.Answer) {
	a.req, a.ans, a.id, a.depth = req, ans, req.ID, req.Depth
	a.flusher, _ = ans.(flusher)
	a.start = time.Now()
	if a.id == "" {
		a.id = lode.NewInvocationID(a.start)
	}
	a.trace = continueTrace(req.Trace)
}

// run checks, places, admits and dispatches.
func (a *attempt) run(ctx context.Context) error {
	if err := a.resolve(); err != nil {
		return err
	}
	rev := a.rev
	runner, err := a.s.cfg.Pools.Pool(rev)
	if err != nil {
		return err
	}
	to, lim, most := target{rev.Namespace, rev.Name}, &rev.Function.Limits, total(rev)
	if a.req.Trigger == lode.TriggerJob || a.req.Trigger == lode.TriggerMerge {
		to, lim, most, a.w.patient = jobs, &a.s.jobLimits, jobTotal, true
	}
	deadline := a.req.Deadline
	if !a.w.patient {
		deadline = earlier(deadline, a.start.Add(most))
	}
	if !deadline.IsZero() && !deadline.After(a.start) {
		return lode.Errorf(lode.Deadline, "the deadline had passed before %s began", rev.ID())
	}
	if away, err := a.admit(ctx, to, lim, deadline); away || err != nil {
		return err
	}
	admitted := a.start
	if a.w.waited {
		admitted = time.Now()
	}
	if a.w.patient {
		deadline = earlier(deadline, admitted.Add(most))
	}
	a.inv.Deadline, a.inv.Usage.Queued = deadline, admitted.Sub(a.start)
	err = a.dispatch(ctx, runner)
	a.end = time.Now()
	a.inv.Usage.Queued, a.inv.Usage.Wall = admitted.Sub(a.start), a.end.Sub(admitted)
	if !a.left && !a.inv.Usage.Cold {
		a.w.hold = int64(a.inv.Usage.Wall)
	}
	a.unlong()
	a.s.gate.exit(&a.w, a.inv.Usage.CPU)
	if a.s.spread != nil && err == nil {
		a.s.used.ended(rev, a.end, a.inv.Usage.Wall, a.inv.Usage.Cold)
	}
	return err
}

// resolve finds the revision, where it is not given, and checks whether it
// takes the request.
func (a *attempt) resolve() (err error) {
	if a.rev == nil {
		if a.rev, err = a.s.resolve(a.req); err != nil {
			return err
		}
	}
	return admissible(a.req, a.rev)
}

// admit takes a place and a slot on this node, unless the attempt is placed on
// another one: away, it has ended there.
func (a *attempt) admit(ctx context.Context, to target, lim *lode.Limits, deadline time.Time) (away bool, err error) {
	switch sp := a.s.spread; {
	case a.came != nil:
		return false, a.came.admit(ctx, a.s, to, lim, deadline)
	case sp != nil:
		if away, err := sp.place(ctx, a, to, lim, deadline); away || err != nil || a.w.slot {
			return away, err
		}
	}
	err = a.s.gate.enter(ctx, &a.w, to, lim, deadline)
	a.w.waited = a.w.waited || a.s.spread != nil // the way to the decision counts
	return false, err
}

// dispatch runs the attempt in the pool.
func (a *attempt) dispatch(ctx context.Context, runner Runner) (err error) {
	if a.head, err = a.encodeHead(a.head[:0]); err != nil {
		return err
	}
	inv := &a.inv
	inv.ID, inv.Head, inv.Body, inv.Stream = a.id, a.head, a.req.Body, nil
	inv.Out, inv.Host, inv.Slot, inv.Windows = a, a, a, nil
	if w, ok := a.ans.(windower); ok {
		inv.Windows = w.Windows()
	}
	if _, ok := a.ans.(*lode.Buffered); ok && a.turn != nil {
		a.most = max(orDefault(a.rev.Function.Limits.OutputMax, defaultOutput), maxTurnAnswer)
	} else if ok || a.came != nil && a.came.o.kept {
		a.most = orDefault(a.rev.Function.Limits.OutputMax, defaultOutput)
	}
	if body := a.stream(); body != nil {
		idle, stop := newIdle(ctx, body, a.rev.Function.Limits.Idle)
		defer stop()
		ctx, inv.Stream = idle.ctx, idle
	}
	a.ctx = ctx
	if err = runner.Invoke(ctx, inv); err != nil {
		return a.explain(ctx, err)
	}
	if a.status == 0 { // it answered nothing at all
		return a.answer(200, nil)
	}
	return nil
}

// stream is the rest of the body, from its beginning, or nil.
func (a *attempt) stream() io.Reader {
	if a.body == nil {
		return a.req.Stream
	}
	v := a.body.view()
	v.admit()
	return v
}

// explain turns what the engine said into an Error: where the context ended
// for a reason that is known, the reason is the error.
func (a *attempt) explain(ctx context.Context, err error) error {
	switch e := lode.AsError(err); {
	case e.Kind != lode.Cancelled && e.Kind != lode.Internal:
		return e
	case ctx.Err() != nil:
		return ended(ctx, "running "+a.rev.ID())
	case e.Kind == lode.Internal && !a.inv.Deadline.IsZero() && !time.Now().Before(a.inv.Deadline):
		return lode.Errorf(lode.Deadline, "%s did not answer in time: %w", a.rev.ID(), err)
	default:
		return e
	}
}

// finish gives the record and the outcome.
func (a *attempt) finish(err error) (lode.Outcome, error) {
	a.closeStreams()
	a.unreach()
	if a.body != nil {
		a.body.close()
	}
	u := &a.inv.Usage
	if a.node == "" {
		u.BodyIn, u.BodyOut, u.LogDropped = max(u.BodyIn, int64(len(a.req.Body))), a.out, a.dropped
	}
	out := lode.Outcome{ID: a.id, Trace: a.trace.TraceID(), Usage: *u, Node: a.node}
	if a.rev != nil {
		out.Revision = a.rev.ID()
	}
	if a.end.IsZero() {
		a.end = time.Now()
	}
	r := &a.rec
	*r = Record{ID: a.id, Revision: a.rev, Request: a.req, Trace: a.trace, Start: a.start, End: a.end, Status: a.status, Usage: *u}
	if err != nil {
		e := *lode.AsError(err)
		e.Invocation, e.Trace = a.id, out.Trace
		r.Err, err = &e, &e
	}
	if !a.away {
		a.s.cfg.Observer.Done(r)
	}
	return out, err
}

// recycle makes a ready for another attempt, unless a goroutine of one of its
// operations may still hold it.
func (a *attempt) recycle() {
	if a.began.Load() != 0 {
		return
	}
	reply := a.inv.Reply // its memory is used again
	if cap(reply.Body) > 2*engine.ReplyMax {
		reply.Body = nil
	}
	a.inv = engine.Invocation{Reply: engine.Reply{Head: reply.Head[:0], Body: reply.Body[:0]}}
	a.req, a.rev, a.ans, a.flusher, a.ctx, a.rec, a.line = nil, nil, nil, nil, nil, Record{}, Line{}
	a.status, a.out, a.most, a.logged, a.dropped, a.left, a.unsent, a.end = 0, 0, 0, 0, 0, false, false, time.Time{}
	a.came, a.body, a.away, a.node = nil, nil, false, ""
	a.turn, a.turnReq, a.w.patient, a.lender, a.lent = nil, lode.Request{}, false, nil, 0
	clear(a.pairs)
	if cap(a.head) > 64<<10 {
		a.head = nil
	}
	a.s.attempts.Put(a)
}

// Head takes the head of the guest's answer.
func (a *attempt) Head(head []byte) (err error) {
	if a.status != 0 {
		return lode.Errorf(lode.Internal, "%s began its answer twice", a.rev.ID())
	}
	if a.pairs, err = engine.DecodeHead(a.pairs[:0], head); err != nil {
		return err
	}
	status, kept := 200, a.pairs[:0]
	for _, p := range a.pairs {
		switch {
		case p.Key == ":status":
			status, err = strconv.Atoi(p.Value)
			if upgrade := a.turn != nil && status == 101; err != nil || status < 200 && !upgrade || status > 599 { // an agent that accepts a WebSocket
				return lode.Errorf(lode.Crashed, "%s answered with the status %q", a.rev.ID(), p.Value).WithHint("a status is a number from 200 to 599")
			}
		case !strings.HasPrefix(p.Key, ":"):
			kept = append(kept, p)
		}
	}
	return a.answer(status, kept)
}

// answer begins the answer.
func (a *attempt) answer(status int, head []lode.Pair) error {
	a.unslot()
	a.status, a.unsent = status, true
	if st, ok := a.ans.(starter); ok {
		st.Started(a.inv.Usage.Cold, a.inv.Usage.Queued)
	}
	return a.ans.Head(status, head)
}

// unslot gives the slot back before the answer is handed on: whoever takes it
// may be slow, and no CPU is needed for that.
func (a *attempt) unslot() {
	if a.w.slot { // changed only by this goroutine while it runs
		a.s.gate.leave(&a.w)
	}
	a.unlong()
}

// unlong gives the slot of the long ones back.
func (a *attempt) unlong() {
	if a.long.lane != nil {
		a.s.long.exit(&a.long, 0)
	}
}

// starter and flusher are optional abilities of a lode.Answer: to be told how
// the invocation began, and to hand on what was written so far.
type starter interface {
	Started(cold bool, queued time.Duration)
}
type flusher interface{ Flush() }

// windower is an optional ability of the Answer of a job's invocation: it
// brings the shard that the guest may lay into its memory.
type windower interface{ Windows() engine.Windows }

// Write takes bytes of the guest's answer.
func (a *attempt) Write(p []byte) (int, error) {
	if a.status == 0 {
		if err := a.answer(200, nil); err != nil {
			return 0, err
		}
	}
	if a.most > 0 && a.out+int64(len(p)) > a.most {
		return 0, lode.Errorf(lode.TooLarge, "the answer of %s is over %d bytes", a.rev.ID(), a.most).
			WithHint("an answer that is kept has a limit; call it over HTTP to stream more")
	}
	a.unslot()
	a.unsent = true
	n, err := a.ans.Write(p)
	a.out += int64(n)
	return n, err
}

// Leave gives the slot back while the guest waits, and what it has answered so
// far to whom it is for.
func (a *attempt) Leave() {
	if a.lender != nil {
		a.lender.Leave()
		return
	}
	a.left = true
	a.unslot()
	if a.unsent && a.flusher != nil {
		a.unsent = false
		a.flusher.Flush()
	}
}

// Enter takes a slot again.
func (a *attempt) Enter(ctx context.Context) error {
	if a.lender != nil {
		return a.lender.Enter(ctx)
	}
	return a.s.gate.reenter(ctx, &a.w, a.inv.Deadline)
}

// Turn moves an invocation that goes on computing to the slots of the long
// ones, and there behind those that wait for one.
func (a *attempt) Turn(ctx context.Context, used time.Duration) error {
	if a.lender != nil {
		return a.lender.Turn(ctx, used)
	}
	g, w := a.s.long, &a.long
	switch {
	case w.lane == nil:
		a.left = true
		a.s.gate.leave(&a.w)
	case g.contended():
		g.exit(w, used)
	default:
		return nil
	}
	w.patient = true
	err := g.enter(ctx, w, target{a.rev.Namespace, a.rev.Name}, &lode.Limits{}, a.inv.Deadline)
	if err != nil {
		w.lane = nil
	}
	return err
}

var (
	_ engine.Answer = (*attempt)(nil)
	_ engine.Slot   = (*attempt)(nil)
	_ engine.Turner = (*attempt)(nil)
	_ engine.Host   = (*attempt)(nil)
)

// admissible checks what does not need a place in the line.
func admissible(req *lode.Request, rev *lode.Revision) error {
	f := &rev.Function
	if req.Depth >= MaxDepth {
		return lode.Errorf(lode.Conflict, "the chain of calls to %s is %d deep", rev.ID(), req.Depth).
			WithHint("this looks like a cycle of functions that call each other")
	}
	if f.Access == lode.AccessInternal && req.Caller == "" {
		switch req.Trigger {
		case lode.TriggerHTTP, lode.TriggerLambda, lode.TriggerAsync:
			return lode.Errorf(lode.Denied, "%s is internal", rev.ID()).WithHint("only other functions and triggers may call it")
		}
	}
	limit, n := orDefault(f.Limits.Body, defaultBody), int64(len(req.Body))
	if req.Stream != nil {
		n = max(n, declared(req.Head))
	}
	if n > limit {
		return lode.Errorf(lode.TooLarge, "the body has %d bytes; %s takes %d", n, rev.ID(), limit).
			WithHint("raise its body limit, or stream the body without a length")
	}
	return nil
}

// declared is the length that the head tells, or 0.
func declared(head []lode.Pair) int64 {
	for i := range head {
		if head[i].Key == "content-length" {
			n, _ := strconv.ParseInt(head[i].Value, 10, 64)
			return n
		}
	}
	return 0
}

func total(rev *lode.Revision) time.Duration {
	return orDefault(rev.Function.Limits.Total, defaultTotal)
}

func orDefault[T int64 | time.Duration | int](v, def T) T {
	if v <= 0 {
		return def
	}
	return v
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// own is how many pairs encodeHead adds.
const own = 11

// encodeHead appends the head that the guest reads. Of the request's pairs
// that start with a colon only those of sdk/abi that a door or a trigger sets
// are kept, so that nobody outside can set Lode's own.
func (a *attempt) encodeHead(b []byte) ([]byte, error) {
	req, n := a.req, own
	if a.turn != nil {
		n -= 3 // the turn's head says how
	}
	for i := range req.Head {
		if p := &req.Head[i]; a.passes(p.Key) {
			n++
			if len(p.Key) > engine.MaxField || len(p.Value) > engine.MaxField {
				return b, lode.Errorf(lode.TooLarge, "the header field %.40q has %d bytes; at most %d", p.Key, len(p.Value), engine.MaxField)
			}
		}
	}
	if n > engine.MaxPairs || len(req.Path) > engine.MaxField || len(req.Method) > engine.MaxField {
		return b, lode.Errorf(lode.TooLarge, "the request has too many header fields, or too long a path")
	}
	var num [32]byte
	f := &a.rev.Function
	b = engine.AppendHead(b, n)
	b = engine.AppendPair(b, ":kind", string(orWord(string(req.Trigger), string(lode.TriggerCall))))
	if a.turn == nil {
		b = engine.AppendPair(b, ":method", orWord(req.Method, "POST"))
		b = engine.AppendPair(b, ":path", orWord(req.Path, "/"))
		b = engine.AppendPair(b, ":handler", orWord(req.Handler, f.Export))
	}
	b = engine.AppendPair(b, ":id", string(a.id))
	b = engine.AppendPair(b, ":attempt", string(strconv.AppendInt(num[:0], int64(max(1, req.Attempt)), 10)))
	b = engine.AppendPair(b, ":deadline", string(strconv.AppendInt(num[:0], a.inv.Deadline.UnixMilli(), 10)))
	b = engine.AppendPair(b, ":function", string(a.rev.Name))
	b = engine.AppendPair(b, ":namespace", string(a.rev.Namespace))
	b = engine.AppendPair(b, ":revision", string(strconv.AppendInt(num[:0], int64(a.rev.Number), 10)))
	var tp [traceparentLen]byte
	b = engine.AppendPair(b, "traceparent", string(a.trace.append(tp[:0])))
	for i := range req.Head {
		if p := &req.Head[i]; a.passes(p.Key) {
			b = engine.AppendPair(b, p.Key, p.Value)
		}
	}
	return b, nil
}

func orWord(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

func (a *attempt) passes(key string) bool {
	if key == "" || key == "traceparent" {
		return false
	}
	if key[0] != ':' || a.turn != nil {
		return true
	}
	switch key {
	case ":schedule", ":shard", ":shard-bytes", ":records", ":dataset", ":version":
		return true
	}
	return strings.HasPrefix(key, ":route.")
}

// idleReader cancels the invocation when its body has stood still for too
// long.
type idleReader struct {
	r     io.Reader
	ctx   context.Context
	timer *time.Timer
	d     time.Duration
}

func newIdle(ctx context.Context, r io.Reader, d time.Duration) (*idleReader, func()) {
	d = orDefault(d, 5*time.Minute)
	ctx, cancel := context.WithCancelCause(ctx)
	i := &idleReader{r: r, ctx: ctx, d: d}
	i.timer = time.AfterFunc(d, func() {
		i.Close()
		cancel(lode.Errorf(lode.Deadline, "the request's body stood still for %s", d).WithHint("raise the function's idle timeout, or send faster"))
	})
	i.timer.Stop()
	return i, func() {
		i.timer.Stop()
		cancel(nil)
	}
}

func (i *idleReader) Read(p []byte) (int, error) {
	i.timer.Reset(i.d)
	n, err := i.r.Read(p)
	i.timer.Stop()
	return n, err
}

// Close makes a Read that waits return, where the body can do that.
func (i *idleReader) Close() error {
	if c, ok := i.r.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

var _ io.ReadCloser = (*idleReader)(nil)
