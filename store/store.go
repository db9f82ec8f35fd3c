package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zeebo/blake3"

	"lode"
)

// Config says where a Store keeps things.
type Config struct {
	// Home is where blobs are durable. Required.
	Home Home
	// Cache is the folder for copies of a home that is not on this machine.
	// Required for such a home, unused for a Dir.
	Cache string
	// Budget bounds the cache's bytes; 0 means 16 GiB. Blobs in use are never
	// evicted, so while more than that is open at once the cache is larger; it
	// shrinks as they are closed.
	Budget int64
	// Log gets warnings about quarantined copies; nil means slog.Default.
	Log *slog.Logger
}

// Store keeps blobs. It is safe for concurrent use and owns no goroutine.
type Store struct {
	home   Home
	remote Home  // home, or nil where its files are ours
	files  *tree // local files: the home's, or the cache's
	budget int64
	log    *slog.Logger
	closed atomic.Bool

	fetched, sent, hits, misses atomic.Int64

	mu    sync.Mutex
	keys  map[lode.Digest]*key
	ready map[lode.Digest]stamp // files verified by this process
	pins  map[lode.Digest]int   // open blobs
	lru   lru                   // what the cache holds; empty without one
}

// key is the lock of one digest while somebody wants it.
type key struct {
	ch    chan struct{} // holds one token while locked
	users int
}

// Open opens a store and sweeps what a killed process left half-written.
func Open(cfg Config) (*Store, error) {
	if cfg.Home == nil {
		return nil, lode.Errorf(lode.Invalid, "a store needs a home: a directory or a bucket")
	}
	s := &Store{home: cfg.Home, budget: cfg.Budget, log: cfg.Log, keys: map[lode.Digest]*key{},
		ready: map[lode.Digest]stamp{}, pins: map[lode.Digest]int{}, lru: newLRU()}
	if s.budget <= 0 {
		s.budget = 16 << 30
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	if l, ok := cfg.Home.(local); ok {
		s.files = l.files()
		return s, nil
	}
	if cfg.Cache == "" {
		return nil, lode.Errorf(lode.Invalid, "a store at %s needs a cache folder on this machine", cfg.Home)
	}
	t, err := openTree(cfg.Cache)
	if err != nil {
		return nil, err
	}
	s.remote, s.files = cfg.Home, t
	return s, s.loadCache()
}

// Close ends the store, and its home if that is an io.Closer: later calls fail
// with Unavailable, open blobs stay readable. Idempotent.
func (s *Store) Close() error {
	s.closed.Store(true)
	if c, ok := s.home.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

func (s *Store) check(ctx context.Context) error {
	if s.closed.Load() {
		return lode.Errorf(lode.Unavailable, "the store is closed")
	}
	return cancelled(ctx)
}

// cancelled turns a context's end into an error with its kind.
func cancelled(ctx context.Context) error {
	switch err := ctx.Err(); {
	case err == nil:
		return nil
	case errors.Is(err, context.DeadlineExceeded):
		return lode.Errorf(lode.Deadline, "stored bytes: %w", err)
	default:
		return lode.Errorf(lode.Cancelled, "stored bytes: %w", err)
	}
}

// lock takes d's key lock.
func (s *Store) lock(ctx context.Context, d lode.Digest) (unlock func(), err error) {
	s.mu.Lock()
	k := s.keys[d]
	if k == nil {
		k = &key{ch: make(chan struct{}, 1)}
		s.keys[d] = k
	}
	k.users++
	s.mu.Unlock()
	leave := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if k.users--; k.users == 0 {
			delete(s.keys, d)
		}
	}
	select {
	case k.ch <- struct{}{}:
		return func() { <-k.ch; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, cancelled(ctx)
	}
}

// Put stores what r yields and names it. It returns when the blob is durable;
// after an error nothing is visible. An error of r is returned as it is.
func (s *Store) Put(ctx context.Context, r io.Reader) (lode.Digest, int64, error) {
	w, err := s.Create(ctx)
	if err != nil {
		return lode.Digest{}, 0, err
	}
	defer w.Abort()
	if _, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, make([]byte, 256<<10)); err != nil {
		return lode.Digest{}, 0, err
	}
	return w.Commit()
}

// PutBytes stores b and names it.
func (s *Store) PutBytes(ctx context.Context, b []byte) (lode.Digest, error) {
	d, _, err := s.Put(ctx, bytes.NewReader(b))
	return d, err
}

// Open makes the blob a verified local file. The caller closes it.
func (s *Store) Open(ctx context.Context, d lode.Digest) (*Blob, error) {
	if err := s.check(ctx); err != nil {
		return nil, err
	}
	unlock, err := s.lock(ctx, d)
	if err != nil {
		return nil, err
	}
	defer unlock()
	s.pin(d)
	f, fetched, err := s.verified(ctx, d)
	if err != nil {
		s.unpin(d)
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		s.unpin(d)
		return nil, ioError("stat "+f.Name(), err)
	}
	return newBlob(d, f, fi.Size(), fetched, func() { s.unpin(d) }), nil
}

// verified opens d's local file with its checksum known to hold, and fetches
// it where it is missing or bad. The key lock is held.
func (s *Store) verified(ctx context.Context, d lode.Digest) (*os.File, int64, error) {
	f, err := s.openFile(ctx, d)
	switch {
	case err == nil:
		s.hits.Add(1)
		return f, 0, nil
	case s.remote == nil:
		return nil, 0, err
	case lode.KindOf(err) == lode.Damaged:
		bad, qerr := s.files.quarantine(d, time.Now())
		if qerr != nil {
			return nil, 0, qerr
		}
		s.forget(d)
		s.log.Warn("a cached blob was damaged and is fetched again", "err", err, "moved", bad)
	case lode.KindOf(err) != lode.NotFound:
		return nil, 0, err
	}
	s.misses.Add(1)
	n, err := s.fetch(ctx, d)
	if err != nil {
		return nil, 0, err
	}
	f, err = s.openFile(ctx, d)
	return f, n, err
}

// openFile opens the local file and checks it unless this process has.
func (s *Store) openFile(ctx context.Context, d lode.Digest) (*os.File, error) {
	path := s.files.path(d)
	f, err := os.Open(path)
	if isMissing(err) {
		return nil, notFound(d, s.files.root)
	}
	if err != nil {
		return nil, ioError("open "+path, err)
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, ioError("stat "+path, err)
	}
	s.mu.Lock()
	known := s.ready[d]
	s.mu.Unlock()
	if known == stampOf(fi) {
		return f, nil
	}
	got, err := hashFile(ctx, f)
	if err == nil && got != d {
		err = damaged(d, path, got, fi.Size())
	}
	if err != nil {
		f.Close()
		return nil, ioError("read "+path, err)
	}
	s.seen(d, stampOf(fi))
	return f, nil
}

// hashFile reads through the descriptor, not a mapping: a bad sector is then
// an error, not a signal.
func hashFile(ctx context.Context, f *os.File) (d lode.Digest, err error) {
	h := blake3.New()
	buf := make([]byte, 256<<10)
	for off := int64(0); ; {
		if err := cancelled(ctx); err != nil {
			return d, err
		}
		n, err := f.ReadAt(buf, off)
		h.Write(buf[:n])
		off += int64(n)
		if err == io.EOF {
			h.Sum(d[:0])
			return d, nil
		}
		if err != nil {
			return d, err
		}
	}
}

// Verify computes d's checksum again, whatever is known of it; for a cached
// blob that of the copy, which is replaced if it is bad.
func (s *Store) Verify(ctx context.Context, d lode.Digest) error {
	s.mu.Lock()
	delete(s.ready, d)
	s.mu.Unlock()
	b, err := s.Open(ctx, d)
	if err != nil {
		return err
	}
	return b.Close()
}

// ReadAll returns the content of a blob of at most limit bytes; TooLarge for
// a longer one.
func (s *Store) ReadAll(ctx context.Context, d lode.Digest, limit int64) ([]byte, error) {
	b, err := s.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	if b.Size() > limit {
		return nil, lode.Errorf(lode.TooLarge, "blob %s has %d bytes; at most %d are read here", d, b.Size(), limit)
	}
	out := make([]byte, b.Size())
	if _, err := io.ReadFull(b, out); err != nil {
		return nil, ioError("read "+b.Path(), err)
	}
	return out, nil
}

// Has reports whether the blob is at its home.
func (s *Store) Has(ctx context.Context, d lode.Digest) (bool, error) {
	_, err := s.Stat(ctx, d)
	if lode.KindOf(err) == lode.NotFound {
		return false, nil
	}
	return err == nil, err
}

// Stat describes the blob at its home.
func (s *Store) Stat(ctx context.Context, d lode.Digest) (Info, error) {
	if err := s.check(ctx); err != nil {
		return Info{}, err
	}
	return s.home.Stat(ctx, d)
}

// List yields every blob at the home, in no order.
func (s *Store) List(ctx context.Context) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		if err := s.check(ctx); err != nil {
			yield(Info{}, err)
			return
		}
		s.home.List(ctx)(yield)
	}
}

// Delete removes the blob from its home and the cache. A missing one is no
// error; one that is open here is a Conflict.
func (s *Store) Delete(ctx context.Context, d lode.Digest) error {
	_, err := s.remove(ctx, d, func(Info) bool { return true })
	return err
}

// Collect deletes the blob if it was last put before the given time and
// nobody has it open, and reports whether it did. A concurrent Put of the same
// content makes the blob young, so it is kept.
func (s *Store) Collect(ctx context.Context, d lode.Digest, before time.Time) (bool, error) {
	gone, err := s.remove(ctx, d, func(i Info) bool { return i.Modified.Before(before) })
	if lode.KindOf(err) == lode.Conflict {
		return false, nil
	}
	return gone, err
}

func (s *Store) remove(ctx context.Context, d lode.Digest, old func(Info) bool) (bool, error) {
	if err := s.check(ctx); err != nil {
		return false, err
	}
	unlock, err := s.lock(ctx, d)
	if err != nil {
		return false, err
	}
	defer unlock()
	s.mu.Lock()
	open := s.pins[d]
	s.mu.Unlock()
	if open > 0 {
		return false, lode.Errorf(lode.Conflict, "blob %s is in use", d).WithHint("try again when what reads it has ended")
	}
	info, err := s.home.Stat(ctx, d)
	if err == nil && !old(info) {
		return false, nil
	}
	if err != nil && lode.KindOf(err) != lode.NotFound {
		return false, err
	}
	missing := err != nil
	if err := s.home.Delete(ctx, d); err != nil {
		return false, err
	}
	s.forget(d)
	return !missing, s.files.remove(d)
}
