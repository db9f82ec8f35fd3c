package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

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
	if s.lock, err = lockScratch(s.path + ".lock"); err != nil {
		return nil, lode.Errorf(lode.Unavailable, "lock the scratch folder: %w", err)
	}
	if err := errors.Join(os.RemoveAll(s.path), os.Mkdir(s.path, 0o700)); err != nil {
		return nil, errors.Join(lode.Errorf(lode.Unavailable, "make the scratch folder: %w", err), s.close())
	}
	return s, nil
}

// lockScratch waits for the lock of a scratch folder: nodes that start sweep
// what others left, and hold it for that while, and take the file away with
// what they sweep.
func lockScratch(path string) (*os.File, error) {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		f, err := lockFile(path)
		switch {
		case err == nil && same(f, path):
			return f, nil
		case err == nil:
			f.Close()
			err = errors.New("it goes away again and again")
		case !errors.Is(err, syscall.EWOULDBLOCK):
			return nil, err
		}
		if time.Now().After(end) {
			return nil, err
		}
	}
}

// same reports whether f is the file at path still.
func same(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
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
