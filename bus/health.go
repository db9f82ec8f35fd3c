package bus

import (
	"context"

	"github.com/nats-io/nats-server/v2/server"

	"lode"
)

// Health is how well the bus is kept.
type Health struct {
	// Quorum: writes come through. Without it reads of what is mirrored go on,
	// and writes fail with Unavailable.
	Quorum  bool           `json:"quorum"`
	Members []MemberHealth `json:"members"`
	// Copies is how many there are of each acknowledged write: the number of
	// members, or what a cluster outside gives.
	Copies int `json:"copies"`
	// Survives is how many members may be lost for good right now without
	// losing an acknowledged write, or the quorum.
	Survives int `json:"survives"`
	// Connected: this node reaches a member, or is one.
	Connected bool `json:"connected"`
	// Moving: writes wait, for the members are changing.
	Moving bool   `json:"moving"`
	Detail string `json:"detail,omitempty"` // a sentence, where something is wrong
}

// MemberHealth is one member as another one sees it.
type MemberHealth struct {
	Node   lode.NodeID `json:"node"`
	Up     bool        `json:"up"`     // it takes part; while there is no leader: it answers
	Leader bool        `json:"leader"` // of the group that all agree with
	Lag    uint64      `json:"lag"`    // decisions that it has not followed yet
	// Empty: the node is there and has lost its copy. It takes no part until
	// a Move to the same members gives it a new one.
	Empty bool `json:"empty,omitempty"`
}

// Health asks the members how they are; it takes up to two seconds.
func (b *Bus) Health() Health {
	if b.cfg.Remote != nil {
		return b.remoteHealth()
	}
	ctx, cancel := context.WithTimeout(b.ctx, askWait)
	defer cancel()
	l := b.Layout()
	h := Health{Copies: len(l.Members), Connected: b.nc.IsConnected(), Moving: b.gate.frozen() != nil}
	if len(l.Members) == 1 && (b.cfg.Cluster == nil || l.Has(b.cfg.Node)) {
		h.Quorum = h.Connected && b.mender.check() == nil
		h.Members = []MemberHealth{{Node: l.Members[0].Node, Up: h.Quorum, Leader: true}}
		return h
	}
	var nodes []lode.NodeID
	for _, m := range l.Members {
		nodes = append(nodes, m.Node)
	}
	answers := b.askAll(ctx, nodes, question{Op: "health", Layout: l}, askWait*3/4)
	up := 0
	var lead *view // of the member that leads the others
	for n, a := range answers {
		if a.View != nil && a.View.Leader == n {
			lead = a.View
		}
	}
	for _, m := range l.Members {
		a, ok := answers[m.Node]
		mh := MemberHealth{Node: m.Node, Empty: ok && !a.Voting && a.Layout.Generation == l.Generation}
		if lead != nil {
			p, heard := lead.Peers[m.Node]
			mh.Leader = lead.Leader == m.Node
			mh.Up, mh.Lag = mh.Leader || heard && ok && a.View != nil, p
		} else {
			mh.Up = ok && a.View != nil // it is there, though it can do nothing alone
		}
		if mh.Up {
			up++
		}
		h.Members = append(h.Members, mh)
	}
	h.Quorum = lead != nil && up > len(l.Members)/2
	h.Survives = max(0, up-len(l.Members)/2-1)
	if !h.Quorum {
		h.Survives = 0
	}
	h.Detail = b.trouble(h, up)
	return h
}

func (b *Bus) trouble(h Health, up int) string {
	switch {
	case !h.Quorum && up <= len(h.Members)/2:
		return "too few members of the bus are up to store anything: start the others"
	case !h.Quorum:
		return "the members of the bus do not agree on a leader"
	case up < len(h.Members):
		return "a member of the bus is missing"
	}
	return ""
}

// view is what a member knows of its group.
type view struct {
	Leader lode.NodeID            `json:"leader"`
	Peers  map[lode.NodeID]uint64 `json:"peers"` // the leader's: the lag of each one that it has just heard
}

// sees is how a server sees its group; nil for no server, or one that is ill.
func (i *instance) sees() *view {
	if i == nil || !i.srv.JetStreamEnabled() {
		return nil
	}
	if len(i.layout.Members) == 1 {
		return &view{Leader: i.layout.Members[0].Node}
	}
	info, err := i.srv.Jsz(&server.JSzOptions{})
	if err != nil || info.Meta == nil {
		return nil
	}
	v := &view{Leader: lode.NodeID(info.Meta.Leader), Peers: make(map[lode.NodeID]uint64)}
	for _, p := range info.Meta.Replicas {
		if !p.Offline && p.Active < 10*heartbeat {
			v.Peers[lode.NodeID(p.Name)] = p.Lag
		}
	}
	return v
}
