package agent

import (
	"bytes"
	"maps"
	"slices"

	"lode"
	"lode/agent/state"
)

// What a turn sees: what it has written itself, over what earlier turns have
// written down, over what is acknowledged. One that runs beside turns sees
// only the last.

// raw is the stored value of a key of state.
func (t *turn) raw(key string) (v []byte, big []byte, ok bool, err error) {
	if w, there := t.writes[key]; there {
		return w.value, w.big, w.value != nil || w.big != nil, nil
	}
	if t.cleared {
		return nil, nil, false, nil
	}
	v, ok, err = t.under(partState, key)
	return v, nil, ok, err
}

// under is a value of the agent as it was when the turn began.
func (t *turn) under(part byte, rest string) ([]byte, bool, error) {
	if t.aside {
		return t.store.Get(in(t.a.prefix, part, rest))
	}
	t.p.mu.Lock()
	v, there := t.a.over[string(part)+rest]
	cut, n := t.a.cut != 0 && part == partState || t.a.gone != 0, t.a.n
	t.p.mu.Unlock()
	if there {
		return v.value, v.value != nil, nil
	}
	if cut {
		return nil, false, nil
	}
	b, ok, err := t.store.Get(in(t.a.prefix, part, rest))
	if err == nil && len(b) <= keptValue {
		t.keep(string(part)+rest, b, ok, n)
	}
	return b, ok, err
}

// An agent in memory remembers a few small values, so that turns that follow
// each other need not look for them.
const (
	keptValue  = 1024 // bytes
	keptValues = 128
)

// keep remembers a value that was read when n turns were written down.
func (t *turn) keep(key string, b []byte, ok bool, n uint64) {
	a := t.a
	t.p.mu.Lock()
	defer t.p.mu.Unlock()
	if t.gen != t.p.gen || a.n != n || len(a.over) >= keptValues || a.over[key] != nil {
		return
	}
	if a.over == nil {
		a.over = map[string]*pend{}
	}
	if !ok {
		b = nil
	}
	a.over[key] = &pend{0, b}
}

// value is the value of a key of state.
func (t *turn) value(key string) ([]byte, bool, error) {
	v, big, ok, err := t.raw(key)
	if err != nil || !ok {
		return nil, false, err
	}
	if big == nil {
		big, err = t.open(v)
	}
	if err == nil {
		t.size(key, len(big))
	}
	return big, err == nil, err
}

// size notes how many bytes a value has.
func (t *turn) size(key string, n int) {
	if t.aside {
		return
	}
	sizes := t.known()
	if *sizes == nil || len(*sizes) > 256 {
		*sizes = map[string]int{}
	}
	(*sizes)[key] = n
}

// known are the sizes that are known. Where turns may run within turns each has
// its own: they are not guarded.
func (t *turn) known() *map[string]int {
	if t.m.rev.Function.Agent.Reentrant == lode.ReentrantChain {
		return &t.sizes
	}
	return &t.a.sizes
}

// open reads a stored value.
func (t *turn) open(v []byte) ([]byte, error) {
	inline, d, _, blob, err := state.DecodeValue(v)
	if err != nil || !blob {
		return inline, err
	}
	return t.p.s.cfg.Blobs.Get(t.p.ctx, d)
}

// sizeOf is how many bytes the value of a key has; -1: there is none.
func (t *turn) sizeOf(key string) (int, error) {
	if n, ok := (*t.known())[key]; ok && !t.cleared {
		return n, nil
	}
	v, big, ok, err := t.raw(key)
	switch {
	case err != nil:
		return 0, err
	case !ok:
		return -1, nil
	case big != nil:
		return len(big), nil
	}
	inline, _, size, blob, err := state.DecodeValue(v)
	if blob {
		return int(size), err
	}
	return len(inline), err
}

func (t *turn) put(key string, value []byte) error {
	if err := t.mayWrite(); err != nil {
		return err
	}
	if err := checkKey(key); err != nil {
		return err
	}
	if err := checkValue(key, len(value)); err != nil {
		return err
	}
	w := write{}
	if len(value) > state.InlineMax {
		w.big = bytes.Clone(value)
	} else {
		w.value = state.EncodeInline(value)
	}
	return t.change(key, w, len(value))
}

func checkValue(key string, n int) error {
	if n > maxValue {
		return lode.Errorf(lode.TooLarge, "the value of %q has %d bytes; at most %d", key, n, maxValue).WithHint("cut it into several keys")
	}
	return nil
}

func (t *turn) del(key string) error {
	if err := t.mayWrite(); err != nil {
		return err
	}
	if err := checkKey(key); err != nil {
		return err
	}
	return t.change(key, write{}, -1)
}

// change notes a write of size bytes; -1: it deletes.
func (t *turn) change(key string, w write, size int) error {
	old, err := t.sizeOf(key)
	if err != nil {
		return err
	}
	if old >= 0 {
		t.delta -= int64(len(key) + old)
	}
	if size >= 0 {
		t.delta += int64(len(key) + size)
	}
	if t.writes == nil {
		t.writes = map[string]write{}
	}
	if _, ok := t.writes[key]; !ok {
		if len(t.writes) >= maxPerTurn {
			return lode.Errorf(lode.TooLarge, "a turn writes at most %d keys", maxPerTurn).WithHint("sync what is written so far")
		}
		t.order = append(t.order, key)
	}
	t.writes[key] = w
	t.size(key, size)
	return nil
}

func (t *turn) clear() error {
	if err := t.mayWrite(); err != nil {
		return err
	}
	t.writes, t.order, t.cleared, t.delta = nil, nil, true, 0
	*t.known() = nil
	return nil
}

// query picks keys of state.
type query struct {
	prefix, start, end string
	limit              int // 0: none
	reverse            bool
}

// bounds are the first key, and the first behind the last; "": there is none.
func (q query) bounds() (lo, hi string) {
	lo = max(q.prefix, q.start)
	if end := after([]byte(q.prefix)); q.prefix != "" && end != nil {
		hi = string(end)
	}
	if q.end != "" && (hi == "" || q.end < hi) {
		hi = q.end
	}
	return lo, hi
}

type pair struct {
	key   string
	value []byte
}

// list lists keys of state with their values; more: there are others.
func (t *turn) list(q query) (out []pair, more bool, err error) {
	lo, hi := q.bounds()
	over := t.overlaid(partState, lo, hi)
	size := 0
	take := func(key string, v, big []byte) bool {
		if q.limit > 0 && len(out) == q.limit || size > maxList {
			more = true
			return false
		}
		if big == nil {
			if big, err = t.open(v); err != nil {
				return false
			}
		}
		size += len(key) + len(big)
		out = append(out, pair{key, bytes.Clone(big)})
		return true
	}
	err2 := t.walk(partState, lo, hi, q.reverse, over, take)
	if err == nil {
		err = err2
	}
	return out, more, err
}

// overlaid are the keys of a part that are not as the store has them, with
// their values.
func (t *turn) overlaid(part byte, lo, hi string) map[string]write {
	out := map[string]write{}
	within := func(k string) bool { return k >= lo && (hi == "" || k < hi) }
	if !t.aside {
		t.p.mu.Lock()
		for k, v := range t.a.over {
			if k[0] == part && within(k[1:]) {
				out[k[1:]] = write{value: v.value}
			}
		}
		t.p.mu.Unlock()
	}
	if part == partState {
		if t.cleared {
			clear(out)
		}
		for k, w := range t.writes {
			if within(k) {
				out[k] = w
			}
		}
	}
	return out
}

// walk calls take for the keys of a part in order, until it says no.
func (t *turn) walk(part byte, lo, hi string, reverse bool, over map[string]write, take func(key string, v, big []byte) bool) error {
	keys := slices.Sorted(maps.Keys(over))
	if reverse {
		slices.Reverse(keys)
	}
	before := func(a, b string) bool { return a != b && (a < b) != reverse }
	on := true
	emit := func(k string) {
		if w := over[k]; w.value != nil || w.big != nil {
			on = take(k, w.value, w.big)
		}
	}
	t.p.mu.Lock()
	cut := !t.aside && (t.a.cut != 0 && part == partState || t.a.gone != 0) || t.cleared && part == partState
	t.p.mu.Unlock()
	if !cut {
		base := in(t.a.prefix, part, "")
		end := after(base)
		if hi != "" {
			end = in(t.a.prefix, part, hi)
		}
		err := t.store.List(in(t.a.prefix, part, lo), end, reverse, func(k, v []byte) bool {
			key := string(k[len(base):])
			for on && len(keys) > 0 && before(keys[0], key) {
				emit(keys[0])
				keys = keys[1:]
			}
			if !on {
				return false
			}
			if len(keys) > 0 && keys[0] == key {
				emit(key)
				keys = keys[1:]
				return on
			}
			on = take(key, v, nil)
			return on
		})
		if err != nil {
			return err
		}
	}
	for on && len(keys) > 0 {
		emit(keys[0])
		keys = keys[1:]
	}
	return nil
}

// timer finds a timer by its name.
func (t *turn) timer(name string) (timer, bool, error) {
	if tm, ok := t.timers[name]; ok {
		if tm == nil {
			return timer{}, false, nil
		}
		return *tm, true, nil
	}
	b, ok, err := t.under(partTimer, name)
	if err != nil || !ok {
		return timer{}, false, err
	}
	tm, err := decodeTimer(b)
	return tm, err == nil, err
}

// setTimer sets a timer, or clears it.
func (t *turn) setTimer(name string, tm *timer) {
	if t.timers == nil {
		t.timers = map[string]*timer{}
	}
	t.timers[name] = tm
}

// allTimers are the timers that are set.
func (t *turn) allTimers() (map[string]timer, error) {
	out := map[string]timer{}
	var bad error
	err := t.walk(partTimer, "", "", false, t.overlaid(partTimer, "", ""), func(k string, v, _ []byte) bool {
		var tm timer
		if tm, bad = decodeTimer(bytes.Clone(v)); bad != nil {
			return false
		}
		out[k] = tm
		return true
	})
	for name, tm := range t.timers {
		if tm == nil {
			delete(out, name)
		} else {
			out[name] = *tm
		}
	}
	if err == nil {
		err = bad
	}
	return out, err
}

// timerChanges adds what becomes of timers; p.mu is held.
func (t *turn) timerChanges(b *builder, r *record) error {
	a := t.a
	if t.remove {
		return t.dropTimers(b)
	}
	for _, name := range slices.Sorted(maps.Keys(t.timers)) {
		tm := t.timers[name]
		old, ok, err := t.oldTimer(name)
		if err != nil {
			return err
		}
		if ok {
			b.del(dueKey(old.Due, a.key, name))
		}
		if tm == nil {
			if ok {
				b.del(in(a.prefix, partTimer, name))
			}
			continue
		}
		b.set(in(a.prefix, partTimer, name), tm.encode())
		b.set(dueKey(tm.Due, a.key, name), nil)
		if r.due == 0 || tm.Due < r.due {
			r.due = tm.Due
		}
	}
	return nil
}

// oldTimer is a timer as it was before the turn; p.mu is held.
func (t *turn) oldTimer(name string) (timer, bool, error) {
	var b []byte
	if v, there := t.a.over[string(partTimer)+name]; there {
		b = v.value
	} else if t.a.gone == 0 {
		var err error
		if b, _, err = t.p.part.Get(in(t.a.prefix, partTimer, name)); err != nil {
			return timer{}, false, err
		}
	}
	if b == nil {
		return timer{}, false, nil
	}
	tm, err := decodeTimer(b)
	return tm, err == nil, err
}

// dropTimers removes the entries of a removed agent's timers; p.mu is held.
func (t *turn) dropTimers(b *builder) error {
	base := in(t.a.prefix, partTimer, "")
	names := map[string]int64{}
	var bad error
	var err error
	if t.a.gone == 0 {
		err = t.p.part.List(base, after(base), false, func(k, v []byte) bool {
			var tm timer
			tm, bad = decodeTimer(v)
			names[string(k[len(base):])] = tm.Due
			return bad == nil
		})
	}
	if err != nil || bad != nil {
		return cmpErr(err, bad)
	}
	for k, v := range t.a.over {
		if k[0] != partTimer {
			continue
		}
		delete(names, k[1:])
		if v.value != nil {
			tm, err := decodeTimer(v.value)
			if err != nil {
				return err
			}
			names[k[1:]] = tm.Due
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		b.del(dueKey(names[name], t.a.key, name))
	}
	return nil
}

func cmpErr(errs ...error) error {
	for _, e := range errs {
		if e != nil {
			return e
		}
	}
	return nil
}
