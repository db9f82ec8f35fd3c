package lode

import (
	"unsafe"

	"lode/sdk/abi"
)

// append writes m after b as the ABI has it.
func (m *message) append(b []byte) []byte {
	b = abi.AppendHead(b, len(m.head))
	for _, p := range m.head {
		b = abi.AppendPair(b, p.key, p.value)
	}
	return append(b, m.body...)
}

// parse reads a message; it takes over raw.
func parse(raw []byte) (m message, err error) {
	m.head = make([]pair, 0, 16)
	m.body, err = abi.Decode(raw, func(k, v []byte) {
		m.head = append(m.head, pair{text(k), text(v)})
	})
	return m, err
}

// text is b as a string without a copy; b is not written again.
func text(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
