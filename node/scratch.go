package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/zeebo/blake3"

	"lode"
)

// scratch is the folder that programs pass through on their way to workers: in
// memory where there is such a folder, private, of one data folder, and empty
// at the start. A file beside it, its name and ".lock", is locked for as long
// as its node lives: so the folders that killed nodes left are known and swept.
type scratch struct {
	path string
	lock *os.File
}

func openScratch(data string) (*scratch, error) {
	sum := blake3.Sum256([]byte(data))
	base := "/dev/shm"
	if s, err := os.Stat(base); err != nil || !s.IsDir() {
		base = os.TempDir()
	}
	prefix := fmt.Sprintf("lode-%d-", os.Getuid())
	s := &scratch{path: filepath.Join(base, fmt.Sprintf("%s%x", prefix, sum[:8]))}
	sweepScratch(filepath.Join(base, prefix+"*.lock"))
	var err error
	if s.lock, err = lockFile(s.path + ".lock"); err != nil {
		return nil, lode.Errorf(lode.Unavailable, "lock the scratch folder: %w", err)
	}
	if err := errors.Join(os.RemoveAll(s.path), os.Mkdir(s.path, 0o700)); err != nil {
		return nil, errors.Join(lode.Errorf(lode.Unavailable, "make the scratch folder: %w", err), s.close())
	}
	return s, nil
}

// sweepScratch removes the folders of nodes that are no more.
func sweepScratch(locks string) {
	all, err := filepath.Glob(locks)
	if err != nil {
		return
	}
	for _, lock := range all {
		f, err := lockFile(lock)
		if err != nil {
			continue // its node lives
		}
		os.RemoveAll(strings.TrimSuffix(lock, ".lock"))
		os.Remove(lock)
		f.Close()
	}
}

func (s *scratch) close() error {
	err := errors.Join(os.RemoveAll(s.path), os.Remove(s.path+".lock"))
	return errors.Join(err, s.lock.Close())
}
