package main

import (
	"context"
	"fmt"
	"time"

	"lode/sdk/go"
)

// Member takes part in elections by messages: each one is a send, which arrives
// once, and in order for each pair. Time-outs are timers. Part is its state.
type Member struct {
	Group string
	Part  Bully
	Told  Report // what the referee knows
}

// Seat is a member's place in its group.
type Seat struct {
	Group         string
	Rank, Members int
	TimeoutMS     int
	Round         int // the last one of the group
}

// Join makes it a member, alive, that knows no leader.
func (m *Member) Join(ctx context.Context, s Seat) error {
	m.Group, m.Told, m.Part = s.Group, Report{}, s.part()
	return lode.Send(ctx, referee(s.Group), "joined", s.Rank)
}

func (s Seat) part() Bully {
	return Bully{Rank: s.Rank, Members: s.Members, TimeoutMS: s.TimeoutMS, Round: s.Round, Leader: nobody}
}

// Crash makes it play dead.
func (m *Member) Crash(ctx context.Context) error {
	m.Part.Down, m.Part.Stage = true, idle
	return lode.Send(ctx, referee(m.Group), "crashed", m.Part.Rank)
}

// Recover brings it back to life: it holds an election, and bullies whoever
// leads.
func (m *Member) Recover(ctx context.Context, round int) error {
	m.Part.Down = false
	return m.do(ctx, m.Part.notice(round))
}

// Notice tells it that the leader does not answer.
func (m *Member) Notice(ctx context.Context, round int) error { return m.do(ctx, m.Part.notice(round)) }

// Hear takes a message of another member.
func (m *Member) Hear(ctx context.Context, w Message) error { return m.do(ctx, m.Part.hear(w)) }

// Late is its timer.
func (m *Member) Late(ctx context.Context, round int, in Stage) error {
	return m.do(ctx, m.Part.late(round, in))
}

// Leader is who leads, as far as it knows.
func (m *Member) Leader() int { return m.Part.Leader }

func (m *Member) do(ctx context.Context, s Step) error {
	for _, l := range s.Letters {
		if err := lode.Send(ctx, fmt.Sprintf("member/%s-%d", m.Group, l.To), "hear", l.Message); err != nil {
			return err
		}
	}
	if err := wait(ctx, &m.Part, s); err != nil {
		return err
	}
	return tell(ctx, m.Group, &m.Part, &m.Told)
}

// wait sets the timer that a step asks for, or clears it.
func wait(ctx context.Context, b *Bully, s Step) error {
	if s.WaitMS > 0 {
		return lode.Timer(ctx, "late", time.Duration(s.WaitMS)*time.Millisecond, "late", b.Round, b.Stage)
	}
	if !s.Rest {
		return nil
	}
	_, err := lode.ClearTimer(ctx, "late")
	return err
}

// tell tells the referee whom a member takes for the leader, and what that has
// cost it. This is no part of the algorithm, and not counted.
func tell(ctx context.Context, group string, b *Bully, told *Report) error {
	now := Report{Rank: b.Rank, Round: b.Round, Leader: b.Leader, Sent: b.Sent, WaitedMS: b.WaitedMS}
	if now == *told || b.Leader == nobody || b.Down {
		return nil
	}
	*told = now
	return lode.Send(ctx, referee(group), "report", now)
}

func referee(group string) string { return "election/" + group }
