package gateway

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"hash/crc32"
	"net/http"
	"strings"
	"time"

	"lode"
)

// maxChunk bounds the payload of one event.
const maxChunk = 64 << 10

// eventHeader is a header of an event. All of ours have a string value.
type eventHeader struct{ name, value string }

// appendEvent appends a message of the type application/vnd.amazon.eventstream.
// Everything is big-endian:
//
//	u32 length of the whole message
//	u32 length of the headers
//	u32 CRC-32 (IEEE) of the eight bytes before
//	headers, each: u8 length, name, u8 type (7 = string), u16 length, value
//	payload
//	u32 CRC-32 (IEEE) of all bytes before
func appendEvent(b []byte, headers []eventHeader, payload []byte) []byte {
	start, size := len(b), 0
	for _, h := range headers {
		size += 1 + len(h.name) + 1 + 2 + len(h.value)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(12+size+len(payload)+4))
	b = binary.BigEndian.AppendUint32(b, uint32(size))
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b[start:]))
	for _, h := range headers {
		b = append(append(b, byte(len(h.name))), h.name...)
		b = binary.BigEndian.AppendUint16(append(b, 7), uint16(len(h.value)))
		b = append(b, h.value...)
	}
	b = append(b, payload...)
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b[start:]))
}

func event(kind, contentType string) []eventHeader {
	return []eventHeader{{":message-type", "event"}, {":event-type", kind}, {":content-type", contentType}}
}

// eventAnswer is the lode.Answer that sends each write as an event.
type eventAnswer struct {
	g       *Gateway
	w       http.ResponseWriter
	version string
	begun   bool
	chunk   []eventHeader
	buf     []byte
}

// Head begins the stream. The function's status and fields have no place in
// it.
func (a *eventAnswer) Head(int, []lode.Pair) error {
	if a.begun {
		return nil
	}
	a.begun = true
	h := a.w.Header()
	h.Set("Content-Type", "application/vnd.amazon.eventstream")
	if a.version != "" {
		h.Set("X-Amz-Executed-Version", a.version)
	}
	a.w.WriteHeader(http.StatusOK)
	return nil
}

// Write sends p.
func (a *eventAnswer) Write(p []byte) (int, error) {
	_ = a.Head(0, nil) // returns nil
	for off := 0; off < len(p); off += maxChunk {
		if err := a.send(a.chunk, p[off:min(off+maxChunk, len(p))]); err != nil {
			return off, lode.Errorf(lode.Cancelled, "the client went away: %w", err)
		}
	}
	return len(p), nil
}

func (a *eventAnswer) send(headers []eventHeader, payload []byte) error {
	rc := http.NewResponseController(a.w)
	_ = rc.SetWriteDeadline(time.Now().Add(a.g.cfg.BodyTimeout))
	a.buf = appendEvent(a.buf[:0], headers, payload)
	_, err := a.w.Write(a.buf)
	if err == nil {
		err = rc.Flush()
	}
	return err
}

var _ lode.Answer = (*eventAnswer)(nil)

// complete is the payload of the last event.
type complete struct {
	Code    string `json:"ErrorCode,omitempty"`
	Details string `json:"ErrorDetails,omitempty"`
	Log     string `json:"LogResult,omitempty"`
}

func (g *Gateway) lambdaStream(w http.ResponseWriter, r *http.Request, x *exchange, call *lambdaCall) {
	a := &eventAnswer{g: g, w: w, chunk: event("PayloadChunk", "application/octet-stream")}
	if strings.Trim(call.alias, "0123456789") == "" {
		a.version = call.alias // what an alias stands for is not known before the end
	}
	out, err := g.cfg.Invoker.Invoke(r.Context(), &x.req, a)
	var end complete
	if err != nil {
		f, ok := functionFailure(err, x.req.ID, false)
		switch {
		case !ok && !a.begun:
			g.refuseLambda(w, x, call, err)
			return
		case !ok:
			e := asLambdaError(err, call)
			f = failure{Type: e.code, Message: e.message}
		}
		details, _ := json.Marshal(f) // strings always marshal
		end.Code, end.Details = f.Type, string(details)
	}
	g.endStream(r.Context(), a, call, &out, x.req.ID, end)
}

func (g *Gateway) endStream(ctx context.Context, a *eventAnswer, call *lambdaCall, out *lode.Outcome, id lode.InvocationID, end complete) {
	if call.tail {
		end.Log = g.logResult(ctx, call, out, id)
	}
	if !a.begun {
		a.version = executedVersion(out.Revision)
	}
	_ = a.Head(0, nil)                                               // returns nil
	payload, _ := json.Marshal(end)                                  // strings always marshal
	_ = a.send(event("InvokeComplete", "application/json"), payload) // nobody is left to tell
	_ = http.NewResponseController(a.w).SetWriteDeadline(time.Time{})
}
