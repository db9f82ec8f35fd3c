package lode

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Kind classes what went wrong. It is the same word in the HTTP header
// Lode-Error, in problem+json, in the SDKs and in `-o json` of a failed
// command.
type Kind string

// The kinds, with their HTTP status and the exit code of the command line.
const (
	Invalid         Kind = "invalid"         // 400, 2: the request cannot be understood
	Unauthenticated Kind = "unauthenticated" // 401, 4: no token, or an unknown one
	Denied          Kind = "denied"          // 403, 4: the token, origin or binding does not allow it
	NotFound        Kind = "not_found"       // 404, 3
	BadMethod       Kind = "bad_method"      // 405, 2: the door does not take this HTTP method
	Conflict        Kind = "conflict"        // 409, 5: somebody else was first, or owns the name
	Gone            Kind = "gone"            // 410, 3: it existed and was removed
	Precondition    Kind = "precondition"    // 412, 5: If-Match, or an expected revision, does not hold
	TooLarge        Kind = "too_large"       // 413, 2
	Misdirected     Kind = "misdirected"     // 421, 4: a Host that this node does not answer for
	KeyReused       Kind = "key_reused"      // 422, 5: an idempotency key with another body
	Overloaded      Kind = "overloaded"      // 429, 6: a queue, a limit or a quota is full; see RetryAfter
	Cancelled       Kind = "cancelled"       // 499, 8: the caller went away or cancelled
	Internal        Kind = "internal"        // 500, 10: Lode's own fault
	Crashed         Kind = "crashed"         // 502, 1: the user's code failed; see Guest
	Unavailable     Kind = "unavailable"     // 503, 6: draining, no quorum, no such device, reserved operation
	Deadline        Kind = "deadline"        // 504, 7
	Full            Kind = "full"            // 507, 6: a disk or a store is full
	Damaged         Kind = "damaged"         // 500, 10: bytes at rest do not match their checksum
)

var kinds = map[Kind]struct {
	status, exit int
	retry        bool
	title        string
}{
	Invalid:         {400, 2, false, "the request is not valid"},
	Unauthenticated: {401, 4, false, "a token is needed"},
	Denied:          {403, 4, false, "not allowed"},
	NotFound:        {404, 3, false, "not found"},
	BadMethod:       {405, 2, false, "method not allowed"},
	Conflict:        {409, 5, false, "conflict"},
	Gone:            {410, 3, false, "gone"},
	Precondition:    {412, 5, false, "precondition failed"},
	TooLarge:        {413, 2, false, "too large"},
	Misdirected:     {421, 4, false, "this node does not answer for that host"},
	KeyReused:       {422, 5, false, "idempotency key used with another body"},
	Overloaded:      {429, 6, true, "overloaded"},
	Cancelled:       {499, 8, false, "cancelled"},
	Internal:        {500, 10, false, "internal error"},
	Crashed:         {502, 1, false, "the function crashed"},
	Unavailable:     {503, 6, true, "not available"},
	Deadline:        {504, 7, false, "deadline exceeded"},
	Full:            {507, 6, true, "storage is full"},
	Damaged:         {500, 10, false, "stored bytes are damaged"},
}

// Kinds lists every kind, sorted.
func Kinds() []Kind {
	var ks []Kind
	for k := range kinds {
		ks = append(ks, k)
	}
	slices.Sort(ks)
	return ks
}

// Status is the HTTP status of k; 500 for an unknown kind.
func (k Kind) Status() int {
	if v, ok := kinds[k]; ok {
		return v.status
	}
	return 500
}

// ExitCode is the exit code of a command that ended with k; 10 for an unknown
// kind.
func (k Kind) ExitCode() int {
	if v, ok := kinds[k]; ok {
		return v.exit
	}
	return 10
}

// GuestError is what the user's code said of its own failure.
type GuestError struct {
	Type    string   `json:"type"`
	Message string   `json:"message"`
	Stack   []string `json:"stack,omitempty"`
}

// Error is the one error that crosses a room's border or leaves the node. Its
// JSON is RFC 9457 problem+json.
type Error struct {
	Kind       Kind
	Title      string // short; empty: the kind's own
	Detail     string // what happened, to whom; lower case, no period
	Hint       string // the next step for a person; may be empty
	Invocation InvocationID
	Trace      string // 32 hexadecimal digits, or empty
	RetryAfter time.Duration
	Guest      *GuestError // only with Crashed
	Err        error       // cause; not shown outside
}

// Errorf makes an Error; %w in format keeps the cause.
func Errorf(k Kind, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: k, Detail: err.Error(), Err: errors.Unwrap(err)}
}

// WithHint sets the hint and returns e.
func (e *Error) WithHint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

func (e *Error) Error() string {
	if e.Detail == "" {
		return kinds[e.Kind].title
	}
	return e.Detail
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is makes errors.Is(err, &Error{Kind: k}) compare kinds.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Kind == e.Kind && t.Detail == ""
}

// KindOf returns the kind of the first Error in err's chain; Internal for any
// other error, "" for nil.
func KindOf(err error) Kind {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Internal
}

// AsError returns the first Error in err's chain, or wraps err as Internal.
// It returns nil for nil.
func AsError(err error) *Error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{Kind: Internal, Detail: err.Error(), Err: err}
}

type problem struct {
	Type       string       `json:"type"`
	Title      string       `json:"title"`
	Status     int          `json:"status"`
	Detail     string       `json:"detail,omitempty"`
	Kind       Kind         `json:"kind"`
	Hint       string       `json:"hint,omitempty"`
	Invocation InvocationID `json:"invocation,omitempty"`
	Trace      string       `json:"trace,omitempty"`
	Retry      bool         `json:"retry"`
	RetryAfter float64      `json:"retry_after,omitempty"` // seconds
	Guest      *GuestError  `json:"guest,omitempty"`
}

// MarshalJSON writes problem+json.
func (e *Error) MarshalJSON() ([]byte, error) {
	k := kinds[e.Kind]
	p := problem{Type: "urn:lode:error:" + string(e.Kind), Title: e.Title, Status: e.Kind.Status(), Detail: e.Detail, Kind: e.Kind, Hint: e.Hint,
		Invocation: e.Invocation, Trace: e.Trace, Retry: k.retry, RetryAfter: e.RetryAfter.Seconds(), Guest: e.Guest}
	if p.Title == "" {
		p.Title = k.title
	}
	return json.Marshal(p)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (e *Error) UnmarshalJSON(b []byte) error {
	var p problem
	if err := json.Unmarshal(b, &p); err != nil {
		return err
	}
	*e = Error{Kind: p.Kind, Title: p.Title, Detail: p.Detail, Hint: p.Hint, Invocation: p.Invocation, Trace: p.Trace,
		RetryAfter: time.Duration(p.RetryAfter * float64(time.Second)), Guest: p.Guest}
	return nil
}

// Suggest returns the candidate nearest to word by edit distance, if it is
// near enough to be what was meant (a third of the word's length, at least
// one edit); else "".
func Suggest(word string, candidates []string) string {
	best, limit := "", max(1, len(word)/3)+1
	for _, c := range candidates {
		if d := distance(word, c); d < limit {
			best, limit = c, d
		}
	}
	return best
}

// distance is the Damerau-Levenshtein distance (adjacent swaps count one).
func distance(a, b string) int {
	two, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], two[j-2]+1)
			}
		}
		two, prev, cur = prev, cur, two
	}
	return prev[len(b)]
}
