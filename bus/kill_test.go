package bus

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// TestMain is also the child of TestKill, and looks for goroutines that were
// left behind.
func TestMain(m *testing.M) {
	if dir := os.Getenv("BUS_TEST_WRITES"); dir != "" {
		if err := writeForEver(dir, os.Getenv("BUS_TEST_ROUND")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	flag.Parse()
	flag.Set("test.parallel", "4") // they wait for elections and disks more than they compute
	// A server that is shut down in the middle of a restore leaves these two
	// behind for a while; they are the library's.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server.(*fileStore).flushStreamStateLoop"),
		goleak.IgnoreAnyFunction("github.com/nats-io/nats-server/v2/server/ats.Register.func1"))
}

// writeForEver puts, pulls and ends items and updates keys, and prints what was
// acknowledged: "put ID", "end ID", "key K N".
func writeForEver(dir, round string) error {
	ctx := context.Background()
	b, err := Open(ctx, Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	s, err := b.OpenQueues(ctx, "work", QueuesConfig{Slack: 64 << 10, Memory: 32 << 10})
	if err != nil {
		return err
	}
	tab, err := b.Table(ctx, "keys")
	if err != nil {
		return err
	}
	var mu sync.Mutex
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Printf(format+"\n", args...)
	}
	failed := make(chan error, 32)
	for w := range 4 {
		go func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("%s-%d-%d", round, w, i)
				if _, err := s.Put(ctx, Item{Queue: "q", ID: id, Body: []byte("body of " + id + strings.Repeat(".", 500))}); err != nil {
					failed <- err
					return
				}
				say("put %s", id)
			}
		}()
	}
	go func() {
		for {
			ds, err := s.Pull(ctx, "q", 4, -1)
			for i, d := range ds {
				if i%4 == 3 { // some stay
					continue
				}
				say("ending %s", d.ID)
				if err = d.Ack(ctx); err != nil {
					break
				}
				say("end %s", d.ID)
			}
			if err != nil {
				failed <- err
				return
			}
		}
	}()
	for w := range 2 {
		go func() {
			key := fmt.Sprintf("k/%d", w)
			e, _, err := tab.Get(ctx, key)
			for n := len(e.Value) + 1; err == nil; n++ {
				if e.Rev, err = tab.Update(ctx, key, []byte(strings.Repeat("x", n)), e.Rev); err == nil {
					say("key %s %d", key, n)
				}
			}
			failed <- err
		}()
	}
	return <-failed
}

// TestKill kills a writing process again and again: nothing that it was told
// is stored may be missing, and nothing that ended may come back.
func TestKill(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "bus")
	rounds := 5
	if testing.Short() {
		rounds = 2
	}
	live, ending := make(map[string]bool), make(map[string]bool)
	keys := make(map[string]int)
	for round := range rounds {
		for line := range killedWriter(t, dir, fmt.Sprint(round)) {
			var id string
			var n int
			switch {
			case scan(line, "put %s", &id):
				live[id] = true
			case scan(line, "ending %s", &id):
				ending[id] = true
			case scan(line, "end %s", &id):
				live[id] = false
			case scan(line, "key %s %d", &id, &n):
				keys[id] = n
			default:
				t.Fatalf("line %q", line)
			}
		}
		checkAfterKill(t, dir, live, ending, keys)
	}
	if len(live) < 20*rounds || len(keys) != 2 {
		t.Fatalf("only %d puts and %d keys in all", len(live), len(keys))
	}
}

func scan(line, format string, args ...any) bool {
	n, err := fmt.Sscanf(line, format, args...)
	return err == nil && n == len(args)
}

// killedWriter runs a child for a while and yields the lines that it finished.
func killedWriter(t *testing.T, dir, round string) func(func(string) bool) {
	return func(yield func(string) bool) {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "BUS_TEST_WRITES="+dir, "BUS_TEST_ROUND="+round)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(out)
		kill := 50 + rand.IntN(300)
		for n := 0; ; n++ {
			line, err := r.ReadString('\n')
			if err != nil {
				break // the last line may be cut
			}
			if !yield(strings.TrimSpace(line)) {
				break
			}
			if n == kill {
				time.AfterFunc(time.Duration(rand.IntN(3000))*time.Microsecond, func() { cmd.Process.Signal(syscall.SIGKILL) })
			}
		}
		if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("the writer ended by itself: %v", err)
		}
	}
}

func checkAfterKill(t *testing.T, dir string, live, ending map[string]bool, keys map[string]int) {
	t.Helper()
	ctx := t.Context()
	b := must(Open(ctx, Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)}))(t)
	defer b.Close()
	s := must(b.OpenQueues(ctx, "work", QueuesConfig{Memory: 32 << 10}))(t)
	there := make(map[string]bool)
	for _, it := range s.List("q", 0, 1_000_000) {
		there[it.ID] = true
		if it.Size != len("body of "+it.ID)+500 {
			t.Fatalf("%s has %d bytes", it.ID, it.Size)
		}
	}
	for id, want := range live {
		if want && !there[id] && !ending[id] {
			t.Errorf("%s was acknowledged and is lost", id)
		}
		if !want && there[id] {
			t.Errorf("%s has ended and is back", id)
		}
	}
	for _, d := range must(s.Pull(ctx, "q", 20, 0))(t) {
		if !strings.HasPrefix(string(d.Body), "body of "+d.ID+".") {
			t.Errorf("%s has the body %.40q", d.ID, d.Body)
		}
	}
	tab := must(b.Table(ctx, "keys"))(t)
	for key, n := range keys {
		e, ok, err := tab.Get(ctx, key)
		if err != nil || !ok || len(e.Value) != n && len(e.Value) != n+1 {
			t.Errorf("%s has %d, acknowledged %d (%v)", key, len(e.Value), n, err)
		}
	}
}
