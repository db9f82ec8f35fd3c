package spec

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"lode"
)

const (
	maxFile  = 1 << 20 // bytes
	maxNodes = 100_000 // visited, aliases followed: what a billion laughs would be
	maxDepth = 32
)

// parser walks the nodes of one file and collects what is wrong with them.
type parser struct {
	file   string
	probs  Problems
	path   []string // keys down to the present node
	nodes  int      // visited
	full   bool     // maxNodes was passed; said once
	silent int      // > 0: problems were told before
	lookup func(string) (string, bool)
	// where each declared thing stands, for the checks across the file
	at map[string]*yaml.Node
}

func (p *parser) fail(n *yaml.Node, hint, format string, args ...any) {
	if p.silent > 0 || p.full {
		return
	}
	q := Problem{File: p.file, Text: fmt.Sprintf(format, args...), Hint: hint}
	if n != nil {
		q.Line, q.Col = n.Line, n.Column
	}
	if slices.Contains(p.probs.List, q) {
		return // an alias led here before
	}
	if len(p.probs.List) >= maxProblems {
		p.probs.More++
		return
	}
	p.probs.List = append(p.probs.List, q)
}

// failAt is fail with the path in front and the hint of err.
func (p *parser) failAt(n *yaml.Node, err error) {
	text, hint := err.Error(), ""
	if m, ok := errors.AsType[*mistake](err); ok {
		hint = m.hint
	} else if e, ok := errors.AsType[*lode.Error](err); ok {
		hint = e.Hint
	}
	if len(p.path) == 0 {
		p.fail(n, hint, "%s", text)
		return
	}
	p.fail(n, hint, "%s: %s", p.where(), text)
}

func (p *parser) where() string { return strings.Join(p.path, ".") }

// resolve follows aliases and counts the visit; nil when there is too much.
func (p *parser) resolve(n *yaml.Node) *yaml.Node {
	for n != nil {
		if p.nodes++; p.nodes > maxNodes || len(p.path) > maxDepth {
			p.tooMuch(n)
			return nil
		}
		if n.Kind != yaml.AliasNode {
			return n
		}
		n = n.Alias
	}
	return nil
}

// tooMuch ends the parse: what other mistakes it finds from here on are not
// the file's.
func (p *parser) tooMuch(n *yaml.Node) {
	if p.full {
		return
	}
	p.full = true
	p.probs = Problems{List: []Problem{{File: p.file, Line: n.Line, Col: n.Column, Hint: "write it out, or use defaults",
		Text: "the file expands to too much: anchors refer to anchors, or it is nested too deep"}}}
}

func (p *parser) push(key string) { p.path = append(p.path, key) }
func (p *parser) pop()            { p.path = p.path[:len(p.path)-1] }

// kindName is what a node is, for messages.
func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a map"
	case yaml.SequenceNode:
		return "a list"
	}
	if n.Tag == "!!null" {
		return "nothing"
	}
	if n.Tag == "!!str" {
		return strconv.Quote(clip(n.Value))
	}
	return clip(n.Value)
}

func clip(s string) string {
	if r := []rune(s); len(r) > 40 {
		return string(r[:40]) + "..."
	}
	return s
}

// pair is one entry of a map.
type pair struct{ key, value *yaml.Node }

// pairs lists the entries of a map with merge keys (<<) put in, and tells
// about keys that stand twice. ok is false if n is no map.
func (p *parser) pairs(n *yaml.Node, want string) (out []pair, ok bool) {
	n = p.resolve(n)
	if n == nil {
		return nil, false
	}
	if n.Kind != yaml.MappingNode {
		p.failAt(n, wrong("", "want %s, not %s", want, kindName(n)))
		return nil, false
	}
	return p.entries(n, 0), true
}

func (p *parser) entries(n *yaml.Node, depth int) []pair {
	var out, merged []pair
	seen := map[string]*yaml.Node{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k = p.resolve(k); k == nil {
			return out
		}
		if k.Tag == "!!merge" {
			merged = append(merged, p.merge(v, depth)...)
			continue
		}
		if k.Kind != yaml.ScalarNode {
			p.failAt(k, wrong("", "a key is a word, not %s", kindName(k)))
			continue
		}
		if first, twice := seen[k.Value]; twice {
			p.failAt(k, wrong(fmt.Sprintf("the first one is in line %d", first.Line), "the key %q stands here twice", clip(k.Value)))
			continue
		}
		seen[k.Value] = k
		out = append(out, pair{k, v})
	}
	for _, m := range merged {
		if seen[m.key.Value] == nil {
			seen[m.key.Value] = m.key
			out = append(out, m)
		}
	}
	return out
}

// merge is what "<<: *base" brings in.
func (p *parser) merge(v *yaml.Node, depth int) []pair {
	if v = p.resolve(v); v == nil {
		return nil
	}
	if depth > maxDepth {
		p.fail(v, "", "merge keys are nested too deep")
		return nil
	}
	switch v.Kind {
	case yaml.MappingNode:
		return p.entries(v, depth+1)
	case yaml.SequenceNode:
		var out []pair
		for _, e := range v.Content {
			out = append(out, p.merge(e, depth+1)...)
		}
		return out
	}
	p.failAt(v, wrong("", "<< takes a map, not %s", kindName(v)))
	return nil
}

// object reads a map by a table of fields into dst.
func readObject[T any](p *parser, n *yaml.Node, what string, fields []field[T], dst *T) {
	pairs, ok := p.pairs(n, "a map")
	if !ok {
		return
	}
	for _, e := range pairs {
		f := lookupField(fields, e.key.Value)
		p.push(clip(e.key.Value))
		switch {
		case f == nil:
			p.pop()
			p.unknown(e.key, what, fieldNames(fields))
			continue
		case f.later != "":
			p.fail(e.key, f.later, "%s: this version of Lode has no %s yet", p.where(), f.feature())
		default:
			f.as.read(p, e.value, dst)
		}
		p.pop()
	}
}

func (p *parser) unknown(key *yaml.Node, what string, known []string) {
	if len(p.path) > 0 {
		what = p.where()
	}
	hint := "keys: " + strings.Join(known, ", ")
	switch near := lode.Suggest(strings.ToLower(key.Value), known); {
	case key.Value == "on" || key.Tag == "!!bool":
		hint = "YAML 1.1 reads on, off, yes and no as true and false"
	case near != "":
		hint = fmt.Sprintf("did you mean %q?", near)
	}
	p.fail(key, hint, "%s has no key %q", what, clip(key.Value))
}

// readNames reads a map of names, in the order of the file.
func readNames[T any](p *parser, n *yaml.Node, what string, fields []field[T], each func(lode.Name, *yaml.Node, func(*T))) {
	pairs, ok := p.pairs(n, "a map of names")
	if !ok {
		return
	}
	for _, e := range pairs {
		p.push(clip(e.key.Value))
		name, err := lode.ParseName(e.key.Value)
		if err != nil {
			p.failAt(e.key, err)
		}
		each(name, e.key, func(dst *T) {
			if v := p.resolve(e.value); v != nil && v.Tag == "!!null" {
				return // "web:" alone is web with every default
			}
			readObject(p, e.value, what, fields, dst)
		})
		p.pop()
	}
}

var yamlLine = regexp.MustCompile(`(?s)^yaml: (?:line (\d+): )?(.*)$`)

// document parses bytes into the root node; nil if the file is empty.
func (p *parser) document(b []byte) *yaml.Node {
	if len(b) > maxFile {
		p.fail(nil, "", "the file has %d bytes; at most %d", len(b), maxFile)
		return nil
	}
	dec := yaml.NewDecoder(strings.NewReader(string(b)))
	var doc yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if err != io.EOF {
			p.syntax(b, err)
		}
		return nil
	}
	var second yaml.Node
	if err := dec.Decode(&second); err == nil {
		p.fail(&second, "one app is one document; remove what follows ---", "the file holds more than one document")
		return nil
	} else if err != io.EOF {
		p.syntax(b, err)
		return nil
	}
	if len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
		return nil
	}
	return doc.Content[0]
}

func (p *parser) syntax(b []byte, err error) {
	line, text := 1, err.Error()
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		if n, err := strconv.Atoi(m[1]); err == nil {
			line = n
		}
		text = m[2]
	}
	hint := "check the indentation, and quote values with : or # in them"
	if lines := strings.Split(string(b), "\n"); line <= len(lines) && strings.HasPrefix(strings.TrimLeft(lines[line-1], " "), "\t") {
		hint = "YAML takes spaces for indentation, no tabs"
	}
	p.fail(&yaml.Node{Line: line, Column: 1}, hint, "not YAML: %s", text)
}
