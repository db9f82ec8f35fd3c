package lode

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// Agent registers a kind of agents: durable objects with a name, the address
// kind/key, of which the cluster has one copy each that handles one message at
// a time. new makes the value of an agent that holds nothing yet; nil makes a
// zero T.
//
//	type Cart struct{ Items map[string]int }
//	func (c *Cart) Add(ctx context.Context, item string, n int) (int, error) { ... }
//	lode.Agent("cart", func(key string) *Cart { return &Cart{Items: map[string]int{}} }, "Total")
//
// T's exported methods are the agent's, of the shape
//
//	func (*T) Method([context.Context,] args...) ([Out,] [error])
//
// and are called by their name, its first letter in lower case: add, or as Go
// has it: Add. Arguments and Out are JSON, but a []byte that is the only one.
// read names the methods that only read. A few names mean something of their
// own:
//
//	ServeHTTP(w, r)                                        its HTTP requests: an http.Handler
//	OnMessage(ctx, *lode.Socket, lode.Message) [error]     a message of a WebSocket, see AcceptSocket
//	OnClose(ctx, *lode.Socket, code int, reason string) [error]
//	Migrate(ctx, from, to int) error                       once for each agent, before its first message on a new revision
//
// T's exported fields are the agent's state: JSON each, under a dot and the
// field's name or that of its json tag ("-" leaves it out). They are read when
// the agent wakes up, over what new made, and those that a turn has changed are
// written at its end, at once. Unexported fields are a cache that lives as long
// as the value does. What is too large for a field is kept with State.
//
// A turn is all or nothing: if the method returns an error or panics nothing of
// it stays, and the value is made again from what was stored. An error of a
// Kind (lode.NotFound, a *lode.Error) reaches the caller with its kind; any
// other one is a crash to him. A method that only reads must not change fields:
// nothing is written then. Fields are read and written at the borders of turns:
// in a kind that is re-entrant, keep what a nested call must see with State.
func Agent[T any](kind string, new func(key string) *T, read ...string) {
	begin()
	make := func(key string) any { return new(key) }
	if new == nil {
		make = func(string) any { var z T; return &z }
	}
	k, err := newKind(kind, reflect.TypeFor[*T](), make, read)
	if err != nil {
		exports.refuse(fmt.Errorf("lode.Agent(%q): %w", kind, err))
		return
	}
	exports.addKind(kindExport{describedKind: k.describe(), turn: k.turn})
}

// kindExport is one registered kind of agents.
type kindExport struct {
	describedKind
	turn handler
}

// describedKind is what lode_describe says of a kind.
type describedKind struct {
	Name    string   `json:"name"`
	Methods []string `json:"methods"`
	Read    []string `json:"read,omitempty"`
	Fetch   bool     `json:"fetch,omitempty"`
	Socket  bool     `json:"socket,omitempty"`
	Migrate bool     `json:"migrate,omitempty"`
}

func (r *registry) addKind(k kindExport) {
	if slices.ContainsFunc(r.kinds, func(o kindExport) bool { return o.Name == k.Name }) {
		r.refuse(fmt.Errorf("lode: the kind %q is registered twice", k.Name))
		return
	}
	r.kinds = append(r.kinds, k)
}

// kindOf returns what answers the turns of a kind; "" is the only one.
func (r *registry) kindOf(class string) (handler, error) {
	for i := range r.kinds {
		if r.kinds[i].Name == class || class == "" && len(r.kinds) == 1 {
			return r.kinds[i].turn, nil
		}
	}
	if class == "" {
		return nil, fmt.Errorf("this module has %d kinds of agents: name one", len(r.kinds))
	}
	return nil, fmt.Errorf("this module has no kind of agents %q", class)
}

// agentKind is one kind: its methods by the names they are called by, and what
// its instances are made of.
type agentKind struct {
	name    string
	make    func(key string) any
	methods map[string]*agentMethod
	listed  []*agentMethod
	fields  []agentField
	mget    []byte // body of the mget that reads all fields
	fetch   bool
	message reflect.Type // not nil: it takes sockets
	migrate bool
	cache   instances
}

// The shapes of methods that mean something of their own.
type (
	messager interface {
		OnMessage(ctx context.Context, s *Socket, m Message) error
	}
	quietMessager interface {
		OnMessage(ctx context.Context, s *Socket, m Message)
	}
	closer interface {
		OnClose(ctx context.Context, s *Socket, code int, reason string) error
	}
	quietCloser interface {
		OnClose(ctx context.Context, s *Socket, code int, reason string)
	}
	migrator interface {
		Migrate(ctx context.Context, from, to int) error
	}
)

// newKind looks at *T, once.
func newKind(name string, t reflect.Type, make func(key string) any, read []string) (*agentKind, error) {
	if name == "" {
		return nil, errors.New("a kind of agents needs a name")
	}
	if t.Elem().Kind() != reflect.Struct {
		return nil, fmt.Errorf("%s is not a struct: the exported fields of one are an agent's state", t.Elem())
	}
	k := &agentKind{name: name, make: make, methods: map[string]*agentMethod{}}
	if err := k.learnFields(t.Elem()); err != nil {
		return nil, err
	}
	zero := reflect.Zero(t).Interface()
	for i := range t.NumMethod() {
		m := t.Method(i)
		own, err := k.special(m.Name, zero)
		if err != nil {
			return nil, fmt.Errorf("%s.%s: %w", t, m.Name, err)
		}
		if own {
			continue
		}
		if err := k.learn(t, m); err != nil {
			return nil, err
		}
	}
	for _, r := range read {
		m := k.methods[r]
		if m == nil {
			return nil, fmt.Errorf("%s has no method %q to be one that only reads", t, r)
		}
		m.read = true
	}
	return k, nil
}

// special takes the methods that are no messages by name. zero is a nil *T.
func (k *agentKind) special(name string, zero any) (own bool, err error) {
	ok, want := false, ""
	switch name {
	case "ServeHTTP":
		if adaptHTTP != nil {
			_, ok = adaptHTTP(zero)
		}
		k.fetch, want = ok, "http.ResponseWriter, *http.Request)"
	case "OnMessage":
		_, ok = zero.(messager)
		_, quiet := zero.(quietMessager)
		ok = ok || quiet
		k.message, want = reflect.TypeOf(zero), "context.Context, *lode.Socket, lode.Message) [error]"
	case "OnClose":
		_, ok = zero.(closer)
		_, quiet := zero.(quietCloser)
		ok, want = ok || quiet, "context.Context, *lode.Socket, code int, reason string) [error]"
	case "Migrate":
		_, ok = zero.(migrator)
		k.migrate, want = ok, "context.Context, from, to int) error"
	default:
		return false, nil
	}
	if !ok {
		return true, fmt.Errorf("this name is for func(%s", want)
	}
	return true, nil
}

// learn notes one method.
func (k *agentKind) learn(t reflect.Type, rm reflect.Method) error {
	m, err := newMethod(rm)
	if err != nil {
		if promoted(t.Elem(), rm.Name) {
			return nil // it came along with an embedded type
		}
		return fmt.Errorf("%s.%s: %w", t, rm.Name, err)
	}
	if o := k.methods[m.name]; o != nil {
		return fmt.Errorf("%s has two methods that are called %q", t, m.name)
	}
	k.methods[m.name], k.methods[rm.Name] = m, m
	k.listed = append(k.listed, m)
	return nil
}

// promoted reports whether a method of *T may be that of an embedded field.
func promoted(t reflect.Type, name string) bool {
	for i := range t.NumField() {
		f := t.Field(i)
		if !f.Anonymous {
			continue
		}
		if _, ok := f.Type.MethodByName(name); ok {
			return true
		}
		if _, ok := reflect.PointerTo(f.Type).MethodByName(name); ok {
			return true
		}
	}
	return false
}

func (k *agentKind) describe() describedKind {
	d := describedKind{Name: k.name, Methods: []string{}, Fetch: k.fetch, Socket: k.message != nil, Migrate: k.migrate}
	for _, m := range k.listed {
		d.Methods = append(d.Methods, m.name)
		if m.read {
			d.Read = append(d.Read, m.name)
		}
	}
	return d
}

// turn handles one message to one agent.
func (k *agentKind) turn(v *invocation) error {
	key := v.request.get(":agent")
	done := false
	defer func() { // after a panic too: what the value holds was never stored
		if !done {
			k.cache.drop(key)
		}
	}()
	err := k.handle(v, key)
	if err == nil && v.failed != nil {
		err = v.failed
	}
	if err != nil {
		if answerFailure(v, err) {
			return nil // the answer undoes the turn
		}
		return err
	}
	done = v.agent != nil && !v.agent.removed
	return nil
}

// handle runs the turn and, at its end, writes what it has changed.
func (k *agentKind) handle(v *invocation, key string) error {
	in, err := k.instance(v, key)
	if err != nil {
		return err
	}
	v.agent = in
	switch turn := v.request.get(":turn"); turn {
	case "fetch":
		err = k.serve(v, in)
	case "socket":
		err = k.socket(v, in)
	case "migrate":
		if err = k.migration(v, in); err == nil {
			err = in.flush(v)
		}
	default:
		return k.call(v, in, turn == "read")
	}
	if err != nil {
		return err
	}
	return in.flush(v)
}

// call runs a method.
func (k *agentKind) call(v *invocation, in *instance, read bool) error {
	verb := v.request.get(":verb")
	m := k.methods[verb]
	if m == nil {
		return &Error{Kind: NotFound, Detail: fmt.Sprintf("kind %s has no method %q", k.name, verb), Hint: "methods: " + k.words()}
	}
	out, err := m.run(v, in)
	if err != nil {
		return err
	}
	var body []byte
	head := jsonHead
	if m.out {
		if b, ok := out.([]byte); ok {
			body, head = b, bytesHead
		} else if body, err = encode(out); err != nil {
			return err
		}
	}
	if !read {
		if err := in.flush(v); err != nil {
			return err
		}
	}
	if !m.out {
		return v.port.respond(v, 204, nil, nil)
	}
	return v.port.respond(v, 200, head, body)
}

var jsonHead = []pair{{"content-type", "application/json"}}

// words lists the methods for a person.
func (k *agentKind) words() string {
	var out []string
	for _, m := range k.listed {
		w := m.name
		if m.read {
			w += " (read)"
		}
		out = append(out, w)
	}
	return strings.Join(out, ", ")
}

// serve answers an HTTP request.
func (k *agentKind) serve(v *invocation, in *instance) error {
	if adaptHTTP != nil {
		if h, ok := adaptHTTP(in.self); ok {
			return h(v)
		}
	}
	return &Error{Kind: NotFound, Detail: "kind " + k.name + " answers no HTTP requests", Hint: "give it a method ServeHTTP"}
}

// socket tells the agent what has happened to one of its sockets.
func (k *agentKind) socket(v *invocation, in *instance) error {
	s := &Socket{ID: v.request.get(":socket")}
	if v.request.get(":event") == "message" {
		body, err := v.body()
		if err != nil {
			return err
		}
		m := Message{ID: v.request.get(":turn-id"), Attempt: 1, Type: v.request.get(":type"), Body: body}
		switch t := in.self.(type) {
		case messager:
			return t.OnMessage(v, s, m)
		case quietMessager:
			t.OnMessage(v, s, m)
		}
		return nil
	}
	code, _ := strconv.Atoi(v.request.get(":code"))
	if code == 0 {
		code = 1006 // it broke
	}
	switch t := in.self.(type) {
	case closer:
		return t.OnClose(v, s, code, v.request.get(":reason"))
	case quietCloser:
		t.OnClose(v, s, code, v.request.get(":reason"))
	}
	return nil
}

// migration tells the agent that it runs on another revision.
func (k *agentKind) migration(v *invocation, in *instance) error {
	t, ok := in.self.(migrator)
	if !ok {
		return nil
	}
	return t.Migrate(v, revision(v.request.get(":from")), revision(v.request.get(":to")))
}

// revision is the number of "namespace/name@number", or of a number alone.
func revision(s string) int {
	n, _ := strconv.Atoi(s[strings.LastIndexByte(s, '@')+1:])
	return n
}

// answerFailure tells the caller of a method why it failed, where the error is
// of a kind. Such an answer undoes the turn; it is no crash to anybody.
func answerFailure(v *invocation, err error) bool {
	kind := KindOf(err)
	switch v.request.get(":turn") {
	case "call", "read", "timer":
		return kind != "" && answerProblem(v, kind, err.Error(), hintOf(err)) == nil
	}
	return false
}
