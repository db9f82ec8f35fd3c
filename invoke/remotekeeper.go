package invoke

import (
	"context"
	"errors"
	"io"
	"time"

	"lode"
	"lode/bus"
	"lode/link"
)

// KeeperMethod is the method of the link that HandleRemote answers.
const KeeperMethod = "keeper"

// maxAnswer is the most bytes of an answer of the keeper.
const maxAnswer = 1 << 30

// RemoteKeeper is the Keeper of another node. call makes a call of its link to
// that node.
func RemoteKeeper(call func(ctx context.Context, r *link.Request, a link.Answer) error) Durable {
	return remoteKeeper{call}
}

type remoteKeeper struct {
	call func(ctx context.Context, r *link.Request, a link.Answer) error
}

var (
	_ Durable = remoteKeeper{}
	_ Durable = (*Keeper)(nil)
)

// ask makes one call.
func (k remoteKeeper) ask(ctx context.Context, op string, in any, body []byte) (reply, []byte, error) {
	b, err := encodeParcel(in, body)
	if err != nil {
		return reply{}, nil, err
	}
	if n := len(b) - len(body); n > maxAsk {
		return reply{}, nil, lode.Errorf(lode.TooLarge, "the request's head has %d bytes; at most %d are kept", n, maxAsk)
	}
	ans := &link.Bytes{Max: maxAnswer}
	if err := k.call(ctx, &link.Request{Method: KeeperMethod, Head: []byte(op), Body: b}, ans); err != nil {
		return reply{}, nil, err
	}
	switch string(ans.HeadBytes) {
	case replyOK:
		return decodeReply(ans.Body)
	case replyGone:
		return reply{}, nil, notKeeper()
	}
	return reply{}, nil, lode.Errorf(lode.Internal, "the keeper answered %.20q", ans.HeadBytes)
}

// askCall is ask for what is answered by a call.
func (k remoteKeeper) askCall(ctx context.Context, op string, in ask) (Call, error) {
	r, _, err := k.ask(ctx, op, in, nil)
	if err == nil && r.Call == nil {
		err = lode.Errorf(lode.Internal, "the keeper's answer lacks the call")
	}
	if err != nil {
		return Call{}, err
	}
	return *r.Call, nil
}

func (k remoteKeeper) Submit(ctx context.Context, req *lode.Request) (lode.InvocationID, error) {
	if req.ID == "" || req.Stream != nil {
		return "", lode.Errorf(lode.Internal, "what is submitted to another node has an id and a whole body")
	}
	r, _, err := k.ask(ctx, opSubmit, submissionOf(req), req.Body)
	return lode.InvocationID(r.ID), err
}

func (k remoteKeeper) PutQueue(ctx context.Context, p Put) (string, error) {
	body := p.Body
	p.Body, p.Repeats = nil, true
	r, _, err := k.ask(ctx, opPut, p, body)
	return r.ID, err
}

func (k remoteKeeper) QueueState(ctx context.Context, ns lode.Namespace, name lode.Name) (QueueState, error) {
	r, _, err := k.ask(ctx, opQueue, ask{Namespace: ns, Queue: name}, nil)
	if err == nil && r.Queue == nil {
		err = lode.Errorf(lode.Internal, "the keeper's answer lacks the queue")
	}
	if err != nil {
		return QueueState{}, err
	}
	return *r.Queue, nil
}

func (k remoteKeeper) GetCall(ctx context.Context, ns lode.Namespace, id lode.InvocationID, wait time.Duration) (Call, error) {
	return k.askCall(ctx, opGet, ask{Namespace: ns, ID: id, Wait: wait})
}

func (k remoteKeeper) ListCalls(ctx context.Context, ns lode.Namespace, f CallFilter, limit int, after lode.InvocationID) ([]Call, lode.InvocationID, error) {
	r, _, err := k.ask(ctx, opList, ask{Namespace: ns, Filter: f, Limit: limit, After: after}, nil)
	return r.Calls, r.Next, err
}

func (k remoteKeeper) CancelCall(ctx context.Context, ns lode.Namespace, id lode.InvocationID) (Call, error) {
	return k.askCall(ctx, opCancel, ask{Namespace: ns, ID: id})
}

func (k remoteKeeper) ReplayCall(ctx context.Context, ns lode.Namespace, id lode.InvocationID) (Call, error) {
	return k.askCall(ctx, opReplay, ask{Namespace: ns, ID: id})
}

func (k remoteKeeper) CallResult(ctx context.Context, ns lode.Namespace, id lode.InvocationID) (*lode.Buffered, error) {
	r, body, err := k.ask(ctx, opResult, ask{Namespace: ns, ID: id}, nil)
	if err != nil {
		return nil, err
	}
	return &lode.Buffered{Status: r.Status, Msg: lode.Message{Head: r.Head, Body: body}}, nil
}

// HandleRemote answers what another node asks this one as the keeper. A nil
// Keeper answers too: that there is none here.
func (k *Keeper) HandleRemote(ctx context.Context, in *link.Incoming) error {
	if k == nil {
		return in.Reply([]byte(replyGone), nil)
	}
	r, body, err := k.answer(ctx, string(in.Head), in.Whole())
	if errors.Is(err, ErrNotKeeper) {
		return in.Reply([]byte(replyGone), nil)
	}
	if err != nil {
		return err
	}
	b, err := encodeParcel(r, body)
	if err != nil {
		return err
	}
	return in.Reply([]byte(replyOK), b)
}

// answer does what is asked; from is the parcel.
func (k *Keeper) answer(ctx context.Context, op string, from io.Reader) (r reply, body []byte, err error) {
	switch op {
	case opSubmit:
		r.ID, err = k.serveSubmit(ctx, from)
		return r, nil, err
	case opPut:
		r.ID, err = k.servePut(ctx, from)
		return r, nil, err
	}
	var a ask
	if err := readParcel(from, &a); err != nil {
		return r, nil, err
	}
	var c Call
	switch op {
	case opQueue:
		var q QueueState
		q, err = k.QueueState(ctx, a.Namespace, a.Queue)
		return reply{Queue: &q}, nil, err
	case opList:
		r.Calls, r.Next, err = k.ListCalls(ctx, a.Namespace, a.Filter, min(a.Limit, maxListed), a.After)
		return r, nil, err
	case opResult:
		b, err := k.CallResult(ctx, a.Namespace, a.ID)
		if err != nil {
			return r, nil, err
		}
		return reply{Status: b.Status, Head: b.Msg.Head}, b.Msg.Body, nil
	case opGet:
		c, err = k.GetCall(ctx, a.Namespace, a.ID, a.Wait)
	case opCancel:
		c, err = k.CancelCall(ctx, a.Namespace, a.ID)
	case opReplay:
		c, err = k.ReplayCall(ctx, a.Namespace, a.ID)
	default:
		err = lode.Errorf(lode.Invalid, "the keeper has no operation %.20q", op).WithHint("do all nodes run the same version?")
	}
	return reply{Call: &c}, nil, err
}

// serveSubmit stores a request. The sender has checked it against its catalog;
// here its body is held to the limit that this node knows.
func (k *Keeper) serveSubmit(ctx context.Context, from io.Reader) (string, error) {
	var s submission
	if err := readParcel(from, &s); err != nil {
		return "", err
	}
	req, err := s.request()
	if err != nil {
		return "", err
	}
	limit := int64(defaultBody)
	if rev, err := k.s.resolve(req); err == nil {
		limit = orDefault(rev.Function.Limits.Body, defaultBody)
	}
	if req.Body, err = readRest(from, limit, string(req.Function)); err != nil {
		return "", err
	}
	id, err := k.Submit(ctx, req)
	return string(id), err
}

func (k *Keeper) servePut(ctx context.Context, from io.Reader) (string, error) {
	var p Put
	if err := readParcel(from, &p); err != nil {
		return "", err
	}
	var err error
	if p.Body, err = readRest(from, bus.MaxAppend, "a message"); err != nil {
		return "", err
	}
	return k.PutQueue(ctx, p)
}
