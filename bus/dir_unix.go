//go:build unix

package bus

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"lode"
)

// lockDir takes the folder for this process. The lock goes with the process,
// however it ends.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, lode.Errorf(lode.Unavailable, "lock bus: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, lode.Errorf(lode.Conflict, "%s is in use by another node", dir).WithHint("stop the other node, or use another folder with -d")
		}
		return nil, lode.Errorf(lode.Unavailable, "lock %s: %w", dir, err)
	}
	return f, nil
}

// freeBytes is the space that an ordinary process may still use.
func freeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}
