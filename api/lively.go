package api

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"time"

	"lode"
)

// lively is an http.RoundTripper that gives a node up which takes requests and
// answers none: its process was stopped, or its machine hangs. A function may
// compute for an hour, so that no bound on the answer would do; but a node that
// lives says so at /healthz meanwhile.
type lively struct {
	next  http.RoundTripper
	quiet time.Duration // without an answer until the node is asked; 0 = 10 s
	every time.Duration // between two questions, and for each of them; 0 = 5 s
}

// hungAfter questions in a row without an answer a node is given up.
const hungAfter = 2

// RoundTrip sends r and waits for the head of the answer.
func (l lively) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(r.Context())
	hung := lode.Errorf(lode.Unavailable, "the node at %s takes requests and answers none: it hangs, or its process was stopped", r.URL.Host).
		WithHint("what was asked may have been done; `lode nodes`, asked of another node, tells more")
	watch := time.AfterFunc(cmp.Or(l.quiet, 10*time.Second), func() {
		for failed := 0; ctx.Err() == nil; {
			if failed++; l.alive(ctx, r.URL) {
				failed = 0
			}
			if failed == hungAfter {
				cancel(hung)
			}
			l.pause(ctx)
		}
	})
	resp, err := l.next.RoundTrip(r.WithContext(ctx))
	watch.Stop()
	if err != nil {
		cause := context.Cause(ctx)
		cancel(nil)
		if errors.Is(cause, hung) && r.Context().Err() == nil {
			return nil, hung
		}
		return nil, err
	}
	resp.Body = &livelyBody{resp.Body, cancel}
	return resp, nil
}

// CloseIdleConnections is what http.Client.CloseIdleConnections calls.
func (l lively) CloseIdleConnections() {
	if t, ok := l.next.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

func (l lively) pause(ctx context.Context) {
	t := time.NewTimer(cmp.Or(l.every, 5*time.Second))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// alive asks the node whether it lives, over a connection of its own.
func (l lively) alive(ctx context.Context, u *url.URL) bool {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(l.every, 5*time.Second))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.Scheme+"://"+u.Host+"/healthz", nil)
	if err != nil {
		return false
	}
	resp, err := l.next.RoundTrip(req)
	if err != nil {
		return false
	}
	return resp.Body.Close() == nil
}

// livelyBody ends the watch with the answer.
type livelyBody struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
}

// Close ends the exchange.
func (b *livelyBody) Close() error {
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}

var _ http.RoundTripper = lively{}
