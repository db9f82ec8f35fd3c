package job

import (
	"crypto/rand"
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
	// Where restricts the nodes: "node" is a node's name, "zone" its zone, others
	// are labels. A node must have them all.
	Where map[string]string
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
	Where     map[string]string `json:"where,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	// Coordinator is the Jobs that the job belongs to: another one, resuming
	// it, puts its own name here and so stops the first.
	Coordinator string `json:"coordinator,omitempty"`

	Created time.Time `json:"created"`
	Started time.Time `json:"started,omitzero"`
	Ended   time.Time `json:"ended,omitzero"`

	Shards  int   `json:"shards"`
	Done    int   `json:"done"`
	Running int   `json:"running"`
	Bytes   int64 `json:"bytes"`   // of all shards
	Records int64 `json:"records"` // of all shards

	// What it took, in bytes of shards. Each shard that is done is in Read, or
	// the node that worked on it had got it over the network.
	Read    int64 `json:"read"`              // worked on where they were, by attempts that count
	Fetched int64 `json:"fetched"`           // that a node got over the network, for any attempt
	Wasted  int64 `json:"wasted,omitempty"`  // worked on by attempts that do not count
	Partial int64 `json:"partial"`           // bytes of partial results that came from other nodes
	Sent    int64 `json:"sent,omitempty"`    // bytes of what other nodes were asked
	Retried int   `json:"retried"`           // shards tried again, once for each time
	Lost    int   `json:"lost,omitempty"`    // of those, because a node was lost
	Doubled int   `json:"doubled,omitempty"` // shards given to a second node because the first was slow

	// Nodes are those that worked, by name.
	Nodes []NodeShare `json:"nodes,omitempty"`

	Result     *Result     `json:"result,omitempty"` // when done
	Error      *lode.Error `json:"error,omitempty"`  // when failed
	Checkpoint lode.Digest `json:"checkpoint,omitzero"`
	CPU        Nanos       `json:"cpu"` // of guests
}

// Nanos is a duration in nanoseconds.
type Nanos = time.Duration

// NodeShare is what one node did for a job. Shards, Bytes and Read are of
// results that count.
type NodeShare struct {
	Node    lode.NodeID `json:"node"`
	Shards  int         `json:"shards"`
	Bytes   int64       `json:"bytes"`             // of those shards
	Read    int64       `json:"read"`              // of those, in shards that were there before
	Fetched int64       `json:"fetched"`           // that it got over the network
	Wasted  int64       `json:"wasted,omitempty"`  // worked on in vain
	Partial int64       `json:"partial,omitempty"` // bytes of its partial results, if it is another node
	Retried int         `json:"retried,omitempty"` // attempts after the first of a shard, there
	Lost    int         `json:"lost,omitempty"`    // shards that others had to do because it was lost
}

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
// not where they were worked on, partial results, and what nodes were asked.
// Of a node that was lost it knows what the node last told.
func (j *Job) Moved() int64 { return j.Fetched + j.Partial + j.Sent }

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
