package lode

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"lode/sdk/abi"
)

// Run is the address of this invocation while it runs: whoever knows it can
// Call or Send to it, and Receive gets what comes. "" where there is none.
func Run(ctx context.Context) string {
	r, err := operate(ctx, abi.OpSelf, message{})
	if err != nil {
		return ""
	}
	return strings.Clone(r.get(":run"))
}

// Incoming is one message to a running invocation.
type Incoming struct {
	Method string
	Caller string // address of the caller; "" from outside
	Type   string // content type
	Body   []byte

	reply string // handle; "": nobody waits
}

// Receive waits for the next message to this invocation. At most 1,024 wait;
// none is durable.
func Receive(ctx context.Context) (*Incoming, error) {
	r, err := operate(ctx, abi.OpReceive, message{head: []pair{{":verb", "next"}}})
	if err != nil {
		return nil, err
	}
	return &Incoming{Method: r.get(":verb"), Caller: r.get(":caller"), Type: r.get("content-type"), Body: r.body, reply: r.get(":reply")}, nil
}

// Waits reports whether the caller waits for a Reply.
func (m *Incoming) Waits() bool { return m.reply != "" }

// Args decodes the arguments into as many pointers.
func (m *Incoming) Args(to ...any) error {
	if !strings.HasPrefix(m.Type, listType) {
		if len(to) == 0 || len(m.Body) == 0 && len(to) == 0 {
			return nil
		}
		if len(to) > 1 || len(m.Body) == 0 {
			return &Error{Kind: Invalid, Detail: fmt.Sprintf("%s: there are not %d arguments", m.Method, len(to))}
		}
		return Raw(m.Body).into(to[0])
	}
	var list []json.RawMessage
	if err := json.Unmarshal(m.Body, &list); err != nil {
		return &Error{Kind: Invalid, Detail: m.Method + ": the arguments are not a list in JSON: " + err.Error()}
	}
	if len(list) != len(to) {
		return &Error{Kind: Invalid, Detail: fmt.Sprintf("%s: there are %d arguments, not %d", m.Method, len(list), len(to))}
	}
	for i := range list {
		if err := json.Unmarshal(list[i], to[i]); err != nil {
			return &Error{Kind: Invalid, Detail: m.Method + ": " + err.Error()}
		}
	}
	return nil
}

// Reply answers whoever waits, with v: JSON unless it is []byte; nil is an
// answer without a value. An error is the failure of the call, with its kind.
// If nobody waits it does nothing.
func (m *Incoming) Reply(ctx context.Context, v any) error {
	if m.reply == "" {
		return nil
	}
	out := message{head: []pair{{":verb", "reply"}, {":reply", m.reply}}}
	if err, ok := v.(error); ok {
		kind := KindOf(err)
		if kind == "" {
			kind = Crashed
		}
		out.head = append(out.head, pair{":status", digits(kind.status())}, problemHead[0])
		out.body = problem(kind, err.Error(), hintOf(err))
	} else if v == nil {
		out.head = append(out.head, pair{":status", "204"})
	} else {
		m, err := arguments([]any{v})
		if err != nil {
			return err
		}
		out.head, out.body = append(out.head, m.head...), m.body
	}
	_, err := operate(ctx, abi.OpReceive, out)
	return err
}
