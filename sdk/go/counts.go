package lode

import (
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"
	"unicode/utf8"
)

// Counts counts words or anything else with a name; a job's usual partial
// result. As JSON it is an object of whole numbers with sorted keys.
type Counts map[string]int

var (
	_ json.Marshaler   = Counts(nil)
	_ json.Unmarshaler = (*Counts)(nil)
)

// AddWords counts the words of b: runs of bytes between ASCII white space.
func (c Counts) AddWords(b []byte) {
	start := -1
	for i, x := range b {
		if x > ' ' || x < '\t' || x > '\r' && x < ' ' {
			if start < 0 {
				start = i
			}
			continue
		}
		if start >= 0 {
			c.add(b[start:i])
			start = -1
		}
	}
	if start >= 0 {
		c.add(b[start:])
	}
}

func (c Counts) add(word []byte) {
	if n, ok := c[string(word)]; ok { // no allocation for a known word
		c[string(word)] = n + 1
		return
	}
	// A key that is not UTF-8 would not survive JSON, so it never gets in.
	if !utf8.Valid(word) {
		c[string([]rune(string(word)))]++
		return
	}
	c[string(word)] = 1
}

// Merge adds b's counts to c's and returns the sum, in the larger of the two.
func (c Counts) Merge(b Counts) Counts {
	if len(b) > len(c) {
		c, b = b, c
	}
	for k, n := range b {
		c[k] += n
	}
	return c
}

// MarshalJSON writes the object.
func (c Counts) MarshalJSON() ([]byte, error) { return c.appendJSON(nil), nil }

func (c Counts) appendJSON(b []byte) []byte {
	return c.appendKeys(b, func(yield func(string, int) bool) {
		for _, k := range slices.Sorted(maps.Keys(c)) {
			if !yield(k, c[k]) {
				return
			}
		}
	})
}

// appendUnsorted is appendJSON with the keys in no order.
func (c Counts) appendUnsorted(b []byte) []byte { return c.appendKeys(b, maps.All(c)) }

func (c Counts) appendKeys(b []byte, all iter.Seq2[string, int]) []byte {
	if b == nil {
		b = make([]byte, 0, 2+16*len(c))
	}
	b = append(b, '{')
	for k, n := range all {
		if len(b) > 1 {
			b = append(b, ',')
		}
		b = appendString(b, k)
		b = append(b, ':')
		b = strconv.AppendInt(b, int64(n), 10)
	}
	return append(b, '}')
}

// appendString writes s as a JSON string. Bytes that are not UTF-8 become
// U+FFFD, as encoding/json has it.
func appendString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && n == 1 {
				b = append(append(b, s[start:i]...), "\ufffd"...)
				start = i + 1
			}
			i += n
			continue
		}
		if c >= ' ' && c != '"' && c != '\\' {
			i++
			continue
		}
		b = append(b, s[start:i]...)
		if c == '"' || c == '\\' {
			b = append(b, '\\', c)
		} else {
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
		i++
		start = i
	}
	return append(append(b, s[start:]...), '"')
}

// UnmarshalJSON reads an object of whole numbers. Plain keys, the common case,
// are read in place; anything else goes through encoding/json.
func (c *Counts) UnmarshalJSON(b []byte) error {
	if *c == nil {
		*c = make(Counts, len(b)/16)
	}
	if c.fast(b) {
		return nil
	}
	clear(*c)
	var m map[string]int
	if err := json.Unmarshal(b, &m); err != nil {
		return fmt.Errorf("counts: %w", err)
	}
	maps.Copy(*c, m)
	return nil
}

// fast reads what appendJSON writes for keys without escapes; false, with part
// of it read, for anything else.
func (c *Counts) fast(b []byte) bool {
	if len(b) < 2 || b[0] != '{' || b[len(b)-1] != '}' {
		return false
	}
	b = b[1 : len(b)-1]
	for len(b) > 0 {
		if b[0] != '"' {
			return false
		}
		i := 1
		for i < len(b) && b[i] != '"' && b[i] != '\\' && b[i] >= ' ' {
			i++
		}
		if i+2 >= len(b) || b[i] != '"' || b[i+1] != ':' || !utf8.Valid(b[1:i]) {
			return false
		}
		key, rest := b[1:i], b[i+2:]
		n, j := 0, 0
		for j < len(rest) && j < 18 && rest[j] >= '0' && rest[j] <= '9' {
			n = n*10 + int(rest[j]-'0')
			j++
		}
		if j == 0 || rest[0] == '0' && j > 1 || j < len(rest) && rest[j] != ',' || j == len(rest)-1 {
			return false
		}
		(*c)[string(key)] = n
		if j == len(rest) {
			return true
		}
		b = rest[j+1:]
	}
	return len(*c) == 0
}
