package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lode"
	"lode/api"
	"lode/cmd/build"
	"lode/cmd/spec"
)

// deployment is one way from a folder to a node; deploy, dev and run share it.
type deployment struct {
	c       *cli
	client  *api.Client
	path    string
	envFile string
	quiet   bool // dev says what it does itself

	declared *spec.Declared
	app      lode.App
	watch    []string // what the builds read
	uploaded int64    // bytes that were missing
}

func (c *cli) deployCmd() *cobra.Command {
	var o api.DeployOptions
	var d deployment
	var alias string
	var weight int
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "deploy [DIR|FILE]",
		Short: "Build a folder and put it in service",
		Long: `Build a folder (or one source file, or a lode.yaml) and put what it declares in service.

The plan comes first: + new, ~ changed, - removed, = as it is. State, queues and
datasets are never removed by a deploy.`,
		Args: between(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.api()
			if err != nil {
				return err
			}
			d.c, d.client, d.path = c, client, first(args...)
			ctx, cancel := within(cmd.Context(), wait)
			defer cancel()
			if err := d.build(ctx); err != nil {
				return err
			}
			if d.app.Alias, d.app.Weight, err = aliasFlags(alias, weight, cmd.Flags().Changed("weight")); err != nil {
				return err
			}
			return d.deploy(ctx, o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.Plan, "plan", false, "show the plan and change nothing")
	f.BoolVar(&o.Prune, "prune", false, "remove functions of the app that are no longer declared")
	f.StringVar(&alias, "alias", "", "make the new revisions targets of this alias, not of live")
	f.IntVar(&weight, "weight", 100, "percent of the alias's calls that they get")
	f.StringVar(&d.envFile, "env-file", "", "where ${NAME} is looked up after the environment (default .env)")
	f.DurationVar(&wait, "wait", 0, "give up after this long")
	return cmd
}

func within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, d)
}

func aliasFlags(alias string, weight int, weighted bool) (string, int, error) {
	if weight < 1 || weight > 100 {
		return "", 0, lode.Errorf(lode.Invalid, "--weight is %d; want 1 to 100", weight)
	}
	if alias != "" {
		if _, err := lode.ParseName(alias); err != nil {
			return "", 0, err
		}
		return alias, weight, nil
	}
	if weighted {
		return lode.LiveAlias, weight, nil
	}
	return "", 0, nil
}

// build reads what is declared, builds it, uploads what the node lacks, and
// asks the node what the modules say of themselves.
func (d *deployment) build(ctx context.Context) error {
	var err error
	if d.declared, err = spec.Load(spec.Options{Path: d.path, EnvFile: d.envFile, Lookup: d.c.lookup()}); err != nil {
		return err
	}
	d.watch = nil
	built := map[string][]spec.Artifact{}
	for _, s := range d.declared.Sources() {
		arts, err := d.buildOne(ctx, s)
		if err != nil {
			return err
		}
		built[s.Key()] = arts
	}
	d.app, err = d.declared.Complete(built)
	return err
}

// lookup finds variables through the command's own environment.
func (c *cli) lookup() func(string) (string, bool) {
	return func(name string) (string, bool) {
		v := c.getenv(name)
		return v, v != ""
	}
}

func (d *deployment) buildOne(ctx context.Context, s spec.Source) ([]spec.Artifact, error) {
	start := time.Now()
	src := build.Source{Path: s.Path, Build: s.Build}
	if s.Path == d.declared.Source {
		src.Name = string(d.declared.Name)
	}
	arts, err := build.Build(ctx, src)
	if err != nil {
		if d.declared.Implicit && d.dataOnly(s) {
			return nil, nil
		}
		return nil, err
	}
	var out []spec.Artifact
	for _, a := range arts {
		if !a.Cached && time.Since(start) > 200*time.Millisecond && !d.quiet {
			d.c.say("built %s (%s) in %s", a.Name, a.Language, span(time.Since(start)))
		}
		d.watch = append(d.watch, a.Watch...)
		if err := d.upload(ctx, a); err != nil {
			return nil, err
		}
		m, err := d.client.DescribeBlob(ctx, a.Digest)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", a.Name, err)
		}
		out = append(out, spec.Artifact{Name: a.Name, Digest: a.Digest, Size: int64(len(a.Wasm)), Language: a.Language, Contract: m.Contract, Exports: m.Description})
	}
	return out, nil
}

// dataOnly reports whether a file that names no functions lies in a folder
// without code: an app of queues and datasets.
func (d *deployment) dataOnly(s spec.Source) bool {
	if d.declared.File == "" || len(d.declared.Queues)+len(d.declared.Datasets) == 0 {
		return false
	}
	return !holdsSource(s.Path)
}

// holdsSource reports whether a folder, or a folder in it, has source files.
func holdsSource(dir string) bool {
	for _, pattern := range []string{"*", "*/*"} {
		files, _ := filepath.Glob(filepath.Join(dir, pattern))
		if slices.ContainsFunc(files, func(f string) bool { return slices.Contains(spec.SourceSuffixes(), filepath.Ext(f)) }) {
			return true
		}
	}
	return false
}

// upload sends an artifact that the node lacks.
func (d *deployment) upload(ctx context.Context, a build.Artifact) error {
	has, err := d.client.HasBlob(ctx, a.Digest)
	if err != nil || has {
		return err
	}
	bar := d.c.newBar("upload "+string(a.Name), int64(len(a.Wasm)), true)
	defer bar.end()
	d.uploaded += int64(len(a.Wasm))
	return d.client.PutBlob(ctx, a.Digest, int64(len(a.Wasm)), &countingReader{bytes.NewReader(a.Wasm), bar.add})
}

// countingReader tells how much was read.
type countingReader struct {
	r   io.Reader
	add func(int64)
}

func (r *countingReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.add(int64(n))
	return n, err
}

// deploy shows the plan, applies it, and fills datasets that were declared
// with files and are empty.
func (d *deployment) deploy(ctx context.Context, o api.DeployOptions) error {
	c := d.c
	plan, err := d.client.Deploy(ctx, d.app, api.DeployOptions{Plan: true, Prune: o.Prune})
	if err != nil {
		return err
	}
	if o.Plan {
		return c.show(plan, planTable(plan))
	}
	if !c.machine() {
		if err := c.show(plan, planTable(plan)); err != nil {
			return err
		}
	}
	o.IfMatch = plan.ETag
	done, err := d.client.Deploy(ctx, d.app, o)
	if err != nil {
		return err
	}
	if c.machine() {
		err = c.show(done, planTable(done))
	}
	if err == nil {
		err = d.fill(ctx)
	}
	d.remind(ctx)
	return err
}

func planTable(p api.Plan) *table {
	t := &table{none: "nothing is declared"}
	for _, ch := range p.Changes {
		rev := ""
		if ch.Rev > 0 {
			rev = fmt.Sprintf("rev %d", ch.Rev)
		}
		if ch.Name == "" { // about the app as a whole
			t.add("! " + first(ch.Hint, ch.Detail))
			continue
		}
		t.add(fmt.Sprintf("%s %s %s", ch.Op, ch.Kind, ch.Name), changeDetail(ch), rev, first(ch.URLs...), ch.Hint)
		for _, u := range ch.URLs[min(1, len(ch.URLs)):] {
			t.add("", "", "", u, "")
		}
	}
	return t
}

// changeDetail is what a change is about, with the size of its code.
func changeDetail(ch api.Change) string {
	if ch.Kind != api.KindFunction && ch.Kind != api.KindAgent || ch.Size == 0 || ch.Op == api.OpRemove {
		return ch.Detail
	}
	return strings.TrimPrefix(ch.Detail+", wasm, "+size(ch.Size), ", ")
}

// remind tells about secrets that were declared and have no value.
func (d *deployment) remind(ctx context.Context) {
	want := map[string][]string{}
	for _, of := range []map[lode.Name]lode.Function{d.app.Functions, d.app.Agents} {
		for name, f := range of {
			for _, s := range f.Secrets {
				want[s] = append(want[s], string(name))
			}
		}
	}
	if len(want) == 0 {
		return
	}
	have, err := api.All(func(p api.Page) (api.List[api.Secret], error) { return d.client.ListSecrets(ctx, p) })
	if err != nil {
		return
	}
	for _, s := range have {
		delete(want, s.Name)
	}
	for s, fns := range want {
		slices.Sort(fns)
		d.c.hint("secret %s of %s has no value yet: printf %%s \"$VALUE\" | lode secret set %s", s, strings.Join(fns, ", "), s)
	}
}

// fill puts the files of datasets that are declared with from and still empty.
func (d *deployment) fill(ctx context.Context) error {
	for name, ds := range d.app.Datasets {
		if len(ds.From) == 0 {
			continue
		}
		now, err := d.client.GetDataset(ctx, name, 0)
		if err != nil {
			return err
		}
		if now.Version > 0 {
			continue
		}
		files, err := spec.Globs(d.declared.Dir, ds.From)
		if err != nil {
			return fmt.Errorf("dataset %s: %w", name, err)
		}
		if _, err := d.c.put(ctx, d.client, name, api.PutOptions{Records: ds.Records, Shard: ds.Shard, Copies: ds.Copies}, namedFiles(d.declared.Dir, files)); err != nil {
			return fmt.Errorf("dataset %s: %w", name, err)
		}
	}
	return nil
}
