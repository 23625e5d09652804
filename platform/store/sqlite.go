package store

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the driver "sqlite"
)

// openSQLite opens the file at path with one connection that writes and a few
// that read. In WAL mode neither side waits for the other; a second writer
// would only wait inside SQLite, without a queue.
func (s *Store) openSQLite(ctx context.Context, path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("finding the working directory: %w", err)
	}
	if err := makePrivate(path); err != nil {
		return err
	}
	s.writes, err = sql.Open("sqlite", sqliteDSN(path, "_txlock", "immediate"))
	if err != nil {
		return fmt.Errorf("preparing %s: %w", path, err)
	}
	s.writes.SetMaxOpenConns(1)
	s.prepared = newPrepared(s.writes)
	s.reads, err = sql.Open("sqlite", sqliteDSN(path, "_query_only", "true", "cache_size(-512)"))
	if err != nil {
		return fmt.Errorf("preparing %s: %w", path, err)
	}
	s.reads.SetMaxOpenConns(4)
	s.reads.SetMaxIdleConns(2)
	s.reads.SetConnMaxIdleTime(time.Minute) // each holds up to 512 KiB of cache

	if err := s.writes.PingContext(ctx); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := migrate(ctx, s.writes, goose.DialectSQLite3, s.log); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return s.prepare(ctx)
}

func sqliteDSN(path, key, value string, pragmas ...string) string {
	query := url.Values{
		"_pragma": append([]string{
			"busy_timeout(10000)", // another process, such as a backup, may hold the file
			"journal_mode(WAL)",
			"synchronous(FULL)", // a deployment that was answered for survives a power cut
			"foreign_keys(ON)",
			"journal_size_limit(16777216)", // gives the log's disk space back after a burst
		}, pragmas...),
		key: {value},
	}
	dsn := url.URL{Scheme: "file", Path: filepath.ToSlash(path), RawQuery: query.Encode()}
	return dsn.String()
}

// makePrivate makes sure that only the owner can read the database. SQLite
// gives its side files the same mode.
func makePrivate(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("making the database's directory: %w", err)
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("opening the database file: %w", err)
	}
	defer file.Close()
	if err := file.Chmod(0o600); err != nil {
		return fmt.Errorf("making the database file private: %w", err)
	}
	return nil
}
