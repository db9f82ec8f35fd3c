package catalog

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"lode"
)

// Op is what a deploy does to one name.
type Op string

// The operations.
const (
	Add    Op = "+"
	Modify Op = "~"
	Remove Op = "-"
	Keep   Op = "="
)

// Change is one line of a plan.
type Change struct {
	Op     Op
	Kind   Kind
	Name   lode.Name
	Rev    int      // functions and kinds: the revision that is in place afterwards
	Size   int64    // bytes of the artifact
	Detail string   // for +: language and the like; for ~: what differs
	Routes []string // functions
	Hint   string   // "no longer declared ..."
}

// String is the line as a person reads it, without routes.
func (c Change) String() string {
	s := fmt.Sprintf("%s %s %s", c.Op, c.Kind, c.Name)
	if c.Rev > 0 {
		s += fmt.Sprintf(" rev %d", c.Rev)
	}
	if c.Detail != "" {
		s += " (" + c.Detail + ")"
	}
	return s
}

// Plan is what a deploy changes, or would change: additions, modifications,
// removals and what stays, each sorted by name.
type Plan struct {
	App        lode.Name
	Generation uint64 // of the app afterwards; 0 if only planned and new
	Applied    bool
	Changes    []Change
	Missing    []lode.Digest // artifacts that are not there yet
	Warnings   []string
}

// Of returns the changes with one Op.
func (p *Plan) Of(op Op) []Change {
	var out []Change
	for _, c := range p.Changes {
		if c.Op == op {
			out = append(out, c)
		}
	}
	return out
}

// MustExist as DeployOptions.Expect asks only that the app exists.
const MustExist = ^uint64(0)

// DeployOptions go with a deploy.
type DeployOptions struct {
	Plan  bool // change nothing, tell what would change
	Prune bool // remove what the app owns and no longer declares
	// Expect is the generation of the app that the caller saw: another one is
	// Precondition. 0: whatever it is.
	Expect uint64
	By     string // who does it, for listings
}

// Deploy makes the app what is declared: wholly or not at all. A function with
// the content of a revision that is kept gets that revision again. Conflict: a
// name belongs to another app, or two routes cannot be told apart.
// Precondition: an artifact is missing (a plan lists them instead), or Expect
// does not hold.
func (c *Catalog) Deploy(ctx context.Context, ns lode.Namespace, app lode.App, o DeployOptions) (Plan, error) {
	if err := checkApp(ns, &app); err != nil {
		return Plan{}, err
	}
	missing, err := c.missingArtifacts(ctx, ns, &app)
	if err != nil {
		return Plan{}, err
	}
	if len(missing) > 0 && !o.Plan {
		return Plan{}, lode.Errorf(lode.Precondition, "app %s: %d artifacts are not stored, %s is the first", app.Name, len(missing), missing[0]).
			WithHint("upload them before the deploy")
	}
	var plan Plan
	err = c.change(ctx, ns, app.Name, o.By, o.Plan, func(t *change) (bool, error) {
		plan = Plan{App: app.Name, Missing: missing}
		old := t.space.apps[app.Name]
		if old != nil {
			plan.Generation = old.Gen
		}
		if err := expect(old, app.Name, o.Expect); err != nil {
			return false, err
		}
		d := deploy{change: t, app: &app, prune: o.Prune, plan: &plan}
		if err := d.run(); err != nil {
			return false, err
		}
		return d.changed, nil
	})
	if err != nil {
		return Plan{}, err
	}
	if !o.Plan {
		plan.Applied = true
		if sp := c.snap.Load().spaces[ns]; sp != nil && sp.apps[app.Name] != nil {
			plan.Generation = sp.apps[app.Name].Gen
		}
	}
	return plan, nil
}

func expect(old *appRecord, app lode.Name, want uint64) error {
	switch {
	case want == 0, want == MustExist && old != nil, old != nil && old.Gen == want:
		return nil
	case old == nil:
		return lode.Errorf(lode.Precondition, "app %s does not exist", app)
	}
	return lode.Errorf(lode.Precondition, "app %s was changed meanwhile", app).WithHint("look at it again, then repeat")
}

// missingArtifacts asks only for what is not in service already.
func (c *Catalog) missingArtifacts(ctx context.Context, ns lode.Namespace, app *lode.App) ([]lode.Digest, error) {
	if c.cfg.Artifacts == nil {
		return nil, nil
	}
	var missing []lode.Digest
	asked := make(map[lode.Digest]bool)
	all := maps.Clone(app.Functions)
	if all == nil {
		all = make(map[lode.Name]lode.Function)
	}
	maps.Copy(all, app.Agents)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		d := all[name].Artifact
		if e, ok := c.Lookup(ns, name); asked[d] || ok && e.Live != nil && e.Live.Function.Artifact == d {
			continue
		}
		asked[d] = true
		has, err := c.cfg.Artifacts.Has(ctx, d)
		if err != nil {
			return nil, err
		}
		if !has {
			missing = append(missing, d)
		}
	}
	return missing, nil
}

// checkApp checks what can be told from the declaration alone.
func checkApp(ns lode.Namespace, app *lode.App) error {
	if _, err := lode.ParseName(string(ns)); err != nil {
		return lode.Errorf(lode.Invalid, "namespace: %w", err)
	}
	if _, err := lode.ParseName(string(app.Name)); err != nil {
		return lode.Errorf(lode.Invalid, "app: %w", err)
	}
	if app.Weight < 0 || app.Weight > 100 {
		return lode.Errorf(lode.Invalid, "weight %d: want 1 to 100", app.Weight)
	}
	if app.Alias != "" {
		if err := checkAlias(app.Alias); err != nil {
			return err
		}
	}
	seen := make(map[lode.Name]Kind)
	declare := func(name lode.Name, kind Kind) error {
		if _, err := lode.ParseName(string(name)); err != nil {
			return lode.Errorf(lode.Invalid, "%s: %w", kind.noun(), err)
		}
		if seen[name] != "" {
			return lode.Errorf(lode.Invalid, "app %s declares %s twice: as %s and as %s", app.Name, name, seen[name].article(), kind.article()).
				WithHint("functions, agents, queues and datasets share one name space")
		}
		seen[name] = kind
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(app.Functions)) {
		if err := declare(name, KindFunction); err != nil {
			return err
		}
		f := app.Functions[name]
		if f.Artifact.IsZero() {
			return lode.Errorf(lode.Invalid, "function %s has no artifact", name)
		}
		if f.Agent != nil {
			return lode.Errorf(lode.Invalid, "function %s is a kind of agents, and belongs under agents", name)
		}
		for _, p := range f.Routes {
			if err := checkRoute(name, p); err != nil {
				return err
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(app.Agents)) {
		f := app.Agents[name]
		if err := declare(name, KindAgent); err != nil {
			return err
		}
		if err := checkKind(name, &f); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(app.Queues)) {
		if err := declare(name, KindQueue); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(app.Datasets)) {
		if err := declare(name, KindDataset); err != nil {
			return err
		}
	}
	return nil
}

// deploy edits an app's record into what is declared. It is pure.
type deploy struct {
	*change
	app      *lode.App
	prune    bool
	plan     *Plan
	changed  bool
	declared map[lode.Name]bool
}

func (d *deploy) run() error {
	d.declared = make(map[lode.Name]bool)
	queues := maps.Clone(d.app.Queues)
	if queues == nil {
		queues = make(map[lode.Name]lode.Queue)
	}
	implicit := d.implicitQueues(queues)
	for _, name := range slices.Sorted(maps.Keys(d.app.Functions)) {
		f := d.app.Functions[name]
		if err := d.revise(name, &f, KindFunction); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(d.app.Agents)) {
		f := d.app.Agents[name]
		if err := d.kind(name, &f); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(queues)) {
		q := queues[name]
		if err := d.simple(name, &nameRecord{Kind: KindQueue, Queue: &q, Implicit: implicit[name]}); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(d.app.Datasets)) {
		ds := d.app.Datasets[name]
		if err := d.simple(name, &nameRecord{Kind: KindDataset, Dataset: &ds}); err != nil {
			return err
		}
	}
	d.undeclared()
	d.warn()
	order := map[Op]int{Add: 0, Modify: 1, Remove: 2, Keep: 3}
	slices.SortFunc(d.plan.Changes, func(a, b Change) int {
		if a.Op != b.Op {
			return order[a.Op] - order[b.Op]
		}
		return strings.Compare(string(a.Name), string(b.Name))
	})
	// A first deploy of an empty app is a change: the app then exists.
	d.changed = d.changed || d.rec.Gen == 0
	return nil
}

// DefaultQueue is a queue that nothing is said about.
func DefaultQueue() lode.Queue {
	const day = 24 * 3600 * 1e9
	return lode.Queue{Keep: 7 * day, Deliver: 5, Visible: 30e9, Max: 1_000_000}
}

// implicitQueues adds the queues that functions name and nobody declares.
func (d *deploy) implicitQueues(queues map[lode.Name]lode.Queue) map[lode.Name]bool {
	implicit := make(map[lode.Name]bool)
	for _, f := range d.app.Functions {
		var names []lode.Name
		if f.Queue != nil {
			names = append(names, f.Queue.Queue)
		}
		if f.Retry.Dead != "" {
			names = append(names, f.Retry.Dead)
		}
		for _, q := range names {
			if _, ok := queues[q]; ok {
				continue
			}
			if e := d.space.names[q]; e != nil && e.Kind == KindQueue && (e.App != d.app.Name || !e.record.Implicit) {
				if e.App == d.app.Name {
					queues[q] = *e.Queue // declared earlier, and still used
				}
				continue
			}
			queues[q], implicit[q] = DefaultQueue(), true
		}
	}
	return implicit
}

// claim checks that the app may have the name, and returns what it has there.
func (d *deploy) claim(name lode.Name, kind Kind) (*nameRecord, error) {
	if e := d.space.names[name]; e != nil && e.App != d.app.Name {
		return nil, lode.Errorf(lode.Conflict, "%s %s belongs to app %s", e.Kind.noun(), name, e.App).
			WithHint("choose another name, or remove it there first: lode rm %s", name)
	}
	if err := d.stateKept(name, kind); err != nil {
		return nil, err
	}
	d.declared[name] = true
	n := d.rec.Names[name]
	if n.live() && n.Kind != kind {
		return nil, lode.Errorf(lode.Conflict, "%s is %s of app %s, not %s", name, n.Kind.article(), d.app.Name, kind.article()).
			WithHint("remove it first: lode rm %s", name)
	}
	return n, nil
}

// simple declares a queue or a dataset.
func (d *deploy) simple(name lode.Name, want *nameRecord) error {
	n, err := d.claim(name, want.Kind)
	if err != nil {
		return err
	}
	c := Change{Op: Keep, Kind: want.Kind, Name: name}
	switch {
	case !n.live():
		c.Op, want.Created = Add, d.now
		if want.Implicit {
			c.Detail = "used by a function"
		}
	case sameJSON(n.Queue, want.Queue) && sameJSON(n.Dataset, want.Dataset) && n.Implicit == want.Implicit:
		d.plan.Changes = append(d.plan.Changes, c)
		return nil
	default:
		c.Op, want.Created = Modify, n.Created
		c.Detail = differences(n, want)
	}
	d.changed = true
	d.rec.Names[name] = want
	d.plan.Changes = append(d.plan.Changes, c)
	return nil
}

// revise declares a function, or a kind of agents: what has code.
func (d *deploy) revise(name lode.Name, f *lode.Function, kind Kind) error {
	n, err := d.claim(name, kind)
	if err != nil {
		return err
	}
	body, digest, err := canonical(f)
	if err != nil {
		return err
	}
	if len(body) > maxFunction {
		return lode.Errorf(lode.TooLarge, "%s %s: its configuration has %d bytes, at most %d", kind.noun(), name, len(body), maxFunction)
	}
	c := Change{Op: Modify, Kind: kind, Name: name, Size: f.Size, Routes: f.Routes}
	if !n.live() {
		c.Op, c.Detail = Add, f.Language
		n = d.newRecord(name, kind)
	}
	rr, known := revRecord{}, false
	for _, r := range n.Revs {
		if r.Digest == digest {
			rr, known = r, true
		}
	}
	next := *n
	if !known {
		next.Last++
		rr = revRecord{Number: next.Last, Digest: digest, Created: d.now}
		next.Revs = append(slices.Clone(n.Revs), rr)
	}
	c.Rev = rr.Number
	before := n.Aliases
	if kind == KindAgent {
		next.shift("", rr.Number, 0)
		if !sameJSON(before, next.Aliases) {
			if err := d.whole(name); err != nil {
				return err
			}
		}
	} else {
		next.shift(d.app.Alias, rr.Number, d.app.Weight)
	}
	if known && c.Op != Add && sameJSON(before, next.Aliases) {
		c.Op = Keep
	} else if e := d.space.names[name]; c.Op == Modify && e != nil && e.Live != nil {
		c.Detail = differences(&e.Live.Function, f)
		if c.Detail == "" && !known {
			c.Detail = "new revision"
		}
	}
	lost := d.space.names[name] == nil || d.space.names[name].revs[rr.Number] == nil
	if c.Op != Keep || lost {
		d.changed = true
		d.rec.Names[name] = &next
		// The content of a known revision comes into service again, and is
		// stored again should it have been lost.
		d.fresh[revisionKey(d.rec.Namespace, name, digest)] = fresh{*f, body}
	}
	d.plan.Changes = append(d.plan.Changes, c)
	return nil
}

// maxFunction is the most bytes that a function's JSON may have: what a table
// takes, less a margin.
const maxFunction = 900 << 10

// newRecord is the record of a name that is new, or was removed. Numbers go on
// where they stopped, also in an app that had the name before; the state of a
// kind's agents is that of before.
func (d *deploy) newRecord(name lode.Name, kind Kind) *nameRecord {
	n := &nameRecord{Kind: kind, Created: d.now}
	for _, app := range d.space.apps {
		if old := app.Names[name]; old != nil && old.Kind == kind {
			n.Last = max(n.Last, old.Last)
		}
	}
	if old := d.rec.Names[name]; old != nil && old.Kind == kind && !old.Erased {
		n.Revs, n.Partitions, n.Born = old.Revs, old.Partitions, old.Born
	}
	return n
}

// shift points an alias ("" is live) to a revision with a weight (0 is 100);
// what is left stays with the revision that had the most. A function's first
// revision is live whatever the alias, for nothing else could be.
func (n *nameRecord) shift(word string, rev, weight int) {
	if word == "" {
		word = lode.LiveAlias
	}
	if weight == 0 {
		weight = 100
	}
	a, ok := n.alias(word)
	old := mainRev(a)
	if !ok {
		live, _ := n.alias(lode.LiveAlias)
		old = mainRev(live)
	}
	if len(a.Targets) == 2 && weight < 100 && (a.Targets[0].Rev == rev || a.Targets[1].Rev == rev) {
		for _, t := range a.Targets { // the same canary again: keep the other side
			if t.Rev != rev {
				old = t.Rev
			}
		}
	}
	targets := []lode.Target{{Rev: rev, Weight: 100}}
	if weight < 100 && old != 0 && old != rev {
		targets = []lode.Target{{Rev: old, Weight: 100 - weight}, {Rev: rev, Weight: weight}}
	}
	n.setAlias(lode.Alias{Name: word, Targets: targets})
	if _, ok := n.alias(lode.LiveAlias); !ok {
		n.setAlias(lode.Alias{Name: lode.LiveAlias, Targets: []lode.Target{{Rev: rev, Weight: 100}}})
	}
}

// undeclared deals with what the app has and does not declare.
func (d *deploy) undeclared() {
	for _, name := range slices.Sorted(maps.Keys(d.rec.Names)) {
		n := d.rec.Names[name]
		if !n.live() || d.declared[name] {
			continue
		}
		c := Change{Op: Keep, Kind: n.Kind, Name: name, Hint: "no longer declared; --prune removes it"}
		if live, ok := n.alias(lode.LiveAlias); ok {
			c.Rev = mainRev(live)
		}
		if d.prune {
			c.Op, c.Hint, d.changed = Remove, "", true
			d.rec.edit(name).Removed = d.now
		}
		d.plan.Changes = append(d.plan.Changes, c)
	}
}

func (d *deploy) warn() {
	for kind, of := range map[Kind]map[lode.Name]lode.Function{KindFunction: d.app.Functions, KindAgent: d.app.Agents} {
		for _, name := range slices.Sorted(maps.Keys(of)) {
			for _, need := range of[name].Needs {
				if d.space.names[need] == nil && !d.declared[need] {
					d.plan.Warnings = append(d.plan.Warnings, fmt.Sprintf("%s %s needs %s, which is not deployed", kind.noun(), name, need))
				}
			}
		}
	}
	slices.Sort(d.plan.Warnings)
}

// differences names the top-level fields of two values that are not the same.
func differences(a, b any) string {
	ma, mb := fields(a), fields(b)
	var out []string
	for k := range mb {
		if _, ok := ma[k]; !ok {
			ma[k] = nil
		}
	}
	for _, k := range slices.Sorted(maps.Keys(ma)) {
		if bytes.Equal(ma[k], mb[k]) || k == "created" || k == "size" {
			continue
		}
		if k == "artifact" {
			k = "code"
		}
		out = append(out, k)
	}
	return strings.Join(out, ", ")
}

func fields(v any) map[string]json.RawMessage {
	m := make(map[string]json.RawMessage)
	if b, err := json.Marshal(v); err == nil {
		_ = json.Unmarshal(b, &m) // what was just written can be read
	}
	return m
}

func sameJSON(a, b any) bool {
	x, errA := json.Marshal(a)
	y, errB := json.Marshal(b)
	return errA == nil && errB == nil && bytes.Equal(x, y)
}
