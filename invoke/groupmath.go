package invoke

import (
	"encoding/binary"
	"fmt"
	"math"

	"lode"
	"lode/engine"
)

// maxCombined is how long what a round gives may be.
const maxCombined = engine.MaxMessage - 64<<10

// maxPart is how long a part of an exchange may be.
const maxPart = 1 << 20

// groupStep is what a member does in a round. All members of a round do the same.
type groupStep struct {
	Verb string `json:"verb"`           // reduce, exchange, barrier
	Op   string `json:"op,omitempty"`   // reduce: sum, mean, max
	Form string `json:"form,omitempty"` // reduce: f32, f64
	Size int    `json:"size,omitempty"` // reduce: bytes of the vector
}

func (st groupStep) String() string {
	if st.Verb != "reduce" {
		return st.Verb
	}
	return fmt.Sprintf("%s of %d bytes of %s", st.Op, st.Size, st.Form)
}

// stepOf reads what a member wants of a round.
func stepOf(m *lode.Message) (groupStep, error) {
	st := groupStep{Verb: m.Get(":verb")}
	switch st.Verb {
	case "reduce":
		st.Op, st.Form, st.Size = m.Get(":op"), m.Get(":form"), len(m.Body)
	case "exchange":
		if len(m.Body) > maxPart {
			return st, lode.Errorf(lode.TooLarge, "a part of an exchange has %d bytes; at most %d", len(m.Body), maxPart)
		}
	}
	return st, st.check()
}

func (st groupStep) check() error {
	switch {
	case st.Verb == "exchange" || st.Verb == "barrier":
		return nil
	case st.Verb != "reduce":
		return lode.Errorf(lode.Invalid, "group has no round %.20q", st.Verb).WithHint("verbs: gather, broadcast, join, reduce, exchange, barrier, leave")
	case st.Op != string(lode.GroupSum) && st.Op != string(lode.GroupMean) && st.Op != string(lode.GroupMax):
		return lode.Errorf(lode.Invalid, "a reduce has the operation %.20q; want sum, mean or max", st.Op)
	case st.width() == 0:
		return lode.Errorf(lode.Invalid, "a reduce has the form %.20q; want f32 or f64", st.Form)
	case st.Size < 0 || st.Size%st.width() != 0:
		return lode.Errorf(lode.Invalid, "a vector of %s has %d bytes, which is no multiple of %d", st.Form, st.Size, st.width())
	case st.Size > maxCombined:
		return lode.Errorf(lode.TooLarge, "a vector has %d bytes; at most %d", st.Size, maxCombined).WithHint("reduce it in parts")
	}
	return nil
}

// width is the size of a number in bytes; 0: the form is not known.
func (st groupStep) width() int {
	switch st.Form {
	case "f32":
		return 4
	case "f64":
		return 8
	}
	return 0
}

// fold combines parts in the order of their numbers, whatever order they come
// in: what is combined depends on no clock.
type fold struct {
	st    groupStep
	parts [][]byte // those that wait for their turn; of an exchange: all
	have  []bool
	next  int // the first that is missing
	acc   []byte
}

func newFold(st groupStep, n int) *fold {
	return &fold{st: st, parts: make([][]byte, n), have: make([]bool, n)}
}

// add takes the part with the number i, once. It may use part's memory.
func (f *fold) add(i int, part []byte) {
	if f.have[i] {
		return
	}
	f.have[i], f.parts[i] = true, part
	for ; f.next < len(f.have) && f.have[f.next]; f.next++ {
		if f.st.Verb != "reduce" {
			continue
		}
		if f.next == 0 {
			f.acc = f.parts[0]
		} else {
			f.st.combine(f.acc, f.parts[f.next])
		}
		f.parts[f.next] = nil
	}
}

// combine combines b into a; both have the step's size.
func (st groupStep) combine(a, b []byte) {
	le, most := binary.LittleEndian, st.Op == string(lode.GroupMax)
	if st.Form == "f32" {
		for i := 0; i+4 <= len(a) && i+4 <= len(b); i += 4 {
			x, y := math.Float32frombits(le.Uint32(a[i:])), math.Float32frombits(le.Uint32(b[i:]))
			if most {
				x = max(x, y)
			} else {
				x += y
			}
			le.PutUint32(a[i:], math.Float32bits(x))
		}
		return
	}
	for i := 0; i+8 <= len(a) && i+8 <= len(b); i += 8 {
		x, y := math.Float64frombits(le.Uint64(a[i:])), math.Float64frombits(le.Uint64(b[i:]))
		if most {
			x = max(x, y)
		} else {
			x += y
		}
		le.PutUint64(a[i:], math.Float64bits(x))
	}
}

// mean divides the sum in a by the number of members.
func (st groupStep) mean(a []byte, n int) {
	le := binary.LittleEndian
	if st.Form == "f32" {
		for i := 0; i+4 <= len(a); i += 4 {
			le.PutUint32(a[i:], math.Float32bits(math.Float32frombits(le.Uint32(a[i:]))/float32(n)))
		}
		return
	}
	for i := 0; i+8 <= len(a); i += 8 {
		le.PutUint64(a[i:], math.Float64bits(math.Float64frombits(le.Uint64(a[i:]))/float64(n)))
	}
}

// partial is what a node tells of its members: of an exchange all parts, in the
// order of their ranks.
func (f *fold) partial() []byte {
	if f.st.Verb == "exchange" {
		return appendParts(nil, f.parts)
	}
	return f.acc
}

func appendParts(b []byte, parts [][]byte) []byte {
	n := 4
	for _, p := range parts {
		n += 4 + len(p)
	}
	if b == nil {
		b = make([]byte, 0, n)
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(len(parts)))
	for _, p := range parts {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(p)))
		b = append(b, p...)
	}
	return b
}

// conclude is the result of a round of size members whose parts are all there.
// ranks are those behind each part of f; nil: each part is one rank's.
func (f *fold) conclude(size int, ranks [][]int) ([]byte, error) {
	switch f.st.Verb {
	case "reduce":
		if f.st.Op == string(lode.GroupMean) {
			f.st.mean(f.acc, size)
		}
		return f.acc, nil
	case "exchange":
		parts := f.parts
		if ranks != nil {
			parts = make([][]byte, size)
			for i, p := range f.parts {
				if err := spreadParts(parts, ranks[i], p); err != nil {
					return nil, err
				}
			}
		}
		b := appendParts(nil, parts)
		if len(b) > maxCombined {
			return nil, lode.Errorf(lode.TooLarge, "the parts of all %d members have %d bytes; at most %d", size, len(b), maxCombined)
		}
		return b, nil
	}
	return nil, nil
}

// spreadParts puts a node's parts where their ranks are.
func spreadParts(parts [][]byte, ranks []int, b []byte) error {
	cannot := lode.Errorf(lode.Invalid, "a node told other parts than those of its %d members", len(ranks))
	n, b, ok := nextCount(b)
	if !ok || n != len(ranks) {
		return cannot
	}
	for _, rank := range ranks {
		if n, b, ok = nextCount(b); !ok || n > len(b) {
			return cannot
		}
		parts[rank], b = b[:n:n], b[n:]
	}
	if len(b) > 0 {
		return cannot
	}
	return nil
}

// nextCount takes a number off b.
func nextCount(b []byte) (n int, rest []byte, ok bool) {
	if len(b) < 4 {
		return 0, b, false
	}
	return int(binary.LittleEndian.Uint32(b)), b[4:], true
}
