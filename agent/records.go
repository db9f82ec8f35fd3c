package agent

import (
	"lode"
)

// meta is what is known of an agent beside its state. It is written when it
// has changed much, not in every turn: Touched may be a minute old, and Bytes
// off by a few KiB after a crash.
type meta struct {
	Created  int64 // Unix ms
	Touched  int64
	Revision int    // that ran last
	Bytes    int64  // of state
	Events   uint64 // emitted
	Kept     int    // replies with an id of the caller
}

func (m *meta) encode() []byte {
	e := newEnc(48)
	e.i(m.Created)
	e.i(m.Touched)
	e.u(uint64(m.Revision))
	e.i(m.Bytes)
	e.u(m.Events)
	e.u(uint64(m.Kept))
	return e.b
}

func decodeMeta(b []byte) (m meta, err error) {
	d := newDec(b)
	m = meta{d.i(), d.i(), int(d.u()), d.i(), d.u(), int(d.u())}
	if !d.end() {
		return meta{}, damaged("the record")
	}
	return m, nil
}

// outcome is what a turn answered, as it is kept for repetitions.
type outcome struct {
	Hash   uint64 // of what was asked
	Status int
	Head   []lode.Pair
	Body   []byte
	Lost   bool // the answer was too large to keep

	repeated bool // it is that of an earlier turn
}

func (o *outcome) encode() []byte {
	e := newEnc(32 + len(o.Body))
	e.u(o.Hash)
	e.u(uint64(o.Status))
	e.pairs(o.Head)
	e.flag(o.Lost)
	e.bytes(o.Body)
	return e.b
}

func decodeOutcome(b []byte) (o outcome, err error) {
	d := newDec(b)
	o = outcome{Hash: d.u(), Status: int(d.u()), Head: d.pairs(), Lost: d.flag(), Body: d.bytes()}
	if !d.end() {
		return outcome{}, damaged("a kept answer")
	}
	return o, nil
}

// timer is something an agent is to do later. Those whose name begins with
// byte 1 are messages that wait for their time; 0: Lode's own.
type timer struct {
	Due    int64 // Unix ms of cluster time
	First  int64 // when it was due first
	N      uint64
	Method string
	Type   string // content type
	Body   []byte
	Fails  int
	Why    string // of the last failure
	Caller string
	ID     string // message: of its turn
	Hash   uint64 // message: of what was asked
}

func (t *timer) encode() []byte {
	e := newEnc(64 + len(t.Body))
	e.i(t.Due)
	e.i(t.First)
	e.u(t.N)
	e.s(t.Method)
	e.s(t.Type)
	e.bytes(t.Body)
	e.u(uint64(t.Fails))
	e.s(t.Why)
	e.s(t.Caller)
	e.s(t.ID)
	e.u(t.Hash)
	return e.b
}

func decodeTimer(b []byte) (t timer, err error) {
	d := newDec(b)
	t = timer{Due: d.i(), First: d.i(), N: d.u(), Method: d.s(), Type: d.s(), Body: d.bytes(), Fails: int(d.u()), Why: d.s(), Caller: d.s(), ID: d.s(), Hash: d.u()}
	if !d.end() {
		return timer{}, damaged("a timer")
	}
	return t, nil
}

// letter is a message from one agent to another.
type letter struct {
	N      uint64 // on its channel; in the key, where it is kept
	To     string // the agent's key
	From   string // address of the sender
	ID     string // of the turn that it causes
	Method string
	Type   string
	Body   []byte
	Due    int64 // Unix ms; 0: at once
	Trace  string

	kind  lode.Name // of the receiver; known from the channel
	timer string    // its name, where it is the turn of a timer that is dead
}

func (l *letter) encode(e *enc) {
	e.s(l.To)
	e.s(l.From)
	e.s(l.ID)
	e.s(l.Method)
	e.s(l.Type)
	e.bytes(l.Body)
	e.i(l.Due)
	e.s(l.Trace)
}

func decodeLetterFrom(d *dec) letter {
	return letter{To: d.s(), From: d.s(), ID: d.s(), Method: d.s(), Type: d.s(), Body: d.bytes(), Due: d.i(), Trace: d.s()}
}

func decodeLetter(b []byte) (letter, error) {
	d := newDec(b)
	l := decodeLetterFrom(d)
	if !d.end() {
		return letter{}, damaged("a message")
	}
	return l, nil
}

// dead is a message or a timer that failed for good.
type dead struct {
	At     int64
	Letter letter
	Why    string
	Kind   lode.Kind // of the failure
	Tries  int       // of its turn
}

func (x *dead) encode() []byte {
	e := newEnc(128 + len(x.Letter.Body))
	e.i(x.At)
	e.s(x.Why)
	e.s(string(x.Kind))
	e.u(uint64(x.Tries))
	e.s(string(x.Letter.kind))
	e.s(x.Letter.timer)
	x.Letter.encode(e)
	return e.b
}

func decodeDead(b []byte) (x dead, err error) {
	d := newDec(b)
	x = dead{At: d.i(), Why: d.s(), Kind: lode.Kind(d.s()), Tries: int(d.u())}
	kind, timer := lode.Name(d.s()), d.s()
	x.Letter = decodeLetterFrom(d)
	x.Letter.kind, x.Letter.timer = kind, timer
	if !d.end() {
		return dead{}, damaged("a dead message")
	}
	return x, nil
}

// socket is a WebSocket of an agent, which the gateway of some node holds.
type socket struct {
	Tags       []string
	Attachment []byte
	Sent       uint64 // number of the last frame
}

func (s *socket) encode() []byte {
	e := newEnc(32 + len(s.Attachment))
	e.list(s.Tags)
	e.bytes(s.Attachment)
	e.u(s.Sent)
	return e.b
}

func decodeSocket(b []byte) (s socket, err error) {
	d := newDec(b)
	s = socket{Tags: d.list(), Attachment: d.bytes(), Sent: d.u()}
	if !d.end() {
		return socket{}, damaged("a socket")
	}
	return s, nil
}

func encodeEvent(typ string, data []byte) []byte {
	e := newEnc(16 + len(data))
	e.s(typ)
	e.bytes(data)
	return e.b
}

func decodeEvent(n uint64, b []byte) (lode.AgentEvent, error) {
	d := newDec(b)
	ev := lode.AgentEvent{N: n, Type: d.s(), Data: d.bytes()}
	if !d.end() {
		return lode.AgentEvent{}, damaged("an event")
	}
	return ev, nil
}

// window is what a partition has consumed of a channel: everything up to Mark,
// and those behind it whose bit is set: bit i is Mark+1+i.
type window struct {
	Mark uint64
	Bits []uint64
}

// windowMax is how far a sender may be ahead of what was consumed.
const windowMax = 4096

// has reports whether n was consumed.
func (w *window) has(n uint64) bool {
	if n <= w.Mark {
		return true
	}
	i := n - w.Mark - 1
	return i/64 < uint64(len(w.Bits)) && w.Bits[i/64]>>(i%64)&1 != 0
}

// add notes that n was consumed; false if it lies beyond the window.
func (w *window) add(n uint64) bool {
	if n <= w.Mark {
		return true
	}
	i := n - w.Mark - 1
	if i >= windowMax {
		return false
	}
	for uint64(len(w.Bits)) <= i/64 {
		w.Bits = append(w.Bits, 0)
	}
	w.Bits[i/64] |= 1 << (i % 64)
	for len(w.Bits) > 0 && w.Bits[0]&1 != 0 {
		w.shift()
	}
	return true
}

// shift moves Mark over the consumed ones behind it.
func (w *window) shift() {
	n := 0
	for n < 64 && w.Bits[0]>>n&1 != 0 {
		n++
	}
	w.Mark += uint64(n)
	if n == 64 {
		w.Bits = w.Bits[1:]
		return
	}
	for i := range w.Bits {
		w.Bits[i] >>= n
		if i+1 < len(w.Bits) {
			w.Bits[i] |= w.Bits[i+1] << (64 - n)
		}
	}
	for len(w.Bits) > 0 && w.Bits[len(w.Bits)-1] == 0 {
		w.Bits = w.Bits[:len(w.Bits)-1]
	}
}

func (w *window) encode() []byte {
	e := newEnc(16 + 9*len(w.Bits))
	w.encodeTo(e)
	return e.b
}

func (w *window) encodeTo(e *enc) {
	e.u(w.Mark)
	e.u(uint64(len(w.Bits)))
	for _, b := range w.Bits {
		e.u(b)
	}
}

func decodeWindowFrom(d *dec) window {
	w := window{Mark: d.u()}
	n := d.count()
	if n > windowMax/64 {
		d.Bad = true
		return window{}
	}
	for range n {
		w.Bits = append(w.Bits, d.u())
	}
	return w
}

func decodeWindow(b []byte) (window, error) {
	d := newDec(b)
	w := decodeWindowFrom(d)
	if !d.end() {
		return window{}, damaged("a channel")
	}
	return w, nil
}
