package oci

import (
	"errors"
	"math"
	"strings"
)

// Errors of ranges.
var (
	// ErrUnsatisfiable says that nothing of what is there lies in the range,
	// or that it ends before it begins.
	ErrUnsatisfiable = errors.New("the range lies outside of the content")

	// ErrRange says that a chunk's Content-Range cannot be read.
	ErrRange = errors.New("a Content-Range is the first and the last byte's offset: 0-1023")
)

// Range is a run of bytes.
type Range struct {
	Start, Length int64
}

// ParseRange reads a request's Range header (RFC 9110, section 14.2) for
// content of that size. partial is false when all of the content is to be sent
// as if there was no header: it is empty, cannot be read, asks for several
// ranges or in another unit, or the content is empty. It fails with
// ErrUnsatisfiable.
func ParseRange(header string, size int64) (r Range, partial bool, err error) {
	spec, ok := strings.CutPrefix(header, "bytes=")
	if !ok || size == 0 {
		return Range{}, false, nil
	}
	from, to, ok := strings.Cut(strings.Trim(spec, " \t"), "-")
	if !ok {
		return Range{}, false, nil
	}
	if from == "" {
		n, ok := number(to)
		switch {
		case !ok:
			return Range{}, false, nil
		case n == 0:
			return Range{}, false, ErrUnsatisfiable
		}
		n = min(n, size)
		return Range{size - n, n}, true, nil
	}
	start, ok := number(from)
	if !ok {
		return Range{}, false, nil
	}
	end := int64(math.MaxInt64)
	if to != "" {
		if end, ok = number(to); !ok {
			return Range{}, false, nil
		}
	}
	if start >= size || end < start {
		return Range{}, false, ErrUnsatisfiable
	}
	end = min(end, size-1)
	return Range{start, end - start + 1}, true, nil
}

// ParseContentRange reads the Content-Range of a chunk of an upload: first and
// last offset joined by "-", as the distribution specification has it
// ("Pushing a blob in chunks"). HTTP's own form, "bytes 0-1023/2048", is
// understood as well. It fails with ErrRange.
func ParseContentRange(header string) (Range, error) {
	s := strings.TrimPrefix(header, "bytes ")
	s, _, _ = strings.Cut(s, "/")
	from, to, ok := strings.Cut(s, "-")
	if !ok {
		return Range{}, ErrRange
	}
	start, ok1 := number(from)
	end, ok2 := number(to)
	if !ok1 || !ok2 || end < start || end == math.MaxInt64 {
		return Range{}, ErrRange
	}
	return Range{start, end - start + 1}, nil
}

// number reads decimal digits, and nothing else.
func number(s string) (n int64, ok bool) {
	if s == "" {
		return 0, false
	}
	for i := range len(s) {
		c := s[i]
		if c < '0' || c > '9' {
			return 0, false
		}
		d := int64(c - '0')
		if n > (math.MaxInt64-d)/10 {
			return 0, false
		}
		n = n*10 + d
	}
	return n, true
}
