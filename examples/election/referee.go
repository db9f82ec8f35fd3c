package main

import (
	"context"
	"fmt"
	"time"

	"lode/sdk/go"
)

// Referee starts the rounds of one group, and takes the time. It knows who was
// told to play dead, and waits until all others name the same leader. It sends
// no message of the algorithm.
type Referee struct {
	Group     string
	Kind      string // of the members: member or poller
	Members   int
	TimeoutMS int
	Phase     Phase
	Round     int // only grows: what is late is known by it
	Notice    int // who is told that the leader is down; nobody before the first round
	TopDown   bool
	Present   int   // members that have joined
	Began     int64 // Unix microseconds
	Votes     map[int]int
	Sent      Count
	WaitedMS  int
	Last      Result
	Tell      string // the running invocation that waits for the phase ready
}

// Phase is what the referee waits for.
type Phase string

// The phases: joining, rising, ready; and for each round, if the highest member
// is down, rising; then crashing, voting, ready.
const (
	joining  Phase = "joining"  // all members to be there
	rising   Phase = "rising"   // all to follow the highest, which came back
	crashing Phase = "crashing" // the highest to play dead
	voting   Phase = "voting"   // all others to follow another one
	ready    Phase = "ready"
)

// Report is what a member tells the referee.
type Report struct {
	Rank     int   `json:"rank"`
	Round    int   `json:"round"`
	Leader   int   `json:"leader"`
	Sent     Count `json:"sent"`
	WaitedMS int   `json:"waited_ms"`
}

// Result is what a round has brought.
type Result struct {
	Round    int     `json:"round"`
	Leader   int     `json:"leader"`
	Living   int     `json:"living"`      // members that agree
	Messages int     `json:"messages"`    // of the algorithm: the sum of the next three
	Sent     Count   `json:"sent"`        // them, by kind
	MS       float64 `json:"ms"`          // from the leader's end until all living members name another one
	Timeouts int     `json:"timeouts_ms"` // of it, the algorithm's own time-outs, one after another
	Rest     float64 `json:"rest_ms"`     // of it, everything else
}

// State is where the referee stands.
type State struct {
	Phase Phase  `json:"phase"`
	Round int    `json:"round"`
	Last  Result `json:"last"`
}

// Start sets a group up: members of a kind, with the time-out for answers. It
// tells the running invocation tell when they follow the highest.
func (r *Referee) Start(ctx context.Context, kind string, members, timeoutMS int, tell string) error {
	if members < 2 || timeoutMS < 1 || kind != "member" && kind != "poller" {
		return &lode.Error{Kind: lode.Invalid, Detail: "an election takes 2 members or more of the kind member or poller, and a time-out"}
	}
	if err := r.Stop(ctx); err != nil {
		return err
	}
	r.Kind, r.Members, r.TimeoutMS = kind, members, timeoutMS
	r.Phase, r.Present, r.Notice, r.TopDown, r.Last, r.Tell = joining, 0, nobody, false, Result{}, tell
	for rank := range members {
		if err := lode.Send(ctx, r.member(rank), "join", Seat{r.Group, rank, members, timeoutMS, r.Round}); err != nil {
			return err
		}
	}
	return nil
}

// Stop has pollers poll no more.
func (r *Referee) Stop(ctx context.Context) error {
	if r.Kind == "poller" {
		for rank := range r.Members {
			if err := lode.Send(ctx, r.member(rank), "stop", nil); err != nil {
				return err
			}
		}
	}
	r.Phase, r.Kind = "", ""
	return nil
}

// Joined is told by each member.
func (r *Referee) Joined(ctx context.Context, rank int) error {
	if r.Phase != joining {
		return nil
	}
	if r.Present++; r.Present < r.Members {
		return nil
	}
	return r.rise(ctx)
}

// Begin begins a round: the highest member goes down, and the one of the rank
// notice, the next highest if none is given, is told so. It tells the running
// invocation tell when all follow another one.
func (r *Referee) Begin(ctx context.Context, notice *int, tell string) error {
	if r.Phase != ready {
		return &lode.Error{Kind: lode.Conflict, Detail: fmt.Sprintf("the group %s is not ready for a round, but %q", r.Group, r.Phase), Hint: "start it first"}
	}
	r.Notice = r.top() - 1
	if notice != nil {
		r.Notice = *notice
	}
	if r.Notice < 0 || r.Notice >= r.top() {
		return &lode.Error{Kind: lode.Invalid, Detail: fmt.Sprintf("a member from 0 to %d can notice it", r.top()-1)}
	}
	r.Tell = tell
	if r.TopDown {
		return r.rise(ctx)
	}
	return r.crash(ctx)
}

func (r *Referee) top() int               { return r.Members - 1 }
func (r *Referee) member(rank int) string { return fmt.Sprintf("%s/%s-%d", r.Kind, r.Group, rank) }

// open begins to count votes of a new round.
func (r *Referee) open(p Phase) {
	r.Phase, r.Votes, r.Sent, r.WaitedMS = p, map[int]int{}, Count{}, 0
	r.Round++
}

// rise has the highest member come back.
func (r *Referee) rise(ctx context.Context) error {
	r.open(rising)
	r.TopDown = false
	return lode.Send(ctx, r.member(r.top()), "recover", r.Round)
}

// crash has the highest member play dead.
func (r *Referee) crash(ctx context.Context) error {
	r.open(crashing)
	r.TopDown = true
	if r.Kind == "poller" {
		if err := lode.Send(ctx, "board/"+r.Group, "wipe", r.Round); err != nil {
			return err
		}
	}
	return lode.Send(ctx, r.member(r.top()), "crash", nil)
}

// Crashed is told by the member that plays dead: now the time runs.
func (r *Referee) Crashed(ctx context.Context, rank int) error {
	if r.Phase != crashing {
		return nil
	}
	r.Phase, r.Began = voting, time.Now().UnixMicro()
	return lode.Send(ctx, r.member(r.Notice), "notice", r.Round)
}

// Report is told by each member when it knows a leader, and when it has sent
// something since.
func (r *Referee) Report(ctx context.Context, now Report) error {
	if now.Round != r.Round {
		return nil
	}
	var old Report
	key, s := fmt.Sprintf("report/%06d", now.Rank), lode.State(ctx)
	if _, err := s.Get(key, &old); err != nil {
		return err
	}
	if old.Round == r.Round {
		r.Votes[old.Leader]--
		r.Sent = r.Sent.add(old.Sent, -1)
	}
	r.Votes[now.Leader]++
	r.Sent = r.Sent.add(now.Sent, 1)
	r.WaitedMS = max(r.WaitedMS, now.WaitedMS)
	if err := s.Put(key, now); err != nil {
		return err
	}
	return r.count(ctx)
}

// count looks whether all living members agree.
func (r *Referee) count(ctx context.Context) error {
	living := r.Members
	if r.TopDown {
		living--
	}
	for leader, votes := range r.Votes {
		if votes < living {
			continue
		}
		switch {
		case r.Phase == rising && r.Notice == nobody:
			return r.end(ctx)
		case r.Phase == rising:
			return r.crash(ctx)
		case r.Phase == voting:
			ms := float64(time.Now().UnixMicro()-r.Began) / 1000
			r.Last = Result{Round: r.Round, Leader: leader, Living: living, Messages: r.Sent.sum(), Sent: r.Sent, MS: ms, Timeouts: r.WaitedMS, Rest: ms - float64(r.WaitedMS)}
			return r.end(ctx)
		}
	}
	return nil
}

// end tells who waits.
func (r *Referee) end(ctx context.Context) error {
	r.Phase = ready
	if r.Tell == "" {
		return nil
	}
	return lode.Send(ctx, r.Tell, string(ready), r.State())
}

// State says where it stands. It only reads.
func (r *Referee) State() State { return State{r.Phase, r.Round, r.Last} }
