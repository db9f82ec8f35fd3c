package catalog

import (
	"context"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"lode"
	"lode/bus"
)

// Artifacts tells what built bytes are there.
type Artifacts interface {
	// Has reports whether the bytes of d are stored, durably.
	Has(ctx context.Context, d lode.Digest) (bool, error)
}

// Config is what a Catalog needs beside the bus.
type Config struct {
	Artifacts Artifacts        // nil: artifacts are not checked
	Sealer    Sealer           // nil: secrets cannot be set or opened
	Now       func() time.Time // nil: time.Now
	Logger    *slog.Logger     // nil: slog.Default
}

// Catalog is what is deployed. All methods may be called at the same time;
// what they return must not be changed.
type Catalog struct {
	cfg       Config
	apps      *bus.Table
	revisions *bus.Table
	sealed    *bus.Table
	snap      atomic.Pointer[snapshot]
	secrets   secretCache
	watchers  watchers
	stop      context.CancelFunc
	followers sync.WaitGroup
	closeOnce sync.Once

	write   sync.Mutex // held by a change, from reading to commit
	headRev uint64     // of the record head, 0: there is none
	head    *appRecord // the newest change; nil: there is none
	ahead   bool       // the copy of head may not be there yet
}

// snapshot is all that is deployed at one moment. It is never changed.
type snapshot struct {
	gen    uint64
	spaces map[lode.Namespace]*space
	routes []Route
}

// space is one namespace.
type space struct {
	apps  map[lode.Name]*appRecord
	names map[lode.Name]*Entry
	gone  map[lode.Name]lode.Name // removed names, and the app that had them
}

// Entry is one deployed name.
type Entry struct {
	Namespace  lode.Namespace
	App        lode.Name
	Name       lode.Name
	Kind       Kind
	Created    time.Time
	Generation uint64 // of the newest change of its app; see DeployOptions.Expect

	Live    *lode.Revision // functions and kinds: where most calls without an alias go
	Aliases []lode.Alias   // functions and kinds: "live" first
	Queue   *lode.Queue
	Dataset *lode.Dataset

	record *nameRecord
	revs   map[int]*lode.Revision // that an alias names
}

// Open reads the catalog from the bus and follows it. An unfinished change is
// finished: its commit decides.
func Open(ctx context.Context, b *bus.Bus, cfg Config) (*Catalog, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	c := &Catalog{cfg: cfg}
	for name, t := range map[string]**bus.Table{"catalog": &c.apps, "revisions": &c.revisions, "secrets": &c.sealed} {
		var err error
		if *t, err = b.Table(ctx, name); err != nil {
			return nil, err
		}
	}
	c.snap.Store(&snapshot{spaces: make(map[lode.Namespace]*space)})
	fctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	c.stop = stop
	if err := c.load(ctx, fctx); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Close ends following and watching. It may be called again.
func (c *Catalog) Close() error {
	c.closeOnce.Do(func() {
		c.stop()
		c.followers.Wait()
		c.watchers.close()
	})
	return nil
}

// Generation grows with every change.
func (c *Catalog) Generation() uint64 { return c.snap.Load().gen }

// Lookup finds a deployed name. It takes no lock.
func (c *Catalog) Lookup(ns lode.Namespace, name lode.Name) (*Entry, bool) {
	if s := c.snap.Load().spaces[ns]; s != nil {
		e, ok := s.names[name]
		return e, ok
	}
	return nil, false
}

// Get is Lookup with an error: Gone for what was removed, NotFound with a
// suggestion for anything else.
func (c *Catalog) Get(ns lode.Namespace, name lode.Name) (*Entry, error) {
	if e, ok := c.Lookup(ns, name); ok {
		return e, nil
	}
	return nil, c.missing(ns, name, "")
}

func (c *Catalog) missing(ns lode.Namespace, name lode.Name, kind Kind) error {
	noun := "nothing is named"
	switch kind {
	case "":
	case KindAgent:
		noun = "no kind of agents is named"
	default:
		noun = "no " + string(kind) + " is named"
	}
	s := c.snap.Load().spaces[ns]
	if s == nil {
		return lode.Errorf(lode.NotFound, "%s %s: nothing is deployed in namespace %s", noun, name, ns).WithHint("lode deploy")
	}
	if _, ok := s.gone[name]; ok {
		return lode.Errorf(lode.Gone, "%s was removed", name).WithHint("lode rm --undo %s brings it back", name)
	}
	e := lode.Errorf(lode.NotFound, "%s %s in namespace %s", noun, name, ns)
	if near := lode.Suggest(string(name), c.namesOf(s, kind)); near != "" {
		return e.WithHint("did you mean %q?", near)
	}
	return e.WithHint("lode ls shows what is deployed")
}

func (c *Catalog) namesOf(s *space, kind Kind) []string {
	var out []string
	for name, e := range s.names {
		if kind == "" || e.Kind == kind {
			out = append(out, string(name))
		}
	}
	slices.Sort(out)
	return out
}

// Names lists the functions of a namespace, sorted.
func (c *Catalog) Names(ns lode.Namespace) []string {
	if s := c.snap.Load().spaces[ns]; s != nil {
		return c.namesOf(s, KindFunction)
	}
	return nil
}

// Resolve picks the revision that a call of ns/name runs: alias "" is live, a
// number asks for that revision. rnd is uniform and chooses among the targets
// of a weighted alias. NotFound with a hint, or Gone, if there is none.
func (c *Catalog) Resolve(ns lode.Namespace, name lode.Name, alias string, rnd uint32) (*lode.Revision, error) {
	e, ok := c.Lookup(ns, name)
	if !ok {
		return nil, c.missing(ns, name, KindFunction)
	}
	if e.Kind != KindFunction {
		return nil, e.notCallable()
	}
	if alias == "" {
		alias = lode.LiveAlias
	}
	if a, ok := e.record.alias(alias); ok {
		at := int(uint64(rnd) * 100 >> 32)
		for _, t := range a.Targets {
			if at -= t.Weight; at < 0 {
				return c.revision(context.Background(), e, t.Rev)
			}
		}
	}
	if n, err := strconv.Atoi(alias); err == nil {
		return c.revision(context.Background(), e, n)
	}
	words := []string{}
	for _, a := range e.Aliases {
		words = append(words, a.Name)
	}
	err := lode.Errorf(lode.NotFound, "function %s has no alias %q", name, alias)
	if near := lode.Suggest(alias, words); near != "" {
		return nil, err.WithHint("did you mean %q?", near)
	}
	return nil, err.WithHint("aliases: %v", words)
}

// revision finds one revision by number; what no alias names is read from the
// bus.
func (c *Catalog) revision(ctx context.Context, e *Entry, number int) (*lode.Revision, error) {
	if r := e.revs[number]; r != nil {
		return r, nil
	}
	rr, ok := e.record.rev(number)
	if !ok {
		return nil, lode.Errorf(lode.NotFound, "%s %s has no revision %d", e.Kind.noun(), e.Name, number).WithHint("lode history %s", e.Name)
	}
	return c.readRevision(ctx, e.Namespace, e.App, e.Name, rr)
}

// Functions yields the live revision of every function. Kinds of agents are
// not among them.
func (c *Catalog) Functions() iter.Seq[*lode.Revision] { return c.liveOf(KindFunction) }

// Queue is a declared queue; NotFound if there is none.
func (c *Catalog) Queue(ns lode.Namespace, name lode.Name) (lode.Queue, error) {
	if e, ok := c.Lookup(ns, name); ok && e.Queue != nil {
		return *e.Queue, nil
	}
	return lode.Queue{}, c.missing(ns, name, KindQueue)
}

// Dataset is a declared dataset; NotFound if there is none.
func (c *Catalog) Dataset(ns lode.Namespace, name lode.Name) (lode.Dataset, error) {
	if e, ok := c.Lookup(ns, name); ok && e.Dataset != nil {
		return *e.Dataset, nil
	}
	return lode.Dataset{}, c.missing(ns, name, KindDataset)
}

// Routes lists the declared routes of all namespaces. Patterns do not
// conflict.
func (c *Catalog) Routes() []Route { return c.snap.Load().routes }

// Namespaces lists the namespaces in which something is deployed, sorted.
func (c *Catalog) Namespaces() []lode.Namespace {
	return slices.Sorted(maps.Keys(c.snap.Load().spaces))
}

// List is every name of a namespace, sorted; kind "" is all kinds.
func (c *Catalog) List(ns lode.Namespace, kind Kind) []*Entry {
	s := c.snap.Load().spaces[ns]
	if s == nil {
		return nil
	}
	var out []*Entry
	for _, name := range slices.Sorted(maps.Keys(s.names)) {
		if e := s.names[name]; kind == "" || e.Kind == kind {
			out = append(out, e)
		}
	}
	return out
}

// App is one deployed app.
type App struct {
	Name       lode.Name
	Generation uint64 // see DeployOptions.Expect
	Changed    time.Time
	By         string   // who changed it, as the caller of the change said
	Entries    []*Entry // sorted by name
	Removed    []Removed
}

// Removed is a name that was removed and is remembered.
type Removed struct {
	App   lode.Name
	Name  lode.Name
	Kind  Kind
	At    time.Time
	Until time.Time // Undo works before; zero: it does not
}

// Spec is the app as it would be declared: what its live revisions and its
// other names say.
func (a *App) Spec() lode.App {
	out := lode.App{Name: a.Name, Functions: map[lode.Name]lode.Function{}, Agents: map[lode.Name]lode.Function{}, Queues: map[lode.Name]lode.Queue{}, Datasets: map[lode.Name]lode.Dataset{}}
	for _, e := range a.Entries {
		switch {
		case e.Live != nil && e.Kind == KindAgent:
			out.Agents[e.Name] = e.Live.Function
		case e.Live != nil:
			out.Functions[e.Name] = e.Live.Function
		case e.Queue != nil && !e.record.Implicit:
			out.Queues[e.Name] = *e.Queue
		case e.Dataset != nil:
			out.Datasets[e.Name] = *e.Dataset
		}
	}
	return out
}

// Apps lists the apps of a namespace, sorted.
func (c *Catalog) Apps(ns lode.Namespace) []*App {
	s := c.snap.Load().spaces[ns]
	if s == nil {
		return nil
	}
	var out []*App
	for _, name := range slices.Sorted(maps.Keys(s.apps)) {
		if a := s.app(name, c.cfg.Now()); len(a.Entries)+len(a.Removed) > 0 {
			out = append(out, a)
		}
	}
	return out
}

// App returns one app; NotFound with a suggestion.
func (c *Catalog) App(ns lode.Namespace, name lode.Name) (*App, error) {
	var names []string
	for _, a := range c.Apps(ns) {
		if a.Name == name {
			return a, nil
		}
		names = append(names, string(a.Name))
	}
	e := lode.Errorf(lode.NotFound, "no app is named %s in namespace %s", name, ns)
	if near := lode.Suggest(string(name), names); near != "" {
		e.WithHint("did you mean %q?", near)
	}
	return nil, e
}

func (s *space) app(name lode.Name, now time.Time) *App {
	r := s.apps[name]
	a := &App{Name: name, Generation: r.Gen, Changed: r.Changed, By: r.By}
	for _, n := range slices.Sorted(maps.Keys(r.Names)) {
		if rec := r.Names[n]; rec.live() {
			a.Entries = append(a.Entries, s.names[n])
		} else if until := rec.Removed.Add(keepFor); now.Before(until) {
			if rec.Erased {
				until = time.Time{}
			}
			a.Removed = append(a.Removed, Removed{App: name, Name: n, Kind: rec.Kind, At: rec.Removed, Until: until})
		}
	}
	return a
}
