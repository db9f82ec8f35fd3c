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
	// Peers are the other nodes of the cluster, asked for a copy before a home
	// that is far. A home of type *Replicas brings its own.
	Peers *Peers
	// Log gets warnings about quarantined copies; nil means slog.Default.
	Log *slog.Logger
}

// Store keeps blobs. It is safe for concurrent use and owns no goroutine.
type Store struct {
	home     Home
	replicas *Replicas // home, where that is what it is
	own      *tree     // files of the home that are on this machine, or nil
	cache    *tree     // copies of what is not, or nil for a Dir
	shelf    *Shelf    // what other nodes see of own and cache
	peers    *peers    // other nodes, or nil
	budget   int64
	log      *slog.Logger
	closed   atomic.Bool

	fetched, peered, sent, hits, misses atomic.Int64

	mu   sync.Mutex
	keys map[lode.Digest]*key
	pins map[lode.Digest]int // open blobs
	lru  lru                 // what the cache holds; empty without one
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
	s := &Store{home: cfg.Home, budget: cfg.Budget, log: cfg.Log, keys: map[lode.Digest]*key{}, pins: map[lode.Digest]int{}, lru: newLRU()}
	if s.budget <= 0 {
		s.budget = 16 << 30
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	if l, ok := cfg.Home.(local); ok {
		s.own = l.files()
	}
	if r, ok := cfg.Home.(*Replicas); ok {
		s.replicas, s.peers, s.shelf = r, r.peers, r.shelf
	} else {
		s.shelf = newShelf(s.own, s.log)
		if cfg.Peers != nil && s.own == nil {
			s.peers = newPeers(*cfg.Peers, s.shelf.count, s.log)
		}
	}
	if s.own != nil && s.replicas == nil {
		s.shelf.serves(s)
		return s, nil
	}
	if cfg.Cache == "" {
		return nil, lode.Errorf(lode.Invalid, "a store at %s needs a cache folder on this machine", cfg.Home)
	}
	t, err := openTree(cfg.Cache)
	if err != nil {
		return nil, err
	}
	s.cache = t
	s.shelf.serves(s)
	return s, s.loadCache()
}

// Close ends the store, and its home if that is an io.Closer: later calls fail
// with Unavailable, open blobs stay readable. Idempotent.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	if s.peers != nil {
		s.peers.close()
	}
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
		s.release(d)
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		s.release(d)
		return nil, ioError("stat "+f.Name(), err)
	}
	return newBlob(d, f, fi.Size(), fetched, func() { s.release(d) }, func() { s.doubt(d) }), nil
}

// verified opens d's local file with its checksum known to hold, and fetches
// it where it is missing or bad. The key lock is held.
func (s *Store) verified(ctx context.Context, d lode.Digest) (*os.File, int64, error) {
	if f, err := s.openOwn(ctx, d); f != nil || err != nil {
		return f, 0, err
	}
	f, err := s.cache.open(ctx, d)
	switch {
	case err == nil:
		s.hits.Add(1)
		return f, 0, nil
	case lode.KindOf(err) == lode.Damaged:
		bad, qerr := s.cache.quarantine(d, time.Now())
		if qerr != nil {
			return nil, 0, qerr
		}
		s.forget(d)
		s.shelf.count.quarantined.Add(1)
		s.log.Warn("a cached blob was damaged and is fetched again", "err", err, "moved", bad)
	case lode.KindOf(err) != lode.NotFound:
		return nil, 0, err
	}
	s.misses.Add(1)
	n, err := s.fetch(ctx, d)
	if err != nil {
		return nil, n, err
	}
	f, err = s.cache.open(ctx, d)
	return f, n, err
}

// openOwn opens a file of the home itself; nil, without an error, where the
// blob must come from elsewhere.
func (s *Store) openOwn(ctx context.Context, d lode.Digest) (*os.File, error) {
	if s.own == nil {
		return nil, nil
	}
	f, err := s.own.open(ctx, d)
	switch {
	case err == nil:
		s.hits.Add(1)
		return f, nil
	case s.replicas == nil:
		return nil, err
	case lode.KindOf(err) == lode.NotFound:
		return nil, nil
	case lode.KindOf(err) != lode.Damaged:
		return nil, err
	}
	if err := s.replicas.heal(ctx, d, err); err != nil {
		return nil, err
	}
	f, err = s.own.open(ctx, d)
	if lode.KindOf(err) == lode.NotFound {
		return nil, nil // another found it too, and fetches it now
	}
	return f, err
}

// hashFile reads through the descriptor, not a mapping: a bad sector is then
// an error, not a signal. pace, if not nil, is called before each read with
// its bytes at most.
func hashFile(ctx context.Context, f *os.File, pace func(int) error) (d lode.Digest, err error) {
	h := blake3.New()
	buf := make([]byte, 256<<10)
	for off := int64(0); ; {
		if err := cancelled(ctx); err != nil {
			return d, err
		}
		if pace != nil {
			if err := pace(len(buf)); err != nil {
				return d, err
			}
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

// doubt makes the next opening compute d's checksum again.
func (s *Store) doubt(d lode.Digest) {
	for _, t := range s.shelf.trees() {
		t.forget(d)
	}
}

// Verify computes d's checksum again, whatever is known of it; for a cached
// blob that of the copy, which is replaced if it is bad.
func (s *Store) Verify(ctx context.Context, d lode.Digest) error {
	s.doubt(d)
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
	_, err := s.remove(ctx, d, nil)
	return err
}

// Collect deletes the blob if it was last put before the given time and
// nobody has it open, and reports whether it did. A concurrent Put of the same
// content makes the blob young, so it is kept.
func (s *Store) Collect(ctx context.Context, d lode.Digest, before time.Time) (bool, error) {
	gone, err := s.remove(ctx, d, &before)
	if lode.KindOf(err) == lode.Conflict {
		return false, nil
	}
	return gone, err
}

// remove deletes d if it is older than before; nil: whatever its age.
func (s *Store) remove(ctx context.Context, d lode.Digest, before *time.Time) (bool, error) {
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
	gone, err := s.removeHome(ctx, d, before)
	if err != nil || before != nil && !gone {
		return gone, err
	}
	s.forget(d)
	if s.cache != nil {
		err = s.cache.remove(d)
	}
	return gone, err
}

// removeHome deletes d from its home, if it is older than before, and reports
// whether it did.
func (s *Store) removeHome(ctx context.Context, d lode.Digest, before *time.Time) (bool, error) {
	if s.replicas != nil {
		return s.replicas.deleteBefore(ctx, d, before)
	}
	info, err := s.home.Stat(ctx, d)
	if err == nil && before != nil && !info.Modified.Before(*before) {
		return false, nil
	}
	missing := lode.KindOf(err) == lode.NotFound
	if err != nil && (!missing || before != nil) {
		if missing {
			err = nil
		}
		return false, err
	}
	if s.own != nil {
		s.own.forget(d)
	}
	return !missing, s.home.Delete(ctx, d)
}
