//go:build linux || darwin

package api

import (
	"fmt"
	"syscall"
)

// diskUsage tells the size of the disk that holds path, and what is left of it
// for an ordinary user.
func diskUsage(path string) (total, available int64, err error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err != nil {
		return 0, 0, fmt.Errorf("asking for the disk of %s: %w", path, err)
	}
	block := int64(st.Bsize)
	return int64(st.Blocks) * block, int64(st.Bavail) * block, nil
}
