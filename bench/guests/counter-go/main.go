// A counter for bench agents: it keeps one number, and echoes.
package main

import (
	"context"
	"strings"

	"lode/sdk/go"
)

type Counter struct {
	N int
	V string
}

// Add adds to the counter and returns what it is then.
func (c *Counter) Add(_ context.Context, n int) (int, error) {
	c.N += n
	return c.N, nil
}

// Get is what the counter is.
func (c *Counter) Get(context.Context) (int, error) { return c.N, nil }

// Echo gives back what it got.
func (c *Counter) Echo(_ context.Context, b []byte) ([]byte, error) { return b, nil }

// Ask has another agent say 1 KB, so often.
func (c *Counter) Ask(ctx context.Context, to string, n int) (int, error) {
	b := strings.Repeat("x", 1024)
	for range n {
		if _, err := lode.Call[string](ctx, to, "say", b); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// Say gives back a text.
func (c *Counter) Say(_ context.Context, s string) (string, error) { return s, nil }

// Keep stores a text.
func (c *Counter) Keep(_ context.Context, v string) { c.V = v }

func main() {
	lode.Agent("counter", func(string) *Counter { return &Counter{} }, "Get", "Echo", "Say", "Ask")
}
