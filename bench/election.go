package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"lode"
	"lode/api"
	"lode/cmd/build"
	"lode/cmd/spec"
)

// The time-outs of the bully algorithm: how long a member waits for an answer.
const (
	messageTimeout = 20   // ms: over messages, on both sides
	boardTimeout   = 1000 // ms: over the blackboard, four looks
	killTimeout    = 200  // ms: long enough to kill a node meanwhile
)

// benchElection measures the paper's third case: leader election by the bully
// algorithm, among agents on three nodes, over a blackboard, and among processes
// over ZeroMQ.
func benchElection(ctx context.Context, r *runner) error {
	ds, stop, err := r.three(ctx, "election", "")
	if err != nil {
		return err
	}
	defer func() { stop() }()
	if err := ds[0].deployExample(ctx, "election"); err != nil {
		return err
	}
	only := os.Getenv("LODE_BENCH_PART") // for whoever works on one of them
	for _, p := range []struct {
		name string
		run  func(context.Context, *[3]*driver) error
	}{{"messages", r.electionMessages}, {"board", r.electionBoard}, {"kill", r.electionKill}} {
		if only != "" && only != p.name {
			continue
		}
		r.logf("election: %s", p.name)
		if err := p.run(ctx, &ds); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// elected is what one round has brought.
type elected struct {
	Leader   int     `json:"leader"`
	Messages int     `json:"messages"`    // of the algorithm
	MS       float64 `json:"ms"`          // from the leader's end until all that live name one leader
	Timeouts float64 `json:"timeouts_ms"` // of it, the algorithm's own
	Rest     float64 `json:"rest_ms"`     // of it, all else
}

// voters are a group that holds elections.
type voters interface {
	// elect ends the member of the highest rank, tells the one called notice
	// so, and returns when all others name the same leader. The next call may
	// have the highest come back first, which is not measured.
	elect(ctx context.Context, notice int) (elected, error)
}

// ballots are the rounds of one group.
type ballots struct {
	name    string
	of      voters
	members int
	notice  int // the member that learns first that the leader is down
	all     []elected
	rest    []float64 // medians of series, without time-outs, ms
	whole   []float64 // the same with time-outs
}

// series holds elections for d, one at least. Those of the first series warm.
func (b *ballots) series(ctx context.Context, d time.Duration, counts bool) error {
	var got []elected
	for began := time.Now(); len(got) == 0 || time.Since(began) < d; {
		e, err := b.of.elect(ctx, b.notice)
		if err != nil {
			return fmt.Errorf("%s: %w", b.name, err)
		}
		if e.Leader != b.members-2 {
			return lode.Errorf(lode.Internal, "%s: of %d members without the highest, number %d leads", b.name, b.members, e.Leader)
		}
		got = append(got, e)
	}
	if counts {
		b.all = append(b.all, got...)
		b.rest, b.whole = append(b.rest, median(restOf(got))), append(b.whole, median(wholeOf(got)))
	}
	return nil
}

func restOf(es []elected) []float64 {
	return each(es, func(e elected) float64 { return e.Rest })
}

func wholeOf(es []elected) []float64 {
	return each(es, func(e elected) float64 { return e.MS })
}

func messagesOf(es []elected) []float64 {
	return each(es, func(e elected) float64 { return float64(e.Messages) })
}

func each(es []elected, f func(elected) float64) []float64 {
	var out []float64
	for _, e := range es {
		out = append(out, f(e))
	}
	return out
}

// p99 is the 99th percentile of v, by the nearest rank: of less than a hundred
// values the largest.
func p99(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	return s[(len(s)*99+99)/100-1]
}

// electionMessages: members that send messages, agents and processes in turn.
// With the next highest member to notice a round has n-1 messages, with the
// lowest about n*n.
func (r *runner) electionMessages(ctx context.Context, ds *[3]*driver) error {
	zmq, err := r.zmqVoters(ctx, 10)
	if err != nil {
		return err
	}
	defer zmq.stop()
	agents := map[int]*agentVoters{}
	for _, n := range []int{10, 100, 1000} {
		if agents[n], err = ds[0].agentVoters(ctx, fmt.Sprintf("m%d", n), n, messageTimeout, false); err != nil {
			return err
		}
	}
	sides := []*ballots{
		{name: "10 agents", of: agents[10], members: 10, notice: 8},
		{name: "10 processes", of: zmq, members: 10, notice: 8},
		{name: "10 agents, the lowest notices", of: agents[10], members: 10, notice: 0},
		{name: "10 processes, the lowest notices", of: zmq, members: 10, notice: 0},
		{name: "100 agents", of: agents[100], members: 100, notice: 98},
		{name: "1,000 agents", of: agents[1000], members: 1000, notice: 998},
	}
	for i := -1; i < r.Rounds; i++ {
		for _, b := range sides {
			if err := b.series(ctx, r.each(2*time.Second), i >= 0); err != nil {
				return err
			}
		}
	}
	r.electionFigures(sides[0], sides[1], "<= 10 ms", "2")
	r.electionFigures(sides[2], sides[3], "", "")
	r.electionFigures(sides[4], nil, "", "")
	r.electionFigures(sides[5], nil, "<= 500 ms", "100")
	return nil
}

// electionFigures adds what a group has done, and the ratio to another one.
func (r *runner) electionFigures(b, against *ballots, must, aim string) {
	r.value(b.name+": a round without time-outs", "ms", b.rest, must, aim)
	r.value("the same, p99", "ms", []float64{p99(restOf(b.all))}, "", "")
	r.value("with time-outs", "ms", b.whole, "", "")
	r.value("with time-outs, p99", "ms", []float64{p99(wholeOf(b.all))}, "", "")
	r.value("messages of a round", "messages", messagesOf(b.all), "", "")
	if against == nil {
		return
	}
	r.ratio("without time-outs, against C ZeroMQ", "ms", b.rest, against.rest, "", "")
	r.ratio("with time-outs, against C ZeroMQ", "ms", b.whole, against.whole, "", "")
	r.value("messages of a round over ZeroMQ", "messages", messagesOf(against.all), "", "")
}

// electionBoard: members that do nothing but look at a table four times a
// second, and write there.
func (r *runner) electionBoard(ctx context.Context, ds *[3]*driver) error {
	v, err := ds[0].agentVoters(ctx, "board", 10, boardTimeout, true)
	if err != nil {
		return err
	}
	b := &ballots{name: "10 agents, a blackboard looked at four times a second", of: v, members: 10, notice: 8}
	for i := range r.Rounds {
		if err := b.series(ctx, 0, true); err != nil {
			return fmt.Errorf("round %d: %w", i+1, err)
		}
	}
	r.electionFigures(b, nil, "", "")
	return v.stop(ctx)
}

// agentVoters are a group of examples/election.
type agentVoters struct {
	at    *site
	group string
}

// agentVoters makes a group of agents, whose members are spread by their
// partitions.
func (s *site) agentVoters(ctx context.Context, group string, members, timeoutMS int, board bool) (*agentVoters, error) {
	v := &agentVoters{s, group}
	return v, v.call(ctx, "start", map[string]any{"group": group, "members": members, "timeout_ms": timeoutMS, "board": board}, nil)
}

func (v *agentVoters) elect(ctx context.Context, notice int) (e elected, err error) {
	err = v.call(ctx, "round", map[string]any{"group": v.group, "notice": notice}, &e)
	return e, err
}

// stop has pollers poll no more.
func (v *agentVoters) stop(ctx context.Context) error {
	return v.call(ctx, "stop", map[string]any{"group": v.group}, nil)
}

// call calls one of the example's functions.
func (v *agentVoters) call(ctx context.Context, what string, arg, out any) error {
	body, err := json.Marshal(arg)
	if err != nil {
		return err
	}
	status, got, err := v.at.post(ctx, "/fn/election-"+what, body)
	if err != nil {
		return err
	}
	if status >= 300 {
		return lode.Errorf(lode.Internal, "election-%s answered %d: %s", what, status, got)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(got, out)
}

// deployExample deploys one of examples, as lode deploy does. The bench and its
// readers shall have the same program, so it is read from the project.
func (s *site) deployExample(ctx context.Context, name string) error {
	dir := filepath.Join("examples", name)
	d, err := spec.Load(spec.Options{Path: dir})
	if err != nil {
		return lode.AsError(err).WithHint("this needs the folder %s: start from the project's folder", dir)
	}
	built := map[string][]spec.Artifact{}
	for _, src := range d.Sources() {
		as, err := build.Build(ctx, build.Source{Path: src.Path, Build: src.Build, Name: string(d.Name)})
		if err != nil {
			return err
		}
		for _, a := range as {
			if err := s.PutBlob(ctx, a.Digest, int64(len(a.Wasm)), strings.NewReader(string(a.Wasm))); err != nil {
				return err
			}
			m, err := s.DescribeBlob(ctx, a.Digest)
			if err != nil {
				return err
			}
			built[src.Key()] = append(built[src.Key()], spec.Artifact{Name: a.Name, Digest: a.Digest, Size: int64(len(a.Wasm)), Language: a.Language, Contract: m.Contract, Exports: m.Description})
		}
	}
	app, err := d.Complete(built)
	if err != nil {
		return err
	}
	_, err = s.Deploy(ctx, app, api.DeployOptions{})
	return err
}

var _ voters = (*agentVoters)(nil)
