package tally

import (
	"bytes"
	"slices"
	"unicode/utf8"
)

// Sorted returns the numbers of all keys in the order of their bytes.
func (t *Table) Sorted() []uint32 {
	type item struct {
		head uint64
		n    uint32
	}
	items := make([]item, len(t.entries))
	for i := range items {
		items[i] = item{t.Head(i), uint32(i)}
	}
	slices.SortFunc(items, func(a, b item) int {
		switch {
		case a.head < b.head:
			return -1
		case a.head > b.head:
			return 1
		}
		return bytes.Compare(t.Key(int(a.n)), t.Key(int(b.n)))
	})
	out := make([]uint32, len(items))
	for i, it := range items {
		out[i] = it.n
	}
	return out
}

// plain are the bytes that stand for themselves in a JSON string.
var plain = func() (is [256]bool) {
	for c := range is {
		is[c] = c >= ' ' && c != '"' && c != '\\'
	}
	return is
}()

// AppendString appends s, which is UTF-8, as a JSON string: a quote and a
// backslash behind a backslash, control characters as \u00XX, all else as it
// is.
func AppendString(b, s []byte) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	start := 0
	for i, c := range s {
		if plain[c] {
			continue
		}
		b = append(b, s[start:i]...)
		if c == '"' || c == '\\' {
			b = append(b, '\\', c)
		} else {
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
		start = i + 1
	}
	return append(append(b, s[start:]...), '"')
}

// ValidUTF8 returns s with each byte that is not UTF-8 replaced by U+FFFD, as
// encoding/json does; s itself if there is none.
func ValidUTF8(s []byte) []byte {
	if utf8.Valid(s) {
		return s
	}
	out := make([]byte, 0, len(s)+8)
	for len(s) > 0 {
		r, n := utf8.DecodeRune(s)
		out = utf8.AppendRune(out, r)
		s = s[n:]
	}
	return out
}
