package wasm_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"lode"
	"lode/engine"
	"lode/engine/enginetest"
)

// turner is a slot that lets its guest have a number of turns.
type turner struct {
	left int
	used []time.Duration
}

func (s *turner) Leave()                      {}
func (s *turner) Enter(context.Context) error { return nil }

func (s *turner) Turn(_ context.Context, used time.Duration) error {
	s.used = append(s.used, used)
	if s.left--; s.left == 0 {
		return errors.New("no more turns")
	}
	return nil
}

var (
	_ engine.Slot   = (*turner)(nil)
	_ engine.Turner = (*turner)(nil)
)

// A guest that computes on and on comes by again and again, says how long it
// has computed, and ends where it gets no more turns.
func TestTurns(t *testing.T) {
	e := engine.New(engine.EngineConfig{Driver: newDriver(t)})
	defer e.Close()
	p := enginetest.PoolOf(t, e, enginetest.C(t, "probe"), engine.Config{})
	s := &turner{left: 5}
	inv := &engine.Invocation{Body: []byte("spin"), Out: &enginetest.Answer{}, Host: &enginetest.Host{}, Slot: s}
	if err := p.Invoke(context.Background(), inv); lode.KindOf(err) != lode.Cancelled {
		t.Errorf("without turns: %v", err)
	}
	var sum time.Duration
	for _, used := range s.used {
		if sum += used; used < time.Millisecond {
			t.Errorf("a turn after %s", used)
		}
	}
	if len(s.used) != 5 || sum > inv.Usage.CPU {
		t.Errorf("%d turns of %s in all, of %s", len(s.used), sum, inv.Usage.CPU)
	}
}
