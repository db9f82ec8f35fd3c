package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

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

// electKilling kills a node as soon as the leader of a round is down and the
// others know.
func (v *agentVoters) electKilling(ctx context.Context, notice int, victim *driver) (e elected, err error) {
	done := make(chan error, 1)
	go func() {
		var err error
		e, err = v.elect(ctx, notice)
		done <- err
	}()
	for {
		phase, err := v.phase(ctx)
		if err != nil || phase == "voting" {
			victim.kill()
			err = errors.Join(err, <-done)
			return e, err
		}
		select {
		case err := <-done:
			if err == nil {
				err = lode.Errorf(lode.Internal, "the round was over before a node could be killed")
			}
			return e, err
		default:
		}
	}
}

// phase is what the group waits for.
func (v *agentVoters) phase(ctx context.Context) (string, error) {
	a, err := v.at.CallAgent(ctx, api.AgentInvocation{Address: lode.Address{Name: "election", Key: v.group}, Method: "state"})
	if err != nil {
		return "", err
	}
	defer a.Body.Close()
	var s struct{ Phase string }
	err = json.NewDecoder(a.Body).Decode(&s)
	return s.Phase, err
}
