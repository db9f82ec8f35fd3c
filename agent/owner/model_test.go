package owner

import (
	"fmt"
	"hash/maphash"
	"os"
	"strings"
	"testing"

	"lode"
	"lode/agent/journal"
	"lode/bus/fence"
)

// The model explores every interleaving of two nodes and one partition with the
// machines that run in production: part, takeover and fence.Writer. It is its
// own bus and its own clock:
//
//   - a journal takes a message if it ends where the message says;
//   - a message may land late, or after its sender is gone; its answer may be lost, then the same goes out again;
//   - a register is swapped by messages like that; records of nodes are swapped at once;
//   - a node may die, begin again, be suspected though it lives, and move the partition;
//   - a lease lasts until it is waited for: if it ended before, it would only allow less.
//
// What is checked in every state: a journal has no entry of an incarnation
// after another has opened it (S1); an epoch is taken once (S2); who begins to
// own has every acknowledged turn, once (S3); so has who reads by a lease (S5);
// a term ends only if another has opened the journal, what is stored is known
// to a writer that waits for nothing, and nothing stands still for ever (liveness).
//
// It leaves out what makes no difference: a message that can never land and
// that nobody waits for is gone; one that is waited for is not lost, for the
// same bytes would go out again; loading is at once, for what is read does not
// change any more.

// bounds is how far a model goes.
type bounds struct {
	turns, crashes, inFlight, incs, moves, takes int8 // incs: terms, with the two at the start; takes: suspicions
}

// entry is a message of a journal; each has one entry.
type entry struct {
	k    byte // O open, T take, W turn, G give
	inc  int8 // of its writer
	n    uint64
	ep   uint64
	v    int8   // W: the turn; O: which opening of inc it is
	hist string // T: the state that it begins with
}

// packet is a message under way.
type packet struct {
	to   int8 // journal 0 or 1, or the register
	from int8
	inc  int8 // of from
	exp  uint64
	e    entry
	reg  Register
}

const toRegister = 2

// peer is one node.
type peer struct {
	up, on, lease bool // on: the record says so
	inc           int8
	w             fence.Writer
	pend, then    entry // being stored, and behind it
	part          part
	opened        uint64
	hist          string
	swap, tswap   packet // registers being swapped: of the partition, of the take-over; to is 0: none
	taking        bool
	take          takeover
	sealer        fence.Writer
	seal          entry // being stored in the other's journal
	seals         int8
}

type world2 struct {
	j                                 [2][]entry // never changed in place
	sum                               [2]uint64  // of them, for the key
	reg                               Register
	rev                               uint64
	rec                               [2]NodeRecord
	recRev                            [2]uint64
	p                                 [2]peer
	net                               []packet // never changed in place
	acked                             string
	next, crashes, incs, moves, takes int8
}

var (
	peers    = [2]lode.NodeID{"a", "b"}
	incNames = [...]string{"", "1", "2", "3", "4", "5", "6", "7"}
)

const aWait = 1 // any wait: the model's clock is the leases

// model explores; mutant breaks a rule on purpose.
type model struct {
	bounds
	mutant string
	seed   maphash.Seed
	seen   map[uint64]struct{} // keys' hashes: that any two of a million meet is one in 10^7
	stack  []world2
	key    []byte
	viol   string
	full   int // states with every turn acknowledged
	most   int // states to explore, at most
}

func (m *model) bad(format string, args ...any) {
	if m.viol == "" {
		m.viol = fmt.Sprintf(format, args...)
	}
}

func start() world2 {
	var s world2
	s.next, s.incs = 1, 2
	s.j[0] = []entry{{k: 'O', inc: 1}, {k: 'T', inc: 1, n: 1, ep: 1}}
	s.j[1] = []entry{{k: 'O', inc: 2}}
	s.reg, s.rev = Register{Epoch: 1, Node: "a", Incarnation: "1"}, 1
	for i := range peers {
		s.rec[i], s.recRev[i] = NodeRecord{Incarnation: incNames[i+1], State: NodeUp}, 1
		s.p[i] = peer{up: true, on: true, inc: int8(i + 1), opened: 1, w: fence.Writer{N: 1, Tail: 1}}
	}
	s.p[0].w = fence.Writer{N: 2, Tail: 2}
	s.p[0].part = part{state: StateOwner, reg: s.reg, rev: 1, took: 1}
	return s
}

// explore goes through every state, depth first.
func (m *model) explore() {
	m.seed, m.seen = maphash.MakeSeed(), make(map[uint64]struct{})
	s := start()
	m.push(&s)
	for len(m.stack) > 0 && m.viol == "" && (m.most == 0 || len(m.seen) < m.most) {
		at := len(m.stack) - 1
		if m.mutant != "" { // breadth first: the shortest way
			at = 0
		}
		s := m.stack[at]
		m.stack[at] = world2{}
		if at == 0 {
			m.stack = m.stack[1:]
		} else {
			m.stack = m.stack[:at]
		}
		before := len(m.seen)
		moves := m.next(&s)
		if moves == 0 {
			m.still(&s)
		}
		if len(s.acked) == int(m.turns) {
			m.full++
		}
		if m.viol != "" {
			m.viol += fmt.Sprintf("\nafter %d states, from %s", before, describe(&s))
		}
	}
}

// still judges a state that nothing leaves.
func (m *model) still(s *world2) {
	for i := range s.p {
		if d := &s.p[i]; d.up && (d.part.state != StateOwner || len(d.hist) < int(m.turns)) && s.reg.Node == peers[i] {
			m.bad("%s stands still", peers[i])
		}
		if d := &s.p[i]; d.up && s.reg.Node != peers[i] && s.takes < m.takes {
			m.bad("%s does not take over", peers[i])
		}
	}
}

// push keeps a state that is new.
func (m *model) push(s *world2) {
	m.tidy(s)
	m.check(s)
	m.key = s.appendKey(m.key[:0])
	k := maphash.Bytes(m.seed, m.key)
	if _, old := m.seen[k]; !old {
		m.seen[k] = struct{}{}
		m.stack = append(m.stack, *s)
	}
}

// waits reports whether the sender of a message still waits for it.
func (s *world2) waits(k *packet) bool {
	d := &s.p[k.from]
	if !d.up || d.inc != k.inc {
		return false
	}
	switch {
	case k.to == toRegister:
		return samePacket(k, &d.swap) || samePacket(k, &d.tswap)
	case k.to == k.from:
		return d.pend == k.e && d.w.Tail == k.exp
	}
	return d.seal == k.e && d.sealer.Tail == k.exp
}

// lands reports whether a message is taken, now; one that is behind never is.
func (s *world2) lands(k *packet) (now, ever bool) {
	at := s.rev
	if k.to != toRegister {
		at = uint64(len(s.j[k.to]))
	}
	return k.exp == at, k.exp >= at
}

func samePacket(a, b *packet) bool { return a.to == b.to && a.exp == b.exp && a.reg == b.reg }

// tidy drops what can never land and nobody waits for.
func (m *model) tidy(s *world2) {
	for i := 0; i < len(s.net); i++ {
		if _, ever := s.lands(&s.net[i]); !ever && !s.waits(&s.net[i]) && m.mutant != "no CAS" {
			s.net = without(s.net, i)
			i--
		}
	}
}

func without(net []packet, i int) []packet {
	out := make([]packet, 0, len(net))
	return append(append(out, net[:i]...), net[i+1:]...)
}

// check holds what must be true in every state.
func (m *model) check(s *world2) {
	for i := range s.p {
		d := &s.p[i]
		if !d.up {
			continue
		}
		if d.lease && (d.part.state == StateOwner) {
			m.complete(s, d.hist, "a read by the lease")
		}
		if d.pend.k == 0 && d.w.N > 0 {
			n := uint64(0)
			for _, e := range s.j[i] {
				if e.inc == d.inc {
					n++
				}
			}
			if n != d.w.N {
				m.bad("%s knows of %d messages of %d that are stored", peers[i], d.w.N, n)
			}
		}
	}
}

// complete holds that a state has every acknowledged turn, once.
func (m *model) complete(s *world2, hist, who string) {
	for _, c := range s.acked {
		if strings.Count(hist, string(c)) != 1 {
			m.bad("%s has %q, and %q was acknowledged", who, hist, s.acked)
		}
	}
	for i, c := range hist {
		if strings.ContainsRune(hist[i+1:], c) {
			m.bad("a turn has run twice: %q", hist)
		}
	}
}

// heldIn reports whether a journal holds a take of an epoch before cut.
func (s *world2) heldIn(j int8, cut, ep uint64) bool {
	for i, e := range s.j[j] {
		if uint64(i)+1 < cut && e.k == 'T' && e.ep == ep {
			return true
		}
	}
	return false
}

// recover is the state of the partition at a base.
func (m *model) recover(s *world2, b journal.Base) string {
	hist, ok := "", false
	j := int8(strings.Index("ab", string(b.Journal)))
	for i, e := range s.j[j] {
		if uint64(i)+1 >= b.Cut || e.ep != b.Epoch || e.k == 'G' {
			continue
		}
		if e.k == 'T' {
			hist, ok = e.hist, true
		} else if ok {
			hist += string('0' + rune(e.v))
		}
	}
	if !ok {
		m.bad("there is no take at %+v", b)
	}
	return hist
}

func (s *world2) me(i int8) self {
	return self{node: peers[i], inc: incNames[s.p[i].inc], opened: s.p[i].opened}
}

// do does what part wants; what takes no time to matter is done at once.
func (m *model) do(s *world2, i int8, a act) {
	d := &s.p[i]
	switch a {
	case actSwap:
		d.swap = packet{to: toRegister, from: i, inc: d.inc, exp: d.part.rev, reg: d.part.wanted(s.me(i), s.rec[1-i].Incarnation)}
	case actReread:
		held := s.heldIn(i, d.opened, s.reg.Epoch)
		m.do(s, i, d.part.again(s.me(i), s.reg, s.rev, held))
	case actLoad:
		d.hist = m.recover(s, d.part.reg.Base)
		m.do(s, i, d.part.loaded(d.part.reg.Epoch))
	case actTake:
		m.queue(s, i, entry{k: 'T', ep: d.part.reg.Epoch, hist: d.hist})
	case actStart:
		if s.reg.Node == peers[i] && s.reg.Incarnation == incNames[d.inc] && s.reg.Epoch == d.part.reg.Epoch {
			m.complete(s, d.hist, "a new owner")
		}
	case actStop:
		m.do(s, i, d.part.stopped(true))
	case actGive:
		if m.mutant == "no give" {
			m.do(s, i, d.part.given(s.me(i), d.w.Tail))
			return
		}
		m.queue(s, i, entry{k: 'G', ep: d.part.reg.Epoch})
	case actGone:
		d.hist = ""
	case actFenced:
		m.end(s, i)
	}
}

// queue has a node store an entry.
func (m *model) queue(s *world2, i int8, e entry) {
	d := &s.p[i]
	e.inc = d.inc
	if d.pend.k != 0 {
		if d.then.k != 0 {
			m.bad("%s stores three entries at once", peers[i])
		}
		d.then = e
		return
	}
	e.n = d.w.N
	d.pend = e
}

// end ends a term that another has ended.
func (m *model) end(s *world2, i int8) {
	d := &s.p[i]
	mine := false
	for _, e := range s.j[i] {
		if e.k == 'O' {
			mine = e.inc == d.inc
		}
	}
	if mine && m.mutant != "no seal" && m.mutant != "register read after the seal" { // which are to lose data
		m.bad("%s ended its own term", peers[i])
	}
	*d = peer{}
}

// landed is what a node does when it knows that its entry is stored.
func (m *model) landed(s *world2, i int8) {
	d := &s.p[i]
	e := d.pend
	d.pend, d.then = d.then, entry{}
	d.pend.n = 0
	if d.pend.k != 0 {
		d.pend.n = d.w.N
	}
	switch e.k {
	case 'O':
		d.opened = d.w.Tail
	case 'T':
		m.do(s, i, d.part.taken(e.ep))
	case 'W':
		d.hist += string('0' + rune(e.v))
		if !strings.ContainsRune(s.acked, '0'+rune(e.v)) {
			s.acked += string('0' + rune(e.v))
		}
	case 'G':
		m.do(s, i, d.part.given(s.me(i), d.w.Tail))
	}
}

// describe is a state for people.
func describe(s *world2) string {
	var b strings.Builder
	for i := range s.j {
		fmt.Fprintf(&b, "\n  journal %s:", peers[i])
		for n, e := range s.j[i] {
			fmt.Fprintf(&b, " %d:%c inc %d ep %d v %d %q;", n+1, e.k, e.inc, e.ep, e.v, e.hist)
		}
		fmt.Fprintf(&b, "\n  record %+v, node %+v", s.rec[i], s.p[i])
	}
	fmt.Fprintf(&b, "\n  register %d: %+v\n  net %+v\n  acknowledged %q", s.rev, s.reg, s.net, s.acked)
	return b.String()
}

func TestModel(t *testing.T) {
	t.Parallel()
	sizes := []bounds{{2, 1, 2, 3, 1, 1}}
	if os.Getenv("LODE_LONG") != "" {
		sizes = append(sizes, bounds{2, 1, 1, 3, 1, 2}, bounds{2, 1, 3, 3, 1, 1}, bounds{2, 1, 2, 4, 1, 1})
	}
	for _, b := range sizes {
		t.Run(fmt.Sprintf("%d turns %d crashes %d in flight %d terms %d moves %d suspicions", b.turns, b.crashes, b.inFlight, b.incs, b.moves, b.takes), func(t *testing.T) {
			m := model{bounds: b}
			m.explore()
			if m.viol != "" {
				t.Fatal(m.viol)
			}
			t.Logf("%d states, %d with every turn acknowledged", len(m.seen), m.full)
			if m.full == 0 {
				t.Fatal("no way leads to the end")
			}
		})
	}
}
