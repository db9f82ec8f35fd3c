package bus

import (
	"context"
	"fmt"
	"testing"
	"time"

	"lode"
)

func open(t testing.TB, dir string) *Bus {
	t.Helper()
	b, err := Open(t.Context(), Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wantKind(t testing.TB, err error, k lode.Kind) {
	t.Helper()
	if lode.KindOf(err) != k {
		t.Fatalf("kind %q, want %q (error: %v)", lode.KindOf(err), k, err)
	}
}

func TestTable(t *testing.T) {
	t.Parallel()
	dir, ctx := t.TempDir(), context.Background()
	b := open(t, dir)
	tab := must(b.Table(ctx, "things"))(t)
	r1 := must(tab.Create(ctx, "a/b c", []byte("1")))(t)
	_, err := tab.Create(ctx, "a/b c", []byte("2"))
	wantKind(t, err, lode.Conflict)
	r2 := must(tab.Update(ctx, "a/b c", []byte("3"), r1))(t)
	_, err = tab.Update(ctx, "a/b c", []byte("4"), r1)
	wantKind(t, err, lode.Precondition)
	wantKind(t, tab.Delete(ctx, "a/b c", r1), lode.Precondition)
	_, err = tab.Put(ctx, "big", make([]byte, MaxValue+1))
	wantKind(t, err, lode.TooLarge)
	must(tab.Put(ctx, "big", make([]byte, MaxValue)))(t)
	b.Close()

	b = open(t, dir)
	tab = must(b.Table(ctx, "things"))(t)
	e, ok, err := tab.Get(ctx, "a/b c")
	if err != nil || !ok || string(e.Value) != "3" || e.Rev != r2 {
		t.Fatalf("got %+v, %v, %v", e, ok, err)
	}
	if err := tab.Delete(ctx, "a/b c", r2); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := tab.Get(ctx, "a/b c"); ok || err != nil {
		t.Fatal("deleted key is there", err)
	}
	_, err = tab.Update(ctx, "a/b c", []byte("5"), r2)
	wantKind(t, err, lode.Precondition)
	r3 := must(tab.Create(ctx, "a/b c", []byte("6")))(t)
	if r3 <= r2 {
		t.Fatalf("revision %d after %d", r3, r2)
	}
}

func TestManyKeysAfterRestart(t *testing.T) {
	t.Parallel()
	dir, ctx := t.TempDir(), context.Background()
	b := open(t, dir)
	tab := must(b.Table(ctx, "many"))(t)
	start := time.Now()
	for i := range 1000 {
		must(tab.Put(ctx, fmt.Sprintf("ns%d/f%04d", i%2, i), []byte("x")))(t)
	}
	t.Log("1000 puts", time.Since(start))
	b.Close()
	start = time.Now()
	b = open(t, dir)
	t.Log("open", time.Since(start))
	tab = must(b.Table(ctx, "many"))(t)
	if got := must(tab.List(ctx, "ns1/"))(t); len(got) != 500 || got[0].Key != "ns1/f0001" {
		t.Fatalf("%d entries, first %+v", len(got), got[:1])
	}
	if got := must(tab.List(ctx, "ns1/f000"))(t); len(got) != 5 {
		t.Fatalf("%d entries", len(got))
	}
	t.Log("open and two lists", time.Since(start))
}
