package data_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"lode"
	"lode/data"
	"lode/data/registerstest"
	"lode/store"
	"lode/store/storetest"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("DATA_TEST_CHILD"); dir != "" {
		putForever(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

// uploads yields files given as name, content, name, content ...
type uploads []string

func (u *uploads) Next() (string, int64, io.Reader, error) {
	if len(*u) == 0 {
		return "", 0, nil, io.EOF
	}
	name, content := (*u)[0], (*u)[1]
	*u = (*u)[2:]
	return name, int64(len(content)), strings.NewReader(content), nil
}

func files(s ...string) *uploads { u := uploads(s); return &u }

type house struct {
	*data.Datasets
	store *store.Store
	regs  data.Registers
	dir   string
}

func open(t *testing.T, dir string, regs data.Registers) house {
	t.Helper()
	h, err := store.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	st, err := store.Open(store.Config{Home: h, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	ds, err := data.New(data.Config{Store: st, Registers: regs})
	if err != nil {
		t.Fatal(err)
	}
	return house{ds, st, regs, dir}
}

func fresh(t *testing.T) house { return open(t, t.TempDir(), new(data.MemRegisters)) }

func (h house) put(t *testing.T, name lode.Name, o data.PutOptions, in data.Uploads) *lode.Manifest {
	t.Helper()
	m, err := h.Put(t.Context(), "default", name, o, in)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (h house) cat(t *testing.T, name lode.Name, version int) string {
	t.Helper()
	m, _, err := h.Manifest(t.Context(), "default", name, version)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := h.Cat(t.Context(), m, &b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestMemRegisters(t *testing.T) {
	registerstest.Registers(t, func(*testing.T) data.Registers { return new(data.MemRegisters) })
}

func TestVersions(t *testing.T) {
	h := fresh(t)
	m := h.put(t, "notes", data.PutOptions{}, files("a.txt", "one\ntwo"))
	if m.Version != 1 || m.Records != "lines" || m.Bytes != 8 || m.Count != 2 || !m.Parent.IsZero() {
		t.Errorf("first: %+v", m)
	}
	var last data.Progress
	m = h.put(t, "notes", data.PutOptions{Append: true, Progress: func(p data.Progress) { last = p }}, files("b.txt", "three\n"))
	if m.Version != 2 || len(m.Shards) != 2 || m.Count != 3 || m.Parent.IsZero() {
		t.Errorf("appended: %+v", m)
	}
	if last.Bytes != 6 || last.Records != 1 || last.Files != 1 || last.Shards != 1 {
		t.Errorf("progress: %+v", last)
	}
	h.put(t, "notes", data.PutOptions{}, files("c.txt", "new\n"))
	for version, want := range map[int]string{0: "new\n", 1: "one\ntwo\n", 2: "one\ntwo\nthree\n", 3: "new\n"} {
		if got := h.cat(t, "notes", version); got != want {
			t.Errorf("version %d: %q, want %q", version, got, want)
		}
	}
	_, _, err := h.Manifest(t.Context(), "default", "notes", 4)
	storetest.Kind(t, err, lode.NotFound)
	storetest.Kind(t, h.RemoveVersion(t.Context(), "default", "notes", 3), lode.Conflict)
	if err := h.RemoveVersion(t.Context(), "default", "notes", 1); err != nil {
		t.Fatal(err)
	}
	_, _, err = h.Manifest(t.Context(), "default", "notes", 1)
	storetest.Kind(t, err, lode.Gone)
	head, err := h.Show(t.Context(), "default", "notes")
	if err != nil || len(head.Versions) != 2 || head.Newest().Number != 3 || head.Newest().Bytes != 4 {
		t.Errorf("Show: %+v, %v", head, err)
	}
	if all, err := h.List(t.Context(), "default"); err != nil || len(all) != 1 || all[0].Name != "notes" {
		t.Errorf("List: %+v, %v", all, err)
	}
	if all, err := h.List(t.Context(), "other"); err != nil || len(all) != 0 {
		t.Errorf("List of another namespace: %+v, %v", all, err)
	}
}

func TestKeep(t *testing.T) {
	h := fresh(t)
	for i := range 5 {
		h.put(t, "notes", data.PutOptions{Spec: lode.Dataset{Keep: 2}}, files("a", fmt.Sprintln(i)))
	}
	head, err := h.Show(t.Context(), "default", "notes")
	if err != nil || len(head.Versions) != 2 || head.Versions[0].Number != 4 {
		t.Errorf("%+v, %v", head, err)
	}
}

func TestCSVComesOutWithItsHeader(t *testing.T) {
	h := fresh(t)
	h.put(t, "t", data.PutOptions{}, files("a.csv", "h,i\n1,2\n"))
	h.put(t, "t", data.PutOptions{Append: true}, files("b.csv", "h,i\n3,4\n"))
	if got := h.cat(t, "t", 0); got != "h,i\n1,2\n3,4\n" {
		t.Errorf("%q", got)
	}
	_, err := h.Put(t.Context(), "default", "t", data.PutOptions{Append: true}, files("c.csv", "other\n3,4\n"))
	storetest.Kind(t, err, lode.Invalid)
	if !strings.Contains(err.Error(), "c.csv") {
		t.Errorf("the error does not name the file: %v", err)
	}
	m, _, err := h.Manifest(t.Context(), "default", "t", 0)
	if err != nil {
		t.Fatal(err)
	}
	err = h.Files(t.Context(), m, func(name string, size int64, r io.Reader) error {
		b, err := io.ReadAll(r)
		if name != "t" || int64(len(b)) != size {
			t.Errorf("%s: %d bytes of %d", name, len(b), size)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	stop := errors.New("stop")
	if err := h.Files(t.Context(), m, func(string, int64, io.Reader) error { return stop }); err != stop {
		t.Errorf("emit's error became %v", err)
	}
}

func TestFilesComeOutWithTheirNames(t *testing.T) {
	h := fresh(t)
	want := []string{"a/1", "spam", "b", "", "c", strings.Repeat("ham ", 30_000), "d", "x"}
	h.put(t, "mails", data.PutOptions{Spec: lode.Dataset{Records: "files", Shard: data.MinShard}}, files(want[:6]...))
	m := h.put(t, "mails", data.PutOptions{Append: true}, files(want[6:]...))
	var got []string
	err := h.Files(t.Context(), m, func(name string, _ int64, r io.Reader) error {
		b, err := io.ReadAll(r)
		got = append(got, name, string(b))
		return err
	})
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%d files, %v", len(got)/2, err)
	}
}

func TestRefused(t *testing.T) {
	h := fresh(t)
	ctx := t.Context()
	h.put(t, "notes", data.PutOptions{}, files("a", "x\n"))
	for name, c := range map[string]struct {
		name lode.Name
		o    data.PutOptions
		in   *uploads
		want lode.Kind
	}{
		"name":            {"No", data.PutOptions{}, files("a", "x"), lode.Invalid},
		"append to none":  {"nots", data.PutOptions{Append: true}, files("a", "x"), lode.NotFound},
		"form of append":  {"notes", data.PutOptions{Append: true, Spec: lode.Dataset{Records: "csv"}}, files("a", "x"), lode.Invalid},
		"unknown form":    {"n", data.PutOptions{Spec: lode.Dataset{Records: "parquet"}}, files("a", "x"), lode.Invalid},
		"small shard":     {"n", data.PutOptions{Spec: lode.Dataset{Shard: 1}}, files("a", "x"), lode.Invalid},
		"large shard":     {"n", data.PutOptions{Spec: lode.Dataset{Shard: 1 << 30}}, files("a", "x"), lode.Invalid},
		"keep":            {"n", data.PutOptions{Spec: lode.Dataset{Keep: -1}}, files("a", "x"), lode.Invalid},
		"no file no form": {"n", data.PutOptions{}, files(), lode.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := h.Put(ctx, "default", c.name, c.o, c.in)
			storetest.Kind(t, err, c.want)
		})
	}
	_, err := h.Show(ctx, "default", "nots")
	if lode.AsError(err).Hint != `did you mean "notes"?` {
		t.Errorf("hint %q", lode.AsError(err).Hint)
	}
	if got := h.cat(t, "notes", 0); got != "x\n" {
		t.Errorf("after the refusals: %q", got)
	}
}

// Appends at once are all kept, each once, whoever wins.
func TestAppendsAtOnce(t *testing.T) {
	h := fresh(t)
	h.put(t, "notes", data.PutOptions{Spec: lode.Dataset{Keep: 100}}, files("a", "first\n"))
	const writers, each = 4, 5
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				_, err := h.Put(t.Context(), "default", "notes", data.PutOptions{Append: true}, files("a", fmt.Sprintf("%d/%d\n", w, i)))
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	lines := strings.Fields(h.cat(t, "notes", 0))
	slices.Sort(lines)
	if len(lines) != 1+writers*each || len(slices.Compact(lines)) != 1+writers*each {
		t.Errorf("%d lines: %q", len(lines), lines)
	}
	if m, _, _ := h.Manifest(t.Context(), "default", "notes", 0); m.Version != 1+writers*each {
		t.Errorf("version %d", m.Version)
	}
}

// lossy are registers whose answers get lost after the change was made.
type lossy struct {
	*data.MemRegisters
	lose bool
}

func (l *lossy) Swap(ctx context.Context, key string, value []byte, expect uint64) (uint64, error) {
	rev, err := l.MemRegisters.Swap(ctx, key, value, expect)
	if l.lose && err == nil {
		return 0, lode.Errorf(lode.Unavailable, "the answer was lost")
	}
	return rev, err
}

// An append whose acknowledgement was lost is not done twice.
func TestLostAnswer(t *testing.T) {
	regs := &lossy{MemRegisters: new(data.MemRegisters)}
	h := open(t, t.TempDir(), regs)
	h.put(t, "notes", data.PutOptions{}, files("a", "1\n"))
	regs.lose = true
	h.put(t, "notes", data.PutOptions{Append: true}, files("a", "2\n"))
	if got := h.cat(t, "notes", 0); got != "1\n2\n" {
		t.Errorf("%q", got)
	}
}

// numbered are n lines, no two the same, so that no two shards are.
func numbered(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "line number %d\n", i)
	}
	return b.String()
}

func TestDamagedShardIsNamed(t *testing.T) {
	h := fresh(t)
	m := h.put(t, "notes", data.PutOptions{Spec: lode.Dataset{Shard: data.MinShard}}, files("a", numbered(20_000)))
	if len(m.Shards) < 3 {
		t.Fatalf("%d shards", len(m.Shards))
	}
	d := m.Shards[1].Digest.String()
	path := filepath.Join(h.dir, "blobs", d[:2], d)
	for _, c := range []struct {
		name  string
		spoil func() error
	}{
		{"corrupted", func() error {
			return os.WriteFile(path, []byte(strings.Repeat("x", int(m.Shards[1].Bytes))), 0o644)
		}},
		{"truncated", func() error { return os.Truncate(path, 1000) }},
		{"missing", func() error { return os.Remove(path) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			os.Chmod(path, 0o644)
			if err := c.spoil(); err != nil {
				t.Fatal(err)
			}
			err := h.Cat(t.Context(), m, io.Discard)
			storetest.Kind(t, err, lode.Damaged)
			for _, say := range []string{"shard 1", "notes", d} {
				if !strings.Contains(err.Error(), say) {
					t.Errorf("%v does not say %q", err, say)
				}
			}
		})
	}
}

func TestCollect(t *testing.T) {
	h := fresh(t)
	ctx := t.Context()
	count := func() (n int) {
		for _, err := range h.store.List(ctx) {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		return n
	}
	h.put(t, "notes", data.PutOptions{Spec: lode.Dataset{Keep: 1}}, files("a", "old\n"))
	h.put(t, "notes", data.PutOptions{}, files("a", "new\n"))
	mine, err := h.store.PutBytes(ctx, []byte("somebody else's artifact"))
	if err != nil {
		t.Fatal(err)
	}
	roots := func(context.Context) iter.Seq2[lode.Digest, error] {
		return func(yield func(lode.Digest, error) bool) { yield(mine, nil) }
	}
	if did, err := h.Collect(ctx, time.Hour, roots); err != nil || did.Blobs != 0 || count() != 5 {
		t.Fatalf("young blobs: %+v, %v, %d left", did, err, count())
	}
	broken := func(context.Context) iter.Seq2[lode.Digest, error] {
		return func(yield func(lode.Digest, error) bool) {
			yield(lode.Digest{}, lode.Errorf(lode.Unavailable, "no answer"))
		}
	}
	time.Sleep(5 * time.Millisecond)
	_, err = h.Collect(ctx, time.Nanosecond, broken)
	storetest.Kind(t, err, lode.Unavailable)
	if count() != 5 {
		t.Fatal("something was deleted although a root could not be read")
	}
	did, err := h.Collect(ctx, time.Nanosecond, roots)
	if err != nil || did.Blobs != 2 || count() != 3 { // the old shard, its manifest
		t.Fatalf("%+v, %v, %d left", did, err, count())
	}
	if got := h.cat(t, "notes", 0); got != "new\n" {
		t.Errorf("%q", got)
	}
	if _, err := h.Remove(ctx, "default", "notes", true); err != nil {
		t.Fatal(err)
	}
	_, err = h.Restore(ctx, "default", "notes")
	storetest.Kind(t, err, lode.NotFound)
	if did, err := h.Collect(ctx, time.Nanosecond, roots); err != nil || did.Blobs != 2 || count() != 1 {
		t.Fatalf("after rm: %+v, %v, %d left", did, err, count())
	}
}

func TestRemoveAndRestore(t *testing.T) {
	h := fresh(t)
	ctx := t.Context()
	h.put(t, "notes", data.PutOptions{}, files("a", "old\n"))
	for range 2 {
		if head, err := h.Remove(ctx, "default", "notes", false); err != nil || head.Newest().Number != 1 {
			t.Fatalf("%+v, %v", head, err)
		}
		_, err := h.Show(ctx, "default", "notes")
		storetest.Kind(t, err, lode.NotFound)
		if all, err := h.List(ctx, ""); err != nil || len(all) != 0 {
			t.Errorf("a removed dataset is listed: %+v, %v", all, err)
		}
		time.Sleep(2 * time.Millisecond)
		if did, err := h.Collect(ctx, time.Nanosecond); err != nil || did.Blobs != 0 {
			t.Fatalf("collected although it can come back: %+v, %v", did, err)
		}
		if _, err := h.Restore(ctx, "default", "notes"); err != nil {
			t.Fatal(err)
		}
		if got := h.cat(t, "notes", 0); got != "old\n" {
			t.Errorf("restored: %q", got)
		}
	}
	if _, err := h.Remove(ctx, "default", "notes", false); err != nil {
		t.Fatal(err)
	}
	h.put(t, "notes", data.PutOptions{}, files("a", "another\n"))
	_, err := h.Restore(ctx, "default", "notes")
	storetest.Kind(t, err, lode.Conflict)
	later, err := data.New(data.Config{Store: h.store, Registers: h.regs, Now: func() time.Time { return time.Now().Add(data.DefaultUndo + time.Minute) }})
	if err != nil {
		t.Fatal(err)
	}
	if did, err := later.Collect(ctx, time.Nanosecond); err != nil || did.Blobs != 2 {
		t.Errorf("after a week: %+v, %v", did, err)
	}
	if got := h.cat(t, "notes", 0); got != "another\n" {
		t.Errorf("%q", got)
	}
}

func TestReadShard(t *testing.T) {
	h := fresh(t)
	m := h.put(t, "notes", data.PutOptions{Spec: lode.Dataset{Shard: data.MinShard}}, files("a", numbered(10_000)))
	var shard bytes.Buffer
	if err := h.CatShard(t.Context(), m, 1, &shard); err != nil {
		t.Fatal(err)
	}
	size := int64(shard.Len())
	for _, c := range []struct {
		offset, length int64
		want           string
	}{
		{0, 10, shard.String()[:10]}, {5, 0, ""}, {size - 3, 100, shard.String()[size-3:]}, {size, 1, ""}, {0, 1 << 40, shard.String()},
	} {
		got, err := h.ReadShard(t.Context(), m, 1, c.offset, c.length)
		if err != nil || string(got) != c.want {
			t.Errorf("%d bytes at %d: %d bytes, %v", c.length, c.offset, len(got), err)
		}
	}
	for _, c := range []struct {
		shard          int
		offset, length int64
		want           lode.Kind
	}{{-1, 0, 1, lode.NotFound}, {len(m.Shards), 0, 1, lode.NotFound}, {0, -1, 1, lode.Invalid}, {0, 0, -1, lode.Invalid}, {1, size + 1, 1, lode.Invalid}} {
		_, err := h.ReadShard(t.Context(), m, c.shard, c.offset, c.length)
		storetest.Kind(t, err, c.want)
	}
	storetest.Kind(t, h.CatShard(t.Context(), m, len(m.Shards), io.Discard), lode.NotFound)
	_, err := h.Index(t.Context(), m, -1)
	storetest.Kind(t, err, lode.NotFound)
	_, err = h.Index(t.Context(), m, 0)
	storetest.Kind(t, err, lode.Invalid)
}

// A put that took longer than a collection waits for it notices what it lost.
func TestCollectedDuringALongPut(t *testing.T) {
	h := fresh(t)
	late := time.Duration(0)
	slow, err := data.New(data.Config{Store: h.store, Registers: h.regs, Now: func() time.Time { late += time.Hour; return time.Now().Add(late) }})
	if err != nil {
		t.Fatal(err)
	}
	in := &hooked{uploads: files("a", numbered(10_000), "b", numbered(1)), before: func() {
		for gone := 0; gone == 0; time.Sleep(time.Millisecond) { // the first shard is becoming durable
			for info, err := range h.store.List(t.Context()) {
				if err != nil {
					t.Error(err)
				}
				if err := h.store.Delete(t.Context(), info.Digest); err != nil {
					t.Error(err)
				}
				gone++
			}
		}
	}}
	_, err = slow.Put(t.Context(), "default", "notes", data.PutOptions{Spec: lode.Dataset{Shard: data.MinShard, Records: "files"}}, in)
	storetest.Kind(t, err, lode.Unavailable)
	_, err = h.Show(t.Context(), "default", "notes")
	storetest.Kind(t, err, lode.NotFound)
}

// hooked does something before the upload ends.
type hooked struct {
	*uploads
	before func()
}

func (h *hooked) Next() (string, int64, io.Reader, error) {
	name, size, r, err := h.uploads.Next()
	if err == io.EOF {
		h.before()
	}
	return name, size, r, err
}

func TestCancelledPut(t *testing.T) {
	h := fresh(t)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := h.Put(ctx, "default", "notes", data.PutOptions{Progress: func(data.Progress) { cancel() }}, files("a", "x\n", "b", "y\n"))
	storetest.Kind(t, err, lode.Cancelled)
	_, err = h.Show(t.Context(), "default", "notes")
	storetest.Kind(t, err, lode.NotFound)
}
