package lode

import (
	"bytes"
	"context"
	"encoding/json"
	"iter"
	"strconv"
	"strings"
	"time"

	"lode/sdk/abi"
)

// Store is what an agent keeps beside its fields: values under keys, each read
// and written by itself. Keys have 1 to 2,048 bytes and are in byte order;
// values are JSON unless they are []byte, 1 MiB at most. What a turn has
// written it reads back; it is durable before the turn's answer leaves, or,
// if the turn fails, it never was. Keys that begin with a dot are the fields.
type Store struct {
	ctx context.Context
	err error
}

// State is the store of the agent whose turn it is; anywhere else its
// operations fail with Unavailable.
func State(ctx context.Context) *Store { return &Store{ctx: ctx} }

// turnOf is the invocation that is a turn; nil if ctx belongs to none.
func turnOf(ctx context.Context) *invocation {
	v, _ := ctx.Value(invocationKey{}).(*invocation)
	if v == nil || v.agent == nil {
		return nil
	}
	return v
}

func (s *Store) operate(verb string, body []byte, more ...pair) (message, error) {
	return operate(s.ctx, abi.OpState, message{head: append([]pair{{":verb", verb}}, more...), body: body})
}

// value is v as it is stored.
func value(v any) ([]byte, error) {
	switch b := v.(type) {
	case []byte:
		return b, nil
	case Raw:
		return b, nil
	}
	return encode(v)
}

// Get reads the value of a key into v, a pointer; false if there is none.
func (s *Store) Get(key string, v any) (bool, error) {
	r, err := s.operate("get", nil, pair{":key", key})
	if err != nil || r.get(":found") != "1" {
		return false, err
	}
	return true, Raw(r.body).into(v)
}

// Put stores v under a key.
func (s *Store) Put(key string, v any) error {
	if strings.HasPrefix(key, ".") {
		return &Error{Kind: Invalid, Detail: "the key " + strconv.Quote(key) + " is the SDK's own", Hint: "keys that begin with a dot are the fields of the agent's struct"}
	}
	b, err := value(v)
	if err == nil {
		_, err = s.operate("put", b, pair{":key", key})
	}
	return err
}

// Delete removes keys; one that is not there is no error.
func (s *Store) Delete(keys ...string) error {
	if len(keys) == 1 {
		_, err := s.operate("delete", nil, pair{":key", keys[0]})
		return err
	}
	body := abi.AppendCount(nil, len(keys))
	for _, k := range keys {
		body = abi.AppendDelete(body, k)
	}
	_, err := s.operate("write", body)
	return err
}

// List yields the keys that begin with prefix and their values, in the order
// of the keys, those of the fields left out. If reading fails the listing ends,
// Err says why, and the turn fails.
func (s *Store) List(prefix string) iter.Seq2[string, Raw] {
	return func(yield func(string, Raw) bool) {
		for start := ""; ; {
			head := []pair{{":prefix", prefix}, {":limit", "1000"}}
			if start != "" {
				head = append(head, pair{":start", start})
			}
			r, err := s.operate("list", nil, head...)
			last, stopped := "", false
			if err == nil {
				err = abi.DecodeList(r.body, func(k, x []byte) {
					last = string(k)
					if !stopped && (k[0] != '.' || strings.HasPrefix(prefix, ".")) {
						stopped = !yield(last, Raw(bytes.Clone(x)))
					}
				})
			}
			if err != nil {
				s.fail(err)
			}
			if err != nil || stopped || r.get(":more") != "1" || last == "" {
				return
			}
			start = last + "\x00"
		}
	}
}

func (s *Store) fail(err error) {
	s.err = err
	if v := turnOf(s.ctx); v != nil && v.failed == nil {
		v.failed = err
	}
}

// Err is what ended a List early.
func (s *Store) Err() error { return s.err }

// Clear removes all keys. The agent's fields keep what they hold in memory,
// and are stored again at the end of the turn; timers stay.
func (s *Store) Clear() error {
	_, err := s.operate("clear", nil)
	if v := turnOf(s.ctx); v != nil && err == nil {
		for i := range v.agent.slots {
			v.agent.slots[i].last = nil
		}
	}
	return err
}

// Sync waits until everything written so far in this turn, the fields too, is
// durable. It stays then even if the turn fails later.
func (s *Store) Sync() error {
	if v := turnOf(s.ctx); v != nil {
		if err := v.agent.flush(v); err != nil {
			return err
		}
	}
	_, err := s.operate("sync", nil)
	return err
}

// RemoveSelf makes the agent, at the end of this turn, as if it had never
// been: no state, no timers. The next message makes it anew.
func RemoveSelf(ctx context.Context) error {
	_, err := State(ctx).operate("remove", nil)
	if v := turnOf(ctx); v != nil && err == nil {
		v.agent.removed = true
	}
	return err
}

// Raw is a stored value.
type Raw []byte

// JSON decodes the value into v.
func (r Raw) JSON(v any) error { return json.Unmarshal(r, v) }

// into decodes the value: bytes as they are, all else from JSON.
func (r Raw) into(v any) error {
	switch p := v.(type) {
	case *[]byte:
		*p = r
		return nil
	case *Raw:
		*p = r
		return nil
	case *Counts:
		return p.UnmarshalJSON(r)
	}
	return json.Unmarshal(r, v)
}

// Timer makes the agent run a method of its own after a while: once, as a
// turn, and again, later and later, if that fails. A timer of that name is
// replaced. It is durable when the turn's answer leaves.
func Timer(ctx context.Context, name string, after time.Duration, method string, args ...any) error {
	return setTimer(ctx, name, pair{":after", milliseconds(after)}, method, args)
}

// TimerAt is Timer for a point in time. It does not fire before, by the
// cluster's clock.
func TimerAt(ctx context.Context, name string, at time.Time, method string, args ...any) error {
	ms := at.UnixMilli()
	if at.After(time.UnixMilli(ms)) {
		ms++
	}
	return setTimer(ctx, name, pair{":at", strconv.FormatInt(ms, 10)}, method, args)
}

func setTimer(ctx context.Context, name string, when pair, method string, args []any) error {
	m, err := arguments(args)
	if err != nil {
		return err
	}
	m.head = append(m.head, pair{":verb", "set"}, pair{":name", name}, when, pair{":call", method})
	_, err = operate(ctx, abi.OpTimer, m)
	return err
}

// ClearTimer removes a timer; false if there is none of that name.
func ClearTimer(ctx context.Context, name string) (bool, error) {
	r, err := operate(ctx, abi.OpTimer, message{head: []pair{{":verb", "clear"}, {":name", name}}})
	return r.get(":found") == "1", err
}

// TimerInfo is one timer that is set.
type TimerInfo struct {
	Name   string
	At     time.Time
	Method string
}

// Timers lists the agent's timers.
func Timers(ctx context.Context) ([]TimerInfo, error) {
	r, err := operate(ctx, abi.OpTimer, message{head: []pair{{":verb", "list"}}})
	if err != nil {
		return nil, err
	}
	var list []struct {
		Name   string
		At     int64
		Method string
	}
	if err := json.Unmarshal(r.body, &list); err != nil {
		return nil, &Error{Kind: Internal, Detail: "the list of timers does not decode: " + err.Error()}
	}
	var out []TimerInfo
	for _, t := range list {
		out = append(out, TimerInfo{t.Name, time.UnixMilli(t.At), t.Method})
	}
	return out, nil
}

// milliseconds is d, rounded up, as the ABI has it.
func milliseconds(d time.Duration) string {
	return strconv.FormatInt(int64((max(d, 0)+time.Millisecond-1)/time.Millisecond), 10)
}

func digits(n int) string { return strconv.Itoa(n) }
