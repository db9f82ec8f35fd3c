package job_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"lode"
	"lode/data"
	"lode/data/job"
	"lode/store/storetest"
)

// stuck is a mapper that works on the shards below free, and hangs on others
// until it is cancelled. It tells of each shard that it hangs on.
func stuck(free int, hangs chan<- int) func(context.Context, job.Task, []byte) ([]byte, error) {
	return func(ctx context.Context, task job.Task, shard []byte) ([]byte, error) {
		if task.Index < free {
			return countLines(ctx, task, shard)
		}
		hangs <- task.Index
		<-ctx.Done()
		return nil, lode.Errorf(lode.Cancelled, "cancelled: %w", ctx.Err())
	}
}

func TestCancel(t *testing.T) {
	hangs := make(chan int, 100)
	w := newWorld(t, &funcs{mapper: stuck(2, hangs)})
	s := w.open()
	j, err := s.Start(t.Context(), spec("sum"))
	if err != nil {
		t.Fatal(err)
	}
	<-hangs
	_, _, err = s.Body(t.Context(), "default", j.ID)
	storetest.Kind(t, err, lode.Conflict)
	for range 2 {
		if j, err = s.Cancel(t.Context(), "default", j.ID); err != nil || j.State != lode.StateCancelled || j.Running != 0 {
			t.Fatalf("%+v, %v", j, err)
		}
	}
	_, _, err = s.Body(t.Context(), "default", j.ID)
	storetest.Kind(t, err, lode.Cancelled)
	s.Close()
	if j, err = w.open().Get(t.Context(), "default", j.ID); err != nil || j.State != lode.StateCancelled {
		t.Errorf("after a restart: %s, %v", j.State, err)
	}
	w.cfg.Runner = &funcs{mapper: countLines}
	s = w.open()
	j = finish(t, s, spec("sum"))
	_, err = s.Cancel(t.Context(), "default", j.ID)
	storetest.Kind(t, err, lode.Conflict)
}

// A job that runs while the node stops goes on at the next start, on the
// version it began with; shards in its checkpoint are not worked on again.
func TestResume(t *testing.T) {
	for name, every := range map[string]time.Duration{"checkpoint": time.Nanosecond, "from the start": time.Hour} {
		t.Run(name, func(t *testing.T) {
			hangs := make(chan int, 100)
			w := newWorld(t, &funcs{mapper: stuck(4, hangs)})
			w.cfg.Checkpoint = every
			s := w.open()
			sp := spec("sum")
			sp.Limit = 3
			j, err := s.Start(t.Context(), sp)
			if err != nil {
				t.Fatal(err)
			}
			for range 3 {
				<-hangs // all that may run at once are shards 4, 5, 6, so 0 to 3 are done
			}
			w.put("the next version\n")
			s.Close()
			if _, err := s.Start(t.Context(), spec("sum")); lode.KindOf(err) != lode.Unavailable {
				t.Errorf("after Close: %v", err)
			}
			f := &funcs{mapper: countLines}
			w.cfg.Runner = f
			s = w.open()
			if j, err = s.Wait(t.Context(), "default", j.ID); err != nil {
				t.Fatal(err)
			}
			if got := body(t, s, j.ID); got != strconv.Itoa(strings.Count(w.text, "\n")) || j.Done != shards || j.Version != 1 {
				t.Errorf("sum = %s, %+v", got, j)
			}
			// A node that stops in good order writes a checkpoint in any case.
			if calls := f.attempts(); len(calls) != 3 {
				t.Errorf("worked again on %v", calls)
			}
		})
	}
}

// A job whose node was killed goes on at the next start from the checkpoint
// that was written meanwhile. The first node is not closed before the second
// begins: it hangs, as the dead do.
func TestKilled(t *testing.T) {
	hangs := make(chan int, 100)
	w := newWorld(t, &funcs{mapper: stuck(4, hangs)})
	w.cfg.Cores = 1
	w.cfg.Checkpoint = time.Nanosecond
	dead := w.open()
	j, err := dead.Start(t.Context(), spec("sum"))
	if err != nil {
		t.Fatal(err)
	}
	<-hangs // shard 4, so 0 to 3 are done
	checkpointedAt(t, w.cfg.Registers, j.ID)
	f := &funcs{mapper: countLines}
	w.cfg.Runner = f
	s := w.open()
	if j, err = s.Wait(t.Context(), "default", j.ID); err != nil {
		t.Fatal(err)
	}
	if got := body(t, s, j.ID); got != strconv.Itoa(strings.Count(w.text, "\n")) || j.Done != shards {
		t.Errorf("sum = %s, %+v", got, j)
	}
	if calls := f.attempts(); len(calls) >= shards {
		t.Errorf("worked again on %v", calls)
	}
}

// A runner of a job over whole files learns their names.
func TestFilesReachTheRunner(t *testing.T) {
	w := newWorld(t, &funcs{mapper: func(_ context.Context, task job.Task, shard []byte) ([]byte, error) {
		var out []byte
		for name, content := range data.Files(shard, *task.Files) {
			out = fmt.Appendf(out, "%s=%s;", name, content)
		}
		return out, nil
	}})
	if _, err := w.cfg.Datasets.Put(t.Context(), "default", "d", data.PutOptions{Spec: lode.Dataset{Records: "files"}}, &file{content: "spam"}); err != nil {
		t.Fatal(err)
	}
	s := w.open()
	if got := body(t, s, finish(t, s, spec("")).ID); got != "f=spam;" {
		t.Errorf("%q", got)
	}
}

// A checkpoint that is damaged costs work, not the job.
func TestResumeWithoutItsCheckpoint(t *testing.T) {
	hangs := make(chan int, 100)
	w := newWorld(t, &funcs{mapper: stuck(4, hangs)})
	s := w.open()
	sp := spec("sum")
	sp.Limit = 3
	j, err := s.Start(t.Context(), sp)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		<-hangs
	}
	s.Close()
	value, _, _, err := w.cfg.Registers.Get(t.Context(), "default/"+j.ID)
	if err != nil {
		t.Fatal(err)
	}
	var kept job.Job
	if err := json.Unmarshal(value, &kept); err != nil || kept.Checkpoint.IsZero() {
		t.Fatalf("no checkpoint: %v", err)
	}
	if err := w.cfg.Store.Delete(t.Context(), kept.Checkpoint); err != nil {
		t.Fatal(err)
	}
	f := &funcs{mapper: countLines}
	w.cfg.Runner = f
	s = w.open()
	if _, err = s.Wait(t.Context(), "default", j.ID); err != nil {
		t.Fatal(err)
	}
	if got := body(t, s, j.ID); got != strconv.Itoa(strings.Count(w.text, "\n")) || len(f.attempts()) != shards {
		t.Errorf("sum = %s, attempts %v", got, f.attempts())
	}
}

// What a running job needs is not collected, even when its version is gone.
func TestRoots(t *testing.T) {
	hangs, free := make(chan int, 100), make(chan struct{})
	w := newWorld(t, &funcs{mapper: func(ctx context.Context, task job.Task, shard []byte) ([]byte, error) {
		hangs <- task.Index
		<-free
		return append(shard, shard...), nil
	}})
	s := w.open()
	j, err := s.Start(t.Context(), spec("concat"))
	if err != nil {
		t.Fatal(err)
	}
	<-hangs
	if _, err := w.cfg.Datasets.Remove(t.Context(), "default", "d", true); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Millisecond)
	if _, err := w.cfg.Datasets.Collect(t.Context(), time.Nanosecond, s.Roots); err != nil {
		t.Fatal(err)
	}
	close(free)
	if j, err = s.Wait(t.Context(), "default", j.ID); err != nil || j.State != lode.StateDone {
		t.Fatalf("%+v, %v", j, err)
	}
	time.Sleep(2 * time.Millisecond)
	if _, err := w.cfg.Datasets.Collect(t.Context(), time.Nanosecond, s.Roots); err != nil {
		t.Fatal(err)
	}
	if got := body(t, s, j.ID); len(got) != 2*len(w.text) {
		t.Errorf("the result has %d bytes", len(got))
	}
	if n, err := s.Prune(t.Context(), time.Now().Add(time.Hour)); n != 1 || err != nil {
		t.Errorf("Prune = %d, %v", n, err)
	}
	_, err = s.Get(t.Context(), "default", j.ID)
	storetest.Kind(t, err, lode.NotFound)
	if did, err := w.cfg.Datasets.Collect(t.Context(), time.Nanosecond, s.Roots); err != nil || did.Kept != 0 {
		t.Errorf("%+v, %v", did, err)
	}
}
