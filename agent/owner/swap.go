package owner

import (
	"bytes"
	"context"
	"encoding/json"
	"time"

	"lode"
	"lode/bus"
)

const (
	firstPause = 20 * time.Millisecond
	lastPause  = time.Second
)

// pause waits, longer each time; false: ctx has ended.
func pause(ctx context.Context, d *time.Duration) bool {
	*d = min(max(2**d, firstPause), lastPause)
	t := time.NewTimer(*d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// swap sets key to want if it is still at rev (0: if it is not there), and does
// not give up before that is known or ctx ends. ok: it is set, and is at the
// revision returned. No two callers ever want the same bytes but where it does
// not matter whose they are.
func swap(ctx context.Context, t *bus.Table, key string, want []byte, rev uint64) (now uint64, ok bool, err error) {
	for d := time.Duration(0); ; {
		if rev == 0 {
			now, err = t.Create(ctx, key, want)
		} else {
			now, err = t.Update(ctx, key, want, rev)
		}
		switch k := lode.KindOf(err); k {
		case "":
			return now, true, nil
		case lode.Precondition, lode.Conflict:
			// An earlier attempt of this very call may have come through.
			e, there, gerr := t.Get(ctx, key)
			if gerr == nil {
				return e.Rev, there && bytes.Equal(e.Value, want), nil
			}
			err = gerr
		}
		if !pause(ctx, &d) {
			return 0, false, err
		}
	}
}

// getRegister reads a register as it is.
func getRegister(ctx context.Context, t *bus.Table, key string) (r Register, rev uint64, err error) {
	for d := time.Duration(0); ; {
		e, there, err := t.Get(ctx, key)
		if err == nil && !there {
			return r, 0, nil
		}
		if err == nil {
			return r, e.Rev, decode(e, &r)
		}
		if lode.KindOf(err) == lode.Damaged || !pause(ctx, &d) {
			return r, 0, err
		}
	}
}

// getRecord reads a node's record as it is.
func getRecord(ctx context.Context, t *bus.Table, n lode.NodeID) (r NodeRecord, rev uint64, err error) {
	e, there, err := t.Get(ctx, string(n))
	if err != nil || !there {
		return r, 0, err
	}
	return r, e.Rev, decode(e, &r)
}

func decode(e bus.Entry, into any) error {
	if err := json.Unmarshal(e.Value, into); err != nil {
		return lode.Errorf(lode.Damaged, "the record %s cannot be read: %w", e.Key, err)
	}
	return nil
}

// encode makes the JSON of a record of this package, which cannot fail.
func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	return b
}
