package words

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"lode"
	"lode/store/storetest"
)

// plain counts the way a program without us would: a map and bytes.Fields,
// which agrees on ASCII.
func plain(b []byte) map[string]int {
	m := map[string]int{}
	for _, w := range bytes.FieldsFunc(b, func(r rune) bool { return r == ' ' || r >= '\t' && r <= '\r' }) {
		m[string(w)]++
	}
	return m
}

func same(t *testing.T, c *Counts, want map[string]int) {
	t.Helper()
	if c.Len() != len(want) {
		t.Errorf("%d distinct words, want %d", c.Len(), len(want))
	}
	for i := range c.Len() {
		w, n := c.Word(i)
		if want[string(w)] != int(n) {
			t.Errorf("%q: %d, want %d", w, n, want[string(w)])
		}
	}
}

func text(n int) []byte {
	var b bytes.Buffer
	for i := range n {
		fmt.Fprintf(&b, "w%d and a_rather_long_word_%d\t%s\r\n", i%97, i%1009, strings.Repeat("x", i%30))
	}
	return b.Bytes()
}

func TestCount(t *testing.T) {
	for _, s := range []string{"", " ", "a", " a", "a ", "aaaaaaaa", "aaaaaaaa ", "aaaaaaaab b", "12345678\n12345678\n", "\x00 \x00\x00 \x00", "\xa0 \x85 é",
		strings.Repeat("x", 1000), "\x1f\x0e\x08 \x0c\x0b\t", string(text(500))} {
		for lead := range 9 { // every place in a machine word
			b := append(bytes.Repeat([]byte{' '}, lead), s...)
			same(t, Count(b), plain(b))
		}
	}
}

func FuzzCount(f *testing.F) {
	f.Add([]byte("to be or not to be"))
	f.Add([]byte("\xff\xa0 \x89\x8d \x0d\x0a a\x80b"))
	f.Add(text(10))
	f.Fuzz(func(t *testing.T, b []byte) {
		want := map[string]int{}
		start := -1
		for i, x := range append(slices.Clone(b), ' ') {
			space := x == ' ' || x >= 9 && x <= 13
			if !space && start < 0 {
				start = i
			}
			if space && start >= 0 {
				want[string(b[start:i])]++
				start = -1
			}
		}
		c := Count(b)
		same(t, c, want)
		back, err := Decode(c.Encode())
		if err != nil {
			t.Fatal(err)
		}
		same(t, back, want)
		var got map[string]int
		if err := json.Unmarshal(c.JSON(), &got); err != nil {
			t.Fatal(err)
		}
		sum := 0
		for _, n := range got {
			sum += n
		}
		if sum != int(c.Total()) {
			t.Errorf("the JSON holds %d words of %d", sum, c.Total())
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add(Count([]byte("a b a")).Encode())
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Decode(b)
		if err != nil {
			storetest.Kind(t, err, lode.Invalid)
			return
		}
		if again, err := Decode(c.Encode()); err != nil || again.Total() != c.Total() {
			t.Errorf("%v", err)
		}
	})
}

func TestMerge(t *testing.T) {
	a, b := text(300), []byte("and another thing")
	want := plain(append(append(slices.Clone(a), ' '), b...))
	same(t, Count(a).Merge(Count(b)), want)
	same(t, Count(b).Merge(Count(a)), want)
	same(t, new(Counts).Merge(Count(nil)), nil)
	if n := Count(a).Of("and"); n != 300 {
		t.Errorf("Of = %d", n)
	}
}

func TestJSON(t *testing.T) {
	c := Count([]byte("b a \xff \xfe a\"b\\ \x01 <é> b longer-than-8 longer-than-7"))
	want := `{"\u0001":1,"<é>":1,"a":1,"a\"b\\":1,"b":2,"longer-than-7":1,"longer-than-8":1,"` + "\ufffd" + `":2}`
	if got := string(c.JSON()); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	if got := string(new(Counts).JSON()); got != "{}" {
		t.Errorf("empty: %s", got)
	}
}

type keepFunc func(words [][]byte) ([]bool, error)

func (f keepFunc) Keep(_ context.Context, words [][]byte) ([]bool, error) { return f(words) }

func TestApply(t *testing.T) {
	b := text(20_000)
	for i := range 60_000 {
		b = fmt.Appendf(b, "distinct-%d ", i)
	}
	var mu sync.Mutex
	asked := map[string]int{}
	calls := 0
	f := keepFunc(func(words [][]byte) ([]bool, error) {
		mu.Lock()
		defer mu.Unlock()
		calls++
		keep := make([]bool, len(words))
		for i, w := range words {
			asked[string(w)]++
			keep[i] = w[0] == 'w'
		}
		return keep, nil
	})
	c, err := Count(b).Apply(t.Context(), f, 3)
	if err != nil {
		t.Fatal(err)
	}
	want := plain(b)
	for w := range want {
		if asked[w] != 1 {
			t.Fatalf("asked %d times for %q", asked[w], w)
		}
		if w[0] != 'w' {
			delete(want, w)
		}
	}
	if calls < 2 {
		t.Errorf("%d calls", calls)
	}
	same(t, c, want)
	broken := errors.New("broken")
	if _, err := Count(b).Apply(t.Context(), keepFunc(func([][]byte) ([]bool, error) { return nil, broken }), 2); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	_, err = Count(b).Apply(t.Context(), keepFunc(func([][]byte) ([]bool, error) { return nil, nil }), 2)
	storetest.Kind(t, err, lode.Crashed)
}

func TestQuestionAndAnswer(t *testing.T) {
	if q := string(Question([][]byte{[]byte("a"), []byte("b")})); q != "a\nb\n" {
		t.Errorf("%q", q)
	}
	if got, err := Answer([]byte("1\n0 1\n"), 3); err != nil || !slices.Equal(got, []bool{true, false, true}) {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "1", "1011", "1x1", "yes"} {
		_, err := Answer([]byte(bad), 3)
		storetest.Kind(t, err, lode.Crashed)
	}
}

// The two sides of the comparison that matters, each over all cores.
func BenchmarkPlainGo(b *testing.B) {
	bench(b, func(part []byte) func() {
		m := map[string]int{}
		for _, w := range bytes.Fields(part) {
			m[string(w)]++
		}
		return func() { runtime.KeepAlive(m) }
	})
}

func BenchmarkCount(b *testing.B) {
	bench(b, func(part []byte) func() {
		c := Count(part)
		return func() { runtime.KeepAlive(c) }
	})
}

func bench(b *testing.B, f func([]byte) func()) {
	content := text(200_000)
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		var wg sync.WaitGroup
		n := runtime.GOMAXPROCS(0)
		for i := range n {
			wg.Go(func() { f(content[i*len(content)/n : (i+1)*len(content)/n])() })
		}
		wg.Wait()
	}
}
