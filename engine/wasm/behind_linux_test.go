package wasm_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lode/engine"
	"lode/engine/enginetest"
)

// nice is the niceness of a thread, by its file under /proc.
func nice(t *testing.T, stat string) string {
	b, err := os.ReadFile(stat)
	if errors.Is(err, os.ErrNotExist) {
		return "" // it has ended
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if err != nil || len(f) < 17 {
		t.Fatalf("%s: %q, %v", stat, b, err)
	}
	return f[16]
}

// watched looks at its guest's thread at every turn.
type watched struct {
	turner
	t    *testing.T
	seen []string
}

func (s *watched) Turn(ctx context.Context, used time.Duration) error {
	s.seen = append(s.seen, nice(s.t, "/proc/thread-self/stat"))
	return s.turner.Turn(ctx, used)
}

var _ engine.Turner = (*watched)(nil)

// A thread is as it was when its guest has ended, however it ended.
func TestNoThreadStaysBehind(t *testing.T) {
	e := engine.New(engine.EngineConfig{Driver: newDriver(t)})
	defer e.Close()
	p := enginetest.PoolOf(t, e, enginetest.C(t, "probe"), engine.Config{})
	s := &watched{turner: turner{left: 5}, t: t}
	p.Invoke(context.Background(), &engine.Invocation{Body: []byte("spin"), Out: &enginetest.Answer{}, Host: &enginetest.Host{}, Slot: s})
	if len(s.seen) != 5 {
		t.Fatalf("%d turns", len(s.seen))
	}
	if s.seen[1] == s.seen[0] {
		t.Log("threads may not be put back on this machine, so none was put behind")
	}
	tasks, err := filepath.Glob("/proc/self/task/*/stat")
	if err != nil || len(tasks) == 0 {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if n := nice(t, task); n != "" && n != s.seen[0] {
			t.Errorf("%s has the niceness %s, not %s", task, n, s.seen[0])
		}
	}
}
