package telemetry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/denia-paas/denia/platform"
)

const requestsKind = "requests/"

// clockSlack is how far back entries may stand behind younger ones: requests
// end side by side, and clocks are set.
const clockSlack = time.Minute

// RequestsKey is the key of the log that holds the requests to a service.
func RequestsKey(service platform.ID) string { return requestsKind + string(service) }

// Requests keeps the access entries of services in Logs, one log a service,
// with a cap of its own. Its methods may be called concurrently.
type Requests struct {
	logs      *Logs
	unwritten func(platform.ID) []byte
}

// NewRequests keeps entries in logs. unwritten is called before each Read: it
// has what was gathered of the service so far appended, and returns what
// could not be, as records. It may be nil.
func NewRequests(logs *Logs, unwritten func(service platform.ID) []byte) *Requests {
	if unwritten == nil {
		unwritten = func(platform.ID) []byte { return nil }
	}
	return &Requests{logs: logs, unwritten: unwritten}
}

// Append adds records as platform.AppendAccess makes them, any number, at most
// a segment's worth of bytes. When it returns they survive the end of the
// process. After an error none of them is kept; what was there is intact.
func (r *Requests) Append(service platform.ID, records []byte) error {
	for {
		err := r.logs.with(RequestsKey(service), func(k *keyLog) error { return k.appendRecords(records) })
		if !errors.Is(err, errGone) {
			return err
		}
	}
}

// RequestQuery says which entries are wanted. Zero fields want all, but for
// Limit.
type RequestQuery struct {
	Limit  int       // the newest so many of those that match; 0: none
	Since  time.Time // not older
	Status int       // exactly
	Class  int       // 5: every status from 500 to 599
	Method string
	Path   string // what the path begins with, as it was sent
}

func (q *RequestQuery) match(line []byte) bool {
	status, rest, _ := bytes.Cut(line, []byte{' '})
	if q.Status != 0 {
		if n, err := strconv.Atoi(string(status)); err != nil || n != q.Status {
			return false
		}
	}
	if q.Class != 0 && (len(status) != 3 || int(status[0]-'0') != q.Class) {
		return false
	}
	if q.Method == "" && q.Path == "" {
		return true
	}
	method, rest, _ := bytes.Cut(rest, []byte{' '})
	if q.Method != "" && string(method) != q.Method {
		return false
	}
	_, rest, _ = bytes.Cut(rest, []byte{' '}) // the host
	path, _, _ := bytes.Cut(rest, []byte{' '})
	return q.Path == "" || bytes.HasPrefix(path, []byte(q.Path))
}

func (q *RequestQuery) filter() filter {
	f := Query{Since: q.Since}.filter()
	f.also = func(r record) bool { return q.match(r.line) }
	return f
}

// Read returns the entries of a service that q wants, newest first, and the
// cursor of those before them, "" when there are none. Given a cursor, it
// goes on from there. A cursor that is none is a Malformed error with code
// bad_cursor.
func (r *Requests) Read(service platform.ID, q RequestQuery, before Cursor) ([]platform.AccessEntry, Cursor, error) {
	entries := []platform.AccessEntry{}
	from := int64(-1)
	if before != "" {
		var err error
		if from, err = before.position(); err != nil {
			return nil, "", err
		}
	}
	if q.Limit <= 0 {
		return entries, "", nil
	}
	only := q.filter()
	if from < 0 {
		left := r.unwritten(service)
		for line := range backwardLines(left) {
			if rec, ok := parseRecord(line); ok && only.match(rec) && len(entries) < q.Limit {
				entries = appendEntry(entries, rec)
			}
		}
	}
	var next Cursor
	err := r.logs.with(RequestsKey(service), func(k *keyLog) error {
		last := k.snapshot().end
		if from >= 0 {
			last = min(last, from)
		}
		oldest := only.since
		if !q.Since.IsZero() {
			oldest -= int64(clockSlack)
		}
		return k.backwardsFrom(last, func(rec record, at int64) bool {
			switch {
			case rec.ts < oldest:
				return false
			case !only.match(rec):
			case len(entries) == q.Limit:
				next = cursorAt(last)
				return false
			default:
				entries = appendEntry(entries, rec)
				last = at
			}
			return true
		})
	})
	if err != nil {
		return nil, "", fmt.Errorf("reading the requests of service %s: %w", service, err)
	}
	return entries, next, nil
}

// Follow reads the entries of a service that q wants from behind the one that
// after names, and waits for more; see Logs.Follow. With the zero cursor it
// starts with the last q.Limit there are. RequestOf makes entries of its
// lines.
func (r *Requests) Follow(ctx context.Context, service platform.ID, after Cursor, q RequestQuery) (*Follower, error) {
	tail := q.Limit
	if tail <= 0 {
		tail = -1
	}
	return r.logs.follow(ctx, RequestsKey(service), after, tail, q.filter())
}

// RequestOf reads an entry out of a line that a Follower of Requests gave.
func RequestOf(l platform.LogLine) (e platform.AccessEntry, ok bool) {
	e, ok = platform.ParseAccess(l.Line)
	e.TS, e.Replica = l.TS, l.Replica
	return e, ok
}

// appendEntry adds the entry a record holds, if it holds one.
func appendEntry(entries []platform.AccessEntry, rec record) []platform.AccessEntry {
	if e, ok := RequestOf(rec.logLine()); ok {
		return append(entries, e)
	}
	return entries
}

// backwardLines gives the lines of text, the last first.
func backwardLines(text []byte) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for _, line := range slices.Backward(bytes.Split(bytes.TrimSuffix(text, []byte{'\n'}), []byte{'\n'})) {
			if !yield(line) {
				return
			}
		}
	}
}

// isRequests tells whether the key is that of requests.
func isRequests(key string) bool { return strings.HasPrefix(key, requestsKind) }
