package invoke

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"lode"
)

// cronLook is how often the clock on the wall is looked at: a timer would not
// see it jump.
const cronLook = 15 * time.Second

// schedules is the clock of the schedules. Each schedule has a key in the table
// "cron", NS/FUNCTION/HASH with the SHA-256 of the entry and its zone; the
// value is the JSON of a jobRecord. The record is written before the run is
// queued, on condition that nobody else wrote it meanwhile, under an id that it names, so that a run is neither lost nor doubled
// whenever the node dies. Only the goroutine of run touches jobs.
type schedules struct {
	k          *Keeper
	table      Table
	intake     context.Context
	stopIntake context.CancelFunc
	wake       chan struct{}
	jobs       map[string]*job
}

type jobRecord struct {
	Last time.Time         `json:"last"` // the last due time that was run, or when the schedule was first seen
	ID   lode.InvocationID `json:"id"`   // of that run; empty = none
	// Queued: the run was queued. Else it may not have been: then it is, unless
	// it is known.
	Queued bool `json:"queued,omitempty"`
}

type job struct {
	jobRecord
	target
	key  string
	rev  uint64 // of its record; 0: it has none
	plan *plan  // nil: not in the catalog as far as is known
	bad  bool   // it cannot be followed, as was logged
}

func openSchedules(ctx context.Context, k *Keeper) (*schedules, error) {
	c := &schedules{k: k, wake: make(chan struct{}, 1), jobs: make(map[string]*job)}
	c.intake, c.stopIntake = context.WithCancel(k.base)
	var err error
	if c.table, err = k.cfg.Tables.Table(ctx, "cron"); err != nil {
		return nil, err
	}
	es, err := c.table.List(ctx, "")
	if err != nil {
		return nil, err
	}
	for _, e := range es {
		j := &job{key: e.Key, rev: e.Rev}
		parts := strings.Split(e.Key, "/")
		if len(parts) != 3 || json.Unmarshal(e.Value, &j.jobRecord) != nil {
			k.cfg.Logger.Error("the record of a schedule is damaged; it begins anew", "key", e.Key)
			continue
		}
		j.target = target{lode.Namespace(parts[0]), lode.Name(parts[1])}
		c.jobs[e.Key] = j
	}
	return c, nil
}

func (c *schedules) start() { c.k.pulls.Go(c.run) }

// poke asks for a look: the catalog changed, or a run ended.
func (c *schedules) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *schedules) run() {
	for c.intake.Err() == nil {
		c.reconcile()
		wait := cronLook
		for _, j := range c.jobs {
			wait = min(wait, c.look(j))
		}
		t := time.NewTimer(max(wait, time.Millisecond))
		select {
		case <-t.C:
		case <-c.wake:
		case <-c.intake.Done():
		}
		t.Stop()
	}
}

// reconcile makes jobs what the catalog declares. A schedule that is new
// begins now; the record of one that is gone is dropped.
func (c *schedules) reconcile() {
	seen := make(map[string]bool)
	for rev := range c.k.s.cfg.Catalog.Functions() {
		for _, s := range rev.Function.Schedules {
			t := target{rev.Namespace, rev.Name}
			key := t.String() + "/" + sum([]byte(s.Cron+"\n"+s.Zone))
			seen[key] = true
			j := c.jobs[key]
			if j == nil {
				j = &job{target: t, key: key}
			}
			if j.bad {
				continue
			}
			if j.plan == nil {
				var err error
				if j.plan, err = newPlan(s); err != nil {
					c.k.cfg.Logger.Error("a schedule is not followed", "function", t.String(), "err", err)
					j.bad, c.jobs[key] = true, j
					continue
				}
			}
			if j.Last.IsZero() {
				j.Last = c.now()
				if !c.write(j) && j.rev == 0 {
					continue
				}
			}
			c.jobs[key] = j
		}
	}
	for key, j := range c.jobs {
		if !seen[key] {
			if err := c.table.Delete(c.k.base, key, j.rev); err == nil || lode.KindOf(err) == lode.Precondition {
				delete(c.jobs, key)
			}
		}
	}
}

// now is the wall clock, without the monotonic one.
func (c *schedules) now() time.Time { return c.k.cfg.Now().UTC().Round(0) }

// look runs j if it is due and its former run has ended, and returns how long
// nothing will happen to it.
func (c *schedules) look(j *job) time.Duration {
	if j.plan == nil {
		return cronLook
	}
	if j.ID != "" && !j.Queued && !c.queue(j) {
		return time.Second
	}
	if j.ID != "" && c.runs(j) {
		return cronLook // its end pokes
	}
	now := c.now()
	t := j.plan.at(j.Last, now)
	switch {
	case t.rebase:
		before := j.jobRecord
		if j.Last = now; !c.write(j) && j.Last.Equal(now) {
			j.jobRecord = before
			return time.Second
		}
	case !t.due.IsZero():
		return c.fire(j, t, now)
	}
	if t.next.IsZero() {
		return cronLook
	}
	return min(cronLook, t.next.Sub(now))
}

// fire notes a run of j and queues it.
func (c *schedules) fire(j *job, t tick, now time.Time) time.Duration {
	before := j.jobRecord
	j.Last, j.ID, j.Queued = t.due, lode.NewInvocationID(now), false
	mine := j.ID
	switch {
	case c.write(j):
	case j.ID == mine:
		j.jobRecord = before
		return time.Second
	default:
		return time.Millisecond // another Keeper's run: look at it
	}
	if !c.queue(j) {
		return time.Second
	}
	if t.next.IsZero() {
		return cronLook
	}
	return min(cronLook, max(time.Millisecond, t.next.Sub(now)))
}

func (c *schedules) runs(j *job) bool {
	e, err := c.k.calls.lookup(j.ns, j.ID)
	return err == nil && !e.over()
}

// queue makes sure that the run of j is asynchronous work, and notes it. One
// that is neither noted nor known after a restart was never queued, unless it is
// so old that its result was dropped.
func (c *schedules) queue(j *job) bool {
	if _, err := c.k.calls.lookup(j.ns, j.ID); err != nil && c.now().Sub(j.Last) <= c.k.cfg.KeepResults {
		w := workOf(&lode.Request{ID: j.ID, Namespace: j.ns, Function: j.name, Trigger: lode.TriggerSchedule,
			Head: []lode.Pair{{Key: ":schedule", Value: j.Last.Format(time.RFC3339)}}}, c.now())
		if err := c.k.calls.put(c.k.base, w, nil); err != nil {
			c.logged(err, j)
			return false
		}
	}
	j.Queued = true
	c.write(j) // where it fails, the next keeper looks whether the run is known
	return true
}

// write makes the record of j durable. Where another Keeper has written it
// meanwhile, j becomes what that one wrote, and false is returned.
func (c *schedules) write(j *job) bool {
	b, err := json.Marshal(j.jobRecord)
	var rev uint64
	if err == nil && j.rev == 0 {
		rev, err = c.table.Create(c.k.base, j.key, b)
	} else if err == nil {
		rev, err = c.table.Update(c.k.base, j.key, b, j.rev)
	}
	if err == nil {
		j.rev = rev
		return true
	}
	c.logged(err, j)
	want := j.jobRecord
	return c.reload(j) && j.ID == want.ID && j.Last.Equal(want.Last) && j.Queued == want.Queued
}

// reload makes j what its record says: another Keeper wrote it, or a write
// whose outcome was not known did come through. false: there is nothing new.
func (c *schedules) reload(j *job) bool {
	e, ok, err := c.table.Get(c.k.base, j.key)
	if err != nil || ok && e.Rev == j.rev {
		return false
	}
	var r jobRecord
	if j.rev = e.Rev; !ok || json.Unmarshal(e.Value, &r) != nil {
		return false
	}
	j.jobRecord = r
	return true
}

func (c *schedules) logged(err error, j *job) {
	if err != nil && c.k.base.Err() == nil {
		c.k.cfg.Logger.Warn("a schedule is late", "function", j.target.String(), "err", err)
	}
}
