package lode

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// agentMethod is one method of a kind.
type agentMethod struct {
	name     string // on the wire
	fn       reflect.Value
	in       []reflect.Type // without the receiver and the context; of a variadic one the last is a slice
	need     int            // arguments that must be there
	ctx      bool
	variadic bool
	out, err bool
	read     bool
}

// newMethod checks a method's shape.
func newMethod(rm reflect.Method) (*agentMethod, error) {
	t := rm.Type
	m := &agentMethod{name: lowerFirst(rm.Name), fn: rm.Func, variadic: t.IsVariadic()}
	for i := 1; i < t.NumIn(); i++ {
		in := t.In(i)
		if i == 1 && in == contextType {
			m.ctx = true
			continue
		}
		m.in = append(m.in, in)
		if !carried(in) {
			return nil, fmt.Errorf("an argument of the type %s cannot come from outside", in)
		}
	}
	for m.need = len(m.in); m.need > 0 && (m.variadic && m.need == len(m.in) || m.in[m.need-1].Kind() == reflect.Pointer); m.need-- {
	}
	switch n := t.NumOut(); {
	case n > 0 && t.Out(n-1) == errorType && n <= 2:
		m.err, m.out = true, n == 2
	case n == 1:
		m.out = true
	case n > 1:
		return nil, errors.New("want func([context.Context,] args...) ([Out,] [error])")
	}
	if m.out && !carried(t.Out(0)) {
		return nil, fmt.Errorf("a value of the type %s cannot go outside", t.Out(0))
	}
	shapes = append(shapes, m.in...)
	if m.out && t.Out(0).Kind() != reflect.Interface {
		shapes = append(shapes, t.Out(0))
	}
	return m, nil
}

// carried reports whether JSON can hold a type.
func carried(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Func, reflect.Chan, reflect.UnsafePointer, reflect.Complex64, reflect.Complex128:
		return false
	case reflect.Interface:
		return t.NumMethod() == 0
	}
	return true
}

func lowerFirst(s string) string {
	r, n := utf8.DecodeRuneInString(s)
	return string(unicode.ToLower(r)) + s[n:]
}

// run calls the method of an instance with what the message carries.
func (m *agentMethod) run(v *invocation, in *instance) (any, error) {
	args := make([]reflect.Value, 0, 4)
	args = append(args, in.value)
	if m.ctx {
		args = append(args, reflect.ValueOf(v))
	}
	args, err := m.arguments(v, args)
	if err != nil {
		return nil, &Error{Kind: Invalid, Detail: m.name + ": " + err.Error(), Hint: "it takes " + m.takes()}
	}
	out := m.fn.Call(args)
	if m.err {
		if err, _ := out[len(out)-1].Interface().(error); err != nil {
			return nil, err
		}
	}
	if !m.out {
		return nil, nil
	}
	return out[0].Interface(), nil
}

// takes says what the method takes, for a person.
func (m *agentMethod) takes() string {
	if len(m.in) == 0 {
		return "no arguments"
	}
	var words []string
	for i, t := range m.in {
		if m.variadic && i == len(m.in)-1 {
			words = append(words, "..."+t.Elem().String())
		} else {
			words = append(words, t.String())
		}
	}
	return "(" + strings.Join(words, ", ") + ")"
}

const listType = "application/vnd.lode.args+json"

// arguments appends the decoded arguments of the message.
func (m *agentMethod) arguments(v *invocation, args []reflect.Value) ([]reflect.Value, error) {
	body, err := v.body()
	if err != nil {
		return nil, err
	}
	form := v.request.get("content-type")
	if len(body) == 0 && form != "application/octet-stream" {
		return m.list(args, nil)
	}
	if strings.HasPrefix(form, listType) {
		var list []json.RawMessage
		if err := json.Unmarshal(body, &list); err != nil {
			return nil, fmt.Errorf("the arguments are not a list in JSON: %w", err)
		}
		return m.list(args, list)
	}
	if len(m.in) == 0 || m.need > 1 {
		return nil, fmt.Errorf("there is 1 argument, not %d", m.need)
	}
	t := m.in[0]
	if m.variadic && len(m.in) == 1 {
		t = t.Elem()
	}
	a, err := one(body, form, t)
	if err != nil {
		return nil, err
	}
	return m.rest(append(args, a), 1), nil
}

// one decodes the only argument of a message.
func one(body []byte, form string, t reflect.Type) (reflect.Value, error) {
	if t == bytesType {
		return reflect.ValueOf(body), nil
	}
	if t.Kind() == reflect.String && form != "" && !strings.Contains(form, "json") && !strings.HasPrefix(form, "application/x-www-form") {
		return reflect.ValueOf(string(body)).Convert(t), nil
	}
	return argument(body, t)
}

// argument decodes one argument from JSON. Numbers that are one are read here,
// since they are what agents are asked to add all day.
func argument(b []byte, t reflect.Type) (reflect.Value, error) {
	p := reflect.New(t)
	if t.Kind() >= reflect.Int && t.Kind() <= reflect.Int64 && t.NumMethod() == 0 {
		if n, err := strconv.ParseInt(string(b), 10, 64); err == nil && b[0] != '+' && !p.Elem().OverflowInt(n) {
			p.Elem().SetInt(n)
			return p.Elem(), nil
		}
	}
	if err := decode(b, p.Interface()); err != nil {
		return reflect.Value{}, fmt.Errorf("an argument is not JSON for %s: %w", t, err)
	}
	return p.Elem(), nil
}

// list decodes the arguments of a list.
func (m *agentMethod) list(args []reflect.Value, list []json.RawMessage) ([]reflect.Value, error) {
	if len(list) < m.need || len(list) > len(m.in) && !m.variadic {
		return nil, fmt.Errorf("there are %d arguments, not %d", len(list), len(m.in))
	}
	for i, raw := range list {
		t := m.in[min(i, len(m.in)-1)]
		if m.variadic && i >= len(m.in)-1 {
			t = t.Elem()
		}
		a, err := argument(raw, t)
		if err != nil {
			return nil, err
		}
		args = append(args, a)
	}
	return m.rest(args, len(list)), nil
}

// rest gives the arguments that may be missing their zero value.
func (m *agentMethod) rest(args []reflect.Value, have int) []reflect.Value {
	most := len(m.in)
	if m.variadic {
		most--
	}
	for ; have < most; have++ {
		args = append(args, reflect.Zero(m.in[have]))
	}
	return args
}
