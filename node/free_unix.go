//go:build linux || darwin

package node

import "syscall"

// freeBytes is what an ordinary user may still write where path is.
func freeBytes(path string) (int64, bool) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(path, &s); err != nil {
		return 0, false
	}
	return int64(s.Bavail) * int64(s.Bsize), true
}
