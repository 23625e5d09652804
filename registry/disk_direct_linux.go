package registry

import (
	"os"
	"syscall"
)

// setDirect has a file written past the page cache, or through it again. False:
// its file system cannot do that.
func setDirect(f *os.File, direct bool) bool {
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	var failed syscall.Errno
	err = raw.Control(func(fd uintptr) {
		flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_GETFL, 0)
		if errno == 0 {
			flags &^= syscall.O_DIRECT
			if direct {
				flags |= syscall.O_DIRECT
			}
			_, _, errno = syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_SETFL, flags)
		}
		failed = errno
	})
	return err == nil && failed == 0
}
