package lode

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"lode/sdk/abi"
)

// Call calls a function by its name and decodes its answer. The method is the
// handler of a module with several, "" for the default one. One argument is
// the body, several are sent as a list. Out and arguments are JSON, except
// []byte. The deadline is the caller's own or ctx's, whichever is nearer.
// What goes wrong is an *Error: errors.Is(err, lode.NotFound).
//
// An address with a key, kind/key, is an agent's (or that of a running
// invocation, see Run): the method is one of its own. What the callee does is
// not undone if the turn that calls fails; what Send sends is.
func Call[Out any](ctx context.Context, addr, method string, args ...any) (Out, error) {
	var out Out
	m, err := callArguments(args)
	if err != nil {
		return out, err
	}
	m.head = append(m.head, pair{":address", addr})
	if method != "" && isAgent(addr) {
		m.head = append(m.head, pair{":verb", method})
	} else if method != "" {
		m.head = append(m.head, pair{":handler", method})
	}
	r, err := operate(ctx, abi.OpCall, m)
	if err != nil {
		return out, err
	}
	if status, _ := strconv.Atoi(r.get(":status")); status >= 400 {
		return out, calleeError(addr, status, r)
	}
	if p, ok := any(&out).(*[]byte); ok {
		*p = r.body
		return out, nil
	}
	if err := decode(r.body, &out); err != nil {
		return out, fmt.Errorf("the answer of %s is not JSON for %T: %w", addr, out, err)
	}
	return out, nil
}

// isAgent tells the address of an agent from the name of a function.
func isAgent(addr string) bool { return strings.ContainsRune(addr, '/') }

// CallOption changes one Call; it stands among the arguments.
type CallOption func(*message)

// CallKey makes a Call to an agent with a key that was seen before answer what
// the first one did.
func CallKey(idempotency string) CallOption {
	return func(m *message) { m.head = append(m.head, pair{":key", idempotency}) }
}

// callArguments is arguments with the options among them.
func callArguments(args []any) (message, error) {
	var opts []CallOption
	for i := 0; i < len(args); i++ {
		if o, ok := args[i].(CallOption); ok {
			opts = append(opts, o)
			args = slices.Delete(slices.Clone(args), i, i+1)
			i--
		}
	}
	m, err := arguments(args)
	for _, o := range opts {
		o(&m)
	}
	return m, err
}

// Args are several arguments where one is asked for: lode.Args{"book", 2}.
type Args []any

// SendOption changes one Send.
type SendOption = PutOption

// Send makes an agent run a method that nobody waits for. In a turn it is sent
// when the turn takes effect, once, in order for each pair of agents, and not
// at all if the turn fails; from a function it is durable when Send returns.
// args is the one argument, Args for several, nil for none. After delays it;
// Key, from a function, makes it do nothing if the key was seen before.
func Send(ctx context.Context, addr, method string, args any, opts ...SendOption) error {
	var list []any
	switch a := args.(type) {
	case nil:
	case Args:
		list = a
	default:
		list = []any{a}
	}
	m, err := arguments(list)
	if err != nil {
		return err
	}
	m.head = append(m.head, pair{":address", addr}, pair{":verb", method})
	for _, o := range opts {
		o(&m)
	}
	_, err = operate(ctx, abi.OpSend, m)
	return err
}

// arguments encodes what a call carries.
func arguments(args []any) (m message, err error) {
	switch len(args) {
	case 0:
		return m, nil
	case 1:
		if b, ok := args[0].([]byte); ok {
			return message{head: []pair{{"content-type", "application/octet-stream"}}, body: b}, nil
		}
		m.head = []pair{{"content-type", "application/json"}}
		m.body, err = encode(args[0])
	default:
		m.head = []pair{{"content-type", listType}}
		m.body, err = json.Marshal(args)
	}
	return m, err
}

// calleeError is what a callee's own 4xx or 5xx means to its caller.
func calleeError(addr string, status int, r message) error {
	e := &Error{Kind: kindOfStatus(status), Status: status, Body: r.body}
	var p struct{ Kind, Title, Detail, Hint string }
	if json.Unmarshal(r.body, &p) == nil {
		e.Hint = p.Hint
		if p.Kind != "" {
			e.Kind = Kind(p.Kind)
		}
		if e.Detail = p.Detail; e.Detail == "" {
			e.Detail = p.Title
		}
	}
	if e.Detail == "" {
		e.Detail = "status " + strconv.Itoa(status)
	}
	e.Detail = addr + ": " + e.Detail
	return e
}

// Secret returns a secret that the function's spec lists.
func Secret(ctx context.Context, name string) (string, error) {
	r, err := operate(ctx, abi.OpSecret, message{head: []pair{{":key", name}}})
	return string(r.body), err
}

// Config returns a value of the function's env; NotFound if there is none.
func Config(ctx context.Context, name string) (string, error) {
	r, err := operate(ctx, abi.OpConfig, message{head: []pair{{":key", name}}})
	return string(r.body), err
}

// Env is Config for a value that may be missing: fallback then.
func Env(ctx context.Context, name, fallback string) string {
	if v, err := Config(ctx, name); err == nil {
		return v
	}
	if v, ok := os.LookupEnv(name); ok {
		return v
	}
	return fallback
}

// Node is the name of the node that runs this invocation.
func Node(ctx context.Context) (string, error) {
	r, err := operate(ctx, abi.OpSelf, message{})
	return r.get(":node"), err
}

// PutOption changes one Put or Send.
type PutOption func(*message)

// Key makes a Put or Send with a key that was seen before do nothing.
func Key(idempotency string) PutOption {
	return func(m *message) { m.head = append(m.head, pair{":key", idempotency}) }
}

// After delays the delivery of a Put or Send.
func After(d time.Duration) PutOption {
	return func(m *message) {
		m.head = append(m.head, pair{":delay", milliseconds(d)})
	}
}

// Put puts a value, JSON unless it is []byte, into a queue and returns its id.
// It is durable when Put returns.
func Put(ctx context.Context, queue string, value any, opts ...PutOption) (id string, err error) {
	m, err := arguments([]any{value})
	if err != nil {
		return "", err
	}
	m.head = append(m.head, pair{":queue", queue})
	for _, o := range opts {
		o(&m)
	}
	r, err := operate(ctx, abi.OpQueue, m)
	return r.get(":id"), err
}

// Batch is what a queue's consumer gets: lode.Handle(func(ctx, b lode.Batch)
// (lode.Retry, error)).
type Batch struct {
	Queue    string    `json:"queue"`
	Messages []Message `json:"messages"`
}

// Message is one message of a Batch.
type Message struct {
	ID      string    `json:"id"`
	Attempt int       `json:"attempt"` // 1, 2, 3
	Time    time.Time `json:"time"`    // when it was put
	Type    string    `json:"type"`    // content type
	Body    []byte    `json:"body"`
}

// JSON decodes the message's body into v.
func (m *Message) JSON(v any) error { return decode(m.Body, v) }

// Retry names the messages that are to come again; all others are done.
type Retry struct {
	IDs []string `json:"retry"`
}

// Dataset is an open version of a dataset.
type Dataset struct {
	Name    string
	Version int
	Records string
	Shards  []ShardInfo
	Bytes   int64 // sum over shards
	Count   int64 // records, sum over shards
}

// ShardInfo is the size of one shard.
type ShardInfo struct {
	Bytes int64 `json:"bytes"`
	Count int64 `json:"count"`
}

// Open reads the newest version's manifest of a dataset.
func Open(ctx context.Context, name string) (*Dataset, error) {
	r, err := operate(ctx, abi.OpData, message{head: []pair{{":dataset", name}, {":verb", "show"}}})
	if err != nil {
		return nil, err
	}
	var d Dataset
	if err := json.Unmarshal(r.body, &d); err != nil {
		return nil, fmt.Errorf("the manifest of %s does not decode: %w", name, err)
	}
	return &d, nil
}

// ReadAt reads up to len(p) bytes of a shard from an offset. n < len(p) only
// at the shard's end.
func (d *Dataset) ReadAt(ctx context.Context, shard int, p []byte, offset int64) (n int, err error) {
	const most = 8 << 20 // a result message has room for it
	for n < len(p) {
		want := min(len(p)-n, most)
		r, err := operate(ctx, abi.OpData, message{head: []pair{{":dataset", d.Name}, {":version", strconv.Itoa(d.Version)}, {":verb", "read"},
			{":shard", strconv.Itoa(shard)}, {":offset", strconv.FormatInt(offset+int64(n), 10)}, {":length", strconv.Itoa(want)}}})
		if err != nil {
			return n, err
		}
		n += copy(p[n:], r.body)
		if len(r.body) < want {
			break
		}
	}
	return n, nil
}
