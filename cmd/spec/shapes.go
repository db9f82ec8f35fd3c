package spec

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"lode"
)

// namesSchema is the schema of a map of names.
func namesSchema(of object) object {
	return object{"type": "object", "propertyNames": object{"pattern": namePattern}, "additionalProperties": object{"anyOf": []object{of, {"type": "null"}}}}
}

// envShape reads a map of variables; ${NAME} is replaced. It adds to what is
// there, in a map of its own.
func envShape[T any](at func(*T) *map[string]string) shape[T] {
	schema := object{"type": "object", "additionalProperties": object{"type": []string{"string", "number", "boolean"}}}
	return shape[T]{schema, func(p *parser, n *yaml.Node, dst *T) {
		pairs, ok := p.pairs(n, "a map of variables")
		if !ok {
			return
		}
		env := maps.Clone(*at(dst))
		if env == nil {
			env = map[string]string{}
		}
		for _, e := range pairs {
			p.push(clip(e.key.Value))
			if err := checkEnvName(e.key.Value); err != nil {
				p.failAt(e.key, err)
			} else if s, v, ok := p.word(e.value, "a value"); ok {
				if s, err := expand(s, p.lookup); err != nil {
					p.failAt(v, err)
				} else {
					env[e.key.Value] = s
				}
			}
			p.pop()
		}
		*at(dst) = env
	}}
}

// expand replaces ${NAME}; $${ is a literal ${.
func expand(s string, lookup func(string) (string, bool)) (string, error) {
	var b strings.Builder
	for {
		i := strings.Index(s, "${")
		if i < 0 {
			b.WriteString(s)
			return b.String(), nil
		}
		if i > 0 && s[i-1] == '$' {
			b.WriteString(s[:i-1] + "${")
			s = s[i+2:]
			continue
		}
		b.WriteString(s[:i])
		name, rest, ok := strings.Cut(s[i+2:], "}")
		if !ok {
			return "", wrong("a literal ${ is written $${", "%q has no closing brace", clip(s[i:]))
		}
		if !envName.MatchString(name) {
			return "", wrong("a literal ${ is written $${", "${%s} does not name a variable", clip(name))
		}
		v, ok := lookup(name)
		if !ok {
			return "", wrong(fmt.Sprintf("set it: export %s=..., or a line %s=... in .env", name, name), "${%s} is not set", name)
		}
		b.WriteString(v)
		s = rest
	}
}

// secretsShape reads a list of names; it adds to what is there.
func secretsShape[T any](at func(*T) *[]string) shape[T] {
	s := listOf(true, textSchema(envName.String()), "the name of a secret", checked(func(s string) error {
		if strings.ContainsAny(s, "=:") {
			return wrong("values go in with: lode secret set NAME", "secrets are listed by name alone")
		}
		return checkEnvName(s)
	}), at)
	return shape[T]{s.schema, func(p *parser, n *yaml.Node, dst *T) {
		before := *at(dst)
		*at(dst) = slices.Clone(before)
		if v := p.resolve(n); v != nil && v.Kind == yaml.MappingNode {
			p.failAt(v, wrong("list the names, as in [STRIPE_KEY]; values go in with: lode secret set NAME", "want a list of names, not a map"))
			return
		}
		s.read(p, n, dst)
		slices.Sort(*at(dst))
		*at(dst) = slices.Compact(*at(dst))
	}}
}

func scheduleShape() shape[fn] {
	one := objectSchema(scheduleFields())
	any := object{"anyOf": []object{textSchema(""), one}}
	return shape[fn]{object{"anyOf": []object{textSchema(""), one, {"type": "array", "items": any}}}, func(p *parser, n *yaml.Node, f *fn) {
		v := p.resolve(n)
		if v == nil {
			return
		}
		items := []*yaml.Node{v}
		if v.Kind == yaml.SequenceNode {
			items = v.Content
		}
		f.Schedules = nil
		for _, item := range items {
			if s, ok := p.schedule(item); ok {
				f.Schedules = append(f.Schedules, s)
			}
		}
	}}
}

func scheduleFields() []field[lode.Schedule] {
	return []field[lode.Schedule]{
		{key: "cron", as: textOf("a cron expression", checkCron, func(s *lode.Schedule) *string { return &s.Cron })},
		{key: "zone", as: textOf("a time zone", checkZone, func(s *lode.Schedule) *string { return &s.Zone })},
	}
}

func (p *parser) schedule(n *yaml.Node) (s lode.Schedule, ok bool) {
	v := p.resolve(n)
	if v == nil {
		return s, false
	}
	if v.Kind == yaml.MappingNode {
		before := len(p.probs.List)
		readObject(p, v, "schedule", scheduleFields(), &s)
		if s.Cron == "" && len(p.probs.List) == before {
			p.failAt(v, wrong("", "cron is missing"))
		}
		return s, s.Cron != ""
	}
	text, node, ok := p.word(v, "a cron expression")
	if !ok {
		return s, false
	}
	if err := checkCron(text); err != nil {
		p.failAt(node, err)
		return s, false
	}
	return lode.Schedule{Cron: text}, true
}

func readEgress(p *parser, n *yaml.Node, f *fn) {
	v := p.resolve(n)
	if v == nil {
		return
	}
	if v.Kind != yaml.SequenceNode {
		s, node, ok := p.word(v, "public, none or a list of hosts")
		if !ok {
			return
		}
		if s != "public" && s != "none" {
			hint := ""
			if checkHost(s) == nil && strings.Contains(s, ".") {
				hint = "write it in brackets: [" + s + "]"
			}
			p.failAt(node, wrong(hint, "%q is neither public nor none, nor a list of hosts", clip(s)))
			return
		}
		f.Egress = lode.Egress{Mode: s}
		return
	}
	f.Egress = lode.Egress{Mode: "list"}
	for _, item := range v.Content {
		s, node, ok := p.word(item, "a host")
		if !ok {
			continue
		}
		if err := checkHost(s); err != nil {
			p.failAt(node, err)
			continue
		}
		f.Egress.Allow = append(f.Egress.Allow, strings.ToLower(s))
	}
}

// onlyOne takes the number 1: what another one would ask for comes later.
func onlyOne(hint string, set func(*fn)) shape[fn] {
	return shape[fn]{object{"enum": []any{1}}, func(p *parser, n *yaml.Node, f *fn) {
		v := p.resolve(n)
		if v == nil {
			return
		}
		if v.Kind == yaml.ScalarNode && (v.Value == "1" || v.Value == "1.0") {
			set(f)
			return
		}
		p.failAt(v, wrong(hint, "this version of Lode takes 1 here, and nothing else"))
	}}
}

// readGPU takes what asks for no device.
func readGPU(p *parser, n *yaml.Node, _ *fn) {
	v := p.resolve(n)
	if v == nil {
		return
	}
	if v.Kind == yaml.SequenceNode { // a list that ends in "none" is content with the CPU
		for _, item := range v.Content {
			if e := p.resolve(item); e != nil && (e.Value == "none" || e.Value == "0") {
				return
			}
		}
	}
	if v.Kind == yaml.ScalarNode && (v.Value == "0" || v.Value == "none") {
		return
	}
	p.failAt(v, wrong("leave it out, or write gpu: 0", "this version of Lode gives functions no GPU yet"))
}
