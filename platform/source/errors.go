package source

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"syscall"
	"unicode/utf8"

	"github.com/denia-paas/denia/platform"
)

func badName(entry, format string, args ...any) error {
	return entryError("bad_name", entry, format, args...)
}

func outside(entry, format string, args ...any) error {
	return entryError("entry_outside_root", entry, format, args...)
}

func notAllowed(entry, format string, args ...any) error {
	return entryError("entry_not_allowed", entry, format, args...)
}

func conflict(entry, format string, args ...any) error {
	return entryError("entry_conflict", entry, format, args...)
}

func entryError(code, entry, format string, args ...any) error {
	return platform.Errorf(platform.Invalid, code, "entry %s %s", quote(entry), fmt.Sprintf(format, args...))
}

// quote makes a name from an archive fit for a message: no control characters,
// and no more than a line of it.
func quote(name string) string {
	const most = 160
	if len(name) <= most {
		return strconv.QuoteToGraphic(name)
	}
	cut := most
	for cut > most-utf8.UTFMax && !utf8.RuneStart(name[cut]) {
		cut--
	}
	return strconv.QuoteToGraphic(name[:cut]) + "…"
}

// size writes a number of bytes for people, exactly where it is round.
func size(n int64) string {
	for _, unit := range []struct {
		bytes int64
		name  string
	}{{1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if n >= unit.bytes {
			if n%unit.bytes == 0 {
				return fmt.Sprintf("%d %s", n/unit.bytes, unit.name)
			}
			return fmt.Sprintf("%.1f %s", float64(n)/float64(unit.bytes), unit.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}

// diskError turns an error of writing at path into one that says what to do
// when the disk is full, and wraps it otherwise.
func diskError(err error, path string, written int64, doing string) error {
	if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%s: %w", doing, err)
	}
	free := ""
	if n, ok := freeBytes(filepath.Dir(path)); ok {
		free = fmt.Sprintf(", %s are free", size(n))
	}
	return platform.Wrap(fmt.Errorf("%s: %w", doing, err), platform.Unavailable, "disk_full",
		"the server's disk is full: %s were written%s; free some space on it and try again", size(written), free)
}

// ended tells whether err only says that ctx is over.
func ended(ctx context.Context, doing string) error {
	if ctx.Err() == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", doing, context.Cause(ctx))
}

// naming says at which entry a limit was passed.
func naming(entry string, err error) error {
	e, ok := errors.AsType[*platform.Error](err)
	if !ok || e.Kind != platform.TooLarge {
		return err
	}
	named := *e
	named.Message = fmt.Sprintf("at entry %s: %s", quote(entry), e.Message)
	return &named
}
