package solo

import (
	"bytes"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"lode/sdk/abi"
)

func (t *Turn) stateOp(m Message) (abi.Status, Message) {
	key := m.Head[":key"]
	switch m.Head[":verb"] {
	case "get":
		v, ok := t.state[key]
		_, r := done(":found", found(ok))
		r.Body = v
		return check(key, nil, r)
	case "put":
		status, r := check(key, m.Body, Message{})
		if status == 0 {
			t.state[key] = bytes.Clone(m.Body)
		}
		return status, r
	case "delete":
		_, ok := t.state[key]
		delete(t.state, key)
		_, r := done(":found", found(ok))
		return check(key, nil, r)
	case "mget":
		return t.mget(m.Body)
	case "write":
		return t.write(m.Body)
	case "list":
		return t.list(m)
	case "clear":
		clear(t.state)
		return done()
	case "sync":
		t.store()
		return done()
	case "remove":
		t.removed = true
		return done()
	}
	return refuse("invalid", "state has no verb "+strconv.Quote(m.Head[":verb"]))
}

// check is r, or the refusal of a key or value that is out of bounds.
func check(key string, value []byte, r Message) (abi.Status, Message) {
	switch {
	case key == "" || len(key) > abi.MaxStateKey:
		return refuse("invalid", "a key has 1 to 2,048 bytes")
	case len(value) > abi.MaxStateValue:
		return refuse("too_large", "a value has at most 1 MiB")
	}
	return 0, r
}

func (t *Turn) mget(body []byte) (abi.Status, Message) {
	n, out := 0, abi.AppendCount(nil, 0)
	err := abi.DecodeKeys(body, func(k []byte) {
		v, ok := t.state[string(k)]
		out = abi.AppendFound(out, v, ok)
		n++
	})
	if err != nil {
		return refuse("invalid", err.Error())
	}
	abi.SetCount(out, n)
	return 0, Message{Body: out}
}

// write is all or nothing, in order.
func (t *Turn) write(body []byte) (abi.Status, Message) {
	next := maps.Clone(t.state)
	status, r := done()
	err := abi.DecodeWrite(body, func(k, v []byte, del bool) {
		if status != 0 {
			return
		}
		if status, r = check(string(k), v, r); del {
			delete(next, string(k))
		} else {
			next[string(k)] = bytes.Clone(v)
		}
	})
	if err != nil {
		return refuse("invalid", err.Error())
	}
	if status == 0 {
		t.state = next
	}
	return status, r
}

func (t *Turn) list(m Message) (abi.Status, Message) {
	keys := slices.DeleteFunc(slices.Sorted(maps.Keys(t.state)), func(k string) bool {
		return !strings.HasPrefix(k, m.Head[":prefix"]) || k < m.Head[":start"] || m.Head[":end"] != "" && k >= m.Head[":end"]
	})
	if m.Head[":reverse"] == "1" {
		slices.Reverse(keys)
	}
	limit, err := strconv.Atoi(m.Head[":limit"])
	if err != nil || limit <= 0 {
		limit = len(keys)
	}
	n, size, out := 0, 0, abi.AppendCount(nil, 0)
	for _, k := range keys {
		if size += len(k) + len(t.state[k]); n == limit || n > 0 && size > abi.MaxStateList {
			break
		}
		out = abi.AppendEntry(out, k, t.state[k])
		n++
	}
	abi.SetCount(out, n)
	_, r := done()
	if n < len(keys) {
		r.Head[":more"] = "1"
	}
	r.Body = out
	return 0, r
}

func (t *Turn) timerOp(m Message) (abi.Status, Message) {
	name := m.Head[":name"]
	verb := m.Head[":verb"]
	if verb != "list" && (name == "" || len(name) > abi.MaxTimerName) {
		return refuse("invalid", "a timer's name has 1 to 256 bytes")
	}
	switch verb {
	case "set":
		at := time.Now()
		if ms, err := strconv.ParseInt(m.Head[":at"], 10, 64); err == nil {
			at = time.UnixMilli(ms)
		} else if ms, err := strconv.ParseInt(m.Head[":after"], 10, 64); err == nil {
			at = at.Add(time.Duration(ms) * time.Millisecond)
		} else {
			return refuse("invalid", "a timer needs :at or :after")
		}
		if m.Head[":call"] == "" {
			return refuse("invalid", "a timer needs :call")
		}
		t.timers[name] = Timer{At: at, Method: m.Head[":call"], Type: m.Head["content-type"], Args: bytes.Clone(m.Body)}
		return done()
	case "clear":
		_, ok := t.timers[name]
		delete(t.timers, name)
		return done(":found", found(ok))
	case "get":
		x, ok := t.timers[name]
		return done(":found", found(ok), ":at", strconv.FormatInt(x.At.UnixMilli(), 10))
	case "list":
		type entry struct {
			Name   string `json:"name"`
			At     int64  `json:"at"`
			Method string `json:"method"`
		}
		list := []entry{}
		for _, n := range slices.Sorted(maps.Keys(t.timers)) {
			list = append(list, entry{n, t.timers[n].At.UnixMilli(), t.timers[n].Method})
		}
		return jsonBody(list)
	}
	return refuse("invalid", "timer has no verb "+strconv.Quote(verb))
}
