// Package telemetry keeps logs: of services while their replicas come and go,
// of deployments until they are deleted, and of the requests to services.
//
// # On disk
//
// A log has a key, "services/<id>", "deployments/<id>" or "requests/<id>", and
// below the data directory a directory of that name. In it lie segments, text files that are
// only ever appended to, of which the oldest is deleted when all together
// exceed the cap. A segment is named for the position of its first byte in the
// log as if nothing had ever been deleted: 16 hexadecimal digits and ".log". A
// file "finished" marks a log that is complete.
//
// A record is one line of text that any tool can read:
//
//	1767225600000000000 o 3.0 listening on :8080
//
// nanoseconds since 1970, the stream (o: stdout, e: stderr, s: Denia's own
// word), the replica ("-" for none), and the line as it was, in UTF-8. Lines
// longer than MaxLine are kept in several records. What follows a segment's
// last line break was cut off by a crash, and is cut off at the next opening.
//
// # What is promised
//
// A line whose Append returned survives the end of the process, however it
// comes; only Finish waits for the disk. Followers read the files: a slow one
// holds up neither writers nor other readers. One process at a time may have a
// directory open.
package telemetry

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/denia-paas/denia/platform"
)

// Defaults of LogOptions.
const (
	DefaultCapBytes     = 100 << 20
	DefaultRequestBytes = 20 << 20
	defaultOpenFiles    = 64
)

// LogOptions configure Logs. Zero fields take their defaults.
type LogOptions struct {
	CapBytes     int64 // of one key on disk; default 100 MiB
	SegmentBytes int64 // default a tenth of the key's cap
	OpenFiles    int   // kept open for appending, over all keys; default 64

	// RequestBytes is the cap of keys of the kind "requests"; default 20 MiB.
	RequestBytes int64
}

// capOf is how much a key may take on disk.
func (o *LogOptions) capOf(key string) int64 {
	if isRequests(key) {
		return o.RequestBytes
	}
	return o.CapBytes
}

func (o *LogOptions) segmentOf(key string) int64 {
	return cmp.Or(o.SegmentBytes, max(1, o.capOf(key)/10))
}

// ErrClosed is what every method returns once Logs is closed.
var ErrClosed = errors.New("logs are closed")

// errGone tells that a key was removed while somebody was about to write.
var errGone = errors.New("log was removed")

// Logs keeps all logs of one data directory. Its methods may be called
// concurrently. It runs no goroutine.
type Logs struct {
	dir     string
	options LogOptions
	open    func(name string) (appendFile, error)
	tick    atomic.Int64 // orders the use of open files

	mu     sync.Mutex // guards what follows, and refs and opened of each keyLog
	keys   map[string]*keyLog
	closed bool
}

// OpenLogs opens the logs below dir, which is made if need be (0700).
func OpenLogs(dir string, o LogOptions) (*Logs, error) {
	o.CapBytes = cmp.Or(o.CapBytes, DefaultCapBytes)
	o.RequestBytes = cmp.Or(o.RequestBytes, DefaultRequestBytes)
	o.OpenFiles = cmp.Or(o.OpenFiles, defaultOpenFiles)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("creating log directory: %w", err)
	}
	return &Logs{dir: dir, options: o, open: openAppend, keys: map[string]*keyLog{}}, nil
}

// Close closes the files. Followers end with ErrClosed.
func (l *Logs) Close() error {
	l.mu.Lock()
	l.closed = true
	keys := slices.Collect(maps.Values(l.keys))
	l.mu.Unlock()
	var err error
	for _, k := range keys {
		k.write.Lock()
		err = errors.Join(err, k.closeFile())
		k.publish(func(s *state) { s.closed = true })
		k.write.Unlock()
	}
	return err
}

// Append adds lines to the log of key, in order, and returns when all survive
// the end of the process. A zero TS becomes the time of the call. Append after
// Finish is a Conflict with code log_finished. When the disk is full the error
// is Unavailable with code disk_full: some of the lines, always the first, may
// have been kept, and what was there is intact; the next Append tries again.
func (l *Logs) Append(key string, lines ...platform.LogLine) error {
	for {
		err := l.with(key, func(k *keyLog) error { return k.append(lines) })
		if !errors.Is(err, errGone) {
			return err
		}
	}
}

// Finish marks the log of key complete and waits until all of it is on disk.
// Followers end with io.EOF after its last line, now and after any restart.
func (l *Logs) Finish(key string) error {
	for {
		err := l.with(key, (*keyLog).finish)
		if !errors.Is(err, errGone) {
			return err
		}
	}
}

// Remove deletes the log of key, if there is one. Its followers end with
// io.EOF. An Append after it begins a new log: stop who writes first.
func (l *Logs) Remove(key string) error {
	return l.with(key, func(k *keyLog) error {
		k.write.Lock()
		defer k.write.Unlock()
		if k.snapshot().gone {
			return nil
		}
		closing := k.closeFile()
		if err := os.RemoveAll(k.dir); err != nil {
			return errors.Join(fmt.Errorf("removing log: %w", err), closing)
		}
		// Still under the write lock: an Append that waits for it finds the
		// key gone, and then a new one in its place.
		l.mu.Lock()
		delete(l.keys, key)
		l.mu.Unlock()
		k.publish(func(s *state) { s.gone = true })
		return nil
	})
}

// Keys lists the keys that begin with prefix and have a log on disk, in order.
func (l *Logs) Keys(prefix string) ([]string, error) {
	kinds, err := os.ReadDir(l.dir)
	if err != nil {
		return nil, fmt.Errorf("listing logs: %w", err)
	}
	keys := []string{}
	for _, kind := range kinds {
		if !kind.IsDir() {
			continue
		}
		ids, err := os.ReadDir(filepath.Join(l.dir, kind.Name()))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("listing logs: %w", err)
		}
		for _, id := range ids {
			if key := kind.Name() + "/" + id.Name(); id.IsDir() && strings.HasPrefix(key, prefix) && validKey.MatchString(key) {
				keys = append(keys, key)
			}
		}
	}
	slices.Sort(keys)
	return keys, nil
}

var validKey = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,31}/[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// with calls f with the state of key, which stays in memory meanwhile.
func (l *Logs) with(key string, f func(*keyLog) error) error {
	k, err := l.acquire(key)
	if err != nil {
		return err
	}
	defer l.release(k)
	return f(k)
}

// acquire returns the state of key, read from disk if it is not in memory.
func (l *Logs) acquire(key string) (*keyLog, error) {
	l.mu.Lock()
	k := l.keys[key]
	switch {
	case k == nil && !validKey.MatchString(key):
		l.mu.Unlock()
		return nil, fmt.Errorf("opening log: %q is no key", key)
	case l.closed:
		l.mu.Unlock()
		return nil, ErrClosed
	case k == nil:
		k = &keyLog{logs: l, key: key, dir: filepath.Join(l.dir, filepath.FromSlash(key))}
		l.keys[key] = k
	}
	k.refs++
	l.mu.Unlock()
	if err := k.load(); err != nil {
		l.release(k)
		return nil, err
	}
	return k, nil
}

func (l *Logs) release(k *keyLog) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k.refs--
	l.forget(k)
}

// forget drops the state of a key nobody uses. l.mu is held.
func (l *Logs) forget(k *keyLog) {
	if k.refs == 0 && !k.opened && l.keys[k.key] == k {
		delete(l.keys, k.key)
	}
}

// makeRoom closes the append files used longest ago, until one more may be
// open. The caller holds the write lock of k, which is left alone; others that
// are being written to are not waited for.
func (l *Logs) makeRoom(k *keyLog) {
	l.mu.Lock()
	var open []*keyLog
	for _, other := range l.keys {
		if other.opened && other != k {
			open = append(open, other)
		}
	}
	l.mu.Unlock()
	slices.SortFunc(open, func(a, b *keyLog) int { return cmp.Compare(a.used.Load(), b.used.Load()) })
	for excess := len(open) + 1 - l.options.OpenFiles; excess > 0 && len(open) > 0; open = open[1:] {
		if victim := open[0]; victim.write.TryLock() {
			// A failed close loses nothing: each write was complete before.
			_ = victim.closeFile()
			victim.write.Unlock()
			excess--
		}
	}
}
