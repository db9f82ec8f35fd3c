// Membership is a group of agents that agree on who is in it. Each peer says
// that it lives, by a timer, to the group's roster; the roster drops who was
// silent for too long, and numbers each change: a view. It sends every view to
// all that are in it. Since messages of one agent to another arrive once and in
// order, every peer installs the same views in the same order.
package main

import (
	"context"
	"maps"
	"slices"
	"time"

	"lode/sdk/go"
)

// Roster is the one who decides: agent roster/GROUP. It needs no election, and
// no majority: there is one of it, wherever it runs, and it forgets nothing.
type Roster struct {
	View View
	Seen map[string]int64 // when each peer was heard of, Unix ms
	Beat int              // ms between two signs of life; three missed ones are too many
}

// View is who is in the group, from the change N on.
type View struct {
	N     int      `json:"n"`
	Peers []string `json:"peers"` // sorted
}

// Configure sets how often peers say that they live.
func (r *Roster) Configure(ms int) { r.Beat = ms }

// Join takes a peer in, and answers how often it is to say that it lives.
func (r *Roster) Join(ctx context.Context, peer string) (int, error) {
	_, known := r.Seen[peer]
	r.Seen[peer] = time.Now().UnixMilli()
	if known {
		return r.Beat, nil
	}
	return r.Beat, r.change(ctx)
}

// Leave takes a peer out that wants to go.
func (r *Roster) Leave(ctx context.Context, peer string) error {
	if _, known := r.Seen[peer]; !known {
		return nil
	}
	delete(r.Seen, peer)
	return r.change(ctx)
}

// Alive is what peers say. One that was dropped is told to join again.
func (r *Roster) Alive(ctx context.Context, peer string) error {
	if _, known := r.Seen[peer]; !known {
		return lode.Send(ctx, "peer/"+peer, "dropped", lode.Self(ctx).Key)
	}
	r.Seen[peer] = time.Now().UnixMilli()
	return nil
}

// Sweep is the roster's timer: it drops who was silent for three beats.
func (r *Roster) Sweep(ctx context.Context) error {
	late := time.Now().UnixMilli() - int64(3*r.Beat)
	before := len(r.Seen)
	maps.DeleteFunc(r.Seen, func(_ string, seen int64) bool { return seen < late })
	if len(r.Seen) != before {
		return r.change(ctx)
	}
	return r.watch(ctx)
}

// Now is the view. It only reads.
func (r *Roster) Now() View { return r.View }

// change makes the next view and sends it to all that are in it.
func (r *Roster) change(ctx context.Context) error {
	r.View = View{N: r.View.N + 1, Peers: slices.AppendSeq([]string{}, maps.Keys(r.Seen))}
	slices.Sort(r.View.Peers)
	for _, p := range r.View.Peers {
		if err := lode.Send(ctx, "peer/"+p, "install", r.View); err != nil {
			return err
		}
	}
	return r.watch(ctx)
}

// watch sets the timer while there is somebody to watch.
func (r *Roster) watch(ctx context.Context) error {
	if len(r.Seen) == 0 {
		_, err := lode.ClearTimer(ctx, "sweep")
		return err
	}
	return lode.Timer(ctx, "sweep", time.Duration(r.Beat)*time.Millisecond, "sweep")
}

// Peer is a member: agent peer/NAME.
type Peer struct {
	Group string
	Beat  int
	Views []View // as they were installed, the newest last; the last 100
	Mute  bool   // it plays dead
}

// Join joins a group.
func (p *Peer) Join(ctx context.Context, group string) (err error) {
	me := lode.Self(ctx).Key
	if p.Beat, err = lode.Call[int](ctx, "roster/"+group, "join", me); err != nil {
		return err
	}
	p.Group, p.Mute = group, false
	return p.Tick(ctx)
}

// Leave leaves it.
func (p *Peer) Leave(ctx context.Context) error {
	if _, err := lode.ClearTimer(ctx, "tick"); err != nil {
		return err
	}
	return lode.Send(ctx, "roster/"+p.Group, "leave", lode.Self(ctx).Key)
}

// Silence has it say nothing any more, or speak again.
func (p *Peer) Silence(mute bool) { p.Mute = mute }

// Tick is its timer: a sign of life.
func (p *Peer) Tick(ctx context.Context) error {
	if err := lode.Timer(ctx, "tick", time.Duration(p.Beat)*time.Millisecond, "tick"); err != nil || p.Mute {
		return err
	}
	return lode.Send(ctx, "roster/"+p.Group, "alive", lode.Self(ctx).Key)
}

// Install takes a view. It comes once, and after those before it.
func (p *Peer) Install(v View) {
	p.Views = append(p.Views, v)
	p.Views = p.Views[max(0, len(p.Views)-100):]
}

// Dropped is what the roster says to a peer that speaks again: it joins anew.
func (p *Peer) Dropped(ctx context.Context, group string) error {
	return lode.Send(ctx, "roster/"+group, "join", lode.Self(ctx).Key)
}

// Seen is what it has installed. It only reads.
func (p *Peer) Seen() []View { return p.Views }

func main() {
	lode.Agent("roster", func(string) *Roster {
		return &Roster{Seen: map[string]int64{}, Beat: 1000, View: View{Peers: []string{}}}
	}, "Now")
	lode.Agent("peer", func(string) *Peer { return &Peer{Views: []View{}} }, "Seen")
}
