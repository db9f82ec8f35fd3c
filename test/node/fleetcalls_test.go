//go:build linux

package node

import (
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"lode"
	"lode/api"
)

// TestFleetCallKilled kills a node in the middle of calls that another one
// passed on to it. Those that may be repeated are; the others fail with a
// sentence, and ran at most once.
func TestFleetCallKilled(t *testing.T) {
	f, s := startFleet(t)
	f.kill(0)
	f.restart(0, "--gateway-only")
	f.settled(0, 1, 2)
	p := f.nodes[0]
	type answer struct {
		kind, k, body string
		status        int
		head          http.Header
	}
	answers := make(chan answer, 100)
	var calls sync.WaitGroup
	call := func(kind string, i int) {
		calls.Go(func() {
			a := answer{kind: kind, k: fmt.Sprintf("%s%d", kind, i)}
			path := "/fn/web/sleep?ms=2500&k=" + a.k
			switch kind {
			case "get":
				a.status, a.body, a.head = p.get(path)
			case "key":
				a.status, a.body, a.head = p.post(path, "", "Idempotency-Key", a.k)
			case "post":
				a.status, a.body, a.head = p.post(path, "")
			}
			answers <- a
		})
	}
	kinds := []string{"get", "key", "post"}
	const each = 8
	for i := range each {
		for _, kind := range kinds {
			call(kind, i)
		}
		call("post", each+i) // more of those that may be lost
	}
	var ids []lode.InvocationID
	for i := range 10 {
		status, _, head := p.post(fmt.Sprintf("/fn/web/sleep?ms=1000&k=async%d", i), "", "Prefer", "respond-async")
		if status != http.StatusAccepted {
			t.Fatal(status)
		}
		ids = append(ids, lode.InvocationID(head.Get("Lode-Invocation")))
	}
	begun := func() (n int) {
		for i := range each {
			for _, kind := range kinds {
				n += min(1, s.count(fmt.Sprintf("/begun/%s%d", kind, i)))
			}
		}
		return n
	}
	waitFor(t, "most calls to have begun", func() bool { return begun() > 2*each })
	victim := 1 // the one with more of them
	if p.running("c") > p.running("b") {
		victim = 2
	}
	f.kill(victim)
	killed := time.Now()
	calls.Wait()
	close(answers)
	lost := 0
	for a := range answers {
		ran := s.count("/begun/" + a.k)
		switch {
		case a.status == 200 && a.body == "slept":
			if a.kind == "post" && ran != 1 {
				t.Errorf("%s ran %d times", a.k, ran)
			}
		case a.kind == "post":
			lost++
			problemOf(t, a.status, a.body, a.head, lode.Unavailable)
			if !strings.Contains(a.body, "was lost while it ran") || a.head.Get("Retry-After") == "" {
				t.Errorf("%s: %s %v", a.k, a.body, a.head)
			}
			if ran > 1 {
				t.Errorf("%s ran %d times", a.k, ran)
			}
		default:
			t.Errorf("%s: %d %s", a.k, a.status, a.body)
		}
	}
	t.Logf("killed %s: %d POSTs failed; all was answered %v after the kill", fleetNames[victim], lost, since(killed))
	if lost == 0 {
		t.Log("no call was lost: none of those that may not be repeated ran on that node")
	}
	for _, id := range ids {
		if c, err := p.c.GetCall(t.Context(), id, 30*time.Second); err != nil || c.State != lode.StateDone {
			t.Errorf("call %s: %+v %v", id, c, err)
		}
	}
	t.Logf("asynchronous calls are done %v after the kill", since(killed))
	f.restart(victim)
	f.settled(0, 1, 2)
	f.queued(s)
}

// running is what runs on another node.
func (p *process) running(name string) int {
	p.t.Helper()
	n, err := p.c.GetNode(p.t.Context(), name)
	if err != nil {
		p.t.Fatal(err)
	}
	return n.Running
}

// queued kills a node at which calls wait for their turn: they run elsewhere,
// once.
func (f *fleet) queued(s *sink) {
	t, p := f.t, f.nodes[0]
	t.Helper()
	var calls sync.WaitGroup
	var lost, served atomic.Int64
	const n = 6
	for i := range n {
		calls.Go(func() {
			k := fmt.Sprintf("turn%d", i)
			status, body, _ := p.post("/fn/turn/sleep?ms=800&k="+k, "")
			ran := s.count("/begun/" + k)
			switch {
			case status == 200 && ran == 1:
				served.Add(1)
			case status == 503 && strings.Contains(body, "was lost while it ran") && ran <= 1:
				lost.Add(1)
			default:
				t.Errorf("%s: %d %s, ran %d times", k, status, body, ran)
			}
		})
	}
	p.wait("calls to run", func() bool {
		return s.count("/begun/turn0")+s.count("/begun/turn1")+s.count("/begun/turn2")+s.count("/begun/turn3")+s.count("/begun/turn4")+s.count("/begun/turn5") >= 2
	})
	victim := 1
	if p.running("c") > p.running("b") {
		victim = 2
	}
	f.kill(victim)
	calls.Wait()
	t.Logf("of %d calls that ran and waited, %d were served and %d lost with %s", n, served.Load(), lost.Load(), fleetNames[victim])
}

// TestFleetJobKilled kills a node that works on a job, then the keeper, which
// coordinates one: the result is right each time.
func TestFleetJobKilled(t *testing.T) {
	f, _ := startFleet(t)
	const records = 1_500_000
	line := strings.Repeat("x", 10) + "\n"
	ctx := t.Context()
	if _, err := f.nodes[0].c.PutStream(ctx, "base", api.PutOptions{Records: lode.RecordsLines, Shard: 256 << 10}, "base", strings.NewReader(strings.Repeat(line, records))); err != nil {
		t.Fatal(err)
	}
	for round := range rounds(2) {
		keeper := f.keeper()
		victim := keeper
		if round%2 == 0 {
			victim = (keeper + 1) % len(f.nodes)
		}
		p := f.other(victim)
		j, err := p.c.CreateJob(ctx, api.JobSpec{Function: "web", Dataset: "base"})
		if err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the job to be under way", func() bool {
			j, err = p.c.GetJob(ctx, j.ID, 0)
			return err == nil && (j.Done > 0 || api.Ended(j.State))
		})
		done := j.Done
		f.kill(victim)
		killed := time.Now()
		for !api.Ended(j.State) && since(killed) < 2*patience {
			if now, err := p.c.GetJob(ctx, j.ID, 10*time.Second); err == nil {
				j = now
			} else {
				t.Logf("the job is asked for: %v", err)
				time.Sleep(100 * time.Millisecond)
			}
		}
		t.Logf("killed %s (keeper %s) with %d of %d shards done: %s after %v, %d tried again, shares %+v", fleetNames[victim], fleetNames[keeper], done, j.Shards, j.State, since(killed), j.Retried, j.Shares)
		if j.State != lode.StateDone {
			t.Fatalf("%+v", j)
		}
		if got := p.result(j.ID); got != strconv.Itoa(records) {
			t.Errorf("%s records, want %d", got, records)
		}
		if victim != keeper && j.Retried == 0 {
			t.Errorf("a node was killed at work and nothing was tried again: %+v", j)
		}
		f.restart(victim)
		f.settled(0, 1, 2)
		for i, q := range f.nodes {
			if got := q.result(j.ID); got != strconv.Itoa(records) {
				t.Errorf("%s: %s records, want %d", fleetNames[i], got, records)
			}
		}
	}
}

// TestFleetRolling restarts each node in turn under load. Clients that take
// the next node where a connection is refused see no failure.
func TestFleetRolling(t *testing.T) {
	f, s := startFleet(t)
	for _, p := range f.nodes {
		if status, body, _ := p.post("/fn/web", "warm"); status != 200 {
			t.Fatal(status, body)
		}
	}
	load := startRolling(f)
	for round := range rounds(1) {
		for i, how := range []os.Signal{os.Interrupt, syscall.SIGTERM, os.Interrupt} {
			time.Sleep(500 * time.Millisecond)
			began := time.Now()
			if err := f.nodes[i].cmd.Process.Signal(how); err != nil {
				t.Fatal(err)
			}
			waitFor(t, "the node to end", f.nodes[i].ended)
			if code := f.nodes[i].cmd.ProcessState.ExitCode(); code != 0 {
				t.Errorf("%s ended with code %d", fleetNames[i], code)
			}
			t.Logf("round %d: %s ended %v after %v", round, fleetNames[i], since(began), how)
			f.restart(i)
			f.settled(0, 1, 2)
		}
	}
	time.Sleep(500 * time.Millisecond)
	load.stop()
	for kind, n := range load.sent {
		t.Logf("%s: %d answered, the longest after %v", kind, n, load.longest[kind].Round(time.Millisecond))
	}
	for _, why := range load.failed {
		t.Error(why)
	}
	for _, id := range load.calls {
		if c, err := f.nodes[0].c.GetCall(t.Context(), id, 30*time.Second); err != nil || c.State != lode.StateDone {
			t.Errorf("call %s: %+v %v", id, c, err)
		}
	}
	for _, id := range load.messages {
		waitFor(t, "message "+id, func() bool { return s.count("/message/"+id) > 0 })
	}
}
