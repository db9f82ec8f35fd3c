package bus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"lode"
)

func contents(t testing.TB, l *Log) (out []string, front uint64) {
	t.Helper()
	err := l.Replay(t.Context(), func(m Message) error {
		if front == 0 {
			front = m.Seq
		}
		for _, e := range m.Entries {
			out = append(out, string(e))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out, front
}

func TestLog(t *testing.T) {
	t.Parallel()
	dir, ctx := t.TempDir(), t.Context()
	b := open(t, dir)
	l := must(b.OpenLog(ctx, "journal"))(t)
	if l.Tail() != 1 {
		t.Fatalf("tail %d", l.Tail())
	}
	if seq := must(l.Append(ctx, []byte("a"), nil, []byte("b")))(t); seq != 2 {
		t.Fatalf("position %d", seq)
	}
	must(l.Append(ctx, []byte("c")))(t)
	m := must(l.Read(ctx, 2))(t)
	if len(m.Entries) != 3 || string(m.Entries[2]) != "b" {
		t.Fatalf("%q", m.Entries)
	}
	_, err := l.Read(ctx, 9)
	wantKind(t, err, lode.NotFound)
	_, err = l.Append(ctx, make([]byte, MaxAppend+1))
	wantKind(t, err, lode.TooLarge)
	must(l.Append(ctx, make([]byte, MaxAppend-8)))(t)
	b.Close()
	_, err = l.Append(ctx, []byte("closed"))
	wantKind(t, err, lode.Unavailable)

	b = open(t, dir)
	old := must(b.OpenLog(ctx, "journal"))(t)
	if got, _ := contents(t, old); len(got) != 5 || got[3] != "c" {
		t.Fatalf("%d entries", len(got))
	}
	now := must(b.OpenLog(ctx, "journal"))(t) // fences old
	_, err = old.Append(ctx, []byte("late"))
	wantKind(t, err, lode.Conflict)
	_, err = old.Append(ctx, []byte("later"))
	wantKind(t, err, lode.Conflict)
	must(now.Append(ctx, []byte("d")))(t)
	if err := now.Trim(ctx, 3); err != nil {
		t.Fatal(err)
	}
	b.Close()
	b = open(t, dir)
	l = must(b.OpenLog(ctx, "journal"))(t)
	got, front := contents(t, l)
	if front != 3 || got[0] != "c" || got[len(got)-1] != "d" || slices.Contains(got, "late") {
		t.Fatalf("front %d, %d entries, last %s", front, len(got), got[len(got)-1])
	}
}

func TestTrimAll(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	b := open(t, dir)
	l := must(b.OpenLog(ctx, "journal"))(t)
	for range 5 {
		must(l.Append(ctx, []byte("x")))(t)
	}
	if err := l.Trim(ctx, 1000); err != nil {
		t.Fatal(err)
	}
	must(l.Append(ctx, []byte("y")))(t)
	b.Close()
	l = must(open(t, dir).OpenLog(ctx, "journal"))(t)
	if got, front := contents(t, l); !slices.Equal(got, []string{"y"}) || front != 7 {
		t.Fatalf("%v from %d", got, front)
	}
}

// blocks are the files that hold the messages of a log.
func blocks(t testing.TB, dir, name string) []string {
	t.Helper()
	var out []string
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".blk") && strings.Contains(path, name) {
			out = append(out, path)
		}
		return nil
	})
	if len(out) == 0 {
		t.Fatal("no blocks")
	}
	return out
}

// TestDamagedLog damages the files of a log and expects an error of kind
// Damaged, or a clean loss at the very end, and never a hole that nobody sees.
func TestDamagedLog(t *testing.T) {
	t.Parallel()
	fill := func(t *testing.T) string {
		dir := t.TempDir()
		b := open(t, dir)
		l := must(b.OpenLog(t.Context(), "journal"))(t)
		for i := range 20 {
			must(l.Append(t.Context(), fmt.Appendf(nil, "entry %02d", i), bytes.Repeat([]byte("payload"), 100)))(t)
		}
		b.Close()
		return dir
	}
	reopen := func(t *testing.T, dir string) (n int, err error) {
		b, err := Open(t.Context(), Config{Dir: dir})
		if err != nil {
			return 0, err
		}
		defer b.Close()
		l, err := b.OpenLog(t.Context(), "journal")
		if err != nil {
			return 0, err
		}
		err = l.Replay(t.Context(), func(m Message) error {
			if len(m.Entries) == 2 {
				n++
			}
			return nil
		})
		return n, err
	}
	edit := func(t *testing.T, dir string, f func([]byte) []byte) {
		path := blocks(t, dir, "LOG_journal")[0]
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, f(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	at := func(b []byte, text string) int {
		i := bytes.Index(b, []byte(text))
		if i < 0 {
			t.Fatalf("%q is not in the file", text)
		}
		return i
	}
	t.Run("truncated in the last message", func(t *testing.T) {
		dir := fill(t)
		edit(t, dir, func(b []byte) []byte { return b[:len(b)-100] })
		n, err := reopen(t, dir)
		if n != 19 || err != nil {
			if lode.KindOf(err) != lode.Damaged {
				t.Fatal(n, err)
			}
		}
	})
	t.Run("a byte in the middle", func(t *testing.T) {
		dir := fill(t)
		edit(t, dir, func(b []byte) []byte { b[at(b, "entry 07")] ^= 1; return b })
		_, err := reopen(t, dir)
		wantKind(t, err, lode.Damaged)
	})
	t.Run("a message rewritten with its checksum", func(t *testing.T) {
		// The server's own checksum is made right again by writing through it:
		// only the chain of the log can tell.
		dir := fill(t)
		b := open(t, dir)
		if _, err := b.js.Publish(context.Background(), "log.journal", []byte("a foreign message")); err != nil {
			t.Fatal(err)
		}
		b.Close()
		_, err := reopen(t, dir)
		wantKind(t, err, lode.Damaged)
	})
	t.Run("the front is missing", func(t *testing.T) {
		dir := fill(t)
		b := open(t, dir)
		st := must(b.js.Stream(t.Context(), "LOG_journal"))(t)
		if err := st.Purge(t.Context(), purgeBefore(5)); err != nil {
			t.Fatal(err)
		}
		b.Close()
		_, err := reopen(t, dir)
		wantKind(t, err, lode.Damaged)
	})
	t.Run("the block is gone", func(t *testing.T) {
		dir := fill(t)
		if err := os.Remove(blocks(t, dir, "LOG_journal")[0]); err != nil {
			t.Fatal(err)
		}
		_, err := reopen(t, dir)
		wantKind(t, err, lode.Damaged)
	})
}

func TestRecordVectors(t *testing.T) {
	r := record{inc: incarnation{1, 2}, n: 3, prev: 4, floor: 5, entries: [][]byte{[]byte("a"), nil, bytes.Repeat([]byte("b"), 300)}}
	b := r.encode()
	got, err := decodeRecord(b)
	if err != nil || got.n != 3 || got.prev != 4 || got.floor != 5 || got.inc != r.inc || len(got.entries) != 3 || !bytes.Equal(got.entries[2], r.entries[2]) {
		t.Fatalf("%+v %v", got, err)
	}
	if len(b) != recordHead+2+1+302+recordSum || b[44] != 3 || b[45] != 1 || b[46] != 'a' || b[47] != 0 {
		t.Fatalf("%d bytes: %x", len(b), b[:50])
	}
	for i := range b {
		c := slices.Clone(b)
		c[i] ^= 0x40
		if _, err := decodeRecord(c); lode.KindOf(err) != lode.Damaged {
			t.Fatalf("byte %d flipped: %v", i, err)
		}
		if _, err := decodeRecord(b[:i]); lode.KindOf(err) != lode.Damaged {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
}

func FuzzRecord(f *testing.F) {
	r := record{n: 1, entries: [][]byte{[]byte("a")}}
	f.Add(r.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(b)
		if err == nil && !bytes.Equal(r.encode(), b) {
			// Only a length that is not in its shortest form may differ.
			if again, err := decodeRecord(r.encode()); err != nil || len(again.entries) != len(r.entries) {
				t.Fatal("read and written again it is another message")
			}
		}
	})
}

func FuzzOp(f *testing.F) {
	for _, o := range []op{{kind: opPut, num: 1, queue: "q", id: "i", body: []byte("b"), due: -5}, {kind: opDone, num: 2, forget: 7},
		{kind: opLater, num: 3, due: 9, note: "n"}, {kind: opGiven, num: 4, deliveries: 2}, {kind: opMark, num: 5, queue: "q", id: "i"}} {
		f.Add(o.encode())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := decodeOp(b)
		if err != nil {
			return
		}
		again, err := decodeOp(o.encode())
		if err != nil || fmt.Sprint(again) != fmt.Sprint(o) {
			t.Fatal(o, again, err)
		}
		// Whatever it says, the state takes it.
		s := newQueuesState(1 << 20)
		for seq := uint64(1); seq < 4; seq++ {
			s.packs.add(seq, len(b))
			s.apply(&o, place{seq, 0})
		}
		if q := s.queues[o.queue]; q != nil {
			s.take(q, 10, 1000, instant{1 << 60, 0})
			q.live()
		}
	})
}

func FuzzKey(f *testing.F) {
	for _, k := range []string{"a", "a/b", "/", "a//b", "=", "é.*>", " "} {
		f.Add(k)
	}
	f.Fuzz(func(t *testing.T, key string) {
		s, err := escapeKey(key)
		if err != nil {
			if key != "" && len(key) <= maxKey {
				t.Fatal(err)
			}
			return
		}
		if back, ok := unescapeKey(s); !ok || back != key {
			t.Fatalf("%q became %q became %q", key, s, back)
		}
		if back, ok := unescapeKey(key); ok { // whatever else can be read, is written like that
			if again, err := escapeKey(back); err != nil || again != key {
				t.Fatalf("%q and %q are the same key", key, again)
			}
		}
	})
}

var errStop = errors.New("stop")

func TestReplayEndsWithItsCaller(t *testing.T) {
	b := open(t, t.TempDir())
	l := must(b.OpenLog(t.Context(), "journal"))(t)
	if err := l.Replay(t.Context(), func(Message) error { return errStop }); !errors.Is(err, errStop) {
		t.Fatal(err)
	}
}
