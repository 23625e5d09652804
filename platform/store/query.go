package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/denia-paas/denia/platform"
)

// tx runs statements: in one transaction when write made it, each by itself
// otherwise.
type tx struct {
	q   queryer
	now time.Time // one time for all rows of a transaction
}

type queryer interface {
	ExecContext(context.Context, string, ...any) (sql.Result, error)
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
}

func (s *Store) read() tx { return tx{q: s.reads, now: now()} }

// single runs one statement that needs no transaction around it, because no
// rule spans its row and others.
func (s *Store) single() tx { return tx{q: s.writes, now: now()} }

// write runs fn in a transaction and commits unless fn fails. No other write
// runs meanwhile, in this process or any other, so what fn reads stays true
// until it commits. fn must not use the Store itself.
func (s *Store) write(ctx context.Context, fn func(tx) error) error {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return fmt.Errorf("waiting for other writers: %w", context.Cause(ctx))
	}
	t, err := s.writes.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("beginning transaction: %w", err)
	}
	defer func() { _ = t.Rollback() }() // does nothing after a commit
	if s.exclusive != "" {
		if _, err := t.ExecContext(ctx, s.exclusive); err != nil {
			return fmt.Errorf("waiting for writers of other processes: %w", err)
		}
	}
	q := queryer(t)
	if s.prepared != nil {
		q = preparedTx{t, s.prepared}
	}
	if err := fn(tx{q: q, now: now()}); err != nil {
		return err
	}
	if err := t.Commit(); err != nil {
		return fmt.Errorf("committing: %w", err)
	}
	if s.prepared != nil {
		s.prepared.grow(context.WithoutCancel(ctx))
	}
	return nil
}

// exec runs a statement and returns how many rows it touched.
func (t tx) exec(ctx context.Context, text string, args ...any) (int64, error) {
	result, err := t.q.ExecContext(ctx, text, bind(args)...)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

type row interface{ Scan(...any) error }

// all returns every row of a query.
func all[T any](ctx context.Context, t tx, scan func(row) (T, error), text string, args ...any) ([]T, error) {
	var list []T
	err := each(ctx, t, scan, func(item T) bool {
		list = append(list, item)
		return true
	}, text, args...)
	return list, err
}

// each hands the rows of a query to visit, until that returns false; the rest
// is not read.
func each[T any](ctx context.Context, t tx, scan func(row) (T, error), visit func(T) bool, text string, args ...any) error {
	rows, err := t.q.QueryContext(ctx, text, bind(args)...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		item, err := scan(rows)
		if err != nil {
			return err
		}
		if !visit(item) {
			return nil
		}
	}
	return rows.Err()
}

// one returns the first row of a query, and whether there was any.
func one[T any](ctx context.Context, t tx, scan func(row) (T, error), text string, args ...any) (T, bool, error) {
	list, err := all(ctx, t, scan, text, args...)
	if err != nil || len(list) == 0 {
		var none T
		return none, false, err
	}
	return list[0], true, nil
}

// exists tells whether a query has a row.
func exists(ctx context.Context, t tx, text string, args ...any) (bool, error) {
	_, found, err := one(ctx, t, func(row) (struct{}, error) { return struct{}{}, nil }, text, args...)
	return found, err
}

func scanString(r row) (s string, err error) { return s, r.Scan(&s) }

func scanID(r row) (id platform.ID, err error) { return id, r.Scan(&id) }

// optional is an id whose absence is NULL.
type optional platform.ID

// bind turns our types into those every driver takes.
func bind(args []any) []any {
	bound := make([]any, len(args))
	for i, arg := range args {
		switch v := arg.(type) {
		case string:
			bound[i] = storable(v)
		case platform.ID:
			bound[i] = storable(string(v))
		case optional:
			if v != "" {
				bound[i] = storable(string(v))
			}
		case platform.Status:
			bound[i] = string(v)
		case platform.Role:
			bound[i] = string(v)
		case time.Time:
			bound[i] = v.UnixMilli()
		case *time.Time:
			if v != nil {
				bound[i] = v.UnixMilli()
			}
		case int:
			bound[i] = int64(v)
		default:
			bound[i] = arg
		}
	}
	return bound
}

// storable replaces what PostgreSQL refuses in a text, so that a strange id in
// a URL is a row that does not exist rather than a failure.
func storable(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

// scanFunc reads one column. A NULL comes as nil.
type scanFunc func(value any) error

func (f scanFunc) Scan(value any) error { return f(value) }

func intoTime(t *time.Time) sql.Scanner {
	return scanFunc(func(value any) error {
		ms, ok := value.(int64)
		if !ok {
			return fmt.Errorf("a time is stored as %T", value)
		}
		*t = time.UnixMilli(ms).UTC()
		return nil
	})
}

func intoOptionalTime(t **time.Time) sql.Scanner {
	return scanFunc(func(value any) error {
		if value == nil {
			*t = nil
			return nil
		}
		*t = new(time.Time)
		return intoTime(*t).Scan(value)
	})
}

func intoOptionalID(id *platform.ID) sql.Scanner {
	return scanFunc(func(value any) error {
		var text sql.NullString
		if err := text.Scan(value); err != nil {
			return err
		}
		*id = platform.ID(text.String)
		return nil
	})
}

// intoJSON leaves v alone for a NULL.
func intoJSON(v any) sql.Scanner {
	return scanFunc(func(value any) error {
		switch text := value.(type) {
		case nil:
			return nil
		case string:
			return json.Unmarshal([]byte(text), v)
		case []byte:
			return json.Unmarshal(text, v)
		default:
			return fmt.Errorf("a document is stored as %T", value)
		}
	})
}

// asJSON returns v as text, nil for a nil pointer.
func asJSON[T any](v *T) (any, error) {
	if v == nil {
		return nil, nil
	}
	text, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encoding %T: %w", v, err)
	}
	return string(text), nil
}

// builder puts a query together whose text depends on what is asked for.
type builder struct {
	text strings.Builder
	args []any
}

// add appends text; each ? in it becomes the placeholder of the next argument.
func (b *builder) add(text string, args ...any) {
	for _, arg := range args {
		before, after, _ := strings.Cut(text, "?")
		b.args = append(b.args, arg)
		fmt.Fprintf(&b.text, "%s$%d", before, len(b.args))
		text = after
	}
	b.text.WriteString(text)
}

// addIn appends "AND column IN (…)". ids must not be empty.
func (b *builder) addIn(column string, ids []platform.ID) {
	b.text.WriteString(" AND " + column + " IN (")
	for i, id := range ids {
		if i > 0 {
			b.text.WriteString(", ")
		}
		b.add("?", id)
	}
	b.text.WriteString(")")
}

// explain puts what was being done in front of an error that is nobody's to
// decide on, and turns a database that cannot work into Unavailable.
func explain(err *error, doing string, args ...any) {
	if *err == nil {
		return
	}
	if _, decided := errors.AsType[*platform.Error](*err); decided {
		return
	}
	*err = fmt.Errorf("%s: %w", fmt.Sprintf(doing, args...), *err)
	if errors.Is(*err, context.Canceled) || errors.Is(*err, context.DeadlineExceeded) {
		return // the caller's own doing, whatever it looks like further down
	}
	switch trouble(*err) {
	case unreachable:
		*err = platform.Wrap(*err, platform.Unavailable, "database_unavailable", "the database cannot be reached: try again later")
	case busy:
		*err = platform.Wrap(*err, platform.Unavailable, "database_busy", "the database is busy: try again later")
	case full:
		*err = platform.Wrap(*err, platform.Unavailable, "disk_full", "the disk that holds the database is full: free some space, then try again")
	}
}

// What can stand in the way of any statement.
const (
	unreachable = iota + 1
	busy
	full
)

func trouble(err error) int {
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		switch e.Code() & 0xff { // the rest says more than is needed
		case sqlite3.SQLITE_BUSY:
			return busy
		case sqlite3.SQLITE_FULL:
			return full
		}
		return 0
	}
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch {
		case e.Code == pgDiskFull:
			return full
		case e.Code == pgTooManyConnections:
			return busy
		case strings.HasPrefix(e.Code, pgShutdown):
			return unreachable
		}
		return 0
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return unreachable
	}
	if _, ok := errors.AsType[net.Error](err); ok || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, driver.ErrBadConn) {
		return unreachable
	}
	return 0
}

// SQLSTATEs, see PostgreSQL's appendix A.
const (
	pgDiskFull           = "53100"
	pgTooManyConnections = "53300"
	pgShutdown           = "57P0" // by an operator, by a crash, or not started yet
)
