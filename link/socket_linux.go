package link

import (
	"crypto/tls"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// unsentLow bounds what the kernel holds of our bytes before they are on the
// wire: a small frame waits behind no more than this.
const unsentLow = 128 << 10

// tune sets what makes a socket fit for a link: no delay, little unsent, and
// an end when nothing is acknowledged. A connection that is no TCP socket
// stays as it is.
func tune(nc net.Conn, giveUp time.Duration) {
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	t, ok := nc.(*net.TCPConn)
	if !ok {
		return
	}
	t.SetNoDelay(true)
	raw, err := t.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentLow)
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(giveUp.Milliseconds()))
	})
}
