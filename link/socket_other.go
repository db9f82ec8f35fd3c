//go:build !linux

package link

import (
	"crypto/tls"
	"net"
	"time"
)

// tune sets what makes a socket fit for a link. The heartbeats find a dead
// peer where the kernel has no timer for it, and the window over a
// connection's chunks bounds what lies in its buffers.
func tune(nc net.Conn, _ time.Duration) {
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	if t, ok := nc.(*net.TCPConn); ok {
		t.SetNoDelay(true)
	}
}
