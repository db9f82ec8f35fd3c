package state_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"lode"
	"lode/agent/journal"
	"lode/agent/state"
)

// TestMillion: a million small agents fit a small process, and what they need
// does not grow when the state is opened again. Figures are logged; only the
// bound on memory is one that fails.
func TestMillion(t *testing.T) {
	if !long() {
		t.Skip("LODE_LONG=1 runs it")
	}
	dir := t.TempDir()
	for _, what := range []string{"fill", "open"} {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "STATE_TEST_MILLION="+what, "STATE_TEST_CHILD="+dir)
		out, err := cmd.CombinedOutput()
		t.Logf("%s: %s", what, out)
		if err != nil {
			t.Fatal(err)
		}
		rest, ok := bytes.CutPrefix(bytes.TrimSpace(out), []byte("rss "))
		word, _, _ := bytes.Cut(rest, []byte(" "))
		rss, err := strconv.ParseInt(string(word), 10, 64)
		if !ok || err != nil {
			t.Fatal(err)
		}
		if rss > 250<<20 {
			t.Errorf("%d MiB of memory", rss>>20)
		}
	}
}

const (
	millionAgents = 1_000_000
	millionParts  = 64
)

// million is the child: it fills the state, or opens and reads it, and says
// how much memory it has.
func million(dir, what string) {
	began := time.Now()
	d, err := state.Open(dir, state.Config{})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	opened := time.Since(began)
	part := func(i int) journal.Partition {
		return journal.Partition{Namespace: "default", Kind: "cart", N: i % millionParts}
	}
	key := func(i int) string { return fmt.Sprintf("customer-%08d/state/total", i) }
	if what == "fill" {
		for i := 0; i < millionAgents; i += 500 {
			var es []state.Applied
			for n := range 500 {
				es = append(es, one(part(i+n), 1, set(key(i+n), fmt.Sprintf("%0150d", i+n))))
			}
			if err := d.Apply("n1", uint64(i+1), es); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
		}
	}
	misses := 0
	for i := 0; i < millionAgents; i += 97 {
		if _, ok, err := d.Part(part(i)).Get([]byte(key(i))); !ok || err != nil {
			misses++
		}
	}
	b, _ := os.ReadFile("/proc/self/statm")
	var size, rss int64
	fmt.Sscan(string(b), &size, &rss)
	fmt.Println("rss", rss*int64(os.Getpagesize()), "opened", opened, "misses", misses, "all", time.Since(began))
	if err := d.Close(); err != nil || misses > 0 {
		fmt.Println(err)
		os.Exit(1)
	}
}

// TestSaveMillion saves, restores and saves again a large partition.
func TestSaveMillion(t *testing.T) {
	if !long() {
		t.Skip("LODE_LONG=1 runs it")
	}
	d, b := open(t, t.TempDir()), newMem()
	for i := 0; i < millionAgents; i += 500 {
		var cs []journal.Change
		for n := range 500 {
			cs = append(cs, set(fmt.Sprintf("customer-%08d/state/total", i+n), fmt.Sprintf("%0150d", i+n)))
		}
		apply(t, d, "n1", uint64(i+1), one(p0, 1, cs...))
	}
	mark := state.Mark{Epoch: 1, Journal: "n1", Pos: millionAgents}
	m, stats, err := d.Part(p0).Save(t.Context(), b, lode.Digest{}, mark)
	if err != nil || stats.Keys != millionAgents {
		t.Fatal(stats, err)
	}
	other := open(t, t.TempDir())
	if err := other.Part(p0).Restore(t.Context(), b, m); err != nil {
		t.Fatal(err)
	}
	apply(t, other, "n1", millionAgents+1, one(p0, 1, set("customer-00500000/state/total", "9")))
	again, stats, err := other.Part(p0).Save(t.Context(), b, m, mark)
	if err != nil || stats.Read > state.SegmentMost || again == m {
		t.Fatal(stats, err)
	}
}
