package engine

import (
	"encoding/binary"

	"lode"
	"lode/sdk/abi"
)

// Op is the number of an operation that a guest submits.
type Op = abi.Op

// The operations that a Host performs; the engine itself performs body_read,
// body_write and sleep.
const (
	OpCall        = abi.OpCall
	OpSend        = abi.OpSend
	OpReceive     = abi.OpReceive
	OpState       = abi.OpState
	OpTimer       = abi.OpTimer
	OpData        = abi.OpData
	OpConfig      = abi.OpConfig
	OpSecret      = abi.OpSecret
	OpFetch       = abi.OpFetch
	OpQueue       = abi.OpQueue
	OpGroup       = abi.OpGroup
	OpSelf        = abi.OpSelf
	OpStreamRead  = abi.OpStreamRead
	OpStreamClose = abi.OpStreamClose
	OpSocket      = abi.OpSocket
)

// Bounds of a message, as in sdk/abi.
const (
	MaxPairs   = abi.MaxPairs
	MaxField   = abi.MaxField
	MaxMessage = abi.MaxMessage
)

// AppendHead appends the count of pairs; follow it with that many AppendPair.
func AppendHead(dst []byte, pairs int) []byte { return abi.AppendHead(dst, pairs) }

// AppendPair appends one pair of a head.
func AppendPair(dst []byte, key, value string) []byte { return abi.AppendPair(dst, key, value) }

// AddPair appends a pair to an encoded head, whose count it corrects. It may
// change head's memory.
func AddPair(head []byte, key, value string) []byte {
	binary.LittleEndian.PutUint32(head, binary.LittleEndian.Uint32(head)+1)
	return abi.AppendPair(head, key, value)
}

// EncodeHead appends the head made of pairs to dst. It does not check the
// bounds: see MaxPairs and MaxField.
func EncodeHead(dst []byte, pairs []lode.Pair) []byte {
	dst = abi.AppendHead(dst, len(pairs))
	for i := range pairs {
		dst = abi.AppendPair(dst, pairs[i].Key, pairs[i].Value)
	}
	return dst
}

// DecodeHead reads the head of a message into pairs, which it appends to dst.
// The strings are copies. The error is Invalid.
func DecodeHead(dst []lode.Pair, head []byte) ([]lode.Pair, error) {
	_, err := abi.Decode(head, func(key, value []byte) {
		dst = append(dst, lode.Pair{Key: word(key), Value: word(value)})
	})
	if err != nil {
		return dst, lode.Errorf(lode.Invalid, "the head of the answer is malformed: %w", err)
	}
	return dst, nil
}

// word is string(b), without an allocation for the words seen all the time.
func word(b []byte) string {
	switch string(b) {
	case ":status":
		return ":status"
	case "content-type":
		return "content-type"
	case "200":
		return "200"
	case "text/plain; charset=utf-8":
		return "text/plain; charset=utf-8"
	case "application/json":
		return "application/json"
	}
	return string(b)
}
