//go:build linux || darwin

package source

import "syscall"

// freeBytes tells what is left for an ordinary user of the disk that holds
// path.
func freeBytes(path string) (int64, bool) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err != nil {
		return 0, false
	}
	return int64(st.Bavail) * int64(st.Bsize), true
}
