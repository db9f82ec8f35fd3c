package reduce

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"lode"
	"lode/data/words"
	"lode/store/storetest"
)

// fuzzed are the reducers in the order of FuzzUnpack's first argument.
func fuzzed(t testing.TB) (all []Reducer) {
	for _, name := range Names() {
		r, err := ByName(name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	return append(all, Words())
}

// foldPacked is fold, with each state packed and unpacked before each merge.
func foldPacked(t testing.TB, r Reducer, bodies ...string) (string, error) {
	t.Helper()
	travel := func(s State) State {
		b, kind, err := s.Pack()
		if err != nil {
			t.Fatal(err)
		}
		back, err := r.Unpack(bytes.Clone(b), kind)
		if err != nil {
			t.Fatalf("unpack %q: %v", b, err)
		}
		again, _, err := back.Pack()
		if err != nil || !bytes.Equal(b, again) {
			t.Fatalf("%q was packed as %q, %v", b, again, err)
		}
		return back
	}
	s := r.Zero()
	for _, b := range bodies {
		next, err := r.Parse([]byte(b), "")
		if err != nil {
			return "", err
		}
		if s, err = travel(s).Merge(t.Context(), travel(next)); err != nil {
			return "", err
		}
	}
	out, _, err := travel(s).Encode()
	return string(out), err
}

// What travels between merges gives the same bits as what stays.
func TestPacked(t *testing.T) {
	numbers := []string{"0.1", "9007199254740993", "1e17", "", "0.7", "-1e17", "9223372036854775807", "9223372036854775807", "-18446744073709551614", "-0.0", "3.3"}
	var objects []string
	for i, n := range numbers {
		if n == "" {
			n = "null"
		}
		objects = append(objects, fmt.Sprintf(`{"a":%s,"k%d":1,"é":{"x":%s,"":{"y":2}}}`, n, i, n))
	}
	for name, bodies := range map[string][]string{
		"sum": numbers, "min": numbers, "max": numbers, "count": {"a\nb", "", "c\n", "\n\n"}, "merge": objects, "concat": {"a", "", "b\n"},
	} {
		r, err := ByName(name)
		if err != nil {
			t.Fatal(err)
		}
		for n := range len(bodies) + 1 {
			want, err := fold(t, r, bodies[:n]...)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := foldPacked(t, r, bodies[:n]...); err != nil || got != want {
				t.Errorf("%s of %q: %s, %v; want %s", name, bodies[:n], got, err, want)
			}
		}
	}
	if got, err := foldPacked(t, merges{}, "1", "0.5"); err != nil || got != "1.5" {
		t.Errorf("merge of numbers: %s, %v", got, err)
	}
	got, err := foldPacked(t, Words(), string(words.Count([]byte("b a b")).Encode()), string(words.Count([]byte("c b")).Encode()))
	if err != nil || got != `{"a":1,"b":3,"c":1}` {
		t.Errorf("words: %s, %v", got, err)
	}
	one := &pieces{[][]byte{[]byte("x")}, "text/csv"}
	if _, kind, _ := one.Pack(); kind != "text/csv" {
		t.Errorf("media type %q", kind)
	}
}

func TestUnpackRefuses(t *testing.T) {
	deep := "\x00" + strings.Repeat("\x01\x01a\x02", 65) + "\x00"
	for name, bodies := range map[string][]string{
		"sum":   {"", "\x00", "\x04\x00", "\x01\x00\x00", "\x02\x02\x01\x01", "\x02\x00\x09\x01", "\x00\x00\x00"},
		"max":   {"", "\x02", "\x01", "\x00\x00"},
		"merge": {"", "\x02", "\x00", "\x00\x01\x01", "\x00\x02\x01a\x00\x02\x01a\x00\x02", "\x00\x01\x01\xff\x00\x02", "\x00\x01\x01a\x03", "\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", deep},
	} {
		r, err := ByName(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range bodies {
			_, err := r.Unpack([]byte(b), "")
			if lode.KindOf(err) != lode.Invalid {
				t.Errorf("%s of %q: %v", name, b, err)
			}
		}
	}
}

// FuzzUnpack: what is unpacked packs to bytes that unpack to the same, and
// merges with itself or is refused.
func FuzzUnpack(f *testing.F) {
	f.Add(uint8(0), []byte("\x03\x00\x01\x05\x00\x00\x00\x00\x00\x00\xf0\x3f"))
	f.Add(uint8(1), []byte("\x00\x08"))
	f.Add(uint8(3), []byte("\x01\x00\x08"))
	f.Add(uint8(4), []byte("\x00\x02\x01a\x00\x02\x01b\x02\x01\x01c\x01\x02\x01\x01\x09"))
	f.Add(uint8(6), words.Count([]byte("a b a")).Encode())
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		all := fuzzed(t)
		r := all[int(which)%len(all)]
		s, err := r.Unpack(bytes.Clone(b), "")
		if err != nil {
			storetest.Kind(t, err, lode.Invalid)
			return
		}
		once, kind, err := s.Pack()
		if err != nil {
			t.Fatal(err)
		}
		once = bytes.Clone(once)
		back, err := r.Unpack(bytes.Clone(once), kind)
		if err != nil {
			t.Fatalf("%q was packed as %q: %v", b, once, err)
		}
		if twice, _, _ := back.Pack(); !bytes.Equal(once, twice) {
			t.Fatalf("%q, then %q", once, twice)
		}
		if s, err = s.Merge(t.Context(), back); err == nil {
			s.Encode()
		}
	})
}
