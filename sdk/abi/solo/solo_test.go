package solo

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"lode/sdk/abi"
)

func request(kv ...string) Message {
	_, m := done(kv...)
	return m
}

// TestGroupEnds has rounds that some do not reach.
func TestGroupEnds(t *testing.T) {
	var w World
	a, b := w.Open(), w.Open()
	defer a.Close()
	defer b.Close()
	var wg sync.WaitGroup
	for rank, s := range []*Session{a, b} {
		wg.Go(func() {
			m := request(":verb", "join", ":group", "g", ":rank", string(rune('0'+rank)), ":size", "2")
			if rank == 0 {
				m.Head[":timeout"] = "20"
			} else {
				m.Head[":timeout"] = "60000"
			}
			for { // the first one may have given up before the second came
				if status, _ := s.Operate(t.Context(), abi.OpGroup, m); status == 0 {
					return
				} else if status != abi.StatusOf("unavailable") && status != abi.StatusOf("conflict") {
					t.Errorf("join: %s", status.Kind())
					return
				}
			}
		})
	}
	wg.Wait()
	for range 2 { // the second one is late: it hears the same
		for _, s := range []*Session{a, b} {
			if s == b {
				continue
			}
			status, m := s.Operate(t.Context(), abi.OpGroup, request(":verb", "barrier", ":group", "g"))
			if status != abi.StatusOf("unavailable") || m.Head[":missing"] != "[1]" {
				t.Errorf("barrier: %s %v", status.Kind(), m.Head)
			}
		}
	}
	if status, m := b.Operate(t.Context(), abi.OpGroup, request(":verb", "barrier", ":group", "g")); status != abi.StatusOf("unavailable") || m.Head[":missing"] != "[1]" {
		t.Errorf("late: %s %v", status.Kind(), m.Head)
	}
	if status, _ := a.Operate(t.Context(), abi.OpGroup, request(":verb", "barrier", ":group", "other")); status != abi.StatusOf("not_found") {
		t.Errorf("not joined: %s", status.Kind())
	}
}

func TestReduce(t *testing.T) {
	one, two := []byte{0, 0, 128, 63}, []byte{0, 0, 0, 64} // 1, 2
	for _, tt := range []struct {
		op, form string
		parts    [][]byte
		want     []byte
	}{
		{"sum", "f32", [][]byte{one, one}, two},
		{"max", "f32", [][]byte{one, two}, two},
		{"mean", "f32", [][]byte{two, two, two}, two},
		{"sum", "f64", [][]byte{make([]byte, 8)}, make([]byte, 8)},
		{"sum", "f32", [][]byte{one, nil}, nil},
		{"sum", "f16", [][]byte{one}, nil},
		{"min", "f32", [][]byte{one}, nil},
	} {
		status, m := reduce(tt.op, tt.form, tt.parts)
		if (status == 0) != (tt.want != nil) || !slices.Equal(m.Body, tt.want) {
			t.Errorf("%s %s %x: %d %x", tt.op, tt.form, tt.parts, status, m.Body)
		}
	}
}

// TestTurnsOfOneAgent run one at a time, and a timer that failed comes again.
func TestTurnsOfOneAgent(t *testing.T) {
	var w World
	turn, err := w.Begin(t.Context(), "k/a", "call", "", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.Begin(ctx, "k/a", "call", "", "", nil); err == nil {
		t.Fatal("two turns of one agent run at once")
	}
	turn.Operate(t.Context(), abi.OpTimer, request(":verb", "set", ":name", "t", ":at", "1000", ":call", "m"))
	turn.End(true)
	due, _ := w.Due(time.UnixMilli(1000))
	if len(due) != 1 || due[0].Timer != "t" {
		t.Fatalf("%+v", due)
	}
	turn, _ = w.Begin(t.Context(), "k/a", "timer", "t", "", nil)
	turn.End(false)
	w.Postpone(due[0], time.UnixMilli(2000))
	if due, next := w.Due(time.UnixMilli(1999)); len(due) != 0 || !next.Equal(time.UnixMilli(2000)) {
		t.Errorf("%v %v", due, next)
	}
	turn, _ = w.Begin(t.Context(), "k/a", "timer", "t", "", nil)
	turn.End(true)
	if due, _ := w.Due(time.UnixMilli(2001)); len(due) != 0 {
		t.Errorf("it is there again: %v", due)
	}
}
