// Package abi is version 1 of the contract between Lode and its WebAssembly
// guests: numbers of operations and statuses, and the codec of messages.
// README.md beside it describes everything to the byte; vectors/ holds the
// vectors.
//
// It is shared by the host and the Go SDK, so it uses the standard library
// only and keeps no state. A change that alters a byte is a new version.
package abi

import (
	"encoding/binary"
	"errors"
)

// Module is the name of the import module.
const Module = "lode_v1"

// Version is what a guest's description carries in "abi".
const Version = 1

// CompletionFD is the file descriptor that is readable when an operation is
// complete.
const CompletionFD = 1000

// Op is the number of an operation.
type Op uint32

// The operations.
const (
	OpCall        Op = 1
	OpSend        Op = 2
	OpReceive     Op = 3
	OpState       Op = 4
	OpTimer       Op = 5
	OpData        Op = 6
	OpConfig      Op = 8
	OpSecret      Op = 9
	OpFetch       Op = 10
	OpQueue       Op = 11
	OpGroup       Op = 12
	OpSelf        Op = 13
	OpBodyRead    Op = 14
	OpBodyWrite   Op = 15
	OpStreamRead  Op = 16
	OpStreamClose Op = 17
	OpSleep       Op = 18
	OpSocket      Op = 19
)

// Return values of the imports.
const (
	Again     = -1 // read: nothing there yet
	Begun     = -2 // respond: the answer has begun
	TooMany   = -3 // submit: MaxOps are under way
	Malformed = -4 // submit, respond: not a message
	UnknownOp = -5 // submit
	Idle      = -6 // wait: nothing under way
)

// Limits of version 1.
const (
	MaxPairs   = 1024
	MaxField   = 64 << 10 // bytes of a key or value
	MaxMessage = 16 << 20 // bytes of a message
	MaxOps     = 1024     // operations under way in one invocation
	Inline     = 64 << 10 // a request body up to this is there whole
)

// Status is 0 for done, else the number of an error kind.
type Status uint32

// statuses holds the error kinds by number; index 0 is "".
var statuses = [...]string{"", "invalid", "unauthenticated", "denied", "not_found", "bad_method", "conflict", "gone", "precondition", "too_large",
	"misdirected", "key_reused", "overloaded", "cancelled", "internal", "crashed", "unavailable", "deadline", "full", "damaged"}

// StatusOf is the number of an error kind; that of "internal" for an unknown
// word.
func StatusOf(kind string) Status {
	for i, s := range statuses {
		if s == kind {
			return Status(i)
		}
	}
	return 14
}

// Kind is the word of s; "internal" for an unknown number.
func (s Status) Kind() string {
	if int(s) < len(statuses) {
		return statuses[s]
	}
	return "internal"
}

// ErrMalformed is returned by Decode for bytes that are not a message.
var ErrMalformed = errors.New("abi: not a message")

// AppendHead appends the count of pairs. Follow it with that many AppendPair,
// then the body.
func AppendHead(b []byte, pairs int) []byte {
	return binary.LittleEndian.AppendUint32(b, uint32(pairs))
}

// AppendPair appends one pair.
func AppendPair(b []byte, key, value string) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(key)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(value)))
	b = append(b, key...)
	return append(b, value...)
}

// Decode calls pair for each pair of message m, in order, and returns the
// body, which shares m's memory. Key and value share it too: they are valid as
// long as m is. It fails with ErrMalformed on anything that is not a message.
func Decode(m []byte, pair func(key, value []byte)) (body []byte, err error) {
	if len(m) < 4 || len(m) > MaxMessage {
		return nil, ErrMalformed
	}
	n := binary.LittleEndian.Uint32(m)
	m = m[4:]
	if n > MaxPairs {
		return nil, ErrMalformed
	}
	for range n {
		if len(m) < 8 {
			return nil, ErrMalformed
		}
		k, v := binary.LittleEndian.Uint32(m), binary.LittleEndian.Uint32(m[4:])
		m = m[8:]
		if k > MaxField || v > MaxField || uint64(k)+uint64(v) > uint64(len(m)) {
			return nil, ErrMalformed
		}
		pair(m[:k], m[k:k+v])
		m = m[k+v:]
	}
	return m, nil
}

// Completion is what wait writes and CompletionFD gives: 12 bytes.
type Completion struct {
	ID     uint32
	Status Status
	Length uint32 // of the result message
}

// Append appends the 12 bytes of c.
func (c Completion) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, c.ID)
	b = binary.LittleEndian.AppendUint32(b, uint32(c.Status))
	return binary.LittleEndian.AppendUint32(b, c.Length)
}

// DecodeCompletion reads 12 bytes.
func DecodeCompletion(b []byte) (c Completion, ok bool) {
	if len(b) < 12 {
		return c, false
	}
	return Completion{binary.LittleEndian.Uint32(b), Status(binary.LittleEndian.Uint32(b[4:])), binary.LittleEndian.Uint32(b[8:])}, true
}
