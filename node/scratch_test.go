package node

import (
	"os"
	"path/filepath"
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
