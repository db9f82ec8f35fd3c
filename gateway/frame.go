package gateway

import (
	"encoding/binary"
	"io"
	"net"
	"time"
	"unicode/utf8"
)

// The frames of a WebSocket (RFC 6455, section 5.2), big-endian:
//
//	u8   128: the last frame of its message; 112: extensions, none here; 15: opcode
//	u8   128: masked, as all from clients are and none from here; 127: length
//	     u16 the length, where it says 126; u64, where it says 127
//	u32  the mask, if any: byte i of the payload is combined with byte i%4
//	     payload
//
// Frames that say ping, pong or close have at most 125 bytes and may come
// between those of a message.
const (
	opMore   = 0
	opText   = 1
	opBinary = 2
	opClose  = 8
	opPing   = 9
	opPong   = 10

	maxControl = 125
)

// The codes of closing that are used here (RFC 6455, section 7.4).
const (
	closeNormal   = 1000
	closeProtocol = 1002
	closeNone     = 1005 // the frame named no code; never sent
	closeLost     = 1006 // there was no frame; never sent
	closeData     = 1007 // text that is not UTF-8
	closeSlow     = 1008 // a policy: the client does not read
	closeBig      = 1009
	closeFailed   = 1011 // the agent failed
	closeRestart  = 1012 // the node stops
)

// wireError is why a socket is closed by this side.
type wireError struct {
	code   int
	reason string
}

func (e *wireError) Error() string { return e.reason }

var _ error = (*wireError)(nil)

// appendFrame appends a whole message, or a control frame, as it goes to a
// client.
func appendFrame(b []byte, op byte, payload []byte) []byte {
	b = append(b, 128|op)
	switch n := len(payload); {
	case n < 126:
		b = append(b, byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 127), uint64(n))
	}
	return append(b, payload...)
}

// closePayload is that of a close frame. The reason is cut to what fits, and a
// code that may not be sent is left out with it.
func closePayload(code int, reason string) []byte {
	if !sendable(code) {
		return nil
	}
	if len(reason) > maxControl-2 {
		reason = reason[:maxControl-2]
		for !utf8.ValidString(reason) && len(reason) > maxControl-2-utf8.UTFMax {
			reason = reason[:len(reason)-1]
		}
	}
	if !utf8.ValidString(reason) {
		reason = ""
	}
	return append(binary.BigEndian.AppendUint16(nil, uint16(code)), reason...)
}

// sendable reports whether a close frame may have the code.
func sendable(code int) bool {
	switch {
	case code >= 3000 && code < 5000:
		return true
	case code < 1000 || code > 1014:
		return false
	}
	return code != 1004 && code != closeNone && code != closeLost
}

// parseClose reads the payload of a close frame.
func parseClose(p []byte) (code int, reason string, err error) {
	if len(p) == 0 {
		return closeNone, "", nil
	}
	if len(p) == 1 {
		return 0, "", &wireError{closeProtocol, "half a close code"}
	}
	code = int(binary.BigEndian.Uint16(p))
	if !sendable(code) {
		return 0, "", &wireError{closeProtocol, "a close code that may not be sent"}
	}
	if !utf8.Valid(p[2:]) {
		return 0, "", &wireError{closeData, "a reason that is not UTF-8"}
	}
	return code, string(p[2:]), nil
}

// frameHead is what a frame begins with.
type frameHead struct {
	last bool
	op   byte
	n    int64
	mask [4]byte
}

// inbox reads the frames of one client. It keeps little: an idle socket costs
// its buffer.
type inbox struct {
	conn   net.Conn
	owner  inboxOwner
	limit  int64         // bytes of a message
	quiet  time.Duration // a wait for a frame that is worth asking the owner
	within time.Duration // between two reads inside a frame
	early  []byte        // read from the connection by net/http
	heard  bool          // something came since the owner put it back
	r, w   int           // of buf
	buf    [256]byte
}

// inboxOwner is called by the goroutine that reads.
type inboxOwner interface {
	arm(within time.Duration)              // bound the next read
	idle() error                           // no frame began for a while; nil: go on waiting
	control(op byte, payload []byte) error // a control frame came; an error ends the reading
}

// message returns the next message, having handled all control frames before
// its end. The body is the caller's.
func (b *inbox) message() (op byte, body []byte, err error) {
	for {
		h, err := b.head()
		if err != nil {
			return 0, nil, err
		}
		if h.op >= opClose {
			if err := b.controlFrame(h); err != nil {
				return 0, nil, err
			}
			continue
		}
		if (h.op == opMore) != (op != 0) {
			return 0, nil, &wireError{closeProtocol, "a frame that does not continue its message, or continues none"}
		}
		if h.op != opMore {
			op = h.op
		}
		if h.n > b.limit-int64(len(body)) {
			return 0, nil, &wireError{closeBig, "the message is too large"}
		}
		if body, err = b.payload(body, h); err != nil {
			return 0, nil, err
		}
		if h.last {
			if op == opText && !utf8.Valid(body) {
				return 0, nil, &wireError{closeData, "text that is not UTF-8"}
			}
			return op, body, nil
		}
	}
}

func (b *inbox) controlFrame(h frameHead) error {
	if !h.last || h.n > maxControl {
		return &wireError{closeProtocol, "a control frame that is cut, or too long"}
	}
	var room [maxControl]byte
	p, err := b.payload(room[:0], h)
	if err != nil {
		return err
	}
	return b.owner.control(h.op, p)
}

// head waits for a frame and reads its head.
func (b *inbox) head() (h frameHead, err error) {
	for b.r == b.w {
		b.owner.arm(b.quiet)
		if err = b.fill(); err == nil {
			break
		}
		if ne, ok := err.(net.Error); !ok || !ne.Timeout() {
			return h, err
		}
		if err = b.owner.idle(); err != nil {
			return h, err
		}
	}
	var p [14]byte
	if err := b.full(p[:2]); err != nil {
		return h, err
	}
	h.last, h.op, h.n = p[0]&128 != 0, p[0]&15, int64(p[1]&127)
	switch {
	case p[0]&112 != 0:
		return h, &wireError{closeProtocol, "a frame with an extension that was not agreed on"}
	case h.op > opBinary && h.op < opClose || h.op > opPong:
		return h, &wireError{closeProtocol, "a frame of an unknown kind"}
	case p[1]&128 == 0:
		return h, &wireError{closeProtocol, "a frame without a mask"}
	}
	long := 0
	switch h.n {
	case 126:
		long = 2
	case 127:
		long = 8
	}
	if err := b.full(p[2 : 6+long]); err != nil {
		return h, err
	}
	switch long {
	case 2:
		h.n = int64(binary.BigEndian.Uint16(p[2:]))
	case 8:
		h.n = int64(binary.BigEndian.Uint64(p[2:]))
	}
	if h.n < 0 {
		return h, &wireError{closeProtocol, "a frame longer than frames can be"}
	}
	copy(h.mask[:], p[2+long:])
	return h, nil
}

// payloadStep bounds what is allocated for bytes that were announced and have
// not come.
const payloadStep = 64 << 10

// payload appends the payload of a frame to body.
func (b *inbox) payload(body []byte, h frameHead) ([]byte, error) {
	for done := int64(0); done < h.n; {
		n := int(min(h.n-done, payloadStep))
		start := len(body)
		body = extend(body, n, h.n-done)
		if err := b.full(body[start:]); err != nil {
			return nil, err
		}
		unmask(body[start:], h.mask, int(done&3))
		done += int64(n)
	}
	return body, nil
}

// extend makes b longer by n bytes. Where all that is still to come fits a step,
// it is the last growth and exact.
func extend(b []byte, n int, left int64) []byte {
	if cap(b)-len(b) >= n {
		return b[:len(b)+n]
	}
	room := len(b) + n
	if left > int64(n) {
		room = max(room, 2*len(b))
	}
	bigger := make([]byte, len(b)+n, room)
	copy(bigger, b)
	return bigger
}

// unmask takes the mask off p, whose first byte is byte at of the payload.
func unmask(p []byte, mask [4]byte, at int) {
	var m [8]byte
	for i := range m {
		m[i] = mask[(at+i)&3]
	}
	word := binary.LittleEndian.Uint64(m[:])
	for len(p) >= 8 {
		binary.LittleEndian.PutUint64(p, binary.LittleEndian.Uint64(p)^word)
		p = p[8:]
	}
	for i := range p {
		p[i] ^= m[i]
	}
}

// full fills p, waiting for as long as the client goes on sending.
func (b *inbox) full(p []byte) error {
	for len(p) > 0 {
		if b.r < b.w {
			n := copy(p, b.buf[b.r:b.w])
			b.r += n
			p = p[n:]
			continue
		}
		b.owner.arm(b.within)
		if len(p) < len(b.buf) || len(b.early) > 0 {
			if err := b.fill(); err != nil {
				return cut(err)
			}
			continue
		}
		n, err := b.conn.Read(p)
		if n == 0 && err != nil {
			return cut(err)
		}
		b.heard = true
		p = p[n:]
	}
	return nil
}

// cut is err where a frame had begun.
func cut(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// fill reads into the buffer, which is empty.
func (b *inbox) fill() error {
	if len(b.early) > 0 {
		b.r, b.w = 0, copy(b.buf[:], b.early)
		b.early = b.early[b.w:]
		if len(b.early) == 0 {
			b.early = nil
		}
		return nil
	}
	n, err := b.conn.Read(b.buf[:])
	b.r, b.w = 0, n
	if n > 0 {
		b.heard = true
		return nil
	}
	return err
}
