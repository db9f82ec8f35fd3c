package storetest

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"lode"
	"lode/store"
)

// Store checks the concrete type over a driver. fresh returns an empty store.
func Store(t *testing.T, fresh func(t *testing.T) *store.Store) {
	for name, check := range map[string]func(*testing.T, *store.Store){
		"put and open": putOpen, "upload cut short": uploadCut, "writer": writer, "in use": inUse,
		"collect": collect, "many at once": manyAtOnce, "closed": closed,
	} {
		t.Run(name, func(t *testing.T) { check(t, fresh(t)) })
	}
}

func putOpen(t *testing.T, s *store.Store) {
	content := Bytes(3<<20+1, 1)
	d, size, err := s.Put(t.Context(), bytes.NewReader(content))
	if err != nil || d != Digest(content) || size != int64(len(content)) {
		t.Fatalf("Put = %s, %d, %v", d, size, err)
	}
	b, err := s.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if got, err := io.ReadAll(b); err != nil || !bytes.Equal(got, content) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
	if got, err := os.ReadFile(b.Path()); err != nil || !bytes.Equal(got, content) {
		t.Errorf("Path holds %d bytes, %v", len(got), err)
	}
	if err := b.View(func(got []byte) error {
		if !bytes.Equal(got, content) {
			return errors.New("other bytes")
		}
		return nil
	}); err != nil {
		t.Errorf("View: %v", err)
	}
	_, err = s.Open(t.Context(), Digest([]byte("nobody")))
	Kind(t, err, lode.NotFound)
}

func uploadCut(t *testing.T, s *store.Store) {
	content := Bytes(1<<20, 2)
	cut := errors.New("cut")
	_, _, err := s.Put(t.Context(), io.MultiReader(bytes.NewReader(content[:1<<19]), failing{cut}))
	if !errors.Is(err, cut) {
		t.Fatalf("Put = %v, want the reader's error", err)
	}
	for info, err := range s.List(t.Context()) {
		t.Errorf("something is visible: %+v, %v", info, err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func writer(t *testing.T, s *store.Store) {
	w, err := s.Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, "hello ")
	io.WriteString(w, "world")
	if w.Size() != 11 {
		t.Errorf("Size = %d", w.Size())
	}
	d, _, err := w.Commit()
	if err != nil || d != Digest([]byte("hello world")) {
		t.Fatalf("Commit = %s, %v", d, err)
	}
	w.Abort() // nothing to abort any more
	if _, _, err := w.Commit(); err == nil {
		t.Error("a second Commit was accepted")
	}
	if ok, err := s.Has(t.Context(), d); !ok || err != nil {
		t.Errorf("Has = %v, %v", ok, err)
	}
	w, err = s.Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, "never")
	w.Abort()
	if ok, err := s.Has(t.Context(), Digest([]byte("never"))); ok || err != nil {
		t.Errorf("an aborted blob: Has = %v, %v", ok, err)
	}
}

func inUse(t *testing.T, s *store.Store) {
	d, err := s.PutBytes(t.Context(), []byte("busy"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	Kind(t, s.Delete(t.Context(), d), lode.Conflict)
	b.Close()
	b.Close()
	if err := s.Delete(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	_, err = s.Open(t.Context(), d)
	Kind(t, err, lode.NotFound)
}

func collect(t *testing.T, s *store.Store) {
	d, err := s.PutBytes(t.Context(), []byte("old or young"))
	if err != nil {
		t.Fatal(err)
	}
	if gone, err := s.Collect(t.Context(), d, time.Now().Add(-time.Hour)); gone || err != nil {
		t.Fatalf("a young blob: Collect = %v, %v", gone, err)
	}
	b, err := s.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	if gone, err := s.Collect(t.Context(), d, time.Now().Add(time.Hour)); gone || err != nil {
		t.Fatalf("an open blob: Collect = %v, %v", gone, err)
	}
	b.Close()
	if gone, err := s.Collect(t.Context(), d, time.Now().Add(time.Hour)); !gone || err != nil {
		t.Fatalf("an old blob: Collect = %v, %v", gone, err)
	}
}

func manyAtOnce(t *testing.T, s *store.Store) {
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			content := Bytes(50_000, uint64(i%3))
			d, err := s.PutBytes(t.Context(), content)
			if err != nil {
				t.Error(err)
				return
			}
			b, err := s.Open(t.Context(), d)
			if err != nil {
				t.Error(err)
				return
			}
			defer b.Close()
			if got, err := io.ReadAll(b); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	wg.Wait()
}

func closed(t *testing.T, s *store.Store) {
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := s.PutBytes(t.Context(), []byte("late"))
	Kind(t, err, lode.Unavailable)
}
