package telemetry

import "sync/atomic"

// FailWrites makes every append file opened from now on write at most left
// more bytes in all, then fail with err.
func FailWrites(l *Logs, left *atomic.Int64, err error) {
	l.open = func(name string) (appendFile, error) {
		f, openErr := openAppend(name)
		if openErr != nil {
			return nil, openErr
		}
		return &failingFile{appendFile: f, left: left, err: err}, nil
	}
}

type failingFile struct {
	appendFile
	left *atomic.Int64
	err  error
}

func (f *failingFile) Write(p []byte) (int, error) {
	if left := f.left.Add(int64(-len(p))); left >= 0 {
		return f.appendFile.Write(p)
	}
	n, err := f.appendFile.Write(p[:max(0, int(f.left.Swap(0))+len(p))])
	if err == nil {
		err = f.err
	}
	return n, err
}

// OpenFiles counts the append files that are open, and the keys in memory.
func OpenFiles(l *Logs) (files, keys int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range l.keys {
		if k.opened {
			files++
		}
	}
	return files, len(l.keys)
}
