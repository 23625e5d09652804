package telemetry

import (
	"fmt"
	"hash/maphash"
	"slices"
	"time"

	"github.com/denia-paas/denia/platform"
)

const (
	// disorder is how far the times of lines may run against their order in
	// the engine's log: it stamps stdout and stderr apart, then queues them.
	disorder = time.Second

	// maxTail bounds what is remembered of a replica that prints very much.
	maxTail = 1 << 16
)

var seed = maphash.MakeSeed()

// kept identifies a record.
type kept struct {
	ts     int64
	stream byte
	line   uint64 // hash
}

// tail is the end of what a log has of one replica: enough to tell, when the
// engine is asked again for its output, which lines are there already.
type tail struct {
	known bool // if not, the log must be looked at
	any   bool // the log has something of the replica
	last  int64
	lines []kept // those of the time around last, in order
}

// tail finds what the log of key has of a replica around its newest line.
func (l *Logs) tail(key, replica string) (tail, error) {
	replica = label(replica)
	t := tail{known: true}
	err := l.with(key, func(k *keyLog) error {
		return k.backwards(func(r record, _ int64) bool {
			if string(r.replica) != replica {
				return true
			}
			if !t.any || r.ts > t.last {
				t.any, t.last = true, r.ts
			}
			// Everything before a line that is older than this is older than
			// where the engine will be asked to begin.
			if r.ts < t.oldest() {
				return false
			}
			t.lines = append(t.lines, kept{r.ts, r.stream, maphash.Bytes(seed, r.line)})
			return true
		})
	})
	if err != nil {
		return tail{}, fmt.Errorf("finding where to go on: %w", err)
	}
	slices.Reverse(t.lines)
	return t, nil
}

func (t *tail) oldest() int64 { return t.last - 2*int64(disorder) }

// add notes lines that were appended.
func (t *tail) add(lines []platform.LogLine) {
	if !t.known {
		return
	}
	for _, l := range lines {
		k := kept{l.TS.UnixNano(), streamByte(l.Stream), maphash.String(seed, l.Line)}
		if !t.any || k.ts > t.last {
			t.any, t.last = true, k.ts
		}
		t.lines = append(t.lines, k)
	}
	if len(t.lines) < maxTail {
		return
	}
	t.lines = slices.DeleteFunc(t.lines, func(k kept) bool { return k.ts < t.oldest() })
	if len(t.lines) > maxTail/2 {
		*t = tail{}
	}
}

// overlap is what a reader that begins at since may give although it is there.
type overlap struct {
	since time.Time // zero: from the beginning
	last  int64
	kept  map[kept]int // how many of each
}

func (t *tail) overlap() *overlap {
	o := &overlap{last: t.last, kept: make(map[kept]int, len(t.lines))}
	if t.any {
		o.since = time.Unix(0, t.last-int64(disorder)).UTC()
	}
	for _, k := range t.lines {
		o.kept[k]++
	}
	return o
}

// without returns as which lines l is still to be appended. It takes what it
// finds out of the account, so that equal lines are counted, not merged.
func (o *overlap) without(l platform.LogLine) (fresh []platform.LogLine) {
	if o.kept != nil && l.TS.UnixNano() > o.last+int64(disorder) {
		o.kept = nil
	}
	for part := range records(l) {
		if o.kept != nil {
			this := kept{part.TS.UnixNano(), streamByte(part.Stream), maphash.String(seed, part.Line)}
			if o.kept[this] > 0 {
				o.kept[this]--
				continue
			}
		}
		fresh = append(fresh, part)
	}
	return fresh
}
