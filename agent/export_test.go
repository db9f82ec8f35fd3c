package agent

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"lode"
)

// dumps is everything of a kind, by key and part.
func (l *lone) dumps(kind lode.Name, part int) (out []Dump) {
	l.t.Helper()
	covered, err := l.Export(l.t.Context(), "ns", kind, part, func(d *Dump) error {
		out = append(out, *d)
		return nil
	})
	if err != nil || !slices.IsSorted(covered) {
		l.t.Fatalf("%v %v", covered, err)
	}
	slices.SortStableFunc(out, func(a, b Dump) int { return strings.Compare(a.Key, b.Key) })
	return out
}

func TestExportImport(t *testing.T) {
	l := openLone(t)
	for _, key := range []string{"x", "y\x00", "z"} {
		l.do("cart/"+key, "put", "k "+key)
		l.do("cart/"+key, "put", "l "+key)
	}
	l.do("cart/x", "fill", "f")
	l.do("cart/x", "timer", "tea 3600000")
	if _, err := l.Post(t.Context(), &lode.AgentCall{Namespace: "ns", Kind: "cart", Key: "x", Method: "put", Body: []byte("k w"), Delay: time.Hour}); err != nil {
		t.Fatal(err)
	}
	l.do("cart/read", "get", "k")

	all := l.dumps("cart", 1<<20)
	if len(all) != 3 || len(all[0].State) != 3 || len(all[0].Timers) != 2 || len(all[0].State[2].Value) != 100_000 {
		t.Fatalf("%d dumps, the first %d keys, %d timers", len(all), len(all[0].State), len(all[0].Timers))
	}
	small := l.dumps("cart", 40)
	if len(small) != 7 || small[2].Key != "x" || small[2].Part != 2 || len(small[2].Timers) != 0 || len(small[0].Timers) != 2 {
		t.Fatalf("in parts: %d", len(small))
	}

	// Into another kind, whole and in parts.
	for _, in := range [][]Dump{all, small} {
		n, err := l.Import(t.Context(), "ns", "cup", in, true)
		if err != nil || n.Agents != 3 || n.Keys != 7 || n.Timers != 2 {
			t.Fatalf("%+v %v", n, err)
		}
		if got := l.dumps("cup", 1<<20); fmt.Sprint(got) != fmt.Sprint(all) {
			t.Errorf("what was imported differs: %.300s", fmt.Sprint(got))
		}
	}
	if got := l.do("cup/z", "get", "k"); got != "z" {
		t.Errorf("it answers %q", got)
	}
	_, err := l.Import(t.Context(), "ns", "cup", all, false)
	isKind(t, err, lode.Conflict)

	// What is replaced leaves nothing.
	n, err := l.Import(t.Context(), "ns", "cup", []Dump{{Key: "x", State: []DumpValue{{[]byte("only"), []byte("1")}}}}, true)
	if err != nil || n.Agents != 1 {
		t.Fatalf("%+v %v", n, err)
	}
	d, kv, err := l.show("cup", "x")
	if err != nil || kv != "only=1" || len(d.Set) != 0 {
		t.Errorf("%q %+v %v", kv, d.Set, err)
	}

	// The code of a new revision has not seen what was imported.
	l.do("cup/x", "put", "k v")
	before, _, err := l.show("cup", "x")
	if err != nil {
		t.Fatal(err)
	}
	l.shelf.deploy("cup")
	if _, err := l.Import(t.Context(), "ns", "cup", all[:1], true); err != nil {
		t.Fatal(err)
	}
	if d, _, err = l.show("cup", "x"); err != nil || d.Revision != before.Revision || d.Revision == 0 {
		t.Errorf("revision %d, was %d: %v", d.Revision, before.Revision, err)
	}
}

func TestImportRefuses(t *testing.T) {
	l := openLone(t)
	now := time.Now()
	for name, d := range map[string]Dump{
		"no key of state":      {Key: "x", State: []DumpValue{{nil, []byte("v")}}},
		"a key too long":       {Key: "x", State: []DumpValue{{make([]byte, maxKey+1), nil}}},
		"a timer with no name": {Key: "x", Timers: []DumpTimer{{At: now}}},
		"Lode's own timer":     {Key: "x", Timers: []DumpTimer{{Name: ttlTimer, At: now}}},
		"a message with no id": {Key: "x", Timers: []DumpTimer{{Name: waiting, At: now}}},
		"a time before 1970":   {Key: "x", Timers: []DumpTimer{{Name: "t", At: time.Unix(-1, 0)}}},
	} {
		t.Run(name, func(t *testing.T) {
			l.t = t
			_, err := l.Import(t.Context(), "ns", "cart", []Dump{d}, true)
			isKind(t, err, lode.Invalid)
			_, _, err = l.show("cart", "x")
			isKind(t, err, lode.NotFound)
		})
	}
	_, err := l.Import(t.Context(), "ns", "cart", []Dump{{Key: "x", State: []DumpValue{{[]byte("k"), make([]byte, maxValue+1)}}}}, true)
	isKind(t, err, lode.TooLarge)
	// One that failed leaves those before it.
	n, err := l.Import(t.Context(), "ns", "cart", []Dump{{Key: "a", State: []DumpValue{{[]byte("k"), nil}}}, {Key: "b", State: []DumpValue{{nil, nil}}}}, false)
	isKind(t, err, lode.Invalid)
	if n.Agents != 1 || fmt.Sprint(l.names("cart", -1)) != "[cart/a]" {
		t.Errorf("%+v %v", n, l.names("cart", -1))
	}
}
