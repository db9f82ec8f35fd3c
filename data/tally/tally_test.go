package tally

import (
	"bytes"
	"fmt"
	"testing"
)

func TestTable(t *testing.T) {
	var tab Table
	if _, ok := tab.Lookup([]byte("x")); ok {
		t.Error("an empty table knows a key")
	}
	want := map[string]int{}
	for round := range 2 {
		for i := range 5000 {
			for _, key := range []string{fmt.Sprint(i), fmt.Sprintf("a longer key of number %d", i), string(make([]byte, i%20))} {
				n, known := want[key]
				if !known {
					n = len(want)
					want[key] = n
				}
				if got := tab.Number([]byte(key)); got != n {
					t.Fatalf("round %d: Number(%q) = %d, want %d", round, key, got, n)
				}
				if got, ok := tab.Lookup([]byte(key)); !ok || got != n {
					t.Fatalf("Lookup(%q) = %d, %v", key, got, ok)
				}
			}
		}
	}
	if tab.Len() != len(want) {
		t.Errorf("Len = %d, want %d", tab.Len(), len(want))
	}
	for key, n := range want {
		if string(tab.Key(n)) != key {
			t.Errorf("Key(%d) = %q, want %q", n, tab.Key(n), key)
		}
	}
}

// Keys that differ in length alone, or in bytes that are zero, are different.
func TestZeros(t *testing.T) {
	var tab Table
	for n := range 40 {
		if got := tab.Number(make([]byte, n)); got != n {
			t.Errorf("%d zeros are number %d", n, got)
		}
	}
	if tab.Head(2) != 0 || tab.Head(tab.Number([]byte("ab"))) != 0x6162<<48 {
		t.Error("Head is not big endian")
	}
}

func FuzzTable(f *testing.F) {
	f.Add([]byte("a b c a b c d"), byte(' '))
	f.Fuzz(func(t *testing.T, text []byte, sep byte) {
		var tab Table
		want := map[string]int{}
		for _, key := range bytes.Split(text, []byte{sep}) {
			n, known := want[string(key)]
			if !known {
				n = len(want)
				want[string(key)] = n
			}
			if got := tab.Number(key); got != n {
				t.Fatalf("Number(%q) = %d, want %d", key, got, n)
			}
		}
	})
}
