package api

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"time"

	"lode"
)

// Deploy makes an app what is declared, or with o.Plan tells what would
// change. Its artifacts must be there; see PutBlob.
func (c *Client) Deploy(ctx context.Context, app lode.App, o DeployOptions) (Plan, error) {
	q := url.Values{}
	if o.Plan {
		q.Set("plan", "1")
	}
	if o.Prune {
		q.Set("prune", "1")
	}
	var p Plan
	err := c.do(ctx, http.MethodPut, path("apps/%s", string(app.Name)), q, app, &p, o.IfMatch)
	return p, err
}

// ListApps lists apps.
func (c *Client) ListApps(ctx context.Context, p Page) (l List[App], err error) {
	err = c.do(ctx, http.MethodGet, path("apps"), paged(p, nil), nil, &l, "")
	return l, err
}

// GetApp is one app, as declared.
func (c *Client) GetApp(ctx context.Context, app lode.Name) (v App, err error) {
	err = c.do(ctx, http.MethodGet, path("apps/%s", string(app)), nil, nil, &v, "")
	return v, err
}

func removal(o RemoveOptions) url.Values {
	if o.Data {
		return url.Values{"data": {"1"}}
	}
	return nil
}

// RemoveApp removes an app with all its names.
func (c *Client) RemoveApp(ctx context.Context, app lode.Name, o RemoveOptions) (v Removed, err error) {
	err = c.do(ctx, http.MethodDelete, path("apps/%s", string(app)), removal(o), nil, &v, o.IfMatch)
	return v, err
}

// ListNames lists names of one kind, or of all ("").
func (c *Client) ListNames(ctx context.Context, kind ItemKind, p Page) (l List[Item], err error) {
	q := paged(p, nil)
	if kind != "" {
		q.Set("kind", string(kind))
	}
	err = c.do(ctx, http.MethodGet, path("names"), q, nil, &l, "")
	return l, err
}

// GetName is everything about a name.
func (c *Client) GetName(ctx context.Context, name lode.Name) (v Detail, err error) {
	err = c.do(ctx, http.MethodGet, path("names/%s", string(name)), nil, nil, &v, "")
	return v, err
}

// RemoveName removes one name.
func (c *Client) RemoveName(ctx context.Context, name lode.Name, o RemoveOptions) (v Removed, err error) {
	err = c.do(ctx, http.MethodDelete, path("names/%s", string(name)), removal(o), nil, &v, o.IfMatch)
	return v, err
}

// UndoRemove brings a removed name or app back.
func (c *Client) UndoRemove(ctx context.Context, name lode.Name) (v Removed, err error) {
	err = c.do(ctx, http.MethodPost, path("names/%s/undo", string(name)), nil, nil, &v, "")
	return v, err
}

// History lists revisions, newest first.
func (c *Client) History(ctx context.Context, fn lode.Name, p Page) (l List[lode.Revision], err error) {
	err = c.do(ctx, http.MethodGet, path("functions/%s/history", string(fn)), paged(p, nil), nil, &l, "")
	return l, err
}

// Rollback makes revision rev live; 0 is the one before.
func (c *Client) Rollback(ctx context.Context, fn lode.Name, rev int, ifMatch string) (v Function, err error) {
	err = c.do(ctx, http.MethodPost, path("functions/%s/rollback", string(fn)), nil, rollback{rev}, &v, ifMatch)
	return v, err
}

// SetAlias sets an alias; without targets it removes it.
func (c *Client) SetAlias(ctx context.Context, fn lode.Name, a lode.Alias, ifMatch string) (v Function, err error) {
	p := path("functions/%s/aliases/%s", string(fn), a.Name)
	if len(a.Targets) == 0 {
		err = c.do(ctx, http.MethodDelete, p, nil, nil, &v, ifMatch)
		return v, err
	}
	err = c.do(ctx, http.MethodPut, p, nil, targets{a.Targets}, &v, ifMatch)
	return v, err
}

// HasBlob reports whether an artifact is there.
func (c *Client) HasBlob(ctx context.Context, d lode.Digest) (bool, error) {
	err := c.do(ctx, http.MethodHead, path("blobs/%s", d.String()), nil, nil, nil, "")
	if lode.KindOf(err) == lode.NotFound {
		return false, nil
	}
	return err == nil, err
}

// PutBlob uploads an artifact of size bytes.
func (c *Client) PutBlob(ctx context.Context, d lode.Digest, size int64, r io.Reader) error {
	resp, err := c.send(ctx, request{method: http.MethodPut, path: path("blobs/%s", d.String()), body: r, size: size, ctype: "application/octet-stream"})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return decode(resp, nil)
}

// DescribeBlob is what an artifact that is there says of itself.
func (c *Client) DescribeBlob(ctx context.Context, d lode.Digest) (v Module, err error) {
	err = c.do(ctx, http.MethodGet, path("blobs/%s/module", d.String()), nil, nil, &v, "")
	return v, err
}

// ListCalls lists asynchronous calls, newest first.
func (c *Client) ListCalls(ctx context.Context, f CallFilter, p Page) (l List[Call], err error) {
	q := paged(p, nil)
	if f.Function != "" {
		q.Set("function", string(f.Function))
	}
	if f.State != "" {
		q.Set("state", string(f.State))
	}
	if f.Dead {
		q.Set("dead", "1")
	}
	err = c.do(ctx, http.MethodGet, path("calls"), q, nil, &l, "")
	return l, err
}

func waitFor(d time.Duration) url.Values {
	if d <= 0 {
		return nil
	}
	return url.Values{"wait": {d.String()}}
}

// GetCall is one call; it waits up to wait (at most a minute) for its end.
func (c *Client) GetCall(ctx context.Context, id lode.InvocationID, wait time.Duration) (v Call, err error) {
	err = c.do(ctx, http.MethodGet, path("calls/%s", string(id)), waitFor(wait), nil, &v, "")
	return v, err
}

// CancelCall cancels a call.
func (c *Client) CancelCall(ctx context.Context, id lode.InvocationID) (v Call, err error) {
	err = c.do(ctx, http.MethodPost, path("calls/%s/cancel", string(id)), nil, nil, &v, "")
	return v, err
}

// ReplayCall queues a failed call again.
func (c *Client) ReplayCall(ctx context.Context, id lode.InvocationID) (v Call, err error) {
	err = c.do(ctx, http.MethodPost, path("calls/%s/replay", string(id)), nil, nil, &v, "")
	return v, err
}

// CallResult is the answer of a call that is done. The caller closes Body.
func (c *Client) CallResult(ctx context.Context, id lode.InvocationID) (Content, error) {
	return c.open(ctx, path("calls/%s/result", string(id)), nil)
}

// ListQueues lists queues.
func (c *Client) ListQueues(ctx context.Context, p Page) (l List[Queue], err error) {
	err = c.do(ctx, http.MethodGet, path("queues"), paged(p, nil), nil, &l, "")
	return l, err
}

// GetQueue is one queue.
func (c *Client) GetQueue(ctx context.Context, name lode.Name) (v Queue, err error) {
	err = c.do(ctx, http.MethodGet, path("queues/%s", string(name)), nil, nil, &v, "")
	return v, err
}
