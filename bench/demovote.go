package bench

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"
)

// DemoVote is what elections by the bully algorithm took, one way: medians over
// the rounds.
type DemoVote struct {
	Way      string  `json:"way"`
	Members  int     `json:"members"`
	Rounds   int     `json:"rounds"`
	Messages float64 `json:"messages"`
	Millis   float64 `json:"ms"` // from the leader's end until all others name the same new one
	Timeouts float64 `json:"timeouts_ms"`
	Rest     float64 `json:"rest_ms"`
}

// demoVotes holds elections: among agents over messages, among agents over a
// blackboard, and among processes over ZeroMQ.
func (r *runner) demoVotes(ctx context.Context, s *site) ([]DemoVote, error) {
	start := time.Now()
	if err := s.deployExample(ctx, "election"); err != nil {
		return nil, err
	}
	r.logf("examples/election built and deployed in %.1f s", time.Since(start).Seconds())
	ten, err := s.agentVoters(ctx, "ten", 10, messageTimeout, false)
	if err != nil {
		return nil, err
	}
	hundred, err := s.agentVoters(ctx, "hundred", 100, messageTimeout, false)
	if err != nil {
		return nil, err
	}
	board, err := s.agentVoters(ctx, "board", 10, boardTimeout, true)
	if err != nil {
		return nil, err
	}
	zmq, err := r.zmqVoters(ctx, 10)
	if err != nil {
		return nil, err
	}
	defer zmq.stop()
	var out []DemoVote
	for _, b := range []*ballots{{name: "agents, messages", of: ten, members: 10, notice: 8}, {name: "agents, messages", of: hundred, members: 100, notice: 98},
		{name: "agents, a blackboard polled 4 times a second", of: board, members: 10, notice: 8}, {name: "processes, C ZeroMQ, nothing durable", of: zmq, members: 10, notice: 8}} {
		v, err := r.demoVote(ctx, b)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, board.stop(ctx)
}

// demoVote has one group elect for a while, after a round that warms.
func (r *runner) demoVote(ctx context.Context, b *ballots) (DemoVote, error) {
	if err := b.series(ctx, 0, false); err != nil {
		return DemoVote{}, err
	}
	if err := b.series(ctx, 4*time.Second, true); err != nil {
		return DemoVote{}, err
	}
	v := DemoVote{Way: b.name, Members: b.members, Rounds: len(b.all), Messages: median(messagesOf(b.all)), Millis: round(b.whole[0]),
		Timeouts: median(each(b.all, func(e elected) float64 { return e.Timeouts })), Rest: round(b.rest[0])}
	r.logf("elections, %s, %d members: %v ms, of it %v ms of time-outs", v.Way, v.Members, v.Millis, v.Timeouts)
	return v, nil
}

// writeVotes prints the elections for people.
func writeVotes(w io.Writer, votes []DemoVote) error {
	if len(votes) == 0 {
		return nil
	}
	fmt.Fprintln(w, "\nelections: the leader ends, another one learns it, and the highest that is left shall lead (bully algorithm; medians)")
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "WAY\tMEMBERS\tROUNDS\tMESSAGES\tTIME\tITS TIME-OUTS\tTHE REST")
	for _, v := range votes {
		fmt.Fprintf(tw, "%s\t%d\t%d\t%.0f\t%.1f ms\t%.0f ms\t%.1f ms\n", v.Way, v.Members, v.Rounds, v.Messages, v.Millis, v.Timeouts, v.Rest)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w, "The election by a blackboard in the paper took 16.7 s a round.")
	return err
}
