package main

import (
	"context"
	"errors"
	"time"

	"lode/sdk/go"
)

// vector is the kind of the vectors of agents. All of its state is under keys.
type vector struct{}

func (vector) Add(ctx context.Context, n int) (int, error) {
	s := lode.State(ctx)
	var has int
	if _, err := s.Get("n", &has); err != nil {
		return 0, err
	}
	return has + n, s.Put("n", has+n)
}

func (vector) Get(ctx context.Context) (n int, err error) {
	_, err = lode.State(ctx).Get("n", &n)
	return n, err
}

func (vector) Lose(ctx context.Context, n int) error {
	return errors.Join(lode.State(ctx).Put("n", n), errors.New("lost"))
}

func (vector) Refuse(ctx context.Context, n int) error {
	if err := lode.State(ctx).Put("n", n); err != nil {
		return err
	}
	return &lode.Error{Kind: lode.Conflict, Detail: "lost"}
}

func (vector) Keys(ctx context.Context) (keys []string, err error) {
	s := lode.State(ctx)
	err = errors.Join(s.Put("k1", 1), s.Put("k2", 2), s.Put("k3", 3), s.Delete("k2"))
	for k := range s.List("k") {
		keys = append(keys, k)
	}
	return keys, errors.Join(err, s.Err())
}

func (vector) Later(ctx context.Context, ms int) error {
	return lode.Timer(ctx, "t", time.Duration(ms)*time.Millisecond, "add", 4)
}

func (vector) Tell(ctx context.Context, to string) error { return lode.Send(ctx, to, "add", 2) }

func (vector) Ask(ctx context.Context, to string) (int, error) {
	return lode.Call[int](ctx, to, "add", 3)
}
