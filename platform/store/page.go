package store

import (
	"encoding/base64"
	"encoding/json"
	"strconv"
	"time"

	"github.com/denia-paas/denia/platform"
)

const (
	defaultLimit = 50
	maxLimit     = 10_000
)

// Page asks for a part of a list.
//
// The first page has no Cursor; each method returns the one for the next page,
// "" at the end of the list. A cursor says where the last item stood, so rows
// that come or go between two pages neither repeat nor hide others. One that
// is not from the same list fails with Malformed, "bad_cursor".
//
// Lists by name follow the order of bytes on SQLite and on PostgreSQL the
// collation of the database.
type Page struct {
	Limit  int    // most items wanted; 0 means 50, above 10000 means 10000
	Cursor string // opaque
}

func (p Page) limit() int {
	if p.Limit <= 0 {
		return defaultLimit
	}
	return min(p.Limit, maxLimit)
}

// position reads the cursor: the n sort keys of the last item seen, or nil on
// the first page.
func (p Page) position(list string, n int) ([]string, error) {
	if p.Cursor == "" {
		return nil, nil
	}
	var keys []string
	text, err := base64.RawURLEncoding.DecodeString(p.Cursor)
	if err == nil {
		err = json.Unmarshal(text, &keys)
	}
	if err != nil || len(keys) != n+1 || keys[0] != list {
		return nil, badCursor()
	}
	return keys[1:], nil
}

// number reads a sort key that is a time or a number.
func number(key string) (int64, error) {
	n, err := strconv.ParseInt(key, 10, 64)
	if err != nil {
		return 0, badCursor()
	}
	return n, nil
}

func badCursor() error {
	return platform.Errorf(platform.Malformed, "bad_cursor", "the cursor is not one this list gave: start again without it")
}

// cut takes the surplus item off a list that was read with limit()+1, and
// makes the cursor of the next page from the last item that stays.
func cut[T any](p Page, list string, items []T, keys func(T) []string) ([]T, string) {
	if len(items) <= p.limit() {
		return items, ""
	}
	items = items[:p.limit()]
	text, err := json.Marshal(append([]string{list}, keys(items[len(items)-1])...))
	if err != nil {
		panic(err) // strings always encode
	}
	return items, base64.RawURLEncoding.EncodeToString(text)
}

func timeKey(t time.Time) string { return strconv.FormatInt(t.UnixMilli(), 10) }
