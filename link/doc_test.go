package link

import (
	"os"
	"regexp"
	"strconv"
	"testing"
)

// TestDocument holds the table of docs/link.md to the code: every kind, and
// its largest payload.
func TestDocument(t *testing.T) {
	b, err := os.ReadFile("../docs/link.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[kind]int{}
	for _, m := range regexp.MustCompile("(?m)^\\| `0x([0-9a-f]{2})` \\|.*\\| ([0-9]+) \\|$").FindAllStringSubmatch(string(b), -1) {
		k, _ := strconv.ParseUint(m[1], 16, 8)
		rows[kind(k)], _ = strconv.Atoi(m[2])
	}
	for k := range 256 {
		most, documented := rows[kind(k)]
		if known(kind(k)) != documented || most != limit[k] {
			t.Errorf("kind 0x%02x: the page says %v and %d bytes, the code %v and %d", k, documented, most, known(kind(k)), limit[k])
		}
	}
}
