package invoke

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"lode"
	"lode/bus"
)

const childEnv = "LODE_INVOKE_CRASH_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		if err := crashChild(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// busWorld opens a bus in dir and a service on it.
func busWorld(dir string) (*world, *Service, *bus.Bus, error) {
	ctx := context.Background()
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	b, err := bus.Open(ctx, bus.Config{Dir: filepath.Join(dir, "bus"), Logger: quiet})
	if err != nil {
		return nil, nil, nil, err
	}
	q, err := b.OpenQueues(ctx, "work", bus.QueuesConfig{})
	if err != nil {
		b.Close()
		return nil, nil, nil, err
	}
	w := newWorld()
	w.queues["orders"] = lode.Queue{Deliver: 1000}
	w.deploy("echo", lode.Function{Retry: lode.Retry{Attempts: 100, First: time.Millisecond}}, func(g *guest) error { return g.answer(200, "r:"+string(g.inv.Body)) })
	w.deploy("once", lode.Function{}, func(g *guest) error { return g.answer(200, rand.Text()) })
	w.deploy("ship", lode.Function{Queue: &lode.Consume{Queue: "orders"}}, func(g *guest) error {
		var in struct{ Messages []message }
		if err := json.Unmarshal(g.inv.Body, &in); err != nil {
			return err
		}
		f, err := os.OpenFile(filepath.Join(dir, "shipped"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		for _, m := range in.Messages {
			fmt.Fprintln(f, m.ID)
		}
		return g.answer(200, "")
	})
	s, err := Open(ctx, Config{Catalog: w, Pools: w, Tables: BusTables(b), Queues: BusQueues(q), Logger: quiet})
	if err != nil {
		b.Close()
		return nil, nil, nil, err
	}
	return w, s, b, nil
}

// bodyOf is the body of the n-th call: some do not fit inline.
func bodyOf(n int) string {
	if n%5 == 0 {
		return strings.Repeat(strconv.Itoa(n)+",", 20_000)
	}
	return strconv.Itoa(n)
}

// crashChild works until it is killed, and says on its output what was
// acknowledged to it.
func crashChild(dir string) error {
	_, s, _, err := busWorld(dir)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	say := func(words ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Println(words...)
	}
	ctx := context.Background()
	var wg sync.WaitGroup
	begin := int(time.Now().UnixNano())
	for lane := range 3 {
		wg.Go(func() {
			for i := begin + lane; ; i += 3 {
				id, err := s.Submit(ctx, &lode.Request{Namespace: "default", Function: "echo", Body: []byte(bodyOf(i))})
				if err == nil {
					say("call", id, i)
				}
			}
		})
	}
	wg.Go(func() {
		for {
			if id, err := s.PutQueue(ctx, "default", "orders", "", 0, "", []byte("m")); err == nil {
				say("message", id)
			}
		}
	})
	wg.Go(func() {
		for i := begin; ; i++ {
			key, ans := fmt.Sprint("k", i), &lode.Buffered{}
			if _, err := s.Invoke(ctx, &lode.Request{Namespace: "default", Function: "once", IdempotencyKey: key}, ans); err == nil {
				say("once", key, string(ans.Msg.Body))
			}
		}
	})
	wg.Go(func() {
		for i := begin; ; i++ {
			key := fmt.Sprint("s", i)
			if id, err := s.Submit(ctx, &lode.Request{Namespace: "default", Function: "echo", IdempotencyKey: key, Body: []byte(key)}); err == nil {
				say("key", key, id)
			}
		}
	})
	wg.Wait()
	return nil
}

// TestCrash kills a node at work several times. Nothing that it acknowledged
// is lost, no answer changes once it was told, and none is half there.
func TestCrash(t *testing.T) {
	if testing.Short() {
		t.Skip("kills processes")
	}
	dir := t.TempDir()
	var acks [][]string
	for round, lines := range []int{7, 60, 23, 150} {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+dir)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		in := bufio.NewScanner(out)
		for n := 0; in.Scan(); {
			if n++; n == lines {
				cmd.Process.Kill() // what was said until it dies counts too
			}
			if f := strings.Fields(in.Text()); len(f) >= 2 {
				acks = append(acks, f)
			}
		}
		cmd.Wait()
		if stderr.Len() > 0 {
			t.Fatalf("round %d: %s", round, &stderr)
		}
	}
	verifyAcks(t, dir, acks)
}

func verifyAcks(t *testing.T, dir string, acks [][]string) {
	_, s, b, err := busWorld(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	defer s.Close()
	ctx := context.Background()
	seen := map[string]int{}
	for _, a := range acks {
		seen[a[0]]++
		switch a[0] {
		case "call":
			c, err := s.GetCall(ctx, "default", lode.InvocationID(a[1]), time.Minute)
			if err != nil || c.State != lode.StateDone {
				t.Fatalf("acknowledged %v: %+v %v", a, c, err)
			}
			n, _ := strconv.Atoi(a[2])
			ans, err := s.CallResult(ctx, "default", c.ID)
			if err != nil || string(ans.Msg.Body) != "r:"+bodyOf(n) {
				t.Fatalf("result of %v is not whole: %v", a, err)
			}
		case "once":
			ans := &lode.Buffered{}
			if _, err := s.Invoke(ctx, &lode.Request{Namespace: "default", Function: "once", IdempotencyKey: a[1]}, ans); err != nil || string(ans.Msg.Body) != a[2] {
				t.Fatalf("told %v, now %s %v", a, ans.Msg.Body, err)
			}
		case "key":
			id, err := s.Submit(ctx, &lode.Request{Namespace: "default", Function: "echo", IdempotencyKey: a[1], Body: []byte(a[1])})
			if err != nil || string(id) != a[2] {
				t.Fatalf("told %v, now %s %v", a, id, err)
			}
		}
	}
	for _, kind := range []string{"call", "message", "once", "key"} {
		if seen[kind] == 0 {
			t.Errorf("no %s was acknowledged", kind)
		}
	}
	for deadline := time.Now().Add(time.Minute); s.QueueState("default", "orders").Depth+s.QueueState("default", "orders").InFlight > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the queue does not become empty")
		}
	}
	shipped, err := os.ReadFile(filepath.Join(dir, "shipped"))
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range acks {
		if a[0] == "message" && !bytes.Contains(shipped, []byte(a[1]+"\n")) {
			t.Errorf("message %s was never delivered", a[1])
		}
	}
}
