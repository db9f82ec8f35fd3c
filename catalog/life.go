package catalog

import (
	"cmp"
	"context"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/zeebo/blake3"

	"lode"
)

func digestOf(b []byte) lode.Digest { return lode.Digest(blake3.Sum256(b)) }

// named yields the revisions that aliases name.
func (n *nameRecord) named() iter.Seq[revRecord] {
	return func(yield func(revRecord) bool) {
		seen := make(map[int]bool)
		for _, a := range n.Aliases {
			for _, t := range a.Targets {
				if rr, ok := n.rev(t.Rev); ok && !seen[t.Rev] {
					seen[t.Rev] = true
					if !yield(rr) {
						return
					}
				}
			}
		}
	}
}

// checkAlias checks an alias's word: the law of names, so that no alias looks
// like a revision's number.
func checkAlias(word string) error {
	if _, err := lode.ParseName(word); err != nil {
		return lode.Errorf(lode.Invalid, "alias: %w", err)
	}
	return nil
}

// History is the revisions of a function, or a kind, that are kept, newest first. before
// is the number to go on from, 0 at first; at most limit are returned, 0 is
// all.
func (c *Catalog) History(ctx context.Context, ns lode.Namespace, name lode.Name, before, limit int) ([]lode.Revision, error) {
	e, err := c.function(ns, name)
	if err != nil {
		return nil, err
	}
	var out []lode.Revision
	for _, rr := range slices.Backward(e.record.Revs) {
		if before > 0 && rr.Number >= before {
			continue
		}
		if limit > 0 && len(out) == limit {
			break
		}
		r, err := c.revision(ctx, e, rr.Number)
		if err != nil {
			return nil, err
		}
		out = append(out, *r)
	}
	return out, nil
}

// function is a name that has revisions.
func (c *Catalog) function(ns lode.Namespace, name lode.Name) (*Entry, error) {
	e, ok := c.Lookup(ns, name)
	if !ok {
		return nil, c.missing(ns, name, KindFunction)
	}
	if !e.Kind.runs() {
		return nil, lode.Errorf(lode.Invalid, "%s is a %s, not a function", name, e.Kind)
	}
	return e, nil
}

// Previous is the revision that Rollback goes to by itself: the newest one
// below the one that is live; 0 if there is none.
func (e *Entry) Previous() int {
	live, _ := e.record.alias(lode.LiveAlias)
	now, best := mainRev(live), 0
	for _, rr := range e.record.Revs {
		if rr.Number < now {
			best = max(best, rr.Number)
		}
	}
	return best
}

// Rollback makes a revision all of "live"; rev 0 is the one before the live
// one. expect as in DeployOptions.
func (c *Catalog) Rollback(ctx context.Context, ns lode.Namespace, name lode.Name, rev int, expect uint64, by string) (*Entry, error) {
	return c.setAlias(ctx, ns, name, expect, by, func(e *Entry) (lode.Alias, error) {
		to := cmp.Or(rev, e.Previous())
		if to == 0 {
			return lode.Alias{}, lode.Errorf(lode.NotFound, "%s %s has no earlier revision", e.Kind.noun(), name).WithHint("lode history %s", name)
		}
		return lode.Alias{Name: lode.LiveAlias, Targets: []lode.Target{{Rev: to, Weight: 100}}}, nil
	})
}

// SetAlias sets an alias of a function; weights add up to 100. No targets
// removes it. A kind of agents has live alone, at one revision. expect as in
// DeployOptions.
func (c *Catalog) SetAlias(ctx context.Context, ns lode.Namespace, name lode.Name, a lode.Alias, expect uint64, by string) (*Entry, error) {
	if err := checkAlias(a.Name); err != nil {
		return nil, err
	}
	sum, seen := 0, make(map[int]bool)
	for _, t := range a.Targets {
		if t.Weight < 0 || seen[t.Rev] {
			return nil, lode.Errorf(lode.Invalid, "alias %s: each revision once, with a weight of 0 or more", a.Name)
		}
		seen[t.Rev] = true
		sum += t.Weight
	}
	if len(a.Targets) > 0 && sum != 100 {
		return nil, lode.Errorf(lode.Invalid, "alias %s: the weights add up to %d, want 100", a.Name, sum)
	}
	if len(a.Targets) == 0 && a.Name == lode.LiveAlias {
		return nil, lode.Errorf(lode.Invalid, "the alias live cannot be removed").WithHint("lode rm %s removes the function", name)
	}
	return c.setAlias(ctx, ns, name, expect, by, func(*Entry) (lode.Alias, error) { return a, nil })
}

func (c *Catalog) setAlias(ctx context.Context, ns lode.Namespace, name lode.Name, want uint64, by string, make func(*Entry) (lode.Alias, error)) (*Entry, error) {
	e, err := c.function(ns, name)
	if err != nil {
		return nil, err
	}
	err = c.change(ctx, ns, e.App, by, false, func(t *change) (bool, error) {
		now := t.space.names[name]
		if now == nil || now.App != e.App || now.Kind != e.Kind {
			return false, lode.Errorf(lode.Conflict, "%s %s was removed meanwhile", e.Kind.noun(), name)
		}
		if err := expect(t.space.apps[e.App], e.App, want); err != nil {
			return false, err
		}
		a, err := make(now)
		if err != nil {
			return false, err
		}
		if err := checkKindAlias(now, a); err != nil {
			return false, err
		}
		for _, target := range a.Targets {
			rr, ok := now.record.rev(target.Rev)
			if !ok {
				return false, lode.Errorf(lode.NotFound, "%s %s has no revision %d", now.Kind.noun(), name, target.Rev).WithHint("lode history %s", name)
			}
			if err := c.bring(ctx, t, name, rr); err != nil {
				return false, err
			}
		}
		n := t.rec.edit(name)
		before := n.Aliases
		n.setAlias(a)
		return !sameJSON(before, n.Aliases), nil
	})
	if err != nil {
		return nil, err
	}
	return c.function(ns, name)
}

// bring has the content of a revision at hand for the next state.
func (c *Catalog) bring(ctx context.Context, t *change, name lode.Name, rr revRecord) error {
	if e := t.space.names[name]; e != nil && e.revs[rr.Number] != nil {
		return nil
	}
	r, err := c.readRevision(ctx, t.rec.Namespace, t.rec.App, name, rr)
	if err != nil {
		return err
	}
	t.fresh[revisionKey(t.rec.Namespace, name, rr.Digest)] = fresh{f: r.Function}
	return nil
}

// RemoveOptions go with a removal.
type RemoveOptions struct {
	Data   bool   // for ever: it cannot be brought back
	Expect uint64 // as in DeployOptions, of each app
	By     string
}

// Remove takes names out of service. Names of one app go together; names of
// several apps go app by app. Unless o.Data is set, Undo brings them back for
// seven days.
func (c *Catalog) Remove(ctx context.Context, ns lode.Namespace, names []lode.Name, o RemoveOptions) ([]Removed, error) {
	apps := make(map[lode.Name][]lode.Name)
	for _, name := range names {
		e, ok := c.Lookup(ns, name)
		if !ok {
			if app, was := c.erasable(ns, name); was && o.Data {
				apps[app] = append(apps[app], name)
				continue
			}
			return nil, c.missing(ns, name, "")
		}
		apps[e.App] = append(apps[e.App], name)
	}
	var out []Removed
	for _, app := range slices.Sorted(maps.Keys(apps)) {
		removed, err := c.remove(ctx, ns, app, apps[app], o)
		out = append(out, removed...)
		if err != nil {
			return out, err
		}
	}
	return out, nil
}

// erasable is the app that a removed name belonged to, if it is still kept.
func (c *Catalog) erasable(ns lode.Namespace, name lode.Name) (lode.Name, bool) {
	s := c.snap.Load().spaces[ns]
	if s == nil {
		return "", false
	}
	app, ok := s.gone[name]
	return app, ok && !s.apps[app].Names[name].Erased
}

// RemoveApp removes all names of an app in one step; see Remove.
func (c *Catalog) RemoveApp(ctx context.Context, ns lode.Namespace, app lode.Name, o RemoveOptions) ([]Removed, error) {
	a, err := c.App(ns, app)
	if err != nil {
		return nil, err
	}
	var names []lode.Name
	for _, e := range a.Entries {
		names = append(names, e.Name)
	}
	for _, r := range a.Removed {
		if o.Data && !r.Until.IsZero() {
			names = append(names, r.Name)
		}
	}
	if len(names) == 0 {
		return nil, lode.Errorf(lode.Gone, "app %s was removed", app).WithHint("lode rm --undo %s brings it back", app)
	}
	return c.remove(ctx, ns, app, names, o)
}

func (c *Catalog) remove(ctx context.Context, ns lode.Namespace, app lode.Name, names []lode.Name, o RemoveOptions) ([]Removed, error) {
	var out []Removed
	err := c.change(ctx, ns, app, o.By, false, func(t *change) (bool, error) {
		if err := expect(t.space.apps[app], app, o.Expect); err != nil {
			return false, err
		}
		out = nil
		for _, name := range names {
			n := t.rec.Names[name]
			if n == nil || n.Erased || !n.live() && !o.Data {
				continue // somebody else was first
			}
			n = t.rec.edit(name)
			if n.live() {
				n.Removed = t.now
			}
			r := Removed{App: app, Name: name, Kind: n.Kind, At: n.Removed, Until: n.Removed.Add(keepFor)}
			if o.Data {
				n.Erased, n.Revs, n.Aliases, n.Queue, n.Dataset, n.Partitions, n.Born, r.Until = true, nil, nil, nil, nil, 0, 0, time.Time{}
			}
			out = append(out, r)
		}
		return len(out) > 0, nil
	})
	return out, err
}

// Undo brings a removed name back, or all removed names of the app of that
// name. Conflict: the name, or a route, belongs to something else by now.
func (c *Catalog) Undo(ctx context.Context, ns lode.Namespace, name lode.Name, by string) ([]*Entry, error) {
	app, names, err := c.undoable(ns, name)
	if err != nil {
		return nil, err
	}
	err = c.change(ctx, ns, app, by, false, func(t *change) (bool, error) {
		for _, name := range names {
			if e := t.space.names[name]; e != nil {
				return false, lode.Errorf(lode.Conflict, "%s %s of app %s has the name by now", e.Kind.noun(), name, e.App)
			}
			n := t.rec.Names[name]
			if n == nil || n.Erased {
				return false, lode.Errorf(lode.Gone, "%s is not kept any more", name)
			}
			n = t.rec.edit(name)
			n.Removed = time.Time{}
			for rr := range n.named() {
				if err := c.bring(ctx, t, name, rr); err != nil {
					return false, err
				}
			}
		}
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	var out []*Entry
	for _, name := range names {
		if e, ok := c.Lookup(ns, name); ok {
			out = append(out, e)
		}
	}
	return out, nil
}

// undoable finds what Undo of a name means: the app, and its names.
func (c *Catalog) undoable(ns lode.Namespace, name lode.Name) (lode.Name, []lode.Name, error) {
	if _, ok := c.Lookup(ns, name); ok {
		return "", nil, lode.Errorf(lode.Conflict, "%s is not removed", name)
	}
	now := c.cfg.Now()
	var found *Removed
	for _, a := range c.Apps(ns) {
		var all []lode.Name
		for _, r := range a.Removed {
			if !now.Before(r.Until) {
				continue
			}
			all = append(all, r.Name)
			if r.Name == name && (found == nil || r.At.After(found.At)) {
				found = &r
			}
		}
		if a.Name == name && len(all) > 0 && found == nil {
			return name, all, nil
		}
	}
	if found == nil {
		err := c.missing(ns, name, "")
		if lode.KindOf(err) == lode.Gone {
			return "", nil, lode.Errorf(lode.Gone, "%s was removed with its data, or more than %d days ago", name, int(keepFor/(24*time.Hour)))
		}
		return "", nil, err
	}
	return found.App, []lode.Name{name}, nil
}
