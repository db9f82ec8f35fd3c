package state_test

import (
	"bufio"
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"lode"
	"lode/agent/journal"
	"lode/agent/state"
)

// crashMessage is the message at a position of the journal of the child of
// TestKilled.
func crashMessage(pos uint64) []state.Applied {
	r := rand.New(rand.NewPCG(pos, 3))
	es := make([]state.Applied, 1+r.IntN(3))
	for i := range es {
		p := journal.Partition{Namespace: "default", Kind: "cart", N: i}
		es[i] = one(p, 1+pos/1000, change(r), change(r), set("~", fmt.Sprint(pos)))
	}
	return es
}

// applyForever is the child: it goes on from where the state is, and prints
// every position that it has applied.
func applyForever(dir string) {
	d, err := state.Open(dir, state.Config{Memtable: 256 << 10, SaveRate: -1})
	if err != nil {
		fmt.Println("error", err)
		return
	}
	pos, err := d.Applied("n1")
	for err == nil {
		pos++
		if err = d.Apply("n1", pos, crashMessage(pos)); err == nil {
			fmt.Println(pos)
		}
	}
	fmt.Println("error", err)
}

// TestKilled: after kill -9 the state is what it was after the message at
// Applied, in all partitions.
func TestKilled(t *testing.T) {
	rounds := 4
	if long() {
		rounds = 40
	}
	dir := t.TempDir()
	want := map[journal.Partition]model{}
	marks := map[journal.Partition]state.Mark{}
	var at uint64
	for round := range rounds {
		acked := killChild(t, dir, 400+round*137)
		d := open(t, dir)
		applied, err := d.Applied("n1")
		if err != nil || applied < at || applied > acked+1 {
			t.Fatalf("round %d: applied %d, before %d, acknowledged %d: %v", round, applied, at, acked, err)
		}
		for ; at < applied; at++ {
			for _, e := range crashMessage(at + 1) {
				if want[e.Part] == nil {
					want[e.Part] = model{}
				}
				want[e.Part].apply(e.Changes)
				marks[e.Part] = state.Mark{Epoch: e.Epoch, Journal: "n1", Pos: at + 1}
			}
		}
		for p, m := range want {
			m.is(t, d.Part(p))
			if got, ok, err := d.Part(p).Mark(); got != marks[p] || !ok || err != nil {
				t.Error(got, ok, err, marks[p])
			}
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if at == 0 {
		t.Error("nothing ever reached the disk")
	}
}

// killChild runs the child until it has said n positions, and returns the last
// one it said.
func killChild(t *testing.T, dir string, n int) (acked uint64) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "STATE_TEST_CHILD="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for said := 1; lines.Scan(); said++ {
		if bytes.HasPrefix(lines.Bytes(), []byte("error")) {
			t.Error(lines.Text())
		}
		if pos, err := strconv.ParseUint(lines.Text(), 10, 64); err == nil && pos > acked {
			acked = pos
		}
		if said == n {
			cmd.Process.Kill()
		}
	}
	cmd.Wait()
	return acked
}

// TestKilledRestore: a partition that was restored is there after a crash, at
// least as new as the snapshot, and the journal may be read again over it.
func TestKilledRestore(t *testing.T) {
	dir, b := t.TempDir(), newMem()
	d := open(t, t.TempDir())
	apply(t, d, "n1", 95, one(p0, 7, set("a", "95")))
	m, _, err := d.Part(p0).Save(t.Context(), b, lode.Digest{}, state.Mark{Epoch: 7, Journal: "n1", Pos: 95})
	if err != nil {
		t.Fatal(err)
	}
	d2 := open(t, dir)
	apply(t, d2, "n2", 90, one(p1, 1, set("b", "90")), one(p0, 3, set("old", "1")))
	if err := d2.Part(p0).Restore(t.Context(), b, m); err != nil {
		t.Fatal(err)
	}
	apply(t, d2, "n1", 96, one(p0, 7, set("a", "96")))
	after := open(t, crashCopy(t, dir))
	if mark, ok, err := after.Part(p0).Mark(); mark != (state.Mark{Epoch: 7, Journal: "n1", Pos: 95}) || !ok || err != nil {
		t.Fatal(mark, ok, err)
	}
	apply(t, after, "n2", 91, one(p0, 3, set("old", "2")))
	apply(t, after, "n1", 94, one(p0, 7, set("a", "94")))
	if got := dump(t, after.Part(p0), "", "", false); got != "a=95" {
		t.Error(got)
	}
	apply(t, after, "n1", 96, one(p0, 7, set("a", "96")))
	if got := dump(t, after.Part(p0), "", "", false); got != "a=96" {
		t.Error(got)
	}
}

// crashCopy is what a crash would leave of the files of an open DB.
func crashCopy(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(filepath.Join(to, "db"), os.DirFS(filepath.Join(dir, "db"))); err != nil {
		t.Fatal(err)
	}
	return to
}

// TestFullDisk: on a full disk changes are refused as Full, what is there can
// be read, and when there is room again it goes on, at worst once it was
// opened again.
func TestFullDisk(t *testing.T) {
	dir := tinyDisk(t, 24<<20)
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 18<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := state.Config{Memtable: 512 << 10, SaveRate: -1}
	d, err := state.Open(dir, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { d.Close() }()
	want, r := model{}, rand.New(rand.NewPCG(1, 1))
	pos := uint64(0)
	next := func() error {
		v := make([]byte, 10_000)
		for i := range v {
			v[i] = byte(r.Uint32())
		}
		c := set(fmt.Sprintf("%06d", pos), string(v))
		if err := d.Apply("n1", pos+1, []state.Applied{one(p0, 1, c)}); err != nil {
			return err
		}
		pos++
		want.apply([]journal.Change{c})
		return nil
	}
	for err = nil; err == nil; err = next() {
		if pos > 10_000 {
			t.Fatal("the disk is never full")
		}
	}
	wantKind(t, err, lode.Full)
	want.is(t, d.Part(p0))
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if !d.Dead() {
		d.Heal(t)
	}
	if d.Dead() {
		d.Close()
		if d, err = state.Open(dir, cfg); err != nil {
			t.Fatal(err)
		}
		applied, err := d.Applied("n1")
		if err != nil || applied > pos {
			t.Fatal(applied, pos, err)
		}
		for ; pos > applied; pos-- {
			delete(want, fmt.Sprintf("%06d", pos-1))
		}
	}
	for range 100 {
		if err := next(); err != nil {
			t.Fatal(err)
		}
	}
	want.is(t, d.Part(p0))
	if err := d.Flush(); err != nil {
		t.Error(err)
	}
}

// tinyDisk mounts a tmpfs of that size, or skips.
func tinyDisk(t *testing.T, size int) string {
	t.Helper()
	dir := t.TempDir()
	out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size="+strconv.Itoa(size), "tmpfs", dir).CombinedOutput()
	if err != nil {
		t.Skipf("a small tmpfs cannot be mounted here (it needs root): %v %s", err, out)
	}
	t.Cleanup(func() { exec.Command("umount", "-l", dir).Run() })
	return dir
}
