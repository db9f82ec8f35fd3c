//go:build linux

package bus

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"lode"
)

// TestMend fills the disk below the bus, behind its back: what was
// acknowledged stays, writes are refused as Full, and all goes on when there
// is room, without a restart.
func TestMend(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root may mount a small disk")
	}
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=32m"); err != nil {
		t.Skipf("no small disk: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(disk, syscall.MNT_DETACH) })
	b, err := Open(t.Context(), Config{Dir: filepath.Join(disk, "bus"), Reserve: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	table, err := b.Table(t.Context(), "things")
	if err != nil {
		t.Fatal(err)
	}
	log, err := b.OpenLog(t.Context(), "events")
	if err != nil {
		t.Fatal(err)
	}
	watch, err := table.Watch(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Close()
	fresh, err := table.Watch(t.Context(), "") // one that has not begun to read
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	if c, err := watch.Next(t.Context()); err != nil || c.Op != Synced {
		t.Fatalf("%+v %v", c, err)
	}
	kept, appended := map[string]bool{}, uint64(0)
	put := func(key string) error {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, err := table.Put(ctx, key, []byte(strings.Repeat(key, 1000)))
		if err == nil {
			kept[key] = true
		}
		return err
	}
	add := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		seq, err := log.Append(ctx, make([]byte, 4000))
		if err == nil {
			appended = seq
		}
		return err
	}
	for round := range 2 {
		if err := errors.Join(put(fmt.Sprintf("early%d", round)), add()); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		ballast := filepath.Join(disk, "ballast")
		fill(t, ballast)
		b.space.mu.Lock()
		b.space.checked, b.space.left, b.space.budget = time.Now().Add(time.Hour), 1<<40, 1<<40 // behind its back
		b.space.mu.Unlock()
		refused := false
		for i := range 20 {
			if err := put(fmt.Sprintf("full%d-%d", round, i)); err != nil {
				refused = refused || lode.KindOf(err) == lode.Full
			}
			add()
		}
		if !refused {
			t.Error("no write was refused as Full")
		}
		if !b.mender.broken.Load() {
			t.Error("the store took everything: nothing was tested")
		}
		b.space.mu.Lock()
		b.space.checked = time.Time{}
		b.space.mu.Unlock()
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(30 * time.Second)
		for put(fmt.Sprintf("late%d", round)) != nil || add() != nil {
			if time.Now().After(deadline) {
				t.Fatal("the bus did not heal")
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	all, err := table.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, e := range all {
		there[e.Key] = true
	}
	for key := range kept {
		if !there[key] {
			t.Errorf("%s was acknowledged and is gone", key)
		}
	}
	for seq := uint64(1); seq <= appended; seq++ {
		if _, err := log.Read(t.Context(), seq); err != nil {
			t.Errorf("position %d: %v", seq, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	for name, w := range map[string]*Watch{"synced": watch, "fresh": fresh} {
		for missing := maps.Clone(kept); len(missing) > 0; {
			c, err := w.Next(ctx)
			if err != nil {
				t.Fatalf("%s: %d changes were not seen: %v", name, len(missing), err)
			}
			delete(missing, c.Key)
		}
	}
}

func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, n := range []int{64 << 10, 512} {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, n))
		}
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}

// TestMemberDiskFull fills the disk of one member of three: the others go on,
// and it follows when there is room again.
func TestMemberDiskFull(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root may mount a small disk")
	}
	ctx := t.Context()
	w := newWorld(t)
	w.reserve = 1
	disk := filepath.Join(w.dir, "c")
	if err := os.MkdirAll(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=32m"); err != nil {
		t.Skipf("no small disk: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(disk, syscall.MNT_DETACH) })
	a := w.up("a", nil)
	l := a.Layout()
	w.up("b", &l)
	w.up("c", &l)
	if err := a.Move(ctx, w.members("a", "b", "c")); err != nil {
		t.Fatal(err)
	}
	table := must(a.Table(ctx, "things"))(t)
	must(table.Put(ctx, "early", nil))(t)
	ballast := filepath.Join(disk, "ballast")
	fill(t, ballast)
	for i := range 30 {
		key := fmt.Sprint("full", i)
		eventually(t, "a write comes through", func() bool { _, err := table.Put(ctx, key, make([]byte, 20_000)); return err == nil })
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all members follow", func() bool {
		if _, err := table.Put(ctx, "late", nil); err != nil || a.Health().Survives != 1 {
			return false
		}
		mine, its := w.nodes["a"].instance(2).holds(), w.nodes["c"].instance(2).holds()
		return mine["KV_things"] == its["KV_things"]
	})
}
