package store_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"lode"
	"lode/store"
	"lode/store/storetest"
)

// writeForever is the child of TestKilled: it puts blobs and prints the name
// of each one that was acknowledged.
func writeForever(dir string) {
	h, err := store.OpenDir(dir)
	if err != nil {
		fmt.Println("error", err)
		return
	}
	cfg := store.Config{Home: h}
	if os.Getenv("STORE_TEST_REPLICAS") != "" {
		home, err := store.OpenReplicas(store.ReplicasConfig{Self: "n1", Local: h})
		if err != nil {
			fmt.Println("error", err)
			return
		}
		cfg = store.Config{Home: home, Cache: filepath.Join(dir, "cache")}
	}
	s, err := store.Open(cfg)
	if err != nil {
		fmt.Println("error", err)
		return
	}
	for i := uint64(0); ; i++ {
		d, err := s.PutBytes(context.Background(), storetest.Bytes(300_000, i))
		if err != nil {
			fmt.Println("error", err)
			return
		}
		fmt.Println(d)
	}
}

// TestKilled: what was acknowledged before kill -9 is there and whole; what
// was not is whole too or not there; leftovers are swept at the next start.
func TestKilled(t *testing.T) {
	t.Run("dir", func(t *testing.T) { killed(t, "STORE_TEST_REPLICAS=") })
	t.Run("replicas", func(t *testing.T) { killed(t, "STORE_TEST_REPLICAS=1") })
}

func killed(t *testing.T, home string) {
	dir := t.TempDir()
	for round := range 3 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "STORE_TEST_CHILD="+dir, home)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var acked []string
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			acked = append(acked, lines.Text())
			if len(acked) == 5+round*7 {
				cmd.Process.Kill()
			}
		}
		cmd.Wait()
		s := open(t, store.Config{Home: openDir(t, dir)})
		for _, line := range acked {
			if len(line) != 64 {
				continue // the kill cut the line
			}
			var d lode.Digest
			if err := d.UnmarshalText([]byte(line)); err != nil {
				t.Fatalf("the child said %q", line)
			}
			if err := s.Verify(t.Context(), d); err != nil {
				t.Errorf("an acknowledged blob: %v", err)
			}
		}
		for info, err := range s.List(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Verify(t.Context(), info.Digest); err != nil {
				t.Errorf("a visible blob: %v", err)
			}
		}
		empty(t, filepath.Join(dir, "tmp"))
	}
}

// TestFullDisk: on a disk without room a put is refused as Full and leaves
// nothing; when there is room again, it works.
func TestFullDisk(t *testing.T) {
	dir := tinyDisk(t, 4<<20)
	s := open(t, store.Config{Home: openDir(t, dir)})
	first, err := s.PutBytes(t.Context(), storetest.Bytes(2<<20, 1))
	if err != nil {
		t.Fatal(err)
	}
	big := storetest.Bytes(3<<20, 2)
	_, _, err = s.Put(t.Context(), bytes.NewReader(big))
	storetest.Kind(t, err, lode.Full)
	empty(t, filepath.Join(dir, "tmp"))
	if ok, _ := s.Has(t.Context(), storetest.Digest(big)); ok {
		t.Error("a half-written blob is visible")
	}
	if err := s.Verify(t.Context(), first); err != nil {
		t.Error(err)
	}
	if err := s.Delete(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if _, _, err = s.Put(t.Context(), bytes.NewReader(big)); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// TestFullNodeDisk: a node whose disk is full is passed over by puts and by
// repair, and keeps what it has; deleting works on it.
func TestFullNodeDisk(t *testing.T) {
	dir := tinyDisk(t, 4<<20)
	c := storetest.NewCluster(t, 3, func(cfg *store.ReplicasConfig) {
		if cfg.Self == "n1" {
			cfg.Local = openDir(t, dir)
		}
	})
	full := c.Nodes()[0]
	full.Dir = dir
	all := map[lode.Digest][]byte{}
	for i := range 12 {
		d, content := put(t, c.Nodes()[1+i%2], 1<<20, uint64(i))
		all[d] = content
		if n := len(c.Holders(d)); n != 2 {
			t.Errorf("blob %d is on %d nodes", i, n)
		}
	}
	c.Repair(2)
	for d, content := range all {
		if n := len(c.Holders(d)); n < 2 {
			t.Errorf("after repair, blob %s is on %d nodes", d.Short(), n)
		}
		reads(t, c.Nodes()[1], d, content)
	}
	for d := range all {
		if err := full.Store.Delete(t.Context(), d); err != nil {
			t.Error(err)
		}
	}
	if left := c.Repair(1); sum(left).Blobs != 0 {
		t.Errorf("%+v", left)
	}
}

// TestFullCacheDisk: a full cache disk evicts what is not in use.
func TestFullCacheDisk(t *testing.T) {
	s := open(t, store.Config{Home: new(store.Mem), Cache: tinyDisk(t, 4<<20)})
	var ds []lode.Digest
	for i := range 4 {
		d, _, err := s.Put(t.Context(), bytes.NewReader(storetest.Bytes(1500_000, uint64(i))))
		if lode.KindOf(err) == lode.Full {
			t.Fatalf("put %d: %v", i, err)
		}
		ds = append(ds, d)
	}
	for _, d := range ds {
		b, err := s.Open(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, b); err != nil {
			t.Error(err)
		}
		b.Close()
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
