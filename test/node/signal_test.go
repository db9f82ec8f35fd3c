//go:build linux

package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"lode"
	"lode/api"
)

// children lists the processes that the node started.
func (p *process) children() (pids []int) {
	p.t.Helper()
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", p.cmd.Process.Pid))
	for _, f := range tasks {
		b, _ := os.ReadFile(f)
		for _, s := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(s); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// slowJob begins a job that takes a while: count lines in shards of text.
func (p *process) slowJob(records int) api.Job {
	p.t.Helper()
	line := strings.Repeat("x", 10) + "\n"
	if _, err := p.c.PutStream(p.t.Context(), "base", api.PutOptions{Records: lode.RecordsLines, Shard: 512 << 10}, "base", strings.NewReader(strings.Repeat(line, records))); err != nil {
		p.t.Fatal(err)
	}
	j, err := p.c.CreateJob(p.t.Context(), api.JobSpec{Function: "web", Dataset: "base"})
	if err != nil {
		p.t.Fatal(err)
	}
	return j
}

// TestWorkerKilled kills the process that runs a job, again and again: the job
// ends right, by other tries.
func TestWorkerKilled(t *testing.T) {
	p, _ := startLab(t)
	const records = 600_000
	j := p.slowJob(records)
	killed := 0
	for {
		now, err := p.c.GetJob(t.Context(), j.ID, 0)
		if err != nil {
			t.Fatal(err)
		}
		if api.Ended(now.State) {
			j = now
			break
		}
		if pids := p.children(); len(pids) > 0 && killed < 2 && now.Running > 0 && now.Done > killed {
			for _, pid := range pids {
				syscall.Kill(pid, syscall.SIGKILL)
			}
			killed++
		}
		time.Sleep(5 * time.Millisecond)
	}
	if killed == 0 {
		t.Fatal("no worker was killed: nothing was tested")
	}
	if j.State != lode.StateDone {
		t.Fatalf("after %d kills: %+v", killed, j)
	}
	if got := p.result(j.ID); got != strconv.Itoa(records) {
		t.Errorf("%s records, want %d", got, records)
	}
	if j.Retried == 0 {
		t.Errorf("a worker was killed and nothing was tried again: %+v", j)
	}
	t.Logf("%d kills, %d tries again", killed, j.Retried)
	p.alive()
}

// TestWorkerStopped stops the worker for a while: the node answers meanwhile,
// and the job ends right.
func TestWorkerStopped(t *testing.T) {
	p, _ := startLab(t)
	const records = 400_000
	j := p.slowJob(records)
	var pids []int
	p.wait("a worker", func() bool { pids = p.children(); return len(pids) > 0 })
	for _, pid := range pids {
		syscall.Kill(pid, syscall.SIGSTOP)
	}
	for range 20 {
		if status, body, _ := p.post("/fn/web", "x"); status != 200 || body != "x" {
			t.Errorf("beside a stopped worker: %d %s", status, body)
		}
		time.Sleep(20 * time.Millisecond)
	}
	for _, pid := range pids {
		syscall.Kill(pid, syscall.SIGCONT)
	}
	j, err := p.c.GetJob(t.Context(), j.ID, 50*time.Second)
	if err != nil || j.State != lode.StateDone {
		t.Fatalf("%+v %v", j, err)
	}
	if got := p.result(j.ID); got != strconv.Itoa(records) {
		t.Errorf("%s records, want %d", got, records)
	}
}

// TestNodeStopped freezes the node during calls and a job, and lets it go on:
// calls end well or with a deadline, work that was accepted ends.
func TestNodeStopped(t *testing.T) {
	p, s := startLab(t)
	const records = 200_000
	j := p.slowJob(records)
	var calls sync.WaitGroup
	for i := range 8 {
		calls.Go(func() {
			if status, body, _ := p.post(fmt.Sprintf("/fn/web/sleep?ms=300&k=c%d", i), ""); status != 200 || body != "slept" {
				t.Errorf("call %d: %d %s", i, status, body)
			}
		})
	}
	status, _, head := p.post("/fn/web/hit?k=frozen", "", "Prefer", "respond-async")
	if status != 202 {
		t.Fatal(status)
	}
	for range 3 {
		p.cmd.Process.Signal(syscall.SIGSTOP)
		time.Sleep(1500 * time.Millisecond)
		p.cmd.Process.Signal(syscall.SIGCONT)
		time.Sleep(200 * time.Millisecond)
	}
	calls.Wait()
	c, err := p.c.GetCall(t.Context(), lode.InvocationID(head.Get("Lode-Invocation")), 30*time.Second)
	if err != nil || c.State != lode.StateDone || s.count("/hit/frozen") == 0 {
		t.Errorf("%+v %v", c, err)
	}
	if j, err = p.c.GetJob(t.Context(), j.ID, 50*time.Second); err != nil || j.State != lode.StateDone || p.result(j.ID) != strconv.Itoa(records) {
		t.Errorf("%+v %v", j, err)
	}
	ticks := s.count("/tick")
	p.wait("the schedule", func() bool { return s.count("/tick") > ticks })
	p.alive()
}

// TestNoOrphans: when the node is killed, its workers go as well.
func TestNoOrphans(t *testing.T) {
	p, _ := startLab(t)
	p.slowJob(400_000)
	var pids []int
	p.wait("a worker", func() bool { pids = p.children(); return len(pids) > 0 })
	p.kill()
	for _, pid := range pids {
		waitFor(t, "a worker to end", func() bool {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			return err != nil || strings.Contains(string(b), ") Z ")
		})
	}
}
