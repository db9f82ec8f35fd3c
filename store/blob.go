package store

import (
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"lode"
)

// stamp tells whether a file is the one that was verified.
type stamp struct {
	inode uint64
	size  int64
	mtime time.Time
}

func stampOf(fi os.FileInfo) stamp {
	return stamp{inode(fi), fi.Size(), fi.ModTime()}
}

// Blob is an open, verified blob: a local file that does not change and does
// not go away before Close. Reading at offsets is safe for concurrent use;
// Read and Seek share one position.
type Blob struct {
	*io.SectionReader
	digest  lode.Digest
	file    *os.File
	fetched int64
	close   func() error
	doubt   func() // the file is not what was verified any more
}

var (
	_ io.ReadSeeker = (*Blob)(nil)
	_ io.ReaderAt   = (*Blob)(nil)
	_ io.Closer     = (*Blob)(nil)
)

// Digest is the blob's name.
func (b *Blob) Digest() lode.Digest { return b.digest }

// Path is the local file, valid until Close. It must not be written.
func (b *Blob) Path() string { return b.file.Name() }

// Fetched is the bytes that this opening moved over the network; 0 for a blob
// that was here.
func (b *Blob) Fetched() int64 { return b.fetched }

// Close gives the blob free to be evicted. Idempotent.
func (b *Blob) Close() error { return b.close() }

// View calls fn with the mapped content, which fn must not write and must not
// keep or hand to another goroutine. A page that cannot be read (a truncated
// file, a failed disk) ends fn and becomes a Damaged error instead of a dead
// process.
func (b *Blob) View(fn func([]byte) error) (err error) {
	content, unmap, err := mapFile(b.file, b.Size())
	if err != nil {
		return ioError("map "+b.Path(), err)
	}
	defer unmap()
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if _, fault := p.(interface{ Addr() uintptr }); !fault {
			panic(p)
		}
		b.doubt()
		err = lode.Errorf(lode.Damaged, "blob %s is damaged at %s: a page could not be read: %v", b.digest, b.Path(), p)
	}()
	return fn(content)
}

// newBlob wraps an open file; release runs once, at Close, and doubt when a
// page could not be read.
func newBlob(d lode.Digest, f *os.File, size, fetched int64, release, doubt func()) *Blob {
	closeOnce := sync.OnceValue(func() error {
		defer release()
		if err := f.Close(); err != nil {
			return fmt.Errorf("close blob %s: %w", d.Short(), err)
		}
		return nil
	})
	return &Blob{SectionReader: io.NewSectionReader(f, 0, size), digest: d, file: f, fetched: fetched, close: closeOnce, doubt: doubt}
}
