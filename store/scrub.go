package store

import (
	"context"
	"os"

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
