package wasm

import (
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// What a thread gets whose guest computes on and on. Its slice of time is longer,
// so that on kernels from 6.12 a thread that wakes up comes before it. Its
// share is less than another thread's, but not by much: a collection of the
// node's garbage has to wait for it to come by.
const (
	behindSlice = 3e6 // ns; the kernel's own is 0.7 to 3 ms, by the number of cores
	behindNice  = 5   // more than the process's own
)

// ownNice is the niceness that threads have, and whether one that was raised
// may be put back: without CAP_SYS_NICE or a limit that allows it, no. It is
// asked once, of the process.
var ownNice = sync.OnceValues(func() (nice int32, free bool) {
	type answer struct {
		nice int32
		free bool
	}
	a := make(chan answer)
	go func() {
		runtime.LockOSThread() // and never given back: the thread ends here
		was, err := unix.SchedGetAttr(0, 0)
		if err != nil || was.Policy != unix.SCHED_NORMAL {
			a <- answer{}
			return
		}
		a <- answer{was.Nice, schedule(was.Nice+1, 0) && schedule(was.Nice, 0)}
	}()
	got := <-a
	return got.nice, got.free
})

// schedule sets how the kernel schedules this thread; slice 0 is its own.
func schedule(nice int32, slice uint64) bool {
	return unix.SchedSetAttr(0, &unix.SchedAttr{Policy: unix.SCHED_NORMAL, Nice: nice, Runtime: slice}, 0) == nil
}

// stepBehind puts this thread behind others and reports whether it did.
func stepBehind() bool {
	nice, free := ownNice()
	return free && schedule(min(nice+behindNice, 19), behindSlice) || !free && schedule(nice, behindSlice)
}

// stepUp takes stepBehind back.
func stepUp() {
	nice, _ := ownNice()
	schedule(nice, 0)
}
