package registry

import (
	"errors"
	"os"
	"syscall"
)

// diskUpload is an upload's file. Whole blocks that begin where a block may go
// past the page cache; what is pulled soon after is read from the disk then.
type diskUpload struct {
	file   *os.File
	size   int64
	direct bool // the file is written past the cache now
	never  bool // the file system does not do that
}

// Write appends p. The caller may use p again when it returns.
func (u *diskUpload) Write(p []byte) (int, error) {
	direct := len(p) >= blockBytes && aligned(p, u.size) && !u.never
	if direct != u.direct {
		if setDirect(u.file, direct) {
			u.direct = direct
		} else {
			u.never = true
		}
	}
	n, err := u.file.Write(p)
	if n == 0 && u.direct && errors.Is(err, syscall.EINVAL) && setDirect(u.file, false) {
		u.direct, u.never = false, true
		n, err = u.file.Write(p)
	}
	u.size += int64(n)
	return n, err
}

// Close closes the file.
func (u *diskUpload) Close() error { return u.file.Close() }
