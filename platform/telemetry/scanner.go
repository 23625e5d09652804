package telemetry

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"
)

// errCaughtUp tells that there is nothing more to read yet.
var errCaughtUp = errors.New("caught up")

const firstBuffer = 16 << 10

// scanner reads the records of a log forwards. It takes no lock while it
// reads, and reads on in a segment that is deleted meanwhile.
type scanner struct {
	k    *keyLog
	pos  int64 // of the next record
	file *os.File
	base int64 // of file
	skip bool  // pos is inside a record: drop the rest of it

	buffer      []byte
	start, stop int // what of buffer is unread; buffer[start] is at pos
}

// newScanner starts at a position, which need not be that of a record: reading
// starts with the first record at or after it.
func newScanner(k *keyLog, pos int64) *scanner {
	if pos > 0 {
		// The byte before a record is a line break. Where that holds nothing
		// is dropped; elsewhere, the rest of the record that pos is in.
		return &scanner{k: k, pos: pos - 1, skip: true}
	}
	return &scanner{k: k}
}

func (s *scanner) close() {
	if s.file != nil {
		s.file.Close()
		s.file = nil
	}
}

// next returns a record and the position behind it. It is valid until the
// next call. At the end it returns errCaughtUp, and may be called again.
func (s *scanner) next() (record, int64, error) {
	for {
		if i := bytes.IndexByte(s.buffer[s.start:s.stop], '\n'); i >= 0 {
			line := s.buffer[s.start : s.start+i]
			s.start += i + 1
			s.pos += int64(i + 1)
			if s.skip {
				s.skip = false
				continue
			}
			if r, ok := parseRecord(line); ok {
				return r, s.pos, nil
			}
			continue
		}
		if s.stop-s.start >= maxRecord {
			s.skip = true // no record is that long: damage
			s.drop()
		}
		if err := s.fill(); err != nil {
			return record{}, 0, err
		}
	}
}

// drop forgets what is in the buffer.
func (s *scanner) drop() {
	s.pos += int64(s.stop - s.start)
	s.start, s.stop = 0, 0
}

// fill reads on, in the next segment if this one is exhausted.
func (s *scanner) fill() error {
	for {
		if s.file == nil {
			if err := s.open(); err != nil {
				return err
			}
		}
		limit, last, err := s.limit()
		if err != nil {
			return err
		}
		at := s.pos + int64(s.stop-s.start)
		if at < limit {
			return s.read(at, limit)
		}
		if last {
			if len(s.buffer) > firstBuffer && s.start == s.stop {
				s.buffer = nil // waiting takes no memory
				s.start, s.stop = 0, 0
			}
			return errCaughtUp
		}
		// What is left is a record that a crash of the machine tore.
		s.start, s.stop, s.skip = 0, 0, false
		s.close()
		s.pos = max(limit, s.base+1)
	}
}

func (s *scanner) read(at, limit int64) error {
	if s.start > 0 {
		s.stop = copy(s.buffer, s.buffer[s.start:s.stop])
		s.start = 0
	}
	switch {
	case s.buffer == nil:
		s.buffer = make([]byte, firstBuffer)
	case s.stop == len(s.buffer):
		s.buffer = slices.Grow(s.buffer, len(s.buffer))
		s.buffer = s.buffer[:min(cap(s.buffer), maxRecord+firstBuffer)]
	}
	room := s.buffer[s.stop:]
	n, err := s.file.ReadAt(room[:min(int64(len(room)), limit-at)], at-s.base)
	s.stop += n
	if n == 0 && err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF // io.EOF says that a log is complete
		}
		return fmt.Errorf("reading log %s: %w", s.k.key, err)
	}
	return nil
}

// open opens the segment pos is in, or the next there is.
func (s *scanner) open() error {
	for {
		now := s.k.snapshot()
		if s.pos >= now.end {
			// A power failure may have taken what was read before it.
			s.pos, s.skip = now.end, false
		}
		if len(now.segments) == 0 {
			return errCaughtUp
		}
		i := slices.IndexFunc(now.segments, func(seg segment) bool { return s.pos < seg.base+seg.size })
		if i < 0 {
			i = len(now.segments) - 1
		}
		base := now.segments[i].base
		if s.pos <= base {
			s.pos, s.skip = base, false
		}
		f, err := os.Open(s.k.path(base))
		if errors.Is(err, fs.ErrNotExist) {
			switch again := s.k.snapshot(); {
			case again.gone, again.end == base:
				return errCaughtUp // nothing was written to it yet
			case now.end == base, again.segments[0].base > base:
				continue // now it was, or it was the oldest and made room
			}
		}
		if err != nil {
			return fmt.Errorf("reading log %s: %w", s.k.key, err)
		}
		s.file, s.base = f, base
		return nil
	}
}

// limit says how far the open segment may be read, and whether more may come.
func (s *scanner) limit() (limit int64, last bool, err error) {
	now := s.k.snapshot()
	for i, seg := range now.segments {
		if seg.base == s.base {
			return now.limit(i), i == len(now.segments)-1, nil
		}
	}
	// Deleted, and so complete; the file stays readable while it is open.
	info, err := s.file.Stat()
	if err != nil {
		return 0, false, fmt.Errorf("reading log %s: %w", s.k.key, err)
	}
	return s.base + info.Size(), now.gone, nil
}

// backwards calls f with each record from the newest to the oldest and the
// position it begins at, until f returns false. The record is valid during
// the call.
func (k *keyLog) backwards(f func(r record, at int64) bool) error {
	return k.backwardsFrom(math.MaxInt64, f)
}

// backwardsFrom is backwards for the records before a position, at which one
// begins.
func (k *keyLog) backwardsFrom(end int64, f func(r record, at int64) bool) error {
	now := k.snapshot()
	for i := len(now.segments) - 1; i >= 0; i-- {
		seg := now.segments[i]
		if seg.base >= end {
			continue
		}
		more, err := k.segmentBackwards(seg.base, min(now.limit(i), end)-seg.base, f)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // deleted meanwhile, and the older ones before it
		}
		if err != nil {
			return fmt.Errorf("reading log %s: %w", k.key, err)
		}
		if !more {
			return nil
		}
	}
	return nil
}

func (k *keyLog) segmentBackwards(base, size int64, f func(r record, at int64) bool) (more bool, err error) {
	if size == 0 {
		return true, nil
	}
	file, err := os.Open(k.path(base))
	if err != nil {
		return false, err
	}
	defer file.Close()
	const chunk = 64 << 10
	buffer := make([]byte, chunk+maxRecord)
	tail := 0 // bytes at the buffer's end that belong to a record begun earlier
	for low := size; low > 0; {
		n := int(min(chunk, low))
		low -= int64(n)
		data := buffer[len(buffer)-tail-n:]
		if _, err := file.ReadAt(data[:n], low); err != nil {
			return false, err
		}
		for {
			end := bytes.LastIndexByte(data, '\n')
			if end < 0 {
				break
			}
			begin := bytes.LastIndexByte(data[:end], '\n') + 1
			if begin == 0 && low > 0 {
				data = data[:end+1]
				break
			}
			if r, ok := parseRecord(data[begin:end]); ok && !f(r, base+low+int64(begin)) {
				return false, nil
			}
			data = data[:begin]
		}
		if len(data) > maxRecord {
			data = data[:0] // no record is that long: damage
		}
		tail = copy(buffer[len(buffer)-len(data):], data)
	}
	return true, nil
}
