package telemetry

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/denia-paas/denia/platform"
)

const (
	// maxUnbroken is how much text without a line break a Writer holds.
	maxUnbroken = 1 << 20

	// cutMargin is dropped before the place where a longer text is cut: a
	// secret that is cut in two there would not be recognised, and none is
	// longer than this in any of its spellings (platform.MaxEnvBytes, three
	// bytes for each when URL-encoded).
	cutMargin = 256 << 10
)

var errWriterClosed = errors.New("writing log: writer is closed")

type writer struct {
	logs   *Logs
	key    string
	stream string
	redact func(string) string

	mu      sync.Mutex
	partial []byte // of a line
	cutting bool   // the rest of the line is dropped
	closed  bool
}

// Writer returns a writer that appends each line written to it to the log of
// key when it is complete, passed through redact, which may be nil. Close
// appends a last line that has no line break. Of a line longer than 1 MiB the
// first three quarters are kept and the rest dropped, with a remark. Its
// methods may be called concurrently. An error is that of Append; the lines of
// that Write are lost, the next ones go on.
func (l *Logs) Writer(key, stream string, redact func(string) string) io.WriteCloser {
	return &writer{logs: l, key: key, stream: stream, redact: redact}
}

func (w *writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return 0, errWriterClosed
	}
	var lines []platform.LogLine
	for rest := p; len(rest) > 0; {
		part, after, complete := bytes.Cut(rest, []byte{'\n'})
		rest = after
		for !w.cutting && len(part) > 0 {
			n := min(len(part), maxUnbroken-len(w.partial))
			w.partial = append(w.partial, part[:n]...)
			part = part[n:]
			if len(part) > 0 {
				lines = append(lines, w.cut())
			}
		}
		if !complete {
			break
		}
		if !w.cutting {
			lines = append(lines, w.line())
		}
		w.cutting = false
	}
	if len(w.partial) == 0 && cap(w.partial) > MaxLine {
		w.partial = nil
	}
	if len(lines) == 0 {
		return len(p), nil
	}
	if err := w.logs.Append(w.key, lines...); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (w *writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil
	}
	w.closed = true
	if len(w.partial) == 0 {
		return nil
	}
	return w.logs.Append(w.key, w.line())
}

// line takes the gathered text as one line.
func (w *writer) line() platform.LogLine {
	return w.logLine(w.take())
}

// cut takes the beginning of a line that is too long.
func (w *writer) cut() platform.LogLine {
	text := w.take()
	end := max(0, len(text)-cutMargin)
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	w.cutting = true
	return w.logLine(text[:end] + "… [line cut by Denia: longer than 1 MiB]")
}

func (w *writer) take() string {
	text := strings.TrimSuffix(string(w.partial), "\r")
	w.partial = w.partial[:0]
	if w.redact != nil {
		text = w.redact(text)
	}
	return text
}

func (w *writer) logLine(text string) platform.LogLine {
	return platform.LogLine{TS: time.Now(), Stream: w.stream, Line: text}
}
