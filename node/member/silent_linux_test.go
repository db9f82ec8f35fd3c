package member

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestNoticeSilence: the kernel knows when to give a silent connection up.
func TestNoticeSilence(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	noticeSilence(c)
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var ms int
	raw.Control(func(fd uintptr) { ms, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT) })
	if err != nil || time.Duration(ms)*time.Millisecond != silentFor {
		t.Fatal(ms, err)
	}
}
