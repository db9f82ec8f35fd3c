package bench

import (
	"strings"
	"testing"

	"lode"
)

// TestProcessesElect has processes over ZeroMQ elect while their leader is
// killed, again and again: the highest that lives leads, with the messages that
// the algorithm takes, or more if the machine is slower than its time-outs.
func TestProcessesElect(t *testing.T) {
	r := &runner{dir: t.TempDir()}
	v, err := r.zmqVoters(t.Context(), 5)
	if lode.KindOf(err) == lode.Unavailable || err != nil && strings.Contains(err.Error(), "zmq.h") {
		t.Skip(err) // no compiler, or no ZeroMQ
	}
	if err != nil {
		t.Fatal(err)
	}
	defer v.stop()
	for _, c := range []struct{ notice, messages int }{{3, 4}, {0, 10 + 6 + 3}, {3, 4}} {
		e, err := v.elect(t.Context(), c.notice)
		if err != nil {
			t.Fatal(err)
		}
		if e.Leader != 3 || e.Messages < c.messages || e.Timeouts < messageTimeout || e.Rest < 0 {
			t.Errorf("%d noticed: %+v, want the leader 3 and %d messages", c.notice, e, c.messages)
		}
	}
}

func TestP99(t *testing.T) {
	var hundred []float64
	for i := range 100 {
		hundred = append(hundred, float64(100-i))
	}
	for _, c := range []struct {
		v    []float64
		want float64
	}{{[]float64{7}, 7}, {[]float64{3, 1, 2}, 3}, {hundred, 99}, {hundred[1:], 99}} {
		if got := p99(c.v); got != c.want {
			t.Errorf("p99 of %d values is %v, want %v", len(c.v), got, c.want)
		}
	}
}
