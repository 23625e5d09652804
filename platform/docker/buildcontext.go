package docker

import (
	"crypto/sha256"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
)

// contentTimed opens a build context whose files' modification times tell
// their contents apart. BuildKit sends only files whose size or time differ
// from what the engine kept of the last build; archives whose times are fixed
// (reproducible ones are) would have a changed file of the same size pass for
// the old one. The seconds are left as they are, the nanoseconds come from the
// content, so that an unchanged file is still not sent again.
func contentTimed(dir string) (fsutil.FS, error) {
	base, err := fsutil.NewFS(dir)
	if err != nil {
		return nil, err
	}
	return fsutil.NewFilterFS(base, &fsutil.FilterOpt{Map: func(path string, stat *types.Stat) fsutil.MapResult {
		if os.FileMode(stat.Mode).IsRegular() {
			if sum, err := sumFile(filepath.Join(dir, filepath.FromSlash(path))); err == nil {
				stat.ModTime -= stat.ModTime % int64(time.Second)
				stat.ModTime += int64(sum % uint64(time.Second))
			}
		}
		return fsutil.MapResultKeep
	}})
}

func sumFile(path string) (uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(hash.Sum(nil)), nil
}
