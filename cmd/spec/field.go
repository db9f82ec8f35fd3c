package spec

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"lode"
)

type object = map[string]any

// field is one key of a map of the file. With later it is refused, and later
// says what does work.
type field[T any] struct {
	key   string
	about string // one line, for the schema
	as    shape[T]
	later string
	noun  string // the feature, for the refusal; "" = key
}

func (f *field[T]) feature() string {
	if f.noun != "" {
		return f.noun
	}
	return f.key
}

// shape is how a value is read, and its JSON Schema.
type shape[T any] struct {
	schema object
	read   func(p *parser, n *yaml.Node, dst *T)
}

func lookupField[T any](fields []field[T], key string) *field[T] {
	for i := range fields {
		if fields[i].key == key {
			return &fields[i]
		}
	}
	return nil
}

// fieldNames lists the keys that work.
func fieldNames[T any](fields []field[T]) []string {
	var out []string
	for _, f := range fields {
		if f.later == "" {
			out = append(out, f.key)
		}
	}
	return out
}

// word reads a scalar as the text that stands in the file.
func (p *parser) word(n *yaml.Node, want string) (string, *yaml.Node, bool) {
	v := p.resolve(n)
	if v == nil {
		return "", nil, false
	}
	if v.Kind != yaml.ScalarNode || v.Tag == "!!null" {
		p.failAt(v, wrong("", "want %s, not %s", want, kindName(v)))
		return "", v, false
	}
	return v.Value, v, true
}

// scalar reads one value by parse.
func scalar[T, V any](schema object, want string, parse func(string) (V, error), at func(*T) *V) shape[T] {
	return shape[T]{schema, func(p *parser, n *yaml.Node, dst *T) {
		s, v, ok := p.word(n, want)
		if !ok {
			return
		}
		val, err := parse(s)
		if err != nil {
			p.failAt(v, err)
			return
		}
		*at(dst) = val
	}}
}

func textSchema(pattern string) object {
	if pattern == "" {
		return object{"type": "string"}
	}
	return object{"type": "string", "pattern": pattern}
}

func sizeOf[T any](lo, hi int64, at func(*T) *int64) shape[T] {
	return scalar(object{"type": []string{"string", "integer"}, "pattern": sizeForm.String()}, "a size", func(s string) (int64, error) {
		v, err := ParseSize(s)
		if err == nil && (v < lo || v > hi) {
			err = wrong("", "%s is out of bounds: %s to %s", s, SizeString(lo), SizeString(hi))
		}
		return v, err
	}, at)
}

// SizeString is a size as the file would have it.
func SizeString(n int64) string {
	for _, u := range []struct {
		s string
		n int64
	}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n >= u.n && n%u.n == 0 {
			return strconv.FormatInt(n/u.n, 10) + u.s
		}
	}
	return strconv.FormatInt(n, 10)
}

// SpanString is a duration as the file would have it.
func SpanString(d time.Duration) string {
	switch {
	case d >= day && d%day == 0:
		return strconv.FormatInt(int64(d/day), 10) + "d"
	case d >= time.Hour && d%time.Hour == 0:
		return strconv.FormatInt(int64(d/time.Hour), 10) + "h"
	case d >= time.Minute && d%time.Minute == 0:
		return strconv.FormatInt(int64(d/time.Minute), 10) + "m"
	}
	return d.String()
}

func spanOf[T any](lo, hi time.Duration, at func(*T) *time.Duration) shape[T] {
	return scalar(object{"type": []string{"string", "integer"}}, "a duration", func(s string) (time.Duration, error) {
		v, err := ParseDuration(s)
		if err == nil && (v < lo || v > hi) {
			err = wrong("", "%s is out of bounds: %s to %s", s, SpanString(lo), SpanString(hi))
		}
		return v, err
	}, at)
}

func intOf[T any](lo, hi int, at func(*T) *int) shape[T] {
	return scalar(object{"type": "integer", "minimum": lo, "maximum": hi}, "a whole number", func(s string) (int, error) {
		v, err := strconv.Atoi(s)
		if err != nil {
			return 0, wrong("", "want a whole number, not %q", clip(s))
		}
		if v < lo || v > hi {
			return 0, wrong("", "%d is out of bounds: %d to %d", v, lo, hi)
		}
		return v, nil
	}, at)
}

func countOf[T any](lo, hi int64, at func(*T) *int64) shape[T] {
	return scalar(object{"type": []string{"string", "integer"}}, "a count", func(s string) (int64, error) {
		v, err := ParseCount(s)
		if err == nil && (v < lo || v > hi) {
			err = wrong("", "%s is out of bounds: %d to %d", s, lo, hi)
		}
		return v, err
	}, at)
}

func boolOf[T any](at func(*T) *bool) shape[T] {
	return scalar(object{"type": "boolean"}, "true or false", parseBool, at)
}

func parseBool(s string) (bool, error) {
	switch s {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, wrong("", "want true or false, not %q", clip(s))
}

func nameOf[T any](at func(*T) *lode.Name) shape[T] {
	return scalar(textSchema(namePattern), "a name", lode.ParseName, at)
}

const namePattern = "^[a-z][a-z0-9-]{0,47}$"

func textOf[T any](want string, check func(string) error, at func(*T) *string) shape[T] {
	return scalar(textSchema(""), want, checked(check), at)
}

func checked(check func(string) error) func(string) (string, error) {
	return func(s string) (string, error) {
		if s == "" {
			return "", wrong("", "it is empty")
		}
		return s, check(s)
	}
}

// enumOf reads one of words; later maps the ones that are to come to what
// works instead.
func enumOf[T any, V ~string](words []string, later map[string]string, at func(*T) *V) shape[T] {
	return scalar(object{"enum": words}, "one of "+strings.Join(words, ", "), func(s string) (V, error) {
		for _, w := range words {
			if w == s {
				return V(s), nil
			}
		}
		if hint, ok := later[s]; ok {
			return "", wrong(hint, "this version of Lode cannot do %q yet", s)
		}
		return "", oneOf(s, words)
	}, at)
}

// listOf reads a list, or with single one value alone, by parse. It appends.
func listOf[T, V any](single bool, schema object, want string, parse func(string) (V, error), at func(*T) *[]V) shape[T] {
	whole := object{"type": "array", "items": schema}
	if single {
		whole = object{"anyOf": []object{schema, whole}}
	}
	return shape[T]{whole, func(p *parser, n *yaml.Node, dst *T) {
		v := p.resolve(n)
		if v == nil {
			return
		}
		items := []*yaml.Node{v}
		if v.Kind == yaml.SequenceNode {
			items = v.Content
		} else if !single {
			p.failAt(v, wrong(fmt.Sprintf("write it in brackets: [%s]", clip(v.Value)), "want a list, not %s", kindName(v)))
			return
		}
		for _, item := range items {
			s, node, ok := p.word(item, want)
			if !ok {
				continue
			}
			val, err := parse(s)
			if err != nil {
				p.failAt(node, err)
				continue
			}
			*at(dst) = append(*at(dst), val)
		}
	}}
}

// replaced makes a list shape forget what defaults had put there.
func replaced[T, V any](s shape[T], at func(*T) *[]V) shape[T] {
	return shape[T]{s.schema, func(p *parser, n *yaml.Node, dst *T) {
		*at(dst) = nil
		s.read(p, n, dst)
	}}
}

// mapOf reads a map by its own table.
func mapOf[T, V any](fields []field[V], at func(*T) *V) shape[T] {
	return shape[T]{objectSchema(fields), func(p *parser, n *yaml.Node, dst *T) { readObject(p, n, "", fields, at(dst)) }}
}

// either reads a map by one shape and everything else by the other.
func either[T any](ofMap, ofRest shape[T]) shape[T] {
	return shape[T]{object{"anyOf": []object{ofRest.schema, ofMap.schema}}, func(p *parser, n *yaml.Node, dst *T) {
		if v := p.resolve(n); v != nil && v.Kind == yaml.MappingNode {
			ofMap.read(p, n, dst)
		} else if v != nil {
			ofRest.read(p, n, dst)
		}
	}}
}

// refused is a field whose feature comes later.
func refused[T any](key, noun, hint string) field[T] {
	return field[T]{key: key, noun: noun, later: hint}
}

// objectSchema is the schema of a table.
func objectSchema[T any](fields []field[T]) object {
	props := object{}
	for _, f := range fields {
		if f.later != "" {
			continue
		}
		s := object{}
		for k, v := range f.as.schema {
			s[k] = v
		}
		if f.about != "" {
			s["description"] = f.about
		}
		props[f.key] = s
	}
	return object{"type": "object", "properties": props, "additionalProperties": false}
}
