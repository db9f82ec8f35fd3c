package reduce

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"lode"
	"lode/data/words"
	"lode/store/storetest"
)

// fold parses and merges bodies from the left.
func fold(t testing.TB, r Reducer, bodies ...string) (string, error) {
	t.Helper()
	s := r.Zero()
	for _, b := range bodies {
		next, err := r.Parse([]byte(b), "")
		if err != nil {
			return "", err
		}
		if s, err = s.Merge(t.Context(), next); err != nil {
			return "", err
		}
	}
	out, _, err := s.Encode()
	return string(out), err
}

func TestReducers(t *testing.T) {
	for _, c := range []struct {
		name   string
		bodies []string
		want   string
	}{
		{"sum", nil, "0"},
		{"sum", []string{"1", " 2\n", "", "null", "-4"}, "-1"},
		{"sum", []string{"9223372036854775807", "1", "-9223372036854775808"}, "0"},
		{"sum", []string{"9223372036854775807", "9223372036854775807"}, "18446744073709551614"},
		{"sum", []string{"-9223372036854775808", "-1"}, "-9223372036854775809"},
		{"sum", []string{"123456789012345678901234567890", "1"}, "123456789012345678901234567891"},
		{"sum", []string{"0.1", "0.2"}, "0.30000000000000004"},
		{"sum", []string{"9007199254740993", "0.5", "-9007199254740993"}, "0.5"},
		{"sum", []string{"1e3"}, "1000"},
		{"count", []string{"a\nb\n", "", "c", "d\ne"}, "5"},
		{"min", nil, "null"},
		{"min", []string{"3", "", "-2.5", "7"}, "-2.5"},
		{"max", []string{"9007199254740992", "9007199254740993", "9007199254740992.0"}, "9007199254740993"},
		{"max", []string{"-1", "-1e300", "null"}, "-1"},
		{"merge", nil, "{}"},
		{"merge", []string{"1", "", "2"}, "3"},
		{"merge", []string{`{"b":1,"a":2}`, `{}`, ` { "a" : -5 , "c" : 0.5 } `}, `{"a":-3,"b":1,"c":0.5}`},
		{"merge", []string{`{"a":9223372036854775807}`, `{"a":1,"b":1}`, `{"a":1}`}, `{"a":9223372036854775809,"b":1}`},
		{"merge", []string{`{"a":1,"a":2}`}, `{"a":3}`},
		{"merge", []string{`{"ham":{"x":1},"spam":{"y":2}}`, `{"spam":{"y":3,"x":1},"n":4}`}, `{"ham":{"x":1},"n":4,"spam":{"x":1,"y":5}}`},
		{"merge", []string{`{"\u0061\n\"":1}`, `{"a\u000a\u0022":1,"é":1}`, `{"\u00e9":null}`}, `{"a\u000a\"":2,"é":1}`},
		{"merge", []string{"{\"\xff\":1,\"\xfe\":1}"}, "{\"\ufffd\":2}"},
		{"concat", []string{"a", "", "b\n", "c"}, "ab\nc"},
	} {
		t.Run(c.name+" "+strings.Join(c.bodies, "+"), func(t *testing.T) {
			r, err := ByName(c.name)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := fold(t, r, c.bodies...); err != nil || got != c.want {
				t.Errorf("%s, %v; want %s", got, err, c.want)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	for name, bodies := range map[string][]string{
		"sum":   {"x", "1 2", "{}", "01", "1.", ".5", "1e", "-", "1e999", "+1", strings.Repeat("9", 5000), "1." + strings.Repeat("9", 5000)},
		"min":   {"[1]", `"a"`},
		"merge": {"[]", `"a"`, `{"a":[]}`, `{"a":"b"}`, `{"a":1`, `{"a"}`, `{a:1}`, `{"a":1,}`, `{"a":true}`, "{\"a\n\":1}", `{"a\x":1}`, `{} {}`, `{"a":01}`, "nul", "\x00", strings.Repeat(`{"a":`, 65) + "1" + strings.Repeat("}", 65)},
	} {
		r, err := ByName(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range bodies {
			_, err := fold(t, r, b)
			if lode.KindOf(err) != lode.Invalid {
				t.Errorf("%s of %.60q: %v", name, b, err)
			}
		}
	}
	for _, pair := range [][]string{{`{"a":1}`, "1"}, {`{"a":1}`, `{"a":{"b":1}}`}, {`{"a":{"b":1}}`, `{"a":1}`}, {`{"a":{"b":1},"a":1}`}, {`{"a":1,"a":{"b":1}}`}} {
		_, err := fold(t, merges{}, pair...)
		storetest.Kind(t, err, lode.Invalid)
	}
	_, err := fold(t, sums{}, "1e308", "1e308")
	storetest.Kind(t, err, lode.Invalid)
	_, err = ByName("summ")
	storetest.Kind(t, err, lode.Invalid)
	if lode.AsError(err).Hint != `did you mean "sum"?` {
		t.Errorf("hint %q", lode.AsError(err).Hint)
	}
}

func TestWords(t *testing.T) {
	got, err := fold(t, Words(), string(words.Count([]byte("b a b")).Encode()), "", string(words.Count([]byte("c b")).Encode()))
	if err != nil || got != `{"a":1,"b":3,"c":1}` {
		t.Errorf("%s, %v", got, err)
	}
	_, err = fold(t, Words(), "{}")
	storetest.Kind(t, err, lode.Invalid)
}

// sumOf is merge of flat objects done by encoding/json and math/big.
func sumOf(t *testing.T, docs ...[]byte) (map[string]*big.Int, bool) {
	sum := map[string]*big.Int{}
	for _, doc := range docs {
		d := json.NewDecoder(bytes.NewReader(doc))
		d.UseNumber()
		if tok, err := d.Token(); err != nil || tok != json.Delim('{') {
			return nil, false
		}
		for d.More() {
			key, err := d.Token()
			if err != nil {
				return nil, false
			}
			value, err := d.Token()
			if err != nil {
				return nil, false
			}
			n, ok := value.(json.Number)
			if value == nil {
				continue
			}
			if !ok {
				return nil, false
			}
			i, ok := new(big.Int).SetString(n.String(), 10)
			if !ok {
				return nil, false
			}
			if sum[key.(string)] == nil {
				sum[key.(string)] = new(big.Int)
			}
			sum[key.(string)].Add(sum[key.(string)], i)
		}
	}
	return sum, true
}

// FuzzMerge: what is merged is read back the same by encoding/json, and flat
// objects of whole numbers add up as math/big has it. What is refused, is no
// JSON of numbers.
func FuzzMerge(f *testing.F) {
	for _, s := range []string{`{}`, `{"a":1}`, `{"a":-9223372036854775808,"\u00e9":2}`, `{"a":{"b":1.5e3}}`, `7`, `null`, `{"a":1,"a":2}`, "{\"\xff\\ud800\":12345678901234567890}"} {
		f.Add([]byte(s), []byte(`{"a":9223372036854775807}`))
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		if len(a)+len(b) > 3000 {
			return
		}
		_, err := merges{}.Parse(a, "")
		if err == nil && len(bytes.TrimSpace(a)) > 0 && !json.Valid(a) {
			t.Fatalf("%q was read and is no JSON", a)
		}
		got, err := fold(t, merges{}, string(a), string(b))
		want, flat := sumOf(t, a, b)
		flat = flat && json.Valid(a) && json.Valid(b)
		if err != nil {
			if flat {
				t.Fatalf("%q and %q: %v", a, b, err)
			}
			storetest.Kind(t, err, lode.Invalid)
			return
		}
		if !json.Valid([]byte(got)) {
			t.Fatalf("%q and %q became %q", a, b, got)
		}
		if !flat {
			return
		}
		back, ok := sumOf(t, []byte(got))
		if !ok || fmt.Sprint(back) != fmt.Sprint(want) {
			t.Errorf("%q and %q: %q, want %v", a, b, got, want)
		}
	})
}

func BenchmarkMerge(b *testing.B) {
	doc := []byte{'{'}
	for i := range 100_000 {
		doc = fmt.Appendf(doc, `"%x":%d,`, uint32(i*2654435761), i)
	}
	doc[len(doc)-1] = '}'
	b.Run("here", func(b *testing.B) {
		b.SetBytes(2 * int64(len(doc)))
		for b.Loop() {
			x, _ := merges{}.Parse(doc, "")
			y, _ := merges{}.Parse(doc, "")
			z, _ := x.Merge(b.Context(), y)
			z.Encode()
		}
	})
	b.Run("encoding/json", func(b *testing.B) {
		b.SetBytes(2 * int64(len(doc)))
		for b.Loop() {
			var x, y map[string]int
			json.Unmarshal(doc, &x)
			json.Unmarshal(doc, &y)
			for k, v := range y {
				x[k] += v
			}
			json.Marshal(x)
		}
	})
}
