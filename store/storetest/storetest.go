// Package storetest is the contract of store.Home as tests: every driver, the
// one in memory included, passes Home, and every Store over it passes Store.
// Only tests import it.
package storetest

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/zeebo/blake3"

	"lode"
	"lode/store"
)

// Bytes returns n bytes that depend on seed alone.
func Bytes(n int, seed uint64) []byte {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	b := make([]byte, n)
	rand.NewChaCha8(key).Read(b)
	return b
}

// Digest is the name of b.
func Digest(b []byte) lode.Digest { return blake3.Sum256(b) }

// Kind fails the test unless err has the wanted kind.
func Kind(t *testing.T, err error, want lode.Kind) {
	t.Helper()
	if got := lode.KindOf(err); got != want {
		t.Fatalf("error kind %q, want %q (error: %v)", got, want, err)
	}
}

func section(b []byte) *io.SectionReader {
	return io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b)))
}

// Home checks a driver. fresh returns an empty home.
func Home(t *testing.T, fresh func(t *testing.T) store.Home) {
	for name, check := range map[string]func(*testing.T, store.Home){
		"round trip": roundTrip, "missing": missing, "again": again, "list": list, "cancelled": cancelled,
		"cut short": cutShort, "concurrent": concurrent,
	} {
		t.Run(name, func(t *testing.T) { check(t, fresh(t)) })
	}
}

func roundTrip(t *testing.T, h store.Home) {
	ctx := t.Context()
	for _, size := range []int{0, 1, 4095, 1 << 20, 5<<20 + 3} {
		content := Bytes(size, uint64(size))
		d := Digest(content)
		if err := h.Put(ctx, d, section(content)); err != nil {
			t.Fatal(err)
		}
		if got := read(t, h, d); !bytes.Equal(got, content) {
			t.Errorf("%d bytes came back as %d others", size, len(got))
		}
		info, err := h.Stat(ctx, d)
		if err != nil || info.Digest != d || info.Size != int64(size) || info.Modified.IsZero() {
			t.Errorf("Stat = %+v, %v", info, err)
		}
	}
}

func read(t *testing.T, h store.Home, d lode.Digest) []byte {
	t.Helper()
	r, err := h.Get(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func missing(t *testing.T, h store.Home) {
	d := Digest([]byte("never put"))
	_, err := h.Get(t.Context(), d)
	Kind(t, err, lode.NotFound)
	_, err = h.Stat(t.Context(), d)
	Kind(t, err, lode.NotFound)
	if err := h.Delete(t.Context(), d); err != nil {
		t.Errorf("deleting a missing blob: %v", err)
	}
}

// again: a second Put replaces what is there, which repairs a damaged blob;
// after Delete it is gone. A home that verifies what it is given refuses wrong
// content as Damaged.
func again(t *testing.T, h store.Home) {
	content := []byte("right")
	d := Digest(content)
	for _, c := range [][]byte{[]byte("wrong!"), content, content} {
		err := h.Put(t.Context(), d, section(c))
		if err != nil && (bytes.Equal(c, content) || lode.KindOf(err) != lode.Damaged) {
			t.Fatal(err)
		}
	}
	if got := read(t, h, d); !bytes.Equal(got, content) {
		t.Errorf("after the repair: %q", got)
	}
	if err := h.Delete(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	_, err := h.Stat(t.Context(), d)
	Kind(t, err, lode.NotFound)
}

func list(t *testing.T, h store.Home) {
	var want []string
	for i := range 20 {
		b := Bytes(10+i, uint64(i))
		if err := h.Put(t.Context(), Digest(b), section(b)); err != nil {
			t.Fatal(err)
		}
		want = append(want, Digest(b).String())
	}
	var got []string
	for info, err := range h.List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, info.Digest.String())
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("listed %d blobs, want %d", len(got), len(want))
	}
	n := 0
	for range h.List(t.Context()) { // ending early must not hang or panic
		if n++; n == 3 {
			break
		}
	}
}

func cancelled(t *testing.T, h store.Home) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b := []byte("late")
	Kind(t, h.Put(ctx, Digest(b), section(b)), lode.Cancelled)
	_, err := h.Get(ctx, Digest(b))
	Kind(t, err, lode.Cancelled)
	_, err = h.Stat(t.Context(), Digest(b))
	Kind(t, err, lode.NotFound)
}

// cutShort: a source that breaks in the middle leaves nothing visible.
func cutShort(t *testing.T, h store.Home) {
	d := Digest([]byte("whole"))
	src := io.NewSectionReader(broken{}, 0, 1<<20)
	if err := h.Put(t.Context(), d, src); err == nil {
		t.Fatal("a broken source was acknowledged")
	}
	_, err := h.Stat(t.Context(), d)
	Kind(t, err, lode.NotFound)
}

// broken yields half of its bytes.
type broken struct{}

func (broken) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > 1<<19 {
		return 0, io.ErrUnexpectedEOF
	}
	return len(p), nil
}

func concurrent(t *testing.T, h store.Home) {
	content := Bytes(100_000, 7)
	d := Digest(content)
	if err := h.Put(t.Context(), d, section(content)); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 5 {
				if err := h.Put(t.Context(), d, section(content)); err != nil {
					t.Error(err)
				}
				r, err := h.Get(t.Context(), d)
				if err != nil {
					t.Error(err)
					continue
				}
				got, err := io.ReadAll(r)
				if err != nil || !bytes.Equal(got, content) {
					t.Errorf("read beside writers: %d bytes, %v", len(got), err)
				}
				r.Close()
			}
		})
	}
	wg.Wait()
}
