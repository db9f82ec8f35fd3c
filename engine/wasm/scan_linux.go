package wasm

import (
	"encoding/binary"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Above maxHot pages a reset by dropping everything is cheaper than one by
// copying.
const (
	maxHot  = 128
	maxRuns = 64
)

// pageMap is the process's own page table as a file. It is opened once and
// stays open: it is the process, not a thing of one Driver.
var pageMap = sync.OnceValue(func() *os.File {
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return nil
	}
	return f
})

// scanner finds pages that are no longer the image's.
type scanner struct {
	arg scanArg
	vec [maxRuns]scanRegion
	old bool // the kernel has no PAGEMAP_SCAN
}

// scanArg is struct pm_scan_arg of linux/fs.h.
type scanArg struct {
	size, flags, start, end, walkEnd, vec, vecLen, maxPages       uint64
	categoryInverted, categoryMask, categoryAnyofMask, returnMask uint64
}

// scanRegion is struct page_region.
type scanRegion struct{ start, end, categories uint64 }

// From linux/fs.h.
const (
	pagemapScan = 0xc0606610 // _IOWR('f', 16, struct pm_scan_arg)
	pageFile    = 1 << 2
	pagePresent = 1 << 3
	pageSwapped = 1 << 4
	pagePFNZero = 1 << 5
)

// own appends the runs of b's pages that are private to the process: present
// or swapped out, and neither the file's nor the zero page. ok is false when
// they are more than is worth copying, or cannot be told.
func (s *scanner) own(b []byte, runs []run) (_ []run, ok bool) {
	f := pageMap()
	if f == nil {
		return runs, false
	}
	if !s.old {
		runs, ok, s.old = s.ask(int(f.Fd()), b, runs)
		if !s.old {
			return runs, ok
		}
	}
	return readPagemap(f, b, runs[:0])
}

func (s *scanner) ask(fd int, b []byte, runs []run) (_ []run, ok, old bool) {
	start := uint64(uintptr(unsafe.Pointer(&b[0])))
	end := start + uint64(len(b))
	s.arg = scanArg{
		size: uint64(unsafe.Sizeof(s.arg)), start: start, end: end,
		vec: uint64(uintptr(unsafe.Pointer(&s.vec[0]))), vecLen: maxRuns,
		categoryInverted: pageFile | pagePFNZero, categoryMask: pageFile | pagePFNZero,
		categoryAnyofMask: pagePresent | pageSwapped, returnMask: pagePresent | pageSwapped, maxPages: maxHot + 1,
	}
	var n uintptr
	for {
		var e unix.Errno
		n, _, e = unix.Syscall(unix.SYS_IOCTL, uintptr(fd), pagemapScan, uintptr(unsafe.Pointer(&s.arg)))
		if e == unix.EINTR {
			continue
		}
		if e != 0 {
			return runs, false, true
		}
		break
	}
	if s.arg.walkEnd != end {
		return runs, false, false // more runs than fit
	}
	total := 0
	for _, r := range s.vec[:n] {
		pages := int(r.end-r.start) / pageSize
		runs = appendRun(runs, int(r.start-start)/pageSize, pages)
		total += pages
	}
	return runs, total <= maxHot, false
}

// appendRun appends a run, joined with the one before if they touch.
func appendRun(runs []run, page, n int) []run {
	if k := len(runs) - 1; k >= 0 && runs[k].page+runs[k].n == page {
		runs[k].n += n
		return runs
	}
	return append(runs, run{page, n})
}

// readPagemap is own for kernels before 6.7: one word a page.
func readPagemap(f *os.File, b []byte, runs []run) ([]run, bool) {
	const present, swapped, file = 1 << 63, 1 << 62, 1 << 61
	var buf [4096]byte
	first := int64(uintptr(unsafe.Pointer(&b[0]))) / pageSize * 8
	pages, total := len(b)/pageSize, 0
	for page := 0; page < pages; {
		want := min(len(buf), (pages-page)*8)
		n, err := f.ReadAt(buf[:want], first+int64(page)*8)
		if err != nil || n != want {
			return runs, false
		}
		for i := 0; i < n; i += 8 {
			w := binary.LittleEndian.Uint64(buf[i:])
			if w&(present|swapped) != 0 && w&file == 0 {
				runs = appendRun(runs, page+i/8, 1)
				total++
			}
		}
		page += n / 8
	}
	return runs, total <= maxHot
}
