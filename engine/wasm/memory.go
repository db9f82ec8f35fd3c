package wasm

import (
	"github.com/tetratelabs/wazero/experimental"
)

// memory is the linear memory of one sandbox. It is used by one goroutine at a
// time.
type memory interface {
	experimental.LinearMemory
	// bytes is what the guest has now. It is valid until the memory grows.
	bytes() []byte
	// lay makes the first bytes equal to img, on a memory never written. The
	// memory still has to be grown to the image's size.
	lay(img *image) error
	// enter and leave stand before and after a call into the guest, on one
	// locked thread. moved stands in place of leave when the thread was given
	// back in between.
	enter()
	leave()
	moved()
	// restore makes the bytes equal to the image again, and reports whether it
	// could.
	restore() bool
	// window lays n bytes of w from off over the guest's memory at ptr. All
	// was checked but the file.
	window(w windowFile, off int64, ptr, n int) error
	// close gives the memory back. It may be called more than once.
	close()
}

// windowFile is engine.Windows without the import.
type windowFile interface {
	File() (fd uintptr, size int64)
	ReadAt(p []byte, off int64) (int, error)
}

// allocator gives one memory to the one instance that it is made for.
type allocator struct{ m memory }

// Allocate implements experimental.MemoryAllocator.
func (a allocator) Allocate(_, _ uint64) experimental.LinearMemory { return a.m }

var _ experimental.MemoryAllocator = allocator{}

// heapMemory is the portable memory: Go's heap, and a full copy for a reset.
type heapMemory struct {
	b     []byte
	limit int
	img   *image
	laid  bool
}

func newHeapMemory(limit int) *heapMemory { return &heapMemory{limit: limit} }

func (m *heapMemory) bytes() []byte { return m.b }

// Reallocate implements experimental.LinearMemory.
func (m *heapMemory) Reallocate(size uint64) []byte {
	if size > uint64(m.limit) {
		return nil
	}
	if int(size) > cap(m.b) {
		b := make([]byte, size, min(int(size)*5/4, m.limit))
		copy(b, m.b)
		m.b = b
	}
	m.b = m.b[:size]
	if m.img != nil && !m.laid && int(size) >= len(m.img.b) {
		copy(m.b, m.img.b)
		m.laid = true
	}
	return m.b
}

// Free implements experimental.LinearMemory. It does nothing: the guest may
// still be running.
func (m *heapMemory) Free() {}

func (m *heapMemory) lay(img *image) error {
	m.img = img
	return nil
}

func (m *heapMemory) enter() {}
func (m *heapMemory) leave() {}
func (m *heapMemory) moved() {}

func (m *heapMemory) restore() bool {
	if m.img == nil || len(m.b) != len(m.img.b) {
		return false
	}
	copy(m.b, m.img.b)
	return true
}

func (m *heapMemory) window(w windowFile, off int64, ptr, n int) error {
	return copyWindow(m.b, w, off, ptr, n)
}

func (m *heapMemory) close() { m.b = nil }

// copyWindow is a window where none can be mapped.
func copyWindow(b []byte, w windowFile, off int64, ptr, n int) error {
	_, size := w.File()
	have := int(min(int64(n), size-off))
	if _, err := w.ReadAt(b[ptr:ptr+have], off); err != nil {
		return err
	}
	// A mapped file ends with zeros up to the end of its last page.
	end := (have + pageSize - 1) &^ (pageSize - 1)
	clear(b[ptr+have : ptr+min(end, n)])
	return nil
}

// pageSize is the granule of windows and of the hot set. Systems with larger
// pages use the portable memory.
const pageSize = 4096

var _ memory = (*heapMemory)(nil)
