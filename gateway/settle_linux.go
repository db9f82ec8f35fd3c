package gateway

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// refuseNew lets ln take no new connections, and keeps those that are being
// made: closing a listener resets what its queue holds, and a request that was
// sent on such a connection would fail. The filter drops segments with SYN
// (bit 1 of byte 13 of the TCP header); their senders try again a second later
// and then find the port closed. Where it cannot be set, connections that are
// made at the instant of closing are reset.
func refuseNew(ln net.Listener) {
	sc, ok := ln.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return // closed
	}
	code := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 13},
		{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, Jf: 1, K: 0x02},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
	}
	prog := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	_ = raw.Control(func(fd uintptr) { // nothing depends on it but the comfort of a few clients
		_ = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog)
	})
}
