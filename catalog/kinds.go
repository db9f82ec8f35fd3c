package catalog

import (
	"context"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"lode"
)

// noun is the kind as errors have it.
func (k Kind) noun() string {
	if k == KindAgent {
		return "kind"
	}
	return string(k)
}

// article is a noun that says what a name is: "a kind of agents".
func (k Kind) article() string {
	if k == KindAgent {
		return "a kind of agents"
	}
	return "a " + string(k)
}

// runs reports whether names of this kind have code, and so revisions.
func (k Kind) runs() bool { return k == KindFunction || k == KindAgent }

// ResolveAgent is the revision that agents of a kind run: all of them the same
// one, the live one. It takes no lock and reads nothing but memory. NotFound
// with a hint, Gone, or Damaged if the revision could not be read.
func (c *Catalog) ResolveAgent(ns lode.Namespace, kind lode.Name) (*lode.Revision, error) {
	e, ok := c.Lookup(ns, kind)
	switch {
	case !ok:
		return nil, c.missing(ns, kind, KindAgent)
	case e.Kind == KindFunction:
		return nil, lode.Errorf(lode.NotFound, "%s is a function, not a kind of agents", kind).WithHint("POST /fn/%s calls it; lode call %s", kind, kind)
	case e.Kind != KindAgent:
		return nil, lode.Errorf(lode.NotFound, "%s is %s, not a kind of agents", kind, e.Kind.article())
	case e.Live == nil:
		return nil, lode.Errorf(lode.Damaged, "the live revision of kind %s cannot be read", kind).WithHint("deploy it again, or lode rollback %s", kind)
	}
	return e.Live, nil
}

// notCallable is what Resolve answers for a name that is no function.
func (e *Entry) notCallable() error {
	err := lode.Errorf(lode.NotFound, "%s is %s, not a function", e.Name, e.Kind.article())
	if e.Kind == KindAgent {
		err.WithHint("its agents are called by address: POST /agents/%s/KEY/METHOD, or lode call %s/KEY METHOD", e.Name, e.Name)
	}
	return err
}

// Kinds yields the live revision of every kind of agents, as Functions does
// of functions: a kind has no triggers and is not scaled by itself.
func (c *Catalog) Kinds() iter.Seq[*lode.Revision] { return c.liveOf(KindAgent) }

func (c *Catalog) liveOf(kind Kind) iter.Seq[*lode.Revision] {
	snap := c.snap.Load()
	return func(yield func(*lode.Revision) bool) {
		for _, s := range snap.spaces {
			for _, e := range s.names {
				if e.Kind == kind && e.Live != nil && !yield(e.Live) {
					return
				}
			}
		}
	}
}

// KindState is the state of a kind's agents: it is there from the kind's first
// deploy until the kind was removed with its data, or was not brought back in
// time.
type KindState struct {
	Namespace  lode.Namespace
	Name       lode.Name
	Partitions int
	// Born tells this state from that of an earlier kind of the same name,
	// which was removed for ever. It only grows.
	Born  uint64
	Until time.Time // of a kind that was removed: kept so long; zero: live
}

// KindStates lists the states that are to be kept, by namespace and name; what
// is not among them may be erased.
func (c *Catalog) KindStates() []KindState {
	snap, now := c.snap.Load(), c.cfg.Now()
	var out []KindState
	for _, ns := range slices.Sorted(maps.Keys(snap.spaces)) {
		for _, app := range snap.spaces[ns].apps {
			out = app.kindStates(out, now)
		}
	}
	return sortStates(out)
}

// StoredKindStates is KindStates as it is stored, not as this catalog has heard
// of it: nothing that was changed before the call is missing.
func (c *Catalog) StoredKindStates(ctx context.Context) ([]KindState, error) {
	head, ok, err := c.apps.Get(ctx, headKey) // first: its app's own record may be older
	if err != nil || !ok {
		return nil, err
	}
	all, err := c.apps.List(ctx, "app/")
	if err != nil {
		return nil, err
	}
	newest := map[string]*appRecord{}
	for _, e := range append(all, head) {
		r, err := decodeApp(e.Value)
		if err != nil {
			return nil, lode.Errorf(lode.KindOf(err), "record %s: %w", e.Key, err)
		}
		if key := appKey(r.Namespace, r.App); newest[key] == nil || newest[key].Gen < r.Gen {
			newest[key] = r
		}
	}
	var out []KindState
	for _, r := range newest {
		out = r.kindStates(out, c.cfg.Now())
	}
	return sortStates(out), nil
}

// KindState is the state of one kind; false: there is none to be kept.
func (c *Catalog) KindState(ns lode.Namespace, kind lode.Name) (KindState, bool) {
	s := c.snap.Load().spaces[ns]
	if s == nil {
		return KindState{}, false
	}
	for _, app := range s.apps {
		if n := app.Names[kind]; n != nil && n.keepsState(c.cfg.Now()) {
			return app.kindState(kind, n), true
		}
	}
	return KindState{}, false
}

// kindStates adds the states of an app's kinds.
func (r *appRecord) kindStates(to []KindState, now time.Time) []KindState {
	for name, n := range r.Names {
		if n.keepsState(now) {
			to = append(to, r.kindState(name, n))
		}
	}
	return to
}

func (r *appRecord) kindState(name lode.Name, n *nameRecord) KindState {
	s := KindState{Namespace: r.Namespace, Name: name, Partitions: n.Partitions, Born: n.Born}
	if !n.live() {
		s.Until = n.Removed.Add(keepFor)
	}
	return s
}

func sortStates(out []KindState) []KindState {
	slices.SortFunc(out, func(a, b KindState) int {
		return strings.Compare(string(a.Namespace)+"/"+string(a.Name), string(b.Namespace)+"/"+string(b.Name))
	})
	return out
}

// keepsState reports whether the name is a kind of agents whose state is
// there.
func (n *nameRecord) keepsState(now time.Time) bool {
	return n.Kind == KindAgent && !n.Erased && (n.live() || now.Before(n.Removed.Add(keepFor)))
}

// checkKind checks a declared kind.
func checkKind(name lode.Name, f *lode.Function) error {
	switch {
	case f.Agent == nil:
		return lode.Errorf(lode.Invalid, "kind %s: the function is no kind of agents", name)
	case f.Artifact.IsZero():
		return lode.Errorf(lode.Invalid, "kind %s has no artifact", name)
	case f.Agent.Partitions < 0 || f.Agent.Partitions > 1<<16:
		return lode.Errorf(lode.Invalid, "kind %s has %d partitions, want 1 to %d", name, f.Agent.Partitions, 1<<16)
	case len(f.Routes)+len(f.Schedules) > 0 || f.Queue != nil:
		return lode.Errorf(lode.Invalid, "kind %s: agents have no routes, schedules or queues", name).
			WithHint("let a function have them, and call the agents")
	}
	return nil
}

// partitionsOf is how many partitions a kind has.
func partitionsOf(f *lode.Function) int {
	if f.Agent.Partitions == 0 {
		return lode.DefaultPartitions
	}
	return f.Agent.Partitions
}

// stateKept refuses a name under which the state of removed agents is kept,
// if it is to become something else, or something of another app.
func (d *deploy) stateKept(name lode.Name, kind Kind) error {
	for app, rec := range d.space.apps {
		n := rec.Names[name]
		if n == nil || n.live() || !n.keepsState(d.now) || app == d.app.Name && kind == KindAgent {
			continue
		}
		return lode.Errorf(lode.Conflict, "%s was a kind of agents of app %s, and their state is kept until %s", name, app, n.Removed.Add(keepFor).Format(time.RFC3339)).
			WithHint("lode rm --undo %s brings them back, lode rm --data %s removes them for ever", name, name)
	}
	return nil
}

// kind declares a kind of agents.
func (d *deploy) kind(name lode.Name, f *lode.Function) error {
	old := d.rec.Names[name]
	if old != nil && old.keepsState(d.now) && old.Partitions != partitionsOf(f) {
		return lode.Errorf(lode.Conflict, "kind %s has %d partitions, and its first deploy has fixed them; this one asks for %d", name, old.Partitions, partitionsOf(f)).
			WithHint("write partitions: %d, or export the agents, remove the kind with lode rm --data %s, deploy it again and import them", old.Partitions, name)
	}
	if err := d.revise(name, f, KindAgent); err != nil {
		return err
	}
	n := d.rec.Names[name]
	if n != old && n.Born == 0 { // revise made n: it may be changed
		n.Partitions, n.Born = partitionsOf(f), d.snap.gen+1
	}
	return nil
}

// whole refuses to let only some calls reach a new revision of a kind.
func (d *deploy) whole(name lode.Name) error {
	if (d.app.Alias == "" || d.app.Alias == lode.LiveAlias) && (d.app.Weight == 0 || d.app.Weight == 100) {
		return nil
	}
	return lode.Errorf(lode.Invalid, "kind %s: a new revision of agents takes no alias but live, and no weight: an agent has one state, which two revisions would write in turn", name).
		WithHint("deploy without --alias and --weight, or declare the functions in an app of their own")
}

// checkKindAlias is whole, for an alias that is set by itself.
func checkKindAlias(e *Entry, a lode.Alias) error {
	if e.Kind != KindAgent || a.Name == lode.LiveAlias && len(a.Targets) == 1 {
		return nil
	}
	return lode.Errorf(lode.Invalid, "kind %s has the alias live alone, at one revision: an agent has one state, which two revisions would write in turn", e.Name).
		WithHint("lode rollback %s REV makes another revision live", e.Name)
}
