package placement

import (
	"fmt"
	"math"
	mrand "math/rand/v2"
	"testing"

	"lode"
)

// loadSim is a cluster in fake time, in steps of two seconds: partitions with
// Poisson turns, of which the keeper sees decayed means, and of their callers
// one call in sixteen.
type loadSim struct {
	rnd   *mrand.Rand
	p     Picture
	m     Ledger
	now   float64
	rate  []float64   // turns a second of each partition
	work  float64     // seconds of a turn
	from  [][]float64 // shares of the callers of each partition, by host
	seen  []float64   // decayed means: turns a second,
	cpu   []float64   // cores,
	calls [][]float64 // and calls a second by host
	busy  []float64
	moves []Move
}

func newLoadSim(seed uint64, hosts, parts int, cores float64) *loadSim {
	s := &loadSim{rnd: mrand.New(mrand.NewPCG(seed, 7)), work: 1e-3, busy: make([]float64, hosts)}
	s.p = Picture{Blackout: 0.03, Bandwidth: 100e6, RTT: 200e-6}
	for h := range hosts {
		s.p.Hosts = append(s.p.Hosts, Host{ID: lode.NodeID(rune('a' + h)), Cores: cores, Eligible: true})
	}
	for i := range parts {
		s.p.Parts = append(s.p.Parts, Part{ID: fmt.Sprintf("k/%03d", i), Kind: "k", Owner: i % hosts, Bytes: 1 << 20})
		s.rate = append(s.rate, 0)
		s.from = append(s.from, make([]float64, hosts))
		s.calls = append(s.calls, make([]float64, hosts))
		for h := range hosts {
			s.from[i][h] = 1 / float64(hosts)
		}
	}
	s.seen, s.cpu = make([]float64, parts), make([]float64, parts)
	return s
}

// poisson draws a number of events; by a normal one where many are expected.
func (s *loadSim) poisson(mean float64) float64 {
	if mean > 50 {
		return max(0, math.Round(mean+math.Sqrt(mean)*s.rnd.NormFloat64()))
	}
	n, t := 0.0, s.rnd.ExpFloat64()
	for ; t < mean; n++ {
		t += s.rnd.ExpFloat64()
	}
	return n
}

// mean is a decayed mean over ten seconds, as the keeper makes them.
func (s *loadSim) mean(m *float64, x float64) { *m += (x - *m) * (1 - math.Exp(-2.0/10)) }

func (s *loadSim) step() {
	const dt = 2
	s.now += dt
	load := make([]float64, len(s.p.Hosts))
	for i := range s.p.Parts {
		x := &s.p.Parts[i]
		n := s.poisson(s.rate[i] * dt)
		cpu := n * s.work * (1 + 0.1*s.rnd.NormFloat64()) / dt
		load[x.Owner] += cpu
		s.mean(&s.seen[i], n/dt)
		s.mean(&s.cpu[i], cpu)
		x.Turns, x.CPU, x.Fixed = s.seen[i], s.cpu[i], false
		x.Callers = x.Callers[:0]
		for h, share := range s.from[i] {
			s.mean(&s.calls[i][h], s.poisson(s.rate[i]*share*dt/16)*16/dt)
			x.Callers = append(x.Callers, Caller{h, s.calls[i][h]})
		}
	}
	for h := range load {
		s.mean(&s.busy[h], min(load[h], s.p.Hosts[h].Cores))
		s.p.Hosts[h].Busy = s.busy[h]
	}
	s.moves = append(s.moves, Rebalance(&s.p, &s.m, s.now)...)
}

func (s *loadSim) until(end float64) {
	for s.now < end {
		s.step()
	}
}

// fullest is the utilisation of the busiest host, by what partitions really do.
func (s *loadSim) fullest() (most float64) {
	load := make([]float64, len(s.p.Hosts))
	for i := range s.p.Parts {
		load[s.p.Parts[i].Owner] += s.rate[i] * s.work
	}
	for h := range load {
		most = max(most, load[h]/s.p.Hosts[h].Cores)
	}
	return most
}

const hour = 3600

// TestStableLoad: nothing moves for an hour where the load is even and stays
// the same, be it low or high.
func TestStableLoad(t *testing.T) {
	for _, use := range []float64{0.3, 0.85} {
		t.Run(fmt.Sprint(use), func(t *testing.T) {
			s := newLoadSim(1, 3, 66, 4)
			for i := range s.rate {
				s.rate[i] = use * 12 / s.work / 66
			}
			if s.until(hour); len(s.moves) > 0 {
				t.Errorf("%d moves: %v", len(s.moves), s.moves)
			}
		})
	}
}

// TestUnevenLoad: partitions of very different load come to lie so that no
// node is full, and then stay for an hour.
func TestUnevenLoad(t *testing.T) {
	for seed := range uint64(longer(1, 20)) {
		s := newLoadSim(seed, 3, 64, 4)
		sum := 0.0
		for i := range s.rate {
			s.rate[i] = 1 / math.Pow(float64(1+(i*37)%64), 0.9)
			sum += s.rate[i]
		}
		for i := range s.rate {
			s.rate[i] *= 0.6 * 12 / s.work / sum
		}
		began := s.fullest()
		s.until(hour / 2)
		first := len(s.moves)
		s.until(hour / 2 * 3)
		if len(s.moves) > first || s.fullest() > max(0.85, began) {
			t.Errorf("seed %d: %d moves in the first half hour, %d in the next hour; the fullest node was at %.2f, is at %.2f", seed, first, len(s.moves)-first, began, s.fullest())
		}
		t.Logf("seed %d: %d moves, %.2f -> %.2f", seed, first, began, s.fullest())
	}
}

// TestHotPartition: a node that is made full by one partition is full no more
// a few minutes later.
func TestHotPartition(t *testing.T) {
	s := newLoadSim(3, 3, 66, 4)
	for i := range s.rate {
		s.rate[i] = 0.4 * 12 / s.work / 66
	}
	s.until(600)
	if len(s.moves) > 0 {
		t.Fatalf("moves before: %v", s.moves)
	}
	s.rate[4] = 2.3 / s.work // of four cores, of which 1.6 are in use
	began := s.fullest()
	s.until(1500)
	if began < 0.95 || s.fullest() > 0.85 || len(s.moves) == 0 || len(s.moves) > 12 {
		t.Errorf("%d moves: %v; the fullest node was at %.2f, is at %.2f", len(s.moves), s.moves, began, s.fullest())
	}
	before := len(s.moves)
	if s.until(1500 + hour); len(s.moves) > before {
		t.Errorf("and then %v", s.moves[before:])
	}
}

// TestAffinity: partitions go to the nodes that call them, while no node gets
// more than twice its share; then they stay.
func TestAffinity(t *testing.T) {
	s := newLoadSim(4, 3, 30, 8)
	for i := range s.rate {
		s.rate[i] = 100
		s.from[i] = []float64{0.1, 0.1, 0.1}
		s.from[i][(i+1)%3] = 0.8
	}
	s.until(hour)
	before := len(s.moves)
	if before < 25 || before > 35 {
		t.Errorf("%d moves", before)
	}
	if s.until(2 * hour); len(s.moves) > before {
		t.Errorf("and then %v", s.moves[before:])
	}
}
