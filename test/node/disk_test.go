//go:build linux

package node

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"lode"
	"lode/api"
)

// smallDisk mounts a file system in memory of some bytes.
func smallDisk(t *testing.T, size int) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root may mount a small disk")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Skipf("no small disk: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill leaves free bytes on the disk of a folder; the returned function gives
// the rest back.
func fill(t *testing.T, dir string, free int64) (empty func()) {
	t.Helper()
	f, err := os.CreateTemp(dir, "ballast-*")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 64<<10)
	for err == nil {
		_, err = f.Write(block)
	}
	for err = nil; err == nil; {
		_, err = f.Write(block[:512])
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	if free > 0 {
		if err := f.Truncate(size(t, f) - free); err != nil {
			t.Fatal(err)
		}
	}
	return func() { os.Remove(f.Name()) }
}

func size(t *testing.T, f *os.File) int64 {
	t.Helper()
	n, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestFullDisk: on a full disk writes are refused as such and leave nothing
// behind, what is there goes on, and all heals when there is room again.
func TestFullDisk(t *testing.T) {
	labReady.Do(func() { makeLab(t) })
	disk := smallDisk(t, 160<<20)
	s := newSink(t)
	copyDir(t, labDir(), filepath.Join(disk, "data"))
	p := start(t, filepath.Join(disk, "data"))
	p.must(s.URL, "secret", "set", "SINK")
	ctx := t.Context()
	e := guestC(t, echo)
	if err := p.upload(e.Wasm); err != nil {
		t.Fatal(err)
	}
	if _, err := p.c.Deploy(ctx, trio(function(e), 1), api.DeployOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.c.PutStream(ctx, "log", api.PutOptions{Records: lode.RecordsLines}, "log", strings.NewReader("first\n")); err != nil {
		t.Fatal(err)
	}
	works := func() {
		t.Helper()
		for _, fn := range []string{"web", "one", "two"} {
			if status, body, _ := p.post("/fn/"+fn, "x"); status != 200 || body != "x" {
				t.Errorf("%s: %d %s", fn, status, body)
			}
		}
		if got := p.content("log"); got != "first\n" {
			t.Errorf("dataset log holds %q", got)
		}
	}
	works()
	empty := fill(t, disk, 0)

	big := strings.Repeat("some line of text\n", 200000)
	writes := map[string]func() error{
		"blob": func() error { return p.upload([]byte(big)) },
		"data": func() error {
			_, err := p.c.PutStream(ctx, "big", api.PutOptions{Records: lode.RecordsLines}, "big", strings.NewReader(big))
			return err
		},
		"append": func() error {
			_, err := p.c.PutStream(ctx, "log", api.PutOptions{Records: lode.RecordsLines, Append: true}, "log", strings.NewReader(big))
			return err
		},
		"deploy": func() error {
			_, err := p.c.Deploy(ctx, trio(function(e), 2), api.DeployOptions{})
			return err
		},
		"submit": func() error {
			status, body, head := p.post("/fn/one", strings.Repeat("x", 100<<10), "Prefer", "respond-async")
			if status == 202 {
				return nil
			}
			return problemOf(t, status, body, head, lode.Full)
		},
		"message": func() error {
			status, body, head := p.post("/queues/work", strings.Repeat("x", 100<<10))
			if status == 202 {
				return nil
			}
			return problemOf(t, status, body, head, lode.Full)
		},
		"secret": func() error { return p.c.SetSecret(ctx, "LATE", []byte(strings.Repeat("x", 60<<10))) },
		"token": func() error {
			_, err := p.c.CreateToken(ctx, api.TokenSpec{Role: api.RoleRead})
			return err
		},
	}
	for name, write := range writes {
		var err error
		for range 3 { // what was written ahead may take one
			if err = write(); err != nil {
				break
			}
		}
		if lode.AsError(err) == nil || kindOf(err) != lode.Full || lode.AsError(err).Hint == "" {
			t.Errorf("%s on a full disk: %s: %v", name, kindOf(err), err)
			continue
		}
		t.Logf("%s: %v | %s", name, err, lode.AsError(err).Hint)
	}
	works()
	if status, body, _ := p.post("/fn/web/logs?n=200", ""); status != 200 || body != "logged" {
		t.Errorf("a function that logs: %d %s", status, body)
	}
	p.alive()
	if _, err := p.c.GetDataset(ctx, "big", 0); kindOf(err) != lode.NotFound {
		t.Errorf("half a dataset is there: %v", err)
	}

	empty()
	for name, write := range writes {
		p.wait(name+" after the disk has room", func() bool { return write() == nil })
	}
	m := newPromises()
	m.deployed = 2
	p.keepsApp(m)
	p.kill()
	p = start(t, p.dir)
	p.keepsApp(m)
	if status, body, _ := p.post("/fn/web", "x"); status != 200 || body != "x" {
		t.Errorf("in the next life: %d %s", status, body)
	}
}

// TestStartOnFullDisk: a node starts on a full disk and answers, or says why it
// does not, and starts when there is room.
func TestStartOnFullDisk(t *testing.T) {
	labReady.Do(func() { makeLab(t) })
	disk := smallDisk(t, 160<<20)
	copyDir(t, labDir(), filepath.Join(disk, "data"))
	empty := fill(t, disk, 0)
	p := &process{t: t}
	out, code := p.tryStart(filepath.Join(disk, "data"))
	t.Logf("code %d: %s", code, out)
	if code != 0 && code != lode.Full.ExitCode() {
		t.Errorf("a start on a full disk ended with code %d: %s", code, out)
	}
	empty()
	p = start(t, filepath.Join(disk, "data"))
	if status, body, _ := p.post("/fn/web", "x"); status != 200 || body != "x" {
		t.Errorf("%d %s", status, body)
	}
}
