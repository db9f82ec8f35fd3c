package job

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"lode"
	"lode/data/reduce"
	"lode/data/words"
)

// errCancelled is the cause of a context that Cancel ended; other ends of it
// are the node's stopping, after which the job is resumed, and errTaken.
var errCancelled = lode.Errorf(lode.Cancelled, "the job was cancelled")

// errTaken says that other Jobs own the job: these were paused, or cut off, for
// so long that they were taken for dead. They change nothing any more.
var errTaken = errors.New("another node coordinates the jobs now")

// run is a job in this process.
type run struct {
	jobs   *Jobs
	id     string
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when the job has ended here

	mu      sync.Mutex
	job     Job // what is settled; see snapshot
	shares  map[lode.NodeID]*NodeShare
	flying  map[*flight]bool
	heard   time.Time // when a node last told of progress
	rev     uint64
	changed chan struct{}    // closed and replaced at each change
	pending map[place]packed // for the next checkpoint
	saved   map[place]saved  // those of the last one
}

// snapshot is the job now, with what is known of the groups that are under way.
func (r *run) snapshot() Job {
	r.mu.Lock()
	defer r.mu.Unlock()
	j := r.settled()
	best := map[*piece]*flight{}
	for f := range r.flying {
		j.Fetched += f.p.Fetched
		j.Retried += f.p.Retried
		j.CPU += f.p.CPU
		j.Wasted += f.p.Wasted
		if f.late {
			continue
		}
		j.Running += f.p.Running
		if b := best[f.piece]; b == nil || f.p.Shards > b.p.Shards {
			best[f.piece] = f
		}
	}
	for _, f := range best {
		j.Done += f.p.Shards
		j.Read += f.p.Read
	}
	return j
}

// settled is the job without what is under way. mu is held.
func (r *run) settled() Job {
	j := r.job
	j.Nodes = sharesOf(r.shares)
	return j
}

// update changes the job and wakes the watchers.
func (r *run) update(f func(*Job)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(&r.job)
	r.wake()
}

// wake tells the watchers. mu is held.
func (r *run) wake() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// outcome is what became of a run in this process.
type outcome int

const (
	ended   outcome = iota // its end is durable
	stopped                // it is resumed at the next start
	taken                  // other Jobs go on with it
)

// work runs the job to its end and makes the end durable. A stopping node
// leaves the job as it is.
func (r *run) work(ctx context.Context) outcome {
	defer close(r.done)
	defer r.cancel(nil)
	result, err := r.reduceAll(ctx)
	cause := context.Cause(ctx)
	switch {
	case errors.Is(err, errTaken), errors.Is(cause, errTaken):
		return taken
	case err != nil && ctx.Err() != nil && !errors.Is(cause, errCancelled):
		if errors.Is(r.save(), errTaken) { // for the next start
			return taken
		}
		return stopped
	case err != nil && ctx.Err() != nil:
		err = errCancelled
	}
	now := r.jobs.cfg.Now()
	r.update(func(j *Job) {
		switch {
		case err == nil:
			j.Result = result
			j.to(lode.StateDone, now, nil)
		case errors.Is(err, errCancelled):
			j.to(lode.StateCancelled, now, nil)
		default:
			j.to(lode.StateFailed, now, err)
		}
		j.Checkpoint = lode.Digest{}
	})
	return r.persist()
}

// persist writes the job's register until it is written: the job has ended,
// only its end is not known yet. When these Jobs end before, the job is run
// again by the next.
func (r *run) persist() outcome {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	defer context.AfterFunc(r.jobs.ctx, func() { // a last chance, which Close waits for
		time.AfterFunc(time.Second, stop)
	})()
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		r.mu.Lock()
		job := r.settled()
		r.mu.Unlock()
		err := r.write(ctx, job)
		switch {
		case err == nil:
			return ended
		case errors.Is(err, errTaken):
			return taken
		}
		r.jobs.cfg.Log.Warn("a job's state could not be written", "job", r.id, "err", err)
		select {
		case <-time.After(wait/2 + rand.N(wait)):
		case <-ctx.Done():
			return stopped
		}
	}
}

// write swaps the register to job. One goroutine writes at a time.
func (r *run) write(ctx context.Context, job Job) error {
	value, err := json.Marshal(job)
	if err != nil {
		return lode.Errorf(lode.Internal, "write job %s: %w", job.ID, err)
	}
	r.mu.Lock()
	rev := r.rev
	r.mu.Unlock()
	next, err := r.jobs.cfg.Registers.Swap(ctx, key(job.Namespace, job.ID), value, rev)
	if k := lode.KindOf(err); k == lode.Precondition || k == lode.Conflict {
		// Either the answer of an earlier write of ours was lost, or it is not
		// ours any more.
		if err := r.owned(ctx); err != nil {
			return err
		}
		return lode.Errorf(lode.Unavailable, "job %s: the register moved on", job.ID)
	}
	if err == nil {
		r.mu.Lock()
		r.rev = next
		r.mu.Unlock()
	}
	return err
}

// owned checks that the register names these Jobs, and learns its revision;
// errTaken if it does not.
func (r *run) owned(ctx context.Context) error {
	r.mu.Lock()
	ns := r.job.Namespace
	r.mu.Unlock()
	value, at, ok, err := r.jobs.cfg.Registers.Get(ctx, key(ns, r.id))
	if err != nil {
		return err
	}
	var j Job
	if ok {
		if err := json.Unmarshal(value, &j); err != nil {
			return lode.Errorf(lode.Damaged, "the register of job %s: %w", r.id, err)
		}
	}
	if j.Coordinator != r.jobs.self {
		r.jobs.superseded(r.id, j.Coordinator)
		return errTaken
	}
	r.mu.Lock()
	r.rev = at
	r.mu.Unlock()
	return nil
}

// reduceAll works on every shard and merges.
func (r *run) reduceAll(ctx context.Context) (*Result, error) {
	if err := ctx.Err(); err != nil { // it was cancelled before its turn came
		return nil, lode.Errorf(lode.Cancelled, "job %s: %w", r.id, err)
	}
	job := r.snapshot()
	red, err := job.code().reducer(r.jobs.cfg.Runner)
	if err != nil {
		return nil, err
	}
	var m *lode.Manifest
	err = r.patient(ctx, func() (err error) {
		m, err = r.jobs.cfg.Datasets.Pinned(ctx, job.Manifest)
		return err
	})
	if err != nil {
		return nil, err
	}
	r.update(func(j *Job) { j.to(lode.StateRunning, r.jobs.cfg.Now(), nil) })
	d := newDispatch(r, m, job, red)
	if err := d.run(ctx); err != nil {
		return nil, err
	}
	state, err := r.filter(ctx, &job, d.tree.result(red.Zero()))
	if err != nil {
		return nil, err
	}
	return r.keep(ctx, &job, state)
}

// old reports whether the job runs long enough for checkpoints.
func (r *run) old() bool {
	r.mu.Lock()
	began := r.job.Started
	r.mu.Unlock()
	return r.jobs.cfg.Now().Sub(began) >= r.jobs.cfg.Checkpoint
}

// filter asks the word count's guest which words to keep.
func (r *run) filter(ctx context.Context, job *Job, s reduce.State) (reduce.State, error) {
	w, ok := s.(reduce.WordState)
	if !ok || job.What.Function == nil {
		return s, nil
	}
	c, err := w.Apply(ctx, filter{r.jobs.cfg.Runner, job}, r.jobs.cfg.Cores)
	if err != nil {
		return nil, err
	}
	return reduce.WordState{Counts: c}, nil
}

type filter struct {
	runner Runner
	job    *Job
}

var _ words.Filter = filter{}

// Keep implements words.Filter.
func (f filter) Keep(ctx context.Context, batch [][]byte) ([]bool, error) {
	var keep []bool
	err := retry(ctx, f.job.Retries, func() (err error) {
		ctx, stop := context.WithTimeout(ctx, f.job.Attempt)
		defer stop()
		keep, err = f.runner.Keep(ctx, f.job.Namespace, f.job.What, batch)
		return err
	})
	return keep, err
}

// keep makes the result durable: short ones in the register, others as a blob.
// Nothing is delivered by Jobs that were taken for dead.
func (r *run) keep(ctx context.Context, job *Job, s reduce.State) (*Result, error) {
	body, kind, err := s.Encode()
	if err != nil {
		return nil, err
	}
	if deliver := r.jobs.cfg.Deliver; deliver != nil {
		if err := r.patient(ctx, func() error { return r.owned(ctx) }); err != nil {
			return nil, err
		}
		if err := deliver(ctx, *job, body); err != nil {
			return nil, err
		}
	}
	res := &Result{Size: int64(len(body)), ContentType: kind}
	if len(body) <= inlineMax {
		res.Inline = body
		res.Digest = digestOf(body)
		return res, nil
	}
	err = r.patient(ctx, func() (err error) {
		res.Digest, err = r.jobs.cfg.Store.PutBytes(ctx, body)
		return err
	})
	return res, err
}

// patient calls f until it ends otherwise than for want of other nodes, as it
// may when some have just died, or the time for that is over.
func (r *run) patient(ctx context.Context, f func() error) error {
	ctx, stop := context.WithTimeout(ctx, r.jobs.cfg.Patience)
	defer stop()
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		err := f()
		if k := lode.KindOf(err); k != lode.Unavailable && k != lode.Overloaded {
			return err
		}
		select {
		case <-time.After(wait/2 + rand.N(wait)):
		case <-ctx.Done():
			return err
		}
	}
}
