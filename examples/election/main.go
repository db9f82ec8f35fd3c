// Election is leader election among agents, twice: Garcia-Molina's bully
// algorithm over messages (agents of the kind member) and over a blackboard, a
// table that is looked at four times a second (agents of the kind poller, and
// a board). bully.go holds the algorithm, which does not know over what it runs.
//
// Two functions drive it; their arguments and answers are JSON:
//
//	election-start {"group": "g", "members": 100, "timeout_ms": 200, "board": false}
//	    makes the members 0 to members-1 and has the highest one lead; answers
//	    {"phase": "ready", ...} when all of them know. To be called once for a
//	    group; again, it begins anew. timeout_ms is how long an answer may take:
//	    with a board at least four looks, 1,000.
//	election-round {"group": "g", "notice": 98}
//	    has the highest member play dead and tells the member notice so; answers
//	    {"leader", "living", "messages", "sent": {"elections", "answers",
//	    "coordinators"}, "ms", "timeouts_ms", "rest_ms"} when all living members
//	    name one leader. notice is the next highest unless given. ms is from the
//	    moment the leader went down, by one clock; timeouts_ms is what the
//	    algorithm itself waits for, and rest_ms is everything else. If the
//	    highest member is down from the round before it comes back first, which
//	    is not measured.
//	election-stop {"group": "g"}
//	    has pollers poll no more.
//
// What a round costs depends on who notices. If it is the next highest member
// there are n-1 messages: it asks the one above, hears nothing, and tells the n-2
// below. If it is the lowest there are about n*n: each member that is asked
// asks all those above itself, and is answered by them.
package main

import (
	"context"

	"lode/sdk/go"
)

// Setup is what election-start takes.
type Setup struct {
	Group     string `json:"group"`
	Members   int    `json:"members"`
	TimeoutMS int    `json:"timeout_ms"`
	Board     bool   `json:"board"`
}

// start sets a group up, and waits until its highest member leads.
func start(ctx context.Context, s Setup) (State, error) {
	kind := "member"
	if s.Board {
		kind = "poller"
	}
	if _, err := lode.Call[any](ctx, referee(s.Group), "start", kind, s.Members, s.TimeoutMS, lode.Run(ctx)); err != nil {
		return State{}, err
	}
	return await(ctx)
}

// Order is what election-round and election-stop take.
type Order struct {
	Group  string `json:"group"`
	Notice *int   `json:"notice"`
}

// round runs one election.
func round(ctx context.Context, o Order) (Result, error) {
	if _, err := lode.Call[any](ctx, referee(o.Group), "begin", o.Notice, lode.Run(ctx)); err != nil {
		return Result{}, err
	}
	s, err := await(ctx)
	return s.Last, err
}

func stop(ctx context.Context, o Order) error {
	_, err := lode.Call[any](ctx, referee(o.Group), "stop")
	return err
}

// await waits for what the referee tells this invocation, which has an address
// while it runs.
func await(ctx context.Context) (s State, err error) {
	m, err := lode.Receive(ctx)
	if err != nil {
		return s, err
	}
	return s, m.Args(&s)
}

func main() {
	lode.Agent("member", func(string) *Member { return &Member{} }, "Leader")
	lode.Agent("poller", func(string) *Poller { return &Poller{} }, "Leader")
	lode.Agent("board", func(string) *Board { return &Board{} }, "Look")
	lode.Agent("election", func(group string) *Referee { return &Referee{Group: group} }, "State")
	lode.HandleNamed("election-start", start)
	lode.HandleNamed("election-round", round)
	lode.HandleNamed("election-stop", stop)
}
