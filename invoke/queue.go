package invoke

import (
	"context"
	"time"

	"lode"
)

// maxDelay is how far ahead a message may be put.
const maxDelay = 365 * 24 * time.Hour

func (s *Service) PutQueue(ctx context.Context, ns lode.Namespace, queue lode.Name, key string, delay time.Duration, contentType string, body []byte) (id string, err error) {
	return "", lode.Errorf(lode.Unavailable, "this node keeps no queues")
}

func (s *Service) invokeOnce(ctx context.Context, req *lode.Request, ans lode.Answer) (lode.Outcome, error) {
	return s.run(ctx, req, ans, false)
}
func (s *Service) open(ctx context.Context) error { return nil }
func (s *Service) changed(gen uint64)             { s.gate.forget() }
