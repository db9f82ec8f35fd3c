package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"lode"
	"lode/api"
	"lode/catalog"
	"lode/data"
	"lode/invoke"
)

// apps is what is deployed, for the management door.
type apps struct{ *Node }

func by(ctx context.Context) string {
	g, _ := api.GrantOf(ctx)
	return g.Token
}

// etag is without quotes, as api has it.
func etag(generation uint64) string { return strconv.FormatUint(generation, 10) }

// expected turns an If-Match into the generation that must hold.
func expected(ifMatch string) (uint64, error) {
	switch ifMatch {
	case "":
		return 0, nil
	case "*":
		return catalog.MustExist, nil
	}
	g, err := strconv.ParseUint(strings.Trim(ifMatch, `"`), 10, 64)
	if err != nil || g == 0 {
		return 0, lode.Errorf(lode.Precondition, "If-Match %s is not an ETag of this node", ifMatch)
	}
	return g, nil
}

// Deploy compiles what is new, then switches the app.
func (a apps) Deploy(ctx context.Context, ns lode.Namespace, app lode.App, o api.DeployOptions) (api.Plan, error) {
	expect, err := expected(o.IfMatch)
	if err != nil {
		return api.Plan{}, err
	}
	for name, f := range app.Functions {
		for _, sch := range f.Schedules {
			if err := invoke.CheckSchedule(sch); err != nil {
				return api.Plan{}, named(err, "function %s", name)
			}
		}
	}
	co := catalog.DeployOptions{Plan: true, Prune: o.Prune, Expect: expect, By: by(ctx)}
	plan, err := a.catalog.Deploy(ctx, ns, app, co)
	if err != nil {
		return api.Plan{}, err
	}
	if len(plan.Missing) == 0 {
		if err := a.pools.compile(ctx, &app); err != nil {
			return api.Plan{}, err
		}
		co.Plan = o.Plan
		if plan, err = a.catalog.Deploy(ctx, ns, app, co); err != nil {
			return api.Plan{}, err
		}
	} else if !o.Plan {
		co.Plan = false
		if _, err = a.catalog.Deploy(ctx, ns, app, co); err != nil {
			return api.Plan{}, err
		}
	}
	return a.plan(ns, plan), nil
}

func (a apps) plan(ns lode.Namespace, p catalog.Plan) api.Plan {
	out := api.Plan{App: p.App, Applied: p.Applied, Missing: p.Missing, Changes: []api.Change{}}
	if p.Generation > 0 {
		out.ETag = etag(p.Generation)
	}
	for _, c := range p.Changes {
		ch := api.Change{Op: api.Op(c.Op), Kind: api.ItemKind(c.Kind), Name: c.Name, Rev: c.Rev, Size: c.Size, Detail: c.Detail, Hint: c.Hint}
		ch.URLs = a.doorsOf(ns, c.Kind, c.Name, c.Routes)
		out.Changes = append(out.Changes, ch)
	}
	for _, w := range p.Warnings {
		out.Changes = append(out.Changes, api.Change{Op: api.OpKeep, Hint: w})
	}
	return out
}

// doorsOf are where a name can be called; nil: it cannot.
func (a apps) doorsOf(ns lode.Namespace, kind catalog.Kind, name lode.Name, routes []string) []string {
	switch kind {
	case catalog.KindFunction:
		return a.urls(ns, name, routes)
	case catalog.KindAgent:
		u := "POST " + a.URL() + "/agents/" + string(name) + "/KEY/METHOD"
		if ns != lode.DefaultNamespace {
			u += " (Lode-Namespace: " + string(ns) + ")"
		}
		return []string{u}
	}
	return nil
}

// urls are where a function can be called: /fn first, then its routes.
func (a apps) urls(ns lode.Namespace, name lode.Name, routes []string) []string {
	u := a.URL() + "/fn/" + string(name)
	if ns != lode.DefaultNamespace {
		u += " (Lode-Namespace: " + string(ns) + ")"
	}
	out := []string{u}
	for _, r := range routes {
		method, pattern, ok := strings.Cut(r, " ")
		if !ok {
			method, pattern = "", r
		} else {
			method += " "
		}
		if strings.HasPrefix(pattern, "/") {
			pattern = a.URL() + pattern
		}
		out = append(out, method+pattern)
	}
	return out
}

func (a apps) ListApps(_ context.Context, ns lode.Namespace, p api.Page) (api.List[api.App], error) {
	var all []api.App
	for _, app := range a.catalog.Apps(ns) {
		all = append(all, a.app(app))
	}
	return page(all, p, func(v api.App) string { return string(v.Name) }), nil
}

func (a apps) app(app *catalog.App) api.App {
	out := api.App{Name: app.Name, ETag: etag(app.Generation), Deployed: app.Changed, By: app.By, Items: []api.Item{}}
	for _, e := range app.Entries {
		out.Items = append(out.Items, a.item(e))
	}
	for _, r := range app.Removed {
		out.Items = append(out.Items, removedItem(r))
	}
	return out
}

func removedItem(r catalog.Removed) api.Item {
	return api.Item{Name: r.Name, Kind: api.ItemKind(r.Kind), App: r.App, Removed: r.At, Until: r.Until}
}

func (a apps) GetApp(_ context.Context, ns lode.Namespace, app lode.Name) (api.App, error) {
	c, err := a.catalog.App(ns, app)
	if err != nil {
		return api.App{}, err
	}
	out := a.app(c)
	spec := c.Spec()
	out.Spec = &spec
	return out, nil
}

func (a apps) item(e *catalog.Entry) api.Item {
	it := api.Item{Name: e.Name, Kind: api.ItemKind(e.Kind), App: e.App, Created: e.Created, Where: []string{a.cfg.Name}}
	if e.Live != nil {
		f := &e.Live.Function
		it.Rev = e.Live.Number
		it.Detail = fmt.Sprintf("%s, %s", orWord(f.Language, "wasm"), bytesText(f.Size))
		it.URLs = a.doorsOf(e.Namespace, e.Kind, e.Name, f.Routes)
	}
	return it
}

// called adds to a listing when each function was last called and how often,
// in one pass over what is in memory.
func (a apps) called(ns lode.Namespace, items []api.Item) []api.Item {
	rates, last := map[lode.Name]float64{}, map[lode.Name]time.Time{}
	for _, t := range a.telemetry.Top(string(ns)) {
		rates[lode.Name(t.Function)] = t.Rate * 60
	}
	for _, r := range a.telemetry.Recent(string(ns), "", math.MaxInt) {
		if _, ok := last[lode.Name(r.Function)]; !ok { // newest first
			last[lode.Name(r.Function)] = r.End
		}
	}
	for i := range items {
		if items[i].Kind == api.KindFunction || items[i].Kind == api.KindAgent {
			items[i].Calls, items[i].Last = rates[items[i].Name], last[items[i].Name]
		}
	}
	return items
}

func orWord(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

func bytesText(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n < 1<<10:
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
}

// RemoveApp removes all names of an app.
func (a apps) RemoveApp(ctx context.Context, ns lode.Namespace, app lode.Name, o api.RemoveOptions) (api.Removed, error) {
	ro, err := removal(ctx, o)
	if err != nil {
		return api.Removed{}, err
	}
	gone, err := a.catalog.RemoveApp(ctx, ns, app, ro)
	if err != nil {
		return api.Removed{}, err
	}
	return a.removed(ctx, ns, gone, o.Data)
}

func removal(ctx context.Context, o api.RemoveOptions) (catalog.RemoveOptions, error) {
	expect, err := expected(o.IfMatch)
	return catalog.RemoveOptions{Data: o.Data, Expect: expect, By: by(ctx)}, err
}

// removed tells what went, and takes the datasets' content with them.
func (a apps) removed(ctx context.Context, ns lode.Namespace, gone []catalog.Removed, forEver bool) (api.Removed, error) {
	out := api.Removed{Items: []api.Item{}}
	for _, r := range gone {
		out.Items = append(out.Items, removedItem(r))
		out.Until = r.Until
		if r.Kind == catalog.KindDataset {
			if _, err := a.data.Remove(ctx, ns, r.Name, forEver); err != nil && lode.KindOf(err) != lode.NotFound {
				return out, err
			}
		}
	}
	return out, nil
}

// ListNames lists the declared names, and the datasets that were put without
// being declared.
func (a apps) ListNames(ctx context.Context, ns lode.Namespace, kind api.ItemKind, p api.Page) (api.List[api.Item], error) {
	var all []api.Item
	for _, e := range a.catalog.List(ns, catalog.Kind(kind)) {
		all = append(all, a.item(e))
	}
	if kind == "" || kind == api.KindDataset {
		heads, err := a.data.List(ctx, ns)
		if err != nil && (kind != "" || lode.KindOf(err) != lode.Unavailable) {
			return api.List[api.Item]{}, err
		} else if err != nil { // what is declared is known without the bus
			a.cfg.Logger.Warn("the list of names is without undeclared datasets", "err", err)
		}
		all = mergeDatasets(all, heads, a.cfg.Name)
	}
	out := page(all, p, func(v api.Item) string { return string(v.Name) })
	out.Items = a.called(ns, out.Items)
	return out, nil
}

func mergeDatasets(items []api.Item, heads []data.Head, node string) []api.Item {
	at := map[lode.Name]int{}
	for i, it := range items {
		if it.Kind == api.KindDataset {
			at[it.Name] = i
		}
	}
	for _, h := range heads {
		i, ok := at[h.Name]
		if !ok {
			items = append(items, api.Item{Name: h.Name, Kind: api.KindDataset, Where: []string{node}, Created: h.Versions[0].Created})
			i = len(items) - 1
		}
		v := h.Newest()
		items[i].Rev, items[i].Last = v.Number, v.Created
		items[i].Detail = fmt.Sprintf("%s, %s, %d shards, %d records", h.Spec.Records, bytesText(v.Bytes), v.Shards, v.Count)
	}
	return items
}

// GetName tells everything about a name.
func (a apps) GetName(ctx context.Context, ns lode.Namespace, name lode.Name) (api.Detail, error) {
	e, err := a.catalog.Get(ns, name)
	if err != nil {
		d, derr := datasets(a).GetDataset(ctx, ns, name, 0)
		if derr != nil {
			return api.Detail{}, err
		}
		it := api.Item{Name: name, Kind: api.KindDataset, Created: d.Created, Rev: d.Version, Where: []string{a.cfg.Name}}
		return api.Detail{Item: it, Dataset: &d}, nil
	}
	out := api.Detail{Item: a.called(ns, []api.Item{a.item(e)})[0]}
	switch e.Kind {
	case catalog.KindFunction, catalog.KindAgent:
		if e.Live == nil {
			return api.Detail{}, lode.Errorf(lode.Damaged, "the live revision of %s cannot be read", name).WithHint("deploy it again, or go back: lode rollback %s REV", name)
		}
		f := a.function(e)
		out.Function = &f
	case catalog.KindQueue:
		q, err := queues(a).GetQueue(ctx, ns, name)
		if err != nil {
			return api.Detail{}, err
		}
		out.Queue = &q
	case catalog.KindDataset:
		d, err := datasets(a).GetDataset(ctx, ns, name, 0)
		if err != nil {
			return api.Detail{}, err
		}
		out.Dataset = &d
	}
	return out, nil
}

func (a apps) function(e *catalog.Entry) api.Function {
	f := api.Function{Name: e.Name, App: e.App, ETag: etag(e.Generation), Live: *e.Live, Aliases: e.Aliases, URLs: a.doorsOf(e.Namespace, e.Kind, e.Name, e.Live.Function.Routes), Previous: e.Previous()}
	f.Sandbox.Warm, f.Sandbox.Busy = a.pools.count(e.Namespace, e.Name)
	for _, s := range e.Live.Function.Secrets {
		if _, err := a.catalog.Secrets(e.Namespace, []string{s}); err != nil {
			f.Unset = append(f.Unset, s)
		}
	}
	return f
}

// RemoveName takes a name out of service; a dataset's content goes with it.
func (a apps) RemoveName(ctx context.Context, ns lode.Namespace, name lode.Name, o api.RemoveOptions) (api.Removed, error) {
	ro, err := removal(ctx, o)
	if err != nil {
		return api.Removed{}, err
	}
	gone, err := a.catalog.Remove(ctx, ns, []lode.Name{name}, ro)
	if err == nil {
		return a.removed(ctx, ns, gone, o.Data)
	}
	if _, serr := a.data.Show(ctx, ns, name); serr != nil || lode.KindOf(err) != lode.NotFound {
		return api.Removed{}, err
	}
	_, err = a.data.Remove(ctx, ns, name, o.Data)
	out := api.Removed{Items: []api.Item{{Name: name, Kind: api.KindDataset, Removed: time.Now().UTC()}}}
	if !o.Data {
		out.Until = time.Now().Add(data.DefaultUndo).UTC()
	}
	return out, err
}

func (a apps) UndoRemove(ctx context.Context, ns lode.Namespace, name lode.Name) (api.Removed, error) {
	out := api.Removed{Items: []api.Item{}}
	back, err := a.catalog.Undo(ctx, ns, name, by(ctx))
	if k := lode.KindOf(err); k == lode.NotFound || k == lode.Gone { // a dataset that no app declares
		if _, rerr := a.data.Restore(ctx, ns, name); rerr != nil {
			return out, err
		}
		out.Items = append(out.Items, api.Item{Name: name, Kind: api.KindDataset})
		return out, nil
	}
	for _, e := range back {
		if e.Kind == catalog.KindDataset {
			if _, rerr := a.data.Restore(ctx, ns, e.Name); rerr != nil && lode.KindOf(rerr) != lode.NotFound {
				return out, rerr
			}
		}
		out.Items = append(out.Items, a.item(e))
	}
	return out, err
}

func (a apps) History(ctx context.Context, ns lode.Namespace, fn lode.Name, p api.Page) (api.List[lode.Revision], error) {
	before := 0
	if p.After != "" {
		var err error
		if before, err = strconv.Atoi(p.After); err != nil {
			return api.List[lode.Revision]{}, lode.Errorf(lode.Invalid, "after=%s is not a revision", p.After)
		}
	}
	revs, err := a.catalog.History(ctx, ns, fn, before, p.Limit+1)
	if err != nil {
		return api.List[lode.Revision]{}, err
	}
	out := api.List[lode.Revision]{Items: revs}
	if p.Limit > 0 && len(revs) > p.Limit {
		out.Items = revs[:p.Limit]
		out.Next = strconv.Itoa(out.Items[p.Limit-1].Number)
	}
	return out, nil
}

func (a apps) Rollback(ctx context.Context, ns lode.Namespace, fn lode.Name, rev int, ifMatch string) (api.Function, error) {
	expect, err := expected(ifMatch)
	if err != nil {
		return api.Function{}, err
	}
	e, err := a.catalog.Rollback(ctx, ns, fn, rev, expect, by(ctx))
	if err != nil {
		return api.Function{}, err
	}
	return a.function(e), nil
}

func (a apps) SetAlias(ctx context.Context, ns lode.Namespace, fn lode.Name, al lode.Alias, ifMatch string) (api.Function, error) {
	expect, err := expected(ifMatch)
	if err != nil {
		return api.Function{}, err
	}
	e, err := a.catalog.SetAlias(ctx, ns, fn, al, expect, by(ctx))
	if err != nil {
		return api.Function{}, err
	}
	return a.function(e), nil
}

// blobs takes artifacts in.
type blobs struct{ *Node }

func (b blobs) HasBlob(ctx context.Context, _ lode.Namespace, d lode.Digest) (bool, error) {
	a, err := b.artifacts.Open(ctx, d) // and not only look: what is damaged must come again
	switch lode.KindOf(err) {
	case "":
		return true, a.Close()
	case lode.NotFound, lode.Damaged, lode.Unavailable: // a node that is lost may have it: then it comes again
		return false, nil
	}
	return false, err
}

// PutBlob stores r under d. The digest is checked while the bytes come in: a
// reader that ends with the wrong digest fails, and then nothing is kept.
func (b blobs) PutBlob(ctx context.Context, _ lode.Namespace, d lode.Digest, size int64, r io.Reader) error {
	got, n, err := b.artifacts.Put(ctx, newDigestReader(r, d, size))
	if err != nil {
		if e := new(lode.Error); errors.As(err, &e) {
			return err
		}
		return lode.Errorf(lode.Invalid, "the upload was cut short: %w", err).WithHint("send it again")
	}
	if got != d { // cannot be: the reader checked it
		return lode.Errorf(lode.Internal, "stored %d bytes as %s, not as %s", n, got, d)
	}
	return nil
}

// DescribeBlob compiles a module, which its deploy then finds done, and tells
// what it says of itself.
func (b blobs) DescribeBlob(ctx context.Context, _ lode.Namespace, d lode.Digest) (api.Module, error) {
	info, err := b.engine.Compile(ctx, b.pools.source(d), lode.Limits{})
	if err != nil {
		return api.Module{}, err
	}
	return api.Module{Contract: info.Contract, Description: info.Description}, nil
}

// secrets takes values in and never gives them out.
type secrets struct{ *Node }

func (s secrets) SetSecret(ctx context.Context, ns lode.Namespace, name string, value []byte) error {
	return s.catalog.SetSecret(ctx, ns, name, value)
}

func (s secrets) ListSecrets(_ context.Context, ns lode.Namespace, p api.Page) (api.List[api.Secret], error) {
	used := map[string][]lode.Name{}
	for _, e := range s.catalog.List(ns, "") {
		if e.Live == nil {
			continue
		}
		for _, name := range e.Live.Function.Secrets {
			used[name] = append(used[name], e.Name)
		}
	}
	var all []api.Secret
	for _, name := range s.catalog.ListSecrets(ns) {
		all = append(all, api.Secret{Name: name, UsedBy: used[name]})
	}
	return page(all, p, func(v api.Secret) string { return v.Name }), nil
}

func (s secrets) RemoveSecret(ctx context.Context, ns lode.Namespace, name string) error {
	return s.catalog.RemoveSecret(ctx, ns, name)
}

var (
	_ api.Apps    = apps{}
	_ api.Blobs   = blobs{}
	_ api.Secrets = secrets{}
)
