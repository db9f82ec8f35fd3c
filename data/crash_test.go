package data_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"lode"
	"lode/data"
	"lode/store"
	"lode/store/storetest"
)

// fileRegisters keep each register in a file that is replaced by rename, so
// that they survive the death of the child. One process at a time.
type fileRegisters struct{ dir string }

func (f fileRegisters) path(key string) string {
	return filepath.Join(f.dir, strings.ReplaceAll(key, "/", "%"))
}

func (f fileRegisters) Get(_ context.Context, key string) ([]byte, uint64, bool, error) {
	b, err := os.ReadFile(f.path(key))
	if os.IsNotExist(err) {
		return nil, 0, false, nil
	}
	if err != nil || len(b) < 8 {
		return nil, 0, false, lode.Errorf(lode.Internal, "read a register: %d bytes, %v", len(b), err)
	}
	return b[8:], binary.BigEndian.Uint64(b), true, nil
}

func (f fileRegisters) Swap(ctx context.Context, key string, value []byte, expect uint64) (uint64, error) {
	_, rev, _, err := f.Get(ctx, key)
	if err != nil {
		return 0, err
	}
	if rev != expect {
		return 0, lode.Errorf(lode.Precondition, "register %s has changed", key)
	}
	tmp := filepath.Join(f.dir, "tmp")
	if err := os.WriteFile(tmp, append(binary.BigEndian.AppendUint64(nil, rev+1), value...), 0o600); err != nil {
		return 0, err
	}
	return rev + 1, os.Rename(tmp, f.path(key))
}

func (f fileRegisters) Delete(_ context.Context, key string) error { return os.Remove(f.path(key)) }

func (f fileRegisters) List(context.Context, string) ([]data.Register, error) { return nil, nil }

// line is what the child appends as record i of a version.
func line(version, i int) string {
	return fmt.Sprintf("version %d record %d of some length\n", version, i)
}

const lines = 20_000 // about 700 kB and ten shards an append

// putForever is the child: it appends, and prints each version acknowledged.
func putForever(dir string) {
	home, err := store.OpenDir(filepath.Join(dir, "home"))
	if err != nil {
		fmt.Println("error", err)
		return
	}
	st, err := store.Open(store.Config{Home: home})
	if err != nil {
		fmt.Println("error", err)
		return
	}
	ds, err := data.New(data.Config{Store: st, Registers: fileRegisters{filepath.Join(dir, "regs")}})
	if err != nil {
		fmt.Println("error", err)
		return
	}
	ctx, version := context.Background(), 0
	if h, err := ds.Show(ctx, "default", "d"); err == nil {
		version = h.Newest().Number
	}
	for {
		var b strings.Builder
		for i := range lines {
			b.WriteString(line(version+1, i))
		}
		o := data.PutOptions{Append: version > 0, Spec: lode.Dataset{Shard: data.MinShard, Records: "lines"}}
		m, err := ds.Put(ctx, "default", "d", o, files("f", b.String()))
		if err != nil {
			fmt.Println("error", err)
			return
		}
		version = m.Version
		fmt.Println("acked", version)
	}
}

// TestKilled: kill -9 in the middle of an append. Every acknowledged version
// is there; the newest is whole.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"home", "regs"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	acked := 0
	for round := range 3 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "DATA_TEST_CHILD="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		seen := 0
		for sc := bufio.NewScanner(out); sc.Scan(); {
			n, ok := strings.CutPrefix(sc.Text(), "acked ")
			if !ok {
				t.Fatalf("the child said %q", sc.Text())
			}
			if acked, err = strconv.Atoi(n); err != nil {
				t.Fatal(err)
			}
			if seen++; seen == 1+round {
				cmd.Process.Kill() // it has begun the next one
			}
		}
		cmd.Wait()
		whole(t, open(t, filepath.Join(dir, "home"), fileRegisters{filepath.Join(dir, "regs")}), acked)
	}
}

func whole(t *testing.T, h house, acked int) {
	t.Helper()
	m, _, err := h.Manifest(t.Context(), "default", "d", 0)
	if err != nil {
		t.Fatal(err)
	}
	if m.Version < acked {
		t.Fatalf("version %d was acknowledged, %d is the newest", acked, m.Version)
	}
	var want strings.Builder
	for v := range m.Version {
		for i := range lines {
			want.WriteString(line(v+1, i))
		}
	}
	if got := h.cat(t, "d", 0); got != want.String() {
		t.Errorf("version %d has %d bytes, want %d, or others", m.Version, len(got), want.Len())
	}
	left, err := os.ReadDir(filepath.Join(h.dir, "tmp"))
	if err != nil || len(left) > 0 {
		t.Errorf("%d leftovers, %v", len(left), err)
	}
}

// TestFullDisk: a put without room is refused as Full, nothing of it is
// visible, and the version before stays.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", dir).CombinedOutput(); err != nil {
		t.Skipf("a small tmpfs cannot be mounted here (it needs root): %v %s", err, out)
	}
	t.Cleanup(func() { exec.Command("umount", "-l", dir).Run() })
	h := open(t, dir, new(data.MemRegisters))
	h.put(t, "d", data.PutOptions{Spec: lode.Dataset{Shard: data.MinShard}}, files("a", "old\n"))
	_, err := h.Put(t.Context(), "default", "d", data.PutOptions{}, files("a", numbered(200_000)))
	storetest.Kind(t, err, lode.Full)
	left, err := os.ReadDir(filepath.Join(dir, "tmp"))
	if err != nil || len(left) > 0 {
		t.Errorf("%d leftovers, %v", len(left), err)
	}
	m, _, err := h.Manifest(t.Context(), "default", "d", 0)
	if err != nil || m.Version != 1 {
		t.Fatalf("the newest is %+v, %v", m, err)
	}
	if err := h.Cat(t.Context(), m, io.Discard); err != nil {
		t.Error(err)
	}
	if _, err := h.Collect(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	h.put(t, "d", data.PutOptions{}, files("a", numbered(50_000)))
}
