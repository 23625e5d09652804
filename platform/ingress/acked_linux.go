package ingress

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// ackedBytes is how many bytes sent over c its peer has acknowledged, the SYN
// included.
func ackedBytes(c net.Conn) (int64, bool) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return 0, false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0, false
	}
	var info *unix.TCPInfo
	var optErr error
	err = raw.Control(func(fd uintptr) {
		info, optErr = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	})
	if err != nil || optErr != nil {
		return 0, false
	}
	return int64(info.Bytes_acked), true
}
