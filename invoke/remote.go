package invoke

import (
	"encoding/binary"
	"errors"
	"math"
	"time"

	"lode"
	"lode/engine"
)

// How an invocation goes from the gateway that placed it to the node that runs
// it: one call of the link's method "invoke". n is an unsigned LEB128 number,
// s an n and so many bytes, u8 a byte.
//
//	request's head   u8 version 1, u8 what: 1 = run, 2 = ask
//	                 n   more: so many of the body's first bytes end this head
//	 both            s namespace, s function, n revision, s its digest
//	 run             u8  flags: 1 = patient, 2 = the answer is kept whole, 4 = the
//	                 body is a stream: tell when it is admitted
//	                 n   attempt; n depth; n promised wait, ns; n round trip, ns
//	                 n   what is left until the deadline, ns; 0 = there is none
//	                 25 bytes of trace, 16 id, 8 span, u8 sampled; 8 bytes parent
//	                 s id, s handler, s trigger, s method, s path, s caller
//	                 s idempotency key
//	                 n pairs, and of each s key, s value
//	request's body   what is missing of the head, the body, then the stream
//
//	answer's head    u8 version 1, u8 what
//	 1 = whole       n more; n status; usage; n pairs, s key, s value; the body is all
//	 2 = begun       n more; n status; u8 cold; n queued, ns; pairs; the body comes in
//	                 pieces, then the note D
//	 3 = refused     u8 why: 1 = full, 2 = draining, 3 = it does not know the
//	                 revision; n wait, ns. Nothing was started.
//	 4 = failed      usage; the body is the error, as problem+json
//	 5 = asked       n wait, ns; u8 code; u8 1 = draining
//	usage            n queued, wall, cpu, memory, bytes in, bytes out; u8 flags: 1 =
//	                 cold, 2 = clean; n operations, n dropped bytes of log
//
//	notes            A     admitted at once, where the body is a stream: until then the
//	                 gateway takes no more of it than it can send again
//	                 Q n   queued: it is not started before the gateway says so
//	                 R     its turn has come, and a slot is held for it
//	                 G     (the gateway's) go
//	                 D usage   the end of an answer that was begun
//
// Until it has sent G for an invocation that was queued, the gateway knows
// that it was not started, whatever becomes of the connection; one that is
// admitted at once spares the two notes, and may have been started.
const (
	wireVersion = 1

	wireRun = 1
	wireAsk = 2

	wirePatient  = 1
	wireKept     = 2
	wireStreamed = 4

	wireWhole   = 1
	wireBegun   = 2
	wireRefused = 3
	wireFailed  = 4
	wireAsked   = 5

	noteAdmitted = 'A'
	noteQueued   = 'Q'
	noteReady    = 'R'
	noteGo       = 'G'
	noteDone     = 'D'

	refusedFull     = 1
	refusedDraining = 2
	refusedUnknown  = 3

	// wireHead is how much of a head goes into the link's; the link takes 64 KiB.
	wireHead = 48 << 10
	// wireHeadMost is how long a head may be in all.
	wireHeadMost = 4 << 20
)

var errWire = errors.New("the bytes of an invocation from another node are malformed")

// wireOrder is an invocation as it travels.
type wireOrder struct {
	what     byte
	ns       lode.Namespace
	function lode.Name
	rev      int
	digest   lode.Digest

	patient, kept  bool
	streamed       bool // the body: it is told when it is admitted
	promised, rtt  time.Duration
	left           time.Duration // until the deadline; 0: none
	trace          Trace
	req            lode.Request // what is not named above
	attempt, depth int
}

// append writes the head in two parts: what goes into the link's head, and
// what goes before the body.
func (w *wireOrder) append(b []byte) (head, more []byte) {
	b = append(b, wireVersion, w.what)
	from := len(b)
	b = appendString(b, string(w.ns))
	b = appendString(b, string(w.function))
	b = binary.AppendUvarint(b, uint64(w.rev))
	b = appendString(b, string(w.digest[:]))
	if w.what == wireRun {
		b = w.appendRun(b)
	}
	return splitHead(b, from)
}

func (w *wireOrder) appendRun(b []byte) []byte {
	var flags byte
	if w.patient {
		flags |= wirePatient
	}
	if w.kept {
		flags |= wireKept
	}
	if w.streamed {
		flags |= wireStreamed
	}
	b = append(b, flags)
	for _, n := range [...]int64{int64(w.attempt), int64(w.depth), int64(w.promised), int64(w.rtt), int64(w.left)} {
		b = binary.AppendUvarint(b, uint64(max(n, 0)))
	}
	b = append(b, w.trace.ID[:]...)
	b = append(b, w.trace.Span[:]...)
	b = append(b, flag(w.trace.Sampled))
	b = append(b, w.trace.Parent[:]...)
	r := &w.req
	for _, s := range [...]string{string(r.ID), r.Handler, string(r.Trigger), r.Method, r.Path, r.Caller, r.IdempotencyKey} {
		b = appendString(b, s)
	}
	return appendPairs(b, r.Head)
}

// splitHead puts the number of bytes that do not fit into the head at from.
func splitHead(b []byte, from int) (head, more []byte) {
	var n [binary.MaxVarintLen64]byte
	if keep := wireHead - len(n); len(b) > keep {
		more = append(more, b[keep:]...)
		b = b[:keep]
	}
	k := binary.PutUvarint(n[:], uint64(len(more)))
	b = append(b, n[:k]...)
	copy(b[from+k:], b[from:len(b)-k])
	copy(b[from:], n[:k])
	return b, more
}

func flag(on bool) byte {
	if on {
		return 1
	}
	return 0
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendPairs(b []byte, pairs []lode.Pair) []byte {
	b = binary.AppendUvarint(b, uint64(len(pairs)))
	for i := range pairs {
		b = appendString(appendString(b, pairs[i].Key), pairs[i].Value)
	}
	return b
}

func appendUsage(b []byte, u *lode.Usage) []byte {
	for _, n := range [...]int64{int64(u.Queued), int64(u.Wall), int64(u.CPU), u.Memory, u.BodyIn, u.BodyOut} {
		b = binary.AppendUvarint(b, uint64(max(n, 0)))
	}
	b = append(b, flag(u.Cold)|flag(u.Clean)<<1)
	b = binary.AppendUvarint(b, uint64(max(u.Operations, 0)))
	return binary.AppendUvarint(b, uint64(max(u.LogDropped, 0)))
}

// wireReader reads what the functions above wrote. After an error it reads
// zeros.
type wireReader struct {
	b   []byte
	err error
}

func (r *wireReader) fail() { r.b, r.err = nil, errWire }

func (r *wireReader) number() int64 {
	n, k := binary.Uvarint(r.b)
	if k <= 0 || n > math.MaxInt64 {
		r.fail()
		return 0
	}
	r.b = r.b[k:]
	return int64(n)
}

func (r *wireReader) small() int {
	n := r.number()
	if n > math.MaxInt32 {
		r.fail()
		return 0
	}
	return int(n)
}

func (r *wireReader) byte() byte {
	if len(r.b) == 0 {
		r.fail()
		return 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

func (r *wireReader) bytes(dst []byte) {
	if len(r.b) < len(dst) {
		r.fail()
		return
	}
	r.b = r.b[copy(dst, r.b):]
}

func (r *wireReader) string() string {
	n := r.number()
	if n > int64(len(r.b)) {
		r.fail()
		return ""
	}
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}

func (r *wireReader) pairs() []lode.Pair {
	n := r.number()
	if n > int64(len(r.b)/2) { // each has two bytes at least
		r.fail()
		return nil
	}
	ps := make([]lode.Pair, 0, n)
	for range n {
		ps = append(ps, lode.Pair{Key: r.string(), Value: r.string()})
	}
	return ps
}

func (r *wireReader) usage() (u lode.Usage) {
	u.Queued, u.Wall, u.CPU = time.Duration(r.number()), time.Duration(r.number()), time.Duration(r.number())
	u.Memory, u.BodyIn, u.BodyOut = r.number(), r.number(), r.number()
	flags := r.byte()
	u.Cold, u.Clean = flags&1 != 0, flags&2 != 0
	u.Operations, u.LogDropped = r.small(), r.number()
	return u
}

// begin reads version and kind, and how much of the head is in the body.
func (r *wireReader) begin(split func(what byte) bool) (what byte, more int64) {
	version := r.byte()
	what = r.byte()
	if version != wireVersion {
		r.fail()
	}
	if split(what) {
		more = r.number()
		if more > wireHeadMost {
			r.fail()
			more = 0
		}
	}
	return what, more
}

func always(byte) bool { return true }

// missing is how much of the head is in the body; 0 also where head is
// malformed.
func missing(head []byte) int64 {
	r := wireReader{b: head}
	_, more := r.begin(always)
	return more
}

// parseOrder reads an invocation; rest is what body holds beside its head.
func parseOrder(head, body []byte) (w *wireOrder, rest []byte, err error) {
	r := wireReader{b: head}
	w = &wireOrder{}
	what, more := r.begin(always)
	if int64(len(body)) < more {
		r.fail()
		more = 0
	}
	if more > 0 {
		r.b = append(append(make([]byte, 0, int64(len(r.b))+more), r.b...), body[:more]...)
	}
	w.what = what
	w.ns, w.function, w.rev = lode.Namespace(r.string()), lode.Name(r.string()), r.small()
	if d := r.string(); copy(w.digest[:], d) != len(d) || len(d) != len(w.digest) {
		r.fail()
	}
	switch what {
	case wireRun:
		w.parseRun(&r)
	case wireAsk:
	default:
		r.fail()
	}
	if r.err != nil {
		return nil, nil, lode.Errorf(lode.Invalid, "%w", r.err)
	}
	return w, body[more:], nil
}

func (w *wireOrder) parseRun(r *wireReader) {
	flags := r.byte()
	w.patient, w.kept, w.streamed = flags&wirePatient != 0, flags&wireKept != 0, flags&wireStreamed != 0
	w.attempt, w.depth = r.small(), r.small()
	w.promised, w.rtt, w.left = time.Duration(r.number()), time.Duration(r.number()), time.Duration(r.number())
	r.bytes(w.trace.ID[:])
	r.bytes(w.trace.Span[:])
	w.trace.Sampled = r.byte() != 0
	r.bytes(w.trace.Parent[:])
	q := &w.req
	q.ID, q.Handler, q.Trigger = lode.InvocationID(r.string()), r.string(), lode.Trigger(r.string())
	q.Method, q.Path, q.Caller, q.IdempotencyKey = r.string(), r.string(), r.string(), r.string()
	q.Head = r.pairs()
}

// idempotent reports whether a request may run twice: by its method or because
// it has a key. What is asynchronous is tried again by whoever keeps it.
func idempotent(req *lode.Request) bool {
	switch req.Trigger {
	case lode.TriggerAsync, lode.TriggerQueue, lode.TriggerSchedule:
		return false
	}
	if req.IdempotencyKey != "" {
		return true
	}
	switch req.Method {
	case "GET", "HEAD", "OPTIONS":
		return true
	}
	return false
}

// headTooLong reports whether the head of a request is more than goes over.
func headTooLong(req *lode.Request) bool {
	n := len(req.Path) + len(req.Method)
	for i := range req.Head {
		n += len(req.Head[i].Key) + len(req.Head[i].Value) + 8
	}
	return n > wireHeadMost/2 || len(req.Head) > engine.MaxPairs
}
