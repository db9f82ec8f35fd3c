//go:build linux

package node

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lode"
	"lode/api"
)

// buildShifted builds the command with a wall clock that is off by as many
// seconds as LODE_TEST_CLOCK says. Libraries that shift the clock from outside
// do not reach a Go program, which asks the kernel without the C library; so
// the one function of the standard library that reads the clock is replaced at
// the build. The monotonic clock, and with it every timeout, is left alone, as
// it is when somebody sets the clock.
func buildShifted(t *testing.T) string {
	t.Helper()
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Skip("no go toolchain")
	}
	file := filepath.Join(strings.TrimSpace(string(root)), "src", "time", "time.go")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Skip(err)
	}
	const read = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	text := strings.Replace(string(b), read, read+"\tsec += testShift\n", 1)
	if text == string(b) {
		t.Skip("this version of Go reads its clock in another way")
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "time.go"), text)
	write(t, filepath.Join(dir, "shift.go"), `package time

import "syscall"

var testShift = readShift()

func readShift() (n int64) {
	s, _ := syscall.Getenv("LODE_TEST_CLOCK")
	sign := int64(1)
	for i := range len(s) {
		if s[i] == '-' {
			sign = -1
			continue
		}
		n = n*10 + int64(s[i]-'0')
	}
	return sign * n
}
`)
	overlay, _ := json.Marshal(map[string]map[string]string{"Replace": {file: filepath.Join(dir, "time.go"), filepath.Join(filepath.Dir(file), "shift.go"): filepath.Join(dir, "shift.go")}})
	write(t, filepath.Join(dir, "overlay.json"), string(overlay))
	bin := filepath.Join(dir, "lode")
	cmd := exec.Command("go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", bin, "lode/cmd/lode")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
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
		p = startWith(t, shifted, p.dir, "LODE_TEST_CLOCK="+stage.shift)
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
