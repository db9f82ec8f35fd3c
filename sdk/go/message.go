package lode

// pair is one line of a head.
type pair struct{ key, value string }

// message is a decoded message of the ABI. Its strings and body share the
// memory of the bytes it came from.
type message struct {
	head []pair
	body []byte
}

// get returns the first value of key, or "".
func (m *message) get(key string) string {
	for i := range m.head {
		if m.head[i].key == key {
			return m.head[i].value
		}
	}
	return ""
}
