package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"lode"
)

// CreateJob starts a job.
func (c *Client) CreateJob(ctx context.Context, s JobSpec) (v Job, err error) {
	err = c.do(ctx, http.MethodPost, path("jobs"), nil, s, &v, "")
	return v, err
}

// ListJobs lists jobs, newest first.
func (c *Client) ListJobs(ctx context.Context, p Page) (l List[Job], err error) {
	err = c.do(ctx, http.MethodGet, path("jobs"), paged(p, nil), nil, &l, "")
	return l, err
}

// GetJob is one job; it waits up to wait (at most a minute) for its end.
func (c *Client) GetJob(ctx context.Context, id string, wait time.Duration) (v Job, err error) {
	err = c.do(ctx, http.MethodGet, path("jobs/%s", id), waitFor(wait), nil, &v, "")
	return v, err
}

// WatchJob calls see with the job now, at each change and at its end.
func (c *Client) WatchJob(ctx context.Context, id string, see func(Job) error) error {
	v, err := c.open(ctx, path("jobs/%s/watch", id), nil)
	if err != nil {
		return err
	}
	defer v.Body.Close()
	kind, over := "", false
	err = lines(v.Body, func(line []byte) error {
		if k, ok := bytes.CutPrefix(line, []byte("event: ")); ok {
			kind = string(k)
		}
		data, ok := bytes.CutPrefix(line, []byte("data: "))
		if !ok {
			return nil
		}
		if kind == "error" {
			var e lode.Error
			if err := unmarshal(data, &e); err != nil {
				return err
			}
			return &e
		}
		var j Job
		if err := unmarshal(data, &j); err != nil {
			return err
		}
		over = Ended(j.State)
		return see(j)
	})
	switch {
	case err != nil && ctx.Err() != nil:
		return unreachable(ctx, c.URL(), err)
	case err == nil && !over:
		return lode.Errorf(lode.Unavailable, "the node went away while job %s was running", id).WithHint("the job goes on when it is back: lode jobs wait %s", id)
	}
	return err
}

// CancelJob cancels a job.
func (c *Client) CancelJob(ctx context.Context, id string) (v Job, err error) {
	err = c.do(ctx, http.MethodPost, path("jobs/%s/cancel", id), nil, nil, &v, "")
	return v, err
}

// JobResult is the merged result of a job that is done. The caller closes
// Body.
func (c *Client) JobResult(ctx context.Context, id string) (Content, error) {
	return c.open(ctx, path("jobs/%s/result", id), nil)
}

// ReadLogs calls see for each line; with f.Follow until ctx is over, which is
// no error, or the node stops, which is Unavailable.
func (c *Client) ReadLogs(ctx context.Context, f LogFilter, see func(LogLine) error) error {
	q := url.Values{}
	for k, v := range map[string]string{"name": string(f.Name), "invocation": string(f.Invocation), "job": f.Job, "grep": f.Grep} {
		if v != "" {
			q.Set(k, v)
		}
	}
	if !f.Since.IsZero() {
		q.Set("since", f.Since.UTC().Format(time.RFC3339Nano))
	}
	numbers(q, "tail", int64(f.Tail))
	if f.Follow {
		q.Set("follow", "1")
	}
	v, err := c.open(ctx, path("logs"), q)
	if err != nil {
		if f.Follow && ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer v.Body.Close()
	err = lines(v.Body, func(b []byte) error {
		var l struct {
			LogLine
			Error *lode.Error `json:"error"`
		}
		if err := unmarshal(b, &l); err != nil {
			return err
		}
		if l.Error != nil {
			return l.Error
		}
		return see(l.LogLine)
	})
	switch {
	case !f.Follow || err != nil && ctx.Err() == nil:
		return err
	case ctx.Err() != nil:
		return nil
	}
	return lode.Errorf(lode.Unavailable, "the node stopped").WithHint("follow the log again: another node, or this one when it is back, goes on")
}

// Top is what runs now.
func (c *Client) Top(ctx context.Context) (v Top, err error) {
	err = c.do(ctx, http.MethodGet, path("top"), nil, nil, &v, "")
	return v, err
}

// Explain says why.
func (c *Client) Explain(ctx context.Context, ref string) (v Explanation, err error) {
	err = c.do(ctx, http.MethodGet, path("explain/%s", ref), nil, nil, &v, "")
	return v, err
}

// Doctor is what the node finds out about its machine.
func (c *Client) Doctor(ctx context.Context) (l List[Check], err error) {
	err = c.do(ctx, http.MethodGet, path("doctor"), nil, nil, &l, "")
	return l, err
}

// Version is what runs there.
func (c *Client) Version(ctx context.Context) (v Version, err error) {
	err = c.do(ctx, http.MethodGet, path("version"), nil, nil, &v, "")
	return v, err
}

// Invocation is one call of a function through its door.
type Invocation struct {
	Function lode.Name
	Path     string // behind /fn/NAME; "" or "/..."
	Alias    string
	Method   string // "": POST
	Type     string // Content-Type; "": none
	Body     io.Reader
	Header   http.Header
	Key      string        // Idempotency-Key
	Deadline time.Duration // 0: the function's own
	Async    bool          // 202 and a call id
}

// Answer is what a function answered, or with Async that it was queued. The
// caller closes Body.
type Answer struct {
	Status int
	Header http.Header
	Body   io.ReadCloser
	ID     lode.InvocationID
}

// Invoke calls a function. A status of the function's own, whatever it is, is
// an answer and no error.
func (c *Client) Invoke(ctx context.Context, v Invocation) (*Answer, error) {
	q := request{method: v.Method, path: "/fn/" + string(v.Function) + v.Path, body: v.Body, ctype: v.Type}
	if q.method == "" {
		q.method = http.MethodPost
	}
	p, rawQuery, _ := strings.Cut(q.path, "?")
	q.path = p
	query, err := url.ParseQuery(rawQuery)
	if err != nil {
		return nil, lode.Errorf(lode.Invalid, "%w", err)
	}
	if v.Alias != "" {
		query.Set("alias", v.Alias)
	}
	q.query = query
	return c.answer(ctx, q, v.Header, v.Key, v.Deadline, v.Async)
}

// answer sends a call with the caller's headers, and says how it is to be made.
func (c *Client) answer(ctx context.Context, q request, h http.Header, key string, deadline time.Duration, async bool) (*Answer, error) {
	q.header, q.raw = http.Header{}, true
	for k, vs := range h {
		q.header[http.CanonicalHeaderKey(k)] = vs
	}
	callHeader(q.header, key, deadline, async)
	resp, err := c.send(ctx, q)
	if err != nil {
		return nil, err
	}
	return &Answer{Status: resp.StatusCode, Header: resp.Header, Body: stream{resp}, ID: lode.InvocationID(resp.Header.Get("Lode-Invocation"))}, nil
}

// callHeader says how a call is to be made.
func callHeader(h http.Header, key string, deadline time.Duration, async bool) {
	if key != "" {
		h.Set("Idempotency-Key", key)
	}
	if deadline > 0 {
		h.Set("Lode-Deadline", itoa(deadline.Milliseconds()))
	}
	if async {
		h.Set("Prefer", "respond-async")
	}
}

// Unreachable reports whether err is that no node answered.
func Unreachable(err error) bool { return errors.Is(err, ErrUnreachable) }
