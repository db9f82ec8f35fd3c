package link

import (
	"encoding/binary"
	"fmt"
	"strings"
	"time"
)

// Limits of the protocol. A frame that breaks one ends the connection; a call
// that would break one is refused before it is sent.
const (
	MaxHead = 64 << 10 // bytes of a call's or an answer's head
	MaxBody = 64 << 10 // bytes of a body that travel in the frame of the call or the reply
	MaxNote = 32 << 10 // bytes of a note
	MaxBeat = 32 << 10 // bytes of a heartbeat's payload

	maxMethod = 64
	maxChunk  = 64 << 10 // bytes of a body in one frame
	maxError  = 64 << 10 // bytes of an error on the wire
	maxHello  = 1 << 10
	maxBye    = 1 << 10

	headerSize = 16
	callFixed  = 8 + 4 + 1 // what a call's payload begins with
	replyFixed = 4
	beatFixed  = 8
)

// protocol is the version of the frames that this package speaks.
const protocol = 1

// magic begins a hello: bytes that no other protocol begins with.
const magic = "lode-link"

// kind is a frame's kind. Those of a call come from who called (0x10 and up)
// or go there (0x20 and up), so one number space of calls a direction is
// enough.
type kind uint8

const (
	kindHello kind = 0x01 // the first frame of either side
	kindBeat  kind = 0x02 // heartbeat; id counts them
	kindEcho  kind = 0x03 // answers the beat of the same id
	kindAck   kind = 0x04 // id: bytes of chunks taken off this connection so far
	kindBye   kind = 0x05 // flags: why; the sender starts no more calls here

	kindCall         kind = 0x10 // a call begins
	kindBody         kind = 0x11 // a chunk of its body
	kindBodyEnd      kind = 0x12 // its body ends; flagError: it broke off
	kindNoteReply    kind = 0x13 // what the caller answers to a note
	kindCancel       kind = 0x14 // the caller does not wait any longer
	kindAnswerCredit kind = 0x15 // the caller takes that many bytes more

	kindReply      kind = 0x20 // the whole answer, or with flagError the failure
	kindAnswerHead kind = 0x21 // a streamed answer begins
	kindAnswer     kind = 0x22 // a chunk of it
	kindAnswerEnd  kind = 0x23 // it ends; flagError: with an error
	kindNote       kind = 0x24 // a note to the caller
	kindBodyCredit kind = 0x25 // the handler takes that many bytes more
)

// Flags, by the kinds that have them.
const (
	flagStream  = 1 << 0 // call: the body goes on in kindBody frames
	flagNotes   = 1 << 1 // call: the caller hears notes
	flagError   = 1 << 0 // reply, answer's end, body's end
	flagRefused = 1 << 1 // reply: with flagError; the handler was not started

	byeCrossed = 0 // bye: another connection of the pair survives
	byeClosing = 1 // bye: the node stops
	byeRefused = 2 // bye instead of a hello: the payload says why
)

// header is the first 16 bytes of a frame, big endian: u32 bytes of payload,
// u8 kind, u8 flags, u16 zero, u64 id.
type header struct {
	size  int
	kind  kind
	flags uint8
	id    uint64
}

// limit is the largest payload of each kind; absent: no such kind.
var limit = [256]int{
	kindHello: maxHello, kindBeat: beatFixed + MaxBeat, kindEcho: beatFixed, kindAck: 0, kindBye: maxBye,
	kindCall: callFixed + maxMethod + MaxHead + MaxBody, kindBody: maxChunk, kindBodyEnd: maxError, kindNoteReply: MaxNote, kindCancel: 0, kindAnswerCredit: 4,
	kindReply: replyFixed + MaxHead + MaxBody, kindAnswerHead: MaxHead, kindAnswer: maxChunk, kindAnswerEnd: maxError, kindNote: MaxNote, kindBodyCredit: 4,
}

// flagsOf is the flags that each kind may carry.
var flagsOf = [256]uint8{kindCall: flagStream | flagNotes, kindBodyEnd: flagError, kindReply: flagError | flagRefused, kindAnswerEnd: flagError, kindBye: 3}

func known(k kind) bool {
	return k >= kindHello && k <= kindBye || k >= kindCall && k <= kindAnswerCredit || k >= kindReply && k <= kindBodyCredit
}

// parseHeader reads a frame's first 16 bytes and refuses what no frame of this
// version can begin with, before anything is allocated for it.
func parseHeader(b []byte) (header, error) {
	h := header{size: int(binary.BigEndian.Uint32(b)), kind: kind(b[4]), flags: b[5], id: binary.BigEndian.Uint64(b[8:])}
	switch {
	case !known(h.kind):
		return h, fmt.Errorf("no frame has kind 0x%02x", uint8(h.kind))
	case h.size > limit[h.kind]:
		return h, fmt.Errorf("a frame of kind 0x%02x with %d bytes; at most %d", uint8(h.kind), h.size, limit[h.kind])
	case h.flags&^flagsOf[h.kind] != 0 || b[6]|b[7] != 0:
		return h, fmt.Errorf("a frame of kind 0x%02x with flags 0x%02x%02x%02x", uint8(h.kind), h.flags, b[6], b[7])
	case h.kind >= kindCall && h.id == 0:
		return h, fmt.Errorf("a frame of kind 0x%02x for call 0", uint8(h.kind))
	}
	return h, nil
}

func appendHeader(b []byte, size int, k kind, flags uint8, id uint64) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(size))
	b = append(b, byte(k), flags, 0, 0)
	return binary.BigEndian.AppendUint64(b, id)
}

func putHeader(b []byte, size int, k kind, flags uint8, id uint64) {
	binary.BigEndian.PutUint32(b, uint32(size))
	b[4], b[5], b[6], b[7] = byte(k), flags, 0, 0
	binary.BigEndian.PutUint64(b[8:], id)
}

func appendFrame(b []byte, k kind, flags uint8, id uint64, payload []byte) []byte {
	return append(appendHeader(b, len(payload), k, flags, id), payload...)
}

func appendCredit(b []byte, k kind, id uint64, n int) []byte {
	return binary.BigEndian.AppendUint32(appendHeader(b, 4, k, 0, id), uint32(n))
}

// hello is the payload of the first frame: "lode-link", u8 least and u8
// greatest version that the sender speaks, u64 instance, u64 seq, u8 length
// and name of the sender, u8 length and name of whom it means to speak with.
// What follows is of later versions and ignored.
type hello struct {
	least, most uint8
	instance    uint64 // drawn at the start of the process
	seq         uint64 // rises with every hello that the instance sends
	from, to    string
}

func appendHello(b []byte, h hello) []byte {
	p := append([]byte(magic), h.least, h.most)
	p = binary.BigEndian.AppendUint64(p, h.instance)
	p = binary.BigEndian.AppendUint64(p, h.seq)
	p = append(append(p, byte(len(h.from))), h.from...)
	p = append(append(p, byte(len(h.to))), h.to...)
	return appendFrame(b, kindHello, 0, 0, p)
}

func parseHello(p []byte) (hello, error) {
	var h hello
	rest, ok := strings.CutPrefix(string(p), magic)
	if !ok || len(rest) < 2+8+8+1 {
		return h, fmt.Errorf("a hello that does not begin as one")
	}
	h.least, h.most = rest[0], rest[1]
	h.instance, h.seq = binary.BigEndian.Uint64([]byte(rest[2:10])), binary.BigEndian.Uint64([]byte(rest[10:18]))
	rest = rest[18:]
	for _, s := range []*string{&h.from, &h.to} {
		if rest == "" || len(rest) < 1+int(rest[0]) {
			return h, fmt.Errorf("a hello that is cut short")
		}
		*s, rest = rest[1:1+int(rest[0])], rest[1+int(rest[0]):]
	}
	return h, nil
}

// call is the payload of kindCall: u64 nanoseconds that are left (0: no
// deadline), u32 length of head, u8 length of method, method, head, body.
type call struct {
	left       time.Duration
	method     []byte
	head, body []byte
}

func callSize(r *Request, body int) int { return callFixed + len(r.Method) + len(r.Head) + body }

func appendCall(b []byte, id uint64, flags uint8, left time.Duration, r *Request, body []byte) []byte {
	b = appendHeader(b, callSize(r, len(body)), kindCall, flags, id)
	b = binary.BigEndian.AppendUint64(b, uint64(left))
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.Head)))
	b = append(b, byte(len(r.Method)))
	b = append(b, r.Method...)
	b = append(b, r.Head...)
	return append(b, body...)
}

func parseCall(p []byte) (call, error) {
	if len(p) < callFixed {
		return call{}, fmt.Errorf("a call of %d bytes", len(p))
	}
	left, head, method := binary.BigEndian.Uint64(p), int(binary.BigEndian.Uint32(p[8:])), int(p[12])
	rest := p[callFixed:]
	if left > 1<<62 || head > MaxHead || method > maxMethod || len(rest) < method+head || len(rest)-method-head > MaxBody {
		return call{}, fmt.Errorf("a call whose lengths do not fit")
	}
	return call{time.Duration(left), rest[:method:method], rest[method : method+head : method+head], rest[method+head:]}, nil
}

// A reply's payload is u32 length of head, head, body.
func appendReply(b []byte, id uint64, head, body []byte) []byte {
	b = appendHeader(b, replyFixed+len(head)+len(body), kindReply, 0, id)
	b = binary.BigEndian.AppendUint32(b, uint32(len(head)))
	b = append(b, head...)
	return append(b, body...)
}

func parseReply(p []byte) (head, body []byte, err error) {
	if len(p) < replyFixed {
		return nil, nil, fmt.Errorf("a reply of %d bytes", len(p))
	}
	n := int(binary.BigEndian.Uint32(p))
	p = p[replyFixed:]
	if n > MaxHead || n > len(p) || len(p)-n > MaxBody {
		return nil, nil, fmt.Errorf("a reply whose lengths do not fit")
	}
	return p[:n], p[n:], nil
}

// A beat's payload is u64 wall clock of the sender (nanoseconds since 1970)
// and what Config.Beat gave; an echo's is the wall clock alone.
func appendBeat(b []byte, seq uint64, wall int64, payload []byte) []byte {
	b = appendHeader(b, beatFixed+len(payload), kindBeat, 0, seq)
	b = binary.BigEndian.AppendUint64(b, uint64(wall))
	return append(b, payload...)
}

func appendEcho(b []byte, seq uint64, wall int64) []byte {
	return binary.BigEndian.AppendUint64(appendHeader(b, beatFixed, kindEcho, 0, seq), uint64(wall))
}

func parseBeat(p []byte) (wall int64, payload []byte, err error) {
	if len(p) < beatFixed {
		return 0, nil, fmt.Errorf("a heartbeat of %d bytes", len(p))
	}
	return int64(binary.BigEndian.Uint64(p)), p[beatFixed:], nil
}

func parseCredit(p []byte) (int, error) {
	if len(p) != 4 {
		return 0, fmt.Errorf("a credit of %d bytes", len(p))
	}
	n := binary.BigEndian.Uint32(p)
	if n > maxWindow {
		return 0, fmt.Errorf("a credit for %d bytes", n)
	}
	return int(n), nil
}
