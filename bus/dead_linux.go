package bus

import (
	"net"

	"golang.org/x/sys/unix"
)

// giveUp has the system end a connection whose other side acknowledges
// nothing for a while. After a cut network it would else send again ever more
// rarely, and the first word after the cut comes late.
func giveUp(c net.Conn) {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) { // where it cannot be set, it is as it was
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(deadAfter.Milliseconds()))
	})
}
