package main

import (
	"context"
	"fmt"
	"time"

	"lode/sdk/go"
)

// pollEvery is how often a member looks at the blackboard: four times a second,
// as in the paper.
const pollEvery = 250 * time.Millisecond

// Board is the blackboard of a group: a table of letters, by receiver.
type Board struct{ N int }

// Row is a letter on the board, by its number.
type Row struct {
	N int `json:"n"`
	Message
}

// Post writes letters on the board.
func (b *Board) Post(ctx context.Context, letters []Letter) error {
	s := lode.State(ctx)
	for _, l := range letters {
		b.N++
		if err := s.Put(fmt.Sprintf("%s%012d", inbox(l.To), b.N), Row{b.N, l.Message}); err != nil {
			return err
		}
	}
	return nil
}

func inbox(rank int) string { return fmt.Sprintf("%06d/", rank) }

// Look is what a receiver has got behind a number. It only reads.
func (b *Board) Look(ctx context.Context, rank, behind int) ([]Row, error) {
	rows := []Row{}
	s := lode.State(ctx)
	for _, raw := range s.List(inbox(rank)) {
		var r Row
		if err := raw.JSON(&r); err != nil {
			return nil, err
		}
		if r.N > behind {
			rows = append(rows, r)
		}
	}
	return rows, s.Err()
}

// Wipe removes what earlier rounds have left.
func (b *Board) Wipe(ctx context.Context, round int) error {
	s := lode.State(ctx)
	var old []string
	for key, raw := range s.List("") {
		var r Row
		if err := raw.JSON(&r); err != nil {
			return err
		}
		if r.Round < round {
			old = append(old, key)
		}
	}
	return s.Delete(old...)
}

// Poller takes part in elections by the blackboard, and by nothing else: it
// plays by the rules that Member plays by.
type Poller struct {
	Group string
	Part  Bully
	Told  Report
	Seen  int // the last row that it has read
}

// Join makes it a member, alive, that knows no leader. Members look at
// different moments.
func (p *Poller) Join(ctx context.Context, s Seat) error {
	p.Group, p.Told, p.Part, p.Seen = s.Group, Report{}, s.part(), 0
	if err := lode.Timer(ctx, "poll", time.Duration(s.Rank)*97*time.Millisecond%pollEvery, "poll"); err != nil {
		return err
	}
	return lode.Send(ctx, referee(s.Group), "joined", s.Rank)
}

// Poll is its timer: it looks at the board, and sets the timer again.
func (p *Poller) Poll(ctx context.Context) error {
	if err := lode.Timer(ctx, "poll", pollEvery, "poll"); err != nil {
		return err
	}
	rows, err := lode.Call[[]Row](ctx, "board/"+p.Group, "look", p.Part.Rank, p.Seen)
	if err != nil {
		return err
	}
	for _, r := range rows {
		p.Seen = r.N
		if err := p.do(ctx, p.Part.hear(r.Message)); err != nil {
			return err
		}
	}
	return nil
}

// Stop ends its polling.
func (p *Poller) Stop(ctx context.Context) error {
	_, err := lode.ClearTimer(ctx, "poll")
	return err
}

// Crash makes it play dead: it hears nothing of what it reads.
func (p *Poller) Crash(ctx context.Context) error {
	p.Part.Down, p.Part.Stage = true, idle
	return lode.Send(ctx, referee(p.Group), "crashed", p.Part.Rank)
}

// Recover brings it back to life.
func (p *Poller) Recover(ctx context.Context, round int) error {
	p.Part.Down = false
	return p.do(ctx, p.Part.notice(round))
}

// Notice tells it that the leader does not answer.
func (p *Poller) Notice(ctx context.Context, round int) error { return p.do(ctx, p.Part.notice(round)) }

// Late is its other timer.
func (p *Poller) Late(ctx context.Context, round int, in Stage) error {
	return p.do(ctx, p.Part.late(round, in))
}

// Leader is who leads, as far as it knows.
func (p *Poller) Leader() int { return p.Part.Leader }

func (p *Poller) do(ctx context.Context, s Step) error {
	if len(s.Letters) > 0 {
		if err := lode.Send(ctx, "board/"+p.Group, "post", s.Letters); err != nil {
			return err
		}
	}
	if err := wait(ctx, &p.Part, s); err != nil {
		return err
	}
	return tell(ctx, p.Group, &p.Part, &p.Told)
}
