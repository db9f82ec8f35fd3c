package agent

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"lode"
	"lode/agent/journal"
)

// Bounds of what one operation of a guest takes.
const (
	maxKey      = 2048
	maxValue    = 1 << 20
	maxName     = 256 // of a timer
	maxEvent    = 64 << 10
	maxAttach   = 2 << 10
	maxList     = 4 << 20
	maxPerTurn  = 100_000 // writes
	maxLetters  = 4000    // sends
	maxLetter   = 1 << 20 // bytes of arguments
	keptEvents  = 1000
	maxFrame    = 1 << 20
	maxSockTags = 10
)

// Operate performs an operation of the code. See sdk/abi, section 4.
func (t *turn) Operate(ctx context.Context, op Op, req lode.Message, done func(lode.Message, error)) bool {
	switch op {
	case OpState:
		t.stateOp(&req, done)
	case OpTimer:
		done(t.timerOp(&req))
	case OpSocket:
		done(t.socketOp(&req))
	case OpSend:
		if isRunning(req.Get(":address")) {
			return t.leaves(done)
		}
		done(t.sendOp(&req))
	case OpCall:
		return t.callOp(ctx, &req, done)
	case OpSelf:
		done(t.self(), nil)
	case opFetch, opQueue, opGroup:
		return t.leaves(done)
	default:
		return false
	}
	return true
}

// The operations that are none of a turn's and have effects outside.
const (
	opFetch Op = 10
	opQueue Op = 11
	opGroup Op = 12
)

// leaves lets an operation go that somebody else performs, once what the turn
// has seen is acknowledged.
func (t *turn) leaves(done func(lode.Message, error)) bool {
	if err := t.gate(); err != nil {
		done(lode.Message{}, err)
		return true
	}
	return false
}

func (t *turn) self() lode.Message {
	return lode.Message{Head: []lode.Pair{{Key: ":address", Value: t.a.address()}, {Key: ":namespace", Value: string(t.p.id.Namespace)},
		{Key: ":revision", Value: strconv.Itoa(t.m.rev.Number)}, {Key: ":id", Value: t.m.id}, {Key: ":node", Value: string(t.p.s.cfg.Self)}}}
}

func (t *turn) mayWrite() error {
	if t.m.turn == lode.TurnRead {
		return lode.Errorf(lode.Denied, "%s only reads: it may not change anything", t.m.c.Method).WithHint("take it off the list of read methods")
	}
	return nil
}

func (t *turn) stateOp(req *lode.Message, done func(lode.Message, error)) {
	switch req.Get(":verb") {
	case "get":
		done(t.getOp(req.Get(":key")))
	case "mget":
		done(t.mgetOp(req.Body))
	case "put":
		done(lode.Message{}, t.put(req.Get(":key"), req.Body))
	case "delete":
		done(t.deleteOp(req.Get(":key")))
	case "write":
		done(lode.Message{}, t.writeOp(req.Body))
	case "list":
		done(t.listOp(req))
	case "clear":
		done(lode.Message{}, t.clear())
	case "remove":
		if err := t.mayWrite(); err != nil {
			done(lode.Message{}, err)
			return
		}
		t.remove = true
		done(lode.Message{}, nil)
	case "sync":
		t.syncOp(done)
	default:
		done(lode.Message{}, lode.Errorf(lode.Invalid, "state has no verb %q", req.Get(":verb")))
	}
}

var isThere, isNot = []lode.Pair{{Key: ":found", Value: "1"}}, []lode.Pair{{Key: ":found", Value: "0"}}

// found is the head of a result; it must not be changed.
func found(ok bool) []lode.Pair {
	if ok {
		return isThere[:1:1]
	}
	return isNot[:1:1]
}

func (t *turn) getOp(key string) (lode.Message, error) {
	if err := checkKey(key); err != nil {
		return lode.Message{}, err
	}
	v, ok, err := t.value(key)
	return lode.Message{Head: found(ok), Body: v}, err
}

func checkKey(key string) error {
	if key == "" || len(key) > maxKey {
		return lode.Errorf(lode.Invalid, "a key of state has 1 to %d bytes, not %d", maxKey, len(key))
	}
	return nil
}

func (t *turn) mgetOp(body []byte) (lode.Message, error) {
	r := readFields(body)
	n := r.count()
	out := binary.LittleEndian.AppendUint32(nil, uint32(n))
	for range n {
		key := string(r.bytes())
		if r.Bad {
			break
		}
		if err := checkKey(key); err != nil {
			return lode.Message{}, err
		}
		v, ok, err := t.value(key)
		if err != nil {
			return lode.Message{}, err
		}
		out = append(out, flag(ok))
		out = binary.LittleEndian.AppendUint32(out, uint32(len(v)))
		out = append(out, v...)
		if len(out) > 15<<20 {
			return lode.Message{}, lode.Errorf(lode.TooLarge, "the values have over 15 MiB together").WithHint("read them in parts")
		}
	}
	if !r.End() {
		return lode.Message{}, malformed("mget")
	}
	return lode.Message{Body: out}, nil
}

func malformed(verb string) error {
	return lode.Errorf(lode.Invalid, "the body of %s is malformed", verb)
}

func flag(v bool) byte {
	if v {
		return 1
	}
	return 0
}

func (t *turn) deleteOp(key string) (lode.Message, error) {
	_, ok, err := t.value(key)
	if err == nil {
		err = t.del(key)
	}
	return lode.Message{Head: found(ok)}, err
}

func (t *turn) writeOp(body []byte) error {
	if err := t.mayWrite(); err != nil {
		return err
	}
	for _, do := range []bool{false, true} { // nothing of a body that is malformed
		r := readFields(body)
		for range r.count() {
			kind := r.Byte()
			k, v := r.U32(), r.U32()
			key, value := string(r.Take(uint64(k))), r.Take(uint64(v))
			if r.Bad || kind != 1 && kind != 2 {
				return malformed("write")
			}
			if err := t.writeOne(do, kind == 1, key, value); err != nil {
				return err
			}
		}
		if !r.End() {
			return malformed("write")
		}
	}
	return nil
}

// writeOne checks one write of many, or does it.
func (t *turn) writeOne(do, set bool, key string, value []byte) error {
	switch {
	case !do && set:
		return cmpErr(checkKey(key), checkValue(key, len(value)))
	case !do:
		return checkKey(key)
	case set:
		return t.put(key, value)
	}
	return t.del(key)
}

func (t *turn) listOp(req *lode.Message) (lode.Message, error) {
	q := query{prefix: req.Get(":prefix"), start: req.Get(":start"), end: req.Get(":end"), reverse: req.Get(":reverse") == "1"}
	if s := req.Get(":limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return lode.Message{}, lode.Errorf(lode.Invalid, "the limit of a list is %q, not a number from 1", s)
		}
		q.limit = n
	}
	list, more, err := t.list(q)
	if err != nil {
		return lode.Message{}, err
	}
	out := binary.LittleEndian.AppendUint32(nil, uint32(len(list)))
	for _, kv := range list {
		out = binary.LittleEndian.AppendUint32(out, uint32(len(kv.key)))
		out = binary.LittleEndian.AppendUint32(out, uint32(len(kv.value)))
		out = append(append(out, kv.key...), kv.value...)
	}
	m := lode.Message{Body: out}
	if more {
		m.Head = []lode.Pair{{Key: ":more", Value: "1"}}
	}
	return m, nil
}

// syncOp makes everything so far durable, as a commit of its own.
func (t *turn) syncOp(done func(lode.Message, error)) {
	if t.aside || t.m.turn == lode.TurnRead || t.empty() {
		done(lode.Message{}, nil)
		return
	}
	if err := t.spill(t.p.ctx); err != nil {
		done(lode.Message{}, err)
		return
	}
	f := newFlight(&message{})
	t.synced++
	if err := t.commitPart(f); err != nil {
		done(lode.Message{}, err)
		return
	}
	go func() {
		<-f.done
		done(lode.Message{}, f.err)
	}()
}

func (t *turn) timerOp(req *lode.Message) (lode.Message, error) {
	name, verb := req.Get(":name"), req.Get(":verb")
	if verb == "list" {
		return t.listTimers()
	}
	if name == "" || len(name) > maxName || name[0] <= 1 {
		return lode.Message{}, lode.Errorf(lode.Invalid, "the name of a timer has 1 to %d bytes, of which the first is not 0 or 1", maxName)
	}
	old, ok, err := t.timer(name)
	if err != nil {
		return lode.Message{}, err
	}
	switch verb {
	case "get":
		m := lode.Message{Head: found(ok)}
		if ok {
			m.Head = append(m.Head, lode.Pair{Key: ":at", Value: decimal(old.Due / 1000)})
		}
		return m, nil
	case "clear":
		if err := t.mayWrite(); err != nil {
			return lode.Message{}, err
		}
		if ok {
			t.setTimer(name, nil)
		}
		return lode.Message{Head: found(ok)}, nil
	case "set":
		return lode.Message{}, t.setTimerOp(name, req)
	}
	return lode.Message{}, lode.Errorf(lode.Invalid, "timer has no verb %q", verb)
}

func (t *turn) setTimerOp(name string, req *lode.Message) error {
	if err := t.mayWrite(); err != nil {
		return err
	}
	at, err := t.time(req)
	if err != nil {
		return err
	}
	if len(req.Body) > maxLetter {
		return lode.Errorf(lode.TooLarge, "the arguments of a timer have %d bytes; at most %d", len(req.Body), maxLetter)
	}
	t.calls++
	t.setTimer(name, &timer{Due: at, First: at, N: number(lode.TurnIDOf(t.m.id, t.calls)), Method: req.Get(":call"), Type: req.Get("content-type"), Body: req.Body})
	return nil
}

// time reads :at or :after, as Unix microseconds.
func (t *turn) time(req *lode.Message) (int64, error) {
	at, after := req.Get(":at"), req.Get(":after")
	word := at
	if at == "" {
		word = after
	}
	n, err := strconv.ParseInt(word, 10, 64)
	if err != nil || n < 0 || n > 1<<43 || (at != "") == (after != "") {
		return 0, lode.Errorf(lode.Invalid, "a timer needs either :at or :after, in milliseconds")
	}
	if at == "" {
		n += t.p.s.now()
	}
	return n * 1000, nil
}

func (t *turn) listTimers() (lode.Message, error) {
	type entry struct {
		Name   string `json:"name"`
		At     int64  `json:"at"`
		Method string `json:"method"`
	}
	all, err := t.allTimers()
	if err != nil {
		return lode.Message{}, err
	}
	out := []entry{}
	for name, tm := range all {
		if name[0] > 1 {
			out = append(out, entry{name, tm.Due / 1000, tm.Method})
		}
	}
	slices.SortFunc(out, func(a, b entry) int { return strings.Compare(a.Name, b.Name) })
	b, err := json.Marshal(out)
	return lode.Message{Body: b}, err
}

// fields reads the bodies of operations: little-endian numbers of four bytes.
type fields struct{ journal.Reader }

func readFields(b []byte) *fields { return &fields{journal.Reader{B: b}} }

func (r *fields) count() int {
	n := int(r.U32())
	if n > maxPerTurn || n > len(r.B) {
		r.Bad = true
		return 0
	}
	return n
}

func (r *fields) bytes() []byte { return r.Take(uint64(r.U32())) }

func decimal(n int64) string { return strconv.FormatInt(n, 10) }

// number makes a number of an id.
func number(id string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(id) {
		h = (h ^ uint64(id[i])) * hashPrime
	}
	return h
}

func parseOrder(k []byte) (at int64, id string, ok bool) {
	if len(k) < 8 {
		return 0, "", false
	}
	return int64(binary.BigEndian.Uint64(k)), string(k[8:]), true
}
