package lode

import "errors"

// Kind classes what went wrong. A Kind is an error itself, so that
// errors.Is(err, lode.NotFound) asks for it.
type Kind string

// The kinds; those of Lode's own errors.
const (
	Invalid         Kind = "invalid"
	Unauthenticated Kind = "unauthenticated"
	Denied          Kind = "denied"
	NotFound        Kind = "not_found"
	BadMethod       Kind = "bad_method"
	Conflict        Kind = "conflict"
	Gone            Kind = "gone"
	Precondition    Kind = "precondition"
	TooLarge        Kind = "too_large"
	Misdirected     Kind = "misdirected"
	KeyReused       Kind = "key_reused"
	Overloaded      Kind = "overloaded"
	Cancelled       Kind = "cancelled"
	Internal        Kind = "internal"
	Crashed         Kind = "crashed"
	Unavailable     Kind = "unavailable"
	Deadline        Kind = "deadline"
	Full            Kind = "full"
	Damaged         Kind = "damaged"
)

// Error is the word itself.
func (k Kind) Error() string { return string(k) }

// Error is a failed operation.
type Error struct {
	Kind   Kind
	Detail string // what happened, to whom
	Hint   string // the next step for a person; may be empty
	Status int    // HTTP status of a callee that answered with one; else 0
	Body   []byte // what that callee answered
	// Missing are the members of a group, or their ranks, that did not answer.
	Missing []string
}

func (e *Error) Error() string {
	if e.Detail == "" {
		return string(e.Kind)
	}
	return e.Detail
}

// Is reports whether target is e's Kind.
func (e *Error) Is(target error) bool {
	k, ok := target.(Kind)
	return ok && k == e.Kind
}

// KindOf is the kind of the first Error in err's chain, "" if there is none.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	var k Kind
	if errors.As(err, &k) {
		return k
	}
	return ""
}

// hintOf is the hint of the first Error in err's chain.
func hintOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Hint
	}
	return ""
}

// status is the HTTP status of k.
func (k Kind) status() int {
	for status := 400; status < 500; status++ {
		if kindOfStatus(status) == k {
			return status
		}
	}
	switch k {
	case Crashed:
		return 502
	case Unavailable:
		return 503
	case Deadline:
		return 504
	case Full:
		return 507
	}
	return 500
}

// kindOfStatus is the kind that an HTTP status stands for when a callee
// answers it; Crashed for a 5xx without a word of its own.
func kindOfStatus(status int) Kind {
	switch status {
	case 400:
		return Invalid
	case 401:
		return Unauthenticated
	case 403:
		return Denied
	case 404:
		return NotFound
	case 405:
		return BadMethod
	case 409:
		return Conflict
	case 410:
		return Gone
	case 412:
		return Precondition
	case 413:
		return TooLarge
	case 421:
		return Misdirected
	case 422:
		return KeyReused
	case 429:
		return Overloaded
	case 499:
		return Cancelled
	case 503:
		return Unavailable
	case 504:
		return Deadline
	case 507:
		return Full
	}
	if status < 500 {
		return Invalid
	}
	return Crashed
}
