package placement

import "math"

// Load is what a node broadcasts of itself.
type Load struct {
	Epoch  uint64  // counts its broadcasts
	Slots  int     // computing at once
	Queue  float64 // invocations that compute or wait
	Mean   float64 // seconds of a slot that one takes, on average
	Memory int64   // free bytes
}

const (
	oldAge     = 0.45 // seconds after which a broadcast is late: two are missing
	slowKeep   = 5.0  // seconds in which slowness falls to 1/e of what it was
	slowWeight = 8    // one answer in so many makes its slowness the node's
	slowest    = 20   // times slower than expected: more says nothing more
	slowFrom   = 1.25 // below it is noise
	slack      = 4    // times longer than expected a node may be silent

	// mostSilence is what silence costs a node that goes on broadcasting.
	mostSilence = 0.25
)

// Peer is what one gateway knows of one other node: what it broadcast last,
// corrected by what this gateway sent since, how much slower its answers come
// than was expected, and for how long it has owed one. Times are seconds of
// any clock that goes on. The zero value is a node of which nothing is known.
// It is not safe for concurrent use.
type Peer struct {
	load   Load
	at     float64 // when load was heard
	delta  float64 // sent minus answered since
	slow   float64 // ratio to what was expected, minus 1; signed, decayed
	slowAt float64
	flying int     // sent and not answered
	expect float64 // what an answer takes, of those sent lately
	due    float64 // when the next answer should have come
}

// Heard takes a broadcast. One that was heard before changes nothing.
func (p *Peer) Heard(l Load, at float64) {
	if p.at != 0 && l.Epoch == p.load.Epoch {
		return
	}
	p.load, p.at, p.delta = l, at, 0
}

// Sent counts work that was sent at now and should be answered after expect
// seconds.
func (p *Peer) Sent(now, expect float64) {
	p.delta++
	p.expect = max(expect, p.expect-p.expect/slowWeight)
	if p.flying == 0 {
		p.due = now + slack*p.expect
	}
	p.flying++
}

// Answered counts an answer that came took seconds after its work was sent,
// where expect were expected.
func (p *Peer) Answered(now, took, expect float64) {
	p.ended(now)
	if expect > 0 {
		p.slow += (min(took/expect, slowest) - 1 - p.slow) / slowWeight
	}
}

// Lost counts work whose answer will not come, or not tell how fast the node
// is.
func (p *Peer) Lost(now float64) { p.ended(now) }

// Refused counts work that the node said no to, with its wait.
func (p *Peer) Refused(now, wait float64) {
	p.ended(now)
	if p.load.Mean > 0 {
		p.delta = Line(wait, p.load.Slots, p.load.Mean) - p.load.Queue
	}
}

func (p *Peer) ended(now float64) {
	p.delta--
	p.flying = max(p.flying-1, 0)
	p.due = now + slack*p.expect
	p.fade(now)
}

func (p *Peer) fade(now float64) {
	if dt := now - p.slowAt; dt > 0 {
		p.slow *= math.Exp(-dt / slowKeep)
		p.slowAt = now
	}
}

// Fill writes what is known of the node at now: its line, its memory, how slow
// it is, and its hop: rtt, and on top of it how long it has been silent.
func (p *Peer) Fill(n *Node, now, rtt float64) {
	n.Slots, n.Mean, n.Memory = p.load.Slots, p.load.Mean, p.load.Memory
	n.Queue = max(0, p.load.Queue+p.delta)
	p.fade(now)
	n.Slow = 0
	if 1+p.slow >= slowFrom {
		n.Slow = 1 + p.slow
	}
	n.Hop = rtt
	age := now - p.at
	late := p.at != 0 && age > oldAge
	if p.flying > 0 && now > p.due {
		silence := now - p.due
		if !late { // it lives: it may just be at work on something long
			silence = min(silence, mostSilence)
		}
		n.Hop += silence
	}
	if late {
		n.Hop += age
	}
}

// Flying is how much was sent and is not answered.
func (p *Peer) Flying() int { return p.flying }
