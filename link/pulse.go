package link

import (
	"crypto/tls"
	"fmt"
	"math"
	"net"
	"slices"
	"time"
)

// pulse is a heartbeat that was sent.
type pulse struct {
	seq        uint64
	sent, wall int64 // by the monotonic and by the wall clock
}

// pulses sends heartbeats, notices silence, and closes the socket when the
// connection has died, which ends its reader and a write that is stuck.
func (c *conn) pulses() {
	defer closeRaw(c.nc)
	tick := time.NewTimer(0)
	defer tick.Stop()
	every, after := c.l.cfg.BeatEvery, c.l.cfg.LostAfter
	grace := now()
	for seq := uint64(1); ; seq++ {
		due := now()
		select {
		case <-c.done:
			return
		case <-tick.C:
		}
		t := now()
		if seq > 1 && t-due > int64(every+after/2) {
			grace = t // this process stood still: give what has arrived a chance to be read
		}
		if t-max(c.heard.Load(), grace-int64(after/2)) > int64(after) {
			c.kill(fmt.Errorf("%w for %v", errSilent, time.Duration(t-c.heard.Load()).Round(time.Millisecond)))
			return
		}
		c.beat(seq)
		tick.Reset(c.nextLook(every, after))
	}
}

// nextLook is when to look again: at the next beat, or when the peer's silence
// would have lasted long enough.
func (c *conn) nextLook(every, after time.Duration) time.Duration {
	left := after - time.Duration(now()-c.heard.Load()) + time.Millisecond
	return min(every, max(left, every/8))
}

func (c *conn) beat(seq uint64) {
	var payload []byte
	if c.l.cfg.Beat != nil {
		payload = c.l.cfg.Beat()
	}
	if len(payload) > MaxBeat {
		c.l.log.Error("a heartbeat is too large and goes without its payload", "bytes", len(payload), "most", MaxBeat)
		payload = nil
	}
	c.mu.Lock()
	p := pulse{seq, now(), time.Now().UnixNano()}
	c.sent[seq%uint64(len(c.sent))] = p
	c.post(appendBeat(nil, seq, p.wall, payload))
	c.push(false)
}

// takeBeat answers a heartbeat and hands it on.
func (c *conn) takeBeat(h header, p []byte) error {
	_, payload, err := parseBeat(p)
	if err != nil {
		return &protocolError{err}
	}
	c.mu.Lock()
	c.post(appendEcho(nil, h.id, time.Now().UnixNano()))
	c.push(false)
	if c.l.cfg.Heard != nil {
		c.l.cfg.Heard(c.p.node, Beat{Payload: slices.Clone(payload), RTT: time.Duration(c.p.rtt.Load()), Skew: time.Duration(c.p.skew.Load())})
	}
	return nil
}

// takeEcho measures the round trip and what the peer's clock says.
func (c *conn) takeEcho(h header, p []byte) error {
	wall, _, err := parseBeat(p)
	if err != nil {
		return &protocolError{err}
	}
	c.mu.Lock()
	s := c.sent[h.id%uint64(len(c.sent))]
	c.sent[h.id%uint64(len(c.sent))] = pulse{}
	c.mu.Unlock()
	if s.seq != h.id || h.id == 0 {
		return nil // so late that nobody remembers it
	}
	rtt := now() - s.sent
	c.p.measured(rtt, wall-s.wall-rtt/2)
	return nil
}

// measured takes a round trip and a skew. The skew of the shortest of the last
// round trips counts: it was disturbed least.
func (p *peer) measured(rtt, skew int64) {
	p.clock.Lock()
	defer p.clock.Unlock()
	p.trips[p.tripAt%len(p.trips)] = trip{rtt, skew}
	p.tripAt++
	least := p.trips[0]
	for _, t := range p.trips[1:min(p.tripAt, len(p.trips))] {
		if t.rtt < least.rtt {
			least = t
		}
	}
	old := p.rtt.Load()
	if old == 0 {
		old = rtt
	}
	p.rtt.Store(max(old+(rtt-old)/4, 1))
	p.least.Store(max(least.rtt, 1))
	p.skew.Store(least.skew)
}

// trip is one measured round trip.
type trip struct{ rtt, skew int64 }

// leastRTT is the shortest of the last round trips; 0: not known yet.
func (p *peer) leastRTT() time.Duration { return time.Duration(p.least.Load()) }

// sample counts a stream that is over towards the peer's bandwidth.
func (p *peer) sample(total, began int64) {
	if total < 1<<20 || began == 0 {
		return
	}
	rate := float64(total) / (float64(max(now()-began, 1)) / 1e9)
	for {
		bits := p.bandwidth.Load()
		mean := math.Float64frombits(bits)
		if mean == 0 {
			mean = rate
		}
		if p.bandwidth.CompareAndSwap(bits, math.Float64bits(mean+(rate-mean)/4)) {
			return
		}
	}
}

// closeRaw closes the socket below TLS: a farewell could block for seconds
// behind what the peer does not take.
func closeRaw(nc net.Conn) {
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	nc.Close()
}
