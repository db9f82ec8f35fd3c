package owner

import (
	"encoding/binary"
	"strings"
	"testing"

	"lode/bus/fence"
)

// next pushes every state that follows s, and returns how many there are.
func (m *model) next(s *world2) (moves int) {
	step := func(f func(t *world2)) {
		moves++
		t := *s
		f(&t)
		m.push(&t)
	}
	for i := range s.net {
		m.deliver(s, i, step)
	}
	for i := range int8(2) {
		if !s.p[i].up {
			m.restart(s, i, step)
			continue
		}
		if s.crashes < m.crashes {
			step(func(t *world2) { t.crashes++; t.p[i] = peer{} })
		}
		m.send(s, i, step)
		m.live(s, i, step)
		m.overtake(s, i, step)
	}
	return moves
}

// deliver has a message arrive, with or without its answer coming back.
func (m *model) deliver(s *world2, n int, step func(func(*world2))) {
	k := s.net[n]
	now, _ := s.lands(&k)
	if m.mutant == "no CAS" && k.to != toRegister {
		now = true
	}
	waited := s.waits(&k)
	if !now && !waited { // it may land later; making room is all that losing it can do
		if len(s.net) == int(m.inFlight) {
			step(func(t *world2) { t.net = without(t.net, n) })
		}
		return
	}
	for _, told := range []bool{true, false} {
		if told && !waited || !told && !now {
			continue
		}
		step(func(t *world2) {
			t.net = without(t.net, n)
			if now {
				m.store(t, &k)
			}
			if told {
				m.answer(t, &k, now)
			}
		})
	}
	if now && !waited && len(s.net) == int(m.inFlight) {
		step(func(t *world2) { t.net = without(t.net, n) })
	}
	if m.mutant == "time-out taken as failure" && waited && k.to == k.from && k.e.k == 'W' {
		step(func(t *world2) { t.p[k.from].pend = entry{} })
	}
}

// store is what the bus does.
func (m *model) store(t *world2, k *packet) {
	if k.to == toRegister {
		t.reg, t.rev = k.reg, t.rev+1
		return
	}
	began, over := false, false
	for j := range t.j {
		for _, e := range t.j[j] {
			if int8(j) == k.to && e.k == 'O' {
				over = began && e.inc != k.e.inc || over
				began = began || e.inc == k.e.inc
			}
			if k.e.k == 'T' && e.k == 'T' && e.ep == k.e.ep {
				m.bad("epoch %d is taken twice", e.ep)
			}
		}
	}
	if k.e.k != 'O' && over {
		m.bad("an entry of incarnation %d is stored after another has opened the journal", k.e.inc)
	}
	old := t.j[k.to]
	t.j[k.to] = append(old[:len(old):len(old)], k.e)
	t.sum[k.to] = hash(t.sum[k.to], k.e.appendKey(m.key[:0]))
}

// answer is what the sender learns.
func (m *model) answer(t *world2, k *packet, stored bool) {
	d := &t.p[k.from]
	switch {
	case k.to == toRegister && samePacket(k, &d.swap):
		d.swap = packet{}
		if t.reg == k.reg {
			m.do(t, k.from, d.part.swapped(t.rev))
		} else {
			m.do(t, k.from, d.part.lost())
		}
	case k.to == toRegister:
		d.tswap, d.taking, d.take = packet{}, false, takeover{}
		if t.reg == k.reg { // the loop has it at once
			m.see(t, k.from)
		}
	case k.to == k.from:
		m.judged(t, k.from, m.judge(&d.w, t.j[k.to], k, stored))
	default:
		switch m.judge(&d.sealer, t.j[k.to], k, stored) {
		case fence.Landed:
			d.seal = entry{}
			m.sealed(t, k.from, d.sealer.Tail)
		case fence.Moved: // it goes out again, behind the new tail
		}
	}
}

// judge asks the production's writer what an answer means.
func (m *model) judge(w *fence.Writer, j []entry, k *packet, stored bool) fence.Verdict {
	last := uint64(len(j))
	if stored {
		return w.Stored(last)
	}
	v := w.Ends(last)
	if v != fence.Look {
		return v
	}
	if m.mutant == "refusal taken as failure" && k.e.k == 'W' {
		return fence.Refused
	}
	stand := fence.Other
	if j[w.Tail] == k.e {
		stand = fence.Mine
	}
	v = w.Found(stand, last)
	if v == fence.Lost && m.mutant == "tail read again" {
		w.Tail, w.Ended = last, false
		return fence.Again
	}
	return v
}

func (m *model) judged(t *world2, i int8, v fence.Verdict) {
	switch v {
	case fence.Landed:
		m.landed(t, i)
	case fence.Lost:
		m.end(t, i)
	case fence.Refused:
		t.p[i].pend = entry{}
	}
}

// restart begins a new term of a node that has none.
func (m *model) restart(s *world2, i int8, step func(func(*world2))) {
	if s.incs >= m.incs {
		return
	}
	step(func(t *world2) {
		t.incs++
		t.p[i] = peer{up: true, inc: t.incs, w: fence.Writer{Tail: uint64(len(t.j[i]))}, pend: entry{k: 'O', inc: t.incs}}
	})
}

// send puts out what waits for an answer and is not under way.
func (m *model) send(s *world2, i int8, step func(func(*world2))) {
	d := &s.p[i]
	var out [4]packet
	n := 0
	if d.pend.k != 0 {
		out[n] = packet{to: i, from: i, inc: d.inc, exp: d.w.Tail, e: d.pend}
		n++
	}
	if d.seal.k != 0 {
		out[n] = packet{to: 1 - i, from: i, inc: d.inc, exp: d.sealer.Tail, e: d.seal}
		n++
	}
	for _, k := range []*packet{&d.swap, &d.tswap} {
		if k.to != 0 {
			out[n] = *k
			n++
		}
	}
	for _, k := range out[:n] {
		under := false
		for j := range s.net {
			under = under || s.net[j] == k
		}
		if !under && len(s.net) < int(m.inFlight) {
			step(func(t *world2) { t.net = append(t.net[:len(t.net):len(t.net)], k) })
		}
	}
}

// live is what a node does with its own partition.
func (m *model) live(s *world2, i int8, step func(func(*world2))) {
	d := &s.p[i]
	if !d.on {
		if d.w.N > 0 {
			step(func(t *world2) {
				t.p[i].on = true
				t.rec[i] = NodeRecord{Incarnation: incNames[d.inc], State: NodeUp}
				t.recRev[i]++
			})
		}
		return
	}
	if p := d.part; s.rev > p.rev {
		if a := p.see(s.me(i), s.reg, s.rev, s.heldIn(i, d.opened, s.reg.Epoch)); a != actNone || p != d.part {
			step(func(t *world2) { m.see(t, i) })
		}
	}
	if d.part.state == StateTaking && !d.part.over {
		step(func(t *world2) {
			o := &t.p[1-i]
			if m.mutant != "no wait" && !(t.rec[1-i].State == NodeUp && t.rec[1-i].Incarnation == incNames[o.inc]) {
				o.lease = false // that is what was waited for; one that can be renewed does not end
			}
			m.do(t, i, t.p[i].part.waited(d.part.reg.Epoch, true))
		})
	}
	if d.part.state != StateOwner {
		return
	}
	if !d.lease && s.rec[i].State == NodeUp && s.rec[i].Incarnation == incNames[d.inc] {
		step(func(t *world2) { t.p[i].lease, t.rec[i].Count = true, 1; t.recRev[i]++ })
	}
	if s.moves < m.moves {
		step(func(t *world2) { t.moves++; m.do(t, i, t.p[i].part.give(peers[1-i])) })
	}
	for v := int8(1); d.pend.k == 0 && v <= s.next && v <= m.turns; v++ { // a new one, or one without an answer
		if !strings.ContainsRune(d.hist, '0'+rune(v)) {
			step(func(t *world2) {
				t.next = max(t.next, v+1)
				m.queue(t, i, entry{k: 'W', ep: d.part.reg.Epoch, v: v})
			})
		}
	}
}

// see has a node see the register.
func (m *model) see(t *world2, i int8) {
	d := &t.p[i]
	a := d.part.see(t.me(i), t.reg, t.rev, t.heldIn(i, d.opened, t.reg.Epoch))
	if a != actNone {
		d.swap = packet{} // what was being swapped is overtaken
	}
	m.do(t, i, a)
}

// overtake is what a node does with the other one's partition: it may suspect
// it at any time.
func (m *model) overtake(s *world2, i int8, step func(func(*world2))) {
	d, o := &s.p[i], 1-i
	switch {
	case !d.on:
	case !d.taking && s.reg.Node == peers[o] && s.takes < m.takes:
		step(func(t *world2) {
			t.takes++
			d := &t.p[i]
			d.taking, d.take = true, takeover{node: peers[o]}
			if d.take.begin(t.rec[o], t.recRev[o]) {
				t.rec[o] = d.take.suspect()
				t.recRev[o]++
				d.take.suspected(t.recRev[o])
			}
		})
	case d.taking && d.take.stage == takeReading:
		step(func(t *world2) {
			if m.see(t, i); !t.p[i].up {
				return
			}
			d := &t.p[i]
			d.taking = d.take.read([]named{{journal0, t.reg, t.rev}})
		})
	case d.taking && d.take.stage == takeChecking:
		step(func(t *world2) {
			d := &t.p[i]
			rev := t.recRev[o]
			if m.mutant == "record not checked" {
				rev = d.take.rev
			}
			if d.taking = d.take.checked(rev); !d.taking {
				d.take = takeover{}
				return
			}
			if m.mutant == "no seal" {
				m.sealed(t, i, uint64(len(t.j[o]))+1)
				return
			}
			d.seals++
			d.sealer, d.seal = fence.Writer{Tail: uint64(len(t.j[o]))}, entry{k: 'O', inc: d.inc, v: d.seals}
		})
	}
}

var journal0 = part64(0)

// sealed goes on when the other's journal is opened at cut.
func (m *model) sealed(t *world2, i int8, cut uint64) {
	d, o := &t.p[i], 1-i
	d.sealer = fence.Writer{}
	d.take.sealed(cut)
	n := d.take.named[0]
	if m.mutant == "register read after the seal" && t.reg.Node == peers[o] {
		n.reg, n.rev = t.reg, t.rev
	}
	held := t.heldIn(o, cut, n.reg.Epoch) || m.mutant == "take not looked for"
	d.take.scanned()
	d.tswap = packet{to: toRegister, from: i, inc: d.inc, exp: n.rev, reg: d.take.register(n, held, peers[i], incNames[d.inc], aWait)}
}

// appendKey writes what tells a state from others. Revisions of records are
// only compared with each other.
func (s *world2) appendKey(b []byte) []byte {
	for j := range s.j {
		b = binary.LittleEndian.AppendUint64(append(b, byte(len(s.j[j]))), s.sum[j])
	}
	b = append(appendRegister(b, &s.reg), byte(s.rev), byte(s.next), byte(s.crashes), byte(s.incs), byte(s.moves), byte(s.takes), byte(len(s.acked)))
	b = append(b, s.acked...)
	for i := range s.p {
		d := &s.p[i]
		b = append(b, flags(d.up, d.on, d.lease, d.taking, s.rec[i].State == NodeUp, s.rec[i].Count > 0, d.take.waitFor, d.take.rev == s.recRev[1-i]), byte(s.rec[i].Incarnation[0]))
		if !d.up {
			continue
		}
		b = append(b, byte(d.inc), byte(d.w.N), byte(d.w.Tail), flags(d.part.over), byte(d.opened), byte(d.seals), byte(d.sealer.Tail))
		b = d.seal.appendKey(d.then.appendKey(d.pend.appendKey(b)))
		b = append(b, byte(d.part.state), byte(d.part.stage), byte(d.part.rev), byte(d.part.took), byte(len(d.part.to)), byte(d.take.stage), byte(len(d.hist)))
		b = append(appendRegister(b, &d.part.reg), d.hist...)
		for _, k := range []*packet{&d.swap, &d.tswap} {
			b = k.appendKey(b)
		}
		b = append(b, byte(len(d.take.named)))
		for _, n := range d.take.named {
			b = append(appendRegister(b, &n.reg), byte(n.rev))
		}
	}
	return s.appendNet(b)
}

// appendNet writes the messages under way in an order of their own.
func (s *world2) appendNet(b []byte) []byte {
	var hs [8]uint64
	for i := range s.net {
		var one [64]byte
		h := hash(0, s.net[i].appendKey(one[:0]))
		j := i
		for ; j > 0 && hs[j-1] > h; j-- {
			hs[j] = hs[j-1]
		}
		hs[j] = h
	}
	for i := range s.net {
		b = binary.LittleEndian.AppendUint64(b, hs[i])
	}
	return b
}

// hash is FNV-1a, begun with another one.
func hash(h uint64, b []byte) uint64 {
	h ^= 14695981039346656037
	for _, c := range b {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return h
}

func flags(fs ...bool) (b byte) {
	for i, f := range fs {
		if f {
			b |= 1 << i
		}
	}
	return b
}

func (e *entry) appendKey(b []byte) []byte {
	if e.k == 0 {
		return append(b, 0)
	}
	return append(append(b, e.k, byte(e.inc), byte(e.n), byte(e.ep), byte(e.v), byte(len(e.hist))), e.hist...)
}

func appendRegister(b []byte, r *Register) []byte {
	name := func(s string) byte {
		if s == "" {
			return 0
		}
		return s[0]
	}
	return append(b, byte(r.Epoch), name(string(r.Node)), name(r.Incarnation), name(string(r.Base.Journal)), byte(r.Base.Cut), byte(r.Base.Epoch), byte(r.Wait))
}

func (k *packet) appendKey(b []byte) []byte {
	b = append(b, byte(k.to), byte(k.from), byte(k.inc), byte(k.exp))
	if k.to == toRegister {
		return appendRegister(b, &k.reg)
	}
	return k.e.appendKey(b)
}

// TestMutants breaks one rule after another: the model finds each out.
func TestMutants(t *testing.T) {
	t.Parallel()
	small := bounds{2, 1, 2, 3, 1, 2}
	for _, c := range []struct {
		name string
		bounds
	}{{"no CAS", small}, {"tail read again", small}, {"no seal", small}, {"register read after the seal", bounds{1, 1, 1, 3, 0, 1}},
		{"no wait", small}, {"no give", small}, {"time-out taken as failure", small}, {"refusal taken as failure", small},
		{"record not checked", bounds{1, 1, 1, 3, 0, 1}}, {"take not looked for", small}} {
		t.Run(c.name, func(t *testing.T) {
			m := model{bounds: c.bounds, mutant: c.name}
			m.explore()
			if m.viol == "" {
				t.Fatalf("it was not found in %d states", len(m.seen))
			}
			t.Logf("found after %d states: %s", len(m.seen), m.viol[:strings.IndexByte(m.viol, '\n')])
		})
	}
}
