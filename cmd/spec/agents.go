package spec

import (
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"lode"
)

// kindFields are the keys of a kind of agents: code and limits as those of a
// function, and its own. What starts a function (routes, schedules, queues)
// has no meaning for agents, which are called by address.
func kindFields() []field[fn] {
	without := func(fields []field[fn], keys ...string) []field[fn] {
		return slices.DeleteFunc(fields, func(f field[fn]) bool { return slices.Contains(keys, f.key) })
	}
	access := without(triggerFields(), "route", "routes", "cors", "schedule", "queue", "batch", "events", "retry", "reduce", "ok_exit")
	return slices.Concat(ownKindFields(), access, without(codeFields(), "run", "contract", "handler"), without(limitFields(), "queue_max", "scale", "near"))
}

// ownKindFields are the keys that only kinds have.
func ownKindFields() []field[fn] {
	return []field[fn]{
		{key: "partitions", about: "parts that nodes own; fixed by the first deploy", as: intOf(1, maxPartitions, func(f *fn) *int { return &f.Agent.Partitions })},
		{key: "reentrant", about: "what becomes of a call to an agent that waits for that very call", as: enumOf([]string{"refuse", "chain"}, nil, func(f *fn) *lode.Reentrant { return &f.Agent.Reentrant })},
		{key: "idle", about: "how long an agent stays in memory without a message", as: spanOf(0, day, func(f *fn) *time.Duration { return &f.Agent.Idle })},
		{key: "ttl", about: "an agent without a message for so long is removed; never", as: ttlShape()},
		{key: "state_max", about: "of one agent", as: sizeOf(kib, 64*gib, func(f *fn) *int64 { return &f.Agent.StateMax })},
		{key: "mailbox", about: "messages that may wait at one agent", as: intOf(1, 100_000, func(f *fn) *int { return &f.Agent.Mailbox })},
		{key: "reads", about: "how a method that only reads knows that it sees everything", as: enumOf([]string{"lease", "barrier"}, nil, func(f *fn) *lode.Reads { return &f.Agent.Reads })},
		{key: "scale", about: "sandboxes of a node", as: mapOf([]field[fn]{
			{key: "max", as: intOf(0, 100_000, func(f *fn) *int { return &f.Limits.ScaleMax })},
		}, func(f *fn) *fn { return f })},
		{key: "near", about: "a dataset, kind, node, zone or label (KEY=VALUE): its partitions are to be on nodes of that, where they can", as: nearShape()},
		{key: "methods", about: "methods that only read, beside those that the code marks: {total: read}", as: methodsShape()},
	}
}

// maxPartitions bounds what nodes keep registers of.
const maxPartitions = 4096

// baseKind is a kind of agents before the file said anything about it. Its
// sandboxes are kept, as the memory of agents is a cache in them.
func (d *Declared) baseKind(line int) *Function {
	f := d.base(line)
	f.Reuse = true
	f.Limits.Total = 30 * time.Second
	f.Agent = &lode.AgentSpec{Partitions: lode.DefaultPartitions, Reentrant: lode.ReentrantRefuse, Reads: lode.ReadsLease,
		Idle: time.Minute, StateMax: gib, Mailbox: 1000}
	return f
}

// defaultsFor reads the file's defaults into a function, or into a kind: of a
// kind those that a kind has. They were checked before.
func (p *parser) defaultsFor(f *Function, defaults *yaml.Node) {
	if defaults == nil {
		return
	}
	fields := functionFields()
	if f.Agent != nil {
		fields = kindFields()
	}
	p.silent++
	path := p.path
	p.path = nil
	readObject(p, defaults, "defaults", fields, f)
	p.path = path
	p.silent--
}

func (p *parser) readAgents(n *yaml.Node, d *Declared) {
	d.Implicit = false
	readNames(p, n, "agent kind", kindFields(), func(name lode.Name, key *yaml.Node, read func(*Function)) {
		f := d.baseKind(key.Line)
		p.defaultsFor(f, d.defaults)
		read(f)
		if name != "" {
			d.Agents[name] = f
			p.own("agent", name, key)
		}
	})
}

func ttlShape() shape[fn] {
	return scalar(object{"type": []string{"string", "integer"}}, "a duration, or never", func(s string) (time.Duration, error) {
		if s == "never" {
			return 0, nil
		}
		v, err := ParseDuration(s)
		if err == nil && (v < time.Second || v > 3650*day) {
			err = wrong("write never to keep agents for ever", "%s is out of bounds: 1s to 3650d", s)
		}
		return v, err
	}, func(f *fn) *time.Duration { return &f.Agent.TTL })
}

// nearWord is a name, a zone or a label.
var nearWord = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}(=[A-Za-z0-9._/-]{1,63})?$`)

func nearShape() shape[fn] {
	return scalar(object{"type": "string"}, "a dataset, kind, node, zone or label (KEY=VALUE)", func(s string) (string, error) {
		if !nearWord.MatchString(s) {
			return "", wrong("one word, as in near: mails, or a label, as in near: disk=ssd", "%q names nothing", clip(s))
		}
		return s, nil
	}, func(f *fn) *string { return &f.Agent.Near })
}

// methodName is what the SDKs make of a method.
var methodName = regexp.MustCompile(`^[A-Za-z_$][A-Za-z0-9_$-]{0,127}$`)

// methodsShape reads {method: read}.
func methodsShape() shape[fn] {
	schema := object{"type": "object", "additionalProperties": object{"enum": []string{"read"}}}
	return shape[fn]{schema, func(p *parser, n *yaml.Node, f *fn) {
		pairs, ok := p.pairs(n, "a map of methods, as in {total: read}")
		if !ok {
			return
		}
		f.Agent.Read = nil
		for _, e := range pairs {
			p.push(clip(e.key.Value))
			if !methodName.MatchString(e.key.Value) {
				p.failAt(e.key, wrong("", "%q is not the name of a method", clip(e.key.Value)))
			} else if s, v, ok := p.word(e.value, "read"); ok && s != "read" {
				p.failAt(v, wrong("leave out methods that write", "want read, not %q", clip(s)))
			} else if ok {
				f.Agent.Read = append(f.Agent.Read, e.key.Value)
			}
			p.pop()
		}
		slices.Sort(f.Agent.Read)
	}}
}

// checkKind looks at what only the whole of a kind shows.
func (p *parser) checkKind(d *Declared, name lode.Name, f *Function, key *yaml.Node) {
	if f.Access == "" {
		f.Access = lode.AccessToken
	}
	p.checkSecrets(f, key)
	p.checkCode(d, name, f, key)
}

// classOf finds the module's class for a kind of agents: the one of its name,
// else its only one. It is "" of code that says nothing of itself.
func classOf(name lode.Name, a Artifact) (lode.KindExp, error) {
	if a.Exports == nil {
		return lode.KindExp{}, nil
	}
	var names []string
	for _, k := range a.Exports.Kinds {
		if k.Name == string(name) || FixName(k.Name) == name {
			return k, nil
		}
		names = append(names, k.Name)
	}
	switch len(names) {
	case 0:
		return lode.KindExp{}, lode.Errorf(lode.Invalid, "agent %s: the code has no kinds of agents", name).
			WithHint("register one: lode.Agent(%q, ...) in Go, export class ... extends Agent in JavaScript", name)
	case 1:
		return a.Exports.Kinds[0], nil
	}
	err := lode.Errorf(lode.Invalid, "agent %s: the code has no kind of that name", name).WithHint("it has: %s", strings.Join(names, ", "))
	if near := lode.Suggest(string(name), names); near != "" {
		err.WithHint("did you mean %q? it has: %s", near, strings.Join(names, ", "))
	}
	return lode.KindExp{}, err
}

// asKind is f, a kind of agents, built.
func (f *Function) asKind(name lode.Name, a Artifact) (lode.Function, error) {
	out := f.Function
	out.Artifact, out.Size, out.Language, out.Exports, out.Contract = a.Digest, a.Size, a.Language, a.Exports, a.Contract
	if a.Contract != lode.ContractHandler {
		return out, lode.Errorf(lode.Invalid, "agent %s: the code is a %s, and agents are handlers", name, a.Contract).
			WithHint("a kind of agents is registered with an SDK")
	}
	class, err := classOf(name, a)
	if err != nil {
		return out, err
	}
	spec := *f.Agent
	spec.Class, spec.Methods = class.Name, sorted(class.Methods) // as the node will have them
	spec.Read = sorted(slices.Concat(class.Read, f.Agent.Read))
	out.Agent = &spec
	return out, checkRead(name, f.Agent.Read, class)
}

// sorted is words in order, each once.
func sorted(words []string) []string {
	words = slices.Clone(words)
	slices.Sort(words)
	return slices.Compact(words)
}

// checkRead finds methods that the file marks and the code does not have.
func checkRead(name lode.Name, read []string, class lode.KindExp) error {
	for _, m := range read {
		if len(class.Methods) == 0 || slices.Contains(class.Methods, m) {
			continue
		}
		err := lode.Errorf(lode.Invalid, "agent %s: methods: the code has no method %q", name, m).WithHint("it has: %s", strings.Join(class.Methods, ", "))
		if near := lode.Suggest(m, class.Methods); near != "" {
			err.WithHint("did you mean %q? it has: %s", near, strings.Join(class.Methods, ", "))
		}
		return err
	}
	return nil
}

// kindsFromExports makes a kind of agents of each that the code describes.
func (d *Declared) kindsFromExports(app *lode.App, a Artifact) error {
	if a.Exports == nil {
		return nil
	}
	for _, k := range a.Exports.Kinds {
		name := FixName(k.Name)
		if name == "" {
			return lode.Errorf(lode.Invalid, "no name can be made of the kind of agents %q", k.Name)
		}
		if _, taken := app.Functions[name]; taken {
			return lode.Errorf(lode.Invalid, "%s would be both a function and a kind of agents", name).
				WithHint("rename one in the code, or declare both in lode.yaml under names of their own")
		}
		if _, taken := app.Agents[name]; taken {
			return lode.Errorf(lode.Invalid, "two kinds of the code would both be %s", name).WithHint("rename one, or declare both in lode.yaml")
		}
		if err := d.free(name); err != nil {
			return err
		}
		f := d.baseKind(0)
		f.Access = lode.AccessToken
		if err := f.inherit(d); err != nil {
			return err
		}
		out, err := f.asKind(name, a)
		if err != nil {
			return err
		}
		app.Agents[name] = out
	}
	return nil
}
