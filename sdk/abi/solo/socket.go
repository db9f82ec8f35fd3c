package solo

import (
	"bytes"
	"maps"
	"slices"
	"strconv"
	"strings"

	"lode/sdk/abi"
)

// socket is an open WebSocket of an agent.
type socket struct {
	tags       []string
	attachment []byte
}

func (t *Turn) socketOp(m Message) (abi.Status, Message) {
	verb, id := m.Head[":verb"], m.Head[":socket"]
	s := t.sockets[id]
	switch verb {
	case "accept":
		if id == "" || id != t.socket {
			return refuse("invalid", "nobody asks for the socket "+strconv.Quote(id))
		}
		t.sockets[id] = &socket{tags: strings.Fields(m.Head[":tags"])}
		t.accepted = true
		return done()
	case "send":
		if s == nil {
			return done(":found", "0")
		}
		if form := m.Head[":type"]; form != "text" && form != "binary" {
			return refuse("invalid", "a message is text or binary")
		}
		t.frames = append(t.frames, Frame{t.address, id, m.Head[":type"], bytes.Clone(m.Body)})
		return done(":found", "1")
	case "close":
		if s != nil {
			t.frames = append(t.frames, Frame{t.address, id, "close", []byte(m.Head[":code"] + " " + m.Head[":reason"])})
			delete(t.sockets, id)
		}
		return done()
	case "attach":
		if s == nil {
			return refuse("not_found", "the socket is closed")
		}
		if len(m.Body) > abi.MaxAttachment {
			return refuse("too_large", "an attachment has at most 2 KiB")
		}
		s.attachment = bytes.Clone(m.Body)
		return done()
	case "list":
		return t.listSockets(m.Head[":tag"])
	case "emit":
		if len(m.Body) > abi.MaxEvent {
			return refuse("too_large", "an event has at most 64 KiB")
		}
		t.events++
		t.frames = append(t.frames, Frame{Agent: t.address, Type: m.Head[":type"], Body: bytes.Clone(m.Body)})
		return done(":n", strconv.Itoa(t.events))
	}
	return refuse("invalid", "socket has no verb "+strconv.Quote(verb))
}

func (t *Turn) listSockets(tag string) (abi.Status, Message) {
	type entry struct {
		Socket     string   `json:"socket"`
		Tags       []string `json:"tags"`
		Attachment []byte   `json:"attachment"`
	}
	list := []entry{}
	for _, id := range slices.Sorted(maps.Keys(t.sockets)) {
		if s := t.sockets[id]; tag == "" || slices.Contains(s.tags, tag) {
			list = append(list, entry{id, append([]string{}, s.tags...), append([]byte{}, s.attachment...)})
		}
	}
	return jsonBody(list)
}
