package job

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/zeebo/blake3"

	"lode"
	"lode/data"
	"lode/store"
)

// Config says what Jobs work with.
type Config struct {
	Store     *store.Store   // required
	Datasets  *data.Datasets // required
	Registers data.Registers // required; not those of datasets
	Runner    Runner         // required, but for jobs that are built in; merges and filters here
	// Cluster is the nodes that work. Nil: this node does everything itself.
	Cluster Cluster
	// Cores bounds the shards worked on at once without a Cluster, and the
	// merges here, over all jobs; 0 means GOMAXPROCS.
	Cores int
	// MaxRunning bounds the jobs that run at once; others are queued. 0: 8.
	MaxRunning int
	// MaxQueued bounds the jobs that have not ended; more are Overloaded. 0:
	// 1,000.
	MaxQueued int
	// Checkpoint is how long a job runs before its partial results are written
	// down, and how long until the next time. 0: 2 s. Shorter jobs are run
	// again after a crash.
	Checkpoint time.Duration
	// Slow is how long a group of shards runs at least before a second node may
	// get it too; 0: 1 s. Patience is how long a job goes on without a node that
	// takes its groups; 0: 1 minute.
	Slow, Patience time.Duration
	// Deliver takes the result of a job where its labels say, before the job is
	// done; an error fails the job. After a crash it may be called again. Nil:
	// the result stays in the job.
	Deliver func(ctx context.Context, j Job, result []byte) error
	Now     func() time.Time
	Log     *slog.Logger
}

func (c Config) withDefaults() (Config, error) {
	if c.Store == nil || c.Datasets == nil || c.Registers == nil {
		return c, lode.Errorf(lode.Invalid, "jobs need a store, datasets and registers")
	}
	c.Cores = cmp.Or(c.Cores, runtime.GOMAXPROCS(0))
	c.MaxRunning = cmp.Or(c.MaxRunning, 8)
	c.MaxQueued = cmp.Or(c.MaxQueued, 1000)
	c.Checkpoint = cmp.Or(c.Checkpoint, 2*time.Second)
	c.Slow = cmp.Or(c.Slow, time.Second)
	c.Patience = cmp.Or(c.Patience, time.Minute)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Runner == nil {
		c.Runner = noRunner{}
	}
	if c.Cluster == nil {
		c.Cluster = alone{NewExecutor(ExecutorConfig{Store: c.Store, Datasets: c.Datasets, Runner: c.Runner, Cores: c.Cores, Now: c.Now, Log: c.Log})}
	}
	return c, nil
}

// noRunner refuses guests.
type noRunner struct{}

var _ Runner = noRunner{}

func errNoRunner() error { return lode.Errorf(lode.Denied, "this node runs no guests in jobs") }

func (noRunner) Map(context.Context, Task) (Partial, lode.Usage, error) {
	return Partial{}, lode.Usage{}, errNoRunner()
}

func (noRunner) Merge(context.Context, lode.Namespace, What, []byte, []byte) ([]byte, error) {
	return nil, errNoRunner()
}

func (noRunner) Keep(context.Context, lode.Namespace, What, [][]byte) ([]bool, error) {
	return nil, errNoRunner()
}

// errStopping is the cause of contexts when the node stops.
var errStopping = errors.New("the node is stopping")

// Jobs coordinate the jobs of a cluster: one node at a time has them open. All
// methods may be called at the same time.
type Jobs struct {
	cfg   Config
	self  string        // these Jobs, in registers; no two are the same
	turns chan struct{} // a token for each running job
	ctx   context.Context
	stop  context.CancelCauseFunc
	wg    sync.WaitGroup // one for each run

	mu     sync.Mutex
	active map[string]*run     // by key
	flying map[lode.NodeID]int // groups given to nodes
	closed error               // errStopping or errTaken when nothing is accepted any more
}

// coordinator is the register that names the Jobs that were opened last. Keys
// of jobs do not begin with a hyphen.
const coordinator = "-coordinator"

// Open resumes what was running when another Jobs over the same registers
// ended, and takes from it what it had: if it is not dead, only slow, it stops
// when it next looks, and changes nothing.
func Open(ctx context.Context, cfg Config) (*Jobs, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Jobs{cfg: cfg, self: newID()[2:] + newID()[2:], turns: make(chan struct{}, cfg.MaxRunning), active: map[string]*run{}, flying: map[lode.NodeID]int{}}
	s.ctx, s.stop = context.WithCancelCause(context.Background())
	if err := s.takeOver(ctx); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// takeOver makes these Jobs the ones that coordinate, then resumes.
func (s *Jobs) takeOver(ctx context.Context) error {
	if _, err := s.change(ctx, coordinator, func([]byte) ([]byte, error) { return []byte(s.self), nil }); err != nil {
		return err
	}
	regs, err := s.cfg.Registers.List(ctx, "")
	if err != nil {
		return err
	}
	for _, reg := range regs {
		j, err := parseJob(reg)
		if strings.HasPrefix(reg.Key, "-") || err == nil && j.Over() {
			continue
		}
		if err == nil {
			err = s.take(ctx, reg.Key)
		}
		if k := lode.KindOf(err); k == lode.Damaged || k == lode.NotFound {
			s.cfg.Log.Warn("a job is passed over", "err", err)
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// take puts the name of these Jobs into a job and goes on with it.
func (s *Jobs) take(ctx context.Context, key string) error {
	var j Job
	rev, err := s.change(ctx, key, func(value []byte) (_ []byte, err error) {
		if value == nil {
			return nil, lode.Errorf(lode.NotFound, "job %s is gone", key)
		}
		if j, err = parseJob(data.Register{Key: key, Value: value}); err != nil || j.Over() {
			return nil, err
		}
		j.Coordinator = s.self
		return json.Marshal(j)
	})
	if err == nil && !j.Over() {
		s.launch(again(j), rev)
	}
	return err
}

// change swaps a register to what f makes of its value, nil for a missing one,
// until nobody else was first; f leaves it as it is by giving nil.
func (s *Jobs) change(ctx context.Context, key string, f func([]byte) ([]byte, error)) (rev uint64, err error) {
	for range 50 {
		value, at, ok, err := s.cfg.Registers.Get(ctx, key)
		if err != nil {
			return 0, err
		}
		if !ok {
			value, at = nil, 0
		}
		next, err := f(value)
		if err != nil || next == nil {
			return at, err
		}
		rev, err = s.cfg.Registers.Swap(ctx, key, next, at)
		if k := lode.KindOf(err); k != lode.Precondition && k != lode.Conflict {
			return rev, err
		}
	}
	return 0, lode.Errorf(lode.Conflict, "register %s changes all the time", key)
}

// again resets what a new run counts anew. What was done is counted again from
// the checkpoint; what it took is not forgotten.
func again(j Job) Job {
	j.State = lode.StateQueued
	j.Started, j.Running = time.Time{}, 0
	return j
}

// superseded ends these Jobs: others were opened over the same registers.
func (s *Jobs) superseded(id, by string) {
	s.mu.Lock()
	if s.closed == nil {
		s.closed = errTaken
		s.cfg.Log.Warn("another node coordinates the jobs now; this one stops", "job", id, "coordinator", by)
	}
	s.mu.Unlock()
	s.stop(errTaken)
}

// Close stops the running jobs, which are resumed at the next start, and waits
// for them. Idempotent.
func (s *Jobs) Close() error {
	s.mu.Lock()
	if s.closed == nil {
		s.closed = errStopping
	}
	s.mu.Unlock()
	s.stop(errStopping)
	s.wg.Wait()
	return nil
}

func key(ns lode.Namespace, id string) string { return string(ns) + "/" + id }

func parseJob(reg data.Register) (Job, error) {
	var j Job
	if err := json.Unmarshal(reg.Value, &j); err != nil {
		return j, lode.Errorf(lode.Damaged, "the register of job %s: %w", reg.Key, err)
	}
	return j, nil
}

func digestOf(b []byte) lode.Digest { return blake3.Sum256(b) }

// Start accepts a job: it is durable when Start returns, and runs.
func (s *Jobs) Start(ctx context.Context, spec Spec) (Job, error) {
	m, d, err := s.cfg.Datasets.Manifest(ctx, spec.Namespace, spec.Dataset, spec.Version)
	if err != nil {
		return Job{}, err
	}
	j := Job{ID: newID(), Namespace: spec.Namespace, State: lode.StateQueued, What: spec.What, Dataset: spec.Dataset,
		Version: m.Version, Manifest: d, Reduce: spec.Reduce, Limit: max(0, spec.Limit), Retries: cmp.Or(spec.Retries, 2),
		Attempt: cmp.Or(spec.Attempt, 10*time.Minute), Where: spec.Where, Labels: spec.Labels, Created: s.cfg.Now().UTC(),
		Coordinator: s.self, Shards: len(m.Shards), Bytes: m.Bytes, Records: m.Count}
	if _, err := j.code().reducer(s.cfg.Runner); err != nil {
		return Job{}, err
	}
	if nodes := s.cfg.Cluster.Nodes(); len(j.Where) > 0 && len(matching(nodes, j.Where)) == 0 {
		return Job{}, errNowhere(nodes, j.Where)
	}
	value, err := json.Marshal(j)
	if err != nil {
		return Job{}, lode.Errorf(lode.Internal, "write job %s: %w", j.ID, err)
	}
	if err := s.room(); err != nil {
		return Job{}, err
	}
	rev, err := s.cfg.Registers.Swap(ctx, key(j.Namespace, j.ID), value, 0)
	if err != nil {
		return Job{}, err
	}
	if err := s.mine(ctx, key(j.Namespace, j.ID)); err != nil {
		return Job{}, err
	}
	if !s.launch(j, rev) {
		return Job{}, refusal(errStopping) // it is run at the next start
	}
	return j, nil
}

// mine checks that nobody else coordinates since a job was written. Who was
// first is then plain: others that open Jobs after this see the job. If they
// are there already and have not seen it, it is withdrawn.
func (s *Jobs) mine(ctx context.Context, key string) error {
	value, _, ok, err := s.cfg.Registers.Get(ctx, coordinator)
	if err != nil {
		return err
	}
	if ok && string(value) == s.self {
		return nil
	}
	s.superseded("", string(value))
	_, err = s.change(ctx, key, func(value []byte) ([]byte, error) {
		j, err := parseJob(data.Register{Key: key, Value: value})
		if value == nil || err != nil || j.Coordinator != s.self {
			return nil, nil // they have it
		}
		j.to(lode.StateCancelled, s.cfg.Now(), nil)
		return json.Marshal(j)
	})
	if err != nil {
		return err
	}
	return refusal(errTaken)
}

// room refuses a job that would be one too many.
func (s *Jobs) room() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed != nil {
		return refusal(s.closed)
	}
	if len(s.active) >= s.cfg.MaxQueued {
		e := lode.Errorf(lode.Overloaded, "%d jobs are queued or running", len(s.active)).WithHint("wait for some, or cancel them")
		e.RetryAfter = time.Second
		return e
	}
	return nil
}

// refusal is what callers hear of Jobs that are closed.
func refusal(why error) error {
	e := lode.Errorf(lode.Unavailable, "jobs: %w", why).WithHint("ask again: another node goes on with them")
	e.RetryAfter = time.Second
	return e
}

// launch runs a job in a goroutine that Close waits for.
func (s *Jobs) launch(j Job, rev uint64) bool {
	r := &run{jobs: s, id: j.ID, done: make(chan struct{}), job: j, rev: rev, changed: make(chan struct{}),
		shares: map[lode.NodeID]*NodeShare{}, flying: map[*flight]bool{}, pending: map[place]packed{}, saved: map[place]saved{}}
	for _, n := range j.Nodes {
		r.shares[n.Node] = &n
	}
	ctx, cancel := context.WithCancelCause(s.ctx)
	r.cancel = cancel
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed != nil {
		cancel(nil)
		return false
	}
	s.active[key(j.Namespace, j.ID)] = r
	s.wg.Go(func() {
		select {
		case s.turns <- struct{}{}:
			defer func() { <-s.turns }()
		case <-ctx.Done():
		}
		if r.work(ctx) != stopped {
			s.mu.Lock()
			delete(s.active, key(j.Namespace, j.ID))
			s.mu.Unlock()
		}
	})
	return true
}

// fly counts groups that are given to a node, over all jobs; flights are those
// now.
func (s *Jobs) fly(node lode.NodeID, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flying[node] += n; s.flying[node] == 0 {
		delete(s.flying, node)
	}
}

func (s *Jobs) flights() map[lode.NodeID]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.flying)
}

// find returns the run of an unfinished job, or the record of one that ended.
func (s *Jobs) find(ctx context.Context, ns lode.Namespace, id string) (*run, Job, error) {
	s.mu.Lock()
	r := s.active[key(ns, id)]
	s.mu.Unlock()
	if r != nil {
		return r, r.snapshot(), nil
	}
	value, rev, ok, err := s.cfg.Registers.Get(ctx, key(ns, id))
	if err != nil {
		return nil, Job{}, err
	}
	if !ok {
		return nil, Job{}, lode.Errorf(lode.NotFound, "there is no job %s in namespace %s", id, ns).WithHint("lode jobs ls lists them")
	}
	j, err := parseJob(data.Register{Key: key(ns, id), Value: value, Rev: rev})
	return nil, j, err
}

// Get describes a job now.
func (s *Jobs) Get(ctx context.Context, ns lode.Namespace, id string) (Job, error) {
	_, j, err := s.find(ctx, ns, id)
	return j, err
}

// Wait waits for a job's end; Unavailable if the node stops before it.
func (s *Jobs) Wait(ctx context.Context, ns lode.Namespace, id string) (Job, error) {
	r, j, err := s.find(ctx, ns, id)
	if err != nil || r == nil {
		return j, err
	}
	select {
	case <-r.done:
	case <-ctx.Done():
		return r.snapshot(), lode.Errorf(lode.Deadline, "wait for job %s: %w", id, ctx.Err())
	}
	if j = r.snapshot(); !j.Over() {
		return j, s.ended()
	}
	return j, nil
}

// ended says why a job that is not over does not run here any more.
func (s *Jobs) ended() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed == nil {
		return refusal(errStopping)
	}
	return refusal(s.closed)
}

// Watch calls see with the job now, at changes (at most some ten times a
// second), and at its end. An error of see ends it.
func (s *Jobs) Watch(ctx context.Context, ns lode.Namespace, id string, see func(Job) error) error {
	r, j, err := s.find(ctx, ns, id)
	if err != nil {
		return err
	}
	if r == nil {
		return see(j)
	}
	for {
		r.mu.Lock()
		changed := r.changed
		r.mu.Unlock()
		j := r.snapshot()
		if err := see(j); err != nil || j.Over() {
			return err
		}
		select {
		case <-changed:
		case <-r.done:
		case <-ctx.Done():
			return nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-r.done:
			if j := r.snapshot(); !j.Over() {
				return s.ended()
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// List returns the jobs of a namespace, the newest first; of all for "".
func (s *Jobs) List(ctx context.Context, ns lode.Namespace) ([]Job, error) {
	prefix := ""
	if ns != "" {
		prefix = string(ns) + "/"
	}
	regs, err := s.cfg.Registers.List(ctx, prefix)
	if err != nil {
		return nil, err
	}
	out := make([]Job, 0, len(regs))
	for _, reg := range regs {
		if strings.HasPrefix(reg.Key, "-") {
			continue
		}
		j, err := parseJob(reg)
		if err != nil {
			return nil, err
		}
		s.mu.Lock()
		r := s.active[reg.Key]
		s.mu.Unlock()
		if r != nil {
			j = r.snapshot()
		}
		out = append(out, j)
	}
	slices.SortFunc(out, func(a, b Job) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.ID, b.ID))
	})
	return out, nil
}

// Cancel ends a job and waits until nothing of it runs. Cancelling it twice is
// no error; cancelling one that is done or failed is a Conflict.
func (s *Jobs) Cancel(ctx context.Context, ns lode.Namespace, id string) (Job, error) {
	r, j, err := s.find(ctx, ns, id)
	if err != nil {
		return j, err
	}
	if r != nil {
		r.cancel(errCancelled)
		if j, err = s.Wait(ctx, ns, id); err != nil {
			return j, err
		}
	}
	if j.State != lode.StateCancelled {
		return j, lode.Errorf(lode.Conflict, "job %s is %s already", id, j.State)
	}
	return j, nil
}

// Body returns the bytes of a result. A job that failed gives its error; one
// that has not ended is a Conflict.
func (s *Jobs) Body(ctx context.Context, ns lode.Namespace, id string) ([]byte, *Result, error) {
	j, err := s.Get(ctx, ns, id)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case j.State == lode.StateFailed:
		return nil, nil, j.Error
	case j.State == lode.StateCancelled:
		return nil, nil, lode.Errorf(lode.Cancelled, "job %s was cancelled", id)
	case j.Result == nil:
		return nil, nil, lode.Errorf(lode.Conflict, "job %s is %s", id, j.State).WithHint("lode jobs wait %s", id)
	case j.Result.Size <= inlineMax:
		return j.Result.Inline, j.Result, nil
	}
	b, err := s.cfg.Store.ReadAll(ctx, j.Result.Digest, j.Result.Size)
	return b, j.Result, err
}
