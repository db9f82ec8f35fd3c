package job

import (
	"cmp"
	"context"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"lode"
	"lode/data"
	"lode/data/reduce"
	"lode/data/words"
	"lode/store"
)

// ExecutorConfig says what an Executor works with.
type ExecutorConfig struct {
	Store    *store.Store   // required
	Datasets *data.Datasets // required; only indexes of files are read by it
	Runner   Runner         // required, but for jobs that are built in
	// Cores bounds the shards worked on at once, over all jobs; 0 means
	// GOMAXPROCS.
	Cores int
	// Tell is how often a group tells how far it is; 0: 100 ms.
	Tell time.Duration
	Now  func() time.Time
	Log  *slog.Logger
}

// Executor works on groups of shards with the bytes and the cores of one node.
// All methods may be called at the same time. It owns no goroutine outside of
// Work.
type Executor struct {
	cfg   ExecutorConfig
	cores *turns
	opens *turns // shards being made local: more than cores, for the network's sake
	busy  atomic.Int64
}

// NewExecutor makes one. There is one on each node.
func NewExecutor(cfg ExecutorConfig) *Executor {
	cfg.Cores = cmp.Or(cfg.Cores, runtime.GOMAXPROCS(0))
	cfg.Tell = cmp.Or(cfg.Tell, 100*time.Millisecond)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Runner == nil {
		cfg.Runner = noRunner{}
	}
	return &Executor{cfg: cfg, cores: newTurns(cfg.Cores), opens: newTurns(2 * cfg.Cores)}
}

// Slots is how many shards are worked on at once.
func (e *Executor) Slots() int { return e.cfg.Cores }

// Groups is how many groups are being worked on or wait for a core; a node that
// drains waits until there is none.
func (e *Executor) Groups() int { return int(e.busy.Load()) }

// Work works on a group until it is done, fails or the context ends, and waits
// until nothing of it runs. progress, if it is not nil, is called some times a
// second, by one goroutine, and never after Work has returned. A group that
// failed after it began gives both a Done, with what it took, and its error;
// one that is refused gives no Done.
func (e *Executor) Work(ctx context.Context, g *Group, progress func(Progress)) (*Done, error) {
	if err := g.check(); err != nil {
		return nil, err
	}
	red, err := g.code().reducer(e.cfg.Runner)
	if err != nil {
		return nil, err
	}
	e.busy.Add(1)
	defer e.busy.Add(-1)
	w := &work{e: e, g: g, red: red}
	stop := w.tell(progress)
	state, err := w.all(ctx)
	stop()
	d := &Done{Progress: w.now(), state: state}
	d.Running = 0
	if err != nil {
		d.Error, d.state = lode.AsError(err), nil
		return d, err
	}
	return d, nil
}

// work is a group being worked on.
type work struct {
	e   *Executor
	g   *Group
	red reduce.Reducer

	mu    sync.Mutex
	p     Progress
	begun time.Time
}

func (w *work) count(f func(*Progress)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(&w.p)
}

func (w *work) now() Progress {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.p
	if !w.begun.IsZero() {
		p.Wall = max(1, w.e.cfg.Now().Sub(w.begun))
	}
	return p
}

// tell reports progress at intervals until it is stopped.
func (w *work) tell(progress func(Progress)) (stop func()) {
	if progress == nil {
		return func() {}
	}
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		t := time.NewTicker(w.e.cfg.Tell)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				progress(w.now())
			case <-end:
				return
			}
		}
	}()
	return func() { close(end); <-ended }
}

// all works on every shard and merges.
func (w *work) all(ctx context.Context) (reduce.State, error) {
	t := newTree(w.g.Total, place{w.g.Level, w.g.Index})
	eg, gctx := errgroup.WithContext(ctx)
	limit := w.e.cfg.Cores
	if w.g.Parallel > 0 {
		limit = min(limit, w.g.Parallel)
	}
	eg.SetLimit(limit)
	for k := range w.g.Shards {
		if gctx.Err() != nil {
			break
		}
		eg.Go(func() error {
			s, err := w.attempts(gctx, k)
			if err != nil {
				return err
			}
			return t.add(gctx, place{0, w.g.First() + k}, s)
		})
	}
	if err := eg.Wait(); err != nil {
		return nil, err
	}
	if w.now().Shards < len(w.g.Shards) { // the loop broke off
		return nil, lode.Errorf(lode.Cancelled, "job %s: %w", w.g.Job, context.Cause(ctx))
	}
	return t.result(w.red.Zero()), nil
}

// attempts tries one shard until it ends well or the retries are used up. A
// shard that had to come here for any of them was not here before.
func (w *work) attempts(ctx context.Context, k int) (s reduce.State, err error) {
	tries, here := 0, true
	err = retry(ctx, w.g.Retries, func() error {
		if tries++; tries > 1 {
			w.count(func(p *Progress) { p.Retried++ })
		}
		var fetched int64
		s, fetched, err = w.attempt(ctx, k, w.g.Tried+tries-1)
		here = here && fetched == 0
		if err != nil {
			w.e.cfg.Log.Info("an attempt failed", "job", w.g.Job, "shard", w.g.First()+k, "attempt", tries, "err", err)
		}
		return err
	})
	if err != nil {
		return nil, nameShard(err, w.g.First()+k, tries)
	}
	w.count(func(p *Progress) {
		size := w.g.Shards[k].Bytes
		p.Shards++
		p.Bytes += size
		if here {
			p.Read += size
		}
	})
	return s, nil
}

// nameShard keeps kind, hint and the guest's words, and says which shard.
func nameShard(err error, i, tries int) error {
	e := lode.AsError(err)
	named := lode.Errorf(e.Kind, "shard %d, attempt %d: %w", i, tries, err)
	named.Hint, named.Guest, named.Trace, named.Invocation = e.Hint, e.Guest, e.Trace, e.Invocation
	return named
}

// attempt works once on one shard, and says how many bytes came over the
// network for it. No core is held while bytes travel. What the code answered is
// parsed here, beside the others, so that only merging is left.
func (w *work) attempt(ctx context.Context, k, n int) (s reduce.State, fetched int64, err error) {
	b, idx, fetched, err := w.open(ctx, k)
	if err != nil {
		return nil, fetched, err
	}
	defer b.Close()
	release, err := w.e.cores.take(ctx, w.g.Job, w.g.First())
	if err != nil {
		return nil, fetched, err
	}
	defer release()
	w.count(func(p *Progress) {
		p.Running++
		if w.begun.IsZero() {
			w.begun = w.e.cfg.Now()
		}
	})
	defer func() { w.ended(err, b.Size()) }()
	deadline := w.e.cfg.Now().Add(w.g.Attempt)
	ctx, stop := context.WithDeadline(ctx, deadline)
	defer stop()
	if w.g.What.Builtin == BuiltinWords {
		s, err = w.countWords(b, idx)
		return s, fetched, err
	}
	t := Task{Job: w.g.Job, Namespace: w.g.Namespace, Dataset: w.g.Dataset, Version: w.g.Version, What: w.g.What,
		Shard: w.g.Shards[k], Index: w.g.First() + k, Attempt: n, Records: w.g.Records, Path: b.Path(), Size: b.Size(), Files: idx, Deadline: deadline}
	answer, usage, err := w.e.cfg.Runner.Map(ctx, t)
	w.count(func(p *Progress) { p.CPU += usage.CPU })
	if err != nil {
		return nil, fetched, err
	}
	s, err = w.red.Parse(answer.Body, answer.ContentType)
	return s, fetched, err
}

// ended counts the end of an attempt.
func (w *work) ended(err error, size int64) {
	w.count(func(p *Progress) {
		p.Running--
		if err != nil {
			p.Wasted += size
		}
	})
}

// open makes a shard local, and the index of one that holds files.
func (w *work) open(ctx context.Context, k int) (b *store.Blob, idx *lode.FileIndex, fetched int64, err error) {
	release, err := w.e.opens.take(ctx, w.g.Job, w.g.First())
	if err != nil {
		return nil, nil, 0, err
	}
	defer release()
	ctx, stop := context.WithTimeout(ctx, w.g.Attempt)
	defer stop()
	defer func() { w.count(func(p *Progress) { p.Fetched += fetched }) }()
	if w.g.Records == lode.RecordsFiles {
		ib, err := w.e.cfg.Store.Open(ctx, w.g.Shards[k].Index)
		if err != nil {
			return nil, nil, 0, err
		}
		fetched = ib.Fetched()
		read, err := w.e.cfg.Datasets.ReadIndex(ctx, w.g.Shards[k])
		ib.Close()
		if err != nil {
			return nil, nil, fetched, err
		}
		idx = &read
	}
	if b, err = w.e.cfg.Store.Open(ctx, w.g.Shards[k].Digest); err != nil {
		return nil, nil, fetched, err
	}
	return b, idx, fetched + b.Fetched(), nil
}

// countWords is the native job: it stays in this process. No word goes over a
// file's end.
func (w *work) countWords(b *store.Blob, idx *lode.FileIndex) (reduce.State, error) {
	c := new(words.Counts)
	begin := w.e.cfg.Now()
	err := b.View(func(content []byte) error {
		if idx == nil {
			c.Add(content)
			return nil
		}
		for _, file := range data.Files(content, *idx) {
			c.Add(file)
		}
		return nil
	})
	w.count(func(p *Progress) { p.CPU += w.e.cfg.Now().Sub(begin) })
	if err != nil {
		return nil, err
	}
	return reduce.WordState{Counts: c}, nil
}
