package invoke

import (
	"encoding/hex"
	"math/rand/v2"
)

// Trace is the place of an attempt in a distributed trace, as in W3C Trace
// Context.
type Trace struct {
	ID      [16]byte
	Span    [8]byte // of this attempt
	Parent  [8]byte // of the caller; zero = none
	Sampled bool
}

// traceparentLen is the length of version 00: "00-", 32 digits, "-", 16
// digits, "-", 2 digits.
const traceparentLen = 55

// continueTrace makes the trace of an attempt whose caller sent traceparent.
// Anything that is not a valid traceparent begins a new trace, as the
// standard asks.
func continueTrace(traceparent string) Trace {
	var t Trace
	if !t.parse(traceparent) {
		t = Trace{Sampled: true}
		for t.ID == ([16]byte{}) {
			put64(t.ID[:8], rand.Uint64())
			put64(t.ID[8:], rand.Uint64())
		}
	}
	for t.Span == ([8]byte{}) {
		put64(t.Span[:], rand.Uint64())
	}
	return t
}

func put64(b []byte, v uint64) {
	for i := range 8 {
		b[i] = byte(v >> (8 * i))
	}
}

// parse reads ID, Parent and Sampled. Versions above 00 may be longer.
func (t *Trace) parse(s string) bool {
	if len(s) < traceparentLen || s[2] != '-' || s[35] != '-' || s[52] != '-' {
		return false
	}
	var version, flags [1]byte
	if !digits(version[:], s[:2]) || version[0] == 0xff || !digits(flags[:], s[53:55]) {
		return false
	}
	if len(s) > traceparentLen && (version[0] == 0 || s[55] != '-') {
		return false
	}
	if !digits(t.ID[:], s[3:35]) || !digits(t.Parent[:], s[36:52]) || t.ID == ([16]byte{}) || t.Parent == ([8]byte{}) {
		return false
	}
	t.Sampled = flags[0]&1 != 0
	return true
}

// digits reads lower-case hexadecimal digits; encoding/hex takes upper-case
// ones as well, which the standard forbids.
func digits(dst []byte, s string) bool {
	for i := range dst {
		hi, lo := nibble(s[2*i]), nibble(s[2*i+1])
		if hi > 15 || lo > 15 {
			return false
		}
		dst[i] = hi<<4 | lo
	}
	return true
}

func nibble(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	}
	return 255
}

// TraceID is 32 hexadecimal digits.
func (t *Trace) TraceID() string { return hex.EncodeToString(t.ID[:]) }

// SpanID is 16 hexadecimal digits.
func (t *Trace) SpanID() string { return hex.EncodeToString(t.Span[:]) }

// ParentID is 16 hexadecimal digits, or "" where the trace begins.
func (t *Trace) ParentID() string {
	if t.Parent == ([8]byte{}) {
		return ""
	}
	return hex.EncodeToString(t.Parent[:])
}

// Traceparent is what this attempt sends to whom it calls.
func (t *Trace) Traceparent() string {
	var b [traceparentLen]byte
	return string(t.append(b[:0]))
}

func (t *Trace) append(b []byte) []byte {
	b = append(b, "00-"...)
	b = hex.AppendEncode(b, t.ID[:])
	b = append(b, '-')
	b = hex.AppendEncode(b, t.Span[:])
	if t.Sampled {
		return append(b, "-01"...)
	}
	return append(b, "-00"...)
}
