package job

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"lode"
	"lode/data"
	"lode/data/reduce"
	"lode/data/words"
	"lode/store"
)

// errCancelled is the cause of a context that Cancel ended; any other end of
// it is the node's stopping, after which the job is resumed.
var errCancelled = lode.Errorf(lode.Cancelled, "the job was cancelled")

// run is a job in this process.
type run struct {
	jobs   *Jobs
	id     string
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when the job has ended here

	mu       sync.Mutex
	job      Job
	rev      uint64
	changed  chan struct{}   // closed and replaced at each change
	partials map[int]Partial // by shard, for the next checkpoint
	saved    map[int]saved   // by shard, those of the last one
}

// saved is a partial result in a checkpoint.
type saved struct {
	Shard       int         `json:"shard"`
	Blob        lode.Digest `json:"blob"`
	ContentType string      `json:"content_type"`
}

// checkpoint is what a resumed job begins with.
type checkpoint struct {
	Manifest lode.Digest `json:"manifest"`
	Partials []saved     `json:"partials"`
}

func (r *run) snapshot() Job {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.job
}

// update changes the job and wakes the watchers.
func (r *run) update(f func(*Job)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(&r.job)
	close(r.changed)
	r.changed = make(chan struct{})
}

// work runs the job to its end and makes the end durable, and reports whether
// it is. A stopping node leaves the job as it is.
func (r *run) work(ctx context.Context) bool {
	defer close(r.done)
	defer r.cancel(nil)
	result, err := r.reduceAll(ctx)
	if err != nil && ctx.Err() != nil {
		if !errors.Is(context.Cause(ctx), errCancelled) {
			r.save() // for the next start
			return false
		}
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

// persist writes the job's register, with some patience: the job has ended,
// only its end is not known yet. If it stays unwritten, the job is run again
// at the next start.
func (r *run) persist() bool {
	ctx, stop := context.WithTimeout(context.Background(), 30*time.Second)
	defer stop()
	for wait := 10 * time.Millisecond; ; wait *= 2 {
		err := r.write(ctx)
		if err == nil {
			return true
		}
		r.jobs.cfg.Log.Warn("a job's state could not be written", "job", r.id, "err", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return false
		}
	}
}

// write swaps the register to the job as it is now.
func (r *run) write(ctx context.Context) error {
	r.mu.Lock()
	job, rev := r.job, r.rev
	r.mu.Unlock()
	value, err := json.Marshal(job)
	if err != nil {
		return lode.Errorf(lode.Internal, "write job %s: %w", job.ID, err)
	}
	next, err := r.jobs.cfg.Registers.Swap(ctx, key(job.Namespace, job.ID), value, rev)
	if k := lode.KindOf(err); k == lode.Precondition || k == lode.Conflict {
		// Only this node writes it: the answer of an earlier write was lost.
		_, at, _, gerr := r.jobs.cfg.Registers.Get(ctx, key(job.Namespace, job.ID))
		if gerr != nil {
			return gerr
		}
		next, err = at, lode.Errorf(lode.Unavailable, "job %s: the register moved on", job.ID)
	}
	if next != 0 {
		r.mu.Lock()
		r.rev = next
		r.mu.Unlock()
	}
	return err
}

// reduceAll works on every shard and merges.
func (r *run) reduceAll(ctx context.Context) (*Result, error) {
	job := r.snapshot()
	red, err := reducerOf(r.jobs.cfg.Runner, &job)
	if err != nil {
		return nil, err
	}
	m, err := r.jobs.cfg.Datasets.Pinned(ctx, job.Manifest)
	if err != nil {
		return nil, err
	}
	t := newTree(len(m.Shards))
	g, gctx := errgroup.WithContext(ctx)
	limit := r.jobs.cfg.Cores
	if job.Limit > 0 {
		limit = min(limit, job.Limit)
	}
	g.SetLimit(limit)
	r.update(func(j *Job) { j.to(lode.StateRunning, r.jobs.cfg.Now(), nil) })
	old := r.resume(ctx, job, len(m.Shards))
	next := r.jobs.cfg.Now().Add(r.jobs.cfg.Checkpoint)
	for i := range m.Shards {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error { return r.shard(gctx, m, i, old[i], red, t) })
		if now := r.jobs.cfg.Now(); now.After(next) {
			r.save()
			next = r.jobs.cfg.Now().Add(r.jobs.cfg.Checkpoint)
		}
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, lode.Errorf(lode.Cancelled, "job %s: %w", job.ID, err)
	}
	state, err := r.filter(ctx, &job, t.result(red.Zero()))
	if err != nil {
		return nil, err
	}
	return r.keep(ctx, &job, state)
}

// shard brings one shard into the tree, from a checkpoint or by working on it.
func (r *run) shard(ctx context.Context, m *lode.Manifest, i int, old *Partial, red reduce.Reducer, t *tree) error {
	var s reduce.State
	var err error
	if old != nil {
		s, err = red.Parse(old.Body, old.ContentType)
		r.update(func(j *Job) { j.Done++ })
	} else {
		s, err = r.attempts(ctx, m, i, red)
	}
	if err != nil {
		return err
	}
	return t.add(ctx, i, s)
}

// attempts tries one shard until it ends well or the retries are used up.
func (r *run) attempts(ctx context.Context, m *lode.Manifest, i int, red reduce.Reducer) (s reduce.State, err error) {
	job := r.snapshot()
	tries := 0
	err = retry(ctx, job.Retries, func() error {
		tries++
		if tries > 1 {
			r.update(func(j *Job) { j.Retried++ })
		}
		release, err := r.jobs.slot(ctx)
		if err != nil {
			return err
		}
		defer release()
		r.update(func(j *Job) { j.Running++ })
		s, err = r.attempt(ctx, &job, m, i, tries-1, red)
		r.update(func(j *Job) {
			j.Running--
			if err == nil {
				j.Done++
			}
		})
		if err != nil {
			r.jobs.cfg.Log.Info("an attempt failed", "job", r.id, "shard", i, "attempt", tries, "err", err)
		}
		return err
	})
	if err != nil {
		return nil, nameShard(err, i, tries)
	}
	return s, nil
}

// nameShard keeps kind, hint and the guest's words, and says which shard.
func nameShard(err error, i, tries int) error {
	e := lode.AsError(err)
	named := lode.Errorf(e.Kind, "shard %d, attempt %d: %w", i, tries, err)
	named.Hint, named.Guest, named.Trace, named.Invocation = e.Hint, e.Guest, e.Trace, e.Invocation
	return named
}

// attempt works once on one shard. What it answered is parsed here, beside the
// others, so that only merging is left.
func (r *run) attempt(ctx context.Context, job *Job, m *lode.Manifest, i, n int, red reduce.Reducer) (reduce.State, error) {
	deadline := r.jobs.cfg.Now().Add(job.Attempt)
	ctx, stop := context.WithDeadline(ctx, deadline)
	defer stop()
	b, err := r.jobs.cfg.Store.Open(ctx, m.Shards[i].Digest)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	r.update(func(j *Job) {
		j.Fetched += b.Fetched()
		if b.Fetched() == 0 {
			j.Read += b.Size()
		}
	})
	if job.What.Builtin == BuiltinWords {
		return r.countWords(ctx, m, i, b)
	}
	task := Task{Job: job.ID, Namespace: job.Namespace, Dataset: job.Dataset, Version: job.Version, What: job.What,
		Shard: m.Shards[i], Index: i, Attempt: n, Records: m.Records, Path: b.Path(), Size: b.Size(), Deadline: deadline}
	if m.Records == lode.RecordsFiles {
		idx, err := r.jobs.cfg.Datasets.Index(ctx, m, i)
		if err != nil {
			return nil, err
		}
		task.Files = &idx
	}
	p, usage, err := r.jobs.cfg.Runner.Map(ctx, task)
	r.update(func(j *Job) { j.CPU += usage.CPU })
	if err != nil {
		return nil, err
	}
	r.won(i, p)
	return red.Parse(p.Body, p.ContentType)
}

// countWords is the native job: it stays in this process, so its partial is
// not moved, and is written as bytes only for a checkpoint.
func (r *run) countWords(ctx context.Context, m *lode.Manifest, i int, b *store.Blob) (reduce.State, error) {
	var idx lode.FileIndex // of a dataset of files: no word goes over a file's end
	if m.Records == lode.RecordsFiles {
		var err error
		if idx, err = r.jobs.cfg.Datasets.Index(ctx, m, i); err != nil {
			return nil, err
		}
	}
	c := new(words.Counts)
	begin := r.jobs.cfg.Now()
	err := b.View(func(content []byte) error {
		if m.Records != lode.RecordsFiles {
			c.Add(content)
			return nil
		}
		for _, file := range data.Files(content, idx) {
			c.Add(file)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	r.update(func(j *Job) { j.CPU += r.jobs.cfg.Now().Sub(begin) })
	if r.old() {
		r.won(i, Partial{c.Encode(), words.ContentType})
	}
	return reduce.WordState{Counts: c}, nil
}

// old reports whether the job runs long enough for checkpoints.
func (r *run) old() bool {
	job := r.snapshot()
	return r.jobs.cfg.Now().Sub(job.Started) >= r.jobs.cfg.Checkpoint
}

// won records the first attempt that ended well.
func (r *run) won(i int, p Partial) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, pending := r.partials[i]
	if _, kept := r.saved[i]; pending || kept {
		return
	}
	r.partials[i] = p
	if r.job.What.Builtin == "" {
		r.job.Partial += int64(len(p.Body))
	}
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
func (r *run) keep(ctx context.Context, job *Job, s reduce.State) (*Result, error) {
	body, kind, err := s.Encode()
	if err != nil {
		return nil, err
	}
	if deliver := r.jobs.cfg.Deliver; deliver != nil {
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
	res.Digest, err = r.jobs.cfg.Store.PutBytes(ctx, body)
	return res, err
}
