package telemetry

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/denia-paas/denia/platform"
)

const (
	segmentSuffix = ".log"
	finishedName  = "finished"

	// maxWrite bounds what one write(2) is given, and so the memory of a large
	// batch and the time until followers see its first lines.
	maxWrite = 1 << 20
)

// appendFile is what is asked of a segment being written.
type appendFile interface {
	io.Writer
	Truncate(size int64) error
	Close() error
}

func openAppend(name string) (appendFile, error) {
	return os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
}

// segment is a part of a log: size bytes from position base on. The size of
// the last segment grows; it is state.end - base instead.
type segment struct{ base, size int64 }

// state is what readers need to know, a snapshot of one moment.
type state struct {
	segments []segment // never written to once published
	end      int64     // everything before is on disk and whole
	finished bool
	gone     bool // removed
	closed   bool
}

// limit is the position at which the i-th segment ends.
func (s state) limit(i int) int64 {
	if i == len(s.segments)-1 {
		return s.end
	}
	return s.segments[i].base + s.segments[i].size
}

// keyLog is one log.
type keyLog struct {
	logs *Logs
	key  string
	dir  string

	refs   int  // guarded by logs.mu
	opened bool // has a file; guarded by logs.mu
	used   atomic.Int64

	write   sync.Mutex // held by whoever changes files; readers never take it for long
	file    appendFile
	pending []byte
	loaded  atomic.Bool

	mu      sync.Mutex // guards what follows; never held during I/O
	now     state
	changed chan struct{} // made by who waits, closed by who changes
}

func (k *keyLog) path(base int64) string {
	return filepath.Join(k.dir, fmt.Sprintf("%016x%s", base, segmentSuffix))
}

func (k *keyLog) snapshot() state {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.now
}

// publish changes the state and wakes who waits for that.
func (k *keyLog) publish(change func(*state)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	change(&k.now)
	if k.changed != nil {
		close(k.changed)
		k.changed = nil
	}
}

// watch returns the state, and a channel that closes when it changes.
func (k *keyLog) watch() (state, <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.changed == nil {
		k.changed = make(chan struct{})
	}
	return k.now, k.changed
}

// load reads the state from disk, once, and cuts off what a crash left behind
// the last whole record.
func (k *keyLog) load() error {
	if k.loaded.Load() {
		return nil
	}
	k.write.Lock()
	defer k.write.Unlock()
	return k.loadLocked()
}

func (k *keyLog) loadLocked() error {
	if k.loaded.Load() {
		return nil
	}
	entries, err := os.ReadDir(k.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("opening log %s: %w", k.key, err)
	}
	var s state
	for _, e := range entries { // in order of name, and so of base
		digits, ok := strings.CutSuffix(e.Name(), segmentSuffix)
		if !ok {
			s.finished = s.finished || e.Name() == finishedName
			continue
		}
		base, err := strconv.ParseInt(digits, 16, 64)
		if err != nil || base < 0 || len(digits) != 16 {
			continue
		}
		info, err := e.Info()
		if err != nil {
			return fmt.Errorf("opening log %s: %w", k.key, err)
		}
		if i := len(s.segments) - 1; i >= 0 {
			s.segments[i].size = min(s.segments[i].size, base-s.segments[i].base)
		}
		s.segments = append(s.segments, segment{base, info.Size()})
	}
	if i := len(s.segments) - 1; i >= 0 {
		last := &s.segments[i]
		if last.size, err = repair(k.path(last.base), last.size); err != nil {
			return fmt.Errorf("repairing log %s: %w", k.key, err)
		}
		s.end = last.base + last.size
	}
	k.publish(func(now *state) {
		s.gone, s.closed = now.gone, now.closed
		*now = s
	})
	k.loaded.Store(true)
	return nil
}

// repair cuts a file after its last line break.
func repair(name string, size int64) (int64, error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	whole := size
	buffer := make([]byte, 32<<10)
	for whole > 0 {
		chunk := buffer[:min(int64(len(buffer)), whole)]
		if _, err := f.ReadAt(chunk, whole-int64(len(chunk))); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(chunk, '\n'); i >= 0 {
			whole += int64(i + 1 - len(chunk))
			break
		}
		whole -= int64(len(chunk))
	}
	if whole == size {
		return size, nil
	}
	return whole, f.Truncate(whole)
}

// writable tells why nothing may be written, if so. The write lock is held.
func (k *keyLog) writable() error {
	switch s := k.snapshot(); {
	case s.closed:
		return ErrClosed
	case s.gone:
		return errGone
	}
	return k.loadLocked()
}

func (k *keyLog) append(lines []platform.LogLine) error {
	k.write.Lock()
	defer k.write.Unlock()
	if err := k.writable(); err != nil {
		return err
	}
	s := k.snapshot()
	if s.finished {
		return platform.Errorf(platform.Conflict, "log_finished", "the log %s is complete", k.key)
	}
	k.pending = k.pending[:0]
	segmentSize := int64(0)
	if i := len(s.segments) - 1; i >= 0 {
		segmentSize = s.end - s.segments[i].base
	}
	for _, l := range lines {
		for part := range records(l) {
			before := len(k.pending)
			k.pending = appendRecord(k.pending, part)
			full := segmentSize+int64(len(k.pending)) > k.logs.options.segmentOf(k.key) && segmentSize+int64(before) > 0
			if !full && before < maxWrite {
				continue
			}
			if err := k.flush(k.pending[:before]); err != nil {
				return err
			}
			segmentSize += int64(before)
			k.pending = append(k.pending[:0], k.pending[before:]...)
			if full {
				if err := k.roll(); err != nil {
					return err
				}
				segmentSize = 0
			}
		}
	}
	err := k.flush(k.pending)
	if cap(k.pending) > maxRecord {
		k.pending = nil // an idle log holds no memory for a burst long past
	}
	return err
}

// appendRecords adds records as they lie on disk, at most a segment's worth.
func (k *keyLog) appendRecords(records []byte) error {
	k.write.Lock()
	defer k.write.Unlock()
	if err := k.writable(); err != nil {
		return err
	}
	s := k.snapshot()
	if i := len(s.segments) - 1; i >= 0 {
		if size := s.end - s.segments[i].base; size > 0 && size+int64(len(records)) > k.logs.options.segmentOf(k.key) {
			if err := k.roll(); err != nil {
				return err
			}
		}
	}
	return k.flush(records)
}

// flush writes whole records and shows them to readers.
func (k *keyLog) flush(records []byte) error {
	n := len(records)
	if n == 0 {
		return nil
	}
	if err := k.openFile(); err != nil {
		return err
	}
	k.trim(int64(n))
	s := k.snapshot()
	if _, err := k.file.Write(records); err != nil {
		// Readers must never see half a record. If it cannot be taken back
		// now, the next use reads the directory again, as after a crash.
		base := s.segments[len(s.segments)-1].base
		if undo := k.file.Truncate(s.end - base); undo != nil {
			_ = k.closeFile()
			k.loaded.Store(false)
		}
		return k.writeError(err)
	}
	k.publish(func(s *state) { s.end += int64(n) })
	return nil
}

func (k *keyLog) writeError(err error) error {
	err = fmt.Errorf("writing log %s: %w", k.key, err)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return platform.Wrap(err, platform.Unavailable, "disk_full", "the server's disk is full; the log cannot go on until there is space")
	}
	return err
}

func (k *keyLog) openFile() error {
	k.used.Store(k.logs.tick.Add(1))
	if k.file != nil {
		return nil
	}
	k.logs.makeRoom(k)
	if err := os.MkdirAll(k.dir, 0o700); err != nil {
		return k.writeError(err)
	}
	if len(k.snapshot().segments) == 0 {
		k.publish(func(s *state) { s.segments = []segment{{}} })
	}
	s := k.snapshot()
	f, err := k.logs.open(k.path(s.segments[len(s.segments)-1].base))
	if err != nil {
		return k.writeError(err)
	}
	k.file = f
	k.logs.mu.Lock()
	k.opened = true
	k.logs.mu.Unlock()
	return nil
}

// closeFile closes the append file, if one is open. The write lock is held.
func (k *keyLog) closeFile() error {
	if k.file == nil {
		return nil
	}
	err := k.file.Close()
	k.file = nil
	k.logs.mu.Lock()
	k.opened = false
	k.logs.forget(k)
	k.logs.mu.Unlock()
	if err != nil {
		return fmt.Errorf("closing log %s: %w", k.key, err)
	}
	return nil
}

// roll begins a new segment.
func (k *keyLog) roll() error {
	if err := k.closeFile(); err != nil {
		return err
	}
	k.publish(func(s *state) {
		segments := slices.Clone(s.segments)
		last := &segments[len(segments)-1]
		last.size = s.end - last.base
		segments = append(segments, segment{base: s.end})
		s.segments = segments
	})
	return nil
}

// trim deletes the oldest segments until n more bytes fit below the cap.
func (k *keyLog) trim(n int64) {
	s := k.snapshot()
	drop := 0
	for total := s.end - s.segments[0].base + n; drop < len(s.segments)-1 && total > k.logs.options.capOf(k.key); drop++ {
		total -= s.segments[drop+1].base - s.segments[drop].base
	}
	if drop == 0 {
		return
	}
	k.publish(func(s *state) { s.segments = s.segments[drop:] })
	for _, old := range s.segments[:drop] {
		// One that cannot be deleted is found again at the next opening.
		_ = os.Remove(k.path(old.base))
	}
}

func (k *keyLog) finish() error {
	k.write.Lock()
	defer k.write.Unlock()
	if err := k.writable(); err != nil {
		return err
	}
	s := k.snapshot()
	if s.finished {
		return nil
	}
	if err := os.MkdirAll(k.dir, 0o700); err != nil {
		return k.writeError(err)
	}
	for _, old := range s.segments {
		if err := syncFile(k.path(old.base)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return k.writeError(err)
		}
	}
	marker, err := os.OpenFile(filepath.Join(k.dir, finishedName), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return k.writeError(err)
	}
	if err := marker.Close(); err != nil {
		return k.writeError(err)
	}
	for _, dir := range []string{k.dir, filepath.Dir(k.dir), k.logs.dir} {
		if err := syncFile(dir); err != nil {
			return k.writeError(err)
		}
	}
	if err := k.closeFile(); err != nil {
		return err
	}
	k.publish(func(s *state) { s.finished = true })
	return nil
}

// syncFile waits until a file or directory is on disk. A descriptor of its own
// does: fsync is about the file.
func syncFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
