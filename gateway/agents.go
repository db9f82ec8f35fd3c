package gateway

import (
	"context"

	"lode"
)

// Agents are the agents of the cluster, wherever they are. Implementations are
// safe for concurrent use.
//
// A call that Call has answered with a reply belongs to the gateway again, with
// its Head and Body: nothing of it may be kept, strings apart. After an error,
// and after Post, the gateway never changes it again: a turn may still be under
// way. What is returned is only read.
type Agents interface {
	// Call makes a turn of the agent and returns its reply when everything that
	// the turn depends on is durable. It tries again by itself where that is
	// safe, until c.Deadline or until ctx is done, so that an error is final: one
	// of Lode's own, or Crashed.
	//
	// A call of the turn socket says what happened to one of the agent's
	// WebSockets, which the head names: message, or as the last one close or
	// error. The gateway may tell the end of a socket whose accepting turn it has
	// no answer from: an end of a socket that the agent does not know is nothing.
	Call(ctx context.Context, c *lode.AgentCall) (*lode.AgentReply, error)
	// Post stores a call durably that is made later, and returns its id.
	Post(ctx context.Context, c *lode.AgentCall) (id string, err error)
	// Events calls f with the events of one agent: those kept after the number
	// after, in order, then the live ones, until ctx is done or f fails; it
	// returns that error. f is called by one goroutine at a time, and never after
	// Events has returned.
	Events(ctx context.Context, ns lode.Namespace, kind lode.Name, key string, after uint64, f func(lode.AgentEvent) error) error
	// Kind finds the live revision of a kind. It answers from memory and never
	// changes what it returned.
	Kind(ns lode.Namespace, kind lode.Name) (access lode.Access, fn *lode.Function, ok bool)
}
