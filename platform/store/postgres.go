package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
)

// Advisory locks are known by number; these two say "denia" and stand for
// opening the database and for writing to it.
const (
	openingLock = 0x64656e6961_01
	writingLock = 0x64656e6961_02
)

// openPostgres connects a small pool. Denia asks the database little, and
// each connection costs memory on both sides.
func (s *Store) openPostgres(ctx context.Context, dsn string) (err error) {
	config, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return err // pgx says what it could not parse, without the password
	}
	config.MaxConnIdleTime = 5 * time.Minute
	config.ConnConfig.StatementCacheCapacity = 128
	config.ConnConfig.DescriptionCacheCapacity = 128
	if _, named := config.ConnConfig.RuntimeParams["application_name"]; !named {
		config.ConnConfig.RuntimeParams["application_name"] = "denia"
	}
	// A process that was frozen amid a transaction must not keep the others
	// from writing.
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `SET idle_in_transaction_session_timeout = '60s'`)
		return err
	}
	s.exclusive = fmt.Sprintf(`SELECT pg_advisory_xact_lock(%d)`, int64(writingLock))

	// The lock lives as long as this connection, which is outside of the pool
	// so that a pool of one connection can still migrate.
	opening, err := pgx.ConnectConfig(ctx, config.ConnConfig)
	if err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = opening.Close(closing) // the server drops the lock with the connection, however it ends
	}()
	if _, err := opening.Exec(ctx, `SELECT pg_advisory_lock($1)`, int64(openingLock)); err != nil {
		return fmt.Errorf("waiting for other processes to migrate: %w", err)
	}

	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return fmt.Errorf("making the connection pool: %w", err)
	}
	s.release = pool.Close
	s.writes = stdlib.OpenDBFromPool(pool)
	s.writes.SetMaxOpenConns(int(config.MaxConns))
	s.reads = s.writes
	if err := migrate(ctx, s.writes, goose.DialectPostgres, s.log); err != nil {
		return err
	}
	return s.prepare(ctx)
}
