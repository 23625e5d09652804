package telemetry

import (
	"bytes"
	"iter"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/denia-paas/denia/platform"
)

// MaxLine is how many bytes of text one record holds. A longer line becomes
// several records, cut between characters.
const MaxLine = 64 << 10

// maxRecord bounds a record with its time, stream, replica and line break.
const maxRecord = MaxLine + 256

const maxReplica = 128

// record is a line as it lies on disk, not yet copied out of the read buffer.
type record struct {
	ts      int64 // ns
	stream  byte
	replica []byte
	line    []byte
}

func streamByte(stream string) byte {
	switch stream {
	case platform.StreamStdout:
		return 'o'
	case platform.StreamStderr:
		return 'e'
	}
	return 's'
}

func streamName(b byte) string {
	switch b {
	case 'o':
		return platform.StreamStdout
	case 'e':
		return platform.StreamStderr
	}
	return platform.StreamSystem
}

// appendRecord encodes a line that records has made.
func appendRecord(b []byte, l platform.LogLine) []byte {
	b = strconv.AppendInt(b, l.TS.UnixNano(), 10)
	b = append(b, ' ', streamByte(l.Stream), ' ')
	b = append(b, l.Replica...)
	b = append(b, ' ')
	b = append(b, l.Line...)
	return append(b, '\n')
}

// parseRecord decodes a record without its line break. What a crash of the
// machine may have left instead of one is not ok.
func parseRecord(b []byte) (r record, ok bool) {
	ts, rest, ok := bytes.Cut(b, []byte{' '})
	if !ok || len(rest) < 3 || rest[1] != ' ' || (rest[0] != 'o' && rest[0] != 'e' && rest[0] != 's') {
		return record{}, false
	}
	r.stream = rest[0]
	if r.replica, r.line, ok = bytes.Cut(rest[2:], []byte{' '}); !ok {
		return record{}, false
	}
	if len(r.replica) == 1 && r.replica[0] == '-' {
		r.replica = nil
	}
	negative := len(ts) > 0 && ts[0] == '-'
	if negative {
		ts = ts[1:]
	}
	if len(ts) == 0 || len(ts) > 19 {
		return record{}, false
	}
	for _, c := range ts {
		if c < '0' || c > '9' {
			return record{}, false
		}
		r.ts = r.ts*10 + int64(c-'0')
	}
	if negative {
		r.ts = -r.ts
	}
	return r, true
}

func (r record) logLine() platform.LogLine {
	return platform.LogLine{
		TS: time.Unix(0, r.ts).UTC(), Stream: streamName(r.stream),
		Replica: string(r.replica), Line: string(r.line),
	}
}

// records gives the lines as which l is kept: usually l alone, with what a
// record cannot hold replaced.
func records(l platform.LogLine) iter.Seq[platform.LogLine] {
	return func(yield func(platform.LogLine) bool) { split(l, yield) }
}

func split(l platform.LogLine, yield func(platform.LogLine) bool) {
	if l.TS.IsZero() {
		l.TS = time.Now()
	}
	l.Replica = label(l.Replica)
	text := l.Line
	if !utf8.ValidString(text) {
		text = strings.ToValidUTF8(text, "\uFFFD")
	}
	for {
		line, rest, more := strings.Cut(text, "\n")
		for len(line) > MaxLine {
			cut := MaxLine
			for !utf8.RuneStart(line[cut]) {
				cut--
			}
			l.Line = line[:cut]
			if !yield(l) {
				return
			}
			line = line[cut:]
		}
		l.Line = line
		if !yield(l) || !more {
			return
		}
		text = rest
	}
}

// label makes a replica's label fit for a record.
func label(replica string) string {
	if replica == "" {
		return "-"
	}
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '_'
		}
		return r
	}, replica[:min(len(replica), maxReplica)])
}
