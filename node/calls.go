package node

import (
	"bytes"
	"context"
	"io"
	"time"

	"lode"
	"lode/api"
	"lode/invoke"
)

// calls is asynchronous work, for the management door.
type calls struct{ *Node }

func (c calls) ListCalls(ctx context.Context, ns lode.Namespace, f api.CallFilter, p api.Page) (api.List[api.Call], error) {
	list, next, err := c.invoke.ListCalls(ctx, ns, invoke.CallFilter{Function: f.Function, State: f.State, Dead: f.Dead}, p.Limit, lode.InvocationID(p.After))
	out := api.List[api.Call]{Items: make([]api.Call, len(list)), Next: string(next)}
	for i, k := range list {
		out.Items[i] = wireCall(k)
	}
	return out, err
}

func wireCall(c invoke.Call) api.Call {
	return api.Call{ID: c.ID, Function: c.Function, Revision: c.Revision, Trigger: c.Trigger, State: c.State, Dead: c.Dead, Attempts: c.Attempts,
		Created: c.Created, Ended: c.Ended, Next: c.Next, Status: c.Status, ResultLen: c.ResultLen, Trace: c.Trace, Usage: c.Usage, Error: c.Error}
}

func wired(c invoke.Call, err error) (api.Call, error) { return wireCall(c), err }

func (c calls) GetCall(ctx context.Context, ns lode.Namespace, id lode.InvocationID, wait time.Duration) (api.Call, error) {
	return wired(c.invoke.GetCall(ctx, ns, id, wait))
}

func (c calls) CancelCall(ctx context.Context, ns lode.Namespace, id lode.InvocationID) (api.Call, error) {
	return wired(c.invoke.CancelCall(ctx, ns, id))
}

func (c calls) ReplayCall(ctx context.Context, ns lode.Namespace, id lode.InvocationID) (api.Call, error) {
	return wired(c.invoke.ReplayCall(ctx, ns, id))
}

func (c calls) CallResult(ctx context.Context, ns lode.Namespace, id lode.InvocationID) (api.Content, error) {
	b, err := c.invoke.CallResult(ctx, ns, id)
	if err != nil {
		return api.Content{}, err
	}
	return api.Content{Status: b.Status, Type: b.Msg.Get("content-type"), Size: int64(len(b.Msg.Body)), Body: io.NopCloser(bytes.NewReader(b.Msg.Body))}, nil
}

var _ api.Calls = calls{}
