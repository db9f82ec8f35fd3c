package job

import (
	"context"
	mrand "math/rand/v2"
	"time"

	"lode"
)

// Task is one attempt at one shard.
type Task struct {
	Job       string
	Namespace lode.Namespace
	Dataset   lode.Name
	Version   int
	What      What
	Shard     lode.Shard
	Index     int // of the shard in the manifest
	Attempt   int // 0, 1, 2 ...
	Records   lode.Records
	// Path is the shard's local file of Size bytes: verified, not written, and
	// there until Map returns.
	Path string
	Size int64
	// Files are the shard's names and borders; only for records "files".
	Files    *lode.FileIndex
	Deadline time.Time
}

// Partial is what a shard answered.
type Partial struct {
	Body        []byte
	ContentType string
}

// Runner runs guests. Implementations are safe for concurrent use, and give
// up soon after the context ends.
type Runner interface {
	// Map runs the code over one shard. Kinds Crashed, Internal, Unavailable,
	// Overloaded, Deadline and Damaged are worth another attempt; others end
	// the job.
	Map(ctx context.Context, t Task) (Partial, lode.Usage, error)
	// Merge folds two partials; a is of the shards before those of b. It must
	// give the same for the same arguments.
	Merge(ctx context.Context, ns lode.Namespace, w What, a, b []byte) ([]byte, error)
	// Keep asks a filter of the built-in word count about a batch of words;
	// see words.Question and words.Answer for the bytes.
	Keep(ctx context.Context, ns lode.Namespace, w What, words [][]byte) ([]bool, error)
}

// worthRetry reports whether another attempt may end better.
func worthRetry(err error) bool {
	switch lode.KindOf(err) {
	case lode.Crashed, lode.Internal, lode.Unavailable, lode.Overloaded, lode.Deadline, lode.Damaged:
		return true
	}
	return false
}

// retry calls f until it ends well, and at most retries times more while its
// error is worth it, with growing pauses between.
func retry(ctx context.Context, retries int, f func() error) error {
	for n := 0; ; n++ {
		err := f()
		if err == nil || n >= retries || !worthRetry(err) || ctx.Err() != nil {
			return err
		}
		pause := 50 * time.Millisecond << min(n, 6)
		select {
		case <-time.After(pause/2 + mrand.N(pause)):
		case <-ctx.Done():
			return lode.Errorf(lode.Cancelled, "try again: %w", ctx.Err())
		}
	}
}
