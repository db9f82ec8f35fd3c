package api

import (
	"net/http"

	"lode"
)

// rollback is the body of functions.rollback.
type rollback struct {
	Rev int `json:"rev"` // 0: the one before
}

// targets is the body of functions.alias.
type targets struct {
	Targets []lode.Target `json:"targets"`
}

func appRoutes() []route {
	removal := []param{{"data", "boolean", "remove state and data too, for ever"}}
	return []route{
		{id: "apps.list", method: "GET", path: "/v1/apps", role: RoleRead, summary: "List apps", query: paging, reply: List[App]{}, serve: listApps},
		{id: "apps.get", method: "GET", path: "/v1/apps/{app}", role: RoleRead, summary: "One app, as declared", reply: App{}, serve: getApp},
		{id: "apps.deploy", method: "PUT", path: "/v1/apps/{app}", role: RoleDeploy, write: true, summary: "Make an app what is declared; honours If-Match",
			query: []param{{"plan", "boolean", "change nothing"}, {"prune", "boolean", "remove what is no longer declared"}}, body: lode.App{}, reply: Plan{}, serve: deployApp},
		{id: "apps.remove", method: "DELETE", path: "/v1/apps/{app}", role: RoleDeploy, write: true, summary: "Remove an app with all its names", query: removal, reply: Removed{}, serve: removeApp},
		{id: "names.list", method: "GET", path: "/v1/names", role: RoleRead, summary: "List names of all kinds",
			query: append([]param{{"kind", "string", "function, agent, queue or dataset"}}, paging...), reply: List[Item]{}, serve: listNames},
		{id: "names.get", method: "GET", path: "/v1/names/{name}", role: RoleRead, summary: "Everything about a name", reply: Detail{}, serve: getName},
		{id: "names.remove", method: "DELETE", path: "/v1/names/{name}", role: RoleDeploy, write: true, summary: "Remove a name; undo works for seven days", query: removal, reply: Removed{}, serve: removeName},
		{id: "names.undo", method: "POST", path: "/v1/names/{name}/undo", role: RoleDeploy, write: true, summary: "Bring a removed name or app back", reply: Removed{}, serve: undoRemove},
		{id: "functions.list", method: "GET", path: "/v1/functions", role: RoleRead, summary: "List functions", query: paging, reply: List[Item]{}, serve: listFunctions},
		{id: "functions.get", method: "GET", path: "/v1/functions/{name}", role: RoleRead, summary: "A function with its live revision and aliases", reply: Function{}, serve: getFunction},
		{id: "functions.history", method: "GET", path: "/v1/functions/{name}/history", role: RoleRead, summary: "Revisions, newest first", query: paging, reply: List[lode.Revision]{}, serve: history},
		{id: "functions.rollback", method: "POST", path: "/v1/functions/{name}/rollback", role: RoleDeploy, write: true, summary: "Make an older revision live", body: rollback{}, reply: Function{}, serve: rollBack},
		{id: "functions.alias", method: "PUT", path: "/v1/functions/{name}/aliases/{alias}", role: RoleDeploy, write: true, summary: "Set an alias; weights add up to 100", body: targets{}, reply: Function{}, serve: setAlias},
		{id: "functions.unalias", method: "DELETE", path: "/v1/functions/{name}/aliases/{alias}", role: RoleDeploy, write: true, summary: "Remove an alias", reply: Function{}, serve: removeAlias},
		{id: "blobs.has", method: "HEAD", path: "/v1/blobs/{digest}", role: RoleDeploy, summary: "Is this artifact there?", serve: hasBlob},
		{id: "blobs.put", method: "PUT", path: "/v1/blobs/{digest}", role: RoleDeploy, summary: "Upload an artifact; its BLAKE3 digest is checked", bodyRaw: "application/octet-stream", serve: putBlob},
		{id: "blobs.describe", method: "GET", path: "/v1/blobs/{digest}/module", role: RoleDeploy, summary: "Compile an artifact, and tell what it says of itself", reply: Module{}, serve: describeBlob},
	}
}

func listApps(c *call) error {
	if c.b.Apps == nil {
		return missing("apps")
	}
	return listing(c, func(p Page) (List[App], error) { return c.b.Apps.ListApps(c.r.Context(), c.ns, p) })
}

func getApp(c *call) error {
	return c.withApps("app", func(a Apps, n lode.Name) error {
		v, err := a.GetApp(c.r.Context(), c.ns, n)
		if err != nil {
			return err
		}
		return c.json(v, v.ETag)
	})
}

// withApps runs do with the noun and the name in the path.
func (c *call) withApps(key string, do func(Apps, lode.Name) error) error {
	if c.b.Apps == nil {
		return missing("apps")
	}
	return named(c, key, func(n lode.Name) error { return do(c.b.Apps, n) })
}

func deployApp(c *call) error {
	return c.withApps("app", func(a Apps, n lode.Name) error {
		var app lode.App
		if err := c.read(&app); err != nil {
			return err
		}
		if app.Name == "" {
			app.Name = n
		}
		if app.Name != n {
			return lode.Errorf(lode.Invalid, "the path names app %s, the body %s", n, app.Name)
		}
		o, err := c.deployOptions()
		if err != nil {
			return err
		}
		p, err := a.Deploy(c.r.Context(), c.ns, app, o)
		if err != nil {
			return err
		}
		if p.Changes == nil {
			p.Changes = []Change{}
		}
		return c.json(p, p.ETag)
	})
}

func (c *call) deployOptions() (o DeployOptions, err error) {
	if o.Plan, err = c.bool("plan"); err != nil {
		return o, err
	}
	if o.Prune, err = c.bool("prune"); err != nil {
		return o, err
	}
	o.IfMatch, err = c.ifMatch()
	return o, err
}

func (c *call) removeOptions() (o RemoveOptions, err error) {
	if o.Data, err = c.bool("data"); err != nil {
		return o, err
	}
	o.IfMatch, err = c.ifMatch()
	return o, err
}

func removeApp(c *call) error {
	return c.withApps("app", func(a Apps, n lode.Name) error {
		return c.remove(func(o RemoveOptions) (Removed, error) { return a.RemoveApp(c.r.Context(), c.ns, n, o) })
	})
}

func removeName(c *call) error {
	return c.withApps("name", func(a Apps, n lode.Name) error {
		return c.remove(func(o RemoveOptions) (Removed, error) { return a.RemoveName(c.r.Context(), c.ns, n, o) })
	})
}

func (c *call) remove(do func(RemoveOptions) (Removed, error)) error {
	o, err := c.removeOptions()
	if err != nil {
		return err
	}
	v, err := do(o)
	if err != nil {
		return err
	}
	return c.json(v, "")
}

func undoRemove(c *call) error {
	return c.withApps("name", func(a Apps, n lode.Name) error {
		v, err := a.UndoRemove(c.r.Context(), c.ns, n)
		if err != nil {
			return err
		}
		return c.json(v, "")
	})
}

func listNames(c *call) error { return c.listKind(ItemKind(c.r.URL.Query().Get("kind"))) }

func listFunctions(c *call) error { return c.listKind(KindFunction) }

func (c *call) listKind(kind ItemKind) error {
	if c.b.Apps == nil {
		return missing("apps")
	}
	if err := checkKind(kind); err != nil {
		return err
	}
	return listing(c, func(p Page) (List[Item], error) { return c.b.Apps.ListNames(c.r.Context(), c.ns, kind, p) })
}

func checkKind(kind ItemKind) error {
	var words []string
	for _, k := range Kinds() {
		if k == kind {
			return nil
		}
		words = append(words, string(k))
	}
	if kind == "" {
		return nil
	}
	e := lode.Errorf(lode.Invalid, "there is no kind %q", kind).WithHint("kinds: function, agent, queue, dataset")
	if near := lode.Suggest(string(kind), words); near != "" {
		e.WithHint("did you mean %q?", near)
	}
	return e
}

func getName(c *call) error {
	return c.withApps("name", func(a Apps, n lode.Name) error {
		v, err := a.GetName(c.r.Context(), c.ns, n)
		if err != nil {
			return err
		}
		return c.json(v, "")
	})
}

func getFunction(c *call) error {
	return c.withApps("name", func(a Apps, n lode.Name) error {
		v, err := a.GetName(c.r.Context(), c.ns, n)
		if err != nil {
			return err
		}
		if v.Function == nil {
			return lode.Errorf(lode.NotFound, "%s is a %s, not a function", n, v.Kind)
		}
		return c.json(v.Function, v.Function.ETag)
	})
}

func history(c *call) error {
	return c.withApps("name", func(a Apps, n lode.Name) error {
		return listing(c, func(p Page) (List[lode.Revision], error) { return a.History(c.r.Context(), c.ns, n, p) })
	})
}

func rollBack(c *call) error {
	return c.withApps("name", func(a Apps, n lode.Name) error {
		var body rollback
		if c.r.ContentLength != 0 {
			if err := c.read(&body); err != nil {
				return err
			}
		}
		if body.Rev < 0 {
			return lode.Errorf(lode.Invalid, "there is no revision %d", body.Rev)
		}
		return c.changeFunction(func(tag string) (Function, error) { return a.Rollback(c.r.Context(), c.ns, n, body.Rev, tag) })
	})
}

func (c *call) changeFunction(do func(ifMatch string) (Function, error)) error {
	tag, err := c.ifMatch()
	if err != nil {
		return err
	}
	v, err := do(tag)
	if err != nil {
		return err
	}
	return c.json(v, v.ETag)
}

func setAlias(c *call) error {
	return c.withApps("name", func(a Apps, n lode.Name) error {
		var body targets
		if err := c.read(&body); err != nil {
			return err
		}
		al := lode.Alias{Name: c.r.PathValue("alias"), Targets: body.Targets}
		if err := CheckAlias(al); err != nil {
			return err
		}
		return c.changeFunction(func(tag string) (Function, error) { return a.SetAlias(c.r.Context(), c.ns, n, al, tag) })
	})
}

// CheckAlias checks an alias that is to be set: its name obeys the law of
// names, its targets are different revisions, its weights add up to 100.
func CheckAlias(a lode.Alias) error {
	if _, err := lode.ParseName(a.Name); err != nil {
		return err
	}
	sum, seen := 0, map[int]bool{}
	for _, t := range a.Targets {
		if t.Rev < 1 || t.Weight < 0 || seen[t.Rev] {
			return lode.Errorf(lode.Invalid, "alias %s: bad target %d:%d", a.Name, t.Rev, t.Weight).
				WithHint("want each revision once, from 1 on, with a weight from 0 to 100")
		}
		seen[t.Rev] = true
		sum += t.Weight
	}
	if sum != 100 {
		return lode.Errorf(lode.Invalid, "the weights of alias %s add up to %d, not to 100", a.Name, sum)
	}
	return nil
}

func removeAlias(c *call) error {
	return c.withApps("name", func(a Apps, n lode.Name) error {
		name := c.r.PathValue("alias")
		if name == lode.LiveAlias {
			return lode.Errorf(lode.Invalid, "the alias live cannot be removed").WithHint("remove the function: lode rm %s", n)
		}
		return c.changeFunction(func(tag string) (Function, error) {
			return a.SetAlias(c.r.Context(), c.ns, n, lode.Alias{Name: name}, tag)
		})
	})
}

func (c *call) digest() (d lode.Digest, err error) {
	err = d.UnmarshalText([]byte(c.r.PathValue("digest")))
	return d, err
}

func hasBlob(c *call) error {
	if c.b.Blobs == nil {
		return missing("blobs")
	}
	d, err := c.digest()
	if err != nil {
		return err
	}
	ok, err := c.b.Blobs.HasBlob(c.r.Context(), c.ns, d)
	if err != nil {
		return err
	}
	if !ok {
		return lode.Errorf(lode.NotFound, "no blob %s", d.Short())
	}
	c.begin("application/octet-stream", http.StatusOK)
	return nil
}

func putBlob(c *call) error {
	if c.b.Blobs == nil {
		return missing("blobs")
	}
	d, err := c.digest()
	if err != nil {
		return err
	}
	if err := c.b.Blobs.PutBlob(c.r.Context(), c.ns, d, c.r.ContentLength, c.r.Body); err != nil {
		return err
	}
	return c.noContent()
}

func describeBlob(c *call) error {
	if c.b.Blobs == nil {
		return missing("blobs")
	}
	d, err := c.digest()
	if err != nil {
		return err
	}
	v, err := c.b.Blobs.DescribeBlob(c.r.Context(), c.ns, d)
	if err != nil {
		return err
	}
	return c.json(v, "")
}
