package store

import (
	"errors"
	"io/fs"
	"syscall"

	"lode"
)

// ioError gives a failed file operation its kind: Full for a disk or a quota
// without room, else Internal. Errors that have a kind keep it.
func ioError(doing string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*lode.Error](err); ok {
		return err
	}
	if isFull(err) {
		return lode.Errorf(lode.Full, "%s: %w", doing, err).
			WithHint("free space on that disk, or lower what is kept (lode data gc)")
	}
	return lode.Errorf(lode.Internal, "%s: %w", doing, err)
}

func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

func isMissing(err error) bool { return errors.Is(err, fs.ErrNotExist) }

func notFound(d lode.Digest, where string) error {
	return lode.Errorf(lode.NotFound, "blob %s is not in %s", d, where)
}

// damaged names the blob and the place whose bytes do not match it.
func damaged(d lode.Digest, where string, got lode.Digest, size int64) error {
	return lode.Errorf(lode.Damaged, "blob %s is damaged at %s: its %d bytes have digest %s", d, where, size, got).
		WithHint("put the same data again to repair it, or restore that file from a backup")
}
