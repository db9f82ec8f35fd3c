package store_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"lode"
	"lode/store"
	"lode/store/storetest"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("STORE_TEST_CHILD"); dir != "" {
		writeForever(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

func openDir(t *testing.T, path string) *store.Dir {
	t.Helper()
	h, err := store.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func open(t *testing.T, cfg store.Config) *store.Store {
	t.Helper()
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s, err := store.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestHomes(t *testing.T) {
	t.Run("mem", func(t *testing.T) {
		storetest.Home(t, func(*testing.T) store.Home { return new(store.Mem) })
	})
	t.Run("dir", func(t *testing.T) {
		storetest.Home(t, func(t *testing.T) store.Home { return openDir(t, t.TempDir()) })
	})
}

func TestStores(t *testing.T) {
	t.Run("mem", func(t *testing.T) {
		storetest.Store(t, func(t *testing.T) *store.Store {
			return open(t, store.Config{Home: new(store.Mem), Cache: t.TempDir()})
		})
	})
	t.Run("dir", func(t *testing.T) {
		storetest.Store(t, func(t *testing.T) *store.Store {
			return open(t, store.Config{Home: openDir(t, t.TempDir())})
		})
	})
}

func TestConfig(t *testing.T) {
	_, err := store.Open(store.Config{})
	storetest.Kind(t, err, lode.Invalid)
	_, err = store.Open(store.Config{Home: new(store.Mem)})
	storetest.Kind(t, err, lode.Invalid)
}

// spoil overwrites one byte of a blob's file, or cuts it.
func spoil(t *testing.T, path string, cut bool) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if cut {
		b = b[:len(b)/2]
	}
	os.Chmod(path, 0o644)
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func pathOf(t *testing.T, s *store.Store, d lode.Digest) string {
	t.Helper()
	b, err := s.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	return b.Path()
}

func TestDamagedAtHome(t *testing.T) {
	for name, cut := range map[string]bool{"corrupted": false, "truncated": true} {
		t.Run(name, func(t *testing.T) {
			s := open(t, store.Config{Home: openDir(t, t.TempDir())})
			content := storetest.Bytes(100_000, 1)
			d, err := s.PutBytes(t.Context(), content)
			if err != nil {
				t.Fatal(err)
			}
			path := pathOf(t, s, d)
			spoil(t, path, cut)
			for range 2 { // the second time too
				_, err = s.Open(t.Context(), d)
				storetest.Kind(t, err, lode.Damaged)
				if !strings.Contains(err.Error(), d.String()) || !strings.Contains(err.Error(), path) {
					t.Errorf("the error names neither blob nor file: %v", err)
				}
			}
			if _, err := s.PutBytes(t.Context(), content); err != nil {
				t.Fatal(err)
			}
			if err := s.Verify(t.Context(), d); err != nil {
				t.Errorf("putting the same bytes did not repair it: %v", err)
			}
		})
	}
}

func TestDamagedInCache(t *testing.T) {
	for name, cut := range map[string]bool{"corrupted": false, "truncated": true} {
		t.Run(name, func(t *testing.T) {
			cache := t.TempDir()
			s := open(t, store.Config{Home: new(store.Mem), Cache: cache})
			content := storetest.Bytes(100_000, 1)
			d, err := s.PutBytes(t.Context(), content)
			if err != nil {
				t.Fatal(err)
			}
			spoil(t, pathOf(t, s, d), cut)
			b, err := s.Open(t.Context(), d)
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			if got, _ := io.ReadAll(b); !bytes.Equal(got, content) {
				t.Error("wrong bytes were handed out")
			}
			if b.Fetched() != int64(len(content)) {
				t.Errorf("Fetched = %d", b.Fetched())
			}
			if bad, _ := os.ReadDir(filepath.Join(cache, "bad")); len(bad) != 1 {
				t.Errorf("%d files in quarantine, want 1", len(bad))
			}
		})
	}
}

// A copy whose time and size are as before is caught by Verify.
func TestVerifyOnDemand(t *testing.T) {
	s := open(t, store.Config{Home: openDir(t, t.TempDir())})
	d, err := s.PutBytes(t.Context(), storetest.Bytes(1000, 1))
	if err != nil {
		t.Fatal(err)
	}
	path := pathOf(t, s, d)
	fi, _ := os.Stat(path)
	spoil(t, path, false)
	os.Chtimes(path, fi.ModTime(), fi.ModTime())
	storetest.Kind(t, s.Verify(t.Context(), d), lode.Damaged)
}

// wrongHome hands out other bytes than were put.
type wrongHome struct{ *store.Mem }

func (wrongHome) Get(context.Context, lode.Digest) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader("something else")), nil
}

func TestDamagedRemotely(t *testing.T) {
	h := wrongHome{new(store.Mem)}
	cache := t.TempDir()
	s := open(t, store.Config{Home: h, Cache: cache})
	d, err := s.PutBytes(t.Context(), []byte("content"))
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(pathOf(t, s, d))
	_, err = s.Open(t.Context(), d)
	storetest.Kind(t, err, lode.Damaged)
	if !strings.Contains(err.Error(), d.String()) || !strings.Contains(err.Error(), h.String()) {
		t.Errorf("the error names neither blob nor home: %v", err)
	}
	empty(t, filepath.Join(cache, "tmp"))
}

func empty(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("%s holds %d leftovers (%v)", dir, len(left), err)
	}
}

// A file cut while it is mapped: an error, not a dead process.
func TestViewOfATruncatedFile(t *testing.T) {
	s := open(t, store.Config{Home: openDir(t, t.TempDir())})
	d, err := s.PutBytes(t.Context(), storetest.Bytes(1<<20, 1))
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	sum := 0
	err = b.View(func(content []byte) error {
		os.Chmod(b.Path(), 0o644)
		if err := os.Truncate(b.Path(), 0); err != nil {
			return err
		}
		for _, c := range content {
			sum += int(c)
		}
		return nil
	})
	storetest.Kind(t, err, lode.Damaged)
}

func TestBudget(t *testing.T) {
	cache := t.TempDir()
	cfg := store.Config{Home: new(store.Mem), Cache: cache, Budget: 3500}
	s := open(t, cfg)
	var ds []lode.Digest
	for i := range 3 {
		d, err := s.PutBytes(t.Context(), storetest.Bytes(1000, uint64(i)))
		if err != nil {
			t.Fatal(err)
		}
		ds = append(ds, d)
	}
	inUse, err := s.Open(t.Context(), ds[0]) // also the most recently used now
	if err != nil {
		t.Fatal(err)
	}
	for i := 3; i < 8; i++ {
		if _, err := s.PutBytes(t.Context(), storetest.Bytes(1000, uint64(i))); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.Stats().Cached; got != 3000 {
		t.Errorf("%d bytes cached, want 3000", got)
	}
	if _, err := os.Stat(inUse.Path()); err != nil {
		t.Errorf("a blob in use was evicted: %v", err)
	}
	inUse.Close()
	b, err := s.Open(t.Context(), ds[1])
	if err != nil {
		t.Fatal(err)
	}
	if b.Fetched() != 1000 {
		t.Errorf("an evicted blob: Fetched = %d", b.Fetched())
	}
	b.Close()
	s.Close()
	cfg.Budget = 1500 // a smaller budget at the next start
	if got := open(t, cfg).Stats().Cached; got != 1000 {
		t.Errorf("%d bytes cached after a restart, want 1000", got)
	}
	files := 0
	filepath.WalkDir(filepath.Join(cache, "blobs"), func(_ string, e fs.DirEntry, _ error) error {
		if !e.IsDir() {
			files++
		}
		return nil
	})
	if files != 1 {
		t.Errorf("%d files in the cache, want 1", files)
	}
}

func TestSweep(t *testing.T) {
	dir := t.TempDir()
	s := open(t, store.Config{Home: openDir(t, dir)})
	w, err := s.Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, "still being written")
	leftover := filepath.Join(dir, "tmp", "w-dead")
	if err := os.WriteFile(leftover, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	openDir(t, dir) // another process of the same directory
	if _, err := os.Stat(leftover); err == nil {
		t.Error("a dead writer's file was left")
	}
	if _, _, err := w.Commit(); err != nil {
		t.Errorf("a living writer was swept: %v", err)
	}
}

// Quarantined copies are kept for a week.
func TestQuarantineEnds(t *testing.T) {
	dir := t.TempDir()
	openDir(t, dir)
	name := func(age time.Duration) string {
		return filepath.Join(dir, "bad", fmt.Sprintf("%064x.%d", 1, time.Now().Add(-age).UnixNano()))
	}
	old, young := name(8*24*time.Hour), name(time.Hour)
	for _, path := range []string{old, young} {
		if err := os.WriteFile(path, []byte("damaged"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	openDir(t, dir)
	if _, err := os.Stat(old); !os.IsNotExist(err) {
		t.Errorf("an old copy: %v", err)
	}
	if _, err := os.Stat(young); err != nil {
		t.Error(err)
	}
}

// slowHome counts fetches, so that one fetch can be seen to serve all.
type slowHome struct {
	*store.Mem
	mu   sync.Mutex
	gets int
}

func (h *slowHome) Get(ctx context.Context, d lode.Digest) (io.ReadCloser, error) {
	h.mu.Lock()
	h.gets++
	h.mu.Unlock()
	time.Sleep(20 * time.Millisecond)
	return h.Mem.Get(ctx, d)
}

func TestOneFetchForAll(t *testing.T) {
	h := &slowHome{Mem: new(store.Mem)}
	d, err := open(t, store.Config{Home: h, Cache: t.TempDir()}).PutBytes(t.Context(), storetest.Bytes(10_000, 1))
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, store.Config{Home: h, Cache: t.TempDir()})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			b, err := s.Open(t.Context(), d)
			if err != nil {
				t.Error(err)
				return
			}
			b.Close()
		})
	}
	wg.Wait()
	if h.gets != 1 {
		t.Errorf("%d fetches, want 1", h.gets)
	}
}
