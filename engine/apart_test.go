package engine_test

import (
	"context"
	"testing"
	"time"

	"lode/engine"
	"lode/engine/enginetest"
	"lode/sdk/abi"
)

// placed notes where an invocation ran.
type placed struct{ same bool }

func (p *placed) Placed(_ *engine.Invocation, same bool) { p.same = same }

// TestApart: who asks for a sandbox in which somebody else was apart meanwhile
// does not find it.
func TestApart(t *testing.T) {
	p := newPool(t, newEngine(t, engine.EngineConfig{Key: enginetest.Key()}), &enginetest.Source{Wasm: enginetest.C(t, "echo"), Cache: true}, enginetest.Limits())
	run := func(sandbox uint64, apart bool) (uint64, bool) {
		at := &placed{}
		inv := &engine.Invocation{ID: "test", Head: abi.AppendHead(nil, 0), Body: []byte("abc"), Out: &enginetest.Answer{}, Host: &enginetest.Host{},
			Deadline: time.Now().Add(20 * time.Second), Sandbox: sandbox, Apart: apart, Placed: at}
		if err := p.Invoke(context.Background(), inv); err != nil {
			t.Fatal(err)
		}
		return inv.Sandbox, at.same
	}
	first, _ := run(0, false)
	if again, same := run(first, false); again != first || !same {
		t.Fatalf("it ran in %d (the same: %v), not in %d", again, same, first)
	}
	if at, _ := run(0, true); at != first {
		t.Fatalf("the one apart ran in %d: there is only %d", at, first)
	}
	if at, same := run(first, false); same || at == first {
		t.Errorf("what was apart in %d is found there by who asked for it before (%d)", first, at)
	}
}
