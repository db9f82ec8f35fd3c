package lode

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
)

// handler answers one invocation. An error is the failure of the user's code.
type handler func(v *invocation) error

// export is one registered name.
type export struct {
	name     string
	triggers []string
	run      handler
	merge    handler // jobs
	native   string  // jobs: the built-in reducer that does what merge does, or ""
}

// registry holds what main registered.
type registry struct {
	handlers []export
	jobs     []export
	kinds    []kindExport
	warm     []func()
	err      error // the first wrong registration
}

// exports is this program's registry; see the package comment.
var exports registry

// adaptHTTP makes a handler of an http.Handler; nil without net/http.
var adaptHTTP func(fn any) (handler, bool)

// Handle makes fn the default handler. fn is a function
//
//	func([context.Context,] [In]) ([Out,] [error])
//
// or an http.Handler. In and Out are JSON, except []byte, io.Reader (raw
// bytes; a Reader streams). An empty body gives the zero In; a body that does
// not decode is answered with 400. A returned error or a panic fails the
// invocation with the error's Go type, message and, for a panic, stack. A
// function without Out answers 204.
func Handle(fn any) { HandleNamed("", fn) }

// HandleNamed makes fn the handler of that name, in a module with several.
// Shapes are those of Handle.
func HandleNamed(name string, fn any) {
	begin()
	if adaptHTTP != nil {
		if h, ok := adaptHTTP(fn); ok {
			exports.add(&exports.handlers, export{name: name, run: h, triggers: []string{"http", "call"}})
			return
		}
	}
	h, err := adapt(fn)
	if err != nil {
		exports.refuse(fmt.Errorf("lode.Handle(%q): %w", name, err))
		return
	}
	exports.add(&exports.handlers, export{name: name, run: h, triggers: []string{"http", "call", "schedule", "queue"}})
}

// Warm adds fn to what is exercised before the snapshot that every sandbox
// starts from, so that no invocation pays for it: parse templates, fill
// caches, call the handler's pure parts. Nothing outside can be reached yet.
func Warm(fn func()) {
	begin()
	exports.warm = append(exports.warm, fn)
}

func (r *registry) add(to *[]export, e export) {
	if slices.ContainsFunc(*to, func(o export) bool { return o.name == e.name }) {
		r.refuse(fmt.Errorf("lode: handler %q is registered twice", e.name))
		return
	}
	*to = append(*to, e)
}

func (r *registry) refuse(err error) {
	if r.err == nil {
		r.err = err
	}
}

// find returns what answers a request of this kind and handler name.
func (r *registry) find(kind, name string) (handler, error) {
	if kind == "job" || kind == "merge" {
		for i := range r.jobs {
			if r.jobs[i].name == name {
				if kind == "merge" {
					return r.jobs[i].merge, nil
				}
				return r.jobs[i].run, nil
			}
		}
		if kind == "merge" {
			return nil, fmt.Errorf("this module has no job %q with a merge", name)
		}
	}
	for i := range r.handlers {
		if r.handlers[i].name == name {
			return r.handlers[i].run, nil
		}
	}
	if name == "" {
		return nil, fmt.Errorf("this module has no default handler: name one, or register it with lode.Handle")
	}
	return nil, fmt.Errorf("this module has no handler %q", name)
}

// description is the JSON that lode_describe writes.
type description struct {
	SDK       string           `json:"sdk"`
	ABI       int              `json:"abi"`
	Functions []describedEntry `json:"functions,omitempty"`
	Jobs      []describedEntry `json:"jobs,omitempty"`
	Kinds     []describedKind  `json:"kinds,omitempty"`
}

type describedEntry struct {
	Name     string   `json:"name"`
	Triggers []string `json:"triggers,omitempty"`
	Reduce   string   `json:"reduce,omitempty"`
}

func (r *registry) describe() ([]byte, error) {
	if r.err != nil {
		return nil, r.err
	}
	if len(r.handlers)+len(r.jobs)+len(r.kinds) == 0 {
		return nil, fmt.Errorf("main registers nothing: call lode.Handle, lode.Agent or lode.Job in it")
	}
	d := description{SDK: "go 1", ABI: 1}
	for _, e := range r.handlers {
		d.Functions = append(d.Functions, describedEntry{Name: e.name, Triggers: e.triggers})
	}
	for _, e := range r.jobs {
		d.Jobs = append(d.Jobs, describedEntry{Name: e.name, Reduce: cmp.Or(e.native, "guest")})
	}
	for _, k := range r.kinds {
		d.Kinds = append(d.Kinds, k.describedKind)
	}
	return json.Marshal(d)
}

var (
	contextType = reflect.TypeFor[context.Context]()
	errorType   = reflect.TypeFor[error]()
	bytesType   = reflect.TypeFor[[]byte]()
	readerType  = reflect.TypeFor[io.Reader]()
)

// shape is what adapt found out about a function.
type shape struct {
	fn       reflect.Value
	ctx      bool
	in       reflect.Type // nil: none
	out, err bool
}

// adapt checks fn's shape, once, and returns what runs it.
func adapt(fn any) (handler, error) {
	switch f := fn.(type) { // bytes to bytes: without reflection, which costs more than all the rest
	case func(context.Context, []byte) ([]byte, error):
		if f != nil {
			return bytesHandler(f), nil
		}
	case func([]byte) ([]byte, error):
		if f != nil {
			return bytesHandler(func(_ context.Context, b []byte) ([]byte, error) { return f(b) }), nil
		}
	}
	v := reflect.ValueOf(fn)
	if !v.IsValid() || v.Kind() != reflect.Func || v.IsNil() {
		return nil, fmt.Errorf("%T is not a handler: want func([context.Context,] [In]) ([Out,] [error]), or an http.Handler", fn)
	}
	t, s := v.Type(), shape{fn: v}
	wrong := fmt.Errorf("%s is not a handler's shape: want func([context.Context,] [In]) ([Out,] [error])", t)
	args := t.NumIn()
	if args > 0 && t.In(0) == contextType {
		s.ctx = true
		args--
	}
	if args > 1 || t.IsVariadic() || t.NumOut() > 2 {
		return nil, wrong
	}
	if args == 1 {
		s.in = t.In(t.NumIn() - 1)
	}
	if n := t.NumOut(); n > 0 && t.Out(n-1) == errorType {
		s.err = true
		s.out = n == 2
	} else if n == 1 {
		s.out = true
	} else if n == 2 {
		return nil, wrong
	}
	noteShape(t)
	return s.run, nil
}

func bytesHandler(f func(context.Context, []byte) ([]byte, error)) handler {
	return func(v *invocation) error {
		in, err := v.body()
		if err != nil {
			return answerInvalid(v, err)
		}
		out, err := f(v, in)
		if err != nil {
			return err
		}
		return v.port.respond(v, 200, bytesHead, out)
	}
}

var bytesHead = []pair{{"content-type", "application/octet-stream"}}

func (s *shape) run(v *invocation) error {
	args := make([]reflect.Value, 0, 2)
	if s.ctx {
		args = append(args, reflect.ValueOf(v))
	}
	if s.in != nil {
		in, err := s.input(v)
		if err != nil {
			return answerInvalid(v, err)
		}
		args = append(args, in)
	}
	out := s.fn.Call(args)
	if s.err {
		if err, _ := out[len(out)-1].Interface().(error); err != nil {
			return err
		}
	}
	if !s.out {
		return v.port.respond(v, 204, nil, nil)
	}
	return answer(v, out[0].Interface())
}

// input reads the body as the handler's In.
func (s *shape) input(v *invocation) (reflect.Value, error) {
	if s.in == readerType {
		return reflect.ValueOf(bodyReader{v}), nil
	}
	body, err := v.body()
	if err != nil {
		return reflect.Value{}, err
	}
	if s.in == bytesType {
		return reflect.ValueOf(body), nil
	}
	in := reflect.New(s.in)
	if err := decode(body, in.Interface()); err != nil {
		return reflect.Value{}, fmt.Errorf("the request body is not JSON for %s: %w", s.in, err)
	}
	return in.Elem(), nil
}

// bodyReader streams the request's body.
type bodyReader struct{ v *invocation }

func (r bodyReader) Read(p []byte) (int, error) { return r.v.port.read(r.v, p) }

// answer writes a handler's value: bytes as they are, a Reader streamed, all
// else as JSON.
func answer(v *invocation, out any) error {
	switch x := out.(type) {
	case []byte:
		return v.port.respond(v, 200, []pair{{"content-type", "application/octet-stream"}}, x)
	case io.Reader:
		if x == nil {
			break
		}
		if c, ok := x.(io.Closer); ok {
			defer c.Close()
		}
		return stream(v, x)
	}
	b, err := encode(out)
	if err != nil {
		return err
	}
	return v.port.respond(v, 200, []pair{{"content-type", "application/json"}}, b)
}

func stream(v *invocation, r io.Reader) error {
	if err := v.port.respond(v, 200, []pair{{"content-type", "application/octet-stream"}}, nil); err != nil {
		return err
	}
	b := make([]byte, 32<<10)
	for {
		n, err := r.Read(b)
		if n > 0 {
			if err := v.port.write(v, b[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// answerInvalid tells the caller that its body does not fit: his fault, not a
// failure of the function.
func answerInvalid(v *invocation, err error) error {
	b, _ := json.Marshal(map[string]any{"type": "about:blank", "title": "the request is not valid", "status": 400, "detail": err.Error()})
	return v.port.respond(v, 400, problemHead, b)
}

var problemHead = []pair{{"content-type", "application/problem+json"}}

// answerProblem tells the caller what went wrong, of which kind.
func answerProblem(v *invocation, kind Kind, detail, hint string) error {
	return v.port.respond(v, kind.status(), problemHead, problem(kind, detail, hint))
}

// problem is problem+json, as Lode's own errors have it.
func problem(kind Kind, detail, hint string) []byte {
	p := map[string]any{"type": "urn:lode:error:" + string(kind), "title": strings.ReplaceAll(string(kind), "_", " "), "status": kind.status(), "kind": kind, "detail": detail}
	if hint != "" {
		p["hint"] = hint
	}
	b, _ := json.Marshal(p)
	return b
}

// appender writes itself as JSON without encoding/json's second look at it.
type appender interface{ appendJSON(b []byte) []byte }

// encode is the JSON of x, with the fast path of our own types.
func encode(x any) ([]byte, error) {
	if a, ok := x.(appender); ok {
		return a.appendJSON(nil), nil
	}
	return json.Marshal(x)
}

// decode reads JSON into p; nothing at all is p's zero value.
func decode(b []byte, p any) error {
	if len(b) == 0 {
		return nil
	}
	if c, ok := p.(*Counts); ok {
		return c.UnmarshalJSON(b)
	}
	return json.Unmarshal(b, p)
}

// shapes are the types that handlers take and give, for the rehearsal.
var shapes []reflect.Type

func noteShape(fn reflect.Type) {
	for in := range fn.Ins() {
		if in != contextType && in.Kind() != reflect.Interface {
			shapes = append(shapes, in)
		}
	}
	for out := range fn.Outs() {
		if out.Kind() != reflect.Interface {
			shapes = append(shapes, out)
		}
	}
}
