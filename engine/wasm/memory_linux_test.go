package wasm

import (
	"bytes"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
)

const testPages = 512

// overImage makes a memory over an image of random and empty pages.
func overImage(t *testing.T) (*mapped, *image) {
	t.Helper()
	if os.Getpagesize() != pageSize {
		t.Skip("memory is mapped on pages of 4 KiB only")
	}
	b := make([]byte, testPages*pageSize)
	for p := 0; p < testPages; p += 2 {
		for i := range 64 {
			b[p*pageSize+i*64] = byte(p + i + 1)
		}
	}
	img := newImage(b)
	if img.fd < 0 {
		t.Fatal("no sealed memory file")
	}
	m, ok := newMemory(4 * len(b)).(*mapped)
	if !ok {
		t.Fatal("no mapped memory")
	}
	t.Cleanup(func() { m.close(); img.close(); m.close(); img.close() })
	if err := m.lay(img); err != nil {
		t.Fatal(err)
	}
	m.Reallocate(uint64(len(b)))
	if !bytes.Equal(m.bytes(), b) {
		t.Fatal("the image is not there")
	}
	return m, img
}

// guest runs write as a guest would.
func guest(m *mapped, write func(b []byte)) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	m.enter()
	write(m.bytes())
	m.leave()
}

// TestRestore writes anything anywhere, few pages and many, near and far.
func TestRestore(t *testing.T) {
	m, img := overImage(t)
	r := rand.New(rand.NewPCG(1, 2))
	for round := range 400 {
		n := []int{0, 1, 5, 60, 200}[round%5]
		guest(m, func(b []byte) {
			for range n {
				b[r.IntN(len(b))] = byte(r.IntN(256))
			}
		})
		if !m.restore() {
			t.Fatal("not restored")
		}
		if !bytes.Equal(m.bytes(), img.b) {
			t.Fatalf("round %d: %d writes left something behind", round, n)
		}
	}
}

// TestFaultCount: the first write to a page is noticed, later ones need not
// be.
func TestFaultCount(t *testing.T) {
	m, _ := overImage(t)
	page := 7
	guest(m, func(b []byte) { b[page*pageSize] = 1 })
	if !m.touched {
		t.Fatal("a first write was not noticed")
	}
	if !m.restore() || !slices.Contains(m.hot, run{page, 1}) {
		t.Fatalf("page %d was not adopted: %v", page, m.hot)
	}
	calm := 0
	for range 100 {
		guest(m, func(b []byte) { b[page*pageSize] = 2 })
		if !m.touched {
			calm++
		}
		if !m.restore() || m.bytes()[page*pageSize] != 0 {
			t.Fatal("a page of the hot set was not copied back")
		}
	}
	if calm == 0 {
		t.Error("every call is taken for one that touched new pages")
	}
	m.moved()
	if !m.touched {
		t.Error("a call that left its thread must be scanned")
	}
}

// TestScan: kernel's scan and page table agree with what was written, and
// dropping everything works where neither is there.
func TestScan(t *testing.T) {
	m, img := overImage(t)
	f := pageMap()
	if f == nil {
		t.Skip("/proc/self/pagemap cannot be read")
	}
	want := []run{{3, 2}, {100, 1}, {511, 1}}
	for _, r := range want {
		for p := range r.n {
			m.bytes()[(r.page+p)*pageSize+5] = 9
		}
	}
	var read int // other pages are read, and stay the file's
	for i := 0; i < len(m.bytes()); i += pageSize {
		read += int(m.bytes()[i])
	}
	table, ok := readPagemap(f, m.all[:len(img.b)], nil)
	if !ok || !slices.Equal(table, want) {
		t.Errorf("the page table says %v, want %v (%d)", table, want, read)
	}
	if got, ok, old := m.scan.ask(int(f.Fd()), m.all[:len(img.b)], nil); !old && (!ok || !slices.Equal(got, want)) {
		t.Errorf("the scan says %v, want %v", got, want)
	}
	for i := range 40 * 2 { // too many runs
		m.bytes()[i*2*pageSize] = 1
	}
	if _, ok := m.scan.own(m.all[:len(img.b)], nil); ok {
		t.Error("more runs than fit were all told")
	}
	m.touched = true
	if !m.restore() || len(m.hot) != 0 || !bytes.Equal(m.bytes(), img.b) {
		t.Error("dropping everything does not restore")
	}
	m.scan.old = true
	m.bytes()[0] = 77
	m.touched = true
	if !m.restore() || !slices.Equal(m.hot, []run{{0, 1}}) || !bytes.Equal(m.bytes(), img.b) {
		t.Errorf("without the scan: %v", m.hot)
	}
}

// TestNoHugePages: the kernel must not join the image's pages.
func TestNoHugePages(t *testing.T) {
	overImage(t)
	b, err := os.ReadFile("/proc/self/smaps")
	if err != nil || !bytes.Contains(b, []byte("VmFlags")) {
		t.Skip("/proc/self/smaps cannot be read")
	}
	found := false
	for _, area := range strings.SplitAfter(string(b), "VmFlags:") {
		if strings.Contains(area, "memfd:lode-image") && strings.Contains(area, "rw-p") {
			found = true
		}
	}
	if !found {
		t.Fatal("the image's mapping was not found")
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if strings.Contains(line, "THPeligible:    1") && strings.Contains(line, "lode-image") {
			t.Error(line)
		}
	}
}

// TestGrown: what grew cannot be restored.
func TestGrown(t *testing.T) {
	m, img := overImage(t)
	if m.Reallocate(uint64(4*len(img.b))+1) != nil {
		t.Error("grown over the limit")
	}
	m.Reallocate(uint64(2 * len(img.b)))
	if m.restore() {
		t.Error("a larger memory was taken for the image")
	}
}

// TestWindows maps a file over image and over what grew above it: all of it is
// gone after unwindow.
func TestWindows(t *testing.T) {
	m, img := overImage(t)
	m.Reallocate(uint64(2 * len(img.b)))
	data := bytes.Repeat([]byte{0xee}, 100*pageSize+100)
	path := t.TempDir() + "/shard"
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := fileWindow{f, int64(len(data))}
	for _, at := range []int{0, testPages - 48, testPages + 16} { // inside, across the end, above
		if err := m.window(w, 0, at*pageSize, 112*pageSize); err != nil {
			t.Fatal(err)
		}
		got := m.bytes()[at*pageSize:]
		if !bytes.Equal(got[:len(data)], data) {
			t.Fatalf("the window at %d is not there", at)
		}
		got[5] = 1 // private
	}
	if !m.unwindow() {
		t.Fatal("windows cannot be taken back")
	}
	if !bytes.Equal(m.bytes()[:len(img.b)], img.b) || len(bytes.Trim(m.bytes()[len(img.b):], "\x00")) != 0 {
		t.Error("the memory is not image and zeros")
	}
	if b, _ := os.ReadFile(path); !bytes.Equal(b, data) {
		t.Error("the file was written")
	}
}

type fileWindow struct {
	f    *os.File
	size int64
}

func (w fileWindow) File() (uintptr, int64)                  { return w.f.Fd(), w.size }
func (w fileWindow) ReadAt(p []byte, off int64) (int, error) { return w.f.ReadAt(p, off) }

// TestHeapMemory: the portable memory keeps the same promises.
func TestHeapMemory(t *testing.T) {
	img := &image{b: bytes.Repeat([]byte{3}, 1<<16), fd: -1}
	m := newHeapMemory(1 << 18)
	m.lay(img)
	m.Reallocate(1 << 16)
	if !bytes.Equal(m.bytes(), img.b) {
		t.Fatal("the image is not there")
	}
	m.bytes()[77] = 1
	if !m.restore() || !bytes.Equal(m.bytes(), img.b) {
		t.Error("not restored")
	}
	if m.Reallocate(1<<18+1) != nil {
		t.Error("grown over the limit")
	}
	if b := m.Reallocate(1 << 17); len(b) != 1<<17 || b[1<<17-1] != 0 || m.restore() {
		t.Error("growth")
	}
}
