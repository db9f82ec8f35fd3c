package invoke

import (
	"context"
	"time"

	"lode"
	"lode/engine"
)

// Turn is one turn of an agent: what its code is to do, and what it did.
// Whoever makes it owns it, and may use it again when RunTurn has returned and
// no operation of it is under way.
type Turn struct {
	Revision *lode.Revision
	// Head holds the pairs of sdk/abi, section 2, that belong to agents, and
	// header fields; :kind, :id, :deadline, :function, :namespace, :revision and
	// :warm are added.
	Head     []lode.Pair
	Body     []byte
	Method   string // for listings
	Deadline time.Time
	Trace    string // traceparent of the caller
	Caller   string
	Depth    int
	Chain    []string // who waits for what this turn calls, outermost first
	Ops      TurnOps
	// Sandbox is where the agent's last turn ran; then, where this one did. 0:
	// not known.
	Sandbox uint64
	// Apart is set for a turn that runs while another one of its agent does:
	// what it leaves in its sandbox is not what the agent's turns have left, and
	// must not be found by one that asked for this sandbox before.
	Apart bool

	// Within is the turn whose code waits for this one, on the same goroutine:
	// this one computes in its place, with its slot. Nil: it has its own.
	Within  *Turn
	attempt *attempt // while RunTurn runs

	// What the code answered, once RunTurn has returned.
	Answer lode.Buffered
	Failed bool              // it failed, and Answer says why: it must change nothing
	ID     lode.InvocationID // of its record in logs and traces
	CPU    time.Duration     // that the code took, whether it failed or not
	// Span is the traceparent of this turn, for what it calls; set before Ops
	// are used.
	Span string
}

// TurnOps performs the operations that belong to a turn.
type TurnOps interface {
	// Operate starts one, or reports that it is none of its own. It is called
	// on the goroutine of the guest; done, exactly once, on any. It owns req.
	Operate(ctx context.Context, op engine.Op, req lode.Message, done func(lode.Message, error)) bool
}

// RunTurn runs a turn in a sandbox of its kind, and returns when the code has.
// Its error is that of Invoke. It competes with invocations for the CPU.
func (s *Service) RunTurn(ctx context.Context, t *Turn) error {
	if err := s.begin(true); err != nil {
		return err
	}
	defer s.end()
	a := s.attempts.Get().(*attempt)
	t.Failed = false
	t.Answer.Status, t.Answer.Msg.Head, t.Answer.Msg.Body = 0, t.Answer.Msg.Head[:0], nil
	a.turn, a.rev, a.w.patient = t, t.Revision, true
	t.attempt = a
	if w := t.Within; w != nil {
		a.lender = w.attempt
	}
	a.turnReq = lode.Request{Namespace: t.Revision.Namespace, Function: t.Revision.Name, Trigger: lode.TriggerAgent, Method: t.Method, Head: t.Head, Body: t.Body,
		Deadline: t.Deadline, Trace: t.Trace, Caller: t.Caller, Depth: t.Depth}
	a.prepare(&a.turnReq, &t.Answer)
	t.ID, t.Span = a.id, a.trace.Traceparent()
	err := a.runTurn(ctx)
	_, err = a.finish(err)
	t.attempt = nil
	a.recycle()
	return err
}

// runTurn is run for an attempt that is placed already: where its agent is.
func (a *attempt) runTurn(ctx context.Context) error {
	runner, err := a.s.cfg.Pools.Pool(a.rev)
	if err != nil {
		return err
	}
	lim := &a.rev.Function.Limits
	deadline := earlier(a.req.Deadline, a.start.Add(total(a.rev)))
	if a.lender == nil {
		if err := a.s.gate.enter(ctx, &a.w, target{a.rev.Namespace, a.rev.Name}, lim, deadline); err != nil {
			return err
		}
	}
	admitted := a.start
	if a.w.waited {
		admitted = time.Now()
	}
	a.inv.Deadline = deadline
	a.inv.Sandbox, a.inv.Apart, a.inv.Placed = a.turn.Sandbox, a.turn.Apart, a
	err = a.refusal(a.dispatch(ctx, runner))
	a.inv.Usage.CPU = max(0, a.inv.Usage.CPU-a.lent)
	a.turn.Sandbox, a.turn.CPU = a.inv.Sandbox, a.inv.Usage.CPU
	a.end = time.Now()
	a.inv.Usage.Queued, a.inv.Usage.Wall = admitted.Sub(a.start), a.end.Sub(admitted)
	if a.lender != nil {
		a.lender.lent += a.end.Sub(a.start) // it was not computing itself
		return err
	}
	if !a.left && !a.inv.Usage.Cold {
		a.w.hold = int64(a.inv.Usage.Wall)
	}
	a.unlong()
	a.s.gate.exit(&a.w, a.inv.Usage.CPU)
	return err
}

// refusal takes what code that failed had answered, where that says for itself
// what is wrong: a status of 400 or more. The turn changes nothing either way.
func (a *attempt) refusal(err error) error {
	if lode.KindOf(err) != lode.Crashed || a.status != 0 || len(a.inv.Reply.Head) == 0 {
		return err
	}
	if herr := a.Head(a.inv.Reply.Head); herr != nil || a.status < 400 {
		return err
	}
	if _, werr := a.Write(a.inv.Reply.Body); werr != nil {
		return err
	}
	a.turn.Failed = true
	return nil
}

// Placed tells the guest whether what it holds of the agent is its state.
func (a *attempt) Placed(inv *engine.Invocation, same bool) {
	if same && a.rev.Function.Reuse { // else it is as clean as any other
		inv.Head = engine.AddPair(inv.Head, ":warm", "1")
	}
}

var _ engine.Placed = (*attempt)(nil)
