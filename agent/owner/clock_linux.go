package owner

import (
	"time"

	"golang.org/x/sys/unix"
)

// now is a time that also counts while the machine sleeps, and that nobody can
// set: a lease must not outlive a pause.
func now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return -1 // no clock, no lease: see validAt
	}
	return time.Duration(ts.Nano())
}
