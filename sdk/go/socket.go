package lode

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	"lode/sdk/abi"
)

// Socket is a WebSocket of an agent. It stays open while the agent is idle or
// moves to another node. Its methods work in the agent's turns; ctx is theirs.
type Socket struct {
	ID   string
	Tags []string // of those that Sockets lists and AcceptSocket returns

	attachment []byte
	known      bool // attachment is what is attached
}

// AcceptSocket takes the WebSocket that the HTTP request of this turn asks
// for. Tags, words, find it again with Sockets. What ServeHTTP writes then is
// not sent. What the socket says comes to the agent's OnMessage and OnClose.
func AcceptSocket(ctx context.Context, tags ...string) (*Socket, error) {
	v := turnOf(ctx)
	if v == nil || v.request.get(":socket") == "" {
		return nil, &Error{Kind: Invalid, Detail: "nobody asks for a WebSocket", Hint: "accept one in the ServeHTTP of an agent, of a request with Upgrade: websocket"}
	}
	for _, t := range tags {
		if t == "" || strings.ContainsAny(t, " \t\r\n") {
			return nil, &Error{Kind: Invalid, Detail: "the tag of a socket is one word"}
		}
	}
	s := &Socket{ID: v.request.get(":socket"), Tags: tags, known: true}
	if _, err := s.operate(ctx, "accept", nil, pair{":tags", strings.Join(tags, " ")}); err != nil {
		return nil, err
	}
	v.upgrade = true
	return s, nil
}

// Sockets lists the agent's open sockets that have a tag; all of them for "".
func Sockets(ctx context.Context, tag string) ([]*Socket, error) {
	r, err := operate(ctx, abi.OpSocket, message{head: []pair{{":verb", "list"}, {":tag", tag}}})
	if err != nil {
		return nil, err
	}
	var list []struct {
		Socket     string
		Tags       []string
		Attachment []byte
	}
	if err := json.Unmarshal(r.body, &list); err != nil {
		return nil, &Error{Kind: Internal, Detail: "the list of sockets does not decode: " + err.Error()}
	}
	var out []*Socket
	for _, s := range list {
		out = append(out, &Socket{ID: s.Socket, Tags: s.Tags, attachment: s.Attachment, known: true})
	}
	return out, nil
}

func (s *Socket) operate(ctx context.Context, verb string, body []byte, more ...pair) (message, error) {
	return operate(ctx, abi.OpSocket, message{head: append([]pair{{":verb", verb}, {":socket", s.ID}}, more...), body: body})
}

// Send sends bytes: a binary message. NotFound if the socket is closed.
func (s *Socket) Send(ctx context.Context, p []byte) error { return s.send(ctx, "binary", p) }

// SendText sends a text message. NotFound if the socket is closed.
func (s *Socket) SendText(ctx context.Context, text string) error {
	return s.send(ctx, "text", []byte(text))
}

// SendJSON sends v's JSON as a text message. NotFound if the socket is closed.
func (s *Socket) SendJSON(ctx context.Context, v any) error {
	b, err := encode(v)
	if err != nil {
		return err
	}
	return s.send(ctx, "text", b)
}

func (s *Socket) send(ctx context.Context, form string, p []byte) error {
	r, err := s.operate(ctx, "send", p, pair{":type", form})
	if err == nil && r.get(":found") == "0" {
		return &Error{Kind: NotFound, Detail: "the socket is closed"}
	}
	return err
}

// Close closes the socket with a code (1000: all is well) and a reason of at
// most 123 bytes.
func (s *Socket) Close(ctx context.Context, code int, reason string) error {
	_, err := s.operate(ctx, "close", nil, pair{":code", digits(code)}, pair{":reason", reason})
	return err
}

// Attach keeps v with the socket: JSON unless it is []byte, 2 KiB at most.
func (s *Socket) Attach(ctx context.Context, v any) error {
	b, err := value(v)
	if err == nil {
		_, err = s.operate(ctx, "attach", b)
	}
	if err == nil {
		s.attachment, s.known = b, true
	}
	return err
}

// Attachment decodes what was attached last into v, JSON unless v is *[]byte;
// false if there is nothing.
func (s *Socket) Attachment(ctx context.Context, v any) (bool, error) {
	if !s.known {
		all, err := Sockets(ctx, "")
		if err != nil {
			return false, err
		}
		if i := slices.IndexFunc(all, func(o *Socket) bool { return o.ID == s.ID }); i >= 0 {
			*s = *all[i]
		}
	}
	if len(s.attachment) == 0 {
		return false, nil
	}
	return true, Raw(s.attachment).into(v)
}

// Emit tells everybody who listens to the agent at GET /agents/kind/key. v is
// JSON unless it is []byte, 64 KiB at most. The last 1,000 events are kept for
// listeners that come back.
func Emit(ctx context.Context, typ string, v any) error {
	b, err := value(v)
	if err != nil {
		return err
	}
	_, err = operate(ctx, abi.OpSocket, message{head: []pair{{":verb", "emit"}, {":type", typ}}, body: b})
	return err
}
