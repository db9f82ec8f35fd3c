package state_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"lode"
	"lode/agent/journal"
	"lode/agent/state"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("STATE_TEST_CHILD"); dir != "" {
		if what := os.Getenv("STATE_TEST_MILLION"); what != "" {
			million(dir, what)
		} else {
			applyForever(dir)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

var (
	p0 = journal.Partition{Namespace: "default", Kind: "cart", N: 0}
	p1 = journal.Partition{Namespace: "default", Kind: "cart", N: 1}
)

func open(t testing.TB, dir string) *state.DB {
	t.Helper()
	d, err := state.Open(dir, state.Config{SaveRate: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func set(k, v string) journal.Change {
	return journal.Change{Kind: journal.Set, Key: []byte(k), Value: []byte(v)}
}
func del(k string) journal.Change { return journal.Change{Kind: journal.Delete, Key: []byte(k)} }
func cut(a, b string) journal.Change {
	return journal.Change{Kind: journal.Cut, Key: []byte(a), Value: []byte(b)}
}

func apply(t testing.TB, d *state.DB, j lode.NodeID, pos uint64, es ...state.Applied) {
	t.Helper()
	if err := d.Apply(j, pos, es); err != nil {
		t.Fatal(err)
	}
}

func one(p journal.Partition, epoch uint64, cs ...journal.Change) state.Applied {
	return state.Applied{Part: p, Epoch: epoch, Changes: cs}
}

type lister interface {
	List(start, end []byte, reverse bool, f func(k, v []byte) bool) error
}

// dump is the keys and values from start to end, as k=v words.
func dump(t testing.TB, l lister, start, end string, reverse bool) string {
	t.Helper()
	var words []string
	var last []byte
	if end != "" {
		last = []byte(end)
	}
	if err := l.List([]byte(start), last, reverse, func(k, v []byte) bool {
		words = append(words, string(k)+"="+string(v))
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return strings.Join(words, " ")
}

func wantKind(t testing.TB, err error, k lode.Kind) {
	t.Helper()
	if got := lode.KindOf(err); got != k {
		t.Fatalf("%v is %q, want %q", err, got, k)
	}
}

func TestApply(t *testing.T) {
	for _, c := range []struct {
		name    string
		changes []journal.Change
		want    string
	}{
		{"set", []journal.Change{set("a", "1"), set("b", "2")}, "a=1 b=2"},
		{"empty key and value", []journal.Change{set("", ""), set("\xff\xff", "x")}, "= \xff\xff=x"},
		{"set twice", []journal.Change{set("a", "1"), set("a", "2")}, "a=2"},
		{"delete", []journal.Change{set("a", "1"), set("b", "2"), del("a"), del("none")}, "b=2"},
		{"cut", []journal.Change{set("a", "1"), set("b", "2"), set("c", "3"), cut("a", "c")}, "c=3"},
		{"cut nothing", []journal.Change{set("a", "1"), cut("a", "a"), cut("b", "a"), cut("a", "")}, "a=1"},
		{"set after cut", []journal.Change{set("a", "1"), cut("a", "z"), set("b", "2")}, "b=2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := open(t, t.TempDir())
			apply(t, d, "n1", 1, one(p1, 1, set("k", "other")))
			apply(t, d, "n1", 2, one(p0, 1, c.changes...))
			if got := dump(t, d.Part(p0), "", "", false); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
			if got := dump(t, d.Part(p1), "", "", false); got != "k=other" {
				t.Errorf("the neighbour has %q", got)
			}
		})
	}
}

func TestList(t *testing.T) {
	d := open(t, t.TempDir())
	apply(t, d, "n1", 1, one(p0, 1, set("a", "1"), set("b", "2"), set("c", "3")), one(p1, 1, set("b", "9")))
	for _, c := range []struct {
		start, end string
		reverse    bool
		want       string
	}{
		{"", "", false, "a=1 b=2 c=3"}, {"", "", true, "c=3 b=2 a=1"},
		{"b", "", false, "b=2 c=3"}, {"a", "c", false, "a=1 b=2"}, {"a", "c", true, "b=2 a=1"},
		{"aa", "bb", false, "b=2"}, {"c", "a", false, ""}, {"x", "", true, ""},
	} {
		if got := dump(t, d.Part(p0), c.start, c.end, c.reverse); got != c.want {
			t.Errorf("%q to %q reverse %t: %q, want %q", c.start, c.end, c.reverse, got, c.want)
		}
	}
	n := 0
	if err := d.Part(p0).List(nil, nil, false, func(k, v []byte) bool { n++; return false }); err != nil || n != 1 {
		t.Errorf("%d keys after false, %v", n, err)
	}
	v, ok, err := d.Part(p0).Get([]byte("b"))
	if string(v) != "2" || !ok || err != nil {
		t.Errorf("%q %t %v", v, ok, err)
	}
	if _, ok, err := d.Part(p0).Get([]byte("none")); ok || err != nil {
		t.Errorf("%t %v", ok, err)
	}
}

// TestHeldOnce: what the copy holds is not applied again, whatever part of a
// journal is read again.
func TestHeldOnce(t *testing.T) {
	d := open(t, t.TempDir())
	apply(t, d, "n1", 10, one(p0, 3, set("a", "old")))
	apply(t, d, "n1", 20, one(p0, 3, set("a", "new")))
	apply(t, d, "n1", 10, one(p0, 3, set("a", "old")), one(p1, 1, set("b", "late")))
	apply(t, d, "n2", 99, one(p0, 2, set("a", "of an earlier epoch")))
	if got := dump(t, d.Part(p0), "", "", false) + " " + dump(t, d.Part(p1), "", "", false); got != "a=new b=late" {
		t.Error(got)
	}
	if n, err := d.Applied("n1"); n != 20 || err != nil {
		t.Error(n, err)
	}
	apply(t, d, "n2", 1, one(p0, 4))
	if m, ok, err := d.Part(p0).Mark(); m != (state.Mark{Epoch: 4, Journal: "n2", Pos: 1}) || !ok || err != nil {
		t.Error(m, ok, err)
	}
}

func TestOpenAgain(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	apply(t, d, "n1", 7, one(p0, 3, set("a", "1")), one(p1, 5))
	if err := d.Part(p1).Drop(); err != nil {
		t.Fatal(err)
	}
	if _, err := state.Open(dir, state.Config{}); lode.KindOf(err) != lode.Unavailable {
		t.Errorf("opened twice: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d = open(t, dir)
	if got := dump(t, d.Part(p0), "", "", false); got != "a=1" {
		t.Error(got)
	}
	parts, err := d.Parts()
	if len(parts) != 1 || parts[p0] != (state.Mark{Epoch: 3, Journal: "n1", Pos: 7}) || err != nil {
		t.Error(parts, err)
	}
	if n, err := d.Applied("n1"); n != 7 || err != nil {
		t.Error(n, err)
	}
	if n, err := d.Applied("n2"); n != 0 || err != nil {
		t.Error(n, err)
	}
}

func TestDrop(t *testing.T) {
	d := open(t, t.TempDir())
	apply(t, d, "n1", 1, one(p0, 1, set("a", "1"), set("", "2")), one(p1, 1, set("b", "1")))
	if err := d.Part(p0).Drop(); err != nil {
		t.Fatal(err)
	}
	if got := dump(t, d.Part(p0), "", "", false) + dump(t, d.Part(p1), "", "", false); got != "b=1" {
		t.Error(got)
	}
	if _, ok, err := d.Part(p0).Mark(); ok || err != nil {
		t.Error(ok, err)
	}
	apply(t, d, "n1", 1, one(p0, 1, set("a", "again")))
	if got := dump(t, d.Part(p0), "", "", false); got != "a=again" {
		t.Error(got)
	}
}

func TestView(t *testing.T) {
	d := open(t, t.TempDir())
	apply(t, d, "n1", 1, one(p0, 1, set("a", "1"), set("b", "2")))
	v := d.Part(p0).View()
	apply(t, d, "n1", 2, one(p0, 1, set("a", "9"), cut("b", "c"), set("c", "3")))
	if got := dump(t, v, "", "", false); got != "a=1 b=2" {
		t.Error(got)
	}
	if b, ok, err := v.Get([]byte("a")); string(b) != "1" || !ok || err != nil {
		t.Error(b, ok, err)
	}
	v.Close()
	v.Close()
	left := d.Part(p0).View()
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	left.Close()
	_, _, err := left.Get([]byte("a"))
	wantKind(t, err, lode.Unavailable)
}

func TestClosed(t *testing.T) {
	d := open(t, t.TempDir())
	p := d.Part(p0)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	wantKind(t, d.Apply("n1", 1, nil), lode.Unavailable)
	_, _, err := p.Get(nil)
	wantKind(t, err, lode.Unavailable)
	_, err = d.Applied("n1")
	wantKind(t, err, lode.Unavailable)
	_, _, err = p.Save(t.Context(), newMem(), lode.Digest{}, state.Mark{})
	wantKind(t, err, lode.Unavailable)
	wantKind(t, p.Restore(t.Context(), newMem(), lode.Digest{1}), lode.Unavailable)
	wantKind(t, p.Drop(), lode.Unavailable)
	wantKind(t, p.View().List(nil, nil, false, nil), lode.Unavailable)
}

func TestInvalidPartition(t *testing.T) {
	d := open(t, t.TempDir())
	for _, p := range []journal.Partition{{Namespace: "a", Kind: "b", N: -1}, {Namespace: "a", Kind: "b", N: 1 << 16}, {Kind: lode.Name(strings.Repeat("x", 256))}} {
		wantKind(t, d.Apply("n1", 1, []state.Applied{one(p, 1)}), lode.Invalid)
	}
	if n, err := d.Applied("n1"); n != 0 || err != nil {
		t.Error(n, err)
	}
}

func TestValues(t *testing.T) {
	in, _, _, blob, err := state.DecodeValue(state.EncodeInline([]byte("hello")))
	if string(in) != "hello" || blob || err != nil {
		t.Error(in, blob, err)
	}
	_, dg, size, blob, err := state.DecodeValue(state.EncodeBlob(lode.Digest{1, 2}, 1<<40))
	if dg != (lode.Digest{1, 2}) || size != 1<<40 || !blob || err != nil {
		t.Error(dg, size, blob, err)
	}
	for _, v := range [][]byte{nil, {1}, {2, 3}, make([]byte, 0), state.EncodeBlob(lode.Digest{}, -1), append(state.EncodeBlob(lode.Digest{}, 1), 0)} {
		if _, _, _, _, err := state.DecodeValue(v); lode.KindOf(err) != lode.Damaged {
			t.Errorf("%x: %v", v, err)
		}
	}
}

// TestDamagedFiles: a file that is cut or changed is found when the DB is
// opened or read, and said to be damaged; after Wipe it works again.
func TestDamagedFiles(t *testing.T) {
	for _, c := range []struct {
		pattern string
		do      func(b []byte) []byte
	}{
		{"*.sst", nil},
		{"*.sst", func(b []byte) []byte { return nil }},
		{"*.sst", func(b []byte) []byte { return b[:len(b)/2] }},
		{"*.sst", func(b []byte) []byte { b[100] ^= 0xff; return b }},
		{"MANIFEST-*", func(b []byte) []byte { return b[:3] }},
		{"MANIFEST-*", func(b []byte) []byte { return bytes.Repeat([]byte("x"), len(b)) }},
	} {
		t.Run(strings.ReplaceAll(c.pattern, "*", "x"), func(t *testing.T) {
			dir := t.TempDir()
			d := open(t, dir)
			for i := range 100 {
				apply(t, d, "n1", uint64(i+1), one(p0, 1, set(fmt.Sprintf("key%04d", i), strings.Repeat(fmt.Sprint(i), 100))))
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			names, err := filepath.Glob(filepath.Join(dir, "db", c.pattern))
			if err != nil || len(names) == 0 {
				t.Fatal(names, err)
			}
			for _, name := range names {
				if c.do == nil {
					if err := os.Remove(name); err != nil {
						t.Fatal(err)
					}
					continue
				}
				b, err := os.ReadFile(name)
				if err == nil {
					err = os.WriteFile(name, c.do(b), 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			d, err = state.Open(dir, state.Config{})
			if err == nil {
				err = d.Part(p0).List(nil, nil, false, func(k, v []byte) bool { return true })
				d.Close()
			}
			wantKind(t, err, lode.Damaged)
			if err := state.Wipe(dir); err != nil {
				t.Fatal(err)
			}
			d = open(t, dir)
			if got := dump(t, d.Part(p0), "", "", false); got != "" {
				t.Error(got)
			}
		})
	}
}
