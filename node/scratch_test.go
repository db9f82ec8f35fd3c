package node

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// TestScratch: the folder of a node that was killed goes at the next start of
// any, that of one that lives stays.
func TestScratch(t *testing.T) {
	killed, err := openScratch(filepath.Join(t.TempDir(), "killed"))
	if err != nil {
		t.Fatal(err)
	}
	lives, err := openScratch(filepath.Join(t.TempDir(), "lives"))
	if err != nil {
		t.Fatal(err)
	}
	defer lives.close()
	killed.lock.Close() // as the kernel does
	next, err := openScratch(filepath.Join(t.TempDir(), "next"))
	if err != nil {
		t.Fatal(err)
	}
	defer next.close()
	for path, want := range map[string]bool{killed.path: false, killed.path + ".lock": false, lives.path: true, next.path: true} {
		if _, err := os.Stat(path); (err == nil) != want {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestScratchAtOnce: nodes that were killed together start together, while each
// sweeps what the others left.
func TestScratchAtOnce(t *testing.T) {
	dir := t.TempDir()
	for range 30 {
		var left, opened []*scratch
		for i := range 4 {
			s, err := openScratch(filepath.Join(dir, fmt.Sprint(i)))
			if err != nil {
				t.Fatal(err)
			}
			left = append(left, s)
		}
		for _, s := range left {
			s.lock.Close() // as the kernel does
		}
		opened = make([]*scratch, len(left))
		var all sync.WaitGroup
		for i := range opened {
			all.Go(func() {
				s, err := openScratch(filepath.Join(dir, fmt.Sprint(i)))
				if err != nil {
					t.Error(err)
					return
				}
				opened[i] = s
			})
		}
		all.Wait()
		for _, s := range opened {
			if s == nil {
				continue
			}
			if _, err := os.Stat(s.path); err != nil {
				t.Error(err)
			}
			if err := s.close(); err != nil {
				t.Error(err)
			}
		}
	}
}
