package spec

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"lode"
)

// Source is one thing to build.
type Source struct {
	Path  string      // absolute
	Build []string    // argv, or nil
	For   []lode.Name // functions and kinds that come from it; none: the code's own exports
}

// Key tells sources apart.
func (s Source) Key() string { return strings.Join(append([]string{s.Path}, s.Build...), "\x00") }

// Artifact is what a build made of a source.
type Artifact struct {
	Name     lode.Name // of the folder or file that it was made of
	Digest   lode.Digest
	Size     int64
	Language string
	Contract lode.Contract
	Exports  *lode.Description // nil: it does not say
}

// Sources lists what there is to build, in the order of paths.
func (d *Declared) Sources() []Source {
	if d.Implicit {
		return []Source{{Path: d.Source}}
	}
	byKey := map[string]*Source{}
	for _, of := range []map[lode.Name]*Function{d.Functions, d.Agents} {
		for _, name := range slices.Sorted(maps.Keys(of)) {
			f := of[name]
			s := Source{Path: f.Source, Build: f.Build}
			if byKey[s.Key()] == nil {
				byKey[s.Key()] = &s
			}
			byKey[s.Key()].For = append(byKey[s.Key()].For, name)
		}
	}
	var out []Source
	for _, k := range slices.Sorted(maps.Keys(byKey)) {
		out = append(out, *byKey[k])
	}
	return out
}

// Complete puts artifacts, by Source.Key, into what is declared. Functions and
// kinds of an implicit app come from what the code exports. A folder of folders has
// several artifacts: a function takes the one of its name.
func (d *Declared) Complete(built map[string][]Artifact) (lode.App, error) {
	app := lode.App{Name: d.Name, Functions: map[lode.Name]lode.Function{}, Agents: map[lode.Name]lode.Function{}, Queues: d.Queues, Datasets: d.Datasets}
	if d.Implicit {
		arts := built[Source{Path: d.Source}.Key()] // none: only data
		for _, a := range arts {
			if err := d.fromExports(&app, a, len(arts) > 1); err != nil {
				return app, err
			}
		}
		for _, a := range arts {
			if err := d.kindsFromExports(&app, a); err != nil {
				return app, err
			}
		}
		return app, nil
	}
	for _, name := range slices.Sorted(maps.Keys(d.Functions)) {
		f := d.Functions[name]
		a, err := choose(name, built[Source{Path: f.Source, Build: f.Build}.Key()])
		if err != nil {
			return app, err
		}
		out, err := f.with(name, a)
		if err != nil {
			return app, err
		}
		app.Functions[name] = out
	}
	for _, name := range slices.Sorted(maps.Keys(d.Agents)) {
		f := d.Agents[name]
		a, err := choose(name, built[Source{Path: f.Source, Build: f.Build}.Key()])
		if err != nil {
			return app, err
		}
		if app.Agents[name], err = f.asKind(name, a); err != nil {
			return app, err
		}
	}
	return app, nil
}

// choose picks the artifact of a function, or a kind, among those of its source.
func choose(name lode.Name, of []Artifact) (Artifact, error) {
	if len(of) == 1 {
		return of[0], nil
	}
	var names []string
	for _, a := range of {
		if a.Name == name {
			return a, nil
		}
		names = append(names, string(a.Name))
	}
	return Artifact{}, lode.Errorf(lode.Invalid, "%s: no folder or file of that name, and the app has several sources", name).
		WithHint("say which: source: ./%s", strings.Join(names, ", ./"))
}

// exports lists the handlers and jobs of an artifact by name.
func exports(a Artifact) map[string]lode.Export {
	out := map[string]lode.Export{}
	if a.Exports == nil {
		return out
	}
	for _, e := range slices.Concat(a.Exports.Functions, a.Exports.Jobs) {
		if old, has := out[e.Name]; has && e.Reduce == "" {
			e.Reduce = old.Reduce
		}
		out[e.Name] = e
	}
	return out
}

// with is f, built.
func (f *Function) with(name lode.Name, a Artifact) (lode.Function, error) {
	out := f.Function
	out.Artifact, out.Size, out.Language, out.Exports = a.Digest, a.Size, a.Language, a.Exports
	if out.Contract != "" && out.Contract != a.Contract {
		return out, lode.Errorf(lode.Invalid, "function %s: the code is a %s, and contract says %s", name, a.Contract, out.Contract).
			WithHint("a handler registers itself with the SDK, a command has a main and reads standard input")
	}
	out.Contract = a.Contract
	all := exports(a)
	if len(all) == 0 {
		return out, agentsOnly(name, a)
	}
	e, ok := all[string(name)]
	if !ok {
		e, ok = all[""]
	}
	if !ok && len(all) == 1 {
		for _, only := range all {
			e, ok = only, true
		}
	}
	if !ok {
		names := slices.Sorted(maps.Keys(all))
		err := lode.Errorf(lode.Invalid, "function %s: the code has no handler of that name", name).WithHint("it has: %s", strings.Join(names, ", "))
		if near := lode.Suggest(string(name), names); near != "" {
			err.WithHint("did you mean %q? it has: %s", near, strings.Join(names, ", "))
		}
		return out, err
	}
	out.Export = e.Name
	if out.Reduce == "" {
		out.Reduce = e.Reduce
	}
	return out, nil
}

// agentsOnly refuses code that holds nothing but agent kinds.
func agentsOnly(name lode.Name, a Artifact) error {
	if a.Exports == nil || len(a.Exports.Kinds) == 0 {
		return nil
	}
	return lode.Errorf(lode.Invalid, "function %s: the code has no handler, only the kind of agents %s", name, a.Exports.Kinds[0].Name).
		WithHint("declare it under agents instead of functions, or export a handler beside it")
}

// fromExports makes a function of each handler and job. The default handler is
// named as the app, or as its folder if there are several.
func (d *Declared) fromExports(app *lode.App, a Artifact, several bool) error {
	all := exports(a)
	if len(all) == 0 {
		if a.Exports != nil && len(a.Exports.Kinds) > 0 {
			return nil // it has agents only
		}
		all[""] = lode.Export{}
	}
	for _, export := range slices.Sorted(maps.Keys(all)) {
		name := d.Name
		if several {
			name = a.Name
		}
		if export != "" {
			if name = FixName(export); name == "" {
				return lode.Errorf(lode.Invalid, "no name can be made of the handler %q", export)
			}
		}
		if _, taken := app.Functions[name]; taken {
			return lode.Errorf(lode.Invalid, "two handlers of the code would both be the function %s", name).WithHint("rename one, or declare both in lode.yaml")
		}
		if err := d.free(name); err != nil {
			return err
		}
		f := d.base(0)
		f.Access = lode.AccessToken
		if err := f.inherit(d); err != nil {
			return err
		}
		out, err := f.with(name, a)
		if err != nil {
			return err
		}
		e := all[export]
		out.Export = e.Name
		if out.Reduce = f.Reduce; out.Reduce == "" {
			out.Reduce = e.Reduce
		}
		app.Functions[name] = out
	}
	return nil
}

// free refuses a function, or a kind, whose name the file gave to something
// else.
func (d *Declared) free(name lode.Name) error {
	_, q := d.Queues[name]
	_, s := d.Datasets[name]
	if q || s {
		return lode.Errorf(lode.Invalid, "%s names both something in the code and a queue or dataset of %s", name, FileName).WithHint("rename one of them")
	}
	return nil
}

// inherit reads the file's defaults into a function that the file does not
// name. They were checked before.
func (f *Function) inherit(d *Declared) error {
	if d.defaults == nil {
		return nil
	}
	p := &parser{file: FileName, lookup: d.lookup}
	if f.Agent != nil {
		p.defaultsFor(f, d.defaults)
		return nil
	}
	readObject(p, d.defaults, "defaults", functionFields(), f)
	if err := p.probs.asError(); err != nil {
		return fmt.Errorf("defaults: %w", err)
	}
	return nil
}
