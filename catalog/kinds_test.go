package catalog

import (
	"context"
	"slices"
	"testing"
	"time"

	"lode"
)

// kind is a kind of agents whose code is told apart by one byte.
func kind(code byte, edits ...func(*lode.Function)) lode.Function {
	f := fn(code)
	f.Agent = &lode.AgentSpec{Partitions: 8, Mailbox: 10}
	for _, e := range edits {
		e(&f)
	}
	return f
}

func partitions(n int) func(*lode.Function) {
	return func(f *lode.Function) { f.Agent.Partitions = n }
}

// shop is an app with the kind cart, and a function that needs it.
func shop(cart lode.Function) lode.App {
	web := fn(9)
	web.Needs = []lode.Name{"cart"}
	return lode.App{Name: "shop", Functions: functions{"web": web}, Agents: functions{"cart": cart}}
}

func (w *world) wantAgents(rev int, code byte) {
	w.t.Helper()
	r, err := w.ResolveAgent(ns, "cart")
	if err != nil || r.Number != rev || r.Function.Artifact != (lode.Digest{code, 1}) || r.Name != "cart" || r.Namespace != ns || r.Function.Agent == nil {
		w.t.Fatalf("got %+v, %v", r, err)
	}
}

func names(revs func(func(*lode.Revision) bool)) (out []string) {
	for r := range revs {
		out = append(out, string(r.Name))
	}
	slices.Sort(out)
	return out
}

func TestKind(t *testing.T) {
	w := newWorld(t)
	plan := w.deploy(shop(kind(1)), DeployOptions{})
	if lines(plan) != "+cart@1 +web@1" || plan.Changes[0].Kind != KindAgent || len(plan.Warnings) > 0 {
		t.Fatalf("%s %+v", lines(plan), plan)
	}
	w.wantAgents(1, 1)
	if got := names(w.Functions()); !slices.Equal(got, []string{"web"}) {
		t.Errorf("functions %v", got)
	}
	if got := names(w.Kinds()); !slices.Equal(got, []string{"cart"}) {
		t.Errorf("kinds %v", got)
	}
	_, err := w.Resolve(ns, "cart", "", 0)
	wantKind(t, err, lode.NotFound, "cart is a kind of agents", "POST /agents/cart/KEY/METHOD")
	_, err = w.ResolveAgent(ns, "web")
	wantKind(t, err, lode.NotFound, "web is a function", "POST /fn/web")
	_, err = w.ResolveAgent(ns, "crat")
	wantKind(t, err, lode.NotFound, "no kind of agents is named crat", `did you mean "cart"?`)
	if plan := w.deploy(shop(kind(1)), DeployOptions{}); lines(plan) != "=cart@1 =web@1" {
		t.Errorf("again: %s", lines(plan))
	}
	if plan := w.deploy(shop(kind(2)), DeployOptions{}); lines(plan) != "~cart@2 =web@1" || plan.Changes[0].Detail != "code" {
		t.Errorf("new code: %s %+v", lines(plan), plan.Changes)
	}
	w.wantAgents(2, 2)
	w.restart()
	w.wantAgents(2, 2)
	app, err := w.App(ns, "shop")
	if err != nil || len(app.Spec().Agents) != 1 || len(app.Spec().Functions) != 1 || app.Spec().Agents["cart"].Agent.Mailbox != 10 {
		t.Errorf("%+v %v", app, err)
	}
	if allocs := testing.AllocsPerRun(100, func() { w.ResolveAgent(ns, "cart") }); allocs > 0 {
		t.Errorf("ResolveAgent allocates %v times", allocs)
	}
}

func TestKindAliases(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	w.deploy(shop(kind(1)), DeployOptions{})
	w.deploy(shop(kind(2)), DeployOptions{})
	if _, err := w.Rollback(ctx, ns, "cart", 0, 0, ""); err != nil {
		t.Fatal(err)
	}
	w.wantAgents(1, 1)
	if h, err := w.History(ctx, ns, "cart", 0, 0); err != nil || len(h) != 2 || h[0].Number != 2 {
		t.Errorf("%v %v", h, err)
	}
	_, err := w.Rollback(ctx, ns, "cart", 0, 0, "")
	wantKind(t, err, lode.NotFound, "kind cart has no earlier revision")
	for _, a := range []lode.Alias{
		{Name: "canary", Targets: []lode.Target{{Rev: 2, Weight: 100}}},
		{Name: "live", Targets: []lode.Target{{Rev: 1, Weight: 90}, {Rev: 2, Weight: 10}}},
	} {
		_, err := w.SetAlias(ctx, ns, "cart", a, 0, "")
		wantKind(t, err, lode.Invalid, "one state", "lode rollback cart")
	}
	for _, edit := range []func(*lode.App){func(a *lode.App) { a.Alias, a.Weight = "canary", 100 }, func(a *lode.App) { a.Alias, a.Weight = "live", 10 }} {
		app := shop(kind(3))
		edit(&app)
		_, err := w.Deploy(ctx, ns, app, DeployOptions{})
		wantKind(t, err, lode.Invalid, "kind cart", "no weight")
		app.Agents["cart"] = kind(1) // as it is: the functions may
		app.Functions["web"] = fn(10)
		if _, err := w.Deploy(ctx, ns, app, DeployOptions{Plan: true}); err != nil {
			t.Error(err)
		}
	}
}

func TestKindPartitions(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	w.deploy(shop(kind(1)), DeployOptions{})
	_, err := w.Deploy(ctx, ns, shop(kind(2, partitions(16))), DeployOptions{Plan: true})
	wantKind(t, err, lode.Conflict, "has 8 partitions", "partitions: 8")
	born := w.KindStates()[0].Born
	w.deploy(shop(kind(2)), DeployOptions{})

	// Removed, and deployed again in time: it is the same state.
	if _, err := w.Remove(ctx, ns, []lode.Name{"cart"}, RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if s := w.KindStates(); len(s) != 1 || s[0].Until.IsZero() || s[0].Born != born || s[0].Partitions != 8 {
		t.Fatalf("%+v", s)
	}
	_, err = w.ResolveAgent(ns, "cart")
	wantKind(t, err, lode.Gone, "lode rm --undo cart")
	_, err = w.Deploy(ctx, ns, shop(kind(2, partitions(16))), DeployOptions{})
	wantKind(t, err, lode.Conflict, "has 8 partitions")
	other := lode.App{Name: "other", Agents: functions{"cart": kind(5)}}
	_, err = w.Deploy(ctx, ns, other, DeployOptions{})
	wantKind(t, err, lode.Conflict, "of app shop", "lode rm --data cart")
	_, err = w.Deploy(ctx, ns, lode.App{Name: "shop", Functions: functions{"cart": fn(5)}}, DeployOptions{})
	wantKind(t, err, lode.Conflict, "state is kept")
	w.deploy(shop(kind(2)), DeployOptions{})
	if s := w.KindStates(); len(s) != 1 || !s[0].Until.IsZero() || s[0].Born != born {
		t.Fatalf("%+v", s)
	}

	// Removed with its data: what comes next is new, and may be of others.
	if _, err := w.Remove(ctx, ns, []lode.Name{"cart"}, RemoveOptions{Data: true}); err != nil {
		t.Fatal(err)
	}
	if s := w.KindStates(); len(s) != 0 {
		t.Fatalf("%+v", s)
	}
	w.deploy(lode.App{Name: "other", Agents: functions{"cart": kind(5, partitions(0))}}, DeployOptions{})
	if s := w.KindStates(); len(s) != 1 || s[0].Born <= born || s[0].Partitions != lode.DefaultPartitions {
		t.Fatalf("%+v", s)
	}
	w.wantAgents(3, 5) // numbers go on
}

func TestKindUndo(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	w.deploy(shop(kind(1)), DeployOptions{})
	if _, err := w.RemoveApp(ctx, ns, "shop", RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	w.restart()
	if _, err := w.Undo(ctx, ns, "shop", ""); err != nil {
		t.Fatal(err)
	}
	w.wantAgents(1, 1)
	if _, err := w.Remove(ctx, ns, []lode.Name{"cart"}, RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	w.clock.Add(int64((keepFor + time.Hour) / time.Second))
	if s := w.KindStates(); len(s) != 0 {
		t.Errorf("kept for ever: %+v", s)
	}
	w.deploy(lode.App{Name: "other", Agents: functions{"cart": kind(5, partitions(4))}}, DeployOptions{})
}

func TestKindRefused(t *testing.T) {
	w := newWorld(t)
	both := shop(kind(1))
	both.Functions["cart"] = fn(1)
	for name, tt := range map[string]struct {
		app  lode.App
		says string
	}{
		"twice":       {both, "as a function and as a kind of agents"},
		"no agent":    {lode.App{Name: "a", Agents: functions{"cart": fn(1)}}, "is no kind of agents"},
		"as function": {lode.App{Name: "a", Functions: functions{"cart": kind(1)}}, "belongs under agents"},
		"routes":      {lode.App{Name: "a", Agents: functions{"cart": kind(1, routes("/x"))}}, "agents have no routes"},
		"no code":     {lode.App{Name: "a", Agents: functions{"cart": {Agent: &lode.AgentSpec{}}}}, "no artifact"},
		"partitions":  {lode.App{Name: "a", Agents: functions{"cart": kind(1, partitions(-1))}}, "-1 partitions"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := w.Deploy(context.Background(), ns, tt.app, DeployOptions{})
			wantKind(t, err, lode.Invalid, tt.says)
		})
	}
	w.blobs.Store(lode.Digest{7, 1}, true)
	plan := w.deploy(shop(kind(7)), DeployOptions{Plan: true})
	if !slices.Equal(plan.Missing, []lode.Digest{{7, 1}}) {
		t.Errorf("missing %v", plan.Missing)
	}
	w.deploy(lode.App{Name: "fns", Functions: functions{"cart": fn(1)}}, DeployOptions{})
	_, err := w.Deploy(context.Background(), ns, lode.App{Name: "fns", Agents: functions{"cart": kind(1)}}, DeployOptions{})
	wantKind(t, err, lode.Conflict, "cart is a function of app fns, not a kind of agents")
}
