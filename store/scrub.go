package store

import (
	"context"
	"os"
	"time"

	"lode"
)

// Scrubbed is what a Scrub found.
type Scrubbed struct {
	Blobs    int   `json:"blobs"` // replicas whose bytes were read
	Bytes    int64 `json:"bytes"`
	Bad      int   `json:"bad"`      // of them, those that did not match their name
	Repaired int   `json:"repaired"` // of the bad, those that another node had a good copy of
	// Trouble is the first reason why a bad one could not be repaired, or "".
	Trouble string `json:"trouble,omitempty"`
}

// Scrub reads every replica of this node, at that many bytes a second (0: as
// fast as the disk gives them), compares it with its name, and replaces the
// bad ones by good copies of other nodes. It finds what changes without
// anybody writing: decayed disks. The error is of this node.
func (r *Replicas) Scrub(ctx context.Context, bytesPerSecond int64) (Scrubbed, error) {
	var did Scrubbed
	var pace func(int) error
	if bytesPerSecond > 0 {
		budget := limiter(bytesPerSecond)
		pace = func(n int) error { return budget.WaitN(ctx, n) }
	}
	for info, err := range r.shelf.List(ctx) {
		if err != nil {
			return did, err
		}
		size, err := r.scrub(ctx, info.Digest, pace)
		if cerr := cancelled(ctx); cerr != nil {
			return did, cerr
		}
		if lode.KindOf(err) == lode.NotFound {
			continue // deleted meanwhile
		}
		did.Blobs++
		did.Bytes += size
		if err == nil {
			continue
		}
		did.Bad++
		if err := r.heal(ctx, info.Digest, err); err == nil {
			did.Repaired++
		} else if did.Trouble == "" {
			did.Trouble = err.Error()
		}
	}
	return did, nil
}

// scrub reads one replica. Any error but NotFound is damage: a file that
// cannot be read is as bad as one that reads wrong.
func (r *Replicas) scrub(ctx context.Context, d lode.Digest, pace func(int) error) (int64, error) {
	t := r.files()
	path := t.path(d)
	f, err := os.Open(path)
	if isMissing(err) {
		return 0, notFound(d, t.root)
	}
	if err != nil {
		return 0, ioError("open "+path, err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return 0, ioError("stat "+path, err)
	}
	got, err := hashFile(ctx, f, pace)
	if err != nil {
		t.forget(d)
		return fi.Size(), ioError("read "+path, err)
	}
	if got != d {
		t.forget(d)
		return fi.Size(), damaged(d, path, got, fi.Size())
	}
	t.seen(d, stampOf(fi))
	return fi.Size(), nil
}

// settle removes a replica that was deleted, and reports whether it did.
func (s *Shelf) settle(d lode.Digest) (int64, bool) {
	if s.cutoff(d).IsZero() {
		return 0, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	here, err := s.own.stat(d)
	if err != nil || here.Modified.After(s.cutoff(d)) || s.open(d) {
		return 0, false
	}
	if err := s.own.remove(d); err != nil {
		s.log.Warn("a deleted blob could not be removed", "digest", d, "err", err)
		return 0, false
	}
	return here.Size, true
}

// leave marks a replica as about to be dropped: it does not count for others
// any more. False for one that is open, or promised.
func (s *Shelf) leave(d lode.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open(d) || time.Now().Before(s.promised[d]) {
		return false
	}
	s.leaving[d] = true
	return true
}

// stay takes the mark away.
func (s *Shelf) stay(d lode.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.leaving, d)
}

// drop removes a replica that is marked; a put in between took the mark away.
func (s *Shelf) drop(d lode.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.leaving[d] || s.open(d) {
		return false
	}
	if err := s.own.remove(d); err != nil {
		s.log.Warn("a replica that is more than wanted could not be dropped", "digest", d, "err", err)
		return false
	}
	return true
}

// expire forgets promises that are over.
func (s *Shelf) expire(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for d, until := range s.promised {
		if now.After(until) {
			delete(s.promised, d)
		}
	}
}
