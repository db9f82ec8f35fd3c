package main

import (
	"errors"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"lode/api"
)

// systemChecks are what sandboxes need of Linux.
func systemChecks() []api.Check {
	return []api.Check{checkKernel(), checkMemfd(), checkPagemap(), checkCgroups(), checkFiles()}
}

func checkKernel() api.Check {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return bad(api.CheckWarn, "kernel", "nothing", "%v", err)
	}
	return good("kernel", "%s", unix.ByteSliceToString(u.Release[:]))
}

// checkMemfd tries what warm snapshots are kept in.
func checkMemfd() api.Check {
	fd, err := unix.MemfdCreate("lode-doctor", unix.MFD_ALLOW_SEALING|unix.MFD_CLOEXEC)
	if err == nil {
		defer unix.Close(fd)
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_GROW|unix.F_SEAL_SHRINK)
	}
	if err != nil {
		return bad(api.CheckFail, "memfd", "allow memfd_create in the container's seccomp profile", "sealed memory files do not work: %v", err)
	}
	return good("memfd", "sealed memory files work")
}

// pagemapScan is PAGEMAP_SCAN: _IOWR('f', 16, struct pm_scan_arg), whose size
// is 96.
const pagemapScan = 0xc0606610

// scanArg is struct pm_scan_arg of linux/fs.h.
type scanArg struct {
	size, flags, start, end, walkEnd, vec, vecLen, maxPages, inverted, mask, anyof, ret uint64
}

// checkPagemap tries the fast way to find the pages that a guest wrote.
func checkPagemap() api.Check {
	const advice = "use Linux 6.7 or newer; until then resets read /proc/self/pagemap, which is slower"
	mem, err := unix.Mmap(-1, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return bad(api.CheckWarn, "pagemap", advice, "%v", err)
	}
	defer unix.Munmap(mem)
	mem[0] = 1
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return bad(api.CheckWarn, "pagemap", "mount /proc", "%v", err)
	}
	defer f.Close()
	region := unsafe.Pointer(&mem[4096]) // the kernel's answer; memory that stays where it is
	arg := scanArg{size: uint64(unsafe.Sizeof(scanArg{})), start: uint64(uintptr(unsafe.Pointer(&mem[0]))), vec: uint64(uintptr(region)), vecLen: 1, anyof: 1 << 3, ret: 1 << 3}
	arg.end = arg.start + 4096
	if _, _, no := unix.Syscall(unix.SYS_IOCTL, f.Fd(), pagemapScan, uintptr(unsafe.Pointer(&arg))); no != 0 {
		return bad(api.CheckWarn, "pagemap", advice, "PAGEMAP_SCAN: %v", no)
	}
	return good("pagemap", "PAGEMAP_SCAN works")
}

func checkCgroups() api.Check {
	b, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	switch {
	case errors.Is(err, os.ErrNotExist):
		return bad(api.CheckWarn, "cgroups", "boot with systemd.unified_cgroup_hierarchy=1; wasm sandboxes are limited without them", "version 2 is not mounted")
	case err != nil:
		return bad(api.CheckWarn, "cgroups", "mount cgroup2 at /sys/fs/cgroup", "%v", err)
	}
	have := strings.TrimSpace(string(b))
	if !strings.Contains(have, "memory") || !strings.Contains(have, "cpu") {
		return bad(api.CheckWarn, "cgroups", "delegate the controllers cpu and memory to this container; wasm sandboxes are limited without them", "version 2, with: %s", have)
	}
	return good("cgroups", "version 2: %s", have)
}

func checkFiles() api.Check {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return bad(api.CheckWarn, "files", "nothing", "%v", err)
	}
	if r.Max < 65536 {
		return bad(api.CheckWarn, "files", "raise the limit: ulimit -Hn 1048576, or LimitNOFILE in the unit", "at most %d open files", r.Max)
	}
	return good("files", "at most %d open files", r.Max)
}

func freeBytes(dir string) (int64, bool) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, false
	}
	return int64(s.Bavail) * s.Bsize, true
}
