package member

import (
	"net"

	"golang.org/x/sys/unix"
)

// noticeSilence has the kernel end a connection when what was sent is not
// acknowledged in time. Left alone it sends again after ever longer pauses, so
// that a cable that is back after half a minute is found out as late again.
func noticeSilence(c net.Conn) {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silentFor.Milliseconds()))
	})
}
