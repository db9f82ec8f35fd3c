package abi

import (
	"encoding/binary"
	"errors"
)

// Bounds of an agent's state.
const (
	MaxStateKey   = 2048    // bytes of a key
	MaxStateValue = 1 << 20 // bytes of a value
	MaxStateList  = 4 << 20 // bytes of keys and values in one list
	MaxTimerName  = 256     // bytes
	MaxAttachment = 2 << 10 // bytes that stay with a socket
	MaxEvent      = 64 << 10
	MaxPart       = 1 << 20 // bytes of a part of an exchange
)

// ErrBody is returned for a body of an operation that is cut short, too long
// or says something that there is not.
var ErrBody = errors.New("abi: the operation's body is malformed")

// What a write does with a key.
const (
	WritePut    = 1
	WriteDelete = 2
)

// AppendCount appends the number that begins the bodies of mget, write, list
// and exchange.
func AppendCount(b []byte, n int) []byte { return binary.LittleEndian.AppendUint32(b, uint32(n)) }

// SetCount writes n over the count that AppendCount appended at b[0:].
func SetCount(b []byte, n int) { binary.LittleEndian.PutUint32(b, uint32(n)) }

// AppendKey appends one key of an mget, or one part of an exchange.
func AppendKey(b []byte, key string) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(key)))
	return append(b, key...)
}

// AppendPut appends one put of a write.
func AppendPut(b []byte, key string, value []byte) []byte {
	return AppendEntry(append(b, WritePut), key, value)
}

// AppendDelete appends one delete of a write.
func AppendDelete(b []byte, key string) []byte {
	return AppendEntry(append(b, WriteDelete), key, nil)
}

// AppendEntry appends one key and value of a list.
func AppendEntry(b []byte, key string, value []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(key)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(value)))
	b = append(b, key...)
	return append(b, value...)
}

// AppendFound appends one answer of an mget.
func AppendFound(b []byte, value []byte, found bool) []byte {
	if !found {
		return append(b, 0, 0, 0, 0, 0)
	}
	b = append(b, 1)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(value)))
	return append(b, value...)
}

// DecodeKeys calls f with each key of an mget, or each part of an exchange.
// What f gets shares b's memory, here and below.
func DecodeKeys(b []byte, f func(key []byte)) error {
	n, b, ok := number(b)
	for ; ok && n > 0; n-- {
		var size uint32
		if size, b, ok = number(b); !ok || uint64(size) > uint64(len(b)) {
			return ErrBody
		}
		f(b[:size:size])
		b = b[size:]
	}
	return whole(b, ok)
}

// DecodeFound calls f with each answer of an mget.
func DecodeFound(b []byte, f func(value []byte, found bool)) error {
	n, b, ok := number(b)
	for ; ok && n > 0; n-- {
		if len(b) < 1 || b[0] > 1 {
			return ErrBody
		}
		found := b[0] == 1
		var size uint32
		if size, b, ok = number(b[1:]); !ok || uint64(size) > uint64(len(b)) || !found && size > 0 {
			return ErrBody
		}
		f(b[:size:size], found)
		b = b[size:]
	}
	return whole(b, ok)
}

// DecodeWrite calls f with each change of a write; value is nil where del.
func DecodeWrite(b []byte, f func(key, value []byte, del bool)) error {
	n, b, ok := number(b)
	for ; ok && n > 0; n-- {
		if len(b) < 1 || b[0] != WritePut && b[0] != WriteDelete {
			return ErrBody
		}
		del := b[0] == WriteDelete
		var k, v []byte
		if k, v, b, ok = entry(b[1:]); !ok || del && len(v) > 0 {
			return ErrBody
		}
		if del {
			v = nil
		}
		f(k, v, del)
	}
	return whole(b, ok)
}

// DecodeList calls f with each entry of a list.
func DecodeList(b []byte, f func(key, value []byte)) error {
	n, b, ok := number(b)
	for ; ok && n > 0; n-- {
		var k, v []byte
		if k, v, b, ok = entry(b); !ok {
			return ErrBody
		}
		f(k, v)
	}
	return whole(b, ok)
}

func whole(rest []byte, ok bool) error {
	if !ok || len(rest) > 0 {
		return ErrBody
	}
	return nil
}

func number(b []byte) (n uint32, rest []byte, ok bool) {
	if len(b) < 4 {
		return 0, b, false
	}
	return binary.LittleEndian.Uint32(b), b[4:], true
}

func entry(b []byte) (key, value, rest []byte, ok bool) {
	if len(b) < 8 {
		return nil, nil, b, false
	}
	k, v := uint64(binary.LittleEndian.Uint32(b)), uint64(binary.LittleEndian.Uint32(b[4:]))
	if b = b[8:]; k+v > uint64(len(b)) {
		return nil, nil, b, false
	}
	return b[:k:k], b[k : k+v : k+v], b[k+v:], true
}
