package reduce

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"unicode/utf8"

	"lode"
	"lode/data/tally"
)

// merges adds JSON objects of numbers by key.
type merges struct{}

func (merges) Zero() State { return &merged{obj: new(object)} }

func (merges) Parse(body []byte, _ string) (State, error) {
	p := parser{b: body}
	m, err := p.document()
	if err != nil {
		return nil, err
	}
	return m, nil
}

// merged is a number or an object. Nothing is an empty object, until a number
// comes.
type merged struct {
	obj    *object
	n      exact
	number bool
}

func (m *merged) Merge(_ context.Context, right State) (State, error) {
	r := right.(*merged)
	switch {
	case m.number && r.number:
		m.n.add(&r.n)
		return m, nil
	case m.number != r.number:
		if !m.number && m.obj.table.Len() == 0 {
			return r, nil
		}
		if !r.number && r.obj.table.Len() == 0 {
			return m, nil
		}
		return nil, lode.Errorf(lode.Invalid, "one shard answered a number, another an object: they cannot be merged")
	}
	obj, err := m.obj.merge(r.obj)
	m.obj = obj
	return m, err
}

func (m *merged) Encode() ([]byte, string, error) {
	if m.number {
		b, err := m.n.append(nil)
		return b, jsonType, err
	}
	b, err := m.obj.append(make([]byte, 0, 16*m.obj.table.Len()+2))
	return b, jsonType, err
}

// object is a JSON object of numbers, or of objects. Nearly all numbers are
// small and whole: they are in ints, by the key's number; what else a key
// holds is in odd.
type object struct {
	table tally.Table
	ints  []int64
	odd   map[int]*odd
}

// odd is a large number, a float, or an object; with them goes 0 in ints.
type odd struct {
	n   exact
	obj *object
}

// addInt is the fast path.
func (o *object) addInt(number int, v int64) {
	if number == len(o.ints) {
		o.ints = append(o.ints, v)
		return
	}
	if s, ok := addInts(o.ints[number], v); ok && len(o.odd) == 0 {
		o.ints[number] = s
		return
	}
	o.addExact(number, &exact{i: v})
}

// addExact adds to a key that has or gets a number; false if it has an object.
func (o *object) addExact(number int, v *exact) bool {
	if number == len(o.ints) {
		o.ints = append(o.ints, 0)
	}
	x := o.odd[number]
	if x == nil && !v.float && v.big == nil {
		if s, ok := addInts(o.ints[number], v.i); ok {
			o.ints[number] = s
			return true
		}
	}
	if x == nil {
		x = &odd{n: exact{i: o.ints[number]}}
		o.ints[number] = 0
		o.put(number, x)
	}
	if x.obj != nil {
		return false
	}
	x.n.add(v)
	return true
}

func (o *object) put(number int, x *odd) {
	if o.odd == nil {
		o.odd = map[int]*odd{}
	}
	o.odd[number] = x
}

// addObject merges sub into a key that has or gets an object.
func (o *object) addObject(number int, sub *object) (err error) {
	fresh := number == len(o.ints)
	if fresh {
		o.ints = append(o.ints, 0)
	}
	x := o.odd[number]
	switch {
	case fresh:
		o.put(number, &odd{obj: sub})
	case x == nil || x.obj == nil:
		return o.mixed(number)
	default:
		x.obj, err = x.obj.merge(sub)
	}
	return err
}

func (o *object) mixed(number int) error {
	return lode.Errorf(lode.Invalid, "key %q has a number in one place and an object in another: they cannot be merged", o.table.Key(number))
}

// merge adds r's values to o's and returns the sum in the larger of the two:
// the addition of two numbers does not depend on their order.
func (o *object) merge(r *object) (*object, error) {
	if r.table.Len() > 2*o.table.Len() {
		o, r = r, o
	}
	for i, v := range r.ints {
		n := o.table.Number(r.table.Key(i))
		x := r.odd[i]
		switch {
		case x == nil && len(o.odd) == 0:
			o.addInt(n, v)
		case x == nil:
			if !o.addExact(n, &exact{i: v}) {
				return nil, o.mixed(n)
			}
		case x.obj != nil:
			if err := o.addObject(n, x.obj); err != nil {
				return nil, err
			}
		default:
			if !o.addExact(n, &x.n) {
				return nil, o.mixed(n)
			}
		}
	}
	return o, nil
}

func (o *object) append(b []byte) (_ []byte, err error) {
	b = append(b, '{')
	for at, i := range o.table.Sorted() {
		if at > 0 {
			b = append(b, ',')
		}
		b = append(tally.AppendString(b, o.table.Key(int(i))), ':')
		x := o.odd[int(i)]
		switch {
		case x == nil:
			b = strconv.AppendInt(b, o.ints[i], 10)
		case x.obj != nil:
			b, err = x.obj.append(b)
		default:
			b, err = x.n.append(b)
		}
		if err != nil {
			return nil, err
		}
	}
	return append(b, '}'), nil
}

// parser reads one JSON document of numbers and objects.
type parser struct {
	b     []byte
	at    int
	depth int
}

const maxDepth = 64

func (p *parser) fail(want string) error {
	end := min(len(p.b), p.at+40)
	return lode.Errorf(lode.Invalid, "a partial result is no JSON of numbers: %s expected at byte %d, before %q", want, p.at, p.b[min(p.at, end):end]).
		WithHint("reduce merge wants each shard to answer an object of numbers; use concat or a merge of your own")
}

// space passes over white space and returns the byte behind it, or 0.
func (p *parser) space() byte {
	for p.at < len(p.b) {
		switch c := p.b[p.at]; c {
		case ' ', '\t', '\n', '\r':
			p.at++
		default:
			return c
		}
	}
	return 0
}

func (p *parser) document() (*merged, error) {
	m := &merged{obj: new(object)}
	var err error
	switch c := p.space(); {
	case c == 0 && p.at == len(p.b): // an empty answer is none
	case c == '{':
		m.obj, err = p.object()
	case c == 'n':
		err = p.null()
	default:
		var size int
		m.number = true
		if m.n, size, err = scanNumber(p.b[p.at:]); err != nil {
			err = p.fail("an object or a number")
		}
		p.at += size
	}
	if err == nil && (p.space() != 0 || p.at < len(p.b)) {
		err = p.fail("the end")
	}
	return m, err
}

func (p *parser) null() error {
	if !bytes.HasPrefix(p.b[p.at:], []byte("null")) {
		return p.fail("a value")
	}
	p.at += 4
	return nil
}

// object reads from its brace to behind the closing one. A key that is there
// twice is added.
func (p *parser) object() (*object, error) {
	if p.depth++; p.depth > maxDepth {
		return nil, p.fail("at most 64 levels")
	}
	defer func() { p.depth-- }()
	p.at++
	o := new(object)
	if p.space() == '}' {
		p.at++
		return o, nil
	}
	for {
		key, err := p.key()
		if err != nil {
			return nil, err
		}
		if p.space() != ':' {
			return nil, p.fail("a colon")
		}
		p.at++
		if err := p.member(o, key); err != nil {
			return nil, err
		}
		switch p.space() {
		case ',':
			p.at++
		case '}':
			p.at++
			return o, nil
		default:
			return nil, p.fail("a comma or the object's end")
		}
	}
}

func (p *parser) member(o *object, key []byte) error {
	switch p.space() {
	case 'n':
		return p.null()
	case '{':
		sub, err := p.object()
		if err != nil {
			return err
		}
		return o.addObject(o.table.Number(key), sub)
	}
	n, size, err := scanNumber(p.b[p.at:])
	if err != nil {
		return p.fail("a number or an object")
	}
	p.at += size
	number := o.table.Number(key)
	if n.big == nil && !n.float && len(o.odd) == 0 {
		o.addInt(number, n.i)
	} else if !o.addExact(number, &n) {
		return o.mixed(number)
	}
	return nil
}

// key reads a string; without escapes it is a slice of the document.
func (p *parser) key() ([]byte, error) {
	if p.space() != '"' {
		return nil, p.fail("a key")
	}
	rest := p.b[p.at+1:]
	for i := 0; i < len(rest); i++ {
		c := rest[i]
		if c == '"' {
			p.at += i + 2
			if key := rest[:i]; utf8.Valid(key) {
				return key, nil
			}
			return tally.ValidUTF8(slices.Clone(rest[:i])), nil
		}
		if c == '\\' {
			return p.escaped(i)
		}
		if c < ' ' {
			break
		}
	}
	return nil, p.fail("a string")
}

// escaped reads a string with an escape at offset i behind its quote.
func (p *parser) escaped(i int) ([]byte, error) {
	rest := p.b[p.at:]
	for i++; i < len(rest); i++ {
		switch rest[i] {
		case '\\':
			i++
		case '"':
			var s string
			if json.Unmarshal(rest[:i+1], &s) != nil {
				return nil, p.fail("a string")
			}
			p.at += i + 1
			return []byte(s), nil
		}
	}
	return nil, p.fail("a string")
}
