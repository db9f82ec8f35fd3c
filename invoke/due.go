package invoke

import (
	"strings"
	"time"

	"github.com/robfig/cron/v3"

	"lode"
)

// rebaseAfter is how far in the future the last run of a cron entry may lie
// before the clock that said so is taken for wrong. An hour that the clock
// goes back is within it.
const rebaseAfter = 25 * time.Hour

// plan is a schedule that can be asked for its due times.
type plan struct {
	every time.Duration      // of "@every"; else 0
	cron  *cron.SpecSchedule // else nil
	zone  *time.Location
	// wall: the entry names hours, so it is followed on the clock on the wall:
	// each time shown is due once, on the night when an hour is shown twice as
	// on the night when it is left out. Other entries go by elapsed time.
	wall bool
}

// CheckSchedule says whether s can be followed. The error is Invalid, with a
// hint.
func CheckSchedule(s lode.Schedule) error {
	_, err := newPlan(s)
	return err
}

// newPlan reads a schedule. The error is Invalid.
func newPlan(s lode.Schedule) (*plan, error) {
	expr := strings.TrimSpace(s.Cron)
	zone, err := time.LoadLocation(orWord(s.Zone, "UTC"))
	if err != nil || s.Zone == "Local" {
		return nil, lode.Errorf(lode.Invalid, "%q is not a time zone", s.Zone).WithHint("use a name as in Europe/Berlin")
	}
	if rest, ok := strings.CutPrefix(expr, "@every "); ok {
		d, err := time.ParseDuration(strings.TrimSpace(rest))
		if err != nil || d < time.Second {
			return nil, lode.Errorf(lode.Invalid, "%q is not a schedule", expr).WithHint("@every takes a duration of a second or more, as in @every 10s")
		}
		return &plan{every: d}, nil
	}
	if strings.HasPrefix(expr, "TZ=") || strings.HasPrefix(expr, "CRON_TZ=") {
		return nil, lode.Errorf(lode.Invalid, "%q: the zone does not belong into the entry", expr).WithHint("write {cron, zone}")
	}
	parsed, err := cron.ParseStandard(expr)
	if err != nil {
		return nil, lode.Errorf(lode.Invalid, "%q is not a schedule: %w", expr, err).WithHint("five fields: minute, hour, day, month, weekday; or @every 10s")
	}
	spec, ok := parsed.(*cron.SpecSchedule)
	if !ok {
		return nil, lode.Errorf(lode.Invalid, "%q is not a schedule", expr).WithHint("five fields: minute, hour, day, month, weekday; or @every 10s")
	}
	const allHours = 1<<24 - 1
	p := &plan{cron: spec, zone: zone, wall: spec.Hour&allHours != allHours}
	spec.Location = zone
	if p.wall {
		spec.Location = time.UTC
	}
	return p, nil
}

// next is the first due time after t; zero if there is none, as for 30
// February.
func (p *plan) next(t time.Time) time.Time {
	if p.every > 0 {
		return t.Add(p.every)
	}
	if !p.wall {
		return p.cron.Next(t.In(p.zone)).UTC()
	}
	// What the clock on the wall shows, taken as if it were UTC.
	l := t.In(p.zone)
	shown := time.Date(l.Year(), l.Month(), l.Day(), l.Hour(), l.Minute(), l.Second(), 0, time.UTC)
	for {
		shown = p.cron.Next(shown)
		if shown.IsZero() {
			return shown
		}
		if due := p.instant(shown); due.After(t) {
			return due.UTC()
		}
	}
}

// instant is when the clock on the wall shows what shown says, taken as UTC:
// the first time if that is twice, and about when it would if that is never.
func (p *plan) instant(shown time.Time) time.Time {
	at := time.Date(shown.Year(), shown.Month(), shown.Day(), shown.Hour(), shown.Minute(), 0, 0, p.zone)
	_, offset := at.Add(-6 * time.Hour).Zone() // as it was before a change of the clock
	if first := shown.Add(-time.Duration(offset) * time.Second).In(p.zone); first.Before(at) && first.Hour() == shown.Hour() && first.Minute() == shown.Minute() {
		return first
	}
	return at
}

// tick is what a schedule asks for at some moment.
type tick struct {
	due    time.Time // not zero: run now, for this due time, and note it as the last
	rebase bool      // note now as the last: the clock was wrong
	next   time.Time // look again then; zero: never
}

// at decides, given the last due time that was run. Of several due times that
// were missed only the latest is run.
func (p *plan) at(last, now time.Time) tick {
	if ahead := last.Sub(now); p.every > 0 && ahead > 0 || ahead > rebaseAfter {
		return tick{rebase: true, next: p.next(now)}
	}
	first := p.next(last)
	if first.IsZero() || first.After(now) {
		return tick{next: first}
	}
	due := p.latest(first, now)
	return tick{due: due, next: p.next(due)}
}

// latest is the last due time that is not after now; first is one.
func (p *plan) latest(first, now time.Time) time.Time {
	if p.every > 0 {
		return first.Add(now.Sub(first) / p.every * p.every)
	}
	// Look back an hour, a day, a month, so that years of missed minutes do
	// not have to be counted.
	for _, back := range []time.Duration{time.Hour, 24 * time.Hour, 31 * 24 * time.Hour} {
		if from := now.Add(-back); from.After(first) {
			if t := p.next(from); !t.After(now) {
				first = t
				break
			}
		}
	}
	for {
		t := p.next(first)
		if t.IsZero() || t.After(now) {
			return first
		}
		first = t
	}
}
