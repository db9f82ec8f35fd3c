package wasm

import (
	"bytes"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// image is the snapshot of a guest's memory: a sealed memory file, or bytes on
// the heap where there are none.
type image struct {
	b  []byte // readable, never written
	fd int    // -1: on the heap
}

// newImage copies mem.
func newImage(mem []byte) *image {
	if img := newFileImage(mem); img != nil {
		return img
	}
	return &image{b: append([]byte(nil), mem...), fd: -1}
}

func newFileImage(mem []byte) *image {
	if len(mem) == 0 || os.Getpagesize() != pageSize {
		return nil
	}
	fd, err := unix.MemfdCreate("lode-image", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil
	}
	img := &image{fd: fd}
	if !img.fill(mem) {
		img.close()
		return nil
	}
	return img
}

func (img *image) fill(mem []byte) bool {
	if unix.Ftruncate(img.fd, int64(len(mem))) != nil || !writeRuns(img.fd, mem) {
		return false
	}
	const seals = unix.F_SEAL_WRITE | unix.F_SEAL_GROW | unix.F_SEAL_SHRINK | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(img.fd), unix.F_ADD_SEALS, seals); err != nil {
		return false
	}
	b, err := unix.Mmap(img.fd, 0, len(mem), unix.PROT_READ, unix.MAP_SHARED)
	img.b = b
	return err == nil
}

// writeRuns writes the pages of mem that are not zero; the others stay holes.
func writeRuns(fd int, mem []byte) bool {
	for at := 0; at < len(mem); {
		end := at
		for end < len(mem) && !bytes.Equal(mem[end:end+pageSize], zeroPage[:]) {
			end += pageSize
		}
		for at < end {
			n, err := unix.Pwrite(fd, mem[at:end], int64(at))
			if err != nil && err != unix.EINTR {
				return false
			}
			at += max(n, 0)
		}
		at += pageSize
	}
	return true
}

var zeroPage [pageSize]byte

// close must come after the last sandbox of the image was closed.
func (img *image) close() {
	if img.fd < 0 {
		return
	}
	if img.b != nil {
		unix.Munmap(img.b)
		img.b = nil
	}
	unix.Close(img.fd)
	img.fd = -1
}

// newMemory reserves limit bytes of address space, a multiple of 64 KiB.
func newMemory(limit int) memory {
	if os.Getpagesize() == pageSize {
		all, err := unix.Mmap(-1, 0, limit, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
		if err == nil {
			unix.Madvise(all, unix.MADV_NOHUGEPAGE)
			return &mapped{all: all}
		}
	}
	return newHeapMemory(limit)
}

// mapped is a memory with its image mapped copy-on-write.
type mapped struct {
	all  []byte // the reservation
	size int    // bytes the guest has
	img  *image

	hot     []run // pages of the image that are the sandbox's own, in order
	faults  int64 // of the thread, at enter
	touched bool  // other pages may have become the sandbox's own
	windows []run // pages that hold something else than image or own memory
	scan    scanner
}

// run is a run of pages.
type run struct{ page, n int }

func (m *mapped) bytes() []byte { return m.all[:m.size:m.size] }

// Reallocate implements experimental.LinearMemory. The memory never moves, and
// new bytes are zero, because nothing above size was ever touched.
func (m *mapped) Reallocate(size uint64) []byte {
	if size > uint64(len(m.all)) {
		return nil
	}
	m.size = int(size)
	return m.bytes()
}

// Free implements experimental.LinearMemory. It does nothing: the guest may
// still be running.
func (m *mapped) Free() {}

func (m *mapped) lay(img *image) error {
	m.img = img
	if img.fd < 0 {
		copy(m.all, img.b)
		m.touched = true
		return nil
	}
	return m.mapImage(run{0, len(img.b) / pageSize})
}

// mapImage maps r's pages of the image, all of which must be in it.
func (m *mapped) mapImage(r run) error {
	at, n := r.page*pageSize, r.n*pageSize
	err := mapFixed(m.all[at:at+n], m.img.fd, int64(at))
	if err == nil {
		unix.Madvise(m.all[at:at+n], unix.MADV_NOHUGEPAGE)
	}
	return err
}

// mapFixed maps fd from off over b, privately; anonymous memory for fd -1.
func mapFixed(b []byte, fd int, off int64) error {
	flags := uintptr(unix.MAP_PRIVATE | unix.MAP_FIXED | unix.MAP_NORESERVE)
	if fd < 0 {
		flags |= unix.MAP_ANON
	}
	_, _, e := unix.Syscall6(unix.SYS_MMAP, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.PROT_READ|unix.PROT_WRITE, flags, uintptr(fd), uintptr(off))
	if e != 0 {
		return e
	}
	return nil
}

func (m *mapped) enter() { m.faults = threadFaults() }

func (m *mapped) leave() {
	if threadFaults() != m.faults {
		m.touched = true
	}
}

func (m *mapped) moved() { m.touched = true }

// threadFaults is the number of page faults that this thread has taken.
func threadFaults() int64 {
	var ru syscall.Rusage
	const thread = 1 // RUSAGE_THREAD
	if _, _, e := syscall.RawSyscall(syscall.SYS_GETRUSAGE, thread, uintptr(unsafe.Pointer(&ru)), 0); e != 0 {
		return -1 // differs from every count, so it means: look
	}
	return ru.Minflt + ru.Majflt
}

func (m *mapped) restore() bool {
	if m.img == nil || m.size != len(m.img.b) {
		return false
	}
	if m.img.fd < 0 {
		copy(m.bytes(), m.img.b)
		return len(m.windows) == 0
	}
	if len(m.windows) > 0 && !m.unwindow() {
		return false
	}
	if m.touched {
		if !m.adopt() {
			return false
		}
		m.touched = false
	}
	for _, r := range m.hot {
		at, end := r.page*pageSize, (r.page+r.n)*pageSize
		copy(m.all[at:end], m.img.b[at:end])
	}
	return true
}

// adopt finds the pages of the image that are the sandbox's own. When they are
// too many, or cannot be told, all of them are dropped.
func (m *mapped) adopt() bool {
	hot, ok := m.scan.own(m.all[:len(m.img.b)], m.hot[:0])
	if ok {
		m.hot = hot
		return true
	}
	m.hot = m.hot[:0]
	return unix.Madvise(m.all[:len(m.img.b)], unix.MADV_DONTNEED) == nil
}

func (m *mapped) window(w windowFile, off int64, ptr, n int) error {
	fd, size := w.File()
	n = int(min(int64(n), size-off))
	pages := (n + pageSize - 1) / pageSize
	if pages == 0 {
		return nil
	}
	// Noted before it is done: a failed map may have unmapped what was there.
	m.windows = append(m.windows, run{ptr / pageSize, pages})
	m.touched = true
	b := m.all[ptr : ptr+pages*pageSize]
	if err := mapFixed(b, int(fd), off); err != nil {
		return err
	}
	// One call instead of a fault every 16 pages. Kernels before 5.14 and files
	// with holes in them refuse; the faults come then.
	unix.Madvise(b, unix.MADV_POPULATE_READ)
	return nil
}

// unwindow puts the image, and empty memory above it, back where windows are.
func (m *mapped) unwindow() bool {
	top := 0
	if m.img != nil && m.img.fd >= 0 {
		top = len(m.img.b) / pageSize
	}
	for _, w := range m.windows {
		if in := min(w.n, top-w.page); in > 0 {
			if m.mapImage(run{w.page, in}) != nil {
				return false
			}
			w.page, w.n = w.page+in, w.n-in
		}
		if w.n > 0 && mapFixed(m.all[w.page*pageSize:(w.page+w.n)*pageSize], -1, 0) != nil {
			return false
		}
	}
	m.windows = m.windows[:0]
	m.touched = true
	return true
}

func (m *mapped) close() {
	if m.all != nil {
		unix.Munmap(m.all)
		m.all, m.size, m.hot = nil, 0, nil
	}
	runtime.KeepAlive(m)
}

var _ memory = (*mapped)(nil)
