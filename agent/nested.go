package agent

import (
	"slices"

	"lode"
)

// A link of a chain of calls is the address of an agent that waits, a zero
// byte, and what stands for its turn: a call that comes back to an agent runs
// within the very turn that waits for it, or as one of its own if that is over.
// Turns within a turn are one at a time too: each within the last that began.

func linkOf(t *turn) string { return t.a.address() + "\x00" + turnMark(t.m) }

const markLen = 33

func turnMark(m *message) string { return lode.TurnIDOf(m.id, 0) }

// parseLink reads a link of a chain; one that names no turn stands for any.
func parseLink(link string) (address, mark string) {
	if i := len(link) - markLen - 1; i > 0 && link[i] == 0 {
		return link[:i], link[i+1:]
	}
	return link, ""
}

// level is how many turns within a turn of a the call of m is to run in, and
// -1 where a does not wait for it; p.mu is held.
func (a *activation) level(m *message) int {
	if !a.busy {
		return -1
	}
	for _, c := range slices.Backward(m.c.Chain) {
		address, mark := parseLink(c)
		switch i := slices.Index(a.inner, mark); {
		case address != a.address():
			continue
		case mark == "" && a.run != nil:
			return len(a.inner)
		case a.run != nil && turnMark(a.run.m) == mark:
			return 0
		case i >= 0:
			return i + 1
		}
		return -1
	}
	return -1
}

// nest begins a turn within a turn, or has it wait for its turn; p.mu is held.
func (a *activation) nest(m *message, level int) {
	if level == len(a.inner) {
		a.inner = append(a.inner, turnMark(m))
		m.ready, m.nested = nil, true
		return
	}
	a.waits = append(a.waits, m)
}

// unnest ends a turn within a turn, and begins the next; p.mu is held.
func (a *activation) unnest(m *message) {
	a.sandbox = 0
	if a.run != nil {
		a.run.passed = true
	}
	if i := slices.Index(a.inner, turnMark(m)); i >= 0 {
		a.inner = slices.Delete(a.inner, i, i+1)
	}
	for i, w := range a.waits {
		if a.level(w) == len(a.inner) {
			a.waits = slices.Delete(a.waits, i, i+1)
			a.inner = append(a.inner, turnMark(w))
			w.nested = true
			close(w.ready)
			return
		}
	}
}

// outlived has those go to the mailbox that waited to run within a turn that is
// over; p.mu is held.
func (a *activation) outlived() {
	for _, m := range a.waits {
		a.box.push(m)
	}
	a.waits, a.inner = nil, nil
}

// dropWait takes m out of those that wait to run within a turn.
func (a *activation) dropWait(m *message) bool {
	i := slices.Index(a.waits, m)
	if i >= 0 {
		a.waits = slices.Delete(a.waits, i, i+1)
	}
	return i >= 0
}
