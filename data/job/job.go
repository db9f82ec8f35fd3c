package job

import (
	"context"
	"crypto/rand"
	mrand "math/rand/v2"
	"strings"
	"time"

	"lode"
)

// What is the code of a job.
type What struct {
	// Label is what people call it: "count@3", "inline", "builtin:words".
	Label string `json:"label"`
	// Builtin is a native job; "words" is the one there is. Function is then
	// its filter, if it is not nil.
	Builtin string `json:"builtin,omitempty"`
	// Function is the code; opaque here. It goes to the Runner.
	Function *lode.Function `json:"function,omitempty"`
	// Handler is the job in a module with several.
	Handler string `json:"handler,omitempty"`
}

// BuiltinWords is the What.Builtin of the native word count.
const BuiltinWords = "words"

// ParseBuiltin reads "builtin:words" and "builtin:words:FILTER"; FILTER names
// a deployed function or a folder, which the caller resolves. ok is false for
// what does not begin with "builtin:".
func ParseBuiltin(s string) (builtin, filter string, ok bool, err error) {
	rest, ok := strings.CutPrefix(s, "builtin:")
	if !ok {
		return "", "", false, nil
	}
	builtin, filter, _ = strings.Cut(rest, ":")
	if builtin != BuiltinWords {
		return "", "", true, lode.Errorf(lode.Invalid, "there is no built-in job %q", builtin).WithHint("there is builtin:words, and builtin:words:FILTER")
	}
	return builtin, filter, true, nil
}

// ReduceGuest merges with the code's own merge function.
const ReduceGuest = "guest"

// Spec asks for a job.
type Spec struct {
	Namespace lode.Namespace
	What      What
	Dataset   lode.Name
	Version   int // 0: the newest
	// Reduce is a name of data/reduce, ReduceGuest, or "" for concat (for the
	// built-in word count: its own).
	Reduce string
	// Limit bounds the shards that are worked on at once; 0: as many as cores.
	Limit int
	// Retries of one shard; 0 means 2, -1 none.
	Retries int
	// Attempt bounds one attempt at one shard; 0 means 10 minutes.
	Attempt time.Duration
	// Labels are the caller's own (an author, a target dataset); kept as given.
	Labels map[string]string
}

// Job is one job and how far it is.
type Job struct {
	ID        string            `json:"id"` // j-XXXXXXXX
	Namespace lode.Namespace    `json:"namespace"`
	State     lode.State        `json:"state"`
	What      What              `json:"what"`
	Dataset   lode.Name         `json:"dataset"`
	Version   int               `json:"version"`
	Manifest  lode.Digest       `json:"manifest"`
	Reduce    string            `json:"reduce"`
	Limit     int               `json:"limit,omitempty"`
	Retries   int               `json:"retries"`
	Attempt   time.Duration     `json:"attempt"`
	Labels    map[string]string `json:"labels,omitempty"`

	Created time.Time `json:"created"`
	Started time.Time `json:"started,omitzero"`
	Ended   time.Time `json:"ended,omitzero"`

	Shards  int   `json:"shards"`
	Done    int   `json:"done"`
	Running int   `json:"running"`
	Retried int   `json:"retried"`
	Bytes   int64 `json:"bytes"`   // of all shards
	Records int64 `json:"records"` // of all shards
	Read    int64 `json:"read"`    // bytes of shards worked on where they are
	Fetched int64 `json:"fetched"` // bytes of shards that had to come here
	Partial int64 `json:"partial"` // bytes of partial results

	Result     *Result     `json:"result,omitempty"` // when done
	Error      *lode.Error `json:"error,omitempty"`  // when failed
	Checkpoint lode.Digest `json:"checkpoint,omitzero"`
	CPU        Nanos       `json:"cpu"` // of guests
}

// Nanos is a duration in nanoseconds.
type Nanos = time.Duration

// Result is where a job's result is.
type Result struct {
	Size        int64       `json:"size"`
	ContentType string      `json:"content_type"`
	Digest      lode.Digest `json:"digest"`          // of the bytes, always
	Inline      []byte      `json:"inline,omitzero"` // the bytes, up to 4 KiB; longer ones are a blob
}

// inlineMax is the longest result that is kept in the register.
const inlineMax = 4096

// Moved is the bytes that crossed the network for the job: shards that were
// not here, and partial results.
func (j *Job) Moved() int64 { return j.Fetched + j.Partial }

// Over reports whether the job has ended.
func (j *Job) Over() bool {
	return j.State == lode.StateDone || j.State == lode.StateFailed || j.State == lode.StateCancelled
}

// Throughput is bytes of shards a second so far, 0 before the start.
func (j *Job) Throughput(now time.Time) float64 {
	if j.Started.IsZero() {
		return 0
	}
	if j.Over() {
		now = j.Ended
	}
	if s := now.Sub(j.Started).Seconds(); s > 0 {
		return float64(j.Read+j.Fetched) / s
	}
	return 0
}

// to is the one place where a job changes its state; see the package comment.
func (j *Job) to(s lode.State, now time.Time, err error) {
	if j.Over() {
		return
	}
	switch s {
	case lode.StateRunning:
		if j.Started.IsZero() {
			j.Started = now
		}
	case lode.StateFailed:
		j.Error = lode.AsError(err)
		j.Ended = now
	case lode.StateDone, lode.StateCancelled:
		j.Ended = now
	}
	j.State = s
	if j.Over() {
		j.Running = 0
	}
}

// newID is "j-" and eight characters of Crockford's base 32: 40 random bits.
func newID() string {
	const digits = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
	var b [8]byte
	rand.Read(b[:]) // never fails
	for i := range b {
		b[i] = digits[b[i]&31]
	}
	return "j-" + string(b[:])
}

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
