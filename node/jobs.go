package node

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/zeebo/blake3"

	"lode"
	"lode/api"
	"lode/catalog"
	"lode/data/job"
	"lode/data/words"
	"lode/engine"
	"lode/invoke"
	"lode/link"
)

// jobRunner runs the guests of jobs. A shard is an invocation like any other,
// admitted by the same rules, with the shard as its window; so a job competes
// fairly with requests, and its guests may do what functions may.
type jobRunner struct {
	invoke func() *invoke.Service

	mu   sync.Mutex
	revs map[lode.Name]*jobRev
}

// jobRev is the revision under which one job function runs.
type jobRev struct {
	rev  *lode.Revision
	used time.Time
}

// jobName begins the names of job functions. No deployed name has a colon.
const jobName = "job:"

func isJob(rev *lode.Revision) bool { return strings.HasPrefix(string(rev.Name), jobName) }

// revision makes, or finds, the revision of a job's code. Its name is the
// digest of its content, so equal code shares a pool.
func (r *jobRunner) revision(ns lode.Namespace, w job.What) *lode.Revision {
	f := *w.Function
	f.Export = w.Handler
	f.Limits.Total = 7 * 24 * time.Hour // the attempt's deadline bounds it
	b, err := json.Marshal(f)
	if err != nil {
		panic(err) // plain data
	}
	sum := blake3.Sum256(append([]byte(ns+"\n"), b...))
	name := lode.Name(jobName + hex.EncodeToString(sum[:8]))
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	jr := r.revs[name]
	if jr == nil {
		jr = &jobRev{rev: &lode.Revision{Namespace: ns, App: "job", Name: name, Number: 1, Digest: sum, Created: now, Function: f}}
		r.revs[name] = jr
	}
	jr.used = now
	return jr.rev
}

// lookup finds a job's revision by name.
func (r *jobRunner) lookup(name lode.Name) *lode.Revision {
	r.mu.Lock()
	defer r.mu.Unlock()
	if jr := r.revs[name]; jr != nil {
		return jr.rev
	}
	return nil
}

// forget drops the revisions that were not used for a while and returns them.
func (r *jobRunner) forget(before time.Time) (old []*lode.Revision) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, jr := range r.revs {
		if jr.used.Before(before) {
			old = append(old, jr.rev)
			delete(r.revs, name)
		}
	}
	return old
}

// resolver is the catalog as invoke sees it: with the functions of jobs.
type resolver struct {
	*catalog.Catalog
	jobs *jobRunner
}

func (r resolver) Resolve(ns lode.Namespace, name lode.Name, alias string, rnd uint32) (*lode.Revision, error) {
	if strings.HasPrefix(string(name), jobName) {
		if rev := r.jobs.lookup(name); rev != nil && rev.Namespace == ns {
			return rev, nil
		}
		return nil, lode.Errorf(lode.NotFound, "no job runs %s", name)
	}
	return r.Catalog.Resolve(ns, name, alias, rnd)
}

// shardAnswer is the answer to a job's invocation; it also brings the shard.
type shardAnswer struct {
	lode.Buffered
	file *os.File // nil: no window
	size int64
}

// Windows gives the engine the shard, or nothing.
func (a *shardAnswer) Windows() engine.Windows {
	if a.file == nil {
		return nil
	}
	return shardWindows{a}
}

type shardWindows struct{ a *shardAnswer }

func (w shardWindows) File() (uintptr, int64) { return w.a.file.Fd(), w.a.size }
func (w shardWindows) Path() string           { return w.a.file.Name() }
func (w shardWindows) ReadAt(p []byte, off int64) (int, error) {
	return w.a.file.ReadAt(p, off)
}

var _ engine.Windows = shardWindows{}

// maxPartial bounds one partial result.
const maxPartial = 1 << 30

func (r *jobRunner) run(ctx context.Context, ns lode.Namespace, w job.What, req *lode.Request, a *shardAnswer) (lode.Usage, error) {
	rev := r.revision(ns, w)
	req.Namespace, req.Function, req.Handler, req.Attempt = ns, rev.Name, w.Handler, max(1, req.Attempt)
	a.Max = maxPartial
	out, err := r.invoke().Invoke(ctx, req, a)
	if err == nil && a.Status/100 != 2 {
		err = lode.Errorf(lode.Crashed, "the job answered %d: %.200s", a.Status, a.Msg.Body).WithHint("a job's map answers 200")
	}
	return out.Usage, err
}

// Map runs the code over one shard.
func (r *jobRunner) Map(ctx context.Context, t job.Task) (job.Partial, lode.Usage, error) {
	f, err := os.Open(t.Path)
	if err != nil {
		return job.Partial{}, lode.Usage{}, lode.Errorf(lode.Damaged, "open shard %d: %w", t.Index, err)
	}
	defer f.Close()
	a := &shardAnswer{file: f, size: t.Size}
	req := &lode.Request{Trigger: lode.TriggerJob, Deadline: t.Deadline, Attempt: t.Attempt + 1, Head: []lode.Pair{
		{Key: ":shard", Value: strconv.Itoa(t.Index)}, {Key: ":shard-bytes", Value: strconv.FormatInt(t.Size, 10)},
		{Key: ":records", Value: string(t.Records)}, {Key: ":dataset", Value: string(t.Dataset)}, {Key: ":version", Value: strconv.Itoa(t.Version)}}}
	if t.What.Function.Contract == lode.ContractCommand { // the shard is its standard input
		req.Stream = io.NewSectionReader(f, 0, t.Size)
	}
	u, err := r.run(ctx, t.Namespace, t.What, req, a)
	return job.Partial{Body: a.Msg.Body, ContentType: a.Msg.Get("content-type")}, u, err
}

// Merge folds two partials with the code's own merge.
func (r *jobRunner) Merge(ctx context.Context, ns lode.Namespace, w job.What, a, b []byte) ([]byte, error) {
	body := binary.LittleEndian.AppendUint32(make([]byte, 0, 4+len(a)+len(b)), uint32(len(a)))
	body = append(append(body, a...), b...)
	ans := &shardAnswer{}
	_, err := r.run(ctx, ns, w, bodied(lode.TriggerMerge, body), ans)
	return ans.Msg.Body, err
}

// Keep asks a filter of the built-in word count.
func (r *jobRunner) Keep(ctx context.Context, ns lode.Namespace, w job.What, batch [][]byte) ([]bool, error) {
	ans := &shardAnswer{}
	if _, err := r.run(ctx, ns, w, bodied(lode.TriggerCall, words.Question(batch)), ans); err != nil {
		return nil, err
	}
	return words.Answer(ans.Msg.Body, len(batch))
}

// bodied is a request with a body: what is over the inline bound streams.
func bodied(t lode.Trigger, body []byte) *lode.Request {
	const inline = 64 << 10
	req := &lode.Request{Trigger: t, Body: body}
	if len(body) > inline {
		req.Body, req.Stream = nil, bytes.NewReader(body)
	}
	return req
}

var _ job.Runner = (*jobRunner)(nil)

// newJobs opens what coordinates jobs; only the keeper has it.
func (n *Node) newJobs(ctx context.Context) (*job.Jobs, error) {
	regs, err := n.bus.Table(ctx, "jobs")
	if err != nil {
		return nil, err
	}
	return job.Open(ctx, job.Config{Store: n.shards, Registers: registers{regs}, Datasets: n.data, Runner: n.runner, Cluster: workers{n}, Deliver: jobs{n}.deliver, Log: n.cfg.Logger})
}

// coordinator is this node's jobs if it is the keeper, else the keeper's door.
func (n *Node) coordinator(ctx context.Context, ns lode.Namespace) (*job.Jobs, *api.Client, error) {
	for began := time.Now(); ; wait(ctx, 50*time.Millisecond) {
		keeper, own := n.seat.who()
		switch {
		case own != nil:
			return own, nil, nil
		case keeper != "" && keeper != n.fleet.id && !local(ctx):
			return nil, n.client(keeper, ns), nil
		case n.hopeless(began):
			return nil, nil, noMajority()
		case time.Since(began) >= keeperWait || ctx.Err() != nil:
			return nil, nil, noKeeper()
		}
	}
}

// coordinate does something with the jobs, here or at the keeper. Where the
// keeper is lost meanwhile it waits for the next one and does it again: always
// if it only reads, else if nothing of it was sent.
func (n *Node) coordinate(ctx context.Context, ns lode.Namespace, reads bool, here func(*job.Jobs) error, there func(*api.Client) error) error {
	for began := time.Now(); ; wait(ctx, 100*time.Millisecond) {
		own, far, err := n.coordinator(ctx, ns)
		if err != nil {
			return err
		}
		if own != nil {
			return here(own)
		}
		err = there(far)
		again := errors.Is(err, link.ErrNotSent) || reads && lode.KindOf(err) == lode.Unavailable
		switch {
		case !again || time.Since(began) >= 2*keeperWait || ctx.Err() != nil:
			return err
		case n.hopeless(began):
			return noMajority()
		}
	}
}

// hopeless reports whether no keeper is to be expected by who waits since then:
// without a majority of the bus none is chosen.
func (n *Node) hopeless(since time.Time) bool {
	return time.Since(since) >= keeperHope && !n.health().Quorum
}

// keeperHope is how long a request waits where the bus has no majority: it may
// have been gone for a moment only.
const keeperHope = 2500 * time.Millisecond

// keeperWait is how long a request waits for a keeper.
const keeperWait = 5 * time.Second

// jobs is api.Jobs over data/job.
type jobs struct{ *Node }

// CreateJob resolves what the job runs, compiles inline code, and starts it.
func (j jobs) CreateJob(ctx context.Context, ns lode.Namespace, s api.JobSpec) (api.Job, error) {
	var out api.Job
	err := j.coordinate(ctx, ns, false, func(own *job.Jobs) (err error) { out, err = j.create(ctx, own, ns, s); return err },
		func(far *api.Client) (err error) { out, err = far.CreateJob(ctx, s); return err })
	return out, err
}

func (j jobs) create(ctx context.Context, own *job.Jobs, ns lode.Namespace, s api.JobSpec) (api.Job, error) {
	w, err := j.what(ctx, ns, s)
	if err != nil {
		return api.Job{}, err
	}
	spec := job.Spec{Namespace: ns, What: w, Dataset: s.Dataset, Version: s.Version, Reduce: s.Reduce, Limit: s.Limit, Retries: s.Retries, Where: s.Where, Labels: map[string]string{}}
	if spec.Reduce == "" && w.Function != nil && w.Builtin == "" {
		spec.Reduce = reduceOf(w)
	}
	if s.Into != "" {
		if e, ok := j.catalog.Lookup(ns, s.Into); ok && e.Dataset == nil {
			return api.Job{}, lode.Errorf(lode.Conflict, "%s is a %s of app %s", s.Into, e.Kind, e.App).WithHint("choose another name for the dataset")
		}
		spec.Labels["into"] = string(s.Into)
	}
	for _, old := range j.runner.forget(time.Now().Add(-10 * time.Minute)) {
		j.pools.drop(old)
	}
	v, err := own.Start(ctx, spec)
	if err != nil {
		return api.Job{}, err
	}
	return j.wire(v), nil
}

// reduceOf is what the code says: the function's own reduce, else the guest's
// merge if the job brings one.
func reduceOf(w job.What) string {
	if w.Function.Reduce != "" {
		return w.Function.Reduce
	}
	if ex := w.Function.Exports; ex != nil {
		for _, e := range ex.Jobs {
			if e.Name == w.Handler && e.Reduce != "" {
				return e.Reduce
			}
		}
	}
	return ""
}

func (j jobs) what(ctx context.Context, ns lode.Namespace, s api.JobSpec) (job.What, error) {
	if builtin, filter, ok, err := job.ParseBuiltin(string(s.Function)); ok {
		w := job.What{Label: string(s.Function), Builtin: builtin}
		if err != nil || filter == "" && s.Inline == nil {
			return w, err
		}
		s.Function = lode.Name(filter)
		f, err := j.code(ctx, ns, s)
		w.Function, w.Handler = f.Function, f.Handler
		return w, err
	}
	w, err := j.code(ctx, ns, s)
	if err != nil {
		return w, err
	}
	if ex := w.Function.Exports; w.Function.Contract == lode.ContractHandler && ex != nil && len(ex.Jobs) == 0 && s.Reduce == "" && w.Function.Reduce == "" {
		return w, lode.Errorf(lode.Invalid, "%s exports no job", w.Label).WithHint("register one with lode.Job, or `export const job`")
	}
	return w, nil
}

// code finds the code that is deployed, or compiles what came with the job.
func (j jobs) code(ctx context.Context, ns lode.Namespace, s api.JobSpec) (job.What, error) {
	if s.Inline != nil {
		app := lode.App{Name: "job", Functions: map[lode.Name]lode.Function{"job": *s.Inline}}
		if err := j.pools.compile(ctx, &app); err != nil {
			return job.What{}, err
		}
		f := app.Functions["job"]
		if len(s.OKExit) > 0 {
			f.OKExit = s.OKExit
		}
		return job.What{Label: "inline", Function: &f, Handler: orWord(s.Handler, f.Export)}, nil
	}
	rev, err := j.catalog.Resolve(ns, s.Function, s.Alias, 0)
	if err != nil {
		return job.What{}, err
	}
	f := rev.Function
	if len(s.OKExit) > 0 {
		f.OKExit = s.OKExit
	}
	return job.What{Label: string(rev.Name) + "@" + strconv.Itoa(rev.Number), Function: &f, Handler: orWord(s.Handler, f.Export)}, nil
}

// deliver makes the result of a job the dataset that it is meant for. After a
// crash it may be put twice, as two versions of the same bytes.
func (j jobs) deliver(ctx context.Context, v job.Job, result []byte) error {
	into := lode.Name(v.Labels["into"])
	if into == "" {
		return nil
	}
	one := &oneFile{name: string(into), size: int64(len(result)), r: bytes.NewReader(result)}
	if _, err := datasets(j).PutDataset(ctx, v.Namespace, into, api.PutOptions{Records: lode.RecordsLines}, one); err != nil {
		return named(err, "the result as dataset %s", into)
	}
	return nil
}

// oneFile is an upload of one file.
type oneFile struct {
	name string
	size int64
	r    io.Reader
}

// Next yields the file once.
func (o *oneFile) Next() (string, int64, io.Reader, error) {
	r := o.r
	if r == nil {
		return "", 0, nil, io.EOF
	}
	o.r = nil
	return o.name, o.size, r, nil
}

func (j jobs) wire(v job.Job) api.Job {
	out := api.Job{ID: v.ID, State: v.State, Function: v.What.Label, Dataset: v.Dataset, Version: v.Version, Reduce: v.Reduce, Into: lode.Name(v.Labels["into"]),
		Created: v.Created, Ended: v.Ended, Shards: v.Shards, Done: v.Done, Running: v.Running, Retried: v.Retried, Bytes: v.Bytes, Read: v.Read,
		Moved: v.Moved(), CPU: v.CPU, Error: v.Error}
	for _, k := range v.Nodes {
		out.Nodes = append(out.Nodes, string(k.Node))
		out.Shares = append(out.Shares, api.JobShare{Node: string(k.Node), Shards: k.Shards, Retried: k.Retried + k.Lost, Read: k.Read, Moved: k.Fetched + k.Partial, Lost: k.Lost > 0})
	}
	if !v.Started.IsZero() {
		end := v.Ended
		if end.IsZero() {
			end = time.Now()
		}
		out.Wall = end.Sub(v.Started)
	}
	if v.Result != nil {
		out.ResultLen = v.Result.Size
	}
	return out
}

func (j jobs) ListJobs(ctx context.Context, ns lode.Namespace, p api.Page) (out api.List[api.Job], err error) {
	err = j.coordinate(ctx, ns, true, func(own *job.Jobs) (err error) { out, err = j.list(ctx, own, ns, p); return err },
		func(far *api.Client) (err error) { out, err = far.ListJobs(ctx, p); return err })
	return out, err
}

func (j jobs) list(ctx context.Context, own *job.Jobs, ns lode.Namespace, p api.Page) (api.List[api.Job], error) {
	vs, err := own.List(ctx, ns)
	if err != nil {
		return api.List[api.Job]{}, err
	}
	slices.SortFunc(vs, func(a, b job.Job) int { return b.Created.Compare(a.Created) })
	at := map[string]int{}
	all := make([]api.Job, len(vs))
	for i, v := range vs {
		at[v.ID] = i
		all[i] = j.wire(v)
	}
	if i, ok := at[p.After]; ok {
		all = all[i+1:]
	}
	out := api.List[api.Job]{Items: all}
	if p.Limit > 0 && len(all) > p.Limit {
		out.Items, out.Next = all[:p.Limit], all[p.Limit-1].ID
	}
	return out, nil
}

func (j jobs) GetJob(ctx context.Context, ns lode.Namespace, id string, wait time.Duration) (out api.Job, err error) {
	err = j.coordinate(ctx, ns, true, func(own *job.Jobs) (err error) { out, err = j.get(ctx, own, ns, id, wait); return err },
		func(far *api.Client) (err error) { out, err = far.GetJob(ctx, id, wait); return err })
	return out, err
}

func (j jobs) get(ctx context.Context, own *job.Jobs, ns lode.Namespace, id string, wait time.Duration) (api.Job, error) {
	if wait > 0 {
		wctx, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		if _, err := own.Wait(wctx, ns, id); err != nil && wctx.Err() == nil {
			return api.Job{}, err
		}
	}
	v, err := own.Get(ctx, ns, id)
	return j.wire(v), err
}

func (j jobs) WatchJob(ctx context.Context, ns lode.Namespace, id string, see func(api.Job) error) error {
	return j.coordinate(ctx, ns, true, func(own *job.Jobs) error {
		return own.Watch(ctx, ns, id, func(v job.Job) error { return see(j.wire(v)) })
	}, func(far *api.Client) error { return far.WatchJob(ctx, id, see) })
}

func (j jobs) CancelJob(ctx context.Context, ns lode.Namespace, id string) (out api.Job, err error) {
	err = j.coordinate(ctx, ns, true, func(own *job.Jobs) error {
		v, err := own.Cancel(ctx, ns, id)
		out = j.wire(v)
		return err
	}, func(far *api.Client) (err error) { out, err = far.CancelJob(ctx, id); return err })
	return out, err
}

func (j jobs) JobResult(ctx context.Context, ns lode.Namespace, id string) (out api.Content, err error) {
	err = j.coordinate(ctx, ns, true, func(own *job.Jobs) error {
		b, r, err := own.Body(ctx, ns, id)
		if err != nil {
			return err
		}
		out = api.Content{Type: r.ContentType, Size: r.Size, Body: io.NopCloser(bytes.NewReader(b))}
		return nil
	}, func(far *api.Client) (err error) { out, err = far.JobResult(ctx, id); return err })
	return out, err
}

func (c cluster) explainJob(ctx context.Context, ns lode.Namespace, id string) (api.Explanation, error) {
	w, err := jobs(c).GetJob(ctx, ns, id, 0)
	if err != nil {
		return api.Explanation{}, err
	}
	out := api.Explanation{Ref: id, Kind: "job", Job: &w, Facts: map[string]string{}, Steps: []api.Step{}}
	out.Summary = strings.Join([]string{w.Function, "on", string(w.Dataset) + "@" + strconv.Itoa(w.Version), string(w.State)}, " ")
	for _, k := range w.Shares {
		text := fmt.Sprintf("node %s: %d shards, %s read in place, %s moved", k.Node, k.Shards, bytesText(k.Read), bytesText(k.Moved))
		why := ""
		if k.Retried > 0 {
			why = fmt.Sprintf("%d tried again", k.Retried)
		}
		if k.Lost {
			why += "; the node was lost"
		}
		out.Steps = append(out.Steps, api.Step{What: text, Why: strings.TrimPrefix(why, "; ")})
	}
	out.Facts["placement"] = "shards ran where they are, as far as nodes had room; the rest moved"
	out.Facts["read in place"] = bytesText(w.Read)
	out.Facts["moved"] = bytesText(w.Moved)
	out.Facts["reduce"] = w.Reduce
	return out, nil
}

var _ api.Jobs = jobs{}
