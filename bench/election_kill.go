package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"

	"lode"
	"lode/api"
)

// electionKill: besides the leader its node dies, kill -9, with about a third
// of the members. These vote when others have taken them over.
func (r *runner) electionKill(ctx context.Context, ds *[3]*driver) error {
	const members = 10
	b := &ballots{name: "10 agents, kill -9 of the leader's node meanwhile", members: members}
	for i := range r.Rounds {
		v, holder, err := ds[0].apart(ctx, fmt.Sprintf("k%d", i), members)
		if err != nil {
			return err
		}
		victim := slices.IndexFunc(ds[:], func(d *driver) bool { return lode.NodeID(d.name) == holder })
		if victim < 1 {
			return lode.Errorf(lode.NotFound, "the leader is on node %q", holder)
		}
		e, err := v.electKilling(ctx, members-2, ds[victim])
		if err != nil {
			return err
		}
		if e.Leader != members-2 {
			return lode.Errorf(lode.Internal, "of %d members without the highest, number %d leads", members, e.Leader)
		}
		r.logf("kill %d: node %s, %.0f ms, %d messages", i+1, holder, e.MS, e.Messages)
		b.all = append(b.all, e)
		if ds[victim], err = r.again(ctx, ds[victim]); err != nil {
			return err
		}
		t := &trio{r: r, nodes: [3]*site{ds[0].site, ds[1].site, ds[2].site}}
		if err := t.settled(ctx, 3); err != nil {
			return err
		}
	}
	seconds := each(b.all, func(e elected) float64 { return e.MS / 1e3 })
	r.value(b.name+": a round", "s", []float64{slices.Max(seconds)}, "<= 4 s", "1.5")
	r.value("the same, median", "s", seconds, "", "")
	r.value("messages of a round", "messages", messagesOf(b.all), "", "")
	return nil
}

// apart makes a group whose leader is on another node than this one, which has
// the referee, who takes the time.
func (d *driver) apart(ctx context.Context, name string, members int) (*agentVoters, lode.NodeID, error) {
	for i := range 100 {
		group := fmt.Sprintf("%s-%d", name, i)
		v, err := d.agentVoters(ctx, group, members, killTimeout, false)
		if err != nil {
			return nil, "", err
		}
		referee, err := d.ExplainNode("election", group)
		if err != nil {
			return nil, "", err
		}
		leader, err := d.ExplainNode("member", fmt.Sprintf("%s-%d", group, members-1))
		if err != nil {
			return nil, "", err
		}
		if referee == d.name && leader != d.name {
			return v, lode.NodeID(leader), nil
		}
	}
	return nil, "", lode.Errorf(lode.NotFound, "no group of a hundred has its leader elsewhere than its referee")
}

// electKilling kills a node as soon as the leader of a round is down and another
// member knows. It asks the referee itself: a function that waits for the round
// might run on that node.
func (v *agentVoters) electKilling(ctx context.Context, notice int, victim *driver) (elected, error) {
	if err := v.referee(ctx, "begin", []any{notice, ""}, nil); err != nil {
		return elected{}, err
	}
	killed := false
	for ctx.Err() == nil {
		var s struct {
			Phase string
			Last  elected // of a new group: nothing yet
		}
		if err := v.referee(ctx, "state", []any{}, &s); err != nil {
			return elected{}, err
		}
		switch {
		case s.Phase == "voting" && !killed:
			victim.kill()
			killed = true
		case s.Phase == "ready" && s.Last.Messages > 0 && killed:
			return s.Last, nil
		case s.Phase == "ready" && s.Last.Messages > 0:
			return elected{}, lode.Errorf(lode.Internal, "the round was over before a node could be killed")
		}
		time.Sleep(time.Millisecond)
	}
	return elected{}, ctx.Err()
}

// referee calls a method of the agent that takes the time.
func (v *agentVoters) referee(ctx context.Context, method string, args []any, out any) error {
	b, err := json.Marshal(args)
	if err != nil {
		return err
	}
	a, err := v.at.CallAgent(ctx, api.AgentInvocation{Address: lode.Address{Name: "election", Key: v.group}, Method: method, Type: listType, Body: bytes.NewReader(b)})
	if err != nil {
		return err
	}
	defer a.Body.Close()
	b, err = io.ReadAll(a.Body)
	if err == nil && a.Status >= 300 {
		err = lode.Errorf(lode.Internal, "the referee's %s answered %d: %s", method, a.Status, b)
	}
	if err != nil || out == nil {
		return err
	}
	return json.Unmarshal(b, out)
}
