package bus

import (
	"strings"

	"lode"
)

// Every name that the server sees is built in this file.
//
//	table T      bucket T, so the stream KV_T with the subjects $KV.T.<key>
//	log L        stream LOG_L with the one subject log.L
//
// T and L follow the law of names. A key is any string of 1 to 512 bytes. It
// is cut at each "/" into tokens, which become the tokens of a subject, so
// that a prefix that ends in "/" is a filter of the server. In a token a byte
// outside [A-Za-z0-9_-] is written as "=" and two upper-case hexadecimal
// digits; an empty token is written as "=" alone. "a//é" is "a.=.=C3=A9".

const maxKey = 512

func tableName(name string) (string, error) {
	n, err := lode.ParseName(name)
	return string(n), err
}

func tableStream(table string) string { return "KV_" + table }

// tableSubject takes an escaped key, or a filter.
func tableSubject(table, key string) string { return "$KV." + table + "." + key }

func logNames(name string) (stream, subject string, err error) {
	n, err := lode.ParseName(name)
	return "LOG_" + string(n), "log." + string(n), err
}

const hexDigits = "0123456789ABCDEF"

// escapeKey writes a key as the server takes it.
func escapeKey(key string) (string, error) {
	if key == "" {
		return "", lode.Errorf(lode.Invalid, "a key must not be empty")
	}
	if len(key) > maxKey {
		return "", lode.Errorf(lode.Invalid, "a key has at most %d bytes, not %d", maxKey, len(key))
	}
	return escapeTokens(key), nil
}

func escapeTokens(key string) string {
	var b strings.Builder
	for i, token := range strings.Split(key, "/") {
		if i > 0 {
			b.WriteByte('.')
		}
		if token == "" {
			b.WriteByte('=')
		}
		for j := range len(token) {
			c := token[j]
			if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' {
				b.WriteByte(c)
				continue
			}
			b.Write([]byte{'=', hexDigits[c>>4], hexDigits[c&15]})
		}
	}
	return b.String()
}

// unescapeKey reads what escapeKey wrote; false for anything else.
func unescapeKey(s string) (string, bool) {
	var b strings.Builder
	for i, token := range strings.Split(s, ".") {
		if i > 0 {
			b.WriteByte('/')
		}
		if token == "=" {
			continue
		}
		for j := 0; j < len(token); j++ {
			if token[j] != '=' {
				b.WriteByte(token[j])
				continue
			}
			if j+2 >= len(token) {
				return "", false
			}
			hi, lo := strings.IndexByte(hexDigits, token[j+1]), strings.IndexByte(hexDigits, token[j+2])
			if hi < 0 || lo < 0 {
				return "", false
			}
			b.WriteByte(byte(hi<<4 | lo))
			j += 2
		}
	}
	key := b.String()
	again, err := escapeKey(key)
	return key, err == nil && again == s
}

// filterFor is the narrowest filter of the server that holds every key with
// the prefix; the rest is filtered here.
func filterFor(prefix string) string {
	i := strings.LastIndexByte(prefix, '/')
	if i < 0 {
		return ">"
	}
	return escapeTokens(prefix[:i]) + ".>"
}

// layoutTable is the table of the record of moves (move.go).
const layoutTable = "layout"

// subjectsOf is what a stream takes when it is not fenced.
func subjectsOf(stream string) []string {
	if table, ok := strings.CutPrefix(stream, "KV_"); ok {
		return []string{tableSubject(table, ">")}
	}
	return []string{"log." + strings.TrimPrefix(stream, "LOG_")}
}

// fillSubject is that of a message which only takes up a position for a while
// (follow.go); no key of a table is written like this.
func fillSubject(stream string) string {
	if table, ok := strings.CutPrefix(stream, "KV_"); ok {
		return tableSubject(table, "=fill")
	}
	return subjectsOf(stream)[0]
}

func isLog(stream string) bool { return strings.HasPrefix(stream, "LOG_") }

// fencedSubject is all that a stream takes while it is copied.
func fencedSubject(stream string) string { return "fenced." + stream }
