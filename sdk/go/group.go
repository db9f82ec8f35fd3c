package lode

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"lode/sdk/abi"
)

// gathered is what one member of a group answered.
type gathered struct {
	Member string          `json:"member"`
	Status int             `json:"status"`
	Value  json.RawMessage `json:"value"`
}

// Gather calls a method of many agents at once and returns their answers in
// the order of members. If one fails the error joins one for each, and the
// answers of the others are there. If some do not answer before ctx ends, or
// in 30 s, it is Unavailable, and names them in Missing.
func Gather[Out any](ctx context.Context, members []string, method string, args ...any) ([]Out, error) {
	r, err := many(ctx, "gather", members, method, args)
	if err != nil {
		return nil, err
	}
	var list []gathered
	if err := json.Unmarshal(r.body, &list); err != nil || len(list) != len(members) {
		return nil, &Error{Kind: Internal, Detail: fmt.Sprintf("the answer of gather does not fit its %d members: %v", len(members), err)}
	}
	out := make([]Out, len(list))
	var failed []error
	for i, g := range list {
		switch {
		case g.Status >= 400:
			failed = append(failed, calleeError(g.Member, g.Status, message{body: g.Value}))
		default:
			if err := decode(g.Value, &out[i]); err != nil {
				failed = append(failed, fmt.Errorf("the answer of %s is not JSON for %T: %w", g.Member, out[i], err))
			}
		}
	}
	return out, errors.Join(failed...)
}

// Broadcast is Gather without answers.
func Broadcast(ctx context.Context, members []string, method string, args ...any) error {
	_, err := many(ctx, "broadcast", members, method, args)
	return err
}

func many(ctx context.Context, verb string, members []string, method string, args []any) (message, error) {
	body, err := json.Marshal(struct {
		Members []string `json:"members"`
		Method  string   `json:"method"`
		Args    []any    `json:"args"`
	}{append([]string{}, members...), method, append([]any{}, args...)})
	if err != nil {
		return message{}, err
	}
	return group(ctx, message{head: append([]pair{{":verb", verb}}, timeout(ctx)...), body: body})
}

// timeout is what ctx leaves, as an operation has it.
func timeout(ctx context.Context) []pair {
	d, ok := ctx.Deadline()
	if !ok {
		return nil
	}
	return []pair{{":timeout", milliseconds(time.Until(d))}}
}

// sayWho is how much longer than a context lasts the node is waited for: it
// ends an operation of a group in time, and then says who was missing.
const sayWho = 2 * time.Second

func group(ctx context.Context, m message) (message, error) {
	if d, ok := ctx.Deadline(); ok {
		patient, cancel := context.WithDeadline(context.WithoutCancel(ctx), d.Add(sayWho))
		defer cancel()
		defer context.AfterFunc(ctx, func() {
			if ctx.Err() == context.Canceled {
				cancel()
			}
		})()
		ctx = patient
	}
	r, err := operate(ctx, abi.OpGroup, m)
	var e *Error
	if errors.As(err, &e) {
		e.Missing = missing(r.get(":missing"))
	}
	return r, err
}

// missing reads names or ranks.
func missing(list string) (out []string) {
	var all []any
	if json.Unmarshal([]byte(list), &all) == nil {
		for _, x := range all {
			out = append(out, fmt.Sprint(x))
		}
	}
	return out
}

// Reduction is how AllReduce combines.
type Reduction string

// The reductions.
const (
	Sum  Reduction = "sum"
	Mean Reduction = "mean"
	Max  Reduction = "max"
)

// Group is this invocation's membership in a group of Size that work in
// rounds. All members must make the same operations in the same order. A round
// that not all have reached in time ends for all with Unavailable, and names
// the missing ranks in the error's Missing.
type Group struct {
	Name       string
	Rank, Size int
	ctx        context.Context
}

// JoinGroup waits until all of size members have joined, each with a rank of
// its own from 0 on: until ctx ends, or for 30 s.
func JoinGroup(ctx context.Context, name string, rank, size int) (*Group, error) {
	g := &Group{Name: name, Rank: rank, Size: size, ctx: ctx}
	_, err := g.operate("join", nil, append([]pair{{":rank", digits(rank)}, {":size", digits(size)}}, timeout(ctx)...)...)
	if err != nil {
		return nil, err
	}
	return g, nil
}

func (g *Group) operate(verb string, body []byte, more ...pair) (message, error) {
	return group(g.ctx, message{head: append([]pair{{":verb", verb}, {":group", g.Name}}, more...), body: body})
}

// round is operate for what waits for all members.
func (g *Group) round(verb string, body []byte, more ...pair) (message, error) {
	return g.operate(verb, body, append(more, timeout(g.ctx)...)...)
}

func (g *Group) reduce(op Reduction, form string, body []byte) ([]byte, error) {
	r, err := g.round("reduce", body, pair{":op", string(op)}, pair{":form", form})
	if err == nil && len(r.body) != len(body) {
		err = &Error{Kind: Internal, Detail: "a vector of " + strconv.Itoa(len(body)) + " bytes became one of " + strconv.Itoa(len(r.body))}
	}
	return r.body, err
}

// AllReduceF32 replaces v by the combination of all members' vectors: the same
// bits for all of them.
func (g *Group) AllReduceF32(op Reduction, v []float32) error {
	b := make([]byte, 0, 4*len(v))
	for _, x := range v {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(x))
	}
	b, err := g.reduce(op, "f32", b)
	if err != nil {
		return err
	}
	for i := range v {
		v[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return nil
}

// AllReduceF64 is AllReduceF32 for float64.
func (g *Group) AllReduceF64(op Reduction, v []float64) error {
	b := make([]byte, 0, 8*len(v))
	for _, x := range v {
		b = binary.LittleEndian.AppendUint64(b, math.Float64bits(x))
	}
	b, err := g.reduce(op, "f64", b)
	if err != nil {
		return err
	}
	for i := range v {
		v[i] = math.Float64frombits(binary.LittleEndian.Uint64(b[8*i:]))
	}
	return nil
}

// Exchange gives a part, at most 1 MiB, to all members and returns those of
// all ranks, in order.
func (g *Group) Exchange(part []byte) ([][]byte, error) {
	r, err := g.round("exchange", part)
	if err != nil {
		return nil, err
	}
	var out [][]byte
	if err := abi.DecodeKeys(r.body, func(p []byte) { out = append(out, p) }); err != nil || len(out) != g.Size {
		return nil, &Error{Kind: Internal, Detail: fmt.Sprintf("an exchange of %d members gave %d parts: %v", g.Size, len(out), err)}
	}
	return out, nil
}

// Barrier waits until all members are here.
func (g *Group) Barrier() error {
	_, err := g.round("barrier", nil)
	return err
}

// Leave ends the membership.
func (g *Group) Leave() error {
	_, err := g.operate("leave", nil)
	return err
}
