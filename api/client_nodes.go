package api

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Nodes lists nodes, and what they are together.
func (c *Client) Nodes(ctx context.Context) (l NodeList, err error) {
	err = c.do(ctx, http.MethodGet, path("nodes"), nil, nil, &l, "")
	return l, err
}

// GetNode is one node.
func (c *Client) GetNode(ctx context.Context, name string) (n Node, err error) {
	err = c.do(ctx, http.MethodGet, path("nodes/%s", name), nil, nil, &n, "")
	return n, err
}

// DrainNode drains a node and waits up to wait (at most a minute) until it is
// empty; asking again goes on with the same drain.
func (c *Client) DrainNode(ctx context.Context, name string, wait time.Duration) (n Node, err error) {
	err = c.do(ctx, http.MethodPost, path("nodes/%s/drain", name), waitFor(wait), nil, &n, "")
	return n, err
}

// UndrainNode takes a drain back.
func (c *Client) UndrainNode(ctx context.Context, name string) (n Node, err error) {
	err = c.do(ctx, http.MethodPost, path("nodes/%s/undrain", name), nil, nil, &n, "")
	return n, err
}

// RemoveNode takes a node out of the cluster.
func (c *Client) RemoveNode(ctx context.Context, name string, force bool) error {
	q := url.Values{}
	if force {
		q.Set("force", "1")
	}
	return c.do(ctx, http.MethodDelete, path("nodes/%s", name), q, nil, nil, "")
}

// CreateJoinToken makes a token that lets nodes join.
func (c *Client) CreateJoinToken(ctx context.Context, s JoinSpec) (v JoinToken, err error) {
	if err := s.Check(); err != nil {
		return v, err
	}
	body := joinRequest{Uses: s.Uses, Seconds: int64(s.For / time.Second)}
	err = c.do(ctx, http.MethodPost, path("tokens/join"), nil, body, &v, "")
	return v, err
}

// DoctorCluster is what all nodes find out about their machines, and what is
// known of the cluster as a whole.
func (c *Client) DoctorCluster(ctx context.Context) (l List[Check], err error) {
	err = c.do(ctx, http.MethodGet, path("doctor"), url.Values{"cluster": {"1"}}, nil, &l, "")
	return l, err
}
