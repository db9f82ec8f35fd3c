//go:build linux

package node

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"lode"
	"lode/api"
	"lode/test/shift"
)

// buildShifted builds the command with a clock that can be off.
func buildShifted(t *testing.T) string {
	t.Helper()
	bin, err := shift.Build(t.TempDir())
	if errors.Is(err, shift.ErrCannot) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	return bin
}

// TestClock restarts a node with its clock an hour ahead, then an hour behind,
// then right again: what was acknowledged is done, schedules go on without a
// storm, and tokens live as long as they should.
func TestClock(t *testing.T) {
	if !long() {
		t.Skip("builds the standard library anew: LODE_LONG=1 runs it")
	}
	shifted := buildShifted(t)
	p, s := startLab(t)
	ctx := t.Context()
	token := func(spec time.Duration) string {
		t.Helper()
		tok, err := p.c.CreateToken(ctx, api.TokenSpec{Role: api.RoleRead, For: spec})
		if err != nil {
			t.Fatal(err)
		}
		return tok.Secret
	}
	short, lasting := token(30*time.Minute), token(48*time.Hour)
	ids := map[lode.InvocationID]string{}
	pending := func(stage string) {
		t.Helper()
		s.set(true) // first attempts fail: a retry is due when the clock jumps
		for i := range 3 {
			k := fmt.Sprintf("%s-%d", stage, i)
			status, body, head := p.post("/fn/web/hit?k="+k, "", "Prefer", "respond-async")
			if status != 202 {
				t.Fatalf("%d %s", status, body)
			}
			ids[lode.InvocationID(head.Get("Lode-Invocation"))] = "/hit/" + k
		}
		if status, body, _ := p.post("/queues/work", stage, "Lode-Delay", "2s", "Content-Type", "text/plain"); status != 202 {
			t.Fatalf("%d %s", status, body)
		}
		time.Sleep(600 * time.Millisecond)
		p.kill()
		s.set(false)
	}
	settled := func(stage string) {
		t.Helper()
		p.wait(stage+": the delayed message", func() bool { return s.count("/message/"+stage) > 0 })
		for id, path := range ids {
			c, err := p.c.GetCall(ctx, id, 30*time.Second)
			if err != nil || c.State != lode.StateDone || s.count(path) == 0 {
				t.Errorf("%s: call %s: %+v %v", stage, id, c, err)
			}
		}
		before := s.count("/tick")
		p.wait(stage+": the schedule", func() bool { return s.count("/tick") > before+1 })
		if n := s.count("/tick") - before; n > 50 {
			t.Errorf("%s: a storm of %d ticks", stage, n)
		}
		if status, body, _ := p.post("/fn/web/hit?k=once", "", "Idempotency-Key", "once"); status != 200 || body != "hit once" {
			t.Errorf("%s: %d %s", stage, status, body)
		}
		if err := p.whoami(lasting); err != nil {
			t.Errorf("%s: a token for two days: %v", stage, err)
		}
	}
	if status, _, _ := p.post("/fn/web/hit?k=once", "", "Idempotency-Key", "once"); status != 200 {
		t.Fatal(status)
	}
	pending("now")
	for _, stage := range []struct {
		name, shift string
		expired     bool
	}{{"ahead", "3600", true}, {"behind", "-3600", false}, {"right", "0", false}} {
		previous := "now"
		switch stage.name {
		case "behind":
			previous = "ahead"
		case "right":
			previous = "behind"
		}
		p = startWith(t, shifted, p.dir, shift.Variable+"="+stage.shift)
		settled(previous)
		if err := p.whoami(short); (kindOf(err) == lode.Unauthenticated) != stage.expired {
			t.Errorf("%s: a token for half an hour: %v", stage.name, err)
		}
		pending(stage.name)
	}
	p = start(t, p.dir)
	settled("right")
	if n := s.count("/hit/once"); n != 1 {
		t.Errorf("the key ran %d times", n)
	}
}
