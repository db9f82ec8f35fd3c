package catalog

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"lode"
	"lode/bus"
)

const crashFunctions = 12

// generation is an app whose functions all carry the number i.
func generation(i int) lode.App {
	app := lode.App{Name: "shop", Functions: functions{}}
	for f := range crashFunctions {
		fun := fn(byte(f))
		fun.Env = map[string]string{"GEN": strconv.Itoa(i)}
		app.Functions[lode.Name(fmt.Sprintf("f%d", f))] = fun
	}
	return app
}

func deployForEver(dir string) error {
	ctx := context.Background()
	b, err := bus.Open(ctx, bus.Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	c, err := Open(ctx, b, Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	at, err := seen(c)
	if err != nil {
		return err
	}
	for {
		at++
		if _, err := c.Deploy(ctx, ns, generation(at), DeployOptions{}); err != nil {
			return err
		}
		fmt.Println(at)
	}
}

// seen is the generation that all functions carry; an error if they do not
// agree. 0: nothing is deployed.
func seen(c *Catalog) (int, error) {
	names := slices.DeleteFunc(c.Names(ns), func(n string) bool { return n[0] != 'f' })
	if len(names) == 0 {
		return 0, nil
	}
	if len(names) != crashFunctions {
		return 0, fmt.Errorf("%d functions, want %d", len(names), crashFunctions)
	}
	first := ""
	for _, name := range names {
		r, err := c.Resolve(ns, lode.Name(name), "", 0)
		if err != nil {
			return 0, err
		}
		if got := r.Function.Env["GEN"]; first == "" {
			first = got
		} else if got != first {
			return 0, fmt.Errorf("a mix: generations %s and %s", first, got)
		}
	}
	return strconv.Atoi(first)
}

// TestKill kills a deploying node at random moments: afterwards there is
// either the newest acknowledged deploy or the one that was under way, whole.
func TestKill(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bus")
	rounds := 5
	if testing.Short() {
		rounds = 3
	}
	last := 0
	for round := range rounds {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "CATALOG_TEST_DEPLOYS="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		after := 1 + rand.IntN(6)
		acked := last
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if acked, err = strconv.Atoi(strings.TrimSpace(lines.Text())); err != nil {
				t.Fatal(err)
			}
			if after--; after == 0 {
				// Anywhere within the next deploy.
				time.AfterFunc(time.Duration(rand.IntN(6000))*time.Microsecond, func() { cmd.Process.Signal(syscall.SIGKILL) })
			}
		}
		cmd.Wait()
		if after > 0 {
			t.Fatalf("round %d: the node ended by itself", round)
		}
		b, err := bus.Open(t.Context(), bus.Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		c, err := Open(t.Context(), b, Config{})
		if err != nil {
			t.Fatal(err)
		}
		got, err := seen(c)
		if err != nil || got != acked && got != acked+1 {
			t.Fatalf("round %d: generation %d after %d was acknowledged (%v)", round, got, acked, err)
		}
		last = got
		c.Close()
		b.Close()
	}
}

// TestCutCommit opens what a crash leaves at each step of a commit.
func TestCutCommit(t *testing.T) {
	for _, copied := range []bool{false, true} {
		t.Run(fmt.Sprintf("copied=%v", copied), func(t *testing.T) {
			w := newWorld(t)
			ctx := t.Context()
			w.deploy(lode.App{Name: "one", Functions: functions{"a": fn(1)}}, DeployOptions{})
			old, _, err := w.apps.Get(ctx, "app/default/one")
			if err != nil {
				t.Fatal(err)
			}
			w.deploy(lode.App{Name: "one", Functions: functions{"a": fn(2)}}, DeployOptions{})
			if !copied { // as if killed between the commit and its copy
				if _, err := w.apps.Put(ctx, "app/default/one", old.Value); err != nil {
					t.Fatal(err)
				}
			}
			w.restart()
			w.wantLive("a", 2, 2)
			w.deploy(lode.App{Name: "two", Functions: functions{"b": fn(3)}}, DeployOptions{}) // replaces head
			w.restart()
			w.wantLive("a", 2, 2)
			w.wantLive("b", 1, 3)
		})
	}
}

// TestTwoNodes has two catalogs over the same tables, as two nodes have: both
// deploy one app at the same time, and both end with the same whole state.
func TestTwoNodes(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	other, err := Open(ctx, w.bus, w.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	var wg sync.WaitGroup
	for n, c := range []*Catalog{w.Catalog, other} {
		wg.Go(func() {
			for i := range 15 {
				if _, err := c.Deploy(ctx, ns, generation(100*(n+1)+i), DeployOptions{}); err != nil {
					t.Error(err)
				}
				if _, err := seen(c); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	// Both owners want one name: the second is refused, on whatever node.
	if _, err := w.Deploy(ctx, ns, lode.App{Name: "mine", Functions: functions{"x": fn(1, routes("/x"))}}, DeployOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err = other.Deploy(ctx, ns, lode.App{Name: "yours", Functions: functions{"x": fn(2)}}, DeployOptions{})
	wantKind(t, err, lode.Conflict, "app mine")
	_, err = other.Deploy(ctx, ns, lode.App{Name: "yours", Functions: functions{"y": fn(2, routes("/x"))}}, DeployOptions{})
	wantKind(t, err, lode.Conflict, "default/x")
	for w.Generation() != other.Generation() {
		if ctx.Err() != nil {
			t.Fatal("the nodes do not agree")
		}
		time.Sleep(time.Millisecond)
	}
	a, errA := seen(w.Catalog)
	b, errB := seen(other)
	e, _ := w.Lookup(ns, "f0")
	if a == 0 || errA != nil || errB != nil || e.Live.Number != 30 {
		t.Fatal(a, b, errA, errB, e.Live.Number)
	}
}

// TestTwoDeploysAtOnce: of two that saw the same state one wins.
func TestTwoDeploysAtOnce(t *testing.T) {
	w := newWorld(t)
	saw := w.deploy(generation(1), DeployOptions{}).Generation
	errs := make(chan error, 2)
	for i := range 2 {
		go func() {
			_, err := w.Deploy(t.Context(), ns, generation(2+i), DeployOptions{Expect: saw})
			errs <- err
		}()
	}
	a, b := <-errs, <-errs
	if a != nil {
		a, b = b, a
	}
	if a != nil {
		t.Fatal(a, b)
	}
	wantKind(t, b, lode.Precondition)
	if _, err := seen(w.Catalog); err != nil {
		t.Fatal(err)
	}
}

// TestManyFunctions deploys as many functions as a node is expected to hold,
// in one app and each in its own, and opens the catalog again.
func TestManyFunctions(t *testing.T) {
	w := newWorld(t)
	app := lode.App{Name: "big", Functions: functions{}}
	for i := range 1000 {
		f := fn(byte(i), routes(fmt.Sprintf("/big/%d/{id}", i)))
		f.Env = map[string]string{"N": strconv.Itoa(i), "PAD": strings.Repeat("x", 4<<10)}
		app.Functions[lode.Name(fmt.Sprintf("f%d", i))] = f
	}
	w.deploy(app, DeployOptions{})
	for i := range 100 {
		w.deploy(lode.App{Name: lode.Name(fmt.Sprintf("app%d", i)), Functions: functions{lode.Name(fmt.Sprintf("g%d", i)): fn(byte(i))}}, DeployOptions{})
	}
	w.close()
	start := time.Now()
	w.open()
	t.Log("bus and catalog with 1,100 functions open after", time.Since(start))
	if n := len(w.Names(ns)); n != 1100 {
		t.Fatalf("%d functions", n)
	}
	if r, err := w.Resolve(ns, "f777", "", 0); err != nil || r.Function.Env["N"] != "777" {
		t.Fatal(r, err)
	}
	if n := len(w.Routes()); n != 1000 {
		t.Fatalf("%d routes", n)
	}
}

// TestLostRevision: bytes that do not match their digest are refused by name,
// the rest works, and a new deploy repairs it.
func TestLostRevision(t *testing.T) {
	w := newWorld(t)
	app := lode.App{Name: "one", Functions: functions{"a": fn(1), "b": fn(2)}}
	w.deploy(app, DeployOptions{})
	e, _ := w.Lookup(ns, "a")
	key := revisionKey(ns, "a", e.Live.Digest)
	if _, err := w.revisions.Put(t.Context(), key, []byte(`{"language":"evil"}`)); err != nil {
		t.Fatal(err)
	}
	w.restart()
	_, err := w.Resolve(ns, "a", "", 0)
	wantKind(t, err, lode.Damaged, "default/a/")
	w.wantLive("b", 1, 2)
	w.deploy(app, DeployOptions{})
	w.wantLive("a", 1, 1)
	w.restart()
	w.wantLive("a", 1, 1)
}

func TestHistoryIsBounded(t *testing.T) {
	w := newWorld(t)
	w.deploy(generation(1), DeployOptions{})
	if _, err := w.SetAlias(t.Context(), ns, "f0", lode.Alias{Name: "first", Targets: []lode.Target{{Rev: 1, Weight: 100}}}, 0, ""); err != nil {
		t.Fatal(err)
	}
	for i := range keepRevisions + 5 {
		app := generation(2 + i)
		w.deploy(lode.App{Name: "shop", Functions: functions{"f0": app.Functions["f0"]}}, DeployOptions{})
	}
	hist, err := w.History(t.Context(), ns, "f0", 0, 0)
	if err != nil || len(hist) > keepRevisions+1 || hist[len(hist)-1].Number != 1 {
		t.Fatal(len(hist), err)
	}
	stored, err := w.revisions.List(t.Context(), "default/f0/")
	if err != nil || len(stored) != len(hist) {
		t.Fatal(len(stored), len(hist), err)
	}
}

func FuzzDecodeApp(f *testing.F) {
	r := &appRecord{Gen: 3, Namespace: "default", App: "shop", Names: map[lode.Name]*nameRecord{"a": {Kind: KindFunction, Last: 1}}}
	if b, err := r.encode(); err == nil {
		f.Add(b)
	}
	f.Add([]byte{1, 0x28, 0xb5, 0x2f, 0xfd})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeApp(b)
		if err != nil {
			return
		}
		again, err := r.encode()
		if err != nil {
			return
		}
		if _, err := decodeApp(again); err != nil {
			t.Fatal(err)
		}
	})
}
