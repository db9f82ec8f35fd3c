package lode

import (
	"bytes"
	"container/list"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"sync"

	"lode/sdk/abi"
)

// agentField is one exported field of a kind's struct.
type agentField struct {
	index int
	name  string // of the field
	key   string // of the state
	zero  reflect.Value
}

// learnFields finds the state of *T.
func (k *agentKind) learnFields(t reflect.Type) error {
	seen := map[string]string{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !f.IsExported() || f.Tag.Get("json") == "-" {
			continue
		}
		if name == "" {
			name = f.Name
		}
		if !carried(f.Type) || f.Type.Kind() == reflect.Interface && f.Type.NumMethod() > 0 {
			return fmt.Errorf("the field %s of the type %s cannot be stored: give it a lower-case name, or the tag `json:\"-\"`", f.Name, f.Type)
		}
		if o := seen[name]; o != "" {
			return fmt.Errorf("the fields %s and %s are both stored as %q", o, f.Name, name)
		}
		if len(name) >= abi.MaxStateKey {
			return fmt.Errorf("the name of the field %s is too long to be stored", f.Name)
		}
		seen[name] = f.Name
		k.fields = append(k.fields, agentField{index: i, name: f.Name, key: "." + name, zero: reflect.Zero(f.Type)})
		shapes = append(shapes, f.Type)
	}
	k.mget = abi.AppendCount(nil, len(k.fields))
	for _, f := range k.fields {
		k.mget = abi.AppendKey(k.mget, f.key)
	}
	return nil
}

// instance is one agent in memory.
type instance struct {
	kind    *agentKind
	key     string
	self    any           // *T
	value   reflect.Value // self
	slots   []slot        // of the kind's fields
	size    int           // bytes of all slots
	counted int           // of them, those that the cache knows
	removed bool
}

// slot is one field of an instance, and its encoding as it is stored. An
// encoding that is nil is unlike any other.
type slot struct {
	ptr  any // *Field
	last []byte
}

// instance returns the agent: that of its last turn if the host says that it
// is the state, else one made of what is stored.
func (k *agentKind) instance(v *invocation, key string) (*instance, error) {
	if v.request.get(":warm") == "1" {
		if in := k.cache.get(key); in != nil {
			return in, nil
		}
	} else {
		k.cache.drop(key)
	}
	self := k.make(key)
	in := &instance{kind: k, key: strings.Clone(key), self: self, value: reflect.ValueOf(self)}
	if in.value.IsNil() {
		return nil, fmt.Errorf("the function that makes a %s made nil for %q", k.name, key)
	}
	if err := in.load(v); err != nil {
		return nil, err
	}
	k.cache.put(in)
	return in, nil
}

// load reads the fields over what new made.
func (in *instance) load(v *invocation) error {
	k := in.kind
	if len(k.fields) == 0 {
		return nil
	}
	r, err := operate(v, abi.OpState, message{head: []pair{{":verb", "mget"}}, body: k.mget})
	if err != nil {
		return err
	}
	in.slots = make([]slot, 0, len(k.fields))
	elem := in.value.Elem()
	var bad error
	err = abi.DecodeFound(r.body, func(stored []byte, found bool) {
		n := len(in.slots)
		if n == len(k.fields) || bad != nil {
			return
		}
		f, s := &k.fields[n], slot{ptr: elem.Field(k.fields[n].index).Addr().Interface()}
		if found {
			s.last = bytes.Clone(stored)
			elem.Field(f.index).Set(f.zero)
			if e := json.Unmarshal(stored, s.ptr); e != nil && v.request.get(":turn") != "migrate" {
				bad = &Error{Kind: Damaged, Detail: fmt.Sprintf("what %s stores as %q is not JSON for its field %s: %v", v.request.get(":address"), f.key, f.name, e),
					Hint: "give the kind a method Migrate that reads the old form with lode.State(ctx).Get"}
			}
		} else if s.last, bad = appendField(nil, s.ptr); bad != nil { // a default that stays one is not written
			return
		}
		in.size += len(s.last)
		in.slots = append(in.slots, s)
	})
	if bad != nil {
		return bad
	}
	if err != nil || len(in.slots) != len(k.fields) {
		return &Error{Kind: Internal, Detail: "the answer of mget is malformed"}
	}
	return nil
}

// flush writes the fields whose encoding is not the stored one.
func (in *instance) flush(v *invocation) error {
	if in.removed || len(in.slots) == 0 || v.request.get(":turn") == "read" {
		return nil
	}
	body, err := in.changes()
	if err != nil || body == nil {
		return err
	}
	_, err = operate(v, abi.OpState, message{head: writeHead, body: body})
	in.kind.cache.resize(in)
	return err
}

var writeHead = []pair{{":verb", "write"}}

// changes is the body of that write, nil if there is nothing to write.
func (in *instance) changes() (body []byte, err error) {
	var room [64]byte
	scratch, n := room[:0], 0
	for i := range in.slots {
		s, f := &in.slots[i], &in.kind.fields[i]
		if scratch, err = appendField(scratch[:0], s.ptr); err != nil {
			return nil, fmt.Errorf("the field %s cannot be stored: %w", f.name, err)
		}
		if s.last != nil && bytes.Equal(scratch, s.last) {
			continue
		}
		if len(scratch) > abi.MaxStateValue {
			return nil, &Error{Kind: TooLarge, Detail: fmt.Sprintf("the field %s of %s/%s has %d bytes of JSON; at most 1 MiB is stored", f.name, in.kind.name, in.key, len(scratch)),
				Hint: "keep its parts under keys of their own: lode.State(ctx).Put"}
		}
		if body == nil {
			body = abi.AppendCount(make([]byte, 0, 64+len(scratch)), 0)
		}
		body = abi.AppendPut(body, f.key, scratch)
		in.size += len(scratch) - len(s.last)
		s.last = append(s.last[:0], scratch...)
		n++
	}
	if body != nil {
		abi.SetCount(body, n)
	}
	return body, nil
}

// appendField appends the JSON of a field. The plain types are written here:
// encoding/json would cost more than all the rest of a small turn.
func appendField(b []byte, ptr any) ([]byte, error) {
	switch p := ptr.(type) {
	case *int:
		return strconv.AppendInt(b, int64(*p), 10), nil
	case *int64:
		return strconv.AppendInt(b, *p, 10), nil
	case *uint64:
		return strconv.AppendUint(b, *p, 10), nil
	case *bool:
		return strconv.AppendBool(b, *p), nil
	case *string:
		if plain(*p) {
			return append(append(append(b, '"'), *p...), '"'), nil
		}
	case *Counts:
		if *p != nil {
			return p.appendJSON(b), nil
		}
	}
	j, err := json.Marshal(ptr)
	return append(b, j...), err
}

// plain reports whether s stands in JSON as it is.
func plain(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			return false
		}
	}
	return true
}

// Bounds of the instances that a sandbox keeps: their number, and the bytes
// that they have stored. One that is dropped is read again when it is needed.
const (
	maxInstances     = 1024
	maxInstanceBytes = 16 << 20
)

// instances are the agents of a kind in memory, the latest used first.
type instances struct {
	mu   sync.Mutex // natively turns of several agents run at once
	by   map[string]*list.Element
	line list.List // of *instance
	size int
}

func (c *instances) get(key string) *instance {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.by[key]
	if e == nil {
		return nil
	}
	c.line.MoveToFront(e)
	return e.Value.(*instance)
}

func (c *instances) put(in *instance) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.by == nil {
		c.by = make(map[string]*list.Element)
	}
	c.forget(c.by[in.key])
	c.by[in.key] = c.line.PushFront(in)
	c.measure(in)
}

// drop forgets an instance; the next turn reads it again.
func (c *instances) drop(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget(c.by[key])
}

func (c *instances) forget(e *list.Element) {
	if e == nil {
		return
	}
	in := c.line.Remove(e).(*instance)
	c.size -= in.counted
	in.counted = 0
	delete(c.by, in.key)
}

// resize looks at the bounds after an instance has changed.
func (c *instances) resize(in *instance) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.by[in.key]; e != nil && e.Value == in {
		c.measure(in)
	}
}

// measure counts an instance that is kept, and drops those used longest ago
// that have no room.
func (c *instances) measure(in *instance) {
	c.size += in.size - in.counted
	in.counted = in.size
	for c.line.Len() > 1 && (c.line.Len() > maxInstances || c.size > maxInstanceBytes) {
		c.forget(c.line.Back())
	}
}
