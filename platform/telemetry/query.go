package telemetry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/denia-paas/denia/platform"
)

// Query says which lines of a log are wanted. Zero fields want all.
type Query struct {
	Tail    int       // the last so many of those that match; 0: all, negative: none
	Since   time.Time // not older
	Until   time.Time // not newer
	Grep    string    // holding this text, to the letter
	Replica string    // of this replica, "3.0"
	Stream  string    // platform.StreamStdout, StreamStderr or StreamSystem
}

type filter struct {
	since, until int64
	grep         []byte
	replica      string
	stream       byte // 0: all
	also         func(record) bool
}

func (q Query) filter() filter {
	f := filter{since: math.MinInt64, until: math.MaxInt64, grep: []byte(q.Grep), replica: q.Replica}
	if !q.Since.IsZero() {
		f.since = q.Since.UnixNano()
	}
	if !q.Until.IsZero() {
		f.until = q.Until.UnixNano()
	}
	if q.Stream != "" {
		f.stream = streamByte(q.Stream)
		if streamName(f.stream) != q.Stream {
			f.stream = '?' // no line has it
		}
	}
	return f
}

func (f *filter) match(r record) bool {
	return r.ts >= f.since && r.ts <= f.until &&
		(f.stream == 0 || f.stream == r.stream) &&
		(f.replica == "" || f.replica == string(r.replica)) &&
		(len(f.grep) == 0 || bytes.Contains(r.line, f.grep)) &&
		(f.also == nil || f.also(r))
}

// Read returns the lines of key that q wants, in the order they were appended;
// none when there is no such log. With a Tail it reads no more of the log than
// it needs. The result is held in memory: give a Tail where the log may be
// large.
func (l *Logs) Read(key string, q Query) ([]platform.LogLine, error) {
	lines := []platform.LogLine{}
	if q.Tail < 0 {
		return lines, nil
	}
	err := l.with(key, func(k *keyLog) error {
		match := q.filter()
		if q.Tail > 0 {
			err := k.backwards(func(r record, _ int64) bool {
				if match.match(r) {
					lines = append(lines, r.logLine())
				}
				return len(lines) < q.Tail
			})
			slices.Reverse(lines)
			return err
		}
		s := newScanner(k, 0)
		defer s.close()
		end := k.snapshot().end // a busy log must not keep a reader for ever
		for {
			r, after, err := s.next()
			if errors.Is(err, errCaughtUp) || err == nil && after > end {
				return nil
			}
			if err != nil {
				return err
			}
			if match.match(r) {
				lines = append(lines, r.logLine())
			}
		}
	})
	if err != nil {
		return nil, err
	}
	return lines, nil
}

// Cursor names the place in a log behind a line. It stays valid across
// restarts, is safe in the id field of a server-sent event, and is opaque to
// everybody else. The zero Cursor is no place.
type Cursor string

func cursorAt(pos int64) Cursor { return Cursor(strconv.FormatInt(pos, 10)) }

func (c Cursor) position() (int64, error) {
	pos, err := strconv.ParseInt(string(c), 10, 64)
	if err != nil || pos < 0 {
		return 0, platform.Errorf(platform.Malformed, "bad_cursor", "%.40q is no cursor of a log", string(c))
	}
	return pos, nil
}

// Follower reads a log line by line and waits for more. One goroutine may use
// it at a time.
type Follower struct {
	k      *keyLog
	s      *scanner
	filter filter
}

// Follow reads the log of key from behind the line that after names: no line
// is missed and none comes twice. Where that line has been deleted, it goes on
// with the oldest there is. With the zero cursor it starts with the lines q
// wants; with any other, q.Tail is of no account. The rest of q holds for all
// lines. A log that does not exist yet is waited for. Close the Follower.
//
// A cursor that is none is a Malformed error with code bad_cursor.
func (l *Logs) Follow(ctx context.Context, key string, after Cursor, q Query) (*Follower, error) {
	return l.follow(ctx, key, after, q.Tail, q.filter())
}

func (l *Logs) follow(ctx context.Context, key string, after Cursor, tail int, only filter) (*Follower, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("following log: %w", err)
	}
	var pos int64
	if after != "" {
		var err error
		if pos, err = after.position(); err != nil {
			return nil, err
		}
	}
	k, err := l.acquire(key)
	if err != nil {
		return nil, err
	}
	f := &Follower{k: k, filter: only}
	switch {
	case after != "" || tail == 0:
	case tail < 0:
		pos = k.snapshot().end
	default:
		pos = k.snapshot().end
		left := tail
		err = k.backwards(func(r record, at int64) bool {
			if f.filter.match(r) {
				pos = at
				left--
			}
			return left > 0 && ctx.Err() == nil
		})
	}
	if err = errors.Join(err, ctx.Err()); err != nil {
		l.release(k)
		return nil, fmt.Errorf("following log: %w", err)
	}
	f.s = newScanner(k, pos)
	return f, nil
}

// Next returns the next line and the cursor behind it, and waits for it if
// need be. It ends with io.EOF after the last line of a finished log and when
// the log is removed, with the error of ctx, and with ErrClosed.
func (f *Follower) Next(ctx context.Context) (Cursor, platform.LogLine, error) {
	for {
		if err := ctx.Err(); err != nil {
			return "", platform.LogLine{}, err
		}
		r, after, err := f.s.next()
		if err == nil {
			if f.filter.match(r) {
				return cursorAt(after), r.logLine(), nil
			}
			continue
		}
		if !errors.Is(err, errCaughtUp) {
			return "", platform.LogLine{}, err
		}
		now, changed := f.k.watch()
		switch {
		case now.gone:
			return "", platform.LogLine{}, io.EOF
		case now.end > f.s.pos:
			continue
		case now.finished:
			return "", platform.LogLine{}, io.EOF
		case now.closed:
			return "", platform.LogLine{}, ErrClosed
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return "", platform.LogLine{}, ctx.Err()
		}
	}
}

// Close frees what the Follower holds. It does not wake a Next in another
// goroutine: cancel its context.
func (f *Follower) Close() error {
	if f.k == nil {
		return nil
	}
	f.s.close()
	f.k.logs.release(f.k)
	f.k = nil
	return nil
}
