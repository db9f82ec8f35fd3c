package node

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	"lode"
	"lode/engine"
)

// compile checks every artifact of app, compiles it once, and completes the
// functions and kinds with what their code says of itself.
func (p *pools) compile(ctx context.Context, app *lode.App) error {
	type compiled struct {
		artifact lode.Digest
		limits   lode.Limits
	}
	done := map[compiled]*engine.Info{} // of many functions in one artifact
	info := func(f *lode.Function) (*engine.Info, error) {
		key := compiled{f.Artifact, f.Limits}
		if done[key] == nil {
			got, err := p.n.engine.Compile(ctx, p.source(f.Artifact), f.Limits)
			if err != nil {
				return nil, err
			}
			done[key] = got
		}
		return done[key], nil
	}
	for name, f := range app.Functions {
		got, err := info(&f)
		if err != nil {
			return named(err, "function %s", name)
		}
		if f.Contract == "" {
			f.Contract = got.Contract
		}
		if f.Contract != got.Contract {
			return lode.Errorf(lode.Invalid, "function %s: the module is a %s, not a %s", name, got.Contract, f.Contract)
		}
		f.Exports = got.Description
		if err := exported(name, &f); err != nil {
			return err
		}
		app.Functions[name] = f
	}
	for name, f := range app.Agents {
		got, err := info(&f)
		if err != nil {
			return named(err, "kind %s", name)
		}
		if err := kindOf(name, &f, got); err != nil {
			return err
		}
		app.Agents[name] = f
	}
	return nil
}

// exported checks that the module has the handler that the function names.
func exported(name lode.Name, f *lode.Function) error {
	if f.Export == "" || f.Exports == nil {
		return nil
	}
	var words []string
	for _, e := range append(f.Exports.Functions, f.Exports.Jobs...) {
		if e.Name == f.Export {
			return nil
		}
		if e.Name != "" {
			words = append(words, e.Name)
		}
	}
	err := lode.Errorf(lode.Invalid, "function %s: the module has no handler %q", name, f.Export)
	if s := lode.Suggest(f.Export, words); s != "" {
		return err.WithHint("did you mean %q?", s)
	}
	list, _ := json.Marshal(words)
	return err.WithHint("its handlers: %s", list)
}

// kindOf completes a kind with what its code says of itself. Code that says
// nothing is taken at its word: its methods are not known.
func kindOf(name lode.Name, f *lode.Function, info *engine.Info) error {
	if f.Contract = info.Contract; f.Contract != lode.ContractHandler {
		return lode.Errorf(lode.Invalid, "kind %s: the module is a %s, and agents are handlers", name, f.Contract).
			WithHint("register the kind with an SDK")
	}
	if f.Exports = info.Description; f.Exports == nil || f.Agent == nil {
		return nil // the catalog refuses a kind without its spec
	}
	class, err := classOf(name, f)
	if err != nil {
		return err
	}
	spec := *f.Agent
	spec.Class, spec.Methods, spec.Read = class.Name, slices.Clone(class.Methods), slices.Clone(class.Read)
	for _, m := range f.Agent.Read {
		if !slices.Contains(class.Methods, m) {
			return noMethod(name, m, class.Methods)
		}
		spec.Read = append(spec.Read, m)
	}
	slices.Sort(spec.Methods)
	slices.Sort(spec.Read)
	spec.Methods, spec.Read = slices.Compact(spec.Methods), slices.Compact(spec.Read)
	f.Agent = &spec
	return nil
}

// classOf finds the module's class that a kind names: with no name its only
// one.
func classOf(name lode.Name, f *lode.Function) (lode.KindExp, error) {
	var words []string
	for _, k := range f.Exports.Kinds {
		if k.Name == f.Agent.Class {
			return k, nil
		}
		words = append(words, k.Name)
	}
	switch {
	case len(words) == 0:
		return lode.KindExp{}, lode.Errorf(lode.Invalid, "kind %s: the module has no kinds of agents", name).WithHint("register one with an SDK")
	case f.Agent.Class == "" && len(words) == 1:
		return f.Exports.Kinds[0], nil
	case f.Agent.Class == "":
		return lode.KindExp{}, lode.Errorf(lode.Invalid, "kind %s: the module has several classes, and none is named", name).WithHint("its classes: %s", strings.Join(words, ", "))
	}
	err := lode.Errorf(lode.Invalid, "kind %s: the module has no class %q", name, f.Agent.Class)
	if s := lode.Suggest(f.Agent.Class, words); s != "" {
		return lode.KindExp{}, err.WithHint("did you mean %q?", s)
	}
	return lode.KindExp{}, err.WithHint("its classes: %s", strings.Join(words, ", "))
}

func noMethod(name lode.Name, method string, words []string) error {
	err := lode.Errorf(lode.Invalid, "kind %s: the code has no method %q", name, method)
	if s := lode.Suggest(method, words); s != "" {
		return err.WithHint("did you mean %q? methods: %s", s, strings.Join(words, ", "))
	}
	return err.WithHint("methods: %s", strings.Join(words, ", "))
}
