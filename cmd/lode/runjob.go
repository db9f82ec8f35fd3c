package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lode"
	"lode/api"
)

// jobRun is one lode run.
type jobRun struct {
	c      *cli
	client *api.Client
	spec   api.JobSpec
	out    string // file, or ""
	detach bool
}

func (c *cli) runCmd() *cobra.Command {
	r := &jobRun{c: c}
	var on, into string
	var version int
	var where []string
	cmd := &cobra.Command{
		Use:   "run WHAT --on DATASET",
		Short: "Run a function over the shards of a dataset",
		Long: `Run a function where the shards of a dataset are, and reduce the partial results.

WHAT is a deployed name, a folder, or a source file; what is not deployed is
built and shipped for this job alone. builtin:words counts words natively, and
builtin:words:FILTER keeps those that a function keeps. Ctrl-C cancels the job, Ctrl-C twice
leaves it running.

  lode run count --on mails
  lode run ./count --on mails --reduce merge --out words.json`,
		Args: exactly(1), ValidArgsFunction: c.completeNames(api.KindFunction),
		RunE: func(cmd *cobra.Command, args []string) error {
			if on == "" {
				return lode.Errorf(lode.Invalid, "--on is missing").WithHint("lode run %s --on DATASET; lode data ls lists datasets", args[0])
			}
			var err error
			if r.spec.Dataset, err = lode.ParseName(on); err != nil {
				return err
			}
			if into != "" {
				if r.spec.Into, err = lode.ParseName(into); err != nil {
					return err
				}
			}
			r.spec.Version = version
			if r.spec.Where, err = labels(where); err != nil {
				return err
			}
			if r.client, err = c.api(); err != nil {
				return err
			}
			if err := r.what(cmd.Context(), args[0]); err != nil {
				return err
			}
			return r.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&on, "on", "", "dataset")
	f.IntVar(&version, "version", 0, "version of the dataset (default: the newest)")
	f.StringVar(&r.spec.Reduce, "reduce", "", "sum, count, min, max, merge, concat, or a function (default: the code's own, else concat)")
	f.StringVar(&into, "into", "", "make the result a dataset")
	f.StringVar(&r.out, "out", "", "write the result to a file")
	f.BoolVar(&r.detach, "detach", false, "print the job's id and leave it running")
	f.IntVar(&r.spec.Limit, "limit", 0, "sandboxes at once (default: as many as cores)")
	f.IntVar(&r.spec.Retries, "retries", 0, "tries of a shard after the first (default 2, -1: none)")
	f.IntSliceVar(&r.spec.OKExit, "ok-exit", nil, "exit codes of a command that are no failure (default 0)")
	f.StringVar(&r.spec.Handler, "handler", "", "the job in a module with several")
	f.StringVar(&r.spec.Alias, "alias", "", "alias or revision of a deployed function")
	f.StringArrayVar(&where, "where", nil, "node label that must hold, as in zone=a")
	return cmd
}

func labels(list []string) (map[string]string, error) {
	var out map[string]string
	for _, s := range list {
		k, v, ok := strings.Cut(s, "=")
		if !ok || k == "" {
			return nil, lode.Errorf(lode.Invalid, "%q is no label", s).WithHint("want NAME=VALUE")
		}
		if out == nil {
			out = map[string]string{}
		}
		out[k] = v
	}
	return out, nil
}

// what finds out whether the word is deployed, or is to be built.
func (r *jobRun) what(ctx context.Context, word string) error {
	if strings.ContainsAny(word, " \t|") {
		return lode.Errorf(lode.Invalid, "this version of Lode runs no native programs such as %q yet", word).
			WithHint("build it for WASI and deploy it with run: [./prog.wasm, ...]; or run a folder, a file or a deployed name")
	}
	if filter, ok := strings.CutPrefix(word, "builtin:words:"); ok && isSource(filter) {
		r.spec.Function = "builtin:words"
		return r.inline(ctx, filter)
	}
	if strings.HasPrefix(word, "builtin:") {
		r.spec.Function = lode.Name(word)
		return nil
	}
	name, alias, _ := strings.Cut(word, "@")
	_, statErr := os.Stat(word)
	isPath := strings.ContainsAny(word, `/\`) || word == "." || statErr == nil && filepath.Ext(word) != ""
	if n, err := lode.ParseName(name); err == nil && !isPath {
		if statErr != nil || r.deployed(ctx, n) {
			r.spec.Function = n
			if alias != "" {
				r.spec.Alias = alias
			}
			return nil
		}
	} else if err != nil && !isPath && statErr != nil {
		return err
	}
	return r.inline(ctx, word)
}

func (r *jobRun) deployed(ctx context.Context, n lode.Name) bool {
	_, err := r.client.GetName(ctx, n)
	return err == nil
}

// isSource reports whether a word means a folder or a file rather than a name.
func isSource(word string) bool {
	_, err := os.Stat(word)
	return err == nil || strings.ContainsAny(word, `/\`)
}

// inline builds code for this job alone.
func (r *jobRun) inline(ctx context.Context, path string) error {
	d := deployment{c: r.c, client: r.client, path: path}
	if err := d.build(ctx); err != nil {
		return err
	}
	fns := d.app.Functions
	var names []string
	for n := range fns {
		names = append(names, string(n))
	}
	slices.Sort(names)
	pick := first(r.spec.Handler, string(d.app.Name))
	f, ok := fns[lode.Name(pick)]
	if !ok && len(names) == 1 && r.spec.Handler == "" {
		f, ok = fns[lode.Name(names[0])], true
	}
	if !ok {
		return lode.Errorf(lode.Invalid, "%s holds several functions", path).WithHint("say which: --handler %s", strings.Join(names, "|"))
	}
	f.Exports = nil // the node asks the module itself
	r.spec.Inline, r.spec.Handler = &f, f.Export
	return nil
}

// run starts the job and sees it to its end.
func (r *jobRun) run(ctx context.Context) error {
	j, err := r.client.CreateJob(ctx, r.spec)
	if err != nil {
		return err
	}
	if r.detach {
		t := &table{}
		t.add(j.ID)
		if err := r.c.show(j, t); err != nil {
			return err
		}
		r.c.hint("lode jobs wait %s waits for it", j.ID)
		return nil
	}
	if !api.Ended(j.State) {
		if j, err = r.c.watchJob(ctx, r.client, j); err != nil {
			return err
		}
	}
	return r.c.jobEnd(ctx, r.client, j, r.out)
}

// watchJob shows a job's progress until it ends. The first Ctrl-C cancels it;
// a second one within a second leaves it running.
func (c *cli) watchJob(ctx context.Context, client *api.Client, j api.Job) (api.Job, error) {
	c.release() // Ctrl-C is handled here from now on
	sigs := make(chan os.Signal, 2)
	signal.Notify(sigs, os.Interrupt)
	defer signal.Stop(sigs)
	watch, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	bar := c.newBar("job "+j.ID, int64(j.Shards), false)
	type ended struct {
		job api.Job
		err error
	}
	end := make(chan ended, 1)
	go func() {
		last := j
		err := client.WatchJob(watch, j.ID, func(now api.Job) error {
			last = now
			bar.set(int64(now.Done), int64(now.Shards), size(now.Read)+" read")
			return nil
		})
		end <- ended{last, err}
	}()
	var cancelAt <-chan time.Time
	for {
		select {
		case e := <-end:
			bar.end()
			return e.job, e.err
		case <-sigs:
			if cancelAt != nil {
				stop()
				<-end
				bar.end()
				c.say("job %s goes on: lode jobs wait %s, lode jobs cancel %s", j.ID, j.ID, j.ID)
				return j, exitCode(exitInterrupted)
			}
			bar.end()
			c.say("cancelling job %s; Ctrl-C again within a second leaves it running", j.ID)
			cancelAt = time.After(time.Second)
		case <-cancelAt:
			cancelAt = make(chan time.Time) // asked for; a later Ctrl-C still stops the waiting
			if _, err := client.CancelJob(watch, j.ID); err != nil && lode.KindOf(err) != lode.Conflict {
				stop()
				<-end
				bar.end()
				return j, err
			}
		}
	}
}

// jobEnd prints the result and the summary of a job that has ended.
func (c *cli) jobEnd(ctx context.Context, client *api.Client, j api.Job, out string) error {
	switch j.State {
	case lode.StateCancelled:
		return lode.Errorf(lode.Cancelled, "job %s was cancelled after %d of %d shards", j.ID, j.Done, j.Shards)
	case lode.StateFailed:
		e := j.Error
		if e == nil {
			e = lode.Errorf(lode.Crashed, "job %s failed", j.ID)
		}
		c.say("%s", summary(j))
		if e.Hint == "" {
			e.Hint = "lode jobs logs " + j.ID + " shows what it said"
		}
		if e.Kind != lode.Internal && e.Kind != lode.Damaged {
			c.printError(e)
			return exitCode(1)
		}
		return e
	}
	if c.machine() && out == "" && j.Into == "" {
		t := &table{}
		t.add(j.ID)
		return c.show(j, t)
	}
	if j.Into == "" {
		if err := c.jobResult(ctx, client, j.ID, out); err != nil {
			return err
		}
	}
	c.say("%s", summary(j))
	return nil
}

// jobResult copies a job's result to a file, or to stdout.
func (c *cli) jobResult(ctx context.Context, client *api.Client, id, out string) error {
	v, err := client.JobResult(context.WithoutCancel(ctx), id)
	if err != nil {
		return err
	}
	defer v.Body.Close()
	if out != "" {
		return writeFile(out, v.Body)
	}
	last := &lastByte{w: c.out}
	if _, err := io.Copy(last, v.Body); err != nil {
		return lode.AsError(err)
	}
	if last.n > 0 && last.b != '\n' {
		fmt.Fprintln(c.out)
	}
	return nil
}

// writeFile writes a file whole, or not at all.
func writeFile(path string, r io.Reader) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".lode-*")
	if err != nil {
		return lode.Errorf(lode.Invalid, "%w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = io.Copy(tmp, r)
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return lode.AsError(err)
	}
	if err := os.Chmod(tmp.Name(), 0o644); err != nil {
		return lode.Errorf(lode.Invalid, "%w", err)
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return lode.Errorf(lode.Invalid, "%w", err)
	}
	return nil
}

// summary is the last line of a job.
func summary(j api.Job) string {
	nodes := ""
	if n := len(j.Nodes); n == 1 {
		nodes = " on 1 node"
	} else if n > 1 {
		nodes = fmt.Sprintf(" on %d nodes", n)
	}
	rate := ""
	if s := j.Wall.Seconds(); s > 0 && j.Read > 0 {
		rate = fmt.Sprintf(", %s/s", size(int64(float64(j.Read)/s)))
	}
	retried := ""
	if j.Retried > 0 {
		retried = fmt.Sprintf(", %d tries repeated", j.Retried)
	}
	return fmt.Sprintf("job %s %s: %d/%d shards%s, %s read in place, %s moved%s, %s%s",
		j.ID, j.State, j.Done, j.Shards, nodes, size(j.Read), size(j.Moved), retried, span(j.Wall), rate)
}
