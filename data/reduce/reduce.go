// Package reduce merges the partial results of a job's shards: the built-in
// reducers sum, count, min, max, merge and concat, and the word counts of
// data/words. Guest merges have the same shape and live in data/job.
//
// Promises: sums of whole numbers are exact, whatever their size. Floating
// point numbers are added in the order in which states are merged, so that a
// fixed order of merges gives the same bits in every run. Bytes that a reducer
// cannot read are Invalid, with the offset. It has no I/O.
package reduce

import (
	"bytes"
	"context"
	"strings"

	"lode"
	"lode/data/words"
)

// State is a partial result, of one shard or of a run of shards.
type State interface {
	// Merge folds in right, the state of the shards behind, and returns the
	// state of both. Neither is used again by the caller.
	Merge(ctx context.Context, right State) (State, error)
	// Encode writes the result and its media type.
	Encode() (body []byte, contentType string, err error)
	// Pack writes the state so that Reducer.Unpack gives one that merges to the
	// same bits. The bytes may be shared with the state.
	Pack() (body []byte, contentType string, err error)
}

// Reducer makes states. Implementations are safe for concurrent use.
type Reducer interface {
	// Zero is the state of no shard.
	Zero() State
	// Parse reads what a shard answered. body may be kept.
	Parse(body []byte, contentType string) (State, error)
	// Unpack reads what Pack of a state of this reducer wrote; Invalid for other
	// bytes. body may be kept.
	Unpack(body []byte, contentType string) (State, error)
}

// Names lists the built-in reducers.
func Names() []string { return []string{"sum", "count", "min", "max", "merge", "concat"} }

// ByName returns a built-in reducer:
//
//	sum     the sum of the partials, JSON numbers; an empty one is none
//	count   the number of lines of the partials' output
//	min max the smallest or greatest of the partials, JSON numbers; null for none
//	merge   the sum by key of JSON objects of numbers, or of such objects, to
//	        any depth; keys come out sorted
//	concat  the bytes of the partials, in the order of the shards
func ByName(name string) (Reducer, error) {
	switch name {
	case "sum":
		return sums{}, nil
	case "count":
		return counts{}, nil
	case "min":
		return extremes{-1}, nil
	case "max":
		return extremes{1}, nil
	case "merge":
		return merges{}, nil
	case "concat":
		return concats{}, nil
	}
	e := lode.Errorf(lode.Invalid, "%q is not a reducer: want %s, or guest", name, strings.Join(Names(), ", "))
	if near := lode.Suggest(name, append(Names(), "guest")); near != "" {
		e.WithHint("did you mean %q?", near)
	}
	return nil, e
}

const jsonType = "application/json"

// sums adds numbers.
type sums struct{}

type sum struct{ n exact }

func (sums) Zero() State { return &sum{} }

func (sums) Parse(body []byte, _ string) (State, error) {
	n, ok, err := parseNumber(body)
	if err != nil || !ok {
		return &sum{}, err
	}
	return &sum{n}, nil
}

func (s *sum) Merge(_ context.Context, right State) (State, error) {
	s.n.add(&right.(*sum).n)
	return s, nil
}

func (s *sum) Encode() ([]byte, string, error) {
	b, err := s.n.append(nil)
	return b, jsonType, err
}

// counts counts lines of output.
type counts struct{}

func (counts) Zero() State { return &sum{} }

func (counts) Parse(body []byte, _ string) (State, error) {
	n := bytes.Count(body, []byte{'\n'})
	if len(body) > 0 && body[len(body)-1] != '\n' {
		n++
	}
	return &sum{exact{i: int64(n)}}, nil
}

// extremes keeps the number whose comparison with the others is sign.
type extremes struct{ sign int }

type extreme struct {
	sign int
	has  bool
	n    exact
}

func (e extremes) Zero() State { return &extreme{sign: e.sign} }

func (e extremes) Parse(body []byte, _ string) (State, error) {
	n, ok, err := parseNumber(body)
	return &extreme{e.sign, ok, n}, err
}

func (e *extreme) Merge(_ context.Context, right State) (State, error) {
	r := right.(*extreme)
	if !e.has || r.has && r.n.compare(&e.n) == e.sign {
		return r, nil
	}
	return e, nil
}

func (e *extreme) Encode() ([]byte, string, error) {
	if !e.has {
		return []byte("null"), jsonType, nil
	}
	b, err := e.n.append(nil)
	return b, jsonType, err
}

// concats puts bytes behind each other.
type concats struct{}

// pieces are kept apart, so that a tree of merges copies nothing.
type pieces struct {
	list [][]byte
	kind string
}

func (concats) Zero() State { return &pieces{} }

func (concats) Parse(body []byte, contentType string) (State, error) {
	return &pieces{[][]byte{body}, contentType}, nil
}

func (p *pieces) Merge(_ context.Context, right State) (State, error) {
	r := right.(*pieces)
	p.list = append(p.list, r.list...)
	if p.kind == "" {
		p.kind = r.kind
	}
	return p, nil
}

func (p *pieces) Encode() ([]byte, string, error) {
	if p.kind == "" {
		p.kind = "application/octet-stream"
	}
	return bytes.Join(p.list, nil), p.kind, nil
}

// Words reduces the partials of the built-in word count to a JSON object.
func Words() Reducer { return wordCounts{} }

type wordCounts struct{}

// WordState is a state of Words.
type WordState struct{ *words.Counts }

var _ State = WordState{}

func (wordCounts) Zero() State { return WordState{new(words.Counts)} }

func (wordCounts) Parse(body []byte, _ string) (State, error) {
	c, err := words.Decode(body)
	return WordState{c}, err
}

// Merge implements State.
func (w WordState) Merge(_ context.Context, right State) (State, error) {
	return WordState{w.Counts.Merge(right.(WordState).Counts)}, nil
}

// Encode implements State.
func (w WordState) Encode() ([]byte, string, error) { return w.JSON(), jsonType, nil }

var (
	_ Reducer = sums{}
	_ Reducer = counts{}
	_ Reducer = extremes{}
	_ Reducer = merges{}
	_ Reducer = concats{}
	_ Reducer = wordCounts{}
)
